"""From a source's answers to stored bars and gaps, and from stored bars to the session grid.

Every expected minute of a session is a bar or a gap with a cause; nothing is ever filled in.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hedge_pipeline.market.calendar import Session, utc_times
from hedge_pipeline.market.features import Bars
from hedge_pipeline.market.sources.protocol import (
    BAR_COLUMNS,
    DAILY_COLUMNS,
    DailySource,
    MarketSource,
    NoDataYet,
    SchemaDrift,
    SourceError,
)
from hedge_pipeline.market.tables import GAPS, RAW_QUOTES, codes_of

if TYPE_CHECKING:
    import pandas as pd

GRID_COLUMNS = ("open", "high", "low", "close", "volume", "support", "resistance")


@dataclass(frozen=True)
class Collected:
    """What one round of asking brought.

    Attributes:
        bars: rows of `raw_quotes`.
        failures: the error of each symbol that did not answer.
    """

    bars: pd.DataFrame
    failures: dict[str, SourceError]


def collect_bars(
    source: MarketSource,
    symbols: Sequence[str],
    session: Session,
    now: dt.datetime,
    *,
    nominal_arrival: bool,
    ingested_at: dt.datetime | None,
) -> Collected:
    """Asks the source for every symbol; one that fails does not touch the others.

    Args:
        source: whom to ask.
        symbols: which symbols.
        session: which session.
        now: aware time of asking.
        nominal_arrival: the session is history: a bar was available when a live system could
            have had it, its end plus the source's delay. Otherwise it is available now.
        ingested_at: time of writing; None = the time of availability, as in a replay.
    """
    import pandas as pd

    frames: list[pd.DataFrame] = []
    failures: dict[str, SourceError] = {}
    nominal = dt.timedelta(seconds=session.bar_seconds) + source.delay
    for symbol in symbols:
        try:
            frame = source.bars(symbol, session, now)
            _refuse_drift(source, frame)
        except SourceError as error:
            failures[symbol] = error
            continue
        available = frame["bar_ts"] + nominal
        if not nominal_arrival:
            available = pd.Series(pd.Timestamp(now), index=frame.index)
        frames.append(
            frame.assign(
                symbol=symbol,
                source=source.name,
                available_at=available,
                ingested_at=available if ingested_at is None else pd.Timestamp(ingested_at),
            )
        )
    bars = RAW_QUOTES.conform(pd.concat(frames)) if frames else RAW_QUOTES.empty()
    return Collected(bars.reset_index(drop=True), failures)


def _refuse_drift(source: MarketSource, frame: pd.DataFrame) -> None:
    """A plug-in's answer that cannot be stored concerns its symbol only."""
    missing = [name for name in BAR_COLUMNS if name not in frame.columns]
    if missing:
        raise SchemaDrift(f"{source.name}: the answer lacks {', '.join(missing)}")
    for name in ("bar_ts", "open", "high", "low", "close"):
        if frame[name].isna().any():
            raise SchemaDrift(f"{source.name}: the answer has a bar without {name}")


def days_of(sessions: Iterable[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    """Daily bars of sessions from the minute bars there are, with the columns `DAILY_COLUMNS`.

    Args:
        sessions: label and ascending bars, at least one, of each session; a volume that is unknown
            for a minute is unknown for the day.
    """
    import pandas as pd

    rows = [
        (
            label,
            bars["open"].iloc[0],
            bars["high"].max(),
            bars["low"].min(),
            bars["close"].iloc[-1],
            bars["volume"].sum(skipna=False),
        )
        for label, bars in sessions
    ]
    return pd.DataFrame(rows, columns=list(DAILY_COLUMNS))


def collect_days(
    source: DailySource, symbol: str, labels: Sequence[str], now: dt.datetime
) -> pd.DataFrame:
    """The source's daily bars of these sessions, as far as it has them.

    Args:
        source: whom to ask.
        symbol: which symbol.
        labels: sessions that are over, ascending; other sessions of the answer are left out.
        now: aware time of asking.

    Raises:
        SourceError: the source did not answer, or with something else.
    """
    frame = source.daily(symbol, labels[0], labels[-1], now)
    missing = [name for name in DAILY_COLUMNS if name not in frame.columns]
    if missing:
        raise SchemaDrift(f"{source.name}: the daily bars lack {', '.join(missing)}")
    for name in ("session", "open", "high", "low", "close"):
        if frame[name].isna().any():
            raise SchemaDrift(f"{source.name}: a daily bar has no {name}")
    wanted: pd.DataFrame = frame[frame["session"].isin(labels)]
    return wanted[list(DAILY_COLUMNS)].assign(symbol=symbol)


def find_gaps(
    bars: pd.DataFrame,
    symbols: Sequence[str],
    session: Session,
    until: dt.datetime,
    failures: dict[str, SourceError],
) -> pd.DataFrame:
    """Rows of `gaps`: the minutes final by `until` that have no bar.

    Args:
        bars: stored rows of `raw_quotes` of the session.
        symbols: expected symbols.
        session: which session.
        until: bars that end at or before this moment are expected.
        failures: errors of the last round of asking; a symbol without one has vendor holes.
    """
    import pandas as pd

    length = np.timedelta64(session.bar_seconds, "s")
    limit = np.datetime64(until.astimezone(dt.UTC).replace(tzinfo=None), "us")
    expected = session.bar_ts[session.bar_ts + length <= limit]
    owners, times = bars["symbol"].to_numpy(dtype=object), utc_times(bars["bar_ts"])
    pieces = []
    for symbol in symbols:
        present = times[owners == symbol]
        missing = np.setdiff1d(expected, present)
        if not len(missing):
            continue
        failure = failures.get(symbol)
        pieces.append(
            pd.DataFrame(
                {
                    "symbol": symbol,
                    "bar_ts": pd.DatetimeIndex(missing).tz_localize("UTC"),
                    "cause": failure.cause if failure else "vendor_hole",
                    "detail": str(failure)
                    if failure and not isinstance(failure, NoDataYet)
                    else None,
                }
            )
        )
    return GAPS.conform(pd.concat(pieces, ignore_index=True)) if pieces else GAPS.empty()


def on_grid(
    bars: pd.DataFrame, symbols: Sequence[str], session: Session, until: int | None = None
) -> Bars:
    """Stored bars as arrays [symbols, bars of the session]; NaN where there is no usable bar.

    A bar that arrived after a later one of its symbol is left out: the predictions in between
    could not know it, and a feature must not depend on when it is computed. A volume of zero
    means unknown.

    Args:
        bars: rows of `raw_quotes` of one session.
        symbols: order of the rows of the grid.
        session: the session.
        until: the grid has so many bars, the first of the session; None = all of them.
    """
    shape = (len(symbols), session.bars if until is None else until)
    arrays = {name: np.full(shape, np.nan) for name in GRID_COLUMNS}
    if len(bars):
        usable = bars[~late(bars)]
        inside, place = places_on_grid(usable, symbols, session, until=until)
        for name, array in arrays.items():
            array[place] = usable[name].to_numpy(dtype=float)[inside]
    arrays["volume"][arrays["volume"] == 0] = np.nan
    return Bars(**arrays)


def places_on_grid(
    rows: pd.DataFrame,
    symbols: Sequence[str],
    session: Session,
    first: int = 0,
    until: int | None = None,
) -> tuple[npt.NDArray[np.bool_], tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Which rows lie on the grid [symbols, bars of the session], and the places of those.

    Args:
        rows: [n] with symbol and bar_ts.
        symbols: order of the rows of the grid; rows of others lie beside it.
        session: the session.
        first: the bar of the session that the grid begins with.
        until: the bar before which it ends; None = the session's end.
    """
    row = rows["symbol"].map({symbol: i for i, symbol in enumerate(symbols)})
    column = session.index_of(utc_times(rows["bar_ts"]))
    end = session.bars if until is None else until
    inside = row.notna().to_numpy() & (column >= first) & (column < end)
    return inside, (row.to_numpy()[inside].astype(np.int64), column[inside] - first)


def late(bars: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Whether a bar came in only after a later bar of its symbol, [rows].

    A hole that is filled from history was available in time by its `available_at`, but whoever
    looked before it was written did without it: both times count.
    """
    came_in = np.maximum(utc_times(bars["available_at"]), utc_times(bars["ingested_at"]))
    owners = codes_of(bars["symbol"])
    order = np.lexsort((utc_times(bars["bar_ts"]), owners))
    found = np.zeros(len(bars), dtype=np.bool_)
    for own in np.split(order, np.flatnonzero(np.diff(owners[order])) + 1):
        earliest_from_here_on = np.minimum.accumulate(came_in[own][::-1])[::-1]
        found[own] = came_in[own] > earliest_from_here_on
    return found
