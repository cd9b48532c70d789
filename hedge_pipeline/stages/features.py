"""Feature rows of a session from its stored bars and the hedge levels in force."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import numpy as np

from hedge_pipeline.levels.joining import in_force, level_grid
from hedge_pipeline.market.bars import on_grid
from hedge_pipeline.market.calendar import utc_times
from hedge_pipeline.market.features import Totals, compute_features, no_previous, remember
from hedge_pipeline.market.tables import (
    FEATURE_ROWS,
    HEDGE_LEVELS,
    RAW_QUOTES,
    feature_names,
    without,
)
from hedge_pipeline.stages.bars import stored_bars

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.market.calendar import Session
    from hedge_pipeline.market.features import Bars, Previous
    from hedge_pipeline.stages.deployment import Deployment

# of a session's bars; with fewer its close and volatility tell the next session nothing
PREVIOUS_SESSION_SHARE = 0.25


def build_features(deployment: Deployment, label: str) -> int:
    """Computes the feature rows of a session from its stored bars; returns their number.

    Raises:
        NothingStored: the session has no bars.
    """
    frame = features_of(deployment, label)
    return deployment.store.replace(FEATURE_ROWS, label, frame)


def build_missing_features(deployment: Deployment, label: str) -> int:
    """Computes feature rows for the bars of a session that have none yet; returns how many.

    Raises:
        NothingStored: the session has no bars.
    """
    rows = deployment.store.read(FEATURE_ROWS, [label], columns=FEATURE_ROWS.key)
    stored = stored_bars(deployment, label)
    missing = without(stored, rows)
    if missing.empty:
        return 0
    frame, _levels = feature_rows(deployment, label, stored, missing)
    return deployment.store.append(FEATURE_ROWS, label, frame, known=rows)


def features_of(deployment: Deployment, label: str) -> pd.DataFrame:
    """Feature rows of all stored bars of a session.

    Raises:
        NothingStored: the session has no bars.
    """
    stored = stored_bars(deployment, label)
    return feature_rows(deployment, label, stored, stored)[0]


def feature_rows(
    deployment: Deployment, label: str, stored: pd.DataFrame, bars: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Feature rows of some of the stored bars, and the levels in force at them, in their order.

    Args:
        deployment: where levels and the session before are.
        label: the session.
        stored: every stored bar of the session.
        bars: those of them that rows are wanted for, one or more.

    Returns:
        Rows of `features`, and the answer of `in_force`.
    """
    import pandas as pd

    session = deployment.calendar.session(label)
    symbols = tuple(sorted(stored["symbol"].unique()))
    memory = _memory(deployment, session, symbols)
    times = utc_times(bars["bar_ts"])
    columns = session.index_of(times)
    first, until = int(columns.min()), int(columns.max()) + 1
    levels = levels_in_force(deployment, label, bars)
    grid = on_grid(stored, symbols, session, until)
    values = compute_features(
        grid,
        memory,
        level_grid(levels, bars, symbols, session, first, until),
        bar_seconds=session.bar_seconds,
        session_bars=session.bars,
        first=first,
        totals=_totals(deployment, label, symbols, grid, first),
    )
    rows = bars["symbol"].map({symbol: i for i, symbol in enumerate(symbols)}).to_numpy()
    block = pd.DataFrame(values[rows, columns - first], columns=list(feature_names()))
    keys = bars[["symbol", "bar_ts", "available_at"]].reset_index(drop=True)
    return FEATURE_ROWS.conform(pd.concat([keys, block], axis=1)), levels


def _totals(
    deployment: Deployment, label: str, symbols: tuple[str, ...], grid: Bars, first: int
) -> Totals:
    """What the bars before `first` add up to.

    What was added up for the last call is added to, unless a bar came among those since; a stored
    bar never changes, so their number tells.
    """
    store, totals = deployment.store, Totals.of_nothing(len(symbols))
    known = deployment.totals.get(label)
    if known and known[0] is store and known[1] == symbols and known[3].bars <= first:
        number = int(np.isfinite(grid.close[:, : known[3].bars]).sum())
        totals = known[3] if number == known[2] else totals
    totals = totals.through(grid, first)
    number = int(np.isfinite(grid.close[:, :first]).sum())
    deployment.totals.clear()
    deployment.totals[label] = store, symbols, number, totals
    return totals


def _memory(deployment: Deployment, session: Session, symbols: tuple[str, ...]) -> Previous:
    """What the session before leaves behind; read again if its files have changed."""
    import pandas as pd

    before = deployment.calendar.previous(session.label)
    if before is None:
        return no_previous(len(symbols))
    files = deployment.store.signatures(RAW_QUOTES, before)
    known = deployment.memories.get(before)
    if known is None or known[:2] != (files, symbols):
        earlier = deployment.store.read(RAW_QUOTES, [before])
        # what was filled in after today's open was not known to today's first predictions
        earlier = earlier[earlier["available_at"] < pd.Timestamp(session.opens)]
        grid = on_grid(earlier, symbols, deployment.calendar.session(before))
        memory = remember(grid, int(PREVIOUS_SESSION_SHARE * grid.close.shape[1]))
        deployment.memories.clear()
        deployment.memories[before] = known = files, symbols, memory
    return known[2]


def levels_in_force(deployment: Deployment, label: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Hedge levels that were in force at bars of a session; see `levels/joining.py`.

    Args:
        deployment: where the levels are.
        label: the session.
        rows: with symbol and bar_ts.
    """
    levels = deployment.store.read(HEDGE_LEVELS, [label])
    length = dt.timedelta(seconds=deployment.calendar.bar_seconds)
    ended = rows[["symbol"]].assign(bar_end=rows["bar_ts"] + length)
    return in_force(levels, ended, deployment.chain_max_age)
