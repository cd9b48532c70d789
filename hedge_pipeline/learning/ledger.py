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
import pyarrow as pa
import pyarrow.compute as pc

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
from hedge_pipeline.market.tables import OUTCOMES, PREDICTION_LOG, PROMOTIONS, in_pandas

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.learning.training import ModelCard
    from hedge_pipeline.store import Store

Places = npt.NDArray[np.int64]

ACCEPTED = (VerdictKind.PROMOTE.value, VerdictKind.HOLD.value)
PIN, UNPIN = "pin", "unpin"
_ORDER = ("decided_at", "session", "kind", "model_version", "number")


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
        rows: rows of `promotions` of any symbols, any order.
        rule: constants of the gate.
    """

    def __init__(self, symbol: str, rows: pa.Table, rule: GateRule) -> None:
        self.symbol = symbol
        self.rule = rule
        own = rows.filter(pc.equal(rows["symbol"], symbol))
        self._rows = own.sort_by([(name, "ascending") for name in _ORDER])

    @cached_property
    def entries(self) -> pd.DataFrame:
        """Its rows of `promotions`, ascending by `decided_at`."""
        return in_pandas(self._rows)

    @cached_property
    def _folds(self) -> Places:
        return self._of_kind("fold")

    @cached_property
    def _accepted(self) -> Places:
        verdicts = self._of_kind("verdict")
        return verdicts[np.isin(self._column("event", verdicts), ACCEPTED)]

    @cached_property
    def _overrides(self) -> Places:
        return self._of_kind("override")

    def _of_kind(self, kind: str) -> Places:
        return np.flatnonzero(self._rows["kind"].to_numpy() == kind)

    def _column(self, name: str, places: Places) -> npt.NDArray[Any]:
        """Values of some entries; unknown texts are None, unknown numbers NaN."""
        return np.asarray(self._rows[name].to_numpy()[places])

    def with_sessions(self, changed: Collection[str], rows: pa.Table) -> Ledger:
        """The log with the entries of some sessions read anew.

        Args:
            changed: sessions read anew, or gone.
            rows: the rows of these, of any symbols.
        """
        among = pc.is_in(self._rows["session"], pa.array(list(changed), pa.string()))
        kept = self._rows.filter(pc.invert(among))
        return Ledger(self.symbol, pa.concat_tables([kept, rows]), self.rule)

    @cached_property
    def state(self) -> GateState:
        """The evidence state after the newest fold."""
        if not len(self._folds):
            return GateState.new(self.rule)
        newest = int(self._folds[self._column("session", self._folds).argmax()])
        return GateState.from_json(self._rows["state"][newest].as_py())

    @property
    def judged(self) -> frozenset[int]:
        """Versions that have a verdict."""
        return frozenset(self._column("model_version", self._of_kind("verdict")).tolist())

    @property
    def accepted(self) -> tuple[int, ...]:
        """Versions that passed their guards, in order of acceptance."""
        return tuple(sorted(self._column("model_version", self._accepted).tolist()))

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
        if not len(self._overrides):
            return None
        newest = int(self._overrides[self._column("number", self._overrides).argmax()])
        pins = self._rows["event"][newest].as_py() == PIN
        return int(self._rows["model_version"][newest].as_py()) if pins else None

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
        fresh = GateState.new(self.rule)
        newest = self._folds[_newest_so_far(self._column("session", self._folds))]
        numbers = self._column("model_version", self._accepted)
        return (
            self._column("decided_at", self._folds),
            np.array([fresh.base_rate(self.rule), *self._column("base_rate", newest)]),
            np.array([gate.trust(fresh, self.rule), *self._column("trust", newest)]),
            np.array([fresh.status.value, *self._column("skill", newest)], dtype=object),
        ), (
            self._column("decided_at", self._accepted),
            np.array([0, *np.maximum.accumulate(numbers)], dtype=np.int64),
        )

    @cached_property
    def _first_version(self) -> int:
        return min(self._column("model_version", self._accepted).tolist(), default=0)

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
        newest = self._overrides[_newest_so_far(self._column("number", self._overrides))]
        pinned = self._column("event", newest) == PIN
        pins = np.where(pinned, self._column("model_version", newest), 0)
        return self._column("decided_at", self._overrides), np.array([0, *pins], dtype=np.int64)


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
            if due:
                unread = set().union(*(self._unread.get(symbol, present) for symbol in due))
                rows = store.read_arrow(PROMOTIONS, unread & present.keys(), symbols=due)
                nothing = PROMOTIONS.arrow.empty_table()
                for symbol in due:
                    known = self._ledgers.get(symbol) or Ledger(symbol, nothing, rule)
                    self._ledgers[symbol] = known.with_sessions(unread, rows)
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
        columns=("bar_ts", "actual_direction"),
        only={"horizon_bars": [horizon]},
    )
    direction = outcomes["actual_direction"].to_numpy(dtype=np.float64, na_value=np.nan)
    told = ~np.isnan(direction)
    outcome_of, up = utc_times(outcomes["bar_ts"])[told], direction[told].astype(np.int64)
    columns = ("bar_ts", "decided_at", "role", "mode", "margin", "base_rate")
    log = store.read(PREDICTION_LOG, [session.label], symbols=[symbol], columns=columns)
    times, decided = utc_times(log["bar_ts"]), utc_times(log["decided_at"])
    margin = log["margin"].to_numpy(dtype=np.float64)
    known_at = times + np.timedelta64((horizon + 1) * session.bar_seconds, "s")
    tested = log["role"].to_numpy(dtype=object) == np.where(
        ledger.pinned_at(decided) > 0, "newest", "served"
    )
    tested &= ~np.isnan(margin) & np.isin(log["mode"].to_numpy(dtype=object), modes)
    rows = np.flatnonzero(tested & (decided < known_at) & np.isin(times, outcome_of))
    # a hot swap may leave one bar with two served versions: the first one decided counts
    rows = rows[np.lexsort((decided[rows], times[rows]))]
    rows = rows[np.unique(times[rows], return_index=True)[1]]
    return SessionEvidence(
        session=session.label,
        margin=margin[rows],
        up=up[np.searchsorted(outcome_of, times[rows])],
        offset=session.index_of(times[rows]) % horizon,
        base_rate=log["base_rate"].to_numpy(dtype=np.float64)[rows],
        ups=int(up.sum()),
        labels=len(up),
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


def _newest_so_far(numbers: npt.NDArray[Any]) -> Places:
    """Places of the highest number up to each place, [n]."""
    _, first, ranks = np.unique(numbers, return_index=True, return_inverse=True)
    highest = np.maximum.accumulate(ranks) if len(ranks) else ranks
    return np.asarray(first[highest], dtype=np.int64)
