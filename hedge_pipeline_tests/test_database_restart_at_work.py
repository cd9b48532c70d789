"""PostgreSQL is restarted while a training and the close of sessions are under way, real processes.

There is one story, told by the fixture: both are asked for, the server goes when both have begun,
the training is killed while it is away, it comes back; both are asked for once more.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest

from hedge_pipeline.learning.shelf import ModelShelf
from hedge_pipeline.market.tables import (
    FEATURE_ROWS,
    OUTCOMES,
    PREDICTION_LOG,
    PROMOTIONS,
    RAW_QUOTES,
)
from hedge_pipeline_tests.databases import free_port, running
from hedge_pipeline_tests.markets import stored_twice
from hedge_pipeline_tests.test_database_restart import PostgresService
from hedge_pipeline_tests.test_queue import run_of

pytestmark = pytest.mark.long

JOBS = {"train_model": "SIMQ", "close_session": ""}
AWAY_SECONDS = 30.0
ENDS_SECONDS = 150.0  # of the report that the keeper makes again and again


@dataclass(frozen=True)
class Story:
    """What happened; the service still runs.

    Attributes:
        polling: id of the poll run before the outage.
        before: predictions that were recorded before it.
        interrupted: how the runs that were under way ended, by job: status and what was said.
        again: status of the runs that were asked for afterwards, by job.
        versions: of models before the outage.
    """

    service: PostgresService
    polling: str
    before: pd.DataFrame
    interrupted: dict[str, tuple[str, list[str]]]
    again: dict[str, str]
    versions: tuple[int, ...]


def ask(service: PostgresService) -> None:
    for job, partition in JOBS.items():

        def answered(mutation: str = run_of(job, partition)) -> bool:
            (answer,) = service.ask(mutation).values()
            return bool(answer["__typename"] == "LaunchRunSuccess")

        # a connection from before the restart is found dead by the first who uses it
        service.wait_for("answer", 30, answered)


def newest(service: PostgresService) -> dict[str, dict[str, Any]]:
    return {job: service.runs(job)[0] for job in JOBS}


def wait_for_the_end(service: PostgresService) -> dict[str, dict[str, Any]]:
    def ended() -> dict[str, dict[str, Any]]:
        found = newest(service)
        over = all(run["status"] in ("SUCCESS", "FAILURE") for run in found.values())
        return found if over else {}

    found: dict[str, dict[str, Any]] = service.wait_for("end of runs", ENDS_SECONDS, ended)
    return found


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    data = tmp_path_factory.mktemp("postgres") / "data"
    with running() as server, pytest.MonkeyPatch.context() as patched:
        server.home(data / "dagster_home")
        service = PostgresService(data, free_port(), free_port(), lead=server.variables)
        for name, value in server.variables.items():  # the test itself looks at the runs
            patched.setenv(name, value)
        try:
            # with another plan the same rows give another model: there is something to train
            service.lead = {**server.variables, "HEDGE_HALF_LIFE_SESSIONS": "19"}
            assert "SIMQ: version 1 on " in service.run("bootstrap", "--days", "12")
            service.lead = server.variables
            service.start()
            service.wait_for("web server", 60, lambda: service.get(service.port, "/server_info"))
            service.wait_for("live prediction", 120, lambda: len(service.live_rows()))
            beat = service.wait_for("heartbeat", 60, service.heartbeat)
            before = service.store.read(PREDICTION_LOG)
            versions = ModelShelf(service.store).versions("SIMQ")
            ask(service)

            def both_work() -> bool:
                found = {job: runs[0]["status"] for job in JOBS if (runs := service.runs(job))}
                # the schedule may have closed everything before
                closes = found.get("close_session") in ("STARTED", "SUCCESS")
                return closes and found.get("train_model") == "STARTED"

            service.wait_for("begin of both", 60, both_work)
            server.stop()
            time.sleep(AWAY_SECONDS / 2)
            for process in service.running("hedge: train_model"):
                os.kill(process, signal.SIGKILL)
            time.sleep(AWAY_SECONDS / 2)
            server.start()
            interrupted = {
                job: (run["status"], run["said"]) for job, run in wait_for_the_end(service).items()
            }
            ask(service)
            again = {job: run["status"] for job, run in wait_for_the_end(service).items()}
            yield Story(service, beat.run_id, before, interrupted, again, versions)
        finally:
            service.kill_everything()


def test_what_died_meanwhile_has_failed_and_the_ui_says_so(story: Story) -> None:
    """Nothing seems to go on for ever, which would keep the next one waiting."""
    status, said = story.interrupted["train_model"]
    assert status == "FAILURE"
    assert "its process ended (SIGKILL)" in said
    # what is not killed comes through if it has little to say meanwhile, or has failed and says so
    status, said = story.interrupted["close_session"]
    assert status == "SUCCESS" or any("fail" in line for line in said), (status, said)


def test_asked_for_again_both_do_their_work_and_nothing_is_doubled(story: Story) -> None:
    assert story.again == dict.fromkeys(JOBS, "SUCCESS")
    service = story.service
    tables = (RAW_QUOTES, FEATURE_ROWS, PREDICTION_LOG, OUTCOMES, PROMOTIONS)
    assert stored_twice(service.data, tables) == {}
    versions = ModelShelf(service.store).versions("SIMQ")
    assert versions == tuple(range(1, len(versions) + 1))
    assert len(versions) > len(story.versions)
    judged = service.store.read(PROMOTIONS)
    verdicts = judged.loc[judged["kind"] == "verdict", "model_version"]
    assert sorted(verdicts) == list(versions)


def test_mlflow_has_every_version_once(story: Story) -> None:
    from hedge_pipeline.resources.registry import VERSION_TAG, MlflowRegistry

    client = MlflowRegistry(story.service.lead["MLFLOW_TRACKING_URI"]).client
    found = client.search_model_versions("name='hedge-SIMQ'")
    known = sorted(int(client.get_run(x.run_id).data.tags[VERSION_TAG]) for x in found)
    assert known == list(ModelShelf(story.service.store).versions("SIMQ"))


def test_polling_went_on_in_the_same_run(story: Story) -> None:
    service = story.service
    service.assert_no_minute_is_missing_or_doubled()
    beat = service.heartbeat()
    assert beat is not None
    assert beat.run_id == story.polling
    kept = service.store.read(PREDICTION_LOG).merge(story.before[list(PREDICTION_LOG.key)])
    pd.testing.assert_frame_equal(kept, story.before)
    service.assert_ends_on(signal.SIGTERM)
