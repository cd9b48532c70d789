"""Predictions as they were made; a row never changes."""

import dagster as dg

from hedge_pipeline.assets.features import features
from hedge_pipeline.assets.hedge_levels import hedge_levels
from hedge_pipeline.assets.reporting import for_each_session
from hedge_pipeline.partitions import BACKFILL, FRESH_SESSIONS, SESSIONS
from hedge_pipeline.resources.loop import LoopResource


@dg.asset(
    partitions_def=SESSIONS,
    freshness_policy=FRESH_SESSIONS,
    group_name="predictions",
    owners=["team:trading"],
    kinds={"parquet", "xgboost"},
    deps=[features, hedge_levels],
    backfill_policy=BACKFILL,
)
def prediction_log(context: dg.AssetExecutionContext, loop: LoopResource) -> None:
    """Probability of a higher price after the horizon, with the model accepted at the time.

    Beside it the strength of the hedge levels, confidence, and whether it is a signal. Bars that
    have a served row are left alone; abstentions say why.
    """
    from hedge_pipeline import stages
    from hedge_pipeline.assets import pictures

    def work(label: str) -> dict[str, object]:
        new = stages.log_predictions(loop.deployment, label)
        return pictures.predictions(loop.deployment, label, new)

    for_each_session(context, work)
