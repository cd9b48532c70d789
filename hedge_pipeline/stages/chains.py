"""Option chains: the source is asked, and what is new of its answer is stored.

Asking touches no table, so it may happen in a thread. Everything that was asked for leaves a row in
`chain_fetches`, whatever came of it.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from hedge_pipeline.market.sources import (
    CHAIN_COLUMNS,
    BadInput,
    ChainSource,
    NoDataYet,
    RateLimited,
    SchemaDrift,
    SourceDown,
    SourceError,
    SymbolUnknown,
    WindowRefused,
)
from hedge_pipeline.market.tables import (
    CHAIN_FETCHES,
    OPTION_CHAINS,
)
from hedge_pipeline.stages.bars import symbols_watched_live

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.market.calendar import Session
    from hedge_pipeline.stages.deployment import Deployment

STATUS: dict[type[SourceError], str] = {
    NoDataYet: "no_data_yet",
    RateLimited: "rate_limited",
    SourceDown: "source_down",
    SymbolUnknown: "symbol_unknown",
    WindowRefused: "window_refused",
    SchemaDrift: "schema_drift",
    BadInput: "bad_input",
}


@dataclass(frozen=True)
class Fetched:
    """What one request for a symbol's option chain brought.

    Attributes:
        symbol: ticker symbol of the underlying.
        asked_at: moment of asking.
        sweep: every expiration was asked for.
        snapshots: contracts with the columns `CHAIN_COLUMNS`; None if the request failed.
        failure: why it failed; None if it did not.
    """

    symbol: str
    asked_at: dt.datetime
    sweep: bool
    snapshots: pd.DataFrame | None
    failure: SourceError | None = None


def fetch(
    deployment: Deployment, symbol: str, session: Session, now: dt.datetime, *, sweep: bool
) -> Fetched:
    """Asks the source for a symbol's chain; reads and writes no table."""
    source = cast("ChainSource", deployment.source)
    try:
        snapshots = source.chains(symbol, session, now, sweep=sweep)
        missing = [name for name in CHAIN_COLUMNS if name not in snapshots.columns]
        if missing:
            raise SchemaDrift(f"{symbol}: the option chain lacks {', '.join(missing)}")
    except SourceError as error:
        return Fetched(symbol, now, sweep, None, error)
    return Fetched(symbol, now, sweep, snapshots)


def store(
    deployment: Deployment, label: str, fetched: Fetched, *, available_at: dt.datetime | None
) -> int:
    """Stores what is new of an answer and the row about the request; returns the new snapshots.

    Of a session that is over a further request leaves a row only if it brought something.

    Args:
        deployment: where to.
        label: session of the answer.
        fetched: the answer.
        available_at: when the snapshots could first be used; None = history, as the source says.
    """
    import pandas as pd

    new = _new_snapshots(deployment, label, fetched)
    if available_at is not None:
        new = new.assign(available_at=pd.Timestamp(available_at).as_unit("us"))
    over = deployment.calendar.session(label).closes <= fetched.asked_at
    if over and new.empty and _was_asked(deployment, label, fetched.symbol):
        return 0
    failure = fetched.failure
    status = "ok" if len(new) else "nothing_new"
    row = {
        "symbol": fetched.symbol,
        "asked_at": pd.Timestamp(fetched.asked_at).as_unit("us"),
        "status": STATUS.get(type(failure), "source_down") if failure else status,
        "sweep": fetched.sweep,
        "snapshots": int(new["as_of"].nunique()),
        "contracts": len(new),
        "detail": str(failure) if failure else None,
    }
    # first: asked again after a kill, the same request would have brought nothing new
    deployment.store.append(CHAIN_FETCHES, label, CHAIN_FETCHES.of_records([row]))
    deployment.store.append(OPTION_CHAINS, label, new)
    return int(new["as_of"].nunique())


def _was_asked(deployment: Deployment, label: str, symbol: str) -> bool:
    """Whether the symbol's chain was asked for after the session's close."""
    asked = deployment.store.read(
        CHAIN_FETCHES, [label], symbols=[symbol], columns=("symbol", "asked_at")
    )
    return bool((asked["asked_at"] >= deployment.calendar.session(label).closes).any())


def _new_snapshots(deployment: Deployment, label: str, fetched: Fetched) -> pd.DataFrame:
    if fetched.snapshots is None:
        return OPTION_CHAINS.empty()
    known = stored_snapshots(deployment, label, fetched.symbol)
    found = fetched.snapshots.assign(symbol=fetched.symbol)
    return found[~found["as_of"].isin(known)]


def symbols_with_a_lost_answer(deployment: Deployment, label: str) -> set[str]:
    """Whose last request of a live session brought snapshots of which none is stored.

    The row about a request is stored before what it brought; a kill may have come between.
    """
    asked = deployment.store.read(
        CHAIN_FETCHES, [label], columns=("symbol", "asked_at", "snapshots")
    )
    last = asked.sort_values("asked_at").drop_duplicates("symbol", keep="last")
    brought = last[last["snapshots"] > 0].set_index("symbol")["asked_at"].to_dict()
    if not brought:
        return set()
    stored = deployment.store.distinct(OPTION_CHAINS, label, ("symbol", "available_at"))
    newest = stored.groupby("symbol")["available_at"].max().to_dict()
    return {str(x) for x, at in brought.items() if x not in newest or newest[x] < at}


def stored_snapshots(deployment: Deployment, label: str, symbol: str) -> set[Any]:
    """Moments of the symbol's snapshots that are stored."""
    stored = deployment.store.distinct(OPTION_CHAINS, label, ("symbol", "as_of"))
    return set(stored.loc[stored["symbol"] == symbol, "as_of"])


@dataclass(frozen=True)
class CollectedChains:
    """Counts of one collection; `failures` are the errors by symbol."""

    snapshots: int
    new: int
    failures: dict[str, SourceError]


def collect_chains(
    deployment: Deployment, label: str, *, watched_live: frozenset[str] = frozenset()
) -> CollectedChains:
    """Asks for the session's chains of every symbol and stores what is new.

    Args:
        deployment: whose source and store.
        label: the session.
        watched_live: symbols somebody polled; what is added to them now is available only now.
    """
    session = deployment.calendar.session(label)
    asked_at = deployment.asked_at(session)
    failures: dict[str, SourceError] = {}
    new = 0
    if deployment.source.capabilities.has_chains:
        for symbol in deployment.symbols:
            found = fetch(deployment, symbol, session, asked_at, sweep=True)
            history = session.closes <= asked_at and symbol not in watched_live
            new += store(
                deployment, label, found, available_at=None if history else deployment.clock()
            )
            if found.failure is not None:
                failures[symbol] = found.failure
    stored = deployment.store.distinct(OPTION_CHAINS, label, ("symbol", "as_of"))
    return CollectedChains(len(stored), new, failures)


def collect_session_chains(deployment: Deployment, label: str) -> CollectedChains:
    """Asks for the option chains the source still has of a session; no failure costs anything else.

    What is added to a session that somebody polled is available only now, as with bars.
    """
    watched = symbols_watched_live(deployment, deployment.calendar.session(label))
    return collect_chains(deployment, label, watched_live=watched)
