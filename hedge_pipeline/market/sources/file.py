"""Bars and option chains from Parquet or CSV files; what a file holds is told by its columns.

Bars: symbol, ts (aliases timestamp, date, datetime, bar_ts; the start of the bar, with a time
zone), open, high, low, close, volume. Option chains: see `chain_files.py`. Further columns are
ignored. Rows outside the calendar's sessions are dropped and counted in `dropped`; anything else
that is wrong is refused with its row.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hedge_pipeline.market.bars import days_of
from hedge_pipeline.market.calendar import utc_times
from hedge_pipeline.market.sources import chain_files
from hedge_pipeline.market.sources.columns import (
    check_columns,
    read_file,
    read_numbers,
    read_times,
    refuse,
)
from hedge_pipeline.market.sources.protocol import (
    BAR_COLUMNS,
    CHAIN_COLUMNS,
    BadInput,
    Capabilities,
    NoDataYet,
    SourceOptions,
    SymbolUnknown,
)

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.market.calendar import Session, SessionCalendar

log = logging.getLogger(__name__)

TIME_ALIASES = ("ts", "timestamp", "date", "datetime", "bar_ts")
PRICES = ("open", "high", "low", "close")
LARGEST_PRICE = 1e7
LARGEST_BAR_RANGE = 2.0
LARGEST_STEP = 5.0
STEP_WITHIN = dt.timedelta(hours=1)


class FileSource:
    """Files as a source; everything is read and checked when it is opened.

    Attributes:
        dropped: rows outside the calendar's sessions, by file name.
    """

    name = "file"
    delay = dt.timedelta(0)

    def __init__(self, options: SourceOptions) -> None:
        import pandas as pd

        if not options.paths:
            raise BadInput("the file source needs a file or folder: --path or HEDGE_SOURCE_PATH")
        self._calendar = options.calendar
        self.dropped: dict[str, int] = {}
        bar_files, chains = _files(options.paths)
        frames = [self._in_session(path, read_bars(path)) for path in bar_files]
        bars = pd.concat(frames, ignore_index=True)
        bars = bars[~bars.drop(columns="file").duplicated()]
        twice = bars.duplicated(["symbol", "bar_ts"], keep=False)
        if twice.any():
            row = bars[twice].sort_values(["symbol", "bar_ts"], kind="stable").iloc[:2]
            symbol, bar_ts = row["symbol"].iloc[0], row["bar_ts"].iloc[0]
            raise BadInput(f"{' and '.join(row['file'])} disagree on {symbol} at {bar_ts}")
        bars = bars.sort_values(["symbol", "bar_ts"], kind="stable")
        self._bars: dict[tuple[str, str], pd.DataFrame] = {
            (str(symbol), str(label)): group.drop(columns=["symbol", "session", "file"])
            for (symbol, label), group in bars.groupby(["symbol", "session"], sort=False)
        }
        self._chains = self._read_chains(chains)
        self.capabilities = Capabilities(has_chains=bool(self._chains))
        self._days: dict[str, pd.DataFrame] = {}
        self.symbols = tuple(sorted({symbol for symbol, _ in self._bars}))
        self.sessions = tuple(sorted({label for _, label in self._bars}))

    def bars(self, symbol: str, session: Session, now: dt.datetime) -> pd.DataFrame:
        """See the protocol; bid, ask and levels are unknown."""
        import pandas as pd

        self._refuse_unknown(symbol)
        found = self._bars.get((symbol, session.label))
        if found is None:
            raise NoDataYet(f"no file has bars of {symbol} in session {session.label}")
        last = pd.Timestamp(now - dt.timedelta(seconds=session.bar_seconds))
        frame = found[found["bar_ts"] <= last].reset_index(drop=True)
        return frame.reindex(columns=list(BAR_COLUMNS))

    def chains(
        self, symbol: str, session: Session, now: dt.datetime, *, sweep: bool
    ) -> pd.DataFrame:
        """See the protocol; a file's snapshots are served whole."""
        import pandas as pd

        found = self._chains.get((symbol, session.label))
        if found is None:
            raise NoDataYet(f"no file has option chains of {symbol} in session {session.label}")
        return found[found["available_at"] <= pd.Timestamp(now)].reset_index(drop=True)

    def _read_chains(self, paths: Sequence[Path]) -> dict[tuple[str, str], pd.DataFrame]:
        """Snapshots by symbol and the session on whose date they became available."""
        if not paths:
            return {}
        chains = chain_files.read_chains(paths)
        day = chains["available_at"].dt.tz_convert(self._calendar.timezone).dt.strftime("%Y-%m-%d")
        inside = day.isin([label for label in day.unique() if label in self._calendar])
        dropped = chains.loc[~inside, "file"].value_counts()
        for path in paths:
            self.dropped[path.name] = int(dropped.get(path.name, 0))
            if self.dropped[path.name]:
                log.info(
                    "%s: %d rows outside the sessions dropped", path.name, self.dropped[path.name]
                )
        chains = chains.assign(session=day)[inside]
        return {
            (str(symbol), str(label)): group[list(CHAIN_COLUMNS)]
            for (symbol, label), group in chains.groupby(["symbol", "session"], sort=False)
        }

    def daily(self, symbol: str, first: str, last: str, now: dt.datetime) -> pd.DataFrame:
        """See the protocol; made of the minute bars, whatever minutes the file lacks."""
        self._refuse_unknown(symbol)
        if symbol not in self._days:
            own = [label for label in self.sessions if (symbol, label) in self._bars]
            self._days[symbol] = days_of((label, self._bars[symbol, label]) for label in own)
        days = self._days[symbol]
        days = days[(days["session"] >= first) & (days["session"] <= last)]
        over = [self._calendar.session(label).closes <= now for label in days["session"]]
        if not any(over):
            raise NoDataYet(f"no file has a whole session of {symbol} from {first} to {last}")
        return days[over].reset_index(drop=True)

    def _refuse_unknown(self, symbol: str) -> None:
        if symbol not in self.symbols:
            raise SymbolUnknown(
                f"no file has bars of {symbol}; they have {', '.join(self.symbols)}"
            )

    def _in_session(self, path: Path, bars: pd.DataFrame) -> pd.DataFrame:
        labels = session_of(bars["bar_ts"], self._calendar)
        inside = labels != ""
        self.dropped[path.name] = int((~inside).sum())
        if self.dropped[path.name]:
            log.info("%s: %d rows outside the sessions dropped", path.name, self.dropped[path.name])
        if not inside.any():
            raise BadInput(
                f"{path.name}: no row lies in a session of {self._calendar.name} "
                f"(bars of {self._calendar.bar_seconds} s since {self._calendar.start})"
            )
        kept: pd.DataFrame = bars.assign(session=labels, file=path.name).loc[inside]
        return kept


def session_of(bar_ts: pd.Series[Any], calendar: SessionCalendar) -> np.ndarray[Any, Any]:
    """Session label of each bar start; empty where it is not on any session's grid."""
    first, last = bar_ts.min(), bar_ts.max()
    day = dt.timedelta(days=1)
    labels = calendar.between((first - day).date().isoformat(), (last + day).date().isoformat())
    sessions = [calendar.session(label) for label in labels]
    grid = (
        np.concatenate([session.bar_ts for session in sessions])
        if sessions
        else np.array([], dtype="datetime64[us]")
    )
    names = np.repeat(np.array(labels, dtype=object), [session.bars for session in sessions])
    times = utc_times(bar_ts)
    if not len(grid):
        return np.full(len(times), "", dtype=object)
    position = np.minimum(np.searchsorted(grid, times), len(grid) - 1)
    return np.where(grid[position] == times, names[position], "")


def read_bars(path: Path) -> pd.DataFrame:
    """Bars of one file as symbol, bar_ts (UTC), open, high, low, close, volume.

    Raises:
        BadInput: with file, row (counted from 1 below the header) and column.
    """
    frame = read_file(path)
    times = [name for name in TIME_ALIASES if name in frame.columns]
    missing = [name for name in ("symbol", *PRICES, "volume") if name not in frame.columns]
    if not times:
        missing.append("ts")
    if missing:
        raise BadInput(f"{path.name}: not a file of bars, it lacks {', '.join(missing)}")
    wanted = ["symbol", times[0], *PRICES, "volume"]
    check_columns(path, frame, wanted)
    frame = frame[wanted].rename(columns={times[0]: "bar_ts"}).reset_index(drop=True)
    frame["bar_ts"] = read_times(path, frame["bar_ts"])
    for column in (*PRICES, "volume"):
        frame[column] = read_numbers(path, frame[column])
    frame["symbol"] = frame["symbol"].astype("str").str.strip().str.upper()
    refuse(path, frame["symbol"].isna() | (frame["symbol"] == ""), "symbol is missing")
    _refuse_bad_rows(path, frame)
    return frame


def _files(paths: Any) -> tuple[list[Path], list[Path]]:
    """Files of bars and files of option chains."""
    found: list[Path] = []
    for name in paths:
        path = Path(name)
        if path.is_dir():
            found.extend(sorted(x for x in path.iterdir() if x.suffix in (".parquet", ".csv")))
        elif path.exists():
            found.append(path)
        else:
            raise BadInput(f"{name}: no such file or folder")
    chains = [path for path in found if _is_chain(path)]
    bars = [path for path in found if path not in chains]
    if not bars:
        raise BadInput(f"{', '.join(map(str, paths))}: no Parquet or CSV file of bars in there")
    return bars, chains


def _is_chain(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".csv":
            with path.open() as file:
                names = file.readline().lower().split(",")
        else:
            names = [str(name).lower() for name in pq.read_schema(path).names]
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid):
        return False
    return {"strike", "expiry"} <= {name.strip() for name in names}


def _refuse_bad_rows(path: Path, frame: pd.DataFrame) -> None:
    """Refuses impossible prices, doubled or unsorted times."""
    for column in PRICES:
        price = frame[column]
        refuse(path, price.isna(), f"{column} is missing")
        refuse(path, ~np.isfinite(price), f"{column} is infinite")
        refuse(path, price <= 0, f"{column} is not a positive price")
        refuse(path, price > LARGEST_PRICE, f"{column} is above {LARGEST_PRICE:g}")
    body_low, body_high = frame[["open", "close"]].min(axis=1), frame[["open", "close"]].max(axis=1)
    refuse(path, frame["high"] < body_high, "high is below open or close")
    refuse(path, frame["low"] > body_low, "low is above open or close")
    refuse(
        path,
        frame["high"] > LARGEST_BAR_RANGE * frame["low"],
        f"high is more than {LARGEST_BAR_RANGE:g} times low",
    )
    refuse(path, frame["volume"] < 0, "volume is negative")
    refuse(path, np.isinf(frame["volume"]), "volume is infinite")
    refuse(path, frame.duplicated(["symbol", "bar_ts"]), "ts is there twice for its symbol")
    own = frame.groupby("symbol", sort=False)
    passed = own["bar_ts"].diff()
    refuse(path, passed < dt.timedelta(0), "ts is earlier than in the row before it of its symbol")
    # overnight a split may do this, within the hour only a misplaced decimal point
    step = frame["open"] / own["close"].shift()
    torn = (step > LARGEST_STEP) | (step < 1 / LARGEST_STEP)
    refuse(
        path,
        torn & (passed <= STEP_WITHIN),
        f"open is more than {LARGEST_STEP:g} times away from the close before it",
    )
