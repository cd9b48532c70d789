"""Everything of a running service is destroyed, and from its backup it goes on: real processes.

There is one story, told by the fixture with the backup in a folder and in S3: the service polls, a
backup is made meanwhile, the service polls on, then every process is killed and every file is
deleted; the backup is brought back and the service is started again.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest

from hedge_pipeline.market.tables import FEATURE_ROWS, OUTCOMES, PREDICTION_LOG, RAW_QUOTES
from hedge_pipeline_tests.markets import MINUTE, stored_twice
from hedge_pipeline_tests.replays import hedge
from hedge_pipeline_tests.test_backup import s3  # noqa: F401 - a fixture
from hedge_pipeline_tests.test_service import Service, free_port

pytestmark = pytest.mark.long

KEY = ["symbol", "bar_ts", "role"]


@dataclass
class Saved(Service):
    """A service that knows where its backup is.

    Attributes:
        backup: URL of it.
        access: variables that it takes to get there.
    """

    backup: str = ""
    access: dict[str, str] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, str]:
        return {**super().variables, **self.access, "HEDGE_BACKUP_URL": self.backup}

    def versions(self) -> list[str]:
        """Models in MLflow, with their aliases."""
        from hedge_pipeline.resources.registry import MlflowRegistry

        client = MlflowRegistry(f"sqlite:///{self.data}/mlflow.db").client
        model = client.get_registered_model("hedge-SIMQ")
        found = client.search_model_versions("name='hedge-SIMQ'")
        return sorted(f"{x.version} {x.run_id}" for x in found) + sorted(
            f"{name} {version}" for name, version in model.aliases.items()
        )


@dataclass(frozen=True)
class Story:
    """What happened; the service runs again.

    Attributes:
        saved: what the backup must hold of predictions: those logged before it began.
        versions: models in MLflow at that time.
        runs: poll runs at that time, by id.
        lost: predictions logged before everything was destroyed.
        back: the predictions that were there when the backup was brought back.
        started: when the service was started again.
    """

    service: Saved
    saved: pd.DataFrame
    versions: list[str]
    runs: dict[str, str]
    lost: pd.DataFrame
    back: pd.DataFrame
    started: pd.Timestamp


@pytest.fixture(scope="module", params=["folder", "s3"])
def story(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("restore")
    service = Saved(folder / "data", free_port(), free_port(), backup=str(folder / "backup"))
    if request.param == "s3":
        service.access = request.getfixturevalue("s3")
        service.backup = "s3://hedge/backup"
    service.data.mkdir()
    try:
        assert "SIMQ: version 1 on " in service.run("bootstrap", "--days", "6")
        service.start("--headless")

        def live() -> bool:
            return "live" in set(service.live_rows()["mode"])

        service.wait_for("live prediction", 150, live)
        saved, versions = service.store.read(PREDICTION_LOG), service.versions()
        runs = {run["id"]: run["status"] for run in service.runs()}
        said = json.loads(service.run("backup", "--json"))
        assert said["at_one_moment"]
        assert said["left_out"] == []
        logged = len(service.live_rows())
        service.wait_for("later one", 90, lambda: len(service.live_rows()) > logged)
        lost = service.store.read(PREDICTION_LOG)
        service.kill_everything()
        shutil.rmtree(service.data)
        said = service.run("restore", "--json")
        back = service.store.read(PREDICTION_LOG)
        started = pd.Timestamp.now("UTC")
        service.start("--headless")
        yield Story(service, saved, versions, runs, lost, back, started)
    finally:
        service.kill_everything()


def test_every_prediction_of_the_backup_is_back_and_stays_as_it_was(story: Story) -> None:
    def decided() -> bool:
        return bool((story.service.live_rows()["decided_at"] > story.started).any())

    story.service.wait_for("prediction", 150, decided)
    now = story.service.store.read(PREDICTION_LOG)
    assert len(story.saved) <= len(story.back) < len(story.lost)
    for earlier, later in ((story.saved, story.back), (story.back, now)):
        kept = later.merge(earlier[KEY], on=KEY)
        pd.testing.assert_frame_equal(kept, earlier.sort_values(KEY, ignore_index=True))


def test_the_minutes_since_are_caught_up_and_nothing_is_doubled(story: Story) -> None:
    service = story.service
    before = story.lost["bar_ts"].max()

    def caught_up() -> bool:
        return bool(service.live_rows()["bar_ts"].max() > before)

    service.wait_for("bars", 90, caught_up)
    service.assert_no_minute_is_missing_or_doubled()
    tables = (RAW_QUOTES, FEATURE_ROWS, PREDICTION_LOG, OUTCOMES)
    assert stored_twice(service.data, tables) == {}
    # what was decided after the backup and is lost is decided anew, and says when
    again = service.live_rows().merge(story.lost[KEY], on=KEY)
    again = again[again["decided_at"] > story.started]
    assert len(again)
    in_time = again["decided_at"] <= again["bar_ts"] + 2 * MINUTE
    assert (again["mode"] == in_time.map({True: "live", False: "catch_up"})).all()


def test_the_same_version_serves_and_mlflow_and_dagster_know_what_they_knew(story: Story) -> None:
    service = story.service
    assert set(service.live_rows()["model_version"]) == {1}
    assert service.versions() == story.versions
    runs = {run["id"]: run["status"] for run in service.runs()}
    assert story.runs.keys() < runs.keys()
    # the backup was made while they were under way
    assert {runs[run] for run in story.runs} <= {"FAILURE", "SUCCESS"}
    assert [*runs.values()].count("STARTED") == 1


def test_the_service_is_well_and_ends(story: Story) -> None:
    service = story.service

    def well() -> bool:
        said = hedge("health", "--json", cwd=Path("/"), **service.variables)
        return said.returncode == 0 and json.loads(said.stdout)["troubles"] == []

    service.wait_for("health", 90, well)
    service.assert_ends_on(signal.SIGTERM)
