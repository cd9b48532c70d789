"""A candidate fitted on matured outcomes."""

from functools import partial

import dagster as dg

from hedge_pipeline.assets.features import features
from hedge_pipeline.assets.outcomes import outcomes
from hedge_pipeline.assets.reporting import plain_failures
from hedge_pipeline.partitions import FRESH_MODELS, SYMBOLS
from hedge_pipeline.resources.loop import LoopResource

ALL_SESSIONS = dg.AllPartitionMapping()


@dg.asset(
    partitions_def=SYMBOLS,
    freshness_policy=FRESH_MODELS,
    group_name="learning",
    owners=["team:research"],
    kinds={"xgboost"},
    deps=[
        dg.AssetDep(features, partition_mapping=ALL_SESSIONS),
        dg.AssetDep(outcomes, partition_mapping=ALL_SESSIONS),
    ],
)
def trained_model(
    context: dg.AssetExecutionContext, loop: LoopResource
) -> dg.MaterializeResult[None]:
    """A fit on the last settled sessions, guarded and put on the shelf; equal data, no new version.

    What it is worth is for `champion_model` to say.
    """
    from hedge_pipeline import stages
    from hedge_pipeline.assets import pictures
    from hedge_pipeline.storage import past_broken_files

    symbol = context.partition_key
    context.log.info(f"{symbol}: retraining started")
    with plain_failures():
        train = partial(stages.train_candidate, loop.deployment, symbol)
        candidate = past_broken_files(loop.deployment, train, context.log.warning)
    context.log.info(pictures.trained_in_words(candidate))
    return dg.MaterializeResult(metadata=pictures.candidate(loop.deployment, candidate))
