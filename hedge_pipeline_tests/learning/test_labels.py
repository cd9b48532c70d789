"""Outcomes come from closes of one session, and are the same whenever they are asked for."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hedge_pipeline.learning.labels import GRACE, mature
from hedge_pipeline.market.calendar import Session, SessionCalendar
from hedge_pipeline.market.tables import OUTCOMES
from hedge_pipeline_tests.learning.conftest import (
    HORIZON,
    MINUTE,
    Floats,
    bars_of,
    session_on,
    times_of,
)

SESSION = session_on(4, bars=30)
KEY = list(OUTCOMES.key)


def known(bars: pd.DataFrame, now: dt.datetime, session: Session = SESSION) -> pd.DataFrame:
    return mature(bars, session, horizon=HORIZON, dead_band_bp=0.2, now=now)


def after(session: Session = SESSION) -> dt.datetime:
    return session.closes + dt.timedelta(hours=1)


def closes(bars: int = 30, **changes: float) -> Floats:
    """A price of 100 throughout; `m12=101` puts 101 at minute 12."""
    price = np.full(bars, 100.0)
    for name, value in changes.items():
        price[int(name.removeprefix("m"))] = value
    return price


def row(frame: pd.DataFrame, minute: int, session: Session = SESSION) -> pd.Series:
    found = frame[frame["bar_ts"] == times_of(session)[minute]]
    assert len(found) == 1
    return found.iloc[0]


@pytest.mark.parametrize(
    ("exit_price", "status", "direction"),
    [
        (100.01, "up", 1),
        (99.99, "down", 0),
        (100.0, "flat", None),
        (100.0019, "flat", None),
        (99.9981, "flat", None),
        (100.0021, "up", 1),
        (99.9979, "down", 0),
    ],
)
def test_the_status_is_the_side_of_the_exit_outside_the_dead_band(
    exit_price: float, status: str, direction: int | None
) -> None:
    found = row(known(bars_of(SESSION, closes(m12=exit_price)), after()), 2)
    assert found["status"] == status
    assert found["return_pct"] == pytest.approx(exit_price - 100)
    assert (found["entry_price"], found["exit_price"]) == (100, exit_price)
    assert found["horizon_bars"] == HORIZON
    assert pd.isna(found["reason"])
    assert (None if pd.isna(found["actual_direction"]) else found["actual_direction"]) == direction


@pytest.mark.parametrize("entry", [500.0, 1000.0, 650.0, 50.0])
@pytest.mark.parametrize("side", [1, -1])
def test_a_move_of_exactly_the_dead_band_is_flat_on_either_side(entry: float, side: int) -> None:
    """Half a thousandth of a basis point of binary rounding must not decide a label."""
    exit_price = round(entry * (1 + side * 0.2e-4), 6)
    price = np.full(30, entry)
    price[10] = exit_price
    assert row(known(bars_of(SESSION, price), after()), 0)["status"] == "flat"


def test_the_last_bars_cross_the_close_and_say_so_at_once() -> None:
    bars = bars_of(SESSION, closes())
    found = known(bars, after())
    crossing = found[found["reason"] == "crosses_close"]
    assert list(crossing["bar_ts"]) == list(times_of(SESSION)[20:])
    assert set(crossing["status"]) == {"unlabelable"}
    assert crossing["actual_direction"].isna().all()
    assert crossing["exit_price"].isna().all()
    assert list(crossing["available_at"]) == list(times_of(SESSION)[20:] + MINUTE)
    early = known(bars, SESSION.opens + 21 * MINUTE)
    assert row(early, 20)["reason"] == "crosses_close"


def test_every_bar_of_a_past_session_has_exactly_one_outcome() -> None:
    frames = [bars_of(SESSION, closes(), symbol="SIMN"), bars_of(SESSION, closes(m4=np.nan))]
    found = known(pd.concat(frames), after())
    assert not found.duplicated(KEY).any()
    assert found.groupby("symbol").size().to_dict() == {"SIMN": 30, "SIMQ": 29}
    assert OUTCOMES.violations(found) == {}


@pytest.mark.parametrize(
    ("missing", "reason"), [([12], "gap"), (range(3, 13), "halted"), (range(3, 12), None)]
)
def test_a_missing_exit_is_a_gap_and_a_silent_stretch_a_halt(
    missing: list[int], reason: str | None
) -> None:
    price = closes()
    price[list(missing)] = np.nan
    found = row(known(bars_of(SESSION, price), after()), 2)
    assert (None if pd.isna(found["reason"]) else found["reason"]) == reason
    assert found["status"] == ("unlabelable" if reason else "flat")
    if reason:
        assert pd.isna(found["exit_price"])
        assert pd.isna(found["return_pct"])
        assert found["available_at"] == SESSION.closes + GRACE


@pytest.mark.parametrize("minute", range(10, 13))
def test_an_open_outcome_gives_no_row(minute: int) -> None:
    now = SESSION.opens + minute * MINUTE
    found = known(bars_of(SESSION, closes()), now)
    labelled = found[found["reason"].isna()]
    assert list(labelled["bar_ts"]) == list(times_of(SESSION)[: minute - HORIZON])


def test_a_missing_exit_stays_open_until_the_grace_is_over() -> None:
    bars = bars_of(SESSION, closes(m12=np.nan))
    before = known(bars, SESSION.closes + GRACE - MINUTE)
    assert times_of(SESSION)[2] not in set(before["bar_ts"])
    assert row(known(bars, SESSION.closes + GRACE), 2)["reason"] == "gap"


def test_a_late_exit_bar_sets_when_the_outcome_could_be_known() -> None:
    lateness = np.zeros(30)
    lateness[12] = 300.0
    bars = bars_of(SESSION, closes(m12=101.0), lateness=lateness)
    arrival = SESSION.opens + 13 * MINUTE + dt.timedelta(seconds=300)
    assert row(known(bars, after()), 2)["available_at"] == arrival
    assert times_of(SESSION)[2] not in set(known(bars, arrival - MINUTE)["bar_ts"])


def test_a_late_entry_bar_sets_it_too() -> None:
    lateness = np.zeros(30)
    lateness[2] = 1200.0
    found = row(known(bars_of(SESSION, closes(), lateness=lateness), after()), 2)
    assert found["available_at"] == SESSION.opens + 23 * MINUTE


@pytest.mark.parametrize(
    ("lateness", "status"),
    [(0.0, "flat"), (GRACE.total_seconds(), "flat"), (GRACE.total_seconds() + 1, "unlabelable")],
)
def test_the_last_bar_ends_an_outcome_only_within_the_grace(lateness: float, status: str) -> None:
    late = np.zeros(30)
    late[29] = lateness
    found = known(bars_of(SESSION, closes(), lateness=late), after())
    assert row(found, 19)["status"] == status


def test_bars_off_the_grid_are_no_closes_of_the_session() -> None:
    strays = bars_of(SESSION, closes())[:2].assign(close=500.0)
    strays["bar_ts"] = [SESSION.opens - MINUTE, SESSION.opens + dt.timedelta(seconds=30)]
    strays = strays.astype({"bar_ts": "datetime64[us, UTC]"})
    bars = bars_of(SESSION, closes())
    pd.testing.assert_frame_equal(known(pd.concat([bars, strays]), after()), known(bars, after()))


def test_labels_never_cross_into_another_session() -> None:
    """On a half day the last ten bars have no outcome, whatever comes the next morning."""
    calendar = SessionCalendar(end=dt.date(2024, 7, 8))
    half, following = calendar.session("2024-07-03"), calendar.session("2024-07-05")
    assert (half.bars, following.bars) == (210, 390)
    today = bars_of(half, np.linspace(100, 120, 210))
    tomorrow = bars_of(following, np.full(390, 1.0))
    found = known(pd.concat([today, tomorrow]), after(following), half)
    assert len(found) == 210
    assert (found["status"] == "up").sum() == 200
    assert (found["reason"] == "crosses_close").sum() == 10


def test_without_bars_there_is_nothing() -> None:
    found = known(bars_of(SESSION, np.full(30, np.nan)), after())
    assert found.empty
    assert list(found.columns) == list(OUTCOMES.names)


# --- properties ------------------------------------------------------------------------------

PRICES = st.lists(
    st.one_of(st.just(np.nan), st.sampled_from([99.0, 100.0, 100.001, 101.0])),
    min_size=30,
    max_size=30,
)


@given(price=PRICES, entry=st.integers(0, 19), noise=PRICES)
@settings(max_examples=40, deadline=None)
def test_the_label_reads_the_closes_of_entry_and_exit_and_no_other(
    price: list[float], entry: int, noise: list[float]
) -> None:
    ends = np.isin(np.arange(30), [entry, entry + HORIZON])
    one = np.where(ends, np.nan_to_num(price, nan=100.0), price)
    other = np.where(ends, one, noise)
    columns = ["entry_price", "exit_price", "return_pct", "status", "available_at"]
    first, second = (row(known(bars_of(SESSION, x), after()), entry)[columns] for x in (one, other))
    pd.testing.assert_series_equal(first, second, check_names=False)


@given(price=PRICES, minutes=st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_what_comes_later_changes_no_row_that_was_known(price: list[float], minutes: int) -> None:
    now = SESSION.opens + minutes * MINUTE
    bars = bars_of(SESSION, price)
    seen = known(bars[bars["available_at"] <= now], now)
    pd.testing.assert_frame_equal(seen, known(bars, now))


@given(
    price=PRICES,
    lateness=st.lists(
        st.sampled_from([0.0, 30.0, 400.0, 1500.0, 4000.0]), min_size=30, max_size=30
    ),
    minutes=st.lists(st.integers(0, 140), max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_maturing_again_and_again_equals_maturing_once_at_the_end(
    price: list[float], lateness: list[float], minutes: list[int]
) -> None:
    bars = bars_of(SESSION, price, lateness=lateness)
    end = SESSION.closes + dt.timedelta(minutes=120)
    moments = [SESSION.opens + minute * MINUTE for minute in sorted(minutes)]
    rounds = pd.concat([known(bars, now) for now in [*moments, end]])
    first = rounds.drop_duplicates(KEY).sort_values(KEY).reset_index(drop=True)
    pd.testing.assert_frame_equal(first, known(bars, end))


@given(price=PRICES, minutes=st.integers(0, 140))
@settings(max_examples=40, deadline=None)
def test_no_row_is_given_before_it_says_it_could_be_known(price: list[float], minutes: int) -> None:
    now = SESSION.opens + minutes * MINUTE
    found = known(bars_of(SESSION, price), now)
    assert (found["available_at"] <= now).all()
