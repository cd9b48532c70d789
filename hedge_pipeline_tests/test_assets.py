"""The assets on a real instance, a real store and a real MLflow: what they write, show and refuse.

Two stores are filled once: `replayed` by single runs in replay mode, night by night, beside the
same sessions replayed by the plain loop; `history` by one backfill run of a live deployment.
"""

from __future__ import annotations

import base64
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from hedge_pipeline.market.tables import (
    ALERTS,
    FEATURE_ROWS,
    GAPS,
    OUTCOMES,
    PREDICTION_LOG,
    PROMOTIONS,
    RAW_QUOTES,
    TABLES,
    Table,
)
from hedge_pipeline.opening import open_deployment, open_registry
from hedge_pipeline.replay import replay
from hedge_pipeline.resources import views
from hedge_pipeline.resources.registry import VERSION_TAG, model_name
from hedge_pipeline.settings import load_settings
from hedge_pipeline.store import Store
from hedge_pipeline_tests.runs import (
    SESSION_ASSETS,
    SESSIONS,
    code_location,
    failures,
    files,
    materialize,
    shown,
    train,
    verdicts,
)

SYMBOLS = ("SIMQ", "SIMN")
FIRST, LAST = SESSIONS[0], SESSIONS[-1]
TRAINED_AFTER = 5
SCORES = ("accuracy", "base_rate_accuracy", "log_loss", "base_log_loss")
AFTER_FIVE = "2024-01-09T07:00:00+00:00"  # RETRAIN_HOUR in New York, the night after session 5
AFTER_SIX = "2024-01-10T07:00:00+00:00"
NOWHERE = "http://127.0.0.1:9"


@dataclass
class Runs:
    """A store, the instance that filled it, and what the runs showed of it."""

    folder: Path
    instance: dg.DagsterInstance
    shown: dict[tuple[str, str], dict[str, Any]]

    @property
    def store(self) -> Store:
        return Store(str(self.folder))

    def add(self, result: dg.ExecuteInProcessResult) -> None:
        assert result.success, failures(result)
        self.shown.update(shown(result))


def settings_for(patch: pytest.MonkeyPatch, folder: Path, mode: str = "live") -> None:
    """Points the resources at a folder; also away from `./mlruns`, which MLflow makes."""
    for name in ("MLFLOW_TRACKING_URI", "HEDGE_SOURCE", "HEDGE_SOURCE_PATH", "HEDGE_SYMBOLS"):
        patch.delenv(name, raising=False)
    patch.setenv("HEDGE_DATA_URL", str(folder))
    patch.setenv("HEDGE_MODE", mode)
    patch.chdir(folder.parent)


@pytest.fixture(scope="module")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking database with its tables and nothing in them: making one takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        settings_for(patch, folder)
        open_registry(load_settings()).ping()
    return folder / "mlflow.db"


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        yield opened


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("replayed") / "data"
    folder.mkdir()
    shutil.copy(empty_mlflow, folder)
    with pytest.MonkeyPatch.context() as patch, dg.DagsterInstance.ephemeral() as instance:
        settings_for(patch, folder, "replay")
        runs = Runs(folder, instance, {})
        for number, session in enumerate(SESSIONS, start=1):
            alone = number == 1
            for assets in [[name] for name in SESSION_ASSETS] if alone else [SESSION_ASSETS]:
                runs.add(materialize(instance, assets, session))
            for symbol in SYMBOLS:
                if number >= TRAINED_AFTER:
                    runs.add(train(instance, symbol))
                else:
                    runs.add(materialize(instance, ["champion_model", "model_performance"], symbol))
        yield runs


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The same sessions by the plain loop."""
    folder = tmp_path_factory.mktemp("reference") / "data"
    with pytest.MonkeyPatch.context() as patch:
        settings_for(patch, folder, "replay")
        deployment = open_deployment(load_settings())
        replay(deployment, SESSIONS)
    return deployment.store


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Iterator[Runs]:
    """Five past sessions of a live deployment in one run, and then a first model of SIMQ."""
    folder = tmp_path_factory.mktemp("history") / "data"
    folder.mkdir()
    shutil.copy(empty_mlflow, folder)
    with pytest.MonkeyPatch.context() as patch, dg.DagsterInstance.ephemeral() as instance:
        settings_for(patch, folder)
        runs = Runs(folder, instance, {})
        runs.add(materialize(instance, SESSION_ASSETS, (FIRST, SESSIONS[4]), now=AFTER_FIVE))
        runs.add(train(instance, "SIMQ", now=AFTER_FIVE))
        yield runs


@pytest.fixture
def copy(history: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The history in a folder of the test's own, where the resources look; MLflow empty again."""
    folder = tmp_path / "data"
    shutil.copytree(history.folder, folder, ignore=shutil.ignore_patterns("mlartifacts"))
    settings_for(monkeypatch, folder)
    return folder


@pytest.fixture
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store where the resources look."""
    folder = tmp_path / "data"
    settings_for(monkeypatch, folder)
    return folder


def tables_of(folder: Path) -> dict[str, pd.DataFrame]:
    return {table.name: Store(str(folder)).read(table) for table in TABLES}


# -- one code path -----------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_runs_night_by_night_equal_the_replay_bit_for_bit(
    replayed: Runs, reference: Store, table: Table
) -> None:
    key = list(table.key)
    found = replayed.store.read(table).sort_values(key, ignore_index=True)
    expected = reference.read(table).sort_values(key, ignore_index=True)
    assert (len(expected) == 0) == (table in (GAPS, ALERTS))
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_runs_night_by_night_give_the_models_of_the_replay(
    replayed: Runs, reference: Store, symbol: str
) -> None:
    folder = f"models/{symbol}"
    names = reference.names(folder)
    assert len(names) == 2 * 3
    assert replayed.store.names(folder) == names
    found = {name: replayed.store.read_bytes(f"{folder}/{name}") for name in names}
    assert found == {name: reference.read_bytes(f"{folder}/{name}") for name in names}


def test_the_last_session_was_predicted_by_the_model_of_the_night_before(replayed: Runs) -> None:
    log = replayed.store.read(PREDICTION_LOG, [LAST])
    assert set(log.loc[log["role"] == "served", "model_version"]) == {2}
    assert log["prediction"].notna().all()


# -- what an asset shows -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asset", "partition", "numbers"),
    [
        ("raw_quotes", FIRST, {"dagster/row_count": 780, "new_rows": 780, "gaps": 0}),
        ("raw_quotes", LAST, {"dagster/row_count": 780, "new_rows": 780, "coverage_pct": 100.0}),
        ("features", FIRST, {"dagster/row_count": 780, "schema_hash": FEATURE_ROWS.schema_hash}),
        ("prediction_log", FIRST, {"predictions": 0, "abstentions": 780, "mode": "replay"}),
        (
            "prediction_log",
            LAST,
            {"dagster/row_count": 1560, "predictions": 780, "versions": "SIMN v2, SIMQ v2"},
        ),
        ("outcomes", LAST, {"dagster/row_count": 780, "new_rows": 780, "unlabelable": 20}),
        ("trained_model", "SIMQ", {"version": 3, "new": True, "guards": "passed"}),
        ("champion_model", "SIMN", {"champion": "none", "sessions_folded": 1, "verdicts_given": 1}),
        ("model_performance", "SIMQ", {"sessions_scored": 1, "sessions": 7}),
    ],
)
def test_an_asset_shows_its_numbers(
    replayed: Runs, asset: str, partition: str, numbers: dict[str, Any]
) -> None:
    assert numbers.items() <= replayed.shown[(asset, partition)].items()


def test_the_bars_show_their_range(replayed: Runs) -> None:
    found = replayed.shown[("raw_quotes", LAST)]
    assert found["first_bar"] == "2024-01-10T14:30:00+00:00"
    assert found["last_bar"] == "2024-01-10T20:59:00+00:00"


def test_the_window_of_a_training_is_shown(replayed: Runs) -> None:
    window = replayed.shown[("trained_model", "SIMQ")]["window"]
    assert window == f"{FIRST} to {LAST} (7 sessions)"


def test_the_hit_rate_shown_is_that_of_the_rows(replayed: Runs) -> None:
    log = replayed.store.read(PREDICTION_LOG, [LAST])
    known = replayed.store.read(OUTCOMES, [LAST]).dropna(subset="actual_direction")
    rows = log[log["role"] == "served"].merge(known, on=["symbol", "bar_ts"])
    hits = (rows["prediction"] == rows["actual_direction"]).mean()
    assert replayed.shown[("outcomes", LAST)]["accuracy"] == round(float(hits), 4)


def test_an_abstention_says_why(replayed: Runs) -> None:
    found = replayed.shown[("prediction_log", FIRST)]
    assert found["abstained_because"] == "no model was accepted yet"


@pytest.mark.parametrize(
    ("asset", "partition", "picture"),
    [
        ("raw_quotes", FIRST, "price"),
        ("prediction_log", LAST, "probability"),
        ("outcomes", LAST, "hits"),
        ("trained_model", "SIMQ", "importance"),
        ("trained_model", "SIMQ", "reliability"),
        ("champion_model", "SIMQ", "timeline"),
        ("model_performance", "SIMQ", "by_session"),
    ],
)
def test_an_asset_shows_a_small_picture(
    replayed: Runs, asset: str, partition: str, picture: str
) -> None:
    markdown = str(replayed.shown[(asset, partition)][picture])
    assert len(markdown) < 60_000
    assert markdown.startswith("![plot](data:image/png;base64,")
    content = base64.b64decode(markdown.split(",", 1)[1].removesuffix(")"))
    assert content.startswith(b"\x89PNG") and content.endswith(b"IEND\xaeB`\x82")


NUMBERS_BY_ASSET = {
    "raw_quotes": {"dagster/row_count", "coverage_pct", "gaps", "lag_seconds", "bytes"},
    "option_chains": {"dagster/row_count", "snapshots", "bytes"},
    "hedge_levels": {"dagster/row_count", "usable_snapshots", "bytes"},
    "features": {"dagster/row_count", "null_share_pct", "bytes"},
    "prediction_log": {"dagster/row_count", "predictions", "abstentions", "lag_seconds", "bytes"},
    "outcomes": {"dagster/row_count", "bytes", *SCORES},
    "trained_model": {"rows", "in_sample_skill_nats", "bytes"},
    "champion_model": {"log_evidence", "trust", "base_rate"},
    "model_performance": {"labels", "accuracy_low", "accuracy_high", "skill_1e4_nats", *SCORES},
    "signal_report": {"sessions", "signals", "predictions_scored"},
}


@pytest.mark.parametrize("asset", NUMBERS_BY_ASSET)
def test_numbers_that_are_followed_over_time_keep_their_names(replayed: Runs, asset: str) -> None:
    """Dagster draws a number of every materialization under one name as one line."""
    assert set(NUMBERS_BY_ASSET) | {"hyperparameters"} == {
        key.to_user_string() for key in code_location().resolve_asset_graph().get_all_asset_keys()
    }
    partition = LAST if asset in SESSION_ASSETS else "SIMQ"
    found = replayed.shown[(asset, partition)]
    numbers = {x for x, y in found.items() if isinstance(y, int | float) and not math.isnan(y)}
    assert NUMBERS_BY_ASSET[asset] - numbers == set()


@pytest.mark.parametrize("asset", SESSION_ASSETS)
def test_the_bytes_shown_are_those_of_the_files_of_the_session(replayed: Runs, asset: str) -> None:
    folder = replayed.folder / asset / f"session={LAST}"
    assert replayed.shown[(asset, LAST)]["bytes"] == sum(
        path.stat().st_size for path in folder.iterdir()
    )


def test_the_scores_of_a_session_are_those_of_its_rows(replayed: Runs) -> None:
    log = replayed.store.read(PREDICTION_LOG, [LAST])
    known = replayed.store.read(OUTCOMES, [LAST]).dropna(subset="actual_direction")
    rows = log[log["role"] == "served"].merge(known, on=["symbol", "bar_ts"])
    up = rows["actual_direction"] == 1
    found = replayed.shown[("outcomes", LAST)]
    for name, said in (("log_loss", rows["prob_up"]), ("base_log_loss", rows["base_rate"])):
        losses = -np.log(np.where(up, said, 1 - said).astype(float))
        assert found[name] == pytest.approx(losses.mean(), abs=1e-6)


def test_mlflow_shows_every_version_the_runs_made(
    replayed: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_for(monkeypatch, replayed.folder, "replay")
    client = open_registry(load_settings()).client
    found = client.search_model_versions(f"name='{model_name('SIMN')}'")
    assert {version.tags[VERSION_TAG] for version in found} == {"1", "2", "3"}
    challenger = client.get_model_version_by_alias(model_name("SIMN"), "challenger")
    assert challenger.tags[VERSION_TAG] == "3"


# -- ranges and backfill -----------------------------------------------------------------------


@pytest.mark.parametrize("asset", SESSION_ASSETS)
def test_one_run_over_a_range_reports_every_session(history: Runs, asset: str) -> None:
    found = {partition for name, partition in history.shown if name == asset}
    assert found == set(SESSIONS[:5])
    rows = [history.shown[(asset, session)]["dagster/row_count"] for session in sorted(found)]
    # nine snapshots of each symbol; from the second session on levels at the open, too
    others = {"hedge_levels": [18, *[20] * 4], "option_chains": [2406, *[2412] * 4]}
    assert rows == others.get(asset, [780] * 5)


def test_a_backfill_of_five_sessions_and_a_training_are_two_runs(history: Runs) -> None:
    assert len(history.instance.get_runs()) == 2


@pytest.mark.parametrize("asset", SESSION_ASSETS)
def test_the_instance_knows_the_sessions_of_a_range(history: Runs, asset: str) -> None:
    key = dg.AssetKey(asset)
    assert history.instance.get_materialized_partitions(key) == set(SESSIONS[:5])


@pytest.mark.parametrize("table", (RAW_QUOTES, FEATURE_ROWS), ids=lambda table: table.name)
def test_a_range_in_one_run_equals_the_sessions_one_by_one(
    history: Runs, reference: Store, table: Table
) -> None:
    columns = [name for name in table.names if name != "ingested_at"]
    found = history.store.read(table, columns=columns)
    pd.testing.assert_frame_equal(
        found, reference.read(table, SESSIONS[:5], columns=columns), check_exact=True
    )


@pytest.mark.parametrize("asset", ["features", "prediction_log"])
def test_the_session_after_a_backfill_has_no_bars_and_fails_nothing(
    copy: Path, instance: dg.DagsterInstance, asset: str
) -> None:
    before, needs = files(copy), {"features": "raw_quotes has no bars"}
    wanted = (SESSIONS[3], SESSIONS[5])  # Dagster adds the session that looks back at the last one
    assert not materialize(instance, [asset], wanted, now=AFTER_SIX).success
    result = materialize(instance, [asset], wanted, now=AFTER_SIX, backfill="abc")
    assert result.success
    found = shown(result)
    assert found[(asset, SESSIONS[4])]["dagster/row_count"] == 780
    last = found[(asset, SESSIONS[5])]
    assert last["dagster/row_count"] == 0
    assert needs.get(asset, "features has no rows") in last["note"]
    assert files(copy) == before
    alone = materialize(instance, [asset], SESSIONS[5], now=AFTER_SIX, backfill="abc")
    assert alone.success


def test_a_backfill_fails_where_bars_are_missing_before_its_last_session(
    copy: Path, instance: dg.DagsterInstance
) -> None:
    wanted = (SESSIONS[4], SESSIONS[6])
    result = materialize(
        instance, ["features"], wanted, now="2024-02-01T12:00:00+00:00", backfill="abc"
    )
    assert not result.success
    assert f"raw_quotes has no bars of {SESSIONS[5]}" in failures(result)[0]


def test_materializing_again_changes_no_file(copy: Path, instance: dg.DagsterInstance) -> None:
    before = files(copy)
    sessions = materialize(instance, SESSION_ASSETS, (FIRST, SESSIONS[4]), now=AFTER_FIVE)
    models = train(instance, "SIMQ", now=AFTER_FIVE)
    assert sessions.success and models.success
    assert files(copy) == before
    again = shown(sessions)
    for asset in ("raw_quotes", "prediction_log", "outcomes"):
        assert again[(asset, FIRST)]["new_rows"] == 0
    assert shown(models)[("trained_model", "SIMQ")]["new"] is False


def test_a_backfilled_session_is_predicted_but_is_no_evidence(
    copy: Path, instance: dg.DagsterInstance
) -> None:
    backfilled = SESSIONS[5]
    assert materialize(instance, SESSION_ASSETS, backfilled, now=AFTER_SIX).success
    store = Store(str(copy))
    log = store.read(PREDICTION_LOG, [backfilled], symbols=["SIMQ"])
    assert set(log["mode"]) == {"backfill"}
    assert log["prediction"].notna().all()
    assert (log["decided_at"] == log["bar_ts"] + pd.Timedelta(minutes=1)).all()

    result = materialize(instance, ["champion_model", "model_performance"], "SIMQ", now=AFTER_SIX)
    assert result.success
    folds = store.read(PROMOTIONS, [backfilled], symbols=["SIMQ"])
    assert folds["kind"].tolist() == ["fold"]
    assert folds["labels"].tolist() == [0]
    assert folds["evidence"].tolist() == [0.0]
    scored = shown(result)[("model_performance", "SIMQ")]
    assert scored["note"] == "no prediction that counts as evidence has matured yet"


def test_before_the_first_model_was_accepted_history_abstains(history: Runs) -> None:
    log = history.store.read(PREDICTION_LOG)
    assert set(log["mode"]) == {"backfill"}
    assert log["prediction"].isna().all()
    assert set(log["model_version"]) == {0}


def test_a_running_session_is_materialized_up_to_now_and_completed_later(
    nothing: Path, reference: Store, instance: dg.DagsterInstance
) -> None:
    morning, evening = f"{FIRST}T15:30:20+00:00", f"{FIRST}T23:00:00+00:00"
    assert materialize(instance, SESSION_ASSETS, FIRST, now=morning).success
    early = tables_of(nothing)
    assert len(early["raw_quotes"]) == 2 * 60
    assert len(early["outcomes"]) == 2 * 50
    assert set(early["prediction_log"]["mode"]) == {"live", "catch_up"}

    assert materialize(instance, SESSION_ASSETS, FIRST, now=evening).success
    late = tables_of(nothing)
    prices = ["symbol", "bar_ts", "open", "high", "low", "close", "volume"]
    pd.testing.assert_frame_equal(
        late["raw_quotes"][prices], reference.read(RAW_QUOTES, [FIRST], columns=prices)
    )
    assert len(late["outcomes"]) == 780
    for name in ("raw_quotes", "prediction_log", "outcomes"):
        kept = late[name].merge(early[name][["symbol", "bar_ts"]], on=["symbol", "bar_ts"])
        pd.testing.assert_frame_equal(kept, early[name], check_exact=True)


# -- one clear line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asset", "partition", "line"),
    [
        ("features", FIRST, f"raw_quotes has no bars of {FIRST}: materialize raw_quotes first"),
        ("prediction_log", FIRST, f"features has no rows of {FIRST}: materialize features first"),
        ("outcomes", FIRST, f"raw_quotes has no bars of {FIRST}: materialize raw_quotes first"),
        (
            "trained_model",
            "SIMQ",
            "SIMQ: 0 of the 5 sessions a training needs have outcomes",
        ),
    ],
)
def test_without_its_upstream_an_asset_fails_with_one_line(
    nothing: Path, instance: dg.DagsterInstance, asset: str, partition: str, line: str
) -> None:
    result = materialize(instance, [asset], partition)
    assert not result.success
    assert failures(result) == [line]
    assert not nothing.exists()


def test_without_a_candidate_the_champion_says_so_and_succeeds(
    nothing: Path, empty_mlflow: Path, instance: dg.DagsterInstance
) -> None:
    nothing.mkdir()
    shutil.copy(empty_mlflow, nothing)
    result = materialize(instance, ["champion_model", "model_performance"], "SIMQ")
    assert result.success
    found = shown(result)
    assert found[("champion_model", "SIMQ")]["verdict"] == "no candidate yet"
    assert found[("model_performance", "SIMQ")]["sessions"] == 0


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("no/such.csv", "no/such.csv: no such file or folder"),
        ("", "the file source needs a file or folder: --path or HEDGE_SOURCE_PATH"),
    ],
    ids=["missing", "unset"],
)
def test_a_file_source_without_its_file_fails_with_one_line(
    nothing: Path,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    line: str,
) -> None:
    monkeypatch.setenv("HEDGE_SOURCE", "file")
    monkeypatch.setenv("HEDGE_SOURCE_PATH", path)
    result = materialize(instance, ["raw_quotes", "features"], FIRST)
    assert failures(result) == [line]
    assert not nothing.exists()


def test_a_symbol_without_data_fails_the_run_and_costs_the_other_nothing(
    nothing: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [f"SIMQ,{FIRST}T14:{30 + i}:00Z,100,101,99,100,5" for i in range(20)]
    file = tmp_path / "bars.csv"
    file.write_text("\n".join(["symbol,ts,open,high,low,close,volume", *rows]))
    monkeypatch.setenv("HEDGE_SOURCE", "file")
    monkeypatch.setenv("HEDGE_SOURCE_PATH", str(file))
    result = materialize(instance, ["raw_quotes"], FIRST)
    assert failures(result) == ["no file has bars of SIMN; they have SIMQ"]
    found = tables_of(nothing)
    assert len(found["raw_quotes"]) == 20
    assert found["gaps"]["symbol"].value_counts().to_dict() == {"SIMN": 390, "SIMQ": 370}


def test_a_session_that_is_still_to_come_is_refused_in_one_line(
    nothing: Path, instance: dg.DagsterInstance
) -> None:
    result = materialize(instance, ["raw_quotes"], LAST, now=AFTER_FIVE)
    assert failures(result) == [f"no bar of {LAST} is final yet"]


def test_a_store_that_cannot_be_written_fails_with_one_line(
    nothing: Path, instance: dg.DagsterInstance
) -> None:
    nothing.write_text("a file where the folder should be")
    (line,) = failures(materialize(instance, ["raw_quotes"], FIRST))
    assert line.startswith(f"the data folder {nothing} cannot be ")
    assert "\n" not in line


# -- MLflow down, models changed ---------------------------------------------------------------


def test_with_mlflow_down_the_loop_goes_on_and_a_later_run_completes_the_view(
    copy: Path,
    empty_mlflow: Path,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    shutil.copy(empty_mlflow, copy)
    down = materialize(instance, ["champion_model"], "SIMQ", now=AFTER_FIVE)
    assert down.success
    check = verdicts(down)["mlflow_shows_every_version"]
    assert not check.passed
    line = str(check.description)
    assert line.startswith(f"MLflow at {NOWHERE} does not answer (")
    assert line.endswith("); the store is complete and will be published later")
    assert shown(down)[("champion_model", "SIMQ")]["mlflow"].startswith(line.split(" (")[0])

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("HEDGE_MLFLOW_URL", "http://there:5000")
    up = materialize(instance, ["champion_model"], "SIMQ", now=AFTER_FIVE)
    page = shown(up)[("champion_model", "SIMQ")]["mlflow_model"]
    assert page == f"http://there:5000/{views.page_of_model('hedge-SIMQ')}"
    assert verdicts(up)["mlflow_shows_every_version"].passed
    assert shown(up)[("champion_model", "SIMQ")]["mlflow"] == "up to date, 1 version added"


@pytest.fixture
def tampered(copy: Path) -> str:
    """The line that must be shown; one byte of the model's file is changed."""
    (file,) = (copy / "models" / "SIMQ").glob("000001-*.ubj")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return "model 1 of SIMQ was changed after it was stored (sha256 differs); it is refused"


def test_without_another_version_a_changed_model_abstains_and_says_why(
    copy: Path, tampered: str, instance: dg.DagsterInstance
) -> None:
    result = materialize(instance, SESSION_ASSETS, SESSIONS[5], now=AFTER_SIX)
    assert result.success
    log = Store(str(copy)).read(PREDICTION_LOG, [SESSIONS[5]], symbols=["SIMQ"])
    assert set(log["reason"]) == {tampered}
    assert log["prob_up"].isna().all()
    assert tampered in shown(result)[("prediction_log", SESSIONS[5])]["abstained_because"]


def test_a_changed_model_stops_the_training_job_before_the_verdict(
    tampered: str, instance: dg.DagsterInstance
) -> None:
    result = train(instance, "SIMQ", now=AFTER_FIVE)
    assert not result.success
    check = verdicts(result)["model_files_are_untouched"]
    assert not check.passed
    assert check.description == tampered
    assert set(shown(result)) == {("trained_model", "SIMQ")}


def test_a_changed_model_is_not_published(
    copy: Path, tampered: str, empty_mlflow: Path, instance: dg.DagsterInstance
) -> None:
    shutil.copy(empty_mlflow, copy)
    result = materialize(instance, ["champion_model"], "SIMQ", now=AFTER_FIVE)
    published = shown(result)[("champion_model", "SIMQ")]["mlflow"]
    assert published == f"{tampered}; everything else is published"
    assert verdicts(result)["mlflow_shows_every_version"].description == "missing: SIMQ v1"
