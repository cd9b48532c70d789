"""Rows unlike the training data are found, rows like them are not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hedge_pipeline.learning.novelty import LEFT_OUT, MOST_OUTSIDE, novelties, ranges
from hedge_pipeline.learning.training import Matrix
from hedge_pipeline_tests.learning.conftest import NAMES, learnable_rows

TRAINING = learnable_rows(8000, seed=1)[0]
LOWS, HIGHS = ranges(TRAINING)


def found(values: Matrix) -> list[str]:
    return list(novelties(values, LOWS, HIGHS, NAMES))


def usual(rows: int = 5) -> Matrix:
    return np.zeros((rows, len(NAMES)), dtype=np.float32)


def test_new_rows_of_the_same_kind_are_hardly_ever_novel() -> None:
    fresh = learnable_rows(8000, seed=2)[0]
    assert np.mean([reason != "" for reason in found(fresh)]) < 0.001


@given(outside=st.sets(st.integers(0, len(NAMES) - 1), max_size=8), sign=st.sampled_from([-1, 1]))
@settings(max_examples=40, deadline=None)
def test_more_than_three_features_outside_are_novel(outside: set[int], sign: int) -> None:
    values = usual()
    values[2, list(outside)] = sign * 4.5  # outside of 3.3, not by half the width of 6.6
    reasons = found(values)
    assert [reason != "" for reason in reasons] == [
        row == 2 and len(outside) > MOST_OUTSIDE for row in range(5)
    ]


def test_one_feature_far_outside_is_enough_and_is_named() -> None:
    values = usual()
    values[1, 7] = -40.0
    assert found(values) == ["", f"unlike the training data: {NAMES[7]}", "", "", ""]


def test_at_most_four_features_are_named() -> None:
    values = usual(1)
    values[0, :9] = 40.0
    (reason,) = found(values)
    assert reason == f"unlike the training data: {', '.join(NAMES[:4])} and 5 more"


def test_unknown_values_are_never_novel() -> None:
    assert found(np.full((3, len(NAMES)), np.nan, dtype=np.float32)) == [""] * 3


def test_a_feature_that_was_never_known_has_no_range() -> None:
    training = TRAINING.copy()
    training[:, 4] = np.nan
    lows, highs = ranges(training)
    assert lows[4] is None and highs[4] is None
    values = usual()
    values[:, 4] = 1e6
    assert list(novelties(values, lows, highs, NAMES)) == [""] * 5


def test_another_value_of_a_constant_feature_is_outside_but_not_far() -> None:
    """A flag that was never up in training may go up; it alone silences nobody."""
    training = TRAINING.copy()
    training[:, 4] = 2.0
    values = usual(3)
    values[:, 4] = (2.0, 2.5, 2.5)
    values[2, :3] = 4.5
    reasons = list(novelties(values, *ranges(training), NAMES))
    assert reasons[:2] == ["", ""]
    assert NAMES[4] in reasons[2]


def test_a_description_without_ranges_refuses_nothing() -> None:
    assert list(novelties(usual() + 1e9, (), (), NAMES)) == [""] * 5


@pytest.mark.parametrize("rows", [0, 1])
def test_ranges_of_next_to_nothing(rows: int) -> None:
    lows, highs = ranges(TRAINING[:rows])
    assert len(lows) == len(highs) == len(NAMES)
    assert all((x is None) is (rows == 0) for x in lows)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.floats(-1e6, 1e6, width=32) | st.sampled_from([np.nan, np.inf]), min_size=1, max_size=400
    )
)
def test_ranges_are_the_quantiles_of_the_known_values_to_the_bit(values: list[float]) -> None:
    column = np.array(values, np.float32)
    (low,), (high,) = ranges(column[:, np.newaxis])
    known = column[np.isfinite(column)].astype(np.float64)
    wanted = np.quantile(known, [LEFT_OUT, 1 - LEFT_OUT]) if len(known) else [None, None]
    assert [low, high] == list(wanted)
