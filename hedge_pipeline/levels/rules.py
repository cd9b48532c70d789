"""What may be varied in the levels of a snapshot; the defaults are this project's definitions.

Nothing is computed here. The signs are a heuristic about who holds which side of a contract, not
a fact of the market: they are settings of the operator, as are interest and dividends.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

NEW_YORK = "America/New_York"


@dataclass(frozen=True)
class LevelRules:
    """What counts as a usable snapshot, and the constants of the formulas.

    Attributes:
        taken_from: earliest New York time of day at which a snapshot may be taken; open interest
            of the day is published before it.
        taken_until: latest New York time of day, included.
        near: strikes within this share of the spot are near.
        least_contracts: a usable snapshot has at least this many contracts near the spot.
        most_blank_open_interest: largest share of near contracts with zero or missing open
            interest.
        parity_tolerance: largest distance of the spot from the price that put-call parity implies,
            as a share of the spot.
        open_interest_weight: weight of open interest in the pressure of a contract.
        volume_weight: weight of the day's volume in the pressure of a contract.
        wall_ratio: one side's pressure must exceed the other's this many times to make a wall.
        hp_confidence: a front wall is a level above this confidence.
        mhp_confidence: a monthly wall is a level above this confidence.
        monthlies: number of standard monthly expirations that are combined.
        monthly_decay_days: a monthly's weight falls by the factor e in this many days.
        monthly_score_decay: steepness of the monthly score in the distance from the spot.
        gap_sessions: completed sessions that are searched for gaps.
        least_gap: smallest gap, as a share of the previous close.
        call_sign: side that dealers are assumed to hold in calls, +1 long or -1 short.
        put_sign: side that dealers are assumed to hold in puts.
        rate: continuously compounded interest per year. Exposures feel the difference to the
            dividends; 0.03 is what put-call parity in QQQ and SPY quotes of three to twelve
            months implied in February 2026.
        dividend_yield: continuously compounded dividends per year.
        multiplier: shares per contract.
        least_volatility: implied volatilities at or below are placeholders, not prices.
        most_volatility: implied volatilities above are absurd.
        least_priced_share: exposures are unknown when fewer than this share of the open interest
            near the spot has an implied volatility in range.
        flip_range: half-width of the spot grid of the gamma profile, as a share of the spot.
        flip_points: points of that grid, both ends included.
        volatility_days: maturity of the at-the-money volatility and of the skew, days.
        term_days: the longer maturity of the term slope, days.
    """

    taken_from: dt.time = dt.time(8, 45)
    taken_until: dt.time = dt.time(20, 0)
    near: float = 0.10
    least_contracts: int = 20
    most_blank_open_interest: float = 0.5
    parity_tolerance: float = 0.10
    open_interest_weight: float = 0.6
    volume_weight: float = 0.4
    wall_ratio: float = 1.5
    hp_confidence: float = 0.3
    mhp_confidence: float = 0.5
    monthlies: int = 4
    monthly_decay_days: float = 30.0
    monthly_score_decay: float = 10.0
    gap_sessions: int = 60
    least_gap: float = 0.002
    call_sign: float = 1.0
    put_sign: float = -1.0
    rate: float = 0.04
    dividend_yield: float = 0.01
    multiplier: float = 100.0
    least_volatility: float = 1e-4
    most_volatility: float = 5.0
    least_priced_share: float = 0.5
    flip_range: float = 0.10
    flip_points: int = 81
    volatility_days: float = 30.0
    term_days: float = 60.0

    def __post_init__(self) -> None:
        """Refuses constants with which the formulas have no meaning.

        Raises:
            ValueError: one line that names the constant.
        """
        if self.flip_points < 2:
            raise ValueError("level rules: flip_points must be at least 2")
        for name in ("near", "flip_range"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"level rules: {name} must be between 0 and 1")
        for name in ("wall_ratio", "monthly_decay_days", "multiplier", "volatility_days"):
            if not getattr(self, name) > 0:
                raise ValueError(f"level rules: {name} must be positive")
        if not self.term_days > self.volatility_days:
            raise ValueError("level rules: term_days must be greater than volatility_days")
        if not 0 <= self.least_volatility < self.most_volatility:
            raise ValueError("level rules: least_volatility must be below most_volatility")


DEFAULT_RULES = LevelRules()
