"""Whether to start a poll run: a decision from facts alone."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import asdict
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from hedge_pipeline.live.supervision import (
    HEARTBEAT,
    Heartbeat,
    PollAction,
    PollDecision,
    PollRun,
    decide_poll,
)
from hedge_pipeline.market.calendar import SessionCalendar
from hedge_pipeline.store import Store
from hedge_pipeline_tests.markets import MINUTE, SECOND, calendar_of

INTERVAL = dt.timedelta(seconds=60)
OPEN = dt.datetime(2024, 11, 27, 15, 0, tzinfo=dt.UTC)
OLD = OPEN - dt.timedelta(minutes=30)


def at(text: str, zone: str = "America/New_York") -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


def beat(run_id: str, moment: dt.datetime) -> Heartbeat:
    return Heartbeat(run_id, moment.isoformat(), "2024-11-27")


def decide(
    now: dt.datetime = OPEN,
    runs: tuple[PollRun, ...] = (),
    heartbeat: Heartbeat | None = None,
    calendar: str = "XNYS",
    interval: dt.timedelta = INTERVAL,
) -> PollDecision:
    return decide_poll(calendar_of(calendar), now, runs, heartbeat, interval)


# -- outside the session -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "opens"),
    [
        pytest.param("2024-11-27T09:29:59", "Wed 2024-11-27 09:30 EST", id="a second before"),
        pytest.param("2024-11-27T16:00", "Fri 2024-11-29 09:30 EST", id="holiday tomorrow"),
        pytest.param("2024-11-28T12:00", "Fri 2024-11-29 09:30 EST", id="holiday"),
        pytest.param("2024-11-29T13:00", "Mon 2024-12-02 09:30 EST", id="after a half day"),
        pytest.param("2024-11-30T12:00", "Mon 2024-12-02 09:30 EST", id="weekend"),
        pytest.param("2024-03-08T18:00", "Mon 2024-03-11 09:30 EDT", id="into summer time"),
        pytest.param("2024-11-01T18:00", "Mon 2024-11-04 09:30 EST", id="out of summer time"),
        pytest.param("2024-12-31T23:59", "Thu 2025-01-02 09:30 EST", id="over the year"),
    ],
)
def test_outside_the_session_nothing_starts_and_the_next_opening_is_named(
    now: str, opens: str
) -> None:
    assert decide(at(now)) == PollDecision(PollAction.SKIP, f"XNYS is closed; it opens {opens}")


@pytest.mark.parametrize("now", ["2024-11-29T09:30", "2024-11-29T12:59:59", "2024-11-27T15:59:59"])
def test_from_the_opening_to_the_last_second_a_run_is_started(now: str) -> None:
    expected = PollDecision(PollAction.START, "the session is open and nobody polls")
    assert decide(at(now)) == expected


@pytest.mark.parametrize("hour", range(0, 24, 5))
@pytest.mark.parametrize("day", ["2024-11-28", "2024-11-30", "2024-12-25"])
def test_round_the_clock_it_is_never_closed(day: str, hour: int) -> None:
    now = dt.datetime.fromisoformat(f"{day}T{hour:02}:00:00+00:00")
    assert decide(now, calendar="24/7").action is PollAction.START


def test_behind_the_end_of_the_calendar_it_never_opens() -> None:
    short = SessionCalendar(end=dt.date(2024, 11, 27))
    decision = decide_poll(short, at("2024-11-27T17:00"), (), None, INTERVAL)
    assert decision == PollDecision(PollAction.SKIP, "XNYS is closed; no session follows")


def test_a_run_of_the_last_session_that_died_is_reported_though_nothing_starts() -> None:
    decision = decide(at("2024-11-27T16:30"), (PollRun("left", OLD),), beat("left", OLD))
    assert (decision.action, decision.dead) == (PollAction.SKIP, ("left",))


# -- inside the session ------------------------------------------------------------------------

RUN = PollRun("a" * 36, OLD)
OTHER = PollRun("b" * 36, OLD)
YOUNG = PollRun("c" * 36, OPEN - dt.timedelta(seconds=170))


@pytest.mark.parametrize(
    ("runs", "heartbeat"),
    [
        pytest.param((RUN,), beat(RUN.run_id, OPEN), id="just polled"),
        pytest.param((RUN,), beat(RUN.run_id, OPEN - 3 * INTERVAL), id="three intervals ago"),
        pytest.param((YOUNG,), None, id="young, no poll yet"),
        pytest.param((YOUNG,), beat(RUN.run_id, OLD), id="young, the last one's heartbeat"),
    ],
)
def test_a_living_run_is_left_alone(runs: tuple[PollRun, ...], heartbeat: Heartbeat | None) -> None:
    decision = decide(OPEN, runs, heartbeat)
    assert decision == PollDecision(PollAction.SKIP, f"run {runs[0].run_id[:8]} is polling")


@pytest.mark.parametrize(
    ("heartbeat", "seen"),
    [
        pytest.param(
            beat(RUN.run_id, OPEN - 3 * INTERVAL - SECOND),
            "the last poll was at 2024-11-27T14:56:59+00:00",
            id="too long ago",
        ),
        pytest.param(None, "nobody has polled yet", id="never polled"),
        pytest.param(
            beat(OTHER.run_id, OPEN),
            "the last poll was at 2024-11-27T15:00:00+00:00",
            id="another's",
        ),
    ],
)
def test_a_dead_run_is_reported_and_replaced(heartbeat: Heartbeat | None, seen: str) -> None:
    reason = f"run aaaaaaaa is dead, {seen}; another one starts"
    expected = PollDecision(PollAction.REPLACE, reason, (RUN.run_id,))
    assert decide(OPEN, (RUN,), heartbeat) == expected


def test_several_dead_runs_are_all_reported() -> None:
    decision = decide(OPEN, (RUN, OTHER), beat("gone", OPEN))
    assert (decision.action, decision.dead) == (PollAction.REPLACE, (RUN.run_id, OTHER.run_id))


def test_beside_a_living_run_a_dead_one_is_only_reported() -> None:
    decision = decide(OPEN, (RUN, OTHER), beat(OTHER.run_id, OPEN))
    assert decision == PollDecision(PollAction.SKIP, "run bbbbbbbb is polling", (RUN.run_id,))


@pytest.mark.parametrize(
    ("interval", "alive", "dead"),
    [
        pytest.param(10, 120, 121, id="a short interval leaves two minutes to start"),
        pytest.param(60, 180, 181, id="three intervals"),
        pytest.param(3600, 10800, 10801, id="polled by the hour"),
    ],
)
def test_a_run_without_a_poll_is_dead_only_when_it_had_time_to_start(
    interval: int, alive: int, dead: int
) -> None:
    for age, action in ((alive, PollAction.SKIP), (dead, PollAction.REPLACE)):
        run = PollRun("new", OPEN - age * SECOND)
        found = decide(OPEN, (run,), interval=dt.timedelta(seconds=interval))
        assert found.action is action, age


# -- the heartbeat -----------------------------------------------------------------------------


def test_a_heartbeat_is_read_as_it_was_written(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert Heartbeat.read(store) is None
    for number in range(2):
        written = beat(f"run-{number}", OPEN + number * MINUTE)
        written.write(store)
        assert Heartbeat.read(Store(str(tmp_path))) == written
        assert written.moment == OPEN + number * MINUTE


@pytest.mark.parametrize(
    ("run_id", "begun", "last", "yields"),
    [
        pytest.param("new", 1, 0, True, id="began later"),
        pytest.param("new", 1, -180, True, id="and polled three intervals ago"),
        pytest.param("new", 1, -181, False, id="but is dead"),
        pytest.param("new", 1, 3600, False, id="by a clock that was wrong"),
        pytest.param("new", -1, 0, False, id="began earlier"),
        pytest.param("new", 0, 0, False, id="at once"),
        pytest.param("own", 1, 0, False, id="is the same"),
    ],
)
def test_a_run_yields_to_a_living_one_that_began_later(
    run_id: str, begun: int, last: int, yields: bool
) -> None:
    own = Heartbeat("own", OPEN.isoformat(), "2024-11-27", begun=OLD.isoformat())
    began = (OLD + begun * SECOND).isoformat()
    other = Heartbeat(run_id, (OPEN + last * SECOND).isoformat(), "2024-11-27", begun=began)
    assert own.yields_to(other, INTERVAL) is yields


GOOD = asdict(beat("run", OPEN))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"run_id": "x", "at"', id="cut off"),
        pytest.param(b"\xff\xfe\x00", id="no text"),
        pytest.param(b"[1, 2]", id="a list"),
        pytest.param(b"null", id="null"),
        pytest.param(json.dumps({"run_id": "x"}).encode(), id="fields missing"),
        pytest.param(json.dumps({**GOOD, "more": 1}).encode(), id="a field of another version"),
        pytest.param(json.dumps({**GOOD, "at": "yesterday"}).encode(), id="no time"),
        pytest.param(json.dumps({**GOOD, "at": None}).encode(), id="null time"),
        pytest.param(json.dumps({**GOOD, "at": "2024-11-27T15:00:00"}).encode(), id="no zone"),
    ],
)
def test_a_damaged_heartbeat_is_none_and_the_run_is_replaced(
    tmp_path: Path, content: bytes
) -> None:
    store = Store(str(tmp_path))
    store.write_bytes(HEARTBEAT, content)
    assert Heartbeat.read(store) is None
    assert decide(OPEN, (RUN,), Heartbeat.read(store)).action is PollAction.REPLACE
