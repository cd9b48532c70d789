"""The evidence, and the verdict on the newest candidate."""

from functools import partial

import dagster as dg

from hedge_pipeline.assets.outcomes import outcomes
from hedge_pipeline.assets.prediction_log import prediction_log
from hedge_pipeline.assets.reporting import plain_failures
from hedge_pipeline.assets.trained_model import ALL_SESSIONS, trained_model
from hedge_pipeline.partitions import FRESH_MODELS, SYMBOLS
from hedge_pipeline.resources.loop import LoopResource


@dg.asset(
    partitions_def=SYMBOLS,
    freshness_policy=FRESH_MODELS,
    group_name="learning",
    owners=["team:research"],
    kinds={"mlflow"},
    deps=[
        trained_model,
        dg.AssetDep(prediction_log, partition_mapping=ALL_SESSIONS),
        dg.AssetDep(outcomes, partition_mapping=ALL_SESSIONS),
    ],
)
def champion_model(
    context: dg.AssetExecutionContext, loop: LoopResource
) -> dg.MaterializeResult[None]:
    """Folds settled sessions into the evidence, judges the candidate, moves the MLflow aliases.

    The champion is the newest accepted version while skill is proven; otherwise there is none.
    """
    from hedge_pipeline import stages
    from hedge_pipeline.assets import pictures
    from hedge_pipeline.storage import past_broken_files

    symbol = context.partition_key
    with plain_failures():
        past = partial(past_broken_files, loop.deployment, say=context.log.warning)
        folds = past(partial(stages.fold_evidence, loop.deployment, symbol))
        verdicts = past(partial(stages.judge, loop.deployment, symbol))
        metadata = pictures.champion(loop.deployment, symbol, len(folds), len(verdicts))
        registry, run = loop.registry.open(), context.run.run_id
        metadata |= pictures.published(registry, loop.deployment, symbol, run)
    context.log.info(f"{symbol}: {metadata['verdict']}")
    return dg.MaterializeResult(metadata=metadata)
