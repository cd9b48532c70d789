"""The running service: one code server, the daemon, the web UI and MLflow's UI.

The UIs listen on HEDGE_BIND, which is loopback unless an authenticating proxy stands before them;
everything else speaks over sockets in a fresh folder. A process that ends is started again alone,
see `processes.py`, which this process becomes; if that is of no use, all are ended and the exit
code is not zero. All but MLflow's are copies of it. The daemon and the web server share one code
server; a python-module workspace would start a new one every minute.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from hedge_pipeline import scratch
from hedge_pipeline.disks import refusal, written_folders
from hedge_pipeline.logs import first_line
from hedge_pipeline.processes import STOPPING, Program
from hedge_pipeline.resources import views
from hedge_pipeline.settings import SettingsError

if TYPE_CHECKING:
    from hedge_pipeline.settings import Settings

LOOPBACK = "127.0.0.1"
_OF_SQLITE = ("history", "schedules")
UNFINISHED_REASON = "the service was stopped while this run was under way"


@dataclass(frozen=True)
class Ports:
    """Ports of the two UIs, at HEDGE_BIND."""

    dagster: int = 3000
    mlflow: int = 5000


def dagster_home(settings: Settings) -> Path:
    """DAGSTER_HOME, or a folder inside the data folder."""
    given = os.environ.get("DAGSTER_HOME")
    if given:
        return Path(given).resolve()
    local = "." if "://" in settings.data_url else settings.data_url
    return (Path(local) / "dagster_home").resolve()


@contextlib.contextmanager
def _written(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingsError(
            f"{home} cannot be written: {error.strerror}; set DAGSTER_HOME to a folder that can be"
        ) from None


def claim(home: Path) -> TextIO:
    """Takes the home for this process and for whoever inherits the file, until it is closed.

    Args:
        home: DAGSTER_HOME; made if there is none.

    Raises:
        SettingsError: a service runs there, or the home cannot be written.
    """
    with _written(home):
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / "service.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise SettingsError(
                f"another service, or what a killed one left running, uses {home}: stop it first"
            ) from None
    return lock


def _is_cut(own: bytes, wanted: bytes) -> bool:
    """Whether a power loss has left of a copy its beginning only, which ends within a line."""
    return wanted.startswith(own) and not own.endswith(b"\n")


def prepare(home: Path, configuration: Path) -> int:
    """Makes a claimed home ready before any process uses it; returns the runs reported as failed.

    The instance is opened once here, since processes that create its databases at the same time
    disturb each other. Runs left over from a crash are reported as failed; of a service that runs
    they would be its own, so the home must be claimed.

    Args:
        home: DAGSTER_HOME, see `claim`.
        configuration: dagster.yaml to copy if the home has none.

    Raises:
        SettingsError: the home cannot be written, or what is in it cannot be used.
    """
    with _written(home):  # what a killed start has left
        for left in home.glob(".databases.*.tmp"):
            shutil.rmtree(left)
        for left in home.glob(".dagster.yaml.*.tmp"):
            left.unlink()
        own = home / "dagster.yaml"
        wanted = configuration.read_bytes()
        if not own.exists() or _is_cut(own.read_bytes(), wanted):
            copied = home / f".dagster.yaml.{os.getpid()}.tmp"
            with copied.open("wb") as file:
                file.write(wanted)
                file.flush()
                os.fsync(file.fileno())
            copied.replace(own)
    os.environ["DAGSTER_HOME"] = str(home)
    import dagster as dg

    unfinished = [
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.CANCELING,
    ]
    try:
        if not all((home / folder).exists() for folder in _OF_SQLITE):
            _make_databases(home)
        with dg.DagsterInstance.get() as instance:
            left_over = instance.get_runs(dg.RunsFilter(statuses=unfinished))
            for run in left_over:
                instance.report_run_failed(run, UNFINISHED_REASON)
            return len(left_over)
    except Exception as error:  # YAML, Dagster and every database have errors of their own
        raise SettingsError(
            f"{own}, or a database it names, cannot be used: {first_line(error)}; put this "
            "version's dagster.yaml there, or see `hedge restore`"
        ) from error


def _make_databases(home: Path) -> None:
    """Makes the SQLite files of a new home aside and puts them in place whole.

    Dagster makes them table by table and takes what a kill has left for files of an old version,
    whose missing indices nobody makes. A home with another storage gets none.
    """
    import dagster as dg

    aside = home / f".databases.{os.getpid()}.tmp"
    aside.mkdir()
    shutil.copy(home / "dagster.yaml", aside)
    with dg.DagsterInstance.from_config(str(aside)):
        pass
    for folder in _OF_SQLITE:
        if (aside / folder).exists() and not (home / folder).exists():
            (aside / folder).rename(home / folder)
    shutil.rmtree(aside)


def commands(
    settings: Settings, ports: Ports, folder: Path, *, headless: bool
) -> dict[str, str | Program]:
    """What every process runs, by name.

    Args:
        settings: of the deployment.
        ports: of the two UIs.
        folder: fresh folder for the socket and the workspace file.
        headless: without the two UIs.
    """
    address, workspace = str(folder / "code.sock"), folder / "workspace.yaml"
    workspace.write_text(
        f"load_from:\n  - grpc_server: {{socket: {address}, location_name: hedge_pipeline}}\n"
    )
    server = ("api", "grpc", "--socket", address, "--module-name", "hedge_pipeline.definitions")
    found: dict[str, str | Program] = {
        # a killed server leaves its socket behind
        "code": Program("dagster", (*server, "--location-name", "hedge_pipeline"), fresh=address),
        # a daemon that is there before the code server sees its schedules a minute later
        "daemon": Program("dagster._daemon", ("run", "-w", str(workspace)), after=address),
    }
    if not headless:
        found["dagster"] = Program(
            "hedge_pipeline.resources.dagster_ui",
            ("-w", str(workspace), "-h", settings.bind, "-p", str(ports.dagster)),
            after=address,
        )
        # `mlflow server --app-name hedge` starts this very line and waits beside it with 190 MB
        found["mlflow"] = (
            f"{_who_may_ask(settings, ports)} "
            '_MLFLOW_SERVER_FILE_STORE="$MLFLOW_BACKEND_STORE_URI" _MLFLOW_SGI_NAME=uvicorn '
            "_MLFLOW_SERVER_SERVE_ARTIFACTS=true _MLFLOW_SERVER_ARTIFACT_ROOT=mlflow-artifacts:/ "
            f"_MLFLOW_SERVER_ARTIFACT_DESTINATION={shlex.quote(settings.artifacts)} "
            f"exec {shlex.quote(sys.executable)} -m uvicorn "
            "hedge_pipeline.resources.mlflow_ui:app --workers 1 --log-level warning "
            f"--host {shlex.quote(settings.bind)} --port {ports.mlflow}"
        )
    return found


def _who_may_ask(settings: Settings, ports: Ports) -> str:
    """MLflow's checks of host and origin: loopback unless the settings say otherwise."""
    own = [f"{host}:{ports.mlflow}" for host in ("localhost", LOOPBACK, "[::1]")]
    hosts = settings.mlflow_allowed_hosts or ",".join(own)
    origins = settings.mlflow_allowed_origins or ",".join(f"http://{host}" for host in own)
    return (
        f"MLFLOW_SERVER_ALLOWED_HOSTS={shlex.quote(hosts)} "
        f"MLFLOW_SERVER_CORS_ALLOWED_ORIGINS={shlex.quote(origins)}"
    )


def serve(settings: Settings, ports: Ports, configuration: Path, *, headless: bool) -> NoReturn:
    """Becomes the service, which runs until it is told to stop.

    Raises:
        SettingsError: another service runs in the same home, home or data folder cannot be
            written, or a port cannot be listened on.
    """
    home = dagster_home(settings)
    lock = claim(home)
    if not headless:
        _check_ports(settings.bind, ports)
    left_over = prepare(home, configuration)
    written = written_folders(settings.data_url, home)
    for needed in written:
        if reason := refusal(Path(needed)):
            raise SettingsError(f"{needed} cannot be written: {reason}: check its disk")
    if left_over:
        print(left_over_words(left_over), file=sys.stderr)
    environment = {
        **os.environ,
        "HEDGE_AUTOSTART": "true",
        "HEDGE_CALENDAR": settings.calendar,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # not on the command line, where every process of the machine could read its password
        "MLFLOW_BACKEND_STORE_URI": settings.tracking_uri,
        # what was freed goes back to the system: a sixth less memory of a poll run
        "MALLOC_ARENA_MAX": "2",
        "MALLOC_TRIM_THRESHOLD_": "100000",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "OPENBLAS_NUM_THREADS": "1",  # threads do not survive in the copies of the keeper
        "PYTHONUNBUFFERED": "1",
        "SPT_NOENV": "1",  # titles of processes leave the environment readable
        **({} if headless else pages(settings, ports)),
    }
    folder, held = scratch.make()
    wanted = commands(settings, ports, folder, headless=headless)
    inherited = [lock.fileno(), held]
    order = {
        "commands": {x: y if isinstance(y, str) else asdict(y) for x, y in wanted.items()},
        "folder": str(folder),
        "inherited": inherited,
        "written": written,
        "alarm": "hedge_pipeline.resources.last_words",
        "imported": "hedge_pipeline.resources.shared",
    }
    for descriptor in inherited:
        os.set_inheritable(descriptor, True)  # held until the last process has ended
    sys.stdout.flush()
    sys.stderr.flush()
    # until the new program listens to them
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    arguments = [sys.executable, "-m", "hedge_pipeline.processes", json.dumps(order)]
    os.execve(sys.executable, arguments, environment)


def host_in_url(bind: str) -> str:
    """An address as it stands in a URL; one of IPv6 in brackets."""
    return f"[{bind}]" if ":" in bind else bind


def pages(settings: Settings, ports: Ports) -> dict[str, str]:
    """Where a browser finds the two UIs, for links from one to the other.

    Behind a proxy only the settings know.
    """
    host = host_in_url(settings.bind)
    found = {"HEDGE_DAGSTER_URL": settings.dagster_url, "HEDGE_MLFLOW_URL": settings.mlflow_url}
    if not settings.behind_proxy:
        found["HEDGE_DAGSTER_URL"] = found["HEDGE_DAGSTER_URL"] or f"http://{host}:{ports.dagster}"
        found["HEDGE_MLFLOW_URL"] = found["HEDGE_MLFLOW_URL"] or f"http://{host}:{ports.mlflow}"
    return found


def addresses(settings: Settings, ports: Ports) -> dict[str, str]:
    """Where a person looks, by UI; without those that nobody knows here, see `pages`."""
    found = pages(settings, ports)
    dagster, mlflow = found["HEDGE_DAGSTER_URL"], found["HEDGE_MLFLOW_URL"].rstrip("/")
    shown = {"dagster": dagster, "mlflow": mlflow and f"{mlflow}/{views.HOME}"}
    return {name: page for name, page in shown.items() if page}


def left_over_words(count: int) -> str:
    """What became of runs that nobody ended, in words."""
    if not count:
        return "no run was left over"
    runs = "1 run was left over and is" if count == 1 else f"{count} runs were left over and are"
    return f"{runs} reported as failed"


def _check_ports(bind: str, ports: Ports) -> None:
    if ports.dagster == ports.mlflow:
        raise SettingsError(f"both UIs cannot have port {ports.mlflow}: change --mlflow-port")
    for option, port in (("--port", ports.dagster), ("--mlflow-port", ports.mlflow)):
        try:
            family, kind, _, _, address = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                raise SettingsError(f"HEDGE_BIND={bind} is no address of this machine") from None
            why = {
                errno.EADDRINUSE: "is in use",
                errno.EACCES: "is for the system's own services only",
            }.get(error.errno or 0, f"cannot be listened on ({error.strerror})")
            raise SettingsError(f"port {port} {why}: choose another with {option}") from None
