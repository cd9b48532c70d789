"""Yahoo is down for an hour under the running service and then back, with real processes.

There is one story, told by the fixture: the service polls a double of Yahoo on the loopback, Yahoo
answers 503 while the clock of service and double goes through an hour in steps, and answers again.
"""

from __future__ import annotations

import datetime as dt
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest

from hedge_pipeline.market.tables import OUTCOMES, RAW_QUOTES
from hedge_pipeline_tests.clocks import Moved, clock_library
from hedge_pipeline_tests.markets import MINUTE
from hedge_pipeline_tests.receivers import Receiver, receiving
from hedge_pipeline_tests.test_service import free_port
from hedge_pipeline_tests.yahoo_double import Clock, Fault, YahooDouble

pytestmark = pytest.mark.long

SYMBOL = "BTC-USD"
STEPS, STEP = 12, dt.timedelta(minutes=5)
REFUSED = f"{SYMBOL}: no new bars: {SYMBOL}: Yahoo answers 503"
TOLD = f"{SYMBOL} does not answer: {SYMBOL}: Yahoo answers 503"
NO_NEW_BAR = "no new bar for "


class ClockOf(Clock):
    """The clock of a service."""

    def __init__(self, service: Moved) -> None:
        super().__init__()
        self._service = service

    def now(self) -> dt.datetime:
        return self._service.now().to_pydatetime()


@dataclass(frozen=True)
class Story:
    """What happened; the service still runs.

    Attributes:
        before: predictions that were recorded before the outage.
        down: from when on Yahoo answered 503.
        mended: when it answered again.
        unwell: what `hedge health --json` said at the end of the hour.
        run: that polled when Yahoo went down.
    """

    service: Moved
    alerts: Receiver
    before: pd.DataFrame
    down: pd.Timestamp
    mended: pd.Timestamp
    unwell: dict[str, Any]
    run: str


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("outage")
    service = Moved(folder / "data", free_port(), free_port(), library=clock_library(folder))
    service.data.mkdir()
    # an hour that is all in one session
    service.set_clock(pd.Timestamp.now("UTC").normalize() + pd.Timedelta("10h"))
    certificates = folder / "certificates"
    with YahooDouble(certificates, ClockOf(service)) as yahoo, receiving() as alerts:
        ours = {
            "HEDGE_SOURCE": "yahoo",
            "HEDGE_CALENDAR": "24/7",
            "HEDGE_SYMBOLS": SYMBOL,
            "HEDGE_ALERT_URLS": alerts.url(),
        }
        service.further = {**yahoo.env, **ours}
        try:
            assert f"{SYMBOL}: version 1 on " in service.run("bootstrap", "--days", "6")
            service.start()
            service.wait_for("live prediction", 150, lambda: len(service.live_rows()))
            service.wait_for("health", 90, lambda: service.health()["troubles"] == [])
            beat = service.heartbeat()
            assert beat is not None
            before = service.predictions()
            yahoo.fault(Fault("answer", status=503, body=b"Service Unavailable"))
            down = service.now()
            for _ in range(STEPS):
                wait_for_refusals(service, 1)
                service.move(STEP)
            wait_for_refusals(service, 2)
            service.wait_for("look", 120, lambda: max(looks(service, down), default=0) >= 60)
            unwell = service.health()
            yahoo.mend()
            mended = service.now()
            service.wait_for("bars", 120, lambda: service.bars_until() > mended - 3 * MINUTE)
            yield Story(service, alerts, before, down, mended, unwell, beat.run_id)
        finally:
            service.kill_everything()


def refusals(service: Moved) -> int:
    """Log lines so far that name the outage."""
    return service.log.read_text(errors="replace").count(REFUSED)


def wait_for_refusals(service: Moved, further: int) -> None:
    wanted = refusals(service) + further
    service.wait_for("refused poll", 60, lambda: refusals(service) >= wanted)


def looks(service: Moved, since: pd.Timestamp) -> list[int]:
    """For how many minutes no bar has come, as the watch says it in the UI, oldest look first."""
    told = [
        (at, part)
        for at, said in service.looks("watch_schedule")
        for part in said.split("; ")
        if at > since.timestamp() and part.startswith(NO_NEW_BAR)
    ]
    return [int(part.removeprefix(NO_NEW_BAR).split()[0]) for _, part in sorted(told)]


def test_health_names_the_outage_and_is_well_again_after_it(story: Story) -> None:
    troubles = {x["name"]: x for x in story.unwell["troubles"]}
    (name,) = [name for name in troubles if name.startswith("no new bar in ")]
    assert troubles[name]["grave"]
    assert "the poll run is alive, so the source has none" in troubles[name]["message"]
    assert not story.unwell["healthy"]
    story.service.wait_for("health", 90, lambda: story.service.health()["troubles"] == [])


def test_the_ui_says_since_when_nothing_came_and_that_it_came_again(story: Story) -> None:
    service = story.service
    ages = looks(service, story.down)
    assert ages == sorted(ages)
    assert ages[-1] >= 60

    def answered() -> list[tuple[str, str]]:
        runs = [run["id"] for run in service.runs()]
        told = [
            (level, message)
            for run in reversed(runs[: runs.index(story.run) + 1])
            for level, message in service.told(run)
            if message.startswith(SYMBOL)
        ]
        return told if told[-1][1].startswith(f"{SYMBOL} answers again") else []

    told = service.wait_for("answer", 60, answered)
    # by each run that met it: one that was taken for dead as the clock jumped was replaced
    assert {message for level, message in told if level == "WARNING"} == {TOLD}
    answers = {message for level, message in told if level == "INFO"}
    assert all(message.startswith(f"{SYMBOL} answers again after ") for message in answers)
    assert [run["status"] for run in service.runs()].count("STARTED") == 1


def test_an_alert_arrives_once(story: Story) -> None:
    titles = [got["json"]["title"] for got in story.alerts.got]
    assert sum("no new bar in " in title for title in titles) == 1, titles


def test_the_hour_is_caught_up_and_nothing_is_missing_or_doubled(story: Story) -> None:
    service = story.service
    service.assert_nothing_is_missing_or_doubled()
    service.assert_kept(story.before)
    rows = service.live_rows()
    hour = rows[(rows["bar_ts"] > story.down) & (rows["bar_ts"] < story.mended - 5 * MINUTE)]
    assert len(hour) >= 54
    assert set(hour["mode"]) == {"catch_up"}
    assert hour["prediction"].notna().all()
    assert (hour["decided_at"] > story.mended).all()
    arrived = service.store.read(RAW_QUOTES).set_index("bar_ts")["available_at"]
    assert (arrived.loc[hour["bar_ts"]] > story.mended).all()
    # what was decided after its outcome could be known is no evidence, but has an outcome

    def due() -> bool:
        outcomes = service.store.read(OUTCOMES)
        known = set(outcomes.loc[outcomes["status"].isin(["up", "down", "flat"]), "bar_ts"])
        ripe = hour.loc[hour["bar_ts"] < story.mended - 15 * MINUTE, "bar_ts"]
        return set(ripe) <= known

    service.wait_for("outcomes", 60, due)


def test_it_ends_as_ever(story: Story) -> None:
    story.service.assert_ends_on(signal.SIGTERM)
