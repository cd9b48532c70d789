"""Feature vectors of the session's bars."""

import dagster as dg

from hedge_pipeline.assets.hedge_levels import hedge_levels
from hedge_pipeline.assets.raw_quotes import raw_quotes
from hedge_pipeline.assets.reporting import for_each_session
from hedge_pipeline.partitions import BACKFILL, FRESH_SESSIONS, SESSIONS, SINCE_YESTERDAY
from hedge_pipeline.resources.loop import LoopResource


@dg.asset(
    partitions_def=SESSIONS,
    freshness_policy=FRESH_SESSIONS,
    group_name="features",
    owners=["team:research"],
    kinds={"parquet", "numpy"},
    deps=[dg.AssetDep(raw_quotes, partition_mapping=SINCE_YESTERDAY), hedge_levels],
    backfill_policy=BACKFILL,
)
def features(context: dg.AssetExecutionContext, loop: LoopResource) -> None:
    """One vector per bar: the session's bars up to it, yesterday's close and volatility, levels.

    NULL = not computable from what was available at the bar.
    """
    from hedge_pipeline import stages
    from hedge_pipeline.assets import pictures

    def work(label: str) -> dict[str, object]:
        rows = stages.build_features(loop.deployment, label)
        return pictures.features(loop.deployment, label, rows)

    for_each_session(context, work)
