"""SIGKILL before the changes of the disk: a backup, a restoration, a training, a close, a night.

A child process does the work and is killed before the first change it makes that none before it
has reached; the next child begins again. So every point is reached, of the longest works every
second or third (every one by `make long`), and each with whatever the kills before it have left.
In the end everything is as if nothing had happened.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hedge_pipeline.backup import Repository, verify
from hedge_pipeline.market.tables import (
    CHAIN_FETCHES,
    DAILY_BARS,
    FEATURE_ROWS,
    GAPS,
    HEDGE_LEVELS,
    OPTION_CHAINS,
    OUTCOMES,
    PREDICTION_LOG,
    PROMOTIONS,
    RAW_QUOTES,
)
from hedge_pipeline.store import Store
from hedge_pipeline_tests.replays import (
    PATIENCE,
    Demo,
    assert_equal_tables,
    demo_in,
    environment,
    one_session_of,
    replay_in,
    rows_of,
)

pytestmark = pytest.mark.slow

HARNESS = """
import json, os, re, signal, sys
from pathlib import Path

story, out, other, notes = sys.argv[1], *map(Path, sys.argv[2:5])
undisturbed = len(sys.argv) > 5

CHANGES = {"os.rename": 1, "os.link": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0}
NAMES = [  # what has another name every time
    (r"[.]\\d+[.]\\d+[.]tmp$", ".tmp"),
    (r"/snapshots/[.]?[^/]+", "/snapshots/x"),
    (r"/leases/[.]?[^/]+", "/leases/x"),
    (r"/[.]mlflow[.]db[.][^/]+", "/.mlflow.db.x"),
    (r"/objects/[0-9a-f]{2}(/|$).*", "/objects/x"),
    (r"[.]artifact[.]uploading[.].*", "x"),
    (r"(m-)?[0-9a-f]{32}", "id"),
    (r"tmp[a-z0-9_]{8}", "tmp"),
]

def kill_at_the_next_new_change(event, arguments):
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        path = str(arguments[0])
    elif event in CHANGES:
        path = str(arguments[CHANGES[event]])
    else:
        return
    if path.startswith((f"{out}{os.sep}", f"{other}{os.sep}")):
        for pattern, name in NAMES:
            path = re.sub(pattern, name, path)
        change = f"{event} {path}"
        passed = notes.with_suffix(".passed")
        known = [x for f in (notes, passed) if f.exists() for x in f.read_text().splitlines()]
        if known.count(change) < MOST.get(story, 1):
            dies = len(known) % EVERY.get(story, 1) == 0
            descriptor = os.open(notes if dies else passed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, f"{change}\\n".encode())
            os.close(descriptor)
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)

MOST = {"backup": 3}  # contents have one name here
EVERY = {"restoration": 3, "training": 2, "close": 2}  # for the sake of time
if os.environ.get("EVERY_POINT"):
    EVERY = {}

def backup():
    import datetime as dt
    from hedge_pipeline import backup
    from hedge_pipeline.backup import Places, back_up
    backup.LEASE = dt.timedelta(0)  # as if there were hours between the kills
    back_up(Places(str(out), out / "mlflow.db", out / "dagster_home"), str(other), keep=2)

def restoration():
    from hedge_pipeline.backup import Places, restore
    restore(Places(str(out), out / "mlflow.db", out / "dagster_home"), str(other))

def training():
    from hedge_pipeline.opening import retrain
    from hedge_pipeline_tests.replays import settings_in
    retrain(settings_in(out, ("SIMQ",)), "SIMQ", min_samples=0)

def at(moment):
    import datetime as dt
    from dataclasses import replace
    from hedge_pipeline_tests.replays import replay_in
    live = {"HEDGE_MODE": "live", "HEDGE_HISTORY_START": "2026-03-02"}
    opened = replay_in(out, ("SIMQ",), **live)
    return replace(opened, clock=lambda: dt.datetime.fromisoformat(moment))

def session():
    import datetime as dt
    from hedge_pipeline.live.loop import Fetcher, Work, poll
    from hedge_pipeline.stages import bootstrap, history_window
    deployment = at("2026-03-09T12:00:31+00:00")
    bootstrap(deployment, history_window(deployment, 9))
    for moment in ("14:00:31", "14:01:31", "15:00:31"):
        deployment = at(f"2026-03-09T{moment}+00:00")
        opened = deployment.calendar.session_at(deployment.clock())
        poll(deployment, Fetcher(deployment, 20.0), opened, Work(deployment))

def close():
    from hedge_pipeline.stages import close_session
    close_session(at("2026-03-09T23:30:00+00:00"), "2026-03-09")

def night():
    import datetime as dt
    from hedge_pipeline import storage
    from hedge_pipeline_tests.replays import replay_in
    from hedge_pipeline_tests.test_storage import drift, with_later_models
    drift.RECENT = drift.MOST_REFERENCE = 2  # no old session is needed for that
    deployment = replay_in(out)
    storage.quarantine(deployment)
    storage.condense(deployment)
    storage.forget(with_later_models(deployment, "2024-01-08"), 1)
    storage.sweep(storage.Places(str(out), None, None), "", dt.timedelta(0))

def compaction():
    from hedge_pipeline.stages import compact_session
    compact_session(at("2026-03-09T15:01:00+00:00"), "2026-03-09")

import exchange_calendars, pandas, pyarrow.parquet  # what the copies need
import hedge_pipeline.opening, hedge_pipeline.live.loop, hedge_pipeline_tests.replays
if story == "training":
    import mlflow.xgboost
    import mlflow.store.tracking.sqlalchemy_store
    import hedge_pipeline.resources.registry

kills = 0
while True:
    child = os.fork()
    if not child:
        if not undisturbed:
            sys.addaudithook(kill_at_the_next_new_change)
        globals()[story]()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        break
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    kills += 1
    assert kills < 1000
print(kills)
"""


def run(
    story: str, out: Path, other: Path, notes: Path, *undisturbed: str, every: bool = False
) -> list[str]:
    """Does the work, killed everywhere; the changes before which it was."""
    done = subprocess.run(
        [sys.executable, "-c", HARNESS, story, str(out), str(other), str(notes), *undisturbed],
        env=environment(EVERY_POINT="1" if every else ""),
        capture_output=True,
        text=True,
        timeout=(8 if every else 2) * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    known = notes.read_text().splitlines() if notes.exists() else []
    assert int(done.stdout.split()[-1]) == len(known)
    return known


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return demo_in(tmp_path_factory.getbasetemp())


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.long)], ids=["some", "every"])
def every(request: pytest.FixtureRequest) -> bool:
    """Whether it is killed at every point, or at some of a long work's."""
    return bool(request.param)


@pytest.fixture
def saved(demo: Demo, tmp_path: Path) -> Path:
    """A session of the demo with models and MLflow's database."""
    out = tmp_path / "data"
    one_session_of(demo, out)
    return out


def test_a_backup_killed_before_every_change_loses_no_snapshot_and_doubles_no_content(
    saved: Path, tmp_path: Path
) -> None:
    place = tmp_path / "backup"
    run("backup", saved, place, tmp_path / "none", "undisturbed")
    first = Repository(str(place)).snapshots()
    wanted = verify(str(place))
    Store(str(saved)).write_bytes("note.txt", b"what the second backup adds")
    known = run("backup", saved, place, tmp_path / "notes")
    kinds = {line.split()[0] for line in known}
    assert kinds >= {"open", "os.rename", "os.remove"}
    named = " ".join(known)
    assert all(x in named for x in ("/objects/", "/snapshots/", "/leases/", "operations/backup"))
    found = verify(str(place))
    data = found.files["data"]
    assert {k: v for k, v in data.items() if k != "note.txt"} == wanted.files["data"]
    assert "note.txt" in data
    # at most two snapshots are kept; the earlier one was there until two whole ones were
    kept = Repository(str(place)).snapshots()
    assert len(kept) == 2
    assert kept[-1] > first[0]
    contents = Repository(str(place)).contents()
    needed = {
        f"{file.sha256}{'.gz' if file.packed else ''}"
        for name in kept
        for entries in Repository(str(place)).read(name).files.values()
        for file in entries.values()
    }
    assert set(contents) == needed
    assert [x for x in (place / "leases").iterdir() if x.suffix == ".json"] == []


def test_a_restoration_killed_all_along_ends_whole(
    saved: Path, tmp_path: Path, every: bool
) -> None:
    place, elsewhere = tmp_path / "backup", tmp_path / "elsewhere"
    run("backup", saved, place, tmp_path / "none", "undisturbed")
    known = run("restoration", elsewhere, place, tmp_path / "notes", every=every)
    assert len(known) > (75 if every else 25)
    assert_equal_tables(Store(str(elsewhere)), Store(str(saved)))
    for path in saved.rglob("*"):
        if path.is_file() and path.name not in ("backup.json", "mlflow.db"):
            assert (elsewhere / path.relative_to(saved)).read_bytes() == path.read_bytes()
    assert not (elsewhere / "operations" / "restoring.json").exists()


LEARNT_FROM = (
    RAW_QUOTES,
    DAILY_BARS,
    FEATURE_ROWS,
    OUTCOMES,
    GAPS,
    OPTION_CHAINS,
    CHAIN_FETCHES,
    HEDGE_LEVELS,
)


def test_a_training_killed_all_along_gives_one_version_and_one_verdict(
    demo: Demo, tmp_path: Path, every: bool
) -> None:
    """In the tables and in MLflow, where it is registered once with all its files."""
    out, wanted = tmp_path / "out", tmp_path / "wanted"
    for folder in (out, wanted):
        for table in LEARNT_FROM:
            if (demo.out / table.name).exists():
                shutil.copytree(demo.out / table.name, folder / table.name)
    run("training", wanted, tmp_path / "nowhere", tmp_path / "none", "undisturbed")
    known = run("training", out, tmp_path / "nowhere", tmp_path / "notes", every=every)
    assert any("models/SIMQ" in line for line in known)
    assert any("promotions" in line for line in known)
    assert any("mlartifacts" in line for line in known)
    mine, theirs = replay_in(out, ("SIMQ",)), replay_in(wanted, ("SIMQ",))
    assert mine.shelf.versions("SIMQ") == (1,)
    assert mine.shelf.content("SIMQ", 1) == theirs.shelf.content("SIMQ", 1)
    assert mine.shelf.card("SIMQ", 1) == theirs.shelf.card("SIMQ", 1)
    promotions = [rows_of(x.store, PROMOTIONS).drop(columns="decided_at") for x in (mine, theirs)]
    assert promotions[0].equals(promotions[1])
    assert published(out) == published(wanted)
    assert len(published(out)["versions"]) == 1


def published(out: Path) -> dict[str, Any]:
    """What MLflow shows of the registered versions: tags, aliases, metrics and files."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    versions = {}
    for version in client.search_model_versions():
        found = client.get_run(version.run_id)
        model = client.get_logged_model(str(version.source).rpartition("/")[2])
        folder = Path(str(model.artifact_location).removeprefix("file://"))
        assert folder.is_dir()
        versions[version.version] = {
            "params": found.data.params,
            "metrics": found.data.metrics,
            "files": sorted(x.relative_to(folder).as_posix() for x in folder.rglob("*")),
            "artifacts": sorted(x.path for x in client.list_artifacts(version.run_id)),
        }
    aliases = {x.name: dict(x.aliases) for x in client.search_registered_models()}
    return {"versions": versions, "aliases": aliases}


@pytest.fixture(scope="module")
def polled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session that was polled three times, with a model of the sessions before."""
    folder = tmp_path_factory.mktemp("polled")
    run("session", folder / "data", folder / "nowhere", folder / "none", "undisturbed")
    assert Store(str(folder / "data")).sessions(PREDICTION_LOG)[-1] == "2026-03-09"
    return folder / "data"


def assert_same(out: Path, wanted: Path) -> None:
    assert_equal_tables(Store(str(out)), Store(str(wanted)))
    names = [
        sorted(
            x.relative_to(folder).as_posix()
            for x in folder.rglob("*")
            if x.is_file() and not x.name.startswith(".")
        )
        for folder in (out, wanted)
    ]
    assert names[0] == names[1]


def disturbed_and_not(
    story: str, polled: Path, folder: Path, *, every: bool = False
) -> tuple[Path, Path, list[str]]:
    """Two copies in which the work was done: killed all along, and at one go; and the kills."""
    out, wanted = folder / "out", folder / "wanted"
    for copy in (out, wanted):
        shutil.copytree(polled, copy)
    run(story, wanted, folder / "nowhere", folder / "none", "undisturbed")
    return out, wanted, run(story, out, folder / "nowhere", folder / "notes", every=every)


def test_a_close_killed_all_along_ends_as_if_nothing_had_happened(
    polled: Path, tmp_path: Path, every: bool
) -> None:
    out, wanted, known = disturbed_and_not("close", polled, tmp_path, every=every)
    touched = {line.split(f"{out}/")[1].split("/")[0] for line in known}
    assert touched >= {"raw_quotes", "features", "prediction_log", "outcomes", "promotions"}
    assert touched >= {"performance", "live"}
    assert_same(out, wanted)
    assert json.loads((out / "live" / "closed.json").read_bytes())


def test_a_compaction_killed_before_every_change_loses_and_doubles_no_row(
    polled: Path, tmp_path: Path
) -> None:
    out, wanted, known = disturbed_and_not("compaction", polled, tmp_path)
    assert {line.split()[0] for line in known} >= {"open", "os.rename", "os.remove"}
    assert_equal_tables(Store(str(out)), Store(str(polled)))
    assert_same(out, wanted)
    parts = list((out / "prediction_log" / "session=2026-03-09").glob("*.parquet"))
    assert len(parts) == 1


@pytest.mark.long
def test_a_night_killed_before_every_change_ends_as_if_nothing_had_happened(
    demo: Demo, tmp_path: Path
) -> None:
    """A broken part is moved aside, tables are summed up, old sessions go, leftovers are swept."""
    kept = demo.copy(tmp_path / "kept")
    broken = next((kept / "prediction_log").rglob("part-*.parquet"))
    broken.write_bytes(broken.read_bytes()[:-8])
    for path in kept.rglob("part-*.parquet"):  # of days ago: what no append takes is summed up
        os.utime(path, (time.time() - 2e5, time.time() - 2e5))
    out, wanted, known = disturbed_and_not("night", kept, tmp_path)
    touched = {line.split(f"{out}/")[1].split("/")[0] for line in known}
    assert touched >= {"prediction_log", "quarantined", "promotions", "raw_quotes", "operations"}
    # not the same files: what was just compacted is young, and summed up a day later
    assert_equal_tables(Store(str(out)), Store(str(wanted)))
    store = Store(str(out))
    assert store.quarantined() == Store(str(wanted)).quarantined()
    assert "2024-01-02" not in store.sessions(RAW_QUOTES)
    assert not list(out.rglob("*.tmp"))
