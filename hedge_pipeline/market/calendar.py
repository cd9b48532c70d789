"""Trading sessions and their minute grids. Sessions are ISO dates of the exchange; times are UTC.

The one place that asks the exchange calendar; everything else receives a `Session`.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

Times = npt.NDArray[np.datetime64]
UTC = dt.UTC


class NoSession(ValueError):
    """The day is no trading session of the calendar, or lies outside the configured history."""


@dataclass(frozen=True)
class Session:
    """One trading session.

    Attributes:
        label: ISO date in exchange time.
        opens: first bar start, UTC.
        closes: end of the session, UTC; a stretch shorter than a bar before it is no bar.
        bar_seconds: bar length.
    """

    label: str
    opens: dt.datetime
    closes: dt.datetime
    bar_seconds: int

    @cached_property
    def bar_ts(self) -> Times:
        """Starts of the whole bars until the close, `datetime64[us]` in UTC, shape [bars]."""
        step = np.timedelta64(self.bar_seconds, "s")
        bars = (self.closes - self.opens) // dt.timedelta(seconds=self.bar_seconds)
        return (to_datetime64(self.opens) + step * np.arange(bars)).astype("datetime64[us]")

    @property
    def bars(self) -> int:
        """Number of expected bars."""
        return len(self.bar_ts)

    def bars_by(self, moment: dt.datetime) -> int:
        """Number of bars that have ended by an aware moment."""
        ended = (moment - self.opens) // dt.timedelta(seconds=self.bar_seconds)
        return min(max(ended, 0), self.bars)

    def index_of(self, bar_ts: Times) -> npt.NDArray[np.int64]:
        """Position of each bar start in the grid; times off the grid give -1."""
        offset = (bar_ts - self.bar_ts[0]).astype("timedelta64[us]").astype(np.int64)
        index, remainder = np.divmod(offset, self.bar_seconds * 1_000_000)
        return np.where((remainder == 0) & (index >= 0) & (index < self.bars), index, -1)


def to_datetime64(moment: dt.datetime) -> np.datetime64:
    """An aware datetime as `datetime64[us]` in UTC."""
    return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "us")


def utc_times(moments: pd.Series[Any]) -> Times:
    """A column of aware times as `datetime64[us]` in UTC, shape [rows]."""
    return moments.to_numpy(dtype="datetime64[us]")


class SessionCalendar:
    """Sessions of one exchange between two dates.

    Args:
        name: a name of `exchange_calendars`, `24/7` included (a session is then a UTC day).
        bar_seconds: bar length of the grids.
        start: first date that may be asked for.
        end: last date; default one year ahead of today.
    """

    def __init__(
        self,
        name: str = "XNYS",
        *,
        bar_seconds: int = 60,
        start: dt.date = dt.date(2024, 1, 2),
        end: dt.date | None = None,
    ) -> None:
        self.name = name
        self.bar_seconds = bar_seconds
        self.start = start
        self.end = end or dt.date.today() + dt.timedelta(days=365)
        self._sessions: dict[str, Session] = {}

    @cached_property
    def _calendar(self) -> object:
        return _exchange_calendar(self.name, self.start, self.end)

    @cached_property
    def timezone(self) -> str:
        """IANA name of the exchange's time zone."""
        return str(self._calendar.tz)  # type: ignore[attr-defined]

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Every session between start and end, ascending ISO dates."""
        days = self._calendar.sessions  # type: ignore[attr-defined]
        return tuple(days.strftime("%Y-%m-%d"))

    @cached_property
    def _position(self) -> dict[str, int]:
        return {label: position for position, label in enumerate(self.labels)}

    def __contains__(self, label: str) -> bool:
        return label in self._position

    def ordinal(self, label: str) -> int:
        """Position of a session among all sessions since `start`.

        Raises:
            NoSession: the date is no session.
        """
        try:
            return self._position[label]
        except KeyError:
            raise NoSession(self._why_not(label)) from None

    def session(self, label: str) -> Session:
        """The session of an ISO date.

        Raises:
            NoSession: the date is a weekend, a holiday, or outside the history.
        """
        if label not in self._sessions:
            self.ordinal(label)
            row = self._calendar.schedule.loc[label]  # type: ignore[attr-defined]
            self._sessions[label] = Session(
                label,
                row["open"].to_pydatetime(),
                row["close"].to_pydatetime(),
                self.bar_seconds,
            )
        return self._sessions[label]

    def between(self, first: str | None, last: str | None) -> tuple[str, ...]:
        """Sessions from `first` to `last`, both included; None means unbounded."""
        return tuple(
            label
            for label in self.labels
            if (first is None or label >= first) and (last is None or label <= last)
        )

    def previous(self, label: str) -> str | None:
        """The session before, None for the first one.

        Raises:
            NoSession: the date is no session.
        """
        position = self.ordinal(label)
        return self.labels[position - 1] if position else None

    def following(self, label: str) -> str | None:
        """The session after, None for the last one.

        Raises:
            NoSession: the date is no session.
        """
        position = self.ordinal(label) + 1
        return self.labels[position] if position < len(self.labels) else None

    def closed_by(self, now: dt.datetime) -> str | None:
        """The newest session that is over at `now`, None if there is none."""
        today = now.astimezone(UTC).date() + dt.timedelta(days=1)
        for label in reversed(self.between(None, today.isoformat())):
            if self.session(label).closes <= now:
                return label
        return None

    def session_at(self, now: dt.datetime) -> Session | None:
        """The session that is open at `now`, None if none is."""
        local = now.astimezone(ZoneInfo(self.timezone)).date()
        day_long = dt.timedelta(days=1)
        # a session may begin on the evening before its date, or end on the morning after it
        for day in (local, local - day_long, local + day_long):
            if day.isoformat() in self:
                session = self.session(day.isoformat())
                if session.opens <= now < session.closes:
                    return session
        return None

    def next_session(self, now: dt.datetime) -> Session | None:
        """The first session that opens after `now`; None at the end of the calendar."""
        closed = self.closed_by(now)
        label = self.following(closed) if closed else self.labels[0]
        while label is not None:
            session = self.session(label)
            if session.opens > now:
                return session
            label = self.following(label)
        return None

    @cached_property
    def full_session_bars(self) -> int:
        """Bars of a regular full session (the most common length)."""
        spans = self._calendar.closes - self._calendar.opens  # type: ignore[attr-defined]
        return int(spans.mode().iloc[0].total_seconds()) // self.bar_seconds

    def _why_not(self, label: str) -> str:
        try:
            day = dt.date.fromisoformat(label)
        except ValueError:
            return f"{label!r} is no ISO date (YYYY-MM-DD)"
        if not self.start <= day <= self.end:
            return f"{label} lies outside the history {self.start} to {self.end}"
        return f"{label} is no trading session of {self.name} (weekend or holiday)"


@lru_cache(maxsize=8)
def _exchange_calendar(name: str, start: dt.date, end: dt.date) -> object:
    import exchange_calendars

    return exchange_calendars.get_calendar(name, start=start.isoformat(), end=end.isoformat())
