"""Feature vectors of the session's bars."""

import dagster as dg

from hedge_pipeline.assets.raw_quotes import raw_quotes
from hedge_pipeline.assets.reporting import for_each_session
from hedge_pipeline.partitions import SESSIONS
from hedge_pipeline.resources.loop import LoopResource

SINCE_YESTERDAY = dg.TimeWindowPartitionMapping(
    start_offset=-1, allow_nonexistent_upstream_partitions=True
)


@dg.asset(
    partitions_def=SESSIONS,
    group_name="features",
    kinds={"parquet", "numpy"},
    deps=[dg.AssetDep(raw_quotes, partition_mapping=SINCE_YESTERDAY)],
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def features(context: dg.AssetExecutionContext, loop: LoopResource) -> None:
    """One vector per bar, from the session's bars up to it and yesterday's close and volatility.

    NULL = not computable from what was available at the bar.
    """
    from hedge_pipeline import stages
    from hedge_pipeline.assets import pictures

    def work(label: str) -> dict[str, object]:
        rows = stages.build_features(loop.deployment, label)
        return pictures.features(loop.deployment, label, rows)

    for_each_session(context, work)
