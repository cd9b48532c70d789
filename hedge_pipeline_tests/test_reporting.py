"""What the polls tell Dagster is told later if its database does not take it now."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from hedge_pipeline.assets import pictures
from hedge_pipeline.assets.reporting import LiveReport, report_closed
from hedge_pipeline.live.loop import Poll
from hedge_pipeline.market.sources import SourceDown
from hedge_pipeline.stages import ClosedSession, Deployment
from hedge_pipeline_tests.markets import (
    HALF_DAY,
    MINUTE,
    SYMBOLS,
    FakeMarket,
    calendar_of,
    minutes,
    watch,
)
from hedge_pipeline_tests.replays import demo_in, replay_in

NOW = dt.datetime(2026, 3, 9, 15, 0, tzinfo=dt.UTC)


@dataclass
class Context:
    """Stands for the polling op's; takes so many events and then none."""

    takes: int
    told: list[tuple[str, int]] = field(default_factory=list)

    def log_event(self, event: dg.AssetMaterialization) -> None:
        if len(self.told) >= self.takes:
            raise RuntimeError("too many retries for DB connection")
        bars = event.metadata["bars"].value
        assert isinstance(bars, int)
        self.told.append((event.asset_key.to_user_string(), bars))


def test_a_report_that_is_not_taken_ends_no_polling_and_is_told_once_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def live(
        deployment: Deployment, label: str, polls: list[Poll], *, inputs: bool
    ) -> dict[str, dict[str, Any]]:
        bars = {"bars": sum(poll.bars for poll in polls)}
        return {"raw_quotes": bars, "features": bars}

    monkeypatch.setattr(pictures, "live", live)
    context: Any = Context(takes=1)
    report = LiveReport(context, replay_in(tmp_path), dt.timedelta(0))
    poll = Poll(NOW, "2026-03-09", bars=3, predictions=3, outcomes=0, failures={}, seconds=0.1)
    report.add(poll)  # the database goes away between two events
    report.add(poll)
    assert context.told == [("raw_quotes", 3)]
    assert "polling goes on: too many retries" in caplog.text
    context.takes = 100
    report.flush()
    assert context.told == [(name, 3) for name in ("raw_quotes", "features")] * 2
    report.flush()
    assert len(context.told) == 4


def test_a_minute_that_never_came_costs_coverage_while_the_session_runs(tmp_path: Path) -> None:
    """Nobody knows yet whether it is a gap, but ten minutes of each symbol were expected."""
    session = calendar_of("XNYS").session(HALF_DAY)
    (missing,) = minutes(session, 4)
    market = FakeMarket(holes={(SYMBOLS[0], missing): session.closes + MINUTE})
    found = watch(tmp_path, market, session.opens + 2 * MINUTE)
    found.run(session.opens + 10 * MINUTE + MINUTE / 2)
    shown = pictures.live(found.deployment, HALF_DAY, found.polls)["raw_quotes"]
    assert (shown["dagster/row_count"], shown["coverage_pct"]) == (19, 95.0)


def test_a_symbol_that_never_answered_costs_its_share_of_the_coverage(tmp_path: Path) -> None:
    session = calendar_of("XNYS").session(HALF_DAY)
    outage = (SYMBOLS[0], session.opens, session.closes, SourceDown("no route"))
    found = watch(tmp_path, FakeMarket(outages=[outage]), session.opens + 2 * MINUTE)
    found.run(session.opens + 10 * MINUTE + MINUTE / 2)
    shown = pictures.live(found.deployment, HALF_DAY, found.polls)["raw_quotes"]
    assert shown["coverage_pct"] == 50.0


def test_predictions_that_a_close_has_added_are_told(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Those of a poll run that stored its last bar and did not live to predict it."""
    deployment = replay_in(demo_in(tmp_path_factory.getbasetemp()).out)
    events: list[dg.AssetMaterialization] = []
    lines: list[str] = []
    log = SimpleNamespace(info=lines.append)
    context: Any = SimpleNamespace(log_event=events.append, log=log)
    label = deployment.calendar.labels[2]
    report_closed(context, deployment, ClosedSession(label, 0, 0, 2, 0, {}))
    assert "prediction_log" in {event.asset_key.to_user_string() for event in events}
    assert lines == [f"{label} closed: 0 late bars, 0 gaps, 2 predictions, 0 outcomes"]
    events.clear()
    report_closed(context, deployment, ClosedSession(label, 0, 0, 0, 0, {}))
    assert events == []
