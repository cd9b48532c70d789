"""A daemon that is dead is seen, wherever Dagster keeps its state."""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest
from dagster._daemon.types import DaemonHeartbeat

from hedge_pipeline.heartbeats import DAEMONS, HeartbeatsUnknown, daemon_heartbeat
from hedge_pipeline_tests.databases import Postgres, postgres
from hedge_pipeline_tests.replays import environment, hedge

__all__ = ["postgres"]  # a fixture

NOW = dt.datetime(2026, 3, 9, 15, 0, tzinfo=dt.UTC)
MINUTE = dt.timedelta(minutes=1)


def beat(home: Path, at: dt.datetime) -> None:
    """As the daemons do it."""
    with dg.DagsterInstance.from_config(str(home)) as instance:
        for name in DAEMONS:
            instance.add_daemon_heartbeat(DaemonHeartbeat(at.timestamp(), name, None))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ({"SCHEDULER": 0, "SENSOR": 0, "QUEUED_RUN_COORDINATOR": 30}, 30),
        ({"SCHEDULER": 5, "SENSOR": 0, "QUEUED_RUN_COORDINATOR": 0, "BACKFILL": 99}, 5),
        ({"SCHEDULER": 0}, None),
        ({}, None),
    ],
)
def test_the_slowest_required_daemon_counts(
    tmp_path: Path, rows: dict[str, int], expected: int | None
) -> None:
    (tmp_path / "history").mkdir()
    with closing(sqlite3.connect(tmp_path / "history" / "runs.db")) as runs, runs:
        runs.execute("create table daemon_heartbeats (daemon_type text, timestamp text)")
        for name, age in rows.items():
            at = (NOW - age * MINUTE).replace(tzinfo=None)
            runs.execute("insert into daemon_heartbeats values (?, ?)", (name, str(at)))
    wanted = None if expected is None else NOW - expected * MINUTE
    assert daemon_heartbeat(tmp_path) == wanted


def test_a_real_daemon_heartbeat_is_read(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    beat(tmp_path, NOW)
    assert daemon_heartbeat(tmp_path) == NOW
    assert daemon_heartbeat(tmp_path / "nothing") is None


def test_a_dead_daemon_is_seen_on_postgres_too(
    tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the committed configuration; a URL in its place names the same server."""
    home = postgres.home(tmp_path / "home")
    with pytest.raises(HeartbeatsUnknown, match="asks for POSTGRES_HOST, which is not set"):
        daemon_heartbeat(home)
    for name, value in postgres.variables.items():
        monkeypatch.setenv(name, value)
    assert daemon_heartbeat(home) is None  # no table yet
    beat(home, NOW)
    assert daemon_heartbeat(home) == NOW
    by_url = tmp_path / "by_url"
    by_url.mkdir()
    monkeypatch.setenv("URL", f"postgresql+psycopg2://hedge@127.0.0.1:{postgres.port}/postgres")
    (by_url / "dagster.yaml").write_text("storage: {postgres: {postgres_url: {env: URL}}}\n")
    assert daemon_heartbeat(by_url) == NOW

    variables = {
        **postgres.variables,
        "DAGSTER_HOME": str(home),
        "HEDGE_DATA_URL": str(tmp_path / "data"),
        "HEDGE_CALENDAR": "XNYS",
    }
    said = hedge("health", "--json", cwd=tmp_path, **variables)
    assert said.returncode == 1
    assert "Dagster's daemon is silent for " in said.stdout
    assert json.loads(said.stdout)["daemon_age_seconds"] > 0
    doctor = hedge("doctor", cwd=tmp_path, **variables)
    assert "FAIL daemon" in doctor.stdout
    beat(home, dt.datetime.now(dt.UTC))
    said = hedge("health", "--json", cwd=tmp_path, **variables)
    assert json.loads(said.stdout)["daemon_age_seconds"] < 60
    assert "daemon" not in said.stdout.split("troubles")[1]

    postgres.stop()
    said = hedge("health", cwd=tmp_path, **variables)
    assert said.returncode == 1
    assert "Dagster's database does not answer: " in said.stdout
    assert "canary" not in said.stdout + said.stderr
    assert "Traceback" not in said.stderr
    postgres.start()
    assert daemon_heartbeat(home) is not None


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://hedge:canary@[::1/x",
        "postgresql://u:canary@h:x/y",
        "postgresql://u:can/ary@h/y",
        "postgresql://u:a@canary@localhost/y",
        "canary",
    ],
)
def test_an_address_that_is_not_understood_does_not_show_its_password(
    tmp_path: Path, url: str
) -> None:
    (tmp_path / "dagster.yaml").write_text(f"storage: {{postgres: {{postgres_url: '{url}'}}}}\n")
    with pytest.raises(HeartbeatsUnknown, match=r"see `storage` in dagster\.yaml$") as told:
        daemon_heartbeat(tmp_path)
    assert "can" not in str(told.value).replace("cannot", "")


@pytest.mark.parametrize(
    "text",
    [
        "# postgres: later\n",
        "storage:  # postgres\n",
        "storage: {sqlite: {base_dir: history}}  # not postgres\n",
        "run_storage: {module: dagster.core.storage.runs, class: SqliteRunStorage} # postgres\n",
    ],
)
def test_a_configuration_that_only_speaks_of_postgres_is_of_sqlite(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "dagster.yaml").write_text(text)
    assert daemon_heartbeat(tmp_path) is None


@pytest.mark.parametrize(
    "text",
    [
        "storage: {postgres: }\n",
        "storage: {postgres: {postgres_db: }}\n",
        "storage: {postgres: {postgres_db: {hostname: localhost}}}\n",
        "storage: {postgres: {should_autocreate_tables: true}}\n",
        "storage: postgres\n",
        "run_storage: {module: dagster_postgres.run_storage, class: PostgresRunStorage}\n",
        "run_storage: {module: dagster_postgres.run_storage, config: {a: b}}\n",
        "[postgres\n",
        "postgres\n",
    ],
)
def test_a_configuration_that_names_no_database_is_unknown_in_one_line(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "dagster.yaml").write_text(text)
    with pytest.raises(HeartbeatsUnknown, match=r"is not understood; see `storage` in dagster\.y"):
        daemon_heartbeat(tmp_path)


def test_a_database_that_is_broken_is_not_one_nobody_has_used(tmp_path: Path) -> None:
    (tmp_path / "history").mkdir()
    database = tmp_path / "history" / "runs.db"
    with closing(sqlite3.connect(database)) as runs, runs:
        runs.execute("create table runs (id text)")
    assert daemon_heartbeat(tmp_path) is None  # no daemon has run yet
    database.write_bytes(b"not a database" * 100)
    with pytest.raises(HeartbeatsUnknown, match=r"runs\.db cannot be read: file is not a database"):
        daemon_heartbeat(tmp_path)


@pytest.mark.parametrize("name", ["a#b", "a?b", "100%25", "a b"])
def test_a_home_may_have_any_name(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    (home / "history").mkdir()
    with closing(sqlite3.connect(home / "history" / "runs.db")) as runs, runs:
        runs.execute("create table daemon_heartbeats (daemon_type text, timestamp text)")
        for daemon in DAEMONS:
            at = str(NOW.replace(tzinfo=None))
            runs.execute("insert into daemon_heartbeats values (?, ?)", (daemon, at))
    assert daemon_heartbeat(home) == NOW


PROBE = """
import sys
from pathlib import Path
from hedge_pipeline.heartbeats import HeartbeatsUnknown, daemon_heartbeat
try:
    daemon_heartbeat(Path(sys.argv[1]))
except HeartbeatsUnknown:
    print([x for x in ("dagster", "sqlalchemy", "mlflow", "pandas") if x in sys.modules])
"""


def test_looking_at_the_daemon_imports_nothing_heavy(tmp_path: Path) -> None:
    line = "storage: {postgres: {postgres_url: 'postgresql://x@127.0.0.1:9/x'}}\n"
    (tmp_path / "dagster.yaml").write_text(line)
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "[]\n", done.stderr
