"""What `hedge status` and `hedge doctor` say agrees with the tables."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hedge_pipeline import report
from hedge_pipeline.market.tables import OUTCOMES, PREDICTION_LOG, PROMOTIONS, RAW_QUOTES, TABLES
from hedge_pipeline.resources.registry import MlflowRegistry
from hedge_pipeline.serving.predicting import NO_MODEL
from hedge_pipeline.status import diagnose, status
from hedge_pipeline_tests.replays import (
    DEMO_SESSIONS,
    SYMBOLS,
    Demo,
    demo_in,
    replay_in,
    rows_of,
    settings_in,
)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return demo_in(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def found(demo: Demo) -> dict[str, Any]:
    return status(replay_in(demo.out))


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_the_numbers_of_a_symbol_are_those_of_the_tables(
    demo: Demo, found: dict[str, Any], symbol: str
) -> None:
    part = found["symbols"][symbol]
    log = rows_of(demo.store, PREDICTION_LOG, symbols=[symbol]).query("role == 'served'")
    outcomes = rows_of(demo.store, OUTCOMES, symbols=[symbol])
    scored = log.dropna(subset=["prediction"]).merge(outcomes, on=["symbol", "bar_ts"])
    scored = scored.dropna(subset=["actual_direction"])
    assert part["predictions"] == log["prediction"].notna().sum()
    assert part["abstentions"] == (log["reason"] == NO_MODEL).sum() > 0
    assert part["matured_outcomes"] == part["accuracy"]["n"] == len(scored)
    assert part["accuracy"]["value"] == pytest.approx(
        (scored["prediction"] == scored["actual_direction"]).mean()
    )
    assert part["accuracy"] == demo.summary["per_symbol"][symbol]["accuracy"]


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_the_newest_version_its_verdict_and_the_missing_champion_are_named(
    demo: Demo, found: dict[str, Any], symbol: str
) -> None:
    part = found["symbols"][symbol]
    verdicts = rows_of(demo.store, PROMOTIONS, symbols=[symbol]).query("kind == 'verdict'")
    last = verdicts.sort_values("model_version").iloc[-1]
    assert part["newest_version"]["version"] == last["model_version"] == 4
    assert part["newest_version"]["accuracy"]["value"] is None
    assert part["champion_version"] is None
    assert part["trained_through"] == last["session"]
    assert part["last_verdict"]["reason"] == last["reason"]
    assert (part["new_samples"], part["needed_samples"]) == (0, 100)
    assert part["skill"] == "unproven"


def test_every_session_is_listed_with_its_bars_and_outcomes(
    demo: Demo, found: dict[str, Any]
) -> None:
    assert [row["session"] for row in found["sessions"]] == list(demo.store.sessions(RAW_QUOTES))
    assert len(found["sessions"]) == DEMO_SESSIONS
    last = found["sessions"][-1]
    outcomes = rows_of(demo.store, OUTCOMES, [last["session"]])["status"]
    assert last["matured"] == (outcomes != "unlabelable").sum()
    assert (last["bars"], last["gaps"], last["coverage"]) == (780, 0, 1.0)
    assert (last["predictions"], last["abstentions"]) == (780, 0)


def test_while_a_session_runs_its_coverage_is_of_the_bars_that_have_ended(
    demo: Demo, tmp_path: Path
) -> None:
    deployment = replay_in(demo.copy(tmp_path / "out"))
    session = deployment.calendar.session(demo.store.sessions(RAW_QUOTES)[-1])
    now = session.opens + dt.timedelta(minutes=60)
    bars = rows_of(demo.store, RAW_QUOTES, [session.label])
    ended = bars[(bars["bar_ts"] < now) & ~bars["bar_ts"].eq(session.opens)]
    deployment.store.replace(RAW_QUOTES, session.label, ended)
    running = replace(deployment, replay=False, clock=lambda: now)
    assert status(running)["sessions"][-1]["coverage"] == pytest.approx(59 / 60)
    shares = [part["share"] for part in report._coverage(running, (session.label,)).values()]
    assert shares == pytest.approx([59 / 60] * 2)


def test_the_disk_use_is_that_of_the_files(demo: Demo, found: dict[str, Any]) -> None:
    assert found["disk_bytes"] == {
        table.name: sum(x.stat().st_size for x in (demo.out / table.name).rglob("*.parquet"))
        for table in TABLES
    }


def test_the_status_of_an_empty_store_is_all_zeros_and_nones(tmp_path: Path) -> None:
    found = status(replay_in(tmp_path / "nothing"))
    part = found["symbols"]["SIMQ"]
    assert found["sessions"] == []
    assert (part["predictions"], part["matured_outcomes"], part["new_samples"]) == (0, 0, 0)
    assert part["accuracy"]["value"] is part["last_verdict"] is part["newest_version"] is None
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ("2024-01-02T13:00", "XNYS: closed, opens 2024-01-02 09:30 EST"),
        ("2024-01-02T15:00", "XNYS: session 2024-01-02 is open"),  # the first one of the history
        ("2024-01-02T21:00", "XNYS: closed, opens 2024-01-03 09:30 EST"),
        ("2024-01-03T15:00", "XNYS: session 2024-01-03 is open"),
    ],
)
def test_the_doctor_knows_the_open_session_and_the_next_opening(
    tmp_path: Path, now: str, words: str
) -> None:
    moment = dt.datetime.fromisoformat(f"{now}+00:00")
    deployment = replace(replay_in(tmp_path), clock=lambda: moment)
    registry = MlflowRegistry("nosuch://127.0.0.1/mlflow")
    findings = diagnose(settings_in(tmp_path), deployment, registry)
    (found,) = (finding for finding in findings if finding.name == "calendar")
    assert (found.ok, found.message) == (True, words)


def test_the_doctor_notices_a_clock_that_is_behind_the_data(demo: Demo, tmp_path: Path) -> None:
    out = demo.copy(tmp_path / "out")
    (out / "replay.json").unlink()
    settings = settings_in(out, HEDGE_MODE="live", HEDGE_HISTORY_START="2024-01-02")
    early = dt.datetime(2024, 1, 8, 12, 0, tzinfo=dt.UTC)
    deployment = replace(replay_in(out, HEDGE_MODE="live"), clock=lambda: early)
    registry = MlflowRegistry("nosuch://127.0.0.1/mlflow")
    findings = {x.name: x for x in diagnose(settings, deployment, registry)}
    assert [name for name, finding in findings.items() if not finding.ok] == ["mlflow", "clock"]
    assert "session 2024-01-11 is stored: set the clock" in findings["clock"].message
