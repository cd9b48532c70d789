"""What asset pages say of features and models is what the tables give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hedge_pipeline import insight
from hedge_pipeline.assets import pictures
from hedge_pipeline.learning.drift import FEATURE_LIMIT
from hedge_pipeline.market.tables import FEATURE_ROWS, OUTCOMES, PREDICTION_LOG, feature_names
from hedge_pipeline.stages import Deployment
from hedge_pipeline.store import Store
from hedge_pipeline_tests.replays import demo_in, replay_in, sessions_of

SESSIONS = 30
MOVED = "return_5"


def rows_of_a_session(seed: int, label: str, moved: float = 0.0) -> pd.DataFrame:
    """Sixty bars of two symbols; one feature of SIMQ may have moved."""
    rng = np.random.default_rng(seed)
    start = pd.Timestamp(f"{label}T14:30:00Z")
    parts = []
    for symbol in ("SIMQ", "SIMN"):
        values = rng.standard_normal((60, len(feature_names())))
        values += rng.standard_normal(len(feature_names()))  # bars of a day resemble each other
        frame = pd.DataFrame(values, columns=list(feature_names()))
        frame[MOVED] += moved * (symbol == "SIMQ")
        bar_ts = pd.date_range(start, periods=60, freq="min")
        head = {
            "symbol": symbol,
            "bar_ts": bar_ts,
            "available_at": bar_ts + pd.Timedelta(minutes=1),
            "schema_hash": FEATURE_ROWS.schema_hash,
        }
        parts.append(frame.assign(**{k: v for k, v in head.items() if k in FEATURE_ROWS.names}))
    return FEATURE_ROWS.conform(pd.concat(parts, ignore_index=True))


def put(store: Store, labels: tuple[str, ...], moved_since: int, size: float) -> None:
    for number, label in enumerate(labels):
        moved = size if number >= moved_since else 0.0
        store.replace(FEATURE_ROWS, label, rows_of_a_session(number, label, moved))


@pytest.fixture
def moved(tmp_path: Path) -> Deployment:
    """Thirty sessions; in the last five a feature of SIMQ is elsewhere."""
    found = replay_in(tmp_path / "data")
    put(found.store, sessions_of(found, SESSIONS), SESSIONS - 5, 12.0)
    return found


def test_the_feature_that_moved_is_the_one_that_is_shown(moved: Deployment) -> None:
    label = sessions_of(moved, SESSIONS)[-1]
    found = insight.feature_moves(moved, label, ["SIMQ", "SIMN"])
    worst = {symbol: max(own, key=lambda name: abs(own[name])) for symbol, own in found.items()}
    assert worst["SIMQ"] == MOVED
    assert found["SIMQ"][MOVED] > FEATURE_LIMIT > abs(found["SIMN"][MOVED])
    shown = pictures.features(moved, label, 120)
    assert shown["SIMQ_drift_se"] == round(found["SIMQ"][MOVED], 2)
    assert shown["SIMN_drift_se"] == round(abs(found["SIMN"][worst["SIMN"]]), 2)
    assert f"| SIMQ {MOVED} | {found['SIMQ'][MOVED]:+.1f}, drift |" in shown["drift"].md_str
    assert len(shown["drift"].md_str) < 1000  # Dagster shows it without a click
    assert shown["drift_by_feature"].md_str.startswith("![plot](data:image/png")


def test_the_drift_of_a_session_knows_no_later_one(moved: Deployment) -> None:
    *_, before, _1, _2, _3, _4, _5 = sessions_of(moved, SESSIONS)
    found = insight.feature_moves(moved, before, ["SIMQ"])
    assert abs(found["SIMQ"][MOVED]) < FEATURE_LIMIT


def test_a_session_that_was_replaced_is_read_again(moved: Deployment) -> None:
    labels = sessions_of(moved, SESSIONS)
    first = insight.feature_moves(moved, labels[-1], ["SIMQ"])
    put(moved.store, labels, SESSIONS - 5, -12.0)
    again = insight.feature_moves(moved, labels[-1], ["SIMQ"])
    assert first["SIMQ"][MOVED] > FEATURE_LIMIT and again["SIMQ"][MOVED] < -FEATURE_LIMIT


def test_too_few_sessions_say_so_and_show_no_number(moved: Deployment) -> None:
    label = sessions_of(moved, SESSIONS)[23]
    shown = pictures.features(moved, label, 120)
    assert shown["drift"] == "too few sessions to tell"
    assert not [name for name in shown if name.endswith("_se")]


def test_the_models_that_were_tried_had_not_learned_from_what_they_predicted(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    found = replay_in(demo_in(tmp_path_factory.getbasetemp()).out)
    tried = insight.tried_models(found, "SIMQ")
    assert tried is not None
    log = found.store.read(PREDICTION_LOG, symbols=["SIMQ"])
    said = log[log["role"].isin(["served", "newest"]) & log["prob_up"].notna()]
    cutoffs = {x: found.shelf.card("SIMQ", x).cutoff for x in said["model_version"].unique()}
    days = said["bar_ts"].dt.strftime("%Y-%m-%d")
    assert (days > said["model_version"].map(cutoffs)).all()
    known = found.store.read(OUTCOMES, symbols=["SIMQ"]).dropna(subset="actual_direction")
    rows = said.merge(known[["bar_ts", "actual_direction"]], on="bar_ts")
    newest = rows.loc[rows.groupby("bar_ts")["model_version"].idxmax()].sort_values("bar_ts")
    odds = newest["base_rate"] / (1 - newest["base_rate"]) * np.exp(newest["margin"].astype(float))
    assert np.allclose(np.sort(tried.probability), np.sort(odds / (1 + odds)))
    assert tried.up.sum() == newest["actual_direction"].sum()
    assert (tried.first, tried.last) == (min(cutoffs), max(cutoffs))
    assert tried.sessions == days.nunique()
    assert f"versions {tried.first} to {tried.last}" in tried.in_words()


def test_before_a_version_has_met_an_outcome_there_is_nothing_to_draw(tmp_path: Path) -> None:
    assert insight.tried_models(replay_in(tmp_path / "data"), "SIMQ") is None
