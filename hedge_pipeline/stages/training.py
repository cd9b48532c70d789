"""Candidates: which rows, which parameters, the fit, the guards, the shelf."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hedge_pipeline.learning import novelty, search
from hedge_pipeline.learning.dataset import assemble, read_features
from hedge_pipeline.learning.guards import guard
from hedge_pipeline.learning.pooling import POOL, SPOOL_FROM, assemble_pool
from hedge_pipeline.learning.training import (
    ModelCard,
    ModelError,
    TrainingFailed,
    TrainingPlan,
    contributions,
    fit,
    load_model,
    margins,
    skill_in_nats,
)
from hedge_pipeline.market.features import FEATURES, HEDGE_FEATURES
from hedge_pipeline.market.tables import FEATURE_ROWS, OUTCOMES, in_pandas, places_among
from hedge_pipeline.serving.predicting import margins_of
from hedge_pipeline.stages.deciding import retraining_decision
from hedge_pipeline.stages.deployment import StageError
from hedge_pipeline.stages.evidence import pending_folds
from hedge_pipeline.stages.outcomes import settled_sessions, settled_symbols

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Mapping, Sequence
    from typing import Any

    from hedge_pipeline.learning.dataset import LabelledSession, TrainingSet
    from hedge_pipeline.learning.gate import GateState
    from hedge_pipeline.learning.training import Margins
    from hedge_pipeline.stages.deployment import Deployment

# neighbouring bars say much the same: every thirty-second of five sessions gives the ten largest
# shares to some 5 %; of many rows so many do
_EXPLAIN_EVERY = 32
_EXPLAINED_ROWS = 1_000

# hedge levels take a few values a day: no window of sessions tells what is usual of them; and the
# last bars before a close, which have no label, are in no training set
_NEVER_NOVEL = tuple(
    feature in HEDGE_FEATURES or feature.name in ("session_elapsed", "session_remaining")
    for feature in FEATURES
)


@dataclass(frozen=True)
class Candidate:
    """The newest version after a training; `new` is False if there was nothing new to learn."""

    card: ModelCard
    new: bool


def train_candidate(deployment: Deployment, symbol: str) -> Candidate:
    """Fits a candidate on the matured outcomes of the window and puts it on the shelf.

    The window is the last `window_sessions` settled sessions, not before the session from which
    on the evidence trusts the past. The file is loaded back through the serving path and must pass
    the guards; the result is part of its description. Equal data give no new version. Parameters
    come from the newest search before the cutoff, see `plan_of`.

    While models are pooled the rows are those of all symbols, each in its own window, and the
    candidate is a version of every symbol. The first symbol that asks trains it; for the others it
    is there already, and a version that waits for the symbol's verdict comes before a newer one.

    Raises:
        StageError: too few sessions, one class only, or the trainer failed.
        ModelError: the description of an earlier version cannot be read.
    """
    if not deployment.pooled:
        state = state_of(deployment, symbol)
        wanted = dict.fromkeys(training_window(deployment, symbol, state), (symbol,))
        return train_on(deployment, symbol, wanted, state.base_rate(deployment.rule))
    with deployment.pool_lock:
        newest = deployment.shelf.newest(symbol)
        pool = pool_window(deployment)
        waits = newest is not None and newest.version not in deployment.ledger(symbol).judged
        if newest is not None and (waits or newest.cutoff == max(pool, default="")):
            return Candidate(newest, new=False)
        return train_on(deployment, symbol, pool, None)


def train_on(
    deployment: Deployment,
    symbol: str,
    wanted: Mapping[str, Sequence[str]],
    climatology: float | None,
) -> Candidate:
    """Fits a candidate on whole sessions and puts it on the shelf; see `train_candidate`.

    Args:
        deployment: whose store, plan and trainer.
        symbol: who asks.
        wanted: symbols by session, sessions ascending.
        climatology: base rate in force; None = that of each row's symbol in the training rows.

    Raises:
        StageError: too few sessions, one class only, or the trainer failed.
        ModelError: the description of an earlier version cannot be read.
    """
    line, name = (POOL, "the pool") if deployment.pooled else (symbol, symbol)
    plan, shelf, sessions = deployment.plan, deployment.shelf, tuple(wanted)
    if len(sessions) < plan.least_sessions:
        raise StageError(
            f"{name}: {len(sessions)} of the {plan.least_sessions} sessions a training needs "
            "have outcomes"
        )
    plan, parameters_from = plan_of(deployment, line, sessions[-1])
    known_by = deployment.asked_at(deployment.calendar.session(sessions[-1]))
    data = training_rows(deployment, wanted, plan, known_by)
    newest = shelf.newest(symbol)
    # descriptions lack the parameters that came later
    if newest and newest.data_hash == data.data_hash and TrainingPlan(**newest.plan) == plan:
        return Candidate(newest, new=False)
    try:
        content, booster = (deployment.trainer or fit)(data, plan)
    except (ValueError, TrainingFailed) as error:
        raise StageError(f"{name}: {error}") from error
    base_rate = data.base_rate
    trained = margins(booster, data.features[data.recent], base_rate)
    version = shelf.next_version(symbol)
    known = len(sessions) >= novelty.LEAST_SESSIONS
    lows, highs = novelty.ranges(data.sample(), _NEVER_NOVEL) if known else ((), ())
    shelf.put_content(line, version, content)
    card = ModelCard(
        symbol=line,
        version=version,
        cutoff=sessions[-1],
        first_session=sessions[0],
        sessions=len(sessions),
        features=tuple(data.names),
        schema_hash=FEATURE_ROWS.schema_hash,
        horizon_bars=deployment.horizon,
        base_rate=base_rate,
        rows=data.rows,
        effective_rows=float(data.weights.sum()),
        data_hash=data.data_hash,
        sha256=hashlib.sha256(content).hexdigest(),
        spread=float(np.std(trained)),
        in_sample_skill=skill_in_nats(
            trained, data.labels[data.recent], data.base_rates(data.recent)
        ),
        plan=asdict(plan),
        parameters_from=parameters_from,
        contributions=contributions(
            booster,
            data.features[data.recent][:: max(_EXPLAIN_EVERY, -(-len(trained) // _EXPLAINED_ROWS))],
            data.names,
        ),
        lows=lows,
        highs=highs,
        gain={str(k): float(v) for k, v in booster.get_score(importance_type="total_gain").items()},
        members=_members(wanted) if deployment.pooled else (),
        backend=deployment.backend,
    )
    failure = _guarded(deployment, card, trained, data, wanted, climatology, known_by)
    card = replace(card, guard_failure=failure)
    if not shelf.put_card(card):
        raise StageError(f"{name}: another training has version {version} already")
    return Candidate(replace(card, symbol=symbol), new=True)


def training_rows(
    deployment: Deployment,
    wanted: Mapping[str, Sequence[str]],
    plan: TrainingPlan,
    known_by: dt.datetime,
) -> TrainingSet:
    """The training rows; on disk if they are too many for memory."""
    most = sum(map(len, wanted.values())) * deployment.calendar.full_session_bars
    spooled, horizon = most > SPOOL_FROM, deployment.horizon
    if deployment.pooled or spooled:
        reader = deployment.labelled_pool
        return assemble_pool(reader, wanted, plan, horizon, known_by, spooled=spooled)
    (symbol,) = _members(wanted)
    return assemble(deployment.labelled, symbol, tuple(wanted), plan, horizon, known_by)


def _members(wanted: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    return tuple(sorted({symbol for symbols in wanted.values() for symbol in symbols}))


def plan_of(deployment: Deployment, symbol: str, cutoff: str) -> tuple[TrainingPlan, str]:
    """The plan of a training with this cutoff, and in words where its parameters come from.

    Only a search whose own cutoff lies before counts, and only if it was made for this horizon and
    these features: what is found applies going forward, and a training of the past stays the same.
    """
    record = deployment.searches.newest(symbol, before=cutoff)
    meant = (deployment.horizon, FEATURE_ROWS.schema_hash)
    if record is None or (record.horizon_bars, record.schema_hash) != meant:
        return deployment.plan, search.DEFAULTS
    parameters: dict[str, Any] = record.parameters if record.adopted else {}
    return replace(deployment.plan, **parameters), record.source


def _guarded(
    deployment: Deployment,
    card: ModelCard,
    trained: Margins,
    data: TrainingSet,
    wanted: Mapping[str, Sequence[str]],
    climatology: float | None,
    known_by: dt.datetime,
) -> str | None:
    """What the guards say of a candidate whose file is written, read back as it will be served."""
    import pandas as pd

    line, shelf = card.symbol, deployment.shelf
    try:
        served = load_model(card, shelf.written(line, card.version, card.sha256))
    except ModelError as error:
        return f"file: {error}"
    recent = data.sessions[-deployment.plan.least_sessions :]
    members = _members({label: wanted[label] for label in recent})
    rows, features = read_features(deployment.store, recent, members)
    parts = [_labelled(deployment, label, wanted[label]) for label in recent]
    labelled = [(x, own.known_by(known_by).bar_ts) for part in parts for x, own in part.items()]
    owners = np.repeat([symbol for symbol, _ in labelled], [len(times) for _, times in labelled])
    times = np.concatenate([times for _, times in labelled])
    trained_on = pd.DataFrame({"symbol": owners, "bar_ts": pd.to_datetime(times, utc=True)})
    used = places_among(in_pandas(rows), trained_on) >= 0
    if deployment.pooled:
        cards = [shelf.card(line, x) for x in shelf.versions(line)[-6:]]
        earlier = [x for x in cards if x.guard_failure is None][-5:]
    else:
        cards = [shelf.card(line, x) for x in deployment.ledger(line).accepted[-5:]]
        earlier = [x for x in cards if not x.members]
    plan = TrainingPlan(**card.plan)
    # what other parameters said is not what is usual of these
    spreads = [x.spread for x in earlier if TrainingPlan(**x.plan) == plan]
    logged = margins_of(features[used], served)
    base_rates = data.base_rates(data.recent) if climatology is None else climatology
    return guard(card, logged, trained, data, base_rates, spreads)


def _labelled(
    deployment: Deployment, label: str, symbols: Sequence[str]
) -> dict[str, LabelledSession]:
    if deployment.pooled:
        return deployment.labelled_pool.read(label, symbols)
    return {symbol: deployment.labelled.read(symbol, label) for symbol in symbols}


def state_of(deployment: Deployment, symbol: str) -> GateState:
    """The evidence with every settled session, folded yet or not."""
    folds = pending_folds(deployment, symbol)
    return folds[-1].state if folds else deployment.ledger(symbol).state


def pool_window(deployment: Deployment) -> dict[str, tuple[str, ...]]:
    """Sessions the pool would be trained on now with their symbols, ascending.

    These are the last `window_sessions` that are settled for any symbol; a symbol is in those that
    are settled for it, from the one on from which its evidence trusts the past.
    """
    since = {symbol: state_of(deployment, symbol).train_from for symbol in deployment.symbols}
    found: dict[str, tuple[str, ...]] = {}
    for label in deployment.store.newest_first(OUTCOMES):
        if len(found) == deployment.plan.window_sessions:
            break
        settled = settled_symbols(deployment, label)
        if inside := tuple(x for x in settled if label >= (since[x] or "")):
            found[label] = inside
    return dict(reversed(found.items()))


def train_pool(deployment: Deployment, *, hour: int) -> Candidate | None:
    """Trains the pool if a symbol asks for it; None if none does.

    Raises:
        StageError: see `train_candidate`.
    """
    for symbol in deployment.symbols:
        if retraining_decision(deployment, symbol, hour=hour).retrain:
            return train_candidate(deployment, symbol)
    return None


def training_window(deployment: Deployment, symbol: str, state: GateState) -> tuple[str, ...]:
    """Settled sessions a training would use now, ascending."""
    settled = settled_sessions(deployment, symbol, last=deployment.plan.window_sessions)
    return tuple(x for x in settled if state.train_from is None or x >= state.train_from)
