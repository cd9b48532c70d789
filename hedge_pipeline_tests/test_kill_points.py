"""SIGKILL before the changes of the disk, and before every statement that changes a database.

Of a backup, a restoration, a training, a close, a compaction, a night, option chains that are
polled, runs and ticks and models that are deleted, overrides, and a home that is made ready.

A child process does the work and is killed before the first change it makes that none before it
has reached; the next child begins again. So every point is reached, of the longest works every
second or third (every one by `make long`), and each with whatever the kills before it have left.
In the end everything is as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
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
from hedge_pipeline.replay import MARKER
from hedge_pipeline.service import UNFINISHED_REASON
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
from hedge_pipeline_tests.resources.test_launching import started
from hedge_pipeline_tests.test_storage import (
    backdate,
    events_in,
    mlflow_in,
    some_run,
    ticks_of,
    written_down,
)

pytestmark = pytest.mark.slow

HARNESS = """
import json, os, re, signal, sys
from pathlib import Path

story, out, other, notes = sys.argv[1], *map(Path, sys.argv[2:5])
undisturbed = len(sys.argv) > 5

CHANGES = {"os.rename": 1, "os.link": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0}
FOLDERS = {"os.rename": 3, "os.link": 3, "os.remove": 1, "os.mkdir": 2, "os.rmdir": 1}
NAMES = [  # what has another name every time
    (r"[.]\\d+[.]\\d+[.]tmp$", ".tmp"),
    (r"/snapshots/[.]?[^/]+", "/snapshots/x"),
    (r"/leases/[.]?[^/]+", "/leases/x"),
    (r"/[.]mlflow[.]db[.][^/]+", "/.mlflow.db.x"),
    (r"/objects/[0-9a-f]{2}(/|$).*", "/objects/x"),
    (r"[.]artifact[.]uploading[.].*", "x"),
    (r"(m-)?[0-9a-f]{32}", "id"),
    (r"tmp[a-z0-9_]{8}", "tmp"),
    (r"/[.](databases|dagster.yaml)[.][0-9]+", "/x"),
]

def kill_at_the_next_new_change(event, arguments):
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        path = str(arguments[0])
    elif event in CHANGES:
        path = str(arguments[CHANGES[event]])
        if arguments[FOLDERS[event]] >= 0:  # it is relative to an open folder
            path = os.path.join(os.readlink(f"/proc/self/fd/{arguments[FOLDERS[event]]}"), path)
    elif event == "sqlite3.connect" and story in OF_DATABASES:
        path = str(arguments[0])
    else:
        return
    if path.startswith((f"{out}{os.sep}", f"{other}{os.sep}")):
        before(f"{event} {path}")

def before(change):
    for pattern, name in NAMES:
        change = re.sub(pattern, name, change)
    passed = notes.with_suffix(".passed")
    known = [x for f in (notes, passed) if f.exists() for x in f.read_text().splitlines()]
    if known.count(change) < MOST.get(story, 1):
        dies = len(known) % EVERY.get(story, 1) == 0
        descriptor = os.open(notes if dies else passed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, f"{change}\\n".encode())
        os.close(descriptor)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)

def kill_at_the_next_new_statement():
    import sqlalchemy as sa

    @sa.event.listens_for(sa.engine.Engine, "before_cursor_execute")
    def before_a_statement(connection, cursor, statement, *_):
        words = " ".join(statement.split())
        if re.match("(?i)(insert|update|delete|create|alter|drop|vacuum) ", words):
            before("statement " + re.sub(r"[?, ()]+", " ", words)[:150])

    @sa.event.listens_for(sa.engine.Engine, "commit")
    def before_a_commit(connection):
        known = notes.read_text().splitlines() if notes.exists() else [""]
        before(f"commit after {known[-1].removeprefix('commit after ')}")

OF_DATABASES = {"upkeep", "models", "preparation"}
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

def chains():
    from hedge_pipeline.live.chain_polling import ChainPoller
    for moment in ("14:00:31", "14:20:31"):
        deployment = at(f"2026-03-09T{moment}+00:00")
        opened = deployment.calendar.session_at(deployment.clock())
        poller = ChainPoller(deployment)
        poller.begin(opened)
        poller.advance(opened)
        for _, answer in poller._open.values():
            answer.result()
        poller.advance(opened)

def override(work):
    from hedge_pipeline.stages import StageError
    from hedge_pipeline_tests.replays import replay_in
    try:
        work(replay_in(out, HEDGE_MODE="live"))
    except StageError as error:  # who asks again is told that it is done
        assert "is pinned already" in str(error), error

def pin():
    from hedge_pipeline import control
    override(lambda deployment: control.pin(deployment, "SIMQ", 1, "the newest one is wrong"))

def rollback():
    from hedge_pipeline import control
    def let_go(deployment):
        if deployment.ledger("SIMQ").pinned is not None:
            control.roll_back(deployment, "SIMQ", "it is right again")
    override(let_go)

def upkeep():
    import datetime as dt
    import dagster as dg
    from hedge_pipeline.resources import upkeep
    old = dt.datetime.now(dt.UTC) - dt.timedelta(days=14)
    with dg.DagsterInstance.from_config(str(out)) as instance:
        upkeep.delete_old_runs(instance, out, old)
        upkeep.delete_old_ticks(instance, old)
        upkeep.delete_old_events(instance, out, old)

def models():
    from hedge_pipeline.resources import upkeep
    from hedge_pipeline_tests.replays import replay_in
    from hedge_pipeline_tests.test_storage import mlflow_in
    registry = mlflow_in(out, 1)
    registry.prune(replay_in(out, ("SIMQ",)), "SIMQ")
    if upkeep.has_garbage(registry.tracking_uri):  # as the night asks
        upkeep.collect_garbage(registry.tracking_uri, (out / "mlartifacts").as_uri())

def preparation():
    from hedge_pipeline.service import prepare
    prepare(out, other / "dagster.yaml")

def compaction():
    from hedge_pipeline.stages import compact_session
    compact_session(at("2026-03-09T15:01:00+00:00"), "2026-03-09")

import exchange_calendars, pandas, pyarrow.parquet  # what the copies need
import hedge_pipeline.opening, hedge_pipeline.live.loop, hedge_pipeline_tests.replays
if story in ("upkeep", "preparation"):
    import dagster as dg
    import hedge_pipeline.resources.upkeep
    with dg.DagsterInstance.local_temp():
        pass
if story in ("training", "models"):
    import mlflow.xgboost
    import mlflow.store.tracking.sqlalchemy_store
    import hedge_pipeline.resources.registry

kills = 0
while True:
    child = os.fork()
    if not child:
        if not undisturbed:
            sys.addaudithook(kill_at_the_next_new_change)
            if story in OF_DATABASES:
                kill_at_the_next_new_statement()
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


@pytest.mark.long
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


def test_polled_option_chains_killed_before_every_change_are_as_if_nothing_had_happened(
    polled: Path, tmp_path: Path
) -> None:
    out, wanted, known = disturbed_and_not("chains", polled, tmp_path)
    touched = {line.split(f"{out}/")[1].split("/")[0] for line in known}
    assert touched >= {"option_chains", "chain_fetches", "hedge_levels"}
    assert len(rows_of(Store(str(out)), CHAIN_FETCHES, ["2026-03-09"])) == 2
    assert_same(out, wanted)


def test_overrides_killed_before_every_change_are_made_once(demo: Demo, tmp_path: Path) -> None:
    out = demo.copy(tmp_path / "out")
    (out / MARKER).unlink()
    known = [
        line
        for story in ("pin", "rollback")
        for line in run(story, out, tmp_path / "nowhere", tmp_path / f"{story}.notes")
    ]
    assert sum("promotions" in line for line in known) >= 2
    rows = rows_of(Store(str(out)), PROMOTIONS)
    overrides = rows.loc[rows["kind"] == "override", ["number", "event", "model_version"]]
    assert overrides.to_numpy().tolist() == [[1, "pin", 1], [2, "unpin", 1]]
    others = rows[rows["kind"] != "override"].reset_index(drop=True)
    pd.testing.assert_frame_equal(others, rows_of(demo.store, PROMOTIONS))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A DAGSTER_HOME with the committed configuration."""
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(Path(__file__).parent.parent / "dagster.yaml", folder)
    return folder


@pytest.mark.long
def test_old_runs_and_ticks_killed_before_every_change_go_and_nothing_else_does(
    home: Path, tmp_path: Path
) -> None:
    now = dt.datetime.now(dt.UTC)
    old, young = now - dt.timedelta(days=15), now - dt.timedelta(days=13)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        looks = written_down(instance, "polling_schedule", old)
        written_down(instance, "polling_schedule", young)
        gone, kept = ([some_run(instance) for _ in range(number)] for number in (3, 2))
        instance.report_runless_asset_event(dg.AssetMaterialization("some_asset"))
        runs = home / "history" / "runs"
        for database in (runs / "index.db", runs / ".db"):
            backdate(database, "update event_logs set timestamp = ? where run_id = ''", old)
        for run_id in gone:
            change = "update runs set create_timestamp = ? where run_id = ?"
            backdate(home / "history" / "runs.db", change, old, run_id)
        instance.report_runless_asset_event(dg.AssetMaterialization("some_asset"))
        events = {run_id: len(instance.all_logs(run_id)) for run_id in kept}
    known = run("upkeep", home, tmp_path / "nowhere", tmp_path / "notes")
    named = " ".join(known).lower()
    assert all(x in named for x in ("delete from runs", "delete from job_ticks", "commit after"))
    assert any(line.startswith("os.remove") for line in known)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert {record.dagster_run.run_id for record in instance.get_run_records()} == {*kept}
        assert {run_id: len(instance.all_logs(run_id)) for run_id in kept} == events
        assert len(ticks_of(instance, looks)) == 500
        for run_id in gone:
            assert list(home.rglob(f"{run_id}*")) == []
            assert events_in(home, run_id) == 0
        assert instance.get_latest_materialization_event(dg.AssetKey("some_asset")) is not None
        assert instance.has_run(some_run(instance))


@pytest.mark.long
def test_superfluous_models_killed_before_every_change_go_and_no_others(
    demo: Demo, tmp_path: Path
) -> None:
    """From MLflow's database and its files, by the pruning and by MLflow's own collection."""
    found = []
    for name in ("wanted", "out"):  # MLflow's database names whole paths
        folder = demo.copy(tmp_path / name)
        assert mlflow_in(folder, None).publish(replay_in(folder, ("SIMQ",)), "SIMQ") == 4
        undisturbed = ("undisturbed",) if name == "wanted" else ()
        known = run(
            "models", folder, tmp_path / "nowhere", tmp_path / f"{name}.notes", *undisturbed
        )
        files = sorted(x.name for x in (folder / "mlartifacts").rglob("*") if x.is_file())
        found.append((published(folder), files))
        with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
            assert database.execute("select count(*) from runs").fetchone() == (2,)
            assert database.execute("select count(*) from logged_models").fetchone() == (2,)
    assert len(known) > 20
    assert any(line.startswith("os.remove") and "mlartifacts" in line for line in known)
    assert len(found[0][0]["versions"]) == 2
    assert found[0] == found[1]


def schemas(home: Path) -> dict[str, list[tuple[str, ...]]]:
    """Tables, indices and the revision of every database of Dagster."""
    found = {}
    for path in home.rglob("*.db"):
        with contextlib.closing(sqlite3.connect(path)) as opened:
            made = opened.execute("select type, name, sql from sqlite_master order by 1, 2")
            revision = opened.execute("select version_num from alembic_version")
            known = [*made.fetchall(), *revision.fetchall()]
        found[path.relative_to(home).as_posix()] = known
    return found


@pytest.mark.long
def test_a_home_killed_while_it_is_made_ready_is_made_ready_at_the_next_start(
    tmp_path: Path,
) -> None:
    """From nothing, and one with a run that a crash has left."""
    home, given, wanted = (tmp_path / name for name in ("home", "given", "wanted"))
    for folder in (home, given, wanted):
        folder.mkdir()
    committed = Path(__file__).parent.parent / "dagster.yaml"
    shutil.copy(committed, given)
    run("preparation", wanted, given, tmp_path / "none", "undisturbed")
    known = run("preparation", home, given, tmp_path / "notes")
    assert {line.split()[0] for line in known} >= {"open", "os.rename", "statement", "commit"}
    assert (home / "dagster.yaml").read_bytes() == committed.read_bytes()
    assert schemas(home) == schemas(wanted)
    assert sorted(x.name for x in home.iterdir()) == sorted(x.name for x in wanted.iterdir())
    with dg.DagsterInstance.from_config(str(home)) as instance:
        done, left = some_run(instance), started(instance).run_id
    known = run("preparation", home, given, tmp_path / "more.notes")
    assert any("runs" in line for line in known)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        found = {run_id: instance.get_run_by_id(run_id) for run_id in (done, left)}
        statuses = {run_id: run.status.value if run else "" for run_id, run in found.items()}
        assert statuses == {done: "SUCCESS", left: "FAILURE"}
        said = instance.all_logs(left, of_type=dg.DagsterEventType.RUN_FAILURE)
        assert UNFINISHED_REASON in {event.message for event in said}


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
