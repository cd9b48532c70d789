"""From fetched answers to stored predictions: the live loop on the simulated market.

The loop of `poll_market` runs over a regular session at a clock that jumps over every pause, with
a model per symbol, inside a real Dagster run that reports as it does live. What is timed is the
part after the fetch: store the bars, compute their features, predict, store. `cpu_ms_per_poll` is
everything, including the simulated market. Bytes are what Dagster's event log and its
databases grow by, with those of the run itself.

    python -m benchmarks.poll --symbols 1,31,500
"""

import argparse
import datetime as dt
import sqlite3
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import dagster as dg
import numpy as np

from benchmarks.report import show
from hedge_pipeline import stages
from hedge_pipeline.assets.reporting import LiveReport
from hedge_pipeline.jobs import report_interval
from hedge_pipeline.live.loop import Poll, run_loop
from hedge_pipeline.market.sources import MarketSource
from hedge_pipeline.market.tables import PREDICTION_LOG, RAW_QUOTES
from hedge_pipeline.opening import open_deployment
from hedge_pipeline.settings import load_settings
from hedge_pipeline.stages import Deployment

INTERVAL = dt.timedelta(seconds=60)
START = dt.datetime(2026, 3, 4, 14, 30, tzinfo=dt.UTC)
WARM_UP = 5
DAYS = 8
TRAINED = 8
WITH_CHAINS = 31
QUIET = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}


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
    """Milliseconds after the fetch, CPU of a whole poll, bytes in Dagster's database."""
    settings = load_settings(
        HEDGE_DATA_URL=str(folder / "data"),
        HEDGE_SYMBOLS=",".join(f"SIM{number}" for number in range(symbols)),
        HEDGE_SOURCE="simulated",
        HEDGE_CALENDAR="XNYS",
        HEDGE_MODE="live",
        RETRAIN_HOUR="",
    )
    clock = AcceleratedClock(START)
    opened = open_deployment(settings)
    deployment = replace(opened, clock=clock, open_source=lambda: bars_only(opened.source, symbols))
    prepare(deployment)
    seen: list[Poll] = []
    used: list[float] = []

    @dg.op
    def poll_until_the_time_box_ends(context: dg.OpExecutionContext) -> None:
        report = LiveReport(context, deployment, report_interval(INTERVAL))

        def note(poll: Poll) -> None:
            report.add(poll)
            seen.append(poll)
            used.append(time.process_time())

        run_loop(
            deployment,
            run_id="benchmark",
            interval=INTERVAL,
            until=START + dt.timedelta(minutes=polls),
            sleep=clock.sleep,
            report=note,
        )
        report.flush()

    @dg.job
    def poll_market() -> None:
        poll_until_the_time_box_ends()

    @dg.op
    def nothing() -> None:
        """So that the databases are there before anything is counted."""

    @dg.job
    def idle() -> None:
        nothing()

    (folder / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(folder / "dagster")) as instance:
        idle.execute_in_process(instance=instance, run_config=QUIET)
        before = history(folder)
        poll_market.execute_in_process(instance=instance, run_config=QUIET)
    events, files = (np.array(history(folder)) - before) / len(seen)
    seconds = np.array([poll.seconds for poll in seen[WARM_UP:] if poll.predictions])
    thirds = np.array_split(seconds, 3)
    bars, unpredicted = predicted(deployment)
    if unpredicted:
        raise SystemExit(f"{symbols} symbols: {unpredicted} of {bars} bars have no prediction")
    return {
        "bars": float(bars),
        "polls": float(len(seen)),
        "median_ms": float(1e3 * np.median(seconds)),
        "p99_ms": float(1e3 * np.quantile(seconds, 0.99)),
        "last_third_over_first": float(np.median(thirds[2]) / np.median(thirds[0])),
        "cpu_ms_per_poll": 1e3 * (used[-1] - used[WARM_UP]) / (len(used) - 1 - WARM_UP),
        "event_bytes_per_poll": float(events),
        "database_bytes_per_poll": float(files),
    }


def predicted(deployment: Deployment) -> tuple[int, int]:
    """Bars of the polled session, and how many of them no served model answered."""
    label, key = START.date().isoformat(), ["symbol", "bar_ts"]
    bars = deployment.store.read(RAW_QUOTES, [label], columns=key)
    log = deployment.store.read(
        PREDICTION_LOG, [label], columns=[*key, "prediction"], only={"role": ["served"]}
    )
    answered = bars.merge(log[log["prediction"].notna()], on=key)
    return len(bars), len(bars) - len(answered)


def bars_only(source: MarketSource, symbols: int) -> MarketSource:
    """The source; from many symbols on without option chains, as nobody asks for hundreds."""
    if symbols > WITH_CHAINS:
        source.capabilities = replace(source.capabilities, has_chains=False)
    return source


def prepare(deployment: Deployment) -> None:
    """Recent sessions of a few symbols, and a model for every symbol.

    Symbols beyond the first `TRAINED` serve a copy of one of these models: a training takes as long
    as thousands of predictions and is not what is measured here.
    """
    trained = deployment.symbols[:TRAINED]
    teacher = replace(deployment, symbols=trained)
    stages.bootstrap(teacher, stages.history_window(teacher, DAYS))
    for number, symbol in enumerate(deployment.symbols[TRAINED:]):
        card = deployment.shelf.card(trained[number % TRAINED], 1)
        deployment.shelf.put_content(symbol, 1, deployment.shelf.content(card.symbol, 1))
        deployment.shelf.put_card(replace(card, symbol=symbol))
    for symbol in deployment.symbols[TRAINED:]:
        stages.judge(deployment, symbol)


def history(folder: Path) -> tuple[int, int]:
    """Bytes of the stored events, each in every database that has it, and of the databases."""
    events = files = 0
    for path in (folder / "dagster" / "history").rglob("*.db"):
        database = sqlite3.connect(path)
        database.execute("pragma wal_checkpoint(truncate)")
        if path.parent.name == "runs":
            (stored,) = database.execute("select sum(length(event)) from event_logs").fetchone()
            events += stored or 0
        database.close()
        files += path.stat().st_size
    return events, files


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--polls", type=int, default=180)
    parser.add_argument("--symbols", default="1,31")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/poll.json"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    found = {}
    for symbols in map(int, arguments.symbols.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            for name, value in measure(arguments.polls, symbols, Path(folder)).items():
                found[f"{name} ({symbols})"] = value
    show("live loop (symbols)", found, arguments.out)


if __name__ == "__main__":
    main()
