"""Bars as the market showed them, and a gap row with a cause for every expected minute without."""

import dagster as dg

from hedge_pipeline.assets.reporting import for_each_session
from hedge_pipeline.partitions import BACKFILL, FRESH_SESSIONS, SESSIONS
from hedge_pipeline.resources.loop import LoopResource


@dg.asset(
    partitions_def=SESSIONS,
    freshness_policy=FRESH_SESSIONS,
    group_name="market",
    owners=["team:market-data"],
    kinds={"parquet"},
    backfill_policy=BACKFILL,
)
def raw_quotes(context: dg.AssetExecutionContext, loop: LoopResource) -> None:
    """Final minute bars of the session: prices in quote currency, volume in shares, times in UTC.

    Stored bars are frozen; asking again adds only what is missing.
    """
    from hedge_pipeline import stages
    from hedge_pipeline.assets import pictures

    failures: list[str] = []

    def work(label: str) -> dict[str, object]:
        found = stages.collect(loop.deployment, label)
        failures.extend(str(error) for error in found.failures.values())
        for error in found.without_days.values():
            context.log.warning(f"{label}: no daily bars: {error}")
        return pictures.quotes(loop.deployment, label, found)

    for_each_session(context, work)
    if failures:
        raise dg.Failure(description="; ".join(sorted(set(failures))))
