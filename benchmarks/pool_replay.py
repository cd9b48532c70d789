"""A model per symbol beside a pooled one, each replayed by the product itself over the same bars.

Two replays into two stores, `HEDGE_MODEL_SCOPE=symbol` and `pool`: every night the product itself
decides on retraining, trains, guards, judges and serves. Compared is what was served, the trusted
probability, on the rows that both have; the loss of what the model said before trust shrank it is
shown beside it. Intervals resample whole sessions, of all symbols together, because symbols move
together. `benchmarks/pooling.py` asks the same of bare models, without the loop.

    python -m benchmarks.pool_replay --path bars.parquet --sessions 61
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.report import show
from hedge_pipeline.market.tables import PERFORMANCE
from hedge_pipeline.opening import open_deployment
from hedge_pipeline.replay import replay
from hedge_pipeline.settings import load_settings

SCOPES = ("symbol", "pool")
LOSSES = ("log_loss", "raw_log_loss", "base_log_loss")


def replayed(scope: str, folder: Path, path: str, symbols: str, sessions: int) -> pd.DataFrame:
    """Sums of labels and losses of the served stream, by (symbol, session)."""
    settings = load_settings(
        HEDGE_MODE="replay",
        HEDGE_MODEL_SCOPE=scope,
        HEDGE_DATA_URL=str(folder),
        HEDGE_SOURCE="file",
        HEDGE_SOURCE_PATH=path,
        HEDGE_SYMBOLS=symbols,
    )
    deployment = open_deployment(settings)
    labels = getattr(deployment.source, "sessions")[:sessions]  # noqa: B009
    replay(deployment, labels)
    sums = deployment.store.read(PERFORMANCE)
    sums = sums[(sums["role"] == "served") & (sums["model_version"] > 0) & (sums["labels"] > 0)]
    return sums.groupby(["symbol", "session"])[["labels", *LOSSES]].sum()


def gain(rows: pd.DataFrame, less: str, than: str) -> tuple[float, float, float]:
    """1e-4 nats per label by which one loss is below another, and the 95 % interval."""
    sums = rows.groupby("session")[[less, than, "labels"]].sum().to_numpy(dtype=np.float64)
    gains, labels = sums[:, 1] - sums[:, 0], sums[:, 2]
    draws = np.random.default_rng(0).integers(0, len(labels), (10_000, len(labels)))
    means = gains[draws].sum(axis=1) / labels[draws].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return 1e4 * float(gains.sum() / labels.sum()), 1e4 * float(low), 1e4 * float(high)


def main() -> None:
    """Replays twice and prints the gains by symbol and in all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--path", required=True)
    parser.add_argument("--symbols", help="default: all of the file")
    parser.add_argument("--sessions", type=int, default=61)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/pool_replay.json"))
    given = parser.parse_args()
    symbols = given.symbols or ",".join(
        sorted(pd.read_parquet(given.path, columns=["symbol"])["symbol"].unique())
    )
    found: dict[str, float] = {}
    parts = {}
    with tempfile.TemporaryDirectory() as folder:
        for scope in SCOPES:
            begun, used = time.perf_counter(), time.process_time()
            parts[scope] = replayed(
                scope, Path(folder) / scope, given.path, symbols, given.sessions
            )
            found[f"{scope}: seconds"] = time.perf_counter() - begun
            found[f"{scope}: CPU seconds"] = time.process_time() - used
    both = parts["symbol"].join(parts["pool"], how="inner", lsuffix="_symbol", rsuffix="_pool")
    both = both[both["labels_symbol"] == both["labels_pool"]].reset_index()
    both = both.rename(columns={"labels_symbol": "labels"})
    found["symbols"] = float(both["symbol"].nunique())
    found["sessions"] = float(both["session"].nunique())
    found["labels"] = float(both["labels"].sum())
    for name, rows in [("all", both), *((str(x), own) for x, own in both.groupby("symbol"))]:
        pairs = {
            f"{scope} over base": (f"log_loss_{scope}", f"base_log_loss_{scope}")
            for scope in SCOPES
        }
        pairs["pool over symbol"] = ("log_loss_pool", "log_loss_symbol")
        pairs["raw pool over raw symbol"] = ("raw_log_loss_pool", "raw_log_loss_symbol")
        for words, (less, than) in pairs.items():
            mean, low, high = gain(rows, less, than)
            found[f"{name}: {words}, 1e-4 nats"] = mean
            found[f"{name}: {words}, low"] = low
            found[f"{name}: {words}, high"] = high
    show("a replay with a model per symbol beside one with a pool", found, given.out, digits=2)


if __name__ == "__main__":
    main()
