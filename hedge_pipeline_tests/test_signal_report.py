"""What became of the signals: the report counts served evidence only, and every view shows it."""

from __future__ import annotations

import base64
import datetime as dt
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from mlflow.artifacts import download_artifacts

from hedge_pipeline import stages
from hedge_pipeline.legacy import import_legacy
from hedge_pipeline.market.calendar import Session
from hedge_pipeline.market.tables import (
    LEGACY_PREDICTIONS,
    OUTCOMES,
    PREDICTION_LOG,
    RAW_QUOTES,
    TRADES,
)
from hedge_pipeline.opening import open_registry
from hedge_pipeline.resources.registry import MlflowRegistry, experiment_name
from hedge_pipeline.settings import load_settings
from hedge_pipeline.stages import Deployment
from hedge_pipeline_tests.learning.conftest import log_rows
from hedge_pipeline_tests.markets import BEFORE, FakeMarket, deployment_in
from hedge_pipeline_tests.runs import failures, materialize, shown

SYMBOLS = ("SIMQ", "SIMN")
SESSIONS = BEFORE[:4]
AFTERWARDS = dt.datetime(2024, 11, 27, 5, tzinfo=dt.UTC)
HORIZON, COST_BPS = 10, 1.0
SOURCES, STRENGTHS, CONFIDENCES = ("HP", "MHP", "HG"), (20.0, 40.0), (0.56, 0.61, 0.72)
SIGNALS = (10, 30, 50, 70, 90, 110, 150, 385)  # the last one's horizon lies behind the close
Trade = dict[str, Any]


def rows_of_session(session: Session, symbol: str, seed: int = 0, **columns: Any) -> pd.DataFrame:
    """A served row at every bar, with signals at `SIGNALS`; every tenth row abstains."""
    random = np.random.default_rng([seed, *symbol.encode(), *session.label.encode()])
    number = session.bars
    signal = np.isin(np.arange(number), SIGNALS)
    turn = np.cumsum(signal) - 1
    up = signal | (random.random(number) < 0.5)
    confidence = np.where(
        signal, np.take(CONFIDENCES, turn % 3), random.uniform(0.42, 0.54, number)
    )
    prediction = pd.array(up.astype(int), dtype="Int8")
    abstained = ~signal & (np.arange(number) % 10 == 5)
    prediction[abstained] = pd.NA
    given = {
        "prediction": prediction,
        "confidence": np.where(abstained, np.nan, confidence),
        "signal_fired": signal,
        "level_type": np.where(signal, "support", "none"),
        "level_source": np.where(signal, np.take(SOURCES, turn % 3), "none"),
        "strength_score": np.where(signal, np.take(STRENGTHS, turn % 2), np.nan),
        **columns,
    }
    return log_rows(session, np.zeros(number), symbol, **given)


def opened(folder: Path, **given: Any) -> Deployment:
    return deployment_in(folder, FakeMarket(), lambda: AFTERWARDS, SYMBOLS, **given)


def signals_in(
    folder: Path,
    sessions: Sequence[str] = SESSIONS,
    *,
    store: str = "live",
    **columns: Any,
) -> Deployment:
    """A live or replay store with bars, outcomes, such a log and the trades of these sessions."""
    deployment = opened(folder, HEDGE_MODE=store)
    for label in sessions:
        session = deployment.calendar.session(label)
        stages.collect(deployment, label)
        stages.mature_outcomes(deployment, label)
        for symbol in SYMBOLS:
            rows = rows_of_session(session, symbol, **columns)
            deployment.store.append(PREDICTION_LOG, label, rows)
        stages.score_session(deployment, label, SYMBOLS)
    return deployment


def by_hand(deployment: Deployment, symbol: str, sessions: Sequence[str] = SESSIONS) -> list[Trade]:
    """The trades of the signals from the bars alone: prices here never reach target or stop."""
    found = []
    for label in sessions:
        bars = deployment.store.read(RAW_QUOTES, [label], symbols=[symbol]).sort_values("bar_ts")
        opens, closes = bars["open"].tolist(), bars["close"].tolist()
        for turn, place in enumerate(SIGNALS):
            gain = math.nan
            if place + HORIZON < len(closes):
                entry, last = opens[place + 1], closes[place + HORIZON]
                gain = 100 * (last - entry - COST_BPS / 1e4 * (entry + last)) / entry
            found.append(
                {
                    "session": label,
                    "gain": gain,
                    "by_level_source": SOURCES[turn % 3],
                    "by_strength_band": ("15-30", "30-50")[turn % 2],
                    "by_confidence": ("0.55-0.60", "0.60-0.65", "0.70-1.00")[turn % 3],
                }
            )
    return found


def agrees(group: dict[str, Any], trades: Sequence[Trade]) -> None:
    gains = [trade["gain"] for trade in trades if not math.isnan(trade["gain"])]
    assert group["signals"] == len(trades)
    assert group["scored"] == len(gains)
    assert sum(group["unscorable"].values()) == len(trades) - len(gains)
    assert group["win_rate"] == pytest.approx(np.mean([gain > 0 for gain in gains]))
    won = sum(gain for gain in gains if gain > 0)
    lost = -sum(gain for gain in gains if gain < 0)
    assert group["profit_factor"] == pytest.approx(won / lost)
    assert group["average_pct"] == pytest.approx(np.mean(gains))


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """Four sessions of signals. Read it only."""
    return signals_in(tmp_path_factory.mktemp("scored") / "data")


@pytest.fixture
def copy(scored: Deployment, tmp_path: Path) -> Deployment:
    """The same in a folder of the test's own."""
    shutil.copytree(scored.store.url, tmp_path / "data")
    return opened(tmp_path / "data")


# -- what is counted -------------------------------------------------------------------------------


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_counts_win_rate_and_profit_factor_are_those_of_the_bars(
    scored: Deployment, symbol: str
) -> None:
    found = stages.signal_report(scored, symbol)
    trades = by_hand(scored, symbol)
    agrees(found["overall"], trades)
    assert found["overall"]["unscorable"] == {"crosses_close": len(SESSIONS)}
    assert found["overall"]["exits"] == {"time": len(trades) - len(SESSIONS)}
    assert 0 < found["overall"]["win_rate"] < 1
    assert found["overall"]["lo"] < found["overall"]["win_rate"] < found["overall"]["hi"]
    window = (found["first_session"], found["last_session"], found["sessions"])
    assert window == (SESSIONS[0], SESSIONS[-1], len(SESSIONS))


@pytest.mark.parametrize("title", ["by_level_source", "by_strength_band", "by_confidence"])
def test_every_group_is_reported_by_itself(scored: Deployment, title: str) -> None:
    trades = by_hand(scored, "SIMQ")
    found = stages.signal_report(scored, "SIMQ")[title]
    assert set(found) == {trade[title] for trade in trades}
    for name, group in found.items():
        agrees(group, [trade for trade in trades if trade[title] == name])


def test_false_positives_are_the_signals_of_each_session_that_did_not_win(
    scored: Deployment,
) -> None:
    trades = by_hand(scored, "SIMN")
    found = stages.signal_report(scored, "SIMN")["by_session"]
    assert list(found) == list(SESSIONS)
    for label, session in found.items():
        gains = [t["gain"] for t in trades if t["session"] == label and not math.isnan(t["gain"])]
        assert (session["signals"], session["scored"]) == (len(SIGNALS), len(gains))
        assert session["false_positive_rate"] == pytest.approx(np.mean([g <= 0 for g in gains]))


def test_reliability_is_the_share_of_right_directions_by_confidence(scored: Deployment) -> None:
    found = stages.signal_report(scored, "SIMQ")
    outcome = {
        row["bar_ts"]: row["actual_direction"]
        for row in scored.store.read(OUTCOMES, symbols=["SIMQ"]).to_dict("records")
    }
    said = [
        (float(row["confidence"]), row["prediction"] == outcome[row["bar_ts"]])
        for row in scored.store.read(PREDICTION_LOG, symbols=["SIMQ"]).to_dict("records")
        if not pd.isna(row["prediction"]) and not pd.isna(outcome[row["bar_ts"]])
    ]
    assert 0 < found["predictions_scored"] == len(said) < len(outcome)
    assert sum(one["n"] for one in found["reliability"]) == len(said)
    for one in found["reliability"]:
        inside = [hit for value, hit in said if one["from"] <= value < one["to"]]
        assert one["n"] == len(inside)
        assert one["frequency"] == (pytest.approx(np.mean(inside)) if inside else None)
    assert sum(one["n"] > 0 for one in found["reliability"]) >= 5


def test_one_session_alone_has_no_interval(tmp_path: Path) -> None:
    found = stages.signal_report(signals_in(tmp_path / "data", SESSIONS[:1]), "SIMQ")["overall"]
    assert found["win_rate"] is not None
    assert (found["lo"], found["hi"]) == (None, None)


# -- what is not counted ---------------------------------------------------------------------------


def nothing_counted(found: dict[str, Any]) -> bool:
    overall = found["overall"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert overall["win_rate"] is overall["profit_factor"] is overall["average_pct"] is None
    assert all(one["frequency"] is None for one in found["reliability"])
    return (overall["signals"], overall["scored"], found["predictions_scored"]) == (0, 0, 0)


def test_an_empty_store_gives_an_empty_report(tmp_path: Path) -> None:
    found = stages.signal_report(opened(tmp_path / "data"), "SIMQ")
    assert nothing_counted(found)
    assert (found["first_session"], found["last_session"], found["sessions"]) == (None, None, 0)


@pytest.mark.parametrize(
    ("store", "mode", "counts"),
    [
        ("live", "live", True),
        ("live", "catch_up", True),
        ("live", "backfill", False),
        ("live", "replay", False),
        ("replay", "replay", True),
        ("replay", "backfill", False),
        ("replay", "live", False),
    ],
)
def test_only_evidence_of_the_store_counts(
    tmp_path: Path, store: str, mode: str, counts: bool
) -> None:
    deployment = signals_in(tmp_path / "data", SESSIONS[:2], store=store, mode=mode)
    found = stages.signal_report(deployment, "SIMQ")
    assert len(deployment.store.read(TRADES, symbols=["SIMQ"])) == 2 * len(SIGNALS)
    assert found["sessions"] == 2
    assert (found["overall"]["signals"] == 2 * len(SIGNALS)) is counts
    assert counts or nothing_counted(found)


def test_a_session_that_somebody_backfilled_later_does_not_mix_with_what_was_live(
    copy: Deployment,
) -> None:
    before = stages.signal_report(copy, "SIMQ")
    later = BEFORE[4]
    session = copy.calendar.session(later)
    stages.collect(copy, later)
    stages.mature_outcomes(copy, later)
    copy.store.append(PREDICTION_LOG, later, rows_of_session(session, "SIMQ", mode="backfill"))
    stages.score_session(copy, later, SYMBOLS)
    assert len(copy.store.read(TRADES, [later])) == len(SIGNALS)
    found = stages.signal_report(copy, "SIMQ")
    assert (found["sessions"], before["sessions"]) == (5, 4)
    for name in ("overall", "by_level_source", "by_session", "reliability", "predictions_scored"):
        assert found[name] == before[name]


def test_other_streams_than_the_served_one_do_not_count(copy: Deployment) -> None:
    before = stages.signal_report(copy, "SIMQ")
    for label in SESSIONS:
        for role in ("baseline", "newest"):
            rows = rows_of_session(copy.calendar.session(label), "SIMQ", seed=1, role=role)
            copy.store.append(PREDICTION_LOG, label, rows)
        stages.score_session(copy, label, SYMBOLS)
    assert set(copy.store.read(PREDICTION_LOG)["role"]) == {"served", "baseline", "newest"}
    assert stages.signal_report(copy, "SIMQ") == before


def test_the_log_of_the_system_before_this_one_never_counts(
    copy: Deployment, tmp_path: Path
) -> None:
    before = stages.signal_report(copy, "SIMQ")
    old = tmp_path / "old"
    old.mkdir()
    opens = copy.calendar.session(SESSIONS[0]).opens
    lines = ["timestamp,symbol,price,prediction,confidence,strength_score,level_type,signal_fired"]
    for minute in range(60):
        moment = (opens + dt.timedelta(minutes=minute)).isoformat()
        lines.append(f"{moment},SIMQ,100.0,1,0.99,25,support,True")
    (old / "predictions.csv").write_text("\n".join(lines))
    report = import_legacy(copy.store, copy.calendar, old, AFTERWARDS)
    assert report.ok and len(copy.store.read(LEGACY_PREDICTIONS)) == 60
    for label in SESSIONS:
        stages.score_session(copy, label, SYMBOLS)
    assert stages.signal_report(copy, "SIMQ") == before


def test_the_running_session_is_not_in_the_report(tmp_path: Path) -> None:
    deployment = signals_in(tmp_path / "data", SESSIONS[:2])
    session = deployment.calendar.session(SESSIONS[1])
    during = replace(deployment, clock=lambda: session.closes, settled=set())
    found = stages.signal_report(during, "SIMQ")
    assert found["last_session"] == SESSIONS[0]
    assert found["overall"]["signals"] == len(SIGNALS)


def test_the_report_looks_back_so_many_sessions(
    scored: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hedge_pipeline.stages.scoring.REPORTED_SESSIONS", 3)
    found = stages.signal_report(scored, "SIMQ")
    agrees(found["overall"], by_hand(scored, "SIMQ", SESSIONS[1:]))
    assert list(found["by_session"]) == list(SESSIONS[1:])


# -- MLflow ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking database with its tables and nothing in them: making one takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowRegistry(f"sqlite:///{path}").ping()
    return path


@pytest.fixture
def registry(empty_mlflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowRegistry:
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    return registry_in(tmp_path)


def registry_in(folder: Path) -> MlflowRegistry:
    """A fresh one, as after a restart."""
    artifacts = (folder / "mlartifacts").as_uri()
    return MlflowRegistry(f"sqlite:///{folder / 'mlflow.db'}", artifacts=artifacts)


def publish(registry: MlflowRegistry, deployment: Deployment, symbol: str = "SIMQ") -> Any:
    """What was published, and the runs of the symbol's experiment afterwards."""
    found = stages.signal_report(deployment, symbol)
    registry.publish_signals(deployment, symbol, found)
    experiment = registry.client.get_experiment_by_name(experiment_name(symbol))
    assert experiment is not None
    return found, registry.client.search_runs([experiment.experiment_id])


def points(registry: MlflowRegistry, run_id: str, name: str) -> list[tuple[int, float]]:
    history = registry.client.get_metric_history(run_id, f"signals/{name}")
    return [(point.step, point.value) for point in history]


def to_read(value: float) -> float:
    """As MLflow is told: six digits."""
    return float(f"{value:.6g}")


def test_mlflow_shows_the_report_in_a_run_of_its_own(
    registry: MlflowRegistry, scored: Deployment, tmp_path: Path
) -> None:
    found, (run,) = publish(registry, scored)
    assert (run.info.run_name, run.info.status) == ("SIMQ signals", "FINISHED")
    said, _, *table = run.data.tags["mlflow.note.content"].splitlines()
    assert said.endswith(" sessions")
    assert table[0].startswith("| group | signals | win rate |")
    assert table[2].startswith(f"| all | {found['overall']['signals']} |")
    assert run.data.tags["hedge.sessions"] == "4"
    numbers = ("signals", "scored", "win_rate", "lo", "hi", "profit_factor", "average_pct")
    last = scored.calendar.ordinal(SESSIONS[-1])
    for name in numbers:
        metric = f"win_rate_{name}" if name in ("lo", "hi") else name
        value = to_read(found["overall"][name])
        assert points(registry, run.info.run_id, metric) == [(last, value)]
    names = {artifact.path for artifact in registry.client.list_artifacts(run.info.run_id)}
    assert names == {"signal_report.json", "reliability.png", "false_positives.png"}
    path = download_artifacts(
        run_id=run.info.run_id,
        artifact_path="signal_report.json",
        dst_path=str(tmp_path),
        tracking_uri=registry.tracking_uri,
    )
    assert json.loads(Path(path).read_text()) == found


def test_mlflow_shows_the_false_positives_of_every_session(
    registry: MlflowRegistry, scored: Deployment
) -> None:
    found, (run,) = publish(registry, scored)
    assert points(registry, run.info.run_id, "false_positive_rate") == [
        (scored.calendar.ordinal(label), to_read(session["false_positive_rate"]))
        for label, session in found["by_session"].items()
    ]


def test_published_twice_is_one_run_and_every_number_once(
    registry: MlflowRegistry, scored: Deployment, tmp_path: Path
) -> None:
    _, (first,) = publish(registry, scored)
    _, (second,) = publish(registry_in(tmp_path), scored)
    assert first.info.run_id == second.info.run_id
    for name in second.data.metrics:
        name = name.removeprefix("signals/")
        per_session = len(SESSIONS) if name == "false_positive_rate" else 1
        assert len(points(registry, second.info.run_id, name)) == per_session


def test_a_later_session_is_a_further_point_of_the_same_run(
    registry: MlflowRegistry, copy: Deployment
) -> None:
    before, _ = publish(registry, copy)
    later = signals_in(Path(copy.store.url), BEFORE[4:5])
    found, (run,) = publish(registry, later)
    assert found["sessions"] == 5
    expected = [
        (copy.calendar.ordinal(one["last_session"]), to_read(one["overall"]["win_rate"]))
        for one in (before, found)
    ]
    assert points(registry, run.info.run_id, "win_rate") == expected


def test_every_symbol_has_its_own_run(registry: MlflowRegistry, scored: Deployment) -> None:
    runs = {symbol: publish(registry, scored, symbol)[1] for symbol in SYMBOLS}
    assert [[run.info.run_name for run in runs[symbol]] for symbol in SYMBOLS] == [
        ["SIMQ signals"],
        ["SIMN signals"],
    ]


def test_without_signals_mlflow_shows_an_empty_report(
    registry: MlflowRegistry, tmp_path: Path
) -> None:
    _, (run,) = publish(registry, opened(tmp_path / "data"))
    assert run.data.metrics == {}
    names = [artifact.path for artifact in registry.client.list_artifacts(run.info.run_id)]
    assert names == ["signal_report.json"]


# -- the asset -------------------------------------------------------------------------------------


@dataclass
class Shown:
    """What a run of the asset showed, and the deployment it was about."""

    deployment: Deployment
    metadata: dict[str, Any]


@pytest.fixture(scope="module")
def asset(
    scored: Deployment, empty_mlflow: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("asset") / "data"
    shutil.copytree(scored.store.url, folder)
    shutil.copy(empty_mlflow, folder)
    with pytest.MonkeyPatch.context() as patch, dg.DagsterInstance.ephemeral() as instance:
        point_at(patch, folder)
        result = materialize(instance, ["signal_report"], "SIMQ")
        assert result.success, failures(result)
        yield Shown(opened(folder), shown(result)[("signal_report", "SIMQ")])


def point_at(patch: pytest.MonkeyPatch, folder: Path) -> None:
    for name in ("MLFLOW_TRACKING_URI", "HEDGE_SOURCE", "HEDGE_SOURCE_PATH", "HEDGE_SYMBOLS"):
        patch.delenv(name, raising=False)
    patch.setenv("HEDGE_DATA_URL", str(folder))
    patch.setenv("HEDGE_MODE", "live")
    patch.chdir(folder.parent)


def test_the_asset_shows_the_numbers_of_the_report(asset: Shown) -> None:
    found = stages.signal_report(asset.deployment, "SIMQ")
    overall = found["overall"]
    names = ("signals", "scored", "win_rate", "lo", "hi", "profit_factor", "average_pct")
    numbers = {
        name: round(overall[name], 4) if isinstance(overall[name], float) else overall[name]
        for name in names
    }
    wanted = numbers | {"sessions": 4, "predictions_scored": found["predictions_scored"]}
    assert wanted.items() <= asset.metadata.items()
    assert asset.metadata["mlflow"] == "up to date"


def test_the_asset_shows_every_group_in_a_table(asset: Shown) -> None:
    found = stages.signal_report(asset.deployment, "SIMQ")
    lines = str(asset.metadata["groups"]).splitlines()
    assert len(lines) == 2 + 1 + sum(
        len(found[title]) for title in ("by_level_source", "by_strength_band", "by_confidence")
    )
    group = found["by_level_source"]["MHP"]
    row = (
        f"| level source MHP | {group['signals']} | {group['win_rate']:.3f} | "
        f"{group['lo']:.3f} to {group['hi']:.3f} | {group['profit_factor']:.2f} | "
    )
    assert sum(line.startswith(row) for line in lines) == 1


@pytest.mark.parametrize("picture", ["reliability", "false_positives"])
def test_the_asset_shows_a_picture(asset: Shown, picture: str) -> None:
    markdown = str(asset.metadata[picture])
    assert markdown.startswith("![plot](data:image/png;base64,")
    content = base64.b64decode(markdown.split(",", 1)[1].removesuffix(")"))
    assert content.startswith(b"\x89PNG") and content.endswith(b"IEND\xaeB`\x82")


def test_the_asset_published_what_it_shows(asset: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(monkeypatch, Path(asset.deployment.store.url))
    client = open_registry(load_settings()).client
    experiment = client.get_experiment_by_name(experiment_name("SIMQ"))
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags["mlflow.note.content"].endswith(f"\n\n{asset.metadata['groups']}")
    assert round(run.data.metrics["signals/win_rate"], 4) == asset.metadata["win_rate"]


def test_the_asset_of_an_empty_store_shows_zeros_and_no_picture(
    empty_mlflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(empty_mlflow, folder)
    point_at(monkeypatch, folder)
    with dg.DagsterInstance.ephemeral() as instance:
        result = materialize(instance, ["signal_report"], "SIMQ")
    assert result.success, failures(result)
    found = shown(result)[("signal_report", "SIMQ")]
    assert (found["signals"], found["scored"], found["predictions_scored"]) == (0, 0, 0)
    assert set(found) & {"win_rate", "profit_factor", "reliability", "false_positives"} == set()


def test_an_mlflow_that_is_down_costs_the_view_and_not_the_report(
    scored: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(scored.store.url, tmp_path / "data")
    point_at(monkeypatch, tmp_path / "data")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with dg.DagsterInstance.ephemeral() as instance:
        result = materialize(instance, ["signal_report"], "SIMQ")
    assert result.success, failures(result)
    found = shown(result)[("signal_report", "SIMQ")]
    assert "does not answer" in found["mlflow"]
    assert found["signals"] == len(SIGNALS) * len(SESSIONS)
