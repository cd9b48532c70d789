"""Log rows: which model spoke, how its margin became a probability, and why it abstained."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hedge_pipeline.learning.gate import GateRule, GateState, SessionEvidence
from hedge_pipeline.learning.ledger import Ledger, fold_entry, override_entry, verdict_entry
from hedge_pipeline.learning.training import Model, ModelError
from hedge_pipeline.levels.signals import NO_LEVEL
from hedge_pipeline.market.tables import FEATURE_ROWS, PREDICTION_LOG, PROMOTIONS
from hedge_pipeline.serving import predicting
from hedge_pipeline.serving.predicting import LATE_BAR, NO_MODEL, OTHER_FEATURES, LoadModel
from hedge_pipeline_tests.learning.conftest import (
    MINUTE,
    NAMES,
    card_of,
    learnable_rows,
    model_of,
    session_on,
    times_of,
    training_set,
)

RULE = GateRule()
SESSION = session_on(5, bars=20)
MORNING = SESSION.opens - dt.timedelta(hours=12)
NOTHING = SessionEvidence(
    "2024-03-04", np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), 0, 0
)
Entry = dict[str, Any]


def folded(weights: tuple[float, ...], ups: int = 210, at: dt.datetime = MORNING) -> Entry:
    state = replace(
        GateState.new(RULE),
        last_session="2024-03-04",
        ups=ups,
        labels=380,
        trust_weights=weights,
    )
    return fold_entry("SIMQ", state, None, NOTHING, RULE, at)


def accepted(version: int, at: dt.datetime = MORNING, failure: str | None = None) -> Entry:
    card = card_of(training_set(*learnable_rows(20)), b"", version=version, guard_failure=failure)
    return verdict_entry(card, GateState.new(RULE), RULE, at)


def ledger_of(*entries: Entry) -> Ledger:
    frame = pd.DataFrame(entries) if entries else PROMOTIONS.empty()
    times = pd.to_datetime(frame["decided_at"], utc=True)
    rows = PROMOTIONS.conform(frame.assign(decided_at=times))
    return Ledger("SIMQ", PROMOTIONS.in_arrow(rows), RULE)


def predict(rows: pd.DataFrame, ledger: Ledger, load: LoadModel) -> pd.DataFrame:
    return predicting.predict(rows, {"SIMQ": ledger}, load)


def rows_of(values: Any = None) -> pd.DataFrame:
    """Twenty feature rows, each decided when its bar was final."""
    if values is None:
        values = learnable_rows(20)[0]
    times = times_of(SESSION)
    keys = pd.DataFrame(
        {
            "symbol": "SIMQ",
            "bar_ts": times,
            "decided_at": times + MINUTE,
            "price": 100.0,
            "mode": "live",
        }
    )
    return pd.concat([keys, pd.DataFrame(values, columns=list(NAMES))], axis=1)


@dataclass
class Models:
    """Version n says n tenths of the first feature; counts how often each is loaded."""

    changes: dict[str, Any] = field(default_factory=dict)
    loads: Counter[int] = field(default_factory=Counter)

    def __call__(self, symbol: str, version: int) -> Model:
        assert symbol == "SIMQ"
        self.loads[version] += 1
        return model_of(lambda x: np.float32(version / 10) * x[:, 0], **self.changes)


def served(log: pd.DataFrame, role: str = "served") -> pd.DataFrame:
    return log[log["role"] == role].reset_index(drop=True)


HALF = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0)
FULL = (0.0, 0.0, 0.0, 0.0, 0.0, 1.0)


# --- abstaining ------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", [(), (folded(FULL),), (accepted(1, failure="parity: off"),)])
def test_without_an_accepted_model_every_row_abstains_and_says_so(entries: tuple[Entry]) -> None:
    models = Models()
    log = predict(rows_of(), ledger_of(*entries), models)
    assert len(log) == 20
    assert set(log["role"]) == {"served"}
    assert set(log["reason"]) == {NO_MODEL}
    assert set(log["model_version"]) == {0}
    assert log[["prediction", "prob_up", "confidence", "margin"]].isna().all(axis=None)
    assert not log["signal_fired"].any()
    assert not models.loads
    assert PREDICTION_LOG.violations(log) == {}


def test_a_bar_without_features_abstains_and_its_neighbours_do_not() -> None:
    values = learnable_rows(20)[0]
    values[7] = np.nan
    log = served(predict(rows_of(values), ledger_of(accepted(1)), Models()))
    assert log["prediction"].isna().to_numpy().nonzero()[0].tolist() == [7]
    assert log["reason"].tolist() == [LATE_BAR if i == 7 else NO_LEVEL for i in range(20)]
    assert log["model_version"].tolist() == [1] * 20
    assert log.loc[7, ["prob_up", "confidence", "margin"]].isna().all()


def test_a_single_known_feature_is_enough_to_predict() -> None:
    values = np.full((20, len(NAMES)), np.nan, np.float32)
    values[:, 0] = 1.0
    log = served(predict(rows_of(values), ledger_of(accepted(1)), Models()))
    assert log["prediction"].tolist() == [1] * 20


@pytest.mark.parametrize("names", [NAMES[::-1], NAMES[1:], ("other", *NAMES[1:])])
def test_a_model_of_other_features_is_not_asked(names: tuple[str, ...]) -> None:
    """As after an upgrade of the program, until the next training."""
    log = predict(rows_of(), ledger_of(accepted(1)), Models({"features": names}))
    assert log["prediction"].isna().all()
    assert set(log["reason"]) == {OTHER_FEATURES}


# --- the probability -------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [HALF, FULL, (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)])
def test_the_probability_can_be_recomputed_from_the_row(weights: tuple[float, ...]) -> None:
    log = predict(rows_of(), ledger_of(folded(weights), accepted(3)), Models())
    base, trust = log["base_rate"].to_numpy(), log["trust"].to_numpy()
    margin = log["margin"].to_numpy().astype(np.float64)
    odds = base / (1 - base) * np.exp(trust * margin)
    np.testing.assert_allclose(log["prob_up"], odds / (1 + odds), rtol=1e-14)
    assert set(trust) == {np.dot(weights, RULE.trust_grid)}
    assert set(base) == {(210 + 950) / (380 + 1900)}


def test_the_margin_in_the_row_is_the_models() -> None:
    rows = rows_of()
    log = served(predict(rows, ledger_of(accepted(5)), Models()))
    expected = np.clip(np.float32(0.5) * rows[NAMES[0]].to_numpy(), -1, 1)
    np.testing.assert_array_equal(log["margin"].to_numpy(), expected)


@given(
    first=st.lists(st.floats(-9, 9, width=32), min_size=20, max_size=20), ups=st.integers(0, 380)
)
@settings(max_examples=25, deadline=None)
def test_prediction_and_confidence_agree_with_the_probability(first: list[float], ups: int) -> None:
    values = np.zeros((20, len(NAMES)), np.float32)
    values[:, 0] = first
    log = predict(rows_of(values), ledger_of(folded(HALF, ups), accepted(1)), Models())
    prob_up = log["prob_up"].to_numpy()
    np.testing.assert_array_equal(log["prediction"].to_numpy(dtype=int), prob_up > 0.5)
    expected = np.maximum(prob_up, 1 - prob_up)
    np.testing.assert_allclose(log["confidence"].to_numpy(), expected, atol=1e-7)
    assert (log["confidence"] >= 0.5).all()
    assert PREDICTION_LOG.violations(log) == {}


# --- which model -----------------------------------------------------------------------------


def test_a_hot_swap_serves_from_the_moment_of_its_verdict_on() -> None:
    swap = SESSION.opens + 11 * MINUTE
    ledger = ledger_of(folded(FULL), accepted(1), accepted(2, swap), accepted(3, SESSION.closes))
    log = predict(rows_of(), ledger, Models())
    assert served(log)["model_version"].tolist() == [1] * 10 + [2] * 9 + [3]
    np.testing.assert_allclose(
        served(log)["margin"],
        np.clip(served(log)["model_version"] / 10 * rows_of()[NAMES[0]], -1, 1),
        rtol=1e-6,
    )


def test_the_baseline_is_the_first_model_for_ever() -> None:
    swap = SESSION.opens + 11 * MINUTE
    log = predict(rows_of(), ledger_of(folded(FULL), accepted(4), accepted(7, swap)), Models())
    baseline = served(log, "baseline")
    assert baseline["model_version"].tolist() == [4] * 20
    pd.testing.assert_series_equal(baseline["margin"][:10], served(log)["margin"][:10])
    assert (baseline["margin"][10:] != served(log)["margin"][10:]).all()


def test_the_baseline_has_rows_only_where_a_model_existed() -> None:
    first = SESSION.opens + 11 * MINUTE
    log = predict(rows_of(), ledger_of(accepted(1, first)), Models())
    assert served(log)["model_version"].tolist() == [0] * 10 + [1] * 10
    assert list(served(log, "baseline")["bar_ts"]) == list(times_of(SESSION)[10:])


def test_trust_and_base_rate_are_those_in_force_at_the_decision() -> None:
    later = folded(FULL, ups=100, at=SESSION.opens + 11 * MINUTE) | {"session": "2024-03-05"}
    log = served(predict(rows_of(), ledger_of(folded(HALF), later, accepted(1)), Models()))
    assert log["trust"].tolist() == [0.5] * 10 + [1.0] * 10
    assert log["base_rate"].nunique() == 2


def test_a_version_is_loaded_once() -> None:
    swap = SESSION.opens + 11 * MINUTE
    models = Models()
    predict(rows_of(), ledger_of(accepted(1), accepted(2, swap)), models)
    assert models.loads == {1: 1, 2: 1}


def test_a_row_keeps_what_it_was_made_from() -> None:
    rows = rows_of().assign(mode="catch_up", price=np.arange(20) + 100.0)
    log = served(predict(rows, ledger_of(accepted(1)), Models()))
    names = ["symbol", "bar_ts", "decided_at", "price", "mode"]
    pd.testing.assert_frame_equal(log[names], rows[names], check_dtype=False)
    assert set(log["schema_hash"]) == {FEATURE_ROWS.schema_hash}
    assert set(log["level_type"]) == {"none"}


@given(cut=st.integers(1, 19))
@settings(max_examples=10, deadline=None)
def test_predicting_in_two_steps_equals_predicting_at_once(cut: int) -> None:
    ledger = ledger_of(folded(HALF), accepted(1), accepted(2, SESSION.opens + 8 * MINUTE))
    rows = rows_of()
    steps = [rows[:cut], rows[cut:].reset_index(drop=True)]
    log = pd.concat([predict(part, ledger, Models()) for part in steps])
    key = list(PREDICTION_LOG.key)
    whole = predict(rows, ledger, Models()).sort_values(key).reset_index(drop=True)
    pd.testing.assert_frame_equal(log.sort_values(key).reset_index(drop=True), whole)


# --- a refused file --------------------------------------------------------------------------


def refusing(*versions: int) -> Any:
    """The files of these versions were changed."""
    models = Models()

    def load(symbol: str, version: int) -> Model:
        if version in versions:
            raise ModelError(f"model {version} of {symbol} was changed")
        return models(symbol, version)

    return load


def test_if_the_file_is_refused_the_version_accepted_before_serves() -> None:
    ledger = ledger_of(accepted(1), accepted(2), accepted(3, failure="parity: off"), accepted(4))
    log = served(predict(rows_of(), ledger, refusing(4)))
    assert set(log["model_version"]) == {2}
    assert log["prob_up"].notna().all()
    np.testing.assert_allclose(log["margin"], np.clip(0.2 * rows_of()[NAMES[0]], -1, 1), rtol=1e-6)
    assert set(served(predict(rows_of(), ledger, refusing(2, 4)))["model_version"]) == {1}


def test_if_every_file_is_refused_the_rows_abstain_and_say_why() -> None:
    log = predict(rows_of(), ledger_of(accepted(1), accepted(2)), refusing(1, 2))
    assert set(served(log)["reason"]) == {"model 2 of SIMQ was changed"}
    assert served(log)[["prediction", "prob_up", "margin"]].isna().all(axis=None)
    assert set(served(log)["model_version"]) == {2}
    assert PREDICTION_LOG.violations(log) == {}


def test_a_refused_baseline_is_no_other_version() -> None:
    log = predict(rows_of(), ledger_of(accepted(1), accepted(2)), refusing(1))
    assert set(served(log)["model_version"]) == {2}
    assert set(served(log, "baseline")["model_version"]) == {1}
    assert set(served(log, "baseline")["reason"]) == {"model 1 of SIMQ was changed"}
    assert served(log, "baseline")["margin"].isna().all()


# --- a pinned version ------------------------------------------------------------------------


def overridden(version: int, event: str, number: int, at: dt.datetime) -> Entry:
    entry = override_entry(ledger_of(), version, event, "why not", "2024-03-04", at)
    return entry | {"number": number}


def test_while_a_version_is_pinned_the_newest_predicts_beside_it() -> None:
    at = [SESSION.opens + minute * MINUTE for minute in (6, 11, 16)]
    ledger = ledger_of(
        accepted(1),
        accepted(2),
        overridden(1, "pin", 1, at[0]),
        accepted(3, at[1]),
        overridden(1, "unpin", 2, at[2]),
    )
    log = predict(rows_of(), ledger, Models())
    assert served(log)["model_version"].tolist() == [2] * 5 + [1] * 10 + [3] * 5
    newest = served(log, "newest")
    assert newest["model_version"].tolist() == [2] * 5 + [3] * 5
    assert list(newest["bar_ts"]) == list(times_of(SESSION)[5:15])
    assert set(served(log, "baseline")["model_version"]) == {1}
    assert ledger.pinned is None
    assert PREDICTION_LOG.violations(log) == {}


# --- unlike the training data ----------------------------------------------------------------


def test_a_bar_unlike_the_training_data_abstains_and_names_the_feature() -> None:
    values = np.zeros((20, len(NAMES)), dtype=np.float32)
    values[4, 2] = 9.0
    bounds = {"lows": (-3.0,) * len(NAMES), "highs": (3.0,) * len(NAMES)}
    log = predict(rows_of(values), ledger_of(folded(FULL), accepted(1)), Models(bounds))
    own = served(log)
    assert own["reason"][4] == f"unlike the training data: {NAMES[2]}"
    assert own["prob_up"].isna().to_numpy().nonzero()[0].tolist() == [4]
    assert served(log, "baseline")["prob_up"].notna().all()
    assert PREDICTION_LOG.violations(log) == {}


# --- several symbols ---------------------------------------------------------------------------


def test_symbols_asked_together_get_what_each_gets_alone() -> None:
    late = learnable_rows(20)[0]
    late[3] = np.nan
    ledgers = {
        "SIMA": ledger_of(folded(FULL), accepted(1), accepted(2, SESSION.opens + 7 * MINUTE)),
        "SIMB": ledger_of(folded(HALF, ups=150), accepted(5)),
        "SIMC": ledger_of(),
    }
    rows = {
        "SIMA": rows_of().assign(symbol="SIMA"),
        "SIMB": rows_of(late).assign(symbol="SIMB"),
        "SIMC": rows_of().assign(symbol="SIMC"),
    }

    def load(symbol: str, version: int) -> Model:
        if version == 2:
            raise ModelError(f"model {version} of {symbol} was changed")
        scale = np.float32(version / (10 if symbol == "SIMA" else 30))
        return model_of(lambda x: scale * x[:, 0])

    alone = [predicting.predict(own, {x: ledgers[x]}, load) for x, own in rows.items()]
    key = ["role", "symbol", "bar_ts"]
    mixed = pd.concat(rows.values()).sort_values(["bar_ts", "symbol"], ignore_index=True)
    together = predicting.predict(mixed, ledgers, load)
    pd.testing.assert_frame_equal(
        together.sort_values(key, ignore_index=True),
        pd.concat(alone).sort_values(key, ignore_index=True),
    )
    assert together.groupby("symbol")["margin"].count().to_dict() == {
        "SIMA": 40,
        "SIMB": 38,
        "SIMC": 0,
    }
