"""What describes a chain beside walls and exposures: strikes of most interest, ratio, volatility.

Volatilities of one maturity come from the two expirations around it, so that they do not jump when
an expiration ends; a chain that does not reach the maturity leaves them unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hedge_pipeline.levels.chain import Array, Chain, Flags, is_near
from hedge_pipeline.levels.exposure import call_delta, gamma, gamma_is_known, priced
from hedge_pipeline.levels.rules import DEFAULT_RULES, LevelRules
from hedge_pipeline.levels.walls import nearest

DAYS_PER_YEAR = 365
QUARTER_DELTA = 0.25


@dataclass(frozen=True)
class Context:
    """Figures of one chain; NaN = not computable.

    Attributes:
        call_oi_wall: near strike with the largest call open interest over all expirations.
        put_oi_wall: near strike with the largest put open interest over all expirations.
        max_gamma_strike: strike with the largest gamma x open interest, both rights and all
            expirations added up; NaN where gamma exposure is unknown.
        put_call_oi_ratio: put over call open interest of the whole chain.
        atm_iv: at-the-money implied volatility at 30 days, per square root of a year.
        skew_25d: volatility of the 25-delta put less that of the 25-delta call at 30 days.
        term_slope: at-the-money volatility at 60 days less that at 30 days.
    """

    call_oi_wall: float
    put_oi_wall: float
    max_gamma_strike: float
    put_call_oi_ratio: float
    atm_iv: float
    skew_25d: float
    term_slope: float


def context(chain: Chain, spot: float, rules: LevelRules = DEFAULT_RULES) -> Context:
    """All figures of the chain.

    Args:
        chain: the snapshot.
        spot: price of the underlying, in quote currency.
        rules: maturities, rates and thresholds.
    """
    interest = np.nan_to_num(chain.open_interest, nan=0.0)
    near = chain.near(spot, rules)
    puts, calls = float(interest[~chain.is_call].sum()), float(interest[chain.is_call].sum())
    smiles = Smiles(chain, spot, rules)
    at_the_money = smiles.at_the_money(rules.volatility_days)
    return Context(
        call_oi_wall=_largest(chain.strike, interest, near & chain.is_call, spot),
        put_oi_wall=_largest(chain.strike, interest, near & ~chain.is_call, spot),
        max_gamma_strike=_max_gamma_strike(chain, spot, interest, rules),
        put_call_oi_ratio=puts / calls if calls > 0 else float("nan"),
        atm_iv=at_the_money,
        skew_25d=smiles.skew(rules.volatility_days),
        term_slope=smiles.at_the_money(rules.term_days) - at_the_money,
    )


class Smiles:
    """The smiles of a chain, each computed once, and figures of a maturity between two of them.

    Args:
        chain: the snapshot.
        spot: price of the underlying, in quote currency.
        rules: range of volatilities, rates, and how far strikes at the money may be.
    """

    def __init__(self, chain: Chain, spot: float, rules: LevelRules) -> None:
        self._chain, self._spot, self._rules = chain, spot, rules
        first = np.searchsorted(chain.expiry, chain.expirations)
        self._years = chain.years[first] if len(first) else chain.years
        self._known: dict[int, tuple[Array, Array]] = {}

    def at_the_money(self, days: float) -> float:
        """At-the-money implied volatility of a maturity in days.

        The total variance sigma^2 T is linear in T between the nearest expirations on both sides of
        the maturity that have an at-the-money volatility.

        Returns:
            Per square root of a year; NaN if the expirations do not enclose the maturity.
        """
        years, values = self._around(days, self._at_the_money_of)
        wanted = days / DAYS_PER_YEAR
        return float(np.sqrt(np.interp(wanted, years, values**2 * years) / wanted))

    def skew(self, days: float) -> float:
        """25-delta skew of a maturity in days, linear in time between the nearest expirations.

        Returns:
            Per square root of a year, positive when puts are dearer; NaN if no expirations that
            have a skew enclose the maturity.
        """
        years, values = self._around(days, self._skew_of)
        return float(np.interp(days / DAYS_PER_YEAR, years, values))

    def _at_the_money_of(self, place: int) -> float:
        return at_the_money_volatility(self._smile(place), self._spot, self._rules)

    def _skew_of(self, place: int) -> float:
        years = float(self._years[place])
        return quarter_delta_skew(self._smile(place), years, self._spot, self._rules)

    def _smile(self, place: int) -> tuple[Array, Array]:
        if place not in self._known:
            series = self._chain.part(self._chain.expiry == self._chain.expirations[place])
            self._known[place] = smile(series, self._spot, self._rules)
        return self._known[place]

    def _around(self, days: float, figure: Callable[[int], float]) -> tuple[Array, Array]:
        """Years and figures of the nearest expirations on both sides that have the figure, [2].

        NaN where a side has none. An expiration of exactly the maturity is both sides.
        """
        wanted = days / DAYS_PER_YEAR
        found = []
        for outward in (
            np.flatnonzero(self._years <= wanted)[::-1],
            np.flatnonzero(self._years >= wanted),
        ):
            for place in outward:
                value = figure(int(place))
                if np.isfinite(value):
                    found.append((self._years[place], value))
                    break
            else:
                return np.full(2, np.nan), np.full(2, np.nan)
        return np.array([x for x, _ in found]), np.array([x for _, x in found])


def smile(series: Chain, spot: float, rules: LevelRules = DEFAULT_RULES) -> tuple[Array, Array]:
    """One implied volatility by strike, from the call's and the put's.

    Both would be equal had the vendor used the right forward price; an error moves them apart in
    proportion to their deltas (measured in Yahoo's: 0.18 against 0.21 at the money, and 0.02 too
    little skew out of the money). Each is therefore weighted with the absolute delta of the other,
    and the error cancels to first order. A strike with one right in range has that one's
    volatility.

    Args:
        series: contracts of one expiration.
        spot: price of the underlying, in quote currency.
        rules: range of volatilities and rates.

    Returns:
        Strikes with a volatility, ascending, and the volatilities, per square root of a year.
    """
    series = series.part(priced(series, rules))
    strikes, place = np.unique(series.strike, return_inverse=True)
    volatility = series.implied_volatility
    carry = np.exp(-rules.dividend_yield * series.years)
    call = call_delta(
        spot, series.strike, series.years, volatility, rules.rate, rules.dividend_yield
    )
    # a deep contract's weight may round to nothing where it is alone
    weight = np.maximum(np.where(series.is_call, carry - call, call), np.finfo(np.float64).tiny)
    total = np.bincount(place, weights=weight * volatility)
    return strikes, total / np.bincount(place, weights=weight)


def at_the_money_volatility(
    curve: tuple[Array, Array], spot: float, rules: LevelRules = DEFAULT_RULES
) -> float:
    """Implied volatility of one expiration at the spot.

    Linear in the strike between the nearest strikes on both sides of the spot that have a
    volatility.

    Args:
        curve: strikes and volatilities, see `smile`.
        spot: price of the underlying, in quote currency.
        rules: how far the strikes may be.

    Returns:
        Per square root of a year; NaN without strikes near the spot on both sides.
    """
    strikes, volatility = curve
    near = is_near(strikes, spot, rules)
    strikes, volatility = strikes[near], volatility[near]
    if not len(strikes) or not strikes[0] <= spot <= strikes[-1]:
        return float("nan")
    return float(np.interp(spot, strikes, volatility))


def quarter_delta_skew(
    curve: tuple[Array, Array], years: float, spot: float, rules: LevelRules = DEFAULT_RULES
) -> float:
    """Volatility of the 25-delta put less that of the 25-delta call of one expiration.

    Deltas are Black-Scholes-Merton with the volatility of the strike, puts below and calls above
    the spot. Linear in delta between the first two neighbours, going outward from the spot,
    between which the absolute delta falls below 0.25.

    Args:
        curve: strikes and volatilities, see `smile`.
        years: time to the end of the series.
        spot: price of the underlying, in quote currency.
        rules: rates.

    Returns:
        Per square root of a year, positive when puts are dearer; NaN if the deltas of a side do
        not enclose 0.25.
    """
    strikes, volatility = curve
    if not len(strikes):
        return float("nan")
    call = call_delta(spot, strikes, years, volatility, rules.rate, rules.dividend_yield)
    put = np.exp(-rules.dividend_yield * years) - call
    below, above = strikes < spot, strikes > spot
    return _at_quarter_delta(put[below][::-1], volatility[below][::-1]) - _at_quarter_delta(
        call[above], volatility[above]
    )


def _at_quarter_delta(delta: Array, volatility: Array) -> float:
    """Volatility where the delta first falls below 0.25; arrays go outward from the spot."""
    falls = (delta[:-1] >= QUARTER_DELTA) & (delta[1:] < QUARTER_DELTA)
    if not falls.any():
        return float("nan")
    inner = int(np.argmax(falls))
    share = (delta[inner] - QUARTER_DELTA) / (delta[inner] - delta[inner + 1])
    return float(volatility[inner] + share * (volatility[inner + 1] - volatility[inner]))


def _largest(strike: Array, values: Array, chosen: Flags, spot: float) -> float:
    """Strike with the largest sum of positive values; of equals the nearest to the spot."""
    strikes, place = np.unique(strike[chosen], return_inverse=True)
    total = np.bincount(place, weights=values[chosen], minlength=len(strikes))
    largest = float(total.max(initial=0.0))
    return nearest(strikes[total == largest], spot) if largest > 0 else float("nan")


def _max_gamma_strike(chain: Chain, spot: float, interest: Array, rules: LevelRules) -> float:
    if not gamma_is_known(chain, spot, rules):
        return float("nan")
    book = chain.part(priced(chain, rules))
    weight = interest[priced(chain, rules)] * gamma(
        spot,
        book.strike,
        book.years,
        book.implied_volatility,
        rules.rate,
        rules.dividend_yield,
    )
    return _largest(book.strike, weight, np.ones(len(book), dtype=np.bool_), spot)
