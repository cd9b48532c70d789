"""The whole loop over history, in order of arrival, by the same stages as live.

Each session: collect -> levels -> features -> predict -> outcomes -> fold -> (retrain -> verdict)
-> score.

A replay that was interrupted goes on where it stopped; nothing it wrote is changed by going on, or
by replaying further.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from hedge_pipeline import stages
from hedge_pipeline.learning import scoring
from hedge_pipeline.learning.training import ModelCard
from hedge_pipeline.market.sources import NoDataYet, WindowRefused
from hedge_pipeline.market.tables import (
    FEATURE_ROWS,
    GAPS,
    OUTCOMES,
    PERFORMANCE,
    PREDICTION_LOG,
    PROMOTIONS,
    RAW_QUOTES,
)
from hedge_pipeline.stages import Deployment, StageError

if TYPE_CHECKING:
    import pandas as pd

MARKER = "replay.json"
_NIGHTS_AT_ONCE = 2
_PUBLISH_EVERY = 5
_EXPECTED = (NoDataYet, WindowRefused)


class Registry(Protocol):
    """Where versions and their scores are shown; see `resources/publishing.py`."""

    def publish(self, symbol: str) -> None:
        """Brings what is shown of the symbol up to date with the store."""
        ...

    def draw(self, symbol: str) -> None:
        """The same with the plots of the symbol's newest version."""
        ...

    def report(self, symbol: str) -> None:
        """Shows what became of the symbol's signals."""
        ...

    def finish(self) -> None:
        """Waits for what was asked for."""
        ...

    def memory_mb(self) -> float:
        """Memory of the registry's own process that is not shared with this one."""
        ...


@dataclass
class Stopwatch:
    """Seconds of the main thread by activity, and the most memory of the registry's process, MB."""

    seconds: dict[str, float] = field(default_factory=dict)
    registry_mb: float = 0.0

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to `name`."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - begun
            self.seconds[name] = self.seconds.get(name, 0.0) + spent


@dataclass(frozen=True)
class Night:
    """What happened after a session, for whoever watches the replay.

    Attributes:
        session: label of the session.
        symbol: ticker symbol.
        fold: entry of the evidence fold, None if the session had nothing to fold.
        verdicts: entries of the verdicts given.
        card: the model trained, None if none was.
        scores: rows of `performance` of the session.
    """

    session: str
    symbol: str
    fold: stages.Fold | None
    verdicts: Sequence[dict[str, object]]
    card: ModelCard | None
    scores: pd.DataFrame


def replay(
    deployment: Deployment,
    sessions: Sequence[str],
    *,
    registry: Registry | None = None,
    train: bool = True,
    watch: Callable[[Night], None] = lambda night: None,
    advance: Callable[[str], None] = lambda session: None,
) -> Stopwatch:
    """Runs the loop over the sessions.

    Args:
        deployment: with `replay` set.
        sessions: ascending labels.
        registry: shows versions and scores; None = only the store.
        train: retrain when it is due; otherwise the models that are there predict throughout.
        watch: called for every symbol after every session that was not done before.
        advance: called when a session is done.

    Returns:
        Where the time went.

    Raises:
        SourceError: a symbol no source knows, or a broken file; sessions without data are gaps.
        StageError: a training or a stage cannot do its work.
        StoreError: the store cannot be read or written.
        RuntimeError: the registry's process has ended.
    """
    stopwatch = Stopwatch()
    resumed = deployment.store.sessions(PERFORMANCE)
    with _quick_turns():
        for label in sessions:
            # the last session may have been interrupted during its night: it is run again
            if not resumed or label >= resumed[-1]:
                for night in _session(deployment, label, registry, stopwatch, train):
                    watch(night)
            advance(label)
        if registry is not None:
            with stopwatch.measure("registry"):
                for symbol in deployment.symbols:
                    registry.publish(symbol)
                    registry.draw(symbol)
                    registry.report(symbol)
                registry.finish()
                stopwatch.registry_mb = max(stopwatch.registry_mb, registry.memory_mb())
    return stopwatch


@contextmanager
def _quick_turns() -> Iterator[None]:
    """Lets threads take turns ten times as often as usual.

    Every file operation gives the interpreter's lock away; with the usual 5 ms the thread would
    wait so long for it each time while another computes (measured: a fifth of the whole replay).
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(usual / 10)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def _session(
    deployment: Deployment,
    label: str,
    registry: Registry | None,
    stopwatch: Stopwatch,
    train: bool,
) -> list[Night]:
    with stopwatch.measure("collect"):
        collected = stages.collect(deployment, label)
    for error in collected.failures.values():
        if not isinstance(error, _EXPECTED):
            raise error
    if collected.bars == 0:
        return []
    with stopwatch.measure("levels"):
        stages.collect_session_chains(deployment, label)
        stages.build_levels(deployment, label)
    with stopwatch.measure("features"):
        asked = stages.ask_session(deployment, label)
    with stopwatch.measure("predict"):
        stages.log_asked(deployment, asked)
    with stopwatch.measure("outcomes"):
        stages.mature_outcomes(deployment, label)
    with stopwatch.measure("fold"):
        folds = stages.fold_all(deployment, deployment.symbols)
    if train and deployment.pooled:
        with stopwatch.measure("train"):
            stages.train_pool(deployment, hour=deployment.retrain_hour or 0)
    # symbols share nothing at night; XGBoost works outside the interpreter's lock
    with stopwatch.measure("train"), ThreadPoolExecutor(_NIGHTS_AT_ONCE) as pool:
        cards = dict(
            zip(
                deployment.symbols,
                pool.map(lambda symbol: _train_if_due(deployment, symbol), deployment.symbols)
                if train
                else [None] * len(deployment.symbols),
                strict=True,
            )
        )
    with stopwatch.measure("judge"):
        verdicts = _judge(deployment)
    with stopwatch.measure("score"):
        scores = stages.score_session(deployment, label, deployment.symbols)
    newest = {
        symbol: own[-1] if own and own[-1].session == label else None
        for symbol, own in folds.items()
    }
    if registry is not None:
        with stopwatch.measure("registry"):
            _publish(deployment, label, registry, newest)
            stopwatch.registry_mb = max(stopwatch.registry_mb, registry.memory_mb())
    return [
        Night(
            label,
            symbol,
            newest[symbol],
            verdicts[symbol],
            cards[symbol],
            scores[scores["symbol"] == symbol],
        )
        for symbol in deployment.symbols
    ]


def _publish(
    deployment: Deployment,
    label: str,
    registry: Registry,
    folds: dict[str, stages.Fold | None],
) -> None:
    """Publishes now and then, and with plots whenever the state of a symbol changed."""
    due = deployment.calendar.ordinal(label) % _PUBLISH_EVERY == 0
    for symbol, fold in folds.items():
        changed = fold is not None and fold.event is not None
        if due or changed:
            registry.publish(symbol)
        if changed:
            registry.draw(symbol)


def _train_if_due(deployment: Deployment, symbol: str) -> ModelCard | None:
    decision = stages.retraining_decision(deployment, symbol, hour=deployment.retrain_hour or 0)
    return stages.train_candidate(deployment, symbol).card if decision.retrain else None


def _judge(deployment: Deployment) -> dict[str, list[dict[str, object]]]:
    """Verdicts by symbol; those of a session are one file, for nobody else judges here."""
    deployment.ledgers(deployment.symbols)
    found = {symbol: stages.pending_verdicts(deployment, symbol) for symbol in deployment.symbols}
    entries = [entry for own in found.values() for entry in own]
    for label in sorted({str(entry["session"]) for entry in entries}):
        own = [entry for entry in entries if entry["session"] == label]
        stages.append_entries(deployment, label, own)
    return found


def check_symbols(deployment: Deployment, label: str) -> None:
    """Asks the source for a session of every symbol, so that a typo leaves nothing behind.

    Raises:
        SourceError: the source does not know a symbol, or cannot be read.
    """
    session = deployment.calendar.session(label)
    for symbol in deployment.symbols:
        with suppress(*_EXPECTED):
            deployment.source.bars(symbol, session, deployment.asked_at(session))


def check_mode(deployment: Deployment) -> None:
    """Refuses to work live on the store of a replay.

    Raises:
        StageError: the store is a replay's and the deployment is not.
    """
    if not deployment.replay and MARKER in deployment.store.names(""):
        raise StageError(f"{deployment.store.url} holds a replay: set HEDGE_MODE=replay")


def claim(deployment: Deployment, description: dict[str, Any]) -> None:
    """Marks the store as this replay's, or refuses one that belongs to something else.

    Raises:
        StageError: the store holds another replay or live data.
        StoreError: it cannot be written.
    """
    deployment.store.check_writable()
    text = json.dumps(description, indent=1, sort_keys=True).encode()
    try:
        present = deployment.store.read_bytes(MARKER)
    except FileNotFoundError:
        if deployment.store.sessions(RAW_QUOTES):
            raise StageError(
                f"{deployment.store.url} holds live data; give the replay a folder of its own"
            ) from None
        deployment.store.write_bytes(MARKER, text)
        return
    earlier = json.loads(present)
    for name, value in description.items():
        if earlier.get(name) != json.loads(json.dumps(value)):
            raise StageError(
                f"{deployment.store.url} holds another replay: {name} {earlier.get(name)!r}, "
                f"not {value!r}; choose another --out"
            )


def summarize(deployment: Deployment, stopwatch: Stopwatch, seconds: float) -> dict[str, Any]:
    """The content of `summary.json`, from the tables alone but for the times."""
    store, horizon = deployment.store, deployment.horizon
    bars = store.read(RAW_QUOTES, columns=("symbol", "bar_ts"))
    gaps = store.read(GAPS, columns=("symbol", "bar_ts"))
    log = store.read(PREDICTION_LOG, columns=("symbol", "role", "prediction"))
    served = log[log["role"] == "served"]
    outcomes = store.read(OUTCOMES, columns=("symbol", "status"))
    promotions = store.read(PROMOTIONS)
    scores = store.read(PERFORMANCE)
    scores = scores[scores["role"] == "served"]
    parts = {
        symbol: _part(
            scores[scores["symbol"] == symbol],
            promotions[promotions["symbol"] == symbol],
            bars=int((bars["symbol"] == symbol).sum()),
            gaps=int((gaps["symbol"] == symbol).sum()),
            served=served[served["symbol"] == symbol],
            outcomes=outcomes[outcomes["symbol"] == symbol],
            horizon=horizon,
        )
        for symbol in deployment.symbols
    }
    whole = _part(
        scores,
        promotions,
        bars=len(bars),
        gaps=len(gaps),
        served=served,
        outcomes=outcomes,
        horizon=horizon,
    )
    size = store.size(FEATURE_ROWS) + store.size(PREDICTION_LOG)
    return {
        "sessions": len(store.sessions(RAW_QUOTES)),
        **whole,
        "skill": {symbol: _skill(deployment, symbol) for symbol in deployment.symbols},
        "per_symbol": parts,
        "per_version": _per_version(scores, horizon),
        "seconds": round(seconds, 3),
        "seconds_training": round(stopwatch.seconds.get("train", 0.0), 3),
        "peak_rss_mb": peak_rss_mb(stopwatch),
        "bytes_per_1000_predictions": round(1000 * size / max(1, len(served))),
    }


def peak_rss_mb(stopwatch: Stopwatch) -> float:
    """Most memory of this process, and of the registry's beside it what they do not share."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return round(own + stopwatch.registry_mb, 1)


def _part(
    scores: pd.DataFrame,
    promotions: pd.DataFrame,
    *,
    bars: int,
    gaps: int,
    served: pd.DataFrame,
    outcomes: pd.DataFrame,
    horizon: int,
) -> dict[str, Any]:
    score = scoring.score(scores, horizon)
    statuses = ("up", "down", "flat", "unlabelable")
    verdicts = promotions[promotions["kind"] == "verdict"]
    return {
        "bars": bars,
        "gaps": gaps,
        "predictions": int(served["prediction"].notna().sum()),
        "abstentions": int(served["prediction"].isna().sum()),
        "outcomes": {x: int((outcomes["status"] == x).sum()) for x in statuses},
        "retrains": len(verdicts),
        "promotions": int((verdicts["event"] == "promote").sum()),
        "accuracy": score.accuracy(),
        **score.losses(),
    }


def _skill(deployment: Deployment, symbol: str) -> dict[str, Any]:
    ledger = deployment.ledger(symbol)
    folds = ledger.entries[ledger.entries["kind"] == "fold"]
    state = ledger.state
    changes = folds[folds["event"].notna()]
    return {
        "state": state.status.value,
        "log_evidence": state.log_evidence,
        "log_peak": float(max([0.0, *folds["evidence"]])),
        "trust": float(folds["trust"].iloc[-1]) if len(folds) else None,
        "events": [
            {"session": row["session"], "event": row["event"]} for _, row in changes.iterrows()
        ],
    }


def _per_version(scores: pd.DataFrame, horizon: int) -> list[dict[str, Any]]:
    return [
        {
            "symbol": symbol,
            "version": int(str(version)),
            "sessions": int(rows["session"].nunique()),
            "accuracy": scoring.score(rows, horizon, draws=200).accuracy(),
            **scoring.score(rows, horizon, draws=1).losses(),
        }
        for (symbol, version), rows in scores[scores["model_version"] > 0].groupby(
            ["symbol", "model_version"], sort=True
        )
    ]
