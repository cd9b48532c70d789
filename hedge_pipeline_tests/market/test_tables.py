"""What a stored table promises: its columns in words, its schemas in agreement, its counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedge_pipeline.market.features import FEATURES
from hedge_pipeline.market.tables import (
    FEATURE_ROWS,
    GAPS,
    LEGACY_TABLES,
    PREDICTION_LOG,
    RAW_QUOTES,
    TABLES,
    Column,
    Table,
    feature_names,
    places_among,
    without,
)

EVERY_TABLE = (*TABLES, *LEGACY_TABLES)
COLUMNS = [
    pytest.param(table, column, id=f"{table.name}.{column.name}")
    for table in EVERY_TABLE
    for column in table.columns
]
EACH_TABLE = pytest.mark.parametrize("table", EVERY_TABLE, ids=lambda table: table.name)
VALUES: dict[str, Any] = {
    "text": "word",
    "time": pd.Timestamp("2026-03-10T13:30Z"),
    "float": 0.5,
    "float32": 0.5,
    "integer": 1,
    "small": 1,
    "flag": True,
}


def rows_of(table: Table, count: int) -> pd.DataFrame:
    """Rows that keep every promise; their keys differ in the symbol."""
    values = {
        column.name: [column.among[0] if column.among else VALUES[column.kind]] * count
        for column in table.columns
    }
    values["symbol"] = [f"S{number}" for number in range(count)]
    return table.conform(pd.DataFrame(values))


@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_every_column_is_described_in_words(table: Table, column: Column) -> None:
    assert len(column.description.split()) >= 2, f"{table.name}.{column.name}"
    assert "\n" not in column.description


@pytest.mark.parametrize(("table", "column"), [x for x in COLUMNS if x.values[1].nullable])  # type: ignore[union-attr]
def test_a_column_that_may_be_unknown_says_what_null_means(table: Table, column: Column) -> None:
    if table is FEATURE_ROWS:
        assert "NULL =" in table.description
    elif column.name in ("return_pct", "reason") and "NULL =" not in column.description:
        assert {"status"} <= set(table.names)  # the status beside it says why
    else:
        assert "NULL =" in column.description


@EACH_TABLE
def test_the_pandera_and_the_arrow_schema_agree(table: Table) -> None:
    validator, arrow = table.validator(), table.arrow
    assert list(validator.columns) == arrow.names == list(table.names)
    assert {name: bool(column.nullable) for name, column in validator.columns.items()} == {
        field.name: field.nullable for field in arrow
    }
    stored = pa.Table.from_pandas(rows_of(table, 3), schema=arrow, preserve_index=False)
    assert stored.schema.equals(arrow)
    assert {name: column.description for name, column in validator.columns.items()} == {
        column.name: column.description for column in table.columns
    }


@EACH_TABLE
def test_rows_that_keep_every_promise_have_no_violations(table: Table) -> None:
    assert table.violations(rows_of(table, 3)) == {}
    assert table.violations(table.empty()) == {}


@EACH_TABLE
def test_the_key_is_made_of_columns_that_are_never_null(table: Table) -> None:
    columns = {column.name: column for column in table.columns}
    assert set(table.key) <= set(columns)
    assert not any(columns[name].nullable for name in table.key)
    assert table.first_by is None or columns[table.first_by].kind == "time"


def test_table_names_are_all_different() -> None:
    assert len({table.name for table in EVERY_TABLE}) == len(EVERY_TABLE)


@EACH_TABLE
def test_the_schema_hash_changes_with_a_column(table: Table) -> None:
    first = table.columns[0]
    hashes = {
        table.schema_hash,
        replace(table, columns=table.columns[1:]).schema_hash,
        replace(table, columns=(replace(first, name="other"), *table.columns[1:])).schema_hash,
        replace(table, columns=(replace(first, kind="flag"), *table.columns[1:])).schema_hash,
        replace(table, columns=table.columns[::-1]).schema_hash,
    }
    assert len(hashes) == 5
    assert all(len(found) == 16 for found in hashes)


@EACH_TABLE
def test_the_schema_hash_does_not_depend_on_words(table: Table) -> None:
    reworded = tuple(replace(column, description="other words") for column in table.columns)
    assert replace(table, columns=reworded).schema_hash == table.schema_hash
    assert table.arrow.metadata == {b"schema_hash": table.schema_hash.encode()}


def test_conform_orders_the_columns_and_drops_what_is_not_of_the_table() -> None:
    shuffled = rows_of(RAW_QUOTES, 2)[list(RAW_QUOTES.names)[::-1]].assign(extra=1)
    assert list(RAW_QUOTES.conform(shuffled).columns) == list(RAW_QUOTES.names)


def test_conform_gives_every_column_its_kind() -> None:
    loose = rows_of(PREDICTION_LOG, 2).astype({"prediction": "float64", "base_rate": "float32"})
    loose["bar_ts"] = loose["bar_ts"].dt.tz_convert("America/New_York").dt.as_unit("ns")
    right = PREDICTION_LOG.conform(loose)
    assert right.dtypes.to_dict() == PREDICTION_LOG.empty().dtypes.to_dict()
    assert right["bar_ts"].tolist() == rows_of(PREDICTION_LOG, 2)["bar_ts"].tolist()


@EACH_TABLE
@pytest.mark.parametrize("unknown", [None, np.nan, pd.NaT, pd.NA])
def test_records_give_the_rows_of_a_frame(table: Table, unknown: Any) -> None:
    records = [dict(row) for _, row in rows_of(table, 3).astype(object).iterrows()]
    nullable = [column.name for column in table.columns if column.nullable]
    frame = pd.DataFrame([records[0], records[1] | dict.fromkeys(nullable), records[2]])
    found = table.of_records(
        [records[0], records[1] | dict.fromkeys(nullable, unknown), records[2]]
    )
    assert found.equals(table.in_arrow(table.conform(frame)))
    assert table.of_records([]).equals(table.in_arrow(table.empty()))


def test_a_record_that_lacks_a_column_or_a_value_is_refused_by_name() -> None:
    record = dict(rows_of(RAW_QUOTES, 1).astype(object).iloc[0])
    with pytest.raises(KeyError, match="raw_quotes lacks the columns high"):
        RAW_QUOTES.of_records([{name: x for name, x in record.items() if name != "high"}])
    with pytest.raises(ValueError, match="raw_quotes: close is unknown in 1 rows"):
        RAW_QUOTES.of_records([record | {"close": np.nan}])


def test_conform_names_every_missing_column() -> None:
    with pytest.raises(KeyError, match="raw_quotes lacks the columns high, ask"):
        RAW_QUOTES.conform(rows_of(RAW_QUOTES, 1).drop(columns=["high", "ask"]))


@pytest.mark.parametrize(
    ("table", "column", "bad", "claim"),
    [
        pytest.param(RAW_QUOTES, "close", 0.0, "close: at least 1e-06", id="too small"),
        pytest.param(PREDICTION_LOG, "prob_up", 1.5, "prob_up: at most 1", id="too large"),
        pytest.param(
            GAPS,
            "cause",
            "weather",
            "cause: one of source_down, rate_limited, vendor_hole, late",
            id="not among",
        ),
        pytest.param(RAW_QUOTES, "open", float("nan"), "open: not_nullable", id="null"),
        pytest.param(
            PREDICTION_LOG,
            "mode",
            "legacy",
            "mode: one of live, catch_up, backfill, replay",
            id="a row of the system before",
        ),
    ],
)
def test_each_broken_rule_is_counted_by_rows(
    table: Table, column: str, bad: float | str, claim: str
) -> None:
    frame = rows_of(table, 5)
    frame.loc[frame.index.isin([1, 3]), column] = bad
    assert table.violations(frame) == {claim: 2}


def test_a_doubled_key_is_a_violation() -> None:
    frame = rows_of(GAPS, 3)
    found = GAPS.violations(pd.concat([frame, frame.iloc[:1]], ignore_index=True))
    assert found == {f"{name}: multiple_fields_uniqueness": 2 for name in GAPS.key}


def test_a_column_too_many_is_a_violation() -> None:
    assert GAPS.violations(rows_of(GAPS, 1).assign(extra=1)) == {"gaps: column_in_schema": 1}


def test_a_column_of_the_wrong_kind_is_a_violation() -> None:
    frame = rows_of(RAW_QUOTES, 2).astype({"volume": "float32"})
    assert RAW_QUOTES.violations(frame) == {"volume: dtype('float64')": 1}


def test_unknown_values_are_no_violation_where_they_are_allowed() -> None:
    frame = rows_of(PREDICTION_LOG, 2)
    frame["prediction"] = pd.Series([pd.NA, 1], dtype="Int8")
    frame["prob_up"] = float("nan")
    assert PREDICTION_LOG.violations(frame) == {}


def test_the_features_table_has_one_float32_column_per_feature() -> None:
    columns = {column.name: column for column in FEATURE_ROWS.columns}
    assert feature_names() == tuple(feature.name for feature in FEATURES)
    assert {columns[name].kind for name in feature_names()} == {"float32"}
    assert FEATURE_ROWS.names == ("symbol", "bar_ts", "available_at", *feature_names())


def keys(drawn: list[tuple[str, int]]) -> pd.DataFrame:
    """A frame of symbols and bars, in the order drawn."""
    opens = pd.Timestamp("2026-03-10T13:30Z").as_unit("us")
    return pd.DataFrame(
        {
            "symbol": pd.Series([symbol for symbol, _ in drawn], dtype="str"),
            "bar_ts": pd.Series(
                [opens + pd.Timedelta(minutes=bar) for _, bar in drawn],
                dtype="datetime64[us, UTC]",
            ),
        }
    )


BARS = st.lists(st.tuples(st.sampled_from(["QQQ", "SPY", "A"]), st.integers(0, 5)), max_size=20)


@given(asked=BARS, known=BARS)
def test_rows_are_found_by_their_keys(
    asked: list[tuple[str, int]], known: list[tuple[str, int]]
) -> None:
    known = list(dict.fromkeys(known))
    found = places_among(keys(asked), keys(known))
    assert found.tolist() == [known.index(bar) if bar in known else -1 for bar in asked]
    left = without(keys(asked), keys(known))
    assert left.index.tolist() == np.flatnonzero(found < 0).tolist()
