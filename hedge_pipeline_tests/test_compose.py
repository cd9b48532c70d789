"""The services of the compose file as real processes, on PostgreSQL and S3.

Each gets the command and the environment that compose would give it, in a folder with what the
image copies, and the programs that the image's first stage installs from its own lock; hosts and
ports are those of this machine, and `/data` is a folder of the test.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml  # type: ignore[import-untyped]

from hedge_pipeline.backup import Places, back_up
from hedge_pipeline.market.tables import PREDICTION_LOG
from hedge_pipeline.service import UNFINISHED_REASON
from hedge_pipeline.store import Store
from hedge_pipeline_tests.databases import BINARIES, Postgres, free_port, running
from hedge_pipeline_tests.replays import environment
from hedge_pipeline_tests.test_backup import s3 as s3_server
from hedge_pipeline_tests.test_image import image_in
from hedge_pipeline_tests.test_queue import run_of
from hedge_pipeline_tests.test_secrets import unpacked
from hedge_pipeline_tests.test_service import MESSAGES

pytestmark = pytest.mark.long

s3 = s3_server
REPOSITORY = Path(__file__).resolve().parent.parent
DATA = "s3://hedge/live"
RUNS = "{ runsOrError(limit: 50) { ... on Runs { results { jobName status } } } }"


def image_variables() -> dict[str, str]:
    """What the Dockerfile's last stage sets, without the paths of its own programs."""
    text = (REPOSITORY / "Dockerfile").read_text().replace("\\\n", " ")
    words = [line for line in text.splitlines() if line.startswith("ENV ")][-1].split()[1:]
    found = dict(word.split("=", 1) for word in words)
    return {name: value for name, value in found.items() if name not in ("PATH", "HOME")}


def copied_files() -> list[str]:
    """Files the image has in its working directory, beside the installed package."""
    last = (REPOSITORY / "Dockerfile").read_text().rpartition("WORKDIR /app")[2]
    lines = [line.split()[1:-1] for line in last.splitlines() if line.startswith("COPY ")]
    return [name for names in lines for name in names]


def resolved(text: str, given: dict[str, str]) -> str:
    """As compose replaces `${NAME}` and `$$`."""
    found = re.sub(r"\$\{(\w+)(?::\?[^}]*)?\}", lambda match: given[match[1]], text)
    return found.replace("$$", "$")


@dataclass
class Composed:
    """The services, started one by one.

    Attributes:
        folder: holds `app`, the working directory, and `data`, the volume.
        programs: of the image.
        lead: what the user writes into `.env`.
        database: PostgreSQL's port.
        ports: of the services, by the port in the compose file.
    """

    folder: Path
    programs: Path
    lead: dict[str, str]
    database: int
    ports: dict[str, int] = field(
        default_factory=lambda: {port: free_port() for port in ("4000", "3000", "5000")}
    )
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "data").mkdir()
        for name in copied_files():
            target = self.folder / "app" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(self.here((REPOSITORY / name).read_text()))

    @property
    def services(self) -> dict[str, Any]:
        text = (REPOSITORY / "deploy" / "compose.yaml").read_text()
        found: dict[str, Any] = yaml.safe_load(text)["services"]
        return found

    def here(self, text: str) -> str:
        """The text with this machine's ports and folders."""
        text = text.replace("@postgres/", f"@127.0.0.1:{self.database}/")
        text = text.replace("port: 5432", f"port: {self.database}")
        text = re.sub(r"\b(mlflow|code):(?=\d)", "127.0.0.1:", text).replace("0.0.0.0", "127.0.0.1")
        text = re.sub(r"(?<![\w/.-])/data\b", str(self.folder / "data"), text)
        for port, own in self.ports.items():
            text = re.sub(rf"\b{port}\b", str(own), text)
        return text

    def variables(self, name: str) -> dict[str, str]:
        service = self.services[name]
        assert service["env_file"] == [".env"]
        told = {k: resolved(str(v), self.lead) for k, v in service["environment"].items()}
        hosts = {k: "127.0.0.1" for k, v in told.items() if v in ("code", "postgres")}
        given = {k: self.here(v) for k, v in {**image_variables(), **self.lead, **told}.items()}
        own = {"PATH": f"{self.programs}:{os.environ['PATH']}"}
        found = environment(**{**given, **hosts, **own})
        return {k: v for k, v in found.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def start(self, name: str) -> None:
        words = [self.here(resolved(word, self.lead)) for word in self.services[name]["command"]]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                words,
                cwd=self.folder / "app",
                env=self.variables(name),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def hedge(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """As `docker compose exec` runs it beside a service."""
        return self.executes(name, ["hedge", *arguments])

    def executes(
        self, name: str, words: list[str], **further: str
    ) -> subprocess.CompletedProcess[str]:
        """Any other program, beside a service."""
        return subprocess.run(
            words,
            cwd=self.folder / "app",
            env=self.variables(name) | further,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def get(self, port: str, path: str, body: Any = None) -> bytes:
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.ports[port]}{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return bytes(answer.read())

    def wait_for(self, what: str, seconds: float, true: Callable[[], Any]) -> Any:
        """The first answer that is not empty; every started service runs meanwhile."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for name, process in self.processes.items():
                assert process.poll() is None, f"{name} ended: {self.tail(name)}"
            with contextlib.suppress(OSError, ValueError):
                if found := true():
                    return found
            time.sleep(0.5)
        said = "\n".join(self.tail(name) for name in self.processes)
        raise AssertionError(f"no {what} within {seconds} s\n{said}")

    def listening(self, port: str) -> bool:
        socket.create_connection(("127.0.0.1", self.ports[port]), 2).close()
        return True

    def tail(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]

    def stop(self) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """PostgreSQL with the database of Dagster and that of MLflow."""
    with running() as found:
        with contextlib.closing(found.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("create database hedge")
        yield found


@pytest.fixture(scope="module")
def composed(
    server: Postgres, s3: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Composed]:
    """Everything is up, in the order of compose, and bootstrapped."""
    lead = {
        **s3,
        "HEDGE_DATA_URL": DATA,
        "HEDGE_SOURCE": "simulated",
        "HEDGE_SYMBOLS": "SIMQ",
        "HEDGE_CALENDAR": "24/7",
        "POLLING_INTERVAL": "10",
        "POSTGRES_PASSWORD": "canary-password",
        "HEDGE_HOST": "hedge.example",
    }
    programs = image_in(tmp_path_factory.getbasetemp()).folder / "venv" / "bin"
    found = Composed(tmp_path_factory.mktemp("compose"), programs, lead, server.port)
    with pytest.MonkeyPatch.context() as patched:
        for name, value in s3.items():  # the test itself looks at the tables
            patched.setenv(name, value)
        try:
            found.start("mlflow")
            found.start("code")
            found.wait_for("code server", 90, lambda: found.listening("4000"))
            found.wait_for("MLflow", 90, lambda: found.get("5000", "/health"))
            said = found.hedge("code", "bootstrap", "--days", "6")
            assert said.returncode == 0, said.stderr[-3000:]
            assert "SIMQ: version 1 on " in said.stdout
            found.start("daemon")
            found.start("webserver")
            yield found
        finally:
            found.stop()


def test_a_poll_run_records_predictions_in_the_bucket(composed: Composed) -> None:
    def predicted() -> bool:
        rows = Store(DATA).read(PREDICTION_LOG)
        live = rows[(rows["role"] == "served") & (rows["mode"] == "live")]
        return bool(live["prediction"].notna().any())

    composed.wait_for("live prediction", 150, predicted)


def test_dagsters_web_server_shows_the_run_that_polls(composed: Composed) -> None:
    def shown() -> list[dict[str, str]]:
        answer = json.loads(composed.get("3000", "/graphql", {"query": RUNS}))
        found: list[dict[str, str]] = answer["data"]["runsOrError"]["results"]
        return found

    runs = composed.wait_for("runs", 60, shown)
    assert {"jobName": "poll_market", "status": "STARTED"} in runs


def test_mlflows_server_keeps_the_artifacts_beside_the_tables_and_backups_have_them(
    composed: Composed, tmp_path: Path
) -> None:
    every = composed.get("5000", "/api/2.0/mlflow/experiments/search", {"max_results": 10})
    found = json.loads(every)
    (experiment,) = [x for x in found["experiments"] if x["name"].startswith("SIMQ: ")]
    number = experiment["experiment_id"]
    assert experiment["artifact_location"] == f"mlflow-artifacts:/{number}"
    asked = {"experiment_ids": [number], "filter": "tags.`hedge.version` = '1'"}
    answer = json.loads(composed.get("5000", "/api/2.0/mlflow/runs/search", asked))
    run = answer["runs"][0]["info"]["run_id"]
    picture = composed.get("5000", f"/get-artifact?path=importance.png&run_id={run}")
    assert picture.startswith(b"\x89PNG")
    place = f"mlartifacts/{number}/{run}/artifacts/importance.png"
    assert Store(DATA).read_bytes(place) == picture
    saved = back_up(Places(DATA, None, None), str(tmp_path / "backup")).snapshot
    assert place in saved.files["data"]


def test_another_name_than_the_proxys_is_refused(composed: Composed) -> None:
    asked = urllib.request.Request(
        f"http://127.0.0.1:{composed.ports['5000']}/api/2.0/mlflow/experiments/search",
        b'{"max_results": 1}',
        {"Content-Type": "application/json", "Host": "evil.example"},
    )
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(asked, timeout=10)


def test_the_health_check_of_the_image_finds_the_daemon_well(composed: Composed) -> None:
    def healthy() -> Any:
        said = composed.hedge("daemon", "health", "--json")
        return said.returncode == 0 and json.loads(said.stdout)

    found = composed.wait_for("health", 60, healthy)
    assert found["daemon_age_seconds"] < 120
    assert found["last_bar_age_seconds"] < 180


def on(port: int, program: str, text: str = "") -> str:
    """What one of PostgreSQL's programs says of the server at a port."""
    given = ("-h", "127.0.0.1", "-p", str(port), "-U", "hedge")
    done = subprocess.run(
        [str(BINARIES / program), *given, *(["-d", "hedge"] if program == "psql" else [])],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_the_databases_are_dumped_and_read_back_as_it_is_written(
    composed: Composed, server: Postgres
) -> None:
    dumped = on(server.port, "pg_dumpall")
    asked = "select count(*) > 0 from runs; \\c mlflow\nselect count(*) > 1 from experiments;\n"
    with running() as other:  # as a fresh volume: both databases are there and empty
        with contextlib.closing(other.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("create database hedge")
        on(other.port, "psql", dumped)
        assert on(other.port, "psql", asked).count("t\n") == 2
    assert composed.get("5000", "/health") == b"OK"


def test_mlflow_is_killed_a_model_is_trained_without_it_and_shown_when_it_is_back(
    composed: Composed,
) -> None:
    def trains() -> subprocess.CompletedProcess[str]:
        words = ["dagster", "job", "execute", "-m", "hedge_pipeline.definitions", "-j"]
        tags = '{"dagster/partition": "SIMQ"}'
        # with another plan the same rows give another model
        given = {"HEDGE_HALF_LIFE_SESSIONS": "19"}
        return composed.executes("code", [*words, "train_model", "--tags", tags], **given)

    killed = composed.processes.pop("mlflow")
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait(10)
    bars = len(Store(DATA).read(PREDICTION_LOG))
    said = trains()
    assert said.returncode == 0, said.stderr[-3000:]  # it costs nothing but the view
    assert "does not answer" in said.stdout + said.stderr
    composed.wait_for("prediction", 150, lambda: len(Store(DATA).read(PREDICTION_LOG)) > bars)
    composed.start("mlflow")
    composed.wait_for("MLflow", 90, lambda: composed.get("5000", "/health"))
    said = trains()
    assert said.returncode == 0, said.stderr[-3000:]
    asked = {"filter": "name = 'hedge-SIMQ'"}
    path = "/api/2.0/mlflow/model-versions/search?" + urllib.parse.urlencode(asked)
    found = json.loads(composed.get("5000", path))["model_versions"]
    assert sorted(version["version"] for version in found) == ["1", "2"]


def test_runs_that_go_with_the_code_server_have_failed_when_it_is_back(composed: Composed) -> None:
    """Nothing seems to go on for hours, which would keep the next training waiting."""

    def asks(query: str) -> Any:
        return json.loads(composed.get("3000", "/graphql", {"query": query}))["data"]

    def trainings() -> list[dict[str, str]]:
        runs = asks(RUNS)["runsOrError"]["results"]
        return [run for run in runs if run["jobName"] == "train_model"]

    before = len(trainings())
    asked = asks(run_of("train_model", "SIMQ"))["launchRun"]
    assert asked["__typename"] == "LaunchRunSuccess", asked
    mine = asked["run"]["id"]

    def status() -> str:
        answer = asks(f'{{runOrError(runId: "{mine}") {{... on Run {{status}}}}}}')
        return str(answer["runOrError"]["status"])

    composed.wait_for("begin", 90, lambda: status() == "STARTED")
    killed = composed.processes.pop("code")
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait(10)
    composed.start("code")
    composed.wait_for("end", 150, lambda: status() == "FAILURE")
    said = asks(MESSAGES.format(mine))["logsForRun"]["events"]
    # by the start of the code server, which makes the home ready, or by the run monitoring
    reasons = (UNFINISHED_REASON, "its process is gone")
    assert any(x in event.get("message", "") for event in said for x in reasons), said
    assert len(trainings()) == before + 1
    bars = len(Store(DATA).read(PREDICTION_LOG))
    composed.wait_for("prediction", 240, lambda: len(Store(DATA).read(PREDICTION_LOG)) > bars)


def test_nothing_is_written_into_the_read_only_working_directory(composed: Composed) -> None:
    app = composed.folder / "app"
    found = {str(path.relative_to(app)) for path in app.rglob("*") if path.is_file()}
    assert found == set(copied_files())
    kept = {path.name for path in (composed.folder / "data").iterdir()}
    assert kept == {"dagster_home"}


@dataclass(frozen=True)
class Proxy:
    """The proxy of compose, as its clients see it.

    Attributes:
        trusts: its own authority and no other.
        ports: where it listens, by the port in the compose file.
    """

    trusts: ssl.SSLContext
    ports: dict[str, int]

    def asks(
        self, port: str, path: str, password: str | None, origin: str = ""
    ) -> tuple[int, bytes]:
        """Status and body of an answer to the page of an origin, "" = to a program."""
        plain = socket.create_connection(("127.0.0.1", self.ports[port]), 10)
        client = http.client.HTTPConnection("hedge.example")
        client.sock = self.trusts.wrap_socket(plain, server_hostname="hedge.example")
        headers = {"Host": "hedge.example" if port == "443" else f"hedge.example:{port}"}
        if password is not None:
            word = base64.b64encode(f"me:{password}".encode()).decode()
            headers["Authorization"] = f"Basic {word}"
        if origin:
            headers["Origin"] = origin
        with contextlib.closing(client):
            client.request("GET", path, headers=headers)
            answer = client.getresponse()
            return answer.status, answer.read()


@pytest.fixture
def proxy(composed: Composed, tmp_path: Path) -> Iterator[Proxy]:
    """Caddy with the committed file; certificates come from an authority of its own."""
    caddy = Path(sys.executable).with_name("caddy")
    ports = {"443": free_port(), "8443": free_port()}
    options = f"admin off\nskip_install_trust\nlocal_certs\nhttps_port {ports['443']}\n"
    options += "auto_https disable_redirects\n"
    committed = (REPOSITORY / "deploy" / "Caddyfile").read_text()
    for name in ("webserver", "mlflow"):
        committed = committed.replace(f" {name}:", " 127.0.0.1:")
    for port, own in {**composed.ports, "8443": ports["8443"]}.items():
        committed = committed.replace(f":{port}", f":{own}")
    (tmp_path / "Caddyfile").write_text(f"{{\n{options}}}\n{committed}")
    hashed = subprocess.run(
        [caddy, "hash-password", "--plaintext", "right"], capture_output=True, text=True, check=True
    )
    given = {"HEDGE_HOST": "hedge.example", "HEDGE_USER": "me", "XDG_DATA_HOME": str(tmp_path)}
    with (tmp_path / "proxy.log").open("wb") as log:
        process = subprocess.Popen(
            [caddy, "run", "--config", str(tmp_path / "Caddyfile"), "--adapter", "caddyfile"],
            env=environment(**given, HEDGE_PASSWORD_HASH=hashed.stdout.strip()),
            cwd=tmp_path,
            stdout=log,
            stderr=log,
        )
    try:
        root = tmp_path / "caddy" / "pki" / "authorities" / "local" / "root.crt"
        trusts = composed.wait_for(
            "proxy", 60, lambda: root.exists() and ssl.create_default_context(cafile=str(root))
        )
        found = Proxy(trusts, ports)
        composed.wait_for("certificate", 60, lambda: found.asks("443", "/", None))
        yield found
    finally:
        process.kill()
        process.wait(10)


def test_the_proxy_speaks_tls_and_asks_for_the_password_of_both_uis(proxy: Proxy) -> None:
    for port, path, says in (
        ("443", "/server_info", b"dagster_webserver_version"),
        ("8443", "/health", b"OK"),
    ):
        assert proxy.asks(port, path, None)[0] == 401
        assert proxy.asks(port, path, "wrong")[0] == 401
        status, body = proxy.asks(port, path, "right")
        assert (status, says in body) == (200, True)
    asked = "/graphql?query=%7Bversion%7D"
    assert proxy.asks("443", asked, "right", "https://hedge.example")[0] == 200
    # the browser adds the password it knows to what any page asks
    assert proxy.asks("443", asked, "right", "https://evil.example")[0] == 403


def test_the_password_of_the_database_is_in_no_log_table_or_object(
    composed: Composed, server: Postgres
) -> None:
    secret = composed.lead["POSTGRES_PASSWORD"]
    for name in composed.processes:
        assert secret not in (composed.folder / f"{name}.log").read_text(errors="replace"), name
    dumped = on(server.port, "pg_dumpall")
    assert len(dumped) > 100_000
    assert secret not in dumped
    filesystem, root = fsspec.core.url_to_fs(DATA, use_listings_cache=False)
    read = 0
    for name in filesystem.find(root):
        with contextlib.suppress(FileNotFoundError):  # compacted meanwhile
            assert secret.encode() not in unpacked(filesystem.cat_file(name)), name
            read += 1
    assert read > 20
