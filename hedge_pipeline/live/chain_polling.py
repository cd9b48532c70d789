"""Option chains inside the poll loop: asked for now and then, never waited for.

Each symbol is asked in a thread of its own every `CACHE_TTL` seconds. What has arrived is stored
between two polls of bars; what has not is looked at again after the next one. The first answer of a
session is a sweep of every expiration.
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Semaphore, Thread
from typing import TYPE_CHECKING

from hedge_pipeline import stages
from hedge_pipeline.market.sources import SourceDown
from hedge_pipeline.market.tables import CHAIN_FETCHES
from hedge_pipeline.stages import chains
from hedge_pipeline.stages.chains import Fetched

if TYPE_CHECKING:
    from hedge_pipeline.market.calendar import Session
    from hedge_pipeline.stages import Deployment

log = logging.getLogger(__name__)

AT_ONCE = 4
STORING_SECONDS = 5.0  # between two polls; what is left then is stored after the next one


@dataclass
class ChainPoller:
    """Keeps the option chains of the running session up to date beside the bars."""

    deployment: Deployment
    _turns: Semaphore = field(default_factory=lambda: Semaphore(AT_ONCE))
    _open: dict[str, tuple[Session, Future[Fetched]]] = field(default_factory=dict)
    _begun: str = ""
    _lost: set[str] = field(default_factory=set)
    _without_levels: set[str] = field(default_factory=set)  # their chain is stored

    def begin(self, session: Session) -> None:
        """Before the first poll of a session: the levels that need no chain of today.

        What was asked for by a process that did not live to store the answer is asked for again.
        """
        if self._begun != session.label:
            self._lost = chains.symbols_with_a_lost_answer(self.deployment, session.label)
            for symbol in self.deployment.symbols:
                stages.build_missing_levels(self.deployment, session.label, symbol)
            self._begun = session.label

    def advance(self, session: Session) -> int:
        """Stores the answers that have come and asks where it is time; returns new snapshots."""
        if not self.deployment.source.capabilities.has_chains:
            return 0
        new = 0
        until = time.monotonic() + STORING_SECONDS
        for symbol, (about, answer) in list(self._open.items()):
            if answer.done() and time.monotonic() < until:
                new += self._store(about, answer.result())
                del self._open[symbol]  # now: a store that refuses is asked again
        now = self.deployment.clock()
        if session.opens <= now < session.closes:
            for symbol in self._due(session, now):
                sweep = symbol in self._lost or not self._was_swept(session, symbol)
                self._lost.discard(symbol)
                self._open[symbol] = session, self._ask(symbol, session, now, sweep=sweep)
        return new

    def _store(self, session: Session, found: Fetched) -> int:
        if found.failure is not None:
            log.warning("%s: no option chain: %s", found.symbol, found.failure)
        # what was decided in this very moment was decided without it
        at = self.deployment.clock() + dt.timedelta(microseconds=1)
        new = chains.store(self.deployment, session.label, found, available_at=at)
        if new:
            self._without_levels.add(found.symbol)
        if found.symbol in self._without_levels:
            stages.build_missing_levels(self.deployment, session.label, found.symbol)
            self._without_levels.discard(found.symbol)
        return new

    def _due(self, session: Session, now: dt.datetime) -> list[str]:
        """Symbols whose last request, of whichever process, is long enough ago."""
        asked = self.deployment.store.read(
            CHAIN_FETCHES, [session.label], columns=("symbol", "asked_at")
        )
        last = asked.groupby("symbol")["asked_at"].max().to_dict()
        return [
            symbol
            for symbol in self.deployment.symbols
            if symbol not in self._open
            and (
                symbol not in last
                or symbol in self._lost
                or now - last[symbol] >= self.deployment.cache_ttl
            )
        ]

    def _was_swept(self, session: Session, symbol: str) -> bool:
        rows = self.deployment.store.read(CHAIN_FETCHES, [session.label], symbols=[symbol])
        return bool((rows["sweep"] & (rows["status"] == "ok")).any())

    def _ask(
        self, symbol: str, session: Session, now: dt.datetime, *, sweep: bool
    ) -> Future[Fetched]:
        answer: Future[Fetched] = Future()

        def ask() -> None:
            try:
                with self._turns:
                    found = chains.fetch(self.deployment, symbol, session, now, sweep=sweep)
            except Exception as error:  # a plug-in's own fault costs its chain, not the loop
                log.exception("%s: the source's option chains are broken", symbol)
                reason = f"{symbol}: the source fails with {type(error).__name__}: {error}"
                answer.set_result(Fetched(symbol, now, sweep, None, SourceDown(reason)))
            else:
                answer.set_result(found)

        Thread(target=ask, name=f"chain-{symbol}", daemon=True).start()
        return answer
