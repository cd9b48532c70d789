"""Outcomes: what the price really did. Built from observed closes of one session, nothing else."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import numpy as np

from hedge_pipeline.market.calendar import to_datetime64, utc_times
from hedge_pipeline.market.tables import OUTCOMES

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.market.calendar import Session

GRACE = dt.timedelta(minutes=5)
# binary fractions put a move of exactly the dead band on either side of it
_ROUNDING_BP = 1e-6


def mature(
    bars: pd.DataFrame,
    session: Session,
    *,
    horizon: int,
    dead_band_bp: float,
    now: dt.datetime,
    grace: dt.timedelta = GRACE,
) -> pd.DataFrame:
    """Outcomes of the bars that can be known for good at `now`.

    The outcome of bar t compares its close with the close of bar t + horizon of the same session.
    It is `flat` if the absolute return is at most the dead band. It is `unlabelable` if t + horizon
    lies behind the close (`crosses_close`), or if that bar has not come by the end of the grace
    (`gap`; `halted` if no bar in between has either). Bars whose outcome is still open give no row.
    A row is the same whenever it is asked for: a bar that comes after the grace ends no outcome.

    Args:
        bars: rows of `raw_quotes` of the session, any number of symbols.
        session: the session.
        horizon: bars.
        dead_band_bp: basis points.
        now: aware time; what became available later is not used.
        grace: how long after the close the last bars may come; at least the source's delay.

    Returns:
        Rows of `outcomes`, one per bar with a known outcome.
    """
    import pandas as pd

    known = bars[bars["available_at"] <= pd.Timestamp(now)]
    if known.empty:
        return OUTCOMES.empty()
    deadline = session.closes + grace
    codes, symbols = pd.factorize(known["symbol"], sort=True)
    close = np.full((len(symbols), session.bars), np.nan)
    available = np.full(close.shape, np.datetime64("NaT", "us"))
    place = session.index_of(utc_times(known["bar_ts"]))
    inside = place >= 0
    close[codes[inside], place[inside]] = known["close"].to_numpy()[inside]
    available[codes[inside], place[inside]] = utc_times(known["available_at"])[inside]
    in_time = np.isfinite(close) & (available <= to_datetime64(deadline))

    symbol, entry = np.nonzero(np.isfinite(close))
    target = entry + horizon
    crosses = target >= session.bars
    exit_bar = symbol, np.minimum(target, session.bars - 1)
    exits = np.where(crosses, np.nan, np.where(in_time, close, np.nan)[exit_bar])
    seen = np.cumsum(np.pad(in_time, ((0, 0), (1, 0))), axis=1)
    behind = np.minimum(target + 1, session.bars)
    halted = seen[symbol, behind] - seen[symbol, entry + 1] == 0
    entry_price = close[symbol, entry]
    change = exits / entry_price - 1.0

    status = np.where(change > 0, "up", "down").astype(object)
    status[np.abs(change) * 1e4 <= dead_band_bp + _ROUNDING_BP] = "flat"
    reason = np.full(len(entry), None, dtype=object)
    reason[np.isnan(exits)] = np.where(halted[np.isnan(exits)], "halted", "gap")
    reason[crosses] = "crosses_close"
    status[np.isnan(exits)] = "unlabelable"

    known_at = available[symbol, entry]
    given_up = np.where(np.isnan(exits), to_datetime64(deadline), available[exit_bar])
    when = np.maximum(np.where(crosses, known_at, given_up), known_at)
    direction = (status == "up").astype(np.int8)
    frame = pd.DataFrame(
        {
            "symbol": symbols.take(symbol),
            "bar_ts": pd.DatetimeIndex(session.bar_ts[entry]).tz_localize("UTC"),
            "horizon_bars": horizon,
            "entry_price": entry_price,
            "exit_price": exits,
            "return_pct": change * 100,
            "actual_direction": pd.arrays.IntegerArray(direction, ~np.isin(status, ["up", "down"])),
            "status": status,
            "reason": reason,
            "available_at": pd.DatetimeIndex(when).tz_localize("UTC"),
        }
    )
    settled = crosses | np.isfinite(exits) | (now >= deadline)
    return OUTCOMES.conform(frame[settled]).reset_index(drop=True)
