"""Each guard alone stops its own sabotage, and honest candidates pass them all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from hedge_pipeline.learning.dataset import TrainingSet
from hedge_pipeline.learning.guards import guard
from hedge_pipeline.learning.training import (
    Margins,
    Matrix,
    Model,
    TrainingPlan,
    fit,
    load_model,
    margins,
)
from hedge_pipeline_tests.learning.conftest import (
    NAMES,
    card_of,
    learnable_rows,
    margins_like,
    model_of,
    training_set,
)

SLOPE = np.float32(0.5)


def honest(values: Matrix) -> Any:
    return SLOPE * values[:, 0]


def verdict(
    model: Model,
    data: TrainingSet,
    *,
    trained: Margins | None = None,
    base_rate: float = 0.5,
    earlier: Sequence[float] = (),
) -> str | None:
    """What the guards say; the trainer's margins are the model's own unless given."""
    own = model.margin(data.features[data.recent]) if trained is None else trained
    logged = model.margin(data.features[data.recent])
    return guard(model.card, logged, own, data, base_rate, earlier)


def test_an_honest_model_passes(learnable: TrainingSet) -> None:
    trained = margins_like(learnable.features[learnable.recent])
    assert verdict(model_of(honest), learnable, trained=trained, earlier=[0.4, 0.5, 0.6]) is None


@pytest.mark.parametrize(
    "names", [("other", *NAMES[1:]), NAMES[::-1], NAMES[:-1]], ids=["renamed", "order", "fewer"]
)
def test_other_feature_names_are_refused(learnable: TrainingSet, names: tuple[str, ...]) -> None:
    found = verdict(model_of(honest, features=names), learnable)
    assert found == "schema: the model's features are not the features table's"


def test_one_class_is_refused(learnable: TrainingSet) -> None:
    data = dataclasses.replace(learnable, labels=np.ones(learnable.rows))
    found = verdict(model_of(lambda x: 0.5 + 0 * x[:, 0]), data)
    assert found == "classes: training rows have one outcome only"


def test_a_margin_that_is_no_number_is_refused(learnable: TrainingSet) -> None:
    def broken(values: Matrix) -> Any:
        return np.where(np.arange(len(values)) == 7, np.nan, honest(values))

    found = verdict(model_of(broken), learnable)
    assert found == "finite: a margin is not a finite number"


@pytest.mark.parametrize(
    "serving",
    [
        lambda x: honest(x[:, [1, 0, *range(2, x.shape[1])]]),
        lambda x: 1.01 * honest(x),
        lambda x: honest(x) + 1e-5,
        lambda x: np.where(np.arange(len(x)) == 3, 0.9, honest(x)),
    ],
    ids=["permuted columns", "scaled", "shifted", "one row"],
)
def test_serving_that_differs_from_training_is_refused(
    learnable: TrainingSet, serving: Any
) -> None:
    trained = margins_like(learnable.features[learnable.recent])
    found = verdict(model_of(serving), learnable, trained=trained)
    assert found is not None
    assert found.startswith("parity: ")


def test_rounding_alone_is_no_difference(learnable: TrainingSet) -> None:
    trained = margins_like(learnable.features[learnable.recent]) + 5e-7
    assert verdict(model_of(honest), learnable, trained=trained) is None


def test_a_model_of_flipped_labels_is_refused(learnable: TrainingSet) -> None:
    flipped = dataclasses.replace(learnable, labels=1 - learnable.labels)
    content, _ = fit(flipped, TrainingPlan())
    model = load_model(card_of(flipped, content), content)
    found = verdict(model, learnable)
    assert found is not None
    assert found.startswith("in-sample: ")
    assert verdict(model, flipped) is None


def test_the_in_sample_check_is_against_the_base_rate_in_force(learnable: TrainingSet) -> None:
    """On rows that are nearly all up, a margin of zero on a base rate of 0.9 is hard to beat."""
    data = dataclasses.replace(learnable, labels=(np.arange(learnable.rows) % 10 > 0).astype(float))
    model = model_of(lambda x: 0.5 + 1e-3 * x[:, 0])
    assert verdict(model, data, base_rate=0.5) is None
    found = verdict(model, data, base_rate=0.9)
    assert found is not None
    assert found.startswith("in-sample: ")


def test_a_constant_is_refused_even_if_it_beats_the_base_rate(learnable: TrainingSet) -> None:
    data = dataclasses.replace(learnable, labels=(np.arange(learnable.rows) % 3 > 0).astype(float))
    found = verdict(model_of(lambda x: np.full(len(x), 0.5)), data)
    assert found == "spread: the model says the same of every row"


@pytest.mark.parametrize(
    ("earlier", "passes"),
    [
        ([0.1, 0.1, 0.1], False),
        ([0.1, 0.1, 9.0], False),
        ([0.2, 0.2, 0.2], True),
        ([0.1, 0.1], True),
        ([], True),
    ],
)
def test_a_spread_of_three_times_the_usual_is_refused(
    learnable: TrainingSet, earlier: list[float], passes: bool
) -> None:
    """The spread of 0.5 times a standard normal, clipped at 1, is about 0.47."""
    found = verdict(model_of(honest), learnable, earlier=earlier)
    assert (found is None) is passes
    assert passes or str(found).startswith("spread: 0.4")


def test_no_recent_rows_are_no_evidence_of_health(learnable: TrainingSet) -> None:
    data = dataclasses.replace(learnable, recent=slice(learnable.rows, None))
    with pytest.warns(RuntimeWarning):
        found = verdict(model_of(honest), data)
    assert found is not None


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_honest_fits_of_noise_and_of_an_edge_pass(seed: int, slope: float) -> None:
    """The guards catch broken models, not weak ones; see also `test_worlds`."""
    values, labels = learnable_rows(2500, seed=100 + seed, slope=slope)
    data = training_set(values, labels, recent=1900)
    content, booster = fit(data, TrainingPlan(trees=30))
    model = load_model(card_of(data, content), content)
    trained = margins(booster, data.features[data.recent], data.base_rate)
    assert verdict(model, data, trained=trained, earlier=[0.2, 0.2, 0.2]) is None
