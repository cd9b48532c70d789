"""What files of bars must look like, and the one line a user sees when they do not."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hedge_pipeline.market.calendar import SessionCalendar
from hedge_pipeline.market.sources import (
    BadInput,
    NoDataYet,
    SourceOptions,
    SymbolUnknown,
)
from hedge_pipeline.market.sources.file import FileSource, read_bars
from hedge_pipeline.market.sources.protocol import BAR_COLUMNS, CHAIN_COLUMNS, DAILY_COLUMNS

CALENDAR = SessionCalendar(end=dt.date(2026, 12, 31))
SESSION = CALENDAR.session("2026-03-10")
MINUTE = dt.timedelta(minutes=1)
HEADER = "symbol,ts,open,high,low,close,volume"
GOOD = {
    "symbol": "QQQ",
    "ts": "2026-03-10T13:30:00Z",
    "open": "100",
    "high": "101",
    "low": "99",
    "close": "100.5",
    "volume": "10",
}

Write = Callable[..., Path]


def bars_frame(symbol: str = "QQQ", first: int = 0, count: int = 3) -> pd.DataFrame:
    start = pd.Timestamp(SESSION.opens) + pd.Timedelta(minutes=first)
    close = 100.0 + np.arange(first, first + count)
    return pd.DataFrame(
        {
            "symbol": symbol,
            "ts": pd.date_range(start, periods=count, freq="min"),
            "open": close,
            "high": close + 1,
            "low": close - 1,
            "close": close,
            "volume": 10.0,
        }
    )


def opened(*paths: Path, calendar: SessionCalendar = CALENDAR) -> FileSource:
    return FileSource(SourceOptions(calendar, tuple(map(str, paths))))


def refusal(*paths: Path) -> str:
    with pytest.raises(BadInput) as refused:
        opened(*paths)
    text = str(refused.value)
    assert "\n" not in text
    return text


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a CSV of the good row three times, one minute apart, with changes to the second."""

    def written(name: str = "bars.csv", header: str = HEADER, **changes: str) -> Path:
        rows = [
            GOOD,
            {**GOOD, "ts": "2026-03-10T13:31:00Z"},
            {**GOOD, "ts": "2026-03-10T13:32:00Z"},
        ]
        rows[1] = {**rows[1], **changes}
        path = tmp_path / name
        path.write_text("\n".join([header, *(",".join(row.values()) for row in rows)]) + "\n")
        return path

    return written


# -- good files --------------------------------------------------------------------------------


def test_a_good_csv_is_read(write: Write) -> None:
    source = opened(write())
    frame = source.bars("QQQ", SESSION, SESSION.closes)
    assert source.symbols == ("QQQ",)
    assert source.sessions == ("2026-03-10",)
    assert source.dropped == {"bars.csv": 0}
    assert tuple(frame.columns) == BAR_COLUMNS
    assert frame["bar_ts"].tolist() == [SESSION.opens + minute * MINUTE for minute in range(3)]
    assert str(frame["bar_ts"].dtype) == "datetime64[us, UTC]"
    numbers = frame[["open", "high", "low", "close", "volume"]].to_numpy()
    assert numbers.tolist() == [[100, 101, 99, 100.5, 10]] * 3
    assert frame[["bid", "ask", "support", "resistance"]].isna().to_numpy().all()


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_a_good_parquet_file_is_read_whatever_its_unit_of_time(tmp_path: Path, unit: str) -> None:
    path = tmp_path / "bars.parquet"
    frame = bars_frame()
    frame["ts"] = frame["ts"].dt.tz_convert("America/New_York").dt.as_unit(unit)
    frame.to_parquet(path)
    found = opened(path).bars("QQQ", SESSION, SESSION.closes)
    assert found["bar_ts"].tolist() == bars_frame()["ts"].tolist()
    assert found["close"].tolist() == [100.0, 101.0, 102.0]


@pytest.mark.parametrize("name", ["ts", "timestamp", "date", "datetime", "bar_ts", "Date", " TS "])
def test_the_time_column_may_have_a_usual_name(write: Write, name: str) -> None:
    path = write(header=HEADER.replace("ts", name))
    assert len(opened(path).bars("QQQ", SESSION, SESSION.closes)) == 3


def test_capital_letters_and_further_columns_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "bars.parquet"
    frame = bars_frame().assign(vwap=1.0, note="x")
    frame.rename(columns=str.title).to_parquet(path)
    assert len(opened(path).bars("QQQ", SESSION, SESSION.closes)) == 3


@pytest.mark.parametrize(
    "text",
    [
        "2026-03-10T13:31:00Z",
        "2026-03-10 13:31:00+00:00",
        "2026-03-10 13:31:00+0000",
        "2026-03-10 13:31:00+00",
        "2026-03-10T09:31:00-04:00",
        "2026-03-10T13:31:00.000000Z",
        "2026-03-10 13:31Z",
    ],
)
def test_a_time_with_any_zone_is_understood(write: Write, text: str) -> None:
    found = opened(write(ts=text)).bars("QQQ", SESSION, SESSION.closes)
    assert found["bar_ts"].tolist()[1] == SESSION.opens + MINUTE


@pytest.mark.parametrize(("text", "symbol"), [("spy", "SPY"), (" NA ", "NA"), ("0700", "0700")])
def test_a_symbol_is_text_whatever_it_looks_like(write: Write, text: str, symbol: str) -> None:
    source = opened(write(symbol=text))
    assert symbol in source.symbols
    assert len(source.bars(symbol, SESSION, SESSION.closes)) >= 1


@pytest.mark.parametrize("volume", ["", "NaN"])
def test_an_unknown_volume_is_kept_as_unknown(write: Write, volume: str) -> None:
    found = opened(write(volume=volume)).bars("QQQ", SESSION, SESSION.closes)
    assert found["volume"].isna().tolist() == [False, True, False]


def test_a_folder_gives_all_its_files(tmp_path: Path) -> None:
    bars_frame("QQQ").to_parquet(tmp_path / "a.parquet")
    bars_frame("SPY").to_csv(tmp_path / "b.csv", index=False)
    (tmp_path / "notes.txt").write_text("not bars")
    source = opened(tmp_path)
    assert source.symbols == ("QQQ", "SPY")
    assert source.dropped == {"a.parquet": 0, "b.csv": 0}


def test_several_paths_are_joined_and_equal_rows_count_once(tmp_path: Path) -> None:
    first, second = tmp_path / "first.parquet", tmp_path / "second.csv"
    bars_frame(first=0, count=5).to_parquet(first)
    bars_frame(first=3, count=5).to_csv(second, index=False)
    found = opened(second, first).bars("QQQ", SESSION, SESSION.closes)
    assert found["bar_ts"].tolist() == bars_frame(first=0, count=8)["ts"].tolist()


@pytest.mark.parametrize("by", ["ts", "symbol"])
def test_symbols_may_be_mixed_in_any_order_as_long_as_each_is_sorted(
    tmp_path: Path, by: str
) -> None:
    path = tmp_path / "bars.parquet"
    both = pd.concat([bars_frame("SPY"), bars_frame("QQQ")])
    both.sort_values(by, kind="stable").to_parquet(path)
    assert opened(path).symbols == ("QQQ", "SPY")


def test_a_file_of_option_chains_alone_is_no_source(tmp_path: Path) -> None:
    chain_frame().to_csv(tmp_path / "chain.csv", index=False)
    assert "no Parquet or CSV file of bars" in refusal(tmp_path / "chain.csv")


def test_rows_outside_the_sessions_are_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "bars.parquet"
    sunday = bars_frame(count=2).assign(
        ts=pd.date_range("2026-03-08T15:00Z", periods=2, freq="min")
    )
    pd.concat([sunday, bars_frame(first=-2, count=394)]).to_parquet(path)
    source = opened(path)
    assert source.dropped == {"bars.parquet": 2 + 2 + 2}
    assert len(source.bars("QQQ", SESSION, SESSION.closes)) == 390


def test_bars_of_another_length_are_dropped_where_they_are_off_the_grid(tmp_path: Path) -> None:
    path = tmp_path / "bars.parquet"
    bars_frame(count=10).to_parquet(path)
    five = SessionCalendar(bar_seconds=300, end=dt.date(2026, 12, 31))
    assert opened(path, calendar=five).dropped == {"bars.parquet": 8}


# -- asking ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "bars"), [(0, 0), (59, 0), (60, 1), (61, 1), (180, 3)])
def test_a_bar_is_shown_when_it_is_over(tmp_path: Path, seconds: int, bars: int) -> None:
    path = tmp_path / "bars.parquet"
    bars_frame().to_parquet(path)
    now = SESSION.opens + dt.timedelta(seconds=seconds)
    assert len(opened(path).bars("QQQ", SESSION, now)) == bars


def test_a_symbol_that_is_in_no_file_is_unknown_and_the_others_are_named(write: Write) -> None:
    with pytest.raises(SymbolUnknown, match="no file has bars of SPY; they have QQQ"):
        opened(write()).bars("SPY", SESSION, SESSION.closes)


def test_a_session_that_is_in_no_file_has_no_data_yet(write: Write) -> None:
    other = CALENDAR.session("2026-03-11")
    with pytest.raises(NoDataYet, match="no file has bars of QQQ in session 2026-03-11"):
        opened(write()).bars("QQQ", other, other.closes)


def test_what_a_caller_does_to_an_answer_does_not_reach_the_source(write: Write) -> None:
    source = opened(write())
    answer = source.bars("QQQ", SESSION, SESSION.closes)
    answer.loc[:, "close"] = -1.0
    assert source.bars("QQQ", SESSION, SESSION.closes)["close"].tolist() == [100.5] * 3


def test_a_day_is_made_of_its_minutes(tmp_path: Path) -> None:
    after = CALENDAR.session("2026-03-11")
    frame = bars_frame(count=390)
    later = frame.assign(ts=frame["ts"] + pd.Timedelta(days=1), close=frame["close"] - 0.5)
    later.loc[7, "volume"] = np.nan
    path = tmp_path / "bars.parquet"
    pd.concat([frame, later[:200]]).to_parquet(path)
    source = opened(path)
    days = source.daily("QQQ", "2026-03-01", "2026-03-31", after.closes)
    assert tuple(days.columns) == DAILY_COLUMNS
    assert days.astype(object).where(days.notna(), None).to_numpy().tolist() == [
        ["2026-03-10", 100.0, 490.0, 99.0, 489.0, 3900.0],
        ["2026-03-11", 100.0, 300.0, 99.0, 298.5, None],
    ]
    before = source.daily("QQQ", "2026-03-10", "2026-03-31", after.closes - MINUTE)
    assert before["session"].tolist() == ["2026-03-10"]


def test_without_a_session_that_is_over_there_is_no_day(write: Write) -> None:
    source = opened(write())
    with pytest.raises(NoDataYet, match="no file has a whole session of QQQ from 2026-03-10"):
        source.daily("QQQ", "2026-03-10", "2026-03-10", SESSION.closes - MINUTE)
    with pytest.raises(SymbolUnknown, match="no file has bars of SPY"):
        source.daily("SPY", "2026-03-10", "2026-03-10", SESSION.closes)


# -- bad files: one line that names file, row and column -----------------------------------------


@pytest.mark.parametrize(
    ("column", "text", "words"),
    [
        ("ts", "2026-03-10T13:31:00", "ts '2026-03-10T13:31:00' has no time zone"),
        ("ts", "2026-03-10", "ts '2026-03-10' has no time zone"),
        ("ts", "22-01-2026", "ts '22-01-2026' has no time zone"),
        ("ts", "yesterday", "ts 'yesterday' has no time zone"),
        ("ts", "2026-13-10T13:31:00Z", "ts '2026-13-10T13:31:00Z' is no time"),
        ("ts", "", "ts is missing"),
        ("ts", "2026-03-10T13:30:00Z", "ts is there twice for its symbol"),
        ("ts", "2026-03-10T13:29:00Z", "ts is earlier than in the row before it of its symbol"),
        ("symbol", "", "symbol is missing"),
        ("symbol", "  ", "symbol is missing"),
        ("open", "abc", "open 'abc' is no number"),
        ("volume", "many", "volume 'many' is no number"),
        ("open", "", "open is missing"),
        ("high", "NaN", "high is missing"),
        ("low", "0", "low is not a positive price"),
        ("close", "-1", "close is not a positive price"),
        ("high", "inf", "high is infinite"),
        ("low", "-inf", "low is infinite"),
        ("high", "1e8", "high is above 1e+07"),
        ("high", "98", "high is below open or close"),
        ("high", "100.2", "high is below open or close"),
        ("low", "100.2", "low is above open or close"),
        ("high", "300", "high is more than 2 times low"),
        ("volume", "-1", "volume is negative"),
        ("volume", "inf", "volume is infinite"),
    ],
)
def test_a_bad_value_is_refused_with_its_row_and_column(
    write: Write, column: str, text: str, words: str
) -> None:
    assert refusal(write(**{column: text})) == f"bars.csv row 2: {words}"


@pytest.mark.parametrize("factor", [10.0, 0.1])
def test_a_misplaced_decimal_point_is_refused_within_a_session_and_a_split_is_not(
    tmp_path: Path, factor: float
) -> None:
    path = tmp_path / "bars.parquet"
    prices = ["open", "high", "low", "close"]
    frame = bars_frame(count=5)
    frame.loc[3, prices] *= factor
    frame.to_parquet(path)
    expected = "row 4: open is more than 5 times away from the close before it"
    assert refusal(path) == f"bars.parquet {expected}"
    after = bars_frame(count=5)
    after["ts"] += pd.Timedelta(days=1)
    after[prices] *= factor
    pd.concat([bars_frame(count=5), after]).to_parquet(path)
    assert opened(path).sessions == ("2026-03-10", "2026-03-11")


def test_the_row_of_a_parquet_file_is_counted_from_one_too(tmp_path: Path) -> None:
    path = tmp_path / "bars.parquet"
    frame = bars_frame()
    frame.index = pd.Index([7, 8, 9])
    frame.loc[9, "close"] = np.nan
    frame.to_parquet(path)
    assert refusal(path) == "bars.parquet row 3: close is missing"


@pytest.mark.parametrize("column", ["symbol", "ts", "open", "high", "low", "close", "volume"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    path = tmp_path / "bars.csv"
    bars_frame().drop(columns=column).to_csv(path, index=False)
    assert refusal(path) == f"bars.csv: not a file of bars, it lacks {column}"


@pytest.mark.parametrize(
    ("header", "column"),
    [(f"{HEADER},Close", "close"), (f"{HEADER},TS", "ts"), (f"{HEADER},Symbol", "symbol")],
)
def test_a_column_that_is_there_twice_is_named(tmp_path: Path, header: str, column: str) -> None:
    path = tmp_path / "bars.csv"
    path.write_text(f"{header}\n{','.join(GOOD.values())},1\n")
    assert refusal(path) == f"bars.csv: column {column} is there twice"


def test_of_several_time_columns_the_first_known_name_counts(tmp_path: Path) -> None:
    path = tmp_path / "bars.csv"
    path.write_text(f"{HEADER},date,bar_ts\n{','.join(GOOD.values())},2026-03-10,nonsense\n")
    assert len(opened(path).bars("QQQ", SESSION, SESSION.closes)) == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("bars.csv", "", "the file is empty"),
        ("bars.csv", f"{HEADER}\n", "the file has no rows"),
        ("bars.csv", f"{HEADER}\n1,2,3,4,5,6,7\n1,2,3,4,5,6,7,8,9\n", "cannot be read (Error"),
        ("bars.csv", "\x00\x01", "not a file of bars, it lacks symbol"),
        ("bars.parquet", "", "cannot be read ("),
        ("bars.parquet", "PAR1 and no more", "cannot be read ("),
        ("bars.txt", "hello", "cannot be read ("),
    ],
)
def test_a_file_that_is_no_table_is_refused(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert refusal(path).startswith(f"{name}: {words}")


def test_a_csv_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bars.csv"
    path.write_bytes(f"{HEADER}\n".encode() + "Ä".encode("latin-1"))
    assert refusal(path).startswith("bars.csv: cannot be read (")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_half_written_parquet_file_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "bars.parquet"
    bars_frame(count=300).to_parquet(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert refusal(path).startswith("bars.parquet: cannot be read (")
    assert refusal(tmp_path).startswith("bars.parquet: cannot be read (")


@pytest.mark.parametrize(
    ("times", "words"),
    [
        pytest.param(pd.Series([1_773_149_400] * 3), "column ts holds numbers", id="seconds"),
        pytest.param(pd.Series([1.5] * 3), "column ts holds numbers", id="floats"),
        pytest.param(
            pd.Series(pd.date_range("2026-03-10T13:30", periods=3, freq="min")),
            "column ts has no time zone",
            id="naive",
        ),
    ],
)
def test_times_that_could_mean_several_things_are_refused(
    tmp_path: Path, times: pd.Series[Any], words: str
) -> None:
    path = tmp_path / "bars.parquet"
    bars_frame().assign(ts=times).to_parquet(path)
    assert refusal(path).startswith(f"bars.parquet: {words}")


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "no.parquet"
    assert refusal(missing) == f"{missing}: no such file or folder"


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path}: no Parquet or CSV file of bars in there"


def test_without_a_path_the_variable_to_set_is_named() -> None:
    assert "HEDGE_SOURCE_PATH" in refusal()


def test_two_files_that_disagree_are_both_named(tmp_path: Path) -> None:
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    bars_frame().to_csv(first, index=False)
    bars_frame().assign(volume=[10.0, 11.0, 10.0]).to_csv(second, index=False)
    expected = "first.csv and second.csv disagree on QQQ at 2026-03-10 13:31:00+00:00"
    assert refusal(first, second) == expected


def test_a_file_without_any_row_in_a_session_is_refused(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "old.csv"
    bars_frame().assign(ts=lambda frame: frame["ts"] - pd.Timedelta("9999 days")).to_csv(
        path, index=False
    )
    words = "old.csv: no row lies in a session of XNYS (bars of 60 s since 2024-01-02)"
    assert refusal(path) == words
    assert refusal(write(), path) == words


def test_a_single_file_can_be_read_without_a_calendar(write: Write) -> None:
    frame = read_bars(write())
    assert list(frame.columns) == ["symbol", "bar_ts", "open", "high", "low", "close", "volume"]
    assert len(frame) == 3


# -- option chains -----------------------------------------------------------------------------


def chain_frame(**changes: Any) -> pd.DataFrame:
    """Two contracts as a user's file may have them."""
    columns = {
        "symbol": "qqq",
        "as_of": ["2026-03-10T15:00:00Z"] * 2,
        "fetched": ["2026-03-10T15:16:00Z"] * 2,
        "expiry": "2026-03-20",
        "strike": [600.0, 610.0],
        "right": ["C", "put"],
        "open_interest": [10.0, np.nan],
        "volume": 1.0,
        "implied_volatility": 0.2,
        "bid": 1.0,
        "ask": 1.1,
    }
    return pd.DataFrame({**columns, **changes})


def with_chain(folder: Path, chain: pd.DataFrame) -> FileSource:
    bars_frame().to_parquet(folder / "bars.parquet")
    chain.to_csv(folder / "chain.csv", index=False)
    return opened(folder)


def test_option_chains_are_told_from_bars_by_their_columns(tmp_path: Path) -> None:
    source = with_chain(tmp_path, chain_frame())
    assert source.capabilities.has_chains
    found = source.chains("QQQ", SESSION, SESSION.closes, sweep=True)
    assert tuple(found.columns) == CHAIN_COLUMNS
    assert found[["expiry", "right"]].to_numpy().tolist() == [
        ["2026-03-20", "C"],
        ["2026-03-20", "P"],
    ]
    assert str(found["available_at"].dtype) == "datetime64[us, UTC]"
    assert found["available_at"].iloc[0] == pd.Timestamp("2026-03-10T15:16Z")


def test_bars_alone_promise_no_chains(write: Write) -> None:
    assert not opened(write()).capabilities.has_chains


def test_a_snapshot_is_not_known_before_it_was_available(tmp_path: Path) -> None:
    source = with_chain(tmp_path, chain_frame())
    early = pd.Timestamp("2026-03-10T15:15:59Z").to_pydatetime()
    assert source.chains("QQQ", SESSION, early, sweep=True).empty


def test_a_file_that_does_not_say_so_had_its_chains_half_an_hour_late(tmp_path: Path) -> None:
    source = with_chain(tmp_path, chain_frame().drop(columns="fetched"))
    found = source.chains("QQQ", SESSION, SESSION.closes, sweep=True)
    assert (found["available_at"] - found["as_of"]).unique().tolist() == [dt.timedelta(minutes=30)]


def test_a_chain_of_the_evening_before_belongs_to_the_session_it_came_in(tmp_path: Path) -> None:
    chain = chain_frame(as_of="2026-03-09T20:00:00Z", fetched="2026-03-10T11:18:00Z")
    assert len(with_chain(tmp_path, chain).chains("QQQ", SESSION, SESSION.closes, sweep=True)) == 2


def test_chains_of_a_weekend_are_dropped_and_counted(tmp_path: Path) -> None:
    chain = chain_frame(fetched=["2026-03-10T15:16:00Z", "2026-03-14T15:16:00Z"])
    source = with_chain(tmp_path, chain)
    assert source.dropped["chain.csv"] == 1
    with pytest.raises(NoDataYet, match="no file has option chains of SPY"):
        source.chains("SPY", SESSION, SESSION.closes, sweep=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"right": ["C", "X"]}, "row 2: right is neither C nor P"),
        ({"strike": [600.0, -1.0]}, "row 2: strike is not a positive price"),
        ({"expiry": ["2026-03-20", "soon"]}, "row 2: expiry is no date"),
        ({"open_interest": [-1.0, 1.0]}, "row 1: open_interest is negative"),
        ({"implied_volatility": [0.2, np.inf]}, "row 2: implied_volatility is infinite"),
        ({"as_of": ["2026-03-10T15:00:00"] * 2}, "row 1: as_of '2026-03-10T15:00:00' has no time"),
        ({"fetched": ["2026-03-10T14:00:00Z"] * 2}, "row 1: available_at is before as_of"),
        ({"strike": [600.0, 600.0], "right": "C", "bid": [1.0, 2.0]}, "disagree on QQQ 2026-03-20"),
    ],
)
def test_a_bad_chain_is_refused_with_its_place(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    bars_frame().to_parquet(tmp_path / "bars.parquet")
    chain_frame(**changes).to_csv(tmp_path / "chain.csv", index=False)
    text = refusal(tmp_path)
    assert text.startswith("chain.csv") and words in text


def test_a_chain_without_a_column_says_which(tmp_path: Path) -> None:
    bars_frame().to_parquet(tmp_path / "bars.parquet")
    chain_frame().drop(columns="volume").to_csv(tmp_path / "chain.csv", index=False)
    assert "it lacks volume" in refusal(tmp_path)
