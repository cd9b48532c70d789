"""Option chains as the source told them, and what became of every request."""

import dagster as dg

from hedge_pipeline.assets.reporting import for_each_session
from hedge_pipeline.partitions import BACKFILL, SESSIONS
from hedge_pipeline.resources.loop import LoopResource


@dg.asset(
    partitions_def=SESSIONS,
    group_name="market",
    owners=["team:market-data"],
    kinds={"parquet"},
    backfill_policy=BACKFILL,
)
def option_chains(context: dg.AssetExecutionContext, loop: LoopResource) -> None:
    """Snapshots of the session: open interest and volume in contracts, volatility per year.

    A source without chains, or one that fails, leaves a reason and no rows: predictions go on.
    """
    from hedge_pipeline import stages
    from hedge_pipeline.assets import pictures

    def work(label: str) -> dict[str, object]:
        found = stages.collect_session_chains(loop.deployment, label)
        for error in found.failures.values():
            context.log.warning(f"{label}: {error}")
        return pictures.chains(loop.deployment, label, found)

    for_each_session(context, work)
