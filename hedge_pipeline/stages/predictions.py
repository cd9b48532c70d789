"""Predictions into the log: served first, then the companions nobody waits for."""

from __future__ import annotations

import datetime as dt
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hedge_pipeline.levels.confidence import LevelEvidence
from hedge_pipeline.market.tables import (
    FEATURE_ROWS,
    LEVEL_EVIDENCE,
    PREDICTION_LOG,
    RAW_QUOTES,
    ROLES,
    without,
)
from hedge_pipeline.serving.predicting import in_force_of, predict
from hedge_pipeline.serving.signalling import Signalling, at_levels
from hedge_pipeline.stages.bars import stored_bars
from hedge_pipeline.stages.deployment import SETTLING, NothingStored
from hedge_pipeline.stages.features import feature_rows, levels_in_force

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from hedge_pipeline.market.calendar import Session
    from hedge_pipeline.stages.deployment import Deployment

_SERVED = {"role": ["served"]}


@dataclass(frozen=True)
class Asked:
    """Bars at the moment of their decision, with all that a stream of predictions needs.

    Attributes:
        session: of the bars.
        rows: symbol, bar_ts, available_at, the features, price, decided_at and mode; by symbol and
            time.
        levels: hedge levels in force, in the order of the rows.
        signalling: what decides on signals.
    """

    session: Session
    rows: pd.DataFrame
    levels: pd.DataFrame
    signalling: Signalling


def log_predictions(deployment: Deployment, label: str) -> int:
    """Predicts every bar of a session that has no prediction yet; returns the new rows.

    A bar of a session that is over gets the prediction a live system would have made, with the
    model accepted by then; the row says `backfill` (in a replay `replay`). A bar of the running
    session is decided now: `live`, or `catch_up` if it became final more than a bar ago.

    Raises:
        NothingStored: the session has no feature rows.
    """
    return len(log_served(deployment, label, ROLES)) + log_companions(deployment, label)


def ask_session(deployment: Deployment, label: str) -> Asked:
    """`build_features`, and all that predicting its bars needs, for `log_asked`.

    Raises:
        NothingStored: the session has no bars.
    """
    bars = stored_bars(deployment, label)
    frame, levels = feature_rows(deployment, label, bars, bars)
    deployment.store.replace(FEATURE_ROWS, label, frame)
    return _asked(deployment, label, bars, frame, levels)


def log_asked(deployment: Deployment, asked: Asked) -> int:
    """`log_predictions` for the bars of a session that is over; returns the new rows."""
    label = asked.session.label
    known = deployment.store.read(PREDICTION_LOG, [label], columns=PREDICTION_LOG.key)
    if len(known):  # it was interrupted before it was done
        return log_predictions(deployment, label)
    return len(_log(deployment, asked, ROLES, known))


def serve(deployment: Deployment, label: str, bars: pd.DataFrame) -> tuple[Asked, pd.DataFrame]:
    """Features and served predictions of bars that were stored just now.

    What `build_missing_features` and `log_served` do, for a poll that knows what is new.

    Args:
        deployment: whose store and models.
        label: the session.
        bars: rows of `raw_quotes`, one or more, that have neither.

    Returns:
        The bars as they were asked about, for `log_beside`, and the new rows of the log.
    """
    bars = RAW_QUOTES.conform(bars).sort_values(["symbol", "bar_ts"], ignore_index=True)
    frame, levels = feature_rows(deployment, label, stored_bars(deployment, label), bars)
    deployment.store.append(FEATURE_ROWS, label, frame, known=frame.iloc[:0])
    asked = _asked(deployment, label, bars, frame, levels)
    return asked, _log(deployment, asked, ("served",), PREDICTION_LOG.empty())


def _asked(
    deployment: Deployment,
    label: str,
    bars: pd.DataFrame,
    features: pd.DataFrame,
    levels: pd.DataFrame,
) -> Asked:
    """Bars with their features and levels, all three in one order, as they are decided now."""
    session = deployment.calendar.session(label)
    rows = _decided(deployment, session, features.assign(price=bars["close"]))
    return Asked(session, rows, levels, _signalling(deployment, session, rows))


def log_beside(deployment: Deployment, asked: Asked) -> int:
    """The rows of the other roles for bars that `serve` has just served; returns how many."""
    companions = tuple(role for role in ROLES if role != "served")
    return len(_log(deployment, asked, companions, PREDICTION_LOG.empty()))


def log_served(
    deployment: Deployment, label: str, roles: Sequence[str] = ("served",)
) -> pd.DataFrame:
    """The served rows of `log_predictions`, with those of other roles if there is no hurry.

    Args:
        deployment: whose store and models.
        label: the session.
        roles: which streams.

    Returns:
        The new rows.

    Raises:
        NothingStored: the session has no feature rows.
    """
    features = deployment.store.read(FEATURE_ROWS, [label])
    if features.empty:
        raise NothingStored(f"features has no rows of {label}: materialize features first")
    known = deployment.store.read(PREDICTION_LOG, [label], columns=PREDICTION_LOG.key)
    due = without(features, known[known["role"] == "served"])
    return _ask_and_log(deployment, label, due, roles, known)


def log_companions(deployment: Deployment, label: str) -> int:
    """The rows of the other roles beside the served ones; they never delay or fail those.

    A bar gets the companions that stood beside the served model when that decided.

    Args:
        deployment: whose store and models.
        label: the session.
    """
    log = deployment.store.read(
        PREDICTION_LOG, [label], columns=(*PREDICTION_LOG.key, "decided_at")
    )
    served = log[log["role"] == "served"]
    force = in_force_of(
        deployment.ledgers(served["symbol"].unique()), served["symbol"], served["decided_at"]
    )
    added = 0
    for role, versions in (("newest", force.newest), ("baseline", force.baseline)):
        due = without(served.loc[versions > 0, ["symbol", "bar_ts"]], log[log["role"] == role])
        if len(due):
            features = deployment.store.read(FEATURE_ROWS, [label])
            rows = features.merge(due, on=["symbol", "bar_ts"])
            added += len(_ask_and_log(deployment, label, rows, (role,), log))
    return added


def _ask_and_log(
    deployment: Deployment,
    label: str,
    features: pd.DataFrame,
    roles: Sequence[str],
    known: pd.DataFrame,
) -> pd.DataFrame:
    if features.empty:
        return PREDICTION_LOG.empty()
    columns = ("symbol", "bar_ts", "close")
    since = features["bar_ts"].min().to_pydatetime()
    bars = deployment.store.read(RAW_QUOTES, [label], columns=columns, since=since)
    session = deployment.calendar.session(label)
    rows = features.merge(bars.rename(columns={"close": "price"}), on=["symbol", "bar_ts"])
    rows = _decided(deployment, session, rows.sort_values(["symbol", "bar_ts"], ignore_index=True))
    levels = levels_in_force(deployment, label, rows)
    asked = Asked(session, rows, levels, _signalling(deployment, session, rows))
    return _log(deployment, asked, roles, known)


def _log(
    deployment: Deployment, asked: Asked, roles: Sequence[str], known: pd.DataFrame
) -> pd.DataFrame:
    """Logs what the models of some roles say; returns the new rows."""
    import pandas as pd

    ledgers = deployment.ledgers(asked.rows["symbol"].unique())
    said = predict(asked.rows, ledgers, deployment.shelf.load, roles)
    if said.empty:
        return said
    levels = pd.concat([asked.rows[["symbol", "bar_ts"]], asked.levels], axis=1)
    log = at_levels(said, levels, asked.session, asked.signalling)
    added = deployment.store.append(PREDICTION_LOG, asked.session.label, log, known=known)
    return log if added else log.iloc[:0]


def _signalling(deployment: Deployment, session: Session, bars: pd.DataFrame) -> Signalling:
    """Rules, what was seen at levels in the sessions before, and the signals shortly before."""
    rules = deployment.signal_rules
    place = deployment.calendar.ordinal(session.label)
    before = deployment.calendar.labels[max(0, place - 1) : place]
    fired = deployment.store.read(
        PREDICTION_LOG,
        [*before, session.label],
        columns=("symbol", "bar_ts"),
        only=_SERVED | {"signal_fired": [True]},
        since=bars["bar_ts"].min().to_pydatetime() - dt.timedelta(seconds=rules.cooldown),
    )
    return Signalling(
        rules,
        _seen_at_levels(deployment, session),
        deployment.evidence_prior,
        {str(x): at.to_pydatetime() for x, at in fired.groupby("symbol")["bar_ts"].max().items()},
    )


def _seen_at_levels(deployment: Deployment, session: Session) -> dict[str, LevelEvidence]:
    """Outcomes at levels in the window of sessions before, by symbol; read again if they change."""
    store, known = deployment.store, deployment.level_evidence
    place = deployment.calendar.ordinal(session.label)
    window = deployment.calendar.labels[max(0, place - deployment.plan.window_sessions) : place]
    now = time.time_ns()
    files = store.fingerprints(LEVEL_EVIDENCE)
    files = {label: files[label] for label in window if label in files}
    same = known.get(session.label, ({}, 0, {}))
    if same[0] != files or any(store.is_recent(found, same[1]) for found in files.values()):
        seen = LevelEvidence.by_symbol(store.read(LEVEL_EVIDENCE, files))
        known.clear()
        known[session.label] = same = files, now, seen
    return same[2]


def _decided(deployment: Deployment, session: Session, rows: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    now = deployment.clock()
    # the last bars of a session are decided shortly after its close
    if deployment.replay or session.closes + SETTLING <= now:
        mode = "replay" if deployment.replay else "backfill"
        return rows.assign(decided_at=rows["available_at"], mode=mode)
    length = dt.timedelta(seconds=session.bar_seconds)
    late = rows["bar_ts"] + 2 * length + deployment.source.delay < pd.Timestamp(now)
    return rows.assign(
        decided_at=pd.Timestamp(now).as_unit("us"), mode=np.where(late, "catch_up", "live")
    )
