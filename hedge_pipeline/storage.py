"""How much room a deployment takes, and which old rows it may forget.

Rows are forgotten only by whole sessions, and never those that a model that serves was trained on,
that a training would use now, or that no evidence has been made of yet. What is small and tells the
story (promotions, scores, trades, alerts, daily bars) is kept for ever.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from hedge_pipeline import scratch, stages
from hedge_pipeline.backup import Places
from hedge_pipeline.disks import disks
from hedge_pipeline.learning import drift
from hedge_pipeline.market.tables import (
    CHAIN_FETCHES,
    FEATURE_ROWS,
    GAPS,
    HEDGE_LEVELS,
    OPTION_CHAINS,
    OUTCOMES,
    PREDICTION_LOG,
    RAW_QUOTES,
    TABLES,
    Table,
)
from hedge_pipeline.stages import Deployment
from hedge_pipeline.store import BrokenFile, Store, bytes_below

T = TypeVar("T")

MARKER = "operations/forgotten.json"
SIZES = "operations/sizes.json"
_SMALLEST_PAGE = 512
SIZES_HOLD = dt.timedelta(days=2)
FORGOTTEN: tuple[Table, ...] = (
    PREDICTION_LOG,
    OUTCOMES,
    FEATURE_ROWS,
    HEDGE_LEVELS,
    CHAIN_FETCHES,
    OPTION_CHAINS,
    GAPS,
    RAW_QUOTES,
)
MEGABYTE = 1_000_000
LEAST_FREE = 0.05


def needed_from(deployment: Deployment) -> str | None:
    """The oldest session whose rows are still needed; None = nothing may be forgotten.

    That is the oldest of, over all symbols: the first session that the newest accepted and the
    pinned version were trained on, the first one that a training or the search for drift would use
    now, and the last folded session. The evidence itself is in the promotion log, fold by fold.

    Raises:
        ModelError: the description of a version that serves cannot be read.
    """
    oldest = [first_needed(deployment, symbol) for symbol in deployment.symbols]
    known = [label for label in oldest if label is not None]
    if len(known) < len(oldest):
        return None
    first = min(known)
    return deployment.calendar.previous(first) or first  # features look back one session


def first_needed(deployment: Deployment, symbol: str) -> str | None:
    """The oldest session of a symbol that `needed_from` is about; None = it has no evidence yet."""
    ledger = deployment.ledger(symbol)
    window = stages.training_window(deployment, symbol, ledger.state)
    if not window or ledger.state.last_session is None:
        return None
    compared = stages.settled_sessions(deployment, symbol, last=drift.RECENT + drift.MOST_REFERENCE)
    serving = {*ledger.accepted[-1:], *([ledger.pinned] if ledger.pinned else [])}
    trained = [deployment.shelf.card(symbol, version).first_session for version in serving]
    return min(window[0], compared[0], ledger.state.last_session, *trained)


def forget(deployment: Deployment, days: int) -> dict[str, int]:
    """Removes sessions older than so many days that nothing needs; may be killed and run again.

    Args:
        deployment: whose tables.
        days: calendar days to keep, see HEDGE_RETENTION_DAYS.

    Returns:
        Number of sessions and bytes removed.
    """
    since = (deployment.clock() - dt.timedelta(days=days)).date().isoformat()
    needed = needed_from(deployment)
    if needed is None:
        return {"sessions": 0, "bytes": 0}
    first = min(since, needed)
    gone = {
        (x, table) for table in FORGOTTEN for x in deployment.store.sessions(table) if x < first
    }
    if gone:
        # told before the first row goes, so that a kill leaves no session that looks damaged
        content = json.dumps({"before": max(first, forgotten_before(deployment.store) or "")})
        deployment.store.write_bytes(MARKER, content.encode())
    freed = sum(deployment.store.drop(table, label) for label, table in gone)
    return {"sessions": len({label for label, _ in gone}), "bytes": freed}


def forgotten_before(store: Store) -> str | None:
    """The first session that was not forgotten; None = nothing ever was, or the file is damaged."""
    try:
        return str(json.loads(store.read_bytes(MARKER))["before"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def condense(deployment: Deployment) -> dict[str, int]:
    """Compacts the tables that tell the story and sums them up, see `Store.sum_up`.

    Returns:
        Number of sessions in the summary, by table.
    """
    return {table.name: deployment.store.sum_up(table) for table in TABLES if table.summed_up}


def note_sizes(deployment: Deployment, places: Places) -> dict[str, Any]:
    """Measures and leaves the numbers for whoever may not look at every file; returns them.

    Raises:
        StoreError: the folder cannot be written.
    """
    found = {
        "at": deployment.clock().isoformat(timespec="seconds"),
        **_measured(deployment, places),
    }
    deployment.store.write_bytes(SIZES, json.dumps(found).encode())
    return found


def noted_sizes(store: Store) -> dict[str, Any] | None:
    """What `note_sizes` found last, `at` is an ISO time; None = nothing, or the file is damaged."""
    try:
        found = json.loads(store.read_bytes(SIZES))
        found["tables"] = {table.name: int(found["tables"].get(table.name, 0)) for table in TABLES}
        found["areas"] = {str(name): int(size) for name, size in found["areas"].items()}
        dt.datetime.fromisoformat(found["at"])
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return dict(found)


def table_bytes(store: Store) -> tuple[dict[str, int], str | None]:
    """Bytes by table as of the last night with its ISO time; None = measured now."""
    noted = noted_sizes(store)
    if noted is None:
        return {table.name: store.size(table) for table in TABLES}, None
    return noted["tables"], noted["at"]


def report(
    deployment: Deployment, places: Places, budget_mb: int | None, *, noted: bool = False
) -> dict[str, Any]:
    """Bytes by table and by area, and how they compare with the budget; ready for JSON.

    Args:
        deployment: whose tables.
        places: of the deployment.
        budget_mb: HEDGE_DISK_BUDGET_MB.
        noted: bytes of the last night will do, or of the one before; measuring takes longer the
            more files there are.
    """
    found = noted_sizes(deployment.store) if noted else None
    if found is None or _age(deployment, found["at"]) > SIZES_HOLD:
        found = _measured(deployment, places)
    total = sum(found["areas"].values())
    here = str(Path.cwd())
    fullest = min(disks(places.data_url, places.home) or disks(here, None), key=lambda x: x.share)
    return {
        **found,
        "total_bytes": total,
        "budget_bytes": None if budget_mb is None else budget_mb * MEGABYTE,
        "free_bytes": fullest.free,
        "free_share": fullest.share,
        "quarantined": list(deployment.store.quarantined()),
    }


def _age(deployment: Deployment, at: str) -> dt.timedelta:
    """How far away a time is; from a clock that was set back it may lie ahead."""
    return abs(deployment.clock() - dt.datetime.fromisoformat(at).astimezone(dt.UTC))


def _measured(deployment: Deployment, places: Places) -> dict[str, Any]:
    """Bytes by area and by table, and the stored sessions."""
    store = deployment.store
    tables = {table.name: store.size(table) for table in TABLES}
    local = "://" not in places.data_url
    root = Path(places.data_url).resolve()
    areas = {
        "tables": sum(tables.values()),
        "models": bytes_below(root / "models") if local else 0,
        "mlflow": _database(places.mlflow) + (bytes_below(root / "mlartifacts") if local else 0),
        "dagster": bytes_below(places.home) if places.home is not None else 0,
    }
    if local:  # an earlier system's log, caches, heartbeats
        inside = [places.mlflow is not None and places.mlflow.resolve().is_relative_to(root)]
        inside += [places.home is not None and places.home.resolve().is_relative_to(root)]
        known = areas["tables"] + areas["models"] + bytes_below(root / "mlartifacts")
        known += _database(places.mlflow) if inside[0] else 0
        known += areas["dagster"] if inside[1] else 0
        areas["other"] = max(bytes_below(root) - known, 0)
    sessions = store.sessions(RAW_QUOTES)
    return {
        "areas": areas,
        "tables": tables,
        "sessions": len(sessions),
        "first_session": sessions[0] if sessions else None,
    }


def trouble(found: dict[str, Any]) -> str | None:
    """What is wrong with the room a deployment takes, in one line; None = nothing."""
    if found["free_share"] < LEAST_FREE:
        nearly_full = f"the disk has {found['free_bytes'] / MEGABYTE:.0f} MB left: make room"
        return over_budget(found) or nearly_full
    return over_budget(found)


def over_budget(found: dict[str, Any]) -> str | None:
    """That a deployment takes more than HEDGE_DISK_BUDGET_MB, in one line; None = it does not."""
    total, budget = found["total_bytes"] / MEGABYTE, found["budget_bytes"]
    if budget is not None and found["total_bytes"] > budget:
        return (
            f"{total:.0f} MB are used and HEDGE_DISK_BUDGET_MB is {budget / MEGABYTE:.0f}: "
            "set or lower HEDGE_RETENTION_DAYS, or raise HEDGE_DISK_BUDGET_MB"
        )
    return None


def quarantine(deployment: Deployment, sessions: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Moves the broken parts of some sessions (None = all) aside; returns their new paths."""
    moved: list[str] = []
    for table in TABLES:
        for label in deployment.store.sessions(table) if sessions is None else sessions:
            moved += deployment.store.quarantine(table, label)
    return tuple(moved)


def damage_of(database: Path) -> str | None:
    """What is wrong with an SQLite file, which may be in use; None = nothing.

    A file that is not there, or is empty, is not damaged.

    Raises:
        sqlite3.Error: the file cannot be read now, which says nothing about it.
    """
    try:
        size = database.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None
    if size % _page_size(database):
        return "it is cut off"  # SQLite takes what is missing of a page for zeros
    try:
        address = f"{database.resolve().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, timeout=60, uri=True)) as opened:
            (verdict,) = opened.execute("pragma quick_check(1)").fetchone()
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without what is added to it
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return str(error)
        raise
    return None if verdict == "ok" else str(verdict)


def _page_size(database: Path) -> int:
    """Bytes of a page of an SQLite file, as its header says; 512 = it has no header."""
    with database.open("rb") as file:
        size = int.from_bytes(file.read(18)[16:], "big")
    return 65536 if size == 1 else size or _SMALLEST_PAGE


def past_broken_files(
    deployment: Deployment, work: Callable[[], T], say: Callable[[str], object]
) -> T:
    """Does work that may be done again; parts found broken on the way are moved aside.

    What they held is missing then, all else can be read: see `Store.quarantine`.

    Args:
        deployment: whose tables.
        work: any number of times.
        say: takes one line per part.

    Raises:
        BrokenFile: a part that is whole now, or is no part of a table.
        StoreError: the folder cannot be read or written.
    """
    while True:
        try:
            return work()
        except BrokenFile as error:
            folder = PurePosixPath(error.path).parent
            tables = [table for table in TABLES if table.name == folder.parent.name]
            session = folder.name.removeprefix("session=")
            moved = [x for table in tables for x in deployment.store.quarantine(table, session)]
            if not moved:
                raise
        for path in moved:
            say(f"broken, moved aside: {path}")


def sweep(places: Places, backup_url: str, older: dt.timedelta) -> int:
    """Removes temporary files and folders that killed processes have left; returns how many.

    Args:
        places: of the deployment.
        backup_url: where backups go; "" = nowhere.
        older: only those that were last written at least so long ago.

    Raises:
        StoreError: a folder cannot be written.
    """
    urls = {places.data_url, str(places.home or places.data_url), backup_url or places.data_url}
    count = scratch.sweep(older) + sum(Store(url).sweep(older) for url in urls)
    if places.mlflow is not None:  # a database that was not made to its end
        for folder in places.mlflow.parent.glob(f".{places.mlflow.name}.*"):
            if folder.is_dir() and time.time() - folder.stat().st_mtime > older.total_seconds():
                shutil.rmtree(folder, ignore_errors=True)
                count += 1
    return count


def _database(file: Path | None) -> int:
    """Bytes of an SQLite file and its journals, which come and go."""
    total = 0
    for path in file.parent.glob(f"{file.name}*") if file is not None else ():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total
