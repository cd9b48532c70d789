"""Bars from Parquet or CSV files. What a file holds is told by its columns, not by its name.

Bars: symbol, ts (aliases timestamp, date, datetime, bar_ts; the start of the bar, with a time
zone), open, high, low, close, volume. Further columns are ignored. Rows outside the calendar's
sessions are dropped and counted in `dropped`; anything else that is wrong is refused with its row.
"""

from __future__ import annotations

import datetime as dt
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hedge_pipeline.market.bars import days_of
from hedge_pipeline.market.sources.protocol import (
    BAR_COLUMNS,
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
_WITH_ZONE = r":\d{2}(?:[.,]\d+)?\s*(?:Z|[+-]\d{2}(?::?\d{2})?)\s*$"
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
    capabilities = Capabilities()
    delay = dt.timedelta(0)

    def __init__(self, options: SourceOptions) -> None:
        import pandas as pd

        if not options.paths:
            raise BadInput("the file source needs a file or folder: --path or HEDGE_SOURCE_PATH")
        self._calendar = options.calendar
        self.dropped: dict[str, int] = {}
        frames = [self._in_session(path, read_bars(path)) for path in _files(options.paths)]
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
        for column in ("bid", "ask", "support", "resistance"):
            frame[column] = np.nan
        return frame[list(BAR_COLUMNS)]

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
    times = bar_ts.dt.tz_localize(None).to_numpy().astype("datetime64[us]")
    if not len(grid):
        return np.full(len(times), "", dtype=object)
    position = np.minimum(np.searchsorted(grid, times), len(grid) - 1)
    return np.where(grid[position] == times, names[position], "")


def read_bars(path: Path) -> pd.DataFrame:
    """Bars of one file as symbol, bar_ts (UTC), open, high, low, close, volume.

    Raises:
        BadInput: with file, row (counted from 1 below the header) and column.
    """
    frame = _read(path)
    frame = frame.rename(columns={name: str(name).strip().lower() for name in frame.columns})
    times = [name for name in TIME_ALIASES if name in frame.columns]
    missing = [name for name in ("symbol", *PRICES, "volume") if name not in frame.columns]
    if not times:
        missing.append("ts")
    if missing:
        raise BadInput(f"{path.name}: not a file of bars, it lacks {', '.join(missing)}")
    if frame.empty:
        raise BadInput(f"{path.name}: the file has no rows")
    wanted = ["symbol", times[0], *PRICES, "volume"]
    doubled = [name for name in wanted if list(frame.columns).count(name) > 1]
    if doubled:
        raise BadInput(f"{path.name}: column {doubled[0]} is there twice")
    frame = frame[wanted].rename(columns={times[0]: "bar_ts"}).reset_index(drop=True)
    frame["bar_ts"] = _times(path, frame["bar_ts"])
    for column in (*PRICES, "volume"):
        frame[column] = _numbers(path, frame[column])
    frame["symbol"] = frame["symbol"].astype("str").str.strip().str.upper()
    _refuse(path, frame["symbol"].isna() | (frame["symbol"] == ""), "symbol is missing")
    _refuse_bad_rows(path, frame)
    return frame


def _files(paths: Any) -> list[Path]:
    found: list[Path] = []
    for name in paths:
        path = Path(name)
        if path.is_dir():
            inside = sorted(x for x in path.iterdir() if x.suffix in (".parquet", ".csv"))
            found.extend(x for x in inside if not _is_chain(x))
        elif path.exists():
            if _is_chain(path):
                raise BadInput(f"{path.name}: holds option chains, not bars")
            found.append(path)
        else:
            raise BadInput(f"{name}: no such file or folder")
    if not found:
        raise BadInput(f"{', '.join(map(str, paths))}: no Parquet or CSV file of bars in there")
    return found


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


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa

    try:
        if path.suffix == ".csv":
            # a converter, not a dtype: NA and NAN are tickers, 0700 keeps its zero
            return pd.read_csv(path, converters=dict.fromkeys(("symbol", "Symbol", "SYMBOL"), str))
        return pd.read_parquet(path)
    except pd.errors.EmptyDataError:
        raise BadInput(f"{path.name}: the file is empty") from None
    except (pa.ArrowInvalid, pd.errors.ParserError, UnicodeDecodeError, OSError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise BadInput(f"{path.name}: cannot be read ({reason})") from None


def _times(path: Path, values: pd.Series[Any]) -> pd.Series[Any]:
    import pandas as pd

    if pd.api.types.is_numeric_dtype(values.dtype):
        raise BadInput(f"{path.name}: column ts holds numbers; give times with a time zone")
    if isinstance(values.dtype, pd.DatetimeTZDtype):
        parsed = values
    elif pd.api.types.is_datetime64_any_dtype(values.dtype):
        raise BadInput(f"{path.name}: column ts has no time zone")
    else:
        parsed = _parse_times(path, values)
    missing = parsed.isna()
    if missing.any():
        raise BadInput(f"{path.name} row {_row(missing)}: ts is missing")
    utc: pd.Series[Any] = parsed.dt.tz_convert("UTC").dt.as_unit("us")
    return utc


def _parse_times(path: Path, values: pd.Series[Any]) -> pd.Series[Any]:
    import pandas as pd

    text = values.astype("str")
    naive = ~text.str.contains(_WITH_ZONE, regex=True, na=True)
    if naive.any():
        row = _row(naive)
        raise BadInput(f"{path.name} row {row}: ts {text.iloc[row - 1]!r} has no time zone")
    parsed = pd.to_datetime(text, utc=True, format="ISO8601", errors="coerce")
    wrong = parsed.isna() & text.notna()
    if wrong.any():
        row = _row(wrong)
        raise BadInput(f"{path.name} row {row}: ts {text.iloc[row - 1]!r} is no time")
    return parsed


def _numbers(path: Path, values: pd.Series[Any]) -> pd.Series[Any]:
    import pandas as pd

    numbers = pd.to_numeric(values, errors="coerce").astype("float64")
    wrong = numbers.isna() & values.notna()
    if wrong.any():
        row = _row(wrong)
        raise BadInput(
            f"{path.name} row {row}: {values.name} {values.iloc[row - 1]!r} is no number"
        )
    return numbers


def _refuse_bad_rows(path: Path, frame: pd.DataFrame) -> None:
    """Refuses impossible prices, doubled or unsorted times."""
    for column in PRICES:
        price = frame[column]
        _refuse(path, price.isna(), f"{column} is missing")
        _refuse(path, ~np.isfinite(price), f"{column} is infinite")
        _refuse(path, price <= 0, f"{column} is not a positive price")
        _refuse(path, price > LARGEST_PRICE, f"{column} is above {LARGEST_PRICE:g}")
    body_low, body_high = frame[["open", "close"]].min(axis=1), frame[["open", "close"]].max(axis=1)
    _refuse(path, frame["high"] < body_high, "high is below open or close")
    _refuse(path, frame["low"] > body_low, "low is above open or close")
    _refuse(
        path,
        frame["high"] > LARGEST_BAR_RANGE * frame["low"],
        f"high is more than {LARGEST_BAR_RANGE:g} times low",
    )
    _refuse(path, frame["volume"] < 0, "volume is negative")
    _refuse(path, np.isinf(frame["volume"]), "volume is infinite")
    _refuse(path, frame.duplicated(["symbol", "bar_ts"]), "ts is there twice for its symbol")
    own = frame.groupby("symbol", sort=False)
    passed = own["bar_ts"].diff()
    _refuse(path, passed < dt.timedelta(0), "ts is earlier than in the row before it of its symbol")
    # overnight a split may do this, within the hour only a misplaced decimal point
    step = frame["open"] / own["close"].shift()
    torn = (step > LARGEST_STEP) | (step < 1 / LARGEST_STEP)
    _refuse(
        path,
        torn & (passed <= STEP_WITHIN),
        f"open is more than {LARGEST_STEP:g} times away from the close before it",
    )


def _refuse(path: Path, wrong: pd.Series[Any], what: str) -> None:
    if wrong.any():
        raise BadInput(f"{path.name} row {_row(wrong)}: {what}")


def _row(wrong: pd.Series[Any]) -> int:
    return int(np.argmax(wrong.to_numpy())) + 1
