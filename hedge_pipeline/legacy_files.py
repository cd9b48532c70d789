"""CSV files of the system before this one: columns known by many names, values taken strictly.

A row is a line; blank lines are none, and a quoted field ends on its line. Commas, semicolons, tabs
or | separate; UTF-8, with or without a byte order mark; LF, CRLF or CR. Names of columns count
without case, blanks and punctuation, % stands for pct. Of several names for one thing the first
that is there is taken; * must be there:

timestamp *: timestamp, time, datetime, date_time, ts, logged_at, created_at, date; also
    prediction_timestamp, predicted_at, prediction_time, in outcomes.csv before the others
symbol *: symbol, ticker, instrument
prediction_id: prediction_id, pred_id, id, uuid

in predictions.csv
    prediction *: prediction, predicted_direction, predicted, pred, direction
    price: price, current_price, last_price, entry_price, close, spot
    confidence: confidence, confidence_score, conf
    strength_score: strength_score, strength, hedge_strength
    level_type: level_type, level_side
    level_source: level_source, level_kind
    signal_fired: signal_fired, signal, fired, is_signal
    model_version: model_version, model_file, model_name, model, version
in outcomes.csv, where a prediction_id stands in for timestamp and symbol
    actual_direction *: actual_direction, actual, outcome, label, direction
    entry_price: entry_price, entry
    exit_price: exit_price, exit
    return_pct: return_pct, pct_return, return_percent, return, ret
    horizon: horizon, horizon_minutes, horizon_min, horizon_bars
in features.csv every other column is a feature, unless no value in it is a number or its name says
    prediction_id, model_version or index.

A time is ISO 8601 with date and time of day; without a zone it is the exchange's. Directions are
1, 0, up or down, flags 1, 0, true or false, all without case. An empty value, nan, none and null
are unknown, but none is a word of the two level columns. Nothing here writes or knows the store.
"""

from __future__ import annotations

import csv
import datetime as dt
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from hedge_pipeline.market.sources import BadInput
from hedge_pipeline.market.tables import (
    LEGACY_FEATURES,
    LEGACY_OUTCOMES,
    LEGACY_PREDICTIONS,
    Table,
)

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.float64]
# values of a column, and what is wrong with some of them by position
Taken = tuple[Sequence[Any] | Floats, dict[int, str]]
Take = Callable[[Sequence[str]], Taken]

UNKNOWN_HORIZON: Final = "unknown"
EARLIEST: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_NULLS: Final = frozenset(("", "nan", "none", "null"))
_SEPARATORS: Final = (",", ";", "\t", "|")
_LINES_AT_ONCE: Final = 4096
_TIME: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d)(:\d\d)?(?:[.,](\d+))?\s*(Z|[+-]\d\d(?::?\d\d)?)?", re.I
)
_SYMBOL: Final = re.compile(r"[.^=-]*[A-Z0-9][A-Z0-9.^=-]*")
_WRONG: Final = object()


# -- values ----------------------------------------------------------------------------------------


def _words(meanings: dict[str, Any], expected: str, *, nullable: bool = True) -> Take:
    known = {**(dict.fromkeys(_NULLS) if nullable else {}), **meanings}

    def take(cells: Sequence[str]) -> Taken:
        values = [known.get(cell.lower(), _WRONG) for cell in cells]
        wrong = {
            place: f"{cells[place]!r} is not {expected}" if cells[place] else "is missing"
            for place, value in enumerate(values)
            if value is _WRONG
        }
        return [None if value is _WRONG else value for value in values], wrong

    return take


def _text(cells: Sequence[str]) -> Taken:
    return [None if cell.lower() in _NULLS else cell for cell in cells], {}


def _number(*, least: float = -math.inf, most: float = math.inf, above: float = -math.inf) -> Take:
    bound = f"in {least:g}..{most:g}" if math.isfinite(most) else f"above {above:g}"

    def take(cells: Sequence[str]) -> Taken:
        values, wrong = take_numbers(cells)
        outside = (values < least) | (values > most) | (values <= above)
        wrong |= {x: f"{cells[x]!r} is not {bound}" for x in np.flatnonzero(outside).tolist()}
        return values, wrong

    return take


def _horizon(cells: Sequence[str]) -> Taken:
    values, wrong = _number(above=0)(cells)
    return [UNKNOWN_HORIZON if math.isnan(value) else f"{value:g}" for value in values], wrong


def _symbol(cells: Sequence[str]) -> Taken:
    values = [cell.upper() or None for cell in cells]
    wrong = {
        place: f"{cells[place]!r} is no symbol"
        for place, value in enumerate(values)
        if value is not None and not _SYMBOL.fullmatch(value)
    }
    return values, wrong


def take_numbers(cells: Sequence[str]) -> tuple[Floats, dict[int, str]]:
    """Finite numbers, NaN where unknown; true and false are 1 and 0."""
    together = "".join(cells)
    if "_" not in together and together.isascii():  # float() would take 1_000 and other digits
        try:
            values = np.array([float(cell) if cell else math.nan for cell in cells])
        except ValueError:
            pass
        else:
            if not np.isinf(values).any():
                return values, {}
    values, wrong = np.full(len(cells), math.nan), {}
    for place, cell in enumerate(cells):
        number = _one_number(cell)
        if number is None:
            wrong[place] = f"{cell!r} is no number"
        elif math.isinf(number):
            wrong[place] = f"{cell!r} is not finite"
        else:
            values[place] = number
    return values, wrong


def _one_number(cell: str) -> float | None:
    text = cell.lower()
    if text in _NULLS:
        return math.nan
    if text in ("true", "false"):
        return float(text == "true")
    if "_" in text or not text.isascii():
        return None
    try:
        return float(text)
    except ValueError:
        return None


@dataclass(frozen=True)
class _Times:
    """Moments in UTC, NaT where missing or wrong; `naive` counts those without a zone."""

    values: pd.Series[Any]
    wrong: dict[int, str]
    naive: int


def _take_times(cells: Sequence[str], zone: str, now: dt.datetime) -> _Times:
    import pandas as pd

    aware, naive, wrong = {}, {}, {}
    for place, cell in enumerate(cells):
        if not cell:
            continue
        found = _TIME.fullmatch(cell)
        if found is None:
            wrong[place] = f"{cell!r} is no time like 2025-01-31 09:31:00"
            continue
        day, minute, second, fraction, offset = found.groups()
        text = f"{day}T{minute}{second or ':00'}.{(fraction or '0')[:6]}"
        if offset is None:
            naive[place] = text
        else:
            aware[place] = text + offset.upper()
    values = pd.Series(pd.NaT, index=range(len(cells)), dtype="datetime64[us, UTC]")
    told = _parse(aware, utc=True)
    clock = _parse(naive, utc=False)
    here = clock.dt.tz_localize(zone, ambiguous="NaT", nonexistent="NaT").dt.tz_convert("UTC")
    for part, stated in ((told, told), (here, clock)):
        values.loc[part.index] = part
        for place in stated.index[stated.isna()]:
            wrong[place] = f"{cells[place]!r} is no time"
    for place in here.index[here.isna() & clock.notna()]:
        wrong[place] = (
            f"{cells[place]!r} is not one moment in {zone}, clocks were changed: give it a zone"
        )
    for place in values.index[values < pd.Timestamp(EARLIEST)]:
        wrong[place] = f"{cells[place]!r} lies before {EARLIEST.year}"
    for place in values.index[values > pd.Timestamp(now)]:
        wrong[place] = f"{cells[place]!r} lies in the future"
    return _Times(values, wrong, len(naive))


def _parse(texts: dict[int, str], *, utc: bool) -> pd.Series[Any]:
    import pandas as pd

    found = pd.Series(list(texts.values()), index=list(texts), dtype="str")
    parsed = pd.to_datetime(found, utc=utc, format="ISO8601", errors="coerce")
    moments: pd.Series[Any] = parsed.dt.as_unit("us")
    return moments


# -- layouts ---------------------------------------------------------------------------------------

_TIMES = ("timestamp", "time", "datetime", "date_time", "ts", "logged_at", "created_at", "date")
_PREDICTION_TIMES = ("prediction_timestamp", "predicted_at", "prediction_time")


@dataclass(frozen=True)
class Field:
    """A column: its names, how its values are taken, and whether a row must have one."""

    name: str
    names: tuple[str, ...]
    take: Take
    required: bool = False


@dataclass(frozen=True)
class Layout:
    """A file: its name, its table and its columns beside timestamp and symbol.

    Attributes:
        times: names of the column timestamp.
        by_id: a prediction's id stands in for a missing timestamp or symbol.
        features: every other column is a feature.
    """

    file: str
    table: Table
    fields: tuple[Field, ...]
    times: tuple[str, ...] = (*_TIMES, *_PREDICTION_TIMES)
    by_id: bool = False
    features: bool = False


_DIRECTION = _words(
    {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "up": 1, "down": 0}, "1, 0, up or down", nullable=False
)
_FLAG = _words(
    {"1": True, "0": False, "1.0": True, "0.0": False, "true": True, "false": False},
    "1, 0, true or false",
)
_PRICE = _number(above=0)
_SYMBOLS = Field("symbol", ("symbol", "ticker", "instrument"), _symbol)
_ID = Field("prediction_id", ("prediction_id", "pred_id", "id", "uuid"), _text)
_VERSION = Field(
    "model_version", ("model_version", "model_file", "model_name", "model", "version"), _text
)
_NO_FEATURE: Final = re.compile(rf"unnamed_\d+|index|{'|'.join((*_ID.names, *_VERSION.names))}")

PREDICTIONS = Layout(
    "predictions.csv",
    LEGACY_PREDICTIONS,
    (
        Field(
            "prediction",
            ("prediction", "predicted_direction", "predicted", "pred", "direction"),
            _DIRECTION,
            required=True,
        ),
        Field(
            "price",
            ("price", "current_price", "last_price", "entry_price", "close", "spot"),
            _PRICE,
        ),
        Field("confidence", ("confidence", "confidence_score", "conf"), _number(least=0, most=1)),
        Field(
            "strength_score",
            ("strength_score", "strength", "hedge_strength"),
            _number(least=0, most=100),
        ),
        Field(
            "level_type",
            ("level_type", "level_side"),
            _words(
                {name: name for name in ("support", "resistance", "none")},
                "support, resistance or none",
            ),
        ),
        Field(
            "level_source",
            ("level_source", "level_kind"),
            _words({"hp": "HP", "mhp": "MHP", "hg": "HG", "none": "none"}, "HP, MHP, HG or none"),
        ),
        Field("signal_fired", ("signal_fired", "signal", "fired", "is_signal"), _FLAG),
        _VERSION,
        _ID,
    ),
)
FEATURES = Layout("features.csv", LEGACY_FEATURES, (), features=True)
OUTCOMES = Layout(
    "outcomes.csv",
    LEGACY_OUTCOMES,
    (
        Field(
            "actual_direction",
            ("actual_direction", "actual", "outcome", "label", "direction"),
            _DIRECTION,
            required=True,
        ),
        Field("entry_price", ("entry_price", "entry"), _PRICE),
        Field("exit_price", ("exit_price", "exit"), _PRICE),
        Field(
            "return_pct",
            ("return_pct", "pct_return", "return_percent", "return", "ret"),
            take_numbers,
        ),
        Field(
            "horizon",
            ("horizon", "horizon_minutes", "horizon_min", "horizon_bars"),
            _horizon,
        ),
        _ID,
    ),
    times=(*_PREDICTION_TIMES, *_TIMES),
    by_id=True,
)
# predictions first: outcomes may name them by their ids
LAYOUTS: Final = (PREDICTIONS, FEATURES, OUTCOMES)


# -- a file ----------------------------------------------------------------------------------------


@dataclass
class LegacyFile:
    """What a file holds; every row is in `frame` or in `refused`.

    Attributes:
        rows: lines below the header that are not blank.
        frame: `line` (1 = the first of the file), logged_at (UTC, NaT = not said), symbol (None =
            not said), and the columns of the layout; columns the file has not are unknown.
        names: names of the features.
        values: of the features, one row per row of `frame`; NaN = empty.
        refused: reason by line.
        columns: the file's own name of each column that was found.
        ignored: columns that are not read.
        naive: times without a zone.
        note: something about the whole file, None = nothing.
    """

    rows: int
    frame: pd.DataFrame
    names: tuple[str, ...] = ()
    values: Floats = field(default_factory=lambda: np.empty((0, 0)))
    refused: dict[int, str] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    naive: int = 0
    note: str | None = None

    def keep(self, kept: npt.NDArray[np.bool_]) -> None:
        """Drops the other rows from the frame."""
        self.frame = self.frame[kept].reset_index(drop=True)
        if len(self.values):
            self.values = self.values[kept]


def read_legacy_file(path: Path, layout: Layout, zone: str, now: dt.datetime) -> LegacyFile:
    """Reads a file; a row with anything wrong is refused with the first reason.

    Args:
        path: the file.
        layout: what it should hold.
        zone: IANA name; times without a zone are of this one.
        now: later times are refused.

    Raises:
        BadInput: the file cannot be read at all.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    lines = content.removeprefix(b"\xef\xbb\xbf").splitlines()
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        return LegacyFile(0, _frame_of([], {}, layout), note="the file is empty")
    heading, below = numbered[0][1], numbered[1:]
    try:
        header = _Header.of(heading, layout)
    except _NoHeader as error:
        refused = dict.fromkeys((number for number, _ in below), str(error))
        return LegacyFile(len(below), _frame_of([], {}, layout), refused=refused, note=str(error))
    return _read_rows(below, header, layout, zone, now)


class _NoHeader(ValueError):
    """The first line does not name the columns that are needed."""


@dataclass(frozen=True)
class _Header:
    """The columns of a file: positions by field, and those of the features."""

    separator: str
    titles: tuple[str, ...]
    places: dict[str, int]
    features: tuple[int, ...]

    @classmethod
    def of(cls, line: bytes, layout: Layout) -> _Header:
        """Reads the first line.

        Raises:
            _NoHeader: a needed column is not there, or there twice.
        """
        wanted = {
            "timestamp": layout.times,
            "symbol": _SYMBOLS.names,
            **{x.name: x.names for x in layout.fields},
        }
        known = {name for names in wanted.values() for name in names}
        separator, titles = _separated(line, known)
        plain = [_plain(title) for title in titles]
        places = {}
        for name, names in wanted.items():
            there = next((x for x in names if x in plain), None)
            if there is None:
                continue
            if plain.count(there) > 1:
                raise _NoHeader(f"column {there} is there twice")
            places[name] = plain.index(there)
        needed = ["timestamp", "symbol", *(x.name for x in layout.fields if x.required)]
        if layout.by_id and "prediction_id" in places:
            needed = needed[2:]
        missing = [name for name in needed if name not in places]
        if missing:
            raise _NoHeader(f"the file has no column {' and no column '.join(missing)}")
        features: tuple[int, ...] = ()
        if layout.features:
            rest = set(range(len(titles))) - set(places.values())
            features = tuple(
                x for x in sorted(rest) if titles[x] and not _NO_FEATURE.fullmatch(plain[x])
            )
            doubled = [x for x in features if titles.count(titles[x]) > 1]
            if doubled:
                raise _NoHeader(f"column {titles[doubled[0]]} is there twice")
            if not features:
                raise _NoHeader("the file has no column of a feature")
        return cls(separator, tuple(titles), places, features)

    def ignored(self, features: Sequence[int]) -> tuple[str, ...]:
        """Titles of the columns that are not read; one without a title is named by its place."""
        used = {*self.places.values(), *features}
        return tuple(
            title or f"column {place + 1}"
            for place, title in enumerate(self.titles)
            if place not in used
        )


def _separated(line: bytes, known: set[str]) -> tuple[str, list[str]]:
    """The separator that gives the most known names, or else the most names, and the names.

    Raises:
        _NoHeader: the line cannot be split.
    """
    best: tuple[int, int, str, list[str]] | None = None
    failure = ""
    for separator in _SEPARATORS:
        try:
            titles = _split(line, separator)
        except ValueError as error:  # quotes may look wrong with another separator
            failure = failure or f"the header {error}"
            continue
        score = (len({_plain(title) for title in titles} & known), len(titles))
        if best is None or score > best[:2]:
            best = (*score, separator, titles)
    if best is None:
        raise _NoHeader(failure)
    return best[2:]


def _plain(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", title.lower().replace("%", " pct")).strip("_")


def _split(line: bytes, separator: str) -> list[str]:
    """The values of a line without blanks around them.

    Raises:
        ValueError: in words that follow the name of the line.
    """
    if b"\0" in line:
        raise ValueError("holds NUL bytes")
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    if '"' not in text:
        return [cell.strip() for cell in text.split(separator)]
    try:
        (cells,) = csv.reader([text], delimiter=separator, strict=True, skipinitialspace=True)
    except csv.Error:
        raise ValueError("has a quote that does not end, or not at the end of a value") from None
    return [cell.strip() for cell in cells]


def _read_rows(
    lines: Sequence[tuple[int, bytes]],
    header: _Header,
    layout: Layout,
    zone: str,
    now: dt.datetime,
) -> LegacyFile:
    refused: dict[int, str] = {}
    numbers: list[int] = []
    cells: dict[str, list[str]] = {name: [] for name in header.places}
    features = _FeatureColumns(len(header.features))
    for part in _parts(lines, header, refused):
        numbers += [number for number, _ in part]
        columns = list(zip(*(row for _, row in part), strict=True))
        for name, place in header.places.items():
            cells[name] += columns[place]
        features.add([columns[place] for place in header.features])

    wrong: dict[int, str] = {}
    taken: dict[str, Any] = {}
    times = _take_times(cells.get("timestamp", [""] * len(numbers)), zone, now)
    taken["timestamp"] = times.values
    titles = {name: header.titles[place] for name, place in header.places.items()}
    _note(wrong, titles.get("timestamp", ""), times.wrong)
    if not layout.by_id:
        for name in ("timestamp", "symbol"):
            missing = [place for place, cell in enumerate(cells[name]) if not cell]
            _note(wrong, titles[name], dict.fromkeys(missing, "is missing"))
    for item in (_SYMBOLS, *layout.fields):
        if item.name in cells:
            taken[item.name], bad = item.take(cells[item.name])
            _note(wrong, titles[item.name], bad)
    kept = features.close(wrong, [header.titles[place] for place in header.features])
    used = [header.features[x] for x in kept]

    refused |= {numbers[place]: reason for place, reason in wrong.items()}
    if layout.features and not used and numbers:
        refused |= {
            number: "the file has no column of numbers"
            for number in numbers
            if number not in refused
        }
    found = LegacyFile(
        rows=len(lines),
        frame=_frame_of(numbers, taken, layout),
        names=tuple(header.titles[place] for place in used),
        values=features.values(kept),
        refused=dict(sorted(refused.items())),
        columns=titles,
        ignored=header.ignored(used),
        naive=times.naive,
    )
    found.keep(~found.frame["line"].isin(list(refused)).to_numpy())
    return found


def _parts(
    lines: Sequence[tuple[int, bytes]], header: _Header, refused: dict[int, str]
) -> Iterator[list[tuple[int, list[str]]]]:
    """Rows as values with their line numbers, some thousand at once: text is far larger."""
    width = len(header.titles)
    for first in range(0, len(lines), _LINES_AT_ONCE):
        part = []
        for number, line in lines[first : first + _LINES_AT_ONCE]:
            try:
                row = _split(line, header.separator)
            except ValueError as error:
                refused[number] = f"the line {error}"
                continue
            if len(row) != width:
                refused[number] = f"the line has {len(row)} values, the header {width}"
                continue
            part.append((number, row))
        if part:
            yield part


def _note(wrong: dict[int, str], name: str, found: dict[int, str]) -> None:
    for place, words in found.items():
        wrong.setdefault(place, f"{name} {words}")


class _FeatureColumns:
    """Columns that may be features, as numbers; which of them are is known at the end."""

    def __init__(self, count: int) -> None:
        self._parts: list[list[Floats]] = [[] for _ in range(count)]
        self._wrong: list[dict[int, str]] = [{} for _ in range(count)]
        self._rows = 0

    def add(self, columns: Sequence[Sequence[str]]) -> None:
        """Adds the values of some rows."""
        for place, cells in enumerate(columns):
            values, wrong = take_numbers(cells)
            self._parts[place].append(values)
            self._wrong[place] |= {self._rows + x: words for x, words in wrong.items()}
        if columns:
            self._rows += len(columns[0])

    def close(self, wrong: dict[int, str], titles: Sequence[str]) -> list[int]:
        """Positions of the features; adds what is wrong with their values."""
        kept = []
        for place, bad in enumerate(self._wrong):
            if bad and all(np.isnan(part).all() for part in self._parts[place]):
                continue
            kept.append(place)
            _note(wrong, titles[place], bad)
        return kept

    def values(self, kept: Sequence[int]) -> Floats:
        """Values of these columns, shape [rows, columns]."""
        if not kept or not self._rows:
            return np.empty((self._rows, len(kept)))
        return np.column_stack([np.concatenate(self._parts[place]) for place in kept])


def _frame_of(numbers: Sequence[int], taken: dict[str, Any], layout: Layout) -> pd.DataFrame:
    """Columns of the layout as its table has them, with `line`."""
    import pandas as pd

    kinds = layout.table.empty().dtypes
    frame = pd.DataFrame({"line": np.array(numbers, dtype=np.int64)})
    times = taken.get("timestamp", [])
    frame["logged_at"] = pd.Series(times, dtype="datetime64[us, UTC]")
    for item in (_SYMBOLS, *layout.fields):
        values = taken.get(item.name)
        if values is None:
            values = [UNKNOWN_HORIZON if item.name == "horizon" else None] * len(numbers)
        frame[item.name] = pd.Series(values, dtype=kinds[item.name])
    return frame
