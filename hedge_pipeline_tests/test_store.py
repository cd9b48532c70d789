"""What the store promises: the first row wins, a kill loses nothing, any tool can read it."""

from __future__ import annotations

import datetime as dt
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hedge_pipeline import store as store_module
from hedge_pipeline.market.tables import (
    GAPS,
    LEGACY_TABLES,
    OPTION_CHAINS,
    OUTCOMES,
    PREDICTION_LOG,
    PROMOTIONS,
    RAW_QUOTES,
    TABLES,
    Table,
)
from hedge_pipeline.store import Store, StoreError

DAY = "2026-03-10"
OPENS = pd.Timestamp("2026-03-10T13:30Z")
URLS = ("folder", "memory")
EACH_TABLE = pytest.mark.parametrize(
    "table", (*TABLES, *LEGACY_TABLES), ids=lambda table: table.name
)


@pytest.fixture(params=URLS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A local folder that does not exist yet, or a place in memory."""
    if request.param == "folder":
        yield str(tmp_path / "data")
    else:
        place = f"memory://{uuid.uuid4().hex}"
        yield place
        import fsspec

        filesystem, root = fsspec.core.url_to_fs(place)
        if filesystem.exists(root):
            filesystem.rm(root, recursive=True)


def rows(
    *minutes: int, table: Table = RAW_QUOTES, symbol: str = "QQQ", price: float = 1.0
) -> pd.DataFrame:
    """Rows of these minutes that keep every promise of the table."""
    starts = [OPENS + pd.Timedelta(minutes=minute) for minute in minutes]
    values: dict[str, Any] = {}
    for column in table.columns:
        plain: dict[str, Any] = {
            "text": column.among[0] if column.among else "word",
            "time": starts,
            "float": price if column.most is None and column.name not in table.key else 0.5,
            "float32": 0.5,
            "integer": 1,
            "small": 1,
            "flag": True,
        }
        values[column.name] = plain[column.kind]
    frame = pd.DataFrame(values, index=range(len(minutes)))
    frame["symbol"] = symbol
    if "session" in table.key:
        frame["session"] = [f"s{minute:04d}" for minute in minutes]
    return table.conform(frame)


def minutes(frame: pd.DataFrame) -> list[int]:
    return [int((start - OPENS) // pd.Timedelta(minutes=1)) for start in frame["bar_ts"]]


def files(root: str | Path) -> list[str]:
    """Every file below a local folder, hidden ones too."""
    folder = Path(root)
    return sorted(str(x.relative_to(folder)) for x in folder.rglob("*") if x.is_file())


def only_part(store: Store, table: Table = RAW_QUOTES) -> Path:
    (part,) = (Path(store.url) / table.name / f"session={DAY}").glob("*.parquet")
    return part


# -- append and read ---------------------------------------------------------------------------


@EACH_TABLE
def test_what_was_appended_is_read_back(url: str, table: Table) -> None:
    store, written = Store(url), rows(0, 1, 2, table=table)
    assert store.append(table, DAY, written) == 3
    pd.testing.assert_frame_equal(Store(url).read(table), written)
    assert store.sessions(table) == (DAY,)
    assert store.size(table) > 0


@EACH_TABLE
def test_a_table_without_files_is_empty_with_its_own_columns(url: str, table: Table) -> None:
    found = Store(url).read(table)
    pd.testing.assert_frame_equal(found, table.empty())
    assert Store(url).sessions(table) == ()
    assert Store(url).size(table) == 0
    assert Store(url).fingerprints(table) == {}


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("table", [OPTION_CHAINS, RAW_QUOTES], ids=lambda table: table.name)
@pytest.mark.parametrize("wanted", [(), (1,), (0, 3), (2, 9)])
def test_only_the_rows_asked_for_are_read(
    url: str, table: Table, wanted: tuple[int, ...], compacted: bool
) -> None:
    store = Store(url)
    for symbol in ("SIMQ", "SIMN"):
        store.append(table, DAY, rows(0, 1, symbol=symbol, table=table))
        store.append(table, DAY, rows(2, symbol=symbol, table=table))
        store.append(table, DAY, rows(1, 3, symbol=symbol, table=table, price=2.0))
    if compacted:
        store.compact(table, DAY)
    moment = "as_of" if table is OPTION_CHAINS else "bar_ts"
    moments = [OPENS + pd.Timedelta(minutes=minute) for minute in wanted]
    whole = store.read(table, [DAY])
    expected = whole[(whole["symbol"] == "SIMN") & whole[moment].isin(moments)]
    found = store.read(table, [DAY], only={"symbol": ["SIMN"], moment: moments})
    pd.testing.assert_frame_equal(found, expected.reset_index(drop=True))
    assert len(found) == len({0, 1, 2, 3} & set(wanted))


def test_unknown_values_stay_unknown(url: str) -> None:
    frame = rows(0, 1, table=PREDICTION_LOG)
    frame["prediction"] = pd.Series([pd.NA, 0], dtype="Int8")
    frame["prob_up"] = [np.nan, 0.25]
    store = Store(url)
    store.append(PREDICTION_LOG, DAY, frame)
    pd.testing.assert_frame_equal(store.read(PREDICTION_LOG), frame)


@EACH_TABLE
def test_the_first_row_written_for_a_key_is_the_one_that_counts(url: str, table: Table) -> None:
    store, first = Store(url), rows(0, 1, table=table)
    second = rows(0, 1, 2, table=table, price=2.0)
    store.append(table, DAY, first)
    before = store.fingerprints(table)
    assert store.append(table, DAY, second.head(2)) == 0
    assert store.fingerprints(table) == before
    # a bulky table is not compared row by row: what is there twice is read once
    assert store.append(table, DAY, second) == (3 if table.bulky else 1)
    expected = pd.concat([first, second.tail(1)], ignore_index=True)
    pd.testing.assert_frame_equal(store.read(table), expected)


def test_of_two_rows_in_one_append_the_first_counts(url: str) -> None:
    store = Store(url)
    twice = pd.concat([rows(0, price=1.0), rows(0, price=2.0)])
    assert store.append(RAW_QUOTES, DAY, twice) == 1
    assert store.read(RAW_QUOTES)["close"].tolist() == [1.0]


def test_nothing_appended_leaves_no_trace(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "data"))
    assert store.append(RAW_QUOTES, DAY, RAW_QUOTES.empty()) == 0
    assert not (tmp_path / "data").exists()


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=st.lists(
        st.lists(st.tuples(st.sampled_from("AB"), st.integers(0, 12)), max_size=8), max_size=5
    ),
    compact_after=st.sets(st.integers(0, 4)),
)
def test_whatever_the_splits_orders_and_doubles_each_key_is_there_once_with_its_first_row(
    batches: list[list[tuple[str, int]]], compact_after: set[int], tmp_path: Path
) -> None:
    store = Store(str(tmp_path / uuid.uuid4().hex))
    expected: dict[tuple[str, int], float] = {}
    number = 0
    for position, batch in enumerate(batches):
        pieces = []
        new = 0
        for key in batch:
            number += 1
            pieces.append(rows(key[1], symbol=key[0], price=float(number)))
            new += key not in expected
            expected.setdefault(key, float(number))
        frame = pd.concat(pieces) if pieces else RAW_QUOTES.empty()
        assert store.append(RAW_QUOTES, DAY, frame) == new
        if position in compact_after:
            assert store.compact(RAW_QUOTES, DAY) == len(expected)
    found = store.read(RAW_QUOTES)
    keys = list(zip(found["symbol"], minutes(found), strict=True))
    assert keys == sorted(expected)
    assert dict(zip(keys, found["close"], strict=True)) == expected


def test_the_earlier_decision_counts_when_two_writers_did_not_see_each_other(
    tmp_path: Path,
) -> None:
    early, late = rows(0, table=PREDICTION_LOG), rows(0, table=PREDICTION_LOG)
    late["decided_at"] = late["decided_at"] + pd.Timedelta(seconds=5)
    late["price"] = 2.0
    both = Store(str(tmp_path / "data"))
    for name, frame in (("one", late), ("two", early)):
        alone = Store(str(tmp_path / name))
        extra = rows(7 if name == "one" else 8, table=PREDICTION_LOG)
        alone.append(PREDICTION_LOG, DAY, pd.concat([frame, extra]))
        target = Path(both.url) / "prediction_log" / f"session={DAY}"
        target.mkdir(parents=True, exist_ok=True)
        part = only_part(alone, PREDICTION_LOG)
        (target / part.name).write_bytes(part.read_bytes())
    found = both.read(PREDICTION_LOG)
    assert minutes(found) == [0, 7, 8]
    assert found["price"].tolist() == [1.0, 1.0, 1.0]
    assert both.compact(PREDICTION_LOG, DAY) == 3
    pd.testing.assert_frame_equal(both.read(PREDICTION_LOG), found)


def test_a_writer_that_did_not_see_the_first_rows_cannot_overwrite_them(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(url).append(RAW_QUOTES, DAY, rows(0, 1, price=1.0))
    blind = Store(url)
    monkeypatch.setattr(blind, "read", lambda *_, **__: RAW_QUOTES.empty())
    blind.append(RAW_QUOTES, DAY, rows(0, 1, price=2.0))
    assert Store(url).read(RAW_QUOTES)["close"].tolist() == [1.0, 1.0]


def test_rows_are_sorted_by_session_and_key(url: str) -> None:
    store = Store(url)
    store.append(RAW_QUOTES, "2026-03-11", rows(5, symbol="A"))
    store.append(RAW_QUOTES, DAY, rows(3, symbol="B"))
    store.append(RAW_QUOTES, DAY, rows(2, 1, symbol="B"))
    store.append(RAW_QUOTES, DAY, rows(9, symbol="A"))
    found = store.read(RAW_QUOTES)
    assert list(zip(found["symbol"], minutes(found), strict=True)) == [
        ("A", 9),
        ("B", 1),
        ("B", 2),
        ("B", 3),
        ("A", 5),
    ]


def test_a_read_can_be_narrowed_to_sessions_symbols_and_columns(url: str) -> None:
    store = Store(url)
    for label in (DAY, "2026-03-11", "2026-03-12"):
        store.append(RAW_QUOTES, label, rows(0, symbol="A"))
        store.append(RAW_QUOTES, label, rows(0, 1, symbol="B"))
    found = store.read(
        RAW_QUOTES,
        ["2026-03-12", DAY, DAY, "2026-03-13"],
        symbols=("B",),
        columns=("symbol", "low"),
    )
    assert list(found.columns) == ["symbol", "low"]
    assert found["symbol"].tolist() == ["B"] * 4
    assert store.read(RAW_QUOTES, [DAY], symbols=("C",)).empty
    # what is asked for need not be shown
    alone = store.read(RAW_QUOTES, [DAY], symbols=("B",), columns=("close",))
    assert alone["close"].equals(store.read(RAW_QUOTES, [DAY], symbols=("B",))["close"])
    assert len(store.read(RAW_QUOTES, [])) == 0


@pytest.mark.parametrize(("bars", "held"), [(10, {20}), (600, {600})])
def test_of_large_sessions_only_the_rows_asked_for_are_held(
    url: str, monkeypatch: pytest.MonkeyPatch, bars: int, held: set[int]
) -> None:
    store = Store(url)
    for label in (DAY, "2026-03-11"):
        for symbol in ("A", "B"):
            store.append(RAW_QUOTES, label, rows(*range(bars), symbol=symbol))
    seen: list[int] = []
    of_session = Store._session

    def counted(self: Store, *given: Any) -> list[pa.Table]:
        found = of_session(self, *given)
        seen.extend(piece.num_rows for piece in found)
        return found

    monkeypatch.setattr(Store, "_session", counted)
    assert store.read(RAW_QUOTES, symbols=("B",), columns=("low",)).shape == (2 * bars, 1)
    assert set(seen) == held


def test_what_a_reader_does_to_a_frame_does_not_reach_the_store(url: str) -> None:
    store = Store(url)
    store.append(RAW_QUOTES, DAY, rows(0, 1))
    found = store.read(RAW_QUOTES)
    found.loc[:, "close"] = -1.0
    assert store.read(RAW_QUOTES)["close"].tolist() == [1.0, 1.0]


@EACH_TABLE
def test_what_was_just_written_is_read_without_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: Table
) -> None:
    store = Store(str(tmp_path))
    written = rows(0, 1, 2, table=table)
    store.append(table, DAY, written)
    asked: list[str] = []
    load = Store._load

    def noted(self: Store, path: str, *given: Any) -> pa.Table:
        asked.append(path)
        return load(self, path, *given)

    monkeypatch.setattr(Store, "_load", noted)
    pd.testing.assert_frame_equal(store.read(table), written)
    assert len(asked) == table.bulky
    store.replace(table, DAY, written[1:])
    pd.testing.assert_frame_equal(store.read(table), written[1:].reset_index(drop=True))
    assert len(asked) == 2 * table.bulky


def test_what_a_writer_does_to_its_frame_afterwards_does_not_reach_the_store(url: str) -> None:
    store, written = Store(url), rows(0, 1)
    store.append(RAW_QUOTES, DAY, written)
    values = written["close"].to_numpy()
    values.flags.writeable = True
    values[:] = 2.0
    assert written["close"].tolist() == [2.0, 2.0]
    assert store.read(RAW_QUOTES)["close"].tolist() == [1.0, 1.0]


def test_a_part_that_another_writer_has_replaced_is_read_anew(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.replace(RAW_QUOTES, DAY, rows(0, 1))
    Store(str(tmp_path)).replace(RAW_QUOTES, DAY, rows(0, 1, price=2.0))
    assert store.read(RAW_QUOTES)["close"].tolist() == [2.0, 2.0]


@EACH_TABLE
def test_rows_without_a_frame_are_the_same_rows(url: str, table: Table) -> None:
    store = Store(url)
    for symbol in ("A", "B", "C"):
        store.append(table, DAY, rows(0, 1, table=table, symbol=symbol))
    found = store.read_arrow(table, symbols=("A", "C"))
    assert found.schema.equals(table.arrow)
    assert found["symbol"].to_pylist() == ["A", "A", "C", "C"]
    frame = store.read(table, symbols=("A", "C"))
    assert found.equals(table.in_arrow(frame))
    assert store.read_arrow(table, ["2026-03-11"]).equals(table.arrow.empty_table())


def test_the_same_rows_go_to_the_same_file_in_any_order(tmp_path: Path) -> None:
    names = []
    for number, order in enumerate([(0, 1, 2), (2, 0, 1)]):
        store = Store(str(tmp_path / str(number)))
        store.append(RAW_QUOTES, DAY, rows(*order))
        names.append(files(store.url))
    assert names[0] == names[1]
    other = Store(str(tmp_path / "other"))
    other.append(RAW_QUOTES, DAY, rows(1, 2))
    assert files(other.url) != names[0]
    assert names[0][0].startswith(f"raw_quotes/session={DAY}/part-133200-")


def test_a_part_without_a_bar_time_is_named_by_its_keys_too(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.append(PROMOTIONS, DAY, rows(0, table=PROMOTIONS))
    store.append(PROMOTIONS, DAY, rows(1, table=PROMOTIONS))
    assert len(files(tmp_path)) == 2
    assert len(store.read(PROMOTIONS)) == 2


def test_many_writers_at_once_lose_and_double_nothing(tmp_path: Path) -> None:
    root = str(tmp_path)

    def work(first: int) -> None:
        for start in range(first, first + 12, 3):
            Store(root).append(RAW_QUOTES, DAY, rows(start, start + 1, start + 2))

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 6, 0, 12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert minutes(Store(root).read(RAW_QUOTES)) == list(range(24))


# -- replace -----------------------------------------------------------------------------------


@EACH_TABLE
def test_a_replacement_holds_exactly_its_rows(url: str, table: Table) -> None:
    store = Store(url)
    assert store.replace(table, DAY, rows(0, 1, 2, table=table)) == 3
    assert store.replace(table, DAY, rows(2, 1, table=table, price=2.0)) == 2
    pd.testing.assert_frame_equal(Store(url).read(table), rows(1, 2, table=table, price=2.0))


def test_a_replacement_by_nothing_removes_the_session(url: str) -> None:
    store = Store(url)
    store.replace(GAPS, DAY, rows(0, table=GAPS))
    assert store.replace(GAPS, DAY, GAPS.empty()) == 0
    assert store.read(GAPS).empty
    assert store.sessions(GAPS) == ()
    assert store.replace(GAPS, DAY, GAPS.empty()) == 0


def test_of_doubled_rows_a_replacement_keeps_the_first(url: str) -> None:
    store = Store(url)
    twice = pd.concat([rows(0, 1, price=1.0), rows(1, price=2.0)])
    assert store.replace(RAW_QUOTES, DAY, twice) == 2
    assert store.read(RAW_QUOTES)["close"].tolist() == [1.0, 1.0]


def test_a_replacement_leaves_nothing_of_what_was_appended(url: str) -> None:
    store = Store(url)
    store.append(OUTCOMES, DAY, rows(0, table=OUTCOMES))
    store.append(OUTCOMES, DAY, rows(1, table=OUTCOMES))
    store.replace(OUTCOMES, DAY, rows(1, 2, table=OUTCOMES))
    assert minutes(store.read(OUTCOMES)) == [1, 2]
    assert len(store.names(f"outcomes/session={DAY}")) == 1


def test_two_who_compact_at_once_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is stopped between reading and writing; the other compacts more rows meanwhile."""
    slow, quick = Store(str(tmp_path)), Store(str(tmp_path))
    slow.append(RAW_QUOTES, DAY, rows(0))
    slow.append(RAW_QUOTES, DAY, rows(1))
    write = Store._write

    def interrupted(self: Store, *arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(Store, "_write", write)
        quick.append(RAW_QUOTES, DAY, rows(2))
        assert quick.compact(RAW_QUOTES, DAY) == 3
        write(self, *arguments, **options)

    monkeypatch.setattr(Store, "_write", interrupted)
    assert slow.compact(RAW_QUOTES, DAY) == 2
    assert minutes(Store(str(tmp_path)).read(RAW_QUOTES)) == [0, 1, 2]
    assert Store(str(tmp_path)).compact(RAW_QUOTES, DAY) == 3
    assert minutes(Store(str(tmp_path)).read(RAW_QUOTES)) == [0, 1, 2]


# -- compact -----------------------------------------------------------------------------------


@EACH_TABLE
def test_a_compacted_session_is_one_file_with_the_same_rows(tmp_path: Path, table: Table) -> None:
    store = Store(str(tmp_path))
    for minute in (2, 0, 1):
        store.append(table, DAY, rows(minute, table=table))
    before = store.read(table)
    assert len(files(tmp_path)) == 3
    assert store.compact(table, DAY) == 3
    (name,) = files(tmp_path)
    assert name.startswith(f"{table.name}/session={DAY}/session-")
    pd.testing.assert_frame_equal(Store(str(tmp_path)).read(table), before)
    assert store.compact(table, DAY) == 3


def test_the_files_of_a_session_that_grows_are_not_remembered_once_they_are_gone(url: str) -> None:
    """A bar's files take a hundred times their size in memory, and a day has thousands of them."""
    store, writer = Store(url), Store(url)
    for minute in range(60):
        writer.append(RAW_QUOTES, DAY, rows(minute))
        assert len(store.read(RAW_QUOTES, [DAY])) == minute + 1
        if minute % 20 == 19:
            writer.compact(RAW_QUOTES, DAY)
            assert len(store.read(RAW_QUOTES, [DAY])) == minute + 1
            assert len(store._files._entries) == 1
            assert len(store._sessions._entries) == 0
        assert len(store._files._entries) <= 21
    whole = store.read(RAW_QUOTES, [DAY])
    assert store._files._bytes >= len(RAW_QUOTES.names) * 1600
    pd.testing.assert_frame_equal(whole, Store(url).read(RAW_QUOTES, [DAY]))


def test_what_is_remembered_stays_within_its_bytes(tmp_path: Path) -> None:
    """Small tables count for what they take, not for what they hold."""
    days = [f"2026-03-{day:02d}" for day in range(1, 21)]
    store = Store(str(tmp_path), cached_bytes=300_000)
    for day in days:
        store.append(RAW_QUOTES, day, rows(1))
    for _ in range(2):
        for day in days:
            assert len(store.read(RAW_QUOTES, [day])) == 1
        assert 0 < store._files._bytes <= 300_000
        assert len(store._files._entries) == 300_000 // (1600 * len(RAW_QUOTES.names) + 122)


def test_a_session_in_memory_is_compacted_too(url: str) -> None:
    store = Store(url)
    store.append(RAW_QUOTES, DAY, rows(0))
    store.append(RAW_QUOTES, DAY, rows(1))
    assert store.compact(RAW_QUOTES, DAY) == 2
    assert store.append(RAW_QUOTES, DAY, rows(0, 1, 2)) == 1
    assert store.compact(RAW_QUOTES, DAY) == 3
    assert minutes(store.read(RAW_QUOTES)) == [0, 1, 2]
    (name,) = store.names(f"raw_quotes/session={DAY}")
    assert name.startswith("session-")


def test_a_session_without_files_is_compacted_to_nothing(url: str) -> None:
    assert Store(url).compact(RAW_QUOTES, DAY) == 0
    assert Store(url).sessions(RAW_QUOTES) == ()


def test_parts_are_kept_when_the_compacted_file_is_not_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    store.append(RAW_QUOTES, DAY, rows(0))
    store.append(RAW_QUOTES, DAY, rows(1))
    parts = files(tmp_path)
    write = Store._write

    def lossy(self: Store, path: Any, table: Table, rows: pa.Table, *, first: bool) -> None:
        write(self, path, table, rows.slice(0, 1), first=first)

    monkeypatch.setattr(Store, "_write", lossy)
    with pytest.raises(StoreError, match="does not hold the keys of its parts"):
        store.compact(RAW_QUOTES, DAY)
    assert set(parts) < set(files(tmp_path))
    assert minutes(Store(str(tmp_path)).read(RAW_QUOTES)) == [0, 1]


@pytest.mark.parametrize("name", ["_signature", "_load"])
def test_a_reader_is_not_disturbed_by_a_compaction_under_its_hands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    root = str(tmp_path)
    for minute in (0, 1, 2):
        Store(root).append(RAW_QUOTES, DAY, rows(minute))
    reader = Store(root)
    original = getattr(reader, name)
    calls = 0

    def compacting(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            Store(root).compact(RAW_QUOTES, DAY)
        return original(*arguments)

    monkeypatch.setattr(reader, name, compacting)
    assert minutes(reader.read(RAW_QUOTES)) == [0, 1, 2]
    assert calls > 2


def test_a_folder_that_changes_for_ever_is_given_up_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    store.append(RAW_QUOTES, DAY, rows(0))

    def vanished(*_: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(store, "_signature", vanished)
    with pytest.raises(StoreError, match="changes faster than it can be read"):
        store.read(RAW_QUOTES)


# -- killed anywhere (I5) ----------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here: nothing after it runs, not even a clean-up."""


class Executioner:
    """Lets so many calls of the system pass and then ends the process."""

    CALLS = ("open", "fsync", "link", "replace", "unlink", "remove", "makedirs")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, survive: int) -> None:
        self.left = survive
        self.dead = False
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self._guarded(getattr(os, name)))

    def _guarded(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any, **options: Any) -> Any:
            if self.dead or self.left == 0:
                self.dead = True
                raise Killed
            self.left -= 1
            return original(*arguments, **options)

        return guarded


def append_and_compact(store: Store) -> None:
    """The work of a session: it may be repeated as often as one likes."""
    store.append(RAW_QUOTES, DAY, rows(0, 1))
    store.append(RAW_QUOTES, DAY, rows(1, 2, 3))
    store.replace(GAPS, DAY, rows(4, table=GAPS))
    store.compact(RAW_QUOTES, DAY)
    store.append(RAW_QUOTES, DAY, rows(5))
    store.compact(RAW_QUOTES, DAY)
    store.replace(GAPS, DAY, rows(4, 6, table=GAPS))


CALLS_OF_THE_WORK = 60


def killed_after(root: str, calls: int) -> bool:
    """Whether the work was killed when only so many calls were allowed."""
    with pytest.MonkeyPatch.context() as patch:
        Executioner(patch, calls)
        try:
            append_and_compact(Store(root))
        except Killed:
            return True
    return False


@pytest.mark.parametrize("calls", range(CALLS_OF_THE_WORK))
def test_killed_at_any_call_nothing_is_lost_doubled_or_half_written(
    tmp_path: Path, calls: int
) -> None:
    root = str(tmp_path / "data")
    killed = killed_after(root, calls)
    seen = minutes(Store(root).read(RAW_QUOTES))
    assert seen in ([], [0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 5])
    assert killed or seen == [0, 1, 2, 3, 5]
    append_and_compact(Store(root))
    assert minutes(Store(root).read(RAW_QUOTES)) == [0, 1, 2, 3, 5]
    assert minutes(Store(root).read(GAPS)) == [4, 6]
    visible = [name for name in files(root) if not Path(name).name.startswith(".")]
    assert [str(Path(name).parent) for name in visible] == [
        f"gaps/session={DAY}",
        f"raw_quotes/session={DAY}",
    ]


@pytest.mark.parametrize(
    ("write", "naming"),
    [
        (lambda store: store.append(RAW_QUOTES, DAY, rows(0)), "link"),
        (lambda store: store.replace(RAW_QUOTES, DAY, rows(0)), "replace"),
    ],
    ids=["append", "replace"],
)
def test_a_file_is_flushed_before_it_gets_its_name_and_its_folder_after(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Store], object],
    naming: str,
) -> None:
    done: list[str] = []

    def noted(name: str) -> Callable[..., Any]:
        original = getattr(os, name)

        def call(*arguments: Any) -> Any:
            done.append(name)
            return original(*arguments)

        return call

    for name in ("fsync", "link", "replace"):
        monkeypatch.setattr(os, name, noted(name))
    write(Store(str(tmp_path)))
    assert done == ["fsync", naming, "fsync"]


def test_the_kill_test_reaches_every_call(tmp_path: Path) -> None:
    assert not killed_after(str(tmp_path / "whole"), CALLS_OF_THE_WORK)
    assert killed_after(str(tmp_path / "short"), CALLS_OF_THE_WORK // 2)


def test_a_kill_while_writing_leaves_nothing_a_reader_could_see(tmp_path: Path) -> None:
    hidden = set()
    for calls in range(6):
        root = tmp_path / str(calls)
        killed_after(str(root), calls)
        hidden |= {Path(name).suffix for name in files(root) if Path(name).name.startswith(".")}
        assert Store(str(root)).sessions(RAW_QUOTES) in ((), (DAY,))
    assert hidden == {".tmp"}


# -- broken files and places -------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_part_is_named_with_what_to_do(tmp_path: Path, share: float) -> None:
    store = Store(str(tmp_path))
    store.append(RAW_QUOTES, DAY, rows(*range(100)))
    part = only_part(store)
    whole = part.read_bytes()
    part.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(StoreError) as refused:
        Store(str(tmp_path)).read(RAW_QUOTES)
    text = str(refused.value)
    assert text.startswith(f"{part} is no whole Parquet file (")
    assert text.endswith("; move it away and materialize its session again")
    assert "\n" not in text


@pytest.mark.parametrize("share", [0.01, 0.99], ids=["page", "footer"])
def test_a_damaged_part_is_named_too(tmp_path: Path, share: float) -> None:
    store = Store(str(tmp_path))
    store.append(RAW_QUOTES, DAY, rows(*range(100)))
    part = only_part(store)
    content = bytearray(part.read_bytes())
    place = int(share * len(content))
    content[place : place + 8] = b"\xff" * 8
    part.write_bytes(content)
    with pytest.raises(StoreError, match="is no whole Parquet file") as refused:
        Store(str(tmp_path)).read(RAW_QUOTES)
    assert "\n" not in str(refused.value)


def test_a_broken_part_stops_an_append_before_it_can_double_a_row(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.append(RAW_QUOTES, DAY, rows(0))
    only_part(store).write_bytes(b"")
    with pytest.raises(StoreError, match="is no whole Parquet file"):
        Store(str(tmp_path)).append(RAW_QUOTES, DAY, rows(0, price=2.0))
    assert len(files(tmp_path)) == 1


Change = Callable[[pa.Table], pa.Table]


def as_integers(table: pa.Table) -> pa.Table:
    place = table.schema.get_field_index("volume")
    return table.set_column(place, "volume", table["volume"].cast(pa.int64()))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda table: table.drop_columns(["low"]), id="a column too few"),
        pytest.param(
            lambda table: table.append_column("vwap", pa.array([1.0])), id="a column too many"
        ),
        pytest.param(as_integers, id="another type"),
    ],
)
@pytest.mark.parametrize("beside_a_good_one", [True, False])
def test_a_file_of_another_version_is_named(
    tmp_path: Path, change: Change, beside_a_good_one: bool
) -> None:
    store = Store(str(tmp_path))
    store.append(RAW_QUOTES, DAY, rows(0))
    part = only_part(store)
    other = part.with_name("part-other.parquet")
    pq.write_table(change(pq.read_table(part, partitioning=None)), other)
    if not beside_a_good_one:
        part.unlink()
    with pytest.raises(StoreError) as refused:
        Store(str(tmp_path)).read(RAW_QUOTES)
    words = "has not the columns of raw_quotes: it was written by another version"
    assert str(refused.value) == f"{other} {words}"


READS: list[Callable[[Store], object]] = [
    lambda store: store.read(RAW_QUOTES),
    lambda store: store.read(RAW_QUOTES, [DAY]),
    lambda store: store.names("models"),
]
WRITES: list[Callable[[Store], object]] = [
    lambda store: store.check_writable(),
    lambda store: store.append(RAW_QUOTES, DAY, rows(0)),
    lambda store: store.replace(RAW_QUOTES, DAY, rows(0)),
    lambda store: store.write_bytes("models/one.ubj", b"x"),
]


@pytest.mark.parametrize("use", WRITES, ids=["probe", "append", "replace", "bytes"])
def test_a_place_that_cannot_be_written_is_told_in_one_line(
    tmp_path: Path, use: Callable[[Store], object]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    root = str(tmp_path / "file" / "below")
    with pytest.raises(StoreError) as refused:
        use(Store(root))
    text = str(refused.value)
    assert text.startswith(f"the data folder {root} cannot be ")
    assert text.endswith(": Not a directory")
    assert "\n" not in text


@pytest.mark.parametrize("use", READS, ids=["read", "read a session", "names"])
def test_a_place_below_a_file_holds_nothing_or_says_so(
    tmp_path: Path, use: Callable[[Store], object]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = Store(str(tmp_path / "file" / "below"))
    try:
        found = use(store)
    except StoreError as error:
        assert str(error).startswith(f"the data folder {store.url} cannot be read: ")
    else:
        assert len(found) == 0  # type: ignore[arg-type]


def test_a_write_the_system_refuses_is_told_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="cannot be written: No space left on device"):
        store.append(RAW_QUOTES, DAY, rows(0))
    assert files(tmp_path) == []


def test_a_writable_place_is_left_clean(url: str) -> None:
    store = Store(url)
    store.check_writable()
    assert store.names("") == ()


# -- for other tools ---------------------------------------------------------------------------


@pytest.mark.parametrize("compacted", [True, False])
def test_plain_pandas_reads_a_table_from_its_folder(tmp_path: Path, compacted: bool) -> None:
    store = Store(str(tmp_path))
    store.append(RAW_QUOTES, DAY, rows(0))
    store.append(RAW_QUOTES, DAY, rows(1))
    store.append(RAW_QUOTES, "2026-03-11", rows(2))
    if compacted:
        store.compact(RAW_QUOTES, DAY)
    killed = tmp_path / "raw_quotes" / f"session={DAY}" / ".part-x.parquet.1.2.tmp"
    killed.write_bytes(b"half")
    found = pd.read_parquet(tmp_path / "raw_quotes")
    assert sorted(minutes(found)) == [0, 1, 2]
    assert sorted(found["session"].astype(str)) == [DAY, DAY, "2026-03-11"]


def test_hidden_files_of_the_system_are_no_parts(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.append(RAW_QUOTES, DAY, rows(0))
    part = only_part(store)
    part.with_name(f"._{part.name}").write_bytes(b"what a Mac leaves beside every copied file")
    assert minutes(Store(str(tmp_path)).read(RAW_QUOTES)) == [0]


def test_duckdb_reads_a_table_with_its_sessions(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.append(RAW_QUOTES, DAY, rows(0, price=3.0))
    store.append(RAW_QUOTES, DAY, rows(1, price=5.0))
    store.append(RAW_QUOTES, "2026-03-11", rows(2))
    pattern = f"{tmp_path}/raw_quotes/*/*.parquet"
    with duckdb.connect() as connection:
        found = connection.execute(
            "SELECT CAST(session AS VARCHAR), count(*), sum(close) "
            f"FROM read_parquet('{pattern}', hive_partitioning = true) GROUP BY 1 ORDER BY 1"
        ).fetchall()
    assert found == [(DAY, 2, 8.0), ("2026-03-11", 1, 1.0)]


def test_a_file_names_the_version_of_its_schema(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.append(RAW_QUOTES, DAY, rows(0))
    schema = pq.read_schema(only_part(store))
    assert schema.metadata[b"schema_hash"].decode() == RAW_QUOTES.schema_hash


# -- the newest sessions -----------------------------------------------------------------------


DAYS = tuple(f"2026-03-{day:02d}" for day in range(1, 29))


def test_the_newest_sessions_are_those_that_have_files(url: str) -> None:
    store, other = Store(url), Store(url)
    assert list(store.newest_first(RAW_QUOTES)) == []
    for day in DAYS[:6]:
        other.append(RAW_QUOTES, day, rows(0))
        assert store.sessions(RAW_QUOTES, last=3) == other.sessions(RAW_QUOTES)[-3:]
    other.drop(RAW_QUOTES, DAYS[5])
    assert tuple(store.newest_first(RAW_QUOTES)) == DAYS[4::-1]
    other.append(RAW_QUOTES, DAYS[5], rows(0))
    assert store.sessions(RAW_QUOTES, last=1) == (DAYS[5],)
    assert store.sessions(RAW_QUOTES, last=0) == ()


def test_a_folder_without_parts_is_no_session(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.append(RAW_QUOTES, DAYS[0], rows(0))
    (tmp_path / "raw_quotes" / f"session={DAYS[1]}").mkdir()
    (tmp_path / "raw_quotes" / f"session={DAYS[1]}" / ".broken-part.parquet").touch()
    (tmp_path / "raw_quotes" / "notes.txt").touch()
    assert list(store.newest_first(RAW_QUOTES)) == [DAYS[0]] == list(store.sessions(RAW_QUOTES))


def test_a_session_is_seen_where_the_file_system_notes_whole_seconds(tmp_path: Path) -> None:
    store, other = Store(str(tmp_path)), Store(str(tmp_path))
    second = int(time.time() - 0.05)
    for number, day in enumerate(DAYS[:2]):
        other.append(RAW_QUOTES, day, rows(0))
        os.utime(tmp_path / "raw_quotes", (second, second))
        assert store.sessions(RAW_QUOTES, last=3) == DAYS[: number + 1]


@pytest.mark.parametrize("stored", [5, 28])
def test_the_newest_sessions_cost_the_same_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: int
) -> None:
    store = Store(str(tmp_path))
    for day in DAYS[:stored]:
        store.append(RAW_QUOTES, day, rows(0))
    time.sleep(0.02)  # what changed a moment ago is not remembered
    store.sessions(RAW_QUOTES, last=3)
    looked: list[str] = []

    def noted(plain: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def call(path: Any) -> Any:
            looked.append(str(path))
            return plain(path)

        return call

    for name in ("scandir", "listdir", "stat"):
        monkeypatch.setattr(os, name, noted(getattr(os, name)))
    assert store.sessions(RAW_QUOTES, last=3) == DAYS[stored - 3 : stored]
    assert len(looked) == 4, looked


# -- summaries ---------------------------------------------------------------------------------


PLAIN = replace(PROMOTIONS, summed_up=False)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are settled at once, and of any number of sessions summaries serve."""
    monkeypatch.setattr(store_module, "SETTLED", dt.timedelta(seconds=-60))
    monkeypatch.setattr(store_module, "_SUMMED_UP_FROM", 0)


def entries(*numbers: int, symbol: str = "QQQ", at: int = 0) -> pd.DataFrame:
    """Rows of the promotion log, decided `at` minutes after those with the same key."""
    frame = rows(*numbers, table=PROMOTIONS, symbol=symbol)
    return frame.assign(decided_at=frame["decided_at"] + pd.Timedelta(minutes=at))


def test_a_summary_changes_nothing_that_is_read(url: str, at_once: None) -> None:
    draw, store, other = random.Random(5), Store(url), Store(url)
    for step in range(150):
        day, symbol = draw.choice(DAYS[:6]), draw.choice(["QQQ", "SPY"])
        numbers = draw.sample(range(5), 2)
        what = draw.choice([0, 0, 0, 0, 1, 1, 2, 3])
        if what == 0:
            draw.choice([store, other]).append(PROMOTIONS, day, entries(*numbers, symbol=symbol))
        elif what == 1:
            draw.choice([store, other]).sum_up(PROMOTIONS)
        elif what == 2:
            store.compact(PROMOTIONS, day)
        else:
            other.drop(PROMOTIONS, day)
        asked = draw.choice([None, DAYS[1:4], DAYS[:1], ()])
        symbols = draw.choice([None, ["SPY"], ["QQQ", "SPY"]])
        columns = draw.choice([None, ("session", "number"), ("reason",)])
        found, plain = (
            reader.read(table, asked, symbols=symbols, columns=columns)
            for reader, table in ((store, PROMOTIONS), (Store(url), PLAIN))
        )
        pd.testing.assert_frame_equal(found, plain, obj=f"step {step}")
    assert store.sum_up(PROMOTIONS) == len(store.sessions(PROMOTIONS)) > 2


def test_with_a_summary_no_file_of_a_session_is_read(
    url: str, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(url)
    for day in DAYS:
        store.append(PROMOTIONS, day, entries(0, 1))
        store.append(PROMOTIONS, day, entries(2))
    wanted = store.read(PLAIN)
    assert store.sum_up(PROMOTIONS) == len(DAYS)
    assert sum(x.startswith("session-") for day in DAYS for x in parts_of(store, day)) == len(DAYS)
    read: list[str] = []
    fresh = Store(url)
    plain = fresh._session

    def noted(table: Table, session: str, *more: Any) -> list[pa.Table]:
        read.append(session)
        return plain(table, session, *more)

    monkeypatch.setattr(fresh, "_session", noted)
    pd.testing.assert_frame_equal(fresh.read(PROMOTIONS), wanted)
    assert read == []
    store.append(PROMOTIONS, DAYS[3], entries(7))
    assert len(fresh.read(PROMOTIONS)) == len(wanted) + 1
    assert read == [DAYS[3]]


def parts_of(store: Store, day: str) -> list[str]:
    return [Path(x).name for x in store._parts(PROMOTIONS, day)]


def test_what_is_younger_than_a_day_is_left_as_it_is(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for number in range(3):
        store.append(PROMOTIONS, DAY, entries(number))
    before = parts_of(store, DAY)
    assert store.sum_up(PROMOTIONS) == 0
    assert parts_of(store, DAY) == before
    then = time.time() - 86_500
    for part in before[:2]:
        os.utime(tmp_path / "promotions" / f"session={DAY}" / part, (then, then))
    assert store.sum_up(PROMOTIONS) == 0
    os.utime(tmp_path / "promotions" / f"session={DAY}" / before[2], (then, then))
    assert store.sum_up(PROMOTIONS) == 1
    (compacted,) = parts_of(store, DAY)
    assert compacted.startswith("session-")


@pytest.mark.parametrize("summed_up", [False, True])
def test_of_two_entries_with_one_key_the_second_is_told_so_also_after_a_night(
    url: str, at_once: None, summed_up: bool
) -> None:
    store, other = Store(url), Store(url)
    assert store.append(PROMOTIONS, DAY, entries(1)) == 1
    if summed_up:
        store.sum_up(PROMOTIONS)
    assert other.append(PROMOTIONS, DAY, entries(1, at=1)) == 0
    assert other.append(PROMOTIONS, DAY, entries(1, at=-1)) == 0
    assert other.append(PROMOTIONS, DAY, entries(1, 2)) == 1
    pd.testing.assert_frame_equal(store.read(PROMOTIONS), entries(1, 2))


def test_a_night_that_is_killed_loses_nothing(
    url: str, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in DAYS[:4]:
        for number in range(3):
            Store(url).append(PROMOTIONS, day, entries(number))
    wanted, killed = Store(url).read(PLAIN), 0
    for last in range(100):
        store, calls = Store(url), 0

        def counted(plain: Callable[..., Any], last: int = last) -> Callable[..., Any]:
            def call(*arguments: Any, **more: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls > last:
                    raise KeyboardInterrupt
                return plain(*arguments, **more)

            return call

        with monkeypatch.context() as patch:
            for name in ("_put", "_remove"):
                patch.setattr(store, name, counted(getattr(store, name)))
            try:
                store.sum_up(PROMOTIONS)
            except KeyboardInterrupt:
                killed += 1
            else:
                break
        pd.testing.assert_frame_equal(Store(url).read(PROMOTIONS), wanted)
    assert killed > 2
    pd.testing.assert_frame_equal(Store(url).read(PROMOTIONS), wanted)


def test_a_summary_that_is_damaged_or_gone_is_done_without(tmp_path: Path, at_once: None) -> None:
    store = Store(str(tmp_path))
    for day in DAYS[:4]:
        store.append(PROMOTIONS, day, entries(0))
    store.sum_up(PROMOTIONS)
    summary, wanted = tmp_path / ".summaries" / "promotions.parquet", store.read(PLAIN)
    whole = summary.read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        summary.write_bytes(whole[:length])
        pd.testing.assert_frame_equal(Store(str(tmp_path)).read(PROMOTIONS), wanted)
    assert store.sum_up(PROMOTIONS) == 4
    assert len(pq.read_table(summary)) == 4
    summary.unlink()
    pd.testing.assert_frame_equal(store.read(PROMOTIONS), wanted)


# -- small files and fingerprints --------------------------------------------------------------


def test_a_small_file_is_written_whole_and_read_back(url: str) -> None:
    store = Store(url)
    store.write_bytes("models/QQQ/1.ubj", b"one")
    store.write_bytes("models/QQQ/1.ubj", b"two")
    assert store.read_bytes("models/QQQ/1.ubj") == b"two"
    assert store.names("models/QQQ") == ("1.ubj",)
    assert store.names("models/SPY") == ()


def test_a_small_file_that_is_missing_is_not_found(url: str) -> None:
    with pytest.raises(FileNotFoundError):
        Store(url).read_bytes("models/none.ubj")


def test_a_small_file_that_cannot_be_read_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "models" / "1.ubj").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"models/1\.ubj cannot be read: Is a directory$"):
        Store(str(tmp_path)).read_bytes("models/1.ubj")


Step = Callable[[Store], object]
STEPS: list[Step] = [
    lambda store: store.append(RAW_QUOTES, DAY, rows(7)),
    lambda store: store.append(RAW_QUOTES, "2026-03-11", rows(7)),
    lambda store: store.replace(RAW_QUOTES, DAY, rows(0, price=2.0)),
    lambda store: store.compact(RAW_QUOTES, DAY),
]


@pytest.mark.parametrize("step", STEPS, ids=["part", "session", "replacement", "compaction"])
def test_the_fingerprint_changes_with_every_change(url: str, step: Step) -> None:
    store = Store(url)
    store.append(RAW_QUOTES, DAY, rows(0))
    store.append(RAW_QUOTES, DAY, rows(1))
    before = store.fingerprints(RAW_QUOTES)
    assert Store(url).fingerprints(RAW_QUOTES) == before
    step(store)
    assert store.fingerprints(RAW_QUOTES) != before


def test_the_fingerprint_sees_a_replacement_of_the_same_size(url: str) -> None:
    store = Store(url)
    store.replace(RAW_QUOTES, DAY, rows(0, price=2.0))
    before, size = store.fingerprints(RAW_QUOTES), store.size(RAW_QUOTES)
    for price in range(3, 300):  # a checksum may take a byte less
        store.replace(RAW_QUOTES, DAY, rows(0, price=float(price)))
        if store.size(RAW_QUOTES) == size:
            break
    assert store.size(RAW_QUOTES) == size
    assert store.fingerprints(RAW_QUOTES) != before
    assert store.read(RAW_QUOTES)["close"].tolist() == [price]


def test_another_store_sees_a_change_at_once(url: str) -> None:
    one, two = Store(url), Store(url)
    one.append(RAW_QUOTES, DAY, rows(0))
    assert minutes(two.read(RAW_QUOTES)) == [0]
    one.append(RAW_QUOTES, DAY, rows(1))
    assert minutes(two.read(RAW_QUOTES)) == [0, 1]
    assert two.append(RAW_QUOTES, DAY, rows(0, 1)) == 0
