"""The decision to retrain names the first condition that does not hold."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedge_pipeline.learning.retraining import (
    Decision,
    RetrainingFacts,
    decide,
    hour_that_counts,
)

NEW_YORK = ZoneInfo("America/New_York")

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
    assert decide(facts) == Decision(
        True, f"QQQ has {facts.new_samples} new outcomes, 100 are needed"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"in_flight": True}, "QQQ is being trained"),
        ({"new_samples": 99}, "QQQ has 99 new outcomes, 100 are needed"),
        ({"sessions": 4}, "QQQ has 4 of the 5 sessions a training needs"),
        ({"hour": 3}, "QQQ has 120 new outcomes, 100 are needed; it waits for 2:00 exchange time"),
        (
            {"hour": 2, "retrain_hour": 0},
            "QQQ has 120 new outcomes, 100 are needed; it waits for 0:00 exchange time",
        ),
    ],
)
def test_each_condition_alone_prevents_it_and_says_so(changes: dict[str, Any], reason: str) -> None:
    assert decide(replace(READY, **changes)) == Decision(False, reason)


@pytest.mark.parametrize(
    ("failing", "named"),
    [
        (("in_flight", "new_samples", "sessions", "hour"), "being trained"),
        (("new_samples", "sessions", "hour"), "0 new outcomes, 100 are needed"),
        (("sessions", "hour"), "0 of the 5 sessions"),
        (("hour",), "it waits for 2:00"),
    ],
)
def test_the_first_condition_that_fails_is_named(failing: tuple[str, ...], named: str) -> None:
    bad: dict[str, Any] = {"in_flight": True, "new_samples": 0, "sessions": 0, "hour": 5}
    decision = decide(replace(READY, **{name: bad[name] for name in failing}))
    assert not decision.retrain
    assert named in decision.reason


# -- the hour --------------------------------------------------------------------------------------


def local(moment: str) -> dt.datetime:
    return dt.datetime.fromisoformat(moment).replace(tzinfo=NEW_YORK)


@pytest.mark.parametrize(
    ("since", "now", "counts"),
    [
        (None, "2026-03-10T02:30", 2),
        (None, "2026-03-10T09:30", 9),  # nobody knows whether it was looked at two
        ("2026-03-10T01:30", "2026-03-10T02:30", 2),
        ("2026-03-10T02:10", "2026-03-10T02:50", 2),
        ("2026-03-10T02:10", "2026-03-10T03:10", 3),
        ("2026-03-10T01:59:58", "2026-03-10T03:00:01", 2),  # an hour and three seconds apart
        ("2026-03-10T01:00", "2026-03-10T04:00", 2),  # RETRAIN_CHECK_INTERVAL=10800
        ("2026-03-09T23:00", "2026-03-10T09:30", 2),  # the machine slept
        ("2026-03-10T00:30", "2026-03-10T01:30", 1),
        ("2026-03-08T01:40", "2026-03-08T03:10", 2),  # there is no two o'clock on this day
        ("2026-03-08T03:10", "2026-03-08T04:10", 4),
        ("2026-03-08T22:00", "2026-03-09T01:00", 1),
    ],
)
def test_an_hour_nobody_looked_in_is_made_up_for(since: str | None, now: str, counts: int) -> None:
    before = local(since).astimezone(dt.UTC) if since else None
    assert hour_that_counts(local(now), before, 2) == counts


def test_without_an_hour_the_hour_is_the_clock_s() -> None:
    before = local("2026-03-10T01:30").astimezone(dt.UTC)
    assert hour_that_counts(local("2026-03-10T03:30"), before, None) == 3


@given(
    since=st.datetimes(
        dt.datetime(2026, 1, 1), dt.datetime(2026, 12, 1), timezones=st.just(dt.UTC)
    ),
    minutes=st.integers(1, 6000),
    hour=st.integers(0, 23),
)
def test_the_hour_counts_in_it_and_at_the_first_look_after_its_begin(
    since: dt.datetime, minutes: int, hour: int
) -> None:
    now = (since + dt.timedelta(minutes=minutes)).astimezone(NEW_YORK)
    days = [since.date() + dt.timedelta(days=i) for i in range(-1, 7)]
    begins = [dt.datetime.combine(x, dt.time(hour), NEW_YORK).astimezone(dt.UTC) for x in days]
    passed = any(since < begun <= now.astimezone(dt.UTC) for begun in begins)
    assert (hour_that_counts(now, since, hour) == hour) is (passed or now.hour == hour)
