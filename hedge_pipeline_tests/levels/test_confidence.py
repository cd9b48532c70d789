"""Evidence at levels moves a probability by what was seen, and by nothing where nothing was."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedge_pipeline.levels.confidence import (
    EVERYWHERE,
    LevelEvidence,
    Seen,
    cell_sums,
    confident,
)

probabilities = st.floats(0.01, 0.99)
counts = st.integers(0, 5000)
NAN = float("nan")


def seen(labels: float, ups: float, base_rate: float) -> Seen:
    return Seen(np.array([labels], dtype=float), np.array([ups], dtype=float), base_rate)


def moved(prob_up: float, labels: float, ups: float, base_rate: float, k: float = 200) -> float:
    return float(confident([prob_up], seen(labels, ups, base_rate), k).prob_up[0])


# --- the rule ----------------------------------------------------------------------------------


def test_the_probability_is_moved_as_by_pen_and_paper() -> None:
    h = (70 + 200 * 0.52) / (100 + 200)
    odds = (0.53 / 0.47) * (h / (1 - h)) / (0.52 / 0.48)
    found = confident([0.53], seen(100, 70, 0.52))
    assert found.prob_up[0] == pytest.approx(odds / (1 + odds), rel=1e-12)
    assert found.value[0] == found.prob_up[0] > 0.53


@given(prob_up=st.floats(0, 1), base_rate=st.floats(0, 1))
def test_without_evidence_the_probability_is_the_same_to_the_last_bit(
    prob_up: float, base_rate: float
) -> None:
    for b in (base_rate, NAN):
        found = confident([prob_up], seen(0, 0, b))
        assert found.prob_up.tobytes() == np.float64(prob_up).tobytes()
        assert found.value[0] == (prob_up if prob_up > 0.5 else 1 - prob_up)


@pytest.mark.parametrize(("base_rate", "ups"), [(0.0, 0), (1.0, 30)])
def test_where_the_price_only_ever_went_one_way_nothing_is_moved(
    base_rate: float, ups: int
) -> None:
    assert moved(0.6, 30, ups, base_rate) == 0.6


@pytest.mark.parametrize(("prob_up", "labels", "ups", "expected"), [(0.52, 900, 300, 0.36)])
def test_confidence_falls_below_a_half_where_the_evidence_speaks_against(
    prob_up: float, labels: float, ups: float, expected: float
) -> None:
    both = Seen(np.full(2, float(labels)), np.full(2, float(ups)), 0.5)
    found = confident([prob_up, 1 - prob_up], both)
    h = (ups + 100) / (labels + 200)
    odds = prob_up / (1 - prob_up) * h / (1 - h)
    assert found.value[0] == pytest.approx(odds / (1 + odds))
    assert found.value[0] < 0.5 < found.value[1]
    assert found.value[0] == pytest.approx(expected, abs=0.05)


def test_an_abstention_has_no_confidence() -> None:
    found = confident([NAN, NAN], Seen(np.array([0.0, 50]), np.array([0.0, 40]), 0.5))
    assert np.isnan(found.prob_up).all()
    assert np.isnan(found.value).all()


@given(prob_up=probabilities, labels=counts, share=st.floats(0, 1), base_rate=probabilities)
def test_up_and_down_are_treated_alike(
    prob_up: float, labels: int, share: float, base_rate: float
) -> None:
    ups = labels * share
    here = moved(prob_up, labels, ups, base_rate)
    there = moved(1 - prob_up, labels, labels - ups, 1 - base_rate)
    assert here == pytest.approx(1 - there, abs=1e-12)
    assert 0 < here < 1


@given(prob_up=probabilities, labels=st.integers(1, 5000), base_rate=probabilities)
def test_more_ups_at_a_level_never_lower_the_probability_of_up(
    prob_up: float, labels: int, base_rate: float
) -> None:
    ups = np.linspace(0, labels, 7)
    found = confident(np.full(7, prob_up), Seen(np.full(7, float(labels)), ups, base_rate)).prob_up
    assert (np.diff(found) > 0).all()
    assert moved(prob_up, labels, labels * base_rate, base_rate) == pytest.approx(prob_up)


def test_an_uninformed_model_comes_to_believe_what_was_seen_and_the_prior_says_how_fast() -> None:
    path = [moved(0.5, n, 0.6 * n, 0.5) for n in (0, 20, 200, 2000, 10**7)]
    assert path == sorted(path)
    assert path[0] == 0.5
    assert path[2] == pytest.approx(0.55)
    assert path[-1] == pytest.approx(0.6, abs=1e-4)
    assert moved(0.5, 20, 12, 0.5, k=1e6) == pytest.approx(0.5, abs=1e-5)


# --- counting ----------------------------------------------------------------------------------


def rows(number: int, **columns: Any) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "symbol": "SIMQ",
            "role": "served",
            "level_type": "support",
            "level_source": "HP",
            "strength_score": np.full(number, 20, np.float32),
            "actual_direction": pd.array([1] * number, dtype="Int8"),
        }
    )
    return frame.assign(**columns)


def counted(sums: pd.DataFrame) -> dict[tuple[str, ...], tuple[int, int]]:
    names = ["symbol", "level_type", "level_source", "strength_band"]
    keys = sums[names].itertuples(index=False, name=None)
    return dict(zip(keys, zip(sums["labels"], sums["ups"], strict=True), strict=True))


def test_outcomes_are_counted_by_side_kind_and_band_of_strength() -> None:
    log = rows(
        7,
        level_type=["support", "support", "support", "resistance", "none", "support", "support"],
        level_source=["HP", "HP", "HG", "HP", "none", "HP", "HP"],
        strength_score=np.array([20, 29, 20, 20, 5, 30, 20], np.float32),
        actual_direction=pd.array([1, 0, 1, 1, 0, 0, None], dtype="Int8"),
    )
    assert counted(cell_sums(log, 10)) == {
        ("SIMQ", "all", "all", "all"): (6, 3),
        ("SIMQ", "resistance", "HP", "15-30"): (1, 1),
        ("SIMQ", "support", "HG", "15-30"): (1, 1),
        ("SIMQ", "support", "HP", "15-30"): (2, 1),
        ("SIMQ", "support", "HP", "30-50"): (1, 0),
    }


def test_a_bar_counts_once_however_many_streams_predicted_it_and_even_if_they_abstained() -> None:
    log = pd.concat(
        [rows(3), rows(3, role="baseline"), rows(3, role="newest"), rows(2, symbol="SIMN")]
    ).assign(prediction=pd.array([None] * 11, dtype="Int8"))
    assert counted(cell_sums(log, 10)) == {
        ("SIMN", "all", "all", "all"): (2, 2),
        ("SIMN", "support", "HP", "15-30"): (2, 2),
        ("SIMQ", "all", "all", "all"): (3, 3),
        ("SIMQ", "support", "HP", "15-30"): (3, 3),
    }


def test_effective_counts_are_counts_over_the_horizon() -> None:
    sums = cell_sums(rows(30, actual_direction=pd.array([1, 0, 0] * 10, dtype="Int8")), 10)
    assert sums["effective_labels"].tolist() == [3.0, 3.0]
    assert sums["effective_ups"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("log", [rows(0), rows(4, actual_direction=pd.array([None] * 4, "Int8"))])
def test_a_session_without_labels_has_no_sums(log: pd.DataFrame) -> None:
    sums = cell_sums(log, 10)
    assert sums.empty
    nothing = LevelEvidence.of(sums)
    assert nothing == LevelEvidence()
    labels, ups, base_rate = nothing.at(np.array(["support"]), np.array(["HP"]), [20.0])
    assert (labels[0], ups[0]) == (0, 0)
    assert math.isnan(base_rate)


def test_evidence_of_two_symbols_is_not_mixed() -> None:
    with pytest.raises(ValueError, match="per symbol"):
        LevelEvidence.of(cell_sums(pd.concat([rows(3), rows(3, symbol="SIMN")]), 10))


def session(seed: int, number: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    side = rng.choice(["support", "resistance", "none"], number)
    kind = rng.choice(["HP", "MHP", "HG"], number)
    return rows(
        number,
        level_type=side,
        level_source=np.where(side == "none", "none", kind),
        strength_score=rng.uniform(0, 60, number).astype(np.float32),
        actual_direction=pd.array(rng.choice([0, 1], number), dtype="Int8"),
    )


@given(seed=st.integers(0, 10**6), sessions=st.integers(1, 4))
def test_the_sums_of_sessions_add_up_to_the_sums_of_all_of_them(seed: int, sessions: int) -> None:
    each = [session(seed + i) for i in range(sessions)]
    added = LevelEvidence.of(pd.concat([cell_sums(log, 10) for log in each])).cells
    at_once = LevelEvidence.of(cell_sums(pd.concat(each), 10)).cells
    assert added.keys() == at_once.keys()
    for cell, found in added.items():
        assert found == pytest.approx(at_once[cell])
    inside = [found for cell, found in added.items() if cell != EVERYWHERE]
    assert sum(labels for labels, _ in inside) <= added[EVERYWHERE][0]
    assert all(0 <= ups <= labels for labels, ups in added.values())


def test_a_bar_is_moved_by_its_own_cell_only() -> None:
    log = pd.concat(
        [
            rows(4000, actual_direction=pd.array([1, 1, 1, 0] * 1000, dtype="Int8")),
            rows(
                4000,
                level_type="resistance",
                actual_direction=pd.array([0, 0, 0, 1] * 1000, dtype="Int8"),
            ),
        ]
    )
    evidence = LevelEvidence.of(cell_sums(log, 10))
    side = np.array(["support", "resistance", "support", "support", "none"], dtype=object)
    kind = np.array(["HP", "HP", "MHP", "HP", "none"], dtype=object)
    found = evidence.at(side, kind, [20, 15, 20, 31, 20])
    assert found.labels.tolist() == [400, 400, 0, 0, 0]
    assert found.ups.tolist() == [300, 100, 0, 0, 0]
    assert found.base_rate == 0.5
    prob_up = confident(np.full(5, 0.51), found).prob_up
    assert prob_up[0] > 0.6 > 0.4 > prob_up[1]
    assert prob_up[2:].tolist() == [0.51] * 3
