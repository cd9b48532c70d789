"""Drift is called when sessions change, not when they merely differ."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks.drift_alarms import measure
from hedge_pipeline.learning.drift import (
    FEATURE_LIMIT,
    feature_drift,
    performance_drift,
    session_summary,
)
from hedge_pipeline.learning.retraining import RetrainingFacts, decide

NAMES = tuple(f"feature_{number}" for number in range(30))


def summaries(seed: int, sessions: int = 90) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Sessions whose own level wanders: bars of a day resemble each other."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(sessions):
        level = rng.standard_normal(len(NAMES))
        bars = level + 0.3 * rng.standard_normal((390, len(NAMES)))
        found.append(session_summary(bars.astype(np.float32)))
    return np.array(found)


def looks(history: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> list[bool]:
    return [feature_drift(history[:last], NAMES).alarm for last in range(31, len(history) + 1)]


def test_stationary_sessions_raise_at_most_two_alarms_per_hundred_looks() -> None:
    """A test of single bars would find every one of these days different from the last."""
    found = [alarm for seed in range(6) for alarm in looks(summaries(seed))]
    assert len(found) == 360
    assert np.mean(found) <= 0.02


def test_an_alarm_says_more_than_always_and_never() -> None:
    changed = []
    for seed in range(4):
        history = summaries(seed, 70)
        history[50:, 12] += 4.0
        changed.append(history)
    found = {
        row.detector: row
        for row in measure("level", changed, lambda x: feature_drift(x, NAMES), change=50)
    }
    assert found["ours"].looks == 4 * 20
    assert found["always fires"].false_per_100 == 100
    assert found["never fires"].delays == [None] * 4
    assert found["ours"].false_per_100 <= 2
    assert all(delay is not None and delay <= 5 for delay in found["ours"].delays)


@pytest.mark.parametrize("kind", ["level", "spread"])
def test_a_feature_that_changes_is_found_within_five_sessions_and_named(kind: str) -> None:
    history = summaries(7, 60)
    if kind == "level":
        history[50:, 12] += 4.0
    else:
        history[50:, len(NAMES) + 12] += np.log(2)
    found = feature_drift(history[:55], NAMES)
    assert found.alarm
    assert found.what == ("feature_12" if kind == "level" else "spread of feature_12")
    assert "drift: " in found.in_words()


def test_the_effect_does_not_grow_with_the_number_of_bars() -> None:
    """Ten times the bars of the same sessions are no more evidence of change."""
    rng = np.random.default_rng(3)
    level = rng.standard_normal((60, len(NAMES)))
    effects = []
    for bars in (390, 3900):
        rows = [
            session_summary((x + 0.3 * rng.standard_normal((bars, len(NAMES)))).astype(np.float32))
            for x in level
        ]
        effects.append(abs(feature_drift(np.array(rows)[:, : len(NAMES)], NAMES).statistic))
    assert effects[0] == pytest.approx(effects[1], rel=0.1)
    assert max(effects) < FEATURE_LIMIT


def test_a_fall_of_skill_is_an_alarm_and_a_rise_is_none() -> None:
    rng = np.random.default_rng(1)
    skill = 0.005 + 0.01 * rng.standard_normal(70)
    assert not performance_drift(skill).alarm
    fallen, risen = skill.copy(), skill.copy()
    fallen[-10:] -= 0.02
    risen[-10:] += 0.02
    assert performance_drift(fallen).alarm
    found = performance_drift(risen)
    assert not found.alarm
    assert found.statistic == pytest.approx(-performance_drift(-risen).statistic)
    assert found.statistic > found.limit
    words = found.in_words()
    assert words.startswith("no drift: skill moved by +")
    assert f"({found.statistic:.1f} standard errors, alarm above 2.5)" in words


@pytest.mark.parametrize("recent", [0.0, -0.01])
def test_skill_that_never_varied_says_that_nothing_can_be_measured(recent: float) -> None:
    """What is served while no skill is proven is the base rate itself."""
    skill = np.zeros(70)
    skill[-10:] += recent
    found = performance_drift(skill)
    assert not found.alarm
    assert (
        found.in_words() == "skill was the same in every session before: no drift can be measured"
    )


@pytest.mark.parametrize("sessions", [0, 1, 10, 24])
def test_too_few_sessions_are_no_drift_and_say_so(sessions: int) -> None:
    found = feature_drift(summaries(1, 24)[:sessions].reshape(sessions, 60), NAMES)
    assert not found.alarm
    assert found.in_words() == "too few sessions to tell"
    assert not performance_drift(np.zeros(sessions)).alarm


def test_unknown_and_constant_features_never_drift() -> None:
    history = summaries(2, 60)
    history[:, 3] = np.nan
    history[:, 4] = 0.5
    history[-1, 5] = np.nan
    found = feature_drift(history, NAMES)
    assert not found.alarm
    values = np.full((390, 3), np.nan, dtype=np.float32)
    values[:, 1] = 0.25
    assert np.isnan(session_summary(values)[[0, 2, 3, 4, 5]]).all()


# --- it may ask, it decides nothing ----------------------------------------------------------

FACTS = RetrainingFacts(
    symbol="SIMQ",
    new_samples=40,
    needed_samples=100,
    sessions=9,
    needed_sessions=5,
    hour=2,
    retrain_hour=2,
    in_flight=False,
)


def test_drift_asks_for_a_retraining_before_the_samples_are_complete() -> None:
    assert not decide(FACTS).retrain
    found = decide(dataclasses.replace(FACTS, drift="drift: gap_overnight moved"))
    assert found.retrain
    assert (
        found.reason == "SIMQ has 40 new outcomes, 100 are needed, and drift: gap_overnight moved"
    )


@pytest.mark.parametrize(
    "change", [{"new_samples": 0}, {"in_flight": True}, {"sessions": 4}, {"hour": 3}]
)
def test_drift_alone_starts_nothing(change: dict[str, int]) -> None:
    assert not decide(dataclasses.replace(FACTS, drift="drift: x", **change)).retrain  # type: ignore[arg-type]
