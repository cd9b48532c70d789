"""Small replays that several test rooms read: one made by `hedge demo`, others made in process."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.testing import assert_frame_equal

from hedge_pipeline.market.tables import TABLES, Table
from hedge_pipeline.opening import open_deployment
from hedge_pipeline.settings import Settings, load_settings
from hedge_pipeline.stages import Deployment
from hedge_pipeline.store import Store

SYMBOLS = ("SIMQ", "SIMN")
DEMO_SESSIONS = 8
PATIENCE = 240


def environment(**variables: str) -> dict[str, str]:
    """The environment without any setting of a deployment, and with the given ones."""
    ours = {str(field.alias) for field in Settings.model_fields.values()}
    kept = {k: v for k, v in os.environ.items() if k not in ours and not k.startswith("MLFLOW_")}
    return {**kept, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", **variables}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "hedge_pipeline.cli", *arguments]


def hedge(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs `hedge` in a process of its own."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


IN_ONE_PROCESS = """
import json, sys
from hedge_pipeline.cli import app

def execute(job):
    import dagster as dg
    from hedge_pipeline.definitions import defs
    with dg.DagsterInstance.get() as instance:
        found = defs().resolve_job_def(job).execute_in_process(
            instance=instance, raise_on_error=False
        )
        return 0 if found.success else 1

for words in json.loads(sys.argv[1]):
    try:
        code = execute(words[1]) if words[0] == "job" else app(words)
    except SystemExit as end:
        code = end.code
    print(f"\\x1e{code or 0}", flush=True)
"""


def one_after_the_other(
    *steps: Sequence[str], cwd: Path, **variables: str
) -> tuple[list[tuple[int, str]], str]:
    """Runs commands of `hedge`, or jobs by ("job", name), in one process: it imports only once.

    Returns:
        Exit code and standard output of every step, and the standard error of all of them.
    """
    done = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS, json.dumps(steps)],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    parts = re.split(r"\x1e(\d+)\n", done.stdout)
    return [(int(code), said) for said, code in zip(parts[::2], parts[1::2], strict=False)], (
        done.stderr
    )


@dataclass(frozen=True)
class Demo:
    """What `hedge demo --json` left behind. Read it; never write into it."""

    out: Path
    said: subprocess.CompletedProcess[str]

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "summary.json").read_text())
        return found

    @property
    def store(self) -> Store:
        return Store(str(self.out))

    def copy(self, out: Path) -> Path:
        """A copy of tables, models and marker, without MLflow."""
        ignored = shutil.ignore_patterns("mlflow.db", "mlartifacts", "demo.png", "summary.json")
        shutil.copytree(self.out, out, ignore=ignored)
        return out


@cache
def demo_in(folder: Path) -> Demo:
    """The demo, made once per test run."""
    out = folder / "demo"
    arguments = ("demo", "--sessions", str(DEMO_SESSIONS), "--out", str(out), "--json")
    return Demo(out, hedge(*arguments, cwd=folder))


def settings_in(out: Path, symbols: Iterable[str] = SYMBOLS, **given: Any) -> Settings:
    """Settings of a simulated replay, whatever the environment says."""
    values = {
        "HEDGE_DATA_URL": str(out),
        "HEDGE_MODE": "replay",
        "HEDGE_SOURCE": "simulated",
        "HEDGE_SYMBOLS": ",".join(symbols),
        "HEDGE_SEED": 7,
        "MLFLOW_TRACKING_URI": "",
    }
    return load_settings(**{**values, **given})


def replay_in(out: Path, symbols: Iterable[str] = SYMBOLS, **given: Any) -> Deployment:
    """A fresh deployment, as after a restart: nothing is remembered."""
    return open_deployment(settings_in(out, symbols, **given))


def sessions_of(deployment: Deployment, number: int) -> tuple[str, ...]:
    return deployment.calendar.labels[:number]


def rows_of(
    store: Store,
    table: Table,
    sessions: Sequence[str] | None = None,
    symbols: Sequence[str] | None = None,
) -> pd.DataFrame:
    return store.read(table, sessions, symbols=symbols).reset_index(drop=True)


def assert_equal_tables(
    found: Store,
    wanted: Store,
    sessions: Sequence[str] | None = None,
    symbols: Sequence[str] | None = None,
    tables: Sequence[Table] = TABLES,
) -> None:
    """Every value of every table, bit for bit."""
    for table in tables:
        assert_frame_equal(
            rows_of(found, table, sessions, symbols),
            rows_of(wanted, table, sessions, symbols),
            check_exact=True,
            obj=table.name,
        )


def one_session_of(demo: Demo, out: Path) -> None:
    """Copies a session of a demo with its models, MLflow's database and an empty Dagster home."""
    for part in sorted(demo.out.glob("*/session=2024-01-03")):
        shutil.copytree(part, out / part.relative_to(demo.out))
    shutil.copytree(demo.out / "models" / "SIMQ", out / "models" / "SIMQ")
    shutil.copy(demo.out / "mlflow.db", out)
    (out / "dagster_home").mkdir()
    (out / "dagster_home" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
