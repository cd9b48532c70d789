"""Option chains from Parquet or CSV files.

Columns: symbol, as_of (with a time zone), expiry (a date), strike, right (C, P, call or put),
open_interest, volume, implied_volatility, bid, ask; available_at or fetched, and last, may be
there. A file that does not say when its snapshots could be had gets them 30 minutes after `as_of`,
the delay of free option data.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hedge_pipeline.market.sources.columns import (
    check_columns,
    read_file,
    read_numbers,
    read_times,
    refuse,
)
from hedge_pipeline.market.sources.protocol import CHAIN_COLUMNS, BadInput

if TYPE_CHECKING:
    import pandas as pd

FREE_DATA_DELAY = dt.timedelta(minutes=30)
AVAILABLE_ALIASES = ("available_at", "fetched")
RIGHTS = {"c": "C", "call": "C", "p": "P", "put": "P"}
COUNTS = ("open_interest", "volume", "implied_volatility")
QUOTES = ("bid", "ask", "last")
KEY = ["symbol", "as_of", "expiry", "strike", "right"]


def read_chains(paths: Sequence[Path]) -> pd.DataFrame:
    """Contracts of all files: symbol, the columns `CHAIN_COLUMNS`, and file.

    Of two files that hold the same snapshot with the same numbers one counts.

    Raises:
        BadInput: with file, row (counted from 1 below the header) and column.
    """
    import pandas as pd

    chains = pd.concat([read_chain(path).assign(file=path.name) for path in paths])
    chains = chains[~chains.drop(columns="file").duplicated()].reset_index(drop=True)
    twice = chains[chains.duplicated(KEY, keep=False)].sort_values(KEY, kind="stable").iloc[:2]
    if len(twice):
        first = twice.iloc[0]
        raise BadInput(
            f"{' and '.join(twice['file'])} disagree on {first['symbol']} {first['expiry']} "
            f"{first['strike']:g} {first['right']} as of {first['as_of']}"
        )
    return chains


def read_chain(path: Path) -> pd.DataFrame:
    """Contracts of one file as symbol and the columns `CHAIN_COLUMNS`.

    Raises:
        BadInput: with file, row and column.
    """
    frame = read_file(path)
    wanted = ["symbol", "as_of", "expiry", "strike", "right", *COUNTS, "bid", "ask"]
    missing = [name for name in wanted if name not in frame.columns]
    if missing:
        raise BadInput(f"{path.name}: not a file of option chains, it lacks {', '.join(missing)}")
    check_columns(path, frame, wanted)
    frame = frame.reset_index(drop=True)
    frame["as_of"] = read_times(path, frame["as_of"], "as_of")
    known = [name for name in AVAILABLE_ALIASES if name in frame.columns]
    if known:
        frame["available_at"] = read_times(path, frame[known[0]], known[0])
    else:
        frame["available_at"] = frame["as_of"] + FREE_DATA_DELAY
    if "last" not in frame.columns:
        frame["last"] = np.nan
    for name in ("strike", *COUNTS, *QUOTES):
        frame[name] = read_numbers(path, frame[name])
    frame["symbol"] = frame["symbol"].astype("str").str.strip().str.upper()
    frame["expiry"] = _dates(path, frame["expiry"])
    right = frame["right"].astype("str").str.strip().str.lower().map(RIGHTS)
    refuse(path, right.isna(), "right is neither C nor P")
    frame["right"] = right
    _refuse_bad_rows(path, frame)
    return frame[["symbol", *CHAIN_COLUMNS]]


def _dates(path: Path, values: pd.Series[Any]) -> pd.Series[Any]:
    """Dates as text, YYYY-MM-DD; each distinct value is read once."""
    import pandas as pd

    distinct = {value: pd.to_datetime(value, errors="coerce") for value in values.unique()}
    refuse(path, values.map(lambda value: pd.isna(distinct[value])), "expiry is no date")
    return values.map(lambda value: distinct[value].strftime("%Y-%m-%d"))


def _refuse_bad_rows(path: Path, frame: pd.DataFrame) -> None:
    refuse(path, frame["symbol"].isna() | (frame["symbol"] == ""), "symbol is missing")
    refuse(path, ~(frame["strike"] > 0), "strike is not a positive price")
    for name in ("strike", *COUNTS, *QUOTES):
        refuse(path, np.isinf(frame[name]), f"{name} is infinite")
    for name in (*COUNTS, *QUOTES):
        refuse(path, frame[name] < 0, f"{name} is negative")
    refuse(path, frame["available_at"] < frame["as_of"], "available_at is before as_of")
