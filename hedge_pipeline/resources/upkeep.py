"""What Dagster and MLflow keep for ever by themselves, freed: runs, ticks, events, deleted models.

`DagsterInstance.delete_run` frees no file of the SQLite storage, so its files are removed and its
databases vacuumed here. PostgreSQL uses the room of deleted rows again by itself.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import os
import shutil
import signal
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import dagster as dg

from hedge_pipeline.health import Trouble, training_trouble
from hedge_pipeline.resources.registry import RegistryError

FINISHED = [
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
]
AT_ONCE = 200
ENDINGS = ("", "-wal", "-shm", "-journal")


def delete_old_runs(instance: dg.DagsterInstance, home: Path, before: dt.datetime) -> int:
    """Deletes the finished runs created before a moment and everything they left on disk.

    Args:
        instance: whose runs.
        home: DAGSTER_HOME.
        before: aware.

    Returns:
        How many runs.
    """
    count = 0
    wanted = dg.RunsFilter(created_before=before, statuses=FINISHED)
    while records := instance.get_run_records(wanted, limit=AT_ONCE):
        for record in records:
            run_id = record.dagster_run.run_id
            # the record goes last, so that a deletion that was killed is taken up again
            shutil.rmtree(home / "storage" / run_id, ignore_errors=True)
            instance.delete_run(run_id)
            for ending in ENDINGS:
                (home / "history" / "runs" / f"{run_id}.db{ending}").unlink(missing_ok=True)
        count += len(records)
    _remove_orphans(instance, home)
    return count


def _remove_orphans(instance: dg.DagsterInstance, home: Path) -> None:
    """Events and event files whose run has no record: a kill came between."""
    import sqlalchemy as sa
    from dagster._core.storage.event_log import SqlEventLogStorage, SqlEventLogStorageTable

    storage, events = instance.event_log_storage, SqlEventLogStorageTable
    if isinstance(storage, SqlEventLogStorage):
        with storage.index_connection() as connection:
            named = sa.select(events.c.run_id).where(events.c.run_id != "").distinct()
            owners = [str(run_id) for (run_id,) in connection.execute(named)]
        for run_id in owners:  # a run is written down before its first event
            if not instance.has_run(run_id):
                storage.delete_events(run_id)
    for path in (home / "history" / "runs").glob("*-*-*-*-*.db"):
        if not instance.has_run(path.stem):
            for ending in ENDINGS:
                path.with_name(f"{path.name}{ending}").unlink(missing_ok=True)


def delete_old_ticks(instance: dg.DagsterInstance, before: dt.datetime) -> int:
    """Deletes what schedules and sensors left at every look, also those that exist no longer.

    Dagster itself purges only the ticks of what still ticks, by `retention` in dagster.yaml.

    Args:
        instance: whose.
        before: aware.

    Returns:
        Of how many schedules and sensors.
    """
    known = instance.all_instigator_state()
    for state in known:
        instance.purge_ticks(state.instigator_origin_id, state.selector_id, before.timestamp())
    return len(known)


_OLD_CHECKS = """delete from asset_check_executions where evaluation_event_timestamp < {}
    and id not in (
        select max(id) from asset_check_executions group by asset_key, check_name, partition
    )"""


def delete_old_events(instance: dg.DagsterInstance, home: Path, before: dt.datetime) -> int:
    """Deletes events without a run and, in SQLite, gives the room back.

    Of the states of asset checks, which no deletion of a run removes, the newest of each stays.

    Args:
        instance: whose events.
        home: DAGSTER_HOME, with the SQLite databases, if there are any.
        before: aware.

    Returns:
        How many rows. A SQLite database in use by somebody else at that moment is left for the
        next time.
    """
    import sqlalchemy as sa
    from dagster._core.storage.event_log import (
        SqlEventLogStorage,
        SqlEventLogStorageTable,
        SqliteEventLogStorage,
    )

    moment = before.astimezone(dt.UTC).replace(tzinfo=None)
    runs, storage = home / "history" / "runs", instance.event_log_storage
    databases = [path for path in (runs / ".db", runs / "index.db") if path.exists()]
    count = 0
    # a home that was moved to PostgreSQL still has the databases it had before
    if isinstance(storage, SqlEventLogStorage) and not isinstance(storage, SqliteEventLogStorage):
        events = SqlEventLogStorageTable
        old = (events.c.run_id == "") & (events.c.timestamp < moment)
        with storage.index_transaction() as connection:
            count = int(connection.execute(events.delete().where(old)).rowcount)
            connection.execute(sa.text(_OLD_CHECKS.format(":moment")), {"moment": moment})
    text = moment.isoformat(sep=" ")
    for path in databases:
        old_events = "delete from event_logs where run_id = '' and timestamp < ?"
        count += _shrink(path, (old_events, _OLD_CHECKS.format("?")), text)
    for path in (home / "history" / "runs.db", home / "schedules" / "schedules.db"):
        _shrink(path)
    return count


def _shrink(path: Path, statements: Sequence[str] = (), *values: str) -> int:
    """Gives room back after the statements; how many rows the first one has deleted."""
    if not path.exists():
        return 0
    count = 0
    with (
        contextlib.suppress(sqlite3.OperationalError),
        contextlib.closing(sqlite3.connect(path, timeout=30)) as database,
    ):
        with database:
            counts = [database.execute(statement, values).rowcount for statement in statements]
        count = sum(counts[:1])
        database.execute("pragma wal_checkpoint(truncate)")
        database.execute("vacuum")
        database.execute("pragma wal_checkpoint(truncate)")
    return count


STORE = "MLFLOW_BACKEND_STORE_URI"
GARBAGE_SECONDS = 600.0
_AGAIN_SECONDS = 60.0
_PROXIED = "mlflow-artifacts:/"


def _database_of(tracking_uri: str) -> str | None:
    """MLflow's database; of a server the one that MLFLOW_BACKEND_STORE_URI names."""
    remote = tracking_uri.startswith(("http:", "https:"))
    store = os.environ.get(STORE, "") if remote else tracking_uri
    known = "://" in store and not store.startswith(("http:", "https:"))
    return store if known else None


def has_garbage(tracking_uri: str) -> bool:
    """Whether deleted runs or models wait in MLflow's database, as after a failed collection.

    Args:
        tracking_uri: see `collect_garbage`.

    Raises:
        RegistryError: the database does not answer.
    """
    import sqlalchemy as sa

    store = _database_of(tracking_uri)
    if store is None:
        return False
    asked = "select 1 from {} where lifecycle_stage = 'deleted' limit 1"
    try:
        engine = sa.create_engine(store, poolclass=sa.NullPool)
        with engine.connect() as connection:
            return any(
                connection.execute(sa.text(asked.format(table))).first() is not None
                for table in ("runs", "logged_models")
            )
    except (sa.exc.SQLAlchemyError, ImportError):
        # an error of the database may show its address
        raise RegistryError("MLflow's database does not say what was deleted") from None


def collect_garbage(tracking_uri: str, artifacts: str) -> bool:
    """Removes from MLflow's own database and disk what was deleted there.

    Args:
        tracking_uri: a database, or a server; MLFLOW_BACKEND_STORE_URI names the server's database,
            without it the collection is the server's matter.
        artifacts: address below which a server on this database keeps its files.

    Returns:
        Whether it was done.

    Raises:
        RegistryError: MLflow refuses, or takes longer than ten minutes.
    """
    store = _database_of(tracking_uri)
    if store is None:
        return False
    try:
        with _limited(), _waiting_in_python():
            if store == tracking_uri:
                _locate(store, artifacts)
            _collect(["--backend-store-uri", store, "--tracking-uri", tracking_uri])
    except _TakesTooLong:
        raise RegistryError(
            f"MLflow's garbage collection was ended after {GARBAGE_SECONDS:.0f} s; "
            "it goes on next night"
        ) from None
    except Exception as error:  # named by its kind only: what it says may hold the address
        raise RegistryError(
            f"MLflow's garbage collection failed ({type(error).__name__}); "
            "it is done again next night"
        ) from None
    return True


def _locate(store: str, artifacts: str) -> None:
    """Gives what was deleted the address at which its files lie.

    What was logged through a server has one that only a server understands, and MLflow's collection
    ends at the first such run.
    """
    import sqlalchemy as sa

    engine = sa.create_engine(store, poolclass=sa.NullPool)
    with engine.begin() as connection:
        for name, address in (("runs", "artifact_uri"), ("logged_models", "artifact_location")):
            column = sa.column(address, sa.String)
            table = sa.table(name, column, sa.column("lifecycle_stage"))
            path = sa.func.substr(column, len(_PROXIED))
            connection.execute(
                sa.update(table)
                .where(table.c.lifecycle_stage == "deleted")
                .where(column.startswith(_PROXIED), ~column.startswith(f"{_PROXIED}/"))
                .values({address: sa.literal(artifacts) + path})
            )


class _TakesTooLong(BaseException):
    """Nobody who expects errors may take it for one."""


def _collect(given: Sequence[str]) -> None:
    """MLflow's own command, in this process: another one would take 170 MB beside it."""
    from mlflow.cli import cli

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        cli(["gc", *given], standalone_mode=False)


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Ends what takes longer than `GARBAGE_SECONDS`; only the main thread hears the signal."""

    def end(number: int, frame: FrameType | None) -> None:
        raise _TakesTooLong

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, end)
    try:
        # again: where an exception is ignored, as in a finalizer, one is not enough
        signal.setitimer(signal.ITIMER_REAL, GARBAGE_SECONDS, _AGAIN_SECONDS)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _waiting_in_python() -> Iterator[None]:
    """Has answers of PostgreSQL waited for in Python; in its library no signal is heard."""
    try:
        from psycopg2 import extensions, extras
    except ImportError:  # of the extra for PostgreSQL
        yield
        return
    extensions.set_wait_callback(extras.wait_select)
    try:
        yield
    finally:
        extensions.set_wait_callback(None)


def failed_trainings(instance: dg.DagsterInstance, symbol: str) -> tuple[int, str]:
    """Trainings of a symbol that failed in a row, and the run that failed last.

    Args:
        instance: whose runs.
        symbol: ticker symbol.
    """
    wanted = dg.RunsFilter(
        job_name="train_model", tags={"dagster/partition": symbol}, statuses=FINISHED
    )
    runs = [record.dagster_run for record in instance.get_run_records(wanted, limit=50)]
    count = 0
    for run in runs:
        if run.status is not dg.DagsterRunStatus.FAILURE:
            break
        count += 1
    return count, runs[0].run_id if count else ""


def why_it_failed(instance: dg.DagsterInstance, run_id: str) -> str:
    """First line of what a failed run says of its failure."""
    kinds = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}
    for entry in instance.all_logs(run_id, of_type=kinds):
        event = entry.dagster_event
        if event is None:
            continue
        if event.is_step_failure:
            found = event.step_failure_data
            told = found.user_failure_data and found.user_failure_data.description
            error = found.error
            while error is not None and error.cause is not None:
                error = error.cause
            return _first_line(told or (error.message if error else event.message))
        if event.message:
            return _first_line(event.message)
    return "its process ended without a word"


def training_troubles(
    instance: dg.DagsterInstance, symbols: Sequence[str], least: int = 1
) -> list[Trouble]:
    """The symbols whose newest trainings have failed in a row.

    Args:
        instance: whose runs.
        symbols: ticker symbols.
        least: how many in a row are a trouble, HEDGE_ALERT_FAILED_TRAININGS.
    """
    found = []
    for symbol in symbols:
        count, run_id = failed_trainings(instance, symbol)
        why = why_it_failed(instance, run_id) if count else ""
        found.append(training_trouble(symbol, count, run_id, why, least))
    return [trouble for trouble in found if trouble]


def failures_in(home: Path, symbols: Sequence[str]) -> list[Trouble]:
    """`training_troubles` of the instance that lives there."""
    with dg.DagsterInstance.from_config(str(home)) as instance:
        return training_troubles(instance, symbols)


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n", 1)[0][:200]
