"""Columns of users' files: read strictly, refused with the file's name, row and column."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hedge_pipeline.market.sources.protocol import BadInput

if TYPE_CHECKING:
    import pandas as pd

_WITH_ZONE = r":\d{2}(?:[.,]\d+)?\s*(?:Z|[+-]\d{2}(?::?\d{2})?)\s*$"


def check_columns(path: Path, frame: pd.DataFrame, wanted: list[str]) -> None:
    """Refuses an empty file and columns that stand there twice.

    Raises:
        BadInput: with the column.
    """
    if frame.empty:
        raise BadInput(f"{path.name}: the file has no rows")
    doubled = [name for name in wanted if list(frame.columns).count(name) > 1]
    if doubled:
        raise BadInput(f"{path.name}: column {doubled[0]} is there twice")


def read_file(path: Path) -> pd.DataFrame:
    """The file as a frame, its columns named in lower case without blanks around them.

    Raises:
        BadInput: it is empty or cannot be read.
    """
    import pandas as pd
    import pyarrow as pa

    try:
        if path.suffix == ".csv":
            # a converter, not a dtype: NA and NAN are tickers, 0700 keeps its zero
            symbol = dict.fromkeys(("symbol", "Symbol", "SYMBOL"), str)
            frame = pd.read_csv(path, converters=symbol)
        else:
            frame = pd.read_parquet(path)
    except pd.errors.EmptyDataError:
        raise BadInput(f"{path.name}: the file is empty") from None
    except (pa.ArrowInvalid, pd.errors.ParserError, UnicodeDecodeError, OSError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise BadInput(f"{path.name}: cannot be read ({reason})") from None
    return frame.rename(columns={name: str(name).strip().lower() for name in frame.columns})


def read_times(path: Path, values: pd.Series[Any], name: str = "ts") -> pd.Series[Any]:
    """A column of times as datetime64[us, UTC].

    Raises:
        BadInput: a value is missing, no time, or without a time zone.
    """
    import pandas as pd

    if pd.api.types.is_numeric_dtype(values.dtype):
        raise BadInput(f"{path.name}: column {name} holds numbers; give times with a time zone")
    if isinstance(values.dtype, pd.DatetimeTZDtype):
        parsed = values
    elif pd.api.types.is_datetime64_any_dtype(values.dtype):
        raise BadInput(f"{path.name}: column {name} has no time zone")
    else:
        parsed = _parse_times(path, values, name)
    missing = parsed.isna()
    if missing.any():
        raise BadInput(f"{path.name} row {row_number(missing)}: {name} is missing")
    utc: pd.Series[Any] = parsed.dt.tz_convert("UTC").dt.as_unit("us")
    return utc


def _parse_times(path: Path, values: pd.Series[Any], name: str) -> pd.Series[Any]:
    import pandas as pd

    text = values.astype("str")
    naive = ~text.str.contains(_WITH_ZONE, regex=True, na=True)
    if naive.any():
        row = row_number(naive)
        raise BadInput(f"{path.name} row {row}: {name} {text.iloc[row - 1]!r} has no time zone")
    parsed = pd.to_datetime(text, utc=True, format="ISO8601", errors="coerce")
    wrong = parsed.isna() & text.notna()
    if wrong.any():
        row = row_number(wrong)
        raise BadInput(f"{path.name} row {row}: {name} {text.iloc[row - 1]!r} is no time")
    return parsed


def read_numbers(path: Path, values: pd.Series[Any]) -> pd.Series[Any]:
    """A column of numbers as float64; NaN where nothing stands.

    Raises:
        BadInput: a value is no number.
    """
    import pandas as pd

    numbers = pd.to_numeric(values, errors="coerce").astype("float64")
    wrong = numbers.isna() & values.notna()
    if wrong.any():
        row = row_number(wrong)
        raise BadInput(
            f"{path.name} row {row}: {values.name} {values.iloc[row - 1]!r} is no number"
        )
    return numbers


def refuse(path: Path, wrong: pd.Series[Any], what: str) -> None:
    """Refuses the file for the first wrong row.

    Raises:
        BadInput: file, row and what is wrong with it.
    """
    if wrong.any():
        raise BadInput(f"{path.name} row {row_number(wrong)}: {what}")


def row_number(wrong: pd.Series[Any]) -> int:
    """Number of the first wrong row, counted from 1 below the header."""
    return int(np.argmax(wrong.to_numpy())) + 1
