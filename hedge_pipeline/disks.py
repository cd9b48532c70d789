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
        usage, number = shutil.disk_usage(folder), folder.stat().st_dev
        refuses = refusal(folder) if written else ""
        if refuses or number not in found:  # one may be mounted twice
            found[number] = Disk(str(folder), usage.free, usage.total, refuses)
    return tuple(found.values())


def written_folders(data_url: str, home: Path) -> tuple[str, ...]:
    """Folders without whose disks nothing can go on: see `disks`."""
    data = [] if "://" in data_url else [data_url]
    return (*([str(home)] if (home / "history").is_dir() else []), *data)


def refusal(folder: Path, kinds: tuple[int, ...] = (errno.EROFS, errno.EIO)) -> str:
    """Why nobody can write on a folder's disk; "" = it takes writes, or who asks may not try.

    Tried by a file, since a kernel that distrusts a disk tells only who writes.

    Args:
        folder: one on it.
        kinds: of errors that count: read-only, and one that may pass, of a network for instance.
    """
    probe = folder / f".probe-{os.getpid()}"
    try:
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        return os.strerror(error.errno) if error.errno in kinds else ""
    return ""


def _existing(path: Path) -> Path:
    path = path.resolve()
    return next(x for x in (path, *path.parents) if x.exists())
