"""Walls, hedge pressure and monthly hedge pressure on chains small enough for pencil and paper."""

from __future__ import annotations

import datetime as dt
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedge_pipeline.levels.chain import Chain
from hedge_pipeline.levels.rules import LevelRules
from hedge_pipeline.levels.walls import (
    Hedges,
    front_hedges,
    monthlies,
    monthly_hedges,
    nearest,
    pressure,
    walls,
)
from hedge_pipeline_tests.levels.chains import (
    AS_OF,
    MONTHLIES,
    TODAY,
    TOMORROW,
    chain_of,
    contract,
    random_frame,
    walls_at,
)

SEEDS = st.integers(0, 2**32 - 1)
# pressure equals open interest, so that the numbers in a test are the pressures
INTEREST_ONLY = LevelRules(open_interest_weight=1.0, volume_weight=0.0)


def front(spot: float = 100.0, **interest: float) -> Hedges:
    """Hedge pressure of one expiration with these open interests."""
    return front_hedges(chain_of(*walls_at(TOMORROW, **interest)), spot, INTEREST_ONLY)


def days(*labels: str) -> np.ndarray[tuple[int], np.dtype[np.datetime64]]:
    """Expiries as an array."""
    return np.array(labels, dtype="datetime64[D]")


# -- pressure and walls ------------------------------------------------------------------------


def test_pressure_is_six_tenths_interest_and_four_tenths_volume() -> None:
    chain = chain_of(contract(100, "C", 100, 50), contract(101, "C", 10, 0))
    assert pressure(chain).tolist() == [80, 6]


def test_an_unknown_part_of_the_pressure_adds_nothing() -> None:
    chain = chain_of(
        contract(100, "C", np.nan, 50), contract(101, "C", 10, np.nan), contract(102, "C", np.nan)
    )
    assert pressure(chain).tolist() == [20, 6, 0]


def test_a_wall_needs_more_than_one_and_a_half_times_the_other_side() -> None:
    chain = chain_of(
        *walls_at(TOMORROW, P98=30, C98=20, P99=31, C99=20, P101=20, C101=31, P102=20, C102=30)
    )
    found = walls(chain, 100.0, chain.strike > 0, INTEREST_ONLY)
    assert found.strike.tolist() == [98, 99, 101, 102]
    assert found.direction.tolist() == [0, 1, -1, 0]
    assert found.confidence == pytest.approx([50 / 51, 1, 1, 50 / 51])
    assert found.put.tolist() == [30, 31, 20, 20]
    assert found.call.tolist() == [20, 20, 31, 30]


def test_walls_are_looked_for_near_the_spot_only() -> None:
    chain = chain_of(*walls_at(TOMORROW, P89=900, P95=10, C105=10, C111=900))
    found = walls(chain, 100.0, chain.strike > 0, INTEREST_ONLY)
    assert found.strike.tolist() == [95, 105]
    assert found.confidence.tolist() == [1, 1]


def test_without_any_pressure_there_is_no_wall() -> None:
    assert np.isnan(list(vars(front(P95=0, C105=0)).values())).all()
    assert np.isnan(list(vars(front()).values())).all()


# -- hedge pressure ----------------------------------------------------------------------------


def test_support_and_resistance_are_the_most_confident_walls_of_their_side() -> None:
    found = front(P95=40, P98=60, C102=50, C105=100)
    assert (found.support, found.resistance) == (98, 105)
    # B = 40 x 0.4 + 60 x 0.6, R = 50 x 0.5 + 100 x 1
    assert found.score == pytest.approx((52 - 125) / (52 + 125))


def test_a_wall_at_the_limit_of_confidence_is_no_level_but_counts_in_the_balance() -> None:
    found = front(P98=30, C105=100)
    assert math.isnan(found.support)
    assert found.resistance == 105
    assert found.score == pytest.approx((9 - 100) / (9 + 100))
    assert front(P98=30.1, C105=100).support == 98


def test_a_broken_put_wall_is_no_support() -> None:
    found = front(spot=97.5, P98=60, C105=100)
    assert math.isnan(found.support)
    assert found.score == -1


def test_a_broken_call_wall_is_no_resistance() -> None:
    found = front(spot=105.5, P98=60, C105=100)
    assert math.isnan(found.resistance)
    assert found.score == 1


def test_a_wall_at_the_spot_belongs_to_its_own_side() -> None:
    below, above = front(P100=10, P95=5), front(C100=10, C105=5)
    assert (below.support, below.score) == (100, 1)
    assert (above.resistance, above.score) == (100, -1)


def test_of_equal_walls_the_nearest_to_the_spot_counts() -> None:
    found = front(P92=50, P95=50, P97=50, C104=50, C101=50, C109=50)
    assert (found.support, found.resistance) == (97, 101)


@pytest.mark.parametrize(
    ("prices", "expected"),
    [((97, 103), 97), ((97, 102), 102), ((100,), 100), ((96, 98, 102, 104), 98)],
)
def test_of_two_prices_equally_far_the_lower_is_nearest(
    prices: tuple[float, ...], expected: float
) -> None:
    assert nearest(np.array(prices, dtype=np.float64), 100.0) == expected


def test_neutral_strikes_are_neither_levels_nor_weights() -> None:
    found = front(P98=100, C98=100, P95=80, C105=80, P105=60, C106=40)
    assert (found.support, math.isnan(found.resistance)) == (95, True)
    # confidences are relative to the neutral strike of 200
    assert found.score == pytest.approx((80 * 0.4 - 40 * 0.2) / (80 * 0.4 + 40 * 0.2))


def test_only_the_front_expiration_counts() -> None:
    later = walls_at("2026-03-20", P90=900, C110=900)
    chain = chain_of(*walls_at(TOMORROW, P98=10, C103=10), *later)
    found = front_hedges(chain, 100.0, INTEREST_ONLY)
    assert (found.support, found.resistance) == (98, 103)


def test_the_next_series_is_the_front_once_the_first_has_ended() -> None:
    rows = [*walls_at(TODAY, P99=10, C101=10), *walls_at(TOMORROW, P98=10, C103=10)]
    before, after = AS_OF, AS_OF.replace(hour=21)
    assert front_hedges(chain_of(*rows, as_of=before), 100.0).support == 99
    assert front_hedges(chain_of(*rows, as_of=after), 100.0).support == 98


def test_a_front_expiration_without_near_strikes_gives_no_levels() -> None:
    rows = [*walls_at(TOMORROW, P50=10), *walls_at("2026-03-20", P98=10)]
    assert math.isnan(front_hedges(chain_of(*rows), 100.0).support)


# -- standard monthly expirations --------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        # third Fridays only, at most four
        (
            ("2026-02-13", *MONTHLIES, "2026-05-22", "2026-06-18", "2026-07-17"),
            MONTHLIES,
        ),
        # the month begins on a Friday / on a Saturday
        (("2026-05-15", "2026-08-21"), ("2026-05-15", "2026-08-21")),
        # Juneteenth 2026 and Good Friday 2025 are third Fridays
        (("2026-06-18", "2026-06-26"), ("2026-06-18",)),
        (("2025-04-17", "2025-04-25"), ("2025-04-17",)),
        # the Friday is listed, so the Thursday is an ordinary series
        (("2026-02-19", "2026-02-20"), ("2026-02-20",)),
        # the chain was cut at the Thursday: nothing says that the Friday does not exist
        (("2026-08-14", "2026-08-20"), ()),
        (("2026-02-11", "2026-02-13"), ()),
        ((), ()),
    ],
)
def test_monthlies_are_third_fridays_or_the_day_before_a_holiday(
    listed: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert monthlies(days(*listed), 4).tolist() == days(*expected).tolist()


# -- monthly hedge pressure --------------------------------------------------------------------


def monthly(*rows: list[dict[str, object]], spot: float = 100.0) -> Hedges:
    """Monthly hedge pressure of these contracts."""
    return monthly_hedges(chain_of(*(row for part in rows for row in part)), spot, INTEREST_ONLY)


def test_a_single_monthly_is_computed_by_hand() -> None:
    found = monthly(walls_at(MONTHLIES[0], P90=40, P95=100, C102=50, C105=90))
    # the only expiration confirms every wall: confidence is pressure over 100
    assert (found.support, found.resistance) == (95, 105)
    put = 40 * 0.4 * math.exp(-1) + 100 * 1.0 * math.exp(-0.5)
    call = 50 * 0.5 * math.exp(-0.2) + 90 * 0.9 * math.exp(-0.5)
    assert found.score == pytest.approx((put - call) / (put + call))


def test_support_is_the_nearest_confident_wall_not_the_largest() -> None:
    found = monthly(walls_at(MONTHLIES[0], P92=100, P97=51, P99=50, C101=49, C103=60, C104=90))
    assert (found.support, found.resistance) == (97, 103)


def test_nearer_months_weigh_more_and_unconfirmed_walls_count_less() -> None:
    found = monthly(
        walls_at(MONTHLIES[0], P95=100, C105=60), walls_at(MONTHLIES[1], P95=80, P105=40)
    )
    # expirations in 10 and 38 days
    weight = 1 / (1 + math.exp(-28 / 30))
    put, call = 100 * weight + 80 * (1 - weight), 60 * weight
    against = 40 * (1 - weight)
    assert call > 1.5 * against
    resistance = (call + against) / put * (0.7 + 0.3 / 2)
    assert resistance < 0.5
    assert found.support == 95
    assert math.isnan(found.resistance)
    bulls = put * math.exp(-0.5)
    bears = (call + against) * resistance * math.exp(-0.5)
    assert found.score == pytest.approx((bulls - bears) / (bulls + bears))


def test_walls_on_the_far_side_of_the_spot_count_in_the_monthly_score() -> None:
    assert monthly(walls_at(MONTHLIES[0], P105=10), spot=100.0).score == 1
    assert monthly(walls_at(MONTHLIES[0], C95=10), spot=100.0).score == -1


def test_broken_monthly_walls_are_no_levels() -> None:
    found = monthly(walls_at(MONTHLIES[0], P105=10, C95=10))
    assert math.isnan(found.support)
    assert math.isnan(found.resistance)


def test_a_monthly_wall_at_the_spot_belongs_to_its_own_side() -> None:
    below, above = monthly(walls_at(MONTHLIES[0], P100=9)), monthly(walls_at(MONTHLIES[0], C100=9))
    assert (below.support, math.isnan(below.resistance)) == (100, True)
    assert (above.resistance, math.isnan(above.support)) == (100, True)


def test_weeklies_and_the_fifth_month_do_not_count() -> None:
    base = walls_at(MONTHLIES[0], P95=10, C105=10)
    more = [walls_at(day, P95=1, C105=1) for day in MONTHLIES[1:]]
    noise = [walls_at(day, P99=900, C101=900) for day in (TOMORROW, "2026-02-27", "2026-06-18")]
    assert monthly(base, *more, *noise) == monthly(base, *more)


def test_fewer_monthlies_are_used_where_fewer_are_listed() -> None:
    assert monthly(walls_at(MONTHLIES[2], P95=10)).support == 95


@pytest.mark.parametrize("expiry", [TOMORROW, "2026-02-27"])
def test_without_a_monthly_there_is_no_monthly_level(expiry: str) -> None:
    assert np.isnan(list(vars(monthly(walls_at(expiry, P95=10, C105=10))).values())).all()


def test_a_monthly_that_ends_today_counts_until_it_has_ended() -> None:
    rows = [*walls_at("2026-02-20", P95=10), *walls_at("2026-03-20", P97=1)]
    noon = dt.datetime(2026, 2, 20, 17, 0, tzinfo=dt.UTC)
    assert monthly_hedges(chain_of(*rows, as_of=noon), 100.0).support == 95
    evening = chain_of(*rows, as_of=noon.replace(hour=21))
    assert monthly_hedges(evening, 100.0).support == 97


# -- what always holds -------------------------------------------------------------------------


@given(seed=SEEDS, spot=st.floats(75, 125))
def test_levels_lie_on_their_side_and_scores_are_bounded(seed: int, spot: float) -> None:
    chain = Chain.from_frame(random_frame(seed), AS_OF)
    for found in (front_hedges(chain, spot), monthly_hedges(chain, spot)):
        assert math.isnan(found.support) or 0.9 * spot - 1e-6 <= found.support <= spot
        assert math.isnan(found.resistance) or spot <= found.resistance <= 1.1 * spot + 1e-6
        assert -1 <= found.score <= 1


@given(seed=SEEDS)
def test_exchanging_the_rights_mirrors_the_scores(seed: int) -> None:
    frame = random_frame(seed)
    swapped = frame.assign(right=frame["right"].map({"P": "C", "C": "P"}))
    chain, other = Chain.from_frame(frame, AS_OF), Chain.from_frame(swapped, AS_OF)
    score = monthly_hedges(chain, 100.37).score
    assert monthly_hedges(other, 100.37).score == pytest.approx(-score)


# -- the definition, contract by contract ------------------------------------------------------


def slow_pressures(chain: Chain, spot: float, day: object) -> dict[float, list[float]]:
    """Put and call pressure by near strike of one expiration."""
    found: dict[float, list[float]] = {}
    for place in range(len(chain)):
        strike = float(chain.strike[place])
        if chain.expiry[place] == day and abs(strike - spot) <= 0.1 * spot + 1e-6:
            parts = (0.6 * chain.open_interest[place], 0.4 * chain.volume[place])
            known = sum(float(part) for part in parts if not math.isnan(part))
            found.setdefault(strike, [0.0, 0.0])[int(chain.is_call[place])] += known
    return found


def slow_direction(put: float, call: float) -> int:
    """+1 put wall, -1 call wall, 0 neutral."""
    return 1 if put > 1.5 * call else -1 if call > 1.5 * put else 0


def slow_front(chain: Chain, spot: float) -> list[float]:
    """Support, resistance and balance of the first expiration."""
    by_strike = slow_pressures(chain, spot, chain.expirations[0])
    largest = max(sum(sides) for sides in by_strike.values())
    best = {1: (0.3, math.nan), -1: (0.3, math.nan)}
    balance = {1: 0.0, -1: 0.0}
    for strike, sides in sorted(by_strike.items(), key=lambda item: abs(item[0] - spot)):
        side, confidence = slow_direction(*sides), sum(sides) / largest
        if side and (spot - strike) * side >= 0:
            balance[side] += sum(sides) * confidence
            if confidence > best[side][0]:
                best[side] = (confidence, strike)
    return [best[1][1], best[-1][1], (balance[1] - balance[-1]) / (balance[1] + balance[-1])]


def slow_monthly(chain: Chain, spot: float) -> list[float]:
    """Support, resistance and score of the next four monthlies."""
    months = [np.datetime64(day) for day in MONTHLIES]
    today = np.datetime64("2026-02-10")
    raw = [math.exp(-float((day - today) / np.timedelta64(1, "D")) / 30) for day in months]
    weights = [value / sum(raw) for value in raw]
    own = [slow_pressures(chain, spot, day) for day in months]
    strikes = sorted({strike for part in own for strike in part})
    total = {
        strike: [
            sum(w * part.get(strike, [0, 0])[side] for w, part in zip(weights, own, strict=True))
            for side in (0, 1)
        ]
        for strike in strikes
    }
    largest = max(sum(sides) for sides in total.values())
    best = {1: math.nan, -1: math.nan}
    signed = absolute = 0.0
    for strike in sorted(strikes, key=lambda strike: abs(strike - spot)):
        side = slow_direction(*total[strike])
        if not side:
            continue
        confirming = [slow_direction(*part.get(strike, [0, 0])) == side for part in own]
        share = sum(confirming) / len(confirming)
        confidence = sum(total[strike]) / largest * (0.7 + 0.3 * share)
        force = sum(total[strike]) * confidence * math.exp(-10 * abs(strike - spot) / spot)
        signed, absolute = signed + side * force, absolute + force
        if (spot - strike) * side >= 0 and confidence > 0.5 and math.isnan(best[side]):
            best[side] = strike
    return [best[1], best[-1], signed / absolute]


@given(seed=SEEDS, spot=st.floats(80, 120))
def test_the_levels_are_those_of_the_definition(seed: int, spot: float) -> None:
    chain = Chain.from_frame(random_frame(seed), AS_OF)
    for found, expected in (
        (front_hedges(chain, spot), slow_front(chain, spot)),
        (monthly_hedges(chain, spot), slow_monthly(chain, spot)),
    ):
        assert list(vars(found).values()) == pytest.approx(expected, nan_ok=True, rel=1e-9)
