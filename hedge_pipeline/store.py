"""Parquet tables in a folder or at an fsspec URL: append, replace, read, compact.

Layout `<url>/<table>/session=YYYY-MM-DD/<part>.parquet`, packed with zstd unless tiny. A file
is written under a temporary name, flushed and renamed, so it is there whole or not at all. Parts
have deterministic names; readers keep the first row written for a key, so a step that was killed
may simply run again. Only the sessions asked for are read; from a remote store several at once, and
of large files only the columns asked for. No table is known here: see `market/tables.py`.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import hashlib
import io
import itertools
import json
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hedge_pipeline.market.tables import Table, in_pandas, places_among

if TYPE_CHECKING:
    import pandas as pd

COMPACTED = "session"
CACHED_BYTES = 64 << 20
BROKEN = ".broken-"
SETTLED = dt.timedelta(days=1)
_ASIDE = "quarantined"
_SUMMARIES = ".summaries"
_SESSION = "_session"
_CACHED_SESSIONS = 512
_CACHED_FILES = 4096
_BYTES_OF_A_COLUMN = 1600  # what Arrow needs beside the values; of a file of one bar nearly all
# bytes of rows; fewer take longer to pack than to write, and as much space on disk
_TOO_FEW_TO_PACK = 2048
# a request takes as long as some hundred kilobytes
_WHOLE_BELOW = 256 << 10
_REQUESTS_AT_ONCE = 8
# ours, and those of MLflow, whose files may lie below the same folder
_TEMPORARY = re.compile(r"\.(.+\.\d+\.\d+\.tmp|probe-\d+|artifact\.uploading\..+)")
_FILE_SYSTEM_TICK = 12_000_000  # ns; a tick of Linux at 100 Hz is 10 ms
# of file systems that note whole seconds, or every other one
_COARSE_TICK = 2_012_000_000
# of so many sessions a table's summary is looked at, not their files
_SUMMED_UP_FROM = 16
# of a session with more, only what is asked for is held until all sessions are read
_FEW_ROWS = 1000


class StoreError(RuntimeError):
    """The store cannot be read or written; the message names the file and what to do."""


class BrokenFile(StoreError):
    """A part is no whole Parquet file, or lies on a bad sector; see `Store.quarantine`.

    Attributes:
        path: of the part.
    """

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path


class Store:
    """Tables below one URL.

    Args:
        url: local folder or fsspec URL. It is created on the first write.
        cached_bytes: how much each of three memories keeps of what was read last: files, sessions
            made of several files, and distinct values.

    Safe for several processes: an append creates its file exclusively, so of several that add the
    same rows at once one is told that it did; a replacement is one rename.
    """

    def __init__(self, url: str, cached_bytes: int = CACHED_BYTES) -> None:
        import fsspec

        # Arrow's own allocator keeps what it once had: a sixth of the memory of a replay
        pa.set_memory_pool(pa.system_memory_pool())
        self.url = url
        self._fs, root = fsspec.core.url_to_fs(url)
        self._root = PurePosixPath(root)
        self._local = "file" in _protocols(self._fs)
        self._files = _Memory(_CACHED_FILES, cached_bytes)
        self._sessions = _Memory(_CACHED_SESSIONS, cached_bytes)
        self._distinct = _Memory(_CACHED_FILES, cached_bytes)
        self._labels: dict[str, tuple[int, tuple[str, ...]]] = {}
        self._growing: dict[str, frozenset[str]] = {}

    # -- writing ---------------------------------------------------------------------------

    def append(
        self,
        table: Table,
        session: str,
        frame: pd.DataFrame | pa.Table,
        *,
        known: pd.DataFrame | None = None,
    ) -> int:
        """Adds the rows whose key is not stored yet; returns how many that were.

        Of two processes that add the same keys at once one adds them and the other adds none.

        Args:
            table: which table.
            session: ISO date.
            frame: rows of the session; in Arrow they have the table's schema.
            known: keys that are stored, read just before; None = they are read now.

        Raises:
            StoreError: the folder cannot be written or holds a broken file.
        """
        if not len(frame):
            return 0
        new = _by_key(table, frame)
        if not table.bulky:
            if known is None:
                since = pc.min(new["bar_ts"]).as_py() if "bar_ts" in table.key else None
                known = self.read(table, [session], columns=table.key, since=since)
            if len(known):
                keys = in_pandas(new.select(table.key))
                new = new.filter(pa.array(places_among(keys, known, table.key) < 0))
        if not new.num_rows:
            return 0
        path = self._folder(table, session) / _part_name(table, new)
        if table.bulky and str(path) in self._parts(table, session):
            return 0
        return new.num_rows if self._write(path, table, new, first=True) else 0

    def replace(self, table: Table, session: str, frame: pd.DataFrame | pa.Table) -> int:
        """Makes the session hold exactly these rows; returns how many.

        Of several rows with one key the first counts. What was there is removed only after the new
        file is; rows appended meanwhile stay.

        Raises:
            StoreError: the folder cannot be written.
        """
        before = self._parts(table, session)
        rows = _by_key(table, frame)
        if rows.num_rows:
            path = self._folder(table, session) / _part_name(table, rows, COMPACTED)
            self._write(path, table, rows, first=False)
            before = [part for part in before if part != str(path)]
        self._remove(map(PurePosixPath, before))
        return int(rows.num_rows)

    def compact(self, table: Table, session: str) -> int:
        """Rewrites a session as one sorted file, checks it, then removes the parts it read.

        Returns the number of rows. Killed anywhere, or run twice at once, nothing is lost: the
        file is named after its keys, and readers see each key once.

        Raises:
            StoreError: the new file does not hold the same keys; the parts are kept.
        """
        parts = self._parts(table, session)
        if not parts:
            return 0
        keys = list(table.key)
        pieces = self._load_parts(table, parts, {})
        if pieces is None:  # somebody else is compacting
            return len(self.read(table, [session], columns=keys))
        rows = _first_rows(table, pieces)
        target = self._folder(table, session) / _part_name(table, rows, COMPACTED)
        if parts == [str(target)]:
            return int(rows.num_rows)
        self._write(target, table, rows, first=False)
        if not self._load(str(target), keys).equals(rows.select(keys)):
            raise StoreError(f"{target} does not hold the keys of its parts; the parts are kept")
        self._remove(PurePosixPath(part) for part in parts if part != str(target))
        return int(rows.num_rows)

    def drop(self, table: Table, session: str) -> int:
        """Removes a session of a table; returns the bytes freed.

        Raises:
            StoreError: the folder cannot be written.
        """
        parts = self._parts(table, session)
        with self._told("cannot be read"):
            freed = sum(int(self._fs.size(part) or 0) for part in parts)
        self._remove(map(PurePosixPath, parts))
        if self._local:
            with contextlib.suppress(OSError):  # something else lies there
                os.rmdir(self._folder(table, session))  # noqa: PTH106
        return freed

    def broken(self, table: Table, session: str) -> tuple[str, ...]:
        """Paths of the parts that are no whole Parquet files, read twice."""
        parts = self._parts(table, session)
        return tuple(x for x in parts if self._is_broken(x) and self._is_broken(x))

    def quarantine(self, table: Table, session: str) -> tuple[str, ...]:
        """Moves parts that are no whole Parquet files aside, under names that readers ignore.

        Returns:
            Their new paths. The rows they held are gone and may be collected again.

        Raises:
            StoreError: the folder cannot be read or written.
        """
        moved = []
        for part in self.broken(table, session):
            path = PurePosixPath(part)
            aside = path.parent / f"{BROKEN}{path.name}"
            # first: a name without a file says nothing, a file without a name would be forgotten
            name = str(aside.relative_to(self._root))
            marker = f"{_ASIDE}/{hashlib.sha256(name.encode()).hexdigest()[:16]}"
            self.create_bytes(marker, name.encode())
            with self._told("cannot be written"):
                self._fs.mv(part, str(aside))
            moved.append(str(aside))
        return tuple(moved)

    def quarantined(self) -> tuple[str, ...]:
        """Paths of the parts that were moved aside and are still there, below the root, sorted."""
        markers = [x for x in self.names(_ASIDE) if not x.startswith(".")]
        found = [self.read_bytes(f"{_ASIDE}/{x}").decode(errors="replace") for x in markers]
        named = [x for x in found if PurePosixPath(x).name.startswith(BROKEN)]
        with self._told("cannot be read"):
            return tuple(sorted(x for x in named if self._fs.exists(str(self._root / x))))

    def _is_broken(self, part: str) -> bool:
        try:
            self._load(part, None)
        except FileNotFoundError:  # compacted meanwhile
            return False
        except BrokenFile:
            return True
        return False

    # -- reading ---------------------------------------------------------------------------

    def newest_first(self, table: Table) -> Iterator[str]:
        """Sessions that have at least one file, the newest first; looks no further than asked.

        In a local folder the cost does not depend on how many sessions there are: their names are
        remembered until one is added or removed.
        """
        if not self._local:
            yield from reversed(self.sessions(table))
            return
        folder = f"{self._root}/{table.name}"
        for label in reversed(self._folders(folder)):
            with self._told("cannot be read"):
                there = _has_parts(f"{folder}/session={label}")
            if there:
                yield label

    def sessions(self, table: Table, *, last: int | None = None) -> tuple[str, ...]:
        """Sessions that have at least one file, ascending.

        Args:
            table: which table.
            last: the newest so many only; see `newest_first`.
        """
        if last is not None:
            return tuple(itertools.islice(self.newest_first(table), last))[::-1]
        folder = str(self._root / table.name)
        with self._told("cannot be read"):
            if self._local:
                found = _folders_with_parts(folder)
            else:
                self._fs.invalidate_cache()
                files = (PurePosixPath(path) for path in self._fs.find(folder))
                found = {x.parent.name for x in files if _is_part(x.name)}
        return tuple(sorted(x.removeprefix("session=") for x in found if x.startswith("session=")))

    def read(
        self,
        table: Table,
        sessions: Iterable[str] | None = None,
        *,
        symbols: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        only: Mapping[str, Collection[Any]] | None = None,
        since: dt.datetime | None = None,
    ) -> pd.DataFrame:
        """Rows of the sessions (None = all), sorted by session and key, one row per key.

        Args:
            table: which table.
            sessions: ISO dates; sessions without files contribute nothing.
            symbols: keep only these.
            columns: keep only these columns.
            only: keep only rows that have one of the values in each of these columns; those of a
                bulky table must be of its key, and what else its files hold is hardly read.
            since: keep only bars that begin then or later, aware; of a session that grows this
                costs the newest bars only, however many there are.

        Raises:
            StoreError: a file is not a whole Parquet file of this table.
        """
        rows = self.read_arrow(
            table, sessions, symbols=symbols, columns=columns, only=only, since=since
        )
        if not rows.num_rows:
            return table.empty(rows.column_names)
        return in_pandas(rows)

    def read_arrow(
        self,
        table: Table,
        sessions: Iterable[str] | None = None,
        *,
        symbols: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        only: Mapping[str, Collection[Any]] | None = None,
        since: dt.datetime | None = None,
    ) -> pa.Table:
        """`read` without making a frame of it, which takes longer than all the rest."""
        wanted = {**(only or {}), **({} if symbols is None else {"symbol": symbols})}
        kept = [x for x in table.names if columns is None or x in columns or x in wanted]

        def of_session(label: str) -> list[pa.Table]:
            return self._session(table, label, kept, wanted, since)

        asked = None if sessions is None else sorted(set(sessions))
        pieces = None
        if table.summed_up and since is None and (asked is None or len(asked) >= _SUMMED_UP_FROM):
            pieces = self._from_summary(table, asked, kept, of_session)
        if pieces is None:
            labels = self.sessions(table) if asked is None else asked
            pieces = [piece for found in self._each(of_session, labels) for piece in found]
        rows = pa.concat_tables(pieces) if pieces else table.arrow.empty_table()
        if not table.bulky:  # whose files were filtered as they were read
            rows = _having(rows, wanted, shared=True)
        return rows.select(list(columns or table.names))

    def distinct(self, table: Table, session: str, columns: Sequence[str]) -> pd.DataFrame:
        """The different values of some columns in a session, without reading the others.

        Raises:
            StoreError: a file is not a whole Parquet file.
        """
        pieces: list[pa.Table] = []
        for part in self._parts(table, session):
            name = f"{part} {columns}"
            with contextlib.suppress(FileNotFoundError):  # compacted meanwhile: read elsewhere
                signature = self._signature(part)
                known = self._distinct.get(name)
                if known is None or known[0] != signature:
                    piece = self._load(part, list(columns))
                    known = signature, piece.group_by(list(columns)).aggregate([])
                    self._distinct.put(name, known)
                pieces.append(known[1])
        if not pieces:
            return table.empty(columns)
        rows = in_pandas(pa.concat_tables(pieces))
        return rows.drop_duplicates().sort_values(list(columns)).reset_index(drop=True)

    def fingerprints(self, table: Table) -> dict[str, tuple[Any, ...]]:
        """By session something that changes whenever a file is added, replaced or removed.

        Two changes within a tick of a local file system's clock look like one; see `is_recent`.
        """
        folder = str(self._root / table.name)
        found: dict[str, tuple[Any, ...]] = {}
        with self._told("cannot be read"):
            if not self._local:
                self._fs.invalidate_cache()
                for path, info in sorted(self._fs.find(folder, detail=True).items()):
                    label = PurePosixPath(path).parent.name.removeprefix("session=")
                    found[label] = (*found.get(label, ()), path, *_version(info))
                return found
            with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
                for entry in entries:
                    label = entry.name.removeprefix("session=")
                    found[label] = (entry.stat().st_mtime_ns,)
        return found

    def signatures(self, table: Table, session: str) -> tuple[Any, ...]:
        """What is different once a file of the session was added, replaced or removed."""
        with contextlib.suppress(FileNotFoundError):  # compacted between listing and looking
            return tuple(self._signature(part) for part in self._parts(table, session))
        return (object(),)

    def is_recent(self, fingerprint: tuple[Any, ...], seen_ns: int) -> bool:
        """Whether a change right after the fingerprint was seen could have left it the same.

        Args:
            fingerprint: of a session, from `fingerprints`.
            seen_ns: when it was seen, `time.time_ns`.
        """
        if not self._local:
            return False
        changed = int(fingerprint[0])
        tick = _FILE_SYSTEM_TICK if changed % 1_000_000_000 else _COARSE_TICK
        return changed > seen_ns - tick

    def sum_up(self, table: Table) -> int:
        """Compacts the settled sessions and writes them all into one file that reads look at.

        A session is settled when its files are a day old, which no append takes: of two that add
        one key at once, the second finds the first one's file or reads its row. The summary names
        for each session what it saw of it (`fingerprints`) before it read it; whoever reads trusts
        it for a session only as long as that is still so. It may be missing, or be deleted.

        Returns:
            Number of sessions in the summary.

        Raises:
            StoreError: a file cannot be read or written.
        """
        known, old = self._summary(table) or ({}, pa.table({_SESSION: pa.array([], pa.string())}))
        before = self.fingerprints(table)
        young = {
            label
            for label, found in before.items()
            if known.get(label) != found and not self._settle(table, label)
        }
        time.sleep(_FILE_SYSTEM_TICK / 1e9)
        seen, now = time.time_ns(), self.fingerprints(table)
        now = {x: y for x, y in now.items() if x not in young and not self.is_recent(y, seen)}
        changed = [label for label, found in now.items() if known.get(label) != found]
        if not changed and known.keys() == now.keys():
            return len(now)
        kept = pa.array([x for x in now if known.get(x) == now[x]], pa.string())
        pieces = [old.filter(pc.is_in(old[_SESSION], kept))] if len(kept) else []
        for label in changed:
            for rows in self._session(table, label, table.names, {}, None):
                labels = pa.array([label] * rows.num_rows, pa.string())
                pieces.append(rows.append_column(_SESSION, labels))
        if not pieces:
            return 0
        place = pa.array(np.arange(sum(len(piece) for piece in pieces)))
        rows = pa.concat_tables(pieces).append_column("_place", place)
        rows = rows.sort_by([(_SESSION, "ascending"), ("_place", "ascending")])
        rows = rows.drop_columns(["_place"])
        buffer = io.BytesIO()
        described = {"schema_hash": table.schema_hash, "fingerprints": json.dumps(now)}
        schema = rows.schema.with_metadata(described)
        with pq.ParquetWriter(buffer, schema, compression="zstd", write_page_checksum=True) as file:
            file.write_table(rows.cast(schema))
        self.write_bytes(_summary_name(table), buffer.getvalue())
        return len(now)

    def _settle(self, table: Table, session: str) -> bool:
        """Compacts a session whose every file is old enough; False = it is not."""
        parts = self._parts(table, session)
        before = dt.datetime.now(dt.UTC) - SETTLED
        try:
            if any(self._fs.modified(part) > before for part in parts):
                return False
        except FileNotFoundError:  # compacted or forgotten meanwhile
            return False
        self.compact(table, session)
        return True

    def _summary(self, table: Table) -> tuple[dict[str, tuple[Any, ...]], pa.Table] | None:
        """The fingerprints by session and the rows of the summary; None = there is none of use."""
        path = str(self._root / _summary_name(table))
        try:
            signature = self._signature(path)
            known = self._files.get(path)
            if known is None or known[0] != signature:
                content = pa.py_buffer(self._read_whole(path))
                rows = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
                known = (signature, rows, None)
                self._files.put(path, known)
            described = known[1].schema.metadata
            if described[b"schema_hash"].decode() != table.schema_hash:
                return None
            found = json.loads(described[b"fingerprints"])
        except (StoreError, pa.ArrowException, OSError, KeyError, TypeError, ValueError):
            return None  # the sessions' own files say the same
        return {label: tuple(x) for label, x in found.items()}, known[1]

    def _from_summary(
        self,
        table: Table,
        asked: Sequence[str] | None,
        columns: Sequence[str],
        of_session: Callable[[str], list[pa.Table]],
    ) -> list[pa.Table] | None:
        """Rows of the sessions by the summary, of those it does not know by their files.

        Returns:
            As many pieces as are needed, ascending by session; None = there is no summary.
        """
        summary = self._summary(table)
        if summary is None:
            return None
        known, rows = summary
        present = self.fingerprints(table)
        labels = sorted(present if asked is None else present.keys() & set(asked))
        trusted = [label for label in labels if known.get(label) == present[label]]
        others = iter(self._each(of_session, [x for x in labels if known.get(x) != present[x]]))
        if len(trusted) < len(known):
            rows = rows.filter(pc.is_in(rows[_SESSION], pa.array(trusted, pa.string())))
        counted = rows[_SESSION].value_counts().to_pylist()
        counts = {str(x["values"]): int(x["counts"]) for x in counted}
        rows = rows.select(columns)
        found: list[pa.Table] = []
        first = place = 0
        for label in labels:
            if known.get(label) == present[label]:
                place += counts.get(label, 0)
                continue
            found += [rows.slice(first, place - first), *next(others)]
            first = place
        return [piece for piece in (*found, rows.slice(first)) if piece.num_rows]

    def size(self, table: Table, session: str | None = None) -> int:
        """Bytes of the table's files, or of one session's; remote ones as they were last listed."""
        folder = self._folder(table, session) if session else self._root / table.name
        if self._local:
            return bytes_below(str(folder))
        try:
            return int(self._fs.du(str(folder)))
        except FileNotFoundError:
            return 0

    def check_writable(self) -> None:
        """Writes and removes a probe file.

        Raises:
            StoreError: with the system's reason.
        """
        path = self._root / f".probe-{os.getpid()}"
        with self._told("cannot be written"):
            self._put(path, b"probe", first=False)
        self._remove([path])

    def sweep(self, older: dt.timedelta) -> int:
        """Removes the temporary files that killed writers have left; returns how many.

        A remote file system has none. A writer that is so slow is told that it wrote nothing.

        Args:
            older: only those that were last written at least so long ago.

        Raises:
            StoreError: the folder cannot be written.
        """
        if not self._local:
            return 0
        before, count = time.time() - older.total_seconds(), 0
        for folder, _, names in os.walk(self._root):
            for name in filter(_TEMPORARY.fullmatch, names):
                path = os.path.join(folder, name)  # noqa: PTH118
                with self._told("cannot be written"), contextlib.suppress(FileNotFoundError):
                    if os.lstat(path).st_mtime < before:
                        os.unlink(path)  # noqa: PTH108
                        count += 1
        return count

    # -- small files beside the tables (models, markers) -------------------------------------

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes a file below the root, whole or not at all.

        Raises:
            StoreError: the folder cannot be written.
        """
        with self._told("cannot be written"):
            self._put(self._root / name, content, first=False)

    def create_bytes(self, name: str, content: bytes) -> bool:
        """Writes a file below the root unless there is one; whether it was written.

        Of several processes that create the same file at once one succeeds.

        Raises:
            StoreError: the folder cannot be written.
        """
        with self._told("cannot be written"):
            return self._put(self._root / name, content, first=True) is not None

    def read_bytes(self, name: str) -> bytes:
        """Content of a file below the root.

        Raises:
            FileNotFoundError: there is none.
            StoreError: it cannot be read.
        """
        return self._read_whole(str(self._root / name))

    def names(self, folder: str) -> tuple[str, ...]:
        """File names in a folder below the root, sorted; empty if there is no such folder."""
        with self._told("cannot be read"):
            try:
                self._fs.invalidate_cache()
                found = self._fs.ls(str(self._root / folder), detail=False)
            except FileNotFoundError:
                found = []
        return tuple(sorted(PurePosixPath(path).name for path in found))

    # -- inside --------------------------------------------------------------------------------

    def _each(
        self, read: Callable[[str], list[pa.Table]], labels: Sequence[str]
    ) -> Iterable[list[pa.Table]]:
        """What was read of each session, in order; a remote store answers several at once."""
        if self._local or len(labels) < 2:
            return map(read, labels)
        with ThreadPoolExecutor(min(_REQUESTS_AT_ONCE, len(labels))) as pool:
            return list(pool.map(read, labels))

    def _needed(
        self, table: Table, columns: Sequence[str], only: Mapping[str, Collection[Any]]
    ) -> list[str] | None:
        """Columns to read of a remote file; None = it is read whole."""
        if self._local or table.bulky or len(columns) == len(table.names):
            return None
        needed = {*columns, *table.key, *only, *([table.first_by] if table.first_by else [])}
        return [name for name in table.names if name in needed]

    def _folder(self, table: Table, session: str) -> PurePosixPath:
        return self._root / table.name / f"session={session}"

    def _folders(self, folder: str) -> tuple[str, ...]:
        """Sessions that have a folder, ascending; remembered while none is added or removed."""
        with self._told("cannot be read"):
            try:
                changed = os.stat(folder).st_mtime_ns  # noqa: PTH116
                known = self._labels.get(folder)
                if known is not None and known[0] == changed:
                    return known[1]
                seen = time.time_ns()
                names = os.listdir(folder)  # noqa: PTH208
            except FileNotFoundError:
                return ()
        named = (x.removeprefix("session=") for x in names if x.startswith("session="))
        found = tuple(sorted(named))
        if not self.is_recent((changed,), seen):
            self._labels[folder] = changed, found
        return found

    def _parts(self, table: Table, session: str) -> list[str]:
        folder = f"{self._root}/{table.name}/session={session}"
        with self._told("cannot be read"):
            try:
                if self._local:
                    found = [f"{folder}/{name}" for name in os.listdir(folder)]  # noqa: PTH208
                else:
                    self._fs.invalidate_cache()
                    found = [str(path) for path in self._fs.ls(folder, detail=False)]
            except FileNotFoundError:
                found = []
        return sorted(x for x in found if _is_part(x.rpartition("/")[2]))

    def _session(
        self,
        table: Table,
        session: str,
        columns: Sequence[str],
        only: Mapping[str, Collection[Any]],
        since: dt.datetime | None,
    ) -> list[pa.Table]:
        """Some columns of the session's rows; of a large one those with the values only."""
        needed = self._needed(table, columns, only) if since is None else None
        for _attempt in range(5):
            parts = self._parts(table, session)
            self._let_go(f"{table.name}/{session}", parts)
            if not parts:
                return []
            pieces = self._load_parts(table, parts, only, needed, since)
            if pieces is None:  # compacted between listing and reading
                continue
            if since is not None or table.bulky or needed is not None:
                found = _first_rows(table, pieces, since)
            else:
                found = self._merged(table, session, pieces)
            found = found.select(columns)
            if found.num_rows > _FEW_ROWS and not table.bulky:  # few are filtered all at once
                found = _having(found, only)
            return [found]
        raise StoreError(f"{self._folder(table, session)} changes faster than it can be read")

    def _let_go(self, name: str, parts: list[str]) -> None:
        """Forgets the files of a session that are gone: a session that grows has hundreds a day."""
        gone = self._growing.get(name, frozenset()).difference(parts)
        for part in gone:
            self._files.drop(part)
        if gone:
            self._sessions.drop(name)
        if len(parts) > 1:
            self._growing[name] = frozenset(parts)
        else:
            self._growing.pop(name, None)

    def _merged(self, table: Table, session: str, pieces: list[pa.Table]) -> pa.Table:
        """The rows of all pieces; remembered until there is another piece."""
        if len(pieces) == 1:
            return pieces[0]  # a single file is written sorted and without doubles
        name = f"{table.name}/{session}"
        same = [id(piece) for piece in pieces]
        known = self._sessions.get(name)
        if known is None or known[0] != same:
            # the pieces are kept with it, so that no other object gets one's identity
            known = (same, _first_rows(table, pieces), pieces)
            self._sessions.put(name, known)
        merged: pa.Table = known[1]
        return merged

    def _load_parts(
        self,
        table: Table,
        parts: list[str],
        only: Mapping[str, Collection[Any]],
        needed: list[str] | None = None,
        since: dt.datetime | None = None,
    ) -> list[pa.Table] | None:
        """Content of the files, from memory where they have not changed; None if one is gone.

        Files whose every bar begins before `since` are left out.
        """
        pieces = []
        try:
            if table.bulky:
                return [self._checked(table, part, only) for part in parts]
            for part in parts:
                signature = self._signature(part)
                known = self._files.get(part)
                if known is None or known[0] != signature:
                    if needed is not None and signature[-1] >= _WHOLE_BELOW:
                        pieces.append(self._load_columns(table, part, needed))
                        continue
                    rows = self._checked(table, part)
                    known = (signature, rows, _newest_bar(rows))
                    self._files.put(part, known)
                if since is None or known[2] is None or known[2] >= since:
                    pieces.append(known[1] if needed is None else known[1].select(needed))
        except FileNotFoundError:
            return None
        return pieces

    def _signature(self, path: str) -> tuple[Any, ...]:
        with _readable(path):
            if self._local:
                return _seen(path, os.stat(path))  # noqa: PTH116
            return path, *_version(self._fs.info(path))

    def _read_whole(self, path: str) -> bytes:
        """Content of a file.

        Raises:
            FileNotFoundError: there is none.
            BrokenFile: a local disk cannot give it back.
            StoreError: it cannot be read now, which says nothing about the file.
        """
        with _readable(path, local=self._local):
            return bytes(self._fs.cat_file(path))

    def _checked(
        self, table: Table, path: str, only: Mapping[str, Collection[Any]] | None = None
    ) -> pa.Table:
        rows = self._load(path, None, only)
        _check_columns(table, path, rows.schema)
        return rows

    def _load_columns(self, table: Table, path: str, columns: list[str]) -> pa.Table:
        """Some columns of a remote file; the others are not transferred."""
        with (
            _readable(path),
            self._fs.open(path, "rb", cache_type="none") as remote,
            _whole_file(path),
        ):
            file = pq.ParquetFile(remote, pre_buffer=True, page_checksum_verification=True)
            _check_columns(table, path, file.schema_arrow)
            return file.read(columns)

    def _load(
        self,
        path: str,
        columns: list[str] | None,
        only: Mapping[str, Collection[Any]] | None = None,
    ) -> pa.Table:
        content = pa.py_buffer(self._read_whole(path))
        with _whole_file(path):
            file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
            if not only:
                return file.read(columns)
            rows = file.read_row_groups(_row_groups(file, only), columns)
            return _having(rows, only)

    def _write(self, path: PurePosixPath, table: Table, rows: pa.Table, *, first: bool) -> bool:
        """Writes a part; whether this call did, see `_put`. Who reads it next need not load it."""
        packed: dict[str, Any] = {"compression": "zstd", "compression_level": 7}
        floats = [column.name for column in table.columns if column.kind in ("float", "float32")]
        buffer = io.BytesIO()
        with pq.ParquetWriter(
            buffer,
            table.arrow,
            **(packed if rows.nbytes > _TOO_FEW_TO_PACK else {"compression": "none"}),
            use_dictionary=[name for name in table.names if name not in floats],
            column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
            write_statistics=list(table.key),
            write_page_checksum=True,  # a changed byte would pass for another price
            store_schema=False,
        ) as writer:
            writer.write_table(rows)
            writer.add_key_value_metadata({"schema_hash": table.schema_hash})
        with self._told("cannot be written"):
            signature = self._put(path, buffer.getvalue(), first=first)
        if signature and not table.bulky:
            rows = _apart(rows)
            self._files.put(str(path), (signature, rows, _newest_bar(rows)))
        return signature is not None

    def _put(self, path: PurePosixPath, content: bytes, *, first: bool) -> tuple[Any, ...] | None:
        """Writes a file whole or not at all.

        Args:
            path: where to.
            content: what.
            first: leave a file that is there as it is.

        Returns:
            What `_signature` says of it, nothing of a remote one; None = this call did not write
            it: of several at once only one does.
        """
        if not self._local:
            self._fs.makedirs(str(path.parent), exist_ok=True)
            try:
                self._fs.pipe_file(str(path), content, mode="create" if first else "overwrite")
            except FileExistsError:
                return None
            return ()
        written = True
        os.makedirs(path.parent, exist_ok=True)  # noqa: PTH103
        temporary = path.parent / f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                status = os.fstat(file.fileno())
            if first:
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    written = False
            else:
                os.replace(temporary, path)  # noqa: PTH105
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)  # noqa: PTH108
        _flush_folder(path.parent)
        return _seen(str(path), status) if written else None

    def _remove(self, paths: Iterable[PurePosixPath]) -> None:
        for path in paths:
            with self._told("cannot be removed"), contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(str(path))

    @contextlib.contextmanager
    def _told(self, what: str) -> Any:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"the data folder {self.url} {what}: {error.strerror or error}"
            ) from error


@contextlib.contextmanager
def _readable(path: str, *, local: bool = False) -> Iterator[None]:
    """Turns what reading a file raises into one line; a missing one stays missing.

    A local disk that has a bad sector keeps it: such a file is broken.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        told = f"{path} cannot be read: {error.strerror or error}"
        if local and error.errno == errno.EIO:
            raise BrokenFile(told, path) from error
        raise StoreError(told) from error


@contextlib.contextmanager
def _whole_file(path: str) -> Iterator[None]:
    """Turns what the content of a file that is no whole Parquet file raises into one line."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:  # Arrow tells of damaged pages by OSError
        by_system = isinstance(error, OSError) and error.errno is not None
        if by_system or isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise BrokenFile(
            f"{path} is no whole Parquet file ({_first_line(error)}); move it away and "
            "materialize its session again",
            path,
        ) from error


def _check_columns(table: Table, path: str, schema: pa.Schema) -> None:
    if schema.names != list(table.names) or schema.types != table.arrow.types:
        raise StoreError(
            f"{path} has not the columns of {table.name}: it was written by another version"
        )


class _Memory:
    """What was read last, up to a number of entries and of bytes; safe for several threads.

    An entry is a tuple whose second item is the table that counts.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes, self._bytes = most, most_bytes, 0
        self._entries: OrderedDict[str, tuple[Any, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str) -> Any:
        """The entry, None if it is not remembered."""
        with self._lock:
            found = self._entries.get(name)
            if found is not None:
                self._entries.move_to_end(name)
            return found

    def put(self, name: str, entry: tuple[Any, ...]) -> None:
        """Remembers an entry in place of an earlier one of that name."""
        with self._lock:
            self._drop(name)
            if _footprint(entry[1]) > self._most_bytes:  # it would push out everything else
                return
            self._bytes += _footprint(entry[1])
            self._entries[name] = entry
            while len(self._entries) > self._most or self._bytes > self._most_bytes:
                self._bytes -= _footprint(self._entries.popitem(last=False)[1][1])

    def drop(self, name: str) -> None:
        """Forgets an entry, if it is there."""
        with self._lock:
            self._drop(name)

    def _drop(self, name: str) -> None:
        earlier = self._entries.pop(name, None)
        self._bytes -= _footprint(earlier[1]) if earlier else 0


def _footprint(rows: pa.Table) -> int:
    """Bytes of memory a table takes, measured to within a few per cent."""
    return int(rows.nbytes) + _BYTES_OF_A_COLUMN * int(rows.num_columns)


def _seen(path: str, status: os.stat_result) -> tuple[Any, ...]:
    """What changes when a local file does."""
    return path, status.st_mtime_ns, status.st_size, status.st_ino


def _apart(rows: pa.Table) -> pa.Table:
    """The rows in memory of their own: what Arrow makes of a frame may be the frame's."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


def _is_part(name: str) -> bool:
    return name.endswith(".parquet") and not name.startswith(".")


def _version(info: dict[str, Any]) -> tuple[str, int]:
    """What changes when a remote file does: its tag, or else its time, and its size."""
    return str(info.get("ETag") or info.get("created")), int(info["size"])


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _newest_bar(rows: pa.Table) -> dt.datetime | None:
    """Start of the latest bar; None = the table has no bars."""
    if "bar_ts" not in rows.schema.names:
        return None
    newest: dt.datetime | None = pc.max(rows["bar_ts"]).as_py()
    return newest


def _having(
    rows: pa.Table, only: Mapping[str, Collection[Any]], *, shared: bool = False
) -> pa.Table:
    """The rows with one of the values in each of the columns.

    Args:
        rows: to choose from.
        only: values by column.
        shared: rows that follow each other are not copied, but keep the others in memory.
    """
    for name, values in only.items():
        wanted = pa.array(list(values), rows.schema.field(name).type)
        there = pc.is_in(rows[name], wanted)
        places = np.flatnonzero(there.to_numpy())
        number = len(places)
        if number == rows.num_rows:
            continue
        if shared and number and places[-1] - places[0] == number - 1:
            rows = rows.slice(places[0], number)
        else:
            rows = rows.filter(there)
    return rows


def _row_groups(file: pq.ParquetFile, only: Mapping[str, Collection[Any]]) -> list[int]:
    """Parts of the file that may hold one of the values, by the bounds the file itself states."""
    places = {name: file.schema_arrow.get_field_index(name) for name in only}

    def may_hold(group: int) -> bool:
        for name, values in only.items():
            stated = file.metadata.row_group(group).column(places[name]).statistics
            if stated is None or not stated.has_min_max:
                continue
            if not any(stated.min <= value <= stated.max for value in values):
                return False
        return True

    return [group for group in range(file.num_row_groups) if may_hold(group)]


def _flush_folder(folder: PurePosixPath) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _folders_with_parts(folder: str) -> set[str]:
    """Names of the folders inside that hold at least one part."""
    try:
        with os.scandir(folder) as entries:
            inside = [entry for entry in entries if entry.is_dir()]
    except FileNotFoundError:
        return set()
    return {entry.name for entry in inside if _has_parts(entry.path)}


def _has_parts(folder: str) -> bool:
    """Whether a folder holds at least one part; one that is gone does not."""
    try:
        with os.scandir(folder) as files:
            return any(_is_part(x.name) for x in files)
    except FileNotFoundError:
        return False


def bytes_below(folder: str | os.PathLike[str]) -> int:
    """Bytes of all files below a local folder; what is removed meanwhile does not count."""
    total = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                total += bytes_below(entry.path)
            elif entry.is_file():
                with contextlib.suppress(FileNotFoundError):
                    total += entry.stat().st_size
    return total


def _summary_name(table: Table) -> str:
    return f"{_SUMMARIES}/{table.name}.parquet"


def _part_name(table: Table, rows: pa.Table, kind: str = "part") -> str:
    """Name from the keys alone, so that the same rows always go to the same file."""
    digest = hashlib.sha256()
    for name in table.key:
        values = rows[name]
        if pa.types.is_timestamp(values.type):
            digest.update(values.to_numpy().tobytes())
        else:
            digest.update("\x1f".join(map(str, values.to_pylist())).encode())
    bars = "bar_ts" in rows.column_names
    last = pc.max(rows["bar_ts"]).as_py().strftime("%H%M%S") if bars else "000000"
    return f"{kind}-{last}-{digest.hexdigest()[:12]}.parquet"


def _by_key(table: Table, frame: pd.DataFrame | pa.Table) -> pa.Table:
    """The rows in the table's columns, sorted by key; of several with one key the first."""
    rows = frame if isinstance(frame, pa.Table) else table.in_arrow(table.conform(frame))
    return rows if _ascends(rows, table.key) else _sorted_once(table, rows)


def _ascends(rows: pa.Table, key: Sequence[str]) -> bool:
    """Whether the key grows from row to row; sorting takes ten times as long as seeing that."""
    grows = np.zeros(max(rows.num_rows - 1, 0), dtype=np.bool_)
    equal = ~grows
    for name in key:
        values = rows[name]
        before, after = values[:-1], values[1:]
        grows |= equal & pc.less(before, after).to_numpy()
        equal &= pc.equal(before, after).to_numpy()
    return bool(grows.all())


def _first_rows(table: Table, pieces: list[pa.Table], since: dt.datetime | None = None) -> pa.Table:
    """One row per key, the first written, sorted by key; of bars those from `since` on."""
    if not pieces:
        return table.arrow.empty_table()
    rows = pa.concat_tables(pieces)
    if since is not None:
        first = pa.scalar(since, rows.schema.field("bar_ts").type)
        rows = rows.filter(pc.greater_equal(rows["bar_ts"], first))
    if _one_after_another(table, pieces):
        return rows
    return _sorted_once(table, rows, table.first_by)


def _sorted_once(table: Table, rows: pa.Table, first_by: str | None = None) -> pa.Table:
    """The rows by key; of several with one key that with the least `first_by`, then the first."""
    order = [*table.key, *([first_by] if first_by else []), "_position"]
    rows = rows.append_column("_position", pa.array(np.arange(rows.num_rows)))
    rows = rows.sort_by([(name, "ascending") for name in order]).drop_columns(["_position"])
    if rows.num_rows < 2:
        return rows
    same = None
    for name in table.key:
        column = rows[name].combine_chunks()
        equal = pc.equal(column[1:], column[:-1])
        same = equal if same is None else pc.and_(same, equal)
    if pc.any(same).as_py():
        later = pc.invert(pc.fill_null(same, False))
        rows = rows.filter(pa.concat_arrays([pa.array([True]), later]))
    return rows


def _one_after_another(table: Table, pieces: Sequence[pa.Table]) -> bool:
    """Whether the keys of each piece come after those of the piece before; each is sorted."""

    def key(piece: pa.Table, row: int) -> tuple[Any, ...]:
        return tuple(piece[name][row].as_py() for name in table.key)

    last: tuple[Any, ...] = ()
    for piece in pieces:
        if piece.num_rows:
            if key(piece, 0) <= last:
                return False
            last = key(piece, piece.num_rows - 1)
    return True


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:160]
