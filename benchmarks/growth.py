"""What grows with the number of sessions: status, sensor, poll, training set, metadata of the UI.

A dozen sessions of the simulated market go through the loop once; the store is then filled with
copies of them on earlier days, so that every table has as many sessions as asked for.

    python -m benchmarks.growth --sessions 10,250,2500
"""

import argparse
import datetime as dt
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.poll import AcceleratedClock
from benchmarks.report import show
from hedge_pipeline import stages, storage
from hedge_pipeline.assets import pictures
from hedge_pipeline.backup import Places
from hedge_pipeline.learning.dataset import assemble
from hedge_pipeline.live.loop import Poll, run_loop
from hedge_pipeline.market.tables import (
    CHAIN_FETCHES,
    DAILY_BARS,
    FEATURE_ROWS,
    GAPS,
    HEDGE_LEVELS,
    LEVEL_EVIDENCE,
    OUTCOMES,
    PERFORMANCE,
    PREDICTION_LOG,
    PROMOTIONS,
    RAW_QUOTES,
    TRADES,
    Table,
)
from hedge_pipeline.opening import open_deployment
from hedge_pipeline.replay import replay
from hedge_pipeline.settings import Settings, load_settings
from hedge_pipeline.stages import Deployment
from hedge_pipeline.status import status

START = dt.datetime(2026, 3, 4, 14, 30, tzinfo=dt.UTC)
COPIED = 12
POLLS = 20
TABLES = (
    RAW_QUOTES,
    GAPS,
    CHAIN_FETCHES,
    DAILY_BARS,
    HEDGE_LEVELS,
    FEATURE_ROWS,
    PREDICTION_LOG,
    OUTCOMES,
    LEVEL_EVIDENCE,
    TRADES,
    PERFORMANCE,
    PROMOTIONS,
)


def deployment_settings(folder: Path, mode: str = "live") -> Settings:
    """One symbol of the simulated market."""
    return load_settings(
        HEDGE_MODE=mode,
        HEDGE_DATA_URL=str(folder),
        HEDGE_SYMBOLS="SIMQ",
        HEDGE_SOURCE="simulated",
        HEDGE_CALENDAR="XNYS",
        HEDGE_HISTORY_START="2015-01-02",
        RETRAIN_HOUR="",
    )


def filled(folder: Path, sessions: int) -> Deployment:
    """A live deployment in the morning after so many stored sessions and a night's housekeeping."""
    replayed = open_deployment(deployment_settings(folder, "replay"))
    calendar = replayed.calendar
    today = calendar.ordinal(START.date().isoformat())
    labels = calendar.labels[today - sessions : today]
    originals = labels[-COPIED:]
    replay(replayed, originals)
    for number, label in enumerate(reversed(labels[:-COPIED])):
        original = originals[-1 - number % COPIED]
        shift = pd.Timestamp(calendar.session(label).opens) - calendar.session(original).opens
        for table in TABLES:
            rows = replayed.store.read(table, [original])
            if len(rows):
                replayed.store.replace(table, label, _moved(table, rows, original, label, shift))
    deployment = replace(
        open_deployment(deployment_settings(folder)), clock=AcceleratedClock(START)
    )
    _age(folder)
    storage.condense(deployment)
    storage.note_sizes(deployment, Places(str(folder), None, None))
    return deployment


def _age(folder: Path) -> None:
    """Makes every file two days old: what is younger is summed up by no night."""
    then = time.time() - 2 * 24 * 3600
    for table in (PROMOTIONS, PERFORMANCE):
        for path in (folder / table.name).rglob("*.parquet"):
            os.utime(path, (then, then))


def _moved(
    table: Table, rows: pd.DataFrame, original: str, label: str, shift: dt.timedelta
) -> pd.DataFrame:
    """Rows of one session as rows of another one; the first session's verdicts stay behind."""
    for column in table.columns:
        if isinstance(rows[column.name].dtype, pd.DatetimeTZDtype):
            rows[column.name] = rows[column.name] + shift
    if "session" in rows:
        rows["session"] = rows["session"].where(rows["session"] != original, label)
    if table is PROMOTIONS:
        rows = rows[rows["kind"] == "fold"]
        states = [json.loads(state) | {"last_session": label} for state in rows["state"]]
        rows = rows.assign(session=label, state=[json.dumps(state) for state in states])
    return rows


def milliseconds(work: Callable[[], object]) -> float:
    """CPU of the cheapest of three calls: the first one also fills what is remembered.

    Nothing here waits for anything but a local disk, and wall time tells of who else is there.
    """
    taken = []
    for _ in range(3):
        begun = time.process_time()
        work()
        taken.append(1e3 * (time.process_time() - begun))
    return min(taken)


def measure(sessions: int, folder: Path) -> dict[str, float]:
    """CPU milliseconds of everything that somebody waits for; of a poll, wall."""
    deployment = filled(folder, sessions)
    symbol, newest = "SIMQ", deployment.store.sessions(RAW_QUOTES)[-1]
    window = stages.training_window(deployment, symbol, deployment.ledger(symbol).state)
    known_by = deployment.clock()

    def training_set() -> int:
        fresh = replace(deployment)
        data = assemble(
            fresh.labelled, symbol, window, fresh.plan, fresh.horizon, known_by=known_by
        )
        return data.rows

    def cold_status() -> float:
        fresh = replace(open_deployment(deployment_settings(folder)), clock=deployment.clock)
        begun = time.process_time()
        status(fresh)
        return 1e3 * (time.process_time() - begun)

    polls: list[Poll] = []
    clock = deployment.clock
    assert isinstance(clock, AcceleratedClock)
    found = {
        "stored_sessions": float(len(deployment.store.sessions(RAW_QUOTES))),
        "first_status_ms": cold_status(),
        "status_ms": milliseconds(lambda: status(deployment)),
        "sensor_ms": milliseconds(lambda: stages.retraining_decision(deployment, symbol, hour=2)),
        "training_set_ms": milliseconds(training_set),
        "session_metadata_ms": milliseconds(lambda: pictures.session(deployment, newest)),
        "symbol_metadata_ms": milliseconds(lambda: pictures.models(deployment, symbol)),
    }
    run_loop(
        deployment,
        run_id="benchmark",
        interval=dt.timedelta(seconds=60),
        until=START + dt.timedelta(minutes=POLLS),
        sleep=clock.sleep,
        report=polls.append,
    )
    made = [poll.seconds for poll in polls[2:] if poll.predictions]
    return found | {"poll_ms": 1e3 * float(np.median(made))}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--sessions", default="20,250,2500")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/growth.json"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    found: dict[str, float] = {}
    for sessions in map(int, arguments.sessions.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            for name, value in measure(sessions, Path(folder)).items():
                found[f"{name} ({sessions})"] = value
    show("growth (stored sessions)", found, arguments.out)


if __name__ == "__main__":
    main()
