"""A feature made from the future is named; honest ones are not, however good."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hedge_pipeline.learning.leaks import area_under_curve, leaking
from hedge_pipeline_tests.learning.conftest import NAMES, learnable_rows


@given(
    values=st.lists(st.integers(0, 4), min_size=2, max_size=12),
    ups=st.lists(st.booleans(), min_size=12, max_size=12),
)
@settings(deadline=None)
def test_the_area_is_the_share_of_pairs_in_order(values: list[int], ups: list[bool]) -> None:
    up = np.array(ups[: len(values)], dtype=float)
    pairs = [
        (x > y) + 0.5 * (x == y)
        for (x, a), (y, b) in itertools.product(zip(values, up, strict=True), repeat=2)
        if a > b
    ]
    found = area_under_curve(np.array(values, dtype=float), up)
    assert np.isnan(found) if not pairs else found == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_feature_that_sees_the_outcome_is_named(sign: int) -> None:
    values, up = learnable_rows(1900, seed=4, slope=0.3)
    assert leaking(values, up, NAMES) == {}
    values[:, 9] = sign * (up - 0.5) + 0.2 * np.random.default_rng(1).standard_normal(1900)
    found = leaking(values, up, NAMES)
    assert list(found) == [NAMES[9]]
    assert found[NAMES[9]] > 0.95 if sign > 0 else found[NAMES[9]] < 0.05


def test_a_leak_in_half_of_the_rows_is_found_and_one_in_a_few_is_not_judged() -> None:
    values, up = learnable_rows(1900, seed=5, slope=0.0)
    values[:, 2] = up
    values[::2, 2] = np.nan
    values[:, 3] = np.nan
    values[:200, 3] = up[:200]
    assert list(leaking(values, up, NAMES)) == [NAMES[2]]


@pytest.mark.parametrize("rows", [0, 10])
def test_constant_unknown_and_few_values_leak_nothing(rows: int) -> None:
    values, up = learnable_rows(1900, seed=6)
    values[:, 0], values[:, 1] = 1.0, np.nan
    assert leaking(values[:, :2], up, NAMES[:2]) == {}
    assert leaking(values[:rows], up[:rows], NAMES) == {}
    assert leaking(values, np.ones(1900), NAMES) == {}
