"""Temporary folders, and the removal of those that killed processes have left.

Whoever uses a folder holds a lock on a file in it. The system lets go of the lock when the last
process that has it ends, however it ends, so a folder without one is used by nobody.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PREFIX = "hedge-"
LOCK = "in-use.lock"


def make() -> tuple[Path, int]:
    """A fresh folder that only this user can read, and the descriptor that holds it.

    It is in use until every process has closed the descriptor or ended.
    """
    path = Path(tempfile.mkdtemp(prefix=PREFIX))
    descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return path, descriptor


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A fresh folder until the end of the block."""
    path, descriptor = make()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


@contextlib.contextmanager
def alone(what: str, patience: float) -> Iterator[IO[bytes]]:
    """One process of this user and machine at a time, until the end of the block.

    Args:
        what: that is done.
        patience: seconds to wait for another one; after that this one goes on beside it.

    Yields:
        A small file in which one may leave something for the next.
    """
    digest = hashlib.sha256(what.encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"hedge_{os.getuid()}_{digest}.lock"
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW  # somebody else may have put a link there
    with os.fdopen(os.open(path, flags, 0o600), "r+b") as file:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.05)
        yield file


def sweep(older: dt.timedelta) -> int:
    """Removes folders of this user that nobody holds; returns how many.

    Args:
        older: only those that were made at least so long ago.
    """
    count = 0
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, held, or gone meanwhile
            count += _remove_unless_held(path, older)
    return count


def _remove_unless_held(path: Path, older: dt.timedelta) -> bool:
    """Whether the folder was removed; one without our lock file is not ours."""
    made, lock = path.lstat(), (path / LOCK).lstat()
    ours = stat.S_ISDIR(made.st_mode) and made.st_uid == lock.st_uid == os.getuid()
    if not ours or time.time() - lock.st_mtime < older.total_seconds():
        return False
    descriptor = os.open(path / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path)
    finally:
        os.close(descriptor)
    return True
