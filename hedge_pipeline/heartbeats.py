"""Signs of life of Dagster's daemons, read from its database without importing Dagster.

A container's probe asks every few minutes, and Dagster's own imports take seconds.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hedge_pipeline.logs import first_line
from hedge_pipeline.market.calendar import UTC

DAEMONS = ("SCHEDULER", "SENSOR", "QUEUED_RUN_COORDINATOR")
ANSWER_SECONDS = 5
_QUERY = "select daemon_type, timestamp from daemon_heartbeats"
_UNCLEAR = "the address of Dagster's database is not understood; see `storage` in dagster.yaml"
_SAFE = ("connection to server", "could not translate host name")


class HeartbeatsUnknown(RuntimeError):
    """Dagster's database cannot be asked; the message is one line, without a password."""


def daemon_heartbeat(home: Path) -> dt.datetime | None:
    """Last sign of life of the slowest required daemon, UTC; None = not all of them have run yet.

    Args:
        home: DAGSTER_HOME; its dagster.yaml says whether the database is SQLite or PostgreSQL.

    Raises:
        HeartbeatsUnknown: the database does not answer, or dagster.yaml is not understood.
    """
    postgres = _postgres_of(home)
    rows = _from_sqlite(home) if postgres is None else _from_postgres(postgres)
    seen = [at for name, at in rows if name in DAEMONS]
    return min(seen) if len(seen) == len(DAEMONS) else None


def _from_sqlite(home: Path) -> list[tuple[str, dt.datetime]]:
    database = home / "history" / "runs.db"
    if not database.exists():
        return []
    address = f"{database.absolute().as_uri()}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(address, ANSWER_SECONDS, uri=True)) as opened:
            found = opened.execute(_QUERY).fetchall()
    except sqlite3.Error as error:
        if str(error).startswith("no such table"):  # nothing has made the tables yet
            return []
        raise HeartbeatsUnknown(
            f"Dagster's database {database} cannot be read: {first_line(error)}"
        ) from None
    return [(name, dt.datetime.fromisoformat(at).replace(tzinfo=UTC)) for name, at in found]


def _postgres_of(home: Path) -> dict[str, Any] | None:
    """What dagster.yaml says of PostgreSQL, with the environment filled in; None = SQLite."""
    path = home / "dagster.yaml"
    try:
        text = path.read_text() if path.exists() else ""
    except (OSError, ValueError) as error:
        raise HeartbeatsUnknown(f"{path} cannot be read: {first_line(error)}") from None
    if "postgres" not in text:
        return None
    import yaml  # type: ignore[import-untyped]

    try:
        found = yaml.safe_load(text) or {}
        storage, runs = found.get("storage") or {}, found.get("run_storage") or {}
        if "postgres" in storage:
            return dict(_filled(storage["postgres"]))
        return dict(_filled(runs["config"])) if "postgres" in runs.get("module", "") else None
    except (yaml.YAMLError, AttributeError, LookupError, TypeError, ValueError):
        raise HeartbeatsUnknown(_UNCLEAR) from None


def _filled(value: Any) -> Any:
    """The configuration with every `{env: NAME}` replaced."""
    if not isinstance(value, dict):
        return value
    if value.keys() == {"env"}:
        if value["env"] not in os.environ:
            raise HeartbeatsUnknown(f"dagster.yaml asks for {value['env']}, which is not set")
        return os.environ[value["env"]]
    return {name: _filled(inner) for name, inner in value.items()}


def _from_postgres(configuration: dict[str, Any]) -> Iterable[tuple[str, dt.datetime]]:
    try:
        import psycopg2
    except ImportError:
        raise HeartbeatsUnknown(
            "Dagster's database is PostgreSQL: pip install hedge-pipeline[postgres]"
        ) from None
    # a server that has vanished must not hold the probe for a quarter of an hour
    patience = {"connect_timeout": ANSWER_SECONDS, "tcp_user_timeout": 1000 * ANSWER_SECONDS}
    try:
        with (
            contextlib.closing(
                psycopg2.connect(**{**patience, **_address(configuration)})
            ) as opened,
            opened.cursor() as cursor,
        ):
            cursor.execute(_QUERY)
            return [(name, at.replace(tzinfo=UTC)) for name, at in cursor.fetchall()]
    except psycopg2.errors.UndefinedTable:  # nothing has made the tables yet
        return []
    except psycopg2.Error as error:
        reason = first_line(error)
        # of an address that is not understood libpq may quote the password
        if "@" in reason or not reason.startswith(_SAFE):
            reason = f"{type(error).__name__}; see `storage` in dagster.yaml"
        raise HeartbeatsUnknown(f"Dagster's database does not answer: {reason}") from None


def _address(configuration: dict[str, Any]) -> dict[str, Any]:
    """Parameters of libpq.

    Raises:
        HeartbeatsUnknown: there is no address.
    """
    if "postgres_url" in configuration:
        url = str(configuration["postgres_url"])
        return {"dsn": re.sub(r"^postgres(ql)?\+\w+://", "postgresql://", url)}
    names = {"hostname": "host", "port": "port", "username": "user", "password": "password"}
    try:
        given = configuration["postgres_db"]
        named = {libpq: given[ours] for ours, libpq in names.items() if ours in given}
        return {**named, "dbname": given["db_name"], **given.get("params", {})}
    except (LookupError, TypeError):
        raise HeartbeatsUnknown(_UNCLEAR) from None
