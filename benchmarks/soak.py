"""The whole service for a while: memory by process, CPU, event log, and how well it keeps time.

Starts `hedge up` on the simulated market, which is always open, in a folder of its own, after a
bootstrap that gives it a model, which --train takes away again. Memory is PSS: pages shared by
several processes count by share. The drift is the slope of the delay of decisions over time.

    python -m benchmarks.soak --minutes 30 --interval 10
    python -m benchmarks.soak --minutes 10 --interval 60
    python -m benchmarks.soak --minutes 15 --headless --train   # and a training meanwhile
    python -m benchmarks.soak --minutes 15 --headless --night   # and what a night does
    python -m benchmarks.soak --minutes 8 --headless --night --closed   # on an exchange, at night
    python -m benchmarks.soak --minutes 12 --headless --interval 60 --probe --cgroup PATH

A night is a close of the session, a training, and housekeeping with a collection of MLflow's
garbage and a backup, one after the other as runs of the service, while it polls. Then, and with
--probe, `hedge health` runs every five minutes as a container's probe does. With --yahoo the source
is the real yfinance client, led to a double of Yahoo on loopback, and the symbol BTC-USD. With
--closed the market has the hours of New York's exchange, and must be closed while this runs:
nothing polls beside the night's work.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.report import show
from hedge_pipeline.market.tables import GAPS, PREDICTION_LOG, RAW_QUOTES
from hedge_pipeline.store import Store
from hedge_pipeline_tests.yahoo_double import YahooDouble

ROLES = {
    "hedge: keeper": "keeper",
    "dagster._daemon": "daemon",
    "resources.dagster_ui": "dagster_ui",
    "uvicorn": "mlflow_ui",
    "api grpc": "code_server",
    "code-server": "code_server",
    "hedge: poll_market": "poll_run",
    "hedge: train_model": "training",
    "hedge: close_session": "closing",
    "hedge: housekeeping": "housekeeping",
}
WARM_UP_MINUTES = 4.0
EVERY_SECONDS = 2.0
NIGHT: dict[str, dict[str, str]] = {
    "close_session": {},
    "train_model": {"dagster/partition": "SIMQ"},
    "housekeeping": {},
}
RUN_SECONDS = 600.0
PROBE_SECONDS = 300.0
TICKS = os.sysconf("SC_CLK_TCK")


def processes(root: int) -> list[int]:
    """The process and everything below it."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
            except OSError:
                continue
            children.setdefault(int(parent), []).append(int(folder.name))
    found, waiting = [], [root]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def look(root: int) -> tuple[dict[str, float], float]:
    """PSS by role in MB, and CPU seconds of all processes with the children they waited for."""
    memory: dict[str, float] = {}
    cpu = 0.0
    for process in processes(root):
        folder = Path("/proc", str(process))
        try:
            command = (folder / "cmdline").read_text().replace("\0", " ")
            rollup = (folder / "smaps_rollup").read_text()
            times = (folder / "stat").read_text().rsplit(")", 1)[1].split()[11:15]
        except OSError:
            continue
        cpu += sum(map(int, times)) / TICKS
        size = re.search(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)
        role = next((name for part, name in ROLES.items() if part in command), "other")
        memory[role] = memory.get(role, 0.0) + (int(size[1]) / 1024 if size else 0.0)
    return memory, cpu


def size_of(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(
    folder: Path,
    minutes: float,
    interval: int,
    *,
    headless: bool,
    train: bool,
    night: bool,
    probe: bool,
    closed: bool,
    yahoo: Mapping[str, str] | None,
    cgroup: Path | None,
) -> dict[str, float]:
    """Runs the service and looks at it."""
    home, data = folder / "home", folder / "data"
    variables = {
        "HEDGE_SOURCE": "simulated" if yahoo is None else "yahoo",
        "HEDGE_SYMBOLS": "SIMQ" if yahoo is None else "BTC-USD",
        "POLLING_INTERVAL": str(interval),
        **({"RETRAIN_CHECK_INTERVAL": "60", "RETRAIN_HOUR": ""} if train else {}),
        "HEDGE_DATA_URL": str(data),
        "DAGSTER_HOME": str(home),
        **({"HEDGE_BACKUP_URL": str(folder / "backup")} if night else {}),
        "HEDGE_CALENDAR": "XNYS" if closed else "24/7",
        **(yahoo or {}),
    }
    environment = {**os.environ, **variables}
    hedge = [sys.executable, "-m", "hedge_pipeline.cli"]
    # the same rows and another plan: the night has something to train
    first = {**environment, **({"HEDGE_HALF_LIFE_SESSIONS": "19"} if night else {})}
    days = "14" if closed else "8" if yahoo is None else "6"
    subprocess.run([*hedge, "bootstrap", "--days", days], env=first, check=True)
    if train:
        for name in ("models", "promotions", "mlartifacts"):
            shutil.rmtree(data / name)
        (data / "mlflow.db").unlink()
    if night:
        _leave_garbage(f"sqlite:///{data}/mlflow.db")
    service = subprocess.Popen(
        [*hedge, "up", *(["--headless"] if headless else ["--port", "3477", "--mlflow-port"])]
        + ([] if headless else ["5477"]),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        preexec_fn=None if cgroup is None else lambda: _enter(cgroup),
    )
    curve: list[tuple[float, dict[str, float]]] = []
    anonymous: list[float] = []

    def watch(until: float) -> float:
        while time.time() < until:
            memory, cpu = look(service.pid)
            curve.append((time.time(), memory))
            if cgroup is not None:
                anonymous.append(_anonymous_mb(cgroup))
            if len(curve) % 60 == 1:
                parts = "  ".join(f"{name} {value:4.0f}" for name, value in memory.items())
                print(f"{sum(memory.values()):5.0f} MB  {parts}", flush=True)
            time.sleep(EVERY_SECONDS)
        return cpu

    try:
        cpu_before = watch(time.time() + 60 * WARM_UP_MINUTES)
        begun, events_before = time.time(), size_of(home)
        works = Beside(service.pid, environment, cgroup, night=night) if night or probe else None
        cpu = watch(begun + 60 * minutes)
        lasted, events = time.time() - begun, size_of(home) - events_before
    finally:
        service.send_signal(signal.SIGINT)
        service.wait(60)
    return {
        "minutes": lasted / 60,
        "interval_seconds": float(interval),
        "cpu_seconds_per_minute": (cpu - cpu_before) / (lasted / 60),
        "event_log_bytes_per_poll": events / (lasted / interval),
        **_memory([memory for moment, memory in curve if moment >= begun]),
        **_training([memory for _, memory in curve]),
        **({} if works is None else works.found),
        **({} if cgroup is None else _limited(cgroup)),
        **({"cgroup_anonymous_most_mb": max(anonymous)} if anonymous else {}),
        **_timing(Store(str(data)), begun),
    }


def _anonymous_mb(cgroup: Path) -> float:
    """Memory that no file holds, version 2 or 1: the kernel cannot take it back."""
    found = re.search(r"^(?:anon|rss) (\d+)", (cgroup / "memory.stat").read_text(), re.MULTILINE)
    return int(found[1]) / 2**20 if found else float("nan")


def _enter(cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))


def _leave_garbage(tracking_uri: str) -> None:
    """A deleted run, so that the night has something to collect."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri)
    run = client.create_run(client.search_experiments()[0].experiment_id)
    client.delete_run(run.info.run_id)


class Beside:
    """The probe and, of a night, what it does: runs through the service's daemon; in threads.

    Args:
        root: process of the service.
        environment: of the service.
        cgroup: where the probe runs; None = anywhere.
        night: whether there is one.

    Attributes:
        found: seconds of every run that succeeded, probes and how many of them failed.
    """

    def __init__(
        self, root: int, environment: dict[str, str], cgroup: Path | None, *, night: bool
    ) -> None:
        self.found = {"probes": 0.0, "failed_probes": 0.0}
        self.found |= {f"{job}_seconds": float("nan") for job in NIGHT} if night else {}
        self._root, self._environment, self._cgroup = root, environment, cgroup
        for work in (self._probe, self._runs) if night else (self._probe,):
            threading.Thread(target=work, daemon=True).start()

    def _probe(self) -> None:
        while True:
            done = subprocess.run(
                [sys.executable, "-m", "hedge_pipeline.cli", "health"],
                env=self._environment,
                capture_output=True,
                text=True,
                check=False,
                preexec_fn=None if self._cgroup is None else partial(_enter, self._cgroup),
            )
            print(f"probe: {done.stdout.strip()} {done.stderr.strip()}", flush=True)
            self.found["probes"] += 1
            self.found["failed_probes"] += float(done.returncode != 0)
            time.sleep(PROBE_SECONDS)

    def _runs(self) -> None:
        import dagster as dg

        daemon = next(x for x in processes(self._root) if "dagster._daemon" in _command(x))
        workspace = _command(daemon).split()[-1]
        with dg.DagsterInstance.from_config(self._environment["DAGSTER_HOME"]) as instance:
            for job, tags in NIGHT.items():
                dagster = [sys.executable, "-m", "dagster", "job", "launch", "-w", workspace]
                dagster += ["-l", "hedge_pipeline", "-j", job]
                subprocess.run(
                    [*dagster, "--tags", json.dumps(tags)],
                    env=self._environment,
                    capture_output=True,
                    check=True,
                )
                deadline = time.time() + RUN_SECONDS
                while time.time() < deadline:
                    time.sleep(1.0)
                    (run,) = instance.get_run_records(dg.RunsFilter(job_name=job), limit=1)
                    if run.dagster_run.is_finished and run.start_time and run.end_time:
                        break
                took = (run.end_time or time.time()) - (run.start_time or time.time())
                print(f"{job}: {run.dagster_run.status.value} after {took:.0f} s", flush=True)
                if run.dagster_run.is_success:
                    self.found[f"{job}_seconds"] = took


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def _limited(cgroup: Path) -> dict[str, float]:
    """What the kernel counted, version 2 or 1: the most memory with page cache, and kills."""
    found = {}
    for name, files in {
        "cgroup_limit_mb": ("memory.max", "memory.limit_in_bytes"),
        "cgroup_most_mb": ("memory.peak", "memory.max_usage_in_bytes"),
    }.items():
        path = next(cgroup / file for file in files if (cgroup / file).exists())
        found[name] = int(path.read_text()) / 2**20
    events = next(
        cgroup / file
        for file in ("memory.events", "memory.oom_control")
        if (cgroup / file).exists()
    )
    kills = re.search(r"^oom_kill (\d+)", events.read_text(), re.MULTILINE)
    return {**found, "killed_for_memory": float(kills[1]) if kills else float("nan")}


def _memory(curve: list[dict[str, float]]) -> dict[str, float]:
    totals = np.array([sum(memory.values()) for memory in curve])
    third = max(1, len(totals) // 3)
    polling = np.array([memory.get("poll_run", np.nan) for memory in curve])
    return {
        "memory_median_mb": float(np.median(totals)),
        "memory_most_mb": float(totals.max()),
        "memory_first_third_mb": float(np.median(totals[:third])),
        "memory_last_third_mb": float(np.median(totals[-third:])),
        "poll_run_first_third_mb": float(np.nanmedian(polling[:third])),
        "poll_run_last_third_mb": float(np.nanmedian(polling[-third:])),
    }


def _training(curve: list[dict[str, float]]) -> dict[str, float]:
    """The most memory while a training ran, of everything and of the training alone."""
    looks = [memory for memory in curve if "training" in memory]
    return {
        "training_looks": float(len(looks)),
        "with_training_most_mb": max((sum(x.values()) for x in looks), default=float("nan")),
        "training_run_most_mb": max((x["training"] for x in looks), default=float("nan")),
    }


def _timing(store: Store, begun: float) -> dict[str, float]:
    log = store.read(PREDICTION_LOG)
    log = log[(log["role"] == "served") & (log["mode"] == "live")]
    ends = log["bar_ts"].dt.tz_localize(None).to_numpy().astype("datetime64[us]")
    ends = ends + np.timedelta64(60, "s")
    decided = log["decided_at"].dt.tz_localize(None).to_numpy().astype("datetime64[us]")
    recent = ends.astype("int64") / 1e6 >= begun
    if not recent.any():  # the market is closed
        return {"predictions": 0.0}
    delay = (decided - ends)[recent] / np.timedelta64(1, "ms")
    hours = (ends[recent] - ends[recent][0]) / np.timedelta64(1, "h")
    minutes = int(np.ptp(ends[recent]) / np.timedelta64(1, "m")) + 1
    days = log["bar_ts"].dt.strftime("%Y-%m-%d").unique()
    bars, gaps = (store.read(table, days) for table in (RAW_QUOTES, GAPS))
    return {
        "expected_minutes": float(minutes),
        "predictions": float(recent.sum()),
        "with_a_model": float(log[recent]["prediction"].notna().sum()),
        "bars_twice": float(bars.duplicated(["symbol", "bar_ts"]).sum()),
        "gap_rows": float(len(gaps)),
        "delay_median_ms": float(np.median(delay)),
        "delay_p99_ms": float(np.quantile(delay, 0.99)),
        "delay_drift_ms_per_hour": (
            float(np.polyfit(hours, delay, 1)[0]) if np.ptp(hours) > 0 else float("nan")
        ),
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--interval", type=int, default=10)
    parser.add_argument("--headless", action="store_true")
    parser.add_argument("--train", action="store_true", help="the service trains the first model")
    parser.add_argument("--night", action="store_true", help="what a night does, while it polls")
    parser.add_argument("--probe", action="store_true", help="that of a container, meanwhile")
    parser.add_argument("--yahoo", action="store_true", help="yfinance against a double of Yahoo")
    parser.add_argument("--closed", action="store_true", help="on an exchange that is closed now")
    parser.add_argument("--cgroup", type=Path, help="memory cgroup the service is put into")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/soak.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ended:
        yahoo = None
        if arguments.yahoo:
            yahoo = ended.enter_context(YahooDouble(Path(folder) / "certificates")).env
        found = measure(
            Path(folder),
            arguments.minutes,
            arguments.interval,
            headless=arguments.headless,
            train=arguments.train,
            night=arguments.night,
            probe=arguments.probe,
            closed=arguments.closed,
            yahoo=yahoo,
            cgroup=arguments.cgroup,
        )
    show(f"service at {arguments.interval} s", found, arguments.out)


if __name__ == "__main__":
    main()
