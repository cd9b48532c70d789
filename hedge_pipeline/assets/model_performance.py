"""Accuracy of every model version on real outcomes."""

from functools import partial

import dagster as dg

from hedge_pipeline.assets.champion_model import champion_model
from hedge_pipeline.assets.outcomes import outcomes
from hedge_pipeline.assets.prediction_log import prediction_log
from hedge_pipeline.assets.reporting import plain_failures
from hedge_pipeline.assets.trained_model import ALL_SESSIONS
from hedge_pipeline.partitions import FRESH_MODELS, SYMBOLS
from hedge_pipeline.resources.loop import LoopResource


@dg.asset(
    partitions_def=SYMBOLS,
    freshness_policy=FRESH_MODELS,
    group_name="learning",
    owners=["team:trading"],
    kinds={"mlflow"},
    deps=[
        champion_model,
        dg.AssetDep(prediction_log, partition_mapping=ALL_SESSIONS),
        dg.AssetDep(outcomes, partition_mapping=ALL_SESSIONS),
    ],
)
def model_performance(
    context: dg.AssetExecutionContext, loop: LoopResource
) -> dg.MaterializeResult[None]:
    """Scores settled sessions by version and role, and writes them to the versions' MLflow runs.

    Accuracy always stands beside what the base rate alone would have scored.
    """
    from hedge_pipeline import stages
    from hedge_pipeline.assets import pictures
    from hedge_pipeline.storage import past_broken_files

    symbol = context.partition_key
    with plain_failures():
        score = partial(stages.score_pending, loop.deployment, symbol)
        sessions = past_broken_files(loop.deployment, score, context.log.warning)
        metadata = pictures.performance(loop.deployment, symbol, sessions)
        registry, run = loop.registry.open(), context.run.run_id
        metadata |= pictures.published(registry, loop.deployment, symbol, run)
    context.log.info(f"{symbol}: {pictures.scored_in_words(metadata)}")
    return dg.MaterializeResult(metadata=metadata)
