"""Do hedge levels help? The same replay with and without them, where they matter and where not.

The simulated market plants a bounce off levels that stand in the option chain. The source's own
level columns are left out, so that a model can know the levels from the chain alone. Compared are,
on the same rows, the log-loss of models that see bars only and of models that see hedge levels too,
for SIMQ in its bouncing regime and for SIMN, where the effect is switched off.

    python -m benchmarks.levels_learning --sessions 60
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.report import show
from hedge_pipeline import replay
from hedge_pipeline.learning.dataset import LabelledSessions, assemble
from hedge_pipeline.learning.training import TrainingPlan, fit, margins
from hedge_pipeline.market.features import HEDGE_FEATURES
from hedge_pipeline.market.tables import OUTCOMES, feature_names
from hedge_pipeline.opening import open_deployment
from hedge_pipeline.probability import log_likelihood, logit
from hedge_pipeline.settings import load_settings
from hedge_pipeline.stages import Deployment

SYMBOLS = ("SIMQ", "SIMN")
FIRST = 10
DRAWS = 2000
SOURCE_LEVELS = ("support_distance", "resistance_distance", "channel_position")


def collected(folder: Path, sessions: int, seed: int) -> Deployment:
    """A store with bars, chains, levels, features and outcomes; no model."""
    os.environ |= {
        "HEDGE_DATA_URL": str(folder),
        "HEDGE_MODE": "replay",
        "HEDGE_SYMBOLS": ",".join(SYMBOLS),
        "HEDGE_SEED": str(seed),
    }
    deployment = open_deployment(load_settings())
    labels = deployment.calendar.labels[:sessions]
    replay.replay(deployment, labels, train=False)
    return deployment


def skills(
    deployment: Deployment, symbol: str, columns: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Skill of each session above the base rate, 1e-4 nats per label, trained on those before."""
    reader = LabelledSessions(deployment.store, deployment.horizon)
    labels = deployment.store.sessions(OUTCOMES)
    plan = TrainingPlan()
    found = []
    for place in range(FIRST, len(labels)):
        known = labels[max(0, place - plan.window_sessions) : place]
        opens = deployment.calendar.session(labels[place]).opens
        data = assemble(reader, symbol, known, plan, deployment.horizon, opens)
        data = replace(
            data,
            names=[data.names[column] for column in columns],
            features=np.ascontiguousarray(data.features[:, columns]),
        )
        _, booster = fit(data, plan)
        session = reader.read(symbol, labels[place])
        values = np.ascontiguousarray(session.features[:, columns])
        said = logit(data.base_rate) + margins(booster, values, data.base_rate)
        base = np.full_like(said, logit(data.base_rate))
        gained = log_likelihood(said, session.labels) - log_likelihood(base, session.labels)
        found.append(1e4 * float(gained.mean()))
    return np.array(found)


def interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """95 % of the mean by resampling sessions."""
    picks = np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))
    lo, hi = np.quantile(values[picks].mean(axis=1), [0.025, 0.975])
    return float(lo), float(hi)


def main() -> None:
    """Prints the table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sessions", type=int, default=60)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("levels_learning.json"))
    options = parser.parse_args()
    names = list(feature_names())
    hedge = {feature.name for feature in HEDGE_FEATURES}
    bars = [n for n, name in enumerate(names) if name not in hedge | set(SOURCE_LEVELS)]
    both = [n for n, name in enumerate(names) if name not in SOURCE_LEVELS]
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        deployment = collected(Path(folder), options.sessions, options.seed)
        for symbol in SYMBOLS:
            alone = skills(deployment, symbol, np.array(bars))
            with_levels = skills(deployment, symbol, np.array(both))
            lo, hi = interval(with_levels - alone)
            found[f"{symbol}: bars alone"] = float(alone.mean())
            found[f"{symbol}: bars and levels"] = float(with_levels.mean())
            found[f"{symbol}: difference"] = float((with_levels - alone).mean())
            found[f"{symbol}: difference, 95 % from"] = lo
            found[f"{symbol}: difference, 95 % to"] = hi
    title = f"skill, 1e-4 nats per label, {len(alone)} sessions, unshrunk models"
    show(title, found, options.out)


if __name__ == "__main__":
    main()
