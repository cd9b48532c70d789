"""Real runs of the committed code location on a real instance, and what they left behind."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import dagster as dg

from hedge_pipeline.definitions import defs
from hedge_pipeline.resources.loop import (
    LoopResource,
    RegistryResource,
    SourceResource,
    StoreResource,
)
from hedge_pipeline.stages import Deployment

SESSION_ASSETS = (
    "raw_quotes",
    "option_chains",
    "hedge_levels",
    "features",
    "prediction_log",
    "outcomes",
)
SESSIONS = (
    "2024-01-02",
    "2024-01-03",
    "2024-01-04",
    "2024-01-05",
    "2024-01-08",
    "2024-01-09",
    "2024-01-10",
)
QUIET = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


class LoopAt(LoopResource):
    """The committed resource with a clock that stands still."""

    now: str

    @cached_property
    def deployment(self) -> Deployment:
        moment = dt.datetime.fromisoformat(self.now)
        return replace(super().deployment, clock=lambda: moment)


def loop_at(now: str) -> LoopAt:
    """The resource of the loop at an ISO time."""
    return LoopAt(
        source=SourceResource(), store=StoreResource(), registry=RegistryResource(), now=now
    )


@cache
def code_location(now: str | None = None) -> dg.Definitions:
    """The committed definitions, or the same with a clock that stands still."""
    committed = defs()
    if now is None:
        return committed
    return dg.Definitions(
        assets=committed.assets,
        asset_checks=committed.asset_checks,
        jobs=committed.jobs,
        resources={"loop": loop_at(now)},
        executor=committed.executor,
    )


def materialize(
    instance: dg.DagsterInstance,
    assets: Sequence[str],
    partition: str | tuple[str, str],
    *,
    now: str | None = None,
    config: Mapping[str, Any] | None = None,
    backfill: str | None = None,
) -> dg.ExecuteInProcessResult:
    """One run of the assets for a partition, or for a range of sessions; it may fail.

    Args:
        instance: where the run is stored.
        assets: their names.
        partition: a key, or the first and the last one.
        now: an ISO time instead of the system's clock.
        config: of the assets, by name.
        backfill: id of the backfill the run is part of; None = it is part of none.
    """
    key, tags = (
        (partition, None)
        if isinstance(partition, str)
        else (None, {RANGE_START: partition[0], RANGE_END: partition[1]})
    )
    if backfill is not None:
        tags = {**(tags or {}), "dagster/backfill": backfill}
    job = code_location(now).resolve_implicit_global_asset_job_def()
    return job.execute_in_process(
        instance=instance,
        asset_selection=[dg.AssetKey(name) for name in assets],
        partition_key=key,
        tags=tags,
        run_config={**QUIET, "ops": dict(config or {})},
        raise_on_error=False,
    )


def train(
    instance: dg.DagsterInstance, symbol: str, *, now: str | None = None
) -> dg.ExecuteInProcessResult:
    """One run of the job `train_model`; it may fail."""
    job = code_location(now).resolve_job_def("train_model")
    return job.execute_in_process(
        instance=instance, partition_key=symbol, run_config=QUIET, raise_on_error=False
    )


def failures(result: dg.ExecuteInProcessResult) -> list[str]:
    """What the failed steps say to the user: the description of a Failure, else the error."""
    lines = []
    for event in result.get_step_failure_events():
        data = event.step_failure_data
        told = data.user_failure_data
        lines.append(str(told.description if told else data.error and data.error.message))
    return lines


def shown(result: dg.ExecuteInProcessResult) -> dict[tuple[str, str], dict[str, Any]]:
    """Metadata values of the run's materializations, by asset and partition."""
    found = {}
    for event in result.get_asset_materialization_events():
        made = event.step_materialization_data.materialization
        values = {name: value.value for name, value in made.metadata.items()}
        found[(made.asset_key.to_user_string(), str(made.partition))] = values
    return found


def verdicts(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    """Check evaluations by name."""
    return {found.check_name: found for found in result.get_asset_check_evaluations()}


def files(folder: Path) -> dict[str, str]:
    """sha256 of every file of the store; MLflow's own files left out."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "mlartifacts" not in path.parts and path.name != "mlflow.db"
    }
