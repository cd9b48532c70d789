"""The loop of a poll run: on the grid of the clock, poll, store, predict, mature, and say so.

One poll runs the same stages as everything else, on the bars that are new. Symbols are fetched in
threads: a slow one is left behind until it answers, a failing one costs only itself.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from threading import Semaphore, Thread
from typing import TYPE_CHECKING, Any

from hedge_pipeline import stages
from hedge_pipeline.live.chain_polling import ChainPoller
from hedge_pipeline.live.supervision import Heartbeat
from hedge_pipeline.market.bars import Collected, collect_bars
from hedge_pipeline.market.sources import NoDataYet, SourceDown, SourceError
from hedge_pipeline.market.tables import PREDICTION_LOG, RAW_QUOTES
from hedge_pipeline.stages import Deployment
from hedge_pipeline.store import BrokenFile, StoreError

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.market.calendar import Session

    Answer = tuple[Session, Collected]

log = logging.getLogger(__name__)

COMPACT_EVERY = 30
AT_ONCE = 16
TOGETHER = 0.1
MOST_TOGETHER = 0.5
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
        served: the new served rows of the log.
    """

    at: dt.datetime
    session: str
    bars: int
    predictions: int
    outcomes: int
    failures: dict[str, str]
    seconds: float
    served: pd.DataFrame = field(default_factory=PREDICTION_LOG.empty)


@dataclass
class Fetcher:
    """Asks for each symbol in a thread of its own and never waits for a slow one.

    The threads are daemons: one that hangs for ever does not keep the process from ending.

    Attributes:
        patience: seconds a poll waits for answers; later ones count for the next poll.
    """

    deployment: Deployment
    patience: float
    _turns: Semaphore = field(default_factory=lambda: Semaphore(AT_ONCE))
    _open: dict[str, tuple[Session, Future[Collected]]] = field(default_factory=dict)

    def fetch(self, session: Session, now: dt.datetime) -> Iterator[list[Answer]]:
        """The answers as they come in, those that come together in one list.

        Answers come together while there is another one every tenth of a second, half a second at
        most: storing and predicting costs little more for many symbols than for one.

        A symbol still on its way is not asked again; its answer may be about an earlier session.
        """
        for symbol in self.deployment.symbols:
            if symbol not in self._open:
                self._open[symbol] = session, self._ask(symbol, session, now)
        deadline = time.monotonic() + self.patience
        while self._open:
            asked = [future for _, future in self._open.values()]
            if not wait(asked, max(0.0, deadline - time.monotonic()), FIRST_COMPLETED).done:
                break
            done = _arriving(asked)
            arrived = [symbol for symbol, (_, future) in self._open.items() if future in done]
            answers = [self._open.pop(symbol) for symbol in arrived]
            yield [(about, future.result()) for about, future in answers]
        slow: dict[str, SourceError] = {
            symbol: SourceDown(f"{symbol}: no answer within {self.patience:g} s")
            for symbol in self._open
        }
        if slow:
            yield [(session, Collected(RAW_QUOTES.empty(), slow))]

    def _ask(self, symbol: str, session: Session, now: dt.datetime) -> Future[Collected]:
        answer: Future[Collected] = Future()

        def ask() -> None:
            try:
                with self._turns:
                    found = collect_bars(
                        self.deployment.source,
                        [symbol],
                        session,
                        now,
                        nominal_arrival=False,
                        ingested_at=now,
                    )
            except Exception as error:  # a plug-in's own fault costs its symbol, not the loop
                answer.set_result(Collected(RAW_QUOTES.empty(), {symbol: _fault(symbol, error)}))
            except BaseException as error:  # raised again where the answer is read
                answer.set_exception(error)
            else:
                answer.set_result(found)

        Thread(target=ask, name=f"fetch-{symbol}", daemon=True).start()
        return answer


def _arriving(asked: list[Future[Collected]]) -> set[Future[Collected]]:
    """What has arrived when no more comes for a moment."""
    latest, before = time.monotonic() + MOST_TOGETHER, 0
    while len(done := wait(asked, TOGETHER).done) > before and time.monotonic() < latest:
        before = len(done)
    return done


def _fault(symbol: str, error: Exception) -> SourceDown:
    log.exception("%s: the source is broken", symbol, exc_info=error)
    return SourceDown(f"{symbol}: the source fails with {type(error).__name__}: {error}")


@dataclass
class Work:
    """What a poll does with new bars, looking at those only.

    Everything is done once for the whole session when a run begins, again after a failure, and
    whenever `whole` is set; between, a poll costs the same at any time of a session.
    """

    deployment: Deployment
    whole: bool = True
    _session: str = ""
    _unfinished: bool = False
    _asked: list[stages.Asked] = field(default_factory=list)

    def begin(self, session: Session) -> None:
        """Of another session than the last one, or after a failure, nothing is known to be done."""
        self.whole |= self._session not in ("", session.label) or self._unfinished
        self._session, self._unfinished = session.label, False
        self._asked = []

    def serve(self, session: Session, bars: pd.DataFrame) -> pd.DataFrame:
        """Features and served predictions; returns the new rows of the log.

        Args:
            session: whose bars.
            bars: those stored just now.
        """
        self._unfinished = True
        if self.whole:
            stages.build_missing_features(self.deployment, session.label)
            return stages.log_served(self.deployment, session.label)
        asked, served = stages.serve(self.deployment, session.label, bars)
        self._asked.append(asked)
        return served

    def follow(self, session: Session, first: dt.datetime) -> tuple[int, int]:
        """Companions and outcomes, after everything that is served; the new rows of each.

        What goes wrong with the companions costs nobody a prediction.
        """
        label, failed, companions = session.label, False, 0
        try:
            if self.whole:
                companions = stages.log_companions(self.deployment, label)
            else:
                companions = sum(stages.log_beside(self.deployment, x) for x in self._asked)
        except BrokenFile:  # whoever runs the loop moves it aside; what is served is stored
            raise
        except Exception:  # a broken model or store: said here, asked again at the next poll
            log.exception("%s: baseline or newest could not be asked", label)
            failed = True
        reach = self.deployment.horizon * dt.timedelta(seconds=session.bar_seconds)
        since = None if self.whole else first - reach
        outcomes = stages.mature_outcomes(self.deployment, label, since)
        self.whole, self._unfinished, self._asked = failed, False, []
        return companions, outcomes


def poll(
    deployment: Deployment, fetcher: Fetcher, session: Session, work: Work | None = None
) -> Poll:
    """One poll of an open session.

    Args:
        deployment: what to poll.
        fetcher: who asks.
        session: the open session.
        work: what the last poll left to do; None = nothing.
    """
    work = work or Work(deployment, whole=False)
    work.begin(session)
    now = deployment.clock()
    failures: dict[str, SourceError] = {}
    new = companions = outcomes = 0
    served: list[pd.DataFrame] = []
    seconds = 0.0
    first = session.closes
    for answers in fetcher.fetch(session, now):
        begun = deployment.clock()
        for _, answer in answers:
            failures.update(answer.failures)
        stored = _store(deployment, answers, session)
        if len(stored):
            served.append(work.serve(session, stored))
            first = min(first, stored["bar_ts"].min().to_pydatetime())
        new += len(stored)
        seconds += (deployment.clock() - begun).total_seconds()
    left = work.whole and bool(deployment.store.signatures(RAW_QUOTES, session.label))
    if left and not new:
        served.append(work.serve(session, RAW_QUOTES.empty()))
    if new or left:
        companions, outcomes = work.follow(session, first)
    said = _together(served)
    lines = {s: str(e) for s, e in failures.items() if not isinstance(e, NoDataYet)}
    predictions = len(said) + companions
    return Poll(now, session.label, new, predictions, outcomes, lines, seconds, said)


def _together(served: list[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    return pd.concat(served, ignore_index=True) if served else PREDICTION_LOG.empty()


def _store(deployment: Deployment, answers: list[Answer], session: Session) -> pd.DataFrame:
    """Stores what came, a session at a time; the new bars of the polled session."""
    import pandas as pd

    new = RAW_QUOTES.empty()
    for label in sorted({about.label for about, _ in answers}):
        bars = [answer.bars for about, answer in answers if about.label == label]
        stored = stages.store_bars(deployment, label, pd.concat(bars, ignore_index=True))
        if label == session.label:
            new = stored
    return new


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
    alert: Callable[[str], object] = lambda session: None,
    warn: Callable[[str], object] = log.warning,
) -> int:
    """Polls until the time box or the session ends; returns the number of polls.

    It ends, too, when a run that began later polls: two at once do no harm, but the supervisor
    would take turns in missing one of them. After the close it stays until the last bar is final
    and has been asked for. A store that takes nothing any more, as on a full disk, ends nothing:
    it is asked again at the next poll, which fetches what could not be stored.

    Args:
        deployment: what to poll.
        run_id: named in the heartbeat.
        interval: POLLING_INTERVAL.
        until: end of the time box.
        sleep: waits so many seconds; raises to end the loop.
        report: called after every poll.
        alert: called with the session after a poll that stored predictions.
        warn: takes a line when the store begins to refuse, and when it no longer does.

    Raises:
        BrokenFile: a part is damaged; `past_broken_files` moves it aside.
        StoreError: the folder cannot be read or written at the first poll.
    """
    fetcher = Fetcher(deployment, patience=max(5.0, 0.5 * interval.total_seconds()))
    chain_poller = ChainPoller(deployment)
    work = Work(deployment)
    count = 0
    begun = deployment.clock().astimezone(dt.UTC).isoformat()
    refused = ""
    session = _polled_at(deployment, deployment.clock())
    while session is not None and deployment.clock() < until:
        try:
            chain_poller.begin(session)
            done = poll(deployment, fetcher, session, work)
            count += 1
            _tell(done, deployment.calendar.bar_seconds)
            if done.predictions or refused:
                alert(session.label)
            report(done)
            beat = Heartbeat(run_id, deployment.clock().isoformat(), session.label, begun=begun)
            successor = Heartbeat.read(deployment.store)
            if successor is not None and beat.yields_to(successor, interval):
                found = successor.run_id, successor.begun
                log.warning("run %s polls since %s; this one ends", *found)
                break
            beat.write(deployment.store)
            chain_poller.advance(session)
            if refused:
                warn("the data folder takes what is polled again")
                refused = ""
            if count % COMPACT_EVERY == 0:
                stages.compact_session(deployment, session.label)
                work.whole = True  # what another poller stored and did not live to predict
        except StoreError as error:
            if not count or isinstance(error, BrokenFile):
                raise
            if str(error) != refused:
                warn(f"{error}; polling goes on")
            refused, work.whole = str(error), True
        now = deployment.clock()
        pause = _next_poll_of(deployment, session, now, interval)
        session = _polled_at(deployment, pause)
        # leaving now, not at the next poll, lets the next run begin within the same bar
        if session is None or pause >= until:
            break
        sleep((pause - now).total_seconds())
    return count


def _polled_at(deployment: Deployment, now: dt.datetime) -> Session | None:
    """The session to poll: the open one, but an earlier one until its last bar must be there."""
    bar = dt.timedelta(seconds=deployment.calendar.bar_seconds)
    settling = deployment.calendar.session_at(now - bar - deployment.source.delay)
    return settling or deployment.calendar.session_at(now)


def _next_poll_of(
    deployment: Deployment, session: Session, now: dt.datetime, interval: dt.timedelta
) -> dt.datetime:
    """The next moment of the grid, but not past the moment the last bar becomes final."""
    delay = deployment.source.delay
    last = session.closes + delay + AFTER_FINAL
    regular = next_poll(now, interval, session.bar_seconds, delay)
    return min(regular, last) if now < last else regular


def _tell(done: Poll, bar_seconds: int) -> None:
    """One line per failure, and one per symbol: its newest prediction of this poll."""
    for symbol, reason in done.failures.items():
        log.warning("%s: no new bars: %s", symbol, reason)
    if len(done.served) and log.isEnabledFor(logging.INFO):
        newest = done.served.sort_values("bar_ts").drop_duplicates("symbol", keep="last")
        for row in newest.to_dict("records"):
            log.info("%s", describe(row, bar_seconds))


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
