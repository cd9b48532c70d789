"""What becomes of a source's answers: stored bars, gaps with causes, and the session grid."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedge_pipeline.market.bars import (
    GRID_COLUMNS,
    Collected,
    collect_bars,
    find_gaps,
    late,
    on_grid,
)
from hedge_pipeline.market.calendar import Session, SessionCalendar
from hedge_pipeline.market.features import FEATURES, compute_features, no_previous, remember
from hedge_pipeline.market.sources import (
    Capabilities,
    NoDataYet,
    RateLimited,
    SchemaDrift,
    SourceDown,
    SourceError,
    SourceOptions,
    SymbolUnknown,
    WindowRefused,
)
from hedge_pipeline.market.sources.file import FileSource
from hedge_pipeline.market.tables import GAP_CAUSES, GAPS, RAW_QUOTES

SESSION = SessionCalendar(end=dt.date(2026, 12, 31)).session("2026-03-10")
OPENS, CLOSES = SESSION.opens, SESSION.closes
MINUTE = dt.timedelta(minutes=1)
NOW = OPENS + 10 * MINUTE


def answer(*minutes: int, price: float = 100.0) -> pd.DataFrame:
    """A source's bars of these minutes; the close counts the minutes."""
    starts = [OPENS + minute * MINUTE for minute in minutes]
    return pd.DataFrame(
        {
            "bar_ts": pd.DatetimeIndex(starts, dtype="datetime64[us, UTC]"),
            "open": price,
            "high": price + 400,
            "low": price,
            "close": [price + minute for minute in minutes],
            "volume": 10.0,
            "bid": np.nan,
            "ask": np.nan,
            "support": np.nan,
            "resistance": np.nan,
        }
    )


class Scripted:
    """A source that answers by symbol with a frame or an error."""

    name = "scripted"
    capabilities = Capabilities()

    def __init__(
        self, script: dict[str, pd.DataFrame | Exception], delay: dt.timedelta = dt.timedelta(0)
    ) -> None:
        self.script = script
        self.delay = delay

    def bars(self, symbol: str, session: Session, now: dt.datetime) -> pd.DataFrame:
        found = self.script[symbol]
        if isinstance(found, Exception):
            raise found
        return found


def collect(
    script: dict[str, pd.DataFrame | Exception],
    *,
    now: dt.datetime = NOW,
    nominal_arrival: bool = False,
    ingested_at: dt.datetime | None = None,
    delay: dt.timedelta = dt.timedelta(0),
) -> Collected:
    return collect_bars(
        Scripted(script, delay),
        tuple(script),
        SESSION,
        now,
        nominal_arrival=nominal_arrival,
        ingested_at=ingested_at,
    )


def stored(arrivals: dict[int, int], symbol: str = "A") -> pd.DataFrame:
    """Rows of raw_quotes: each minute with the minute in which it became available."""
    bars = collect({symbol: answer(*arrivals)}).bars
    times = pd.DatetimeIndex([OPENS + arrival * MINUTE for arrival in arrivals.values()])
    return RAW_QUOTES.conform(bars.assign(available_at=times, ingested_at=times))


# -- collecting --------------------------------------------------------------------------------

ERRORS = [SourceDown, RateLimited, NoDataYet, SymbolUnknown, WindowRefused, SchemaDrift]


@pytest.mark.parametrize("outcome", ERRORS)
def test_a_symbol_that_fails_does_not_touch_the_others(outcome: type[SourceError]) -> None:
    error = outcome("words of the source")
    found = collect({"A": answer(0, 1), "B": error, "C": answer(0)})
    assert found.failures == {"B": error}
    assert found.bars.groupby("symbol").size().to_dict() == {"A": 2, "C": 1}


def test_when_every_symbol_fails_the_answer_is_an_empty_table() -> None:
    found = collect({"A": SourceDown("x"), "B": RateLimited("y")})
    assert found.bars.dtypes.to_dict() == RAW_QUOTES.empty().dtypes.to_dict()
    assert len(found.bars) == 0
    assert set(found.failures) == {"A", "B"}


def test_a_programming_error_of_a_source_is_not_taken_for_an_outcome() -> None:
    with pytest.raises(ZeroDivisionError):
        collect({"A": answer(0), "B": ZeroDivisionError("bug")})


def test_an_answer_without_a_column_is_schema_drift_of_its_symbol_only() -> None:
    found = collect({"A": answer(0), "B": answer(0).drop(columns=["bid", "low"])})
    assert found.bars["symbol"].tolist() == ["A"]
    assert isinstance(found.failures["B"], SchemaDrift)
    assert str(found.failures["B"]) == "scripted: the answer lacks low, bid"


@pytest.mark.parametrize("column", ["bar_ts", "open", "high", "low", "close"])
def test_an_answer_with_a_bar_that_has_no_price_is_schema_drift(column: str) -> None:
    bad = answer(0, 1)
    bad[column] = bad[column].where(bad.index == 0)
    found = collect({"A": bad, "B": answer(0)})
    assert found.bars["symbol"].tolist() == ["B"]
    assert str(found.failures["A"]) == f"scripted: the answer has a bar without {column}"


def test_unknown_volume_quotes_and_levels_are_no_drift() -> None:
    found = collect({"A": answer(0).assign(volume=np.nan)})
    assert found.failures == {}
    assert found.bars["volume"].isna().all()


def test_a_live_bar_is_available_when_it_was_asked_for() -> None:
    bars = collect({"A": answer(0, 5)}).bars
    assert bars["available_at"].tolist() == [pd.Timestamp(NOW)] * 2


def test_a_bar_of_history_was_available_at_its_end_plus_the_source_s_delay() -> None:
    delay = dt.timedelta(seconds=30)
    bars = collect({"A": answer(0, 5)}, now=CLOSES, nominal_arrival=True, delay=delay).bars
    expected = [pd.Timestamp(OPENS + minute * MINUTE + delay) for minute in (1, 6)]
    assert bars["available_at"].tolist() == expected


@pytest.mark.parametrize("nominal_arrival", [True, False])
def test_a_replay_pretends_to_have_written_a_row_when_it_was_available(
    nominal_arrival: bool,
) -> None:
    bars = collect({"A": answer(0, 5)}, nominal_arrival=nominal_arrival).bars
    assert bars["ingested_at"].tolist() == bars["available_at"].tolist()


def test_the_true_time_of_writing_is_kept_beside_the_time_of_availability() -> None:
    bars = collect({"A": answer(0)}, nominal_arrival=True, ingested_at=CLOSES).bars
    assert bars["ingested_at"].tolist() == [pd.Timestamp(CLOSES)]
    assert bars["available_at"].tolist() == [pd.Timestamp(OPENS + MINUTE)]


def test_collected_bars_keep_every_promise_of_the_table() -> None:
    bars = collect({"A": answer(0, 1), "B": answer(1)}).bars
    assert RAW_QUOTES.violations(bars) == {}
    assert set(bars["source"]) == {"scripted"}
    assert bars.index.tolist() == [0, 1, 2]


# -- gaps --------------------------------------------------------------------------------------


def gaps(bars: pd.DataFrame, until: dt.datetime, **failures: SourceError) -> pd.DataFrame:
    return find_gaps(bars, ("A", "B"), SESSION, until, failures)


def minutes(frame: pd.DataFrame, symbol: str) -> list[int]:
    own = frame.loc[frame["symbol"] == symbol, "bar_ts"]
    return [int((start - OPENS) // MINUTE) for start in own]


def test_every_expected_minute_is_a_bar_or_a_gap() -> None:
    bars = collect({"A": answer(0, 2, 3), "B": answer(0, 1, 2, 3, 4)}).bars
    found = gaps(bars, OPENS + 5 * MINUTE)
    assert minutes(found, "A") == [1, 4]
    assert minutes(found, "B") == []
    assert GAPS.violations(found) == {}


@pytest.mark.parametrize(("seconds", "expected"), [(0, 0), (59, 0), (60, 1), (119, 1), (120, 2)])
def test_a_bar_is_expected_only_after_its_end(seconds: int, expected: int) -> None:
    found = gaps(RAW_QUOTES.empty(), OPENS + dt.timedelta(seconds=seconds))
    assert minutes(found, "A") == list(range(expected))


def test_after_the_close_a_silent_symbol_has_a_gap_for_every_minute() -> None:
    found = gaps(collect({"A": answer(*range(390))}).bars, CLOSES + 10 * MINUTE)
    assert minutes(found, "A") == []
    assert minutes(found, "B") == list(range(390))


@pytest.mark.parametrize(
    ("error", "cause", "detail"),
    [
        (SourceDown("no route to host"), "source_down", "no route to host"),
        (RateLimited("429, wait 60 s"), "rate_limited", "429, wait 60 s"),
        (SymbolUnknown("no such symbol"), "vendor_hole", "no such symbol"),
        (WindowRefused("too old"), "vendor_hole", "too old"),
        (SchemaDrift("no close"), "source_down", "no close"),
        (NoDataYet("nothing yet"), "vendor_hole", None),
    ],
)
def test_a_gap_has_the_cause_of_its_symbol_s_failure(
    error: SourceError, cause: str, detail: str | None
) -> None:
    found = gaps(RAW_QUOTES.empty(), OPENS + 2 * MINUTE, B=error)
    own = found[found["symbol"] == "B"]
    assert own["cause"].tolist() == [cause] * 2
    assert [None if pd.isna(x) else x for x in own["detail"]] == [detail] * 2
    assert found.loc[found["symbol"] == "A", "cause"].tolist() == ["vendor_hole"] * 2


@pytest.mark.parametrize("outcome", ERRORS)
def test_every_outcome_has_a_known_gap_cause(outcome: type[SourceError]) -> None:
    assert outcome.cause in GAP_CAUSES


def test_without_symbols_there_are_no_gaps() -> None:
    found = find_gaps(RAW_QUOTES.empty(), (), SESSION, CLOSES, {})
    assert list(found.columns) == list(GAPS.names)
    assert found.empty


# -- late bars and the grid --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrivals", "expected"),
    [
        pytest.param({0: 1, 1: 2, 2: 3}, [], id="each in its time"),
        pytest.param({0: 1, 1: 4, 2: 3}, [1], id="overtaken by the next"),
        pytest.param({0: 9, 1: 4, 2: 3}, [0, 1], id="overtaken by several"),
        pytest.param({0: 5, 1: 5, 2: 5}, [], id="all in one poll after downtime"),
        pytest.param({0: 1, 2: 3}, [], id="a hole is not late"),
        pytest.param({0: 1, 1: 2, 2: 90}, [], id="the newest is never late"),
        pytest.param({2: 3, 1: 4, 0: 1}, [1], id="stored in any order"),
    ],
)
def test_a_bar_is_late_when_a_later_one_was_there_first(
    arrivals: dict[int, int], expected: list[int]
) -> None:
    bars = stored(arrivals)
    assert sorted(minutes(bars[late(bars)], "A")) == expected


def test_a_hole_that_is_filled_from_history_is_late_although_it_was_available_in_time() -> None:
    live = stored({0: 1, 2: 3, 3: 4})
    asked = CLOSES + 30 * MINUTE
    history = collect(
        {"A": answer(0, 1, 2, 3, 4)}, now=asked, nominal_arrival=True, ingested_at=asked
    ).bars
    filled = pd.concat([live, history])
    filled = filled.drop_duplicates(["symbol", "bar_ts"]).reset_index(drop=True)
    assert minutes(filled[late(filled)], "A") == [1]


def test_a_session_that_comes_from_history_as_a_whole_has_no_late_bar() -> None:
    bars = collect({"A": answer(*range(9))}, nominal_arrival=True, ingested_at=CLOSES).bars
    assert not late(bars).any()


def test_a_bar_of_another_symbol_makes_no_bar_late() -> None:
    bars = pd.concat([stored({0: 9}, "A"), stored({1: 2}, "B")], ignore_index=True)
    assert not late(bars).any()


@given(st.dictionaries(st.integers(0, 20), st.integers(1, 40), min_size=1), st.integers(0, 40))
def test_what_is_known_at_a_moment_never_contains_a_bar_that_turns_out_late(
    arrivals: dict[int, int], moment: int
) -> None:
    bars = stored(arrivals)
    known = bars[bars["available_at"] <= OPENS + moment * MINUTE]
    if known.empty:
        return
    newest = known["bar_ts"].max()
    # up to the newest bar known then, what counts then is what counts for ever
    then = set(known.loc[~late(known), "bar_ts"])
    later = set(bars.loc[~late(bars) & (bars["bar_ts"] <= newest), "bar_ts"])
    assert later == then


def test_a_late_bar_is_left_out_of_features() -> None:
    grid = on_grid(stored({0: 1, 1: 4, 2: 3}), ("A",), SESSION)
    assert np.flatnonzero(np.isfinite(grid.close[0])).tolist() == [0, 2]
    values = compute_features(grid, no_previous(1), bar_seconds=60, session_bars=390)
    assert np.isnan(values[0, 1]).all()
    assert np.isfinite(values[0, 2]).any()


def test_bars_stand_at_their_minute_and_symbols_in_their_row() -> None:
    bars = collect({"B": answer(1, 389, price=200), "A": answer(0, 2)}).bars
    grid = on_grid(bars, ("A", "B", "C"), SESSION)
    assert grid.close.shape == (3, 390)
    known = {(int(r), int(c)): grid.close[r, c] for r, c in np.argwhere(np.isfinite(grid.close))}
    assert known == {(0, 0): 100.0, (0, 2): 102.0, (1, 1): 201.0, (1, 389): 589.0}


@pytest.mark.parametrize("until", [1, 2, 3, 390])
def test_a_grid_may_end_before_the_session_does(until: int) -> None:
    bars = stored({0: 1, 1: 4, 2: 3})
    whole, cut = (on_grid(bars, ("A",), SESSION, x) for x in (None, until))
    for name in GRID_COLUMNS:
        array = getattr(cut, name)
        np.testing.assert_array_equal(array, getattr(whole, name)[:, :until])


@pytest.mark.parametrize("name", GRID_COLUMNS)
def test_every_column_of_the_grid_is_the_stored_one(name: str) -> None:
    bars = stored({3: 4})
    bars[name] = 123.5
    grid = on_grid(bars, ("A",), SESSION)
    assert getattr(grid, name)[0, 3] == 123.5
    assert np.isnan(np.delete(getattr(grid, name), 3)).all()


@pytest.mark.parametrize(("volume", "known"), [(0.0, False), (1.0, True), (np.nan, False)])
def test_a_volume_of_zero_means_unknown(volume: float, known: bool) -> None:
    bars = stored({0: 1}).assign(volume=volume)
    grid = on_grid(bars, ("A",), SESSION)
    assert bool(np.isfinite(grid.volume[0, 0])) is known
    assert grid.close[0, 0] == 100.0


def test_rows_of_other_symbols_and_off_the_grid_are_left_out() -> None:
    bars = stored({0: 1, 1: 2})
    bars.loc[1, "bar_ts"] = pd.Timestamp(OPENS) + pd.Timedelta(seconds=90)
    grid = on_grid(bars, ("A",), SESSION)
    assert np.isfinite(grid.close).sum() == 1
    assert np.isnan(on_grid(bars, ("B",), SESSION).close).all()


def test_a_grid_without_bars_is_unknown_everywhere() -> None:
    grid = on_grid(RAW_QUOTES.empty(), ("A", "B"), SESSION)
    assert grid.volume.shape == (2, 390)
    assert np.isnan(grid.volume).all()


# -- real data ---------------------------------------------------------------------------------


@pytest.fixture
def real(shared_data: Path) -> Callable[[str, int], FileSource]:
    def opened(name: str, bar_seconds: int) -> FileSource:
        calendar = SessionCalendar(bar_seconds=bar_seconds, end=dt.date(2026, 12, 31))
        return FileSource(SourceOptions(calendar, (str(shared_data / name),)))

    return opened


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "bar_seconds", "sessions", "dropped"),
    [
        ("bars_1m_qqq_spy_2026-01_2026-03.parquet", 60, 40, 0),
        ("bars_5m_qqq_spy_2026-05_2026-08.parquet", 300, 60, 0),
    ],
)
def test_real_bars_give_finite_features_within_their_bounds(
    real: Callable[[str, int], FileSource],
    name: str,
    bar_seconds: int,
    sessions: int,
    dropped: int,
) -> None:
    source = real(name, bar_seconds)
    calendar = SessionCalendar(bar_seconds=bar_seconds, end=dt.date(2026, 12, 31))
    assert (len(source.sessions), source.dropped) == (sessions, {name: dropped})
    memory, found = no_previous(2), []
    for label in source.sessions[:6]:
        session = calendar.session(label)
        bars = collect_bars(
            source, source.symbols, session, session.closes, nominal_arrival=True, ingested_at=None
        ).bars
        assert RAW_QUOTES.violations(bars) == {}
        grid = on_grid(bars, source.symbols, session)
        values = compute_features(grid, memory, bar_seconds=bar_seconds, session_bars=session.bars)
        found.append(values[np.isfinite(grid.close)])
        memory = remember(grid, session.bars // 2)
    names = [feature.name for feature in FEATURES]
    table = pd.DataFrame(np.concatenate(found), columns=names)
    unknown = table.isna().mean()
    assert unknown[["range_position_60", "session_elapsed", "bar_body"]].max() < 0.03
    assert unknown[["return_1", "return_since_open"]].max() < 0.03
    assert unknown[["support_distance", "channel_position"]].min() == 1
    assert table[["autocorrelation_30", "efficiency_20", "signed_volume_15"]].abs().max().max() <= 1
    # a return in units of its volatility has a spread of about one
    assert table["return_1"].std() == pytest.approx(1, abs=0.2)
    assert table["return_10"].std() == pytest.approx(1, abs=0.3)


@pytest.mark.shared_data
def test_a_real_symbol_that_was_not_delivered_is_a_hole_of_every_minute(
    real: Callable[[str, int], FileSource],
) -> None:
    source = real("bars_1m_us_31_symbols_2026-01_2026-03.parquet", 60)
    answered = collect_bars(
        source, ("QQQ", "SMH"), SESSION, CLOSES, nominal_arrival=True, ingested_at=None
    )
    assert set(answered.failures) == {"SMH"}
    assert isinstance(answered.failures["SMH"], NoDataYet)
    found = find_gaps(answered.bars, ("QQQ", "SMH"), SESSION, CLOSES, answered.failures)
    assert found.groupby("symbol").size().to_dict() == {"SMH": 390}
    assert len(answered.bars) == 390
