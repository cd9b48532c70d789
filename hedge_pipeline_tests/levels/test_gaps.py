"""Half gaps: which gaps count, when they are closed, which midpoint is the level."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedge_pipeline.levels.gaps import DailyBars, half_gaps, open_midpoints
from hedge_pipeline.levels.rules import LevelRules
from hedge_pipeline_tests.levels.chains import random_daily

SEEDS = st.integers(0, 2**32 - 1)
UNKNOWN = (math.nan, math.nan)


def daily(*ranges: tuple[float, float]) -> DailyBars:
    """Sessions by low and high; each closes in the middle."""
    low = np.array([low for low, _ in ranges], dtype=np.float64)
    high = np.array([high for _, high in ranges], dtype=np.float64)
    return DailyBars(high, low, (low + high) / 2)


def levels(*ranges: tuple[float, float]) -> list[float]:
    """Open midpoints of these sessions."""
    return [float(level) for level in open_midpoints(daily(*ranges))]


def test_an_up_gap_stays_open_while_lows_are_above_its_midpoint() -> None:
    assert levels((99, 100), (102, 103)) == [101]
    assert levels((99, 100), (102, 103), (101.01, 104), (105, 106)) == [101, 104.5]


def test_an_up_gap_is_closed_when_a_later_low_reaches_its_midpoint() -> None:
    assert levels((99, 100), (102, 103), (101, 104)) == []


def test_a_down_gap_stays_open_while_highs_are_below_its_midpoint() -> None:
    assert levels((102, 103), (99, 100)) == [101]
    assert levels((102, 103), (99, 100), (98.9, 100.99)) == [101]


def test_a_down_gap_is_closed_when_a_later_high_reaches_its_midpoint() -> None:
    assert levels((102, 103), (99, 100), (98, 101)) == []


def test_a_price_that_jumps_across_the_midpoint_has_touched_it() -> None:
    # up to 102 and back below 100 without trading at 101: that makes a down-gap of its own
    assert levels((99, 100), (102, 103), (98, 99)) == [(102 + 99) / 2]


def test_touching_ranges_are_no_gap() -> None:
    assert levels((99, 100), (100, 101)) == []
    assert levels((100, 101), (99, 100)) == []


@pytest.mark.parametrize(("low", "open_levels"), [(100.1, []), (100.198, []), (100.2, [100.1])])
def test_a_gap_is_at_least_a_fifth_of_a_percent_of_the_previous_close(
    low: float, open_levels: list[float]
) -> None:
    bars = DailyBars(np.array([100.0, 101]), np.array([99.0, low]), np.array([100.0, 101]))
    assert open_midpoints(bars).tolist() == pytest.approx(open_levels)


def test_an_unknown_session_makes_no_gap_and_touches_nothing() -> None:
    assert levels((99, 100), UNKNOWN, (102, 103)) == []
    assert levels((99, 100), (102, 103), UNKNOWN, (102, 104)) == [101]
    assert levels((99, 100), (102, 103), UNKNOWN, (100, 104)) == []


def test_a_gap_over_an_unknown_close_is_unknown() -> None:
    bars = replace(daily((99, 100), (102, 103)), close=np.array([math.nan, 102.5]))
    assert open_midpoints(bars).tolist() == []


@pytest.mark.parametrize("count", [0, 1])
def test_a_gap_needs_two_sessions(count: int) -> None:
    assert levels(*[(99, 100)] * count) == []
    assert open_midpoints(DailyBars.none()).tolist() == []


def test_only_the_last_sixty_sessions_are_read() -> None:
    gap, quiet = [(99.0, 100.0), (102.0, 103.0)], (102.5, 103.0)
    assert levels(*gap, *[quiet] * 58) == [101]
    assert levels(*gap, *[quiet] * 59) == []
    three = open_midpoints(daily(*gap, quiet, quiet), LevelRules(gap_sessions=3))
    assert three.tolist() == []


def test_the_nearest_open_midpoints_on_both_sides_count() -> None:
    bars = daily((80, 81), (85, 86), (90, 91), (120, 121), (110, 111), (103, 104), (99, 100))
    found = open_midpoints(bars).tolist()
    assert found == [83, 88, 115.5, 107, 101.5]
    nearest = half_gaps(bars, 99.5)
    assert (nearest.below, nearest.above) == (88, 101.5)


def test_a_midpoint_keeps_its_level_when_the_price_of_the_day_falls_below_it() -> None:
    bars = daily((99, 100), (102, 103))
    assert half_gaps(bars, 102.5).below == 101
    assert half_gaps(bars, 101.0).below == 101
    assert math.isnan(half_gaps(bars, 101.0).above)
    assert half_gaps(bars, 100.5).above == 101
    assert math.isnan(half_gaps(bars, 100.5).below)


def test_an_unknown_spot_has_no_nearest_gap() -> None:
    found = half_gaps(daily((99, 100), (102, 103)), math.nan)
    assert math.isnan(found.below)
    assert math.isnan(found.above)


def slow_midpoints(bars: DailyBars) -> list[float]:
    """The definition, session by session."""
    found = []
    for now in range(1, len(bars.high)):
        low, high = bars.low[now], bars.high[now]
        earlier_low, earlier_high = bars.low[now - 1], bars.high[now - 1]
        least = 0.002 * bars.close[now - 1]
        later = range(now + 1, len(bars.high))
        if low > earlier_high and low - earlier_high >= least:
            middle = (low + earlier_high) / 2
            if not any(bars.low[day] <= middle for day in later):
                found.append(middle)
        elif high < earlier_low and earlier_low - high >= least:
            middle = (high + earlier_low) / 2
            if not any(bars.high[day] >= middle for day in later):
                found.append(middle)
    return found


@given(seed=SEEDS)
def test_the_vectorised_search_is_the_definition(seed: int) -> None:
    bars = random_daily(seed)
    assert open_midpoints(bars).tolist() == slow_midpoints(bars)


def every_midpoint(bars: DailyBars) -> list[float]:
    """Midpoints of all gaps, open or not."""
    pairs = range(1, len(bars.high))
    return [
        middle
        for now in pairs
        for middle in open_midpoints(
            DailyBars(
                bars.high[now - 1 : now + 1],
                bars.low[now - 1 : now + 1],
                bars.close[now - 1 : now + 1],
            )
        ).tolist()
    ]


@given(seed=SEEDS, count=st.integers(2, 59))
def test_a_gap_that_was_closed_never_opens_again(seed: int, count: int) -> None:
    bars = random_daily(seed)
    past = DailyBars(bars.high[:count], bars.low[:count], bars.close[:count])
    later = set(open_midpoints(bars).tolist())
    next_day = DailyBars(bars.high[: count + 1], bars.low[: count + 1], bars.close[: count + 1])
    open_now = set(open_midpoints(past).tolist())
    assert len(set(open_midpoints(next_day).tolist()) - open_now) <= 1
    assert not (set(every_midpoint(past)) - open_now) & later
