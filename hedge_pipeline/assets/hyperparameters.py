"""A search for hyper-parameters, made only when somebody asks for it."""

import dagster as dg
from pydantic import Field

from hedge_pipeline.assets.features import features
from hedge_pipeline.assets.outcomes import outcomes
from hedge_pipeline.assets.reporting import plain_failures
from hedge_pipeline.assets.trained_model import ALL_SESSIONS
from hedge_pipeline.partitions import SYMBOLS
from hedge_pipeline.resources.loop import LoopResource


class SearchConfig(dg.Config):
    """How long to search; the rows, trials and seed of the newest search give no new one."""

    trials: int = Field(default=30, ge=2, le=1000, description="trials, the defaults included")
    seed: int = Field(default=0, ge=0, description="seed of the proposals")


# not upstream of `trained_model`: what is found is for trainings of later sessions, never for one
# of the same run
@dg.asset(
    partitions_def=SYMBOLS,
    group_name="learning",
    owners=["team:research"],
    kinds={"optuna"},
    deps=[
        dg.AssetDep(features, partition_mapping=ALL_SESSIONS),
        dg.AssetDep(outcomes, partition_mapping=ALL_SESSIONS),
    ],
)
def hyperparameters(
    context: dg.AssetExecutionContext, config: SearchConfig, loop: LoopResource
) -> dg.MaterializeResult[None]:
    """Searches hyper-parameters on settled sessions; the find applies to later trainings only.

    No job, schedule or sensor launches this. The defaults stay unless something beats them by more
    than noise on sessions that did not choose it.
    """
    from hedge_pipeline import stages
    from hedge_pipeline.assets import pictures

    symbol = context.partition_key
    with plain_failures():
        found = stages.search_hyperparameters(
            loop.deployment, symbol, trials=config.trials, seed=config.seed
        )
    context.log.info(found.in_words())
    return dg.MaterializeResult(metadata=pictures.searched(found))
