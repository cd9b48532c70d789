"""Asks for a training when enough new outcomes have matured; see `learning/retraining.py`.

It remembers nothing: new samples are counted from the store, trainings under way and the time of
the last look come from the instance. So a restart changes nothing, a failed training is asked for
again, and a rejected candidate, which is a version with a cutoff, is not.
"""

import datetime as dt
from collections.abc import Iterator
from zoneinfo import ZoneInfo

import dagster as dg

from hedge_pipeline.jobs import UNFINISHED, train_model
from hedge_pipeline.resources.loop import LoopResource
from hedge_pipeline.resources.queueing import TRAIN_LANE

NAMED = 8


def build_retraining_sensor(
    interval_seconds: int, *, autostart: bool = False
) -> dg.SensorDefinition:
    """The sensor with its interval.

    Args:
        interval_seconds: RETRAIN_CHECK_INTERVAL.
        autostart: it runs without being switched on in the UI.
    """

    @dg.sensor(
        job=train_model,
        minimum_interval_seconds=interval_seconds,
        description="Requests `train_model` for each symbol with enough new matured outcomes.",
        default_status=dg.DefaultSensorStatus.RUNNING
        if autostart
        else dg.DefaultSensorStatus.STOPPED,
    )
    def retraining_sensor(
        context: dg.SensorEvaluationContext, loop: LoopResource
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        """Requests `train_model` for each symbol with enough new matured outcomes."""
        from hedge_pipeline import stages
        from hedge_pipeline.learning.retraining import hour_that_counts

        deployment = loop.deployment
        busy = _symbols_in_training(context.instance)
        now = deployment.clock().astimezone(ZoneInfo(deployment.calendar.timezone))
        looked = context.last_tick_completion_time
        since = dt.datetime.fromtimestamp(looked, dt.UTC) if looked else None
        hour = hour_that_counts(now, since, deployment.retrain_hour)
        reasons = []
        for symbol in deployment.symbols:
            decision = stages.retraining_decision(
                deployment, symbol, hour=hour, in_flight=symbol in busy
            )
            if decision.retrain:
                yield dg.RunRequest(partition_key=symbol, tags={"hedge/reason": decision.reason})
            else:
                reasons.append(decision.reason)
        for reason in reasons:
            context.log.info(reason)
        if len(reasons) == len(deployment.symbols):
            more = len(reasons) - NAMED
            rest = [f"and {more} more symbols, see the log of this tick"] if more > 0 else []
            yield dg.SkipReason("; ".join([*reasons[:NAMED], *rest]))

    return retraining_sensor


def _symbols_in_training(instance: dg.DagsterInstance) -> set[str]:
    """Symbols with an unfinished training run of the last day; older ones are dead."""
    since = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    runs = instance.get_runs(
        dg.RunsFilter(tags=TRAIN_LANE, statuses=UNFINISHED, created_after=since)
    )
    return {run.tags.get("dagster/partition", "") for run in runs}
