"""What the calendar promises: sessions, half days, time changes and minute grids."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedge_pipeline.market.calendar import NoSession, Session, SessionCalendar
from hedge_pipeline_tests.markets import MINUTE, calendar_of

UTC = dt.UTC
XNYS = SessionCalendar(end=dt.date(2027, 6, 30))
FULL = XNYS.session("2026-03-10")


def at(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=UTC)


def times(*texts: str) -> np.ndarray[tuple[int], np.dtype[np.datetime64]]:
    return np.array(texts, dtype="datetime64[us]")


def test_a_full_session_has_390_minute_bars() -> None:
    assert FULL.bars == 390
    assert XNYS.full_session_bars == 390
    assert FULL.bar_ts[0] == np.datetime64("2026-03-10T13:30")
    assert FULL.bar_ts[-1] == np.datetime64("2026-03-10T19:59")
    assert FULL.bar_ts.dtype == np.dtype("datetime64[us]")


def test_the_day_after_thanksgiving_is_a_half_day_of_210_bars() -> None:
    half = XNYS.session("2026-11-27")
    assert half.bars == 210
    assert half.opens == at("2026-11-27T14:30")
    assert half.closes == at("2026-11-27T18:00")


@pytest.mark.parametrize(
    ("label", "opens"),
    [
        ("2026-03-06", "14:30"),
        ("2026-03-09", "13:30"),
        ("2026-10-30", "13:30"),
        ("2026-11-02", "14:30"),
    ],
)
def test_a_time_change_moves_the_session_in_utc_and_not_in_length(label: str, opens: str) -> None:
    session = XNYS.session(label)
    assert session.opens == at(f"{label}T{opens}")
    assert session.bars == 390


def test_a_day_of_the_24_7_calendar_is_a_utc_day_even_when_new_york_changes_its_clocks() -> None:
    crypto = SessionCalendar("24/7", end=dt.date(2026, 12, 31))
    sunday = crypto.session("2026-03-08")
    assert sunday.bars == crypto.full_session_bars == 1440
    assert (sunday.opens, sunday.closes) == (at("2026-03-08T00:00"), at("2026-03-09T00:00"))
    assert crypto.timezone == "UTC"


def test_the_time_zone_is_the_exchange_s() -> None:
    assert XNYS.timezone == "America/New_York"


@pytest.mark.parametrize("seconds", [300, 3600, 420])
def test_no_bar_ends_after_the_close(seconds: int) -> None:
    calendar = SessionCalendar(bar_seconds=seconds, end=dt.date(2026, 12, 31))
    session = calendar.session("2026-03-10")
    end = session.bar_ts[-1] + np.timedelta64(seconds, "s")
    close = np.datetime64("2026-03-10T20:00")
    assert close - np.timedelta64(seconds, "s") < end <= close
    assert session.bars == calendar.full_session_bars == 390 * 60 // seconds


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("2026-03-08", "2026-03-08 is no trading session of XNYS (weekend or holiday)"),
        ("2026-12-25", "2026-12-25 is no trading session of XNYS (weekend or holiday)"),
        ("2023-12-29", "2023-12-29 lies outside the history 2024-01-02 to 2027-06-30"),
        ("2027-07-01", "2027-07-01 lies outside the history 2024-01-02 to 2027-06-30"),
        ("10.3.2026", "'10.3.2026' is no ISO date (YYYY-MM-DD)"),
        ("2026-02-30", "'2026-02-30' is no ISO date (YYYY-MM-DD)"),
    ],
)
def test_a_date_without_a_session_is_refused_in_one_line(label: str, words: str) -> None:
    assert label not in XNYS
    with pytest.raises(NoSession) as session:
        XNYS.session(label)
    with pytest.raises(NoSession) as ordinal:
        XNYS.ordinal(label)
    assert str(session.value) == str(ordinal.value) == words


def test_holidays_and_weekends_are_skipped_by_previous_and_following() -> None:
    assert XNYS.following("2026-11-25") == "2026-11-27"
    assert XNYS.previous("2026-11-27") == "2026-11-25"
    assert XNYS.following("2026-11-27") == "2026-11-30"


def test_the_first_session_has_none_before_and_the_last_none_after() -> None:
    assert XNYS.labels[0] == "2024-01-02"
    assert XNYS.previous("2024-01-02") is None
    assert XNYS.labels[-1] == "2027-06-30"
    assert XNYS.following("2027-06-30") is None


@pytest.mark.parametrize(
    ("first", "last", "found"),
    [
        ("2026-11-25", "2026-11-30", ("2026-11-25", "2026-11-27", "2026-11-30")),
        ("2026-11-28", "2026-11-29", ()),
        ("2027-06-29", None, ("2027-06-29", "2027-06-30")),
        (None, "2024-01-03", ("2024-01-02", "2024-01-03")),
    ],
)
def test_between_includes_both_ends(
    first: str | None, last: str | None, found: tuple[str, ...]
) -> None:
    assert XNYS.between(first, last) == found


@pytest.mark.parametrize(
    ("now", "closed"),
    [
        ("2026-03-10T19:59:59", "2026-03-09"),
        ("2026-03-10T20:00:00", "2026-03-10"),
        ("2026-03-15T12:00:00", "2026-03-13"),
        ("2026-11-27T17:59:59", "2026-11-25"),
        ("2026-11-27T18:00:00", "2026-11-27"),
        ("2024-01-02T20:59:59", None),
        ("2030-01-01T00:00:00", "2027-06-30"),
    ],
)
def test_a_session_is_closed_from_its_last_second_on(now: str, closed: str | None) -> None:
    assert XNYS.closed_by(at(now)) == closed


def test_closed_by_understands_a_time_of_any_zone() -> None:
    tokyo = dt.timezone(dt.timedelta(hours=9))
    assert XNYS.closed_by(at("2026-03-10T20:00:00").astimezone(tokyo)) == "2026-03-10"


def test_a_utc_day_is_closed_at_midnight() -> None:
    crypto = SessionCalendar("24/7", end=dt.date(2026, 12, 31))
    assert crypto.closed_by(at("2026-03-10T00:00:00")) == "2026-03-09"


def test_times_off_the_grid_have_no_index() -> None:
    wanted = times(
        "2026-03-10T13:30:00",
        "2026-03-10T19:59:00",
        "2026-03-10T13:29:00",
        "2026-03-10T20:00:00",
        "2026-03-10T13:30:30",
        "2026-03-10T13:30:00.000001",
        "2026-03-09T13:30:00",
    )
    assert FULL.index_of(wanted).tolist() == [0, 389, -1, -1, -1, -1, -1]


@pytest.mark.parametrize(
    ("moment", "ended"),
    [
        ("2026-03-10T12:00:00", 0),
        ("2026-03-10T13:30:59", 0),
        ("2026-03-10T13:31:00", 1),
        ("2026-03-10T19:59:59", 389),
        ("2026-03-10T20:00:00", 390),
        ("2026-03-11T09:00:00", 390),
    ],
)
def test_a_bar_counts_from_its_end_on(moment: str, ended: int) -> None:
    assert FULL.bars_by(at(moment)) == ended


@given(st.sampled_from(XNYS.labels))
def test_every_bar_start_finds_its_own_place(label: str) -> None:
    session: Session = XNYS.session(label)
    assert session.index_of(session.bar_ts).tolist() == list(range(session.bars))
    assert XNYS.labels[XNYS.ordinal(label)] == label
    assert label in XNYS


@given(st.sampled_from(XNYS.labels[1:]))
def test_sessions_follow_each_other_without_overlap(label: str) -> None:
    before = XNYS.previous(label)
    assert before is not None
    assert XNYS.following(before) == label
    assert XNYS.session(before).closes < XNYS.session(label).opens


def test_a_calendar_that_begins_on_a_holiday_begins_with_its_next_session() -> None:
    calendar = SessionCalendar(start=dt.date(2026, 1, 1), end=dt.date(2026, 1, 31))
    assert calendar.labels[0] == "2026-01-02"
    assert calendar.ordinal("2026-01-02") == 0


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
    found = calendar_of(calendar).session_at(dt.datetime.fromisoformat(now))
    assert (found.label if found else None) == label


@given(st.integers(0, 400 * 24 * 60))
def test_the_next_session_is_the_first_that_opens_later(passed: int) -> None:
    calendar = calendar_of("XNYS")
    now = dt.datetime(2024, 1, 3, tzinfo=dt.UTC) + passed * MINUTE
    found = calendar.next_session(now)
    assert found is not None
    assert found.opens > now
    before = calendar.previous(found.label)
    assert before is not None
    assert calendar.session(before).opens <= now


def test_before_the_history_the_next_session_is_the_first() -> None:
    found = calendar_of("XNYS").next_session(dt.datetime(2023, 12, 24, tzinfo=dt.UTC))
    assert found is not None
    assert found.label == "2024-01-02"
