"""A real PostgreSQL server for tests, where Debian's packages have left one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/nowhere"))


@dataclass
class Postgres:
    """A PostgreSQL server on loopback, in a folder of its own that its user can reach."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def variables(self) -> dict[str, str]:
        """What the deployment on PostgreSQL reads from the environment."""
        server = f"postgresql+psycopg2://hedge:canary-password@127.0.0.1:{self.port}"
        return {
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_USER": "hedge",
            "POSTGRES_PASSWORD": "canary-password",
            "POSTGRES_DB": "postgres",
            "MLFLOW_TRACKING_URI": f"{server}/mlflow",
        }

    def home(self, folder: Path) -> Path:
        """A DAGSTER_HOME with the committed configuration and this server's port."""
        configuration = (DEPLOY / "dagster.postgres.yaml").read_text()
        folder.mkdir(parents=True)
        changed = configuration.replace("port: 5432", f"port: {self.port}")
        (folder / "dagster.yaml").write_text(changed)
        return folder

    @property
    def owner(self) -> list[str]:
        """PostgreSQL does not run as root."""
        return ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []

    def create(self) -> None:
        if self.owner:
            shutil.chown(self.folder, "postgres")
        initdb = [str(BINARIES / "initdb"), "-D", str(self.folder / "data"), "-U", "hedge"]
        subprocess.run(
            [*self.owner, *initdb, "--auth=trust", "--no-sync"],
            check=True,
            capture_output=True,
            cwd="/",
        )
        self.start()
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute((DEPLOY / "postgres.sql").read_text())

    def start(self) -> None:
        options = ["unix_socket_directories=", "listen_addresses=127.0.0.1", "fsync=off"]
        given = [word for option in options for word in ("-c", option)]
        server = [str(BINARIES / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port)]
        self.process = subprocess.Popen(
            [*self.owner, *server, *given],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )
        self.connect().close()

    def connect(self, database: str = "postgres") -> Any:
        """A connection, as soon as the server answers."""
        import psycopg2

        address = f"host=127.0.0.1 port={self.port} user=hedge dbname={database}"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(psycopg2.OperationalError):
                connection = psycopg2.connect(address)
                connection.autocommit = True
                return connection
            time.sleep(0.1)
        raise AssertionError("PostgreSQL does not answer")

    def stop(self) -> None:
        """As an operator restarts it: connections are cut."""
        assert self.process is not None
        number = (self.folder / "data" / "postmaster.pid").read_text().split()[0]
        os.kill(int(number), signal.SIGINT)
        self.process.wait(20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A fresh server; skips where there is none."""
    with running() as server:
        yield server


@contextlib.contextmanager
def running() -> Iterator[Postgres]:
    """A fresh server until the end of the block; skips where there is none."""
    if not BINARIES.exists() or (os.getuid() == 0 and shutil.which("runuser") is None):
        pytest.skip("PostgreSQL's server is not installed (Debian: postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="hedge-postgres-"))
    server = Postgres(folder, free_port())
    try:
        server.create()
        yield server
    finally:
        if server.process is not None:
            server.stop()
        shutil.rmtree(folder)
