"""The gate's rule beside the one it came from, on the same streams of margins and outcomes.

The reference keeps the wealth of each offset and takes the mean; the rule shares out after every
session what the offsets have won. No model is fitted, see `gate_power`. Compared are how often
noise is proven, how soon an edge is, also one that begins after 60 sessions of noise, how often
proven skill is falsely called lost by the fall of the evidence, and how soon it is after a flip
(margins of half the size on the wrong side) and after the end of the edge (noise).

    python -m benchmarks.gate_rules --streams 300
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import gate_power
from benchmarks.gate_power import HORIZON, LABELS, THETA_BY_ACCURACY, Stream
from benchmarks.report import side_by_side
from hedge_pipeline.learning.gate import DEFAULT_RULE, climatology
from hedge_pipeline.probability import FloatArray, log_likelihood, logit

CHANGE = 60
AFTER = 50
NEEDED = math.log(DEFAULT_RULE.needed_evidence)
RULES = {
    "reference": (False, 0.5, 50.0),
    "shared out": (True, DEFAULT_RULE.first_stake, DEFAULT_RULE.draw),
}


def log_ratios(stream: Stream) -> FloatArray:
    """Log-likelihood ratios of every session, [sessions, horizon, factors] in nats."""
    offsets = np.arange(LABELS) % HORIZON
    found = np.empty((len(stream.up), HORIZON, len(DEFAULT_RULE.evidence_factors)))
    ups = 0
    for session, (margin, up) in enumerate(zip(stream.margin, stream.up, strict=True)):
        base = logit(np.full(LABELS, climatology(ups, session * LABELS)))
        shrunk = base + np.outer(DEFAULT_RULE.evidence_factors, margin)
        ratios = log_likelihood(shrunk, up) - log_likelihood(base, up)
        found[session] = np.stack([np.bincount(offsets, row) for row in ratios], axis=1)
        ups += int(up.sum())
    return found


def evidence(ratios: FloatArray, *, shared: bool, first_stake: float) -> FloatArray:
    """Log-evidence after every session, [streams, sessions], of [streams, sessions, ...] ratios."""
    if shared:
        ratios = np.logaddexp.reduce(ratios, axis=2, keepdims=True) - math.log(HORIZON)
    streams, sessions, offsets, factors = ratios.shape
    wealth = np.full((streams, offsets, factors), -np.inf)
    found = np.empty((streams, sessions))
    reserve = 1.0
    for session in range(sessions):
        stake = reserve * (DEFAULT_RULE.later_stake if session else first_stake)
        reserve -= stake
        wealth = np.logaddexp(wealth, math.log(stake / factors)) + ratios[:, session]
        mean = np.logaddexp.reduce(wealth, axis=(1, 2)) - math.log(offsets)
        found[:, session] = np.logaddexp(math.log(reserve), mean)
    return found


def sessions_to_proof(found: FloatArray) -> FloatArray:
    """Sessions until proof by stream; infinite = never."""
    proven = found >= NEEDED
    return np.where(proven.any(axis=1), proven.argmax(axis=1) + 1.0, np.inf)


def false_losses(found: FloatArray, draw: float) -> float:
    """Losses by the fall of the evidence per 100 proven sessions; a stream ends with the first."""
    losses = sessions = 0
    for stream in found:
        proven = np.flatnonzero(stream >= NEEDED)
        if len(proven):
            since = stream[proven[0] :]
            fallen = np.maximum.accumulate(since) - since >= math.log(draw)
            losses += int(fallen.any())
            sessions += int(fallen.argmax()) + 1 if fallen.any() else len(since)
    return 100 * losses / max(sessions, 1)


def sessions_to_loss(found: FloatArray, draw: float) -> FloatArray:
    """Sessions from the change to the loss, of the streams proven before it; infinite = never."""
    found = found[found[:, :CHANGE].max(axis=1) >= NEEDED]
    fallen = (np.maximum.accumulate(found, axis=1) - found)[:, CHANGE:] >= math.log(draw)
    return np.where(fallen.any(axis=1), fallen.argmax(axis=1) + 1.0, np.inf)


def flipped(rng: np.random.Generator, theta: float) -> Stream:
    """An edge, and from session 60 on margins of half the size on the wrong side."""
    before = gate_power.edge_stream(rng, theta, CHANGE)
    after = gate_power.edge_stream(rng, theta, AFTER)
    margin = np.concatenate([before.margin, -0.5 * after.margin])
    return Stream(margin, np.concatenate([before.up, after.up]))


def many(streams: int, make: Callable[[int], Stream]) -> FloatArray:
    """Log-likelihood ratios of so many streams, [streams, sessions, horizon, factors]."""
    return np.stack([log_ratios(make(number)) for number in range(streams)])


def in_words(sessions: FloatArray) -> str:
    """Tenth, median, ninetieth hundredth and the slowest."""
    if not len(sessions):
        return "none proven"
    quantiles = np.quantile(sessions, (0.1, 0.5, 0.9, 1.0), method="inverted_cdf")
    return "/".join("never" if math.isinf(x) else f"{x:.0f}" for x in quantiles)


def main() -> None:
    """Draws the streams, folds them by both rules and prints one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=300)
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/gate_rules.json"))
    options = parser.parse_args()

    def rng(*key: int) -> np.random.Generator:
        return np.random.default_rng((options.seed, *key))

    noise = {
        case: many(options.streams, lambda s: gate_power.noise_stream(rng(1, n, s), half_life))  # noqa: B023
        for n, (case, half_life) in enumerate(gate_power.NOISE_HALF_LIVES.items())
    }
    edges, flips = {}, {}
    for accuracy, theta in THETA_BY_ACCURACY.items():
        edges[accuracy] = many(
            options.streams,
            lambda s: gate_power.edge_stream(rng(2, accuracy, s), theta),  # noqa: B023
        )
        flips[accuracy] = many(options.streams // 3, lambda s: flipped(rng(9, accuracy, s), theta))  # noqa: B023
    quiet = noise["half-life 50 bars"]
    found: dict[str, dict[str, str | float]] = {}
    for rule, (shared, first_stake, draw) in RULES.items():

        def of(ratios: FloatArray) -> FloatArray:
            return evidence(ratios, shared=shared, first_stake=first_stake)  # noqa: B023

        column: dict[str, str | float] = {}
        for case, ratios in noise.items():
            proven = np.isfinite(sessions_to_proof(of(ratios))).mean()
            column[f"noise of {case}: proven, %"] = round(100 * float(proven), 1)
        for accuracy, ratios in edges.items():
            late = np.concatenate([quiet[:, :CHANGE], ratios], axis=1)
            dead = np.concatenate([ratios[:, :CHANGE], quiet[:, :AFTER]], axis=1)
            begun = sessions_to_proof(of(late))
            column |= {
                f"{accuracy} %: sessions to proof": in_words(sessions_to_proof(of(ratios))),
                f"{accuracy} % late: sessions to proof": in_words(begun - CHANGE),
                f"{accuracy} %: false losses per 100": round(false_losses(of(ratios), draw), 2),
                f"{accuracy} % flipped: sessions to loss": in_words(
                    sessions_to_loss(of(flips[accuracy]), draw)
                ),
                f"{accuracy} % ended: sessions to loss": in_words(sessions_to_loss(of(dead), draw)),
            }
        found[rule] = column
    side_by_side(f"{options.streams} streams of a kind", found, options.out)


if __name__ == "__main__":
    main()
