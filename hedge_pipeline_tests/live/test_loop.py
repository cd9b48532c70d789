"""The polling loop on an accelerated clock: what it stores, whatever the source or the power do."""

from __future__ import annotations

import datetime as dt
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hedge_pipeline import control, health, stages, storage
from hedge_pipeline.learning.shelf import ModelShelf
from hedge_pipeline.levels.joining import NO_CHAIN
from hedge_pipeline.levels.signals import NO_LEVEL
from hedge_pipeline.live import loop
from hedge_pipeline.live.loop import AFTER_FINAL, Fetcher, Poll, Work, next_poll, poll
from hedge_pipeline.live.supervision import Heartbeat
from hedge_pipeline.market.calendar import Session
from hedge_pipeline.market.features import compute_features
from hedge_pipeline.market.sources import RateLimited, SourceDown, SymbolUnknown
from hedge_pipeline.market.tables import (
    FEATURE_ROWS,
    GAPS,
    OUTCOMES,
    PREDICTION_LOG,
    PROMOTIONS,
    RAW_QUOTES,
    TABLES,
    Table,
    feature_names,
)
from hedge_pipeline.serving.predicting import LATE_BAR, NO_MODEL
from hedge_pipeline.settings import load_settings
from hedge_pipeline.stages import features as feature_stage
from hedge_pipeline.storage import past_broken_files
from hedge_pipeline.store import BrokenFile, Store, StoreError
from hedge_pipeline_tests.markets import (
    BEFORE,
    HALF_DAY,
    HOUR,
    MINUTE,
    SECOND,
    SYMBOLS,
    FakeMarket,
    Watch,
    assert_same_session,
    calendar_of,
    copy_of,
    deployment_in,
    history_in,
    minutes,
    stored_twice,
    watch,
)
from hedge_pipeline_tests.replays import environment

SESSION = calendar_of("XNYS").session(HALF_DAY)
OPENS = SESSION.opens.astimezone(dt.UTC)
CLOSES = SESSION.closes.astimezone(dt.UTC)
LIVE_TABLES = (RAW_QUOTES, FEATURE_ROWS, PREDICTION_LOG, OUTCOMES)
NEVER = dt.datetime(2100, 1, 1, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return history_in(tmp_path_factory.mktemp("history") / "data")


@pytest.fixture
def folder(history: Path, tmp_path: Path) -> Path:
    return copy_of(history, tmp_path / "data")


def at(minute: float, second: float = 0) -> dt.datetime:
    """So many minutes after the opening."""
    return OPENS + dt.timedelta(minutes=minute, seconds=second)


# -- the grid ----------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0, 15, 90, 900])
@pytest.mark.parametrize("interval", [10, 30, 45, 60, 300])
def test_ten_thousand_polls_stay_on_the_grid_whatever_a_poll_takes(
    interval: int, delay: int
) -> None:
    random = np.random.default_rng(interval + delay)
    taken = random.exponential(0.3 * interval, 10_000).round(6)
    step, lag = dt.timedelta(seconds=interval), dt.timedelta(seconds=delay)
    now = first = next_poll(OPENS, step, 60, lag)
    for seconds in taken:
        after = now + dt.timedelta(seconds=float(seconds))
        now = next_poll(after, step, 60, lag)
        assert dt.timedelta(0) < now - after <= step
    passed = (now - first) / step
    assert passed == int(passed)


@settings(max_examples=200)
@given(
    st.datetimes(dt.datetime(2024, 1, 2), dt.datetime(2030, 1, 1), timezones=st.just(dt.UTC)),
    st.integers(10, 3600),
    st.sampled_from([60, 300, 3600]),
    st.integers(0, 1800),
)
def test_the_next_poll_is_the_first_moment_of_the_grid_after_now(
    now: dt.datetime, interval: int, bar_seconds: int, delay: int
) -> None:
    step, lag = dt.timedelta(seconds=interval), dt.timedelta(seconds=delay)
    found = next_poll(now, step, bar_seconds, lag)
    assert now < found <= now + step
    assert next_poll(found, step, bar_seconds, lag) == found + step
    if bar_seconds % interval == 0:  # then some poll is a second behind every bar's arrival
        final = dt.datetime.fromtimestamp(now.timestamp() // bar_seconds * bar_seconds, dt.UTC)
        expected = final + lag + AFTER_FINAL
        assert (found - expected) % step == dt.timedelta(0)


# -- a session ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[300, pytest.param(60, marks=pytest.mark.slow)])
def half_day(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Watch:
    """A whole half day bar by bar, closed afterwards; nothing goes wrong but one hole of SIMB."""
    seconds: int = request.param
    folder = tmp_path_factory.mktemp("half_day") / "data"
    history_in(folder, HEDGE_BAR_SECONDS=seconds)
    hole = OPENS + 20 * seconds * SECOND
    market = FakeMarket(holes={("SIMB", hole): NEVER})
    found = watch(folder, market, at(0, 2), HEDGE_BAR_SECONDS=seconds)
    found.run(until=CLOSES + 5 * HOUR, interval=seconds * SECOND)
    found.clock.now = CLOSES + 20 * MINUTE
    stages.close_session(found.deployment, HALF_DAY)
    return found


def length(found: Watch) -> dt.timedelta:
    return dt.timedelta(seconds=found.deployment.calendar.bar_seconds)


def test_every_minute_is_a_bar_or_a_gap(half_day: Watch) -> None:
    session = half_day.deployment.calendar.session(HALF_DAY)
    expected = list(pd.DatetimeIndex(session.bar_ts).tz_localize("UTC"))
    assert expected[0] == OPENS and expected[-1] == CLOSES - length(half_day)
    for symbol in SYMBOLS:
        bars = half_day.rows(RAW_QUOTES, HALF_DAY, symbol)["bar_ts"]
        gaps = half_day.rows(GAPS, HALF_DAY, symbol)["bar_ts"]
        assert sorted([*bars, *gaps]) == expected
    (gap,) = half_day.rows(GAPS, HALF_DAY).to_dict("records")
    hole = OPENS + 20 * length(half_day)
    assert (gap["symbol"], gap["bar_ts"], gap["cause"]) == ("SIMB", hole, "vendor_hole")


def test_every_bar_has_its_feature_row_and_one_served_and_one_baseline_prediction(
    half_day: Watch,
) -> None:
    keys = half_day.rows(RAW_QUOTES, HALF_DAY)[["symbol", "bar_ts"]]
    for rows in (
        half_day.rows(FEATURE_ROWS, HALF_DAY),
        half_day.served(HALF_DAY),
        half_day.rows(PREDICTION_LOG, HALF_DAY, role="baseline"),
        half_day.rows(OUTCOMES, HALF_DAY),
    ):
        pd.testing.assert_frame_equal(rows[["symbol", "bar_ts"]], keys)


def test_every_prediction_is_live_and_made_a_second_after_its_bar(half_day: Watch) -> None:
    served = half_day.served(HALF_DAY)
    assert (served["decided_at"] - served["bar_ts"] == length(half_day) + SECOND).all()
    assert set(served["mode"]) == {"live"}
    assert served["prediction"].notna().all()
    assert set(served["reason"]) == {f"{NO_LEVEL}: {NO_CHAIN}"}
    assert set(served["model_version"]) == {1}


def test_outcomes_mature_when_their_horizon_is_over_and_not_before(half_day: Watch) -> None:
    outcomes = half_day.rows(OUTCOMES, HALF_DAY)
    unknown = outcomes[outcomes["status"] == "unlabelable"]
    assert unknown["reason"].value_counts().to_dict() == {"crosses_close": 20, "gap": 1}
    known = outcomes[outcomes["status"] != "unlabelable"]
    assert (known["available_at"] - known["bar_ts"] == 11 * length(half_day) + SECOND).all()
    last = (CLOSES - OPENS) // length(half_day)
    expected = [2 * (bars > 10) + 2 * (bars > last - 10) for bars in range(last + 1)]
    expected[21] -= 1  # the hole is the exit of one bar, which waits for the end,
    expected[31] -= 1  # and no entry
    assert [found.outcomes for found in half_day.polls] == expected


def test_each_poll_brings_the_bar_that_has_just_become_final(half_day: Watch) -> None:
    first, *others = half_day.polls
    assert (first.bars, first.predictions) == (0, 0)
    bars = (CLOSES - OPENS) // length(half_day)
    expected = [OPENS + number * length(half_day) + SECOND for number in range(1, bars + 1)]
    assert [found.at for found in others] == expected
    brought = [(found.bars, found.predictions) for found in others]
    assert brought.pop(20) == (1, 2)
    assert set(brought) == {(2, 4)}
    assert not any(found.failures for found in others)


def test_the_loop_leaves_when_the_last_bar_is_final(half_day: Watch) -> None:
    assert half_day.polls[-1].at == CLOSES + SECOND
    beat = Heartbeat.read(half_day.store)
    assert beat is not None
    assert (beat.run_id, beat.moment, beat.session) == ("run-1", CLOSES + SECOND, HALF_DAY)


def test_bar_by_bar_equals_at_once(half_day: Watch, tmp_path: Path) -> None:
    """I2: the same bars materialised at once in a replay, with the same model accepted before."""
    folder = copy_of(Path(half_day.store.url), tmp_path / "replay")
    for table in TABLES:
        shutil.rmtree(folder / table.name / f"session={HALF_DAY}", ignore_errors=True)
    replay = deployment_in(
        folder,
        half_day.deployment.source,
        lambda: CLOSES + HOUR,
        HEDGE_MODE="replay",
        HEDGE_BAR_SECONDS=half_day.deployment.calendar.bar_seconds,
    )
    stages.collect(replay, HALF_DAY)
    stages.build_features(replay, HALF_DAY)
    stages.log_predictions(replay, HALF_DAY)
    stages.mature_outcomes(replay, HALF_DAY)
    assert_same_session(half_day.store, replay.store, HALF_DAY)
    assert set(replay.store.read(PREDICTION_LOG, [HALF_DAY])["mode"]) == {"replay"}


def test_nothing_is_stored_twice_and_a_closed_session_is_one_file_per_table(
    half_day: Watch,
) -> None:
    folder = Path(half_day.store.url)
    assert stored_twice(folder, LIVE_TABLES) == {}
    for table in LIVE_TABLES:
        assert len(list((folder / table.name / f"session={HALF_DAY}").glob("*.parquet"))) == 1


# -- when it polls and leaves --------------------------------------------------------------------


@pytest.mark.parametrize(("interval", "delay"), [(10, 0), (55, 0), (60, 90), (95, 90), (3600, 0)])
def test_the_last_bar_is_polled_whatever_the_interval(
    tmp_path: Path, interval: int, delay: int
) -> None:
    found = watch(tmp_path, FakeMarket(delay=delay * SECOND), CLOSES - MINUTE)
    found.run(until=CLOSES + 9 * HOUR, interval=interval * SECOND)
    assert len(found.rows(RAW_QUOTES, HALF_DAY, "SIMA")) == 210
    final = CLOSES + delay * SECOND
    assert any(final <= x.at <= final + 2 * SECOND for x in found.polls)
    assert found.clock.now <= final + 61 * SECOND


def test_the_last_bar_of_a_session_is_decided_live(tmp_path: Path) -> None:
    found = watch(tmp_path, FakeMarket(), CLOSES - 3 * MINUTE)
    found.run(until=CLOSES + HOUR)
    assert found.served(HALF_DAY, "SIMA")["mode"].tolist()[-3:] == ["live"] * 3


def test_outside_a_session_the_loop_ends_at_once(tmp_path: Path) -> None:
    found = watch(tmp_path, FakeMarket(), OPENS - MINUTE)
    assert found.run(until=CLOSES) == 0
    assert found.clock.now == OPENS - MINUTE


def test_the_time_box_ends_the_loop_right_after_a_poll(tmp_path: Path) -> None:
    """Waiting for the next poll only to leave would make the next run late for its first bar."""
    found = watch(tmp_path, FakeMarket(), at(1, 7))
    assert found.run(until=at(11, 7)) == 11
    assert found.clock.now == found.polls[-1].at == at(11, 1)


@pytest.mark.parametrize(
    ("label", "opens"),
    [
        ("2024-03-08", "14:30"),  # the clocks go forward on Sunday
        ("2024-03-11", "13:30"),
        ("2024-11-01", "13:30"),  # and back
        ("2024-11-04", "14:30"),
    ],
)
def test_a_session_is_polled_at_the_hours_of_the_exchange_whatever_its_clocks_show(
    tmp_path: Path, label: str, opens: str
) -> None:
    first = dt.datetime.fromisoformat(f"{label}T{opens}+00:00")
    close = first + 390 * MINUTE
    found = watch(tmp_path, FakeMarket(), first - SECOND)
    assert found.run(until=close) == 0
    found.clock.now = first
    found.run(until=first + 3 * MINUTE + 2 * SECOND)
    assert list(found.served(label, "SIMA")["bar_ts"]) == [first + i * MINUTE for i in range(3)]
    assert set(found.served(label, "SIMA")["mode"]) == {"live"}
    found.clock.now = close - MINUTE + SECOND
    found.run(until=close + HOUR)
    assert found.polls[-1].at == close + SECOND
    served = found.served(label, "SIMA")
    assert len(served) == 390
    assert served["bar_ts"].iloc[-1] == close - MINUTE
    assert served["mode"].iloc[-1] == "live"


def test_at_midnight_round_the_clock_the_last_bar_of_the_day_is_not_left_behind(
    tmp_path: Path,
) -> None:
    midnight = dt.datetime(2024, 11, 29, tzinfo=dt.UTC)
    found = watch(tmp_path, FakeMarket(), midnight - 2 * MINUTE, calendar="24/7")
    found.run(until=midnight + 3 * MINUTE)
    assert len(found.rows(RAW_QUOTES, "2024-11-28", "SIMA")) == 1440
    assert found.served("2024-11-28", "SIMA")["mode"].tolist()[-2:] == ["live", "live"]
    today = found.served(HALF_DAY, "SIMA")
    assert list(today["bar_ts"]) == [midnight, midnight + MINUTE]
    assert set(today["mode"]) == {"live"}


# -- a source in trouble -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [SourceDown("no route"), RateLimited("429"), SymbolUnknown("no such symbol")]
)
def test_a_failing_symbol_costs_only_itself(folder: Path, error: Any) -> None:
    market = FakeMarket(outages=[("SIMB", OPENS, CLOSES, error)])
    found = watch(folder, market, at(9, 1))
    found.run(until=at(13, 2))
    good = found.served(HALF_DAY, "SIMA")
    assert len(good) == 13
    assert good["mode"].tolist() == ["catch_up"] * 8 + ["live"] * 5
    assert len(found.rows(OUTCOMES, HALF_DAY, "SIMA")) == 3
    assert found.rows(RAW_QUOTES, HALF_DAY, "SIMB").empty
    assert found.polls[-1].failures == {"SIMB": str(error)}


class Broken(FakeMarket):
    """A plug-in with a mistake of its own in one symbol."""

    def bars(self, symbol: str, session: Session, now: dt.datetime) -> pd.DataFrame:
        if symbol == "SIMB":
            raise ZeroDivisionError("division by zero")
        return super().bars(symbol, session, now)


def test_a_mistake_in_a_source_costs_its_symbol_not_the_loop(folder: Path) -> None:
    found = watch(folder, Broken(), at(9, 1))
    found.run(until=at(13, 2))
    assert len(found.served(HALF_DAY, "SIMA")) == 13
    reason = "SIMB: the source fails with ZeroDivisionError: division by zero"
    assert found.polls[-1].failures == {"SIMB": reason}


def test_a_slow_symbol_does_not_delay_the_other(folder: Path) -> None:
    """While SIMB is still on its way, the prediction of SIMA is already in the store."""
    market = FakeMarket(slow={"SIMB": [2.0]})
    found = watch(folder, market, at(2, 1))
    seen: list[int] = []

    def look() -> None:
        seen.append(len(watch(folder, market, at(2)).served(HALF_DAY, "SIMA")))

    timer = threading.Timer(1.5, look)
    timer.start()
    found.run(until=at(2, 2))
    timer.join(10)
    assert seen == [2]
    assert len(found.served(HALF_DAY, "SIMB")) == 2  # it answered within the patience of the poll


def test_a_symbol_slower_than_the_poll_is_picked_up_later(folder: Path) -> None:
    market = FakeMarket(held={"SIMB": threading.Event()})
    found = watch(folder, market, at(3, 1))
    fetcher = Fetcher(found.deployment, patience=0.2)
    first = poll(found.deployment, fetcher, SESSION)
    assert (first.bars, first.predictions) == (3, 6)
    assert first.failures == {"SIMB": "SIMB: no answer within 0.2 s"}
    found.clock.now = at(4, 1)
    second = poll(found.deployment, fetcher, SESSION)
    assert (second.bars, market.asked["SIMB"]) == (1, 1)  # not asked again while under way
    market.held.pop("SIMB").set()
    found.clock.now = at(5, 1)
    poll(found.deployment, fetcher, SESSION)
    found.clock.now = at(6, 1)
    poll(found.deployment, fetcher, SESSION)
    assert found.polls == []
    assert len(found.served(HALF_DAY, "SIMA")) == len(found.served(HALF_DAY, "SIMB")) == 6
    assert set(found.served(HALF_DAY, "SIMA").tail(3)["mode"]) == {"live"}
    modes = found.served(HALF_DAY, "SIMB")["mode"].tolist()
    assert modes == ["catch_up"] * 5 + ["live"]
    assert found.served(HALF_DAY, "SIMB")["prediction"].notna().all()


def test_an_answer_about_yesterday_is_stored_with_yesterday(tmp_path: Path) -> None:
    market = FakeMarket(held={"SIMB": threading.Event()})
    days = ("2024-11-28", "2024-11-29")
    yesterday, today = (calendar_of("24/7").session(label) for label in days)
    found = watch(tmp_path, market, today.opens - MINUTE + SECOND, calendar="24/7")
    fetcher = Fetcher(found.deployment, patience=0.1)
    poll(found.deployment, fetcher, yesterday)
    market.held.pop("SIMB").set()
    fetched = [x for _, x in fetcher._open.values()]
    assert all(x.result(10) for x in fetched)
    found.clock.now = today.opens + 2 * MINUTE + SECOND
    poll(found.deployment, fetcher, today)
    poll(found.deployment, fetcher, today)
    assert len(found.rows(RAW_QUOTES, days[0], "SIMB")) == 1439
    assert list(found.rows(RAW_QUOTES, days[1], "SIMB")["bar_ts"]) == minutes(today, 0, 1)
    assert len(found.served(days[1], "SIMB")) == 2


HANGING = """
import datetime as dt, sys, threading
from pathlib import Path
from hedge_pipeline.live.loop import Fetcher
from hedge_pipeline_tests.live.test_loop import SESSION, at
from hedge_pipeline_tests.markets import FakeMarket, watch
market = FakeMarket(slow={"SIMB": [600.0]})
found = watch(Path(sys.argv[1]), market, at(3, 1))
answers = list(Fetcher(found.deployment, patience=0.3).fetch(SESSION, at(3, 1)))
print(len(answers), "lists of answers", flush=True)
"""


def test_a_source_that_hangs_for_ever_does_not_keep_the_run_from_ending(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGING, str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "2 lists of answers\n"), done.stderr[-2000:]


def test_after_an_outage_the_missing_bars_are_caught_up(folder: Path) -> None:
    market = FakeMarket(outages=[("", at(10), at(30), SourceDown("no route to host"))])
    found = watch(folder, market, at(7, 1))
    found.run(until=at(33, 2))
    for symbol in SYMBOLS:
        served = found.served(HALF_DAY, symbol)
        assert list(served["bar_ts"]) == minutes(SESSION, *range(33))
        # what was final for more than a bar when the source came back was caught up
        assert served["mode"].tolist() == (
            ["catch_up"] * 6 + ["live"] * 3 + ["catch_up"] * 20 + ["live"] * 4
        )
        assert served["prediction"].notna().all()
        assert len(found.rows(OUTCOMES, HALF_DAY, symbol)) == 23
        # evidence are only those decided before their outcome could be known
        in_time = served["decided_at"] < served["bar_ts"] + 11 * MINUTE
        assert in_time.tolist() == [True] * 9 + [False] * 11 + [True] * 13
    failed = [x for x in found.polls if x.failures]
    assert len(failed) == 20
    assert failed[0].failures == dict.fromkeys(SYMBOLS, "no route to host")


def test_a_source_that_is_down_for_an_hour_is_told_once_and_loses_and_doubles_nothing(
    folder: Path,
) -> None:
    market = FakeMarket(outages=[("", at(10), at(70), SourceDown("no route to host"))])
    found = watch(folder, market, at(7, 1))
    patience = health.patience_of(load_settings())
    told: list[health.Trouble] = []

    def look() -> None:
        wrong = health.live_troubles(health.facts(found.deployment, None), patience)
        new = health.untold(found.store, wrong, found.clock.now, 12 * HOUR)
        health.mark_told(found.store, new, found.clock.now, 12 * HOUR)
        told.extend(new)

    for minute in range(8, 74):
        found.clock.at(at(minute, 0.5), look)
    found.run(until=at(73, 2))
    assert [trouble.name for trouble in told] == [f"no new bar in {HALF_DAY}"]
    assert "the poll run is alive, so the source has none" in told[0].message
    for symbol in SYMBOLS:
        bars = minutes(SESSION, *range(73))
        assert list(found.rows(RAW_QUOTES, HALF_DAY, symbol)["bar_ts"]) == bars
        served = found.served(HALF_DAY, symbol)
        assert list(served["bar_ts"]) == bars
        assert served["mode"].tolist() == (
            ["catch_up"] * 6 + ["live"] * 3 + ["catch_up"] * 60 + ["live"] * 4
        )
        assert served["prediction"].notna().all()
        assert len(found.rows(OUTCOMES, HALF_DAY, symbol)) == 63
        # of the hour only the last bars were decided before their outcome could be known
        in_time = served["decided_at"] < served["bar_ts"] + 11 * MINUTE
        assert in_time.tolist() == [True] * 9 + [False] * 51 + [True] * 13
    assert stored_twice(folder, LIVE_TABLES) == {}
    assert len([x for x in found.polls if x.failures]) == 60


@pytest.mark.parametrize("refusing", [RAW_QUOTES, FEATURE_ROWS, PREDICTION_LOG, OUTCOMES, None])
def test_a_disk_that_is_full_for_a_while_ends_no_run_and_what_it_refused_is_caught_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch, refusing: Table | None
) -> None:
    """Whichever table it is that there is no room for; None = for nothing at all."""
    found = watch(folder, FakeMarket(), at(7, 1))
    full = "the data folder cannot be written: No space left on device"
    append, write = Store.append, Store.write_bytes

    def now_full() -> bool:
        return at(12) <= found.clock.now < at(16)

    def appended(store: Store, table: Table, *given: Any, **more: Any) -> Any:
        if now_full() and refusing in (table, None):
            raise StoreError(full)
        return append(store, table, *given, **more)

    def written(store: Store, *given: Any) -> None:
        if now_full() and refusing is None:
            raise StoreError(full)
        write(store, *given)

    monkeypatch.setattr(Store, "append", appended)
    monkeypatch.setattr(Store, "write_bytes", written)
    found.run(until=at(20, 2))
    assert found.warnings == [
        f"{full}; polling goes on",
        "the data folder takes what is polled again",
    ]
    for symbol in SYMBOLS:
        assert list(found.rows(RAW_QUOTES, HALF_DAY, symbol)["bar_ts"]) == minutes(
            SESSION, *range(20)
        )
        served = found.served(HALF_DAY, symbol)
        assert len(served) == len(found.rows(PREDICTION_LOG, HALF_DAY, symbol, "baseline")) == 20
        assert served["prediction"].notna().all()
        late = served["mode"] == "catch_up"
        assert late.sum() == 6 + (0 if refusing is OUTCOMES else 4)
        assert len(found.rows(OUTCOMES, HALF_DAY, symbol)) == 10
    assert stored_twice(folder, LIVE_TABLES) == {}


def test_a_store_that_refuses_from_the_start_ends_the_run_with_the_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise StoreError("no room")

    found = watch(folder, FakeMarket(), at(7, 1))
    monkeypatch.setattr(Store, "append", refused)
    with pytest.raises(StoreError, match="no room"):
        found.run(until=at(20, 2))
    assert found.warnings == []


@pytest.mark.parametrize(
    ("table", "label"),
    [
        (RAW_QUOTES, BEFORE[-1]),
        (RAW_QUOTES, HALF_DAY),
        (FEATURE_ROWS, BEFORE[-1]),
        (FEATURE_ROWS, HALF_DAY),
        (OUTCOMES, BEFORE[-1]),
        (PREDICTION_LOG, HALF_DAY),
        (PROMOTIONS, BEFORE[-1]),
    ],
)
def test_a_broken_file_of_any_table_is_moved_aside_and_predictions_go_on(
    folder: Path, table: Table, label: str
) -> None:
    market = FakeMarket()
    watch(folder, market, at(7, 1)).run(until=at(8, 30))
    found = watch(folder, market, at(9, 1))
    part = min((folder / table.name / f"session={label}").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    cut = [str(part.with_name(f".broken-{part.name}"))]
    said: list[str] = []
    past_broken_files(found.deployment, lambda: found.run(until=at(12, 2)), said.append)
    log = found.store.read(PREDICTION_LOG, [HALF_DAY])
    assert set(log.loc[log["role"] == "served", "bar_ts"]) >= set(minutes(SESSION, 9, 10, 11))
    assert len(found.rows(RAW_QUOTES, HALF_DAY, "SIMA")) == 12
    # what nothing reads before the night is found then
    assert [line.removeprefix("broken, moved aside: ") for line in said] in ([], cut)
    storage.quarantine(found.deployment)
    assert [str(folder / path) for path in found.store.quarantined()] == cut


def test_a_broken_file_that_a_companion_meets_is_moved_aside_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = watch(folder, FakeMarket(), at(7, 1))
    part = next((folder / OUTCOMES.name).rglob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-8])
    asked = stages.log_companions

    def meets_it(*given: Any) -> int:
        if part.exists():
            raise BrokenFile("no whole file", str(part))
        return asked(*given)

    monkeypatch.setattr(stages, "log_companions", meets_it)
    said: list[str] = []
    past_broken_files(found.deployment, lambda: found.run(until=at(9, 2)), said.append)
    assert said == [f"broken, moved aside: {part.with_name(f'.broken-{part.name}')}"]
    assert found.served(HALF_DAY, "SIMA")["prediction"].notna().all()
    assert len(found.rows(PREDICTION_LOG, HALF_DAY, "SIMA", "baseline")) == 9


def test_what_is_no_part_of_a_table_or_whole_again_ends_the_work(folder: Path) -> None:
    found = watch(folder, FakeMarket(), at(7, 1))
    whole = next((folder / RAW_QUOTES.name).rglob("*.parquet"))
    for path in (whole, folder / "elsewhere" / "part-1.parquet"):

        def broken(path: Path = path) -> None:
            raise BrokenFile("no whole file", str(path))

        with pytest.raises(BrokenFile, match="no whole file"):
            past_broken_files(found.deployment, broken, print)
    assert whole.exists()


def test_a_hole_that_fills_later_is_stored_and_abstains(folder: Path) -> None:
    (hole,) = minutes(SESSION, 3)
    market = FakeMarket(holes={("SIMA", hole): at(6)})
    found = watch(folder, market, at(2, 1))
    found.run(until=at(14, 2))
    assert len(found.rows(RAW_QUOTES, HALF_DAY, "SIMA")) == 14
    served = found.served(HALF_DAY, "SIMA").set_index("bar_ts")
    late = served.loc[hole]
    assert bool(served["prediction"].isna().loc[hole])
    assert (late["reason"], late["mode"]) == (LATE_BAR, "catch_up")
    assert served.drop(hole)["prediction"].notna().all()
    features = found.rows(FEATURE_ROWS, HALF_DAY, "SIMA").set_index("bar_ts")
    assert features.loc[hole, list(feature_names())].isna().all()
    outcome = found.rows(OUTCOMES, HALF_DAY, "SIMA").set_index("bar_ts").loc[hole]
    assert outcome["status"] in ("up", "down", "flat")


def test_a_filled_hole_changes_no_feature_of_another_bar(folder: Path, tmp_path: Path) -> None:
    (hole,) = minutes(SESSION, 3)
    filled = watch(folder, FakeMarket(holes={("SIMA", hole): at(6)}), at(2, 1))
    never = watch(
        copy_of(folder, tmp_path / "never"),
        FakeMarket(holes={("SIMA", hole): CLOSES + HOUR}),
        at(2, 1),
    )
    for found in (filled, never):
        found.run(until=at(8, 2))
    left, right = (x.rows(FEATURE_ROWS, HALF_DAY, "SIMA") for x in (filled, never))
    left = left[left["bar_ts"] != hole].reset_index(drop=True)
    pd.testing.assert_frame_equal(left, right, check_exact=True)
    # and what is stored is what a later materialisation computes
    again = stages.features_of(filled.deployment, HALF_DAY)
    stored = filled.rows(FEATURE_ROWS, HALF_DAY)
    pd.testing.assert_frame_equal(
        again.sort_values(["symbol", "bar_ts"]).reset_index(drop=True), stored, check_exact=True
    )


def test_totals_carried_from_poll_to_poll_hold_every_bar_whoever_stored_it(folder: Path) -> None:
    market = FakeMarket(outages=[("SIMB", at(10), at(20, 45), SourceDown("no route to host"))])
    found = watch(folder, market, at(2, 1))
    other = deployment_in(folder, FakeMarket(), found.clock)

    def store_only() -> None:
        stages.collect(other, HALF_DAY)

    found.clock.at(at(20, 30), store_only)
    found.run(until=at(30, 2))
    (carried,) = found.deployment.totals.values()
    assert carried[3].bars > 20
    assert len(found.rows(RAW_QUOTES, HALF_DAY, "SIMB")) == 30
    fresh = deployment_in(folder, FakeMarket(), found.clock)
    again = stages.features_of(fresh, HALF_DAY).set_index(["symbol", "bar_ts"])
    stored = found.rows(FEATURE_ROWS, HALF_DAY).set_index(["symbol", "bar_ts"])
    pd.testing.assert_frame_equal(again.loc[stored.index], stored, check_exact=True)


def test_without_a_model_every_prediction_abstains_and_says_so(tmp_path: Path) -> None:
    found = watch(tmp_path, FakeMarket(), at(11, 1))
    found.run(until=at(13, 2))
    rows = found.rows(PREDICTION_LOG, HALF_DAY)
    assert len(rows) == 26
    assert set(rows["role"]) == {"served"}
    assert rows["prediction"].isna().all() and rows["prob_up"].isna().all()
    assert set(rows["reason"]) == {NO_MODEL}
    assert set(rows["model_version"]) == {0}
    assert len(found.rows(OUTCOMES, HALF_DAY)) == 6


def test_every_bar_is_told_in_one_line_with_all_that_was_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    market = FakeMarket(outages=[("SIMB", at(2), CLOSES, SourceDown("no route"))])
    found = watch(folder, market, at(1, 1))
    with caplog.at_level("INFO", logger=loop.log.name):
        found.run(until=at(2, 2))
    told = [(record.levelname, record.message) for record in caplog.records]
    rows = {
        (row["symbol"], row["bar_ts"]): row for row in found.served(HALF_DAY).to_dict("records")
    }
    expected = []
    for symbol, minute in (("SIMA", 0), ("SIMB", 0), ("SIMA", 1)):
        row = rows[symbol, at(minute)]
        expected.append(
            f"logged prediction: {symbol} @ {row['price']:.2f} = {row['prediction']} "
            f"(up {row['prob_up']:.3f}, trust {row['trust']:.2f}, skill unproven, version 1, "
            "lag 1 s, live)"
        )
    assert told == [
        ("INFO", expected[0]),
        ("INFO", expected[1]),
        ("WARNING", "SIMB: no new bars: no route"),
        ("INFO", expected[2]),
    ]


def test_an_abstention_is_told_with_its_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = watch(tmp_path, FakeMarket(), at(1, 1), ("SIMA",))
    with caplog.at_level("INFO", logger=loop.log.name):
        found.run(until=at(1, 2))
    price = found.served(HALF_DAY)["price"].iloc[0]
    expected = f"logged prediction: SIMA @ {price:.2f} = none ({NO_MODEL}), lag 1 s"
    assert [record.message for record in caplog.records] == [expected]


# -- pauses and swaps ----------------------------------------------------------------------------


def test_after_a_pause_the_bars_in_between_are_caught_up(folder: Path) -> None:
    market = FakeMarket()
    watch(folder, market, at(0, 2)).run(until=at(5, 2))
    later = watch(folder, market, at(35, 20))
    later.run(until=at(40, 2), run_id="run-2")
    first = later.polls[0]
    assert (first.bars, first.predictions) == (60, 120)
    served = later.served(HALF_DAY, "SIMB")
    # the 35th bar was final 20 seconds before: it is live
    assert served["mode"].tolist() == ["live"] * 5 + ["catch_up"] * 29 + ["live"] * 6
    assert set(served["decided_at"].iloc[5:35]) == {at(35, 20)}
    assert later.rows(OUTCOMES, HALF_DAY, "SIMB")["bar_ts"].max() == at(29)


def accept_another(folder: Path, now: dt.datetime, symbol: str) -> None:
    """Another process puts version 2 of a symbol on the shelf and accepts it."""
    other = deployment_in(folder, FakeMarket(), lambda: now)
    card = replace(other.shelf.card(symbol, 1), version=2)
    other.shelf.put_content(symbol, 2, other.shelf.content(symbol, 1))
    other.shelf.put_card(card)
    (entry,) = stages.judge(other, symbol)
    assert entry["event"] == "hold"


def test_a_newly_accepted_model_speaks_from_the_next_bar_on(folder: Path) -> None:
    found = watch(folder, FakeMarket(), at(4, 1))
    found.clock.at(at(6, 1), lambda: accept_another(folder, at(5, 30), "SIMA"))
    found.run(until=at(8, 2))
    assert found.served(HALF_DAY, "SIMA")["model_version"].tolist() == [1] * 5 + [2] * 3
    assert found.served(HALF_DAY, "SIMB")["model_version"].tolist() == [1] * 8
    baseline = found.rows(PREDICTION_LOG, HALF_DAY, "SIMA", "baseline")
    assert baseline["model_version"].tolist() == [1] * 8


def test_the_first_model_ends_the_abstentions_of_a_running_loop(
    history: Path, tmp_path: Path
) -> None:
    """Bootstrapped while the loop runs on an empty store."""
    found = watch(tmp_path / "data", FakeMarket(), at(4, 1))

    def bootstrap() -> None:
        other = deployment_in(tmp_path / "data", FakeMarket(), lambda: at(5, 30))
        stages.bootstrap(other, BEFORE)

    found.clock.at(at(6, 1), bootstrap)
    found.run(until=at(7, 2))
    for symbol in SYMBOLS:
        served = found.served(HALF_DAY, symbol)
        assert served["model_version"].tolist() == [0] * 5 + [1] * 2
        assert served["prediction"].notna().tolist() == [False] * 5 + [True] * 2


# -- two at once, and killed anywhere --------------------------------------------------------------


def test_two_loops_at_once_do_no_harm(
    folder: Path, history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every poll of both falls on the same moment; both compact all the time."""
    monkeypatch.setattr(loop, "COMPACT_EVERY", 3)
    alone = watch(copy_of(history, tmp_path / "alone"), FakeMarket(), at(9, 1))
    alone.run(until=at(14, 2))
    together = threading.Barrier(2)
    problems: list[BaseException] = []

    def run(found: Watch, name: str) -> None:
        advance = found.clock.sleep

        def sleep(seconds: float) -> None:
            together.wait(60)
            advance(seconds)

        found.clock.sleep = sleep  # type: ignore[method-assign]
        try:
            found.run(until=at(14, 2), run_id=name)
        except BaseException as error:
            together.abort()
            problems.append(error)

    pair = [watch(folder, FakeMarket(), at(9, 1)) for _ in range(2)]
    threads = [
        threading.Thread(target=run, args=(found, f"run-{i}"), daemon=True)
        for i, found in enumerate(pair)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not problems
    assert [len(found.polls) for found in pair] == [6, 6]
    store = Store(str(folder))
    assert_same_session(store, alone.store, HALF_DAY, ignoring=(), decisions=())
    stages.compact_session(pair[0].deployment, HALF_DAY)
    assert stored_twice(folder, LIVE_TABLES) == {}


def test_a_run_that_was_taken_for_dead_and_wakes_up_leaves_the_market_to_its_successor(
    folder: Path, history: Path, tmp_path: Path
) -> None:
    """A machine that was asleep for a while: the supervisor has started another run."""
    asleep = watch(folder, FakeMarket(), at(9, 1))
    successor = watch(folder, FakeMarket(), at(12, 5))

    def awake() -> None:
        asleep.clock.now = at(13, 4)
        successor.run(until=at(13, 3), run_id="run-2")

    asleep.clock.at(at(11, 1), awake)
    assert asleep.run(until=at(30)) == 3
    beat = Heartbeat.read(asleep.store)
    assert beat is not None
    assert (beat.run_id, beat.moment) == ("run-2", at(13, 1))
    again = watch(folder, FakeMarket(), at(13, 30))
    again.run(until=at(14, 2), run_id="run-3")
    alone = watch(copy_of(history, tmp_path / "alone"), FakeMarket(), at(9, 1))
    alone.run(until=at(14, 2))
    assert_same_session(again.store, alone.store, HALF_DAY)


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class KillsAt:
    """Ends the n-th write in a kill, before or after the file is there."""

    def __init__(self, number: int, how: str) -> None:
        self.left = number
        self.how = how
        self.real = Store._put

    def put(self) -> Any:
        """What replaces `Store._put`."""

        def put(store: Store, path: PurePosixPath, content: bytes, *, first: bool) -> Any:
            self.left -= 1
            written = None
            if self.left or self.how == "after":
                written = self.real(store, path, content, first=first)
            if not self.left:
                raise Killed(path)
            return written

        return put


@pytest.fixture(scope="module")
def undisturbed(history: Path, tmp_path_factory: pytest.TempPathFactory) -> Watch:
    """Bars 0 to 13; the first poll brings twelve of them, with outcomes."""
    found = watch(
        copy_of(history, tmp_path_factory.mktemp("undisturbed") / "data"), FakeMarket(), at(12, 1)
    )
    found.run(until=at(14, 2))
    return found


# two polls of bars, features, served and baseline predictions, outcomes and heartbeat;
# one compaction
WRITES = 2 * 6 + 4


@pytest.mark.parametrize(
    ("numbers", "how"),
    [
        pytest.param(range(2, WRITES + 1, 5), "before", id="some writes"),
        pytest.param(range(1, WRITES + 1), "before", marks=pytest.mark.slow, id="before each"),
        pytest.param(range(1, WRITES + 1), "after", marks=pytest.mark.slow, id="after each"),
    ],
)
def test_killed_at_any_write_a_new_loop_goes_on_and_nothing_is_lost_or_doubled(
    undisturbed: Watch,
    history: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    numbers: range,
    how: str,
) -> None:
    monkeypatch.setattr(loop, "COMPACT_EVERY", 2)
    for number in numbers:
        folder = copy_of(history, tmp_path / str(number))
        first = watch(folder, FakeMarket(), at(12, 1))
        with monkeypatch.context() as patch:
            patch.setattr(Store, "_put", KillsAt(number, how).put())
            with pytest.raises(Killed):
                first.run(until=at(13, 2))
        again = watch(folder, FakeMarket(), first.clock.now + 20 * SECOND)
        again.run(until=at(14, 2), run_id="run-2")
        assert_same_session(again.store, undisturbed.store, HALF_DAY)
        # a compaction that was killed leaves its parts beside it; the next one removes them
        stages.compact_session(again.deployment, HALF_DAY)
        assert stored_twice(folder, LIVE_TABLES) == {}, number
        beat = Heartbeat.read(again.store)
        assert beat is not None
        assert beat.run_id == "run-2"


def test_a_prediction_made_before_the_kill_is_not_made_again(
    history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I3: the first decision stays, with its time."""
    folder = copy_of(history, tmp_path / "data")
    first = watch(folder, FakeMarket(), at(12, 1))
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_put", KillsAt(3, "after").put())
        with pytest.raises(Killed):
            first.run(until=at(16, 2))
    made = Store(str(folder)).read(PREDICTION_LOG, [HALF_DAY])
    assert len(made) == 24
    again = watch(folder, FakeMarket(), at(13, 30))
    again.run(until=at(14, 2))
    kept = again.served(HALF_DAY)
    kept = kept[kept["bar_ts"] < at(12)].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, made.reset_index(drop=True), check_exact=True)


# -- companions ----------------------------------------------------------------------------------


def test_a_baseline_that_fails_once_is_made_up_for_at_the_next_poll(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[list[dt.datetime]] = []
    beside = stages.log_beside

    def fails_once(deployment: stages.Deployment, asked: stages.Asked) -> int:
        if len(failures) == 0:
            failures.append(asked.rows["bar_ts"].tolist())
            raise RuntimeError("no baseline now")
        return beside(deployment, asked)

    monkeypatch.setattr(stages, "log_beside", fails_once)
    found = watch(folder, FakeMarket(), at(12, 1))
    found.run(until=at(15, 2))
    assert failures == [[at(12), at(12)]]
    baseline = found.rows(PREDICTION_LOG, HALF_DAY, "SIMA", "baseline")
    assert len(baseline) == len(found.served(HALF_DAY, "SIMA")) == 15
    assert len(found.rows(OUTCOMES, HALF_DAY, "SIMA")) == 5


def test_a_poll_that_fails_after_it_stored_bars_is_made_up_for_by_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = watch(folder, FakeMarket(), at(5, 1))
    work, moments = Work(found.deployment), iter([at(5, 1), at(6, 1), at(7, 1)])

    def next_one() -> Poll:
        moment = next(moments)
        work.deployment = replace(found.deployment, clock=lambda: moment)
        return poll(work.deployment, Fetcher(work.deployment, 20.0), SESSION, work)

    assert next_one().predictions
    with monkeypatch.context() as patch:

        def broken(*_: Any) -> None:
            raise RuntimeError("not now")

        patch.setattr(stages, "serve", broken)
        with pytest.raises(RuntimeError, match="not now"):
            next_one()
    next_one()
    assert len(found.served(HALF_DAY, "SIMA")) == 7


def test_what_another_poller_stored_and_did_not_predict_is_found_before_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "COMPACT_EVERY", 3)
    found = watch(folder, FakeMarket(), at(2, 1))
    other = deployment_in(folder, FakeMarket(), found.clock)

    def store_only() -> None:
        stages.collect(other, HALF_DAY)

    found.clock.at(at(4, 1), store_only)
    found.run(until=at(6, 2))
    assert len(found.served(HALF_DAY, "SIMA")) == 6


def test_a_baseline_that_fails_costs_no_served_row_and_no_outcome(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> int:
        raise RuntimeError("no baseline today")

    for name in ("log_companions", "log_beside"):
        monkeypatch.setattr(stages, name, broken)
    found = watch(folder, FakeMarket(), at(12, 1))
    found.run(until=at(14, 2))
    assert len(found.served(HALF_DAY, "SIMA")) == 14
    assert len(found.rows(OUTCOMES, HALF_DAY, "SIMA")) == 4
    monkeypatch.undo()
    again = watch(folder, FakeMarket(), at(14, 30))
    again.run(until=at(16, 2))
    baseline = again.rows(PREDICTION_LOG, HALF_DAY, "SIMA", "baseline")
    assert len(baseline) == 16
    # what was made up for says so, with the time it was made at
    assert baseline["mode"].tolist() == ["catch_up"] * 13 + ["live"] * 3
    assert (baseline["decided_at"] >= at(14, 30)).all()


def test_a_pinned_version_is_served_and_every_bar_counts_once_with_the_newest(
    folder: Path,
) -> None:
    """Pinned after four bars, let go after eight; version 2 is the newest throughout."""
    accept_another(folder, at(-10), "SIMA")
    found = watch(folder, FakeMarket(), at(0, 2), ("SIMA",))
    operator = deployment_in(folder, FakeMarket(), found.clock, ("SIMA",))

    def pin() -> None:
        control.pin(operator, "SIMA", 1, "to compare")

    def let_go() -> None:
        control.roll_back(operator, "SIMA", "compared")

    found.clock.at(at(5, 1), pin)
    found.clock.at(at(9, 1), let_go)
    found.run(until=at(30, 2))
    served = found.served(HALF_DAY, "SIMA")
    assert served["model_version"].tolist() == [2] * 4 + [1] * 4 + [2] * 22
    newest = found.rows(PREDICTION_LOG, HALF_DAY, "SIMA", "newest")
    assert newest["model_version"].tolist() == [2] * 4
    assert newest["bar_ts"].tolist() == served["bar_ts"].tolist()[4:8]
    session = found.deployment.calendar.session(HALF_DAY)
    told = stages.evidence_of(found.deployment, "SIMA", HALF_DAY)
    outcomes = found.rows(OUTCOMES, HALF_DAY, "SIMA")
    known = outcomes[outcomes["actual_direction"].notna()]
    assert told.rows == len(known) == told.labels
    tested = pd.concat([served[served["model_version"] == 2], newest]).set_index("bar_ts")
    np.testing.assert_array_equal(
        told.margin, tested.loc[known["bar_ts"], "margin"].astype(float).to_numpy()
    )
    assert session.index_of(known["bar_ts"].dt.tz_localize(None).to_numpy()).max() == 19


@pytest.mark.parametrize("fault", ["slow", "raises", "refused"])
def test_whatever_becomes_of_the_newest_the_pinned_version_is_served_in_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    accept_another(folder, at(-10), "SIMA")
    operator = deployment_in(folder, FakeMarket(), lambda: at(-5), ("SIMA",))
    control.pin(operator, "SIMA", 1, "to compare")
    found = watch(folder, FakeMarket(), at(0, 2), ("SIMA",))
    if fault == "refused":
        (file,) = (folder / "models" / "SIMA").glob("000002-*.ubj")
        file.write_bytes(b"changed")
    real = ModelShelf.load

    def load(shelf: ModelShelf, symbol: str, version: int) -> Any:
        if version == 2 and fault == "raises":
            raise RuntimeError("no newest today")
        if version == 2 and fault == "slow":
            found.clock.now += 20 * SECOND
        return real(shelf, symbol, version)

    monkeypatch.setattr(ModelShelf, "load", load)
    found.run(until=at(6, 2))
    served = found.served(HALF_DAY, "SIMA")
    assert served["model_version"].tolist() == [1] * 6
    assert served["prediction"].notna().all()
    assert (served["decided_at"] - served["bar_ts"] == length(found) + SECOND).all()
    assert set(served["mode"]) == {"live"}
    newest = found.rows(PREDICTION_LOG, HALF_DAY, "SIMA", "newest")
    assert len(newest) == (0 if fault == "raises" else 6)
    assert newest["prediction"].notna().all() == (fault != "refused")


# -- what a poll looks at --------------------------------------------------------------------------


def test_after_its_first_poll_a_run_looks_at_the_newest_bars_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll must not cost more at the end of a session than at its beginning."""
    found = watch(folder, FakeMarket(), at(60, 1))
    work = Work(found.deployment)

    def poll_at(minute: int) -> Poll:
        moment = at(minute, 1)
        now = replace(found.deployment, clock=lambda: moment)
        return poll(now, Fetcher(now, 20.0), SESSION, replace(work, deployment=now))

    assert poll_at(60).predictions
    work.whole = False
    looked: list[tuple[str, dt.datetime | None]] = []
    read = Store.read_arrow

    def noted(self: Store, table: Table, *given: Any, **more: Any) -> Any:
        looked.append((table.name, more.get("since")))
        return read(self, table, *given, **more)

    computed: list[tuple[int, ...]] = []
    compute = compute_features

    def measured(*given: Any, **more: Any) -> Any:
        found = compute(*given, **more)
        computed.append(found.shape[:2])
        return found

    monkeypatch.setattr(Store, "read_arrow", noted)
    monkeypatch.setattr(feature_stage, "compute_features", measured)
    assert poll_at(61).predictions
    assert computed == [(2, 1)]  # of two symbols the new bar
    growing = {table.name for table in (FEATURE_ROWS, PREDICTION_LOG, OUTCOMES)}
    since = [since for name, since in looked if name in growing]
    assert sorted(x for x in since if x is not None) == [at(50), at(55)]
    assert None not in since


def test_a_bar_that_comes_late_is_served_however_old_it_is(folder: Path) -> None:
    market = FakeMarket(holes={("SIMA", at(3)): at(60)})
    found = watch(folder, market, at(12, 1))
    found.run(until=at(62, 2))
    assert len(found.served(HALF_DAY, "SIMA")) == len(found.served(HALF_DAY, "SIMB"))
