"""A real Dask cluster on this machine: one scheduler and its workers, each a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE_SECONDS = 60


@dataclass
class Cluster:
    """Processes of a cluster.

    Attributes:
        address: of the scheduler.
        folder: logs and scratch files.
        scheduler: its process.
        workers: their processes, in order of name.
    """

    address: str
    folder: Path
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def add_worker(self) -> subprocess.Popen[bytes]:
        """Starts one more worker with one thread, without a nanny that would start it again."""
        name = f"worker-{len(self.workers)}"
        arguments = ["worker", self.address, "--name", name, "--nthreads", "1", "--no-nanny"]
        more = ["--no-dashboard", "--local-directory", str(self.folder)]
        self.workers.append(_start(self.folder / f"{name}.log", *arguments, *more))
        return self.workers[-1]

    def log_of(self, name: str) -> str:
        """What a process has said."""
        return (self.folder / f"{name}.log").read_text()


@contextmanager
def cluster_in(folder: Path, workers: int) -> Iterator[Cluster]:
    """A cluster with so many workers; it is gone at the end."""
    file = folder / "scheduler.json"
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file"]
    scheduler = _start(folder / "scheduler.log", "scheduler", *options, str(file))
    cluster = Cluster("", folder, scheduler)
    try:
        cluster.address = _address(file)
        for _ in range(workers):
            cluster.add_worker()
        wait_until(lambda: _registered(cluster) == workers, "the workers to appear")
        yield cluster
    finally:
        for process in [*cluster.workers, scheduler]:
            process.kill()
            process.wait()


def wait_until(done: object, what: str) -> None:
    """Waits until the function `done` says so.

    Raises:
        TimeoutError: it did not.
    """
    assert callable(done)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_SECONDS} s for {what}")
        time.sleep(0.05)


def _registered(cluster: Cluster) -> int:
    return cluster.log_of("scheduler").count("Register worker")


def _address(file: Path) -> str:
    wait_until(lambda: file.exists() and file.read_text().endswith("}"), "the scheduler")
    return str(json.loads(file.read_text())["address"])


def _start(log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "dask", *arguments], stdout=file, stderr=subprocess.STDOUT
        )
