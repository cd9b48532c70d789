"""The end of a session: everything finished, compacted, folded and scored."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hedge_pipeline.market.tables import (
    CHAIN_FETCHES,
    FEATURE_ROWS,
    HEDGE_LEVELS,
    OPTION_CHAINS,
    OUTCOMES,
    PREDICTION_LOG,
    RAW_QUOTES,
)
from hedge_pipeline.stages.bars import collect
from hedge_pipeline.stages.chains import collect_session_chains
from hedge_pipeline.stages.deployment import SETTLING, StageError
from hedge_pipeline.stages.evidence import fold_all
from hedge_pipeline.stages.features import build_missing_features
from hedge_pipeline.stages.levels import build_all_missing_levels
from hedge_pipeline.stages.outcomes import mature_outcomes
from hedge_pipeline.stages.predictions import log_predictions
from hedge_pipeline.stages.scoring import score_session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hedge_pipeline.market.calendar import SessionCalendar
    from hedge_pipeline.stages.deployment import Deployment
    from hedge_pipeline.stages.evidence import Fold

# how long after the close a source that does not answer is waited for: bars, and daily bars
PATIENCE = dt.timedelta(hours=20)
PATIENCE_FOR_DAYS = dt.timedelta(hours=2)
CLOSED = "live/closed.json"


@dataclass(frozen=True)
class ClosedSession:
    """What closing a session brought.

    Attributes:
        label: of the session.
        bars: new bars.
        gaps: expected minutes without a bar.
        predictions: new rows of the log.
        outcomes: new outcomes.
        folds: by symbol, of this session and of others that had not been folded.
    """

    label: str
    bars: int
    gaps: int
    predictions: int
    outcomes: int
    folds: dict[str, list[Fold]]


def close_session(deployment: Deployment, label: str) -> ClosedSession:
    """Fetches what is missing of a session that is over, finishes every stage, folds and scores.

    May be run again at any time; nothing changes then.

    Raises:
        StageError: the source does not answer and may still do so; nothing is folded yet.
    """
    session = deployment.calendar.session(label)
    found = collect(deployment, label)
    since = deployment.clock() - session.closes
    for failures, patience in (
        (found.failures, PATIENCE),
        (found.without_days, PATIENCE_FOR_DAYS),
    ):
        waiting = [e for e in failures.values() if e.cause != "vendor_hole"]
        if waiting and since < patience:
            raise StageError(f"{label} is not closed yet: {waiting[0]}")
    predictions = outcomes = 0
    collect_session_chains(deployment, label)
    build_all_missing_levels(deployment, label)
    if found.bars:
        build_missing_features(deployment, label)
        predictions = log_predictions(deployment, label)
        outcomes = mature_outcomes(deployment, label)
        compact_session(deployment, label)
    deployment.store.compact(OPTION_CHAINS, label)
    folds = fold_all(deployment, deployment.symbols)
    if found.bars:
        score_session(deployment, label, deployment.symbols)
    mark_closed(deployment, label)
    return ClosedSession(label, found.new, found.gaps, predictions, outcomes, folds)


def compact_session(deployment: Deployment, label: str) -> None:
    """Rewrites the session's many small files as one per table."""
    small = (RAW_QUOTES, CHAIN_FETCHES, HEDGE_LEVELS, FEATURE_ROWS, PREDICTION_LOG, OUTCOMES)
    for table in small:
        deployment.store.compact(table, label)


def pending_sessions(deployment: Deployment) -> tuple[str, ...]:
    """Sessions that are over and not closed yet, oldest first; see `sessions_to_close`.

    Folded is not closed: a training may fold a session before its gaps are known, and a symbol the
    source does not know is never folded. Before anything was closed the last fold stands for it.
    """
    through = _closed_through(deployment)
    folded = [deployment.ledger(symbol).state.last_session for symbol in deployment.symbols]
    return sessions_to_close(
        deployment.calendar,
        deployment.clock(),
        deployment.store.sessions(RAW_QUOTES),
        [through] if through else folded,
        settling=SETTLING,
    )


def sessions_to_close(
    calendar: SessionCalendar,
    now: dt.datetime,
    stored: Sequence[str],
    done_through: Sequence[str | None],
    *,
    settling: dt.timedelta,
    most: int = 10,
) -> tuple[str, ...]:
    """Sessions that are over and lie after the last one that is done, oldest first.

    Days the service was down are among them: the source may still have their bars.

    Args:
        calendar: sessions.
        now: aware time.
        stored: sessions with bars.
        done_through: the last session that was closed; before anything was, the last folded one of
            each symbol, of which the earliest counts. None = none yet.
        settling: a session is closed this long after its end.
        most: at most so many, the newest ones.
    """
    closed = calendar.closed_by(now - settling)
    if closed is None or not stored:
        return ()
    behind = min((label or "" for label in done_through), default="")
    pending = [label for label in calendar.between(stored[0], closed) if label > behind]
    return tuple(pending[-most:])


def mark_closed(deployment: Deployment, label: str) -> None:
    """Remembers that everything up to this session is closed."""
    through = max(label, _closed_through(deployment) or label)
    deployment.store.write_bytes(CLOSED, json.dumps({"through": through}).encode())


def _closed_through(deployment: Deployment) -> str | None:
    try:
        return str(json.loads(deployment.store.read_bytes(CLOSED))["through"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
