"""The two partitions, trading sessions and symbols, how old their newest may be, and backfills.

SESSIONS are the trading days of the configured exchange calendar in exchange time, today's
included; holidays are no partitions, so a closed day can never be asked for. SYMBOLS are the
watched symbols. Read from the settings when the code location loads; assets import them from here.
"""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import dagster as dg

from hedge_pipeline.market.calendar import SessionCalendar
from hedge_pipeline.settings import Settings, load_settings


def session_partitions(settings: Settings) -> dg.TimeWindowPartitionsDefinition:
    """One partition per trading session since `HEDGE_HISTORY_START`.

    On a holiday Dagster, which counts `end_offset` over the exclusions, already offers the next
    session; asking for it fails with the source's `no bar is final yet`.
    """
    calendar = SessionCalendar(settings.calendar, start=settings.history_start)
    sessions = {dt.date.fromisoformat(label) for label in calendar.labels}
    weekdays = sorted({day.isoweekday() % 7 for day in sessions})
    every = (calendar.end - calendar.start).days
    days = (calendar.start + dt.timedelta(days=i) for i in range(every))
    closed = [d for d in days if d not in sessions and d.isoweekday() % 7 in weekdays]
    zone = ZoneInfo(calendar.timezone)
    return dg.TimeWindowPartitionsDefinition(
        start=settings.history_start.isoformat(),
        fmt="%Y-%m-%d",
        cron_schedule=f"0 0 * * {','.join(map(str, weekdays))}",
        timezone=calendar.timezone,
        end_offset=1,
        exclusions=[dt.datetime(day.year, day.month, day.day, tzinfo=zone) for day in closed],
    )


def backfill_policy(sessions: int | None) -> dg.BackfillPolicy:
    """How a backfill of session assets is cut into runs.

    One run takes all sessions and goes through the assets one after the other. Several runs are
    worked on at once; then Dagster asks for features only when the bars of all sessions are there,
    because they look back one session.

    Args:
        sessions: of one run; None = all of them.
    """
    if sessions is None:
        return dg.BackfillPolicy.single_run()
    return dg.BackfillPolicy.multi_run(sessions)


_SETTINGS = load_settings()
SESSIONS = session_partitions(_SETTINGS)
SINCE_YESTERDAY = dg.TimeWindowPartitionMapping(
    start_offset=-1, allow_nonexistent_upstream_partitions=True
)
BACKFILL = backfill_policy(_SETTINGS.backfill_sessions)
# a weekend with a holiday lies between two sessions; models follow the outcomes
FRESH_SESSIONS = dg.FreshnessPolicy.time_window(
    fail_window=dt.timedelta(days=5), warn_window=dt.timedelta(days=4)
)
FRESH_MODELS = dg.FreshnessPolicy.time_window(
    fail_window=dt.timedelta(days=15), warn_window=dt.timedelta(days=8)
)
SYMBOLS = dg.StaticPartitionsDefinition(list(_SETTINGS.symbols))
