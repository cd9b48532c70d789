"""Outcomes of predictions, and which sessions are settled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hedge_pipeline.learning import labels
from hedge_pipeline.market.tables import OUTCOMES, RAW_QUOTES
from hedge_pipeline.stages.bars import stored_bars

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Sequence

    import pandas as pd

    from hedge_pipeline.stages.deployment import Deployment


def mature_outcomes(deployment: Deployment, label: str, since: dt.datetime | None = None) -> int:
    """Stores the outcomes of a session that are known by now; returns the new rows.

    Args:
        deployment: whose store.
        label: the session.
        since: only of bars that begin then or later.

    Raises:
        NothingStored: the session has no bars.
    """
    known = observed_outcomes(deployment, label, stored_bars(deployment, label, since))
    return deployment.store.append(OUTCOMES, label, known)


def observed_outcomes(deployment: Deployment, label: str, bars: pd.DataFrame) -> pd.DataFrame:
    """Rows of `outcomes` that the observed closes of a session give by now; writes nothing.

    Args:
        deployment: horizon, dead band and the time to look at.
        label: the session.
        bars: rows of `raw_quotes` of the session.
    """
    session = deployment.calendar.session(label)
    return labels.mature(
        bars,
        session,
        horizon=deployment.horizon,
        dead_band_bp=deployment.dead_band_bp,
        now=deployment.asked_at(session),
        grace=_grace(deployment),
    )


def settled_sessions(
    deployment: Deployment, symbol: str, *, after: str | None = None, last: int | None = None
) -> tuple[str, ...]:
    """Sessions that are over and whose every bar of the symbol has its outcome, ascending.

    Args:
        deployment: where to look.
        symbol: whose outcomes.
        after: only later sessions.
        last: at most so many, the newest ones.
    """
    found: list[str] = []
    for label in deployment.store.newest_first(OUTCOMES):
        if (after is not None and label <= after) or (last is not None and len(found) == last):
            break
        if _settled(deployment, label, [symbol]):
            found.append(label)
    return tuple(reversed(found))


def settled_symbols(
    deployment: Deployment, label: str, symbols: Sequence[str] | None = None
) -> tuple[str, ...]:
    """Symbols for which the session is settled, see `settled_sessions`; each table is read once.

    Args:
        deployment: where to look.
        label: the session.
        symbols: of these; None = of all.
    """
    return _settled(deployment, label, sorted(deployment.symbols if symbols is None else symbols))


def _settled(deployment: Deployment, label: str, symbols: Sequence[str]) -> tuple[str, ...]:
    """Those of the symbols for which the session is settled."""
    known, store, session = deployment.settled, deployment.store, deployment.calendar.session(label)
    asked = [symbol for symbol in symbols if (symbol, label) not in known]
    if asked and deployment.asked_at(session) >= session.closes + _grace(deployment):
        bars = store.read(RAW_QUOTES, [label], symbols=asked, columns=("symbol",))
        outcomes = store.read(
            OUTCOMES,
            [label],
            symbols=asked,
            columns=("symbol",),
            only={"horizon_bars": [deployment.horizon]},
        )
        matured = outcomes["symbol"].value_counts()
        counted = bars["symbol"].value_counts()
        known.update(
            (str(symbol), label) for symbol, n in counted.items() if matured.get(symbol, 0) == n
        )
    return tuple(symbol for symbol in symbols if (symbol, label) in known)


def _grace(deployment: Deployment) -> dt.timedelta:
    """How long after the close the last bars may still be on their way."""
    return max(labels.GRACE, deployment.source.delay)
