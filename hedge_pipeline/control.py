"""What an operator may ask of the promotion log: its history, an override, a proof that it holds.

Overrides say which version is served; they never touch the evidence, the verdicts or the alias
`champion`. While a version is pinned the newest one predicts beside it and stays what is tested.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hedge_pipeline import stages
from hedge_pipeline.learning import gate, ledger
from hedge_pipeline.learning.gate import GateState
from hedge_pipeline.learning.ledger import PIN, UNPIN, Ledger
from hedge_pipeline.learning.shelf import ModelShelf
from hedge_pipeline.learning.training import ModelCard
from hedge_pipeline.stages import Deployment, StageError
from hedge_pipeline.store import Store

# -- overrides -------------------------------------------------------------------------------------


def pin(deployment: Deployment, symbol: str, version: int, reason: str) -> dict[str, Any]:
    """Serves a version from now on, until it is let go.

    Returns:
        The entry of the promotion log.

    Raises:
        StageError: the version did not pass its guards or is pinned already; no reason is given;
            the store is a replay's; somebody else was faster.
        ModelError: its file is refused.
    """
    log = deployment.ledger(symbol)
    if version not in log.accepted:
        known = ", ".join(map(str, log.accepted)) or "none"
        raise StageError(f"{symbol}: version {version} is not accepted; accepted are {known}")
    if log.pinned == version:
        raise StageError(f"{symbol}: version {version} is pinned already")
    deployment.shelf.load(symbol, version)
    return _override(deployment, log, version, PIN, reason)


def roll_back(deployment: Deployment, symbol: str, reason: str) -> dict[str, Any]:
    """Goes one step back: lets a pinned version go, or pins the one before the newest.

    Returns:
        The entry of the promotion log.

    Raises:
        StageError: there is no version to go back to; and as `pin`.
        ModelError: the file of the version before is refused.
    """
    log = deployment.ledger(symbol)
    if log.pinned is not None:
        return _override(deployment, log, log.pinned, UNPIN, reason)
    if len(log.accepted) < 2:
        raise StageError(f"{symbol}: there is no accepted version before the newest one")
    return pin(deployment, symbol, log.accepted[-2], reason)


def _override(
    deployment: Deployment, log: Ledger, version: int, event: str, reason: str
) -> dict[str, Any]:
    symbol = log.symbol
    if deployment.replay:
        raise StageError(
            f"{deployment.store.url} holds a replay: only a live loop can be overruled"
        )
    if not reason.strip():
        raise StageError(f"{symbol}: an override needs a reason, it stays in the log for ever")
    session = log.state.last_session or deployment.shelf.card(symbol, version).cutoff
    entry = ledger.override_entry(log, version, event, reason.strip(), session, deployment.clock())
    if not stages.append_entry(deployment, session, entry):
        raise StageError(f"{symbol}: another override came first; look at `hedge history`")
    return entry


# -- history ---------------------------------------------------------------------------------------


def history(deployment: Deployment, symbol: str) -> list[dict[str, Any]]:
    """Every entry of the promotion log that changed something, oldest first.

    Returns:
        Dicts with decided_at (ISO, UTC), session, kind, event, version (None for a fold), skill,
        evidence (E, not its logarithm), champion and served (version after the entry, None = none)
        and reason.
    """
    log = deployment.ledger(symbol)
    accepted: list[int] = []
    pinned: int | None = None
    found = []
    for row in log.entries[log.entries["event"].notna()].to_dict("records"):
        event, version = str(row["event"]), int(row["model_version"])
        if event in ledger.ACCEPTED:
            accepted.append(version)
        if row["kind"] == "override":
            pinned = version if event == PIN else None
        newest = accepted[-1] if accepted else None
        found.append(
            {
                "decided_at": row["decided_at"].isoformat(),
                "session": str(row["session"]),
                "kind": str(row["kind"]),
                "event": event,
                "version": version or None,
                "skill": str(row["skill"]),
                "evidence": gate.evidence_number(float(row["evidence"])),
                "champion": newest if row["skill"] == "proven" else None,
                "served": pinned or newest,
                "reason": str(row["reason"]),
            }
        )
    return found


# -- the proof that the log holds ------------------------------------------------------------------


@dataclass(frozen=True)
class Rebuilt:
    """What refolding found.

    Attributes:
        symbol: ticker symbol.
        sessions: folds compared.
        forgotten: folds before them whose rows the tables no longer hold, see `storage.forget`, or
            that an earlier form of the rule made, see `gate.folded_by_offset`.
        state: the state that the predictions and outcomes give.
        differs: first session whose stored state is another, None = all are equal.
    """

    symbol: str
    sessions: int
    forgotten: int
    state: GateState
    differs: str | None


def rebuild_evidence(deployment: Deployment, symbol: str) -> Rebuilt:
    """Folds every session of the promotion log again, from the tables alone; writes nothing.

    The evidence is a pure fold over predictions and outcomes, so what comes out must equal what is
    stored, to the last bit. Where old rows were forgotten, or an earlier form of the rule folded
    them, it begins with the last state before.
    """
    from hedge_pipeline.storage import forgotten_before

    entries = deployment.ledger(symbol).entries
    folds = entries[entries["kind"] == "fold"].sort_values("session")
    state = GateState.new(deployment.rule)
    gone = folds["session"] < (forgotten_before(deployment.store) or "")
    gone |= folds["state"].map(gate.folded_by_offset).astype(bool)
    forgotten, folds = folds[gone], folds[~gone]
    if len(forgotten):
        state = GateState.from_json(str(forgotten["state"].iloc[-1]))
    differs: str | None = None
    for label, stored in zip(folds["session"], folds["state"], strict=True):
        evidence = stages.evidence_of(deployment, symbol, str(label))
        state, _ = gate.fold(state, evidence, deployment.rule)
        if differs is None and state.to_json() != stored:
            differs = str(label)
    return Rebuilt(symbol, len(folds), len(forgotten), state, differs)


# -- an old version over a period ------------------------------------------------------------------


def freeze(deployment: Deployment, models: Store, version: int, first: str) -> dict[str, ModelCard]:
    """Puts one version of every symbol into an empty replay, accepted before its first session.

    Args:
        deployment: a replay that is not to train.
        models: the store that has the versions.
        version: number of the version.
        first: label of the replay's first session.

    Returns:
        The descriptions by symbol. Sessions up to a model's cutoff are its own training data.

    Raises:
        StageError: the version did not pass its guards.
        ModelError: a symbol has no such version, or its file is refused.
    """
    shelf = ModelShelf(models)
    cards = {}
    for symbol in deployment.symbols:
        # a version of the pool is a version of the symbol's own here
        card = replace(shelf.load(symbol, version).card, members=())
        if card.guard_failure:
            raise StageError(f"{symbol}: version {version} was rejected: {card.guard_failure}")
        deployment.shelf.put_content(symbol, version, shelf.content(symbol, version))
        deployment.shelf.put_card(card)
        opens = deployment.calendar.session(first).opens
        entry = ledger.verdict_entry(card, deployment.ledger(symbol).state, deployment.rule, opens)
        reason = f"version {version} is replayed without retraining"
        stages.append_entry(deployment, card.cutoff, entry | {"reason": reason})
        cards[symbol] = card
    return cards
