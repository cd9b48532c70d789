"""Walls: strikes where one side's pressure outweighs the other's, and the levels among them.

Pressure of a contract is 0.6 x open interest + 0.4 x volume, in contracts, near the spot only. A
strike with more than 1.5 times as much put as call pressure is a put wall, the reverse a call
wall, anything else is neutral. What is unknown of a contract adds nothing to its strike. A wall
exactly at the spot counts as below if it is a put wall and as above if it is a call wall.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hedge_pipeline.levels.chain import Array, Chain, Days, Flags
from hedge_pipeline.levels.rules import DEFAULT_RULES, LevelRules

_THIRD_FRIDAY_EARLIEST = 14
_DAY = np.timedelta64(1, "D")


@dataclass(frozen=True)
class Walls:
    """Pressure and walls by strike; every array has shape [strikes], strikes ascending.

    Attributes:
        strike: in quote currency.
        put: put pressure, contracts.
        call: call pressure, contracts.
        direction: +1 put wall, -1 call wall, 0 neutral.
        confidence: pressure of the strike over the largest of any strike, 0..1; zero throughout
            if there is no pressure at all.
    """

    strike: Array
    put: Array
    call: Array
    direction: npt.NDArray[np.int64]
    confidence: Array

    @property
    def pressure(self) -> Array:
        """Put plus call pressure, contracts, [strikes]."""
        return self.put + self.call


@dataclass(frozen=True)
class Hedges:
    """Levels and balance of the walls; NaN = there is none.

    Attributes:
        support: strike of the put wall that counts, in quote currency.
        resistance: strike of the call wall that counts, in quote currency.
        score: balance of put (+) and call (-) walls, -1..1; NaN without walls.
    """

    support: float
    resistance: float
    score: float


def pressure(chain: Chain, rules: LevelRules = DEFAULT_RULES) -> Array:
    """Pressure of each contract, contracts, [contracts]; unknown parts add nothing."""
    return rules.open_interest_weight * np.nan_to_num(
        chain.open_interest, nan=0.0
    ) + rules.volume_weight * np.nan_to_num(chain.volume, nan=0.0)


def walls(chain: Chain, spot: float, chosen: Flags, rules: LevelRules = DEFAULT_RULES) -> Walls:
    """Walls among the chosen contracts that are near the spot.

    Args:
        chain: the snapshot.
        spot: price of the underlying, in quote currency.
        chosen: which contracts to look at, [contracts].
        rules: weights and thresholds.
    """
    taken = chosen & chain.near(spot, rules)
    strikes, place = np.unique(chain.strike[taken], return_inverse=True)
    return _walls_on(chain, strikes, place, taken, pressure(chain, rules), rules)


def front_hedges(chain: Chain, spot: float, rules: LevelRules = DEFAULT_RULES) -> Hedges:
    """Hedge pressure (HP) of the first expiration of the chain.

    Support is the put wall at or below the spot with the highest confidence above 0.3, resistance
    the call wall at or above it likewise; of equals the nearest to the spot. The score is
    (B - R) / (B + R), B the sum of pressure x confidence over the put walls at or below the spot,
    R over the call walls at or above it.

    Args:
        chain: the snapshot.
        spot: price of the underlying, in quote currency.
        rules: weights and thresholds.
    """
    found = walls(chain, spot, chain.expiry == _first(chain), rules)
    below = (found.direction > 0) & (found.strike <= spot)
    above = (found.direction < 0) & (found.strike >= spot)
    weight = found.pressure * found.confidence
    bulls, bears = float(weight[below].sum()), float(weight[above].sum())
    return Hedges(
        _most_confident(found, below, spot, rules.hp_confidence),
        _most_confident(found, above, spot, rules.hp_confidence),
        (bulls - bears) / (bulls + bears) if bulls + bears > 0 else float("nan"),
    )


def monthly_hedges(chain: Chain, spot: float, rules: LevelRules = DEFAULT_RULES) -> Hedges:
    """Monthly hedge pressure (MHP) of the next four standard monthly expirations.

    Each expiration weighs exp(-days to expiry / 30), normalised to one; days are calendar days
    from the New York date of the snapshot. Pressures are weighted sums, and walls follow from
    them. The confidence of a wall is its pressure over the largest of any strike, times
    0.7 + 0.3 x the share of the expirations in which the strike is a wall of the same kind by
    itself. Support is the nearest put wall at or below the spot with a confidence above 0.5,
    resistance the nearest call wall at or above it. The score is the sum over all walls, on
    either side of the spot, of direction x pressure x confidence x exp(-10 |K - S| / S), over the
    same sum without the direction.

    Fewer expirations are used where the chain holds fewer; without any, all is NaN.

    Args:
        chain: the snapshot.
        spot: price of the underlying, in quote currency.
        rules: weights and thresholds.
    """
    months = monthlies(chain.expirations, rules.monthlies)
    near = chain.near(spot, rules) & np.isin(chain.expiry, months)
    if not near.any():
        return Hedges(float("nan"), float("nan"), float("nan"))
    days = (months - chain.day) / _DAY
    weights = np.exp(-(days - days[0]) / rules.monthly_decay_days)
    weights /= weights.sum()
    strikes, place = np.unique(chain.strike[near], return_inverse=True)
    by_contract = pressure(chain, rules)
    weighted = np.zeros_like(by_contract)
    directions = []
    for day, weight in zip(months, weights, strict=True):
        month = near & (chain.expiry == day)
        weighted[month] = weight * by_contract[month]
        own = _walls_on(chain, strikes, place[month[near]], month, by_contract, rules)
        directions.append(own.direction)
    found = _walls_on(chain, strikes, place, near, weighted, rules)
    confirming = np.mean(np.stack(directions) == found.direction, axis=0)
    confidence = found.confidence * (0.7 + 0.3 * confirming)
    distance = np.abs(found.strike - spot) / spot
    force = found.pressure * confidence * np.exp(-rules.monthly_score_decay * distance)
    force = np.where(found.direction != 0, force, 0.0)
    total = float(force.sum())
    strong = confidence > rules.mhp_confidence
    return Hedges(
        nearest(strikes[(found.direction > 0) & strong & (strikes <= spot)], spot),
        nearest(strikes[(found.direction < 0) & strong & (strikes >= spot)], spot),
        float((found.direction * force).sum()) / total if total > 0 else float("nan"),
    )


def monthlies(expirations: Days, count: int) -> Days:
    """The first standard monthly expirations among those listed, at most `count`, ascending.

    That is the third Friday of a month, or the day before it where no series ends on that Friday
    (an exchange holiday: Good Friday 2025, Juneteenth 2026). The Friday counts as not listed only
    if something after it is: a chain that stops at the Thursday was cut there, and its Thursday
    is an ordinary daily series. A month with neither has no standard expiration in this chain.

    Args:
        expirations: expiries of the series alive, ascending, `datetime64[D]`.
        count: how many are wanted.
    """
    found = []
    for month in np.unique(expirations.astype("datetime64[M]")):
        earliest = month.astype("datetime64[D]") + _THIRD_FRIDAY_EARLIEST
        friday = np.busday_offset(earliest, 0, roll="forward", weekmask="Fri")
        if friday in expirations:
            found.append(friday)
        elif friday - _DAY in expirations and expirations[-1] > friday:
            found.append(friday - _DAY)
    return np.array(found[:count], dtype="datetime64[D]")


def nearest(prices: Array, spot: float) -> float:
    """The price nearest to the spot, of two the lower; NaN without prices. `prices` ascend."""
    if not len(prices):
        return float("nan")
    return float(prices[np.argmin(np.abs(prices - spot))])


def _walls_on(
    chain: Chain,
    strikes: Array,
    place: npt.NDArray[np.intp],
    taken: Flags,
    by_contract: Array,
    rules: LevelRules,
) -> Walls:
    """Walls on given strikes; `place` is the strike of each of the taken contracts."""
    is_call, values = chain.is_call[taken], by_contract[taken]
    put: Array = np.bincount(place[~is_call], values[~is_call], len(strikes)).astype(np.float64)
    call: Array = np.bincount(place[is_call], values[is_call], len(strikes)).astype(np.float64)
    direction = (put > rules.wall_ratio * call).astype(np.int64)
    direction -= (call > rules.wall_ratio * put).astype(np.int64)
    total = put + call
    largest = float(total.max(initial=0.0))
    confidence = total / largest if largest > 0 else np.zeros_like(total)
    return Walls(strikes, put, call, direction, confidence)


def _first(chain: Chain) -> np.datetime64:
    return chain.expirations[0] if len(chain) else np.datetime64("NaT", "D")


def _most_confident(found: Walls, side: Flags, spot: float, least: float) -> float:
    """Strike of the most confident wall of a side; of equals the nearest to the spot."""
    confidence = np.where(side & (found.confidence > least), found.confidence, -1.0)
    best = float(confidence.max(initial=-1.0))
    return nearest(found.strike[confidence == best], spot) if best > 0 else float("nan")
