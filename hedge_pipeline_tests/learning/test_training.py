"""Fitting: equal bytes for equal inputs, files that are checked, margins that are exact."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st

from hedge_pipeline.learning.dataset import Spool, TrainingSet
from hedge_pipeline.learning.shelf import ModelShelf
from hedge_pipeline.learning.training import (
    MANY_ROWS,
    ModelCard,
    ModelError,
    TrainingPlan,
    drawn_rows,
    fit,
    load_model,
    margins,
    skill_in_nats,
)
from hedge_pipeline.probability import logit
from hedge_pipeline.store import Store
from hedge_pipeline_tests.learning.conftest import (
    NAMES,
    Steps,
    card_of,
    learnable_rows,
    model_of,
    training_set,
)

PLAN = TrainingPlan()


# --- the fit ---------------------------------------------------------------------------------


def test_the_parameters_are_the_measured_defaults() -> None:
    assert PLAN.xgboost_parameters(0.51) == {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "eta": 0.05,
        "max_depth": 3,
        "colsample_bynode": 0.5,
        "subsample": 1.0,
        "max_bin": 64,
        "min_child_weight": 10.0,
        "reg_lambda": 5.0,
        "base_score": 0.51,
        "seed": 0,
        "nthread": 1,
    }
    assert (PLAN.trees, PLAN.window_sessions, PLAN.half_life_sessions) == (60, 60, 20)
    assert PLAN.least_sessions == 5


def test_the_plan_reaches_the_booster(fitted: tuple[bytes, Any], learnable: TrainingSet) -> None:
    _, booster = fitted
    assert booster.num_boosted_rounds() == 60
    assert booster.feature_names == list(NAMES)
    config = json.loads(booster.save_config())["learner"]
    base_score = float(config["learner_model_param"]["base_score"].strip("[]"))
    assert base_score == pytest.approx(learnable.base_rate, abs=1e-6)
    trees = config["gradient_booster"]["tree_train_param"]
    expected = {"eta": 0.05, "max_depth": 3, "min_child_weight": 10, "reg_lambda": 5}
    assert {name: float(trees[name]) for name in expected} == pytest.approx(expected)
    assert float(trees["colsample_bynode"]) == 0.5


def test_equal_inputs_give_equal_bytes(fitted: tuple[bytes, Any]) -> None:
    again, _ = fit(training_set(*learnable_rows(3000)), PLAN)
    assert again == fitted[0]


@pytest.mark.parametrize("pooled", [False, True])
def test_many_rows_are_binned_by_a_sample_and_lose_next_to_nothing(*, pooled: bool) -> None:
    rows = training_set(*learnable_rows(MANY_ROWS + 1000, seed=3))
    if pooled:
        rows = dataclasses.replace(rows, base_margin=np.full(rows.rows, logit(rows.base_rate)))
    content, booster = fit(rows, PLAN)
    assert fit(rows, PLAN)[0] == content
    spool = Spool(rows.features.shape[1])
    spool.add(rows.features)
    on_disk = dataclasses.replace(rows, features=spool.rows(), spool=spool)
    assert fit(on_disk, PLAN)[0] == content
    exact = xgboost.train(
        PLAN.xgboost_parameters(rows.base_rate),
        xgboost.QuantileDMatrix(
            rows.features,
            rows.labels,
            weight=rows.weights,
            base_margin=rows.base_margin,
            feature_names=list(rows.names),
            max_bin=PLAN.bins,
        ),
        PLAN.trees,
    )
    assert bytes(exact.save_raw("ubj")) != content
    assert booster.feature_names == exact.feature_names
    fresh, up = learnable_rows(20_000, seed=4)
    sampled, other = (
        skill_in_nats(margins(x, fresh, rows.base_rate), up, rows.base_rate)
        for x in (booster, exact)
    )
    assert other > 0
    assert sampled > 0.98 * other


def test_few_rows_are_binned_exactly(fitted: tuple[bytes, Any], learnable: TrainingSet) -> None:
    matrix = xgboost.QuantileDMatrix(
        learnable.features,
        learnable.labels,
        weight=learnable.weights,
        feature_names=list(learnable.names),
        max_bin=PLAN.bins,
    )
    booster = xgboost.train(PLAN.xgboost_parameters(learnable.base_rate), matrix, PLAN.trees)
    assert bytes(booster.save_raw("ubj")) == fitted[0]


@given(st.integers(1, 10_000), st.integers(1, 500), st.integers(0, 3))
def test_drawn_rows_are_one_of_every_stretch(rows: int, wanted: int, seed: int) -> None:
    places = drawn_rows(rows, wanted, seed)
    assert len(places) == min(rows, wanted)
    assert places[0] >= 0
    assert places[-1] < rows
    assert (np.diff(places) > 0).all()
    assert np.abs(places - np.arange(len(places)) * rows / len(places)).max() <= rows / len(places)


@pytest.mark.parametrize(
    "changes",
    [{"weights": np.full(3000, 0.2)}, {"labels": 1 - learnable_rows(3000)[1]}],
    ids=["weights", "labels"],
)
def test_weights_and_labels_matter(
    changes: dict[str, Any], learnable: TrainingSet, fitted: tuple[bytes, Any]
) -> None:
    other, _ = fit(dataclasses.replace(learnable, **changes), PLAN)
    assert other != fitted[0]


def test_a_planted_effect_is_learned(fitted: tuple[bytes, Any]) -> None:
    values, labels = learnable_rows(2000, seed=1)
    said = margins(fitted[1], values, 0.5)
    assert np.corrcoef(said, values[:, 0])[0, 1] > 0.8
    assert skill_in_nats(said, labels, 0.5) > 0.05


@pytest.mark.parametrize("labels", [np.zeros(50), np.ones(50), np.empty(0)])
def test_one_class_or_no_rows_are_refused(labels: np.ndarray[Any, Any]) -> None:
    values, _ = learnable_rows(len(labels))
    with pytest.raises(ValueError, match="needs both outcomes"):
        fit(training_set(values, labels), PLAN)


@pytest.mark.parametrize("value", [np.nan, 0.0, 7.5])
def test_a_column_that_says_nothing_is_not_used(value: float) -> None:
    values, labels = learnable_rows(3000)
    values[:, 5] = value
    _, booster = fit(training_set(values, labels), PLAN)
    gain = booster.get_score(importance_type="total_gain")
    assert NAMES[5] not in gain
    assert NAMES[0] in gain
    assert np.isfinite(margins(booster, values, 0.5)).all()


@pytest.mark.parametrize("value", [np.nan, 1.0])
def test_without_any_information_the_model_says_the_base_rate(value: float) -> None:
    values, labels = learnable_rows(3000)
    values[:] = value
    data = training_set(values, labels)
    _, booster = fit(data, PLAN)
    np.testing.assert_allclose(margins(booster, values, data.base_rate), 0, atol=2e-3)


def test_ten_rows_are_too_few_to_split_and_give_the_base_rate() -> None:
    values, _ = learnable_rows(10)
    data = training_set(values, np.array([0.0, 1.0] * 5))
    _, booster = fit(data, PLAN)
    assert booster.get_score(importance_type="total_gain") == {}
    np.testing.assert_allclose(margins(booster, values, data.base_rate), 0, atol=1e-6)


# --- margins ---------------------------------------------------------------------------------


@given(
    raw=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40), base=st.floats(0.3, 0.7)
)
@settings(max_examples=60, deadline=None)
def test_a_margin_is_log_odds_above_the_base_rate_clipped_and_exact_in_float32(
    raw: list[float], base: float
) -> None:
    values = np.zeros((len(raw), len(NAMES)), np.float32)
    found = margins(Steps(lambda _: raw), values, base)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, found.astype(np.float32).astype(np.float64))
    expected = np.clip(np.array(raw) - math.log(base / (1 - base)), -1, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (np.abs(found) <= 1).all()


def test_an_unknown_margin_stays_unknown() -> None:
    found = model_of(lambda _: [np.nan, 0.5]).margin(np.zeros((2, len(NAMES)), np.float32))
    np.testing.assert_array_equal(found, [np.nan, 0.5])


def test_no_rows_have_no_margins(fitted: tuple[bytes, Any]) -> None:
    assert margins(fitted[1], np.empty((0, len(NAMES)), np.float32), 0.5).shape == (0,)


def test_a_margin_does_not_depend_on_the_rows_beside_it(
    fitted: tuple[bytes, Any], learnable: TrainingSet
) -> None:
    together = margins(fitted[1], learnable.features[:40], 0.5)
    alone = [margins(fitted[1], learnable.features[i : i + 1], 0.5)[0] for i in range(40)]
    np.testing.assert_array_equal(together, alone)


def test_skill_is_the_log_loss_gained_over_the_base_rate() -> None:
    base = float(logit(0.6))
    up = 1 / (1 + math.exp(-(base + 0.5)))
    down = 1 / (1 + math.exp(-(base - 0.25)))
    expected = (math.log(up / 0.6) + math.log((1 - down) / 0.4)) / 2
    found = skill_in_nats(np.array([0.5, -0.25]), np.array([1.0, 0.0]), 0.6)
    assert found == pytest.approx(expected)


# --- the description -------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [None, "parity: served margins differ"])
def test_the_description_survives_its_json(learnable: TrainingSet, failure: str | None) -> None:
    card = card_of(learnable, b"content", guard_failure=failure)
    text = card.to_json()
    assert ModelCard.from_json(text) == card
    assert ModelCard.from_json(text).to_json() == text


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"7", b"{}", b'{"features": []}', b"\xff\xfe", b'{"features": 3}'],
)
def test_a_broken_description_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(ModelError, match="a model description cannot be read") as error:
        ModelCard.from_json(content)
    assert "\n" not in str(error.value)


def test_a_description_with_an_unknown_field_is_refused(learnable: TrainingSet) -> None:
    fields = json.loads(card_of(learnable, b"").to_json()) | {"extra": 1}
    with pytest.raises(ModelError):
        ModelCard.from_json(json.dumps(fields).encode())


# --- the file --------------------------------------------------------------------------------


def test_a_loaded_model_gives_the_trainers_margins(
    learnable: TrainingSet, fitted: tuple[bytes, Any]
) -> None:
    content, booster = fitted
    card = card_of(learnable, content)
    loaded = load_model(card, content)
    assert loaded.card == card
    np.testing.assert_array_equal(
        loaded.margin(learnable.features), margins(booster, learnable.features, card.base_rate)
    )


@pytest.mark.parametrize("position", [0, 100, -1])
def test_a_changed_byte_is_refused_in_one_line(
    learnable: TrainingSet, fitted: tuple[bytes, Any], position: int
) -> None:
    changed = bytearray(fitted[0])
    changed[position] ^= 1
    card = card_of(learnable, fitted[0])
    with pytest.raises(ModelError, match="model 1 of SIMQ was changed after") as error:
        load_model(card, bytes(changed))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("length", [0, 1, 2, 100, 20_000, -1])
def test_a_truncated_file_is_refused_even_if_its_description_agrees(
    learnable: TrainingSet, fitted: tuple[bytes, Any], length: int
) -> None:
    cut = fitted[0][:length]
    with pytest.raises(ModelError, match="model 1 of SIMQ is no UBJ model") as error:
        load_model(card_of(learnable, cut), cut)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"\x80\x04\x95.", b"{}", b"hello world"])
def test_another_kind_of_file_is_refused(learnable: TrainingSet, content: bytes) -> None:
    with pytest.raises(ModelError, match="no UBJ model"):
        load_model(card_of(learnable, content), content)


# --- the shelf -------------------------------------------------------------------------------


@pytest.fixture
def shelf(store: Store, learnable: TrainingSet, fitted: tuple[bytes, Any]) -> ModelShelf:
    shelf = ModelShelf(store)
    shelf.put_content("SIMQ", 1, fitted[0])
    shelf.put_card(card_of(learnable, fitted[0]))
    return shelf


def test_a_version_exists_once_it_has_a_description(shelf: ModelShelf, store: Store) -> None:
    shelf.put_content("SIMQ", 2, b"only half way")
    assert shelf.versions("SIMQ") == (1,)
    newest = ModelShelf(store).newest("SIMQ")
    assert newest is not None
    assert newest.version == 1
    assert shelf.newest("SIMN") is None


def test_the_newest_version_is_the_newest_by_number(shelf: ModelShelf) -> None:
    card = shelf.card("SIMQ", 1)
    for version in (10, 9):
        shelf.put_card(dataclasses.replace(card, version=version))
    assert shelf.versions("SIMQ") == (1, 9, 10)
    newest = shelf.newest("SIMQ")
    assert newest is not None
    assert newest.version == 10


def test_a_stored_model_is_checked_when_it_is_loaded(shelf: ModelShelf, store: Store) -> None:
    digest = hashlib.sha256(shelf.content("SIMQ", 1)).hexdigest()
    assert shelf.load("SIMQ", 1).card.sha256 == digest
    (file,) = Path(store.url, "models", "SIMQ").glob("000001-*.ubj")
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="sha256 differs"):
        ModelShelf(store).load("SIMQ", 1)


@pytest.mark.parametrize("version", [2, 3])
def test_a_missing_version_says_which_file_is_missing(shelf: ModelShelf, version: int) -> None:
    with pytest.raises(ModelError, match=f"model {version} of SIMQ has no .json file"):
        shelf.load("SIMQ", version)


def test_of_two_trainings_of_one_version_one_gets_it_and_the_other_harms_nothing(
    store: Store, learnable: TrainingSet, fitted: tuple[bytes, Any]
) -> None:
    content = fitted[0]
    other, _ = fit(learnable, TrainingPlan(trees=5))
    shelves = ModelShelf(store), ModelShelf(store)
    shelves[0].put_content("SIMQ", 1, content)
    shelves[1].put_content("SIMQ", 1, other)
    assert shelves[0].put_card(card_of(learnable, content))
    assert not shelves[1].put_card(card_of(learnable, other))
    assert ModelShelf(store).load("SIMQ", 1).card == card_of(learnable, content)
    assert ModelShelf(store).content("SIMQ", 1) == content
