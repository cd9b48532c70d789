"""A whole replay beside the bare `xgboost.train` calls it contains.

Every call of `xgboost.train` inside the replay is timed, so both numbers come from one run.

    python -m benchmarks.replay --sessions 40
    python -m benchmarks.replay --path bars.parquet --symbols QQQ,SPY
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import show
from hedge_pipeline.learning.training import native_xgboost
from hedge_pipeline.opening import open_deployment
from hedge_pipeline.replay import peak_rss_mb, replay
from hedge_pipeline.resources.publishing import BackgroundRegistry
from hedge_pipeline.settings import load_settings

EPOCH = "2024-01-02"


def measure(options: dict[str, Any], sessions: int, *, with_registry: bool) -> dict[str, float]:
    """Seconds of the replay and of its bare trainings."""
    settings = load_settings(HEDGE_MODE="replay", **options)
    deployment = open_deployment(settings)
    labels = getattr(deployment.source, "sessions", deployment.calendar.between(EPOCH, None))
    bare = 0.0
    trainings = 0
    xgboost = native_xgboost()
    train = xgboost.train

    def timed(*arguments: Any, **more: Any) -> Any:
        nonlocal bare, trainings
        begun = time.perf_counter()
        try:
            return train(*arguments, **more)
        finally:
            bare += time.perf_counter() - begun
            trainings += 1

    xgboost.train = timed
    registry = None
    if with_registry:
        registry = BackgroundRegistry(settings)
    begun = time.perf_counter()
    stopwatch = replay(deployment, labels[:sessions], registry=registry)
    seconds = time.perf_counter() - begun
    if registry is not None:
        registry.close()
    xgboost.train = train
    nights = len(labels[:sessions]) * len(settings.symbols)
    return {
        "sessions": float(len(labels[:sessions])),
        "symbols": float(len(settings.symbols)),
        "trainings": float(trainings),
        "seconds": seconds,
        "bare_training_seconds": bare,
        "allowed_seconds": 1.2 * bare + 30,
        "bookkeeping_ms_per_symbol_session": 1e3 * (seconds - bare) / nights,
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
