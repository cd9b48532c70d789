"""Outcomes: what the price really did. Built from observed closes of one session, nothing else."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import numpy as np

from hedge_pipeline.market.calendar import to_datetime64
from hedge_pipeline.market.tables import OUTCOMES

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.market.calendar import Session


def mature(
    bars: pd.DataFrame,
    session: Session,
    *,
    horizon: int,
    dead_band_bp: float,
    now: dt.datetime,
) -> pd.DataFrame:
    """Outcomes of the bars that can be known for good at `now`.

    The outcome of bar t compares its close with the close of bar t + horizon of the same session.
    It is `flat` if the absolute return is at most the dead band. It is `unlabelable` if t + horizon
    lies behind the close (`crosses_close`), or, once the session is over, if that bar is missing
    (`gap`; `halted` if every bar in between is missing too). Bars whose outcome is still open give
    no row.

    Args:
        bars: rows of `raw_quotes` of the session, any number of symbols.
        session: the session.
        horizon: bars.
        dead_band_bp: basis points.
        now: aware time; what became available later is not used.

    Returns:
        Rows of `outcomes`, one per bar with a known outcome.
    """
    import pandas as pd

    known = bars[bars["available_at"] <= pd.Timestamp(now)]
    over = now >= session.closes
    pieces = [
        _of_symbol(str(symbol), own, session, horizon, dead_band_bp, over)
        for symbol, own in known.groupby("symbol", sort=True)
    ]
    return (
        OUTCOMES.conform(pd.concat(pieces)).reset_index(drop=True) if pieces else (OUTCOMES.empty())
    )


def _of_symbol(
    symbol: str,
    bars: pd.DataFrame,
    session: Session,
    horizon: int,
    dead_band_bp: float,
    over: bool,
) -> pd.DataFrame:
    import pandas as pd

    close = np.full(session.bars, np.nan)
    available = np.full(session.bars, np.datetime64("NaT", "us"))
    place = session.index_of(_plain(bars["bar_ts"]))
    close[place] = bars["close"].to_numpy()
    available[place] = _plain(bars["available_at"])

    entry = np.flatnonzero(np.isfinite(close))
    target = entry + horizon
    crosses = target >= session.bars
    exits = np.where(crosses, np.nan, close[np.minimum(target, session.bars - 1)])
    seen = np.concatenate([[0], np.cumsum(np.isfinite(close))])
    behind = np.minimum(target + 1, session.bars)
    halted = seen[behind] - seen[entry + 1] == 0
    change = exits / close[entry] - 1.0

    status = np.where(change > 0, "up", "down").astype(object)
    status[np.abs(change) * 1e4 <= dead_band_bp] = "flat"
    reason = np.full(len(entry), None, dtype=object)
    reason[np.isnan(exits)] = np.where(halted[np.isnan(exits)], "halted", "gap")
    reason[crosses] = "crosses_close"
    status[np.isnan(exits)] = "unlabelable"

    at_exit = available[np.minimum(target, session.bars - 1)]
    closed = to_datetime64(session.closes)
    when = np.where(crosses, available[entry], np.where(np.isnan(exits), closed, at_exit))
    when = np.maximum(when, available[entry])
    frame = pd.DataFrame(
        {
            "symbol": symbol,
            "bar_ts": pd.DatetimeIndex(session.bar_ts[entry]).tz_localize("UTC"),
            "horizon_bars": horizon,
            "entry_price": close[entry],
            "exit_price": exits,
            "return_pct": change * 100,
            "actual_direction": pd.array(np.where(status == "up", 1, 0), dtype="Int8"),
            "status": status,
            "reason": reason,
            "available_at": pd.DatetimeIndex(when).tz_localize("UTC"),
        }
    )
    frame.loc[~frame["status"].isin(["up", "down"]), "actual_direction"] = pd.NA
    settled = crosses | np.isfinite(exits) | over
    return frame[settled]


def _plain(times: pd.Series[pd.Timestamp]) -> np.ndarray[tuple[int], np.dtype[np.datetime64]]:
    return times.dt.tz_localize(None).to_numpy().astype("datetime64[us]")
