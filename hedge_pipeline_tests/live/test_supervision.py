"""Whether to start a poll run, and which sessions to close: decisions from facts alone."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import asdict
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedge_pipeline.live.supervision import (
    HEARTBEAT,
    Heartbeat,
    PollAction,
    PollDecision,
    PollRun,
    decide_poll,
    next_session,
    session_at,
    sessions_to_close,
)
from hedge_pipeline.market.calendar import SessionCalendar
from hedge_pipeline.store import Store
from hedge_pipeline_tests.markets import MINUTE, SECOND, calendar_of

INTERVAL = dt.timedelta(seconds=60)
OPEN = dt.datetime(2024, 11, 27, 15, 0, tzinfo=dt.UTC)
OLD = OPEN - dt.timedelta(minutes=30)
SETTLING = dt.timedelta(minutes=15)


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


# -- sessions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calendar", "now", "label"),
    [
        ("XNYS", "2024-11-29T14:30:00+00:00", "2024-11-29"),
        ("XNYS", "2024-11-29T14:29:59+00:00", None),
        ("XNYS", "2024-11-29T18:00:00+00:00", None),
        ("XNYS", "2024-11-28T15:00:00+00:00", None),
        ("24/7", "2024-11-30T00:00:00+00:00", "2024-11-30"),
        ("24/7", "2024-11-29T23:59:59+00:00", "2024-11-29"),
        ("XTKS", "2024-11-29T00:30:00+00:00", "2024-11-29"),
        ("CMES", "2024-11-24T23:30:00+00:00", "2024-11-25"),  # opens on Sunday evening
        ("CMES", "2024-11-25T22:30:00+00:00", "2024-11-25"),
    ],
)
def test_the_open_session(calendar: str, now: str, label: str | None) -> None:
    found = session_at(calendar_of(calendar), dt.datetime.fromisoformat(now))
    assert (found.label if found else None) == label


@given(st.integers(0, 400 * 24 * 60))
def test_the_next_session_is_the_first_that_opens_later(passed: int) -> None:
    calendar = calendar_of("XNYS")
    now = dt.datetime(2024, 1, 3, tzinfo=dt.UTC) + passed * MINUTE
    found = next_session(calendar, now)
    assert found is not None
    assert found.opens > now
    before = calendar.previous(found.label)
    assert before is not None
    assert calendar.session(before).opens <= now


def test_before_the_history_the_next_session_is_the_first() -> None:
    found = next_session(calendar_of("XNYS"), dt.datetime(2023, 12, 24, tzinfo=dt.UTC))
    assert found is not None
    assert found.label == "2024-01-02"


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


# -- sessions to close -------------------------------------------------------------------------


def to_close(
    now: str,
    stored: tuple[str, ...],
    closed_through: tuple[str | None, ...],
    calendar: str = "XNYS",
    **given: int,
) -> tuple[str, ...]:
    moment = dt.datetime.fromisoformat(now)
    return sessions_to_close(
        calendar_of(calendar), moment, stored, closed_through, settling=SETTLING, **given
    )


STORED = ("2024-11-25", "2024-11-26", "2024-11-27")


@pytest.mark.parametrize(
    ("now", "closed_through", "expected"),
    [
        pytest.param("2024-11-27T21:14:59+00:00", "2024-11-26", (), id="not settled yet"),
        pytest.param("2024-11-27T21:15:00+00:00", "2024-11-26", STORED[-1:], id="settled"),
        pytest.param("2024-11-27T21:15:00+00:00", "2024-11-27", (), id="closed"),
        pytest.param("2024-11-27T21:15:00+00:00", None, STORED, id="nothing closed yet"),
        pytest.param("2024-11-29T18:15:00+00:00", "2024-11-27", ("2024-11-29",), id="half day"),
        pytest.param(
            "2024-12-03T22:00:00+00:00",
            "2024-11-27",
            ("2024-11-29", "2024-12-02", "2024-12-03"),
            id="days the service was down, without the holiday and the weekend",
        ),
    ],
)
def test_sessions_that_are_over_and_not_closed_are_asked_for_oldest_first(
    now: str, closed_through: str | None, expected: tuple[str, ...]
) -> None:
    assert to_close(now, STORED, (closed_through,)) == expected


def test_the_symbol_that_is_furthest_behind_decides() -> None:
    now = "2024-11-27T21:15:00+00:00"
    assert to_close(now, STORED, ("2024-11-27", "2024-11-25")) == STORED[1:]
    assert to_close(now, STORED, ("2024-11-27", None)) == STORED


def test_an_empty_store_has_nothing_to_close() -> None:
    assert to_close("2024-11-27T21:15:00+00:00", (), (None,)) == ()


def test_round_the_clock_a_day_is_closed_after_midnight() -> None:
    stored = ("2024-11-30",)
    assert to_close("2024-12-01T00:14:00+00:00", stored, (None,), "24/7") == ()
    assert to_close("2024-12-01T00:15:00+00:00", stored, (None,), "24/7") == stored


@pytest.mark.parametrize("most", [1, 3, 10])
def test_after_a_long_absence_only_the_newest_sessions_are_closed(most: int) -> None:
    found = to_close("2024-12-31T23:00:00+00:00", STORED, ("2024-11-27",), most=most)
    assert len(found) == most
    assert found[-1] == "2024-12-31"
    assert list(found) == sorted(found)
