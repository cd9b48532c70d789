"""Whether to train: new samples, drift, and features that know the outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hedge_pipeline.learning import drift
from hedge_pipeline.learning.leaks import leaking
from hedge_pipeline.learning.retraining import Decision, RetrainingFacts, decide
from hedge_pipeline.market.tables import FEATURE_ROWS, OUTCOMES, feature_names
from hedge_pipeline.stages.outcomes import settled_sessions

if TYPE_CHECKING:
    from hedge_pipeline.learning.drift import Drift
    from hedge_pipeline.stages.deployment import Deployment


def leaking_features(deployment: Deployment, symbol: str) -> dict[str, float]:
    """Features that know the outcome on their own in the newest sessions."""
    sessions = settled_sessions(deployment, symbol, last=deployment.plan.least_sessions)
    parts = [deployment.labelled.read(symbol, label) for label in sessions]
    if not parts:
        return {}
    features = np.concatenate([part.features for part in parts])
    return leaking(features, np.concatenate([part.labels for part in parts]), feature_names())


def leaks_in_words(deployment: Deployment, symbol: str) -> str:
    """The features that know the outcome on their own, in one line; empty if there is none."""
    return "; ".join(
        f"{symbol}: {name} alone is right with an area under the curve of {area:.2f}"
        for name, area in leaking_features(deployment, symbol).items()
    )


def retraining_decision(
    deployment: Deployment,
    symbol: str,
    *,
    hour: int,
    in_flight: bool = False,
    min_samples: int | None = None,
) -> Decision:
    """Whether the symbol should be retrained, from the store alone.

    Args:
        deployment: where to look.
        symbol: whose model.
        hour: exchange-local hour that counts now.
        in_flight: a training of the symbol runs or waits.
        min_samples: instead of MIN_SAMPLES_FOR_RETRAIN.
    """
    newest = deployment.shelf.newest(symbol) if deployment.pooled and not in_flight else None
    if newest and newest.version not in deployment.ledger(symbol).judged:
        return Decision(True, f"{symbol}: version {newest.version} of the pool waits for a verdict")
    new = new_samples(deployment, symbol)
    needed = deployment.min_samples if min_samples is None else min_samples
    found = feature_drift(deployment, symbol) if 0 < new < needed else None
    return decide(
        RetrainingFacts(
            symbol=symbol,
            new_samples=new,
            needed_samples=needed,
            drift=found.in_words() if found is not None and found.alarm else None,
            sessions=len(settled_sessions(deployment, symbol, last=deployment.plan.least_sessions)),
            needed_sessions=deployment.plan.least_sessions,
            hour=hour,
            retrain_hour=deployment.retrain_hour,
            in_flight=in_flight,
        )
    )


def feature_drift(deployment: Deployment, symbol: str) -> Drift:
    """Whether the features of the last settled sessions differ from those before; information."""
    names = list(feature_names())
    sessions = settled_sessions(deployment, symbol, last=drift.RECENT + drift.MOST_REFERENCE)
    if len(sessions) < drift.RECENT + drift.LEAST_REFERENCE:
        return drift.feature_drift(np.empty((0, 2 * len(names))), names)
    summaries = []
    for label in sessions:
        rows = deployment.store.read(
            FEATURE_ROWS, [label], symbols=[symbol], columns=("symbol", *names)
        )
        summaries.append(drift.session_summary(rows[names].to_numpy(dtype=np.float32)))
    return drift.feature_drift(np.array(summaries), names)


def performance_drift(deployment: Deployment, symbol: str) -> Drift:
    """Whether what was served has become worse against the base rate; information."""
    sums = deployment.scores(symbol)
    sums = sums[sums["role"] == "served"]
    totals = sums.groupby("session", sort=True)[["labels", "log_loss", "base_log_loss"]].sum()
    labels, loss, base = totals[totals["labels"] > 0].to_numpy(dtype=np.float64).T
    return drift.performance_drift((base - loss) / labels)


def new_samples(deployment: Deployment, symbol: str) -> int:
    """Up or down outcomes of settled sessions since the newest version's cutoff."""
    newest = deployment.shelf.newest(symbol)
    since = settled_sessions(deployment, symbol, after=newest.cutoff if newest else None)
    outcomes = deployment.store.read(
        OUTCOMES, since, symbols=[symbol], columns=("symbol", "horizon_bars", "status")
    )
    outcomes = outcomes[outcomes["horizon_bars"] == deployment.horizon]
    return int(outcomes["status"].isin(["up", "down"]).sum())
