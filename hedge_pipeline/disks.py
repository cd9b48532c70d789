"""The file systems that hold state: how much room they have, and whether they take writes."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Disk:
    """A file system that holds state.

    Attributes:
        folder: one on it.
        free: bytes that may still be written.
        total: bytes of all.
        refuses: see `refusal`; "" also where nothing need be written.
    """

    folder: str
    free: int
    total: int
    refuses: str = ""

    @property
    def share(self) -> float:
        """How much of it is free."""
        return self.free / max(self.total, 1)


def disks(data_url: str, home: Path | None) -> tuple[Disk, ...]:
    """The file systems of a local data folder and of DAGSTER_HOME, each once.

    A home without databases, as with PostgreSQL, may be read-only.
    """
    folders = [] if "://" in data_url else [(Path(data_url), True)]
    folders += [(home, (home / "history").is_dir())] if home is not None else []
    found: dict[int, Disk] = {}
    for wanted, written in folders:
        folder = _existing(wanted)
        usage = shutil.disk_usage(folder)
        refuses = refusal(folder) if written else ""
        found.setdefault(folder.stat().st_dev, Disk(str(folder), usage.free, usage.total, refuses))
    return tuple(found.values())


def refusal(folder: Path) -> str:
    """Why nobody can write on a folder's disk; "" = it takes writes, or who asks may not try.

    Tried by a file, since a kernel that distrusts a disk tells only who writes.
    """
    probe = folder / f".probe-{os.getpid()}"
    try:
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        return os.strerror(error.errno) if error.errno in (errno.EROFS, errno.EIO) else ""
    return ""


def _existing(path: Path) -> Path:
    path = path.resolve()
    return next(x for x in (path, *path.parents) if x.exists())
