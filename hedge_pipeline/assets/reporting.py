"""How assets report: one materialization per session, and errors in one line."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from hedge_pipeline.logs import first_line

if TYPE_CHECKING:
    from hedge_pipeline.live.loop import Poll
    from hedge_pipeline.stages import ClosedSession, Deployment

log = logging.getLogger(__name__)

Metadata = Mapping[str, Any]
CLOCK_CHANGE = dt.timedelta(minutes=2)
ASK_AGAIN_SECONDS = 45.0


@contextlib.contextmanager
def plain_failures() -> Iterator[None]:
    """Turns errors a user can mend into a failed step that says so in one line."""
    from hedge_pipeline.learning.training import ModelError
    from hedge_pipeline.market.calendar import NoSession
    from hedge_pipeline.market.sources import SourceError
    from hedge_pipeline.settings import SettingsError
    from hedge_pipeline.stages import StageError
    from hedge_pipeline.store import StoreError

    try:
        yield
    except (SettingsError, StoreError, StageError, SourceError, NoSession, ModelError) as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None


def for_each_session(context: dg.AssetExecutionContext, work: Callable[[str], Metadata]) -> None:
    """Does the work for every session of the run and reports each under its own partition.

    A backfill also asks for features of the session after its last one, since they look back at
    it. If that session has no bars yet there is nothing to do, which is said and is no failure.
    """
    from hedge_pipeline.stages import NothingStored

    labels = context.partition_keys
    for label in labels:
        with plain_failures():
            try:
                metadata = work(label)
            except NothingStored as error:
                if label != labels[-1] or "dagster/backfill" not in context.run.tags:
                    raise
                context.log.warning(f"{label}: {error}")
                metadata = {"dagster/row_count": 0, "note": str(error)}
        context.add_asset_metadata(metadata, partition_key=label)
        numbers = ", ".join(
            f"{name.removeprefix('dagster/').replace('_', ' ')} {value}"
            for name, value in metadata.items()
            if isinstance(value, int | float)
        )
        context.log.info(f"{label}: {numbers}")


class LiveReport:
    """Tells Dagster every few minutes what the polls have added, as ordinary materializations.

    A materialization takes about 4 kB in Dagster's database, so a report names what changed and no
    more, and every second one leaves out features, option chains and hedge levels: at most 2 kB per
    poll where polls are a minute apart or less.
    The run's log says when a symbol stops answering and when it answers again: once, not at every
    poll; and when the clock was changed. While Dagster's database does not answer, polling goes on
    and what is to be said waits.

    Args:
        context: of the polling op.
        deployment: what is polled.
        every: time between two reports.
        elapsed: seconds of a clock that nobody sets.
    """

    def __init__(
        self,
        context: dg.OpExecutionContext,
        deployment: Deployment,
        every: dt.timedelta,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._context = context
        self._deployment = deployment
        self._every = every
        self._due = deployment.clock()
        self._polls: list[Poll] = []
        self._untold: deque[dg.AssetMaterialization | tuple[int, str, dt.datetime]] = deque()
        self._deaf: tuple[dt.datetime, str] | None = None
        self._silent: dict[str, dt.datetime] = {}
        self._with_inputs = True
        self._elapsed = elapsed
        self._again = 0.0
        self._seen = deployment.clock(), elapsed()

    def add(self, poll: Poll) -> None:
        """Remembers a poll; reports if it is time."""
        self._polls.append(poll)
        self._tell_of_the_clock()
        self._tell_who_answers(poll)
        if self._deployment.clock() >= self._due:
            self.flush()
        elif self._deaf is not None and self._elapsed() >= self._again:
            self._tell()

    def warn(self, words: str) -> None:
        """A line for the run's log."""
        self._say(logging.WARNING, words)

    def _say(self, level: int, words: str) -> None:
        self._untold.append((level, words, self._deployment.clock()))
        if self._deaf is None:  # a database that does not answer takes its time for that
            self._tell()

    def _tell_of_the_clock(self) -> None:
        """A machine that was suspended is like a clock that was set forth."""
        now, elapsed = self._deployment.clock(), self._elapsed()
        changed = now - self._seen[0] - dt.timedelta(seconds=elapsed - self._seen[1])
        if abs(changed) >= CLOCK_CHANGE:
            self._due = now  # by this clock
            minutes, to = abs(changed).total_seconds() / 60, f"{now:%Y-%m-%d %H:%M:%S} UTC"
            self.warn(
                f"the clock was set forth by {minutes:.0f} min, to {to}, or the machine slept; "
                "what came in between is caught up"
                if changed > dt.timedelta(0)
                else f"the clock was set back by {minutes:.0f} min, to {to}; polling goes on, "
                "but Dagster's schedules wait until it is where it was"
            )
        self._seen = now, elapsed

    def _tell_who_answers(self, poll: Poll) -> None:
        for symbol, reason in poll.failures.items():
            if symbol not in self._silent:
                self._silent[symbol] = poll.at
                self.warn(f"{symbol} does not answer: {reason}")
        for symbol in set(self._silent) - set(poll.failures):
            since = self._silent.pop(symbol)
            minutes = (poll.at - since).total_seconds() / 60
            told = f"{symbol} answers again after {minutes:.0f} min"
            self._say(logging.INFO, f"{told}; this poll stored {poll.bars} bars")

    def flush(self) -> None:
        """Reports what was added since the last report.

        Polls of a session that brought no bars count with those that will.
        """
        from hedge_pipeline.assets import pictures

        self._due = self._deployment.clock() + self._every
        for label in sorted({poll.session for poll in self._polls if poll.bars}):
            own = [poll for poll in self._polls if poll.session == label]
            self._polls = [poll for poll in self._polls if poll.session != label]
            shown = pictures.live(self._deployment, label, own, inputs=self._with_inputs)
            self._with_inputs = not self._with_inputs
            self._untold += (
                dg.AssetMaterialization(asset_key=asset, partition=label, metadata=metadata)
                for asset, metadata in shown.items()
            )
        self._tell()

    def _tell(self) -> None:
        try:
            while self._untold:
                told = self._untold[0]
                if isinstance(told, dg.AssetMaterialization):
                    self._context.log_event(told)
                else:
                    level, words, at = told
                    late = f" (at {at:%H:%M:%S} UTC)" if self._deaf else ""
                    self._context.log.log(level, words + late)
                self._untold.popleft()
        except Exception as error:  # every storage has errors of its own
            said = first_line(error)
            log.warning("Dagster takes no report, it is told later; polling goes on: %s", said)
            self._deaf = self._deaf or (self._deployment.clock(), said)
            self._again = self._elapsed() + ASK_AGAIN_SECONDS
            return
        if self._deaf is not None:
            (since, why), self._deaf = self._deaf, None
            self.warn(
                f"Dagster's database took nothing from {since:%H:%M:%S} UTC on ({why}); "
                "polling went on"
            )


def report_session(context: dg.OpExecutionContext, deployment: Deployment, label: str) -> None:
    """Reports what is stored of a session, one materialization per asset that has rows."""
    from hedge_pipeline.assets import pictures

    for asset, metadata in pictures.session(deployment, label, draw=False).items():
        if metadata["dagster/row_count"]:
            context.log_event(
                dg.AssetMaterialization(asset_key=asset, partition=label, metadata=metadata)
            )


def report_closed(
    context: dg.OpExecutionContext, deployment: Deployment, closed: ClosedSession
) -> None:
    """Reports a closed session: its tables, and the evidence of every symbol."""
    from hedge_pipeline.assets import pictures

    if closed.gaps or closed.bars or closed.predictions or closed.outcomes:
        for asset, metadata in pictures.session(deployment, closed.label).items():
            context.log_event(
                dg.AssetMaterialization(asset_key=asset, partition=closed.label, metadata=metadata)
            )
    for symbol, folds in closed.folds.items():
        for fold in folds:
            context.log.info(f"{symbol} {fold.session}: {fold.entry['reason']}")
    context.log.info(
        f"{closed.label} closed: {closed.bars} late bars, {closed.gaps} gaps, "
        f"{closed.predictions} predictions, {closed.outcomes} outcomes"
    )
