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

from hedge_pipeline.market.calendar import UTC

DAEMONS = ("SCHEDULER", "SENSOR", "QUEUED_RUN_COORDINATOR")
ANSWER_SECONDS = 5
_QUERY = "select daemon_type, timestamp from daemon_heartbeats"
_SAFE = ("connection to server", "could not translate host name")


class HeartbeatsUnknown(RuntimeError):
    """Dagster's database cannot be asked; the message is one line, without a password."""


def daemon_heartbeat(home: Path) -> dt.datetime | None:
    """Last sign of life of the slowest required daemon, UTC; None = not all of them have run yet.

    Args:
        home: DAGSTER_HOME; its dagster.yaml says whether the database is SQLite or PostgreSQL.

    Raises:
        HeartbeatsUnknown: PostgreSQL does not answer, or its address is not understood.
    """
    postgres = _postgres_of(home)
    rows = _from_sqlite(home) if postgres is None else _from_postgres(postgres)
    seen = [at for name, at in rows if name in DAEMONS]
    return min(seen) if len(seen) == len(DAEMONS) else None


def _from_sqlite(home: Path) -> list[tuple[str, dt.datetime]]:
    database = home / "history" / "runs.db"
    if not database.exists():
        return []
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened,
    ):
        found = opened.execute(_QUERY).fetchall()
        return [(name, dt.datetime.fromisoformat(at).replace(tzinfo=UTC)) for name, at in found]
    return []


def _postgres_of(home: Path) -> dict[str, Any] | None:
    """What dagster.yaml says of PostgreSQL, with the environment filled in; None = SQLite."""
    path = home / "dagster.yaml"
    if not path.exists() or "postgres" not in path.read_text():
        return None
    import yaml  # type: ignore[import-untyped]

    found = yaml.safe_load(path.read_text())
    storage = found.get("storage", {}).get("postgres") or found.get("run_storage", {}).get("config")
    return _filled(storage) if storage else None


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
        reason = str(error).strip().split("\n", 1)[0]
        # of an address that is not understood libpq may quote the password
        if "@" in reason or not reason.startswith(_SAFE):
            reason = f"{type(error).__name__}; see `storage` in dagster.yaml"
        raise HeartbeatsUnknown(f"Dagster's database does not answer: {reason}") from None


def _address(configuration: dict[str, Any]) -> dict[str, Any]:
    """Parameters of libpq."""
    if "postgres_url" in configuration:
        url = str(configuration["postgres_url"])
        return {"dsn": re.sub(r"^postgres(ql)?\+\w+://", "postgresql://", url)}
    given = configuration["postgres_db"]
    names = {"hostname": "host", "port": "port", "username": "user", "password": "password"}
    named = {libpq: given[ours] for ours, libpq in names.items() if ours in given}
    return {**named, "dbname": given["db_name"], **given.get("params", {})}
