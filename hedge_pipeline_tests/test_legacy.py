"""The log of the system before this one: nothing of it is lost silently, nothing of it counts."""

from __future__ import annotations

import ast
import datetime as dt
import inspect
import json
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hedge_pipeline
from hedge_pipeline import legacy_files, stages
from hedge_pipeline.legacy import FileReport, ImportReport, import_legacy, legacy_summary
from hedge_pipeline.legacy_files import LAYOUTS
from hedge_pipeline.market.calendar import SessionCalendar
from hedge_pipeline.market.sources import BadInput
from hedge_pipeline.market.tables import (
    LEGACY_FEATURES,
    LEGACY_OUTCOMES,
    LEGACY_PREDICTIONS,
    LEGACY_TABLES,
    TABLES,
    Table,
)
from hedge_pipeline.replay import replay
from hedge_pipeline.status import status
from hedge_pipeline.store import Store
from hedge_pipeline_tests.replays import (
    DEMO_SESSIONS,
    Demo,
    assert_equal_tables,
    demo_in,
    hedge,
    replay_in,
)
from hedge_pipeline_tests.runs import files

NOW = dt.datetime(2026, 3, 2, 12, 0, tzinfo=dt.UTC)
CALENDAR = SessionCalendar()
PREDICTIONS = "predictions.csv"
FEATURES = "features.csv"
OUTCOMES = "outcomes.csv"
HEADER = (
    "timestamp,symbol,price,prediction,confidence,strength_score,level_type,level_source,"
    "signal_fired,model_version,prediction_id"
)
ROW = "2025-01-03 09:31:07,QQQ,500.25,1,0.61,20.5,support,MHP,True,model_20250102_020000.pkl,a1"
TWO_OUTCOMES = """timestamp,symbol,entry_price,exit_price,return_pct,actual_direction
2025-01-03 09:31:07,QQQ,500,501,0.2,1
2025-01-03 09:41:07,QQQ,500,501,0.2,0
"""
FEATURE_ROWS = """timestamp,symbol,rsi,macd
2025-01-03 09:31:07,QQQ,51.5,
2025-01-03 09:32:07,QQQ,52.5,-0.25
"""


def write(folder: Path, contents: dict[str, str | bytes]) -> Path:
    """The folder with these files and no others."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, content in contents.items():
        content = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(content)
    return folder


def imported(
    place: Path,
    contents: dict[str, str | bytes],
    *,
    calendar: SessionCalendar = CALENDAR,
    now: dt.datetime = NOW,
) -> ImportReport:
    """The report on files that are imported into the store at `place`/data."""
    return import_legacy(store_in(place), calendar, write(place / "old", contents), now)


def store_in(place: Path) -> Store:
    return Store(str(place / "data"))


def only(report: ImportReport) -> FileReport:
    (found,) = report.files
    return found


def counts(report: FileReport) -> tuple[int, int, int, int]:
    return report.rows, report.imported, report.duplicates, len(report.refused)


def with_value(header: str, row: str, column: str, value: str) -> str:
    """A file of one row in which the value of one column is another."""
    cells = dict(zip(header.split(","), row.split(","), strict=True)) | {column: value}
    return f"{header}\n{','.join(cells.values())}\n"


# -- what is stored --------------------------------------------------------------------------------


def test_a_prediction_is_stored_as_the_file_has_it(tmp_path: Path) -> None:
    report = imported(tmp_path, {PREDICTIONS: f"{HEADER}\n{ROW}\n"})
    assert report.ok
    assert counts(only(report)) == (1, 1, 0, 0)
    (row,) = store_in(tmp_path).read(LEGACY_PREDICTIONS, ["2025-01-03"]).to_dict("records")
    assert row == {
        "symbol": "QQQ",
        "logged_at": pd.Timestamp("2025-01-03T14:31:07Z"),
        "bar_ts": pd.Timestamp("2025-01-03T14:31:00Z"),
        "prediction_id": "a1",
        "price": 500.25,
        "prediction": 1,
        "confidence": 0.61,
        "strength_score": 20.5,
        "level_type": "support",
        "level_source": "MHP",
        "signal_fired": True,
        "model_version": "model_20250102_020000.pkl",
        "imported_at": pd.Timestamp(NOW),
    }


def test_features_are_one_row_per_value_and_an_empty_one_is_unknown(tmp_path: Path) -> None:
    report = imported(tmp_path, {FEATURES: FEATURE_ROWS})
    assert counts(only(report)) == (2, 2, 0, 0)
    rows = store_in(tmp_path).read(LEGACY_FEATURES)
    assert rows["name"].tolist() == ["macd", "rsi", "macd", "rsi"]
    np.testing.assert_array_equal(rows["value"], [np.nan, 51.5, -0.25, 52.5])
    assert rows["bar_ts"].dt.strftime("%H:%M").tolist() == ["14:31", "14:31", "14:32", "14:32"]


def test_an_outcome_is_stored_as_the_file_has_it(tmp_path: Path) -> None:
    imported(tmp_path, {OUTCOMES: TWO_OUTCOMES})
    rows = store_in(tmp_path).read(LEGACY_OUTCOMES)
    assert rows["actual_direction"].tolist() == [1, 0]
    assert rows["horizon"].tolist() == ["unknown", "unknown"]
    assert rows[["entry_price", "exit_price", "return_pct"]].to_numpy().tolist() == 2 * [
        [500.0, 501.0, 0.2]
    ]
    assert rows["prediction_id"].isna().all()


def test_outcomes_of_one_prediction_may_differ_in_their_horizon(tmp_path: Path) -> None:
    text = "timestamp,symbol,actual_direction,horizon\n" + "".join(
        f"2025-01-03 09:31:07,QQQ,1,{horizon}\n" for horizon in ("5", "10", "10.0", "")
    )
    report = only(imported(tmp_path, {OUTCOMES: text}))
    assert counts(report) == (4, 3, 1, 0)
    assert set(store_in(tmp_path).read(LEGACY_OUTCOMES)["horizon"]) == {"5", "10", "unknown"}


@pytest.mark.parametrize(
    ("name", "content"),
    [(PREDICTIONS, f"{HEADER}\n{ROW}\n"), (FEATURES, FEATURE_ROWS), (OUTCOMES, TWO_OUTCOMES)],
)
def test_what_is_stored_keeps_every_promise_of_its_table(
    tmp_path: Path, name: str, content: str
) -> None:
    imported(tmp_path, {name: content})
    stored = {table.name: store_in(tmp_path).read(table) for table in LEGACY_TABLES}
    assert sum(len(rows) > 0 for rows in stored.values()) == 1
    assert [table.violations(stored[table.name]) for table in LEGACY_TABLES] == [{}, {}, {}]


def test_columns_a_file_has_not_are_unknown_and_named(tmp_path: Path) -> None:
    text = "timestamp,symbol,prediction\n2025-01-03 09:31,QQQ,up\n"
    report = imported(tmp_path, {PREDICTIONS: text})
    unknown = ["price", "confidence", "strength_score", "level_type", "level_source"]
    unknown += ["signal_fired", "model_version", "prediction_id"]
    assert store_in(tmp_path).read(LEGACY_PREDICTIONS)[unknown].isna().all(axis=None)
    assert list(only(report).absent) == unknown
    assert f"predictions.csv: has no {', no '.join(unknown)}" in list(report.in_words())


# -- times -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "moment"),
    [
        ("2025-01-03 09:31:07", "2025-01-03T14:31:07Z"),
        ("2025-07-03 09:31:07", "2025-07-03T13:31:07Z"),
        ("2025-01-03 09:31:59", "2025-01-03T14:31:59Z"),
        ("2025-01-03T09:31", "2025-01-03T14:31:00Z"),
        ("2025-01-03 09:31:07.123456789", "2025-01-03T14:31:07.123456Z"),
        ('"2025-01-03 09:31:07,5"', "2025-01-03T14:31:07.5Z"),
        ("2025-01-03T09:31:07Z", "2025-01-03T09:31:07Z"),
        ("2025-01-03T09:31:07.25+00:00", "2025-01-03T09:31:07.25Z"),
        ("2025-01-03 09:31:07-0500", "2025-01-03T14:31:07Z"),
        ("2025-01-03 09:31:07 -05", "2025-01-03T14:31:07Z"),
        ("2025-11-02 01:30:00-04:00", "2025-11-02T05:30:00Z"),
        ("2025-11-02 01:30:00-05:00", "2025-11-02T06:30:00Z"),
    ],
)
def test_a_time_without_a_zone_is_the_exchanges_and_another_is_converted(
    tmp_path: Path, said: str, moment: str
) -> None:
    text = f"timestamp,symbol,prediction\n{said},QQQ,1\n"
    report = imported(tmp_path, {PREDICTIONS: text})
    assert not only(report).refused
    rows = store_in(tmp_path).read(LEGACY_PREDICTIONS)
    assert rows["logged_at"].tolist() == [pd.Timestamp(moment)]
    assert rows["bar_ts"].tolist() == [pd.Timestamp(moment).floor("min")]


def test_the_exchange_is_that_of_the_calendar(tmp_path: Path) -> None:
    text = "timestamp,symbol,prediction\n2025-01-03 09:31,BTC-USD,1\n"
    report = imported(tmp_path, {PREDICTIONS: text}, calendar=SessionCalendar("24/7"))
    assert report.zone == "UTC"
    rows = store_in(tmp_path).read(LEGACY_PREDICTIONS)
    assert rows["logged_at"].tolist() == [pd.Timestamp("2025-01-03T09:31Z")]


def test_the_report_says_how_times_without_a_zone_were_taken(tmp_path: Path) -> None:
    text = "timestamp,symbol,prediction\n2025-01-03 09:31,QQQ,1\n2025-01-03T09:31Z,QQQ,1\n"
    report = imported(tmp_path, {PREDICTIONS: text})
    said = "1 times without a zone were taken as exchange time, America/New_York"
    assert said in list(report.in_words())
    assert report.to_json()["naive_times_taken_as"] == "America/New_York"


@pytest.mark.parametrize(
    ("moment", "date"),
    [
        ("2025-01-04 12:00", "2025-01-04"),  # a Saturday
        ("2025-01-01 10:00", "2025-01-01"),  # a holiday
        ("2025-01-03 20:30", "2025-01-03"),  # the next day in UTC
        ("2025-01-04T02:00:00Z", "2025-01-03"),
        ("2019-06-03 10:00", "2019-06-03"),  # before the history of the calendar
    ],
)
def test_rows_outside_the_sessions_are_kept_on_their_date_at_the_exchange(
    tmp_path: Path, moment: str, date: str
) -> None:
    imported(tmp_path, {PREDICTIONS: f"timestamp,symbol,prediction\n{moment},QQQ,1\n"})
    store = store_in(tmp_path)
    assert store.sessions(LEGACY_PREDICTIONS) == (date,)
    assert len(store.read(LEGACY_PREDICTIONS, [date])) == 1


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "said", "stored"),
    [
        *(("prediction", word, 1) for word in ("1", "1.0", "up", "UP", " Up ")),
        *(("prediction", word, 0) for word in ("0", "0.0", "down", "Down")),
        *(("signal_fired", word, True) for word in ("True", "true", "1", "1.0")),
        *(("signal_fired", word, False) for word in ("False", "FALSE", "0", "0.0")),
        *(("level_type", word, "none") for word in ("none", "None")),
        ("level_type", "Resistance", "resistance"),
        ("level_source", "mhp", "MHP"),
        ("level_source", "None", "none"),
        ("confidence", "0", 0.0),
        ("confidence", "6.1e-1", 0.61),
        ("strength_score", "100", 100.0),
        ("symbol", "brk-b", "BRK-B"),
        ("symbol", "^GSPC", "^GSPC"),
        ("symbol", "NAN", "NAN"),
        ("price", '"500"', 500.0),
    ],
)
def test_the_spellings_of_a_value(tmp_path: Path, column: str, said: str, stored: Any) -> None:
    report = imported(tmp_path, {PREDICTIONS: with_value(HEADER, ROW, column, said)})
    assert only(report).refused == {}
    assert store_in(tmp_path).read(LEGACY_PREDICTIONS)[column].tolist() == [stored]


@pytest.mark.parametrize("said", ["", "nan", "None", "NULL", "  "])
@pytest.mark.parametrize("column", ["price", "confidence", "signal_fired", "model_version"])
def test_an_empty_value_is_unknown(tmp_path: Path, column: str, said: str) -> None:
    imported(tmp_path, {PREDICTIONS: with_value(HEADER, ROW, column, said)})
    assert store_in(tmp_path).read(LEGACY_PREDICTIONS)[column].isna().tolist() == [True]


BAD_PREDICTIONS = [
    ("timestamp", "", "timestamp is missing"),
    ("timestamp", "2025-01-03", "timestamp '2025-01-03' is no time like 2025-01-31 09:31:00"),
    ("timestamp", "1/3/2025 9:31", "timestamp '1/3/2025 9:31' is no time like"),
    ("timestamp", "1735914667", "timestamp '1735914667' is no time like"),
    ("timestamp", "2025-02-30 09:31:00", "timestamp '2025-02-30 09:31:00' is no time"),
    ("timestamp", "2025-01-03 09:31:00+99:00", "is no time"),
    ("timestamp", "2025-11-02 01:30:00", "is not one moment in America/New_York"),
    ("timestamp", "2025-03-09 02:30:00", "is not one moment in America/New_York"),
    ("timestamp", "1970-01-01 00:00:00", "lies before 2000"),
    ("timestamp", "0001-01-01T00:00:00Z", "lies before 2000"),
    ("timestamp", "2026-03-02T12:00:01Z", "lies in the future"),
    ("timestamp", "9999-12-31T23:59:59Z", "lies in the future"),
    ("symbol", "", "symbol is missing"),
    ("symbol", "A B", "symbol 'A B' is no symbol"),
    ("symbol", "../QQQ", "symbol '../QQQ' is no symbol"),
    ("prediction", "", "prediction is missing"),
    ("prediction", "2", "prediction '2' is not 1, 0, up or down"),
    ("prediction", "0.5", "prediction '0.5' is not 1, 0, up or down"),
    ("price", "0", "price '0' is not above 0"),
    ("price", "-1", "price '-1' is not above 0"),
    ("price", "inf", "price 'inf' is not finite"),
    ("price", "1e999", "price '1e999' is not finite"),
    ("price", "1_000", "price '1_000' is no number"),
    ("price", '"1,000.50"', "price '1,000.50' is no number"),
    ("price", "\u0665", "price '\u0665' is no number"),
    ("confidence", "66.67", "confidence '66.67' is not in 0..1"),
    ("confidence", "-0.01", "confidence '-0.01' is not in 0..1"),
    ("confidence", "high", "confidence 'high' is no number"),
    ("strength_score", "100.5", "strength_score '100.5' is not in 0..100"),
    ("level_type", "pivot", "level_type 'pivot' is not support, resistance or none"),
    ("level_source", "GEX", "level_source 'GEX' is not HP, MHP, HG or none"),
    ("signal_fired", "yes", "signal_fired 'yes' is not 1, 0, true or false"),
]


@pytest.mark.parametrize(("column", "said", "reason"), BAD_PREDICTIONS)
def test_a_wrong_value_refuses_its_row_with_line_and_reason(
    tmp_path: Path, column: str, said: str, reason: str
) -> None:
    first = ROW.replace("09:31:07", "09:30:07")
    bad = with_value(HEADER, ROW, column, said).splitlines()[1]
    report = imported(tmp_path, {PREDICTIONS: f"{HEADER}\n{first}\n\n{bad}\n"})
    assert not report.ok
    assert counts(only(report)) == (2, 1, 0, 1)
    ((line, words),) = only(report).refused.items()
    assert line == 4
    assert reason in words
    assert f"predictions.csv line 4: {words}" in list(report.in_words())
    assert len(store_in(tmp_path).read(LEGACY_PREDICTIONS)) == 1


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"2025-01-03 09:33,QQQ", "the line has 2 values, the header 3"),
        (b"2025-01-03 09:33,QQQ,1,", "the line has 4 values, the header 3"),
        (b",,", "timestamp is missing"),
        (b'"2025-01-03 09:33,QQQ,1', "the line has a quote that does not end"),
        (b'"2025-01-03" 09:33,QQQ,1', "the line has a quote that does not end, or not at the"),
        (b"2025-01-03 09:33,QQ\xff,1", "the line is not UTF-8"),
        (b"\0\0\0\0\0\0", "the line holds NUL bytes"),
    ],
)
def test_a_damaged_line_costs_itself_only(tmp_path: Path, bad: bytes, reason: str) -> None:
    good = b"2025-01-03 09:32,QQQ,1\n"
    text = b"timestamp,symbol,prediction\n" + bad + b"\n" + good
    report = only(imported(tmp_path, {PREDICTIONS: text}))
    assert counts(report) == (2, 1, 0, 1)
    assert report.refused[2].startswith(reason)


@pytest.mark.parametrize(
    ("column", "said", "reason"),
    [
        ("actual_direction", "", "actual_direction is missing"),
        ("actual_direction", "flat", "actual_direction 'flat' is not 1, 0, up or down"),
        ("exit_price", "0", "exit_price '0' is not above 0"),
        ("return_pct", "0.2%", "return_pct '0.2%' is no number"),
        ("horizon", "0", "horizon '0' is not above 0"),
        ("horizon", "soon", "horizon 'soon' is no number"),
    ],
)
def test_a_wrong_value_refuses_its_outcome(
    tmp_path: Path, column: str, said: str, reason: str
) -> None:
    header = "timestamp,symbol,entry_price,exit_price,return_pct,actual_direction,horizon"
    row = "2025-01-03 09:31:07,QQQ,500,501,0.2,1,10"
    report = imported(tmp_path, {OUTCOMES: with_value(header, row, column, said)})
    assert only(report).refused == {2: reason}


def test_one_wrong_feature_refuses_its_row(tmp_path: Path) -> None:
    text = FEATURE_ROWS + "2025-01-03 09:33:07,QQQ,high,1\n2025-01-03 09:34:07,QQQ,1,-inf\n"
    report = only(imported(tmp_path, {FEATURES: text}))
    assert report.refused == {4: "rsi 'high' is no number", 5: "macd '-inf' is not finite"}
    assert len(store_in(tmp_path).read(LEGACY_FEATURES)) == 4


def test_a_column_without_any_number_is_no_feature_and_is_named(tmp_path: Path) -> None:
    text = ",timestamp,symbol,rsi,regime,above,empty,model_version\n" + "".join(
        f"{i},2025-01-03 09:3{i}:00,QQQ,{i},calm,{i == 1},,{i}\n" for i in range(3)
    )
    report = only(imported(tmp_path, {FEATURES: text}))
    assert report.features == ("rsi", "above", "empty")
    assert report.ignored == ("column 1", "regime", "model_version")
    rows = store_in(tmp_path).read(LEGACY_FEATURES)
    assert rows.loc[rows["name"] == "above", "value"].tolist() == [0.0, 1.0, 0.0]
    assert rows.loc[rows["name"] == "empty", "value"].isna().all()


# -- columns and files -----------------------------------------------------------------------------


@pytest.mark.parametrize("title", ["Timestamp", " TIME STAMP ", "time-stamp", '"timestamp"'])
def test_names_of_columns_count_without_case_and_punctuation(tmp_path: Path, title: str) -> None:
    text = f"{title.replace('TIME STAMP', 'Date Time')},SYMBOL, Prediction ,Strength Score\n"
    text = text.replace("time-stamp", "date-time") + "2025-01-03 09:31,QQQ,1,7\n"
    report = only(imported(tmp_path, {PREDICTIONS: text}))
    assert counts(report) == (1, 1, 0, 0)
    assert store_in(tmp_path).read(LEGACY_PREDICTIONS)["strength_score"].tolist() == [7.0]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.file)
def test_every_name_of_a_column_is_documented(layout: legacy_files.Layout) -> None:
    words = set(re.findall(r"\w+", inspect.getdoc(legacy_files) or ""))
    assert {name for x in layout.fields for name in (x.name, *x.names)} <= words
    assert set(layout.times) <= words


@pytest.mark.parametrize(
    ("name", "read", "ignored", "moment"),
    [
        (OUTCOMES, "Prediction_Time", "time", "2025-01-03T14:31Z"),
        (PREDICTIONS, "time", "Prediction_Time", "2025-01-03T14:41Z"),
    ],
)
def test_of_two_names_for_one_thing_the_first_counts_and_the_other_is_named(
    tmp_path: Path, name: str, read: str, ignored: str, moment: str
) -> None:
    text = (
        "time,Prediction_Time,symbol,direction\n"
        "2025-01-03 09:41,2025-01-03 09:31,QQQ,1\nsoon,later,QQQ,1\n"
    )
    report = only(imported(tmp_path, {name: text}))
    assert report.columns["timestamp"] == read
    assert report.ignored == (ignored,)
    assert report.refused[3].startswith(f"{read} ")
    (table,) = (layout.table for layout in LAYOUTS if layout.file == name)
    assert store_in(tmp_path).read(table)["logged_at"].tolist() == [pd.Timestamp(moment)]


FORMS: dict[str, Callable[[str], bytes]] = {
    "BOM": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "semicolons": lambda text: text.replace(",", ";").encode(),
    "tabs": lambda text: text.replace(",", "\t").encode(),
    "bars": lambda text: text.replace(",", "|").encode(),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "CR": lambda text: text.replace("\n", "\r").encode(),
    "quotes": lambda text: re.sub(r"[^,\n]+", r'"\g<0>"', text).encode(),
    "no last line end": lambda text: text.rstrip("\n").encode(),
    "blanks": lambda text: text.replace(",", " , ").encode(),
    "BOM, semicolons, CRLF, quotes": lambda text: (
        b"\xef\xbb\xbf"
        + re.sub(r"[^,\n]+", r'"\g<0>"', text).replace(",", ";").replace("\n", "\r\n").encode()
    ),
}
PLAIN = {
    PREDICTIONS: f"{HEADER}\n{ROW}\n{ROW.replace('09:31', '09:32')}\n{ROW.replace('09', 'x')}\n",
    FEATURES: FEATURE_ROWS,
    OUTCOMES: TWO_OUTCOMES,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_a_file_does_not_matter(tmp_path: Path, form: str) -> None:
    for name in ("plain", "other"):
        (tmp_path / name).mkdir()
    wanted = imported(tmp_path / "plain", dict(PLAIN))
    found = imported(tmp_path / "other", {name: FORMS[form](text) for name, text in PLAIN.items()})
    assert [counts(x) for x in found.files] == [counts(x) for x in wanted.files]
    assert [list(x.refused) for x in found.files] == [[4], [], []]
    assert_equal_tables(
        store_in(tmp_path / "other"), store_in(tmp_path / "plain"), tables=LEGACY_TABLES
    )


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff", " \r\n"])
def test_an_empty_file_has_no_rows_and_is_called_empty(tmp_path: Path, content: str) -> None:
    report = imported(tmp_path, {PREDICTIONS: content})
    assert counts(only(report)) == (0, 0, 0, 0)
    assert only(report).note == "the file is empty"
    assert report.ok


@pytest.mark.parametrize(
    ("name", "header"),
    [(PREDICTIONS, HEADER), (FEATURES, "timestamp,symbol,rsi"), (OUTCOMES, TWO_OUTCOMES[:70])],
)
def test_a_header_alone_is_a_file_without_rows(tmp_path: Path, name: str, header: str) -> None:
    report = imported(tmp_path, {name: header.split("\n")[0]})
    assert counts(only(report)) == (0, 0, 0, 0)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("name", "header", "reason"),
    [
        (PREDICTIONS, "a,b,c", "the file has no column timestamp and no column symbol and no"),
        (PREDICTIONS, "timestamp,symbol,price", "the file has no column prediction"),
        (PREDICTIONS, "timestamp,symbol,prediction,Prediction", "column prediction is there twice"),
        (PREDICTIONS, '"timestamp,symbol', "the header has a quote that does not end"),
        (PREDICTIONS, "2025-01-03 09:30,QQQ,1", "the file has no column timestamp"),
        (FEATURES, "timestamp,rsi", "the file has no column symbol"),
        (FEATURES, "timestamp,symbol", "the file has no column of a feature"),
        (FEATURES, "timestamp,symbol,rsi,rsi", "column rsi is there twice"),
        (OUTCOMES, "timestamp,symbol,exit_price", "the file has no column actual_direction"),
        (OUTCOMES, "symbol,actual_direction", "the file has no column timestamp"),
    ],
)
def test_without_the_needed_columns_every_row_is_refused(
    tmp_path: Path, name: str, header: str, reason: str
) -> None:
    report = imported(tmp_path, {name: f"{header}\n1,2\n\n3,4\n"})
    assert counts(only(report)) == (2, 0, 0, 2)
    assert list(only(report).refused) == [2, 4]
    assert all(words.startswith(reason) for words in only(report).refused.values())


def test_lines_refused_for_one_reason_are_told_as_a_stretch(tmp_path: Path) -> None:
    report = imported(tmp_path, {PREDICTIONS: "timestamp,symbol\n" + 5 * "x,y\n" + "\nx,y\n"})
    assert list(only(report).refused_in_words()) == [
        "predictions.csv lines 2-6: the file has no column prediction",
        "predictions.csv line 8: the file has no column prediction",
    ]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    report = imported(tmp_path, {FEATURES: FEATURE_ROWS})
    assert report.missing == (PREDICTIONS, OUTCOMES)
    assert {"predictions.csv: not there", "outcomes.csv: not there"} <= set(report.in_words())
    assert report.ok


# -- again and again -------------------------------------------------------------------------------


def test_running_it_again_changes_nothing(tmp_path: Path) -> None:
    contents: dict[str, str | bytes] = dict(PLAIN)
    first = imported(tmp_path, contents)
    before = files(tmp_path / "data")
    second = imported(tmp_path, contents, now=NOW + dt.timedelta(days=1))
    assert files(tmp_path / "data") == before
    assert [counts(x) for x in first.files] == [(3, 2, 0, 1), (2, 2, 0, 0), (2, 2, 0, 0)]
    assert [counts(x) for x in second.files] == [(3, 0, 2, 1), (2, 0, 2, 0), (2, 0, 2, 0)]


@pytest.mark.parametrize(
    ("name", "other"),
    [
        (PREDICTIONS, ("500.25", "500.26")),
        (PREDICTIONS, ("support", "")),
        (FEATURES, ("51.5", "51.6")),
        (FEATURES, ("51.5,", "51.5,0")),
        (OUTCOMES, ("501,0.2,1", "501,0.2,0")),
    ],
)
def test_the_first_row_of_a_key_counts_and_another_one_is_refused(
    tmp_path: Path, name: str, other: tuple[str, str]
) -> None:
    (table,) = (layout.table for layout in LAYOUTS if layout.file == name)
    header, row = {PREDICTIONS: f"{HEADER}\n{ROW}", FEATURES: FEATURE_ROWS, OUTCOMES: TWO_OUTCOMES}[
        name
    ].split("\n")[:2]
    against = row.replace(*other)
    assert against != row
    text = f"{header}\n{row}\n{row}\n{against}\n{row}\n"
    report = only(imported(tmp_path, {name: text}))
    assert counts(report) == (4, 1, 2, 1)
    assert re.fullmatch(
        r"contradicts line 2 for its symbol, timestamp(, horizon)?", report.refused[4]
    )
    stored = store_in(tmp_path).read(table)
    report = only(imported(tmp_path, {name: f"{header}\n{against}\n{against}\n{row}\n"}))
    assert counts(report) == (3, 0, 1, 2)
    assert report.refused[2].startswith("contradicts what is stored for its symbol, timestamp")
    pd.testing.assert_frame_equal(store_in(tmp_path).read(table), stored)


def test_a_feature_that_came_later_is_added_to_its_row(tmp_path: Path) -> None:
    imported(tmp_path, {FEATURES: "timestamp,symbol,rsi\n2025-01-03 09:31:07,QQQ,51.5\n"})
    report = only(imported(tmp_path, {FEATURES: FEATURE_ROWS}))
    assert counts(report) == (2, 2, 0, 0)
    rows = store_in(tmp_path).read(LEGACY_FEATURES)
    assert rows["name"].tolist() == ["macd", "rsi", "macd", "rsi"]
    parts = (tmp_path / "data").rglob("*.parquet")
    assert sum(len(pd.read_parquet(part)) for part in parts) == 4
    assert counts(only(imported(tmp_path, {FEATURES: FEATURE_ROWS}))) == (2, 0, 2, 0)


class Killed(RuntimeError):
    """The process ended here."""


class ShortLived(Store):
    """A store that is killed before its n-th append."""

    def __init__(self, url: str, appends: int) -> None:
        super().__init__(url)
        self.left = appends

    def append(self, table: Table, session: str, frame: pd.DataFrame, **more: Any) -> int:
        if self.left == 0:
            raise Killed
        self.left -= 1
        return super().append(table, session, frame, **more)


@pytest.mark.parametrize("appends", range(6))
def test_an_import_that_was_killed_is_finished_by_the_next(tmp_path: Path, appends: int) -> None:
    contents = {
        name: text + text.split("\n", 1)[1].replace("2025-01-03", "2025-01-05")
        for name, text in PLAIN.items()
    }
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    imported(tmp_path / "whole", dict(contents))
    folder = write(tmp_path / "killed" / "old", dict(contents))
    with pytest.raises(Killed):
        import_legacy(ShortLived(str(tmp_path / "killed" / "data"), appends), CALENDAR, folder, NOW)
    imported(tmp_path / "killed", dict(contents))
    assert_equal_tables(
        store_in(tmp_path / "killed"), store_in(tmp_path / "whole"), tables=LEGACY_TABLES
    )


# -- no row is lost --------------------------------------------------------------------------------

SHAPES: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    # header, a good row at a time, the same key with another value, and bad rows at a time
    PREDICTIONS: (
        "timestamp,symbol,price,prediction,confidence,signal_fired",
        "{},QQQ,500,1,0.5,True",
        "{},QQQ,500,0,0.5,True",
        (
            "{},QQQ,500,1,0.5",
            "{},QQQ,500,perhaps,0.5,True",
            "{},QQQ,-1,1,0.5,True",
            "{},QQQ,500,1,1.5,True",
            "{},QQQ,500,1,0.5,maybe",
            '{},"QQQ,500,1,0.5,True',
            "{},,500,1,0.5,True",
            "x{},QQQ,500,1,0.5,True",
        ),
    ),
    FEATURES: (
        "timestamp,symbol,rsi,macd",
        "{},QQQ,50.5,",
        "{},QQQ,50.5,0",
        ("{},QQQ,high,", "{},QQQ,1", "{},QQQ,inf,", "{},Q Q,1,", "x{},QQQ,1,1"),
    ),
    OUTCOMES: (
        "timestamp,symbol,entry_price,exit_price,actual_direction",
        "{},QQQ,500,501,up",
        "{},QQQ,500,502,up",
        ("{},QQQ,500,501,", "{},QQQ,500,0,up", "{},QQQ,500,501,sideways", ",QQQ,500,501,up"),
    ),
}
KINDS = st.sampled_from(["good", "good", "good", "bad", "again", "against", "blank"])
START = dt.datetime(2025, 1, 3, 9, 31)


class Mixture:
    """A file and what should become of its lines."""

    def __init__(self, name: str, plan: list[tuple[str, int]]) -> None:
        header, self._good, self._against, self._bad = SHAPES[name]
        self.lines = [header]
        self.moments: list[str] = []
        self.again = 0
        self.refused: set[int] = set()
        # the first row is a good one: a column without any number would be no feature
        for place, (kind, pick) in enumerate([("good", 0), *plan]):
            # 97 minutes apart, they lie in and outside of sessions and on a weekend
            self._add(kind, pick, str(START + place * dt.timedelta(minutes=97)))

    def _add(self, kind: str, pick: int, moment: str) -> None:
        known = self.moments[pick % len(self.moments)] if self.moments else moment
        line = {
            "good": self._good.format(moment),
            "again": self._good.format(known),
            "against": self._against.format(known),
            "bad": self._bad[pick % len(self._bad)].format(moment),
            "blank": " " * (pick % 3),
        }[kind]
        self.lines.append(line)
        if kind == "good":
            self.moments.append(moment)
        elif kind == "again":
            self.again += 1
        elif kind != "blank":
            self.refused.add(len(self.lines))


@pytest.mark.parametrize("name", SHAPES)
@given(plan=st.lists(st.tuples(KINDS, st.integers(0, 99)), max_size=40))
def test_every_row_is_imported_or_known_or_refused(name: str, plan: list[tuple[str, int]]) -> None:
    mixture = Mixture(name, plan)
    contents: dict[str, str | bytes] = {name: "\n".join(mixture.lines)}
    with tempfile.TemporaryDirectory() as folder:
        report = only(imported(Path(folder), contents))
        assert report.imported + report.duplicates + len(report.refused) == report.rows
        assert report.rows == sum(1 for line in mixture.lines[1:] if line.strip())
        assert (report.imported, report.duplicates) == (len(mixture.moments), mixture.again)
        assert set(report.refused) == mixture.refused
        assert all(report.refused.values())
        (table,) = (layout.table for layout in LAYOUTS if layout.file == name)
        found = store_in(Path(folder)).read(table)["logged_at"].dt.tz_convert("America/New_York")
        assert set(found.dt.strftime("%Y-%m-%d %H:%M:%S")) == set(mixture.moments)
        again = only(imported(Path(folder), contents))
        assert (again.imported, again.duplicates) == (0, len(mixture.moments) + mixture.again)
        assert set(again.refused) == mixture.refused


@pytest.mark.parametrize("name", SHAPES)
@given(
    header=st.sampled_from(["given", "garbage"]),
    lines=st.lists(st.binary(max_size=60) | st.text(max_size=40).map(str.encode), max_size=12),
)
def test_no_content_makes_the_import_fail_or_lose_a_line(
    name: str, header: str, lines: list[bytes]
) -> None:
    first = SHAPES[name][0].encode() if header == "given" else b'\xfe;\x00,"'
    content = b"\n".join([first, SHAPES[name][1].format("2025-01-03 09:31").encode(), *lines])
    rows = [line for line in content.removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip()][1:]
    with tempfile.TemporaryDirectory() as folder:
        report = only(imported(Path(folder), {name: content}))
    assert report.rows == len(rows)
    assert report.imported + report.duplicates + len(report.refused) == report.rows
    assert report.imported == (header == "given")


@pytest.mark.parametrize("name", SHAPES)
def test_a_bad_row_far_down_is_told_by_its_line(tmp_path: Path, name: str) -> None:
    header, good, _, bad = SHAPES[name]
    moments = [str(START + place * dt.timedelta(seconds=1)) for place in range(9_000)]
    lines = [header, *(good.format(moment) for moment in moments)]
    for line in (4_097, 4_098, 8_500):
        lines[line - 1] = bad[0].format(moments[line - 2])
    report = only(imported(tmp_path, {name: "\n".join(lines)}))
    assert counts(report) == (9_000, 8_997, 0, 3)
    assert list(report.refused) == [4_097, 4_098, 8_500]


@pytest.mark.slow
def test_two_hundred_thousand_rows_take_seconds(tmp_path: Path) -> None:
    count = 200_000
    moments = pd.Timestamp("2025-01-02 00:00") + pd.to_timedelta(np.arange(count) * 30, unit="s")
    text = moments.strftime("%Y-%m-%dT%H:%M:%SZ") + ",QQQ,500,1,0.5,20,support,HP,True,m,"
    lines = text + np.arange(count).astype(str)
    folder = write(tmp_path / "old", {PREDICTIONS: "\n".join([HEADER, *lines])})
    begun = time.process_time()
    report = only(import_legacy(store_in(tmp_path), CALENDAR, folder, NOW))
    assert time.process_time() - begun < 20
    assert counts(report) == (count, count, 0, 0)


# -- outcomes that name predictions ----------------------------------------------------------------

NAMED = """timestamp,symbol,prediction,prediction_id,signal_fired
2025-01-03 09:31:07,QQQ,1,a,True
2025-01-03 09:32:07,QQQ,0,b,True
2025-01-04 12:00:00,QQQ,1,c,False
2025-01-03 09:34:07,QQQ,1,twice,False
2025-01-03 09:35:07,QQQ,1,twice,False
2025-01-03 09:31:07,SPY,1,a,False
"""


def test_an_outcome_takes_time_and_symbol_from_the_prediction_it_names(tmp_path: Path) -> None:
    text = "id,symbol,actual_direction\nb,,1\nc,QQQ,0\na,SPY,1\n"
    report = imported(tmp_path, {PREDICTIONS: NAMED, OUTCOMES: text})
    assert report.ok
    rows = store_in(tmp_path).read(LEGACY_OUTCOMES).sort_values("prediction_id")
    assert rows[["prediction_id", "symbol", "logged_at"]].to_numpy().tolist() == [
        ["a", "SPY", pd.Timestamp("2025-01-03T14:31:07Z")],
        ["b", "QQQ", pd.Timestamp("2025-01-03T14:32:07Z")],
        ["c", "QQQ", pd.Timestamp("2025-01-04T17:00:00Z")],
    ]
    assert store_in(tmp_path).sessions(LEGACY_OUTCOMES) == ("2025-01-03", "2025-01-04")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("z,,,1", "no imported prediction has the prediction_id 'z'"),
        ("a,,,1", "several imported predictions have the prediction_id 'a'"),
        ("twice,,QQQ,1", "several imported predictions have the prediction_id 'twice'"),
        ("b,,SPY,1", "no imported prediction has the prediction_id 'b'"),
        ("b,2025-01-03 09:33,,1", "no imported prediction has the prediction_id 'b'"),
        (",,QQQ,1", "timestamp is missing, and so is prediction_id"),
        (",2025-01-03 09:33,,1", "symbol is missing, and so is prediction_id"),
    ],
)
def test_an_outcome_that_names_no_single_prediction_is_refused(
    tmp_path: Path, row: str, reason: str
) -> None:
    text = f"prediction_id,timestamp,symbol,actual_direction\n{row}\n"
    report = imported(tmp_path, {PREDICTIONS: NAMED, OUTCOMES: text})
    assert report.files[1].refused == {2: reason}
    assert store_in(tmp_path).sessions(LEGACY_OUTCOMES) == ()


def test_outcomes_may_come_before_their_predictions(tmp_path: Path) -> None:
    outcomes = "prediction_id,actual_direction\nb,1\n"
    assert not imported(tmp_path, {OUTCOMES: outcomes}).ok
    assert imported(tmp_path, {PREDICTIONS: NAMED, OUTCOMES: outcomes}).ok
    assert len(store_in(tmp_path).read(LEGACY_OUTCOMES)) == 1


# -- what status says ------------------------------------------------------------------------------

SCORED = """prediction_id,timestamp,symbol,actual_direction,entry_price,exit_price
a,2025-01-03 09:41:07,QQQ,1,500,501
b,2025-01-03 09:42:07,QQQ,1,500,499
,2025-01-04 12:00:00,QQQ,0,500,501
,2025-01-03 09:34:07,QQQ,1,500,
z,2025-01-03 10:00:00,QQQ,1,500,500
twice,2025-01-03 10:01:00,QQQ,1,500,501
"""


def test_the_summary_scores_the_old_predictions_by_their_own_outcomes(tmp_path: Path) -> None:
    imported(tmp_path, {PREDICTIONS: NAMED, OUTCOMES: SCORED, FEATURES: FEATURE_ROWS})
    found = legacy_summary(store_in(tmp_path), CALENDAR)
    assert found is not None
    assert found["predictions"] == {
        "count": 6,
        "outside_sessions": 1,
        "scored": 4,  # a and b by name, two by their time; z is unknown, twice unclear
        "accuracy": 0.5,
        "share_of_ups": 0.75,
    }
    assert found["signals"] == {
        "count": 2,
        "outside_sessions": 0,
        "scored": 2,
        "accuracy": 0.5,
        "share_of_ups": 1.0,
    }
    assert (found["outcomes"], found["contradicting_prices"]) == (6, 2)
    assert found["feature_rows"] == 2
    assert found["counts_as"] == "legacy, never evidence"


def test_predictions_without_outcomes_have_no_accuracy(tmp_path: Path) -> None:
    imported(tmp_path, {PREDICTIONS: NAMED})
    found = legacy_summary(store_in(tmp_path), CALENDAR)
    assert found is not None
    assert found["predictions"]["accuracy"] is found["signals"]["share_of_ups"] is None


@pytest.mark.parametrize(
    ("moment", "outside"),
    [
        ("2025-01-03 09:29:59", True),
        ("2025-01-03 09:30:00", False),
        ("2025-01-03 15:59:59", False),
        ("2025-01-03 16:00:00", True),
        ("2025-11-28 13:30:00", True),  # a half day
        ("2019-06-03 10:00:00", False),  # before the history of the calendar
        ("2019-06-02 10:00:00", True),
        ("2000-01-01 10:00:00", True),
    ],
)
def test_the_summary_counts_what_lies_outside_the_sessions(
    tmp_path: Path, moment: str, outside: bool
) -> None:
    imported(tmp_path, {PREDICTIONS: f"timestamp,symbol,prediction\n{moment},QQQ,1\n"})
    found = legacy_summary(store_in(tmp_path), CALENDAR)
    assert found is not None
    assert found["predictions"]["outside_sessions"] == outside


def test_a_store_without_legacy_rows_has_no_summary(tmp_path: Path) -> None:
    assert legacy_summary(store_in(tmp_path), CALENDAR) is None


# -- nothing of it counts --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return demo_in(tmp_path_factory.getbasetemp())


def tempting(labels: tuple[str, ...]) -> dict[str, str | bytes]:
    """Rows that would change everything if they counted: always right, sure, and on the grid."""
    moments = [
        f"{date} {hour}:{minute:02d}"
        for date in (*labels, "2024-01-06", "2024-01-15")  # a Saturday, a holiday
        for hour in (9, 12, 15, 20)
        for minute in range(30, 60)
    ]
    moments = [f"{moment.replace(' 9', ' 09')}:00" for moment in moments]
    both = [(moment, symbol) for moment in moments for symbol in ("SIMQ", "SIMN")]
    said = "".join(
        f"{moment},{symbol},100,1,1,20,support,HP,True,4,{i}\n"
        for i, (moment, symbol) in enumerate(both)
    )
    ups = "".join(f"{moment},{symbol},100,101,1,1,10\n" for moment, symbol in both)
    values = "".join(f"{moment},{symbol},1,2\n" for moment, symbol in both)
    return {
        PREDICTIONS: f"{HEADER}\n{said}",
        OUTCOMES: "timestamp,symbol,entry_price,exit_price,return_pct,actual_direction,horizon\n"
        + ups,
        FEATURES: f"timestamp,symbol,return_1,range_1\n{values}",
    }


def test_an_import_changes_no_other_table_and_nothing_else_in_the_status(
    demo: Demo, tmp_path: Path
) -> None:
    out = demo.copy(tmp_path / "out")
    before, tables = status(replay_in(out)), files(out)
    folder = write(tmp_path / "old", tempting(demo_labels(demo)))
    deployment = replay_in(out)
    assert import_legacy(deployment.store, deployment.calendar, folder, NOW).ok
    after, names = status(replay_in(out)), tuple(table.name for table in LEGACY_TABLES)
    assert before.pop("legacy") is None
    assert after.pop("legacy")["predictions"]["accuracy"] == 1.0
    assert after == before
    assert {k: v for k, v in files(out).items() if not k.startswith(names)} == tables


def test_the_loop_goes_on_as_if_there_were_no_legacy_rows(demo: Demo, tmp_path: Path) -> None:
    outs = [demo.copy(tmp_path / name) for name in ("with", "without")]
    labels = demo_labels(demo)
    following = replay_in(outs[0]).calendar.following(labels[-1])
    assert following is not None
    deployment = replay_in(outs[0])
    folder = write(tmp_path / "old", tempting((*labels, following)))
    assert import_legacy(deployment.store, deployment.calendar, folder, NOW).ok
    for out in outs:
        replay(replay_in(out), [following])
    with_legacy, without = (replay_in(out) for out in outs)
    assert_equal_tables(with_legacy.store, without.store)
    assert len(without.store.sessions(TABLES[0])) == DEMO_SESSIONS + 1
    for symbol in without.symbols:
        names = without.store.names(f"models/{symbol}")
        assert with_legacy.store.names(f"models/{symbol}") == names
        for name in names:
            assert with_legacy.store.read_bytes(f"models/{symbol}/{name}") == (
                without.store.read_bytes(f"models/{symbol}/{name}")
            )
        settled = stages.settled_sessions(with_legacy, symbol)
        assert settled == stages.settled_sessions(without, symbol)
        assert set(settled) <= set(without.calendar.labels)


def demo_labels(demo: Demo) -> tuple[str, ...]:
    return replay_in(demo.out).calendar.labels[:DEMO_SESSIONS]


PACKAGE = Path(str(hedge_pipeline.__file__)).parent


def test_no_stage_knows_the_legacy_tables() -> None:
    """Whatever reads, scores or learns would have to name them."""
    knowing = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(
            (isinstance(node, ast.Name | ast.Attribute) and "LEGACY_" in ast.unparse(node))
            or (isinstance(node, ast.Constant) and str(node.value).startswith("legacy_"))
            or (isinstance(node, ast.ImportFrom) and "legacy" in (node.module or ""))
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
    }
    assert knowing == {"market/tables.py", "legacy.py", "legacy_files.py", "status.py"}
    assert not {table.name for table in TABLES} & {table.name for table in LEGACY_TABLES}


# -- the command -----------------------------------------------------------------------------------


def test_the_command_says_what_became_of_every_row(tmp_path: Path) -> None:
    write(tmp_path / "old", dict(PLAIN))
    said = hedge("import-legacy", "old", cwd=tmp_path)
    assert said.returncode == 1
    assert said.stderr == ""
    lines = said.stdout.splitlines()
    assert lines[0].startswith("predictions.csv line 4: ")
    assert "predictions.csv: 3 rows: 2 imported, 0 duplicates, 1 refused" in lines
    assert "imported rows are shown by `hedge status` as legacy, never evidence" in lines
    shown = hedge("status", cwd=tmp_path).stdout
    (line,) = (x for x in shown.splitlines() if x.startswith("legacy, never evidence: "))
    assert "predictions 2 (0 outside the sessions), accuracy 1.000 on 1 of its own" in line
    assert "share of ups 1.000" in line


def test_the_command_is_json_for_machines_and_succeeds_without_a_refusal(tmp_path: Path) -> None:
    write(tmp_path / "old", {OUTCOMES: TWO_OUTCOMES})
    said = hedge("import-legacy", "old", "--json", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    assert {name: found[name] for name in ("imported", "duplicates", "refused")} == {
        "imported": 2,
        "duplicates": 0,
        "refused": 0,
    }
    assert found["counts_as"] == "legacy, never evidence"
    assert found["missing_files"] == [PREDICTIONS, FEATURES]
    assert found["files"][OUTCOMES]["naive"] == 2


def test_refused_rows_are_json_with_line_and_reason(tmp_path: Path) -> None:
    report = imported(tmp_path, {OUTCOMES: TWO_OUTCOMES.replace("0.2,0", "0.2,x")})
    assert json.loads(json.dumps(report.to_json()))["files"][OUTCOMES]["refused"] == [
        {"line": 3, "reason": "actual_direction 'x' is not 1, 0, up or down"}
    ]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (None, "no such folder"),
        ([], "none of predictions.csv, features.csv, outcomes.csv is in there"),
        (["bars.csv"], "none of predictions.csv, features.csv, outcomes.csv is in there"),
    ],
)
def test_a_folder_without_a_file_is_a_mistake(
    tmp_path: Path, names: list[str] | None, said: str
) -> None:
    if names is not None:
        write(tmp_path / "old", dict.fromkeys(names, "x"))
    with pytest.raises(BadInput, match=said):
        import_legacy(store_in(tmp_path), CALENDAR, tmp_path / "old", NOW)
    assert not (tmp_path / "data").exists()


def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "old" / PREDICTIONS).mkdir(parents=True)
    with pytest.raises(BadInput, match=r"predictions.csv: cannot be read \(Is a directory\)"):
        import_legacy(store_in(tmp_path), CALENDAR, tmp_path / "old", NOW)
