"""The honest table: what the loop finds on bars of your own, beside everything that deceives.

Replays the bars, then compares accuracy with what always saying the base rate's side would have
scored on the same rows, and log-loss with the base rate's, unshrunk and as served. Intervals are
95 %, by resampling whole sessions; the first sessions, when trust has nothing to go by, are not
scored.

    python -m benchmarks.honest_table --bars bars.parquet --symbols QQQ,SPY --out docs/table.md
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hedge_pipeline.learning import gate
from hedge_pipeline.market.sources import SourceOptions, open_source
from hedge_pipeline.market.tables import PERFORMANCE
from hedge_pipeline.replay import replay
from hedge_pipeline.settings import load_settings
from hedge_pipeline.stages import Deployment, deploy

Floats = npt.NDArray[np.float64]

NOT_SCORED = 20
DRAWS = 2000


def replayed(path: str, symbols: str, folder: Path) -> Deployment:
    """A finished replay of a file of bars."""
    settings = load_settings(
        HEDGE_MODE="replay",
        HEDGE_DATA_URL=str(folder),
        HEDGE_SYMBOLS=symbols,
        HEDGE_SOURCE="file",
        HEDGE_SOURCE_PATH=path,
        RETRAIN_HOUR=2,
    )
    deployment = deploy(
        settings, lambda calendar: open_source("file", SourceOptions(calendar, paths=(path,)))
    )
    sessions: Sequence[str] = getattr(deployment.source, "sessions", ())
    replay(deployment, sessions)
    return deployment


def with_interval(top: Floats, bottom: Floats, scale: float, digits: int, seed: int = 0) -> str:
    """A ratio of sums over sessions with its 95 % interval, by resampling sessions."""
    picks = np.random.default_rng(seed).integers(0, len(top), (DRAWS, len(top)))
    draws = scale * top[picks].sum(axis=1) / bottom[picks].sum(axis=1)
    lo, hi = np.quantile(draws, [0.025, 0.975])
    value = scale * top.sum() / bottom.sum()
    return f"{value:.{digits}f} [{lo:.{digits}f}, {hi:.{digits}f}]"


def line(deployment: Deployment, symbol: str, skipped: int = NOT_SCORED) -> str:
    """One row of the table."""
    sums = deployment.store.read(PERFORMANCE, symbols=[symbol])
    names = ["labels", "hits", "base_hits", "log_loss", "base_log_loss", "raw_log_loss"]
    totals = sums[sums["role"] == "served"].groupby("session", sort=True)[names].sum()
    totals = totals[totals["labels"] > 0][max(0, skipped - deployment.plan.least_sessions) :]
    labels, hits, base_hits, loss, base, raw = totals.to_numpy(dtype=np.float64).T
    ledger = deployment.ledger(symbol)
    folds = ledger.entries[ledger.entries["kind"] == "fold"]
    highest = gate.evidence_number(float(folds["evidence"].max()))
    now = gate.evidence_number(ledger.state.log_evidence)
    cells = [
        symbol,
        f"{len(totals)}, {int(labels.sum()):,}",
        with_interval(hits, labels, 1, 3),
        with_interval(base_hits, labels, 1, 3),
        with_interval(hits - base_hits, labels, 1, 3),
        with_interval(base - raw, labels, 1e4, 1),
        with_interval(base - loss, labels, 1e4, 2),
        f"{highest:.2f}, {now:.2f}",
        ledger.state.status.value,
    ]
    return "| " + " | ".join(cells) + " |"


HEADER = (
    "| symbol | sessions scored, labels | accuracy | of the base rate's side | difference | "
    "skill unshrunk | skill as served | E highest, now | state |\n" + "|---" * 9 + "|"
)


def across(deployment: Deployment) -> str:
    """What may be said of all symbols together: the mean of their E is evidence as well."""
    states = [deployment.ledger(symbol).state.log_evidence for symbol in deployment.symbols]
    mean = float(np.mean([math.exp(x) for x in states]))
    return f"All {len(states)} symbols together: E = {mean:.2f} of the 20 needed (mean of theirs)."


def main() -> None:
    """Replays, prints the table, writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--bars", required=True)
    parser.add_argument("--symbols", default="QQQ,SPY")
    parser.add_argument("--skip", type=int, default=NOT_SCORED, help="first sessions not scored")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/honest_table.md"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        deployment = replayed(options.bars, options.symbols, Path(folder))
        rows = [line(deployment, symbol, options.skip) for symbol in deployment.symbols]
        sessions = deployment.store.sessions(PERFORMANCE)
        text = "\n".join(
            [HEADER, *rows, "", f"{sessions[0]} to {sessions[-1]}. {across(deployment)}", ""]
        )
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)


if __name__ == "__main__":
    main()
