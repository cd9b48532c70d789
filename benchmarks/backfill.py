"""A Dagster backfill of session assets through the daemon: how long, and how much faster by two?

A service of its own is started for each number of runs at once, as `hedge up` does but with its
schedules stopped; the backfill is asked for over the web UI's own interface, cut into runs of some
sessions each (`HEDGE_BACKFILL_SESSIONS`), and runs are worked on so many at a time as the instance
allows. The tables of all of them must be equal. CPU seconds are those of all processes of the
service, the daemon and the UI included. On a machine that others use, too, wall time says little:
so the kernel is asked how long every run waited for a core (`/proc/<pid>/schedstat`), and what the
runs would take on free cores is their wall time without that, laid end to end, so many at once.

The market is simulated, so nothing waits for a network. Without option chains, unless asked for:
simulating those takes longer than everything else.

    python -m benchmarks.backfill --sessions 252 --symbols 31 --run-sessions 63 --at-once 1,2
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import show
from hedge_pipeline.market.calendar import SessionCalendar
from hedge_pipeline.market.tables import FEATURE_ROWS, OUTCOMES, PREDICTION_LOG, RAW_QUOTES
from hedge_pipeline.store import Store

ASSETS = ("raw_quotes", "features", "prediction_log", "outcomes")
CHAINS = ("option_chains", "hedge_levels")
TABLES = (RAW_QUOTES, FEATURE_ROWS, PREDICTION_LOG, OUTCOMES)
START_SECONDS = 120
SERVICE = """\
import sys
from pathlib import Path
from hedge_pipeline import scratch, service
from hedge_pipeline.processes import keep
from hedge_pipeline.settings import load_settings
from dataclasses import asdict

settings, folder = load_settings(), Path(sys.argv[2])
wanted = service.commands(settings, service.Ports(int(sys.argv[1])), folder, headless=False)
del wanted["mlflow"]
service.prepare(service.dagster_home(settings), Path("dagster.yaml"))
commands = {name: asdict(program) for name, program in wanted.items()}
sys.exit(keep(commands, str(folder), [], imported="hedge_pipeline.resources.shared"))
"""
LAUNCH = """
mutation Launch($backfill: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $backfill) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""
STATUS = """
query Status($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill { status error { message } }
  }
}
"""
STEPS = """
query Steps($id: String!) {
  runsOrError(filter: {tags: [{key: "dagster/backfill", value: $id}]}) {
    ... on Runs { results { runId status startTime endTime } }
  }
}
"""


class RunTimes:
    """Samples how long the runs of a service waited for a core, by run, in a thread.

    Only the main thread of a run counts, which does all but some of Arrow's work.
    """

    def __init__(self) -> None:
        self.waited: dict[str, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> RunTimes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.wait(0.5):
            for folder in Path("/proc").glob("[0-9]*"):
                # ended meanwhile, or somebody else's
                with contextlib.suppress(OSError, ValueError, IndexError):
                    name, run_id = (folder / "cmdline").read_text().strip("\0 ").split()[1:3]
                    if name == "__ASSET_JOB":
                        self.waited[run_id] = (
                            int((folder / "schedstat").read_text().split()[1]) / 1e9
                        )


class Ui:
    """The web UI's interface.

    Args:
        port: on loopback.
    """

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/graphql"

    def ask(self, query: str, **variables: Any) -> Any:
        """What the first field of the query answers.

        Raises:
            OSError: nobody answers.
            SystemExit: the question is refused.
        """
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)
        if found.get("errors"):
            raise SystemExit(f"Dagster refuses: {found['errors'][0]['message']}")
        return next(iter(found["data"].values()))

    def wait(self) -> None:
        """Until the code location is loaded.

        Raises:
            SystemExit: it is not within two minutes.
        """
        query = "{ assetNodes { assetKey { path } } }"
        for _ in range(START_SECONDS):
            with contextlib.suppress(OSError, urllib.error.URLError):
                if self.ask(query):
                    return
            time.sleep(1)
        raise SystemExit("the service does not start")


@contextlib.contextmanager
def service(folder: Path, variables: dict[str, str], at_once: int) -> Iterator[Ui]:
    """A service that does nothing by itself.

    Args:
        folder: empty; for home, log and socket.
        variables: settings.
        at_once: runs that the instance lets run at the same time.
    """
    home = folder / "home"
    home.mkdir(parents=True)
    known = Path("dagster.yaml").read_text()
    limited = known
    for limit, found, wanted in (
        ("assets, limit", 2, at_once),
        ("concurrent_runs", 7, 5 + at_once),
    ):
        if f"{limit}: {found}" not in known:
            raise SystemExit(f"dagster.yaml has no '{limit}: {found}' to replace")
        limited = limited.replace(f"{limit}: {found}", f"{limit}: {wanted}")
    (home / "dagster.yaml").write_text(limited)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    sockets = Path(tempfile.mkdtemp(prefix="hedge-"))  # paths of sockets must be short
    with (folder / "service.log").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVICE, str(port), str(sockets)],
            env={**os.environ, "DAGSTER_HOME": str(home), **variables},
            stdout=said,
            stderr=said,
        )
        try:
            ui = Ui(port)
            ui.wait()
            yield ui
        except SystemExit:
            sys.stderr.write((folder / "service.log").read_text()[-3000:])
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
            shutil.rmtree(sockets, ignore_errors=True)


def backfill(
    ui: Ui, labels: Sequence[str], assets: Sequence[str], at_once: int
) -> dict[str, float]:
    """Asks for a backfill, waits for its end.

    Returns:
        `seconds` until the last run ended, `runs`; `working_seconds`, in which at least one run was
        under way: the daemon looks at a backfill every half minute only; `waited_seconds` for a
        core, of all runs; and `free_seconds`, what the runs would take on free cores.

    Raises:
        SystemExit: it fails.
    """
    selection = [{"path": [asset]} for asset in assets]
    begun = time.time()
    launched = ui.ask(LAUNCH, backfill={"assetSelection": selection, "partitionNames": labels})
    if "backfillId" not in launched:
        raise SystemExit(f"no backfill: {launched}")
    with RunTimes() as times:
        while True:
            found = ui.ask(STATUS, id=launched["backfillId"])
            if found["status"] not in ("REQUESTED", "COMPLETING"):
                break
            time.sleep(2)
    runs = ui.ask(STEPS, id=launched["backfillId"])["results"]
    bad = [run["runId"] for run in runs if run["status"] != "SUCCESS"]
    if bad or found["status"] != "COMPLETED_SUCCESS":
        raise SystemExit(f"the backfill ended as {found['status']}, {len(bad)} failed: {found}")
    runs.sort(key=lambda run: float(run["startTime"]))
    taken = [run["endTime"] - run["startTime"] - times.waited.get(run["runId"], 0) for run in runs]
    return {
        "seconds": max(run["endTime"] for run in runs) - begun,
        "runs": float(len(runs)),
        "working_seconds": _covered([(run["startTime"], run["endTime"]) for run in runs]),
        "waited_seconds": sum(times.waited.get(run["runId"], 0) for run in runs),
        "free_seconds": _end_to_end(runs, taken, at_once),
    }


def _end_to_end(runs: Sequence[Any], seconds: Sequence[float], at_once: int) -> float:
    """How long runs of these lengths take, so many at once, in waves as they were asked for.

    A run belongs to the next wave if it began after every run before it had ended.
    """
    total, until = 0.0, float("-inf")
    lanes = [0.0] * at_once
    for run, length in zip(runs, seconds, strict=True):
        if run["startTime"] > until:
            total, lanes = total + max(lanes), [0.0] * at_once
        lanes[lanes.index(min(lanes))] += length
        until = max(until, run["endTime"])
    return total + max(lanes)


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    covered, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        covered += max(0.0, end - max(begin, until))
        until = max(until, end)
    return covered


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(folder: Path, given: argparse.Namespace, at_once: int) -> dict[str, float]:
    """One backfill in a service of its own; the tables are left in `<folder>/data`."""
    labels = SessionCalendar("XNYS").labels[: given.sessions]
    variables = {
        "HEDGE_AUTOSTART": "false",
        "HEDGE_DATA_URL": str(folder / "data"),
        "HEDGE_SYMBOLS": ",".join(f"SIM{number:02d}" for number in range(given.symbols)),
        "HEDGE_SOURCE": "simulated",
        "HEDGE_BACKFILL_SESSIONS": str(given.run_sessions or ""),
        "OPENBLAS_NUM_THREADS": "1",
    }
    used = _cpu_of_children()
    with service(folder, variables, at_once) as ui:
        assets = [*ASSETS, *CHAINS] if given.chains else ASSETS
        found = backfill(ui, labels, assets, at_once)
    used = _cpu_of_children() - used
    count = given.sessions * given.symbols
    return {
        **found,
        "cpu_seconds": used,
        "cpu_ms_per_symbol_session": 1e3 * used / count,
    }


def main() -> None:
    """Runs the backfill once for each number of runs at once and compares the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--sessions", type=int, default=63)
    parser.add_argument("--symbols", type=int, default=31)
    parser.add_argument("--run-sessions", type=int, default=16, help="0 = all in one run")
    parser.add_argument("--at-once", default="1,2", help="runs at the same time")
    parser.add_argument("--chains", action="store_true", help="with option chains and levels")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/backfill.json"))
    given = parser.parse_args()
    found = {
        "sessions": float(given.sessions),
        "symbols": float(given.symbols),
        "sessions_of_a_run": float(given.run_sessions or given.sessions),
    }
    numbers = list(map(int, given.at_once.split(",")))
    with tempfile.TemporaryDirectory() as temporary:
        stores = []
        for number in numbers:
            folder = Path(temporary) / str(number)
            for name, value in measure(folder, given, number).items():
                found[f"{name} ({number} at once)"] = value
            stores.append(Store(str(folder / "data")))
        for store in stores[1:]:
            for table in TABLES:
                columns = [x for x in table.names if x not in ("ingested_at", "decided_at")]
                one, other = (x.read(table, columns=columns) for x in (stores[0], store))
                if not one.equals(other):
                    raise SystemExit(f"{table.name} depends on the number of runs at once")
        rows = len(stores[0].read(RAW_QUOTES, columns=("symbol",)))
        found["bars"] = float(rows)
    for number in numbers[1:]:
        for name in ("seconds", "working_seconds", "free_seconds"):
            first = found[f"{name} ({numbers[0]} at once)"]
            found[f"speed_up_by_{name} ({number} at once)"] = (
                first / found[f"{name} ({number} at once)"]
            )
    show("a backfill through the daemon", found, given.out, digits=2)


if __name__ == "__main__":
    main()
