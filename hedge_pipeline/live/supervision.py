"""Whether a poll run is to be started: the sign of life of the one there is, and the decision."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from zoneinfo import ZoneInfo

from hedge_pipeline.market.calendar import Session, SessionCalendar
from hedge_pipeline.store import Store

HEARTBEAT = "live/heartbeat.json"
MISSED_INTERVALS = 3
STARTING = dt.timedelta(minutes=2)


@dataclass(frozen=True)
class Heartbeat:
    """The last sign of life of a poll run.

    Attributes:
        run_id: Dagster run that polls.
        at: ISO time of its last poll, UTC.
        session: session polled.
        begun: ISO time the run began to poll, UTC.
    """

    run_id: str
    at: str
    session: str
    begun: str = ""

    @property
    def moment(self) -> dt.datetime:
        """Time of the last poll, aware."""
        return dt.datetime.fromisoformat(self.at)

    def yields_to(self, other: Heartbeat, interval: dt.timedelta) -> bool:
        """Whether the other one is of a living run that took over: it began later.

        A machine that was asleep wakes up with the run that was taken for dead.
        """
        alive = abs(self.moment - other.moment) <= MISSED_INTERVALS * interval
        return alive and other.run_id != self.run_id and other.begun > self.begun

    def write(self, store: Store) -> None:
        """Replaces the stored heartbeat."""
        store.write_bytes(HEARTBEAT, json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, store: Store) -> Heartbeat | None:
        """The stored heartbeat; None if there is none or it cannot be read."""
        try:
            found = cls(**json.loads(store.read_bytes(HEARTBEAT)))
            return found if found.moment.tzinfo else None
        except (FileNotFoundError, ValueError, TypeError):
            return None


class PollAction(StrEnum):
    """What the schedule does at a tick."""

    START = "start"
    REPLACE = "replace"
    SKIP = "skip"


@dataclass(frozen=True)
class PollRun:
    """An unfinished poll run: its id and when it was created."""

    run_id: str
    created: dt.datetime


@dataclass(frozen=True)
class PollDecision:
    """What to do, why, and which dead runs to report as failed first."""

    action: PollAction
    reason: str
    dead: tuple[str, ...] = ()


def decide_poll(
    calendar: SessionCalendar,
    now: dt.datetime,
    runs: Sequence[PollRun],
    heartbeat: Heartbeat | None,
    interval: dt.timedelta,
) -> PollDecision:
    """Decides at a tick of the schedule.

    A run is alive while it is young or its heartbeat is at most three intervals old. Outside the
    session nothing is started; a run still there finishes by itself. Nothing depends on this being
    right: all writes are keyed, so two pollers at once do no harm.

    Args:
        calendar: sessions.
        now: aware time of the tick.
        runs: unfinished poll runs.
        heartbeat: last sign of life, of whichever run.
        interval: POLLING_INTERVAL.
    """
    dead = tuple(run.run_id for run in runs if not _alive(run, now, heartbeat, interval))
    if calendar.session_at(now) is None:
        following = calendar.next_session(now)
        when = f"it opens {_when(calendar, following)}" if following else "no session follows"
        return PollDecision(PollAction.SKIP, f"{calendar.name} is closed; {when}", dead)
    living = [run for run in runs if run.run_id not in dead]
    if living:
        return PollDecision(PollAction.SKIP, f"run {living[0].run_id[:8]} is polling", dead)
    if dead:
        seen = "nobody has polled yet"
        if heartbeat:
            seen = f"the last poll was at {heartbeat.moment.isoformat(timespec='seconds')}"
        reason = f"run {dead[0][:8]} is dead, {seen}; another one starts"
        return PollDecision(PollAction.REPLACE, reason, dead)
    return PollDecision(PollAction.START, "the session is open and nobody polls")


def _alive(
    run: PollRun, now: dt.datetime, heartbeat: Heartbeat | None, interval: dt.timedelta
) -> bool:
    patience = MISSED_INTERVALS * interval
    if now - run.created <= max(STARTING, patience):
        return True
    return (
        heartbeat is not None
        and heartbeat.run_id == run.run_id
        and now - heartbeat.moment <= patience
    )


def _when(calendar: SessionCalendar, session: Session) -> str:
    local = session.opens.astimezone(ZoneInfo(calendar.timezone))
    return f"{local:%a %Y-%m-%d %H:%M %Z}"
