"""Scores are sums by session; intervals resample whole sessions."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hedge_pipeline.learning.scoring import performance, score
from hedge_pipeline.market.tables import PERFORMANCE
from hedge_pipeline.resampling import LEAST_SESSIONS
from hedge_pipeline_tests.learning.conftest import HORIZON, log_rows, outcome_rows, session_on

SESSION = session_on(4)


def ln(probability: float) -> float:
    return -math.log(probability)


@pytest.fixture
def five() -> pd.DataFrame:
    """Up, down, up, flat, and an abstention whose outcome is up."""
    log = log_rows(SESSION, [0.4, 0.2, -0.3, 0.1, np.nan])
    return log.assign(
        prob_up=[0.6, 0.55, 0.45, 0.7, np.nan],
        prediction=pd.array([1, 1, 0, 1, None], dtype="Int8"),
        base_rate=0.52,
    )


def test_the_sums_agree_with_pen_and_paper(five: pd.DataFrame) -> None:
    (row,) = performance(five, outcome_rows(SESSION, [1, 0, 1, None, 1]), SESSION.label).to_dict(
        "records"
    )
    assert {name: row[name] for name in ("predictions", "abstentions", "labels")} == {
        "predictions": 4,
        "abstentions": 1,
        "labels": 3,
    }
    assert (row["hits"], row["base_hits"]) == (1, 2)
    assert row["log_loss"] == pytest.approx(ln(0.6) + ln(0.45) + ln(0.45))
    assert row["base_log_loss"] == pytest.approx(ln(0.52) + ln(0.48) + ln(0.52))
    odds = [0.52 / 0.48 * math.exp(g) for g in (0.4, 0.2, -0.3)]
    raw = ln(odds[0] / (1 + odds[0])) + ln(1 / (1 + odds[1])) + ln(odds[2] / (1 + odds[2]))
    assert row["raw_log_loss"] == pytest.approx(raw, rel=1e-6)
    assert row["brier"] == pytest.approx(0.4**2 + 0.55**2 + 0.55**2)
    assert row["spread"] == pytest.approx(np.std([0.6, 0.55, 0.45, 0.7]))
    assert (row["session"], row["symbol"], row["model_version"]) == (SESSION.label, "SIMQ", 1)


@pytest.mark.parametrize(
    ("base_rate", "directions", "hits"),
    [(0.6, [1, 1, 0], 2), (0.4, [1, 1, 0], 1), (0.5, [1, 1, 0], 1)],
)
def test_base_hits_are_those_of_always_saying_what_climatology_says(
    base_rate: float, directions: list[int | None], hits: int
) -> None:
    log = log_rows(SESSION, [0.1, -0.1, 0.1]).assign(base_rate=base_rate)
    (row,) = performance(log, outcome_rows(SESSION, directions), SESSION.label).to_dict("records")
    assert row["base_hits"] == hits


def test_versions_roles_and_modes_are_scored_apart() -> None:
    log = pd.concat(
        [
            log_rows(SESSION, [0.1, -0.1]),
            log_rows(SESSION, [-0.1, 0.1], role="baseline"),
            log_rows(SESSION, [0.1, -0.1], model_version=2),
            log_rows(SESSION, [0.1, 0.1], symbol="SIMN", mode="backfill"),
        ]
    )
    outcomes = pd.concat(
        [outcome_rows(SESSION, [1, 0]), outcome_rows(SESSION, [1, None], symbol="SIMN")]
    )
    found = performance(log, outcomes, SESSION.label)
    keys = ["symbol", "model_version", "role", "mode", "hits", "labels"]
    assert [tuple(row) for row in found[keys].to_numpy().tolist()] == [
        ("SIMN", 1, "served", "backfill", 1, 1),
        ("SIMQ", 1, "baseline", "live", 0, 2),
        ("SIMQ", 1, "served", "live", 2, 2),
        ("SIMQ", 2, "served", "live", 2, 2),
    ]
    assert PERFORMANCE.violations(found) == {}


def test_a_session_of_abstentions_has_no_labels() -> None:
    log = log_rows(SESSION, [np.nan] * 3, model_version=0).assign(
        prob_up=np.nan, prediction=pd.array([None] * 3, dtype="Int8")
    )
    (row,) = performance(log, outcome_rows(SESSION, [1, 0, 1]), SESSION.label).to_dict("records")
    assert (row["predictions"], row["abstentions"], row["labels"]) == (0, 3, 0)
    assert (row["log_loss"], row["brier"], row["spread"]) == (0, 0, 0)


def test_an_outcome_that_is_not_known_yet_is_no_label(five: pd.DataFrame) -> None:
    (row,) = performance(five, outcome_rows(SESSION, [1]), SESSION.label).to_dict("records")
    assert (row["predictions"], row["labels"], row["hits"]) == (4, 1, 1)


def test_an_empty_log_has_no_rows(five: pd.DataFrame) -> None:
    found = performance(five[:0], outcome_rows(SESSION, [1]), SESSION.label)
    assert found.empty
    assert list(found.columns) == list(PERFORMANCE.names)


# --- one score of many sessions ----------------------------------------------------------------


def sums(hits: list[int], labels: int | list[int] = 380, **columns: Any) -> pd.DataFrame:
    """Rows of `performance`, one session each."""
    number = len(hits)
    counts = [labels] * number if isinstance(labels, int) else labels
    return pd.DataFrame(
        {
            "symbol": "SIMQ",
            "session": [f"2024-{1 + i // 28:02d}-{1 + i % 28:02d}" for i in range(number)],
            "model_version": 1,
            "role": "served",
            "mode": "live",
            "predictions": counts,
            "abstentions": 0,
            "labels": counts,
            "hits": hits,
            "base_hits": [count // 2 for count in counts],
            "log_loss": 0.690 * np.array(counts),
            "base_log_loss": 0.693 * np.array(counts),
            "raw_log_loss": 0.7 * np.array(counts),
            "brier": 0.25 * np.array(counts),
            "spread": 0.01,
        }
    ).assign(**columns)


RNG = np.random.default_rng(5)
THIRTY = RNG.binomial(380, 0.53, 30).tolist()


def test_a_score_adds_up_over_sessions_of_different_length() -> None:
    found = score(sums([30, 380], [100, 400]), HORIZON)
    assert found.value == 410 / 500
    assert (found.n, found.n_effective, found.base_rate) == (500, 50, 0.5)
    assert found.log_loss == pytest.approx(0.690)
    assert found.raw_log_loss == pytest.approx(0.7)
    assert found.skill == pytest.approx(30)
    assert (found.lo, found.hi) == (0.3, 0.95)


def test_the_interval_is_that_of_a_mean_of_sessions() -> None:
    found = score(sums(THIRTY), HORIZON)
    shares = np.array(THIRTY) / 380
    half_width = 1.96 * shares.std() / math.sqrt(30)
    assert found.lo == pytest.approx(found.value - half_width, abs=0.15 * half_width)
    assert found.hi == pytest.approx(found.value + half_width, abs=0.15 * half_width)


@pytest.mark.parametrize("copies", [2, 10])
def test_more_rows_that_say_the_same_do_not_shrink_the_interval(copies: int) -> None:
    """Labels of a session are not independent, whether of one symbol or of ten."""
    once = score(sums(THIRTY), HORIZON)
    rows = [sums(THIRTY, symbol=f"SIM{i}", model_version=i) for i in range(copies)]
    again = score(pd.concat(rows), HORIZON)
    assert (again.value, again.lo, again.hi) == (once.value, once.lo, once.hi)
    assert again.n == copies * once.n


def test_more_sessions_do_shrink_it() -> None:
    few, many = (score(sums(THIRTY * copies), HORIZON) for copies in (1, 4))
    assert many.hi - many.lo == pytest.approx((few.hi - few.lo) / 2, rel=0.15)


def test_two_symbols_together_are_the_labels_of_both() -> None:
    one, other = sums([200, 210]), sums([150, 160], symbol="SIMN")
    found = score(pd.concat([one, other]), HORIZON)
    assert found.value == 720 / 1520
    assert found.n == score(one, HORIZON).n + score(other, HORIZON).n
    assert found.base_rate == 0.5


def test_one_session_has_the_interval_of_its_effective_labels() -> None:
    """38 that do not overlap, of which 57 % are right: Wilson by hand, not the session alone."""
    found = score(sums([217]), HORIZON)
    share, number, z = 217 / 380, 38, 1.96
    middle = (share + z * z / 76) / (1 + z * z / 38)
    half = z / (1 + z * z / 38) * math.sqrt(share * (1 - share) / number + (z / 76) ** 2)
    assert (found.lo, found.hi) == pytest.approx((middle - half, middle + half))
    assert found.lo < 0.5 < found.hi


def test_a_second_symbol_of_the_same_session_is_no_second_session() -> None:
    one = score(sums([217]), HORIZON)
    both = score(pd.concat([sums([217]), sums([217], symbol="SIMN")]), HORIZON)
    assert (both.lo, both.hi) == (one.lo, one.hi)


@pytest.mark.parametrize("hits", [0, 380])
def test_a_session_that_went_one_way_only_still_has_an_interval(hits: int) -> None:
    found = score(sums([hits]), HORIZON)
    assert found.lo <= found.value <= found.hi
    assert found.hi - found.lo > 0.05


def test_four_sessions_that_agree_by_chance_claim_no_more_than_their_labels() -> None:
    found = score(sums([217] * 4), HORIZON)
    assert found.hi - found.lo > 0.1
    assert score(sums([217] * 5), HORIZON).lo == 217 / 380


def test_without_labels_nothing_is_known() -> None:
    found = score(sums([0], 0), HORIZON)
    assert (found.n, found.n_effective) == (0, 0)
    assert math.isnan(found.value)
    shown = {**found.accuracy(), **found.losses()}
    known = {name: value for name, value in shown.items() if value is not None}
    assert known == {"n": 0, "n_effective": 0.0}
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    assert score(sums([])[:0], HORIZON).accuracy() == found.accuracy()


def test_sessions_without_labels_leave_the_interval_alone() -> None:
    labels = [380] * 30 + [0] * 30
    found, alone = score(sums(THIRTY + [0] * 30, labels), HORIZON), score(sums(THIRTY), HORIZON)
    assert (found.lo, found.hi) == (alone.lo, alone.hi)


def test_a_score_can_be_shown_as_json() -> None:
    found = score(sums(THIRTY), HORIZON)
    assert set(found.accuracy()) == {"value", "lo", "hi", "n", "n_effective", "base_rate"}
    assert set(found.losses()) == {"log_loss", "base_log_loss", "raw_log_loss"}
    shown = {**found.accuracy(), **found.losses()}
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    assert shown["value"] == found.value


@given(hits=st.lists(st.integers(0, 380), min_size=1, max_size=12), order=st.randoms())
@settings(max_examples=30, deadline=None)
def test_the_interval_holds_the_value_and_does_not_depend_on_the_order_of_rows(
    hits: list[int], order: Any
) -> None:
    rows = sums(hits)
    places = list(range(len(rows)))
    order.shuffle(places)
    found, shuffled = score(rows, HORIZON, draws=200), score(rows.iloc[places], HORIZON, draws=200)
    assert (found.value, found.lo, found.hi) == (shuffled.value, shuffled.lo, shuffled.hi)
    assert found.lo <= found.value <= found.hi
    if len(hits) >= LEAST_SESSIONS:
        assert min(hits) / 380 <= found.lo <= found.hi <= max(hits) / 380
    assert found.value == pytest.approx(sum(hits) / len(hits) / 380)
