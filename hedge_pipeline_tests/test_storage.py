"""What a year leaves behind is freed, and nothing that is still needed."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
    TickData,
    TickStatus,
)

from hedge_pipeline import control, stages, storage
from hedge_pipeline.backup import Places
from hedge_pipeline.learning import drift
from hedge_pipeline.learning.ledger import Ledger
from hedge_pipeline.learning.training import TrainingPlan
from hedge_pipeline.market.tables import PERFORMANCE, PREDICTION_LOG, PROMOTIONS, RAW_QUOTES
from hedge_pipeline.resources import housekeeping, upkeep
from hedge_pipeline.resources.registry import MlflowRegistry, RegistryError, kept_versions
from hedge_pipeline.settings import load_settings
from hedge_pipeline.stages import Deployment
from hedge_pipeline_tests.databases import Postgres, free_port, postgres
from hedge_pipeline_tests.replays import Demo, demo_in, environment, replay_in
from hedge_pipeline_tests.runs import loop_at

__all__ = ["postgres"]  # a fixture
PATIENCE = 60.0

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return demo_in(tmp_path_factory.getbasetemp())


# -- tables ----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drift is looked for in four sessions instead of 65."""
    monkeypatch.setattr(drift, "RECENT", 2)
    monkeypatch.setattr(drift, "MOST_REFERENCE", 2)


def with_later_models(deployment: Deployment, first: str) -> Deployment:
    """As if the serving models had been trained on later sessions, with a short window."""
    for symbol in deployment.symbols:
        version = deployment.ledger(symbol).accepted[-1]
        card = deployment.shelf.card(symbol, version)
        content = replace(card, first_session=first).to_json()
        deployment.store.write_bytes(f"models/{symbol}/{version:06d}.json", content)
    fresh = replay_in(Path(deployment.store.url), deployment.symbols)
    return replace(fresh, plan=TrainingPlan(window_sessions=4))


def test_what_the_serving_model_was_trained_on_is_never_forgotten(
    demo: Demo, tmp_path: Path
) -> None:
    deployment = replay_in(demo.copy(tmp_path / "out"))
    assert storage.needed_from(deployment) == "2024-01-02"
    assert storage.forget(deployment, 1) == {"sessions": 0, "bytes": 0}


def test_old_sessions_go_and_the_next_training_uses_what_it_would_have_used(
    demo: Demo, tmp_path: Path
) -> None:
    deployment = with_later_models(replay_in(demo.copy(tmp_path / "out")), "2024-01-08")
    store, state = deployment.store, deployment.ledger("SIMQ").state
    before = stages.training_window(deployment, "SIMQ", state)
    pending = stages.pending_sessions(deployment)
    promotions, scores = store.read(PROMOTIONS), store.read(PERFORMANCE)
    size = sum(store.size(table) for table in storage.FORGOTTEN)
    done = storage.forget(deployment, 1)
    # trained from 2024-01-08 on, and the features of that session look at the one before
    assert store.sessions(RAW_QUOTES)[0] == "2024-01-05"
    assert done["sessions"] == 3
    assert done["bytes"] == size - sum(store.size(table) for table in storage.FORGOTTEN) > 0
    assert not list(tmp_path.glob("out/raw_quotes/session=2024-01-02"))
    again = with_later_models(deployment, "2024-01-08")
    assert stages.training_window(again, "SIMQ", state) == before
    assert store.read(PROMOTIONS).equals(promotions)
    assert store.read(PERFORMANCE).equals(scores)
    assert stages.pending_sessions(again) == pending
    assert storage.forget(again, 1)["sessions"] == 0


def test_what_was_forgotten_does_not_make_the_evidence_look_false(
    demo: Demo, tmp_path: Path
) -> None:
    deployment = with_later_models(replay_in(demo.copy(tmp_path / "out")), "2024-01-08")
    whole = control.rebuild_evidence(deployment, "SIMQ")
    storage.forget(deployment, 1)
    found = control.rebuild_evidence(with_later_models(deployment, "2024-01-08"), "SIMQ")
    assert whole.forgotten == 0
    assert found == replace(whole, sessions=whole.sessions - 3, forgotten=3)
    # a session whose rows merely vanished is another matter
    deployment.store.drop(PREDICTION_LOG, "2024-01-11")
    differs = control.rebuild_evidence(with_later_models(deployment, "2024-01-08"), "SIMQ").differs
    assert differs == "2024-01-11"


def test_rows_younger_than_asked_for_stay(demo: Demo, tmp_path: Path) -> None:
    deployment = with_later_models(replay_in(demo.copy(tmp_path / "out")), "2024-01-10")
    at = dt.datetime(2024, 1, 12, tzinfo=dt.UTC)
    storage.forget(replace(deployment, clock=lambda: at), 8)
    assert deployment.store.sessions(PREDICTION_LOG)[0] == "2024-01-04"


def test_without_any_evidence_nothing_is_forgotten(demo: Demo, tmp_path: Path) -> None:
    deployment = replay_in(demo.copy(tmp_path / "out"), ("SIMQ", "NEW"))
    assert storage.needed_from(deployment) is None
    assert storage.forget(deployment, 1)["sessions"] == 0
    settings = load_settings(HEDGE_RETENTION_DAYS="1")
    told = housekeeping._forgotten(deployment, settings)
    assert told == "0 sessions, 0.0 MB removed; nothing is, before NEW has a judged model"


def test_the_report_counts_every_byte_and_says_what_is_too_much(demo: Demo, tmp_path: Path) -> None:
    out = demo.copy(tmp_path / "out")
    places = Places(str(out), out / "mlflow.db", tmp_path / "home")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "x.db").write_bytes(bytes(2_000_000))
    (out / "mlflow.db").write_bytes(bytes(1_000_000))
    found = storage.report(replay_in(out), places, 1)
    assert found["areas"]["dagster"] == 2_000_000
    assert found["areas"]["mlflow"] == 1_000_000
    assert found["areas"]["tables"] == sum(x.stat().st_size for x in out.rglob("*.parquet"))
    assert found["total_bytes"] == sum(found["areas"].values())
    trouble = str(storage.trouble(found))
    assert "HEDGE_DISK_BUDGET_MB is 1: set or lower HEDGE_RETENTION_DAYS, or raise" in trouble
    assert storage.trouble(found | {"budget_bytes": None, "free_share": 0.5}) is None
    assert "make room" in str(storage.trouble(found | {"budget_bytes": None, "free_share": 0.01}))


def test_a_journal_that_vanishes_while_it_is_measured_does_not_count(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = demo.copy(tmp_path / "out")
    for name in ("mlflow.db", "mlflow.db-wal"):
        (out / name).write_bytes(bytes(1_000_000))
    is_file = Path.is_file

    def is_there_for_the_last_time(path: Path) -> bool:
        found = is_file(path)
        if path.name == "mlflow.db-wal":
            path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Path, "is_file", is_there_for_the_last_time)
    found = storage.report(replay_in(out), Places(str(out), out / "mlflow.db", None), 1)
    assert found["areas"]["mlflow"] == 1_000_000


def aged(out: Path) -> None:
    """As if every file of the promotion log and the scores had been written two days ago."""
    then = time.time() - 2 * 86_400
    for name in ("promotions", "performance"):
        for path in (out / name).rglob("*.parquet"):
            os.utime(path, (then, then))


def test_a_night_leaves_one_file_a_session_and_the_same_log(demo: Demo, tmp_path: Path) -> None:
    out = demo.copy(tmp_path / "out")
    known, symbols = replay_in(out), ("SIMQ", "SIMN")
    before = {symbol: known.ledger(symbol).entries for symbol in symbols}
    scores, log = known.store.read(PERFORMANCE), known.store.read(PROMOTIONS)
    folders = [x for x in (out / "promotions").iterdir() if len(list(x.iterdir())) > 1]
    assert len(folders) >= 3
    aged(out)
    assert storage.condense(known)["promotions"] == len(known.store.sessions(PROMOTIONS))
    assert all(len(list(folder.iterdir())) == 1 for folder in (out / "promotions").iterdir())
    for deployment in (known, replay_in(out)):
        pd.testing.assert_frame_equal(deployment.store.read(PERFORMANCE), scores)
        pd.testing.assert_frame_equal(deployment.store.read(PROMOTIONS), log)
        for symbol in symbols:
            pd.testing.assert_frame_equal(deployment.ledger(symbol).entries, before[symbol])
            assert control.rebuild_evidence(deployment, symbol).differs is None
            assert stages.judge(deployment, symbol) == []
    entry = dict(log.iloc[0])
    assert not stages.append_entry(known, str(entry["session"]), entry)


def test_an_entry_that_comes_late_to_an_old_session_is_seen(demo: Demo, tmp_path: Path) -> None:
    out = demo.copy(tmp_path / "out")
    aged(out)
    known = replay_in(out)
    storage.condense(known)
    accepted = known.ledger("SIMQ").accepted
    oldest = known.store.sessions(PROMOTIONS)[0]
    verdicts = known.store.read(PROMOTIONS, symbols=["SIMQ"], only={"kind": ["verdict"]})
    late = {**verdicts.iloc[0], "session": oldest, "model_version": 99, "event": "hold"}
    assert stages.append_entry(replay_in(out), oldest, late)
    for deployment in (known, replay_in(out)):
        assert deployment.ledger("SIMQ").accepted == (*accepted, 99)
    storage.condense(known)  # the entry is young: its session is left alone
    assert replay_in(out).ledger("SIMQ").accepted == (*accepted, 99)


def test_the_bytes_of_the_last_night_are_told_with_their_time(demo: Demo, tmp_path: Path) -> None:
    out = demo.copy(tmp_path / "out")
    deployment, places = replay_in(out), Places(str(out), None, None)
    measured, moment = storage.table_bytes(deployment.store)
    assert moment is None
    fresh = storage.report(deployment, places, None)
    storage.note_sizes(deployment, places)
    deployment.store.drop(PREDICTION_LOG, deployment.store.sessions(PREDICTION_LOG)[0])
    told, moment = storage.table_bytes(deployment.store)
    assert told == measured
    assert moment is not None and dt.datetime.fromisoformat(moment).tzinfo is not None
    assert storage.report(deployment, places, None, noted=True)["areas"] == fresh["areas"]
    now = storage.report(deployment, places, None)["areas"]
    assert now["tables"] < fresh["areas"]["tables"]
    for days in (-3, 3):  # nights that never came must not hide how the tables grow
        now_is = deployment.clock() + dt.timedelta(days=days)
        later = replace(deployment, clock=partial(lambda x: x, now_is))
        assert storage.report(later, places, None, noted=True)["areas"]["tables"] == now["tables"]
    whole = deployment.store.read_bytes(storage.SIZES)
    for length in range(0, len(whole), 7):
        deployment.store.write_bytes(storage.SIZES, whole[:length])
        assert storage.table_bytes(deployment.store)[1] is None, length


# -- Dagster ---------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(REPOSITORY / "dagster.yaml", folder)
    return folder


@pytest.fixture
def instance(home: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(home)) as opened:
        yield opened


@dg.asset
def some_asset() -> None:
    """Materialized by every run of these tests."""


def some_run(instance: dg.DagsterInstance) -> str:
    result = dg.materialize([some_asset], instance=instance)
    assert result.success
    return result.run_id


def events_in(home: Path, run_id: str) -> int:
    with contextlib.closing(sqlite3.connect(home / "history" / "runs" / "index.db")) as index:
        found = index.execute("select count(*) from event_logs where run_id = ?", (run_id,))
        return int(found.fetchone()[0])


def test_an_old_run_leaves_neither_record_nor_event_nor_file(
    instance: dg.DagsterInstance, home: Path
) -> None:
    old = [some_run(instance) for _ in range(2)]
    for run_id in old:
        (home / "storage" / run_id / "compute_logs").mkdir(parents=True)
    between = dt.datetime.now(dt.UTC)
    young = some_run(instance)
    assert all(list(home.rglob(f"{run_id}*")) for run_id in old)
    assert upkeep.delete_old_runs(instance, home, between) == 2
    for run_id in old:
        assert not instance.has_run(run_id)
        assert events_in(home, run_id) == 0
        assert list(home.rglob(f"{run_id}*")) == []
    assert instance.has_run(young)
    assert events_in(home, young) > 0
    assert list(home.rglob(f"{young}.db"))


def test_a_run_that_is_under_way_is_left_alone(instance: dg.DagsterInstance, home: Path) -> None:
    run = instance.create_run_for_job(
        dg.Definitions(assets=[some_asset]).resolve_implicit_global_asset_job_def(),
        status=dg.DagsterRunStatus.STARTED,
    )
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    assert upkeep.delete_old_runs(instance, home, later) == 0
    assert instance.has_run(run.run_id)


def test_a_deletion_killed_between_record_and_file_is_finished_by_the_next(
    instance: dg.DagsterInstance, home: Path
) -> None:
    run_id = some_run(instance)
    instance.delete_run(run_id)
    assert list(home.rglob(f"{run_id}.db"))
    upkeep.delete_old_runs(instance, home, dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
    assert list(home.rglob(f"{run_id}*")) == []


def test_events_without_a_run_are_really_freed(instance: dg.DagsterInstance, home: Path) -> None:
    text = dg.MetadataValue.text("x" * 20_000)
    for _ in range(30):
        event = dg.AssetMaterialization("some_asset", metadata={"text": text})
        instance.report_runless_asset_event(event)
    between = dt.datetime.now(dt.UTC)
    instance.report_runless_asset_event(dg.AssetMaterialization("some_asset"))
    index = home / "history" / "runs" / "index.db"
    assert upkeep.delete_old_events(instance, home, dt.datetime(2020, 1, 1, tzinfo=dt.UTC)) == 0
    before = index.stat().st_size
    assert upkeep.delete_old_events(instance, home, between) == 60  # in two databases
    assert index.stat().st_size < before - 500_000
    assert instance.get_latest_materialization_event(dg.AssetKey("some_asset")) is not None


def checked(instance: dg.DagsterInstance, passed: bool) -> None:
    key = dg.AssetKey("some_asset")
    instance.report_runless_asset_event(dg.AssetCheckEvaluation(key, "some_check", passed))


def states_of(instance: dg.DagsterInstance) -> list[bool]:
    """Of the check, newest first."""
    key = dg.AssetCheckKey(dg.AssetKey("some_asset"), "some_check")
    found = instance.event_log_storage.get_asset_check_execution_history(key, limit=100)
    return [x.evaluation is not None and x.evaluation.passed for x in found]


def test_of_old_states_of_a_check_the_newest_stays(
    instance: dg.DagsterInstance, home: Path
) -> None:
    for _ in range(5):
        checked(instance, False)
    checked(instance, True)
    later = dt.datetime.now(dt.UTC)
    upkeep.delete_old_events(instance, home, dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
    assert len(states_of(instance)) == 6
    upkeep.delete_old_events(instance, home, later)
    assert states_of(instance) == [True]
    checked(instance, False)
    upkeep.delete_old_events(instance, home, later)
    assert states_of(instance) == [False]


def ticks_of(instance: dg.DagsterInstance, state: InstigatorState) -> list[float]:
    found = instance.get_ticks(state.instigator_origin_id, state.selector_id)
    return [tick.timestamp for tick in found]


def written_down(instance: dg.DagsterInstance, name: str, at: dt.datetime) -> InstigatorState:
    """Five hundred looks of a schedule within five hundred minutes, as the daemon records them."""
    origin = RemoteInstigatorOrigin(
        RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("hedge_pipeline"), "__repository__"),
        name,
    )
    state = InstigatorState(
        origin,
        InstigatorType.SCHEDULE,
        InstigatorStatus.DECLARED_IN_CODE,
        ScheduleInstigatorData("* * * * *"),
    )
    known = {x.instigator_origin_id for x in instance.all_instigator_state()}
    if state.instigator_origin_id not in known:
        instance.add_instigator_state(state)
    for minute in range(500):
        instance.create_tick(
            TickData(
                state.instigator_origin_id,
                name,
                InstigatorType.SCHEDULE,
                TickStatus.SKIPPED,
                (at + dt.timedelta(minutes=minute)).timestamp(),
                skip_reason="closed, the next session opens on Monday " * 10,
                selector_id=state.selector_id,
            )
        )
    return state


def backdate(database: Path, statement: str, at: dt.datetime, *values: str) -> None:
    moment = at.astimezone(dt.UTC).replace(tzinfo=None).isoformat(sep=" ")
    with contextlib.closing(sqlite3.connect(database)) as opened, opened:
        assert opened.execute(statement, (moment, *values)).rowcount > 0


def size(path: Path) -> int:
    """Bytes of an SQLite file with what SQLite has put beside it."""
    return sum(x.stat().st_size for x in path.parent.glob(f"{path.name}*"))


def test_the_nightly_job_frees_what_is_older_than_the_setting_on_sqlite(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ticks, run records, event files, compute logs and events without a run: the disk has it."""
    lines = (home / "dagster.yaml").read_text().splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("compute_logs:"))
    del lines[begin : begin + 3]  # Dagster's own default writes them
    (home / "dagster.yaml").write_text("\n".join(lines))
    for name, value in {"HEDGE_DATA_URL": str(tmp_path / "data"), "HEDGE_MODE": "replay"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HEDGE_RUN_RETENTION_DAYS", "14")
    now = dt.datetime.now(dt.UTC)
    old, young = now - dt.timedelta(days=15), now - dt.timedelta(days=13)
    runs = home / "history" / "runs"
    databases = {
        "ticks": home / "schedules" / "schedules.db",
        "runs": home / "history" / "runs.db",
        "index": runs / "index.db",
        "runless": runs / ".db",
    }
    with dg.DagsterInstance.from_config(str(home)) as instance:
        polling = written_down(instance, "polling_schedule", old)
        renamed = written_down(instance, "a_schedule_of_an_earlier_version", old)
        written_down(instance, "polling_schedule", young)
        gone, kept = ([some_run(instance) for _ in range(number)] for number in (30, 2))
        assert all(list((home / "storage" / x / "compute_logs").iterdir()) for x in gone)
        text = dg.MetadataValue.text("x" * 5_000)
        for _ in range(100):
            event = dg.AssetMaterialization("some_asset", metadata={"text": text})
            instance.report_runless_asset_event(event)
        for name in ("index", "runless"):
            backdate(databases[name], "update event_logs set timestamp = ? where run_id = ''", old)
        for run_id in gone:
            backdate(
                databases["runs"],
                "update runs set create_timestamp = ? where run_id = ?",
                old,
                run_id,
            )
        instance.report_runless_asset_event(dg.AssetMaterialization("some_asset"))
        before = {name: size(path) for name, path in databases.items()}
        whole = sum(x.stat().st_size for x in home.rglob("*") if x.is_file())

        work = dict(housekeeping.steps(instance, loop_at(now.isoformat())))
        said = {name: work[name]() for name in ("runs", "ticks", "events")}

        assert said["runs"] == "30 deleted"
        assert said["events"] == "200 deleted"  # in two databases
        assert said["ticks"] == "old ones of 2 schedules and sensors deleted"
        assert instance.get_runs_count() == 2
        for run_id in gone:
            assert list(home.rglob(f"{run_id}*")) == []
            assert events_in(home, run_id) == 0
        for run_id in kept:
            assert events_in(home, run_id) > 0
            assert len(list(home.rglob(f"{run_id}*"))) >= 2
        assert len(ticks_of(instance, polling)) == 500
        assert min(ticks_of(instance, polling)) >= young.timestamp()
        assert ticks_of(instance, renamed) == []
        after = {name: size(path) for name, path in databases.items()}
        for name in databases:
            assert after[name] < before[name], name
        assert after["ticks"] < before["ticks"] / 2
        assert after["runless"] < before["runless"] / 4
        left = sum(x.stat().st_size for x in home.rglob("*") if x.is_file())
        assert left < whole / 3
        # what is left works
        assert instance.has_run(some_run(instance))


def test_events_without_a_run_are_deleted_on_postgres_too(
    tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in postgres.variables.items():
        monkeypatch.setenv(name, value)
    home = postgres.home(tmp_path / "home")
    (home / "history" / "runs").mkdir(parents=True)
    (home / "history" / "runs" / "index.db").touch()
    with dg.DagsterInstance.from_config(str(home)) as instance:
        run_id = some_run(instance)
        said = len(instance.all_logs(run_id))
        for _ in range(30):
            instance.report_runless_asset_event(dg.AssetMaterialization("some_asset"))
        between = dt.datetime.now(dt.UTC)
        instance.report_runless_asset_event(dg.AssetMaterialization("some_asset"))
        assert upkeep.delete_old_events(instance, home, dt.datetime(2020, 1, 1, tzinfo=dt.UTC)) == 0
        assert upkeep.delete_old_events(instance, home, between) == 30
        assert upkeep.delete_old_events(instance, home, between) == 0
        for passed in (False, True):
            checked(instance, passed)
        assert upkeep.delete_old_events(instance, home, dt.datetime.now(dt.UTC)) > 0
        assert states_of(instance) == [True]
        assert len(instance.all_logs(run_id)) == said > 0
        assert instance.get_latest_materialization_event(dg.AssetKey("some_asset")) is not None


# -- MLflow ----------------------------------------------------------------------------------------


def mlflow_in(out: Path, newest: int | None) -> MlflowRegistry:
    return MlflowRegistry(
        f"sqlite:///{out}/mlflow.db",
        artifacts=(out / "mlartifacts").as_uri(),
        plots=False,
        newest=newest,
    )


@pytest.mark.slow
def test_superfluous_versions_leave_mlflow_with_their_files_and_do_not_come_back(
    demo: Demo, tmp_path: Path
) -> None:
    out = demo.copy(tmp_path / "out")
    deployment = replay_in(out, ("SIMQ",))
    assert mlflow_in(out, None).publish(deployment, "SIMQ") == 4
    models = sorted((out / "mlartifacts").rglob("*.ubj"))
    assert len(models) == 4
    registry = mlflow_in(out, 1)
    aliases = registry.client.get_registered_model("hedge-SIMQ").aliases
    assert registry.prune(deployment, "SIMQ") == 2  # the baseline and the newest stay
    assert upkeep.collect_garbage(registry.tracking_uri, (out / "mlartifacts").as_uri())
    again = mlflow_in(out, 1)
    assert again.versions("SIMQ") == {1, 4}
    assert again.publish(deployment, "SIMQ") == 0
    assert again.prune(deployment, "SIMQ") == 0
    assert len(sorted((out / "mlartifacts").rglob("*.ubj"))) == 2
    assert len(sorted((out / "mlartifacts").rglob("model_card.json"))) == 2
    assert again.client.get_registered_model("hedge-SIMQ").aliases == aliases
    with contextlib.closing(sqlite3.connect(out / "mlflow.db")) as database:
        assert database.execute("select count(*) from runs").fetchone() == (2,)


PUBLISH = """
import sys
from pathlib import Path
from hedge_pipeline_tests.replays import replay_in
from hedge_pipeline_tests.test_storage import mlflow_in
registry = mlflow_in(Path(sys.argv[1]), None)
print(registry.client and "ready", flush=True)
sys.stdin.readline()
print(registry.publish(replay_in(Path(sys.argv[1]), ("SIMQ",)), "SIMQ"))
"""


@pytest.mark.slow
def test_what_two_processes_publish_at_once_is_there_once(demo: Demo, tmp_path: Path) -> None:
    """As a close and a training that end at the same time."""
    out = demo.copy(tmp_path / "out")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISH, str(out)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    assert sorted(said) == ["0\n", "4\n"]
    found = mlflow_in(out, None).client.search_model_versions("name='hedge-SIMQ'")
    assert sorted(version.tags["hedge.version"] for version in found) == ["1", "2", "3", "4"]
    assert len(sorted((out / "mlartifacts").rglob("*.ubj"))) == 4


@pytest.mark.slow
def test_a_collection_that_failed_is_done_the_next_night_though_nothing_else_is_deleted(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = demo.copy(tmp_path / "out")
    variables = {"HEDGE_DATA_URL": str(out), "HEDGE_SYMBOLS": "SIMQ", "HEDGE_MODE": "replay"}
    for name, value in {**variables, "HEDGE_MODEL_VERSIONS": "1"}.items():
        monkeypatch.setenv(name, value)
    mlflow_in(out, None).publish(replay_in(out, ("SIMQ",)), "SIMQ")
    now = "2024-01-12T08:30:00+00:00"
    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home")) as instance:

        def fails(**_: object) -> None:
            raise OSError("no disk")

        def night() -> str:
            return dict(housekeeping.steps(instance, loop_at(now)))["MLflow"]()

        with monkeypatch.context() as broken:
            broken.setattr("mlflow.cli._gc_tracking_resources", fails)
            with pytest.raises(RegistryError, match="it is done again next night"):
                night()
        assert len(sorted((out / "mlartifacts").rglob("*.ubj"))) == 4
        assert upkeep.has_garbage(f"sqlite:///{out}/mlflow.db")
        assert night() == "what was deleted before is collected"
        assert len(sorted((out / "mlartifacts").rglob("*.ubj"))) == 2
        assert night() == "nothing to delete"


def test_a_database_that_does_not_answer_is_said_without_its_address(tmp_path: Path) -> None:
    (tmp_path / "secret.db").write_bytes(b"no database at all")
    with pytest.raises(RegistryError) as told:
        upkeep.has_garbage(f"sqlite:///{tmp_path}/secret.db")
    assert "secret" not in str(told.value)


@pytest.mark.slow
def test_what_a_killed_publication_has_left_is_deleted_and_its_files_with_it(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*arguments: object, **named: object) -> None:
        raise Killed

    out = demo.copy(tmp_path / "out")
    deployment = replay_in(out, ("SIMQ",))
    for _ in range(2):
        registry = mlflow_in(out, None)
        monkeypatch.setattr(registry.client, "create_model_version", kill)
        with pytest.raises(Killed):
            registry.publish(deployment, "SIMQ")
    registry = mlflow_in(out, None)
    assert registry.publish(deployment, "SIMQ") == 4
    assert len(sorted((out / "mlartifacts").rglob("*.ubj"))) == 6
    assert registry.prune(deployment, "SIMQ") == 0  # somebody may be at work on them
    assert registry.prune(deployment, "SIMQ", dt.timedelta(0)) == 2
    assert registry.prune(deployment, "SIMQ", dt.timedelta(0)) == 0
    assert upkeep.collect_garbage(registry.tracking_uri, (out / "mlartifacts").as_uri())
    assert len(sorted((out / "mlartifacts").rglob("*.ubj"))) == 4
    for version in registry.client.search_model_versions("name='hedge-SIMQ'"):
        model = registry.client.get_logged_model(str(version.source).rpartition("/")[2])
        assert Path(str(model.artifact_location).removeprefix("file://")).is_dir()


def test_every_version_that_was_champion_is_kept(demo: Demo) -> None:
    ledger = replay_in(demo.out, ("SIMQ",)).ledger("SIMQ")
    entries = ledger.entries

    def with_entries(changed: pd.DataFrame) -> Ledger:
        return Ledger("SIMQ", PROMOTIONS.in_arrow(PROMOTIONS.conform(changed)), ledger.rule)

    chosen = (entries["kind"] == "verdict") & (entries["model_version"] == 2)
    promoted = with_entries(entries.assign(event=entries["event"].mask(chosen, "promote")))
    assert kept_versions(promoted, 1) == {1, 2, 4}
    pinned = entries.iloc[:1].assign(kind="override", event="pin", model_version=3)
    assert kept_versions(with_entries(pd.concat([entries, pinned])), 1) == {1, 3, 4}
    assert kept_versions(promoted, 2) == {1, 2, 3, 4}
    assert kept_versions(promoted, None) == {1, 2, 3, 4}


def test_a_collection_that_takes_too_long_is_ended_and_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(*_: object, **__: object) -> None:
        for _moment in range(int(PATIENCE)):
            time.sleep(1.0)

    registry = mlflow_in(tmp_path, None)
    registry.ping()
    monkeypatch.setattr(upkeep, "GARBAGE_SECONDS", 0.3)
    monkeypatch.setattr("mlflow.cli.cli", sleep)
    with pytest.raises(RegistryError, match=r"^MLflow's garbage collection was ended after 0 s; "):
        upkeep.collect_garbage(registry.tracking_uri, "")


@pytest.mark.slow
@pytest.mark.parametrize("table", ["runs", "experiments"])
def test_so_is_one_that_waits_for_a_lock_of_postgres(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    address = postgres.variables["MLFLOW_TRACKING_URI"]
    MlflowRegistry(address, plots=False).ping()
    monkeypatch.setattr(upkeep, "GARBAGE_SECONDS", 4.0)
    with contextlib.closing(postgres.connect("mlflow")) as connection:
        connection.autocommit = False
        cursor = connection.cursor()
        cursor.execute("set idle_in_transaction_session_timeout = '30s'")  # a hang fails the test
        cursor.execute(f"lock table {table} in access exclusive mode")
        begun = time.monotonic()
        with pytest.raises(RegistryError, match=r"it (goes on|is done again) next night"):
            upkeep.collect_garbage(address, "")
        assert time.monotonic() - begun < PATIENCE
    assert upkeep.collect_garbage(address, "")


def test_what_was_logged_through_a_server_and_deleted_is_collected_without_it(
    tmp_path: Path,
) -> None:
    registry = mlflow_in(tmp_path, None)
    registry.ping()
    client = registry.client
    number = client.create_experiment("by hand", artifact_location="mlflow-artifacts:/by-hand")
    deleted, kept = (client.create_run(number).info for _ in range(2))
    notes = []
    for run in (deleted, kept):
        path = str(run.artifact_uri).removeprefix("mlflow-artifacts:/")
        notes.append(tmp_path / "mlartifacts" / path / "note.txt")
        notes[-1].parent.mkdir(parents=True)
        notes[-1].write_text("a note")
    client.delete_run(deleted.run_id)
    files = (tmp_path / "mlartifacts").as_uri()
    assert upkeep.collect_garbage(registry.tracking_uri, files)
    assert not upkeep.has_garbage(registry.tracking_uri)
    assert [note.exists() for note in notes] == [False, True]
    assert client.get_run(kept.run_id).info.artifact_uri == kept.artifact_uri


def test_behind_a_server_whose_database_is_not_known_the_collection_is_the_servers_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(upkeep.STORE, raising=False)
    assert not upkeep.collect_garbage("http://127.0.0.1:5000", "")
    monkeypatch.setenv(upkeep.STORE, "http://127.0.0.1:5000")  # as `hedge up` sets it then
    assert not upkeep.collect_garbage("http://127.0.0.1:5000", "")


@pytest.mark.slow
def test_behind_a_server_whose_database_is_known_the_files_go_too(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the options of the server in the compose file."""
    deployment = replay_in(demo.copy(tmp_path / "out"), ("SIMQ",))
    store, artifacts, port = f"sqlite:///{tmp_path}/its own.db", tmp_path / "artifacts", free_port()
    server = ("server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port))
    places = ("--serve-artifacts", "--artifacts-destination", str(artifacts))
    address = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        [sys.executable, "-m", "mlflow", *server, *places, "--backend-store-uri", store],
        env=environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{address}/health", timeout=5).close()
                    break
                assert time.monotonic() < deadline
                time.sleep(0.3)
            assert MlflowRegistry(address, plots=False).publish(deployment, "SIMQ") == 4
            assert len(sorted(artifacts.rglob("*.ubj"))) == 4
            assert MlflowRegistry(address, plots=False, newest=1).prune(deployment, "SIMQ") == 2
            monkeypatch.setenv(upkeep.STORE, store)
            assert upkeep.collect_garbage(address, "")
            assert len(sorted(artifacts.rglob("*.ubj"))) == 2
            assert MlflowRegistry(address, plots=False).versions("SIMQ") == {1, 4}
        finally:
            os.killpg(process.pid, signal.SIGKILL)
