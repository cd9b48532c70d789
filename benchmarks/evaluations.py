"""The processes that never end: what they hold after weeks of looks at every schedule.

A real code server answers, over its socket, the scheduler of Dagster's daemon, which runs in this
process at a clock of its own: a minute after the other, each with every schedule that is due. The
exchange is always open and a poll run is under way, so that nothing is asked for; every look reads
what it reads in the service and is written down as a tick. Memory is PSS; `growth` is the slope
over the second half. A day has 1,440 minutes.

    python -m benchmarks.evaluations --minutes 10080
"""

from __future__ import annotations

import argparse
import datetime as dt
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dagster as dg
import dagster._daemon.daemon
import numpy as np
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import GrpcServerTarget
from dagster._scheduler.scheduler import ScheduleIterationTimes, launch_scheduled_runs

from benchmarks.report import show
from hedge_pipeline.live.supervision import Heartbeat
from hedge_pipeline.resources.queueing import POLL_LANE
from hedge_pipeline.store import Store

SCHEDULES = ("polling_schedule", "close_session_schedule", "watch_schedule")
LOOK_EVERY = 240  # minutes
DAYS = 6
MEGABYTE = 1024.0


def memory_of(process: int) -> float:
    """PSS in MB."""
    rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)
    return int(found[1]) / MEGABYTE if found else float("nan")


def a_run_that_polls(instance: dg.DagsterInstance) -> str:
    """A run that seems to be under way; its id."""
    job = dg.JobDefinition(name="poll_market", graph_def=dg.GraphDefinition(name="poll_market"))
    run = instance.create_run_for_job(job, tags=POLL_LANE, status=dg.DagsterRunStatus.STARTED)
    return run.run_id


def measure(folder: Path, minutes: int) -> dict[str, float]:
    """Memory of both processes, and milliseconds a minute takes."""
    data, home, address = folder / "data", folder / "home", folder / "code.sock"
    os.environ |= {
        "HEDGE_SOURCE": "simulated",
        "HEDGE_SYMBOLS": "SIMQ",
        "HEDGE_CALENDAR": "24/7",
        "HEDGE_DATA_URL": str(data),
        "HEDGE_AUTOSTART": "true",
        "DAGSTER_HOME": str(home),
    }
    home.mkdir()
    shutil.copy(Path(__file__).parents[1] / "dagster.yaml", home)
    hedge = [sys.executable, "-m", "hedge_pipeline.cli", "bootstrap", "--days", str(DAYS)]
    subprocess.run(hedge, check=True)
    server = ["dagster", "api", "grpc", "--socket", str(address)]
    server += ["--module-name", "hedge_pipeline.definitions", "--location-name", "hedge_pipeline"]
    store = Store(str(data))
    with (
        dg.DagsterInstance.from_config(str(home)) as instance,
        subprocess.Popen([sys.executable, "-m", *server], stderr=subprocess.DEVNULL) as code,
    ):
        try:
            while not address.exists():
                time.sleep(0.1)
            target = GrpcServerTarget("localhost", None, str(address), "hedge_pipeline")
            with WorkspaceProcessContext(instance, target) as workspace:
                poller = a_run_that_polls(instance)
                return _follow(workspace, instance, store, poller, code.pid, minutes)
        finally:
            code.kill()  # it would wait for whoever still holds a connection


def _follow(
    workspace: WorkspaceProcessContext,
    instance: dg.DagsterInstance,
    store: Store,
    poller: str,
    server: int,
    minutes: int,
) -> dict[str, float]:
    now = dt.datetime.now(dt.UTC).replace(second=0, microsecond=0)
    quiet = logging.getLogger("evaluations")
    quiet.setLevel(logging.ERROR)
    times: dict[str, ScheduleIterationTimes] = {}
    curve: list[tuple[int, float, float]] = []
    begun, minute = time.perf_counter(), 0
    for minute in range(1, minutes + 1):
        beat = dt.datetime.now(dt.UTC).isoformat()
        Heartbeat(poller, beat, now.date().isoformat(), begun=beat).write(store)
        now += dt.timedelta(minutes=1)
        for error in launch_scheduled_runs(workspace, quiet, now, times):
            if error is not None and not isinstance(error, dict):
                print(error, flush=True)
        if minute % LOOK_EVERY == 0:
            curve.append((minute, memory_of(server), memory_of(os.getpid())))
            told = "code server {1:.1f} MB, daemon {2:.1f} MB after {0} minutes".format(*curve[-1])
            print(told, flush=True)
    seconds = time.perf_counter() - begun
    half = np.array(curve[len(curve) // 2 :])
    per_week = 7 * 1440 * np.polyfit(half[:, 0], half[:, 1:], 1)[0]
    found = {
        "minutes": float(minutes),
        "ms_per_minute": 1e3 * seconds / minutes,
        "code_server_after_a_day_mb": curve[min(5, len(curve) - 1)][1],
        "code_server_last_mb": curve[-1][1],
        "code_server_growth_mb_per_week": float(per_week[0]),
        "daemon_after_a_day_mb": curve[min(5, len(curve) - 1)][2],
        "daemon_last_mb": curve[-1][2],
        "daemon_growth_mb_per_week": float(per_week[1]),
    }
    said = {}
    for state in instance.all_instigator_state():
        (tick,) = instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
        said[state.instigator_name] = f"{tick.status.value}: {tick.skip_reason}"
    print(said, flush=True)
    if not all(said.get(name, "").startswith("SKIPPED: ") for name in SCHEDULES):
        raise SystemExit("not every schedule has looked and asked for nothing")
    return found


def main() -> None:
    """Looks for so many minutes and reports."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=int, default=7 * 1440)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/evaluations.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.minutes)
    show("schedules evaluated", found, arguments.out)


if __name__ == "__main__":
    main()
