"""Trainings and a backfill asked for at once of the running service: no poll waits for them."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from hedge_pipeline.market.tables import RAW_QUOTES
from hedge_pipeline_tests.markets import MINUTE
from hedge_pipeline_tests.test_service import Service, free_port

pytestmark = pytest.mark.long

SYMBOLS = ("SIMQ", "SIMN", "SIMR")
MOST_SECONDS = 15.0  # from the queue to the start of a process
PROMPT_SECONDS = 45.0  # after the end of a bar, polled every ten seconds


class Watching(Service):
    """A service on several symbols whose backfills are cut into runs of one session."""

    @property
    def variables(self) -> dict[str, str]:
        ours = {"HEDGE_SYMBOLS": ",".join(SYMBOLS), "HEDGE_BACKFILL_SESSIONS": "1"}
        return {**super().variables, **ours}


@dataclass(frozen=True)
class Ran:
    """A run: times in epoch seconds, infinite while it goes on."""

    lane: str
    status: str
    created: float
    begun: float
    ended: float


@dataclass(frozen=True)
class Story:
    """What happened; everything that was asked for has ended, and another bar is predicted.

    Attributes:
        asked: when.
        sessions: that the backfill was to collect.
    """

    service: Watching
    asked: pd.Timestamp
    sessions: int
    runs: tuple[Ran, ...]

    def of(self, lane: str) -> list[Ran]:
        return [run for run in self.runs if run.lane == lane]


def backfill(asset: str, partitions: Sequence[str]) -> str:
    """A mutation that asks for partitions of an asset, as its page does."""
    chosen = f'assetSelection: [{{path: ["{asset}"]}}], partitionNames: {json.dumps(partitions)}'
    return (
        f"mutation {{launchPartitionBackfill(backfillParams: {{{chosen}}}) "
        "{__typename ... on LaunchBackfillSuccess {backfillId} "
        "... on PythonError {message}}}"
    )


def run_of(job: str, partition: str = "") -> str:
    """A mutation that asks for a run of a job."""
    selector = (
        'selector: {repositoryLocationName: "hedge_pipeline", repositoryName: "__repository__", '
        f'jobName: "{job}"}}'
    )
    told = f'{{key: "dagster/partition", value: "{partition}"}}' if partition else ""
    tags = f"executionMetadata: {{tags: [{told}]}}"
    return (
        f"mutation {{launchRun(executionParams: {{{selector}, {tags}, runConfigData: {{}}}}) "
        "{__typename ... on LaunchRunSuccess {run {id}} ... on PythonError {message}}}"
    )


def most_at_once(runs: Sequence[Ran]) -> int:
    """Runs under way at the same time, at most."""
    return max(sum(a.begun <= b.begun < a.ended for a in runs) for b in runs)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    service = Watching(tmp_path_factory.mktemp("queue") / "data", free_port(), free_port())
    service.data.mkdir()
    try:
        service.run("bootstrap", "--days", "6")
        service.start()
        service.wait_for("live prediction", 150, lambda: len(service.live_rows()))
        service.wait_for("web server", 60, lambda: service.get(service.port, "/server_info"))
        sessions = service.store.sessions(RAW_QUOTES)[:-1]
        asked = {
            backfill("trained_model", SYMBOLS): "LaunchBackfillSuccess",
            backfill("raw_quotes", sessions): "LaunchBackfillSuccess",
            run_of("train_model", SYMBOLS[0]): "LaunchRunSuccess",
        }
        begun = pd.Timestamp.now("UTC")
        for mutation, wanted in asked.items():
            ask(service, mutation, wanted)
        service.wait_for("queue", 120, lambda: len(waiting(service.data)) >= 3)
        ask(service, run_of("poll_market"), "LaunchRunSuccess")

        def ended() -> tuple[Ran, ...]:
            found = tuple(
                Ran(
                    record.dagster_run.tags["hedge/lane"],
                    record.dagster_run.status.value,
                    record.create_timestamp.timestamp(),
                    record.start_time or math.inf,
                    record.end_time or math.inf,
                )
                for record in records(service.data)
            )
            over = [run for run in found if run.lane != "poll" and run.ended < math.inf]
            return found if len(over) == len(SYMBOLS) + len(sessions) + 1 else ()

        runs = service.wait_for("end of all runs", 300, ended)
        service.wait_for("bar", 150, lambda: (service.live_rows()["decided_at"] > begun).sum() > 2)
        yield Story(service, begun, len(sessions), runs)
    finally:
        service.kill_everything()


def ask(service: Watching, mutation: str, wanted: str) -> None:
    (answer,) = service.ask(mutation).values()
    assert answer["__typename"] == wanted, answer


def records(data: Path) -> Sequence[dg.RunRecord]:
    with dg.DagsterInstance.from_config(str(data / "dagster_home")) as instance:
        return instance.get_run_records()


def waiting(data: Path) -> list[dg.RunRecord]:
    """Runs of the backfill that are in the queue."""
    queued = dg.DagsterRunStatus.QUEUED
    found = [x for x in records(data) if x.dagster_run.status == queued]
    return [x for x in found if x.dagster_run.tags["hedge/lane"] == "assets"]


def test_trainings_wait_for_one_another_however_they_were_asked_for(story: Story) -> None:
    trainings = story.of("train")
    assert [run.status for run in trainings] == ["SUCCESS"] * (len(SYMBOLS) + 1)
    assert most_at_once(trainings) == 1
    # they really did wait: the last was in the queue before another had ended
    assert max(run.created for run in trainings) < sorted(run.ended for run in trainings)[1]


def test_a_backfill_takes_its_own_lane_only(story: Story) -> None:
    runs = story.of("assets")
    assert [run.status for run in runs] == ["SUCCESS"] * story.sessions
    assert most_at_once(runs) == 2


def test_no_poll_waits_for_them(story: Story) -> None:
    first, second = sorted(story.of("poll"), key=lambda run: run.created)
    assert (first.status, second.status) == ("SUCCESS", "STARTED")  # the newest polls
    assert second.begun - second.created < MOST_SECONDS
    # others that were asked for before were still in the queue
    assert any(run.created < second.created < second.begun < run.begun for run in story.runs)
    rows = story.service.live_rows()
    since = rows[rows["decided_at"] > story.asked]
    assert set(since["symbol"]) == set(SYMBOLS)
    waited = (since["decided_at"] - since["bar_ts"]).dt.total_seconds()
    assert waited.max() < MINUTE.total_seconds() + PROMPT_SECONDS
    story.service.assert_ends_on(signal.SIGTERM)
