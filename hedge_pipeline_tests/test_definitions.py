"""The code location as it is committed: it loads, light, and is exactly the graph we mean."""

from __future__ import annotations

import ast
import datetime as dt
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml  # type: ignore[import-untyped]
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.run_coordinator import SubmitRunContext
from dagster._core.test_utils import create_run_for_test, freeze_time
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget
from dagster._daemon.freshness import FreshnessDaemon

import hedge_pipeline
from hedge_pipeline.definitions import defs
from hedge_pipeline.partitions import (
    FRESH_MODELS,
    FRESH_SESSIONS,
    SESSIONS,
    SYMBOLS,
    backfill_policy,
)
from hedge_pipeline_tests.runs import code_location

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = Path(str(hedge_pipeline.__file__)).parent
HEAVY = {"xgboost", "mlflow", "matplotlib", "yfinance", "sklearn", "optuna"}

GRAPH: dict[str, tuple[set[str], str, dg.PartitionsDefinition[Any]]] = {
    "raw_quotes": (set(), "market", SESSIONS),
    "option_chains": (set(), "market", SESSIONS),
    "hedge_levels": ({"raw_quotes", "option_chains"}, "features", SESSIONS),
    "features": ({"raw_quotes", "hedge_levels"}, "features", SESSIONS),
    "prediction_log": ({"features", "hedge_levels"}, "predictions", SESSIONS),
    "outcomes": ({"raw_quotes", "prediction_log"}, "predictions", SESSIONS),
    "trained_model": ({"features", "outcomes"}, "learning", SYMBOLS),
    "hyperparameters": ({"features", "outcomes"}, "learning", SYMBOLS),
    "champion_model": ({"trained_model", "prediction_log", "outcomes"}, "learning", SYMBOLS),
    "model_performance": ({"champion_model", "prediction_log", "outcomes"}, "learning", SYMBOLS),
    "signal_report": ({"model_performance", "prediction_log", "outcomes"}, "learning", SYMBOLS),
}
CHECKS = {
    "raw_quotes": {
        "quotes_keep_their_schema",
        "quotes_cover_the_session",
        "quotes_are_plausible",
        "disk_use_is_within_the_budget",
        "no_file_is_in_quarantine",
    },
    "option_chains": {"chains_keep_their_schema", "chains_are_not_known_before_their_time"},
    "hedge_levels": {
        "levels_keep_their_schema",
        "levels_say_why_they_are_missing",
        "levels_lie_on_their_side_of_the_price",
    },
    "features": {
        "features_keep_their_schema",
        "features_have_no_future_rows",
        "features_exist_for_every_bar",
    },
    "prediction_log": {
        "predictions_keep_their_schema",
        "predictions_are_made_once",
        "predictions_name_a_registered_model",
        "predictions_wait_for_their_bar",
        "most_bars_are_like_the_training_data",
    },
    "outcomes": {"outcomes_keep_their_schema", "outcomes_come_from_observed_prices"},
    "trained_model": {"model_files_are_untouched", "no_feature_knows_the_outcome"},
    "champion_model": {"mlflow_shows_every_version"},
}
EACH_ASSET = pytest.mark.parametrize("name", GRAPH)
SPECS = {spec.key.to_user_string(): spec for spec in code_location().resolve_all_asset_specs()}
CHECK_SPECS = {
    spec.name: spec
    for checks in code_location().asset_checks or ()
    if isinstance(checks, dg.AssetChecksDefinition)
    for spec in checks.check_specs
}


# -- the graph ---------------------------------------------------------------------------------


def test_the_assets_are_exactly_these() -> None:
    assert set(SPECS) == set(GRAPH)


@EACH_ASSET
def test_an_asset_depends_on_exactly_these(name: str) -> None:
    found = {dependency.asset_key.to_user_string() for dependency in SPECS[name].deps}
    assert found == GRAPH[name][0]


@EACH_ASSET
def test_an_asset_lives_in_its_group(name: str) -> None:
    assert SPECS[name].group_name == GRAPH[name][1]


@EACH_ASSET
def test_an_asset_has_its_partitions(name: str) -> None:
    assert SPECS[name].partitions_def == GRAPH[name][2]


@EACH_ASSET
def test_an_asset_says_what_it_holds(name: str) -> None:
    assert len((SPECS[name].description or "").split()) >= 5


@pytest.mark.parametrize("name", [x for x, (_, _, parts) in GRAPH.items() if parts == SESSIONS])
def test_a_backfill_of_sessions_is_one_run(name: str) -> None:
    policy = code_location().resolve_assets_def(name).backfill_policy
    assert policy == dg.BackfillPolicy.single_run()


def test_a_backfill_may_be_cut_into_runs_of_some_sessions() -> None:
    assert backfill_policy(None) == dg.BackfillPolicy.single_run()
    assert backfill_policy(32) == dg.BackfillPolicy.multi_run(32)


@pytest.mark.parametrize(
    ("session", "bars_from"),
    [("2024-01-02", {"2024-01-02"}), ("2024-01-16", {"2024-01-12", "2024-01-16"})],
    ids=["first", "after_a_long_weekend"],
)
def test_features_wait_for_the_bars_of_the_session_before(
    session: str, bars_from: set[str]
) -> None:
    mapping = SPECS["features"].partition_mappings[dg.AssetKey("raw_quotes")]
    asked = SESSIONS.subset_with_partition_keys([session])
    upstream = mapping.get_upstream_mapped_partitions_result_for_partitions(
        asked, SESSIONS, SESSIONS
    )
    assert set(upstream.partitions_subset.get_partition_keys()) == bars_from


def test_the_checks_are_exactly_these() -> None:
    found: dict[str, set[str]] = {}
    for name, spec in CHECK_SPECS.items():
        found.setdefault(spec.asset_key.to_user_string(), set()).add(name)
    assert found == CHECKS


def test_every_check_blocks_but_the_views_on_mlflow_the_disk_and_the_market() -> None:
    assert {name for name, spec in CHECK_SPECS.items() if not spec.blocking} == {
        "mlflow_shows_every_version",
        "most_bars_are_like_the_training_data",
        "disk_use_is_within_the_budget",
        "no_file_is_in_quarantine",
    }


@pytest.mark.parametrize("name", CHECK_SPECS)
def test_a_check_says_what_breaks_it(name: str) -> None:
    assert len((CHECK_SPECS[name].description or "").split()) >= 4


# -- jobs, schedules, sensor, executor ---------------------------------------------------------

JOBS = {"poll_market", "close_session", "train_model", "bootstrap", "housekeeping"}


def test_the_jobs_are_exactly_these() -> None:
    found = {job.name for job in code_location().resolve_all_job_defs()}
    assert {name for name in found if not name.startswith("__")} == JOBS


@pytest.mark.parametrize("job", sorted(JOBS))
def test_a_job_says_what_it_does(job: str) -> None:
    assert len((code_location().resolve_job_def(job).description or "").split()) >= 5


def test_the_job_trains_judges_and_scores() -> None:
    job = code_location().resolve_job_def("train_model")
    assert {key.to_user_string() for key in job.asset_layer.selected_asset_keys} == {
        "trained_model",
        "champion_model",
        "model_performance",
        "signal_report",
    }
    assert job.partitions_def == SYMBOLS


@pytest.mark.parametrize("job", [*sorted(JOBS), "__ASSET_JOB"])
def test_every_job_runs_in_one_process(job: str) -> None:
    assert code_location().resolve_job_def(job).executor_def == dg.in_process_executor


@pytest.mark.parametrize(
    ("name", "cron", "job"),
    [
        ("polling_schedule", "* * * * *", "poll_market"),
        ("close_session_schedule", "*/10 * * * *", "close_session"),
        ("watch_schedule", "*/5 * * * *", "housekeeping"),
        ("housekeeping_schedule", "30 3 * * *", "housekeeping"),
    ],
)
def test_a_schedule_ticks_in_exchange_time(name: str, cron: str, job: str) -> None:
    schedule = code_location().resolve_schedule_def(name)
    assert (schedule.cron_schedule, schedule.job_name) == (cron, job)
    assert schedule.execution_timezone == "America/New_York"


@pytest.mark.parametrize(
    ("setting", "running"), [("", False), ("false", False), ("true", True)], ids=str
)
def test_schedules_and_sensor_wait_for_the_switch_unless_the_settings_say_otherwise(
    monkeypatch: pytest.MonkeyPatch, setting: str, running: bool
) -> None:
    monkeypatch.delenv("HEDGE_AUTOSTART", raising=False)
    if setting:
        monkeypatch.setenv("HEDGE_AUTOSTART", setting)
    repository = defs().get_repository_def()
    found = [x.default_status.value for x in repository.schedule_defs]
    found += [x.default_status.value for x in repository.sensor_defs]
    assert found == ["RUNNING" if running else "STOPPED"] * 5


@pytest.mark.parametrize(("setting", "seconds"), [(None, 3600), ("60", 60), ("7200", 7200)])
def test_the_sensor_looks_as_often_as_the_setting_says(
    monkeypatch: pytest.MonkeyPatch, setting: str | None, seconds: int
) -> None:
    monkeypatch.delenv("RETRAIN_CHECK_INTERVAL", raising=False)
    if setting is not None:
        monkeypatch.setenv("RETRAIN_CHECK_INTERVAL", setting)
    sensor = defs().resolve_sensor_def("retraining_sensor")
    assert sensor.minimum_interval_seconds == seconds
    assert sensor.job_name == "train_model"
    assert len((sensor.description or "").split()) >= 5


def test_a_bad_setting_stops_the_load_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRAIN_CHECK_INTERVAL", "often")
    with pytest.raises(ValueError, match=r"^RETRAIN_CHECK_INTERVAL='often': [^\n]+$"):
        defs()


# -- the committed files -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh DAGSTER_HOME with the committed dagster.yaml."""
    folder = tmp_path_factory.mktemp("dagster_home")
    shutil.copy(REPOSITORY / "dagster.yaml", folder)
    return folder


@pytest.fixture(scope="module")
def instance(home: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(home)) as opened:
        yield opened


def test_the_workspace_names_the_module_and_the_location() -> None:
    workspace = yaml.safe_load((REPOSITORY / "workspace.yaml").read_text())
    assert workspace == {
        "load_from": [
            {
                "python_module": {
                    "module_name": "hedge_pipeline.definitions",
                    "location_name": "hedge_pipeline",
                    "working_directory": ".",
                }
            }
        ]
    }


def test_the_workspace_loads_from_any_folder(home: Path, tmp_path: Path) -> None:
    command = ["-m", "dagster", "definitions", "validate", "--log-format", "json"]
    done = subprocess.run(
        [sys.executable, *command, "-w", str(REPOSITORY / "workspace.yaml")],
        cwd=tmp_path,
        env={**os.environ, "DAGSTER_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "Validation successful for code location hedge_pipeline." in said


def test_assets_say_how_old_their_newest_materialization_may_be(
    instance: dg.DagsterInstance,
) -> None:
    found = {
        spec.key.to_user_string(): spec.freshness_policy
        for spec in code_location().resolve_all_asset_specs()
        if spec.freshness_policy is not None
    }
    bars = dict.fromkeys(("raw_quotes", "features", "prediction_log", "outcomes"), FRESH_SESSIONS)
    models = ("trained_model", "champion_model", "model_performance")
    assert found == bars | dict.fromkeys(models, FRESH_MODELS)
    assert instance.get_settings("freshness") == {"enabled": True}  # or nobody looks


@pytest.mark.slow
def test_dagsters_daemon_finds_what_is_old_stale(instance: dg.DagsterInstance) -> None:
    place = ModuleTarget(
        "hedge_pipeline.definitions",
        attribute=None,
        working_directory=str(REPOSITORY),
        location_name="hedge_pipeline",
    )
    bars, model = dg.AssetKey("raw_quotes"), dg.AssetKey("champion_model")
    now = dt.datetime.now(dt.UTC)
    found = []
    with WorkspaceProcessContext(instance, place) as context:
        for key, partition in ((bars, now.date().isoformat()), (model, "QQQ")):
            instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=partition))
        for days in (1, 4.5, 5.5, 15.5):
            with freeze_time(now + dt.timedelta(days=days)):
                list(FreshnessDaemon().run_iteration(context))
            states = instance.get_freshness_state_records([bars, model])
            found.append([states[key].freshness_state.value for key in (bars, model)])
    assert found == [["PASS", "PASS"], ["WARN", "PASS"], ["FAIL", "PASS"], ["FAIL", "FAIL"]]


def test_the_instance_has_the_committed_settings(instance: dg.DagsterInstance) -> None:
    assert not instance.telemetry_enabled
    assert not instance.nux_enabled
    assert instance.run_monitoring_enabled
    assert instance.run_monitoring_start_timeout_seconds == 120
    assert instance.run_monitoring_max_runtime_seconds == 4 * 3600
    assert instance.get_settings("retention")["sensor"]["purge_after_days"]["skipped"] == 1


@pytest.mark.parametrize(
    ("job", "limit"),
    [("train_model", 1), ("poll_market", 2), ("close_session", 1), ("housekeeping", 1)],
)
def test_a_job_has_a_lane_of_its_own_in_the_queue(
    instance: dg.DagsterInstance, job: str, limit: int
) -> None:
    tags = code_location().resolve_job_def(job).tags
    queue = instance.get_concurrency_config().run_queue_config
    assert queue is not None
    expected = {"key": "hedge/lane", "value": tags["hedge/lane"], "limit": limit}
    assert expected in queue.tag_concurrency_limits
    assert sum(x["limit"] for x in queue.tag_concurrency_limits) == queue.max_concurrent_runs


@pytest.mark.parametrize(
    ("selection", "tags", "lane"),
    [
        (["trained_model", "champion_model"], {}, "train"),
        (["raw_quotes"], {}, "assets"),
        (None, {}, "assets"),
        (["trained_model"], {"hedge/lane": "poll"}, "poll"),
    ],
)
def test_a_run_without_a_lane_gets_one_by_its_assets(
    instance: dg.DagsterInstance, selection: list[str] | None, tags: dict[str, str], lane: str
) -> None:
    chosen = None if selection is None else frozenset(map(dg.AssetKey, selection))
    target = LoadableTargetOrigin(module_name="hedge_pipeline.definitions")
    location = ManagedGrpcPythonEnvCodeLocationOrigin(target, location_name="hedge_pipeline")
    origin = RemoteRepositoryOrigin(location, "__repository__").get_job_origin("__ASSET_JOB")
    run = create_run_for_test(instance, tags=tags, asset_selection=chosen, remote_job_origin=origin)
    nobody: Any = None  # the queue asks no workspace
    queued = instance.run_coordinator.submit_run(SubmitRunContext(run, workspace=nobody))
    assert queued.status == dg.DagsterRunStatus.QUEUED
    assert queued.tags["hedge/lane"] == lane


def test_the_lanes_differ_but_a_first_start_is_a_training() -> None:
    lanes = {job: code_location().resolve_job_def(job).tags["hedge/lane"] for job in JOBS}
    assert lanes.pop("bootstrap") == lanes["train_model"]
    assert len(set(lanes.values())) == len(JOBS) - 1


# -- weight and layers -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded() -> tuple[set[str], set[str]]:
    """Top-level modules in a new process after the import, and after the definitions are built."""
    code = (
        "import sys\n"
        "import hedge_pipeline.definitions as location\n"
        "print(*{name.split('.')[0] for name in sys.modules})\n"
        "location.defs()\n"
        "print(*{name.split('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    imported, built = done.stdout.splitlines()
    return set(imported.split()), set(built.split())


def test_importing_the_code_location_imports_nothing_heavy(
    loaded: tuple[set[str], set[str]],
) -> None:
    assert "dagster" in loaded[0]
    assert loaded[0] & (HEAVY | {"pandas", "pyarrow", "exchange_calendars"}) == set()


def test_building_the_definitions_imports_no_learning_and_no_plotting(
    loaded: tuple[set[str], set[str]],
) -> None:
    assert "exchange_calendars" in loaded[1]  # and with it pandas
    assert loaded[1] & HEAVY == set()


def test_the_code_location_fits_on_one_screen() -> None:
    assert len((PACKAGE / "definitions.py").read_text().splitlines()) <= 40


PLAIN = sorted(
    path
    for room in ("market", "levels", "learning", "live", "stages", "replay.py", "store.py")
    for path in ([PACKAGE / room] if room.endswith(".py") else (PACKAGE / room).rglob("*.py"))
)


def frameworks(source: str) -> set[str]:
    """Dagster and MLflow, if the code imports them anywhere, functions included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            module = node.module or ""
            found.add(module.split(".")[0])
            names = {f"{module}.{alias.name}" for alias in node.names}
            if module.startswith("hedge_pipeline") and any(".resources" in x for x in names):
                found.add("hedge_pipeline.resources")
    return found & {"dagster", "mlflow", "hedge_pipeline.resources"}


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_the_plain_packages_know_no_framework(path: Path) -> None:
    assert frameworks(path.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    "code",
    [
        "import dagster",
        "import mlflow.xgboost as m",
        "from dagster import asset",
        "def f():\n    from mlflow.entities import Metric",
        "from hedge_pipeline.resources.registry import MlflowRegistry",
        "from hedge_pipeline import resources",
    ],
)
def test_the_search_finds_every_way_in(code: str) -> None:
    assert frameworks(code)
