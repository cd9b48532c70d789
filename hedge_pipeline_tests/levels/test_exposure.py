"""Greeks against QuantLib; exposures and flips of chains whose answer is known in closed form."""

from __future__ import annotations

import itertools
import math
import time
import tracemalloc
from dataclasses import astuple, replace

import numpy as np
import pandas as pd
import pytest
import QuantLib
from hypothesis import given
from hypothesis import strategies as st

from hedge_pipeline.levels.chain import Chain
from hedge_pipeline.levels.exposure import (
    call_delta,
    exposure,
    gamma,
    gamma_is_known,
    gamma_profile,
    priced,
    sign_changes,
    vanna,
)
from hedge_pipeline.levels.rules import LevelRules
from hedge_pipeline_tests.levels.chains import (
    AS_OF,
    NO_CARRY,
    Row,
    chain_of,
    contract,
    random_frame,
    walls_at,
)

SEEDS = st.integers(0, 2**32 - 1)
SPOT = 100.0
FAR = "2026-05-15"


# -- greeks ------------------------------------------------------------------------------------

GRID = list(
    itertools.product(
        (70.0, 95.0, 100.0, 108.0, 140.0),  # strike
        (5 / 525_600, 1 / 365, 0.08, 1.0, 2.5),  # years
        (0.05, 0.2, 0.9, 3.0),  # volatility
        ((0.0, 0.0), (0.045, 0.0), (0.0, 0.03), (0.045, 0.013), (-0.01, 0.02)),  # rate, dividends
    )
)


def quantlib(
    right: int, strike: float, years: float, volatility: float, rate: float, dividends: float
) -> tuple[float, float, float]:
    """Gamma, vanna and delta of QuantLib's Black calculator."""
    black = QuantLib.BlackCalculator(
        QuantLib.PlainVanillaPayoff(right, strike),
        SPOT * math.exp((rate - dividends) * years),
        volatility * math.sqrt(years),
        math.exp(-rate * years),
    )
    return black.gamma(SPOT), black.vanna(SPOT, years), black.delta(SPOT)


@pytest.mark.parametrize("right", [QuantLib.Option.Call, QuantLib.Option.Put])
def test_greeks_are_those_of_quantlib(right: int) -> None:
    expected = np.array([quantlib(right, *point[:3], *point[3]) for point in GRID])
    strike, years, volatility = np.array([point[:3] for point in GRID]).T
    for rate, dividends in {point[3] for point in GRID}:
        chosen = np.array([point[3] == (rate, dividends) for point in GRID])
        terms = (SPOT, strike[chosen], years[chosen], volatility[chosen], rate, dividends)
        delta = call_delta(*terms)
        if right == QuantLib.Option.Put:
            delta -= np.exp(-dividends * years[chosen])
        found = np.stack([gamma(*terms), vanna(*terms), delta], axis=1)
        assert found == pytest.approx(expected[chosen], rel=1e-9, abs=1e-12)


def test_gamma_and_vanna_agree_with_quantlib_s_pricing_engine() -> None:
    """An option priced on market objects: gamma of the engine, vanna by bumping its delta."""
    today = QuantLib.Date(10, 2, 2026)
    QuantLib.Settings.instance().evaluationDate = today
    days = QuantLib.Actual365Fixed()
    rate, dividends, volatility = 0.045, 0.013, QuantLib.SimpleQuote(0.23)
    process = QuantLib.BlackScholesMertonProcess(
        QuantLib.QuoteHandle(QuantLib.SimpleQuote(SPOT)),
        QuantLib.YieldTermStructureHandle(QuantLib.FlatForward(today, dividends, days)),
        QuantLib.YieldTermStructureHandle(QuantLib.FlatForward(today, rate, days)),
        QuantLib.BlackVolTermStructureHandle(
            QuantLib.BlackConstantVol(
                today, QuantLib.NullCalendar(), QuantLib.QuoteHandle(volatility), days
            )
        ),
    )
    option = QuantLib.VanillaOption(
        QuantLib.PlainVanillaPayoff(QuantLib.Option.Put, 104.0),
        QuantLib.EuropeanExercise(today + 73),
    )
    option.setPricingEngine(QuantLib.AnalyticEuropeanEngine(process))
    terms = (SPOT, 104.0, 0.2, 0.23, rate, dividends)
    assert float(gamma(*terms)) == pytest.approx(option.gamma(), rel=1e-10)
    deltas = []
    for bump in (-1e-5, 1e-5):
        volatility.setValue(0.23 + bump)
        deltas.append(option.delta())
    assert float(vanna(*terms)) == pytest.approx((deltas[1] - deltas[0]) / 2e-5, rel=1e-6)


# -- exposure ----------------------------------------------------------------------------------


def test_exposures_are_the_sums_of_the_definition() -> None:
    rules = LevelRules(rate=0.03, dividend_yield=0.01)
    chain = chain_of(
        contract(98, "P", 300, volatility=0.25),
        contract(101, "C", 200, volatility=0.18),
        contract(95, "P", 1000, expiry=FAR, volatility=0.3),
        contract(105, "C", 700, expiry=FAR, volatility=0.15),
    )
    near, far = 30 / 24 / 365, chain.years[-1]
    terms = [
        (-1, 300, 98.0, near, 0.25),
        (1, 200, 101.0, near, 0.18),
        (-1, 1000, 95.0, far, 0.3),
        (1, 700, 105.0, far, 0.15),
    ]
    gammas = [
        sign * interest * 100 * SPOT**2 * 0.01 * float(gamma(SPOT, k, years, sigma, 0.03, 0.01))
        for sign, interest, k, years, sigma in terms
    ]
    vannas = [
        sign * interest * 100 * SPOT * 0.01 * float(vanna(SPOT, k, years, sigma, 0.03, 0.01))
        for sign, interest, k, years, sigma in terms
    ]
    found = exposure(chain, SPOT, rules)
    assert found.gex == pytest.approx(sum(gammas))
    assert found.gex_ex_front == pytest.approx(sum(gammas[2:]))
    assert found.gex_gross == pytest.approx(sum(map(abs, gammas)))
    assert found.vanna == pytest.approx(sum(vannas))


def test_contracts_without_open_interest_or_a_price_add_nothing() -> None:
    rows = [contract(100, "C", 100, expiry=FAR), contract(101, "P", 40, expiry=FAR)]
    more = [
        contract(100, "P", 0, expiry=FAR),
        contract(102, "C", np.nan, expiry=FAR),
        contract(103, "C", 9, expiry=FAR, volatility=1e-4),
        contract(104, "C", 9, expiry=FAR, volatility=5.01),
        contract(105, "C", 9, expiry=FAR, volatility=np.nan),
        contract(106, "C", 9, expiry=FAR, volatility=0.0),
    ]
    alone, among = exposure(chain_of(*rows), SPOT), exposure(chain_of(*rows, *more), SPOT)
    assert astuple(among) == pytest.approx(astuple(alone), nan_ok=True, rel=1e-12)
    assert alone.gex > 0


@pytest.mark.parametrize("volatility", [0.0, 1e-5, 1e-4, 5.5, 1e300, np.nan])
def test_exposures_are_unknown_when_every_volatility_is_a_placeholder(volatility: float) -> None:
    chain = chain_of(*(contract(k, "C", 10, volatility=volatility) for k in range(95, 106)))
    found = exposure(chain, SPOT)
    assert found.flip_count is None
    known = (found.gex, found.gex_ex_front, found.gex_gross, found.vanna, found.flip)
    assert np.isnan(known).all()


@pytest.mark.parametrize(
    ("volatility", "is_price"),
    [(0.0, False), (1e-4, False), (1.1e-4, True), (5.0, True), (5.01, False), (np.nan, False)],
)
def test_a_volatility_in_range_is_a_price(volatility: float, is_price: bool) -> None:
    assert priced(chain_of(contract(100, "C", volatility=volatility))).tolist() == [is_price]


def test_half_of_the_open_interest_must_be_priced() -> None:
    priced, blank = contract(100, "C", 50), contract(101, "C", 50, volatility=1e-5)
    far = contract(50, "P", 10_000, volatility=1e-5)
    assert gamma_is_known(chain_of(priced, blank, far), SPOT)
    assert not gamma_is_known(chain_of(priced, blank | {"open_interest": 51.0}), SPOT)
    assert not gamma_is_known(chain_of(contract(100, "C", 0)), SPOT)
    assert math.isnan(exposure(chain_of(priced, blank | {"open_interest": 51.0}), SPOT).gex)


def test_a_chain_of_one_expiration_has_no_exposure_without_the_front() -> None:
    found = exposure(chain_of(contract(100, "C", 10)), SPOT)
    assert found.gex > 0
    assert math.isnan(found.gex_ex_front)


def test_the_front_is_left_out_even_where_it_has_no_price() -> None:
    rows = [contract(100, "C", 1, volatility=0.0), contract(100, "C", 9, expiry=FAR)]
    found = exposure(chain_of(*rows), SPOT)
    assert found.gex_ex_front == found.gex > 0


def test_gamma_of_the_last_minutes_is_finite() -> None:
    late = AS_OF.replace(hour=20, minute=59, second=59)
    chain = chain_of(contract(100, "C", 10, expiry="2026-02-10"), as_of=late)
    expected = 10 * 100 * SPOT**2 * 0.01 * float(gamma(SPOT, 100.0, 5 / 525_600, 0.2))
    assert exposure(chain, SPOT, NO_CARRY).gex == pytest.approx(expected)


# -- the profile and its flips -----------------------------------------------------------------


def profile_rows(volatility: float = 0.2, **interest: float) -> list[Row]:
    """Contracts of one expiration named like `C105=30`."""
    return [row | {"implied_volatility": volatility} for row in walls_at(FAR, **interest)]


def test_the_flip_between_two_strikes_is_known_in_closed_form() -> None:
    """Equal put and call interest cancels where both gammas are equal, |d1| = |d1|."""
    rules = LevelRules(rate=0.04, dividend_yield=0.01, flip_points=1001)
    chain = chain_of(*profile_rows(P95=100, C105=100))
    drift = (0.04 - 0.01 + 0.2**2 / 2) * chain.years[0]
    found = exposure(chain, SPOT, rules)
    assert found.flip_count == 1
    assert found.flip == pytest.approx(math.sqrt(95 * 105) * math.exp(-drift), rel=1e-6)


def test_the_default_grid_finds_the_flip_within_a_hundredth_of_a_percent() -> None:
    chain = chain_of(*profile_rows(P95=100, C105=100))
    coarse = exposure(chain, SPOT, NO_CARRY).flip
    fine = exposure(chain, SPOT, replace(NO_CARRY, flip_points=20_001)).flip
    assert coarse == pytest.approx(fine, rel=1e-4)


@pytest.mark.parametrize("right", ["C", "P"])
def test_the_flip_is_unknown_when_the_profile_never_crosses_zero(right: str) -> None:
    chain = chain_of(*(contract(k, right, 10, expiry=FAR) for k in range(90, 111)))
    found = exposure(chain, SPOT)
    assert math.isnan(found.flip)
    assert found.flip_count == 0


def test_a_profile_that_cancels_everywhere_has_no_flip() -> None:
    found = exposure(chain_of(*profile_rows(P100=10, C100=10)), SPOT)
    assert found.gex == 0
    assert math.isnan(found.flip)
    assert found.flip_count == 0


def test_of_several_flips_the_nearest_counts() -> None:
    chain = chain_of(*profile_rows(volatility=0.05, C93=100, P99=100, C106=100))
    low, high = (exposure(chain, spot, NO_CARRY) for spot in (97.0, 101.5))
    assert low.flip_count == high.flip_count == 2
    assert low.flip == pytest.approx(math.sqrt(93 * 99), rel=2e-3)
    assert high.flip == pytest.approx(math.sqrt(99 * 106), rel=2e-3)


def test_a_flip_outside_the_grid_is_not_looked_for() -> None:
    chain = chain_of(*profile_rows(P95=100, C105=100))
    assert exposure(chain, 112.0, NO_CARRY).flip_count == 0
    wide = replace(NO_CARRY, flip_range=0.2)
    expected = math.sqrt(95 * 105) * math.exp(-(0.2**2) / 2 * chain.years[0])
    assert exposure(chain, 112.0, wide).flip == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("place", "count"), [(0.895, 0), (0.905, 1), (1.0, 1), (1.095, 1), (1.105, 0)]
)
def test_the_grid_reaches_a_tenth_of_the_spot_to_both_sides(place: float, count: int) -> None:
    chain = chain_of(*profile_rows(P95=100, C105=100))
    flip = math.sqrt(95 * 105) * math.exp(-(0.2**2) / 2 * chain.years[0])
    assert exposure(chain, flip / place, NO_CARRY).flip_count == count


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-1, 1, 1, 1], [100.5]),
        ([-1, 3, 1, 1], [100.25]),
        ([1, 1, -1, 1], [101.5, 102.5]),
        ([1, 2, 3, 4], []),
        ([-1, 0, 1, 2], [101]),
        ([-1, 0, 0, 1], [101.5]),
        ([-1, 0, -1, -1], []),
        ([0, 0, 1, 1], []),
        ([1, 1, 0, 0], []),
        ([0, 0, 0, 0], []),
        ([-1, 0, 1, -1], [101, 102.5]),
    ],
)
def test_sign_changes_are_found_by_interpolation(
    values: list[float], expected: list[float]
) -> None:
    spots = np.array([100.0, 101, 102, 103])
    assert sign_changes(spots, np.array(values, dtype=np.float64)).tolist() == expected


@given(seed=SEEDS, spot=st.floats(85, 115))
def test_the_profile_at_the_spot_is_the_exposure(seed: int, spot: float) -> None:
    chain = Chain.from_frame(random_frame(seed), AS_OF)
    rules = LevelRules(rate=0.05, dividend_yield=0.02)
    found = exposure(chain, spot, rules)
    profile = gamma_profile(chain, np.array([spot]), rules)
    assert profile == pytest.approx([found.gex], rel=1e-9, abs=1e-9 * found.gex_gross)


@given(seed=SEEDS)
def test_the_profile_is_the_sum_of_its_contracts(seed: int) -> None:
    chain = Chain.from_frame(random_frame(seed), AS_OF)
    spots = np.linspace(90, 110, 7)
    halves = np.random.default_rng(seed).random(len(chain)) < 0.5
    parts = [gamma_profile(chain.part(half), spots) for half in (halves, ~halves)]
    whole = gamma_profile(chain, spots)
    assert parts[0] + parts[1] == pytest.approx(whole, rel=1e-9, abs=1e-6 * np.abs(whole).max())


def test_a_long_chain_is_summed_in_blocks() -> None:
    strikes = 60 + 80 * np.arange(5000) / 5000
    rows = [contract(float(k), "CP"[n % 2], 1 + n % 7, expiry=FAR) for n, k in enumerate(strikes)]
    chain = chain_of(*rows)
    single = [exposure(chain.part(np.arange(5000) % 5 == part), SPOT).gex for part in range(5)]
    found = exposure(chain, SPOT)
    assert found.gex == pytest.approx(sum(single))
    assert gamma_profile(chain, np.array([SPOT])) == pytest.approx([found.gex])


@given(seed=SEEDS)
def test_the_other_side_of_every_contract_has_the_other_sign(seed: int) -> None:
    chain = Chain.from_frame(random_frame(seed), AS_OF)
    found = exposure(chain, 100.37)
    other = exposure(chain, 100.37, LevelRules(call_sign=-1.0, put_sign=1.0))
    assert (other.gex, other.gex_ex_front, other.vanna) == (
        -found.gex,
        -found.gex_ex_front,
        -found.vanna,
    )
    assert other.gex_gross == found.gex_gross
    assert (other.flip, other.flip_count) == pytest.approx(
        (found.flip, found.flip_count), nan_ok=True, abs=0
    )


@given(seed=SEEDS)
def test_if_dealers_are_long_everything_gamma_never_changes_its_sign(seed: int) -> None:
    chain = Chain.from_frame(random_frame(seed), AS_OF)
    found = exposure(chain, 100.37, LevelRules(put_sign=1.0))
    assert found.gex == pytest.approx(found.gex_gross)
    assert found.flip_count == 0


# -- cost --------------------------------------------------------------------------------------


def whole_chain() -> Chain:
    """14,000 contracts: 35 expirations, 200 strikes, both rights."""
    strikes = 60 + 0.4 * np.arange(200)
    expiries = np.datetime64("2026-02-13") + 7 * np.arange(35)
    frame = pd.MultiIndex.from_product(
        [expiries.astype(str), strikes, ("P", "C")], names=["expiry", "strike", "right"]
    ).to_frame(index=False)
    interest = 1.0 + np.arange(len(frame)) % 13
    blank = dict.fromkeys(("volume", "bid", "ask"), np.nan)
    frame = frame.assign(open_interest=interest, implied_volatility=0.2, **blank)
    return Chain.from_frame(frame, AS_OF)


def test_a_whole_chain_is_priced_on_the_grid_within_150_milliseconds_of_cpu() -> None:
    chain, taken = whole_chain(), []
    assert len(chain) == 14_000
    for _ in range(5):
        begun = time.process_time()
        exposure(chain, SPOT)
        taken.append(time.process_time() - begun)
    assert min(taken) < 0.150


def test_memory_does_not_grow_with_the_grid() -> None:
    """All cells of chain and grid at once would be 9 MB for 81 points and 110 MB for 1001."""
    chain = whole_chain()
    tracemalloc.start()
    exposure(chain, SPOT, LevelRules(flip_points=1001))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
