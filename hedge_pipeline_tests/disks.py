"""Small file systems that fill up or take no write any more."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """The folder as a file system of so much, "64k" or "256m"; skips who may not mount one."""
    tmpfs = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(tmpfs, capture_output=True, check=False).returncode:
        pytest.skip("a full disk needs the right to mount a small one")
    try:
        yield folder
    finally:
        # lazily: a process that was killed may not be gone yet
        subprocess.run(["umount", "-l", str(folder)], check=True)


@dataclass(frozen=True)
class Ext4:
    """An ext4 in an image, which its kernel may be told to distrust.

    Attributes:
        image: file that holds it.
        folder: where it is mounted.
    """

    image: Path
    folder: Path

    @classmethod
    def made(cls, image: Path, folder: Path, size: int) -> Ext4:
        """A new one of so many bytes."""
        with image.open("wb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
        return cls(image, folder)

    def mount(self) -> None:
        options = ["-o", "loop,errors=remount-ro"]
        subprocess.run(["mount", *options, str(self.image), str(self.folder)], check=True)

    def unmount(self) -> None:
        """Until nobody holds it: what is mounted before that is what was, read-only as it was."""
        subprocess.run(["umount", str(self.folder)], check=True)
        held = ["losetup", "--associated", str(self.image)]
        deadline = time.monotonic() + 30
        while subprocess.run(held, capture_output=True, check=True).stdout:
            assert time.monotonic() < deadline, "somebody else has it mounted, too"
            time.sleep(0.1)

    @property
    def fault(self) -> Path:
        """What is written there makes the kernel take the device for faulty."""
        found = ["findmnt", "--noheadings", "--output", "SOURCE", str(self.folder)]
        device = subprocess.run(found, capture_output=True, text=True, check=True).stdout.strip()
        return Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error")

    def fail(self) -> None:
        """What an error of the device does: no write succeeds until it is mounted again."""
        self.fault.write_text("1")

    def repair(self) -> None:
        """Checks and mends it as a start of the machine would."""
        done = subprocess.run(["e2fsck", "-p", "-f", str(self.image)], check=False)
        assert done.returncode in (0, 1), done  # 1 = errors were mended


@contextlib.contextmanager
def ext4(folder: Path, size: int) -> Iterator[Ext4]:
    """An ext4 mounted in a folder; skips who may not mount one."""
    (folder / "disk").mkdir()
    try:
        disk = Ext4.made(folder / "image", folder / "disk", size)
        disk.mount()
        with disk.fault.open("w"):
            pass
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a disk with errors needs mkfs.ext4 and the right to mount: {error}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk.folder)], check=False)
