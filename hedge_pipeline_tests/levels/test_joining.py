"""Which levels are in force at a bar: those available by then, while they are fresh."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedge_pipeline.levels.joining import NO_CHAIN, in_force, level_grid
from hedge_pipeline.market.calendar import SessionCalendar
from hedge_pipeline.market.features import LEVEL_COLUMNS
from hedge_pipeline.market.tables import HEDGE_LEVELS

SESSION = SessionCalendar(end=dt.date(2026, 12, 31)).session("2026-03-10")
OPENS = pd.Timestamp(SESSION.opens)
HOUR = dt.timedelta(hours=1)


def minute(number: float) -> pd.Timestamp:
    return OPENS + pd.Timedelta(minutes=number)


def level_row(available: float, symbol: str = "QQQ", **values: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        column.name: np.nan for column in HEDGE_LEVELS.columns if column.kind == "float"
    }
    return row | {
        "symbol": symbol,
        "as_of": minute(available),
        "available_at": minute(available),
        "gamma_flip_count": 1,
        "contracts": 100,
        "usable": True,
        "unusable_reason": None,
        "oi_reused": False,
        "dealer_sign": "calls+puts-",
        **values,
    }


def levels(*rows: dict[str, Any]) -> pd.DataFrame:
    return HEDGE_LEVELS.conform(pd.DataFrame(rows)) if rows else HEDGE_LEVELS.empty()


def bars(*minutes: float, symbol: str = "QQQ") -> pd.DataFrame:
    """Bars that ended at the minutes."""
    return pd.DataFrame(
        {
            "symbol": symbol,
            "bar_ts": [minute(number - 1) for number in minutes],
            "bar_end": [minute(number) for number in minutes],
        }
    )


def test_a_bar_sees_the_newest_snapshot_that_was_available_by_then() -> None:
    known = levels(level_row(10, hp_support=99.0), level_row(20, hp_support=98.0))
    found = in_force(known, bars(9, 10, 19, 20, 30), HOUR)
    assert found["hp_support"].fillna(0).tolist() == [0, 99, 99, 98, 98]
    assert found["no_levels"].fillna("").tolist() == [NO_CHAIN, "", "", "", ""]
    assert found["age_minutes"].tolist()[1:] == [0, 9, 0, 10]


def test_an_unusable_snapshot_leaves_the_usable_one_before_it_in_force() -> None:
    known = levels(
        level_row(10, hp_support=99.0),
        level_row(20, usable=False, unusable_reason="empty", hg_above=105.0),
    )
    found = in_force(known, bars(30), HOUR).iloc[0]
    assert found["hp_support"] == 99.0
    assert found["hg_above"] == 105.0  # a half gap needs no chain
    assert pd.isna(found["no_levels"])


def test_without_a_usable_snapshot_the_reason_is_that_of_the_newest() -> None:
    known = levels(
        level_row(10, usable=False, unusable_reason="first"),
        level_row(20, usable=False, unusable_reason="second"),
    )
    assert in_force(known, bars(15, 25), HOUR)["no_levels"].tolist() == ["first", "second"]


def test_a_stale_snapshot_is_not_used_and_says_how_old_it_is() -> None:
    found = in_force(levels(level_row(10, hp_support=99.0)), bars(70, 71), HOUR)
    assert found["hp_support"].fillna(0).tolist() == [99.0, 0]
    assert found["no_levels"].fillna("").tolist() == ["", "the option chain is 61 minutes old"]


def test_symbols_have_their_own_levels() -> None:
    known = levels(level_row(10, hp_support=99.0), level_row(10, symbol="SPY", hp_support=50.0))
    rows = pd.concat([bars(20, symbol="SPY"), bars(20), bars(20, symbol="IWM")], ignore_index=True)
    found = in_force(known, rows, HOUR)
    assert found["hp_support"].fillna(0).tolist() == [50.0, 99.0, 0]
    assert found["no_levels"].fillna("").tolist() == ["", "", NO_CHAIN]


def test_the_rows_keep_their_order_and_index() -> None:
    rows = bars(30, 10, 20).set_index(pd.Index([5, 3, 9]))
    found = in_force(levels(level_row(15, hp_support=99.0)), rows, HOUR)
    assert found.index.tolist() == [5, 3, 9]
    assert found["hp_support"].fillna(0).tolist() == [99.0, 0, 99.0]


@given(
    available=st.lists(st.integers(0, 389), min_size=1, max_size=8, unique=True),
    usable=st.lists(st.booleans(), min_size=8, max_size=8),
    at=st.integers(1, 390),
    age=st.integers(1, 400),
)
def test_no_later_snapshot_can_be_seen(
    available: list[int], usable: list[bool], at: int, age: int
) -> None:
    rows = [
        level_row(number, hp_support=100.0 + number, usable=good, hg_below=number)
        | {"unusable_reason": None if good else "bad"}
        for number, good in zip(sorted(available), usable, strict=False)
    ]
    most = dt.timedelta(minutes=age)
    whole = in_force(levels(*rows), bars(at), most)
    then = [row for row in rows if row["available_at"] <= minute(at)]
    pd.testing.assert_frame_equal(in_force(levels(*then), bars(at), most), whole)


@pytest.mark.parametrize("symbols", [("QQQ",), ("IWM", "QQQ")])
def test_the_grid_has_the_levels_at_their_bars(symbols: tuple[str, ...]) -> None:
    rows = bars(1, 390)
    joined = in_force(levels(level_row(0, hp_net=0.25)), rows, HOUR)
    grid = level_grid(joined, rows, symbols, SESSION)
    assert set(grid.values) == set(LEVEL_COLUMNS)
    known = grid.values["hp_net"]
    assert known.shape == (len(symbols), 390)
    assert known[symbols.index("QQQ"), 0] == 0.25
    assert np.isnan(known).sum() == known.size - 1  # the second bar is too late for the snapshot


def test_the_grid_may_be_of_some_bars_only() -> None:
    rows = bars(10, 11, 12, 30)
    joined = in_force(levels(level_row(0, hp_net=0.25)), rows, HOUR)
    whole = level_grid(joined, rows, ("IWM", "QQQ"), SESSION)
    cut = level_grid(joined, rows, ("IWM", "QQQ"), SESSION, first=10, until=12)
    for name, array in cut.values.items():
        np.testing.assert_array_equal(array, whole.values[name][:, 10:12])
    assert np.isfinite(cut.values["hp_net"]).sum() == 2
