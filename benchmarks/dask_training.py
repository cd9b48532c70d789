"""From how many rows does a Dask cluster pay? Local training beside one on two workers.

Both train the same rows with the same plan, one thread each. The workers are processes of this
machine: what is shown is what sending rows, meeting and summing cost, not what a network costs.

    python -m benchmarks.dask_training --rows 10000,100000,1000000
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.report import show
from hedge_pipeline.learning.dask_training import DaskTrainer
from hedge_pipeline.learning.dataset import TrainingSet
from hedge_pipeline.learning.training import TrainingPlan, fit
from hedge_pipeline.market.tables import feature_names
from hedge_pipeline_tests.clusters import cluster_in

HORIZON = 10
Work = Callable[[], object]


def rows_of(number: int, seed: int = 0) -> TrainingSet:
    """Normal features, labels that depend a little on the first of them."""
    rng = np.random.default_rng(seed)
    names = tuple(feature_names())
    values = rng.standard_normal((number, len(names)), dtype=np.float32)
    up = rng.random(number) < 1 / (1 + np.exp(-0.2 * values[:, 0]))
    weights = np.full(number, 1 / HORIZON)
    every = slice(0, number)
    return TrainingSet(
        names, values, up.astype(np.float64), weights, every, ("all",), (number,), "benchmark"
    )


def seconds_of(first: Work, second: Work, times: int) -> tuple[float, float]:
    """Median wall times of two kinds of work done in turns: what else runs here hits both."""
    spent = []
    for work in (first, second) * times:
        begun = time.perf_counter()
        work()
        spent.append(time.perf_counter() - begun)
    return median(spent[::2]), median(spent[1::2])


def main() -> None:
    """One pair of rows per size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/dask_training.json"))
    given = parser.parse_args()
    plan, found = TrainingPlan(), dict[str, float]()
    with (
        tempfile.TemporaryDirectory() as folder,
        cluster_in(Path(folder), workers=given.workers) as cluster,
    ):
        trainer = DaskTrainer(cluster.address)
        trainer(rows_of(5000), plan)  # every process has imported what it needs
        for number in map(int, given.rows.split(",")):
            data = rows_of(number)
            local, dask = seconds_of(
                partial(fit, data, plan), partial(trainer, data, plan), given.times
            )
            found[f"{number}_rows_local_seconds"] = local
            found[f"{number}_rows_dask_seconds"] = dask
            found[f"{number}_rows_local_over_dask"] = local / dask
    show(f"local training beside {given.workers} Dask workers", found, given.out, digits=3)


if __name__ == "__main__":
    main()
