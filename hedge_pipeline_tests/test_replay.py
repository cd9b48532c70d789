"""The replay: nothing is lost, nothing is rewritten, and what it says of itself is so."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from hedge_pipeline import cli, stages
from hedge_pipeline.market.calendar import SessionCalendar
from hedge_pipeline.market.sources import SourceOptions, open_source
from hedge_pipeline.market.tables import (
    FEATURE_ROWS,
    GAPS,
    HEDGE_LEVELS,
    OUTCOMES,
    PREDICTION_LOG,
    PROMOTIONS,
    RAW_QUOTES,
    TABLES,
)
from hedge_pipeline.replay import Night, claim, replay, summarize
from hedge_pipeline.serving.predicting import NO_MODEL
from hedge_pipeline.stages import Deployment, StageError
from hedge_pipeline.store import Store
from hedge_pipeline_tests.replays import (
    DEMO_SESSIONS,
    SYMBOLS,
    Demo,
    assert_equal_tables,
    demo_in,
    environment,
    replay_in,
    rows_of,
    sessions_of,
)

ACCURACY = {"value", "lo", "hi", "n", "n_effective", "base_rate"}
LOSSES = {"log_loss", "base_log_loss", "raw_log_loss"}
COUNTS = {"bars", "gaps", "predictions", "abstentions", "outcomes", "retrains", "promotions"}
COSTS = {"seconds", "seconds_training", "peak_rss_mb", "bytes_per_1000_predictions"}
SESSIONS_BEFORE_A_MODEL = 5


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return demo_in(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither variables of ours nor a `.env` change what the tests do."""
    monkeypatch.chdir(tmp_path)
    wanted = environment()
    for name in list(os.environ):
        if name not in wanted:
            monkeypatch.delenv(name)


# -- what it says of itself ------------------------------------------------------------------------


def test_the_summary_has_exactly_the_promised_keys(demo: Demo) -> None:
    promised = {"sessions", "accuracy", "skill", "per_symbol", "per_version"}
    assert set(demo.summary) == promised | COUNTS | LOSSES | COSTS


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_a_symbols_part_of_the_summary_has_the_keys_of_the_whole(demo: Demo, symbol: str) -> None:
    summary = demo.summary
    assert set(summary["per_symbol"]) == set(SYMBOLS) == set(summary["skill"])
    part = summary["per_symbol"][symbol]
    assert set(part) == COUNTS | LOSSES | {"accuracy"}
    assert set(part["accuracy"]) == ACCURACY == set(summary["accuracy"])
    assert set(part["outcomes"]) == {"up", "down", "flat", "unlabelable"}
    assert set(summary["skill"][symbol]) == {"state", "log_evidence", "log_peak", "trust", "events"}


def test_every_version_that_predicted_is_scored_in_the_summary(demo: Demo) -> None:
    versions = demo.summary["per_version"]
    served = rows_of(demo.store, PREDICTION_LOG).query("role == 'served' and model_version > 0")
    found = {(part["symbol"], part["version"]) for part in versions}
    assert found == set(zip(served["symbol"], served["model_version"], strict=True))
    assert all(
        set(part) == {"symbol", "version", "sessions", "accuracy"} | LOSSES for part in versions
    )


def test_the_summary_counts_what_the_tables_hold(demo: Demo) -> None:
    store, summary = demo.store, demo.summary
    served = rows_of(store, PREDICTION_LOG).query("role == 'served'")
    outcomes = rows_of(store, OUTCOMES)["status"].value_counts()
    verdicts = rows_of(store, PROMOTIONS).query("kind == 'verdict'")
    assert summary["sessions"] == DEMO_SESSIONS
    assert summary["bars"] == len(rows_of(store, RAW_QUOTES))
    assert summary["gaps"] == len(rows_of(store, GAPS))
    assert summary["predictions"] == served["prediction"].notna().sum() > 0
    assert summary["abstentions"] == served["prediction"].isna().sum() > 0
    assert summary["outcomes"] == {k: outcomes[k] for k in ("up", "down", "flat", "unlabelable")}
    assert summary["retrains"] == len(verdicts) > 0
    assert summary["promotions"] == (verdicts["event"] == "promote").sum()


@pytest.mark.parametrize("symbol", [None, *SYMBOLS])
def test_the_accuracy_in_the_summary_is_the_share_of_right_directions(
    demo: Demo, symbol: str | None
) -> None:
    chosen = SYMBOLS if symbol is None else (symbol,)
    log = rows_of(demo.store, PREDICTION_LOG, symbols=chosen).query("role == 'served'")
    outcomes = rows_of(demo.store, OUTCOMES, symbols=chosen)
    rows = log.merge(outcomes, on=["symbol", "bar_ts"]).dropna(
        subset=["prediction", "actual_direction"]
    )
    hits = rows["prediction"] == rows["actual_direction"]
    summary = demo.summary if symbol is None else demo.summary["per_symbol"][symbol]
    accuracy = summary["accuracy"]
    assert accuracy["n"] == len(rows)
    assert accuracy["value"] == pytest.approx(hits.mean())
    assert accuracy["lo"] < accuracy["value"] < accuracy["hi"]
    assert accuracy["n_effective"] == pytest.approx(len(rows) / 10)
    up = rows["actual_direction"].to_numpy(dtype=np.float64)
    prob = rows["prob_up"].to_numpy(dtype=np.float64)
    loss = -np.log(np.where(up > 0, prob, 1 - prob)).mean()
    assert summary["log_loss"] == pytest.approx(loss)


def test_a_thousand_predictions_with_their_features_fit_into_the_budget(demo: Demo) -> None:
    folders = [demo.out / table.name for table in (FEATURE_ROWS, PREDICTION_LOG)]
    size = sum(x.stat().st_size for folder in folders for x in folder.rglob("*.parquet"))
    served = rows_of(demo.store, PREDICTION_LOG).query("role == 'served'")
    measured = 1000 * size / len(served)
    assert measured <= 200_000
    assert demo.summary["bytes_per_1000_predictions"] == pytest.approx(measured, rel=0.01)


# -- what it writes --------------------------------------------------------------------------------


def test_until_the_first_model_every_row_abstains_and_says_why(demo: Demo) -> None:
    early = sessions_of(replay_in(demo.out), SESSIONS_BEFORE_A_MODEL)
    log = rows_of(demo.store, PREDICTION_LOG, early)
    assert len(log) == SESSIONS_BEFORE_A_MODEL * 390 * len(SYMBOLS)
    assert log["prediction"].isna().all()
    assert log["prob_up"].isna().all()
    assert set(log["reason"]) == {NO_MODEL}
    assert set(log["model_version"]) == {0}


def test_from_the_session_after_the_first_model_on_every_row_predicts(demo: Demo) -> None:
    later = sessions_of(replay_in(demo.out), DEMO_SESSIONS)[SESSIONS_BEFORE_A_MODEL:]
    log = rows_of(demo.store, PREDICTION_LOG, later).query("role == 'served'")
    assert log["prediction"].notna().all()
    assert set(log["mode"]) == {"replay"}
    assert log.groupby("symbol")["model_version"].agg(["min", "max"]).to_numpy().tolist() == [
        [1, 3]
    ] * len(SYMBOLS)


HOLES = (5, 6, 7, 200, 389)


def _file_of_bars(path: Path, calendar: SessionCalendar) -> tuple[str, ...]:
    """Five sessions, the fourth missing: SIMA with holes, SIMB lacks the second, SIMC two."""
    labels = calendar.labels[:5]
    source = open_source("simulated", SourceOptions(calendar))
    pieces = []
    for symbol, present in (("SIMA", (0, 1, 2, 4)), ("SIMB", (0, 2, 4)), ("SIMC", (2, 4))):
        for number in present:
            session = calendar.session(labels[number])
            bars = source.bars(symbol, session, session.closes + dt.timedelta(hours=1))
            bars = bars.drop(index=list(HOLES)) if symbol == "SIMA" else bars
            pieces.append(bars.assign(symbol=symbol))
    columns = ["symbol", "bar_ts", "open", "high", "low", "close", "volume"]
    pd.concat(pieces)[columns].to_csv(path, index=False)
    return labels


@pytest.fixture(scope="module")
def patchy(tmp_path_factory: pytest.TempPathFactory, calendar: SessionCalendar) -> Deployment:
    """A replay of that file; what its sessions are is read from the calendar."""
    folder = tmp_path_factory.mktemp("patchy")
    labels = _file_of_bars(folder / "bars.csv", calendar)
    deployment = replay_in(
        folder / "out",
        ("SIMA", "SIMB", "SIMC"),
        HEDGE_SOURCE="file",
        HEDGE_SOURCE_PATH=str(folder / "bars.csv"),
    )
    replay(deployment, labels)
    return deployment


@pytest.mark.parametrize("number", range(5))
def test_every_expected_minute_is_a_bar_or_a_gap_and_never_both(
    patchy: Deployment, number: int
) -> None:
    session = patchy.calendar.session(patchy.calendar.labels[number])
    bars = rows_of(patchy.store, RAW_QUOTES, [session.label])
    gaps = rows_of(patchy.store, GAPS, [session.label])
    minutes = pd.DatetimeIndex(session.bar_ts).tz_localize("UTC")
    expected = sorted((symbol, ts) for symbol in patchy.symbols for ts in minutes)
    found = pd.concat([bars[["symbol", "bar_ts"]], gaps[["symbol", "bar_ts"]]])
    assert sorted(zip(found["symbol"], found["bar_ts"], strict=True)) == expected


@pytest.mark.parametrize(
    ("symbol", "missing"),
    [("SIMA", [5, 5, 5, 390, 5]), ("SIMB", [0, 390, 0, 390, 0]), ("SIMC", [390, 390, 0, 390, 0])],
)
def test_holes_missing_sessions_and_late_starts_are_gaps_with_a_cause(
    patchy: Deployment, symbol: str, missing: list[int]
) -> None:
    gaps = rows_of(patchy.store, GAPS, symbols=[symbol])
    days = gaps["bar_ts"].dt.strftime("%Y-%m-%d")
    labels = patchy.calendar.labels[:5]
    assert [int((days == label).sum()) for label in labels] == missing
    assert GAPS.violations(gaps) == {}


def test_bars_predictions_and_outcomes_have_the_same_minutes(patchy: Deployment) -> None:
    keys = ["symbol", "bar_ts"]
    bars = rows_of(patchy.store, RAW_QUOTES)[keys]
    served = rows_of(patchy.store, PREDICTION_LOG).query("role == 'served'")[keys]
    outcomes = rows_of(patchy.store, OUTCOMES)[keys]
    assert bars.equals(served.reset_index(drop=True))
    assert bars.equals(outcomes)


def test_a_summary_counts_the_gaps_of_a_patchy_file(patchy: Deployment) -> None:
    summary = summarize(patchy, replay(patchy, ()), 1.0)
    assert summary["bars"] + summary["gaps"] == 5 * 390 * 3
    assert summary["gaps"] == 410 + 780 + 1170
    assert summary["sessions"] == 4


# -- going on --------------------------------------------------------------------------------------


def test_replaying_further_changes_no_earlier_row(demo: Demo, tmp_path: Path) -> None:
    out = demo.copy(tmp_path / "out")
    deployment = replay_in(out)
    sessions = sessions_of(deployment, DEMO_SESSIONS + 1)
    replay(deployment, sessions)
    assert_equal_tables(Store(str(out)), demo.store, sessions[:-1])
    assert len(rows_of(Store(str(out)), PREDICTION_LOG, sessions[-1:])) == 2 * 2 * 390


def _times_of_frozen_files(out: Path) -> dict[Path, int]:
    """When each file was written, but for the tables that are computed anew."""
    computed = {FEATURE_ROWS.name, HEDGE_LEVELS.name, GAPS.name}
    files = (x for x in out.rglob("*.parquet") if not computed & set(x.parts))
    return {x: x.stat().st_mtime_ns for x in files}


def test_replaying_again_writes_no_row_again(demo: Demo, tmp_path: Path) -> None:
    out = demo.copy(tmp_path / "out")
    before = _times_of_frozen_files(out)
    deployment = replay_in(out)
    nights: list[Night] = []
    replay(deployment, sessions_of(deployment, DEMO_SESSIONS), watch=nights.append)
    assert _times_of_frozen_files(out) == before
    assert_equal_tables(Store(str(out)), demo.store)
    assert [night.session for night in nights] == [deployment.calendar.labels[7]] * len(SYMBOLS)
    assert all(night.card is None and not night.verdicts for night in nights)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """SIMN without SIMQ beside it."""
    deployment = replay_in(tmp_path_factory.mktemp("alone"), ("SIMN",))
    replay(deployment, sessions_of(deployment, DEMO_SESSIONS))
    return deployment


def test_a_symbol_alone_has_the_rows_it_has_beside_another(demo: Demo, alone: Deployment) -> None:
    assert_equal_tables(alone.store, demo.store, symbols=["SIMN"])
    ours, theirs = alone.shelf, replay_in(demo.out).shelf
    assert ours.versions("SIMN") == theirs.versions("SIMN") == (1, 2, 3, 4)
    assert ours.content("SIMN", 4) == theirs.content("SIMN", 4)


class Stopped(Exception):
    """The replay was stopped on purpose."""


def test_an_interrupted_replay_goes_on_to_the_same_tables(
    alone: Deployment, tmp_path: Path
) -> None:
    deployment = replay_in(tmp_path, ("SIMN",))
    sessions = sessions_of(deployment, DEMO_SESSIONS)

    def stop(night: Night) -> None:
        if night.session == sessions[SESSIONS_BEFORE_A_MODEL]:
            raise Stopped

    with pytest.raises(Stopped):
        replay(deployment, sessions, watch=stop)
    assert deployment.store.sessions(PREDICTION_LOG) == sessions[: SESSIONS_BEFORE_A_MODEL + 1]
    again = replay_in(tmp_path, ("SIMN",))
    done: list[str] = []
    replay(again, sessions, advance=done.append)
    assert tuple(done) == sessions
    assert_equal_tables(again.store, alone.store)
    assert again.shelf.content("SIMN", 4) == alone.shelf.content("SIMN", 4)


def test_the_watcher_sees_every_symbol_after_every_session(tmp_path: Path) -> None:
    deployment = replay_in(tmp_path)
    sessions = sessions_of(deployment, 2)
    nights: list[Night] = []
    replay(deployment, sessions, watch=nights.append)
    seen = [(night.session, night.symbol) for night in nights]
    assert seen == [(session, symbol) for session in sessions for symbol in SYMBOLS]
    assert all(night.fold is not None and night.fold.session == night.session for night in nights)


# -- whose folder it is ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--seed", "8", "seed 7, not 8"),
        ("--symbols", "SIMQ", "symbols ['SIMQ', 'SIMN'], not ['SIMQ']"),
        ("--from", "2024-01-03", "first session '2024-01-02', not '2024-01-03'"),
        ("--source", "file", "source 'simulated', not 'file'"),
    ],
)
def test_a_folder_of_another_replay_is_refused_in_one_line(
    demo: Demo, tmp_path: Path, calendar: SessionCalendar, option: str, value: str, said: str
) -> None:
    given = {"--symbols": "SIMQ,SIMN", "--from": "2024-01-02", "--source": "simulated"}
    given[option] = value
    if value == "file":
        _file_of_bars(tmp_path / "bars.csv", calendar)
        given |= {"--path": str(tmp_path / "bars.csv"), "--symbols": "SIMA"}
    before = sorted(x for x in demo.out.rglob("*"))
    arguments = [part for pair in given.items() for part in pair]
    result = CliRunner().invoke(
        cli.app, ["replay", "--out", str(demo.out), "--to", "2024-01-05", *arguments]
    )
    assert result.exit_code == 1
    assert (
        result.stderr == f"error: {demo.out} holds another replay: {said}; choose another --out\n"
    )
    assert sorted(x for x in demo.out.rglob("*")) == before


def test_a_store_with_live_data_is_refused(tmp_path: Path) -> None:
    deployment = replay_in(tmp_path)
    stages.collect(deployment, deployment.calendar.labels[0])
    with pytest.raises(StageError, match=r"holds live data; give the replay a folder of its own"):
        claim(deployment, {"seed": 7})
    assert not (tmp_path / "replay.json").exists()


def test_a_claimed_folder_may_be_claimed_again_for_the_same_replay(tmp_path: Path) -> None:
    deployment = replay_in(tmp_path)
    claim(deployment, {"seed": 7, "symbols": ["SIMQ"]})
    stages.collect(deployment, deployment.calendar.labels[0])
    written = (tmp_path / "replay.json").read_bytes()
    claim(replay_in(tmp_path), {"seed": 7, "symbols": ["SIMQ"]})
    assert (tmp_path / "replay.json").read_bytes() == written


def test_all_tables_are_compared_by_these_tests(demo: Demo) -> None:
    with_rows = {table.name for table in TABLES if len(rows_of(demo.store, table))}
    assert with_rows == {table.name for table in TABLES} - {"gaps", "alerts"}
