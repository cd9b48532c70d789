"""The queue of runs: each has a lane, so that no kind of work waits for another.

Named in `dagster.yaml`, which limits the lanes. Jobs have theirs as a tag; what is asked for on the
pages of assets, and the runs of a backfill, are runs of Dagster's own job, which has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagster import AssetKey, DagsterInstance, DagsterRun
from dagster._core.run_coordinator import QueuedRunCoordinator

if TYPE_CHECKING:
    from dagster._core.run_coordinator import SubmitRunContext

LANE = "hedge/lane"
TRAIN_LANE = {LANE: "train"}
POLL_LANE = {LANE: "poll"}
CLOSE_LANE = {LANE: "close"}
HOUSE_LANE = {LANE: "house"}
ASSET_LANE = {LANE: "assets"}
_TRAINED = AssetKey("trained_model")


class LaneRunCoordinator(QueuedRunCoordinator[DagsterInstance]):
    """Dagster's queue; gives a run without a lane one, by the assets it is to materialize."""

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Puts a run into the queue."""
        run = context.dagster_run
        if LANE not in run.tags:
            trains = _TRAINED in (run.asset_selection or ())
            self._instance.add_run_tags(run.run_id, TRAIN_LANE if trains else ASSET_LANE)
        return super().submit_run(context)
