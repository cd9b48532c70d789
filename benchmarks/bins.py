"""What it costs to place the bins of many rows by a sample of them, in skill and in time.

Runs of a world with a known edge (a channel whose middle the price is pulled to) are trained on
once with bins from every row and once from samples, by the product's own `fit`, and scored on the
sessions that follow: the gain over the base rate in 1e-4 nats per label, expected under the exact
probabilities of the world, so that the chance of the outcomes does not blur it. Compared are the
same rows, so what differs is the bins; the error is that of the mean over runs. `another seed` is
the same sample size drawn anew: what the draw alone does.

    python -m benchmarks.bins --runs 16
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks.guard_sabotage import world_in
from benchmarks.report import side_by_side
from benchmarks.worlds import truth_of
from hedge_pipeline.learning import training
from hedge_pipeline.learning.dataset import assemble
from hedge_pipeline.learning.training import (
    Margins,
    Matrix,
    TrainingPlan,
    fit,
    margins,
)
from hedge_pipeline.probability import log_likelihood, logit
from hedge_pipeline.stages import SETTLING, Deployment

WORLD = "EDGE56X"
TRAINED, SCORED = 140, 40
SEED = 1
ALL_ROWS = "every row"
# name of the kind: rows per bin and seed of the draw
KINDS = {
    ALL_ROWS: (None, 0),
    "64 per bin": (64, 0),
    "64, another seed": (64, 1),
    "16 per bin": (16, 0),
}


@contextmanager
def binned(rows_per_bin: int | None, seed: int) -> Iterator[None]:
    """Fits place their bins by samples of this size; None = by every row."""
    draw = training.drawn_rows
    with (
        mock.patch.object(training, "MANY_ROWS", 1 << 40 if rows_per_bin is None else 0),
        mock.patch.object(training, "_ROWS_PER_BIN", rows_per_bin or 1),
        mock.patch.object(training, "drawn_rows", lambda rows, wanted, _: draw(rows, wanted, seed)),
    ):
        yield


def scored_rows(
    deployment: Deployment, symbol: str, labels: Sequence[str]
) -> tuple[Matrix, Margins]:
    """Features of the labelled rows, and the exact probability that each goes up."""
    features, up = [], []
    for label in labels:
        rows = deployment.labelled.read(symbol, label)
        session = deployment.calendar.session(label)
        truth = truth_of(SEED, symbol, deployment.calendar.ordinal(label))
        features.append(rows.features)
        up.append(truth.oracle[session.index_of(rows.bar_ts)])
    return np.concatenate(features), np.concatenate(up)


def expected_gain(said: Margins, up: Margins, base_rate: float) -> float:
    """`skill_in_nats`, expected where the probability of each row to go up is known."""
    base = np.full_like(said, logit(base_rate))
    gains = [
        log_likelihood(base + said, outcome) - log_likelihood(base, outcome)
        for outcome in (np.ones(len(said)), np.zeros(len(said)))
    ]
    return float(np.mean(up * gains[0] + (1 - up) * gains[1]))


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/bins.json"))
    given = parser.parse_args()
    symbols = tuple(f"{WORLD}{number}" for number in range(given.runs))
    skill: dict[str, list[float]] = {kind: [] for kind in KINDS}
    used = dict.fromkeys(KINDS, 0.0)
    rows = 0
    plan = replace(TrainingPlan(), window_sessions=TRAINED)
    with tempfile.TemporaryDirectory() as folder:
        deployment = world_in(Path(folder), symbols, TRAINED + SCORED, seed=SEED)
        labels = deployment.calendar.labels[: TRAINED + SCORED]
        known_by = deployment.calendar.session(labels[-1]).closes + SETTLING
        for symbol in symbols:
            data = assemble(
                deployment.labelled, symbol, labels[:TRAINED], plan, deployment.horizon, known_by
            )
            features, up = scored_rows(deployment, symbol, labels[TRAINED:])
            rows = data.rows
            for kind, (rows_per_bin, seed) in KINDS.items():
                begun = time.process_time()
                with binned(rows_per_bin, seed):
                    booster = fit(data, plan)[1]
                used[kind] += (time.process_time() - begun) / len(symbols)
                said = margins(booster, features, data.base_rate)
                skill[kind].append(1e4 * expected_gain(said, up, data.base_rate))
    columns = {}
    for kind, found in skill.items():
        less = np.array(found) - np.array(skill[ALL_ROWS])
        error = less.std(ddof=1) / np.sqrt(len(less))
        columns[kind] = {
            "rows": f"{rows:,}",
            "gain over the base rate, 1e-4 nats": f"{np.mean(found):.2f}",
            "against every row": "" if kind == ALL_ROWS else f"{less.mean():+.2f} ± {error:.2f}",
            "CPU seconds of a fit": f"{used[kind]:.2f}",
        }
    side_by_side(f"bins from samples, {len(symbols)} runs", columns, given.out)


if __name__ == "__main__":
    main()
