"""The stages as plain functions: the single code path of live collection, backfill and replay.

A bar's way: `bars` -> `features` -> `predictions` -> `outcomes` -> `evidence` (the fold) ->
`deciding` -> `training` -> `evidence` (the verdict) -> `scoring`; `searching` is asked for by hand,
`closing` ends a session with what is due, `starting` opens a deployment. Option `chains` give the
`levels` that features and signals refer to.
Every stage is told by a `deployment` what there is, reads its inputs from the store, writes keyed
rows, and may be killed and run again. Dagster assets and the replay are thin callers.
"""

from hedge_pipeline.stages.bars import CollectedSession, collect, collect_daily_bars, store_bars
from hedge_pipeline.stages.chains import collect_session_chains
from hedge_pipeline.stages.closing import (
    PATIENCE,
    PATIENCE_FOR_DAYS,
    ClosedSession,
    close_session,
    compact_session,
    pending_sessions,
)
from hedge_pipeline.stages.deciding import (
    feature_drift,
    leaking_features,
    leaks_in_words,
    new_samples,
    performance_drift,
    retraining_decision,
)
from hedge_pipeline.stages.deployment import (
    SETTLING,
    Deployment,
    NothingStored,
    StageError,
    deploy,
    open_store,
)
from hedge_pipeline.stages.evidence import (
    Fold,
    append_entries,
    append_entry,
    evidence_of,
    fold_all,
    fold_evidence,
    judge,
    pending_verdicts,
)
from hedge_pipeline.stages.features import (
    build_features,
    build_missing_features,
    feature_rows,
    features_of,
)
from hedge_pipeline.stages.levels import build_levels, build_missing_levels
from hedge_pipeline.stages.outcomes import mature_outcomes, settled_sessions, settled_symbols
from hedge_pipeline.stages.predictions import (
    Asked,
    ask_session,
    log_asked,
    log_beside,
    log_companions,
    log_predictions,
    log_served,
    serve,
)
from hedge_pipeline.stages.scoring import (
    REPORTED_SESSIONS,
    score_pending,
    score_session,
    signal_report,
)
from hedge_pipeline.stages.searching import Searched, search_hyperparameters
from hedge_pipeline.stages.starting import bootstrap, history_window
from hedge_pipeline.stages.training import (
    Candidate,
    pool_window,
    train_candidate,
    train_on,
    train_pool,
    training_rows,
    training_window,
)

__all__ = [
    "PATIENCE",
    "PATIENCE_FOR_DAYS",
    "REPORTED_SESSIONS",
    "SETTLING",
    "Asked",
    "Candidate",
    "ClosedSession",
    "CollectedSession",
    "Deployment",
    "Fold",
    "NothingStored",
    "Searched",
    "StageError",
    "append_entries",
    "append_entry",
    "ask_session",
    "bootstrap",
    "build_features",
    "build_levels",
    "build_missing_features",
    "build_missing_levels",
    "close_session",
    "collect",
    "collect_daily_bars",
    "collect_session_chains",
    "compact_session",
    "deploy",
    "evidence_of",
    "feature_drift",
    "feature_rows",
    "features_of",
    "fold_all",
    "fold_evidence",
    "history_window",
    "judge",
    "leaking_features",
    "leaks_in_words",
    "log_asked",
    "log_beside",
    "log_companions",
    "log_predictions",
    "log_served",
    "mature_outcomes",
    "new_samples",
    "open_store",
    "pending_sessions",
    "pending_verdicts",
    "performance_drift",
    "pool_window",
    "retraining_decision",
    "score_pending",
    "score_session",
    "search_hyperparameters",
    "serve",
    "settled_sessions",
    "settled_symbols",
    "signal_report",
    "store_bars",
    "train_candidate",
    "train_on",
    "train_pool",
    "training_rows",
    "training_window",
]
