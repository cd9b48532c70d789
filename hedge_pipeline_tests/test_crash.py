"""Killed anywhere and started again: the tables and MLflow end as if nothing had happened."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from hedge_pipeline.market.tables import (
    FEATURE_ROWS,
    GAPS,
    OUTCOMES,
    PERFORMANCE,
    PREDICTION_LOG,
    RAW_QUOTES,
)
from hedge_pipeline.replay import replay
from hedge_pipeline.store import Store
from hedge_pipeline_tests.replays import (
    DEMO_SESSIONS,
    PATIENCE,
    SYMBOLS,
    Demo,
    assert_equal_tables,
    command,
    demo_in,
    environment,
    replay_in,
    sessions_of,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The uninterrupted run that everything is compared with."""
    return demo_in(tmp_path_factory.getbasetemp())


# -- a kill at every write -------------------------------------------------------------------------

SHORT = 6
Put = Callable[..., Any]


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class KillsEveryWriteOnce:
    """Lets the first write of every file end in a kill; the same write succeeds afterwards."""

    def __init__(self, real: Put, how: str) -> None:
        self.real = real
        self.how = how
        self.seen: set[str] = set()

    def __call__(self, store: Store, path: PurePosixPath, content: bytes, *, first: bool) -> Any:
        if str(path) in self.seen:
            return self.real(store, path, content, first=first)
        self.seen.add(str(path))
        if self.how == "with half of the file written":
            Path(path.parent).mkdir(parents=True, exist_ok=True)
            Path(path.parent, f".{path.name}.1.1.tmp").write_bytes(content[: len(content) // 2])
        if self.how == "after the write":
            self.real(store, path, content, first=first)
        raise Killed(path)


@pytest.mark.parametrize("how", ["with half of the file written", "after the write"])
def test_a_replay_killed_at_every_write_ends_with_the_same_tables_and_models(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    kills = KillsEveryWriteOnce(Store._put, how)
    monkeypatch.setattr(
        Store,
        "_put",
        lambda store, path, content, *, first: kills(store, path, content, first=first),
    )
    sessions = sessions_of(replay_in(tmp_path), SHORT)
    survived = 0
    while len(kills.seen) > survived or not survived:
        survived = len(kills.seen)
        try:
            replay(replay_in(tmp_path, ("SIMQ",)), sessions)
        except Killed:
            continue
    monkeypatch.undo()
    # raw_quotes, daily_bars, option_chains, chain_fetches, hedge_levels, features, prediction_log,
    # outcomes, performance, level_evidence and a fold per session; from the fifth on a model, its
    # description and a verdict; in the sixth the trades of its signals
    assert len(kills.seen) == 11 * SHORT + 3 * (SHORT - 4) + 1
    found = replay_in(tmp_path, ("SIMQ",))
    assert_equal_tables(found.store, demo.store, sessions, ["SIMQ"])
    wanted = replay_in(demo.out).shelf
    assert found.shelf.versions("SIMQ") == (1, 2)
    assert found.shelf.content("SIMQ", 2) == wanted.content("SIMQ", 2)
    assert found.shelf.card("SIMQ", 2) == wanted.card("SIMQ", 2)


# -- kill -9 of the real thing ---------------------------------------------------------------------


def _run_until(
    arguments: list[str], cwd: Path, killed_when: Callable[[], bool], **variables: str
) -> int:
    """Starts the command and kills it with SIGKILL at the moment given; returns its exit code."""
    with subprocess.Popen(
        arguments,
        cwd=cwd,
        env=environment(**variables),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and not killed_when():
            if time.monotonic() > deadline:
                process.kill()
                pytest.fail(f"{arguments[2:6]} did not come to an end")
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        return process.wait()


def _finish(arguments: list[str], cwd: Path, **variables: str) -> None:
    done = subprocess.run(
        arguments,
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def _moments(store: Store, progress: list[int], seed: int) -> Iterator[Callable[[], bool]]:
    """Moments to kill at: so many new files after the start, then a random fraction of a second.

    Counting files spreads the kills over the work, however slow the machine is today.
    """
    random_number = random.Random(seed)
    for files in progress:
        wanted = _files(store) + files
        delay = random_number.uniform(0.0, 0.4)
        reached: list[float] = []

        def due(wanted: int = wanted, delay: float = delay, reached: list[float] = reached) -> bool:
            if not reached and _files(store) >= wanted:
                reached.append(time.monotonic())
            return bool(reached) and time.monotonic() - reached[0] >= delay

        yield due


def _files(store: Store) -> int:
    return sum(1 for _ in Path(store.url).rglob("*.parquet"))


def _assert_no_reader_sees_a_temporary_file(out: Path) -> None:
    seen = {x.name for x in out.rglob("*") if x.is_file() and not x.name.startswith(".")}
    assert not [name for name in seen if "tmp" in name]
    store = Store(str(out))
    assert all(
        name.endswith((".json", ".ubj")) or name.startswith(".")
        for symbol in SYMBOLS
        for name in store.names(f"models/{symbol}")
    )


def test_hedge_replay_survives_kill_9_at_random_moments(demo: Demo, tmp_path: Path) -> None:
    out = tmp_path / "out"
    labels = sessions_of(replay_in(out), DEMO_SESSIONS)
    arguments = command(
        *("replay", "--source", "simulated", "--symbols", ",".join(SYMBOLS), "--seed", "7"),
        *("--from", labels[0], "--to", labels[-1], "--out", str(out)),
    )
    moments = _moments(Store(str(out)), [4, 27, 13], seed=11)
    codes = [_run_until(arguments, tmp_path, due) for due in moments]
    assert codes == [-signal.SIGKILL] * 3
    _finish(arguments, tmp_path)
    assert_equal_tables(Store(str(out)), demo.store)
    _assert_no_reader_sees_a_temporary_file(out)
    assert _published(out) == _published(demo.out)
    assert set(_published(out)) == {(symbol, v, str(v)) for symbol in SYMBOLS for v in range(1, 5)}
    mine, theirs = (json.loads((x / "summary.json").read_text()) for x in (out, demo.out))
    for cost in ("seconds", "seconds_training", "peak_rss_mb", "bytes_per_1000_predictions"):
        del mine[cost], theirs[cost]
    assert mine == theirs


def _published(out: Path) -> list[tuple[str, int, str]]:
    """Symbol, MLflow's version number and ours, once per registered version."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    return sorted(
        (version.name.removeprefix("hedge-"), int(version.version), version.tags["hedge.version"])
        for version in client.search_model_versions()
    )


BY_SESSION = (RAW_QUOTES, GAPS, FEATURE_ROWS, PREDICTION_LOG, OUTCOMES)


def test_a_dagster_materialization_survives_kill_9_and_equals_the_replay(
    demo: Demo, tmp_path: Path
) -> None:
    out = demo.copy(tmp_path / "out")
    labels = sessions_of(replay_in(out), DEMO_SESSIONS)[-3:]
    for table in (*BY_SESSION, PERFORMANCE):
        for label in labels:
            shutil.rmtree(out / table.name / f"session={label}", ignore_errors=True)
    home = tmp_path / "dagster_home"
    home.mkdir()
    variables = {
        "DAGSTER_HOME": str(home),
        "HEDGE_MODE": "replay",
        "HEDGE_DATA_URL": str(out),
        "DAGSTER_DISABLE_TELEMETRY": "1",
    }
    arguments = [
        *(sys.executable, "-m", "dagster", "asset", "materialize"),
        *("-m", "hedge_pipeline.definitions"),
        *("--select", "raw_quotes,features,prediction_log,outcomes"),
        *("--partition-range", f"{labels[0]}...{labels[-1]}"),
    ]
    moments = _moments(Store(str(out)), [2, 5], seed=12)
    codes = [_run_until(arguments, tmp_path, due, **variables) for due in moments]
    assert codes == [-signal.SIGKILL] * 2
    _finish(arguments, tmp_path, **variables)
    assert_equal_tables(Store(str(out)), demo.store, tables=BY_SESSION)
    _assert_no_reader_sees_a_temporary_file(out)


# -- SIGKILL before every single change of the disk ------------------------------------------------

KILLED_EVERYWHERE = """
import datetime as dt, os, re, signal, sys
from dataclasses import replace
from pathlib import Path
import exchange_calendars, pandas, pyarrow.parquet
from hedge_pipeline.live.loop import Fetcher, Work, poll
from hedge_pipeline.live.supervision import Heartbeat
from hedge_pipeline.market.tables import RAW_QUOTES
from hedge_pipeline_tests.replays import replay_in

out, notes = Path(sys.argv[1]), Path(sys.argv[2])
BEGUN = dt.datetime(2026, 3, 9, 14, 0, 31, tzinfo=dt.UTC)
LIVE = {"HEDGE_MODE": "live", "HEDGE_HISTORY_START": "2026-03-02"}
CHANGES = {"os.rename": 1, "os.link": 1, "os.remove": 0, "os.mkdir": 0}

opened = replay_in(out, ("SIMQ",), **LIVE)
session = opened.calendar.session_at(BEGUN)
elsewhere = replay_in(notes.parent / "elsewhere", ("SIMQ",), **LIVE)

def work(minutes, opened=opened):
    for minute in minutes:
        now = BEGUN + dt.timedelta(minutes=minute)
        beat = Heartbeat.read(opened.store)
        if beat is None or beat.moment < now:
            deployment = replace(opened, clock=lambda: now)
            poll(deployment, Fetcher(deployment, 20.0), session, Work(deployment))
            Heartbeat("run", now.isoformat(), session.label).write(opened.store)
    opened.store.compact(RAW_QUOTES, session.label)

def kill_at_the_next_new_change(event, arguments):
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        path = arguments[0]
    elif event in CHANGES:
        path = arguments[CHANGES[event]]
    else:
        return
    if str(path).startswith(f"{out}{os.sep}"):
        change = event + " " + re.sub(r"[.]\\d+[.]\\d+[.]tmp$", ".tmp", str(path))
        known = notes.read_text().splitlines() if notes.exists() else []
        if change not in known:
            descriptor = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, f"{change}\\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

work((0, 12), elsewhere)  # imports what the copies need
kills = 0
while True:
    child = os.fork()
    if not child:
        if len(sys.argv) < 4:
            sys.addaudithook(kill_at_the_next_new_change)
        work((0, 12))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    kills += 1
work((13,))  # the next minute completes what the last kill left undone
print(kills)
"""


def killed_everywhere(out: Path, notes: Path, *undisturbed: str) -> int:
    """Polls and compacts in processes that are killed, then once more; how many were killed."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED_EVERYWHERE, str(out), str(notes), *undisturbed],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout)


def test_polls_killed_before_every_change_of_the_disk_end_as_if_nothing_had_happened(
    tmp_path: Path,
) -> None:
    """Before every file that is opened for writing, linked, renamed or removed."""
    out, wanted = tmp_path / "out", tmp_path / "wanted"
    assert killed_everywhere(wanted, tmp_path / "none", "undisturbed") == 0
    kills = killed_everywhere(out, tmp_path / "notes")
    known = (tmp_path / "notes").read_text().splitlines()
    assert kills == len(known) > 30
    assert {line.split()[0] for line in known} == {
        *("open", "os.link", "os.rename", "os.remove", "os.mkdir"),
    }
    tables = (RAW_QUOTES, FEATURE_ROWS, PREDICTION_LOG, OUTCOMES, GAPS)
    assert_equal_tables(Store(str(out)), Store(str(wanted)), tables=tables)
    assert len(Store(str(out)).read(OUTCOMES)) > 0
    _assert_no_reader_sees_a_temporary_file(out)
