"""Checks of the models: files are what was trained, and MLflow shows all of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg

from hedge_pipeline.resources.loop import LoopResource

if TYPE_CHECKING:
    from hedge_pipeline.stages import Deployment


def _symbols_of_the_run(context: dg.AssetCheckExecutionContext, loop: LoopResource) -> list[str]:
    """The run's symbol; for a check started on its own, every watched one."""
    if context.has_partition_key or context.has_partition_key_range:
        return list(context.partition_keys)
    return list(loop.deployment.symbols)


@dg.asset_check(asset="trained_model", blocking=True)
def model_files_are_untouched(
    context: dg.AssetCheckExecutionContext, loop: LoopResource
) -> dg.AssetCheckResult:
    """The newest model loads through the serving path and its sha256 is the recorded one."""
    count, wrong = models_that_do_not_load(loop.deployment, _symbols_of_the_run(context, loop))
    return dg.AssetCheckResult(
        passed=not wrong, description="; ".join(wrong) or None, metadata={"versions": count}
    )


def models_that_do_not_load(
    deployment: "Deployment", symbols: Sequence[str]
) -> tuple[int, list[str]]:
    """How many versions there are of the symbols, and why the newest ones cannot be used.

    A symbol without a version is nothing wrong as long as another one has some.
    """
    from hedge_pipeline.learning.training import ModelError

    shelf, count, wrong = deployment.shelf, 0, []
    for symbol in symbols:
        versions = shelf.versions(symbol)
        count += len(versions)
        try:
            for version in versions[-1:]:
                shelf.load(symbol, version)
        except ModelError as error:
            wrong.append(str(error))
    if not count:
        wrong.append(f"there is no version of {', '.join(symbols)} yet")
    return count, wrong


@dg.asset_check(asset="trained_model", blocking=True)
def no_feature_knows_the_outcome(
    context: dg.AssetCheckExecutionContext, loop: LoopResource
) -> dg.AssetCheckResult:
    """No single feature orders ups before downs nearly perfectly; one that does saw the future."""
    from hedge_pipeline.stages import leaks_in_words

    said = "; ".join(
        words
        for symbol in _symbols_of_the_run(context, loop)
        if (words := leaks_in_words(loop.deployment, symbol))
    )
    return dg.AssetCheckResult(
        passed=not said,
        description=said or None,
        metadata={"leaking_features": said.count("; ") + 1 if said else 0},
    )


@dg.asset_check(asset="champion_model")
def mlflow_shows_every_version(
    context: dg.AssetCheckExecutionContext, loop: LoopResource
) -> dg.AssetCheckResult:
    """MLflow answers and lacks no version it should keep; if it is down the loop goes on."""
    from hedge_pipeline.resources.registry import RegistryError, kept_versions

    registry = loop.registry.open()
    judged: set[tuple[str, int]] = set()
    missing: list[str] = []
    for symbol in _symbols_of_the_run(context, loop):
        versions = kept_versions(loop.deployment.ledger(symbol), registry.newest)
        judged |= {(symbol, version) for version in versions}
        try:
            shown = registry.versions(symbol)
        except RegistryError as error:
            return dg.AssetCheckResult(passed=False, description=str(error))
        missing += [f"{symbol} v{version}" for version in sorted(versions - shown)]
    return dg.AssetCheckResult(
        passed=not missing,
        description=f"missing: {', '.join(missing)}" if missing else None,
        metadata={"judged": len(judged), "missing": len(missing)},
    )
