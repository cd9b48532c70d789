"""From one option-chain snapshot to one row of hedge levels, in CPU time of one process.

The chain is synthetic: a smile and open interest on a regular grid of expirations and strikes, in
the order of a vendor. What is timed is `levels_of`, and its largest part alone: re-pricing the
whole chain on the grid of spots.

    python -m benchmarks.levels --repeats 30
"""

from __future__ import annotations

import argparse
import datetime as dt
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.report import show
from hedge_pipeline.levels.chain import Chain
from hedge_pipeline.levels.exposure import exposure
from hedge_pipeline.levels.gaps import DailyBars
from hedge_pipeline.levels.snapshot import gated, row_of

if TYPE_CHECKING:
    import pandas as pd

SIZES = (1_000, 14_000)
SPOT = 600.25
AS_OF = dt.datetime(2026, 2, 10, 15, 0, tzinfo=dt.UTC)
DELAY = dt.timedelta(minutes=30)
STRIKES_PER_EXPIRATION = 200


def synthetic_chain(contracts: int) -> pd.DataFrame:
    """Rows of a snapshot; the expirations are the coming Fridays."""
    import pandas as pd

    rng = np.random.default_rng(0)
    place = np.arange(contracts)
    expiration, rest = np.divmod(place, 2 * STRIKES_PER_EXPIRATION)
    side, number = np.divmod(rest, STRIKES_PER_EXPIRATION)
    strike = np.round(SPOT * (0.75 + 0.5 * number / STRIKES_PER_EXPIRATION))
    distance = np.log(strike / SPOT)
    fridays = np.datetime64("2026-02-13") + 7 * np.arange(expiration.max() + 1)
    return pd.DataFrame(
        {
            "expiry": fridays.astype(str)[expiration],
            "strike": strike,
            "right": np.where(side == 0, "C", "P"),
            "open_interest": np.floor(np.exp(rng.normal(5, 1.5, contracts) - 8 * distance**2)),
            "volume": np.floor(np.exp(rng.normal(3, 1.5, contracts))),
            "implied_volatility": 0.2 - 0.3 * distance + distance**2,
            "bid": np.nan,
            "ask": np.nan,
        }
    )


def sixty_sessions() -> DailyBars:
    """Daily bars of a random walk that ends at the spot."""
    rng = np.random.default_rng(1)
    close = np.exp(np.cumsum(0.01 * rng.normal(size=60)))
    close *= SPOT / close[-1]
    return DailyBars(1.004 * close, 0.996 * close, close)


def cpu_milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Median CPU time of the process for one call."""
    taken = []
    for _ in range(repeats):
        begun = time.process_time()
        call()
        taken.append(time.process_time() - begun)
    return 1e3 * float(np.median(taken))


def peak_megabytes(call: Callable[[], object]) -> float:
    """Largest memory that a call holds at once, beyond what was there."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def measure(repeats: int) -> dict[str, float]:
    """CPU milliseconds and megabytes by number of contracts."""
    daily = sixty_sessions()
    found: dict[str, float] = {}
    for contracts in SIZES:
        frame = synthetic_chain(contracts)
        chain = Chain.from_frame(frame, AS_OF)

        def row(frame: pd.DataFrame = frame) -> dict[str, object]:
            read = Chain.from_frame(frame, AS_OF)
            snapshot = gated(read, available_at=AS_OF + DELAY, spot=SPOT)
            return row_of(snapshot, daily=daily)

        def exposures(chain: Chain = chain) -> object:
            return exposure(chain, SPOT)

        if not row()["usable"]:
            raise SystemExit(f"the synthetic chain is {row()['unusable_reason']}")
        label = f"{contracts // 1000}k_contracts"
        found[f"levels_of_cpu_ms_{label}"] = cpu_milliseconds(row, repeats)
        found[f"exposure_cpu_ms_{label}"] = cpu_milliseconds(exposures, repeats)
        found[f"peak_mb_{label}"] = peak_megabytes(row)
    return found


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/levels.json"))
    arguments = parser.parse_args()
    show("hedge levels of one snapshot", measure(arguments.repeats), arguments.out)


if __name__ == "__main__":
    main()
