"""History by Dagster runs in one process and in several: how much faster, and are the tables equal?

The sessions are cut into ranges, a run of `dagster asset materialize` for each, as many at once as
there are processes. Bars and levels of all ranges come first: features look back one session, so a
range must not overtake the bars of the one before. Every run has the same instance and the same
store; the market is simulated, so nothing waits for a network. Without option chains, unless asked
for: simulating those takes longer than everything else.

    python -m benchmarks.backfill --sessions 40 --symbols 31 --processes 1,2
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import show
from hedge_pipeline.market.calendar import SessionCalendar
from hedge_pipeline.market.tables import FEATURE_ROWS, OUTCOMES, PREDICTION_LOG, RAW_QUOTES
from hedge_pipeline.store import Store

CHAINS = "option_chains,hedge_levels"
WAVES = ("raw_quotes", "features,prediction_log,outcomes")
TABLES = (RAW_QUOTES, FEATURE_ROWS, PREDICTION_LOG, OUTCOMES)


def backfill(
    folder: Path, labels: Sequence[str], symbols: int, processes: int, *, chains: bool
) -> float:
    """Seconds until every range is there.

    Raises:
        SystemExit: a run failed.
    """
    home = folder / "home"
    home.mkdir(parents=True)
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    variables = {
        "DAGSTER_HOME": str(home),
        "HEDGE_DATA_URL": str(folder / "data"),
        "HEDGE_SYMBOLS": ",".join(f"SIM{number:02d}" for number in range(symbols)),
        "HEDGE_SOURCE": "simulated",
    }
    share = -(-len(labels) // processes)
    ranges = [labels[first : first + share] for first in range(0, len(labels), share)]
    begun = time.perf_counter()
    for wave in WAVES:
        assets = f"{wave},{CHAINS}" if chains and wave == WAVES[0] else wave
        logs = [folder / f"{place}.log" for place in range(len(ranges))]
        runs = [
            _materialize(assets, part, variables, log)
            for part, log in zip(ranges, logs, strict=True)
        ]
        if any(list(map(subprocess.Popen.wait, runs))):
            said = "".join(log.read_text()[-1500:] for log in logs)
            raise SystemExit(f"a run of {assets} failed: {said}")
    return time.perf_counter() - begun


def _materialize(
    assets: str, labels: Sequence[str], variables: dict[str, str], log: Path
) -> subprocess.Popen[bytes]:
    dagster = [sys.executable, "-m", "dagster", "asset", "materialize"]
    place = ["-m", "hedge_pipeline.definitions", "--select", assets]
    with log.open("wb") as file:
        return subprocess.Popen(
            [*dagster, *place, "--partition-range", f"{labels[0]}...{labels[-1]}"],
            env={**os.environ, **variables},
            stderr=file,
        )


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Runs the backfill once for each number of processes and compares the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--sessions", type=int, default=40)
    parser.add_argument("--symbols", type=int, default=31)
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--chains", action="store_true", help="with option chains and levels")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/backfill.json"))
    given = parser.parse_args()
    labels = SessionCalendar("XNYS").labels[: given.sessions]
    found = {"sessions": float(given.sessions), "symbols": float(given.symbols)}
    with tempfile.TemporaryDirectory() as temporary:
        stores = []
        for number in map(int, given.processes.split(",")):
            folder = Path(temporary) / str(number)
            used = _cpu_of_children()
            seconds = backfill(folder, labels, given.symbols, number, chains=given.chains)
            used = _cpu_of_children() - used
            found[f"{number}_processes_cpu_ms_per_symbol_session"] = (
                1e3 * used / given.sessions / given.symbols
            )
            found[f"{number}_processes_seconds"] = seconds
            found[f"{number}_processes_sessions_per_minute"] = 60 * given.sessions / seconds
            stores.append(Store(str(folder / "data")))
        for store in stores[1:]:
            for table in TABLES:
                columns = [x for x in table.names if x not in ("ingested_at",)]
                one, other = (x.read(table, columns=columns) for x in (stores[0], store))
                if not one.equals(other):
                    raise SystemExit(f"{table.name} depends on the number of processes")
    first = found[f"{given.processes.split(',')[0]}_processes_seconds"]
    for number in given.processes.split(",")[1:]:
        found[f"speed_up_of_{number}"] = first / found[f"{number}_processes_seconds"]
    show("history by several processes", found, given.out, digits=2)


if __name__ == "__main__":
    main()
