"""Does retraining help? Same rows, other versions, whole sessions, and no more than is known."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pandas as pd
import pytest

from hedge_pipeline.learning.calibration import reliability, slope
from hedge_pipeline.learning.paired import SessionPair, compare, pair
from hedge_pipeline.market.calendar import to_datetime64
from hedge_pipeline_tests.learning.conftest import MINUTE, log_rows, outcome_rows, session_on

SESSION = session_on(4)
UPS = [1, 0, None, 1, -1, 0]


def of_one_session(log: pd.DataFrame) -> SessionPair:
    (found,) = pair(log, outcome_rows(SESSION, UPS), np.array([to_datetime64(SESSION.opens)]))
    return found


def rows(
    served: list[float], baseline: list[float], versions: tuple[int, int] = (2, 1)
) -> pd.DataFrame:
    margin = np.full(len(served), 0.1)
    return pd.concat(
        [
            log_rows(SESSION, margin, prob_up=served, role="served", model_version=versions[0]),
            log_rows(SESSION, margin, prob_up=baseline, role="baseline", model_version=versions[1]),
        ],
        ignore_index=True,
    )


def test_the_gain_is_that_of_the_common_rows_with_an_outcome() -> None:
    log = rows([0.6, 0.6, 0.6, 0.6, 0.6, np.nan], [0.5, 0.5, 0.5, np.nan, 0.5, 0.5])
    found = of_one_session(log)
    # bars 0 and 1: the others are flat, unlabelable, or only one stream spoke
    assert found.labels == 2
    assert found.gain == pytest.approx(np.log(0.6) + np.log(0.4) - 2 * np.log(0.5))


def test_bars_predicted_by_the_same_version_tell_nothing() -> None:
    log = rows([0.6] * 6, [0.5] * 6, versions=(1, 1))
    assert of_one_session(log) == SessionPair(0, 0.0)


def test_a_bar_with_two_served_versions_counts_once_with_the_first() -> None:
    log = rows([0.6] * 6, [0.5] * 6)
    late = log[log["role"] == "served"].assign(model_version=3, prob_up=0.9)
    log = pd.concat([log, late.assign(decided_at=late["decided_at"] + MINUTE)])
    assert of_one_session(log) == of_one_session(rows([0.6] * 6, [0.5] * 6))


def test_sessions_are_told_apart_by_their_opening() -> None:
    log, outcomes = rows([0.6] * 6, [0.5] * 6), outcome_rows(SESSION, UPS)
    day = dt.timedelta(days=1)
    later = [frame.assign(bar_ts=frame["bar_ts"] + day) for frame in (log, outcomes)]
    opens = np.array([to_datetime64(SESSION.opens + number * day) for number in (-1, 0, 1, 2)])
    both = [pd.concat(frames) for frames in zip((log, outcomes), later, strict=True)]
    alone = of_one_session(log)
    assert pair(both[0], both[1], opens) == [SessionPair(0, 0.0), alone, alone, SessionPair(0, 0.0)]


def test_the_interval_holds_the_mean_and_shrinks_with_sessions() -> None:
    rng = np.random.default_rng(1)
    found = [
        compare([SessionPair(380, 380e-4 * (10 + 30 * x)) for x in rng.standard_normal(number)])
        for number in (10, 160)
    ]
    assert all(one.lo < one.gain < one.hi for one in found)
    assert found[1].hi - found[1].lo < 0.5 * (found[0].hi - found[0].lo)


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ([], "retraining and the first model have not been compared on any outcome yet"),
        ([1.0] * 4, "too few"),
        ([1.0, 1.1] * 5, "retraining is better than the first model: "),
        ([-1.0, -1.1] * 5, "retraining is worse than the first model: "),
        ([-1.0, 1.1] * 5, "retraining is not shown to differ from the first model: "),
    ],
)
def test_the_words_claim_no_more_than_the_interval(gains: list[float], words: str) -> None:
    assert words in compare([SessionPair(380, gain) for gain in gains]).in_words()


def test_sessions_without_common_rows_do_not_count() -> None:
    pairs = [SessionPair(380, 1.0)] * 6
    assert compare([*pairs, SessionPair(0, 0.0)]) == compare(pairs)


# --- calibration -----------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_the_slope_is_the_factor_by_which_one_was_too_sure(factor: float) -> None:
    rng = np.random.default_rng(2)
    said = 0.2 * rng.standard_normal(60_000)
    base = np.full(len(said), 0.5)
    up = (rng.random(len(said)) < 1 / (1 + np.exp(-factor * said))).astype(float)
    assert slope(base, said, up) == pytest.approx(factor, abs=0.12)


def test_who_says_nothing_has_no_slope() -> None:
    assert np.isnan(slope(np.full(9, 0.5), np.zeros(9), np.ones(9)))
    assert np.isnan(slope(np.empty(0), np.empty(0), np.empty(0)))


@pytest.mark.parametrize("number", [0, 1, 7, 1000])
def test_bins_hold_every_row_once(number: int) -> None:
    rng = np.random.default_rng(3)
    probability = rng.random(number)
    up = (rng.random(number) < probability).astype(float)
    bins = reliability(probability, up)
    assert bins.count.sum() == number
    assert len(bins.count) == min(10, number)
    assert (np.diff(bins.predicted) > 0).all()
    if number == 1000:
        assert np.abs(bins.observed - bins.predicted).max() < 0.15
