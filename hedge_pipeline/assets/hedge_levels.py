"""Dealer hedge levels of every snapshot of the session."""

import dagster as dg

from hedge_pipeline.assets.option_chains import option_chains
from hedge_pipeline.assets.raw_quotes import raw_quotes
from hedge_pipeline.assets.reporting import for_each_session
from hedge_pipeline.partitions import BACKFILL, SESSIONS, SINCE_YESTERDAY
from hedge_pipeline.resources.loop import LoopResource


@dg.asset(
    partitions_def=SESSIONS,
    group_name="features",
    owners=["team:market-data"],
    kinds={"parquet", "numpy"},
    deps=[option_chains, dg.AssetDep(raw_quotes, partition_mapping=SINCE_YESTERDAY)],
    backfill_policy=BACKFILL,
)
def hedge_levels(context: dg.AssetExecutionContext, loop: LoopResource) -> None:
    """Walls, monthly walls, half gaps, gamma and vanna exposure, gamma flip; see the columns.

    Prices in quote currency. GEX in dollars per 1 % move is a volatility regime (positive damps,
    negative amplifies moves), not a direction. NULL = unusable snapshot, with its reason.
    """
    from hedge_pipeline import stages
    from hedge_pipeline.assets import pictures

    def work(label: str) -> dict[str, object]:
        stages.build_levels(loop.deployment, label)
        return pictures.levels(loop.deployment, label)

    for_each_session(context, work)
