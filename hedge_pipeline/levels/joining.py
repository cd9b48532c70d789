"""Which hedge levels are in force at a bar: joined on what was available when it ended.

A bar sees the newest usable snapshot of its session that was available by then and is not stale.
When the bar itself arrives does not matter: to a bar that comes an hour late a newer snapshot would
tell where the price went. Half gaps come from daily bars and stay in force although a chain is
unusable or stale.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hedge_pipeline.market.bars import places_on_grid
from hedge_pipeline.market.calendar import utc_times
from hedge_pipeline.market.features import LEVEL_COLUMNS, LevelGrid

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.market.calendar import Session

DAILY_LEVELS = ("hg_below", "hg_above")
RANKS = ("gex_rank", "vanna_rank")
NO_CHAIN = "no option chain"
_FROM_CHAIN = tuple(x for x in LEVEL_COLUMNS if x not in (*DAILY_LEVELS, "age_minutes"))


def in_force(levels: pd.DataFrame, rows: pd.DataFrame, most_age: dt.timedelta) -> pd.DataFrame:
    """The levels in force at each row.

    Args:
        levels: rows of `hedge_levels` of one session, any symbols.
        rows: with symbol and bar_end, the moment the bar ended, UTC.
        most_age: a snapshot that became available longer before that is stale.

    Returns:
        Frame with the index of `rows` and the columns `LEVEL_COLUMNS`, gex_rank, vanna_rank (NaN =
        unknown) and no_levels: why there are none from a chain, NULL where there are.
    """
    import pandas as pd

    found = {name: np.full(len(rows), np.nan) for name in (*LEVEL_COLUMNS, *RANKS)}
    reason = np.full(len(rows), NO_CHAIN, dtype=object)
    if len(levels) and len(rows):
        levels = levels.sort_values(["available_at", "as_of"])
        place = _newest(levels, rows)
        seen = place >= 0
        for name in DAILY_LEVELS:
            found[name][seen] = levels[name].to_numpy(dtype=float)[place[seen]]
        told = [None if why != why else why for why in levels["unusable_reason"]]
        reason[seen] = np.array(told, dtype=object)[place[seen]]
        _fill_from_chains(found, reason, levels[levels["usable"].astype(bool)], rows, most_age)
    return pd.DataFrame({**found, "no_levels": reason}, index=rows.index)


def _fill_from_chains(
    found: dict[str, npt.NDArray[np.float64]],
    reason: npt.NDArray[np.object_],
    usable: pd.DataFrame,
    rows: pd.DataFrame,
    most_age: dt.timedelta,
) -> None:
    """Adds what the newest usable chain says, or that it is too old."""
    if usable.empty:
        return
    place = _newest(usable, rows)
    known = place >= 0
    age = np.full(len(rows), np.inf)
    since = utc_times(usable["available_at"])[place[known]]
    age[known] = (utc_times(rows["bar_end"])[known] - since) / np.timedelta64(60, "s")
    fresh = age <= most_age.total_seconds() / 60
    for name in (*_FROM_CHAIN, *RANKS):
        found[name][fresh] = usable[name].to_numpy(dtype=float)[place[fresh]]
    found["age_minutes"][fresh] = age[fresh]
    reason[fresh] = None
    for position in np.flatnonzero(known & ~fresh):
        if reason[position] is None:
            reason[position] = f"the option chain is {age[position]:.0f} minutes old"


def _newest(levels: pd.DataFrame, rows: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Place of the last level row of each row's symbol that was available by then; -1 = none.

    Args:
        levels: in order of availability.
        rows: with symbol and bar_end.
    """
    import pandas as pd

    available, at = utc_times(levels["available_at"]), utc_times(rows["bar_end"])
    codes, _ = pd.factorize(pd.concat([levels["symbol"], rows["symbol"]]))
    own, asked = codes[: len(levels)], codes[len(levels) :]
    moments = np.concatenate([available, at])
    ranks = np.unique(moments, return_inverse=True)[1]
    keys = codes * (len(moments) + 1) + ranks
    order = np.argsort(keys[: len(levels)], kind="stable")
    place = np.searchsorted(keys[order], keys[len(levels) :], side="right") - 1
    found = order[np.maximum(place, 0)]
    return np.where((place >= 0) & (own[found] == asked), found, -1)


def level_grid(
    joined: pd.DataFrame,
    bars: pd.DataFrame,
    symbols: Sequence[str],
    session: Session,
    first: int = 0,
    until: int | None = None,
) -> LevelGrid:
    """Joined levels on the grid of the session, shape [symbols, bars].

    Args:
        joined: the answer of `in_force` for `bars`.
        bars: rows with symbol and bar_ts.
        symbols: order of the rows of the grid.
        session: the session.
        first: the bar of the session that the grid begins with.
        until: the bar before which it ends; None = the session's end.
    """
    end = session.bars if until is None else until
    grid = LevelGrid.unknown(len(symbols), end - first)
    inside, place = places_on_grid(bars, symbols, session, first, until)
    for name, array in grid.values.items():
        array[place] = joined[name].to_numpy(dtype=float)[inside]
    return grid
