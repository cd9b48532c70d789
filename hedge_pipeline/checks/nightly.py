"""Checks evaluated at night, so that Dagster shows them fresh though nobody materializes.

Polls and the close of a session report materializations and run no check. The night's state is an
event without a run, one for each check; `resources/upkeep.py` deletes old ones.
"""

import inspect
from typing import TYPE_CHECKING, Any

import dagster as dg

from hedge_pipeline.logs import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from hedge_pipeline.resources.loop import LoopResource

# the first reads what a training reads, and every training asks it; the others read whole days of
# option chains, half a gigabyte each, and run when chains are materialized
NOT_AT_NIGHT = frozenset(
    {
        "no_feature_knows_the_outcome",
        "chains_keep_their_schema",
        "chains_are_not_known_before_their_time",
    }
)


def evaluate(
    instance: dg.DagsterInstance,
    loop: "LoopResource",
    checks: "Iterable[dg.AssetChecksDefinition] | None" = None,
) -> str:
    """Evaluates the checks on all symbols and the newest sessions that are over; says which fail.

    A check that raises is one that does not pass, with the reason.

    Args:
        instance: where the evaluations are shown.
        loop: what is checked.
        checks: None = all of this package but `NOT_AT_NIGHT`.
    """
    failed, count = [], 0
    for check in _cheap() if checks is None else checks:
        for spec in check.check_specs:
            found = _evaluation(spec, check, loop)
            instance.report_runless_asset_event(found)
            count += 1
            if not found.passed:
                failed.append(f"{spec.name} ({found.description})")
    return f"{count} evaluated, " + (f"not passed: {', '.join(failed)}" if failed else "all passed")


def _cheap() -> list[dg.AssetChecksDefinition]:
    from hedge_pipeline import checks

    return [
        check
        for check in dg.load_asset_checks_from_package_module(checks)
        if not NOT_AT_NIGHT & {spec.name for spec in check.check_specs}
    ]


def _evaluation(
    spec: dg.AssetCheckSpec, check: dg.AssetChecksDefinition, loop: "LoopResource"
) -> dg.AssetCheckEvaluation:
    work: Callable[..., Any] = check.node_def.compute_fn.decorated_fn  # type: ignore[attr-defined]
    given: dict[str, Any] = {"loop": loop}
    try:
        if "context" in inspect.signature(work).parameters:
            given["context"] = dg.build_asset_check_context()
        found = work(**given)
    except Exception as error:  # one that cannot be evaluated must not hide the others
        found = dg.AssetCheckResult(passed=False, description=first_line(error))
    return dg.AssetCheckEvaluation(
        spec.asset_key,
        spec.name,
        found.passed,
        found.metadata,
        severity=found.severity,
        description=found.description,
        blocking=spec.blocking,
    )
