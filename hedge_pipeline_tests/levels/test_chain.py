"""Reading a snapshot, refusing one that cannot be used, and borrowing from an earlier one."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedge_pipeline.levels.chain import (
    CHAIN_COLUMNS,
    Chain,
    Dropped,
    blank_reason,
    complete,
    parity_price,
    unusable_reason,
    with_open_interest_of,
)
from hedge_pipeline.levels.rules import LevelRules
from hedge_pipeline_tests.levels.chains import (
    AS_OF,
    TODAY,
    TOMORROW,
    Row,
    chain_of,
    contract,
    frame_of,
    quoted_rows,
    random_frame,
    usable_rows,
)

SEEDS = st.integers(0, 2**32 - 1)
MINUTE = dt.timedelta(minutes=1)
# 16:00 in New York
CLOSE = dt.datetime(2026, 2, 10, 21, 0, tzinfo=dt.UTC)


def same(left: Chain, right: Chain) -> bool:
    """Whether two chains hold the same contracts and quantities, bit for bit."""
    names = ("expiry", "strike", "is_call", "open_interest", "volume", "implied_volatility")
    return all(
        np.array_equal(getattr(left, name), getattr(right, name), equal_nan=name != "is_call")
        for name in (*names, "bid", "ask")
    )


# -- reading -----------------------------------------------------------------------------------


def test_contracts_are_ordered_by_expiry_strike_and_put_before_call() -> None:
    chain = chain_of(
        contract(101, "C", 1),
        contract(100, "C", 2),
        contract(100, "P", 3),
        contract(200, "P", 4, expiry=TODAY),
    )
    assert chain.open_interest.tolist() == [4, 3, 2, 1]
    assert chain.is_call.tolist() == [False, False, True, True]
    assert chain.expirations.tolist() == [dt.date(2026, 2, 10), dt.date(2026, 2, 11)]
    assert len(chain) == 4


@pytest.mark.parametrize(
    ("as_of", "alive"),
    [(CLOSE - MINUTE, 2), (CLOSE - dt.timedelta(seconds=1), 2), (CLOSE, 1), (CLOSE + MINUTE, 1)],
)
def test_a_series_ends_at_four_in_new_york(as_of: dt.datetime, alive: int) -> None:
    chain = chain_of(contract(100, "C", expiry=TODAY), contract(100, "C"), as_of=as_of)
    assert len(chain) == alive
    assert chain.dropped == Dropped(expired=2 - alive)


def test_the_end_of_a_series_follows_daylight_saving() -> None:
    summer = dt.datetime(2026, 7, 10, 20, 0, tzinfo=dt.UTC)
    assert len(chain_of(contract(100, "C", expiry="2026-07-10"), as_of=summer)) == 0
    assert len(chain_of(contract(100, "C", expiry="2026-07-10"), as_of=summer - MINUTE)) == 1


def test_time_to_expiry_is_counted_in_minutes() -> None:
    chain = chain_of(contract(100, "C", expiry=TODAY), contract(100, "C"))
    assert chain.years * 365 * 24 * 60 == pytest.approx([6 * 60, 30 * 60])


def test_time_to_expiry_is_never_less_than_five_minutes() -> None:
    chain = chain_of(contract(100, "C", expiry=TODAY), as_of=CLOSE - MINUTE)
    assert chain.years * 365 * 24 * 60 == pytest.approx([5])


@pytest.mark.parametrize(
    "broken",
    [
        contract(0, "C"),
        contract(-5, "C"),
        contract(np.nan, "C"),
        contract(np.inf, "C"),
        contract(100, "X"),
        contract(100, "call"),
        contract(100, "C", expiry="2026-02-30"),
        contract(100, "C", expiry=""),
        contract(100, "C") | {"expiry": None},
        contract(100, "C") | {"right": None},
    ],
)
def test_a_row_that_is_no_contract_is_dropped_and_counted(broken: Row) -> None:
    chain = chain_of(broken, contract(100, "P", 7))
    assert chain.open_interest.tolist() == [7]
    assert chain.dropped == Dropped(malformed=1)


def test_of_several_rows_of_a_contract_the_one_with_most_open_interest_stays() -> None:
    rows = [
        contract(100, "C", np.nan, 99),
        contract(100, "C", 5, 1),
        contract(100, "C", 5, 3, volatility=0.4),
        contract(100, "C", 2, 50),
        contract(100, "P", 1),
    ]
    chain = chain_of(*rows)
    assert chain.is_call.tolist() == [False, True]
    assert chain.open_interest.tolist() == [1, 5]
    assert chain.volume[1] == 3
    assert chain.implied_volatility[1] == 0.4
    assert chain.dropped == Dropped(duplicate=3)
    assert same(chain, chain_of(*reversed(rows)))


@pytest.mark.parametrize("name", ["open_interest", "volume", "implied_volatility", "bid", "ask"])
@pytest.mark.parametrize("value", [-1.0, np.inf, np.nan, None, pd.NA])
def test_an_impossible_quantity_is_unknown(name: str, value: object) -> None:
    chain = chain_of(contract(100, "C") | {name: value})
    assert np.isnan(getattr(chain, name)).tolist() == [True]


@pytest.mark.parametrize(
    "expiry",
    [
        pd.Series([TODAY, TOMORROW], dtype="str"),
        pd.Series([TODAY, TOMORROW], dtype=object),
        pd.Series([dt.date(2026, 2, 10), dt.date(2026, 2, 11)], dtype=object),
        pd.to_datetime(pd.Series([TODAY, TOMORROW])),
        pd.Series([TODAY, TOMORROW], dtype="category"),
    ],
    ids=["str", "object", "dates", "timestamps", "categories"],
)
def test_the_expiry_may_come_as_text_or_as_dates(expiry: pd.Series[str]) -> None:
    frame = frame_of([contract(100, "C"), contract(100, "C")]).assign(expiry=expiry)
    chain = Chain.from_frame(frame, AS_OF)
    assert chain.expirations.tolist() == [dt.date(2026, 2, 10), dt.date(2026, 2, 11)]


def test_integers_with_nulls_and_further_columns_are_read() -> None:
    frame = frame_of([contract(100, "C", 4), contract(100, "P", 4)]).assign(
        open_interest=pd.array([4, None], dtype="Int64"), last=1.0, symbol="QQQ"
    )
    chain = Chain.from_frame(frame, AS_OF)
    assert np.isnan(chain.open_interest[0])
    assert chain.open_interest[1] == 4


def test_an_empty_frame_is_an_empty_chain() -> None:
    chain = chain_of()
    assert len(chain) == 0
    assert len(chain.years) == 0
    assert chain.dropped == Dropped()


def test_a_missing_column_is_an_error() -> None:
    with pytest.raises(KeyError, match="volume"):
        Chain.from_frame(frame_of([contract(100, "C")]).drop(columns="volume"), AS_OF)


def test_a_time_without_a_zone_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs a time zone"):
        chain_of(as_of=AS_OF.replace(tzinfo=None))


@given(seed=SEEDS)
def test_every_row_is_a_contract_or_counted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frame = random_frame(seed)
    frame = pd.concat([frame, frame.sample(20, random_state=seed % 2**31)])
    frame.loc[rng.random(len(frame)) < 0.05, "strike"] = np.nan
    chain = Chain.from_frame(frame, AS_OF)
    counted = chain.dropped.expired + chain.dropped.malformed + chain.dropped.duplicate
    assert len(chain) + counted == len(frame)
    assert same(chain, Chain.from_frame(frame.sample(frac=1, random_state=1), AS_OF))


# -- the gate ----------------------------------------------------------------------------------


def reason(
    rows: list[Row], spot: float = 100.0, taken: str = "10:30", rules: LevelRules | None = None
) -> str | None:
    """What the gate says of a snapshot taken at this time of day in New York."""
    clock = dt.time.fromisoformat(taken)
    taken_at = dt.datetime.combine(dt.date(2026, 2, 10), clock) + dt.timedelta(hours=5)
    return unusable_reason(
        chain_of(*rows), spot, taken_at.replace(tzinfo=dt.UTC), rules or LevelRules()
    )


def test_a_snapshot_with_interest_around_the_spot_is_usable() -> None:
    assert reason(usable_rows()) is None


@pytest.mark.parametrize(
    ("taken", "usable"),
    [
        ("08:44:59", False),
        ("08:45", True),
        ("12:00", True),
        ("20:00", True),
        ("20:00:01", False),
        ("04:24", False),
    ],
)
def test_a_snapshot_is_taken_between_a_quarter_to_nine_and_eight(taken: str, usable: bool) -> None:
    found = reason(usable_rows(), taken=taken)
    if usable:
        assert found is None
    else:
        assert found == f"taken at {taken[:5]} New York, outside 08:45 to 20:00"


def test_quotes_of_another_day_than_the_open_interest_are_refused() -> None:
    taken_at = AS_OF + dt.timedelta(days=1)
    found = unusable_reason(chain_of(*usable_rows(expiry="2026-03-20")), 100.0, taken_at)
    assert found == "quotes of 2026-02-10, but taken on 2026-02-11"


@pytest.mark.parametrize("spot", [np.nan, 0.0, -1.0, np.inf])
def test_without_a_spot_nothing_is_usable(spot: float) -> None:
    assert reason(usable_rows(), spot) == "no spot price"


@pytest.mark.parametrize("rows", [[], [contract(100, "C", 9, expiry="2026-02-09")]])
def test_without_living_contracts_nothing_is_usable(rows: list[Row]) -> None:
    assert reason(rows) == "no contracts that are still alive"


def test_a_price_after_a_split_lies_outside_the_strikes() -> None:
    assert reason(usable_rows(600), 150) == "spot 150 lies outside the strikes 540 to 660"


@pytest.mark.parametrize("spot", [90.0, 110.0])
def test_a_price_at_the_last_strike_is_not_outside(spot: float) -> None:
    assert reason(usable_rows(100), spot) is None


def test_a_price_after_a_split_among_wide_strikes_is_far_from_the_quotes() -> None:
    wide = [
        contract(strike, right, 10, expiry="2026-06-18")
        for strike in range(200, 1000, 5)
        for right in "PC"
    ]
    assert reason([*usable_rows(600), *wide], 300) is None
    found = reason([*quoted_rows(600), *wide], 300)
    assert found == "spot 300 is far from 600, which put-call parity implies"


@pytest.mark.parametrize(("spot", "usable"), [(91, True), (109.9, True), (112, False), (90, False)])
def test_the_spot_must_be_within_a_tenth_of_what_the_quotes_imply(
    spot: float, usable: bool
) -> None:
    wide = [contract(strike, "C", 10, expiry="2026-06-18") for strike in range(50, 200)]
    assert (reason([*quoted_rows(100), *wide], spot) is None) == usable


@pytest.mark.parametrize(("count", "usable"), [(19, False), (20, True)])
def test_twenty_contracts_near_the_spot_are_needed(count: int, usable: bool) -> None:
    far = [contract(50, "P", 10), contract(150, "C", 10)]
    rows = [contract(95 + 0.5 * place, "C", 10) for place in range(count)]
    expected = None if usable else "19 contracts within 10% of the spot, 20 are needed"
    assert reason(rows + far) == expected


def test_a_strike_exactly_a_tenth_away_is_near() -> None:
    chain = chain_of(*(contract(x, "C") for x in (89.99, 90, 110, 110.01)))
    assert chain.near(100.0).tolist() == [False, True, True, False]


@pytest.mark.parametrize("blank", [0.0, np.nan])
@pytest.mark.parametrize(("count", "usable"), [(21, True), (22, False)])
def test_half_of_the_open_interest_may_be_blank(blank: float, count: int, usable: bool) -> None:
    rows = usable_rows()
    for row in rows[:count]:
        row["open_interest"] = blank
    blanks = "open interest is zero or missing in 52% of 42 contracts within 10% of the spot"
    assert reason(rows) == (None if usable else blanks)


def test_blank_open_interest_far_from_the_spot_does_not_matter() -> None:
    far = [contract(strike, "P", 0) for strike in range(20, 80)]
    assert reason(usable_rows() + far) is None


def test_a_few_blank_contracts_alone_say_nothing_about_the_open_interest() -> None:
    assert blank_reason(chain_of(*usable_rows(interest=0.0)[:19]), 100.0) is None
    assert blank_reason(chain_of(*usable_rows(interest=0.0)[:20]), 100.0) is not None


def test_every_threshold_of_the_gate_is_a_rule() -> None:
    rules = LevelRules(
        taken_from=dt.time(4), least_contracts=50, most_blank_open_interest=1.0, near=0.5
    )
    rows = usable_rows(interest=0.0)
    assert reason(rows, taken="04:24", rules=rules) == (
        "42 contracts within 50% of the spot, 50 are needed"
    )
    assert reason(rows, taken="04:24", rules=replace(rules, least_contracts=42)) is None


@pytest.mark.parametrize(
    "broken",
    [
        {"flip_points": 1},
        {"near": 0.0},
        {"near": 1.0},
        {"flip_range": 1.5},
        {"wall_ratio": 0.0},
        {"monthly_decay_days": -30.0},
        {"multiplier": float("nan")},
        {"volatility_days": 0.0},
        {"term_days": 30.0},
        {"least_volatility": 5.0},
    ],
)
def test_a_constant_without_a_meaning_is_refused_by_name(broken: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(broken))):
        LevelRules(**broken)  # type: ignore[arg-type]


# -- what the quotes imply ---------------------------------------------------------------------


@pytest.mark.parametrize("price", [93.3, 100.0, 107.25])
def test_parity_gives_the_price_behind_the_quotes(price: float) -> None:
    assert parity_price(chain_of(*quoted_rows(price))) == pytest.approx(price)


def test_parity_needs_five_strikes_quoted_on_both_sides() -> None:
    rows = quoted_rows(100)
    assert parity_price(chain_of(*rows[:10])) == pytest.approx(100)
    assert np.isnan(parity_price(chain_of(*rows[:9])))
    assert np.isnan(parity_price(chain_of(*usable_rows())))


def test_parity_reads_the_first_expiration_with_enough_quotes() -> None:
    unquoted, quoted = usable_rows(expiry=TODAY), quoted_rows(101)
    later = quoted_rows(150, expiry="2026-06-18")
    assert parity_price(chain_of(*unquoted, *quoted, *later)) == pytest.approx(101)


@pytest.mark.parametrize("quote", [{"bid": 0.0}, {"bid": 9.0, "ask": 8.0}, {"ask": np.nan}])
def test_parity_takes_two_sided_quotes_only(quote: dict[str, float]) -> None:
    rows = quoted_rows(100)
    closest = [row for row in rows if row["strike"] == 100.0]
    for row in closest:
        row |= quote
    assert len(closest) == 2
    assert parity_price(chain_of(*rows)) == pytest.approx(100)


# -- borrowing ---------------------------------------------------------------------------------

EARLIER = AS_OF - dt.timedelta(hours=1)


def test_open_interest_is_filled_in_by_contract() -> None:
    chain = chain_of(
        contract(99, "P", 0),
        contract(100, "P", np.nan),
        contract(100, "C", 8),
        contract(101, "C", 0),
        contract(102, "C", np.nan),
    )
    earlier = chain_of(
        contract(99, "P", 5),
        contract(99, "C", 77),
        contract(100, "P", 6),
        contract(100, "C", 7),
        contract(102, "C", np.nan),
        contract(101, "C", 50, expiry="2026-02-20"),
        as_of=EARLIER,
    )
    filled = with_open_interest_of(chain, earlier)
    assert filled.open_interest.tolist()[:4] == [5, 6, 8, 0]
    assert np.isnan(filled.open_interest[4])
    assert filled.as_of == chain.as_of
    assert len(filled) == len(chain)


def test_expirations_that_were_not_asked_for_come_from_the_earlier_snapshot() -> None:
    chain = chain_of(contract(100, "C", 1), contract(100, "C", 2, expiry="2026-03-20"))
    earlier = chain_of(
        contract(100, "C", 9),
        contract(105, "C", 9),
        contract(100, "C", 3, expiry="2026-02-20"),
        contract(100, "C", 4, expiry="2026-04-17"),
        as_of=EARLIER,
    )
    whole = complete(chain, earlier)
    assert whole.open_interest.tolist() == [1, 3, 2, 4]
    assert whole.years.tolist() == sorted(whole.years)
    assert whole.as_of == AS_OF


def test_a_series_that_ended_since_is_not_taken() -> None:
    earlier = chain_of(contract(100, "C", 9, expiry=TODAY), as_of=EARLIER)
    whole = complete(chain_of(contract(100, "C", 1), as_of=CLOSE), earlier)
    assert whole.open_interest.tolist() == [1]


@pytest.mark.parametrize("borrow", [complete, with_open_interest_of])
@pytest.mark.parametrize("shift", [dt.timedelta(days=-1), MINUTE])
def test_only_an_earlier_snapshot_of_the_session_lends(borrow: object, shift: dt.timedelta) -> None:
    other = chain_of(contract(100, "C", 9), as_of=AS_OF + shift)
    with pytest.raises(ValueError, match="is no earlier snapshot of the session"):
        borrow(chain_of(contract(100, "C")), other)  # type: ignore[operator]


@given(seed=SEEDS)
def test_borrowing_from_oneself_changes_nothing(seed: int) -> None:
    chain = Chain.from_frame(random_frame(seed), AS_OF)
    assert same(complete(chain, chain), chain)
    assert same(with_open_interest_of(chain, chain), chain)


@given(seed=SEEDS, asked=st.sets(st.sampled_from([TODAY, TOMORROW, "2026-02-20", "2026-06-18"])))
def test_a_polled_part_and_the_sweep_make_the_whole(seed: int, asked: set[str]) -> None:
    frame = random_frame(seed)
    whole = Chain.from_frame(frame, AS_OF)
    part = Chain.from_frame(frame[frame["expiry"].isin(asked)], AS_OF)
    assert same(complete(part, whole), whole)


def test_the_columns_are_those_of_the_contract() -> None:
    assert set(CHAIN_COLUMNS) == set(contract(1.0, "C"))
