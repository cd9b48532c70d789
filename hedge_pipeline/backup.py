"""Backup of a deployment to a folder or fsspec URL, and its restoration into an empty place.

A snapshot is a manifest that names every file with its sha256; contents lie beside it once each,
named by their sha256, so that a second backup writes only what is new. The files of the tables are
copied until two listings agree, which makes the snapshot the state at one moment; databases are
copied by SQLite's own online backup. Nothing here knows Dagster or MLflow beyond their files.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import gzip
import hashlib
import json
import os
import sqlite3
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from hedge_pipeline import scratch
from hedge_pipeline.logs import first_line
from hedge_pipeline.settings import artifacts_below
from hedge_pipeline.store import Store

FORMAT = 1
LAST_BACKUP = "operations/backup.json"
UNDER_WAY = "operations/restoring.json"
PASSES = 10
LEASE = dt.timedelta(hours=6)
SQLITE_ENDINGS = ("-wal", "-shm", "-journal")
ARTIFACT_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


class BackupError(RuntimeError):
    """A backup cannot be made, read or restored; the message is one line with the next step."""


@dataclass(frozen=True)
class Places:
    """Where the state of a deployment lives.

    Attributes:
        data_url: folder or fsspec URL of the tables.
        mlflow: MLflow's SQLite file; None = MLflow has a server or database of its own.
        home: DAGSTER_HOME; None = there is none.
    """

    data_url: str
    mlflow: Path | None
    home: Path | None

    @property
    def artifacts(self) -> str:
        """Address under which MLflow knows the artifacts beside the tables."""
        return artifacts_below(self.data_url)


@dataclass(frozen=True)
class File:
    """One file of a snapshot; `packed` contents are stored gzipped, the sha256 is of the plain."""

    size: int
    sha256: str
    packed: bool = False


@dataclass(frozen=True)
class Snapshot:
    """A manifest.

    Attributes:
        created: ISO time, UTC.
        artifacts: address of MLflow's artifacts when it was made.
        at_one_moment: the tables did not change while they were copied.
        left_out: what is not part of it, one line each.
        files: by area (data, mlflow, dagster) and path.
    """

    created: str
    artifacts: str | None
    at_one_moment: bool
    left_out: tuple[str, ...]
    files: dict[str, dict[str, File]]
    format: int = FORMAT
    name: str = field(default="", compare=False)

    def to_bytes(self) -> bytes:
        """The manifest as it is stored."""
        content = {k: v for k, v in asdict(self).items() if k != "name"}
        return gzip.compress(json.dumps(content, sort_keys=True).encode(), mtime=0)

    @classmethod
    def from_bytes(cls, name: str, content: bytes) -> Snapshot:
        """Reads a manifest; its name holds its own sha256.

        Raises:
            BackupError: it is damaged, or of a format this version does not know.
        """
        try:
            if hashlib.sha256(content).hexdigest()[:16] != name.split("-")[1].split(".")[0]:
                raise ValueError("its sha256 is another one")
            read = json.loads(gzip.decompress(content))
            if read["format"] != FORMAT:
                raise ValueError(f"format {read['format']} is not known here")
            files = {
                area: {path: File(**entry) for path, entry in entries.items()}
                for area, entries in read["files"].items()
            }
            left_out = tuple(read["left_out"])
            return cls(**{**read, "files": files, "left_out": left_out}, name=name)
        except (
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            EOFError,
            OSError,
            zlib.error,
        ) as error:
            raise BackupError(f"snapshot {name} is damaged: {error}; name an earlier one") from None

    @property
    def count(self) -> int:
        """Number of files."""
        return sum(len(entries) for entries in self.files.values())

    @property
    def size(self) -> int:
        """Bytes of the files, unpacked."""
        return sum(x.size for entries in self.files.values() for x in entries.values())


@dataclass(frozen=True)
class Done:
    """What a backup has written: `new` contents of `new_bytes` as stored, `removed` old ones.

    `damaged` says which databases are not in it, one line each.
    """

    snapshot: Snapshot
    new: int
    new_bytes: int
    removed: int
    damaged: tuple[str, ...] = ()


def shown(url: str) -> str:
    """The URL without user and password."""
    credentials = urlsplit(url).netloc.rpartition("@")[0] if "://" in url else ""
    return url.replace(f"{credentials}@", "…@") if credentials else url


class Repository:
    """Snapshots and contents at one URL.

    Args:
        url: folder or fsspec URL.
    """

    def __init__(self, url: str) -> None:
        self.url = shown(url)
        self._mine = ""
        self._secret = urlsplit(url).netloc.rpartition("@")[0] if "://" in url else ""
        with self._told("cannot be opened"):
            self._store = Store(url)
            self._fs, self._root = _filesystem(url)

    def snapshots(self) -> tuple[str, ...]:
        """Names of the snapshots, oldest first."""
        with self._told("cannot be read"):
            return tuple(x for x in self._store.names("snapshots") if x.endswith(".json.gz"))

    def read(self, name: str | None = None) -> Snapshot:
        """A snapshot, the newest without a name.

        Raises:
            BackupError: there is none, or it is damaged.
        """
        known = self.snapshots()
        if not known:
            raise BackupError(
                f"{self.url} holds no backup: make one with `hedge backup {self.url}`"
            )
        wanted = known[-1] if name is None else next((x for x in known if x.startswith(name)), None)
        if wanted is None:
            raise BackupError(f"{self.url} has no snapshot {name}; it has {', '.join(known)}")
        with self._told("cannot be read"):
            content = self._store.read_bytes(f"snapshots/{wanted}")
        return Snapshot.from_bytes(wanted, content)

    def write(self, snapshot: Snapshot) -> Snapshot:
        """Stores a manifest; from now on the snapshot exists."""
        content = snapshot.to_bytes()
        moment = snapshot.created[:19].replace("-", "").replace(":", "") + "Z"
        name = f"{moment}-{hashlib.sha256(content).hexdigest()[:16]}.json.gz"
        with self._told("cannot be written"):
            self._store.write_bytes(f"snapshots/{name}", content)
        return Snapshot.from_bytes(name, content)

    def contents(self) -> dict[str, int]:
        """Names and stored sizes of the contents."""
        with self._told("cannot be read"):
            self._fs.invalidate_cache()
            found = self._fs.find(f"{self._root}/objects", detail=True)
        named = {PurePosixPath(path).name: int(info["size"]) for path, info in found.items()}
        return {name: size for name, size in named.items() if not name.startswith(".")}

    def put(self, file: File, content: bytes) -> int:
        """Stores a content; returns the bytes written."""
        stored = gzip.compress(content, 6, mtime=0) if file.packed else content
        with self._told("cannot be written"):
            self._store.write_bytes(_object(file), stored)
        return len(stored)

    def get(self, file: File) -> bytes:
        """A content, verified.

        Raises:
            BackupError: it is missing or damaged.
        """
        name = PurePosixPath(_object(file)).name
        try:
            stored = self._store.read_bytes(_object(file))
            content = gzip.decompress(stored) if file.packed else stored
        except FileNotFoundError:
            raise BackupError(f"{self.url} lacks {name}: restore an earlier snapshot") from None
        except (EOFError, gzip.BadGzipFile, zlib.error):
            content = b""
        except Exception as error:
            raise self._told_by(error, "cannot be read") from None
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise BackupError(f"{self.url}: {name} is damaged: restore an earlier snapshot")
        return content

    def prune(self, keep: int) -> int:
        """Removes all but the newest snapshots and the contents that only they named.

        Returns:
            The contents removed; none while another backup to this place is under way.
        """
        names = self.snapshots()
        kept = names[-keep:]
        if self._others_under_way() or len(names) == len(kept):
            return 0
        needed = {
            PurePosixPath(_object(file)).name
            for name in kept
            for entries in self.read(name).files.values()
            for file in entries.values()
        }
        superfluous = [name for name in self.contents() if name not in needed]
        with self._told("cannot be written"):
            for name in names[:-keep]:
                self._fs.rm_file(f"{self._root}/snapshots/{name}")
            for name in superfluous:
                self._fs.rm_file(f"{self._root}/objects/{name[:2]}/{name}")
        return len(superfluous)

    @contextlib.contextmanager
    def lease(self) -> Iterator[None]:
        """Says that a backup is under way: whoever sees it removes no contents."""
        self._mine = f"{uuid.uuid4().hex}.json"
        path = f"leases/{self._mine}"
        at = dt.datetime.now(dt.UTC).isoformat()
        with self._told("cannot be written"):
            self._store.write_bytes(path, json.dumps({"at": at}).encode())
        try:
            yield
        finally:
            with contextlib.suppress(Exception):  # a lease that stays ends by itself
                self._fs.rm_file(f"{self._root}/{path}")

    def _others_under_way(self) -> bool:
        """Whether somebody else has a lease; what killed backups have left is removed in time."""
        now, found = dt.datetime.now(dt.UTC), False
        with self._told("cannot be read"):
            for name in self._store.names("leases"):
                if name.startswith(".") or name == self._mine:
                    continue
                with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
                    at = json.loads(self._store.read_bytes(f"leases/{name}"))["at"]
                    if now - dt.datetime.fromisoformat(at) < LEASE:
                        found = True
                    else:
                        self._fs.rm_file(f"{self._root}/leases/{name}")
        return found

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except BackupError:
            raise
        except Exception as error:  # every file system has errors of its own
            raise self._told_by(error, what) from None

    def _told_by(self, error: Exception, what: str) -> BackupError:
        reason = first_line(error)
        if self._secret:
            reason = reason.replace(self._secret, "…")
        return BackupError(f"the backup at {self.url} {what}: {reason}")


# -- making ----------------------------------------------------------------------------------------


def back_up(places: Places, url: str, *, keep: int | None = None) -> Done:
    """Makes a snapshot; the deployment may go on working meanwhile.

    Killed anywhere, the backup has the snapshots it had before, and the next one goes on. A
    database that cannot be copied is left out, which the result says: the tables are safe then.

    Args:
        places: what to save.
        url: where to.
        keep: remove all but so many snapshots afterwards; None = keep all.

    Raises:
        BackupError: a place cannot be read or written, or the backup lies inside what is saved.
    """
    _check_elsewhere(places, url)
    repository = Repository(url)
    store = Store(places.data_url)
    with repository.lease():
        writer = _Writer(repository)
        files: dict[str, dict[str, File]] = {"dagster": {}, "mlflow": {}}
        left_out: list[str] = []
        damaged: list[str] = []
        if places.home is not None and places.home.is_dir():
            files["dagster"] = _home(places.home, writer, damaged)
            if _has_own_database(places.home):
                left_out.append(
                    "Dagster's runs and events are in a database server: save it with pg_dump"
                )
        if places.mlflow is None:
            left_out.append("MLflow has a store of its own; the tables can be published anew")
        elif places.mlflow.exists():
            try:
                files["mlflow"] = {"mlflow.db": writer.add(_copy_of(places.mlflow), packed=True)}
            except BackupError as error:
                damaged.append(str(error))
        files["data"], at_one_moment = _data(places, writer)
        if not files["data"]:
            raise BackupError(f"{shown(places.data_url)} holds nothing to back up")
        writer.check()
        created = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        snapshot = repository.write(
            Snapshot(created, places.artifacts, at_one_moment, (*left_out, *damaged), files)
        )
        removed = repository.prune(keep) if keep else 0
    _tell_last(store, repository, snapshot)
    return Done(snapshot, writer.new, writer.new_bytes, removed, tuple(damaged))


def _check_elsewhere(places: Places, url: str) -> None:
    """A backup of itself would grow without end, and die with what it saves."""
    if "://" in url:
        return
    for kept in (places.data_url, str(places.home or places.data_url)):
        if "://" not in kept and Path(url).resolve().is_relative_to(Path(kept).resolve()):
            raise BackupError(f"the backup {url} lies inside {kept}, which it saves: name another")


class _Writer:
    """Adds contents that the place has not got yet."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._known = repository.contents()
        self._used: set[str] = set()
        self.new = self.new_bytes = 0

    def add(self, content: bytes, *, packed: bool = False) -> File:
        file = File(len(content), hashlib.sha256(content).hexdigest(), packed)
        name = PurePosixPath(_object(file)).name
        # an unpacked content of another size was written half, whatever its name says
        if name not in self._known or not (packed or self._known[name] == file.size):
            written = self._repository.put(file, content)
            self._known[name] = written
            self.new, self.new_bytes = self.new + 1, self.new_bytes + written
        self._used.add(name)
        return file

    def check(self) -> None:
        """Every content is there before the manifest says so."""
        missing = self._used - set(self._repository.contents())
        if missing:
            raise BackupError(f"{len(missing)} contents have disappeared meanwhile: back up again")


def _data(places: Places, writer: _Writer) -> tuple[dict[str, File], bool]:
    """The files of the data folder at one moment, if they stand still for the time of a pass."""
    fs, root = _filesystem(places.data_url)
    away = _outside_the_tables(places, root)
    saved: dict[tuple[str, str], File] = {}
    found = _listing(fs, root, away)
    for _ in range(PASSES):
        for path, version in found.items():
            if (path, version) not in saved:
                with contextlib.suppress(FileNotFoundError):  # compacted meanwhile: listed anew
                    saved[(path, version)] = writer.add(_read(fs, f"{root}/{path}"))
        again = _listing(fs, root, away)
        if again == found and all(item in saved for item in found.items()):
            return {path: saved[(path, version)] for path, version in found.items()}, True
        found = again
    known = {item: saved[item] for item in found.items() if item in saved}
    return {path: file for (path, _), file in known.items()}, False


def _read(fs: Any, path: str) -> bytes:
    try:
        return bytes(fs.cat_file(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BackupError(f"{path} cannot be read: {error.strerror or error}") from None


def _listing(fs: Any, root: str, away: Callable[[PurePosixPath], bool]) -> dict[str, str]:
    """Path below the root and what changes when the file does."""
    fs.invalidate_cache()
    try:
        found = fs.find(root, detail=True)
    except FileNotFoundError:
        return {}
    listed = {}
    for path, info in sorted(found.items()):
        relative = PurePosixPath(path).relative_to(root)
        if not away(relative):
            tag = info.get("ETag") or (info.get("mtime"), info.get("created"), info.get("ino"))
            listed[relative.as_posix()] = f"{tag} {info['size']}"
    return listed


def _outside_the_tables(places: Places, root: str) -> Callable[[PurePosixPath], bool]:
    """Whether a path is a temporary or private file, or belongs to another area."""
    others = {
        other
        for x in (places.home, places.mlflow)
        if x is not None
        for other in (x.resolve(), x.parent.resolve() / x.name)  # the last may be a link, too
    }

    def away(path: PurePosixPath) -> bool:
        if any(part.startswith(".") for part in path.parts) or path.name.endswith(".lock"):
            return True
        if path.as_posix() in (LAST_BACKUP, UNDER_WAY):
            return True
        place = Path(root, path)
        return any(
            place.is_relative_to(other)
            or (place.name.startswith(other.name) and place.parent == other.parent)
            for other in others
        )

    return away


def _home(home: Path, writer: _Writer, damaged: list[str]) -> dict[str, File]:
    """The files of DAGSTER_HOME; databases by SQLite's own copy, or what is wrong with them."""
    files = {}
    # unlike `Path.rglob` this goes on if a folder is removed meanwhile
    found = [Path(folder, name) for folder, _, names in os.walk(home) for name in names]
    for path in sorted(found):
        relative = path.relative_to(home)
        name = path.name
        if not path.is_file() or name.endswith((*SQLITE_ENDINGS, ".lock", ".tmp")):
            continue
        if relative.parts[0] in (".telemetry", "logs", ".logs_queue"):
            continue
        with contextlib.suppress(FileNotFoundError):  # a run that was deleted meanwhile
            database = name.endswith(".db")
            try:
                content = _copy_of(path) if database else path.read_bytes()
            except BackupError as error:
                damaged.append(str(error))
                continue
            files[relative.as_posix()] = writer.add(content, packed=database)
    return files


def _copy_of(database: Path) -> bytes:
    """A consistent copy of an SQLite file that may be in use.

    Raises:
        BackupError: it is damaged or cannot be read.
    """
    with scratch.folder() as folder:
        copy = folder / "copy.db"
        try:
            if not database.exists():
                raise FileNotFoundError(database)
            with (
                contextlib.closing(sqlite3.connect(database, timeout=60)) as source,
                contextlib.closing(sqlite3.connect(copy)) as target,
            ):
                source.backup(target)
                # one file, whatever happens to it afterwards
                target.execute("pragma journal_mode=delete")
                (verdict,) = target.execute("pragma quick_check(1)").fetchone()
        except sqlite3.Error as error:
            raise BackupError(f"{database} cannot be copied: {error}") from None
        if verdict != "ok":
            raise BackupError(f"{database} is damaged: {verdict}")
        return copy.read_bytes()


def _has_own_database(home: Path) -> bool:
    """Whether dagster.yaml names a database server."""
    try:
        text = (home / "dagster.yaml").read_text()
    except FileNotFoundError:
        return False
    return any(line.strip().startswith("postgres:") for line in text.splitlines())


# -- verifying and restoring -----------------------------------------------------------------------


def verify(url: str, name: str | None = None) -> Snapshot:
    """Reads every content of a snapshot and compares its sha256; writes nothing.

    Args:
        url: where the backup is.
        name: beginning of the snapshot's name; None = the newest.

    Raises:
        BackupError: something is missing or damaged.
    """
    repository = Repository(url)
    snapshot = repository.read(name)
    for file in {x for entries in snapshot.files.values() for x in entries.values()}:
        if len(repository.get(file)) != file.size:
            raise BackupError(f"{repository.url}: {_object(file)} has another size")
    return snapshot


def restore(places: Places, url: str, name: str | None = None) -> Snapshot:
    """Brings a snapshot back into an empty place and verifies every file there.

    A restoration that was killed goes on when it is asked for again.

    Args:
        places: where to; the data folder, MLflow's file and DAGSTER_HOME must be empty.
        url: where the backup is.
        name: beginning of the snapshot's name; None = the newest.

    Raises:
        BackupError: the place is not empty, or something is missing or damaged.
    """
    repository = Repository(url)
    snapshot = repository.read(name)
    store = Store(places.data_url)
    marker = json.dumps({"place": repository.url, "snapshot": snapshot.name}).encode()
    if restoring(store) != marker:
        _check_empty(places)
        store.write_bytes(UNDER_WAY, marker)
    targets: dict[str, Callable[[str, bytes], None]] = {"data": store.write_bytes}
    if places.mlflow is not None:
        folder, file = places.mlflow.parent, places.mlflow.name
        targets["mlflow"] = lambda _path, content: Store(str(folder)).write_bytes(file, content)
    if places.home is not None:
        targets["dagster"] = Store(str(places.home)).write_bytes
    for area, write in targets.items():
        for path, entry in snapshot.files.get(area, {}).items():
            write(path, repository.get(entry))
    _check_restored(places, snapshot)
    if places.mlflow is not None and snapshot.files.get("mlflow"):
        _move_artifacts(places.mlflow, snapshot.artifacts, places.artifacts)
    _tell_last(store, repository, snapshot)
    fs, root = _filesystem(places.data_url)
    fs.rm_file(f"{root}/{UNDER_WAY}")
    return snapshot


def restoring(store: Store) -> bytes | None:
    """Which restoration into the store has begun and not ended; None = none."""
    try:
        return store.read_bytes(UNDER_WAY)
    except FileNotFoundError:
        return None


def _tell_last(store: Store, repository: Repository, snapshot: Snapshot) -> None:
    """Of what is stored this is the last backup; no snapshot holds that note itself."""
    told = {"at": snapshot.created, "place": repository.url, "snapshot": snapshot.name}
    store.write_bytes(LAST_BACKUP, json.dumps(told).encode())


def last_backup(store: Store) -> dict[str, str] | None:
    """`at`, `place` and `snapshot` of the last backup; None = none is known."""
    try:
        found = json.loads(store.read_bytes(LAST_BACKUP))
        dt.datetime.fromisoformat(found["at"])
        return {str(k): str(v) for k, v in found.items()}
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def _check_empty(places: Places) -> None:
    fs, root = _filesystem(places.data_url)
    found = next(iter(_listing(fs, root, _outside_the_tables(places, root))), None)
    if found is not None:
        raise BackupError(
            f"{shown(places.data_url)} is not empty, it has {found}: restore into an empty place"
        )
    if places.mlflow is not None and places.mlflow.exists():
        raise BackupError(f"{places.mlflow} exists already: restore into an empty place")
    if places.home is not None and (places.home / "history").exists():
        raise BackupError(f"{places.home} has runs already: restore into an empty place")


def _check_restored(places: Places, snapshot: Snapshot) -> None:
    fs, root = _filesystem(places.data_url)
    readers: dict[str, Callable[[str], bytes]] = {
        "data": lambda path: bytes(fs.cat_file(f"{root}/{path}"))
    }
    if places.mlflow is not None:
        database = places.mlflow
        readers["mlflow"] = lambda _path: database.read_bytes()
    if places.home is not None:
        home = places.home
        readers["dagster"] = lambda path: (home / path).read_bytes()
    for area, read in readers.items():
        for path, entry in snapshot.files.get(area, {}).items():
            if hashlib.sha256(read(path)).hexdigest() != entry.sha256:
                raise BackupError(f"{path} is not what was restored: check the disk")


def _move_artifacts(database: Path, before: str | None, after: str) -> None:
    """Lets MLflow find its artifacts in another place than the one that was backed up."""
    if before is None or before == after:
        return
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        tables = {x for (x,) in connection.execute("select name from sqlite_master")}
        for table, column in ARTIFACT_COLUMNS:
            if table in tables:
                connection.execute(
                    f"update {table} set {column} = ? || substr({column}, ?) "
                    f"where substr({column}, 1, ?) = ?",
                    (after, len(before) + 1, len(before) + 1, f"{before}/"),
                )


# -- inside ----------------------------------------------------------------------------------------


def _object(file: File) -> str:
    return f"objects/{file.sha256[:2]}/{file.sha256}{'.gz' if file.packed else ''}"


def _filesystem(url: str) -> tuple[Any, str]:
    """The file system and the path of a URL on it; of a local folder without symbolic links."""
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    fs, root = fsspec.core.url_to_fs(url)
    root = os.fspath(root)
    return fs, (os.path.realpath(root) if isinstance(fs, LocalFileSystem) else root).rstrip("/")
