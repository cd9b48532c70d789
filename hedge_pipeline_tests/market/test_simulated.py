"""What the simulated market promises: fixed numbers, an exact oracle, and purity."""

from __future__ import annotations

import datetime as dt
import math
import random
import statistics

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedge_pipeline.market.calendar import SessionCalendar
from hedge_pipeline.market.sources import (
    BadInput,
    NoDataYet,
    SourceOptions,
    SymbolUnknown,
    WindowRefused,
)
from hedge_pipeline.market.sources.protocol import BAR_COLUMNS, DAILY_COLUMNS
from hedge_pipeline.market.sources.simulated import (
    HORIZON,
    MINUTES,
    REGIMES,
    SHAPE,
    SimulatedSource,
    bar,
    close_price,
    oracle,
    regime_of,
    simulate,
)

CALENDAR = SessionCalendar(end=dt.date(2026, 12, 31))
SOURCE = SimulatedSource(SourceOptions(CALENDAR))
SESSION = CALENDAR.session("2024-01-03")
MINUTE = dt.timedelta(minutes=1)
MINUTE_NUMBERS = st.integers(0, MINUTES - 1)


# -- fixed numbers (seed 7), measured before the product was written ---------------------------


@pytest.mark.parametrize(
    ("minute", "close"),
    [(0, 383.10), (1, 382.98), (2, 383.19), (129, 382.87), (130, 382.70), (389, 383.04)],
)
def test_the_closes_of_the_first_session_are_fixed(minute: int, close: float) -> None:
    assert close_price(7, "SIMQ", 0, minute) == close


@pytest.mark.parametrize(
    ("minute", "probability", "digits"),
    [
        (0, 0.448595, 6),
        (125, 0.462578, 6),
        (130, 0.395802, 6),
        (379, 0.513068, 6),
        (200, 0.35126561, 8),
    ],
)
def test_the_oracle_of_the_first_session_is_fixed(
    minute: int, probability: float, digits: int
) -> None:
    found = oracle(7, "SIMQ", 0, minute)
    assert found is not None
    assert round(found, digits) == probability


def test_a_close_of_the_control_symbol_is_fixed() -> None:
    assert close_price(7, "SIMN", 12, 77) == 194.84


def test_a_whole_bar_of_the_control_symbol_is_fixed() -> None:
    found = bar(7, "SIMN", 60, 389)
    assert (found.open, found.high, found.low, found.close) == (185.59, 185.62, 185.53, 185.58)
    assert (found.volume, found.support, found.resistance) == (470219, 182.64, 184.96)
    assert (found.bid, found.ask) == (185.57, 185.59)


@pytest.mark.parametrize(
    ("seed", "symbol", "ordinal"), [(8, "SIMQ", 0), (7, "SIMA", 0), (7, "SIMQ", 1)]
)
def test_seed_symbol_and_session_each_give_another_market(
    seed: int, symbol: str, ordinal: int
) -> None:
    shocks = simulate(7, "SIMQ", 0).log_price
    assert simulate(seed, symbol, ordinal).log_price != shocks


# -- the truth ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("symbol", "ordinal", "name"),
    [
        ("SIMQ", 0, "bounce"),
        ("SIMQ", 59, "bounce"),
        ("SIMQ", 60, "break"),
        ("SIMQ", 99, "break"),
        ("SIMQ", 100, "none"),
        ("SIMQ", 129, "none"),
        ("SIMQ", 130, "bounce"),
        ("SIMN", 0, "none"),
        ("SIMN", 60, "none"),
    ],
)
def test_regimes_repeat_every_130_sessions_and_the_control_has_none(
    symbol: str, ordinal: int, name: str
) -> None:
    assert regime_of(symbol, ordinal).name == name
    assert simulate(7, symbol, ordinal).regime.name == name


def outcomes(symbol: str, ordinals: range, step: int = HORIZON) -> tuple[list[float], list[int]]:
    """The oracle's probabilities and what happened, labels that do not overlap."""
    expected, happened = [], []
    for ordinal in ordinals:
        path = simulate(7, symbol, ordinal).log_price
        for minute in range(0, MINUTES - HORIZON, step):
            probability = oracle(7, symbol, ordinal, minute)
            assert probability is not None
            expected.append(probability)
            happened.append(int(path[minute + HORIZON] > path[minute]))
    return expected, happened


@pytest.mark.parametrize(
    ("ordinals", "pull"),
    [(range(60), "bounce"), (range(60, 100), "break"), (range(100, 130), "none")],
    ids=["bounce", "break", "none"],
)
def test_the_oracle_is_calibrated(ordinals: range, pull: str) -> None:
    expected, happened = outcomes("SIMQ", ordinals)
    assert regime_of("SIMQ", ordinals[0]).name == pull
    spread = math.sqrt(sum(p * (1 - p) for p in expected))
    assert abs(sum(happened) - sum(expected)) < 3 * spread
    # also where it is confident: the sum of (p - 1/2) (y - p) has mean 0
    covariance = sum((p - 0.5) * (y - p) for p, y in zip(expected, happened, strict=True))
    limit = 3 * math.sqrt(sum((p - 0.5) ** 2 * p * (1 - p) for p in expected))
    assert abs(covariance) <= limit


@pytest.mark.parametrize(
    ("ordinals", "least", "most"),
    [(range(60), 0.55, 0.60), (range(60, 100), 0.54, 0.60), (range(100, 130), 0.5, 0.5)],
    ids=["bounce", "break", "none"],
)
def test_the_best_possible_accuracy_is_the_planted_one(
    ordinals: range, least: float, most: float
) -> None:
    expected, _ = outcomes("SIMQ", ordinals)
    assert least <= statistics.fmean(max(p, 1 - p) for p in expected) <= most


def test_knowing_the_oracle_really_wins_in_the_bounce_regime() -> None:
    expected, happened = outcomes("SIMQ", range(60))
    hits = [int((p > 0.5) == bool(y)) for p, y in zip(expected, happened, strict=True)]
    assert statistics.fmean(hits) > 0.55


def test_across_a_renewal_of_the_channel_the_oracle_is_still_calibrated() -> None:
    expected, happened = [], []
    for ordinal in range(60):
        path = simulate(7, "SIMQ", ordinal).log_price
        for minute in (122, 252):
            probability = oracle(7, "SIMQ", ordinal, minute)
            assert probability is not None
            expected.append(probability)
            happened.append(int(path[minute + HORIZON] > path[minute]))
    spread = math.sqrt(sum(p * (1 - p) for p in expected))
    assert abs(sum(happened) - sum(expected)) < 3 * spread


@pytest.mark.parametrize("minute", [379, 380, 389])
def test_the_oracle_is_silent_in_the_last_ten_minutes(minute: int) -> None:
    assert (oracle(7, "SIMQ", 0, minute) is None) is (minute >= 380)


@given(st.integers(0, 400), MINUTE_NUMBERS)
def test_the_control_symbol_is_a_coin_flip(ordinal: int, minute: int) -> None:
    assert oracle(7, "SIMN", ordinal, minute) in (0.5, None)


def test_the_daily_shape_has_mean_square_one_and_is_high_at_both_ends() -> None:
    assert statistics.fmean(value * value for value in SHAPE) == pytest.approx(1)
    assert SHAPE[0] > SHAPE[-1] > SHAPE[200]


# -- purity ------------------------------------------------------------------------------------


def test_the_order_of_asking_and_the_cache_change_nothing() -> None:
    wanted = [
        (symbol, ordinal, minute)
        for symbol in ("SIMQ", "SIMN")
        for ordinal in (0, 61, 130)
        for minute in (0, 129, 130, 389)
    ]
    simulate.cache_clear()
    ordered = {place: (bar(7, *place), oracle(7, *place)) for place in wanted}
    random.Random(1).shuffle(wanted)
    shuffled = {}
    for place in wanted:
        simulate.cache_clear()
        shuffled[place] = (bar(7, *place), oracle(7, *place))
    assert shuffled == ordered


@given(st.integers(0, 400), MINUTE_NUMBERS)
def test_a_bar_is_a_possible_one(ordinal: int, minute: int) -> None:
    found = bar(7, "SIMQ", ordinal, minute)
    assert 0 < found.low <= min(found.open, found.close)
    assert max(found.open, found.close) <= found.high
    assert found.volume > 0
    assert found.support < found.resistance
    assert found.bid < found.close < found.ask


@given(st.integers(0, 400), st.integers(1, MINUTES - 1))
def test_a_bar_opens_at_the_close_before(ordinal: int, minute: int) -> None:
    assert bar(7, "SIMQ", ordinal, minute).open == close_price(7, "SIMQ", ordinal, minute - 1)


# -- as a source -------------------------------------------------------------------------------


def test_a_session_of_the_source_is_the_simulated_one() -> None:
    frame = SOURCE.bars("SIMQ", SESSION, SESSION.closes)
    assert tuple(frame.columns) == BAR_COLUMNS
    assert len(frame) == 390
    for column in BAR_COLUMNS[1:]:
        assert frame[column].tolist() == [getattr(bar(7, "SIMQ", 1, m), column) for m in range(390)]
    starts = frame["bar_ts"].dt.tz_convert("UTC").dt.tz_localize(None).to_numpy()
    assert starts.tolist() == SESSION.bar_ts.tolist()
    assert str(frame["bar_ts"].dtype) == "datetime64[us, UTC]"


@given(st.integers(60, 390 * 60 + 3600))
def test_no_minute_is_shown_before_it_is_over(seconds: int) -> None:
    now = SESSION.opens + dt.timedelta(seconds=seconds)
    frame = SOURCE.bars("SIMQ", SESSION, now)
    assert len(frame) == min(seconds // 60, 390)
    assert frame["bar_ts"].max() + MINUTE <= now


def test_what_was_shown_is_never_changed() -> None:
    whole = SOURCE.bars("SIMQ", SESSION, SESSION.closes)
    early = SOURCE.bars("SIMQ", SESSION, SESSION.opens + 100 * MINUTE)
    pd.testing.assert_frame_equal(early, whole.head(100))


def test_a_half_day_is_the_beginning_of_a_full_one() -> None:
    half = CALENDAR.session("2026-11-27")
    frame = SOURCE.bars("SIMQ", half, half.closes)
    ordinal = SOURCE.ordinal("2026-11-27")
    assert len(frame) == 210
    assert frame["close"].tolist() == [close_price(7, "SIMQ", ordinal, m) for m in range(210)]


def test_a_day_is_made_of_its_minutes_and_comes_when_it_is_over() -> None:
    minutes = [bar(7, "SIMQ", 1, minute) for minute in range(MINUTES)]
    days = SOURCE.daily("SIMQ", "2023-12-01", "2024-01-31", SESSION.closes)
    assert tuple(days.columns) == DAILY_COLUMNS
    assert days["session"].tolist() == ["2024-01-02", "2024-01-03"]
    assert days.iloc[1, 1:].tolist() == [
        minutes[0].open,
        max(x.high for x in minutes),
        min(x.low for x in minutes),
        minutes[-1].close,
        sum(x.volume for x in minutes),
    ]
    before = SOURCE.daily("SIMQ", "2024-01-02", "2024-01-31", SESSION.closes - MINUTE)
    assert before["session"].tolist() == ["2024-01-02"]
    with pytest.raises(NoDataYet, match="no simulated session from 2024-01-03 to 2024-01-04"):
        SOURCE.daily("SIMQ", "2024-01-03", "2024-01-04", SESSION.closes - MINUTE)
    with pytest.raises(SymbolUnknown):
        SOURCE.daily("SPY", "2024-01-02", "2024-01-03", SESSION.closes)


def test_bars_tell_nothing_of_the_oracle() -> None:
    frame = SOURCE.bars("SIMQ", SESSION, SESSION.closes)
    hidden = {"oracle", "theta", "regime", "middle", "sigma", "volatility", "anchor", "log_price"}
    assert not hidden & set(frame.columns)
    # the levels are rounded to the cent, so they cannot carry hidden digits
    prices = frame.drop(columns=["bar_ts", "volume"])
    pd.testing.assert_frame_equal(prices, prices.round(2))


@pytest.mark.parametrize("symbol", ["QQQ", "", "XSIM"])
def test_other_symbols_are_unknown(symbol: str) -> None:
    with pytest.raises(SymbolUnknown, match="no symbol"):
        SOURCE.bars(symbol, SESSION, SESSION.closes)


def test_before_its_first_session_the_market_refuses() -> None:
    old = SessionCalendar(start=dt.date(2023, 12, 1), end=dt.date(2024, 12, 31))
    source = SimulatedSource(SourceOptions(old))
    session = old.session("2023-12-29")
    with pytest.raises(WindowRefused, match="begins on 2024-01-02"):
        source.bars("SIMQ", session, session.closes)


@pytest.mark.parametrize("seconds", [-3600, 0, 59])
def test_before_the_first_minute_is_over_there_is_no_data_yet(seconds: int) -> None:
    with pytest.raises(NoDataYet, match="no bar of 2024-01-03 is final yet"):
        SOURCE.bars("SIMQ", SESSION, SESSION.opens + dt.timedelta(seconds=seconds))


@pytest.mark.parametrize("seconds", [120, 300])
def test_bars_of_another_length_are_refused(seconds: int) -> None:
    calendar = SessionCalendar(bar_seconds=seconds, end=dt.date(2026, 12, 31))
    with pytest.raises(BadInput, match="HEDGE_BAR_SECONDS must be 60") as refused:
        SimulatedSource(SourceOptions(calendar))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("start", [dt.date(2023, 1, 3), dt.date(2024, 1, 2), dt.date(2026, 1, 2)])
def test_a_session_is_the_same_wherever_the_history_starts(start: dt.date) -> None:
    calendar = SessionCalendar(start=start, end=dt.date(2026, 12, 31))
    source = SimulatedSource(SourceOptions(calendar))
    session = calendar.session("2026-03-10")
    assert source.ordinal("2026-03-10") == SOURCE.ordinal("2026-03-10") == 547
    pd.testing.assert_frame_equal(
        source.bars("SIMQ", session, session.closes), SOURCE.bars("SIMQ", session, session.closes)
    )


def test_an_exchange_that_was_closed_on_the_first_day_starts_with_its_next_session() -> None:
    tokyo = SessionCalendar("XTKS", end=dt.date(2026, 12, 31))
    source = SimulatedSource(SourceOptions(tokyo))
    session = tokyo.session("2024-01-04")
    assert source.ordinal("2024-01-04") == 0
    assert len(source.bars("SIMQ", session, session.closes)) == session.bars


def test_the_seed_of_the_options_is_the_seed_of_the_market() -> None:
    other = SimulatedSource(SourceOptions(CALENDAR, seed=8)).bars("SIMQ", SESSION, SESSION.closes)
    assert other["close"].tolist() == [close_price(8, "SIMQ", 1, m) for m in range(390)]


def test_all_regimes_together_cover_130_sessions() -> None:
    assert sum(regime.sessions for regime in REGIMES) == 130


# -- option chains -----------------------------------------------------------------------------


def front_walls(chain: pd.DataFrame) -> dict[tuple[pd.Timestamp, str], float]:
    """Strike with the largest open interest of the front expiration, by snapshot and right."""
    front = chain[chain["expiry"] == chain["expiry"].min()]
    largest = front.groupby(["as_of", "right"])["open_interest"].idxmax()
    return dict(front.loc[largest].set_index(["as_of", "right"])["strike"])


@pytest.mark.parametrize("symbol", ["SIMQ", "SIMN"])
def test_the_walls_of_the_chain_stand_at_the_planted_levels(symbol: str) -> None:
    chain = SOURCE.chains(symbol, SESSION, SESSION.closes, sweep=True)
    bars = SOURCE.bars(symbol, SESSION, SESSION.closes).set_index("bar_ts")
    walls = front_walls(chain)
    assert len(walls) == 2 * chain["as_of"].nunique() == 18
    for (as_of, right), strike in walls.items():
        level = "support" if right == "P" else "resistance"
        assert strike == bars.loc[as_of - MINUTE, level]


def test_a_chain_holds_only_what_could_be_known() -> None:
    now = SESSION.opens + 100 * MINUTE
    early = SOURCE.chains("SIMQ", SESSION, now, sweep=False)
    late = SOURCE.chains("SIMQ", SESSION, SESSION.closes, sweep=True)
    assert (early["available_at"] <= now).all()
    pd.testing.assert_frame_equal(early, late[late["available_at"] <= now].reset_index(drop=True))


def test_a_chain_has_the_front_and_the_next_four_monthlies() -> None:
    chain = SOURCE.chains("SIMQ", SESSION, SESSION.closes, sweep=True)
    expected = ["2024-01-03", "2024-01-19", "2024-02-16", "2024-03-15", "2024-04-19"]
    assert sorted(chain["expiry"].unique()) == expected
    assert not chain.duplicated(["as_of", "expiry", "strike", "right"]).any()


def test_there_is_no_chain_before_the_first_bar_and_none_of_strangers() -> None:
    with pytest.raises(NoDataYet):
        SOURCE.chains("SIMQ", SESSION, SESSION.opens, sweep=True)
    with pytest.raises(SymbolUnknown):
        SOURCE.chains("QQQ", SESSION, SESSION.closes, sweep=True)
