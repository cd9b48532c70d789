"""A whole replay beside the bare XGBoost it contains: building a matrix and training on it.

Every `QuantileDMatrix` and `xgboost.train` inside the replay is timed, in wall time and in CPU
time of its thread, so all numbers come from one run. Bookkeeping is everything else: bars,
levels, features, predictions, outcomes, evidence, guards, scores, and MLflow with its own process.
CPU time does not depend on who else uses the machine.

    python -m benchmarks.replay --sessions 40
    python -m benchmarks.replay --path bars.parquet --symbols QQQ,SPY
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import show
from hedge_pipeline.learning.training import native_xgboost
from hedge_pipeline.market.tables import FEATURE_ROWS, OUTCOMES, PREDICTION_LOG, RAW_QUOTES
from hedge_pipeline.opening import open_deployment
from hedge_pipeline.replay import peak_rss_mb, replay
from hedge_pipeline.resources.publishing import BackgroundRegistry
from hedge_pipeline.settings import load_settings
from hedge_pipeline.stages import Deployment

EPOCH = "2024-01-02"


class Timed:
    """A function that adds up what its calls take; calls of several threads add up, too."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.calls = 0
        self.seconds = self.cpu = 0.0

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        """Calls it."""
        begun, used = time.perf_counter(), time.thread_time()
        try:
            return self.call(*arguments, **more)
        finally:
            self.seconds += time.perf_counter() - begun
            self.cpu += time.thread_time() - used
            self.calls += 1


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def stored_bytes(deployment: Deployment) -> int:
    """Size of the tables whose rows belong to predictions: log, features, bars, outcomes."""
    tables = (RAW_QUOTES, FEATURE_ROWS, PREDICTION_LOG, OUTCOMES)
    return sum(deployment.store.size(table) for table in tables)


def predictions(deployment: Deployment) -> int:
    """Rows of the log."""
    return len(deployment.store.read(PREDICTION_LOG, columns=("role",)))


def measure(options: dict[str, Any], sessions: int, *, with_registry: bool) -> dict[str, float]:
    """Seconds of the replay and of its bare trainings."""
    settings = load_settings(HEDGE_MODE="replay", **options)
    deployment = open_deployment(settings)
    labels = getattr(deployment.source, "sessions", deployment.calendar.between(EPOCH, None))
    xgboost = native_xgboost()
    train, matrix = Timed(xgboost.train), Timed(xgboost.QuantileDMatrix)
    xgboost.train, xgboost.QuantileDMatrix = train, matrix
    registry = None
    if with_registry:
        registry = BackgroundRegistry(settings)
    begun, used = time.perf_counter(), cpu_seconds()
    stopwatch = replay(deployment, labels[:sessions], registry=registry)
    seconds = time.perf_counter() - begun
    if registry is not None:
        registry.close()
    used = cpu_seconds() - used
    xgboost.train, xgboost.QuantileDMatrix = train.call, matrix.call
    bare = train.seconds + matrix.seconds
    nights = len(labels[:sessions]) * len(settings.symbols)
    return {
        "sessions": float(len(labels[:sessions])),
        "symbols": float(len(settings.symbols)),
        "trainings": float(train.calls),
        "seconds": seconds,
        "cpu_seconds": used,
        "bare_train_seconds": train.seconds,
        "bare_matrix_seconds": matrix.seconds,
        "allowed_seconds": 1.2 * train.seconds + 30,
        "bookkeeping_ms_per_symbol_session": 1e3 * (seconds - bare) / nights,
        "bookkeeping_cpu_ms_per_symbol_session": 1e3 * (used - train.cpu - matrix.cpu) / nights,
        "bytes_per_1000_predictions": 1e3 * stored_bytes(deployment) / predictions(deployment),
        "peak_rss_mb": peak_rss_mb(stopwatch),
        "own_peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **{f"{name}_seconds": value for name, value in stopwatch.seconds.items()},
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--sessions", type=int, default=40)
    parser.add_argument("--path", help="bars; without it the simulated market")
    parser.add_argument("--symbols", default="SIMQ,SIMN")
    parser.add_argument("--no-registry", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/replay.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "HEDGE_DATA_URL": folder,
            "HEDGE_SYMBOLS": arguments.symbols,
            "HEDGE_SOURCE": "file" if arguments.path else "simulated",
            "HEDGE_SOURCE_PATH": arguments.path or "",
        }
        found = measure(options, arguments.sessions, with_registry=not arguments.no_registry)
    show("replay beside its bare trainings", found, arguments.out)


if __name__ == "__main__":
    main()
