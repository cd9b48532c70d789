"""The service as a user starts it: real processes, killed and started again; nothing is left over.

Schedules tick by the minute, so two services go through their stories side by side: one with the
web UIs whose poll run is killed, and one without them that loses its power.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hedge_pipeline import scratch
from hedge_pipeline.live.supervision import Heartbeat
from hedge_pipeline.market.tables import PREDICTION_LOG, RAW_QUOTES
from hedge_pipeline.processes import REQUESTS
from hedge_pipeline.store import Store
from hedge_pipeline_tests.markets import MINUTE
from hedge_pipeline_tests.replays import command, environment, hedge

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parent.parent
MARK = "HEDGE_TEST_MARK"
START_SECONDS = 30.0  # of a process on a busy machine
RECOVERY_SECONDS = 60.0 + 10.0 + 10.0  # the supervisor's minute, an interval, and a busy machine
LISTENING = "0A"  # in /proc/net/tcp
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


TICKS = """{{scheduleOrError(scheduleSelector: {{repositoryName: "__repository__",
repositoryLocationName: "hedge_pipeline", scheduleName: "{}"}})
{{... on Schedule {{scheduleState {{ticks(limit: 100) {{timestamp skipReason}}}}}}}}}}"""
MESSAGES = """{{logsForRun(runId: "{}") {{... on EventConnection
{{events {{... on MessageEvent {{message level}}}}}}}}}}"""


@dataclass
class Service:
    """A service of the test's own; its processes are found by a mark in their environment."""

    data: Path
    port: int
    mlflow_port: int
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    process: subprocess.Popen[bytes] | None = None

    @property
    def variables(self) -> dict[str, str]:
        return environment(
            HEDGE_SOURCE="simulated",
            HEDGE_SYMBOLS="SIMQ",
            HEDGE_DATA_URL=str(self.data),
            POLLING_INTERVAL="10",
            DAGSTER_HOME=str(self.data / "dagster_home"),
            **{MARK: self.mark},
        )

    @property
    def log(self) -> Path:
        """What it says."""
        return self.data / "service.log"

    @property
    def store(self) -> Store:
        return Store(str(self.data))

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            command(*arguments),
            cwd=REPOSITORY,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def start(self, *arguments: str) -> None:
        ports = ("--port", str(self.port), "--mlflow-port", str(self.mlflow_port))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command("up", *ports, *arguments),
                cwd=REPOSITORY,
                env=self.variables,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def processes(self) -> dict[int, str]:
        """Command lines of the living processes that carry the mark, by id."""
        wanted = f"{MARK}={self.mark}".encode()
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    text = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if text:  # a zombie has none
                        found[int(folder.name)] = text.strip()
        return found

    def addresses(self) -> set[str]:
        """Addresses its processes listen on or speak to, over IPv4 and IPv6."""
        own = set()
        for pid in self.processes():
            for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
                with contextlib.suppress(OSError):
                    own.add(str(descriptor.readlink()))
        found = set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                parts = line.split()
                if f"socket:[{parts[9]}]" in own:
                    end = parts[1] if parts[3] == LISTENING else parts[2]
                    words = bytes.fromhex(end.partition(":")[0])
                    turned = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                    found.add(str(ipaddress.ip_address(turned)))
        return found

    def kill_everything(self) -> None:
        """What a power loss does; again until nothing new has come up."""
        while found := self.processes():
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self.process is not None:
                self.process.wait(10)
            time.sleep(0.05)

    def runs(self, job: str = "poll_market") -> list[dict[str, Any]]:
        """Runs of a job, newest first, from the run storage itself."""
        import dagster as dg

        told = {dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.ENGINE_EVENT}
        with dg.DagsterInstance.from_config(str(self.data / "dagster_home")) as instance:
            records = instance.get_run_records(dg.RunsFilter(job_name=job))
            return [
                {
                    "id": record.dagster_run.run_id,
                    "status": record.dagster_run.status.value,
                    "said": [
                        event.message
                        for event in instance.all_logs(record.dagster_run.run_id, of_type=told)
                    ],
                }
                for record in records
            ]

    def heartbeat(self) -> Heartbeat | None:
        return Heartbeat.read(self.store)

    def poller(self) -> int:
        """Process id of the poll run, as the run itself has reported it."""
        import dagster as dg

        beat = self.heartbeat()
        assert beat is not None
        with dg.DagsterInstance.from_config(str(self.data / "dagster_home")) as instance:
            for event in instance.all_logs(beat.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
                data = event.dagster_event and event.dagster_event.engine_event_data.metadata
                if data and "pid" in data:
                    return int(str(data["pid"].value))
        raise AssertionError(f"run {beat.run_id} names no process")

    def get(self, port: int, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.read().decode()

    def ask(self, query: str) -> Any:
        """An answer of Dagster's GraphQL."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql",
            json.dumps({"query": query}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)["data"]

    def told(self, run_id: str) -> list[tuple[str, str]]:
        """Level and words of a run's log, as the UI shows it."""
        events = self.ask(MESSAGES.format(run_id))["logsForRun"]["events"]
        return [(event["level"], event["message"]) for event in events if event.get("message")]

    def looks(self, schedule: str) -> list[tuple[float, str]]:
        """When a schedule has looked, in POSIX seconds, and why it started nothing, as in the UI.

        The newest first.
        """
        ticks = self.ask(TICKS.format(schedule))["scheduleOrError"]["scheduleState"]["ticks"]
        return [(tick["timestamp"], tick["skipReason"] or "") for tick in ticks]

    def terminate(self, run_id: str) -> None:
        """What the UI does when a user ends a run."""
        import dagster as dg

        with dg.DagsterInstance.from_config(str(self.data / "dagster_home")) as instance:
            assert instance.run_launcher.terminate(run_id)

    def environ(self) -> dict[str, str]:
        """Environment of the service's own processes."""
        (daemon,) = self.running("dagster._daemon")
        lines = Path(f"/proc/{daemon}/environ").read_text().split("\0")
        folder = Path(self.processes()[daemon].split()[-1]).parent
        told = dict(line.split("=", 1) for line in lines if "=" in line)
        return {**told, REQUESTS: str(folder / "runs.sock")}  # the keeper has set it since

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def wait_for(self, what: str, seconds: float, true: Callable[[], Any]) -> Any:
        """The first answer that is not empty."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, f"the service ended: {self.tail()}"
            with contextlib.suppress(OSError, ValueError):
                if found := true():
                    return found
            time.sleep(0.5)
        raise AssertionError(f"no {what} within {seconds} s\n{self.tail()}")

    def running(self, what: str) -> list[int]:
        """Ids of the processes that run this Python module."""
        return [x for x, told in self.processes().items() if what in told]

    def polled(self) -> pd.Timestamp:
        """Time of the last poll."""
        beat = self.heartbeat()
        assert beat is not None
        return pd.Timestamp(beat.moment)

    def polls_after(self, earlier: Heartbeat) -> bool:
        """Whether another run than this one polls."""
        beat = self.heartbeat()
        return beat is not None and beat.run_id != earlier.run_id

    def live_rows(self) -> pd.DataFrame:
        rows = self.store.read(PREDICTION_LOG)
        return rows[(rows["role"] == "served") & rows["mode"].isin(["live", "catch_up"])]

    def assert_no_minute_is_missing_or_doubled(self) -> None:
        """From midnight to the last bar, in bars and in predictions."""
        for label in self.store.sessions(PREDICTION_LOG):
            bars = self.store.read(RAW_QUOTES, [label])["bar_ts"]
            assert (bars.diff().dropna() == MINUTE).all()
            assert bars.iloc[0] == pd.Timestamp(label, tz="UTC")
            rows = self.store.read(PREDICTION_LOG, [label])
            served = rows[rows["role"] == "served"]
            assert served["bar_ts"].tolist() == bars.tolist()[: len(served)]
            assert len(bars) - len(served) <= 1  # one may be on its way

    def assert_ends_on(self, number: signal.Signals) -> None:
        """Every process is gone within 20 s of the signal."""
        assert self.process is not None
        begun = time.monotonic()
        self.process.send_signal(number)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running: {self.processes()}\n{self.tail()}")
        while self.processes() and time.monotonic() - begun < 20:
            time.sleep(0.2)
        assert self.processes() == {}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Service]]:
    """With and without the UIs, each with a first model, just started."""
    folder = tmp_path_factory.mktemp("service")
    (folder / "data").mkdir()
    first = Service(folder / "data", free_port(), free_port())
    second = Service(folder / "headless", free_port(), free_port())
    try:
        assert "SIMQ: version 1 on " in first.run("bootstrap", "--days", "6")
        shutil.copytree(first.data, second.data)
        first.start()
        second.start("--headless")
        yield first, second
    finally:
        first.kill_everything()
        second.kill_everything()


@pytest.fixture(scope="module")
def service(services: tuple[Service, Service]) -> Service:
    return services[0]


@dataclass(frozen=True)
class Struck:
    """A service that was started again after a power loss.

    Attributes:
        lost: last sign of life of the poll run that was under way.
        status: of that run, before the new start.
        cut: the newest files of this and of the last session's bars, of which half did not reach
            the disk.
    """

    service: Service
    lost: Heartbeat
    status: str
    cut: tuple[Path, ...]


@pytest.fixture(scope="module")
def struck(services: tuple[Service, Service]) -> Struck:
    headless = services[1]
    lost: Heartbeat = headless.wait_for("poll run", 120, headless.heartbeat)
    headless.kill_everything()
    statuses = {run["id"]: run["status"] for run in headless.runs()}
    labels = headless.store.sessions(RAW_QUOTES)
    sessions = [headless.data / RAW_QUOTES.name / f"session={x}" for x in labels[-2:]]
    cut = tuple(
        max(session.glob("part-*.parquet"), key=lambda path: path.stat().st_mtime_ns)
        for session in sessions
    )
    for path in cut:
        os.truncate(path, path.stat().st_size // 2)
    headless.start("--headless")
    return Struck(headless, lost, statuses[lost.run_id], cut)


def test_a_poll_run_predicts_and_the_uis_show_it(service: Service) -> None:
    service.wait_for("live prediction", 120, lambda: len(service.live_rows()))
    assert "live" in set(service.live_rows()["mode"])
    assert service.live_rows()["prediction"].notna().all()
    info = json.loads(
        service.wait_for("web server", 20, lambda: service.get(service.port, "/server_info"))
    )
    assert "dagster_webserver_version" in info
    assert (
        service.wait_for("MLflow", 40, lambda: service.get(service.mlflow_port, "/health")) == "OK"
    )
    search = f"http://127.0.0.1:{service.mlflow_port}/api/2.0/mlflow/registered-models/search"
    assert "hedge-SIMQ" in urllib.request.urlopen(search, timeout=10).read().decode()
    for header in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        request = urllib.request.Request(search.replace("search", "create"), b"{}", header)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request, timeout=10)
        graphql = f"http://127.0.0.1:{service.port}/graphql"
        request = urllib.request.Request(graphql, b'{"query": "{version}"}', header)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request, timeout=10)
    query = """{
        instance { daemonHealth { allDaemonStatuses { daemonType healthy required } } }
        assetNodes { assetKey { path } assetMaterializations(limit: 1) { runId partition } }
    }"""

    def shown() -> dict[str, str]:
        nodes = service.ask(query)["assetNodes"]
        return {
            node["assetKey"]["path"][0]: node["assetMaterializations"][0]["runId"]
            for node in nodes
            if node["assetMaterializations"]
        }

    stages = ("raw_quotes", "features", "prediction_log")
    found = service.wait_for(
        "materialization", 20, lambda: all(x in shown() for x in stages) and shown()
    )
    beat = service.heartbeat()
    assert beat is not None
    assert {found[name] for name in stages} == {beat.run_id}
    daemons = service.ask(query)["instance"]["daemonHealth"]["allDaemonStatuses"]
    ill = [x["daemonType"] for x in daemons if x["required"] and not x["healthy"]]
    assert ill == []
    line = r"logged prediction: SIMQ @ \d+\.\d\d = [01] \(up 0\.\d{3}, trust 0\.\d\d, skill "
    assert re.search(line, service.log.read_text(errors="replace"))


def test_the_service_speaks_to_its_own_machine_only(
    service: Service, services: tuple[Service, Service]
) -> None:
    assert "127.0.0.1" in service.addresses()
    for each in services:
        assert each.addresses() <= LOOPBACK


ONE_POLL = """
import sys
import dagster as dg
from hedge_pipeline.definitions import defs
job = defs().resolve_job_def("poll_market")
with dg.DagsterInstance.ephemeral() as instance:
    assert job.execute_in_process(instance=instance).success
heavy = ("mlflow", "sklearn", "matplotlib", "yfinance", "xgboost")
print([name for name in heavy if sys.modules.get(name)])
"""


def test_a_poll_run_that_predicts_imports_xgboost_and_nothing_else_that_is_heavy(
    service: Service, tmp_path: Path
) -> None:
    idle = replace(service, data=tmp_path / "data")
    ignored = shutil.ignore_patterns("dagster_home", "mlflow.db*", "service.log")
    shutil.copytree(service.data, idle.data, ignore=ignored)
    label = idle.store.sessions(PREDICTION_LOG)[-1]
    rows = idle.store.read(PREDICTION_LOG, [label])
    newest = rows["bar_ts"].max()
    idle.store.replace(PREDICTION_LOG, label, rows[rows["bar_ts"] < newest])
    # the next poll is not within the time box
    box = {"POLLING_INTERVAL": "3600", "HEDGE_POLL_RUN_MINUTES": "1", "HEDGE_CALENDAR": "24/7"}
    done = subprocess.run(
        [sys.executable, "-c", ONE_POLL],
        cwd=REPOSITORY,
        env={**idle.variables, **box},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "['xgboost']\n", done.stderr[-3000:]
    assert newest in set(idle.live_rows()["bar_ts"])


@pytest.mark.parametrize("which", ["dagster api grpc", "dagster._daemon"])
def test_a_killed_process_is_started_again_while_polling_goes_on(
    service: Service, which: str
) -> None:
    before = service.heartbeat()
    assert before is not None
    (victim,) = service.running(which)
    os.kill(victim, signal.SIGKILL)
    service.wait_for("new process", 20, lambda: set(service.running(which)) - {victim})
    killed = pd.Timestamp.now("UTC")
    service.wait_for("poll", 40, lambda: service.polled() > killed)
    assert not service.polls_after(before)
    service.assert_no_minute_is_missing_or_doubled()


@pytest.mark.parametrize(
    ("which", "page"), [("dagster_ui", "/server_info"), ("uvicorn", "/health")]
)
def test_a_killed_web_ui_is_started_again_alone_and_answers(
    service: Service, which: str, page: str
) -> None:
    roles = ("hedge: keeper", "dagster api grpc", "dagster._daemon", "dagster_ui", "uvicorn")
    before = {role: service.running(role) for role in roles}
    (victim,) = before.pop(which)
    polling = service.heartbeat()
    assert polling is not None
    port = service.port if which == "dagster_ui" else service.mlflow_port
    service.wait_for("page", 40, lambda: service.get(port, page))
    os.kill(victim, signal.SIGKILL)
    service.wait_for("new process", 20, lambda: set(service.running(which)) - {victim})
    service.wait_for("page", 60, lambda: service.get(port, page))
    assert {role: service.running(role) for role in before} == before
    assert not service.polls_after(polling)


def test_what_is_made_in_the_ui_of_mlflow_lies_in_the_data_folder(service: Service) -> None:
    address = f"http://127.0.0.1:{service.mlflow_port}"
    service.wait_for("MLflow", 60, lambda: service.get(service.mlflow_port, "/health"))
    made = urllib.request.Request(
        f"{address}/api/2.0/mlflow/experiments/create",
        b'{"name": "by hand"}',
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(made, timeout=10) as answer:
        number = json.load(answer)["experiment_id"]
    found = service.get(
        service.mlflow_port, f"/api/2.0/mlflow/experiments/get?experiment_id={number}"
    )
    assert json.loads(found)["experiment"]["artifact_location"] == f"mlflow-artifacts:/{number}"
    path = f"/api/2.0/mlflow-artifacts/artifacts/{number}/note.txt"
    put = urllib.request.Request(f"{address}{path}", b"a note", method="PUT")
    urllib.request.urlopen(put, timeout=10).close()
    assert service.get(service.mlflow_port, path) == "a note"
    assert (service.data / "mlartifacts" / number / "note.txt").read_text() == "a note"
    assert not [x for x in ("mlruns", "mlartifacts") if (REPOSITORY / x / number).exists()]


@pytest.fixture(scope="module")
def orphan(service: Service, struck: Struck) -> Heartbeat:
    """Last sign of life of a poll run that was killed after the code server that started it."""
    beat = service.heartbeat()
    assert beat is not None
    os.kill(service.poller(), signal.SIGKILL)
    return beat


def test_after_a_power_loss_the_lost_run_is_reported_and_polling_resumes(
    struck: Struck, orphan: Heartbeat
) -> None:
    assert struck.status == "STARTED"  # nobody was left to say that it is dead
    service = struck.service
    service.wait_for(
        "poll run", START_SECONDS + RECOVERY_SECONDS, lambda: service.polls_after(struck.lost)
    )
    (failed,) = [run for run in service.runs() if run["id"] == struck.lost.run_id]
    assert failed["status"] == "FAILURE"
    assert any("stopped while this run was under way" in line for line in failed["said"])
    service.assert_no_minute_is_missing_or_doubled()


def test_a_file_that_the_power_loss_cut_is_moved_aside_told_and_made_up_for(
    struck: Struck,
) -> None:
    import dagster as dg

    service, aside = struck.service, [x.with_name(f".broken-{x.name}") for x in struck.cut]
    service.wait_for("poll run", START_SECONDS, lambda: service.polls_after(struck.lost))
    assert list(service.store.quarantined()) == [str(x.relative_to(service.data)) for x in aside]
    service.assert_no_minute_is_missing_or_doubled()
    beat = service.heartbeat()
    assert beat is not None
    with dg.DagsterInstance.from_config(str(service.data / "dagster_home")) as instance:
        said_by_run = [entry.user_message for entry in instance.all_logs(beat.run_id)]
    assert {f"broken, moved aside: {path}" for path in aside} <= set(said_by_run)
    said = hedge("health", "--json", cwd=Path("/"), **service.variables)
    troubles = {x["name"]: x["message"] for x in json.loads(said.stdout)["troubles"]}
    assert "2 broken files were moved aside" in troubles["2 broken files"]


def test_a_killed_poll_run_is_replaced_by_the_next_tick_and_catches_up(struck: Struck) -> None:
    service = struck.service
    beat = service.heartbeat()
    assert beat is not None
    os.kill(service.poller(), signal.SIGKILL)
    killed = pd.Timestamp.now("UTC")
    service.wait_for("poll run", RECOVERY_SECONDS, lambda: service.polls_after(beat))
    service.assert_no_minute_is_missing_or_doubled()
    ends = service.live_rows()["bar_ts"].max() + MINUTE
    assert ends > killed - MINUTE  # the first poll has fetched what was missing
    (failed,) = [run for run in service.runs() if run["id"] == beat.run_id]
    assert failed["status"] == "FAILURE"
    assert any("(SIGKILL)" in line for line in failed["said"]), failed["said"]


def test_a_poll_run_that_is_terminated_ends_within_seconds(struck: Struck) -> None:
    service = struck.service
    beat, victim = service.heartbeat(), service.poller()
    assert beat is not None
    begun = time.monotonic()
    service.terminate(beat.run_id)
    service.wait_for("end of the run", 10, lambda: victim not in service.processes())
    assert time.monotonic() - begun < 10
    statuses = {run["id"]: run["status"] for run in service.runs()}
    assert statuses[beat.run_id] == "CANCELED"
    service.assert_no_minute_is_missing_or_doubled()


def test_a_second_daemon_does_no_harm(struck: Struck) -> None:
    """Both see at the same minute that nobody polls."""
    service = struck.service
    (daemon,) = service.running("dagster._daemon")
    workspace = service.processes()[daemon].split()[-1]
    said = service.data / "second.log"
    with said.open("wb") as log:
        second = subprocess.Popen(
            [sys.executable, "-m", "dagster._daemon", "run", "-w", workspace],
            cwd=REPOSITORY,
            env=service.environ(),
            stdout=log,
            stderr=log,
        )
    try:
        service.wait_for(
            "second daemon", START_SECONDS, lambda: "following daemons" in said.read_text()
        )
        beat = service.heartbeat()
        assert beat is not None
        with contextlib.suppress(ProcessLookupError):  # it was terminated by the test before
            os.kill(service.poller(), signal.SIGKILL)
        service.wait_for("poll run", RECOVERY_SECONDS, lambda: service.polls_after(beat))
        time.sleep(15)  # until a second run would have polled
        assert second.poll() is None
        assert "polling_schedule" in said.read_text()
    finally:
        second.kill()
        second.wait()
    service.assert_no_minute_is_missing_or_doubled()
    assert [run["status"] for run in service.runs()].count("STARTED") == 1


def test_a_second_poll_run_takes_over_and_nothing_is_doubled(struck: Struck) -> None:
    service = struck.service
    beat = service.heartbeat()
    assert beat is not None
    job = ("-m", "hedge_pipeline.definitions", "-j", "poll_market")
    second = subprocess.Popen(
        [sys.executable, "-m", "dagster", "job", "execute", *job],
        cwd=REPOSITORY,
        env=service.environ(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    try:
        service.wait_for("second", START_SECONDS + 10, lambda: service.polls_after(beat))

        def first_has_ended() -> bool:
            return any(x["id"] == beat.run_id and x["status"] == "SUCCESS" for x in service.runs())

        service.wait_for("end of the first", 30, first_has_ended)
        time.sleep(12)  # the second polls alone
        assert second.poll() is None
    finally:
        second.send_signal(signal.SIGINT)
        assert second.wait(20) is not None
    service.assert_no_minute_is_missing_or_doubled()


def test_a_killed_poll_run_is_reported_and_replaced(service: Service, orphan: Heartbeat) -> None:
    # its code server is gone, so only its silence tells: three intervals, a minute, a start
    service.wait_for("new poll run", 240, lambda: service.polls_after(orphan))
    runs = {run["id"]: run["status"] for run in service.runs()}
    assert runs.pop(orphan.run_id) == "FAILURE"
    assert list(runs.values()) == ["STARTED"]
    service.assert_no_minute_is_missing_or_doubled()


@pytest.mark.parametrize(("which", "number"), [(0, signal.SIGTERM), (1, signal.SIGINT)])
def test_a_signal_ends_every_process_and_the_poll_run_says_that_it_was_ended(
    services: tuple[Service, Service], which: int, number: signal.Signals
) -> None:
    service = services[which]
    service.wait_for("poll run", 120, lambda: service.runs()[0]["status"] == "STARTED")
    polling = service.runs()[0]["id"]
    service.assert_ends_on(number)
    statuses = {run["id"]: run["status"] for run in service.runs()}
    assert statuses[polling] in {"FAILURE", "CANCELED"}
    assert "STARTED" not in statuses.values()


def test_ctrl_c_ends_a_service_that_is_still_starting(service: Service) -> None:
    service.start()
    service.wait_for("daemon", 60, lambda: "dagster._daemon" in str(service.processes()))
    service.assert_ends_on(signal.SIGINT)


def test_a_killed_keeper_takes_every_process_with_it_and_a_new_start_is_possible(
    service: Service,
) -> None:
    """Whatever watches over the service sees this one process only."""
    service.start("--headless")
    service.wait_for("daemon", 60, lambda: service.running("dagster._daemon"))
    service.wait_for("code server", 60, lambda: service.running("dagster api grpc"))
    assert service.process is not None
    (daemon,) = service.running("dagster._daemon")
    folder = Path(service.processes()[daemon].split()[-1]).parent
    scratch.sweep(dt.timedelta(0))
    assert folder.exists()  # it is in use
    service.process.kill()
    deadline = time.monotonic() + 20
    while service.processes() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert service.processes() == {}
    # an ending process lets go of its memory, by which it is found, before its descriptors
    while folder.exists() and time.monotonic() < deadline:
        scratch.sweep(dt.timedelta(0))
        time.sleep(0.05)
    assert not folder.exists()
    service.start("--headless")
    service.wait_for("daemon", 60, lambda: service.running("dagster._daemon"))
    service.assert_ends_on(signal.SIGTERM)
