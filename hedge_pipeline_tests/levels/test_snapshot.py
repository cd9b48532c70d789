"""One row of hedge levels: what is in it, when it is empty, what it borrows, what never matters."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedge_pipeline.levels.chain import Chain
from hedge_pipeline.levels.gaps import DailyBars
from hedge_pipeline.levels.rules import LevelRules
from hedge_pipeline.levels.snapshot import CHAIN_LEVELS, GAP_LEVELS
from hedge_pipeline_tests.levels.chains import (
    AS_OF,
    DELAY,
    MONTHLIES,
    TODAY,
    TOMORROW,
    chain_of,
    contract,
    frame_of,
    levels_of,
    random_daily,
    random_frame,
    snapshot_of,
    usable_rows,
)

SEEDS = st.integers(0, 2**32 - 1)
SPOT = 100.37
PRICES = (
    "spot",
    "hp_support",
    "hp_resistance",
    "mhp_support",
    "mhp_resistance",
    "hg_below",
    "hg_above",
    "gamma_flip",
    "call_oi_wall",
    "put_oi_wall",
    "max_gamma_strike",
)
DOLLARS = ("gex", "gex_ex_front", "gex_gross", "vanna_exposure")
SCORES = (
    "hp_net",
    "mhp_score",
    "put_call_oi_ratio",
    "atm_iv",
    "skew_25d",
    "term_slope",
    "gamma_flip_count",
)


def levels(
    frame: pd.DataFrame,
    spot: float = SPOT,
    daily: DailyBars | None = None,
    earlier: Chain | None = None,
    as_of: dt.datetime = AS_OF,
    rules: LevelRules | None = None,
) -> dict[str, Any]:
    """A row of levels of a snapshot that was fetched half an hour after its quotes."""
    return levels_of(
        frame,
        as_of=as_of,
        available_at=as_of + DELAY,
        spot=spot,
        daily=daily or DailyBars.none(),
        earlier=earlier,
        rules=rules,
    )


def values(row: dict[str, Any], names: tuple[str, ...]) -> list[float]:
    """Levels as floats; an unknown count is NaN."""
    return [math.nan if row[name] is None else float(row[name]) for name in names]


# an up-gap below and a down-gap above the spot, both open
GAPS = DailyBars(
    high=np.array([95.0, 99.0, 109.0, 101.0]),
    low=np.array([94.0, 97.0, 107.0, 98.0]),
    close=np.array([94.5, 98.0, 108.0, 100.0]),
)


# -- the row -----------------------------------------------------------------------------------


def test_a_row_has_exactly_these_columns() -> None:
    row = levels(random_frame(0))
    assert set(row) == {
        "as_of",
        "available_at",
        "spot",
        "hp_support",
        "hp_resistance",
        "hp_net",
        "mhp_support",
        "mhp_resistance",
        "mhp_score",
        "hg_below",
        "hg_above",
        "gex",
        "gex_ex_front",
        "gex_gross",
        "vanna_exposure",
        "gamma_flip",
        "gamma_flip_count",
        "call_oi_wall",
        "put_oi_wall",
        "max_gamma_strike",
        "put_call_oi_ratio",
        "atm_iv",
        "skew_25d",
        "term_slope",
        "contracts",
        "usable",
        "unusable_reason",
        "oi_reused",
    }
    assert set(PRICES + DOLLARS + SCORES) == {
        *GAP_LEVELS,
        *CHAIN_LEVELS,
        "spot",
        "gamma_flip_count",
    }


def test_a_usable_snapshot_has_every_level() -> None:
    row = levels(random_frame(1), daily=GAPS)
    assert np.isfinite(values(row, PRICES + DOLLARS + SCORES)).all()
    assert (row["usable"], row["unusable_reason"], row["oi_reused"]) == (True, None, False)
    assert row["as_of"] == AS_OF
    assert row["available_at"] == AS_OF + DELAY


def test_levels_are_plain_python_values() -> None:
    row = levels(random_frame(1), spot=np.float64(SPOT))
    assert {type(row[name]) for name in (*GAP_LEVELS, *CHAIN_LEVELS, "spot")} == {float}
    assert type(row["gamma_flip_count"]) is type(row["contracts"]) is int
    assert type(row["usable"]) is type(row["oi_reused"]) is bool


def test_an_unusable_snapshot_has_half_gaps_and_a_reason_only() -> None:
    row = levels(random_frame(1).assign(open_interest=0.0), daily=GAPS)
    assert np.isnan(values(row, CHAIN_LEVELS)).all()
    assert values(row, GAP_LEVELS) == [96.0, 104.0]
    assert row["gamma_flip_count"] is None
    assert row["usable"] is False
    assert row["unusable_reason"].startswith("open interest is zero or missing in 100%")
    assert row["contracts"] > 0


@pytest.mark.parametrize("spot", [math.nan, math.inf, 0.0, -100.0])
def test_without_a_spot_there_is_no_level_at_all(spot: float) -> None:
    row = levels(random_frame(1), spot=spot, daily=GAPS)
    assert np.isnan(values(row, (*CHAIN_LEVELS, *GAP_LEVELS, "spot"))).all()
    assert row["unusable_reason"] == "no spot price"


def test_without_volatilities_walls_remain_and_exposures_are_unknown() -> None:
    row = levels(random_frame(1).assign(implied_volatility=1e-5))
    unknown = (*DOLLARS, "gamma_flip", "max_gamma_strike", "atm_iv", "skew_25d", "term_slope")
    assert row["usable"] is True
    assert np.isnan(values(row, unknown)).all()
    assert row["gamma_flip_count"] is None
    known = ("hp_support", "mhp_support", "put_oi_wall", "call_oi_wall", "put_call_oi_ratio")
    assert np.isfinite(values(row, known)).all()


@pytest.mark.parametrize(
    "available_at", [AS_OF - dt.timedelta(seconds=1), (AS_OF + DELAY).replace(tzinfo=None)]
)
def test_a_snapshot_cannot_be_available_before_its_own_time(available_at: dt.datetime) -> None:
    with pytest.raises(ValueError, match="cannot be available at"):
        snapshot_of(random_frame(0), as_of=AS_OF, available_at=available_at, spot=SPOT)


def test_a_source_without_delay_is_available_at_once() -> None:
    assert snapshot_of(random_frame(0), as_of=AS_OF, available_at=AS_OF, spot=SPOT).usable


# -- borrowing ---------------------------------------------------------------------------------

EARLIER = AS_OF - dt.timedelta(minutes=30)


def earlier_chain(frame: pd.DataFrame) -> Chain:
    """A usable snapshot half an hour before."""
    found = snapshot_of(frame, as_of=EARLIER, available_at=EARLIER + DELAY, spot=SPOT)
    assert found.usable
    return found.chain


def test_blank_open_interest_is_replaced_by_that_of_the_session_and_flagged() -> None:
    frame = random_frame(3)
    blank = frame.assign(open_interest=frame["open_interest"].where(frame.index % 3 == 0, 0.0))
    assert levels(blank)["usable"] is False
    row = levels(blank, earlier=earlier_chain(frame))
    whole = levels(frame)
    assert (row["usable"], row["oi_reused"]) == (True, True)
    names = PRICES + DOLLARS + SCORES
    assert values(row, names) == pytest.approx(values(whole, names), nan_ok=True, abs=0, rel=0)


def test_an_earlier_snapshot_that_does_not_know_the_contracts_does_not_help() -> None:
    blank = frame_of(usable_rows(SPOT, TOMORROW, interest=0.0))
    lender = chain_of(*usable_rows(SPOT, "2026-03-20"), as_of=EARLIER)
    row = levels(blank, earlier=lender)
    assert row["unusable_reason"].startswith("open interest is zero or missing in 100% of 42")
    assert (row["usable"], row["oi_reused"]) == (False, False)


def test_a_polled_snapshot_is_completed_by_the_sweep() -> None:
    frame = random_frame(4)
    polled = frame[frame["expiry"].isin([TODAY, MONTHLIES[0]])]
    row, whole = levels(polled, earlier=earlier_chain(frame)), levels(frame)
    names = PRICES + DOLLARS + SCORES
    assert values(row, names) == pytest.approx(values(whole, names), nan_ok=True, abs=0, rel=0)
    assert row["contracts"] == whole["contracts"]
    assert row["oi_reused"] is False


def test_a_blank_poll_is_not_hidden_by_a_complete_sweep() -> None:
    """The front's open interest is blank: the sweep's other series must not outvote that."""
    lender = chain_of(*(row for day in MONTHLIES for row in usable_rows(SPOT, day)), as_of=EARLIER)
    row = levels(frame_of(usable_rows(SPOT, TOMORROW, interest=0.0)), earlier=lender)
    assert row["unusable_reason"].startswith("open interest is zero or missing in 100% of 42")


def test_a_poll_that_came_back_empty_is_not_replaced_by_the_sweep() -> None:
    row = levels(frame_of([]), earlier=earlier_chain(random_frame(4)))
    assert row["unusable_reason"] == "no contracts that are still alive"
    assert row["contracts"] == 0


def test_what_one_snapshot_lends_to_the_next_goes_on_to_the_one_after() -> None:
    frame = random_frame(5)
    polled = frame[frame["expiry"] == TOMORROW]
    chain = earlier_chain(frame)
    for minutes in (0, 5):
        moment = AS_OF + dt.timedelta(minutes=minutes)
        found = snapshot_of(
            polled, as_of=moment, available_at=moment + DELAY, spot=SPOT, earlier=chain
        )
        assert found.usable
        chain = found.chain
    assert len(chain) == len(Chain.from_frame(frame, AS_OF))


def test_the_sweep_of_the_morning_does_not_bring_back_a_series_that_ended() -> None:
    frame = random_frame(6)
    evening = AS_OF.replace(hour=21)
    polled = frame[frame["expiry"] == TOMORROW]
    found = snapshot_of(
        polled,
        as_of=evening,
        available_at=evening + DELAY,
        spot=SPOT,
        earlier=earlier_chain(frame),
    )
    assert found.chain.expirations[0] == np.datetime64(TOMORROW)


def test_a_snapshot_of_another_session_is_refused_as_a_lender() -> None:
    lender = chain_of(contract(100, "C", 1), as_of=AS_OF - dt.timedelta(days=1))
    with pytest.raises(ValueError, match="is no earlier snapshot of the session"):
        levels(random_frame(0), earlier=lender)


# -- what never matters ------------------------------------------------------------------------


@given(seed=SEEDS)
def test_the_order_of_the_rows_does_not_matter(seed: int) -> None:
    frame = random_frame(seed)
    shuffled = frame.sample(frac=1, random_state=seed % 2**31)
    names = (*CHAIN_LEVELS, "gamma_flip_count", "contracts")
    one, other = levels(frame), levels(shuffled)
    assert np.array_equal(values(one, names), values(other, names), equal_nan=True)


@given(seed=SEEDS, factor=st.floats(0.01, 100))
def test_a_change_of_currency_moves_levels_and_leaves_scores_alone(
    seed: int, factor: float
) -> None:
    frame, daily = random_frame(seed), random_daily(seed)
    scaled = frame.assign(strike=frame["strike"] * factor)
    bars = DailyBars(daily.high * factor, daily.low * factor, daily.close * factor)
    row, other = levels(frame, daily=daily), levels(scaled, SPOT * factor, bars)
    names = PRICES + DOLLARS
    moved = [value * factor for value in values(row, names)]
    assert values(other, names) == pytest.approx(moved, nan_ok=True, rel=1e-9)
    assert values(other, SCORES) == pytest.approx(
        values(row, SCORES), nan_ok=True, rel=1e-9, abs=1e-12
    )
    assert other["usable"] is row["usable"] is True


@given(seed=SEEDS)
def test_far_contracts_without_open_interest_do_not_matter(seed: int) -> None:
    frame = random_frame(seed)
    far = [
        contract(strike, right, 0.0, 0.0, expiry=day, volatility=0.6)
        for strike in (5.0, 20.0, 250.0, 1000.0)
        for right in "PC"
        for day in (TODAY, TOMORROW, *MONTHLIES)
    ]
    more = pd.concat([frame, frame_of(far)])
    names = (*CHAIN_LEVELS, "gamma_flip_count")
    one, other = levels(frame), levels(more)
    assert np.array_equal(values(one, names), values(other, names), equal_nan=True)
    assert other["contracts"] == one["contracts"] + len(far)


@given(seed=SEEDS, power=st.integers(-3, 6))
def test_the_number_of_contracts_scales_dollars_and_nothing_else(seed: int, power: int) -> None:
    frame = random_frame(seed)
    factor = 2.0**power
    more = frame.assign(
        open_interest=frame["open_interest"] * factor, volume=frame["volume"] * factor
    )
    row, other = levels(frame), levels(more)
    assert values(other, DOLLARS) == pytest.approx(
        [value * factor for value in values(row, DOLLARS)], rel=1e-12
    )
    names = PRICES + SCORES
    assert values(other, names) == pytest.approx(values(row, names), nan_ok=True, rel=1e-12)


@given(seed=SEEDS)
def test_series_that_have_ended_do_not_matter(seed: int) -> None:
    frame = random_frame(seed)
    alive = frame[frame["expiry"] >= TODAY]
    names = (*CHAIN_LEVELS, "contracts")
    assert len(alive) < len(frame)
    assert np.array_equal(
        values(levels(frame), names), values(levels(alive), names), equal_nan=True
    )


@given(seed=SEEDS)
def test_half_gaps_lie_on_their_side_of_the_spot(seed: int) -> None:
    row = levels(random_frame(0), daily=random_daily(seed))
    assert math.isnan(row["hg_below"]) or row["hg_below"] <= SPOT
    assert math.isnan(row["hg_above"]) or row["hg_above"] > SPOT
