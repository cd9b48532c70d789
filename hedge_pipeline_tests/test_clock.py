"""Clocks that are changed under the running service: summer time, and jumps forth and back.

There are two stories, each told by a fixture. One service polls around the clock in a machine whose
zone is New York's: it goes over the night in which clocks go from two to three, its clock jumps
forth by forty minutes and back by twenty. Another watches the exchange itself, which is closed that
night, and is to train at two o'clock.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from hedge_pipeline.market.tables import FEATURE_ROWS, OUTCOMES, PREDICTION_LOG, RAW_QUOTES
from hedge_pipeline_tests.markets import MINUTE, stored_twice
from hedge_pipeline_tests.replays import hedge
from hedge_pipeline_tests.test_service import Service, free_port

pytestmark = pytest.mark.long

CLOCK = Path(__file__).with_name("clock.c")
CHANGE = pd.Timestamp("2026-03-08 07:00", tz="UTC")  # in New York two o'clock is three o'clock
FORTH, BACK = dt.timedelta(minutes=40), dt.timedelta(minutes=20)


@dataclass
class Moved(Service):
    """A service whose wall clock the test moves; its other clocks go as ever.

    Attributes:
        library: loaded into every process, see clock.c.
        further: variables.
    """

    library: Path = Path()
    further: dict[str, str] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, str]:
        clock = {"LD_PRELOAD": str(self.library), "HEDGE_TEST_CLOCK": str(self._clock)}
        return {**super().variables, **clock, **self.further}

    @property
    def _clock(self) -> Path:
        return self.data / "clock"

    @property
    def _seconds(self) -> int:
        return int.from_bytes(self._clock.read_bytes(), sys.byteorder, signed=True)

    def now(self) -> pd.Timestamp:
        return pd.Timestamp.now("UTC") + dt.timedelta(seconds=self._seconds)

    def move(self, by: dt.timedelta) -> None:
        """Its clock jumps."""
        seconds = self._seconds if self._clock.exists() else 0
        moved = seconds + round(by.total_seconds())
        with self._clock.open("r+b" if self._clock.exists() else "wb") as file:
            file.write(moved.to_bytes(8, sys.byteorder, signed=True))

    def set_clock(self, to: pd.Timestamp) -> None:
        now = self.now() if self._clock.exists() else pd.Timestamp.now("UTC")
        self.move(to - now)

    def bars_until(self) -> pd.Timestamp:
        """End of the last bar that has a served prediction."""
        rows = self.live_rows()
        return (
            pd.Timestamp(rows["bar_ts"].max()) + MINUTE if len(rows) else pd.Timestamp(0, tz="UTC")
        )

    def predictions(self) -> pd.DataFrame:
        return self.store.read(PREDICTION_LOG)

    def assert_kept(self, before: pd.DataFrame) -> None:
        """What was recorded is there as it was."""
        kept = self.predictions().merge(before[list(PREDICTION_LOG.key)])
        pd.testing.assert_frame_equal(kept, before)

    @contextlib.contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        with dg.DagsterInstance.from_config(str(self.data / "dagster_home")) as instance:
            yield instance

    def looks(self) -> dict[float, str]:
        """When the retraining sensor has looked, and why it asked for nothing."""
        with self.instance() as instance:
            for state in instance.all_instigator_state():
                if state.instigator_name == "retraining_sensor":
                    ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id)
                    return {x.timestamp: x.skip_reason or "" for x in ticks}
        return {}

    def health(self) -> dict[str, Any]:
        said = hedge("health", "--json", cwd=Path("/"), **self.variables)
        found: dict[str, Any] = json.loads(said.stdout)
        assert found["healthy"] is (said.returncode == 0)
        return found

    def assert_nothing_is_missing_or_doubled(self) -> None:
        self.assert_no_minute_is_missing_or_doubled()
        tables = (RAW_QUOTES, FEATURE_ROWS, PREDICTION_LOG, OUTCOMES)
        assert stored_twice(self.data, tables) == {}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("clocks of real processes are moved by a library of C for Linux")
    made = tmp_path_factory.mktemp("clock") / "clock.so"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", made, CLOCK, "-ldl"], check=True)
    return made


@pytest.fixture(scope="module")
def services(
    library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Moved, Moved]]:
    """One that polls around the clock, and one that is to train; both just started."""
    folder = tmp_path_factory.mktemp("clock")
    zone = {"TZ": "America/New_York"}
    first, second = (
        Moved(folder / name, free_port(), free_port(), library=library, further=further)
        for name, further in (
            ("polling", zone),
            ("training", {"HEDGE_CALENDAR": "XNYS", "RETRAIN_CHECK_INTERVAL": "30"}),
        )
    )
    try:
        for service in (first, second):
            service.data.mkdir()
        first.set_clock(CHANGE - dt.timedelta(minutes=10))
        assert "SIMQ: version 1 on " in first.run("bootstrap", "--days", "6")
        # two sessions before the weekend, whose outcomes ask for a training
        second.set_clock(pd.Timestamp("2026-03-05 12:00", tz="UTC"))
        assert "SIMQ: version 1 on " in second.run("bootstrap", "--days", "8")
        second.set_clock(CHANGE - dt.timedelta(minutes=10))
        assert "SIMQ: has a model already" in second.run("bootstrap", "--days", "3")
        for service in (first, second):
            service.set_clock(CHANGE - dt.timedelta(minutes=10, seconds=25))
            service.start("--headless")
        yield first, second
    finally:
        first.kill_everything()
        second.kill_everything()


@pytest.fixture(scope="module")
def polling(services: tuple[Moved, Moved]) -> Moved:
    """It has polled; the clocks are about to be changed."""
    service = services[0]
    service.wait_for("live prediction", 150, lambda: len(service.live_rows()))
    service.set_clock(CHANGE - dt.timedelta(seconds=8))
    return service


@pytest.fixture(scope="module")
def training(services: tuple[Moved, Moved]) -> Moved:
    """Its sensor has looked; the clocks are about to be changed."""
    service = services[1]
    service.wait_for("look", 90, lambda: "retraining_sensor skipped" in service.tail())
    service.set_clock(CHANGE - dt.timedelta(seconds=8))
    return service


def test_two_oclock_that_does_not_exist_is_made_up_for(training: Moved, polling: Moved) -> None:
    before = {why for at, why in training.looks().items() if at < CHANGE.timestamp()}
    assert {why.rpartition("; ")[2] for why in before} == {"it waits for 2:00 exchange time"}
    (run,) = training.wait_for("training", 120, lambda: training.runs("train_model"))
    with training.instance() as instance:
        (record,) = instance.get_run_records(dg.RunsFilter(run_ids=[run["id"]]))
    assert record.create_timestamp >= CHANGE
    training.wait_for("end", 120, lambda: training.runs("train_model")[0]["status"] == "SUCCESS")
    training.assert_ends_on(signal.SIGTERM)


def test_over_the_change_to_summer_time_no_minute_is_missing_or_doubled(polling: Moved) -> None:
    polling.wait_for("bar", 120, lambda: polling.bars_until() > CHANGE)
    polling.assert_nothing_is_missing_or_doubled()
    assert polling.health()["healthy"]


def test_a_jump_forth_is_caught_up(polling: Moved) -> None:
    before = polling.predictions()
    since = polling.bars_until()
    polling.move(FORTH)
    now = polling.now()
    polling.wait_for("bars", 120, lambda: polling.bars_until() > now - MINUTE)
    polling.assert_nothing_is_missing_or_doubled()
    polling.assert_kept(before)
    rows = polling.live_rows()
    between = rows[(rows["bar_ts"] >= since) & (rows["bar_ts"] < now - 3 * MINUTE)]
    assert len(between) >= 37
    assert set(between["mode"]) == {"catch_up"}
    # the daemon's last sign of life is as old as the jump is long until its next one, and if the
    # schedule looked before the next poll, the run was taken for dead and replaced
    polling.wait_for("health", 120, lambda: polling.health()["troubles"] == [])

    def one_polls() -> bool:
        return [run["status"] for run in polling.runs()].count("STARTED") == 1

    polling.wait_for("one run", 90, one_polls)


def test_after_a_jump_back_nothing_is_lost_and_it_goes_on_where_it_was(polling: Moved) -> None:
    before, until = polling.predictions(), polling.bars_until()
    polling.move(-BACK)
    now = polling.now()
    polling.wait_for("poll", 40, lambda: now < polling.polled() < now + MINUTE)
    found = polling.health()
    assert found["healthy"]
    (trouble,) = found["troubles"]
    assert trouble["message"].startswith("the clock was set back: ")
    polling.assert_kept(before)
    assert polling.bars_until() == until
    polling.set_clock(until + dt.timedelta(seconds=55))
    polling.wait_for("bar", 60, lambda: polling.bars_until() > until)
    polling.assert_nothing_is_missing_or_doubled()
    polling.assert_kept(before)
    rows = polling.live_rows()
    assert (rows["decided_at"] >= rows["bar_ts"] + MINUTE).all()
    polling.wait_for("health", 90, lambda: polling.health()["troubles"] == [])


def test_it_ends_as_ever(polling: Moved) -> None:
    polling.assert_ends_on(signal.SIGTERM)
