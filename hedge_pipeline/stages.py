"""One plain function per asset: the single code path of live collection, backfill and replay.

A bar's way reads from top to bottom: collect -> features -> predictions -> outcomes -> candidate
-> fold and verdict -> scores. Every stage reads its inputs from the store, writes keyed rows, and
may be killed and run again. Dagster assets and the replay are thin callers of this module.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hedge_pipeline import chains
from hedge_pipeline.learning import drift, gate, labels, ledger, novelty, scoring, search
from hedge_pipeline.learning.dataset import (
    LabelledSession,
    LabelledSessions,
    TrainingSet,
    assemble,
)
from hedge_pipeline.learning.drift import Drift
from hedge_pipeline.learning.gate import Event, GateRule, GateState, SessionEvidence
from hedge_pipeline.learning.guards import guard
from hedge_pipeline.learning.leaks import leaking
from hedge_pipeline.learning.ledger import KnownLedgers, Ledger
from hedge_pipeline.learning.pooling import POOL, SPOOL_FROM, PooledSessions, assemble_pool
from hedge_pipeline.learning.retraining import Decision, RetrainingFacts, decide
from hedge_pipeline.learning.search import SearchPlan, SearchRecord, SearchShelf
from hedge_pipeline.learning.shelf import ModelShelf
from hedge_pipeline.learning.training import (
    Margins,
    ModelCard,
    ModelError,
    Trainer,
    TrainingFailed,
    TrainingPlan,
    contributions,
    fit,
    load_model,
    margins,
    skill_in_nats,
)
from hedge_pipeline.learning.walk_forward import Course, course_of, cut
from hedge_pipeline.levels.confidence import PRIOR, LevelEvidence, cell_sums
from hedge_pipeline.levels.joining import in_force, level_grid
from hedge_pipeline.levels.rules import LevelRules
from hedge_pipeline.levels.signals import SignalRules
from hedge_pipeline.levels.trades import reliability, report, score_trades
from hedge_pipeline.live.predicting import in_force_of, margins_of, predict
from hedge_pipeline.live.signalling import Signalling, at_levels
from hedge_pipeline.live.supervision import sessions_to_close
from hedge_pipeline.market.bars import collect_bars, collect_days, find_gaps, on_grid
from hedge_pipeline.market.calendar import UTC, Session, SessionCalendar
from hedge_pipeline.market.features import (
    FEATURES,
    HEDGE_FEATURES,
    Previous,
    compute_features,
    no_previous,
    remember,
)
from hedge_pipeline.market.sources import DailySource, MarketSource, NoDataYet, SourceError
from hedge_pipeline.market.tables import (
    CHAIN_FETCHES,
    DAILY_BARS,
    FEATURE_ROWS,
    GAPS,
    HEDGE_LEVELS,
    LEVEL_EVIDENCE,
    OPTION_CHAINS,
    OUTCOMES,
    PERFORMANCE,
    PREDICTION_LOG,
    PROMOTIONS,
    RAW_QUOTES,
    ROLES,
    TRADES,
    feature_names,
    without,
)
from hedge_pipeline.store import CACHED_BYTES, Store

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.settings import Settings

SETTLING = dt.timedelta(minutes=15)
_SERVED = {"role": ["served"]}
# the mean over every eighth row says the same and costs an eighth; of many rows so many suffice
_EXPLAIN_EVERY = 8
_EXPLAINED_ROWS = 2_000
# hedge levels take a few values a day: no window of sessions tells what is usual of them; and the
# last bars before a close, which have no label, are in no training set
_NEVER_NOVEL = tuple(
    feature in HEDGE_FEATURES or feature.name in ("session_elapsed", "session_remaining")
    for feature in FEATURES
)
PREVIOUS_SESSION_SHARE = 0.25
DAYS_OF_HISTORY = 60


class StageError(RuntimeError):
    """A stage cannot do its work; the message is one line with the next step."""


class NothingStored(StageError):
    """A session has no rows of what the stage works on."""


@dataclass(frozen=True)
class Deployment:
    """Everything the stages need to know: where, what, and by which rules.

    Attributes:
        store: tables and models.
        calendar: sessions.
        symbols: what is watched.
        open_source: opens the market data source on first use.
        rule: constants of the gate.
        plan: constants of training.
        search_plan: how a search for hyper-parameters divides its sessions.
        replay: the store holds a replay of history: times are those a live system would have had,
            rows say `replay`, and that is what counts as evidence here.
        clock: the time now.
        level_rules: constants of the hedge levels.
        dealer_sign: the assumption about dealers in words, for the log.
        chain_max_age: levels older than this are stale.
        cache_ttl: time between two requests for a symbol's option chain.
        signal_rules: what makes a prediction a signal.
        evidence_prior: effective outcomes that outcomes at a level are weighed against.
        cost_bps: cost of a trade per side, basis points.
        pooled: one model is trained on the rows of all symbols and serves each of them; base rate,
            evidence and trust stay those of the symbol.
        trainer: fits a training set elsewhere; None = here.
        backend: where `trainer` fits, local or dask.
        pool_lock: held while the pool is trained, for the threads of a replay.
        settled: (symbol, session) pairs known to be settled; a settled session stays so.
        memories: what the session before the one asked for last leaves behind.
        level_evidence: what was seen at levels before the session asked for last.
        chains_done: how far the newest session's snapshots were read in this process, by symbol.
    """

    store: Store
    calendar: SessionCalendar
    symbols: tuple[str, ...]
    open_source: Callable[[], MarketSource]
    rule: GateRule
    plan: TrainingPlan
    search_plan: SearchPlan = field(default_factory=SearchPlan)
    horizon: int = 10
    dead_band_bp: float = 0.2
    min_samples: int = 100
    retrain_hour: int | None = 2
    replay: bool = False
    level_rules: LevelRules = field(default_factory=LevelRules)
    dealer_sign: str = "calls+puts-"
    chain_max_age: dt.timedelta = dt.timedelta(hours=1)
    cache_ttl: dt.timedelta = dt.timedelta(minutes=5)
    signal_rules: SignalRules = field(default_factory=SignalRules)
    evidence_prior: float = PRIOR
    cost_bps: float = 1.0
    pooled: bool = False
    trainer: Trainer | None = None
    backend: str = "local"
    pool_lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)
    clock: Callable[[], dt.datetime] = field(default=lambda: dt.datetime.now(UTC))
    settled: set[tuple[str, str]] = field(default_factory=set, compare=False, repr=False)
    chains_done: dict[str, chains.ChainsDone] = field(
        default_factory=dict, compare=False, repr=False
    )
    memories: dict[str, tuple[tuple[Any, ...], tuple[str, ...], Previous]] = field(
        default_factory=dict, compare=False, repr=False
    )
    level_evidence: dict[str, tuple[dict[str, Any], int, dict[str, LevelEvidence]]] = field(
        default_factory=dict, compare=False, repr=False
    )
    _known: KnownLedgers = field(default_factory=KnownLedgers, compare=False, repr=False)

    @cached_property
    def source(self) -> MarketSource:
        """The source, opened once."""
        return self.open_source()

    @cached_property
    def shelf(self) -> ModelShelf:
        """The models of the store."""
        kept = max(64, 3 * len(self.symbols))
        return ModelShelf(self.store, pooled=self.pooled, models_kept=kept)

    @cached_property
    def searches(self) -> SearchShelf:
        """The searches for hyper-parameters of the store."""
        return SearchShelf(self.store)

    @cached_property
    def labelled(self) -> LabelledSessions:
        """Training rows, remembered between trainings."""
        return LabelledSessions(self.store, self.horizon)

    @cached_property
    def labelled_pool(self) -> PooledSessions:
        """Training rows of many symbols."""
        return PooledSessions(self.store, self.horizon)

    def ledger(self, symbol: str) -> Ledger:
        """The symbol's promotion log as it is now."""
        return self.ledgers([symbol])[symbol]

    def ledgers(self, symbols: Iterable[str]) -> dict[str, Ledger]:
        """The promotion logs of symbols; the sessions whose files have changed are read again."""
        return self._known.of(self.store, self.rule, symbols)

    @property
    def evidence_modes(self) -> tuple[str, ...]:
        """Modes whose predictions count as evidence in this store."""
        return ("replay",) if self.replay else ("live", "catch_up")

    def asked_at(self, session: Session) -> dt.datetime:
        """When the session is asked for: now, in a replay shortly after its close."""
        return session.closes + SETTLING if self.replay else self.clock()

    def folded_at(self, session: Session) -> dt.datetime:
        """When a session's evidence comes into force."""
        return session.closes + SETTLING if self.replay else self.clock()

    def judged_at(self, cutoff: Session) -> dt.datetime:
        """When a verdict comes into force: now; in a replay at the next RETRAIN_HOUR."""
        if not self.replay:
            return self.clock()
        settled = cutoff.closes + SETTLING
        if self.retrain_hour is None:
            return settled
        from zoneinfo import ZoneInfo

        local = settled.astimezone(ZoneInfo(self.calendar.timezone))
        at = local.replace(hour=self.retrain_hour, minute=0, second=0, microsecond=0)
        if at < local:
            at = (at.replace(tzinfo=None) + dt.timedelta(days=1)).replace(tzinfo=local.tzinfo)
        return at.astimezone(UTC)


def deploy(
    settings: Settings,
    open_source: Callable[[SessionCalendar], MarketSource],
    *,
    store: Store | None = None,
    clock: Callable[[], dt.datetime] | None = None,
) -> Deployment:
    """A deployment by the settings.

    Args:
        settings: read once by the caller.
        open_source: opens the source, given the calendar.
        store: instead of the one at `settings.data_url`.
        clock: instead of the system's.
    """
    calendar = SessionCalendar(
        settings.calendar, bar_seconds=settings.bar_seconds, start=settings.history_start
    )
    labels_per_session = max(1, calendar.full_session_bars - settings.horizon_bars)
    made = Deployment(
        store=store or Store(settings.data_url, max(CACHED_BYTES, len(settings.symbols) << 20)),
        calendar=calendar,
        symbols=settings.symbols,
        open_source=lambda: open_source(calendar),
        rule=GateRule(horizon=settings.horizon_bars, labels_per_session=labels_per_session),
        plan=TrainingPlan(half_life_sessions=settings.half_life_sessions),
        horizon=settings.horizon_bars,
        dead_band_bp=settings.dead_band_bp,
        min_samples=settings.min_samples_for_retrain,
        retrain_hour=settings.retrain_hour,
        replay=settings.mode == "replay",
        level_rules=_level_rules(settings),
        dealer_sign=settings.dealer_sign,
        chain_max_age=dt.timedelta(seconds=settings.chain_max_age),
        cache_ttl=dt.timedelta(seconds=settings.cache_ttl),
        signal_rules=SignalRules(
            sides=settings.signal_sides,
            min_strength=settings.min_strength,
            max_strength=settings.max_strength,
            min_confidence=settings.min_confidence,
            cooldown=settings.alert_cooldown,
            horizon=settings.horizon_bars,
        ),
        evidence_prior=settings.evidence_prior,
        cost_bps=settings.cost_bps,
        pooled=settings.model_scope == "pool",
        trainer=_trainer(settings),
        backend=settings.train_backend,
    )
    return replace(made, clock=clock) if clock else made


def _trainer(settings: Settings) -> Trainer | None:
    if settings.train_backend == "local":
        return None
    from hedge_pipeline.learning.dask_training import DaskTrainer

    return DaskTrainer(settings.dask_scheduler)


def _level_rules(settings: Settings) -> LevelRules:
    calls, puts = settings.dealer_signs
    return LevelRules(
        call_sign=calls,
        put_sign=puts,
        rate=settings.risk_free_rate,
        dividend_yield=settings.dividend_yield,
    )


# -- bars ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CollectedSession:
    """Counts of one collection; `failures` are one line per symbol that did not answer.

    `without_days` are those of the daily bars; no other stage needs them to go on.
    """

    bars: int
    new: int
    gaps: int
    failures: dict[str, SourceError]
    without_days: dict[str, SourceError] = field(default_factory=dict)


def collect(deployment: Deployment, label: str) -> CollectedSession:
    """Asks the source for a session and stores bars and gaps. Stored bars are never changed.

    Daily bars up to the session come with it, see `collect_daily_bars`.
    """
    session = deployment.calendar.session(label)
    asked_at = deployment.asked_at(session)
    watched_live = _watched_live(deployment, session)
    failures: dict[str, SourceError] = {}
    new = 0
    for live in (False, True):
        answer = collect_bars(
            deployment.source,
            [symbol for symbol in deployment.symbols if (symbol in watched_live) is live],
            session,
            asked_at,
            nominal_arrival=session.closes <= asked_at and not live,
            ingested_at=None if deployment.replay else deployment.clock(),
        )
        failures.update(answer.failures)
        new += len(store_bars(deployment, label, answer.bars))
    found = _account_for_gaps(deployment, session, new, failures)
    return replace(found, without_days=collect_daily_bars(deployment, label))


def collect_daily_bars(
    deployment: Deployment, label: str, *, since: str | None = None
) -> dict[str, SourceError]:
    """Stores the daily bars that are missing of the last sessions up to this one.

    Only sessions that are over have one; as many are wanted as hedge levels look back. A bar is
    available at the close, but one that came after the symbol was watched in a later session is
    available only now.

    Args:
        deployment: whose source and store.
        label: the last session wanted.
        since: as many as levels look back on from this earlier session are wanted, too.

    Returns:
        The error of each symbol whose daily bars could not be asked for.
    """
    import pandas as pd

    source = deployment.source
    if not isinstance(source, DailySource):
        return {}
    asked_at = deployment.asked_at(deployment.calendar.session(label))
    until = asked_at - source.delay
    before = deployment.calendar.between(None, since or label)[-DAYS_OF_HISTORY:]
    wanted = deployment.calendar.between(before[0], label)
    wanted = tuple(x for x in wanted if deployment.calendar.session(x).closes <= until)
    stored = deployment.store.read(DAILY_BARS, wanted, columns=DAILY_BARS.key)
    known = set(zip(stored["symbol"], stored["session"], strict=True))
    failures: dict[str, SourceError] = {}
    found: list[pd.DataFrame] = []
    for symbol in deployment.symbols:
        missing = [x for x in wanted if (symbol, x) not in known]
        if not missing:
            continue
        try:
            found.append(collect_days(source, symbol, missing, asked_at))
        except NoDataYet:
            continue
        except SourceError as error:
            failures[symbol] = error
    for day, bars in pd.concat(found).groupby("session") if found else ():
        closed = deployment.calendar.session(str(day)).closes + source.delay
        late = bars["symbol"].isin(_watched_after(deployment, str(day)))
        available = late.map({True: pd.Timestamp(asked_at), False: pd.Timestamp(closed)})
        deployment.store.append(DAILY_BARS, str(day), bars.assign(available_at=available))
    return failures


def store_bars(deployment: Deployment, label: str, bars: pd.DataFrame) -> pd.DataFrame:
    """Stores the bars that are not there yet; returns those."""
    if bars.empty:
        return bars
    first = bars["bar_ts"].min().to_pydatetime()
    known = deployment.store.read(RAW_QUOTES, [label], columns=RAW_QUOTES.key, since=first)
    new = without(bars, known, RAW_QUOTES.key)
    # another process may have been faster
    added = deployment.store.append(RAW_QUOTES, label, new, known=known)
    return new if added else new.iloc[:0]


def _watched_live(deployment: Deployment, session: Session) -> frozenset[str]:
    """Symbols with a bar of the session that came later than it could have: somebody polled.

    What is added to such a session afterwards is available only now, and therefore late.
    """
    stored = deployment.store.read(
        RAW_QUOTES, [session.label], columns=("symbol", "bar_ts", "available_at")
    )
    nominal = dt.timedelta(seconds=session.bar_seconds) + deployment.source.delay
    polled = stored["available_at"] > stored["bar_ts"] + nominal
    return frozenset(stored.loc[polled, "symbol"])


def _watched_after(deployment: Deployment, label: str) -> frozenset[str]:
    """Symbols somebody polled in a later session; in a replay nobody does."""
    if deployment.replay:
        return frozenset()
    later = itertools.takewhile(lambda x: x > label, deployment.store.newest_first(RAW_QUOTES))
    watched = (_watched_live(deployment, deployment.calendar.session(x)) for x in later)
    return frozenset().union(*watched)


def _account_for_gaps(
    deployment: Deployment, session: Session, new: int, failures: dict[str, SourceError]
) -> CollectedSession:
    stored = deployment.store.read(RAW_QUOTES, [session.label])
    until = min(session.closes, deployment.asked_at(session) - deployment.source.delay)
    gaps = find_gaps(stored, deployment.symbols, session, until, failures)
    deployment.store.replace(GAPS, session.label, _with_known_causes(deployment, session, gaps))
    return CollectedSession(len(stored), new, len(gaps), failures)


def _with_known_causes(
    deployment: Deployment, session: Session, gaps: pd.DataFrame
) -> pd.DataFrame:
    """A hole the source has confirmed stays one, whatever hinders the source later."""
    import pandas as pd

    earlier = deployment.store.read(GAPS, [session.label])
    key = ["symbol", "bar_ts"]
    confirmed = earlier[earlier["cause"] == "vendor_hole"]
    confirmed = confirmed.merge(gaps[key], on=key)
    return pd.concat([confirmed, gaps]).drop_duplicates(key)


# -- features --------------------------------------------------------------------------------------


def build_features(deployment: Deployment, label: str) -> int:
    """Computes the feature rows of a session from its stored bars; returns their number.

    Raises:
        StageError: the session has no bars.
    """
    frame = features_of(deployment, label)
    return deployment.store.replace(FEATURE_ROWS, label, frame)


def build_missing_features(deployment: Deployment, label: str) -> int:
    """Computes feature rows for the bars of a session that have none yet; returns how many.

    Raises:
        StageError: the session has no bars.
    """
    rows = deployment.store.read(FEATURE_ROWS, [label], columns=FEATURE_ROWS.key)
    stored = _stored_bars(deployment, label)
    missing = without(stored, rows)
    if missing.empty:
        return 0
    frame, _levels = _feature_rows(deployment, label, stored, missing)
    return deployment.store.append(FEATURE_ROWS, label, frame, known=rows)


def features_of(deployment: Deployment, label: str) -> pd.DataFrame:
    """Feature rows of all stored bars of a session.

    Raises:
        StageError: the session has no bars.
    """
    stored = _stored_bars(deployment, label)
    return _feature_rows(deployment, label, stored, stored)[0]


def _stored_bars(deployment: Deployment, label: str) -> pd.DataFrame:
    stored = deployment.store.read(RAW_QUOTES, [label])
    if stored.empty:
        raise NothingStored(f"raw_quotes has no bars of {label}: materialize raw_quotes first")
    return stored


def _feature_rows(
    deployment: Deployment, label: str, stored: pd.DataFrame, bars: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Feature rows of some of the stored bars, and the levels in force at them, in their order."""
    import pandas as pd

    session = deployment.calendar.session(label)
    symbols = tuple(sorted(stored["symbol"].unique()))
    memory = _memory(deployment, session, symbols)
    times = bars["bar_ts"].dt.tz_localize(None).to_numpy().astype("datetime64[us]")
    columns = session.index_of(times)
    first = int(columns.min())
    levels = levels_in_force(deployment, label, bars)
    values = compute_features(
        on_grid(stored, symbols, session),
        memory,
        level_grid(levels, bars, symbols, session),
        bar_seconds=session.bar_seconds,
        session_bars=session.bars,
        first=first,
    )
    rows = bars["symbol"].map({symbol: i for i, symbol in enumerate(symbols)}).to_numpy()
    block = pd.DataFrame(values[rows, columns - first], columns=list(feature_names()))
    keys = bars[["symbol", "bar_ts", "available_at"]].reset_index(drop=True)
    return FEATURE_ROWS.conform(pd.concat([keys, block], axis=1)), levels


def _memory(deployment: Deployment, session: Session, symbols: tuple[str, ...]) -> Previous:
    """What the session before leaves behind; read again if its files have changed."""
    import pandas as pd

    before = deployment.calendar.previous(session.label)
    if before is None:
        return no_previous(len(symbols))
    files = deployment.store.signatures(RAW_QUOTES, before)
    known = deployment.memories.get(before)
    if known is None or known[:2] != (files, symbols):
        earlier = deployment.store.read(RAW_QUOTES, [before])
        # what was filled in after today's open was not known to today's first predictions
        earlier = earlier[earlier["available_at"] < pd.Timestamp(session.opens)]
        grid = on_grid(earlier, symbols, deployment.calendar.session(before))
        memory = remember(grid, int(PREVIOUS_SESSION_SHARE * grid.close.shape[1]))
        deployment.memories.clear()
        deployment.memories[before] = known = files, symbols, memory
    return known[2]


def levels_in_force(deployment: Deployment, label: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Hedge levels that were in force at bars of a session; see `levels/joining.py`.

    Args:
        deployment: where the levels are.
        label: the session.
        rows: with symbol and bar_ts.
    """
    levels = deployment.store.read(HEDGE_LEVELS, [label])
    length = dt.timedelta(seconds=deployment.calendar.bar_seconds)
    ended = rows[["symbol"]].assign(bar_end=rows["bar_ts"] + length)
    return in_force(levels, ended, deployment.chain_max_age)


# -- predictions -----------------------------------------------------------------------------------


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
        StageError: the session has no feature rows.
    """
    return len(log_served(deployment, label, ROLES)) + log_companions(deployment, label)


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
    frame, levels = _feature_rows(deployment, label, _stored_bars(deployment, label), bars)
    deployment.store.append(FEATURE_ROWS, label, frame, known=frame.iloc[:0])
    session = deployment.calendar.session(label)
    rows = _decided(deployment, session, frame.assign(price=bars["close"]))
    asked = Asked(session, rows, levels, _signalling(deployment, session, rows))
    return asked, _log(deployment, asked, ("served",), PREDICTION_LOG.empty())


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
        StageError: the session has no feature rows.
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


# -- outcomes --------------------------------------------------------------------------------------


def mature_outcomes(deployment: Deployment, label: str, since: dt.datetime | None = None) -> int:
    """Stores the outcomes of a session that are known by now; returns the new rows.

    Args:
        deployment: whose store.
        label: the session.
        since: only of bars that begin then or later.

    Raises:
        StageError: the session has no bars.
    """
    stored = deployment.store.read(RAW_QUOTES, [label], since=since)
    if stored.empty:
        raise NothingStored(f"raw_quotes has no bars of {label}: materialize raw_quotes first")
    session = deployment.calendar.session(label)
    known = labels.mature(
        stored,
        session,
        horizon=deployment.horizon,
        dead_band_bp=deployment.dead_band_bp,
        now=deployment.asked_at(session),
        grace=_grace(deployment),
    )
    return deployment.store.append(OUTCOMES, label, known)


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
        if _is_settled(deployment, symbol, label):
            found.append(label)
    return tuple(reversed(found))


def _is_settled(deployment: Deployment, symbol: str, label: str) -> bool:
    if (symbol, label) in deployment.settled:
        return True
    session = deployment.calendar.session(label)
    if deployment.asked_at(session) < session.closes + _grace(deployment):
        return False
    columns = ("symbol", "bar_ts")
    bars = deployment.store.read(RAW_QUOTES, [label], symbols=[symbol], columns=columns)
    outcomes = deployment.store.read(
        OUTCOMES, [label], symbols=[symbol], columns=(*columns, "horizon_bars")
    )
    outcomes = outcomes[outcomes["horizon_bars"] == deployment.horizon]
    settled = len(bars) > 0 and len(outcomes) == len(bars)
    if settled:
        deployment.settled.add((symbol, label))
    return settled


def _grace(deployment: Deployment) -> dt.timedelta:
    """How long after the close the last bars may still be on their way."""
    return max(labels.GRACE, deployment.source.delay)


# -- the evidence ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fold:
    """One folded session: the entry for the log, and what changed."""

    session: str
    state: GateState
    event: Event | None
    entry: dict[str, object]


def pending_folds(deployment: Deployment, symbol: str) -> list[Fold]:
    """Folds of the settled sessions that are not in the promotion log yet; writes nothing."""
    log = deployment.ledger(symbol)
    state = log.state
    folds = []
    for label in settled_sessions(deployment, symbol, after=state.last_session):
        session = deployment.calendar.session(label)
        evidence = evidence_of(deployment, symbol, label)
        state, event = gate.fold(state, evidence, deployment.rule)
        entry = ledger.fold_entry(
            symbol, state, event, evidence, deployment.rule, deployment.folded_at(session)
        )
        folds.append(Fold(label, state, event, entry))
    return folds


def evidence_of(deployment: Deployment, symbol: str, label: str) -> SessionEvidence:
    """What a settled session tells the gate."""
    return ledger.session_evidence(
        deployment.store,
        symbol,
        deployment.calendar.session(label),
        deployment.horizon,
        deployment.evidence_modes,
        deployment.ledger(symbol),
    )


def fold_evidence(deployment: Deployment, symbol: str) -> list[Fold]:
    """Folds the settled sessions and appends them to the promotion log."""
    return fold_all(deployment, [symbol])[symbol]


def fold_all(deployment: Deployment, symbols: Sequence[str]) -> dict[str, list[Fold]]:
    """The same for several symbols: a session of all of them is one file."""
    deployment.ledgers(symbols)
    folds = {symbol: pending_folds(deployment, symbol) for symbol in symbols}
    for label in sorted({fold.session for own in folds.values() for fold in own}):
        entries = [fold.entry for own in folds.values() for fold in own if fold.session == label]
        append_entries(deployment, label, entries)
    return folds


def append_entry(deployment: Deployment, session: str, entry: dict[str, object]) -> bool:
    """Appends to the promotion log; whether it did, False if there is such an entry already."""
    return append_entries(deployment, session, [entry]) == 1


def append_entries(
    deployment: Deployment, session: str, entries: Sequence[dict[str, object]]
) -> int:
    """Appends to the promotion log what is not there; returns how many entries that were."""
    import pandas as pd

    frame = pd.DataFrame(entries)
    frame["decided_at"] = pd.to_datetime(frame["decided_at"], utc=True)
    return deployment.store.append(PROMOTIONS, session, frame)


# -- training --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """The newest version after a training; `new` is False if there was nothing new to learn."""

    card: ModelCard
    new: bool


def train_candidate(deployment: Deployment, symbol: str) -> Candidate:
    """Fits a candidate on the matured outcomes of the window and puts it on the shelf.

    The window are the last `window_sessions` settled sessions, not before the session from which
    on the evidence trusts the past. The file is loaded back through the serving path and must pass
    the guards; the result is part of its description. Equal data give no new version. Parameters
    come from the newest search before the cutoff, see `plan_of`.

    While models are pooled the rows are those of all symbols, each in its own window, and the
    candidate is a version of every symbol. The first symbol that asks trains it; for the others it
    is there already, and a version that waits for the symbol's verdict comes before a newer one.

    Raises:
        StageError: too few sessions, one class only, or the trainer failed.
    """
    if not deployment.pooled:
        state = _state(deployment, symbol)
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
            data.features[data.recent][:: max(_EXPLAIN_EVERY, len(trained) // _EXPLAINED_ROWS)],
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
    line, shelf = card.symbol, deployment.shelf
    try:
        served = load_model(card, shelf.written(line, card.version, card.sha256))
    except ModelError as error:
        return f"file: {error}"
    recent = data.sessions[-deployment.plan.least_sessions :]
    members = _members({label: wanted[label] for label in recent})
    rows = deployment.store.read(FEATURE_ROWS, recent, symbols=members)
    owners, times = rows["symbol"].to_numpy(), rows["bar_ts"].dt.tz_localize(None).to_numpy()
    used = np.zeros(len(rows), dtype=np.bool_)
    parts = [_labelled(deployment, label, wanted[label]) for label in recent]
    for symbol in members:
        labelled = [part[symbol].known_by(known_by) for part in parts if symbol in part]
        known = np.concatenate([session.bar_ts for session in labelled])
        used |= (owners == symbol) & np.isin(times, known)
    if deployment.pooled:
        cards = [shelf.card(line, x) for x in shelf.versions(line)[-6:]]
        earlier = [x for x in cards if x.guard_failure is None][-5:]
    else:
        cards = [shelf.card(line, x) for x in deployment.ledger(line).accepted[-5:]]
        earlier = [x for x in cards if not x.members]
    plan = TrainingPlan(**card.plan)
    # what other parameters said is not what is usual of these
    spreads = [x.spread for x in earlier if TrainingPlan(**x.plan) == plan]
    logged = margins_of(rows[used], served)
    base_rates = data.base_rates(data.recent) if climatology is None else climatology
    return guard(card, logged, trained, data, base_rates, spreads)


def _labelled(
    deployment: Deployment, label: str, symbols: Sequence[str]
) -> dict[str, LabelledSession]:
    if deployment.pooled:
        return deployment.labelled_pool.read(label, symbols)
    return {symbol: deployment.labelled.read(symbol, label) for symbol in symbols}


def _state(deployment: Deployment, symbol: str) -> GateState:
    """The evidence with every settled session, folded yet or not."""
    folds = pending_folds(deployment, symbol)
    return folds[-1].state if folds else deployment.ledger(symbol).state


def pool_window(deployment: Deployment) -> dict[str, tuple[str, ...]]:
    """Sessions the pool would be trained on now with their symbols, ascending.

    These are the last `window_sessions` that are settled for any symbol; a symbol is in those that
    are settled for it, from the one on from which its evidence trusts the past.
    """
    since = {symbol: _state(deployment, symbol).train_from for symbol in deployment.symbols}
    found: dict[str, tuple[str, ...]] = {}
    for label in deployment.store.newest_first(OUTCOMES):
        if len(found) == deployment.plan.window_sessions:
            break
        settled = settled_symbols(deployment, label)
        if inside := tuple(x for x in settled if label >= (since[x] or "")):
            found[label] = inside
    return dict(reversed(found.items()))


def settled_symbols(deployment: Deployment, label: str) -> tuple[str, ...]:
    """Symbols for which the session is settled, see `settled_sessions`; each table is read once."""
    known = deployment.settled
    session = deployment.calendar.session(label)
    if deployment.asked_at(session) < session.closes + _grace(deployment):
        return ()
    if any((symbol, label) not in known for symbol in deployment.symbols):
        bars = deployment.store.read(RAW_QUOTES, [label], columns=("symbol",))
        outcomes = deployment.store.read(OUTCOMES, [label], columns=("symbol", "horizon_bars"))
        outcomes = outcomes[outcomes["horizon_bars"] == deployment.horizon]
        matured = outcomes["symbol"].value_counts()
        counted = bars["symbol"].value_counts()
        known.update(
            (str(symbol), label) for symbol, n in counted.items() if matured.get(symbol, 0) == n
        )
    return tuple(symbol for symbol in sorted(deployment.symbols) if (symbol, label) in known)


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


# -- the search for hyper-parameters ---------------------------------------------------------------


@dataclass(frozen=True)
class Searched:
    """The newest search; `new` is False if it had asked the same already."""

    record: SearchRecord
    new: bool

    def in_words(self) -> str:
        """One line."""
        record = self.record
        again = "" if self.new else " (it had asked the same already)"
        return (
            f"{record.symbol}: search {record.number} on {record.sessions} sessions to "
            f"{record.cutoff}{again}: {record.reason}"
        )


def search_hyperparameters(
    deployment: Deployment,
    symbol: str,
    *,
    trials: int = search.TRIALS,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Searched:
    """Searches parameters on the sessions a training would use now, and stores what came of it.

    Later trainings use the find, see `plan_of`; what was trained, predicted and proven stays as it
    is. The same rows, trials and seed as those of the newest search give no new one.

    Args:
        deployment: whose store and plans.
        symbol: whose parameters.
        trials: how many, the defaults included.
        seed: of the proposals.
        advance: called after every trial.

    Raises:
        StageError: too few sessions, one class only, or Optuna is not installed.
    """
    try:
        search.load_optuna()
    except search.SearchUnavailable as error:
        raise StageError(str(error)) from None
    if deployment.pooled:
        raise StageError("HEDGE_MODEL_SCOPE=pool: hyper-parameters are searched by symbol only")
    plan, least = deployment.plan, deployment.search_plan.least_sessions
    sessions = training_window(deployment, symbol, _state(deployment, symbol))
    if len(sessions) < least:
        raise StageError(
            f"{symbol}: {len(sessions)} of the {least} sessions a search needs have outcomes"
        )
    known_by = deployment.asked_at(deployment.calendar.session(sessions[-1]))
    data = assemble(deployment.labelled, symbol, sessions, plan, deployment.horizon, known_by)
    newest = deployment.searches.newest(symbol)
    record = SearchRecord(
        symbol=symbol,
        number=newest.number + 1 if newest else 1,
        cutoff=sessions[-1],
        first_session=sessions[0],
        sessions=len(sessions),
        created_at=known_by.astimezone(UTC).isoformat(),
        horizon_bars=deployment.horizon,
        schema_hash=FEATURE_ROWS.schema_hash,
        data_hash=data.data_hash,
        trials=trials,
        seed=seed,
        defaults=asdict(plan),
    )
    if newest and newest.asks_the_same_as(record):
        return Searched(newest, new=False)
    try:
        course = _search_course(deployment, symbol, sessions, known_by)
        found = search.search(
            course, plan, deployment.rule, trials=trials, seed=seed, advance=advance
        )
    except ValueError as error:
        raise StageError(f"{symbol}: {error}") from error
    record = record.with_found(found)
    if not deployment.searches.put(record):
        raise StageError(f"{symbol}: another search has number {record.number} already")
    return Searched(record, new=True)


def _search_course(
    deployment: Deployment, symbol: str, sessions: Sequence[str], known_by: dt.datetime
) -> Course:
    divided = deployment.search_plan
    return course_of(
        deployment.labelled,
        symbol,
        cut(sessions, least=divided.least, block=divided.block),
        deployment.plan,
        deployment.rule,
        known_at=lambda label: deployment.calendar.session(label).closes + SETTLING,
        known_by=known_by,
    )


# -- when to train ---------------------------------------------------------------------------------


def leaking_features(deployment: Deployment, symbol: str) -> dict[str, float]:
    """Features that know the outcome on their own in the newest sessions; see `leaks`."""
    sessions = settled_sessions(deployment, symbol, last=deployment.plan.least_sessions)
    parts = [deployment.labelled.read(symbol, label) for label in sessions]
    if not parts:
        return {}
    features = np.concatenate([part.features for part in parts])
    return leaking(features, np.concatenate([part.labels for part in parts]), feature_names())


def leaks_in_words(deployment: Deployment, symbol: str) -> str:
    """The features that know the outcome on their own, in one line; empty if there is none."""
    return "; ".join(
        f"{symbol}: {name} alone is right with an area under the curve of {area:.2f}"
        for name, area in leaking_features(deployment, symbol).items()
    )


def retraining_decision(
    deployment: Deployment,
    symbol: str,
    *,
    hour: int,
    in_flight: bool = False,
    min_samples: int | None = None,
) -> Decision:
    """Whether the symbol should be retrained, from the store alone.

    Args:
        deployment: where to look.
        symbol: whose model.
        hour: exchange-local hour that counts now.
        in_flight: a training of the symbol runs or waits.
        min_samples: instead of MIN_SAMPLES_FOR_RETRAIN.
    """
    newest = deployment.shelf.newest(symbol) if deployment.pooled and not in_flight else None
    if newest and newest.version not in deployment.ledger(symbol).judged:
        return Decision(True, f"{symbol}: version {newest.version} of the pool waits for a verdict")
    new = new_samples(deployment, symbol)
    needed = deployment.min_samples if min_samples is None else min_samples
    found = feature_drift(deployment, symbol) if 0 < new < needed else None
    return decide(
        RetrainingFacts(
            symbol=symbol,
            new_samples=new,
            needed_samples=needed,
            drift=found.in_words() if found is not None and found.alarm else None,
            sessions=len(settled_sessions(deployment, symbol, last=deployment.plan.least_sessions)),
            needed_sessions=deployment.plan.least_sessions,
            hour=hour,
            retrain_hour=deployment.retrain_hour,
            in_flight=in_flight,
        )
    )


def feature_drift(deployment: Deployment, symbol: str) -> Drift:
    """Whether the features of the last settled sessions differ from those before; information."""
    names = list(feature_names())
    sessions = settled_sessions(deployment, symbol, last=drift.RECENT + drift.MOST_REFERENCE)
    if len(sessions) < drift.RECENT + drift.LEAST_REFERENCE:
        return drift.feature_drift(np.empty((0, 2 * len(names))), names)
    summaries = []
    for label in sessions:
        rows = deployment.store.read(
            FEATURE_ROWS, [label], symbols=[symbol], columns=("symbol", *names)
        )
        summaries.append(drift.session_summary(rows[names].to_numpy(dtype=np.float32)))
    return drift.feature_drift(np.array(summaries), names)


def performance_drift(deployment: Deployment, symbol: str) -> Drift:
    """Whether what was served has become worse against the base rate; information."""
    sums = deployment.store.read(PERFORMANCE, symbols=[symbol])
    sums = sums[(sums["role"] == "served") & sums["mode"].isin(deployment.evidence_modes)]
    totals = sums.groupby("session", sort=True)[["labels", "log_loss", "base_log_loss"]].sum()
    labels, loss, base = totals[totals["labels"] > 0].to_numpy(dtype=np.float64).T
    return drift.performance_drift((base - loss) / labels)


def new_samples(deployment: Deployment, symbol: str) -> int:
    """Up or down outcomes of settled sessions since the newest version's cutoff."""
    newest = deployment.shelf.newest(symbol)
    since = settled_sessions(deployment, symbol, after=newest.cutoff if newest else None)
    outcomes = deployment.store.read(
        OUTCOMES, since, symbols=[symbol], columns=("symbol", "horizon_bars", "status")
    )
    outcomes = outcomes[outcomes["horizon_bars"] == deployment.horizon]
    return int(outcomes["status"].isin(["up", "down"]).sum())


# -- verdicts and scores ---------------------------------------------------------------------------


def judge(deployment: Deployment, symbol: str) -> list[dict[str, object]]:
    """Gives every version without one its verdict and appends it to the promotion log.

    Returns the verdicts given here; one that another process gave meanwhile is not among them.
    """
    # whoever comes second finds the verdict given; there is one by version, for ever
    return [
        entry
        for entry in pending_verdicts(deployment, symbol)
        if append_entry(deployment, str(entry["session"]), entry)
    ]


def pending_verdicts(deployment: Deployment, symbol: str) -> list[dict[str, object]]:
    """Verdicts on the versions that have none yet; writes nothing."""
    log = deployment.ledger(symbol)
    state, rule = log.state, deployment.rule
    entries = []
    for version in sorted(set(deployment.shelf.versions(symbol)) - log.judged):
        card = deployment.shelf.card(symbol, version)
        decided_at = deployment.judged_at(deployment.calendar.session(card.cutoff))
        entries.append(ledger.verdict_entry(card, state, rule, decided_at))
    return entries


def score_session(deployment: Deployment, label: str, symbols: Sequence[str]) -> pd.DataFrame:
    """Scores the predictions of a settled session and stores the sums; returns them."""
    log = deployment.store.read(PREDICTION_LOG, [label], symbols=list(symbols))
    outcomes = deployment.store.read(OUTCOMES, [label], symbols=list(symbols))
    outcomes = outcomes[outcomes["horizon_bars"] == deployment.horizon]
    sums = scoring.performance(log, outcomes, label)
    deployment.store.append(PERFORMANCE, label, sums)
    _score_levels(deployment, label, log, outcomes)
    return sums


def _score_levels(
    deployment: Deployment, label: str, log: pd.DataFrame, outcomes: pd.DataFrame
) -> None:
    """What the price did at the levels, and what became of the signals."""
    rows = log.merge(
        outcomes[["symbol", "bar_ts", "actual_direction"]], on=["symbol", "bar_ts"], how="left"
    )
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


REPORTED_SESSIONS = 250


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


# -- closing a session -----------------------------------------------------------------------------


@dataclass(frozen=True)
class ClosedSession:
    """What closing a session brought; counts of new rows, and the folds by symbol."""

    label: str
    bars: int
    gaps: int
    predictions: int
    outcomes: int
    folds: dict[str, list[Fold]]


PATIENCE = dt.timedelta(hours=20)
PATIENCE_FOR_DAYS = dt.timedelta(hours=2)
CLOSED = "live/closed.json"


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
    _mark_closed(deployment, label)
    return ClosedSession(label, found.new, found.gaps, predictions, outcomes, folds)


def collect_session_chains(deployment: Deployment, label: str) -> chains.CollectedChains:
    """Asks for the option chains the source still has of a session; no failure costs anything else.

    What is added to a session that somebody polled is available only now, as with bars.
    """
    watched = _watched_live(deployment, deployment.calendar.session(label))
    return chains.collect_chains(deployment, label, watched_live=watched)


def build_all_missing_levels(deployment: Deployment, label: str) -> int:
    """Levels of the session's snapshots that have none yet, of every symbol; returns how many."""
    return sum(
        chains.build_missing_levels(deployment, label, symbol) for symbol in deployment.symbols
    )


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


def _mark_closed(deployment: Deployment, label: str) -> None:
    through = max(label, _closed_through(deployment) or label)
    deployment.store.write_bytes(CLOSED, json.dumps({"through": through}).encode())


def _closed_through(deployment: Deployment) -> str | None:
    try:
        return str(json.loads(deployment.store.read_bytes(CLOSED))["through"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


# -- a first start ---------------------------------------------------------------------------------


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
        _mark_closed(deployment, sessions[-1])
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
    return f"version {card.version} on {card.rows} rows, {entries[-1]['event']}"
