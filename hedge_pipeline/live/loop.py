"""The loop of a poll run: on the grid of the clock, poll, store, predict, mature, and say so.

One poll runs the same stages as everything else, on the bars that are new. Symbols are fetched in
threads: a slow one is left behind until it answers, a failing one costs only itself.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hedge_pipeline import stages
from hedge_pipeline.live.supervision import Heartbeat, session_at
from hedge_pipeline.market.bars import Collected, collect_bars
from hedge_pipeline.market.sources import NoDataYet, SourceDown, SourceError
from hedge_pipeline.market.tables import PREDICTION_LOG, RAW_QUOTES
from hedge_pipeline.stages import Deployment

if TYPE_CHECKING:
    from hedge_pipeline.market.calendar import Session

log = logging.getLogger(__name__)

COMPACT_EVERY = 30
AFTER_FINAL = dt.timedelta(seconds=1)


@dataclass(frozen=True)
class Poll:
    """What one poll brought.

    Attributes:
        at: time of the poll.
        session: session label.
        bars: new bars stored.
        predictions: new rows of the log.
        outcomes: new outcomes.
        failures: one line per symbol that did not answer.
        seconds: from the fetched answers to the stored predictions.
    """

    at: dt.datetime
    session: str
    bars: int
    predictions: int
    outcomes: int
    failures: dict[str, str]
    seconds: float


@dataclass
class Fetcher:
    """Asks for each symbol in a thread of its own and never waits for a slow one.

    Attributes:
        patience: seconds a poll waits for answers; later ones count for the next poll.
    """

    deployment: Deployment
    patience: float
    _pool: ThreadPoolExecutor = field(init=False)
    _open: dict[str, Future[Collected]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        workers = min(16, len(self.deployment.symbols))
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="fetch")

    def fetch(self, session: Session, now: dt.datetime) -> list[Collected]:
        """The answers that are there in time; a symbol still on its way is not asked again."""
        for symbol in self.deployment.symbols:
            if symbol not in self._open:
                self._open[symbol] = self._pool.submit(self._ask, symbol, session, now)
        done, _ = wait(self._open.values(), timeout=self.patience)
        arrived = [symbol for symbol, asked in self._open.items() if asked in done]
        slow = {
            symbol: SourceDown(f"{symbol}: no answer within {self.patience:g} s")
            for symbol in self._open
            if symbol not in arrived
        }
        answers = [self._open.pop(symbol).result() for symbol in arrived]
        if slow:
            answers.append(Collected(RAW_QUOTES.empty(), dict(slow)))
        return answers

    def close(self) -> None:
        """Lets go of what is still on its way."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, symbol: str, session: Session, now: dt.datetime) -> Collected:
        return collect_bars(
            self.deployment.source,
            [symbol],
            session,
            now,
            nominal_arrival=False,
            ingested_at=now,
        )


def poll(
    deployment: Deployment, fetcher: Fetcher, session: Session, *, catch_up: bool = False
) -> Poll:
    """One poll of an open session.

    Args:
        deployment: what to poll.
        fetcher: who asks.
        session: the open session.
        catch_up: finish what an earlier run may have left undone, even without new bars.
    """
    now = deployment.clock()
    answers = fetcher.fetch(session, now)
    begun = deployment.clock()
    failures: dict[str, SourceError] = {}
    new = 0
    for answer in answers:
        failures.update(answer.failures)
        new += stages.store_bars(deployment, session.label, answer.bars)
    predictions = outcomes = 0
    if new or (catch_up and session.label in deployment.store.sessions(RAW_QUOTES)):
        stages.build_missing_features(deployment, session.label)
        predictions = stages.log_predictions(deployment, session.label)
    seconds = (deployment.clock() - begun).total_seconds()
    if predictions:
        outcomes = stages.mature_outcomes(deployment, session.label)
    lines = {s: str(e) for s, e in failures.items() if not isinstance(e, NoDataYet)}
    return Poll(now, session.label, new, predictions, outcomes, lines, seconds)


def next_poll(
    now: dt.datetime, interval: dt.timedelta, bar_seconds: int, delay: dt.timedelta
) -> dt.datetime:
    """The next moment of the polling grid after `now`.

    The grid is fixed to the clock: polls fall a second after a bar becomes final, and every
    interval from there, however long the last one took.
    """
    offset = (delay + AFTER_FINAL).total_seconds() % min(interval.total_seconds(), bar_seconds)
    step = interval.total_seconds()
    count = math.floor((now.timestamp() - offset) / step) + 1
    return dt.datetime.fromtimestamp(count * step + offset, dt.UTC)


def run_loop(
    deployment: Deployment,
    *,
    run_id: str,
    interval: dt.timedelta,
    until: dt.datetime,
    sleep: Callable[[float], None],
    report: Callable[[Poll], None] = lambda poll: None,
) -> int:
    """Polls until the time box or the session ends; returns the number of polls.

    After the last bar it stays until that bar is final.

    Args:
        deployment: what to poll.
        run_id: named in the heartbeat.
        interval: POLLING_INTERVAL.
        until: end of the time box.
        sleep: waits so many seconds; raises to end the loop.
        report: called after every poll.
    """
    fetcher = Fetcher(deployment, patience=max(5.0, 0.5 * interval.total_seconds()))
    settle = deployment.source.delay + dt.timedelta(seconds=5)
    count = 0
    try:
        while (now := deployment.clock()) < until:
            session = session_at(deployment.calendar, now) or session_at(
                deployment.calendar, now - settle
            )
            if session is None:
                break
            done = poll(deployment, fetcher, session, catch_up=count == 0)
            count += 1
            _tell(deployment, done)
            Heartbeat(run_id, deployment.clock().isoformat(), session.label).write(deployment.store)
            report(done)
            if count % COMPACT_EVERY == 0:
                stages.compact_session(deployment, session.label)
            pause = next_poll(
                deployment.clock(), interval, session.bar_seconds, deployment.source.delay
            )
            sleep(max(0.0, (pause - deployment.clock()).total_seconds()))
    finally:
        fetcher.close()
    return count


def _tell(deployment: Deployment, done: Poll) -> None:
    """One line per new prediction, one per failure."""
    for symbol, reason in done.failures.items():
        log.warning("%s: no new bars: %s", symbol, reason)
    if not done.predictions:
        return
    rows = deployment.store.read(PREDICTION_LOG, [done.session])
    rows = rows[rows["role"] == "served"].sort_values("bar_ts")
    for row in rows.drop_duplicates("symbol", keep="last").to_dict("records"):
        log.info("%s", describe(row, deployment.calendar.bar_seconds))


def describe(row: dict[Any, Any], bar_seconds: int) -> str:
    """A row of `prediction_log` in one line."""
    lag = (row["decided_at"] - row["bar_ts"]).total_seconds() - bar_seconds
    head = f"logged prediction: {row['symbol']} @ {row['price']:.2f}"
    if math.isnan(row["margin"]):
        return f"{head} = none ({row['reason']}), lag {lag:.0f} s"
    return (
        f"{head} = {row['prediction']} (up {row['prob_up']:.3f}, trust {row['trust']:.2f}, "
        f"skill {row['skill']}, version {row['model_version']}, lag {lag:.0f} s, {row['mode']})"
    )
