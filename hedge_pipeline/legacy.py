"""The log of the system before this one: imported as it is, shown as it is, never evidence.

It goes to tables of its own that no stage reads: the old values have no base rate, margin or trust,
its outcomes are no observed prices, its features have other names and other meanings. Rows keep
their moment and lie on its date at the exchange, session or not. What the files may look like is
told in `legacy_files.py`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hedge_pipeline.legacy_files import LAYOUTS, Layout, LegacyFile, read_legacy_file
from hedge_pipeline.market.calendar import SessionCalendar, to_datetime64, utc_times
from hedge_pipeline.market.sources import BadInput
from hedge_pipeline.market.tables import (
    LEGACY_FEATURES,
    LEGACY_OUTCOMES,
    LEGACY_PREDICTIONS,
    LEGACY_TABLES,
    Table,
)

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.store import Store

NEVER_EVIDENCE = "legacy, never evidence"
NOT_IMPORTED = "no imported prediction has"

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FileReport:
    """What became of a file; rows = imported + duplicates + len(refused).

    Attributes:
        file: its name.
        rows: lines below the header that are not blank.
        imported: rows that are new in the store.
        duplicates: rows that say what was known already, from the store or a line above.
        refused: reason by line, 1 = the first line of the file.
        columns: the file's own name of each column that was found.
        absent: columns the file has not; they are unknown in every row.
        features: names of the features.
        ignored: columns that are not read.
        naive: times without a zone.
        note: something about the whole file, None = nothing.
    """

    file: str
    rows: int
    imported: int
    duplicates: int
    refused: dict[int, str]
    columns: dict[str, str]
    absent: tuple[str, ...]
    features: tuple[str, ...]
    ignored: tuple[str, ...]
    naive: int
    note: str | None

    def in_words(self) -> str:
        """The counts in one line."""
        counts = (
            f"{self.rows:,} rows: {self.imported:,} imported, {self.duplicates:,} duplicates, "
            f"{len(self.refused):,} refused"
        )
        return f"{self.file}: {counts}" + (f"; {self.note}" if self.note else "")

    def refused_in_words(self) -> Iterator[str]:
        """One line per refused line, or per stretch of lines with one reason."""
        stretches: list[tuple[int, int, str]] = []
        for line, reason in self.refused.items():
            if stretches and stretches[-1][1:] == (line - 1, reason):
                stretches[-1] = (stretches[-1][0], line, reason)
            else:
                stretches.append((line, line, reason))
        for first, last, reason in stretches:
            where = f"line {first}" if first == last else f"lines {first}-{last}"
            yield f"{self.file} {where}: {reason}"


@dataclass(frozen=True)
class ImportReport:
    """What became of a folder.

    Attributes:
        folder: where the files are.
        zone: IANA name; times without a zone were taken to be of this one.
        files: one report per file that is there.
        missing: files that are not there.
    """

    folder: str
    zone: str
    files: tuple[FileReport, ...]
    missing: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether no row was refused."""
        return not any(report.refused for report in self.files)

    def in_words(self) -> Iterator[str]:
        """Lines of text: every refused line with its reason, then the counts."""
        for report in self.files:
            yield from report.refused_in_words()
        for report in self.files:
            yield report.in_words()
            if report.columns and report.absent:
                yield f"{report.file}: has no {', no '.join(report.absent)}"
            if report.ignored:
                yield f"{report.file}: columns not read: {', '.join(report.ignored)}"
        for name in self.missing:
            yield f"{name}: not there"
        naive = sum(report.naive for report in self.files)
        yield f"{naive:,} times without a zone were taken as exchange time, {self.zone}"
        yield f"imported rows are shown by `hedge status` as {NEVER_EVIDENCE}"

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "folder": self.folder,
            "naive_times_taken_as": self.zone,
            "counts_as": NEVER_EVIDENCE,
            "missing_files": list(self.missing),
            "imported": sum(report.imported for report in self.files),
            "duplicates": sum(report.duplicates for report in self.files),
            "refused": sum(len(report.refused) for report in self.files),
            "files": {report.file: _report_json(report) for report in self.files},
        }


def _report_json(report: FileReport) -> dict[str, Any]:
    refused = [{"line": line, "reason": reason} for line, reason in report.refused.items()]
    return {
        **{name: value for name, value in vars(report).items() if name != "file"},
        "refused": refused,
    }


def import_legacy(
    store: Store, calendar: SessionCalendar, folder: Path, now: dt.datetime
) -> ImportReport:
    """Imports the files of a folder; what is stored already is never changed.

    A row is refused if anything in it is wrong, or if it contradicts what is known of its key. It
    may be run again, also after it was killed: rows imported before are duplicates then.

    Args:
        store: where the tables are.
        calendar: its time zone is that of times without one, and of the dates of the partitions.
        folder: with predictions.csv, features.csv or outcomes.csv, or several of them.
        now: aware; stored as the time of the import, and later times are refused.

    Raises:
        BadInput: there is no such folder, none of the files is in it, or one cannot be read.
        StoreError: the store cannot be read or written.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder")
    there = [layout for layout in LAYOUTS if (folder / layout.file).exists()]
    names = [layout.file for layout in LAYOUTS]
    if not there:
        raise BadInput(f"{folder}: none of {', '.join(names)} is in there")
    importer = _Importer(store, calendar.timezone, now)
    reports = [importer.take(folder / layout.file, layout) for layout in there]
    missing = [layout.file for layout in LAYOUTS if layout not in there]
    return ImportReport(str(folder), calendar.timezone, tuple(reports), tuple(missing))


@dataclass(frozen=True)
class _Importer:
    store: Store
    zone: str
    now: dt.datetime

    def take(self, path: Path, layout: Layout) -> FileReport:
        """Reads a file and stores what is new in it."""
        found = read_legacy_file(path, layout, self.zone, self.now)
        if layout.by_id:
            self._complete(found)
        rows = self._dated(found.frame)
        if layout.features:
            known, fresh = self._new_features(rows, found)
        else:
            known, fresh = self._new_rows(layout.table, rows, found)
        return FileReport(
            file=path.name,
            rows=found.rows,
            imported=int(fresh.sum()),
            duplicates=int(known.sum()),
            refused=dict(sorted(found.refused.items())),
            columns=found.columns,
            absent=tuple(x.name for x in layout.fields if x.name not in found.columns),
            features=found.names,
            ignored=found.ignored,
            naive=found.naive,
            note=found.note,
        )

    def _dated(self, frame: pd.DataFrame) -> pd.DataFrame:
        import pandas as pd

        local = frame["logged_at"].dt.tz_convert(self.zone)
        return frame.assign(
            bar_ts=frame["logged_at"].dt.floor("min"),
            imported_at=pd.Timestamp(self.now).as_unit("us"),
            date=local.dt.strftime("%Y-%m-%d"),
        )

    def _complete(self, found: LegacyFile) -> None:
        """Takes the time and symbol of rows without one from the prediction their id names."""
        import pandas as pd

        frame = found.frame
        timeless, nameless = frame["logged_at"].isna(), frame["symbol"].isna()
        lacking = np.flatnonzero(timeless | nameless).tolist()
        if not lacking:
            return
        known = self._moments_by_id()
        lines, names, symbols, moments = (
            frame[name].tolist() for name in ("line", "prediction_id", "symbol", "logged_at")
        )
        kept = np.ones(len(frame), dtype=np.bool_)
        for place in lacking:
            matches = [
                (symbol, moment)
                for symbol, moment in known.get(names[place], ())
                if (nameless[place] or symbol == symbols[place])
                and (timeless[place] or moment == moments[place])
            ]
            if len(matches) == 1:
                symbols[place], moments[place] = matches[0]
                continue
            kept[place] = False
            found.refused[lines[place]] = (
                f"{'timestamp' if timeless[place] else 'symbol'} is missing, and so is "
                "prediction_id"
                if pd.isna(names[place])
                else f"{'several imported predictions have' if matches else NOT_IMPORTED} "
                f"the prediction_id {names[place]!r}"
            )
        found.frame = frame.assign(
            symbol=pd.Series(symbols, dtype=frame["symbol"].dtype),
            logged_at=pd.Series(moments, dtype=frame["logged_at"].dtype),
        )
        found.keep(kept)

    def _moments_by_id(self) -> dict[str, list[tuple[str, pd.Timestamp]]]:
        columns = ("prediction_id", "symbol", "logged_at")
        stored = self.store.read(LEGACY_PREDICTIONS, columns=columns)
        by_id: dict[str, list[tuple[str, pd.Timestamp]]] = {}
        for name, *moment in stored.dropna().itertuples(index=False, name=None):
            by_id.setdefault(name, []).append((moment[0], moment[1]))
        return by_id

    def _new_rows(self, table: Table, rows: pd.DataFrame, found: LegacyFile) -> tuple[Flags, Flags]:
        """Stores the new ones of rows; returns which were known and which are new."""
        stored = self.store.read(table, rows["date"].unique())
        known, differs = _compared(rows, stored, table)
        values = rows[[name for name in table.names if name not in (*table.key, "imported_at")]]
        fresh, doubled = _settle(
            rows, table.key, known, differs, found, lambda one, other: _same_at(values, one, other)
        )
        for date, own in rows[fresh].groupby("date", sort=True):
            self.store.append(table, str(date), own)
        return doubled, fresh

    def _new_features(self, rows: pd.DataFrame, found: LegacyFile) -> tuple[Flags, Flags]:
        """The same for rows of features; a row is new if one of its values is."""
        import pandas as pd

        known, differs = np.zeros((2, len(rows)), dtype=np.bool_)
        stored = set(self.store.sessions(LEGACY_FEATURES))
        places = {
            str(date): np.asarray(own, dtype=np.int64)
            for date, own in rows.groupby("date", sort=True).indices.items()
        }
        for date in sorted(stored & set(places)):
            own = places[date]
            cells = _cells(rows.iloc[own], found.names, found.values[own])
            parts = _compared(cells, self.store.read(LEGACY_FEATURES, [date]), LEGACY_FEATURES)
            by_row = [part.reshape(len(own), -1) for part in parts]
            known[own] = by_row[0].all(axis=1)
            differs[own] = by_row[1].any(axis=1)
        fresh, doubled = _settle(
            rows,
            ("symbol", "logged_at"),
            known,
            differs,
            found,
            lambda one, other: _same_at(pd.DataFrame(found.values), one, other),
        )
        for date, of_date in places.items():
            own = of_date[fresh[of_date]]
            if not len(own):
                continue
            cells = _cells(rows.iloc[own], found.names, found.values[own])
            if date in stored:  # a row may be known in part
                there = self.store.read(LEGACY_FEATURES, [date])
                cells = cells[~_compared(cells, there, LEGACY_FEATURES)[0]]
            self.store.append(LEGACY_FEATURES, date, cells)
        return doubled, fresh


def _settle(
    rows: pd.DataFrame,
    key: Sequence[str],
    known: Flags,
    differs: Flags,
    found: LegacyFile,
    equal: Callable[[Positions, Positions], Flags],
) -> tuple[Flags, Flags]:
    """Which rows are new and which say nothing new; the others are refused.

    Args:
        rows: with line and the key.
        key: of a row.
        known: what is stored says the same.
        differs: what is stored says something else.
        found: gets the refused lines.
        equal: of two arrays of positions, whether the rows say the same.
    """
    lines = rows["line"].to_numpy()
    names = ", ".join(name.replace("logged_at", "timestamp") for name in key)
    for place in np.flatnonzero(differs).tolist():
        found.refused[int(lines[place])] = f"contradicts what is stored for its {names}"
    unsettled = np.flatnonzero(~known & ~differs)
    groups = rows.iloc[unsettled].groupby(list(key), sort=False).ngroup().to_numpy()
    _, starts = np.unique(groups, return_index=True)
    first = unsettled[starts[groups]]
    again = first != unsettled
    same = again.copy()
    same[again] = equal(first[again], unsettled[again])
    for place, before in zip(unsettled[again & ~same], first[again & ~same], strict=True):
        found.refused[int(lines[place])] = f"contradicts line {lines[before]} for its {names}"
    fresh = np.zeros(len(rows), dtype=np.bool_)
    fresh[unsettled[~again]] = True
    doubled = known.copy()
    doubled[unsettled[same]] = True
    return fresh, doubled


def _cells(rows: pd.DataFrame, names: Sequence[str], values: Floats) -> pd.DataFrame:
    """Rows of `legacy_features`, all values of a row one after the other."""
    columns = ["symbol", "logged_at", "bar_ts", "imported_at"]
    frame = rows.loc[rows.index.repeat(len(names)), columns].reset_index(drop=True)
    return frame.assign(
        name=np.tile(np.array(names, dtype=object), len(rows)), value=values.ravel()
    )


def _compared(rows: pd.DataFrame, stored: pd.DataFrame, table: Table) -> tuple[Flags, Flags]:
    """For each row, whether the store says the same of its key, and whether something else."""
    key = list(table.key)
    values = [name for name in table.names if name not in (*key, "bar_ts", "imported_at")]
    both = rows[[*key, *values]].merge(
        stored[[*key, *values]], on=key, how="left", suffixes=("", " stored"), indicator=True
    )
    there = (both["_merge"] == "both").to_numpy()
    said, known = both[values], both[[f"{name} stored" for name in values]]
    same = _same(said, known.set_axis(values, axis=1))
    return there & same, there & ~same


def _same(one: pd.DataFrame, other: pd.DataFrame) -> Flags:
    """Row by row, whether all columns are equal; unknown equals unknown."""
    same = np.ones(len(one), dtype=np.bool_)
    for name in one.columns:
        left, right = one[name], other[name]
        equal = (left == right) | (left.isna() & right.isna())
        same &= equal.fillna(False).to_numpy(dtype=np.bool_)
    return same


def _same_at(rows: pd.DataFrame, one: Positions, other: Positions) -> Flags:
    return _same(*(rows.iloc[places].reset_index(drop=True) for places in (one, other)))


# -- what is shown ---------------------------------------------------------------------------------


def legacy_summary(store: Store, calendar: SessionCalendar) -> dict[str, Any] | None:
    """The imported rows in numbers, ready for JSON; None if there are none.

    Accuracy is that of the old predictions on the old outcomes, by the prediction's id or else by
    symbol and time. `share_of_ups`, of the same outcomes, is what always saying up would have
    reached. `contradicting_prices` counts outcomes whose direction is not that of their own prices.

    Raises:
        StoreError: the store cannot be read.
    """
    if not any(store.sessions(table) for table in LEGACY_TABLES):
        return None
    predictions = store.read(LEGACY_PREDICTIONS)
    outcomes = store.read(LEGACY_OUTCOMES)
    predictions = predictions.assign(outside=_outside_sessions(predictions["logged_at"], calendar))
    scored = _scored(predictions, outcomes)
    moved = outcomes["exit_price"] - outcomes["entry_price"]
    against = (moved > 0) & (outcomes["actual_direction"] == 0)
    against |= (moved < 0) & (outcomes["actual_direction"] == 1)
    signals = [rows["signal_fired"].fillna(False).astype(bool) for rows in (predictions, scored)]
    return {
        "counts_as": NEVER_EVIDENCE,
        "predictions": _numbers(predictions, scored),
        "signals": _numbers(predictions[signals[0]], scored[signals[1]]),
        "outcomes": len(outcomes),
        "contradicting_prices": int(against.sum()),
        "feature_rows": sum(
            len(store.distinct(LEGACY_FEATURES, date, ("symbol", "logged_at")))
            for date in store.sessions(LEGACY_FEATURES)
        ),
        "disk_bytes": {table.name: store.size(table) for table in LEGACY_TABLES},
    }


def _numbers(rows: pd.DataFrame, scored: pd.DataFrame) -> dict[str, Any]:
    right = scored["prediction"] == scored["actual_direction"]
    return {
        "count": len(rows),
        "outside_sessions": int(rows["outside"].sum()),
        "scored": len(scored),
        "accuracy": float(right.mean()) if len(scored) else None,
        "share_of_ups": float(scored["actual_direction"].mean()) if len(scored) else None,
    }


def _scored(predictions: pd.DataFrame, outcomes: pd.DataFrame) -> pd.DataFrame:
    """Predictions with their outcomes, one row per outcome that belongs to a prediction."""
    import pandas as pd

    by_id, by_time = ["symbol", "prediction_id"], ["symbol", "logged_at"]
    named = predictions.dropna(subset=["prediction_id"])
    named = named[~named.duplicated(by_id, keep=False)]
    happened = outcomes[["symbol", "logged_at", "prediction_id", "actual_direction"]]
    said = ["prediction", "signal_fired"]
    first = happened.merge(named[[*by_id, *said]], on=by_id, how="left", indicator=True)
    matched = (first["_merge"] == "both").to_numpy()
    rest = happened[~matched].merge(predictions[[*by_time, *said]], on=by_time)
    wanted = [*said, "actual_direction"]
    return pd.concat([first.loc[matched, wanted], rest[wanted]], ignore_index=True)


def _outside_sessions(moments: pd.Series[Any], calendar: SessionCalendar) -> Flags:
    """Which moments lie in no session of the exchange, also before the configured history."""
    if moments.empty:
        return np.zeros(0, dtype=np.bool_)
    day = dt.timedelta(days=1)
    first, last = (moment.date() for moment in (moments.min() - day, moments.max() + day))
    if first < calendar.start:
        calendar = SessionCalendar(calendar.name, start=first, end=calendar.end)
    sessions = [calendar.session(x) for x in calendar.between(first.isoformat(), last.isoformat())]
    if not sessions:
        return np.ones(len(moments), dtype=np.bool_)
    times = utc_times(moments)
    opens = np.array([to_datetime64(session.opens) for session in sessions])
    closes = np.array([to_datetime64(session.closes) for session in sessions])
    place = np.searchsorted(opens, times, side="right") - 1
    outside: Flags = (place < 0) | (times >= closes[place])
    return outside
