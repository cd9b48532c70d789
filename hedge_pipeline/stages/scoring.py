"""Scores of a settled session, and what became of its signals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hedge_pipeline.learning import scoring
from hedge_pipeline.levels.confidence import cell_sums
from hedge_pipeline.levels.trades import reliability, report, score_trades
from hedge_pipeline.market.tables import (
    LEVEL_EVIDENCE,
    OUTCOMES,
    PERFORMANCE,
    PREDICTION_LOG,
    RAW_QUOTES,
    TRADES,
)
from hedge_pipeline.stages.outcomes import settled_sessions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    import pandas as pd

    from hedge_pipeline.stages.deployment import Deployment

REPORTED_SESSIONS = 250
_SCORED = (
    *("symbol", "bar_ts", "role", "mode", "model_version", "prediction", "prob_up", "confidence"),
    *("base_rate", "margin", "level_type", "level_source", "strength_score", "signal_fired"),
)


def score_session(deployment: Deployment, label: str, symbols: Sequence[str]) -> pd.DataFrame:
    """Scores the predictions of a settled session and stores the sums; returns them."""
    log = deployment.store.read(PREDICTION_LOG, [label], symbols=list(symbols), columns=_SCORED)
    outcomes = deployment.store.read(
        OUTCOMES,
        [label],
        symbols=list(symbols),
        columns=("symbol", "bar_ts", "actual_direction"),
        only={"horizon_bars": [deployment.horizon]},
    )
    sums = scoring.performance(log, outcomes, label)
    deployment.store.append(PERFORMANCE, label, sums)
    _score_levels(deployment, label, log, outcomes)
    return sums


def _score_levels(
    deployment: Deployment, label: str, log: pd.DataFrame, outcomes: pd.DataFrame
) -> None:
    """What the price did at the levels, and what became of the signals."""
    rows = log.assign(actual_direction=scoring.directions(log, outcomes))
    sums = cell_sums(rows, deployment.horizon).assign(session=label)
    deployment.store.append(LEVEL_EVIDENCE, label, sums)
    signals = log[(log["role"] == "served") & log["signal_fired"]]
    if len(signals):
        session = deployment.calendar.session(label)
        bars = deployment.store.read(RAW_QUOTES, [label])
        trades = score_trades(
            signals, bars, session, horizon=deployment.horizon, cost_bps=deployment.cost_bps
        )
        deployment.store.append(TRADES, label, trades)


def signal_report(deployment: Deployment, symbol: str) -> dict[str, Any]:
    """What became of a symbol's signals in its last 250 sessions; see `levels/trades.py`.

    Returns:
        Ready for JSON: first and last session, sessions, predictions scored, the report of the
        trades, and `reliability`: confidence against the share of right directions.
    """
    labels = settled_sessions(deployment, symbol, last=REPORTED_SESSIONS)
    modes = deployment.evidence_modes
    trades = deployment.store.read(TRADES, labels, symbols=[symbol])
    said = ("symbol", "bar_ts", "role", "mode", "prediction", "confidence")
    log = deployment.store.read(PREDICTION_LOG, labels, symbols=[symbol], columns=said)
    log = log[(log["role"] == "served") & log["mode"].isin(modes) & log["prediction"].notna()]
    trades = trades.merge(log[["symbol", "bar_ts"]], on=["symbol", "bar_ts"])
    happened = ("symbol", "bar_ts", "horizon_bars", "actual_direction")
    known = deployment.store.read(OUTCOMES, labels, symbols=[symbol], columns=happened)
    known = known[known["horizon_bars"] == deployment.horizon]
    rows = log.merge(known, on=["symbol", "bar_ts"])
    rows = rows[rows["actual_direction"].notna()]
    hit = (rows["prediction"] == rows["actual_direction"]).to_numpy(dtype=float)
    return {
        "first_session": labels[0] if labels else None,
        "last_session": labels[-1] if labels else None,
        "sessions": len(labels),
        "predictions_scored": len(rows),
        **report(trades),
        "reliability": reliability(rows["confidence"].to_numpy(dtype=float), hit),
    }


def score_pending(deployment: Deployment, symbol: str) -> int:
    """Scores every settled session of the symbol that has no score yet; returns how many."""
    scores = deployment.store.read(PERFORMANCE, symbols=[symbol], columns=("symbol", "session"))
    done = set(scores["session"])
    pending = [x for x in settled_sessions(deployment, symbol) if x not in done]
    for label in pending:
        score_session(deployment, label, [symbol])
    return len(pending)
