"""A first start: history with features and outcomes, and a first model."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from hedge_pipeline.market.tables import PREDICTION_LOG
from hedge_pipeline.stages.bars import collect, collect_daily_bars
from hedge_pipeline.stages.chains import collect_session_chains
from hedge_pipeline.stages.closing import mark_closed, pending_sessions
from hedge_pipeline.stages.deployment import SETTLING, StageError
from hedge_pipeline.stages.evidence import fold_evidence, judge
from hedge_pipeline.stages.features import build_missing_features
from hedge_pipeline.stages.levels import build_all_missing_levels
from hedge_pipeline.stages.outcomes import mature_outcomes
from hedge_pipeline.stages.training import train_candidate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from hedge_pipeline.stages.deployment import Deployment


def history_window(deployment: Deployment, days: int) -> tuple[str, ...]:
    """Whole sessions of the last days, oldest first; a source's depth is counted like this."""
    now = deployment.clock()
    begin = now - dt.timedelta(days=days)
    closed = deployment.calendar.closed_by(now - SETTLING)
    labels = deployment.calendar.between(begin.date().isoformat(), closed) if closed else ()
    return tuple(x for x in labels if deployment.calendar.session(x).opens >= begin)


def bootstrap(
    deployment: Deployment,
    sessions: Sequence[str],
    *,
    advance: Callable[[str], None] = lambda session: None,
) -> dict[str, Any]:
    """Collects past sessions with features and outcomes, and trains a first model per symbol.

    Nothing is predicted: a prediction made afterwards would be no evidence. What is stored already
    is left alone, so this may be run again.

    Args:
        deployment: whose source and store.
        sessions: ascending labels.
        advance: called after every session.

    Returns:
        Counts, one line per symbol on its model, and one line per failure of the source.
    """
    bars = gaps = 0
    failures: dict[str, None] = {}
    without_days: list[str] = []
    if sessions:  # in one request what would otherwise be one for every session
        collect_daily_bars(deployment, sessions[-1], since=sessions[0])
    for label in sessions:
        found = collect(deployment, label)
        failures |= {str(error): None for error in found.failures.values()}
        without_days = [str(error) for error in found.without_days.values()]
        bars, gaps = bars + found.bars, gaps + found.gaps
        collect_session_chains(deployment, label)
        build_all_missing_levels(deployment, label)
        if found.bars:
            build_missing_features(deployment, label)
            mature_outcomes(deployment, label)
        advance(label)
    models = {symbol: _first_model(deployment, symbol) for symbol in deployment.symbols}
    # what somebody polled has predictions to be finished and scored: closing is for that
    polled = set(pending_sessions(deployment)) & set(deployment.store.sessions(PREDICTION_LOG))
    if bars and not failures and not polled:
        mark_closed(deployment, sessions[-1])
    return {
        "sessions": len(sessions),
        "bars": bars,
        "gaps": gaps,
        "models": models,
        "failures": list(dict.fromkeys([*failures, *without_days])),
    }


def _first_model(deployment: Deployment, symbol: str) -> str:
    fold_evidence(deployment, symbol)
    if deployment.shelf.newest(symbol) is not None:
        if deployment.pooled:
            judge(deployment, symbol)
        return "has a model already"
    try:
        card = train_candidate(deployment, symbol).card
    except StageError as error:
        return str(error)
    entries = judge(deployment, symbol)
    said = entries[-1]["event"] if entries else "judged meanwhile"  # by a training of the service
    return f"version {card.version} on {card.rows} rows, {said}"
