"""Clocks that are changed under the running service: summer time, and jumps forth and back.

There are two stories, each told by a fixture. One service polls around the clock in a machine whose
zone is New York's: it goes over the night in which clocks go from two to three, its clock jumps
forth by forty minutes and back by twenty. Another watches the exchange itself, which is closed that
night, and is to train at two o'clock.
"""

from __future__ import annotations

import datetime as dt
import signal
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from hedge_pipeline_tests.clocks import Moved, clock_library
from hedge_pipeline_tests.markets import MINUTE
from hedge_pipeline_tests.test_service import free_port

pytestmark = pytest.mark.long

CHANGE = pd.Timestamp("2026-03-08 07:00", tz="UTC")  # in New York two o'clock is three o'clock
FORTH, BACK = dt.timedelta(minutes=40), dt.timedelta(minutes=20)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clock_library(tmp_path_factory.mktemp("clock"))


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
        for service, how in ((first, ()), (second, ("--headless",))):
            service.set_clock(CHANGE - dt.timedelta(minutes=10, seconds=25))
            service.start(*how)
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


def told(service: Moved, words: str) -> bool:
    """Whether the UI shows them in the log of a poll run."""
    logs = [service.told(run["id"]) for run in service.runs()]
    return any(line.startswith(words) for log in logs for _, line in log)


def test_two_oclock_that_does_not_exist_is_made_up_for(training: Moved, polling: Moved) -> None:
    before = {why for at, why in training.sensor_looks().items() if at < CHANGE.timestamp()}
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
    polling.wait_for("word of it", 30, lambda: told(polling, "the clock was set forth by 40 min"))


def test_after_a_jump_back_nothing_is_lost_and_it_goes_on_where_it_was(polling: Moved) -> None:
    before, until = polling.predictions(), polling.bars_until()
    polling.move(-BACK)
    now = polling.now()
    polling.wait_for("poll", 40, lambda: now < polling.polled() < now + MINUTE)
    found = polling.health()
    assert found["healthy"]
    (trouble,) = found["troubles"]
    assert trouble["message"].startswith("the clock was set back: ")
    polling.wait_for("word of it", 60, lambda: told(polling, "the clock was set back by 20 min"))
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
