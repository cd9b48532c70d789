"""Schedules in exchange time: the poll run, the close of sessions, the nightly job, the watch.

What is to be done is decided by plain functions elsewhere; here their answers become requests for
runs, or the reason why there is none.
"""

import datetime as dt
from typing import TYPE_CHECKING

import dagster as dg

from hedge_pipeline.jobs import UNFINISHED, close_session, housekeeping, poll_market
from hedge_pipeline.resources.loop import LoopResource
from hedge_pipeline.resources.queueing import POLL_LANE
from hedge_pipeline.settings import Settings

if TYPE_CHECKING:
    from hedge_pipeline.live.supervision import Heartbeat
    from hedge_pipeline.stages import Deployment

GRACE_SECONDS = 600


def default_status(settings: Settings) -> dg.DefaultScheduleStatus:
    """Running from the start if the settings say so; otherwise switched on in the UI."""
    running = settings.autostart
    return dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED


def build_schedules(settings: Settings) -> list[dg.ScheduleDefinition]:
    """Every schedule of the project."""
    from hedge_pipeline.market.calendar import SessionCalendar

    timezone = SessionCalendar(settings.calendar, start=settings.history_start).timezone
    return [
        build_polling_schedule(settings, timezone),
        build_close_schedule(settings, timezone),
        build_watch_schedule(settings, timezone),
        dg.ScheduleDefinition(
            name="housekeeping_schedule",
            job=housekeeping,
            cron_schedule="30 3 * * *",
            execution_timezone=timezone,
            default_status=default_status(settings),
            description="At 03:30 exchange time: compacts, forgets, frees, saves.",
        ),
    ]


def build_polling_schedule(settings: Settings, timezone: str) -> dg.ScheduleDefinition:
    """Every minute: start the poll run, leave a healthy one alone, replace a dead one.

    Args:
        settings: of the deployment.
        timezone: of the exchange.
    """

    @dg.schedule(
        job=poll_market,
        cron_schedule="* * * * *",
        execution_timezone=timezone,
        default_status=default_status(settings),
        description="Keeps one `poll_market` run alive while the exchange is open.",
    )
    def polling_schedule(
        context: dg.ScheduleEvaluationContext, loop: LoopResource
    ) -> dg.RunRequest | dg.SkipReason:
        """Supervises `poll_market`; outside the session it says when the next one opens."""
        from hedge_pipeline.live.supervision import Heartbeat, PollAction, PollRun, decide_poll

        deployment = loop.deployment
        records = context.instance.get_run_records(
            dg.RunsFilter(tags=POLL_LANE, statuses=UNFINISHED), limit=20
        )
        runs = [PollRun(r.dagster_run.run_id, r.create_timestamp) for r in records]
        beat = Heartbeat.read(deployment.store)
        decision = decide_poll(
            deployment.calendar,
            deployment.clock(),
            runs,
            beat,
            dt.timedelta(seconds=settings.polling_interval),
        )
        if decision.dead and (refusal := _refusal(deployment)):
            # a run that polls gives no sign of life either while nothing can be written
            return dg.SkipReason(f"{refusal}; no run is taken for dead before that")
        for record in records:
            if record.dagster_run.run_id in decision.dead:
                why = _why_dead(record.dagster_run.run_id, beat)
                context.instance.report_run_failed(record.dagster_run, why)
        if decision.action is PollAction.SKIP:
            return dg.SkipReason(decision.reason)
        # a run that hangs in a call is ended by the daemon, whatever its time box was
        most = 60 * settings.poll_run_minutes + GRACE_SECONDS
        return dg.RunRequest(
            tags={"hedge/reason": decision.reason, "dagster/max_runtime": str(most)}
        )

    return polling_schedule


def _refusal(deployment: "Deployment") -> str:
    """Why the data folder takes nothing; "" = it does."""
    from hedge_pipeline.store import StoreError

    try:
        deployment.store.check_writable()
    except StoreError as error:
        return str(error)
    return ""


def _why_dead(run_id: str, beat: "Heartbeat | None") -> str:
    """What a run is told to have failed of that is taken for dead.

    Args:
        run_id: of the run.
        beat: the last sign of life, of whichever run.
    """
    if beat is None:
        seen = "nobody has polled yet"
    else:
        whose = (
            "its last poll" if beat.run_id == run_id else f"the last poll, of {beat.run_id[:8]},"
        )
        seen = f"{whose} was at {beat.moment.isoformat(timespec='seconds')}"
    return f"taken for dead, it gave no sign of life ({seen})"


def build_close_schedule(settings: Settings, timezone: str) -> dg.ScheduleDefinition:
    """Every ten minutes: close the sessions that are over, days the service was down included.

    Args:
        settings: of the deployment.
        timezone: of the exchange.
    """

    @dg.schedule(
        job=close_session,
        cron_schedule="*/10 * * * *",
        execution_timezone=timezone,
        default_status=default_status(settings),
        description="Requests `close_session` while a session that is over is not closed.",
    )
    def close_session_schedule(
        context: dg.ScheduleEvaluationContext, loop: LoopResource
    ) -> dg.RunRequest | dg.SkipReason:
        """Requests `close_session`, which closes the newest ten sessions not closed yet."""
        from hedge_pipeline import stages

        pending = stages.pending_sessions(loop.deployment)
        if not pending:
            return dg.SkipReason("every session that is over is closed")
        running = context.instance.get_runs(
            dg.RunsFilter(job_name=close_session.name, statuses=UNFINISHED), limit=1
        )
        if running:
            return dg.SkipReason(f"run {running[0].run_id[:8]} is closing {pending[0]}")
        many = f"{', '.join(pending)} {'is' if len(pending) == 1 else 'are'}"
        return dg.RunRequest(tags={"hedge/reason": f"{many} over and not closed yet"})

    return close_session_schedule


def build_watch_schedule(settings: Settings, timezone: str) -> dg.ScheduleDefinition:
    """Every five minutes: look at the service's health and tell whoever should know.

    Args:
        settings: of the deployment.
        timezone: of the exchange.
    """

    @dg.schedule(
        job=housekeeping,
        cron_schedule="*/5 * * * *",
        execution_timezone=timezone,
        default_status=default_status(settings),
        description="Never starts a run: looks at the health of the service and sends alerts.",
    )
    def watch_schedule(context: dg.ScheduleEvaluationContext, loop: LoopResource) -> dg.SkipReason:
        """Says what is wrong; the alerts are rate-limited by the store."""
        from hedge_pipeline.resources.housekeeping import watch

        return dg.SkipReason(watch(context.instance, loop))

    return watch_schedule
