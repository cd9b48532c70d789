"""Checks of the models: files are what was trained, and MLflow shows all of it."""

import dagster as dg

from hedge_pipeline.resources.loop import LoopResource


@dg.asset_check(asset="trained_model", blocking=True)
def model_files_are_untouched(
    context: dg.AssetCheckExecutionContext, loop: LoopResource
) -> dg.AssetCheckResult:
    """The newest model loads through the serving path and its sha256 is the recorded one."""
    from hedge_pipeline.learning.training import ModelError

    shelf, symbol = loop.deployment.shelf, context.partition_key
    versions = shelf.versions(symbol)
    try:
        for version in versions[-1:]:
            shelf.load(symbol, version)
    except ModelError as error:
        return dg.AssetCheckResult(passed=False, description=str(error))
    return dg.AssetCheckResult(passed=bool(versions), metadata={"versions": len(versions)})


@dg.asset_check(asset="champion_model")
def mlflow_shows_every_version(
    context: dg.AssetCheckExecutionContext, loop: LoopResource
) -> dg.AssetCheckResult:
    """MLflow answers and lacks no judged version; if it is down the loop goes on without it."""
    from hedge_pipeline.resources.registry import RegistryError

    symbol = context.partition_key
    judged = loop.deployment.ledger(symbol).judged
    try:
        shown = loop.registry.open().versions(symbol)
    except RegistryError as error:
        return dg.AssetCheckResult(passed=False, description=str(error))
    missing = sorted(judged - shown)
    return dg.AssetCheckResult(
        passed=not missing,
        description=f"missing: {', '.join(map(str, missing))}" if missing else None,
        metadata={"judged": len(judged), "missing": len(missing)},
    )
