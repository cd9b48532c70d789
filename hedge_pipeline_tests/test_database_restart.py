"""PostgreSQL is restarted under the running service, with real processes.

There is one story, told by the fixture: both UIs and the poll run work, the server goes, minutes
become due, the server comes back.
"""

from __future__ import annotations

import json
import signal
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pytest

from hedge_pipeline.heartbeats import daemon_heartbeat
from hedge_pipeline.live.supervision import Heartbeat
from hedge_pipeline_tests.databases import Postgres, free_port, running
from hedge_pipeline_tests.replays import hedge
from hedge_pipeline_tests.test_service import Service

pytestmark = pytest.mark.long

HEALTH = """{ instance { daemonHealth { allDaemonStatuses {
daemonType healthy required lastHeartbeatErrors { message } } } } }"""


@dataclass
class PostgresService(Service):
    """A service whose state is in PostgreSQL."""

    lead: dict[str, str] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, str]:
        return {**super().variables, **self.lead}

    def predicted_since(self, moment: pd.Timestamp) -> int:
        """Number of live predictions that were made later."""
        return int((self.live_rows()["decided_at"] > moment).sum())

    def registered(self) -> bool:
        """Whether MLflow knows the model."""
        search = f"http://127.0.0.1:{self.mlflow_port}/api/2.0/mlflow/registered-models/search"
        with urllib.request.urlopen(search, timeout=10) as answer:
            return "hedge-SIMQ" in answer.read().decode()

    def daemons(self) -> list[dict[str, Any]]:
        """What Dagster's web server says of them."""
        found: list[dict[str, Any]] = self.ask(HEALTH)["instance"]["daemonHealth"][
            "allDaemonStatuses"
        ]
        return found

    def daemons_are_well(self) -> bool:
        """Whether Dagster's web server says so."""
        return all(x["healthy"] for x in self.daemons() if x["required"])


@dataclass(frozen=True)
class Story:
    """What happened; the service still runs.

    Attributes:
        polling: last sign of life of the poll run before the outage.
        down: when the server was stopped.
        up: when it had been started again.
        said: what `hedge health --json` said in between.
    """

    service: PostgresService
    polling: Heartbeat
    down: pd.Timestamp
    up: pd.Timestamp
    said: str


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with running() as found:
        yield found


@pytest.fixture(scope="module")
def story(server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    data = tmp_path_factory.mktemp("postgres") / "data"
    server.home(data / "dagster_home")
    service = PostgresService(data, free_port(), free_port(), lead=server.variables)
    with pytest.MonkeyPatch.context() as patched:
        for name, value in server.variables.items():  # the test itself looks at the runs
            patched.setenv(name, value)
        try:
            assert "SIMQ: version 1 on " in service.run("bootstrap", "--days", "6")
            service.start()
            service.wait_for("live prediction", 120, lambda: len(service.live_rows()))
            service.wait_for("MLflow", 60, service.registered)
            service.wait_for("daemon", 60, service.daemons_are_well)
            service.wait_for("heartbeat", 60, lambda: service.heartbeat() is not None)
            polling = service.heartbeat()
            assert polling is not None
            server.stop()
            down = pd.Timestamp.now("UTC")
            service.wait_for("prediction", 100, lambda: service.predicted_since(down))
            said = hedge("health", "--json", cwd=data, **service.variables)
            server.start()
            yield Story(service, polling, down, pd.Timestamp.now("UTC"), said.stdout)
        finally:
            service.kill_everything()


def test_the_outage_is_said_and_polling_goes_on(story: Story) -> None:
    rows = story.service.live_rows()
    meanwhile = rows[(rows["decided_at"] > story.down) & (rows["decided_at"] < story.up)]
    assert set(meanwhile["mode"]) == {"live"}
    found = json.loads(story.said)
    assert not found["healthy"]
    assert [x["name"] for x in found["troubles"]] == ["Dagster's database"]


def test_daemon_and_both_uis_recover(story: Story) -> None:
    service = story.service
    service.wait_for("daemons", 90, service.daemons_are_well)

    def beats() -> bool:
        seen = daemon_heartbeat(service.data / "dagster_home")
        return seen is not None and pd.Timestamp(seen) > story.up

    service.wait_for("heartbeat of the daemon", 60, beats)
    said = [error["message"] for x in service.daemons() for error in x["lastHeartbeatErrors"]]
    # the page of daemons shows it
    assert any("psycopg2" in line or "DB connection" in line for line in said), said
    service.wait_for("MLflow", 30, service.registered)


def test_the_same_run_polls_on_and_nothing_is_lost_or_doubled(story: Story) -> None:
    service = story.service
    service.wait_for("prediction", 100, lambda: service.predicted_since(story.up))
    beat = service.heartbeat()
    assert beat is not None
    assert beat.run_id == story.polling.run_id
    assert [run["status"] for run in service.runs()] == ["STARTED"]
    service.assert_no_minute_is_missing_or_doubled()
    assert not service.live_rows().duplicated(["symbol", "bar_ts"]).any()


def test_the_schedules_tick_again(story: Story) -> None:
    """A poll run that is ended is replaced, which takes the daemon and the database."""
    service = story.service
    service.terminate(story.polling.run_id)
    service.wait_for("poll run", 120, lambda: service.polls_after(story.polling))
    service.assert_no_minute_is_missing_or_doubled()
    service.assert_ends_on(signal.SIGTERM)
