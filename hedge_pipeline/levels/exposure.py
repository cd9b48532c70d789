"""Gamma and vanna exposure of dealers, and where gamma exposure changes its sign.

Black-Scholes greeks on the snapshot's implied volatilities. Which side dealers hold is an
assumption (`LevelRules.call_sign`, `put_sign`). Gamma exposure is a regime of volatility: hedging
damps moves where it is positive and amplifies them where it is negative. It is no direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hedge_pipeline.levels.chain import Array, Chain, Flags
from hedge_pipeline.levels.rules import DEFAULT_RULES, LevelRules
from hedge_pipeline.levels.walls import nearest

ONE_PERCENT = 0.01
ONE_POINT = 0.01
_BLOCK = 1024
_SQRT_HALF = float(np.sqrt(0.5))
_DENSITY_AT_ZERO = float(1 / np.sqrt(2 * np.pi))


@dataclass(frozen=True)
class Exposure:
    """Exposures of a chain; NaN = unknown.

    Attributes:
        gex: dollars of delta that dealers trade per 1 % move of the spot, all expirations.
        gex_ex_front: the same without the first expiration; NaN if there is no other.
        gex_gross: sum of the absolute values, all expirations.
        vanna: dollars of delta per volatility point (0.01), all expirations.
        flip: spot at which `gex` changes its sign, the nearest to the spot, of two the lower, in
            quote currency; NaN if it does not within the grid.
        flip_count: sign changes within the grid; None = unknown.
    """

    gex: float
    gex_ex_front: float
    gex_gross: float
    vanna: float
    flip: float
    flip_count: int | None


UNKNOWN_EXPOSURE = Exposure(*(float("nan"),) * 5, None)


def gamma(
    spot: float | Array,
    strike: float | Array,
    years: float | Array,
    volatility: float | Array,
    rate: float = 0.0,
    dividend_yield: float = 0.0,
) -> Array:
    """Black-Scholes-Merton gamma, of calls and puts alike: exp(-qT) phi(d1) / (S sigma sqrt T).

    Args:
        spot: price of the underlying, positive.
        strike: same currency, positive; arguments are broadcast against each other.
        years: time to expiry, positive.
        volatility: per square root of a year, positive.
        rate: continuously compounded, per year.
        dividend_yield: continuously compounded, per year.

    Returns:
        Delta per unit of the currency, broadcast shape.
    """
    deviation = volatility * np.sqrt(years)
    d1 = _d1(spot, strike, years, volatility, rate, dividend_yield)
    return np.asarray(np.exp(-dividend_yield * years) * _density(d1) / (spot * deviation))


def vanna(
    spot: float | Array,
    strike: float | Array,
    years: float | Array,
    volatility: float | Array,
    rate: float = 0.0,
    dividend_yield: float = 0.0,
) -> Array:
    """Black-Scholes-Merton vanna, of calls and puts alike: -exp(-qT) phi(d1) d2 / sigma.

    Args: as for `gamma`.

    Returns:
        Delta per unit of volatility (1.00, not a point), broadcast shape.
    """
    d1 = _d1(spot, strike, years, volatility, rate, dividend_yield)
    d2 = d1 - volatility * np.sqrt(years)
    return np.asarray(-np.exp(-dividend_yield * years) * _density(d1) * d2 / volatility)


def call_delta(
    spot: float | Array,
    strike: float | Array,
    years: float | Array,
    volatility: float | Array,
    rate: float = 0.0,
    dividend_yield: float = 0.0,
) -> Array:
    """Black-Scholes-Merton delta of a call, exp(-qT) N(d1); a put's is less by exp(-qT).

    Args: as for `gamma`.

    Returns:
        Between 0 and 1, broadcast shape.
    """
    d1 = np.atleast_1d(_d1(spot, strike, years, volatility, rate, dividend_yield))
    cumulative = np.array([math.erfc(-x * _SQRT_HALF) / 2 for x in d1.flat]).reshape(d1.shape)
    return np.asarray(np.exp(-dividend_yield * np.asarray(years)) * cumulative)


def priced(chain: Chain, rules: LevelRules = DEFAULT_RULES) -> Flags:
    """Contracts whose implied volatility is a price and not a placeholder, [contracts]."""
    volatility = chain.implied_volatility
    return np.asarray(
        (volatility > rules.least_volatility) & (volatility <= rules.most_volatility),
        dtype=np.bool_,
    )


def gamma_is_known(chain: Chain, spot: float, rules: LevelRules = DEFAULT_RULES) -> bool:
    """Whether at least half of the open interest near the spot has an implied volatility in range.

    Before about 10:00 New York vendors serve placeholders for many contracts, and a sum over the
    rest would be a different quantity.

    Args:
        chain: the snapshot.
        spot: price of the underlying, in quote currency.
        rules: range of volatilities and the least share.
    """
    near = chain.near(spot, rules)
    interest = np.nan_to_num(chain.open_interest, nan=0.0)
    total = float(interest[near].sum())
    known = float(interest[near & priced(chain, rules)].sum())
    return total > 0 and known >= rules.least_priced_share * total


def exposure(chain: Chain, spot: float, rules: LevelRules = DEFAULT_RULES) -> Exposure:
    """Exposures of all contracts with open interest and a price.

    gex = sum of sign x gamma x open interest x 100 x S^2 x 0.01,
    vanna = sum of sign x vanna x open interest x 100 x S x 0.01.

    All is unknown where `gamma_is_known` says so.

    Args:
        chain: the snapshot.
        spot: price of the underlying, in quote currency.
        rules: signs, rates and thresholds.
    """
    if not gamma_is_known(chain, spot, rules):
        return UNKNOWN_EXPOSURE
    book = chain.part(priced(chain, rules) & (chain.open_interest > 0))
    shares = _shares(book, rules)
    terms = (book.strike, book.years, book.implied_volatility, rules.rate, rules.dividend_yield)
    by_contract = shares * gamma(spot, *terms) * spot**2 * ONE_PERCENT
    later = book.expiry > chain.expirations[0]
    spots = spot * np.linspace(1 - rules.flip_range, 1 + rules.flip_range, rules.flip_points)
    flips = sign_changes(spots, gamma_profile(book, spots, rules))
    return Exposure(
        gex=float(by_contract.sum()),
        gex_ex_front=float(by_contract[later].sum()) if later.any() else float("nan"),
        gex_gross=float(np.abs(by_contract).sum()),
        vanna=float((shares * vanna(spot, *terms)).sum()) * spot * ONE_POINT,
        flip=nearest(flips, spot),
        flip_count=len(flips),
    )


def gamma_profile(book: Chain, spots: Array, rules: LevelRules = DEFAULT_RULES) -> Array:
    """Gamma exposure of the whole chain re-priced at other spots, volatilities by strike held.

    Args:
        book: contracts; those without a price or open interest add nothing.
        spots: spots to price at, in quote currency, [spots].
        rules: signs and rates.

    Returns:
        Dollars per 1 % move, [spots].
    """
    book = book.part(priced(book, rules) & (book.open_interest > 0))
    deviation = book.implied_volatility * np.sqrt(book.years)
    drift = (rules.rate - rules.dividend_yield) * book.years + deviation**2 / 2
    # slope x ln S + offset is d1 over sqrt 2, so phi(d1) is exp of minus its square: one exp for
    # each contract and spot, in blocks that stay in the processor's cache
    slope = _SQRT_HALF / deviation
    offset = (drift - np.log(book.strike)) * slope
    carry = np.exp(-rules.dividend_yield * book.years) / deviation
    weight = _shares(book, rules) * carry * _DENSITY_AT_ZERO * ONE_PERCENT
    logs = np.log(spots)[:, None]
    total: Array = np.zeros(len(spots))
    for start in range(0, len(book), _BLOCK):
        block = slice(start, start + _BLOCK)
        cells = logs * slope[block]
        cells += offset[block]
        np.multiply(cells, cells, out=cells)
        np.negative(cells, out=cells)
        np.exp(cells, out=cells)
        total += np.einsum("ij,j->i", cells, weight[block])
    return np.asarray(total * spots)


def sign_changes(spots: Array, values: Array) -> Array:
    """Where a profile changes its sign, by linear interpolation, ascending, [changes].

    A profile that reaches zero on grid points and leaves it on the other side changes its sign
    in the middle of them; one that returns to the side it came from, or is zero up to the end of
    the grid, does not change it there.

    Args:
        spots: grid, ascending, [spots].
        values: profile on the grid, finite, [spots].
    """
    definite = np.flatnonzero(values != 0)
    left, right = definite[:-1], definite[1:]
    changing = np.sign(values[left]) != np.sign(values[right])
    left, right = left[changing], right[changing]
    share = values[left] / (values[left] - values[right])
    between = spots[left] + share * (spots[right] - spots[left])
    middle = (spots[left + 1] + spots[right - 1]) / 2
    return np.asarray(np.where(right - left == 1, between, middle))


def _shares(book: Chain, rules: LevelRules) -> Array:
    """Signed shares behind the open interest of each contract, [contracts]."""
    sign = np.where(book.is_call, rules.call_sign, rules.put_sign)
    return np.asarray(sign * book.open_interest * rules.multiplier)


def _d1(
    spot: float | Array,
    strike: float | Array,
    years: float | Array,
    volatility: float | Array,
    rate: float,
    dividend_yield: float,
) -> Array:
    drift = (rate - dividend_yield + np.square(volatility) / 2) * years
    return np.asarray((np.log(spot / strike) + drift) / (volatility * np.sqrt(years)))


def _density(x: Array) -> Array:
    """Standard normal density."""
    return np.asarray(_DENSITY_AT_ZERO * np.exp(-x * x / 2))
