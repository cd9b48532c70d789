"""The decision to retrain names the first condition that does not hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hedge_pipeline.learning.retraining import Decision, RetrainingFacts, decide

READY = RetrainingFacts(
    symbol="QQQ",
    new_samples=120,
    needed_samples=100,
    sessions=5,
    needed_sessions=5,
    hour=2,
    retrain_hour=2,
    in_flight=False,
)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"new_samples": 100},
        {"retrain_hour": None, "hour": 15},
        {"retrain_hour": 0, "hour": 0},
        {"sessions": 60},
    ],
)
def test_a_training_is_asked_for_when_every_condition_holds(changes: dict[str, Any]) -> None:
    facts = replace(READY, **changes)
    assert decide(facts) == Decision(True, f"QQQ: {facts.new_samples} of 100 new samples")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"in_flight": True}, "QQQ: a training is under way"),
        ({"new_samples": 99}, "QQQ: 99 of 100 new samples"),
        ({"sessions": 4}, "QQQ: 4 of the 5 sessions a training needs"),
        ({"hour": 3}, "QQQ: 120 of 100 new samples, waiting for 2:00 exchange time"),
        (
            {"hour": 2, "retrain_hour": 0},
            "QQQ: 120 of 100 new samples, waiting for 0:00 exchange time",
        ),
    ],
)
def test_each_condition_alone_prevents_it_and_says_so(changes: dict[str, Any], reason: str) -> None:
    assert decide(replace(READY, **changes)) == Decision(False, reason)


@pytest.mark.parametrize(
    ("failing", "named"),
    [
        (("in_flight", "new_samples", "sessions", "hour"), "under way"),
        (("new_samples", "sessions", "hour"), "0 of 100 new samples"),
        (("sessions", "hour"), "0 of the 5 sessions"),
        (("hour",), "waiting for 2:00"),
    ],
)
def test_the_first_condition_that_fails_is_named(failing: tuple[str, ...], named: str) -> None:
    bad: dict[str, Any] = {"in_flight": True, "new_samples": 0, "sessions": 0, "hour": 5}
    decision = decide(replace(READY, **{name: bad[name] for name in failing}))
    assert not decision.retrain
    assert named in decision.reason
