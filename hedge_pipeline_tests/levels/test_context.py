"""Strikes of most interest, put/call ratio, and volatilities of one maturity."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedge_pipeline.levels.chain import MINUTES_PER_YEAR, Chain
from hedge_pipeline.levels.context import (
    Smiles,
    at_the_money_volatility,
    context,
    quarter_delta_skew,
    smile,
)
from hedge_pipeline.levels.exposure import call_delta, gamma
from hedge_pipeline.levels.rules import LevelRules
from hedge_pipeline_tests.levels.chains import (
    AS_OF,
    MONTHLIES,
    NO_CARRY,
    TOMORROW,
    Row,
    chain_of,
    contract,
    random_frame,
    walls_at,
)

SPOT = 100.0
SEEDS = st.integers(0, 2**32 - 1)


def series(
    expiry: str,
    volatility: float = 0.2,
    slope: float = 0.0,
    strikes: range = range(80, 121),
    rights: str = "PC",
) -> list[Row]:
    """A smile that is linear in the strike, with open interest everywhere."""
    return [
        contract(k, right, 10, expiry=expiry, volatility=volatility + slope * (k - SPOT))
        for k in strikes
        for right in rights
    ]


def at_the_money(chain: Chain, spot: float, rules: LevelRules | None = None) -> float:
    """At-the-money volatility of a chain with one expiration."""
    rules = rules or LevelRules()
    return at_the_money_volatility(smile(chain, spot, rules), spot, rules)


def skew(chain: Chain, spot: float, rules: LevelRules | None = None) -> float:
    """25-delta skew of a chain with one expiration, or none."""
    rules = rules or LevelRules()
    years = float(chain.years[0]) if len(chain) else math.nan
    return quarter_delta_skew(smile(chain, spot, rules), years, spot, rules)


# -- open interest -----------------------------------------------------------------------------


def test_open_interest_walls_add_up_all_expirations() -> None:
    rows = [
        *walls_at(TOMORROW, P95=50, P97=60, C103=50, C105=60),
        *walls_at(MONTHLIES[0], P95=20, C103=20),
    ]
    found = context(chain_of(*rows), SPOT)
    assert (found.put_oi_wall, found.call_oi_wall) == (95, 103)


def test_open_interest_walls_are_near_the_spot_on_either_side_of_it() -> None:
    """Crash insurance far below would otherwise always be the largest."""
    found = context(chain_of(*walls_at(TOMORROW, P70=9000, P102=50, C98=40, C130=9000)), SPOT)
    assert (found.put_oi_wall, found.call_oi_wall) == (102, 98)


def test_of_equal_open_interest_the_nearest_then_the_lower_strike_counts() -> None:
    found = context(chain_of(*walls_at(TOMORROW, P95=50, P97=50, C98=50, C102=50)), SPOT)
    assert (found.put_oi_wall, found.call_oi_wall) == (97, 98)


def test_without_open_interest_there_is_no_wall_and_no_ratio() -> None:
    found = context(chain_of(*walls_at(TOMORROW, P95=math.nan, C105=0)), SPOT)
    assert np.isnan((found.put_oi_wall, found.call_oi_wall, found.put_call_oi_ratio)).all()


def test_the_put_call_ratio_is_of_the_whole_chain() -> None:
    rows = [*walls_at(TOMORROW, P50=300, C105=100), *walls_at(MONTHLIES[0], P95=100, C200=100)]
    assert context(chain_of(*rows), SPOT).put_call_oi_ratio == 2
    assert context(chain_of(*walls_at(TOMORROW, C105=9)), SPOT).put_call_oi_ratio == 0


def test_the_max_gamma_strike_adds_up_rights_and_expirations() -> None:
    chain = chain_of(
        *walls_at(MONTHLIES[0], P95=100, C95=100, C100=150), *walls_at(MONTHLIES[1], P95=30)
    )
    at_95 = 200 * gamma(SPOT, 95.0, chain.years[0], 0.2, 0.04, 0.01)
    at_95 = at_95 + 30 * gamma(SPOT, 95.0, chain.years[-1], 0.2, 0.04, 0.01)
    at_100 = 150 * gamma(SPOT, 100.0, chain.years[0], 0.2, 0.04, 0.01)
    assert context(chain, SPOT).max_gamma_strike == (95 if at_95 > at_100 else 100)
    more = chain_of(*walls_at(MONTHLIES[0], P95=1000, C95=100, C100=150))
    assert context(more, SPOT).max_gamma_strike == 95


def test_the_max_gamma_strike_is_unknown_without_prices() -> None:
    blank = chain_of(*series(TOMORROW, volatility=1e-5))
    assert math.isnan(context(blank, SPOT).max_gamma_strike)


# -- volatility of one expiration --------------------------------------------------------------


def test_at_the_money_volatility_is_interpolated_between_strikes() -> None:
    chain = chain_of(*series(TOMORROW, 0.2, slope=-0.01))
    assert at_the_money(chain, 100.0) == pytest.approx(0.2)
    assert at_the_money(chain, 100.25) == pytest.approx(0.1975)


@pytest.mark.parametrize("strikes", [range(101, 111), range(90, 100), range(70, 80), range(0)])
def test_at_the_money_volatility_needs_near_strikes_on_both_sides(strikes: range) -> None:
    chain = chain_of(*series(TOMORROW, strikes=strikes), *series(TOMORROW, strikes=range(120, 125)))
    assert math.isnan(at_the_money(chain, SPOT))


@pytest.mark.parametrize("spot", [100.0, 105.0])
def test_the_first_and_the_last_strike_are_at_the_money_when_the_price_is_there(
    spot: float,
) -> None:
    chain = chain_of(*series(TOMORROW, 0.2, strikes=range(100, 106)))
    assert at_the_money(chain, spot) == pytest.approx(0.2)


def test_placeholders_and_absurd_values_are_no_volatility() -> None:
    rows = series(TOMORROW, 0.2)
    for row in rows:
        if row["strike"] == 100:
            row["implied_volatility"] = 1e-5 if row["right"] == "C" else 7.0
    assert at_the_money(chain_of(*rows), SPOT) == pytest.approx(0.2)


def test_a_strike_with_one_right_has_that_one_s_volatility() -> None:
    strikes, volatility = smile(chain_of(*series(TOMORROW, 0.3, rights="P")), SPOT)
    assert strikes.tolist() == list(range(80, 121))
    assert volatility == pytest.approx(0.3)


def test_each_right_is_weighted_with_the_delta_of_the_other() -> None:
    rules = LevelRules(rate=0.02, dividend_yield=0.3)
    expiry = MONTHLIES[3]
    chain = chain_of(
        contract(95, "P", volatility=0.3, expiry=expiry),
        contract(95, "C", volatility=0.2, expiry=expiry),
    )
    years = float(chain.years[0])
    of_call = float(call_delta(SPOT, 95.0, years, 0.2, 0.02, 0.3)[0])
    of_put = math.exp(-0.3 * years) - float(call_delta(SPOT, 95.0, years, 0.3, 0.02, 0.3)[0])
    # the call's delta as the put's own volatility gives it, and the reverse
    for_put, for_call = math.exp(-0.3 * years) - of_put, math.exp(-0.3 * years) - of_call
    _, volatility = smile(chain, SPOT, rules)
    expected = (for_put * 0.3 + for_call * 0.2) / (for_put + for_call)
    assert volatility == pytest.approx([expected], rel=1e-12)


def test_an_error_in_the_vendor_s_forward_cancels_between_call_and_put() -> None:
    """Quotes inverted with a wrong spot: the calls' volatility too high, the puts' too low."""
    true, error, years = 0.2, 0.3, chain_of(*series(MONTHLIES[1])).years[0]
    rows = []
    for row in series(MONTHLIES[1], true):
        strike = float(str(row["strike"]))
        delta = float(call_delta(SPOT, strike, years, true)[0])
        # vega by its definition S phi(d1) sqrt T = gamma S^2 sigma T
        vega = float(gamma(SPOT, strike, years, true)) * SPOT**2 * true * years
        moved = delta if row["right"] == "C" else delta - 1
        shift = error * moved / vega
        rows.append(row | {"implied_volatility": true + min(max(shift, -0.1), 0.1)})
    chain = chain_of(*rows)
    calls = chain.part(chain.is_call)
    assert at_the_money(calls, SPOT, NO_CARRY) > true + 0.01
    assert at_the_money(chain, SPOT, NO_CARRY) == pytest.approx(true, abs=5e-4)
    assert skew(chain, SPOT, NO_CARRY) == pytest.approx(0, abs=2e-3)


def test_skew_is_put_less_call_volatility_at_a_quarter_delta() -> None:
    chain = chain_of(*series(MONTHLIES[1], 0.2, slope=-0.002))
    strikes, volatility = smile(chain, SPOT, NO_CARRY)
    call = call_delta(SPOT, strikes, chain.years[0], volatility)
    put_strike = np.interp(0.25, 1 - call, strikes)
    call_strike = np.interp(-0.25, -call, strikes)
    assert put_strike < SPOT < call_strike
    found = skew(chain, SPOT, NO_CARRY)
    assert found == pytest.approx(0.002 * (call_strike - put_strike), rel=1e-3)


def test_a_flat_smile_has_no_skew() -> None:
    assert skew(chain_of(*series(MONTHLIES[1])), SPOT) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("strikes", [range(80, 101), range(100, 121), range(99, 102), range(0)])
def test_the_skew_is_unknown_where_the_deltas_do_not_reach_a_quarter(strikes: range) -> None:
    assert math.isnan(skew(chain_of(*series(MONTHLIES[1], strikes=strikes)), SPOT))


# -- volatility of one maturity ----------------------------------------------------------------


def test_total_variance_is_linear_between_expirations() -> None:
    near, far = "2026-03-06", "2026-03-27"
    chain = chain_of(*series(near, 0.3), *series(far, 0.2), *series(MONTHLIES[3], 0.9))
    minutes = [24 * 60 * days + 360 for days in (24, 45)]
    t1, t2 = (value / MINUTES_PER_YEAR for value in minutes)
    wanted = 30 / 365
    share = (wanted - t1) / (t2 - t1)
    variance = (1 - share) * 0.3**2 * t1 + share * 0.2**2 * t2
    # daylight saving begins between the two: 60 minutes less to the second
    assert Smiles(chain, SPOT, LevelRules()).at_the_money(30) == pytest.approx(
        math.sqrt(variance / wanted), rel=1e-3
    )


def test_an_expiration_without_a_volatility_is_passed_over() -> None:
    rows = [*series("2026-03-06", 0.2), *series("2026-03-27", 0.2), *series("2026-03-09", 1e-5)]
    assert Smiles(chain_of(*rows), SPOT, LevelRules()).at_the_money(30) == pytest.approx(0.2)


def test_an_expiration_of_exactly_the_maturity_decides_alone() -> None:
    exact = AS_OF.replace(hour=21)
    rows = [*series("2026-02-20", 0.4), *series("2026-03-02", 0.25), *series("2026-03-20", 0.4)]
    for alone in (rows, series("2026-03-02", 0.25)):
        assert Smiles(chain_of(*alone, as_of=exact), SPOT, LevelRules()).at_the_money(
            20
        ) == pytest.approx(0.25)


@pytest.mark.parametrize("expiries", [("2026-02-20", "2026-02-27"), ("2026-03-20", "2026-04-17")])
def test_a_maturity_outside_the_expirations_is_unknown(expiries: tuple[str, str]) -> None:
    rows = [row for day in expiries for row in series(day)]
    assert math.isnan(Smiles(chain_of(*rows), SPOT, LevelRules()).at_the_money(30))
    assert math.isnan(Smiles(chain_of(*rows), SPOT, LevelRules()).skew(30))


def test_the_skew_of_a_maturity_lies_between_its_expirations() -> None:
    rows = [*series("2026-03-06", slope=-0.001), *series("2026-03-27", slope=-0.004)]
    chain = chain_of(*rows)
    ends = [skew(chain.part(chain.expiry == x), SPOT) for x in chain.expirations]
    share = (30 / 365 - chain.years[0]) / (chain.years[-1] - chain.years[0])
    assert Smiles(chain, SPOT, LevelRules()).skew(30) == pytest.approx(
        ends[0] + share * (ends[1] - ends[0])
    )


def test_the_term_slope_is_the_longer_less_the_shorter_maturity() -> None:
    rows = [*series("2026-03-06", 0.3), *series("2026-03-27", 0.3), *series("2026-05-15", 0.2)]
    chain = chain_of(*rows)
    found = context(chain, SPOT)
    assert found.atm_iv == pytest.approx(0.3)
    assert found.term_slope == pytest.approx(
        Smiles(chain, SPOT, LevelRules()).at_the_money(60) - 0.3
    )
    assert found.term_slope < 0


def test_an_empty_chain_has_no_context() -> None:
    assert np.isnan(list(vars(context(chain_of(), SPOT)).values())).all()


@given(seed=SEEDS)
def test_a_single_volatility_for_everything_is_found_everywhere(seed: int) -> None:
    frame = random_frame(seed).assign(implied_volatility=0.17)
    found = context(Chain.from_frame(frame, AS_OF), 100.37)
    assert found.atm_iv == pytest.approx(0.17)
    assert found.skew_25d == pytest.approx(0, abs=1e-12)
    assert found.term_slope == pytest.approx(0, abs=1e-12)


def test_maturities_are_rules() -> None:
    rows = [row for day in MONTHLIES for row in series(day, 0.2)]
    rules = LevelRules(volatility_days=12.0, term_days=90.0)
    found = context(chain_of(*rows), SPOT, rules)
    assert (found.atm_iv, found.term_slope) == pytest.approx((0.2, 0), abs=1e-12)
