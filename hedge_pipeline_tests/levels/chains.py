"""Small option chains to compute by hand, and random ones that look like a vendor's."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hedge_pipeline.levels.chain import Chain
from hedge_pipeline.levels.gaps import DailyBars
from hedge_pipeline.levels.rules import LevelRules
from hedge_pipeline.levels.snapshot import Snapshot, gated, row_of

Array = npt.NDArray[np.float64]

# Tuesday 10:00 in New York
AS_OF = dt.datetime(2026, 2, 10, 15, 0, tzinfo=dt.UTC)
DELAY = dt.timedelta(minutes=30)
TODAY, TOMORROW = "2026-02-10", "2026-02-11"
MONTHLIES = ("2026-02-20", "2026-03-20", "2026-04-17", "2026-05-15")
NO_CARRY = LevelRules(rate=0.0, dividend_yield=0.0)

Row = dict[str, object]


def contract(
    strike: float,
    right: str,
    open_interest: float = 0.0,
    volume: float = 0.0,
    *,
    expiry: str = TOMORROW,
    volatility: float = 0.2,
    bid: float = np.nan,
    ask: float = np.nan,
) -> Row:
    """One row of a snapshot."""
    return {
        "expiry": expiry,
        "strike": strike,
        "right": right,
        "open_interest": open_interest,
        "volume": volume,
        "implied_volatility": volatility,
        "bid": bid,
        "ask": ask,
    }


def frame_of(rows: Iterable[Row]) -> pd.DataFrame:
    """Rows as a source would give them."""
    return pd.DataFrame(list(rows), columns=list(contract(1.0, "C")))


def chain_of(*rows: Row, as_of: dt.datetime = AS_OF) -> Chain:
    """Rows as a chain."""
    return Chain.from_frame(frame_of(rows), as_of)


def snapshot_of(frame: pd.DataFrame, *, as_of: dt.datetime, **rest: Any) -> Snapshot:
    """The rows of a snapshot, read and gated."""
    return gated(Chain.from_frame(frame, as_of), **rest)


def levels_of(
    frame: pd.DataFrame, *, daily: DailyBars, rules: LevelRules | None = None, **rest: Any
) -> dict[str, Any]:
    """One row of hedge levels from the rows of a snapshot."""
    rules = rules or LevelRules()
    return row_of(snapshot_of(frame, rules=rules, **rest), daily=daily, rules=rules)


def walls_at(expiry: str, **interest: float) -> list[Row]:
    """Contracts named like `C105=30`: right, strike and open interest."""
    return [
        contract(float(name[1:]), name[0], value, expiry=expiry) for name, value in interest.items()
    ]


def usable_rows(spot: float = 100.0, expiry: str = TOMORROW, interest: float = 10.0) -> list[Row]:
    """21 strikes around the spot in both rights, all with the same open interest."""
    strikes = spot * (1 + np.arange(-10, 11) / 100)
    return [
        contract(float(strike), right, interest, expiry=expiry)
        for strike in strikes
        for right in "PC"
    ]


def quoted_rows(price: float, expiry: str = TOMORROW) -> list[Row]:
    """Usable rows whose quotes imply the price: a time value of one and half a cent of spread."""
    rows = usable_rows(price, expiry)
    for row in rows:
        intrinsic = price - float(str(row["strike"]))
        value = 1 + max(intrinsic if row["right"] == "C" else -intrinsic, 0.0)
        row |= {"bid": value - 0.005, "ask": value + 0.005}
    return rows


def random_frame(seed: int, spot: float = 100.37) -> pd.DataFrame:
    """A chain with a smile, round-number interest, unknown and absurd values, ended series."""
    rng = np.random.default_rng(seed)
    expiries = ("2026-02-06", TODAY, TOMORROW, "2026-02-13", *MONTHLIES, "2026-06-18")
    grid = pd.MultiIndex.from_product(
        [expiries, np.arange(70.0, 131.0, 2.0), ("P", "C")], names=["expiry", "strike", "right"]
    )
    frame = grid.to_frame(index=False)
    count = len(frame)
    distance = np.log(frame["strike"].to_numpy() / spot)
    smile = 0.2 - 0.4 * distance + 1.5 * distance**2 + 0.01 * rng.normal(size=count)
    # puts below and calls above the spot have the most interest
    tilt = np.where(frame["right"] == "P", -12, 12) * distance
    interest = np.floor(np.exp(rng.normal(5, 0.8, count) + tilt - 15 * np.abs(distance)))
    smile[rng.random(count) < 0.05] = 1e-5
    smile[rng.random(count) < 0.02] = 8.5
    smile[rng.random(count) < 0.02] = np.nan
    interest[rng.random(count) < 0.03] = np.nan
    volume = np.floor(np.exp(rng.normal(3, 1, count)))
    volume[rng.random(count) < 0.2] = np.nan
    return frame.assign(
        open_interest=interest,
        volume=volume,
        implied_volatility=smile,
        bid=np.nan,
        ask=np.nan,
    )


def random_daily(seed: int, sessions: int = 60, last: float = 100.0) -> DailyBars:
    """Daily bars with overnight gaps that end near `last`; some sessions are unknown."""
    rng = np.random.default_rng(seed + 7)
    opened = 0.012 * rng.normal(size=sessions)
    moved = 0.008 * rng.normal(size=sessions)
    close = np.exp(np.cumsum(opened + moved))
    close *= last / close[-1]
    start = close * np.exp(-moved)
    high = np.maximum(close, start) * np.exp(0.003 * rng.random(sessions))
    low = np.minimum(close, start) * np.exp(-0.003 * rng.random(sessions))
    unknown = rng.random(sessions) < 0.03
    for values in (high, low, close):
        values[unknown] = np.nan
    return DailyBars(high, low, close)
