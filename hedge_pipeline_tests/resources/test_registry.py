"""MLflow shows the store: each version and score once, whatever went wrong on the way."""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow.xgboost
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException

from hedge_pipeline import control, insight
from hedge_pipeline.learning import scoring
from hedge_pipeline.learning.gate import GateState, Skill
from hedge_pipeline.learning.training import margins
from hedge_pipeline.market.tables import (
    FEATURE_ROWS,
    OUTCOMES,
    PERFORMANCE,
    PREDICTION_LOG,
    PROMOTIONS,
    feature_names,
)
from hedge_pipeline.opening import open_deployment, open_registry
from hedge_pipeline.resources import plots, views
from hedge_pipeline.resources.registry import (
    OUT_OF_TIME_TAG,
    SIGNALS_TAG,
    MlflowRegistry,
    RegistryError,
    experiment_name,
    model_name,
)
from hedge_pipeline.settings import load_settings
from hedge_pipeline.stages import Deployment
from hedge_pipeline.storage import MARKER
from hedge_pipeline.store import Store
from hedge_pipeline_tests.databases import postgres
from hedge_pipeline_tests.replays import (
    DEMO_SESSIONS,
    SYMBOLS,
    Demo,
    demo_in,
    hedge,
    replay_in,
    rows_of,
    settings_in,
)

__all__ = ["postgres"]  # a fixture
VERSIONS = (1, 2, 3, 4)
CANARY = "geheim-9f3"
# runs, versions and aliases of one symbol; numbers given by MLflow itself are left out
Shown = dict[str, Any]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return demo_in(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new MLflow database; making one takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowRegistry(f"sqlite:///{path}").ping()
    return path


def registry_in(folder: Path, **options: Any) -> MlflowRegistry:
    """A fresh registry, as after a restart, on the database in the folder."""
    options = {"plots": False, **options}
    artifacts = (folder / "mlartifacts").as_uri()
    return MlflowRegistry(f"sqlite:///{folder / 'mlflow.db'}", artifacts=artifacts, **options)


@pytest.fixture
def registry(empty_database: Path, tmp_path: Path) -> MlflowRegistry:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return registry_in(tmp_path)


@pytest.fixture
def deployment(demo: Demo, tmp_path: Path) -> Deployment:
    """A replay of eight sessions of its own, with four versions of each symbol."""
    return replay_in(demo.copy(tmp_path / "data"))


@pytest.fixture(scope="module")
def published(
    demo: Demo, empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> MlflowRegistry:
    """Everything of the demo published once, with plots. Read it only."""
    folder = tmp_path_factory.mktemp("published")
    shutil.copy(empty_database, folder / "mlflow.db")
    registry = registry_in(folder, plots=True)
    added = [registry.publish(replay_in(demo.out), symbol) for symbol in SYMBOLS]
    assert added == [len(VERSIONS)] * len(SYMBOLS)
    return registry


def about(value: Any) -> Any:
    """MLflow is told six digits."""
    return pytest.approx(value, rel=1e-5)


def run_of(registry: MlflowRegistry, symbol: str, version: int) -> Any:
    found = registry.client.get_model_version(model_name(symbol), str(version))
    return registry.client.get_run(found.run_id)


def history(registry: MlflowRegistry, run_id: str, metric: str) -> list[tuple[int, float]]:
    points = registry.client.get_metric_history(run_id, metric)
    return [(point.step, point.value) for point in points]


def shown(registry: MlflowRegistry, symbol: str) -> Shown:
    """What a user sees of a symbol's versions, without the identifiers MLflow draws."""
    client = registry.client
    experiment = client.get_experiment_by_name(experiment_name(symbol))
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    of_versions = [run for run in found if SIGNALS_TAG not in run.data.tags]
    runs = {
        str(run.info.run_name): (
            run.info.status,
            run.info.start_time,
            run.info.end_time,
            run.data.params,
            {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.log-model")},
            {name: history(registry, run.info.run_id, name) for name in run.data.metrics},
            sorted(x.path for x in client.list_artifacts(run.info.run_id)),
        )
        for run in of_versions
    }
    versions = sorted(
        (int(version.version), version.description, tuple(sorted(version.tags.items())))
        for version in client.search_model_versions(f"name='{model_name(symbol)}'")
    )
    return {
        "number of runs": len(of_versions),
        "runs": runs,
        "versions": versions,
        "aliases": dict(client.get_registered_model(model_name(symbol)).aliases),
    }


# -- what is shown ---------------------------------------------------------------------------------


def test_every_symbol_has_one_experiment_and_one_registered_model(
    published: MlflowRegistry,
) -> None:
    experiments = {x.name for x in published.client.search_experiments()} - {"Default"}
    assert experiments == {experiment_name(symbol) for symbol in SYMBOLS}
    models = {model.name for model in published.client.search_registered_models()}
    assert models == {"hedge-SIMQ", "hedge-SIMN"}


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_mlflows_version_numbers_are_ours(published: MlflowRegistry, symbol: str) -> None:
    found = published.client.search_model_versions(f"name='{model_name(symbol)}'")
    assert sorted((int(v.version), int(v.tags["hedge.version"])) for v in found) == [
        (version, version) for version in VERSIONS
    ]
    assert published.versions(symbol) == frozenset(VERSIONS)


@pytest.mark.parametrize("symbol", SYMBOLS)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_is_named_and_holds_the_description_of_its_version(
    demo: Demo, published: MlflowRegistry, symbol: str, version: int
) -> None:
    run = run_of(published, symbol, version)
    card = replay_in(demo.out).shelf.card(symbol, version)
    verdicts = rows_of(demo.store, PROMOTIONS, symbols=[symbol])
    verdict = verdicts[verdicts["model_version"] == version].iloc[0]
    assert run.info.run_name == f"{symbol} v{version} to {card.cutoff}"
    assert run.info.status == "FINISHED"
    assert run.info.start_time == run.info.end_time == verdict["decided_at"].timestamp() * 1000
    shown = ("first_session", "cutoff", "data_hash", "schema_hash", "trees", "sessions")
    assert {k: run.data.params[k] for k in shown} == {
        "first_session": card.first_session,
        "cutoff": card.cutoff,
        "data_hash": card.data_hash,
        "schema_hash": card.schema_hash,
        "trees": "60",
        "sessions": str(card.sessions),
    }
    assert run.data.metrics["training/rows"] == card.rows
    assert run.data.metrics["training/base_rate"] == about(card.base_rate)
    skill = run.data.metrics["training/in_sample_skill_1e4_nats"]
    assert skill == about(1e4 * card.in_sample_skill)
    assert run.data.tags["hedge.sha256"] == card.sha256
    assert run.data.tags["hedge.verdict"] == verdict["event"] == "hold"
    assert run.data.tags["hedge.reason"] == verdict["reason"]


@pytest.mark.parametrize("symbol", SYMBOLS)
@pytest.mark.parametrize(
    ("role", "prefix", "version"),
    [("served", "live", 1), ("served", "live", 3), ("baseline", "baseline", 1)],
)
def test_live_accuracy_stands_beside_the_base_rate_at_the_step_of_every_session(
    demo: Demo, published: MlflowRegistry, symbol: str, role: str, prefix: str, version: int
) -> None:
    sums = rows_of(demo.store, PERFORMANCE, symbols=[symbol])
    sums = sums[(sums["role"] == role) & (sums["model_version"] == version)]
    steps = [replay_in(demo.out).calendar.ordinal(label) for label in sums["session"]]
    run_id = run_of(published, symbol, version).info.run_id
    assert len(steps) > 0
    for metric, hits in (("accuracy", "hits"), ("base_rate_accuracy", "base_hits")):
        found = history(published, run_id, f"{prefix}/{metric}")
        assert [step for step, _ in found] == steps
        shares = (sums[hits] / sums["labels"]).to_numpy(dtype=np.float64)
        assert [value for _, value in found] == about(shares)


def by_hand(rows: pd.DataFrame) -> dict[str, float]:
    """Scores of one stream in one session from its rows of the log, with their outcomes."""
    made = rows[rows["prob_up"].notna()]
    known = made[made["actual_direction"].notna()]
    up = known["actual_direction"].to_numpy(dtype=np.float64)
    said, base, margin, told = (
        known[name].to_numpy(dtype=np.float64)
        for name in ("prob_up", "base_rate", "margin", "prediction")
    )
    raw = 1 / (1 + np.exp(-np.log(base / (1 - base)) - margin))
    gain = np.log(said / (1 - said)) - np.log(base / (1 - base))

    def loss(probability: Any) -> float:
        return float(-np.mean(np.where(up == 1, np.log(probability), np.log(1 - probability))))

    return {
        "accuracy": float(np.mean(told == up)),
        "base_rate_accuracy": float(np.mean((base > 0.5) == (up == 1))),
        "log_loss": loss(said),
        "base_log_loss": loss(base),
        "raw_log_loss": loss(raw),
        "skill_1e4_nats": 1e4 * (loss(base) - loss(said)),
        "brier": float(np.mean((said - up) ** 2)),
        "labels": float(len(known)),
        "abstentions": float(len(rows) - len(made)),
        "coverage": len(made) / len(rows),
        "probability_spread": float(made["prob_up"].std(ddof=0)),
        "calibration_slope": float(
            np.sum(gain * (up - base)) / np.sum(gain**2 * base * (1 - base))
        ),
    }


def streams_of(store: Store, symbol: str) -> Iterator[tuple[str, int, str, pd.DataFrame]]:
    """Prefix, version, session and rows with outcomes of every stream that a model spoke in."""
    outcomes = rows_of(store, OUTCOMES, symbols=[symbol])[["bar_ts", "actual_direction"]]
    log = rows_of(store, PREDICTION_LOG, symbols=[symbol]).merge(outcomes, on="bar_ts", how="left")
    log = log[log["model_version"] > 0].assign(session=log["bar_ts"].dt.date.astype(str))
    for key, rows in log.groupby(["role", "model_version", "session"]):
        role, version, label = map(str, key)
        yield {"served": "live", "baseline": "baseline"}[role], int(version), label, rows


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_every_score_of_every_version_and_session_is_that_of_the_log(
    demo: Demo, published: MlflowRegistry, symbol: str
) -> None:
    calendar = replay_in(demo.out).calendar
    seen = set()
    for prefix, version, label, rows in streams_of(demo.store, symbol):
        run_id = run_of(published, symbol, version).info.run_id
        for name, value in by_hand(rows).items():
            found = dict(history(published, run_id, f"{prefix}/{name}"))
            assert found[calendar.ordinal(label)] == about(value), name
            seen.add((prefix, version, name))
    assert len(seen) == (3 + 1) * 12  # three versions were served, the first is the baseline


def test_a_session_made_up_for_in_part_is_scored_as_one(
    deployment: Deployment, registry: MlflowRegistry, published: MlflowRegistry
) -> None:
    """Rows of two modes count together: of two values of a metric MLflow shows the larger."""
    live = dataclasses.replace(deployment, replay=False)
    store = deployment.store
    for label in store.sessions(PREDICTION_LOG):
        log = store.read(PREDICTION_LOG, [label])
        late = log["bar_ts"] > log["bar_ts"].median()
        log["mode"] = np.where(late, "catch_up", "live")
        store.replace(PREDICTION_LOG, label, log)
        outcomes = store.read(OUTCOMES, [label])
        store.replace(PERFORMANCE, label, scoring.performance(log, outcomes, label))
    registry.publish(live, "SIMQ")
    for version in VERSIONS[:3]:
        one, other = (run_of(x, "SIMQ", version) for x in (registry, published))
        assert set(one.data.metrics) == set(other.data.metrics)
        for name in other.data.metrics:
            wanted = history(published, other.info.run_id, name)
            found = history(registry, one.info.run_id, name)
            assert [step for step, _ in found] == [step for step, _ in wanted], name
            assert [x for _, x in found] == about([x for _, x in wanted]), name


def test_a_session_of_abstentions_is_shown_without_scores(
    deployment: Deployment, registry: MlflowRegistry
) -> None:
    label = deployment.store.sessions(PERFORMANCE)[-1]
    sums = deployment.store.read(PERFORMANCE, [label])
    nothing = dict.fromkeys(("predictions", "labels", "hits", "base_hits"), 0)
    silent = sums.assign(**nothing, abstentions=sums["predictions"] + sums["abstentions"])
    losses = ("log_loss", "base_log_loss", "raw_log_loss", "brier", "spread")
    silent[list(losses)] = 0.0
    deployment.store.replace(PERFORMANCE, label, silent)
    registry.publish(deployment, "SIMQ")
    metrics = run_of(registry, "SIMQ", 3).data.metrics
    assert metrics["live/coverage"] == 0
    assert metrics["live/abstentions"] == 390
    assert "live/accuracy" not in metrics
    assert "live_total/accuracy" not in metrics


@pytest.mark.parametrize("version", [1, 3])
def test_the_totals_of_a_version_stand_with_their_interval(
    demo: Demo, published: MlflowRegistry, version: int
) -> None:
    """The last value is what the MLflow table shows and compares."""
    sums = rows_of(demo.store, PERFORMANCE, symbols=["SIMQ"])
    sums = sums[(sums["role"] == "served") & (sums["model_version"] == version)]
    metrics = run_of(published, "SIMQ", version).data.metrics
    assert metrics["live_total/labels"] == sums["labels"].sum()
    accuracy = sums["hits"].sum() / sums["labels"].sum()
    assert metrics["live_total/accuracy"] == about(accuracy)
    assert metrics["live_total/accuracy_lo"] <= accuracy <= metrics["live_total/accuracy_hi"]
    base = sums["base_hits"].sum() / sums["labels"].sum()
    assert metrics["live_total/base_rate_accuracy"] == about(base)
    for name in ("log_loss", "brier"):
        assert metrics[f"live_total/{name}"] == about(sums[name].sum() / len_of(sums))
    skill = 1e4 * (sums["base_log_loss"] - sums["log_loss"]).sum() / len_of(sums)
    assert metrics["live_total/skill_1e4_nats"] == about(skill)


def len_of(sums: pd.DataFrame) -> float:
    return float(sums["labels"].sum())


def test_the_skill_of_a_version_has_its_interval_once_there_are_five_sessions(
    deployment: Deployment, registry: MlflowRegistry
) -> None:
    scores = rows_of(deployment.store, PERFORMANCE, symbols=["SIMQ"])
    scores = scores[scores["role"] == "served"]
    for label in deployment.store.sessions(PERFORMANCE):
        own = scores[scores["session"] == scores["session"].max()].assign(session=label)
        gain = 0.002 * (1 + int(label[-1]))
        changed = own.assign(model_version=1, base_log_loss=own["log_loss"] + gain * own["labels"])
        deployment.store.replace(PERFORMANCE, label, changed)
    registry.publish(deployment, "SIMQ")
    metrics = run_of(registry, "SIMQ", 1).data.metrics
    low, skill, high = (metrics[f"live_total/skill_1e4_nats{x}"] for x in ("_lo", "", "_hi"))
    assert 20 < low < skill < high < 200


def test_evidence_trust_coverage_and_slope_stand_at_every_session_of_a_version(
    demo: Demo, published: MlflowRegistry
) -> None:
    entries = replay_in(demo.out).ledger("SIMQ").entries
    folds = entries[entries["kind"] == "fold"].set_index("session")
    (label,) = rows_of(demo.store, PERFORMANCE, symbols=["SIMQ"]).query(
        "role == 'served' and model_version == 3"
    )["session"]
    metrics = run_of(published, "SIMQ", 3).data.metrics
    assert metrics["gate/trust"] == about(folds["trust"][label])
    assert metrics["gate/evidence_log10"] == about(folds["evidence"][label] / np.log(10))
    assert metrics["gate/proven"] == 0
    assert metrics["live/coverage"] == 1
    assert np.isfinite(metrics["live/calibration_slope"])


def test_the_registered_model_tells_what_holds_now(demo: Demo, published: MlflowRegistry) -> None:
    tags = published.client.get_registered_model(model_name("SIMQ")).tags
    assert tags["hedge.skill"] == "unproven"
    assert "of the 20 needed" in tags["hedge.evidence"]
    assert tags["hedge.promotions"] == "0"
    helps = insight.retraining_value(replay_in(demo.out), "SIMQ")
    assert helps.labels > 600
    assert tags["hedge.retraining"] == helps.in_words()
    assert tags["hedge.feature_drift"] == "too few sessions to tell"


def test_a_pinned_version_has_an_alias_while_it_is_pinned(
    deployment: Deployment, registry: MlflowRegistry
) -> None:
    live = dataclasses.replace(deployment, replay=False)

    def aliases_after_publishing() -> dict[str, int]:
        registry.publish(deployment, "SIMQ")
        found = registry.client.get_registered_model(model_name("SIMQ")).aliases
        return {name: int(version) for name, version in found.items()}

    control.pin(live, "SIMQ", 2, "calmer")
    assert aliases_after_publishing() == {"challenger": 4, "pinned": 2}
    control.roll_back(live, "SIMQ", "enough")
    assert aliases_after_publishing() == {"challenger": 4}


def test_a_version_that_did_not_predict_has_no_live_accuracy(published: MlflowRegistry) -> None:
    metrics = run_of(published, "SIMQ", 4).data.metrics
    assert metrics
    assert not [name for name in metrics if name.startswith(("live/", "baseline/"))]


@pytest.mark.parametrize("rejected", [False, True], ids=["accepted", "rejected"])
def test_every_version_is_scored_once_on_the_sessions_after_its_cutoff(
    deployment: Deployment,
    registry: MlflowRegistry,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    rejected: bool,
) -> None:
    monkeypatch.setattr("hedge_pipeline.resources.registry.OUT_OF_TIME_SESSIONS", 2)
    if rejected:
        say_otherwise(deployment, "SIMQ", 1)
    registry.publish(deployment, "SIMQ")
    before = {version: run_of(registry, "SIMQ", version).data for version in VERSIONS}
    registry_in(tmp_path).publish(deployment, "SIMQ")
    sessions = deployment.store.sessions(OUTCOMES)
    for version in VERSIONS:
        card = deployment.shelf.card("SIMQ", version)
        run = run_of(registry, "SIMQ", version)
        assert run.data.metrics == before[version].metrics
        later = [label for label in sessions if label > card.cutoff][:2]
        if len(later) < 2:
            assert not [name for name in run.data.metrics if name.startswith("out_of_time")]
            continue
        assert run.data.tags[OUT_OF_TIME_TAG] == f"{later[0]} to {later[1]}"
        scores = [dict(by_hand(rows)) for rows in asked_by_hand(deployment, "SIMQ", version, later)]
        for name in ("accuracy", "base_rate_accuracy", "log_loss", "brier", "skill_1e4_nats"):
            points = history(registry, run.info.run_id, f"out_of_time/{name}")
            assert [step for step, _ in points] == [deployment.calendar.ordinal(x) for x in later]
            wanted = [score[name] for score in scores]
            assert [value for _, value in points] == about(wanted), name
        total = sum(score["labels"] for score in scores)
        assert run.data.metrics["out_of_time_total/labels"] == total > 700
        accuracy = sum(score["accuracy"] * score["labels"] for score in scores) / total
        assert run.data.metrics["out_of_time_total/accuracy"] == about(accuracy)
        assert run.data.metrics["out_of_time/calibration_slope"] == about(
            scores[-1]["calibration_slope"]
        )


def out_of_time_of(registry: MlflowRegistry, symbol: str) -> dict[int, str]:
    """By version the sessions on which it was scored."""
    tags = {version: run_of(registry, symbol, version).data.tags for version in VERSIONS}
    return {x: own[OUT_OF_TIME_TAG] for x, own in tags.items() if OUT_OF_TIME_TAG in own}


@pytest.mark.parametrize("left", [None, b"{"], ids=["gone", "damaged"])
def test_a_published_version_that_the_store_cannot_describe_costs_only_its_own_score(
    deployment: Deployment,
    registry: MlflowRegistry,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    left: bytes | None,
) -> None:
    registry.publish(deployment, "SIMQ")
    monkeypatch.setattr("hedge_pipeline.resources.registry.OUT_OF_TIME_SESSIONS", 1)
    card = Path(deployment.store.url) / "models" / "SIMQ" / "000001.json"
    card.unlink()
    if left is not None:
        card.write_bytes(left)
    late = registry_in(tmp_path)
    assert late.publish(replay_in(Path(deployment.store.url)), "SIMQ") == 0
    assert set(out_of_time_of(late, "SIMQ")) >= {2, 3}


def test_a_version_after_whose_cutoff_sessions_were_forgotten_has_no_score_of_later_ones(
    deployment: Deployment, registry: MlflowRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hedge_pipeline.resources.registry.OUT_OF_TIME_SESSIONS", 1)
    cutoffs = {x: deployment.shelf.card("SIMQ", x).cutoff for x in VERSIONS}
    first = deployment.calendar.following(cutoffs[2])
    assert first is not None and cutoffs[1] < cutoffs[2]
    for table in (FEATURE_ROWS, OUTCOMES):
        for label in deployment.store.sessions(table):
            if label < first:
                deployment.store.drop(table, label)
    deployment.store.write_bytes(MARKER, f'{{"before": "{first}"}}'.encode())
    registry.publish(deployment, "SIMQ")
    found = out_of_time_of(registry, "SIMQ")
    assert 1 not in found
    assert found[2] == f"{first} to {first}"


def asked_by_hand(
    deployment: Deployment, symbol: str, version: int, sessions: list[str]
) -> Iterator[pd.DataFrame]:
    """By session what a version says with its whole margin, over the logged base rates."""
    model = deployment.shelf.load(symbol, version)
    names = list(feature_names())
    for label in sessions:
        log = rows_of(deployment.store, PREDICTION_LOG, [label], symbols=[symbol])
        log = log.loc[log["role"] == "served", ["bar_ts", "base_rate"]]
        outcomes = rows_of(deployment.store, OUTCOMES, [label], symbols=[symbol])
        rows = rows_of(deployment.store, FEATURE_ROWS, [label], symbols=[symbol])
        rows = rows.merge(log, on="bar_ts").merge(
            outcomes[["bar_ts", "actual_direction"]], on="bar_ts"
        )
        margin = model.margin(rows[names].to_numpy(dtype=np.float32))
        odds = np.log(rows["base_rate"] / (1 - rows["base_rate"])) + margin
        prob = 1 / (1 + np.exp(-odds))
        yield rows.assign(margin=margin, prob_up=prob, prediction=(prob > 0.5).astype(float))


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_the_registered_model_predicts_what_was_logged(
    demo: Demo, published: MlflowRegistry, symbol: str
) -> None:
    features = rows_of(demo.store, FEATURE_ROWS, symbols=[symbol])
    values = features[list(feature_names())].to_numpy(dtype=np.float32)
    ours = replay_in(demo.out).shelf.load(symbol, 3)
    mlflow.set_tracking_uri(published.tracking_uri)
    theirs = mlflow.xgboost.load_model(f"models:/{model_name(symbol)}/3")
    found = margins(theirs, values, ours.card.base_rate)
    assert np.array_equal(found, ours.margin(values))
    assert np.std(found) > 0


def test_the_model_file_is_ubj_with_the_recorded_sha256_and_a_signature(
    demo: Demo, published: MlflowRegistry, tmp_path: Path
) -> None:
    mlflow.set_tracking_uri(published.tracking_uri)
    folder = Path(download_artifacts("models:/hedge-SIMQ/2", dst_path=str(tmp_path)))
    content = (folder / "model.ubj").read_bytes()
    card = replay_in(demo.out).shelf.card("SIMQ", 2)
    assert hashlib.sha256(content).hexdigest() == card.sha256
    signature = mlflow.models.get_model_info(str(folder)).signature
    assert signature.inputs.input_names() == list(card.features)
    assert not [x.name for x in folder.rglob("*") if x.suffix in (".pkl", ".pickle", ".joblib")]


def test_a_run_keeps_the_description_and_the_plots(
    published: MlflowRegistry,
) -> None:
    run = run_of(published, "SIMQ", 4)
    files = {x.path for x in published.client.list_artifacts(run.info.run_id)}
    drawn = {f"{x}.png" for x in ("importance", "contributions", "evidence", "reliability")}
    assert files == {"model_card.json", *drawn}


def test_importance_is_shown_by_gain_and_by_contributions(demo: Demo) -> None:
    card = replay_in(demo.out).shelf.card("SIMQ", 4)
    shown = {}
    for name, values in (("gain", card.gain), ("shap", card.contributions)):
        (axes,) = plots.importance(values, "SIMQ").axes
        shown[name] = {x.get_text() for x in axes.get_yticklabels()}
        assert shown[name] == set(sorted(values, key=lambda x: values[x])[-12:])
        assert all(value >= 0 for value in values.values())
    assert card.gain != card.contributions


def test_the_timeline_has_every_fold_the_line_of_proof_and_every_change(demo: Demo) -> None:
    entries = rows_of(demo.store, PROMOTIONS, symbols=["SIMQ"])
    folds = entries["kind"] == "fold"
    last = entries.index[folds][-2:]
    entries.loc[last, "event"] = ["skill_proven", "skill_lost"]
    (axes,) = plots.evidence(entries, 20, "SIMQ").axes
    curve, proof, *changes = axes.get_lines()
    assert curve.get_ydata() == about(entries.loc[folds, "evidence"] / np.log(10))
    assert np.asarray(proof.get_ydata()) == about(np.log10(20))
    places = [float(np.asarray(line.get_xdata()).min()) for line in changes]
    assert places == [folds.sum() - 2, folds.sum() - 1]


def test_the_run_of_dagster_is_named_where_it_published(
    deployment: Deployment, registry: MlflowRegistry
) -> None:
    registry.publish(deployment, "SIMQ", source_run="dagster-run-1")
    tags = run_of(registry, "SIMQ", 1).data.tags
    assert tags["dagster.run_id"] == "dagster-run-1"
    assert "dagster.url" not in tags
    assert registry.links("SIMQ") == {}


def test_where_the_uis_are_known_each_has_links_to_the_other(
    deployment: Deployment, registry: MlflowRegistry, tmp_path: Path
) -> None:
    linked = registry_in(tmp_path, dagster_url="http://there:3000/", ui_url="http://there:5000")
    linked.publish(deployment, "SIMQ", source_run="0123456789")
    run = run_of(registry, "SIMQ", 4)
    page = "http://there:3000/runs/0123456789"
    assert run.data.tags["dagster.url"] == page
    assert run.data.tags["mlflow.note.content"].endswith(f"[Dagster run 01234567]({page})")
    experiment = run.info.experiment_id
    kind = "workflowType=machine_learning"
    versions = f"http://there:5000/#/experiments/{experiment}/runs"
    table = f"{versions}?viewStateShareKey={views.VIEW}&{kind}"
    assert linked.links("SIMQ") == {
        "mlflow_model": f"http://there:5000/#/models/hedge-SIMQ?{kind}",
        "mlflow_versions": table,
        "mlflow_charts": f"{table}&compareRunsMode=CHART",
        "mlflow_run": f"{versions}/{run.info.run_id}?{kind}",
    }
    shown = linked.client.get_experiment(experiment).tags["mlflow.note.content"]
    assert "(http://there:3000/assets/model_performance?view=partitions&partition=SIMQ)" in shown
    model = linked.client.get_registered_model("hedge-SIMQ")
    assert "(http://there:3000/assets/champion_model?view=partitions&" in model.description


def test_an_experiment_has_a_view_whose_columns_and_charts_are_metrics_of_its_runs(
    published: MlflowRegistry,
) -> None:
    experiment = published.client.get_experiment_by_name(experiment_name("SIMQ"))
    assert experiment is not None
    tags = experiment.tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert views.page_of_runs(experiment.experiment_id, charts=True) in tags["mlflow.note.content"]
    view = json.loads(tags[f"mlflow.sharedViewState.{views.VIEW}"])
    metrics = {
        name
        for run in published.client.search_runs([experiment.experiment_id])
        for name in run.data.metrics
    }
    verdict, *metric_columns = view["selectedColumns"]
    assert verdict == "tags.`hedge.verdict`"
    assert set(view["selectedColumns"]) < set(view["columnOrder"]) == set(view["columnWidths"])
    columns = {x.removeprefix("metrics.").strip("`") for x in metric_columns}
    # fewer than five sessions of one version have no interval of skill, and none out of time
    missing = {"live_total/skill_1e4_nats_lo", "live_total/skill_1e4_nats_hi"}
    missing |= {"out_of_time_total/accuracy", "out_of_time_total/skill_1e4_nats"}
    assert columns - metrics <= missing
    assert {chart["metricKey"] for chart in view["compareRunCharts"]} <= metrics
    section = {chart["metricSectionId"] for chart in view["compareRunCharts"]}
    assert section == {view["compareRunSections"][0]["uuid"]}


def test_the_registered_model_says_which_version_is_champion_and_why(
    deployment: Deployment, registry: MlflowRegistry
) -> None:
    registry.publish(deployment, "SIMQ")
    before = registry.client.get_registered_model("hedge-SIMQ").description
    assert before.startswith("**No champion**: evidence ")
    say(deployment, "SIMQ", Skill.PROVEN, DEMO_SESSIONS)
    registry.publish(deployment, "SIMQ")
    after = registry.client.get_registered_model("hedge-SIMQ").description
    verdicts = rows_of(deployment.store, PROMOTIONS, symbols=["SIMQ"]).query("kind == 'verdict'")
    assert "skill unproven" in str(verdicts.sort_values("model_version")["reason"].iloc[-1])
    assert after.startswith("**Champion: version 4**. skill proven in session ")


def test_the_ui_of_a_tracking_server_is_at_its_address_without_the_password() -> None:
    assert MlflowRegistry(f"https://me:{CANARY}@there:1/x/").ui_url == "https://there:1/x"
    assert MlflowRegistry("sqlite:///mlflow.db").ui_url == ""


# -- aliases ---------------------------------------------------------------------------------------


def say(deployment: Deployment, symbol: str, skill: Skill, day: int) -> None:
    """Adds a fold to the promotion log after which skill is as given."""
    folds = rows_of(deployment.store, PROMOTIONS, symbols=[symbol]).query("kind == 'fold'")
    last = folds.iloc[-1:].copy()
    label = deployment.calendar.labels[DEMO_SESSIONS + day]
    state = GateState.from_json(str(last["state"].iloc[0]))
    state = dataclasses.replace(
        state,
        status=skill,
        status_since=label,
        last_session=label,
        peak_ordinal=state.ordinal if skill is Skill.PROVEN else None,
    )
    last = last.assign(
        session=label,
        skill=skill.value,
        state=state.to_json(),
        decided_at=last["decided_at"] + dt.timedelta(days=1),
    )
    deployment.store.append(PROMOTIONS, label, last)


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_while_skill_is_unproven_there_is_a_challenger_and_no_champion(
    published: MlflowRegistry, symbol: str
) -> None:
    aliases = published.client.get_registered_model(model_name(symbol)).aliases
    assert {k: int(v) for k, v in aliases.items()} == {"challenger": VERSIONS[-1]}


@pytest.mark.parametrize("fresh", [False, True], ids=["same process", "restarted"])
def test_the_champion_is_set_when_skill_is_proven_and_removed_when_it_is_lost(
    deployment: Deployment, registry: MlflowRegistry, tmp_path: Path, fresh: bool
) -> None:
    def aliases_after_publishing() -> dict[str, int]:
        used = registry_in(tmp_path) if fresh else registry
        used.publish(deployment, "SIMQ")
        found = registry.client.get_registered_model(model_name("SIMQ")).aliases
        return {name: int(version) for name, version in found.items()}

    assert aliases_after_publishing() == {"challenger": 4}
    say(deployment, "SIMQ", Skill.PROVEN, day=0)
    assert aliases_after_publishing() == {"challenger": 4, "champion": 4}
    say(deployment, "SIMQ", Skill.LOST, day=1)
    assert aliases_after_publishing() == {"challenger": 4}


def say_otherwise(deployment: Deployment, symbol: str, version: int) -> None:
    """Turns the verdict on a version into a rejection."""
    label = replay_in(Path(deployment.store.url)).shelf.card(symbol, version).cutoff
    entries = rows_of(deployment.store, PROMOTIONS, [label])
    rejected = (entries["symbol"] == symbol) & (entries["model_version"] == version)
    assert rejected.sum() == 1
    for part in (Path(deployment.store.url) / PROMOTIONS.name / f"session={label}").iterdir():
        part.unlink()
    changed = entries.assign(event=entries["event"].mask(rejected, "reject"))
    deployment.store.append(PROMOTIONS, label, changed)


def test_a_rejected_version_is_registered_but_never_a_challenger(
    deployment: Deployment, registry: MlflowRegistry
) -> None:
    say_otherwise(deployment, "SIMQ", 4)
    assert registry.publish(deployment, "SIMQ") == len(VERSIONS)
    aliases = registry.client.get_registered_model(model_name("SIMQ")).aliases
    assert {name: int(version) for name, version in aliases.items()} == {"challenger": 3}


# -- again, and after a failure --------------------------------------------------------------------


@pytest.mark.parametrize("fresh", [False, True], ids=["same process", "restarted"])
def test_publishing_twice_adds_nothing(
    deployment: Deployment, registry: MlflowRegistry, tmp_path: Path, fresh: bool
) -> None:
    assert registry.publish(deployment, "SIMQ") == len(VERSIONS)
    before = shown(registry, "SIMQ")
    again = registry_in(tmp_path) if fresh else registry
    assert again.publish(deployment, "SIMQ") == 0
    assert shown(registry, "SIMQ") == before


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_publishing_late_shows_what_publishing_every_night_shows(
    demo: Demo, published: MlflowRegistry, symbol: str
) -> None:
    nightly = MlflowRegistry(f"sqlite:///{demo.out / 'mlflow.db'}")
    late, early = shown(published, symbol), shown(nightly, symbol)
    assert late["versions"] == early["versions"]
    assert late["aliases"] == early["aliases"]
    assert {name: run[:6] for name, run in late["runs"].items()} == {
        name: run[:6] for name, run in early["runs"].items()
    }


CALLS = (
    "get_experiment_by_name",
    "create_experiment",
    "get_registered_model",
    "create_registered_model",
    "search_runs",
    "search_model_versions",
    "create_run",
    "log_batch",
    "log_artifact",
    "create_model_version",
    "set_terminated",
    "set_registered_model_alias",
    "set_registered_model_tag",
)


class FailsEveryCallOnce:
    """Every call of the client fails the first time it is made with its arguments."""

    def __init__(self, after: bool) -> None:
        self.after = after
        self.failed: set[str] = set()

    def __call__(self, name: str, real: Callable[..., Any], *given: Any, **named: Any) -> Any:
        shown_as = [str(x) for x in given[1:] if isinstance(x, str) and not x.startswith("/")]
        batch = [f"{metric.key}@{metric.step}" for metric in named.get("metrics", ())]
        key = repr((name, shown_as, named.get("run_name"), named.get("run_id"), batch))
        if key in self.failed:
            return real(*given, **named)
        self.failed.add(key)
        if self.after:
            real(*given, **named)
        raise MlflowException(f"planned failure of {name}")


@pytest.mark.parametrize(
    ("after", "fresh"),
    [(False, False), (True, False), (True, True)],
    ids=["not done", "done but not answered", "done but not answered, restarted"],
)
def test_publishing_that_fails_at_every_call_ends_as_if_nothing_had_failed(
    deployment: Deployment,
    registry: MlflowRegistry,
    published: MlflowRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: bool,
    fresh: bool,
) -> None:
    fails = FailsEveryCallOnce(after)
    for name in CALLS:
        real = getattr(MlflowClient, name)

        def call(*given: Any, _name: str = name, _real: Any = real, **named: Any) -> Any:
            return fails(_name, _real, *given, **named)

        monkeypatch.setattr(MlflowClient, name, call)
    failures = 0
    while failures < 200:
        try:
            (registry_in(tmp_path) if fresh else registry).publish(deployment, "SIMQ")
            break
        except RegistryError as error:
            assert "planned failure" in str(error)
            failures += 1
    monkeypatch.undo()
    assert {name for name in CALLS if any(f"'{name}'" in key for key in fails.failed)} == set(CALLS)
    # four calls for each of four versions, scores of the three that predicted, opening, an alias
    assert failures >= 4 * len(VERSIONS) + 3 + 6
    found, wanted = shown(registry, "SIMQ"), shown(published, "SIMQ")
    assert found["number of runs"] == wanted["number of runs"] == len(VERSIONS)
    assert found["versions"] == wanted["versions"]
    assert found["aliases"] == wanted["aliases"]
    assert {name: run[:6] for name, run in found["runs"].items()} == {
        name: run[:6] for name, run in wanted["runs"].items()
    }


def test_the_scores_of_many_sessions_can_be_published_at_once(
    deployment: Deployment, registry: MlflowRegistry
) -> None:
    scores = rows_of(deployment.store, PERFORMANCE, symbols=["SIMQ"])
    row = scores[(scores["role"] == "baseline") & (scores["model_version"] == 1)].iloc[-1:]
    labels = deployment.calendar.labels[DEMO_SESSIONS : DEMO_SESSIONS + 120]
    for label in labels:
        deployment.store.append(PERFORMANCE, label, row.assign(session=label))
    registry.publish(deployment, "SIMQ")
    run_id = run_of(registry, "SIMQ", 1).info.run_id
    steps = [step for step, _ in history(registry, run_id, "baseline/accuracy")]
    # what was scored after the log was read waits until its fold is in it
    assert steps == list(range(DEMO_SESSIONS - 3, DEMO_SESSIONS))
    folds = rows_of(deployment.store, PROMOTIONS, symbols=["SIMQ"])
    fold = folds[folds["kind"] == "fold"].sort_values("session").iloc[-1:]
    state = json.loads(fold["state"].iloc[0]) | {"last_session": labels[-1]}
    fold = fold.assign(session=labels[-1], state=json.dumps(state))
    deployment.store.append(PROMOTIONS, labels[-1], fold)
    registry.publish(deployment, "SIMQ")
    steps = [step for step, _ in history(registry, run_id, "baseline/accuracy")]
    assert steps == list(range(DEMO_SESSIONS - 3, DEMO_SESSIONS + 120))


# -- MLflow is not there ---------------------------------------------------------------------------


@pytest.fixture
def unreachable() -> Iterator[None]:
    yield
    mlflow.set_tracking_uri("")


ADDRESSES = [
    f"http://someone:{CANARY}@127.0.0.1:9",
    f"postgresql://someone:{CANARY}@127.0.0.1:9/mlflow",
    f"postgresql+psycopg2://someone:{CANARY}@127.0.0.1:9/mlflow",
    f"nosuch://someone:{CANARY}@127.0.0.1/mlflow",
    f"mysql+nosuch://someone:{CANARY}%40x@127.0.0.1/mlflow",
]


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize("address", ADDRESSES)
def test_an_mlflow_that_does_not_answer_is_one_line_without_the_password(
    deployment: Deployment, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    begun = time.monotonic()
    with pytest.raises(RegistryError) as refused:
        MlflowRegistry(address).publish(deployment, "SIMQ")
    assert time.monotonic() - begun < 20  # MLflow itself insists for a hundred seconds
    said = str(refused.value)
    assert said.startswith(f"MLflow at {address.split('://')[0]}://…@127.0.0.1")
    assert said.endswith("the store is complete and will be published later")
    assert "\n" not in said
    assert CANARY not in said + caplog.text


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that takes every connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_an_mlflow_that_never_answers_is_given_up_and_completed_later(
    deployment: Deployment,
    registry: MlflowRegistry,
    silent_server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    begun = time.monotonic()
    with pytest.raises(RegistryError, match=r"does not answer .*Max retries"):
        MlflowRegistry(silent_server).publish(deployment, "SIMQ")
    assert time.monotonic() - begun < 10
    assert registry.publish(deployment, "SIMQ") == len(VERSIONS)


def test_how_long_mlflow_may_take_is_a_minute_at_most_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)
    assert MlflowRegistry("http://127.0.0.1:9").client is not None
    seconds = int(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])
    tries = 1 + int(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"])
    assert seconds * tries <= 60


def test_a_path_that_cannot_be_a_database_is_one_line(
    deployment: Deployment, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    uri = f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}"
    with pytest.raises(RegistryError) as refused:
        MlflowRegistry(uri).publish(deployment, "SIMQ")
    assert str(refused.value).startswith(f"MLflow at {uri} does not answer (")
    assert "\n" not in str(refused.value)


def test_the_doctor_does_not_show_the_password(demo: Demo, tmp_path: Path) -> None:
    said = hedge(
        "doctor",
        cwd=tmp_path,
        HEDGE_DATA_URL=str(demo.out),
        HEDGE_MODE="replay",
        MLFLOW_TRACKING_URI=ADDRESSES[3],
    )
    assert said.returncode == 1
    assert "FAIL mlflow" in said.stdout
    assert CANARY not in said.stdout + said.stderr


def test_frames_of_the_store_are_left_alone_by_a_publication(
    deployment: Deployment, registry: MlflowRegistry
) -> None:
    before = {x: x.read_bytes() for x in Path(deployment.store.url).rglob("*") if x.is_file()}
    registry.publish(deployment, "SIMN")
    after = {x: x.read_bytes() for x in Path(deployment.store.url).rglob("*") if x.is_file()}
    assert after == before
    assert isinstance(rows_of(deployment.store, PERFORMANCE), pd.DataFrame)


def test_a_process_killed_while_it_makes_the_database_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(uri: str, artifacts: str) -> None:
        Path(uri.removeprefix("sqlite:///")).write_bytes(b"half of a database")
        raise KeyboardInterrupt

    name = "mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore"
    monkeypatch.setattr(name, killed)
    with pytest.raises(KeyboardInterrupt):
        registry_in(tmp_path).ping()
    assert not (tmp_path / "mlflow.db").exists()


def test_the_files_of_a_model_lie_with_the_artifacts_of_its_experiment(
    published: MlflowRegistry,
) -> None:
    """In a container the working directory is not kept; the data folder is."""
    for symbol in SYMBOLS:
        version = published.client.get_model_version(model_name(symbol), "1")
        model = published.client.get_logged_model(version.source.rpartition("/")[2])
        assert model.artifact_location.startswith(f"{published.artifacts}/{symbol}/")


def test_artifacts_lie_beside_the_tables_unless_a_server_takes_them() -> None:
    def place(data_url: str, tracking_uri: str) -> str | None:
        given = {"HEDGE_DATA_URL": data_url, "MLFLOW_TRACKING_URI": tracking_uri}
        return open_registry(load_settings(**given)).artifacts

    for uri in ("", "sqlite:///elsewhere.db", "postgresql+psycopg2://hedge@there/mlflow"):
        assert place("/data", uri) == "file:///data/mlartifacts"
    assert place("s3://bucket/folder", "postgresql://there/mlflow") == (
        "s3://bucket/folder/mlartifacts"
    )
    assert place("/data", "http://mlflow:5000") is None


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_nothing_lies_in_the_working_directory_whatever_database_is_named(
    demo: Demo,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    uri = f"sqlite:///{tmp_path}/elsewhere.db"
    if database == "postgresql":
        uri = request.getfixturevalue("postgres").variables["MLFLOW_TRACKING_URI"]
    settings = settings_in(demo.copy(tmp_path / "out"), ("SIMQ",), MLFLOW_TRACKING_URI=uri)
    registry = open_registry(settings)
    assert registry.publish(open_deployment(settings), "SIMQ") == 4
    assert list((tmp_path / "work").iterdir()) == []
    files = {path.name for path in (tmp_path / "out" / "mlartifacts").rglob("*") if path.is_file()}
    assert {"model.ubj", "model_card.json", "importance.png", "evidence.png"} <= files
    found = registry.client.search_experiments()
    assert {experiment.name for experiment in found} >= {"Default"}
    below = f"file://{tmp_path}/out/mlartifacts/"
    assert all(str(experiment.artifact_location).startswith(below) for experiment in found)
