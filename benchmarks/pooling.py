"""A model per symbol beside one pooled model, out of time, on a store that was filled before.

Every few sessions both are fitted on the sessions before, by the product's own code, and say what
they would have served on the next ones: the margin, shrunk by the trust earned so far by that
stream and symbol, on top of the symbol's base rate of that day. Compared is the log-loss of the
same rows; the interval resamples whole sessions, of all symbols together, because symbols move
together. `raw` is the same without the shrinking.

    hedge replay --source file --path bars.parquet --symbols ... --out replay
    python -m benchmarks.pooling --store replay --symbols ...
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.report import show
from hedge_pipeline.learning import gate
from hedge_pipeline.learning.dataset import LabelledSession
from hedge_pipeline.learning.gate import GateState, SessionEvidence
from hedge_pipeline.learning.pooling import PooledSessions, assemble_pool
from hedge_pipeline.learning.training import fit, margins
from hedge_pipeline.market.tables import OUTCOMES
from hedge_pipeline.opening import open_deployment
from hedge_pipeline.probability import log_likelihood, logit, trusted_probability
from hedge_pipeline.settings import load_settings
from hedge_pipeline.stages import SETTLING, Deployment, settled_symbols

Floats = npt.NDArray[np.float64]
STREAMS = ("symbol", "pool")


class Scored:
    """Sums by session: labels, log-loss of the base rate, and of each stream, nats."""

    def __init__(self) -> None:
        self.labels: list[int] = []
        self.base: list[float] = []
        self.served: dict[str, list[float]] = {name: [] for name in STREAMS}
        self.raw: dict[str, list[float]] = {name: [] for name in STREAMS}

    def gain(self, losses: Sequence[float], than: Sequence[float]) -> tuple[float, float, float]:
        """1e-4 nats per label by which losses are below others, and the 95 % interval."""
        labels = np.array(self.labels, dtype=np.float64)
        gains = np.array(than) - np.array(losses)
        draws = np.random.default_rng(0).integers(0, len(labels), (10_000, len(labels)))
        means = gains[draws].sum(axis=1) / labels[draws].sum(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        mean = gains.sum() / labels.sum()
        return 1e4 * float(mean), 1e4 * float(low), 1e4 * float(high)


def main() -> None:
    """Prints the gains of both streams over the base rate, and of the pool over the symbols."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--store", required=True)
    parser.add_argument("--symbols", required=True)
    parser.add_argument("--every", type=int, default=1, help="sessions between two trainings")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/pooling.json"))
    given = parser.parse_args()
    deployment = open_deployment(
        load_settings(HEDGE_MODE="replay", HEDGE_DATA_URL=given.store, HEDGE_SYMBOLS=given.symbols)
    )
    scored = compare(deployment, given.every)
    found: dict[str, float] = {
        "sessions": float(len(scored.labels)),
        "labels": float(sum(scored.labels)),
    }
    for kind in ("served", "raw"):
        losses: Mapping[str, Sequence[float]] = getattr(scored, kind)
        pairs: list[tuple[str, Sequence[float], Sequence[float], str]]
        pairs = [(name, losses[name], scored.base, "base_rate") for name in STREAMS]
        pairs += [("pool", losses["pool"], losses["symbol"], "symbol")]
        for name, own, other, than in pairs:
            for part, value in zip(("", "_lo", "_hi"), scored.gain(own, other), strict=True):
                found[f"{kind}_{name}_over_{than}_1e4_nats{part}"] = value
    show("a model per symbol beside a pooled one", found, given.out, digits=2)


def compare(deployment: Deployment, every: int) -> Scored:
    """Walks through the sessions of the store."""
    plan, rule, horizon = deployment.plan, deployment.rule, deployment.horizon
    reader = PooledSessions(deployment.store, horizon)
    settled = {
        label: settled_symbols(deployment, label) for label in deployment.store.sessions(OUTCOMES)
    }
    settled = {label: symbols for label, symbols in settled.items() if symbols}
    labels = tuple(settled)
    states = {name: dict.fromkeys(deployment.symbols, GateState.new(rule)) for name in STREAMS}
    models: dict[str, dict[str, tuple[Any, float]]] = {name: {} for name in STREAMS}
    scored = Scored()
    for number, label in enumerate(labels):
        before = labels[max(0, number - plan.window_sessions) : number]
        if number >= plan.least_sessions and (number - plan.least_sessions) % every == 0:
            moment = deployment.calendar.session(before[-1]).closes + SETTLING
            pool = {x: settled[x] for x in before}
            data = assemble_pool(reader, pool, plan, horizon, moment, spooled=False)
            _, booster = fit(data, plan)
            models["pool"] = dict.fromkeys(deployment.symbols, (booster, data.base_rate))
            for symbol in deployment.symbols:
                own = {x: (symbol,) for x in before if symbol in settled[x]}
                if len(own) >= plan.least_sessions:
                    data = assemble_pool(reader, own, plan, horizon, moment, spooled=False)
                    models["symbol"][symbol] = (fit(data, plan)[1], data.base_rate)
        rows = reader.read(label, settled[label])
        sums = {"labels": 0, "base": 0.0}
        losses = {(kind, name): 0.0 for kind in ("served", "raw") for name in STREAMS}
        for symbol, session in rows.items():
            known = all(symbol in models[name] for name in STREAMS)
            for name in STREAMS:
                state = states[name][symbol]
                base = state.base_rate(rule)
                said = np.empty(0)
                if known:
                    booster, rate = models[name][symbol]
                    said = margins(booster, session.features, rate)
                    trust = gate.trust(state, rule)
                    served = trusted_probability(base, said, trust)
                    losses["served", name] += _loss(logit(served), session.labels)
                    losses["raw", name] += _loss(logit(base) + said, session.labels)
                states[name][symbol] = gate.fold(
                    state, _evidence(label, session, said, base, rule.horizon), rule
                )[0]
            if known:
                sums["labels"] += len(session.labels)
                odds = np.full(len(session.labels), logit(base))
                sums["base"] += _loss(odds, session.labels)
        if sums["labels"]:
            scored.labels.append(int(sums["labels"]))
            scored.base.append(sums["base"])
            for name in STREAMS:
                scored.served[name].append(losses["served", name])
                scored.raw[name].append(losses["raw", name])
    return scored


def _loss(odds: Floats, labels: Floats) -> float:
    return -float(log_likelihood(odds, labels).sum())


def _evidence(
    label: str, session: LabelledSession, said: Floats, base: float, horizon: int
) -> SessionEvidence:
    """The session for base rate and trust, as in `learning/walk_forward.py`."""
    rows = len(said)
    return SessionEvidence(
        session=label,
        margin=said,
        up=session.labels[:rows].astype(np.int64),
        offset=np.arange(rows) % horizon,
        base_rate=np.full(rows, base),
        ups=int(session.labels.sum()),
        labels=len(session.labels),
    )


if __name__ == "__main__":
    main()
