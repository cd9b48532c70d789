"""What the price really did after each bar."""

import dagster as dg

from hedge_pipeline.assets.prediction_log import prediction_log
from hedge_pipeline.assets.raw_quotes import raw_quotes
from hedge_pipeline.assets.reporting import for_each_session
from hedge_pipeline.partitions import BACKFILL, FRESH_SESSIONS, SESSIONS
from hedge_pipeline.resources.loop import LoopResource


@dg.asset(
    partitions_def=SESSIONS,
    freshness_policy=FRESH_SESSIONS,
    group_name="predictions",
    owners=["team:trading"],
    kinds={"parquet"},
    deps=[raw_quotes, prediction_log],
    backfill_policy=BACKFILL,
)
def outcomes(context: dg.AssetExecutionContext, loop: LoopResource) -> None:
    """Up, down, flat, or unlabelable with the reason; from observed closes of one session only."""
    from hedge_pipeline import stages
    from hedge_pipeline.assets import pictures

    def work(label: str) -> dict[str, object]:
        new = stages.mature_outcomes(loop.deployment, label)
        return pictures.outcomes(loop.deployment, label, new)

    for_each_session(context, work)
