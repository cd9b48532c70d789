"""Jobs and their ops: polling, closing, training, a first start and housekeeping.

An op opens the deployment, calls plain functions and says what came of it; errors a user can mend
are one line.
"""

import datetime as dt
import time
from functools import partial

import dagster as dg

from hedge_pipeline.assets.champion_model import champion_model
from hedge_pipeline.assets.model_performance import model_performance
from hedge_pipeline.assets.signal_report import signal_report
from hedge_pipeline.assets.trained_model import trained_model
from hedge_pipeline.resources.loop import LoopResource
from hedge_pipeline.resources.queueing import CLOSE_LANE, HOUSE_LANE, POLL_LANE, TRAIN_LANE

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
REPORT_AFTER_POLLS = 12
REPORT_AFTER = dt.timedelta(minutes=5), dt.timedelta(minutes=15)
LAST_ALERTS_SECONDS = 10.0

train_model = dg.define_asset_job(
    "train_model",
    selection=[trained_model, champion_model, model_performance, signal_report],
    description="Fit a candidate for a symbol, judge it, score every version.",
    tags=TRAIN_LANE,
)


def report_interval(polling: dt.timedelta) -> dt.timedelta:
    """Time between two reports of a poll run that polls so often; see `LiveReport`."""
    soonest, latest = REPORT_AFTER
    return min(max(REPORT_AFTER_POLLS * polling, soonest), latest)


@dg.op
def poll_until_the_time_box_ends(context: dg.OpExecutionContext, loop: LoopResource) -> None:
    """Polls the source on the clock's grid; see `live/loop.py`."""
    from hedge_pipeline import logs
    from hedge_pipeline.assets.reporting import LiveReport, plain_failures
    from hedge_pipeline.live.alerting import alert_signals
    from hedge_pipeline.live.loop import run_loop
    from hedge_pipeline.opening import open_notifier
    from hedge_pipeline.settings import load_settings
    from hedge_pipeline.storage import past_broken_files

    with plain_failures():
        settings, deployment = load_settings(), loop.deployment
        logs.follow(settings.log_level)
        interval = dt.timedelta(seconds=settings.polling_interval)
        report = LiveReport(context, deployment, report_interval(interval), time.monotonic)
        notifier = open_notifier(settings)
        unproven = settings.alert_unproven
        loop_until = partial(
            run_loop,
            deployment,
            run_id=context.run_id,
            interval=interval,
            until=deployment.clock() + dt.timedelta(minutes=settings.poll_run_minutes),
            sleep=time.sleep,
            report=report.add,
            alert=lambda label: (
                alert_signals(deployment, label, notifier.post, unproven=unproven)
                if notifier
                else 0
            ),
            warn=report.warn,
        )
        polls = past_broken_files(deployment, loop_until, report.warn)
        notifier.flush(LAST_ALERTS_SECONDS)
    report.flush()
    context.log.info(f"this run ends after {polls} polls")


@dg.job(tags=POLL_LANE, description="Poll the market until the time box or the session ends.")
def poll_market() -> None:
    """One op in one process; the schedule starts it anew."""
    poll_until_the_time_box_ends()


@dg.op
def close_open_sessions(context: dg.OpExecutionContext, loop: LoopResource) -> None:
    """Closes the newest ten sessions that are over and not closed yet, oldest first."""
    from hedge_pipeline import stages
    from hedge_pipeline.assets.reporting import plain_failures, report_closed
    from hedge_pipeline.storage import past_broken_files

    with plain_failures():
        deployment = loop.deployment
        past = partial(past_broken_files, deployment, say=context.log.warning)
        for label in past(partial(stages.pending_sessions, deployment)):
            closed = past(partial(stages.close_session, deployment, label))
            report_closed(context, deployment, closed)
        published = past(partial(report_models, context, loop))
    context.log.info(published)


@dg.op(
    config_schema={
        "days": dg.Field(
            dg.Int, default_value=29, description="calendar days to look back, at least 1"
        )
    }
)
def collect_history(context: dg.OpExecutionContext, loop: LoopResource) -> None:
    """Fetches what the source still has, with features and outcomes, and trains first models."""
    from hedge_pipeline import stages
    from hedge_pipeline.assets.reporting import plain_failures, report_session
    from hedge_pipeline.storage import past_broken_files

    with plain_failures():
        deployment = loop.deployment
        sessions = stages.history_window(deployment, context.op_config["days"])
        past = partial(past_broken_files, deployment, say=context.log.warning)
        advance = partial(report_session, context, deployment)
        found = past(partial(stages.bootstrap, deployment, sessions, advance=advance))
        published = past(partial(report_models, context, loop))
    for line in found["failures"]:
        context.log.warning(line)
    if found["failures"] and not found["bars"]:
        raise dg.Failure(description="; ".join(found["failures"]), allow_retries=False)
    for symbol, words in found["models"].items():
        context.log.info(f"{symbol}: {words}")
    context.log.info(published)


@dg.job(
    tags=TRAIN_LANE,
    description="A first start: bars, features and outcomes of the last weeks, first models.",
)
def bootstrap() -> None:
    """One op in one process; may be run again at any time."""
    collect_history()


def report_models(context: dg.OpExecutionContext, loop: LoopResource) -> str:
    """Publishes scores, aliases and signals of every symbol; says how it went."""
    from hedge_pipeline import stages
    from hedge_pipeline.assets import pictures

    registry, deployment = loop.registry.open(), loop.deployment
    said = []
    for symbol in deployment.symbols:
        published = pictures.publish(registry, deployment, symbol, context.run_id)
        found = stages.signal_report(deployment, symbol)
        signals = pictures.publish_signals(registry, deployment, symbol, found)
        said.append(f"{symbol}: MLflow {published}, its signals {signals}")
    return "; ".join(said)


@dg.job(
    tags=CLOSE_LANE,
    description="Last bars, outcomes, gap causes, compaction, evidence and scores of the session.",
)
def close_session() -> None:
    """One op in one process; may be run again at any time."""
    close_open_sessions()


@dg.op
def keep_house(context: dg.OpExecutionContext, loop: LoopResource) -> None:
    """Moves broken files aside, forgets, frees and saves; one failure stops no other step."""
    from hedge_pipeline.assets.reporting import plain_failures
    from hedge_pipeline.logs import first_line
    from hedge_pipeline.resources.housekeeping import steps

    failed = []
    with plain_failures():
        wanted = steps(context.instance, loop)
    for name, work in wanted:
        try:
            context.log.info(f"{name}: {work()}")
        except Exception as error:  # told at the end, when everything else is done
            context.log.warning(f"{name} failed: {first_line(error)}")
            failed.append(f"{name}: {first_line(error)}")
    if failed:
        raise dg.Failure(description="; ".join(failed), allow_retries=False)


@dg.job(
    tags=HOUSE_LANE,
    description="Compaction, retention of rows, runs and models, and the nightly backup.",
)
def housekeeping() -> None:
    """One op in one process; may be run again at any time."""
    keep_house()
