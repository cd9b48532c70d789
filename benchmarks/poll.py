"""From a fetched answer to a stored prediction: the live loop on the simulated market.

The loop runs at an accelerated clock on a market that is always open, with a model, through the
same code as `poll_market`. What is timed is the part after the fetch: store the bar, compute its
features, predict both streams, store them.

    python -m benchmarks.poll --polls 200 --symbols 1
"""

from __future__ import annotations

import argparse
import datetime as dt
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.report import show
from hedge_pipeline import stages
from hedge_pipeline.live.loop import Poll, run_loop
from hedge_pipeline.opening import open_deployment
from hedge_pipeline.settings import load_settings

START = dt.datetime(2026, 3, 4, tzinfo=dt.UTC)


class AcceleratedClock:
    """A clock that runs with the machine's and jumps over every pause."""

    def __init__(self, start: dt.datetime) -> None:
        self._offset = start.timestamp() - time.time()

    def __call__(self) -> dt.datetime:
        """The time now."""
        return dt.datetime.fromtimestamp(time.time() + self._offset, dt.UTC)

    def sleep(self, seconds: float) -> None:
        """Passes at once."""
        self._offset += seconds


def measure(polls: int, symbols: int, folder: Path) -> dict[str, float]:
    """Milliseconds after the fetch, and CPU milliseconds of a whole poll."""
    names = ",".join(f"SIM{number}" for number in range(symbols))
    settings = load_settings(
        HEDGE_DATA_URL=str(folder),
        HEDGE_SYMBOLS=names,
        HEDGE_SOURCE="simulated",
        HEDGE_CALENDAR="24/7",
        HEDGE_MODE="live",
        RETRAIN_HOUR="",
    )
    clock = AcceleratedClock(START)
    deployment = replace(open_deployment(settings), clock=clock)
    stages.bootstrap(deployment, stages.history_window(deployment, 6))
    seen: list[Poll] = []
    begun = time.process_time()
    run_loop(
        deployment,
        run_id="benchmark",
        interval=dt.timedelta(seconds=60),
        until=START + dt.timedelta(minutes=polls),
        sleep=clock.sleep,
        report=seen.append,
    )
    cpu = time.process_time() - begun
    seconds = np.array([poll.seconds for poll in seen[5:] if poll.predictions])
    return {
        "polls": float(len(seen)),
        "median_ms": float(1e3 * np.median(seconds)),
        "p99_ms": float(1e3 * np.quantile(seconds, 0.99)),
        "cpu_ms_per_poll": 1e3 * cpu / len(seen),
        "first_hundred_median_ms": float(1e3 * np.median(seconds[:100])),
        "last_hundred_median_ms": float(1e3 * np.median(seconds[-100:])),
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--polls", type=int, default=200)
    parser.add_argument("--symbols", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/poll.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments.polls, arguments.symbols, Path(folder))
    show(f"live loop, {arguments.symbols} symbols", found, arguments.out)


if __name__ == "__main__":
    main()
