"""The promotion log: evidence of settled sessions, and verdicts on versions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hedge_pipeline.learning import gate, ledger
from hedge_pipeline.market.tables import OUTCOMES, PROMOTIONS
from hedge_pipeline.stages.deployment import StageError
from hedge_pipeline.stages.outcomes import settled_sessions, settled_symbols

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hedge_pipeline.learning.gate import Event, GateState, SessionEvidence
    from hedge_pipeline.stages.deployment import Deployment


@dataclass(frozen=True)
class Fold:
    """One folded session.

    Attributes:
        session: its label.
        state: the evidence after it.
        event: the change of skill; None = no change.
        entry: row of `promotions`.
    """

    session: str
    state: GateState
    event: Event | None
    entry: dict[str, object]


def pending_folds(deployment: Deployment, symbol: str) -> list[Fold]:
    """Folds of the settled sessions that are not in the promotion log yet; writes nothing.

    Raises:
        StageError: the evidence so far is of another horizon.
    """
    log = deployment.ledger(symbol)
    state = log.state
    if state.horizon != deployment.horizon:
        raise StageError(
            f"{symbol}: the evidence is of HEDGE_HORIZON_BARS={state.horizon}, which is now "
            f"{deployment.horizon}: set it back, or give HEDGE_DATA_URL a folder of its own"
        )
    folds = []
    for label in settled_sessions(deployment, symbol, after=state.last_session):
        session = deployment.calendar.session(label)
        evidence = evidence_of(deployment, symbol, label)
        state, event = gate.fold(state, evidence, deployment.rule)
        entry = ledger.fold_entry(
            symbol, state, event, evidence, deployment.rule, deployment.asked_at(session)
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
    # read together, then known one by one
    deployment.ledgers(symbols)
    for label in deployment.store.sessions(OUTCOMES, last=1):
        settled_symbols(deployment, label, symbols)
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
    return deployment.store.append(PROMOTIONS, session, PROMOTIONS.of_records(entries))


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
