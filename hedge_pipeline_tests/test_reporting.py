"""What the polls tell Dagster is told later if its database does not take it now."""

from __future__ import annotations

import datetime as dt
import logging
from dataclasses import dataclass, field, replace
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
    said: list[tuple[int, str]] = field(default_factory=list)

    @property
    def log(self) -> SimpleNamespace:
        return SimpleNamespace(log=self._log)

    def _log(self, level: int, words: str) -> None:
        self._take()
        self.said.append((level, words))

    def _take(self) -> None:
        if len(self.told) + len(self.said) >= self.takes:
            raise RuntimeError("too many retries for DB connection")

    def log_event(self, event: dg.AssetMaterialization) -> None:
        self._take()
        bars = event.metadata["bars"].value
        assert isinstance(bars, int)
        self.told.append((event.asset_key.to_user_string(), bars))


def poll_of(*failing: str, bars: int = 3) -> Poll:
    """A poll at `NOW`."""
    failures = dict.fromkeys(failing, "no route")
    return Poll(NOW, "2026-03-09", bars, bars, outcomes=0, failures=failures, seconds=0.1)


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
    report.add(poll_of())  # the database goes away between two events
    report.add(poll_of())
    assert context.told == [("raw_quotes", 3)]
    assert "polling goes on: too many retries" in caplog.text
    context.takes = 100
    report.flush()
    assert context.told == [(name, 3) for name in ("raw_quotes", "features")] * 2
    ((level, words),) = context.said
    assert level == logging.WARNING
    assert words.startswith("Dagster's database took nothing from ")
    assert words.endswith(" on (too many retries for DB connection); polling went on")
    report.flush()
    assert (len(context.told), len(context.said)) == (4, 1)


def test_words_that_are_not_taken_end_no_polling_and_are_said_later_with_their_time(
    tmp_path: Path,
) -> None:
    now = [NOW]
    context: Any = Context(takes=0)
    deployment = replace(replay_in(tmp_path), clock=lambda: now[0])
    elapsed = [0.0]
    report = LiveReport(context, deployment, dt.timedelta(hours=1), elapsed=lambda: elapsed[0])
    report.flush()
    report.add(poll_of("SIMQ", bars=0))
    report.warn("broken, moved aside: part")
    context.takes = 100
    now[0] += dt.timedelta(seconds=59)
    report.add(poll_of(bars=0))
    assert context.said == []  # it is not asked again at once
    elapsed[0] = 59.0
    report.add(poll_of(bars=0))
    warning, info = logging.WARNING, logging.INFO
    assert context.said == [
        (warning, "SIMQ does not answer: no route (at 15:00:00 UTC)"),
        (warning, "broken, moved aside: part (at 15:00:00 UTC)"),
        (info, "SIMQ answers again after 0 min; this poll stored 0 bars (at 15:00:59 UTC)"),
        (
            warning,
            "Dagster's database took nothing from 15:00:00 UTC on (too many retries for DB "
            "connection); polling went on",
        ),
    ]
    report.warn("in time")
    assert context.said[-1] == (warning, "in time")


def test_a_clock_that_was_changed_is_told_once(tmp_path: Path) -> None:
    now, elapsed = [NOW], [0.0]
    context: Any = Context(takes=100)
    deployment = replace(replay_in(tmp_path), clock=lambda: now[0])
    report = LiveReport(context, deployment, dt.timedelta(hours=9), elapsed=lambda: elapsed[0])
    report.flush()
    for passed in (1, 1, 41, 1, -19, 1, 30):
        now[0] += dt.timedelta(minutes=passed)
        elapsed[0] += 1800 if passed == 30 else 60  # the last poll took its time
        report.add(poll_of(bars=0))
    (_, forth), (_, back) = context.said
    assert forth.startswith("the clock was set forth by 40 min, to 2026-03-09 15:43:00 UTC, or ")
    assert back.startswith("the clock was set back by 20 min, to 2026-03-09 15:25:00 UTC; polling")
    assert {level for level, _ in context.said} == {logging.WARNING}


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


def test_after_a_clock_was_set_back_reports_are_due_by_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, elapsed = [NOW], [0.0]
    context: Any = Context(takes=100)
    deployment = replace(replay_in(tmp_path), clock=lambda: now[0])
    shown = {"raw_quotes": {"bars": 3}}
    monkeypatch.setattr(pictures, "live", lambda *_, inputs: shown)
    report = LiveReport(context, deployment, dt.timedelta(minutes=5), lambda: elapsed[0])
    report.flush()
    now[0] -= dt.timedelta(hours=2)
    elapsed[0] += 60
    report.add(poll_of())
    assert context.told == [("raw_quotes", 3)]


def test_an_event_log_that_takes_nothing_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster raises what its own log raises, also to those who only say something."""

    def refuse(*_: object) -> None:
        raise OSError("no space left")

    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:

        @dg.op
        def poll(context) -> None:  # type: ignore[no-untyped-def]
            report = LiveReport(context, replay_in(tmp_path), dt.timedelta(hours=1))
            with monkeypatch.context() as patched:
                patched.setattr(instance.event_log_storage, "store_event", refuse)
                with pytest.raises(OSError, match="no space left"):
                    context.log.warning("nobody hears this")
                report.warn("SIMQ does not answer: no route")
            report.flush()

        @dg.job
        def polls() -> None:
            poll()

        done = polls.execute_in_process(instance=instance)
        assert done.success
        said = [
            (entry.level, entry.user_message)
            for entry in instance.all_logs(done.run_id)
            if entry.level == logging.WARNING
        ]
    assert said[0][1].startswith("SIMQ does not answer: no route (at ")
    assert said[1][1].startswith("Dagster's database took nothing from ")
    assert "(no space left)" in said[1][1]
    assert len(said) == 2
