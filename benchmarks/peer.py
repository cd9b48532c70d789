"""This loop beside FreqAI's: the same bars, window, trees and one core, a retraining per day.

FreqAI's loop runs in an environment of its own (`pip install "freqtrade[freqai]"`). Both fit 200
trees of depth 4 on 25 features of the last 28 days and predict the next one; this loop computes
and stores all of its features, of which its models know the first 25. It also keeps the log,
outcomes, evidence, guards and scores. It is measured with the bins of its own plan and with
XGBoost's default, which FreqAI leaves as it is. What XGBoost itself takes (matrix and training) is
timed inside both.

    python -m benchmarks.peer --python ENVIRONMENT/bin/python --path bars.parquet --symbol QQQ
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.replay import Timed
from benchmarks.report import show
from hedge_pipeline import stages
from hedge_pipeline.learning import training
from hedge_pipeline.learning.dataset import TrainingSet
from hedge_pipeline.learning.training import TrainingPlan, native_xgboost
from hedge_pipeline.opening import open_deployment
from hedge_pipeline.replay import replay
from hedge_pipeline.settings import load_settings

FEATURES = 25
ROUNDS = 3
LOOP = Path(__file__).with_name("peer_loop.py")
PLAN = TrainingPlan(window_sessions=28, trees=200, depth=4, rows_per_tree=0.8, columns_per_node=0.8)
BINS = {"ours": PLAN.bins, "ours_256_bins": 256}


def fit_few(data: TrainingSet, plan: TrainingPlan) -> tuple[bytes, Any]:
    """Fits a model that knows the first features only."""
    few = replace(data, features=data.features[:, :FEATURES], names=data.names[:FEATURES])
    return training.fit(few, plan)


def ask_few(monkey: pytest.MonkeyPatch) -> None:
    """Has such models asked with the features they know."""
    margins, contributions = training.margins, training.contributions
    for module in (training, stages.training):
        monkey.setattr(
            module, "margins", lambda model, x, *more: margins(model, x[:, :FEATURES], *more)
        )
    monkey.setattr(
        stages.training,
        "contributions",
        lambda model, x, names: contributions(model, x[:, :FEATURES], names[:FEATURES]),
    )


def ours(path: Path, symbol: str, days: int, bins: int, folder: Path) -> dict[str, float]:
    """Wall and CPU seconds of the last days of a replay, with a training each day."""
    settings = load_settings(
        HEDGE_MODE="replay",
        HEDGE_DATA_URL=str(folder),
        HEDGE_SYMBOLS=symbol,
        HEDGE_SOURCE="file",
        HEDGE_SOURCE_PATH=str(path),
        MIN_SAMPLES_FOR_RETRAIN="20",
    )
    plan = replace(PLAN, bins=bins)
    deployment = replace(open_deployment(settings), plan=plan, trainer=fit_few)
    labels = deployment.source.sessions  # type: ignore[attr-defined]
    replay(deployment, labels[:-days], train=False)
    xgboost = native_xgboost()
    train, matrix = Timed(xgboost.train), Timed(xgboost.QuantileDMatrix)
    with pytest.MonkeyPatch.context() as monkey:
        ask_few(monkey)
        monkey.setattr(xgboost, "train", train)
        monkey.setattr(xgboost, "QuantileDMatrix", matrix)
        begun, used = time.perf_counter(), time.process_time()
        replay(deployment, labels[-days:])
        taken = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - used}
    return taken | {
        "xgboost_cpu_seconds": train.cpu + matrix.cpu,
        "models": float(len(deployment.shelf.versions(symbol))),
    }


def main() -> None:
    """Runs the benchmark, the loops in turn; reports the fastest of three rounds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--python", type=Path, required=True, help="of the peer's environment")
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--symbol", default="QQQ")
    parser.add_argument("--days", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/peer.json"))
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found: dict[str, float] = {}
    days = arguments.days
    for _ in range(ROUNDS):
        measured = {}
        for name, bins in BINS.items():
            with tempfile.TemporaryDirectory() as folder:
                measured[name] = ours(arguments.path, arguments.symbol, days, bins, Path(folder))
        asked = [str(arguments.python), str(LOOP), str(arguments.path), arguments.symbol, str(days)]
        answer = subprocess.run(asked, capture_output=True, text=True, check=True)
        measured["freqai"] = json.loads(answer.stdout.strip().splitlines()[-1])
        for name, numbers in measured.items():
            found[f"{name}_models"] = float(numbers["models"])
            for kind in ("seconds", "cpu_seconds", "xgboost_cpu_seconds"):
                key = f"{name}_{kind}_per_day"
                taken = numbers[kind] / numbers["models"]
                found[key] = min(found.get(key, taken), taken)
    for name in BINS:
        for kind in ("seconds", "cpu_seconds"):
            taken, theirs = (found[f"{x}_{kind}_per_day"] for x in (name, "freqai"))
            found[f"{name}_over_freqai_{kind}"] = taken / theirs
    show("a day with its retraining, one core", found, arguments.out, digits=3)


if __name__ == "__main__":
    main()
