"""What every stage is told: where the tables are, what is watched, and by which rules."""

from __future__ import annotations

import datetime as dt
import threading
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from hedge_pipeline.learning.dataset import LabelledSessions
from hedge_pipeline.learning.gate import GateRule
from hedge_pipeline.learning.ledger import KnownLedgers
from hedge_pipeline.learning.pooling import PooledSessions
from hedge_pipeline.learning.search import SearchPlan, SearchShelf
from hedge_pipeline.learning.shelf import ModelShelf
from hedge_pipeline.learning.training import TrainingPlan
from hedge_pipeline.levels.confidence import PRIOR
from hedge_pipeline.levels.rules import LevelRules
from hedge_pipeline.levels.signals import SignalRules
from hedge_pipeline.market.calendar import UTC, SessionCalendar
from hedge_pipeline.market.tables import PERFORMANCE
from hedge_pipeline.store import CACHED_BYTES, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    import pandas as pd

    from hedge_pipeline.learning.ledger import Ledger
    from hedge_pipeline.learning.training import Trainer
    from hedge_pipeline.levels.confidence import LevelEvidence
    from hedge_pipeline.market.calendar import Session
    from hedge_pipeline.market.features import Previous, Totals
    from hedge_pipeline.market.sources import MarketSource
    from hedge_pipeline.settings import Settings
    from hedge_pipeline.stages.levels import ChainsDone

# a session is asked for, folded and closed this long after its end
SETTLING = dt.timedelta(minutes=15)


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
        horizon: label horizon, bars.
        dead_band_bp: absolute returns up to this are flat, basis points.
        min_samples: new outcomes that ask for a training.
        retrain_hour: exchange-local hour of trainings; None = any.
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
        totals: what the first bars of the session asked for last add up to, how many bars of which
            symbols they are, and in which store.
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
    chains_done: dict[str, ChainsDone] = field(default_factory=dict, compare=False, repr=False)
    memories: dict[str, tuple[tuple[Any, ...], tuple[str, ...], Previous]] = field(
        default_factory=dict, compare=False, repr=False
    )
    totals: dict[str, tuple[Store, tuple[str, ...], int, Totals]] = field(
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

    def scores(self, symbol: str, sessions: Sequence[str] | None = None) -> pd.DataFrame:
        """Rows of `performance` of the symbol that count as evidence, of every role.

        Args:
            symbol: ticker symbol.
            sessions: only of these; None = of all.
        """
        only = {"mode": self.evidence_modes}
        return self.store.read(PERFORMANCE, sessions, symbols=[symbol], only=only)

    def asked_at(self, session: Session) -> dt.datetime:
        """When the session is asked for and folded: now, in a replay shortly after its close."""
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


def open_store(settings: Settings) -> Store:
    """The store the settings name; what is read last of many symbols needs more memory."""
    return Store(settings.data_url, max(CACHED_BYTES, len(settings.symbols) << 20))


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
        store=store or open_store(settings),
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
