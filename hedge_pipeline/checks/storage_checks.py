"""Checks of the room and the files; nothing waits for them."""

import dagster as dg

from hedge_pipeline.resources.loop import LoopResource


@dg.asset_check(asset="raw_quotes")
def disk_use_is_within_the_budget(loop: LoopResource) -> dg.AssetCheckResult:
    """The deployment takes at most HEDGE_DISK_BUDGET_MB, and the disk is not nearly full."""
    from hedge_pipeline import storage
    from hedge_pipeline.opening import places
    from hedge_pipeline.settings import load_settings

    settings = load_settings()
    found = storage.report(loop.deployment, places(settings), settings.disk_budget_mb)
    wrong = storage.trouble(found)
    sizes = {f"{name}_mb": size / storage.MEGABYTE for name, size in found["areas"].items()}
    return dg.AssetCheckResult(passed=wrong is None, description=wrong, metadata=sizes)


@dg.asset_check(asset="raw_quotes")
def no_file_is_in_quarantine(loop: LoopResource) -> dg.AssetCheckResult:
    """No broken file of any table was moved aside and waits for somebody to look at it."""
    found = loop.deployment.store.quarantined()
    return dg.AssetCheckResult(
        passed=not found, description=", ".join(found) or None, metadata={"files": len(found)}
    )
