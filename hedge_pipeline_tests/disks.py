"""Small file systems that fill up."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
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
