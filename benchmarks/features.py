"""Features: rows per second of whole sessions, and the cost of one new bar.

The grid holds minute bars of a random walk; no source and no store are involved. `batch` computes a
session at once, `one bar` only the newest column, with the totals of the bars before it carried on
as polls do, once early and once late in a long session: what it costs must not depend on how much
came before.

    python -m benchmarks.features
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.report import show
from hedge_pipeline.market.bars import GRID_COLUMNS
from hedge_pipeline.market.features import Bars, LevelGrid, Totals, compute_features, no_previous

SESSION_BARS = 1440
EARLY, LATE = 100, 1400
SYMBOLS = (1, 31, 500)


def random_bars(symbols: int, bars: int) -> Bars:
    """Minute bars of a random walk, float64 [symbols, bars]; no levels of the source."""
    rng = np.random.default_rng(0)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 5e-4, (symbols, bars)), axis=1))
    reach = close * np.abs(rng.normal(0, 2e-4, close.shape))
    arrays = {name: np.full(close.shape, np.nan) for name in GRID_COLUMNS}
    arrays |= {"open": close, "high": close + reach, "low": close - reach, "close": close}
    return Bars(**arrays | {"volume": rng.lognormal(10, 1, close.shape)})


def part(bars: Bars, number: int) -> Bars:
    """The first bars of a session."""
    return Bars(**{name: getattr(bars, name)[:, :number] for name in GRID_COLUMNS})


def seconds(work: Callable[[], object], least: float = 1.0) -> float:
    """Median CPU seconds of a call, over about a second."""
    taken: list[float] = []
    while sum(taken) < least or len(taken) < 3:
        begun = time.process_time()
        work()
        taken.append(time.process_time() - begun)
    return float(np.median(taken))


def measure(symbols: int) -> dict[str, float]:
    """Rows per CPU second of a session of 390 bars, and CPU milliseconds of one new bar."""
    bars = random_bars(symbols, SESSION_BARS)
    found = {}

    def compute(until: int, first: int) -> float:
        seen = part(bars, until)
        levels = LevelGrid.unknown(symbols, until - first)
        previous = no_previous(symbols)
        totals = Totals.of_nothing(symbols).through(seen, first)
        return seconds(
            lambda: compute_features(
                seen,
                previous,
                levels,
                bar_seconds=60,
                session_bars=SESSION_BARS,
                first=first,
                totals=totals,
            )
        )

    found[f"batch_rows_per_second ({symbols})"] = symbols * 390 / compute(390, 0)
    early, late = compute(EARLY, EARLY - 1), compute(LATE, LATE - 1)
    found[f"one_bar_ms ({symbols})"] = 1e3 * early
    found[f"one_bar_rows_per_second ({symbols})"] = symbols / early
    found[f"one_bar_late_over_early ({symbols})"] = late / early
    return found


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/features.json"))
    arguments = parser.parse_args()
    found: dict[str, float] = {}
    for symbols in SYMBOLS:
        found |= measure(symbols)
    show("features (symbols)", found, arguments.out)


if __name__ == "__main__":
    main()
