"""The partitions are the exchange's sessions, in exchange time, and nothing else."""

from __future__ import annotations

import datetime as dt
from functools import cache
from zoneinfo import ZoneInfo

import pytest

from hedge_pipeline.market.calendar import SessionCalendar
from hedge_pipeline.partitions import SYMBOLS, session_partitions
from hedge_pipeline.settings import Settings

NEW_YORK = ZoneInfo("America/New_York")


def keys(now: dt.datetime, calendar: str = "XNYS", start: str = "2024-01-02") -> list[str]:
    """Partition keys as Dagster would list them at that moment."""
    settings = Settings.model_validate({"HEDGE_CALENDAR": calendar, "HEDGE_HISTORY_START": start})
    return list(session_partitions(settings).get_partition_keys(current_time=now))


@cache
def keys_of_2024_and_2025() -> frozenset[str]:
    return frozenset(keys(dt.datetime(2025, 12, 31, 12, tzinfo=NEW_YORK)))


@pytest.mark.parametrize(
    ("calendar", "zone"),
    [("XNYS", "America/New_York"), ("XLON", "Europe/London"), ("24/7", "UTC")],
)
def test_the_keys_are_the_sessions_of_the_calendar(calendar: str, zone: str) -> None:
    now = dt.datetime(2026, 3, 31, 12, tzinfo=ZoneInfo(zone))
    expected = SessionCalendar(calendar).between("2024-01-02", "2026-03-31")
    assert keys(now, calendar) == list(expected)


@pytest.mark.parametrize(
    "day",
    [
        pytest.param("2024-01-15", id="holiday"),
        pytest.param("2024-03-29", id="good_friday"),
        pytest.param("2025-01-09", id="day_of_mourning_announced_days_before"),
        pytest.param("2024-06-22", id="saturday"),
        pytest.param("2024-06-23", id="sunday"),
    ],
)
def test_a_closed_day_is_no_partition(day: str) -> None:
    assert day not in keys_of_2024_and_2025()


@pytest.mark.parametrize("day", ["2024-07-03", "2024-11-29", "2024-12-24", "2025-12-24"])
def test_a_half_day_is_a_partition(day: str) -> None:
    session = SessionCalendar().session(day)
    assert session.closes - session.opens == dt.timedelta(hours=3.5)
    assert day in keys_of_2024_and_2025()


@pytest.mark.parametrize(
    "days",
    [
        pytest.param(("2024-03-08", "2024-03-11"), id="clocks_go_forward"),
        pytest.param(("2024-11-01", "2024-11-04"), id="clocks_go_back"),
        pytest.param(("2025-03-07", "2025-03-10"), id="clocks_go_forward_again"),
        pytest.param(("2025-10-31", "2025-11-03"), id="clocks_go_back_again"),
    ],
)
def test_weeks_with_a_change_of_the_clock_keep_their_days(days: tuple[str, str]) -> None:
    first, last = (dt.date.fromisoformat(day) for day in days)
    around = {(first + dt.timedelta(days=i)).isoformat() for i in range((last - first).days + 1)}
    assert around & keys_of_2024_and_2025() == set(days)


@pytest.mark.parametrize(
    ("now", "newest"),
    [
        pytest.param("2024-01-17T00:00:00", "2024-01-17", id="midnight"),
        pytest.param("2024-01-17T09:30:00", "2024-01-17", id="opening"),
        pytest.param("2024-01-17T23:59:59", "2024-01-17", id="last_second"),
        pytest.param("2024-01-16T23:59:59", "2024-01-16", id="the_second_before"),
        pytest.param("2024-01-20T12:00:00", "2024-01-19", id="saturday"),
        pytest.param("2024-01-21T23:59:59", "2024-01-19", id="sunday"),
        pytest.param("2024-03-11T00:30:00", "2024-03-11", id="after_the_clock_went_forward"),
        pytest.param("2024-11-04T00:30:00", "2024-11-04", id="after_the_clock_went_back"),
        pytest.param("2024-07-03T20:00:00", "2024-07-03", id="half_day_after_the_close"),
    ],
)
def test_today_is_the_newest_partition_in_exchange_time(now: str, newest: str) -> None:
    assert keys(dt.datetime.fromisoformat(now).replace(tzinfo=NEW_YORK))[-1] == newest


@pytest.mark.parametrize(
    ("now", "following"),
    [("2024-01-15T12:00:00", "2024-01-16"), ("2024-03-29T00:00:00", "2024-04-01")],
)
def test_on_a_holiday_the_following_session_is_offered_but_not_the_holiday(
    now: str, following: str
) -> None:
    """How Dagster counts `end_offset` over exclusions; asking for it fails with `not final yet`."""
    found = keys(dt.datetime.fromisoformat(now).replace(tzinfo=NEW_YORK))
    assert found[-1] == following
    assert found[:-1] == list(SessionCalendar().between(None, now[:10]))


def test_around_the_clock_every_day_is_a_partition() -> None:
    found = keys(dt.datetime(2024, 3, 12, 12, tzinfo=dt.UTC), "24/7")
    assert {"2024-03-09", "2024-03-10"} <= set(found)
    assert len(found) == (dt.date(2024, 3, 12) - dt.date(2024, 1, 2)).days + 1


def test_the_history_begins_where_the_settings_say() -> None:
    found = keys(dt.datetime(2025, 6, 10, 12, tzinfo=NEW_YORK), start="2025-05-31")
    assert found == ["2025-06-02", *(f"2025-06-{day:02d}" for day in (3, 4, 5, 6, 9, 10))]


def test_the_symbols_are_those_of_the_settings() -> None:
    assert tuple(SYMBOLS.get_partition_keys()) == ("SIMQ", "SIMN")
