"""Walk-forward scores of a training plan: what it would have served on sessions it had not seen.

Rows are divided between sessions only: a fold fits on sessions that lie before those it scores, so
no label of one side shares a minute with one of the other. Choosing a plan is for `search.py`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hedge_pipeline.learning import gate
from hedge_pipeline.learning.dataset import (
    LabelledSession,
    LabelledSessions,
    TrainingSet,
    assemble,
)
from hedge_pipeline.learning.gate import GateRule, GateState, SessionEvidence
from hedge_pipeline.learning.paired import SessionPair
from hedge_pipeline.learning.training import TrainingPlan, fit, margins
from hedge_pipeline.probability import log_likelihood, logit, trusted_probability


class SplitRefused(ValueError):
    """A proposed division of rows would let labels of one side tell of the other."""


@dataclass(frozen=True)
class Fold:
    """One training and the sessions it is scored on.

    Overlapping labels repeat each other: split at random, rows of pure noise are "predicted" with
    an accuracy of 0.60 to 0.77. So a session is on one side or the other, and every scored session
    comes after every fitted one.

    Attributes:
        rows: what the training learns from.
        scored: label and rows of the sessions after it, oldest first.

    Raises:
        SplitRefused: the line runs through a session, or a session is scored before a fitted one.
    """

    rows: TrainingSet
    scored: tuple[tuple[str, LabelledSession], ...]

    def __post_init__(self) -> None:
        """Refuses every cut but one between sessions."""
        fitted, scored = set(self.rows.sessions), {label for label, _ in self.scored}
        for session in sorted(fitted & scored):
            raise SplitRefused(
                f"the split runs through session {session}: labels on both sides share their "
                "minutes; divide between sessions"
            )
        if fitted and scored and min(scored) < max(fitted):
            raise SplitRefused(
                "a session is scored before one that is fitted: the past comes first"
            )


@dataclass(frozen=True)
class Course:
    """What plans are scored on.

    Attributes:
        folds: oldest first.
        before: base rate and trust before the first scored session.
    """

    folds: tuple[Fold, ...]
    before: GateState

    def halves(self) -> tuple[Course, int]:
        """The earlier half of the folds (the larger, if odd), and how many sessions it scores."""
        earlier = self.folds[: len(self.folds) - len(self.folds) // 2]
        return Course(earlier, self.before), sum(len(fold.scored) for fold in earlier)


@dataclass(frozen=True)
class Walk:
    """Scores of one plan.

    Attributes:
        pairs: by scored session the labels, and the log-loss of climatology minus that of the
            served probability, nats.
        spread: standard deviation of the margins in the fold where it is smallest.
    """

    pairs: tuple[SessionPair, ...]
    spread: float


def cut(
    sessions: Sequence[str], *, least: int, block: int
) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    """Sessions to fit and sessions to score, oldest first; the last block ends with the last one.

    Args:
        sessions: ascending labels.
        least: sessions before the first scored one.
        block: sessions scored by one training.
    """
    starts = range(len(sessions) - block, least - 1, -block)
    return tuple(
        (tuple(sessions[:start]), tuple(sessions[start : start + block]))
        for start in reversed(starts)
    )


def course_of(
    reader: LabelledSessions,
    symbol: str,
    cuts: Sequence[tuple[Sequence[str], Sequence[str]]],
    plan: TrainingPlan,
    rule: GateRule,
    *,
    known_at: Callable[[str], dt.datetime],
    known_by: dt.datetime,
) -> Course:
    """Reads the rows of the folds, those to learn from as a training of that day would have.

    Args:
        reader: where the rows come from.
        symbol: whose rows.
        cuts: what `cut` gave, one or more.
        plan: half-life and number of recent sessions; the trees do not matter.
        rule: constants of the base rate, and the horizon.
        known_at: the moment at which a session's outcomes are complete.
        known_by: the cutoff as a moment; what became available later does not enter.

    Raises:
        SplitRefused: a cut is no cut between sessions.
    """

    def read(label: str) -> LabelledSession:
        return reader.read(symbol, label).known_by(known_by)

    folds = []
    for fitted, scored in cuts:
        moment = min(known_at(fitted[-1]), known_by)
        rows = assemble(reader, symbol, fitted, plan, rule.horizon, moment)
        folds.append(Fold(rows, tuple((label, read(label)) for label in scored)))
    state = GateState.new(rule)
    for label in cuts[0][0]:  # nothing is predicted yet: only the base rate learns
        state = gate.fold(state, _evidence(label, read(label), np.empty(0), 0.5, rule), rule)[0]
    return Course(tuple(folds), state)


def walk(course: Course, plan: TrainingPlan, rule: GateRule) -> Walk:
    """Fits every fold and scores what would have been served.

    Served is what the live loop serves: the margin, shrunk by the trust earned on the sessions
    scored before, on top of the climatology of that day. Unshrunk log-loss would reward whatever
    fits least, for noise is cheapest when it is not fitted at all.

    Args:
        course: folds, and where base rate and trust begin.
        plan: the parameters to score.
        rule: constants of base rate and trust.

    Raises:
        ValueError: a fold has one class only.
    """
    state, pairs, spreads = course.before, [], []
    for fold in course.folds:
        said = [np.empty(0)]
        _content, booster = fit(fold.rows, plan)
        for label, session in fold.scored:
            margin = margins(booster, session.features, fold.rows.base_rate)
            base = state.base_rate(rule)
            served = trusted_probability(base, margin, gate.trust(state, rule))
            pairs.append(SessionPair(len(margin), _gain(served, base, session.labels)))
            said.append(margin)
            evidence = _evidence(label, session, margin, base, rule)
            state, _event = gate.fold(state, evidence, rule)
        made = np.concatenate(said)
        spreads.append(float(np.std(made)) if len(made) else 0.0)
    return Walk(tuple(pairs), min(spreads))


def _evidence(
    label: str,
    session: LabelledSession,
    margin: npt.NDArray[np.float64],
    base: float,
    rule: GateRule,
) -> SessionEvidence:
    """The session for base rate and trust; its evidence is not read, so offsets are only places."""
    rows = len(margin)
    return SessionEvidence(
        session=label,
        margin=margin,
        up=session.labels[:rows].astype(np.int64),
        offset=np.arange(rows) % rule.horizon,
        base_rate=np.full(rows, base),
        ups=int(session.labels.sum()),
        labels=len(session.labels),
    )


def _gain(served: npt.NDArray[np.float64], base: float, labels: npt.NDArray[np.float64]) -> float:
    odds = np.full(len(labels), logit(base))
    gains = log_likelihood(logit(served), labels) - log_likelihood(odds, labels)
    return float(gains.sum())
