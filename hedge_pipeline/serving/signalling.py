"""Predictions at hedge levels: strength, confidence, and whether a prediction is a signal."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from hedge_pipeline.levels.confidence import PRIOR, LevelEvidence, confident, seen_at
from hedge_pipeline.levels.signals import NO_LEVEL, SignalRules, decide_signals
from hedge_pipeline.levels.strength import measure
from hedge_pipeline.market.calendar import utc_times
from hedge_pipeline.market.tables import PREDICTION_LOG, places_among

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.market.calendar import Session

OTHER_STREAM = "only the served stream gives signals"


@dataclass(frozen=True)
class Signalling:
    """What decides on signals beside the prediction itself.

    Attributes:
        rules: what a signal must fulfil.
        evidence: outcomes seen at levels in sessions before, by symbol.
        prior: weight of the base rate against that evidence, effective outcomes.
        last_signals: start of the bar of each symbol's newest signal, aware.
    """

    rules: SignalRules = field(default_factory=SignalRules)
    evidence: Mapping[str, LevelEvidence] = field(default_factory=dict)
    prior: float = PRIOR
    last_signals: Mapping[str, dt.datetime] = field(default_factory=dict)


def at_levels(
    log: pd.DataFrame, levels: pd.DataFrame, session: Session, signalling: Signalling
) -> pd.DataFrame:
    """Log rows with what the hedge levels say of them.

    Confidence is the probability of the predicted side after the evidence at the level. Rows of
    other streams than the served one get the same columns and never a signal.

    Args:
        log: rows of `prediction_log` of one session, ascending `bar_ts` per symbol and role.
        levels: symbol, bar_ts and the answer of `in_force`, one row per bar.
        session: the session.
        signalling: rules and evidence.
    """
    rows = _levels_of(log, levels)
    found = measure(log["price"].to_numpy(dtype=np.float64), rows)
    symbols = log["symbol"].to_numpy(dtype=object)
    seen = seen_at(signalling.evidence, symbols, found.level_type, found.level_source, found.score)
    log = log.assign(
        confidence=confident(log["prob_up"], seen, signalling.prior).value.astype(np.float32),
        strength_score=found.score,
        level_type=found.level_type,
        level_source=found.level_source,
        level_price=found.level_price,
        strength_gex=found.gex,
        strength_vanna=found.vanna,
        strength_hp=found.hp,
        strength_mhp=found.mhp,
        strength_hg=found.hg,
        strength_overlap=found.overlap,
        strength_missing=found.missing,
    )
    left = session.bars - 1 - session.index_of(utc_times(log["bar_ts"]))
    served = (log["role"] == "served").to_numpy(dtype=np.bool_)
    fired = np.zeros(len(log), dtype=np.bool_)
    reason = np.where(log["prediction"].isna(), log["reason"].to_numpy(dtype=object), OTHER_STREAM)
    if served.any():
        own = (log if served.all() else log[served]).assign(bars_left=left[served])
        fired[served], reason[served] = decide_signals(
            own, signalling.rules, signalling.last_signals
        )
    why = rows["no_levels"].to_numpy(dtype=object)
    for place in np.flatnonzero((reason == NO_LEVEL) & rows["no_levels"].notna().to_numpy()):
        reason[place] = f"{NO_LEVEL}: {why[place]}"
    return PREDICTION_LOG.conform(log.assign(signal_fired=fired, reason=reason))


def _levels_of(log: pd.DataFrame, levels: pd.DataFrame) -> pd.DataFrame:
    """The levels in force at each row of the log."""
    key = ["symbol", "bar_ts"]
    same = len(log) == len(levels) and all(
        (log[name].to_numpy() == levels[name].to_numpy()).all() for name in key
    )
    if same:  # one stream, in the order of the bars
        return levels
    found = levels.reset_index(drop=True).reindex(places_among(log, levels))
    return found.reset_index(drop=True)
