"""Half gaps: midpoints of daily gaps that the price has not come back to.

Reads completed sessions only; the bar of the session in progress never belongs in here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hedge_pipeline.levels.chain import Array
from hedge_pipeline.levels.rules import DEFAULT_RULES, LevelRules

_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class DailyBars:
    """Daily bars of completed sessions, oldest first; every array has shape [sessions].

    One entry for every session of the calendar, NaN = unknown. Prices in quote currency, adjusted
    for splits, of regular hours.
    """

    high: Array
    low: Array
    close: Array

    @classmethod
    def none(cls) -> DailyBars:
        """No session is known."""
        return cls(np.empty(0), np.empty(0), np.empty(0))


@dataclass(frozen=True)
class HalfGaps:
    """Nearest open midpoints, in quote currency; NaN = there is none.

    Attributes:
        below: at or below the spot.
        above: above the spot.
    """

    below: float
    above: float


def half_gaps(daily: DailyBars, spot: float, rules: LevelRules = DEFAULT_RULES) -> HalfGaps:
    """Half gaps (HG): the nearest open midpoint on each side of the spot.

    Whether a gap was up or down does not matter for its side: once the price is below the
    midpoint of an up-gap that was open at the last close, the midpoint is above.

    Args:
        daily: completed sessions; the last 60 are read.
        spot: price of the underlying, in quote currency; NaN = unknown, and so are the levels.
        rules: number of sessions and smallest gap.
    """
    levels = open_midpoints(daily, rules)
    below, above = levels[levels <= spot], levels[levels > spot]
    return HalfGaps(
        float(below.max()) if len(below) else float("nan"),
        float(above.min()) if len(above) else float("nan"),
    )


def open_midpoints(daily: DailyBars, rules: LevelRules = DEFAULT_RULES) -> Array:
    """Midpoints of the gaps that are still open after the last session, oldest first, [gaps].

    Up-gap: low(t) > high(t-1), midpoint halfway between them; down-gap: high(t) < low(t-1). The
    gap is at least 0.2 % of close(t-1).

    The midpoint of an up-gap has been touched when the low of a later session is at or below it,
    that of a down-gap when the high of a later session is at or above it. So a price that jumps
    across the midpoint overnight has touched it, too. An unknown session makes no gap with either
    neighbour and touches nothing.
    """
    high, low, close = (
        values[-rules.gap_sessions :] for values in (daily.high, daily.low, daily.close)
    )
    if len(high) < 2:
        return np.empty(0)
    least = (rules.least_gap - _ROUNDING) * close[:-1]
    up = (low[1:] > high[:-1]) & (low[1:] - high[:-1] >= least)
    down = (high[1:] < low[:-1]) & (low[:-1] - high[1:] >= least)
    middle = np.where(up, high[:-1] + low[1:], low[:-1] + high[1:]) / 2
    touched = np.where(up, _later(low, np.fmin) <= middle, _later(high, np.fmax) >= middle)
    return middle[(up | down) & ~touched]


def _later(values: Array, pick: np.ufunc) -> Array:
    """Lowest or highest known value of the sessions after each gap; NaN without any."""
    accumulated: Array = pick.accumulate(values[::-1])[::-1]
    return np.append(accumulated[2:], np.nan)
