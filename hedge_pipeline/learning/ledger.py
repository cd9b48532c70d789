"""The promotion log as the learning loop reads it: the evidence state, and what was in force when.

The log is append-only. Its newest fold holds the whole state; everything else (champion, newest
model, trust, base rate at any moment) is read off the entries and never stored twice. An operator
may pin a version: it is served then, and the newest one predicts beside it, so that the tested
stream never breaks. Of folds, versions and overrides the one with the highest session or number is
the newest, for a clock that was set back dates a later entry before an earlier one.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hedge_pipeline.learning import gate
from hedge_pipeline.learning.gate import (
    Event,
    EventKind,
    GateRule,
    GateState,
    SessionEvidence,
    VerdictKind,
)
from hedge_pipeline.market.calendar import Session, utc_times
from hedge_pipeline.market.tables import OUTCOMES, PREDICTION_LOG, PROMOTIONS

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.learning.training import ModelCard
    from hedge_pipeline.store import Store

ACCEPTED = (VerdictKind.PROMOTE.value, VerdictKind.HOLD.value)
PIN, UNPIN = "pin", "unpin"


@dataclass(frozen=True)
class InForce:
    """What held at each of several moments, arrays of one length.

    Attributes:
        base_rate: climatology.
        trust: shrink factor.
        skill: state of the evidence.
        version: the model that serves: the pinned one or the newest accepted, 0 = none yet.
        newest: newest accepted model while another way of serving is pinned, 0 = nothing is.
        baseline: first accepted model, 0 = none yet.
    """

    base_rate: npt.NDArray[np.float64]
    trust: npt.NDArray[np.float64]
    skill: npt.NDArray[np.object_]
    version: npt.NDArray[np.int64]
    newest: npt.NDArray[np.int64]
    baseline: npt.NDArray[np.int64]

    @classmethod
    def empty(cls, length: int) -> InForce:
        """Arrays to `put` into."""
        numbers = [np.zeros(length, dtype=np.int64) for _ in range(3)]
        return cls(np.zeros(length), np.zeros(length), np.full(length, "", dtype=object), *numbers)

    def put(self, places: npt.NDArray[np.int64], found: InForce) -> None:
        """Writes what held at some of the moments."""
        for field in fields(self):
            getattr(self, field.name)[places] = getattr(found, field.name)


class Ledger:
    """The promotion log of one symbol.

    Args:
        symbol: ticker symbol.
        entries: its rows of `promotions`, any order.
        rule: constants of the gate.
    """

    def __init__(self, symbol: str, entries: pd.DataFrame, rule: GateRule) -> None:
        self.symbol = symbol
        self.rule = rule
        own = entries[(entries["symbol"] == symbol).to_numpy(dtype=np.bool_)]
        order = np.lexsort(
            (
                own["number"].to_numpy(dtype=np.int64),
                own["model_version"].to_numpy(dtype=np.int64),
                own["kind"].to_numpy().astype(np.str_),
                own["session"].to_numpy().astype(np.str_),
                utc_times(own["decided_at"]),
            )
        )
        self.entries = own.take(order).reset_index(drop=True)

    @cached_property
    def _folds(self) -> pd.DataFrame:
        return self._of_kind("fold")

    @cached_property
    def _accepted(self) -> pd.DataFrame:
        verdicts = self._of_kind("verdict")
        return verdicts[verdicts["event"].isin(ACCEPTED).to_numpy()]

    @cached_property
    def _overrides(self) -> pd.DataFrame:
        return self._of_kind("override")

    def _of_kind(self, kind: str) -> pd.DataFrame:
        return self.entries[(self.entries["kind"] == kind).to_numpy(dtype=np.bool_)]

    def with_sessions(
        self, present: Collection[str], changed: Collection[str], entries: pd.DataFrame
    ) -> Ledger:
        """The log with the entries of some sessions read anew.

        Args:
            present: sessions that the log has now; the others are gone.
            changed: sessions read anew.
            entries: the rows of these.
        """
        import pandas as pd

        kept = set(present).difference(changed)
        own = self.entries[self.entries["session"].isin(kept).to_numpy(dtype=np.bool_)]
        if own.empty or entries.empty:
            return Ledger(self.symbol, own if entries.empty else entries, self.rule)
        return Ledger(self.symbol, pd.concat([own, entries], ignore_index=True), self.rule)

    @cached_property
    def state(self) -> GateState:
        """The evidence state after the newest fold."""
        if self._folds.empty:
            return GateState.new(self.rule)
        newest = int(self._folds["session"].to_numpy().argmax())
        return GateState.from_json(str(self._folds["state"].iloc[newest]))

    @property
    def judged(self) -> frozenset[int]:
        """Versions that have a verdict."""
        return frozenset(int(version) for version in self._of_kind("verdict")["model_version"])

    @property
    def accepted(self) -> tuple[int, ...]:
        """Versions that passed their guards, in order of acceptance."""
        return tuple(sorted(int(v) for v in self._accepted["model_version"]))

    def accepted_before(self, version: int) -> tuple[int, ...]:
        """Versions accepted before one, the latest first: who serves if its file is refused."""
        accepted = self.accepted
        return accepted[: accepted.index(version)][::-1] if version in accepted else ()

    @property
    def overrides(self) -> int:
        """Number of overrides so far."""
        return len(self._overrides)

    @property
    def pinned(self) -> int | None:
        """The version an operator has pinned, None if the newest accepted one serves."""
        if self._overrides.empty:
            return None
        newest = self._overrides.iloc[int(self._overrides["number"].to_numpy().argmax())]
        return int(newest["model_version"]) if newest["event"] == PIN else None

    @property
    def champion(self) -> int | None:
        """The newest accepted version while skill is proven, None otherwise."""
        proven = self.state.status is gate.Skill.PROVEN
        return self.accepted[-1] if proven and self.accepted else None

    def in_force(self, moments: npt.NDArray[np.datetime64]) -> InForce:
        """What held at each moment; entries decided at that very moment included.

        Args:
            moments: datetime64[us] in UTC.
        """
        (fold_times, base_rate, trust, skill), (verdict_times, versions) = self._course
        at = np.searchsorted(fold_times, moments, side="right")
        since = np.searchsorted(verdict_times, moments, side="right")
        newest = versions[since]
        pinned = self.pinned_at(moments)
        return InForce(
            base_rate[at],
            trust[at],
            skill[at],
            np.where(pinned > 0, pinned, newest),
            np.where(pinned > 0, newest, 0),
            np.where(since > 0, self._first_version, 0),
        )

    @cached_property
    def _course(self) -> tuple[tuple[npt.NDArray[Any], ...], tuple[npt.NDArray[Any], ...]]:
        """When folds and verdicts came into force, and what held before, between and after."""
        folds = self._folds
        fresh = GateState.new(self.rule)
        newest = folds.iloc[_newest_so_far(folds["session"])]
        accepted = self._accepted
        numbers = accepted["model_version"].to_numpy(dtype=np.int64)
        return (
            utc_times(folds["decided_at"]),
            np.array([fresh.base_rate(self.rule), *newest["base_rate"]]),
            np.array([gate.trust(fresh, self.rule), *newest["trust"]]),
            np.array([fresh.status.value, *newest["skill"]], dtype=object),
        ), (
            utc_times(accepted["decided_at"]),
            np.array([0, *np.maximum.accumulate(numbers)], dtype=np.int64),
        )

    @cached_property
    def _first_version(self) -> int:
        return min(self._accepted["model_version"].tolist(), default=0)

    def pinned_at(self, moments: npt.NDArray[np.datetime64]) -> npt.NDArray[np.int64]:
        """The version pinned at each moment, 0 = none.

        Args:
            moments: datetime64[us] in UTC.
        """
        times, pins = self._pins
        return pins[np.searchsorted(times, moments, side="right")]

    @cached_property
    def _pins(self) -> tuple[npt.NDArray[np.datetime64], npt.NDArray[np.int64]]:
        """When pins and their ends came into force, and the version pinned from then on."""
        overrides = self._overrides
        newest = overrides.iloc[_newest_so_far(overrides["number"])]
        pins = np.where(newest["event"] == PIN, newest["model_version"], 0)
        return utc_times(overrides["decided_at"]), np.array([0, *pins], dtype=np.int64)


class KnownLedgers:
    """The promotion logs read so far; safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._present: dict[str, tuple[Any, ...]] = {}
        self._seen = 0
        self._ledgers: dict[str, Ledger] = {}
        self._unread: dict[str, set[str]] = {}

    def of(self, store: Store, rule: GateRule, symbols: Iterable[str]) -> dict[str, Ledger]:
        """The logs as they are now; only sessions whose files have changed are read again.

        Args:
            store: always the same one.
            rule: constants of the gate.
            symbols: whose logs.
        """
        wanted = list(symbols)
        with self._lock:
            now, present = time.time_ns(), store.fingerprints(PROMOTIONS)
            changed = {
                label
                for label, found in present.items()
                if self._present.get(label) != found or store.is_recent(found, self._seen)
            } | (self._present.keys() - present.keys())
            for unread in self._unread.values():
                unread |= changed
            self._present, self._seen = present, now
            due = [symbol for symbol in wanted if self._unread.get(symbol, {""})]
            labels = present.keys() & set().union(*(self._unread.get(x, present) for x in due))
            entries = store.read(PROMOTIONS, labels if due else (), symbols=due)
            for symbol in due:
                known = self._ledgers.get(symbol) or Ledger(symbol, PROMOTIONS.empty(), rule)
                own = entries[(entries["symbol"] == symbol).to_numpy(dtype=np.bool_)]
                self._ledgers[symbol] = known.with_sessions(present, labels, own)
                self._unread[symbol] = set()
            return {symbol: self._ledgers[symbol] for symbol in wanted}


def session_evidence(
    store: Store,
    symbol: str,
    session: Session,
    horizon: int,
    modes: tuple[str, ...],
    ledger: Ledger,
) -> SessionEvidence:
    """What a closed session tells the gate about one symbol.

    Evidence are the predictions of the newest accepted model in the given modes that were decided
    before the bar of their exit ended, with an up or down outcome: the served rows, or the rows of
    the role `newest` that were decided while another version was pinned. A bar counts once. Every
    matured label counts for climatology.

    Args:
        store: where log and outcomes are.
        symbol: ticker symbol.
        session: a session whose outcomes are all known.
        horizon: label horizon, bars.
        modes: which modes count in this deployment.
        ledger: knows when a version was pinned.
    """
    outcomes = store.read(
        OUTCOMES,
        [session.label],
        symbols=[symbol],
        columns=("symbol", "bar_ts", "horizon_bars", "actual_direction"),
    )
    outcomes = outcomes[
        (outcomes["horizon_bars"] == horizon) & outcomes["actual_direction"].notna()
    ]
    columns = ("symbol", "bar_ts", "decided_at", "role", "mode", "margin", "base_rate")
    log = store.read(PREDICTION_LOG, [session.label], symbols=[symbol], columns=columns)
    pinned = ledger.pinned_at(utc_times(log["decided_at"])) > 0
    tested = log["role"] == np.where(pinned, "newest", "served")
    log = log[tested & log["margin"].notna() & log["mode"].isin(modes)]
    known_at = log["bar_ts"] + dt.timedelta(seconds=(horizon + 1) * session.bar_seconds)
    log = log[log["decided_at"] < known_at]
    # a hot swap may leave one bar with two served versions: the first one decided counts
    log = log.sort_values(["bar_ts", "decided_at"]).drop_duplicates("bar_ts")
    rows = log.merge(outcomes[["bar_ts", "actual_direction"]], on="bar_ts")
    ups = int((outcomes["actual_direction"] == 1).sum())
    return SessionEvidence(
        session=session.label,
        margin=rows["margin"].to_numpy(dtype=np.float64),
        up=rows["actual_direction"].to_numpy(dtype=np.int64),
        offset=session.index_of(utc_times(rows["bar_ts"])) % horizon,
        base_rate=rows["base_rate"].to_numpy(dtype=np.float64),
        ups=ups,
        labels=len(outcomes),
    )


def fold_entry(
    symbol: str,
    state: GateState,
    event: Event | None,
    evidence: SessionEvidence,
    rule: GateRule,
    decided_at: dt.datetime,
) -> dict[str, Any]:
    """The log entry of a folded session, a row of `promotions`."""
    words = gate.evidence_in_words(state, rule)
    if event is None:
        reason = words
    elif event.kind is EventKind.SKILL_PROVEN:
        reason = f"skill {words}"
    elif event.detail == "draw":
        reason = f"skill lost: the evidence fell by more than a factor {rule.draw:g} from its peak"
    else:
        reason = f"skill lost: no new peak of the evidence for {rule.stale} sessions"
    row = _state_columns(symbol, state, rule)
    return row | {
        "kind": "fold",
        "model_version": 0,
        "number": 0,
        "decided_at": decided_at,
        "event": event.kind.value if event else None,
        "reason": reason,
        # after a loss the state starts anew; the entry keeps the number that decided it
        "evidence": event.log_evidence if event else state.log_evidence,
        "labels": evidence.rows,
        "effective_labels": evidence.rows / rule.horizon,
    }


def verdict_entry(
    card: ModelCard, state: GateState, rule: GateRule, decided_at: dt.datetime
) -> dict[str, Any]:
    """The log entry of a verdict on a candidate, a row of `promotions`."""
    verdict = gate.verdict(state, card.guard_failure, rule)
    row = _state_columns(card.symbol, state, rule)
    return row | {
        "session": card.cutoff,
        "kind": "verdict",
        "model_version": card.version,
        "number": 0,
        "decided_at": decided_at,
        "event": verdict.kind.value,
        "reason": verdict.reason,
        "labels": 0,
        "effective_labels": 0.0,
    }


def override_entry(
    ledger: Ledger,
    version: int,
    event: str,
    reason: str,
    session: str,
    decided_at: dt.datetime,
) -> dict[str, Any]:
    """The log entry of an override, a row of `promotions`; the evidence stays what it was.

    Args:
        ledger: the log it is added to.
        version: pinned, or let go.
        event: pin or unpin.
        reason: the operator's words.
        session: session folded last.
        decided_at: from when on it holds.
    """
    return _state_columns(ledger.symbol, ledger.state, ledger.rule) | {
        "session": session,
        "kind": "override",
        "model_version": version,
        "number": ledger.overrides + 1,
        "decided_at": decided_at,
        "event": event,
        "reason": reason,
        "labels": 0,
        "effective_labels": 0.0,
    }


def _state_columns(symbol: str, state: GateState, rule: GateRule) -> dict[str, Any]:
    return {
        "symbol": symbol,
        "session": state.last_session,
        "skill": state.status.value,
        "era": state.era,
        "evidence": state.log_evidence,
        "peak": state.log_peak,
        "trust": gate.trust(state, rule),
        "base_rate": state.base_rate(rule),
        "state": state.to_json(),
    }


def _newest_so_far(numbers: pd.Series[Any]) -> npt.NDArray[np.int64]:
    """Places of the highest number up to each place, [n]."""
    _, first, ranks = np.unique(numbers.to_numpy(), return_index=True, return_inverse=True)
    highest = np.maximum.accumulate(ranks) if len(ranks) else ranks
    return np.asarray(first[highest], dtype=np.int64)
