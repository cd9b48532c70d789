"""The running service: one code server, the daemon, the web UI and MLflow's UI, all on loopback.

A process that ends is started again alone, see `processes.py`; if that is of no use, all are ended
and the exit code is not zero. The daemon and the web server share one code server
over a socket in a fresh folder; a python-module workspace would start a new one every minute.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hedge_pipeline.settings import SettingsError

if TYPE_CHECKING:
    from hedge_pipeline.settings import Settings

LOOPBACK = "127.0.0.1"
UNFINISHED_REASON = "the service was stopped while this run was under way"


@dataclass(frozen=True)
class Ports:
    """Ports on loopback."""

    dagster: int = 3000
    mlflow: int = 5000


def dagster_home(settings: Settings) -> Path:
    """DAGSTER_HOME, or a folder inside the data folder."""
    given = os.environ.get("DAGSTER_HOME")
    if given:
        return Path(given).resolve()
    local = "." if "://" in settings.data_url else settings.data_url
    return (Path(local) / "dagster_home").resolve()


def prepare(home: Path, configuration: Path) -> int:
    """Makes the home ready before any process uses it; returns the runs reported as failed.

    The instance is opened once here, since processes that create its databases at the same time
    disturb each other. Runs left over from a crash are reported as failed.

    Args:
        home: DAGSTER_HOME.
        configuration: dagster.yaml to copy if the home has none.
    """
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        shutil.copy(configuration, home / "dagster.yaml")
    os.environ["DAGSTER_HOME"] = str(home)
    import dagster as dg

    unfinished = [
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.CANCELING,
    ]
    with dg.DagsterInstance.get() as instance:
        left_over = instance.get_runs(dg.RunsFilter(statuses=unfinished))
        for run in left_over:
            instance.report_run_failed(run, UNFINISHED_REASON)
        return len(left_over)


def commands(settings: Settings, ports: Ports, folder: Path, *, headless: bool) -> dict[str, str]:
    """Command line of every process, by name.

    Args:
        settings: of the deployment.
        ports: of the two UIs.
        folder: fresh folder for the socket and the workspace file.
        headless: without the two UIs.
    """
    address, workspace = folder / "code.sock", folder / "workspace.yaml"
    workspace.write_text(
        f"load_from:\n  - grpc_server: {{socket: {address}, location_name: hedge_pipeline}}\n"
    )
    run = shlex.quote(sys.executable)
    # a daemon that is there before the code server sees its schedules a minute later
    ready = f"while [ ! -S {address} ]; do sleep 0.2; done; exec {run}"
    found = {
        # a killed server leaves its socket behind
        "code": f"rm -f {address}; exec {run} -m dagster api grpc --socket {address} "
        "--module-name hedge_pipeline.definitions --location-name hedge_pipeline",
        "daemon": f"{ready} -m dagster._daemon run -w {workspace}",
    }
    if not headless:
        found["dagster"] = (
            f"{ready} -m dagster_webserver -w {workspace} -h {LOOPBACK} -p {ports.dagster}"
        )
        found["mlflow"] = (
            f"exec {run} -m mlflow server --workers 1 --host {LOOPBACK} --port {ports.mlflow} "
            f"--backend-store-uri {shlex.quote(settings.tracking_uri)}"
        )
    return found


def serve(settings: Settings, ports: Ports, configuration: Path, *, headless: bool) -> int:
    """Runs the service until it is told to stop; returns the exit code.

    Raises:
        SettingsError: another service runs in the same home, or a port is in use.
    """
    from hedge_pipeline.processes import Keeper

    home = dagster_home(settings)
    home.mkdir(parents=True, exist_ok=True)
    lock = (home / "service.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise SettingsError(
            f"another service, or what a killed one left running, uses {home}: stop it first"
        ) from None
    if not headless:
        _refuse_ports_in_use(ports)
    left_over = prepare(home, configuration)
    if left_over:
        print(f"{left_over} runs were left over and are reported as failed", file=sys.stderr)
    environment = {
        **os.environ,
        "HEDGE_AUTOSTART": "true",
        "HEDGE_CALENDAR": settings.calendar,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MALLOC_ARENA_MAX": "2",
        "PYTHONUNBUFFERED": "1",
    }
    with tempfile.TemporaryDirectory(prefix="hedge-") as folder:
        keeper = Keeper(environment, inherited=[lock.fileno()])
        for name, command in commands(settings, ports, Path(folder), headless=headless).items():
            keeper.add(name, command)
        return keeper.run()


def _refuse_ports_in_use(ports: Ports) -> None:
    for option, port in (("--port", ports.dagster), ("--mlflow-port", ports.mlflow)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                raise SettingsError(
                    f"port {port} is in use: choose another with {option}"
                ) from None
