"""The gate: is the retraining procedure better than the base rate, and how far is it trusted?

One pure fold per symbol over matured sessions. Evidence is an anytime-valid likelihood ratio
against "the outcome is a coin with the base rate", trust is the factor by which margins are shrunk
before they are served, and a verdict says what either means for a new candidate. Training,
guards on candidates and storage live elsewhere.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hedge_pipeline.probability import FloatArray, IntArray, log_likelihood, logit

LossCause: TypeAlias = Literal["draw", "stale", ""]

PRIOR_SESSIONS = 5
LABELS_PER_SESSION = 380

_LARGEST_SHOWN = 1e12


class Skill(StrEnum):
    """What the evidence says about the retraining procedure."""

    UNPROVEN = "unproven"
    PROVEN = "proven"
    LOST = "lost"


class EventKind(StrEnum):
    """A change of skill status."""

    SKILL_PROVEN = "skill_proven"
    SKILL_LOST = "skill_lost"


class VerdictKind(StrEnum):
    """What happens to a freshly trained candidate."""

    PROMOTE = "promote"
    HOLD = "hold"
    REJECT = "reject"


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


# --- the base rate -----------------------------------------------------------------------------


def climatology(
    ups: float,
    labels: float,
    labels_per_session: int = LABELS_PER_SESSION,
    prior_sessions: float = PRIOR_SESSIONS,
) -> float:
    """Base rate in force for the next session: share of ups so far, shrunk towards 1/2.

    Args:
        ups: Matured labels that were up, all sessions so far.
        labels: All matured labels so far.
        labels_per_session: Nominal labels of one session: its bars less the horizon.
        prior_sessions: Weight of the prior, as a number of sessions with a base rate of 1/2.

    Returns:
        Probability of an up move, strictly between 0 and 1.
    """
    prior_labels = prior_sessions * labels_per_session
    return (ups + prior_labels * 0.5) / (labels + prior_labels)


# --- the rule --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GateRule:
    """Constants of the gate; the defaults are the measured choice.

    Attributes:
        horizon: Label horizon in bars, and the number of offsets: labels of one offset do not
            overlap.
        evidence_factors: Shrink factors at which the margin is tested, each with equal stake.
        alpha: Probability of ever calling noise skilful; evidence of 1/alpha is proof.
        first_stake: Share of the reserve that is staked in the first session of an era.
        later_stake: Share of the remaining reserve staked in every later session, so that a late
            edge is not held back by earlier losses.
        draw: Proven skill is lost when the evidence has fallen by this factor from its peak.
        stale: Proven skill is lost after this many sessions of evidence without a new peak.
        trust_grid: Candidate shrink factors of the served probability; contains 0.
        trust_prior: Their prior weights; sum to 1.
        share: Weight returned to the prior in every session, so that trust can turn around.
        clip: Largest absolute margin, in nats.
        min_keep: Sessions that training keeps in any case when the past is forgotten.
        prior_sessions: Weight of the 1/2 prior of the base rate, in sessions.
        labels_per_session: Nominal labels per session: bars per session less the horizon.
    """

    horizon: int = 10
    evidence_factors: tuple[float, ...] = (0.25, 0.5, 1.0)
    alpha: float = 0.05
    first_stake: float = 0.75
    later_stake: float = 1 / 40
    draw: float = 20.0
    stale: int = 30
    trust_grid: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
    trust_prior: tuple[float, ...] = (0.5, 0.1, 0.1, 0.1, 0.1, 0.1)
    share: float = 0.03
    clip: float = 1.0
    min_keep: int = 5
    prior_sessions: float = PRIOR_SESSIONS
    labels_per_session: int = LABELS_PER_SESSION

    def __post_init__(self) -> None:
        """Refuse constants that would void the guarantee or the arithmetic.

        Raises:
            ValueError: One line that names the constant.
        """
        for name in ("horizon", "stale", "min_keep", "labels_per_session"):
            _require(getattr(self, name) >= 1, f"gate rule: {name} must be at least 1")
        for name in ("alpha", "first_stake", "later_stake", "share"):
            _require(0 < getattr(self, name) < 1, f"gate rule: {name} must be between 0 and 1")
        for name in ("clip", "prior_sessions"):
            _require(0 < getattr(self, name) < math.inf, f"gate rule: {name} must be positive")
        _require(1 < self.draw < math.inf, "gate rule: draw must be greater than 1")
        _require(
            len(self.evidence_factors) > 0 and all(0 < c <= 1 for c in self.evidence_factors),
            "gate rule: evidence_factors must be one or more numbers in (0, 1]",
        )
        _require(
            0 in self.trust_grid and all(0 <= c <= 1 for c in self.trust_grid),
            "gate rule: trust_grid must lie in [0, 1] and contain 0",
        )
        _require(
            len(self.trust_prior) == len(self.trust_grid)
            and all(weight > 0 for weight in self.trust_prior)
            and math.isclose(sum(self.trust_prior), 1.0),
            "gate rule: trust_prior must be one positive weight per grid point, summing to 1",
        )

    @property
    def needed_evidence(self) -> float:
        """Evidence that counts as proof, 1/alpha."""
        return 1 / self.alpha


DEFAULT_RULE = GateRule()


@dataclass(frozen=True, slots=True, eq=False)
class SessionEvidence:
    """Everything one matured session tells the gate.

    The rows are predictions decided before their outcome could be known; ties and unlabelable bars
    are left out. There may be none: no model yet, or only rows that do not count as evidence.

    Attributes:
        session: Session label, 'YYYY-MM-DD'.
        margin: Clipped model margins in nats, [n].
        up: Outcomes, [n]; 1 = up, 0 = down.
        offset: Bar index modulo the horizon, [n].
        base_rate: Climatology logged with each row, [n]; normally one value per session.
        ups: Matured labels of the session that were up, with or without a prediction.
        labels: All matured labels of the session, at least n.
    """

    session: str
    margin: FloatArray
    up: IntArray
    offset: IntArray
    base_rate: FloatArray
    ups: int
    labels: int

    def __post_init__(self) -> None:
        """Refuse rows that cannot be what the log recorded, and keep read-only copies.

        Raises:
            ValueError: One line that names the session and the claim that does not hold.
        """
        columns: dict[str, NDArray[Any]] = {
            "margin": np.array(self.margin, dtype=np.float64),
            "up": np.array(self.up),
            "offset": np.array(self.offset),
            "base_rate": np.array(self.base_rate, dtype=np.float64),
        }
        label = f"session {self.session!r}"
        _require(_is_session(self.session), f"{label}: the label must be an ISO date")
        shapes = {name: column.shape for name, column in columns.items()}
        _require(
            columns["margin"].ndim == 1 and len(set(shapes.values())) == 1,
            f"{label}: columns must be vectors of one length, got {shapes}",
        )
        for claim, holds in self._claims(**columns):
            _require(holds, f"{label}: {claim}")
        for name in ("up", "offset"):
            columns[name] = columns[name].astype(np.int64)
        for name, column in columns.items():
            column.setflags(write=False)
            object.__setattr__(self, name, column)

    def _claims(
        self,
        margin: FloatArray,
        up: NDArray[Any],
        offset: NDArray[Any],
        base_rate: FloatArray,
    ) -> Sequence[tuple[str, bool]]:
        rows_up, rows = int(np.sum(up > 0)), len(up)
        return (
            ("margin must be finite", bool(np.isfinite(margin).all())),
            ("up must be 0 or 1", bool(((up == 0) | (up == 1)).all())),
            (
                "offset must be whole and at least 0",
                bool(((offset >= 0) & (offset % 1 == 0)).all()),
            ),
            (
                "base_rate must be strictly between 0 and 1",
                bool(((base_rate > 0) & (base_rate < 1)).all()),
            ),
            ("ups must include the ups among the rows", self.ups >= rows_up),
            (
                "labels less ups must include the downs among the rows",
                self.labels - self.ups >= rows - rows_up,
            ),
        )

    @property
    def rows(self) -> int:
        """Number of rows that count as evidence."""
        return len(self.margin)


# --- the state -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GateState:
    """All the gate remembers about one symbol and configuration; bounded size, exact equality.

    An era is the time between two losses of skill; the evidence starts anew with each era, trust
    and base rate do not. Logarithms are natural.

    Attributes:
        horizon: Label horizon the evidence was gathered at, in bars.
        log_wealth: Log-wealth per evidence factor, [factors]; -inf before the first stake of an
            era.
        reserve: Wealth of the era that is not yet staked.
        trust_weights: Weight of each point of the trust grid; sum to 1.
        status: What the evidence says.
        status_since: Session that set the status; None while it was never changed.
        era: Number of times skill was lost.
        era_sessions: Sessions of the era that brought evidence.
        log_evidence: Log-evidence of the era, 0 at its start.
        log_peak: Highest log-evidence since proof; 0 unless proven.
        peak_ordinal: Ordinal of the session of the peak; None unless proven.
        after_peak: Label of the session after the peak; None unless proven and that session is in.
        since: Sessions of evidence since the peak; 0 unless proven.
        train_from: First session that training may use; None = from the beginning.
        ups: Matured labels that were up, all sessions.
        labels: All matured labels, all sessions.
        last_session: Label of the last folded session; None before the first.
        ordinal: Ordinal of the last folded session, counted from 0; -1 before the first.
        recent_sessions: Labels of the last `min_keep` folded sessions, oldest first.
    """

    horizon: int
    log_wealth: tuple[float, ...]
    reserve: float
    trust_weights: tuple[float, ...]
    status: Skill
    status_since: str | None
    era: int
    era_sessions: int
    log_evidence: float
    log_peak: float
    peak_ordinal: int | None
    after_peak: str | None
    since: int
    train_from: str | None
    ups: int
    labels: int
    last_session: str | None
    ordinal: int
    recent_sessions: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse numbers that would spread silently.

        Raises:
            ValueError: One line that names the field.
        """
        _require(
            len(self.log_wealth) > 0 and all(value < math.inf for value in self.log_wealth),
            "gate state: log_wealth must be numbers or -inf",
        )
        for name in ("log_evidence", "log_peak"):
            _require(math.isfinite(getattr(self, name)), f"gate state: {name} must be finite")
        _require(0 <= self.reserve <= 1, "gate state: reserve must lie in [0, 1]")
        _require(
            all(0 <= weight <= 1 for weight in self.trust_weights),
            "gate state: trust_weights must lie in [0, 1]",
        )
        _require(self.horizon >= 1, "gate state: horizon must be at least 1")
        for name in ("era", "era_sessions", "since", "ups", "labels"):
            count = getattr(self, name)
            _require(isinstance(count, int) and count >= 0, f"gate state: {name} must be a count")
        _require(self.ups <= self.labels, "gate state: ups must not exceed labels")
        _require(
            (self.peak_ordinal is not None) == (self.status is Skill.PROVEN),
            "gate state: a peak belongs to proven skill and to nothing else",
        )

    @classmethod
    def new(cls, rule: GateRule) -> GateState:
        """State before the first session.

        Args:
            rule: Constants that set the size of the state and the prior of trust.
        """
        return cls(
            horizon=rule.horizon,
            log_wealth=_no_wealth(rule),
            reserve=1.0,
            trust_weights=rule.trust_prior,
            status=Skill.UNPROVEN,
            status_since=None,
            era=0,
            era_sessions=0,
            log_evidence=0.0,
            log_peak=0.0,
            peak_ordinal=None,
            after_peak=None,
            since=0,
            train_from=None,
            ups=0,
            labels=0,
            last_session=None,
            ordinal=-1,
            recent_sessions=(),
        )

    def base_rate(self, rule: GateRule) -> float:
        """Climatology in force for the next session, strictly between 0 and 1."""
        return climatology(self.ups, self.labels, rule.labels_per_session, rule.prior_sessions)

    def to_json(self) -> str:
        """Strict JSON without loss: numbers round-trip exactly, an empty wealth (-inf) is null."""
        fields = dataclasses.asdict(self)
        fields["log_wealth"] = [None if value == -math.inf else value for value in self.log_wealth]
        return json.dumps(fields, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> GateState:
        """Inverse of `to_json`.

        Args:
            text: What `to_json` wrote, or what it did when the wealth of each offset was kept: then
                the wealth of a factor is their mean, and the evidence the same.

        Raises:
            ValueError: The text is not strict JSON, lacks a field, has an unknown one or holds a
                value of the wrong kind.
        """
        fields = json.loads(text, parse_constant=_refuse_constant)
        if isinstance(fields, dict) and _is_by_offset(fields):
            fields["horizon"] = len(fields["log_wealth"])
            fields["log_wealth"] = _mean_over_offsets(fields["log_wealth"])
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or set(fields) != names:
            raise ValueError("gate state: the JSON must hold exactly the fields of the state")
        _require(fields["status"] in list(Skill), "gate state: the JSON has an unknown status")
        try:
            fields["log_wealth"] = tuple(
                -math.inf if value is None else float(value) for value in fields["log_wealth"]
            )
            fields["trust_weights"] = tuple(float(weight) for weight in fields["trust_weights"])
            fields["recent_sessions"] = tuple(fields["recent_sessions"])
            fields["status"] = Skill(fields["status"])
            return cls(**fields)
        except TypeError as error:
            raise ValueError(
                f"gate state: the JSON has a value of the wrong kind: {error}"
            ) from error


@dataclass(frozen=True, slots=True)
class Event:
    """A session that changed the skill status.

    Attributes:
        kind: Skill proven or lost.
        detail: Why it was lost: 'draw' = evidence fell too far from its peak, 'stale' = too long
            without a new peak; '' for a proof.
        session: Session that changed it.
        log_evidence: Log-evidence after that session; after a loss the state itself starts anew.
    """

    kind: EventKind
    detail: LossCause
    session: str
    log_evidence: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happens to a candidate, and why, in words for the promotion log."""

    kind: VerdictKind
    reason: str


# --- the fold --------------------------------------------------------------------------------


def fold(
    state: GateState, evidence: SessionEvidence, rule: GateRule
) -> tuple[GateState, Event | None]:
    """Add one matured session; pure, and a session that is not newer changes nothing.

    To be called once per session, when all its labels have matured. What a session multiplies the
    wealth with is the mean over the offsets of a likelihood ratio of labels that do not overlap;
    of each of them, and so of their mean, the expectation on noise is 1 given all earlier sessions.
    The evidence is therefore a martingale over sessions and exceeds 1/alpha on noise with
    probability at most alpha, ever (Ville's inequality; Vovk and Wang, Annals of Statistics 49(3),
    2021, sections 3 and 4, for means and products of e-values; Henzi and Ziegel, Biometrika 109(4),
    correction p. 1181, for why it must not be read between overlapping labels).
    A session without rows counts for the base rate and the ordinal only.

    Args:
        state: State before the session.
        evidence: The session.
        rule: Constants; the same sizes as those the state was made with.

    Returns:
        State after the session, and the change of skill status or None.

    Raises:
        ValueError: State, session and rule do not fit together.
    """
    if state.last_session is not None and evidence.session <= state.last_session:
        return state, None
    _require_fit(state, evidence, rule)
    state = _count_session(state, evidence, rule)
    if evidence.rows == 0:
        return state, None
    state = _stake_on_session(state, evidence, rule)
    state = replace(state, trust_weights=_updated_trust(state, evidence, rule))
    if state.status is Skill.PROVEN:
        return _check_loss(_follow_peak(state), evidence.session, rule)
    return _check_proof(state, evidence.session, rule)


def trust(state: GateState, rule: GateRule) -> float:
    """Factor in [0, 1] by which margins are shrunk before they are served."""
    return float(np.dot(state.trust_weights, rule.trust_grid))


def _count_session(state: GateState, evidence: SessionEvidence, rule: GateRule) -> GateState:
    after_peak = state.after_peak
    if after_peak is None and state.status is Skill.PROVEN:
        after_peak = evidence.session
    return replace(
        state,
        ups=state.ups + int(evidence.ups),
        labels=state.labels + int(evidence.labels),
        last_session=evidence.session,
        ordinal=state.ordinal + 1,
        recent_sessions=(*state.recent_sessions, evidence.session)[-rule.min_keep :],
        after_peak=after_peak,
    )


def _stake_on_session(state: GateState, evidence: SessionEvidence, rule: GateRule) -> GateState:
    stake = state.reserve * (rule.first_stake if state.era_sessions == 0 else rule.later_stake)
    reserve = state.reserve - stake
    log_wealth = np.logaddexp(state.log_wealth, _log(stake / len(rule.evidence_factors)))
    by_offset = _sum_by_offset(_log_ratios(evidence, rule.evidence_factors), evidence, rule)
    # what the offsets have won is shared out evenly after every session: they see the same edge,
    # and the one that was ahead is not the one that will be
    log_wealth += np.logaddexp.reduce(by_offset, axis=0) - math.log(rule.horizon)
    return replace(
        state,
        log_wealth=tuple(log_wealth.tolist()),
        reserve=reserve,
        era_sessions=state.era_sessions + 1,
        log_evidence=float(np.logaddexp.reduce([_log(reserve), *log_wealth])),
    )


def _updated_trust(
    state: GateState, evidence: SessionEvidence, rule: GateRule
) -> tuple[float, ...]:
    # Overlapping labels repeat each other: together the labels of a horizon count once.
    gains = _log_ratios(evidence, rule.trust_grid).sum(axis=1) / rule.horizon
    log_weights = np.log(state.trust_weights) + gains
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    shared = (1 - rule.share) * weights + rule.share * np.asarray(rule.trust_prior)
    return tuple(shared.tolist())


def _check_proof(state: GateState, session: str, rule: GateRule) -> tuple[GateState, Event | None]:
    if state.log_evidence < -math.log(rule.alpha):
        return state, None
    proven = replace(_proven_at_peak(state), status_since=session)
    return proven, Event(EventKind.SKILL_PROVEN, "", session, state.log_evidence)


def _follow_peak(state: GateState) -> GateState:
    if state.log_evidence > state.log_peak:
        return _proven_at_peak(state)
    return replace(state, since=state.since + 1)


def _proven_at_peak(state: GateState) -> GateState:
    return replace(
        state,
        status=Skill.PROVEN,
        log_peak=state.log_evidence,
        peak_ordinal=state.ordinal,
        after_peak=None,
        since=0,
    )


def _check_loss(state: GateState, session: str, rule: GateRule) -> tuple[GateState, Event | None]:
    cause = _loss_cause(state, rule)
    if not cause:
        return state, None
    lost = replace(
        state,
        log_wealth=_no_wealth(rule),
        reserve=1.0,
        status=Skill.LOST,
        status_since=session,
        era=state.era + 1,
        era_sessions=0,
        log_evidence=0.0,
        log_peak=0.0,
        peak_ordinal=None,
        after_peak=None,
        since=0,
        train_from=_session_after_change(state, rule) if cause == "draw" else state.train_from,
    )
    return lost, Event(EventKind.SKILL_LOST, cause, session, state.log_evidence)


def _loss_cause(state: GateState, rule: GateRule) -> LossCause:
    if state.log_peak - state.log_evidence >= math.log(rule.draw):
        return "draw"
    return "stale" if state.since >= rule.stale else ""


def _session_after_change(state: GateState, rule: GateRule) -> str | None:
    """First session to train on: the one after the peak, or earlier to keep `min_keep` sessions."""
    first_kept = state.ordinal - rule.min_keep + 1
    if first_kept < 0:
        return None
    if state.peak_ordinal is not None and state.peak_ordinal < first_kept:
        return state.after_peak
    return state.recent_sessions[0]


def _log_ratios(evidence: SessionEvidence, factors: Sequence[float]) -> FloatArray:
    """Log-likelihood ratio of the shrunk margin to the base rate, [factors, n] in nats."""
    base = logit(evidence.base_rate)
    shrunk = base + np.outer(factors, evidence.margin)
    return log_likelihood(shrunk, evidence.up) - log_likelihood(base, evidence.up)


def _sum_by_offset(ratios: FloatArray, evidence: SessionEvidence, rule: GateRule) -> FloatArray:
    """Sums over the rows of each offset, [factors, n] -> [horizon, factors]."""
    sums = [np.bincount(evidence.offset, row, minlength=rule.horizon) for row in ratios]
    return np.stack(sums, axis=1)


# --- verdicts and words ----------------------------------------------------------------------


def verdict(state: GateState, guard_failure: str | None, rule: GateRule = DEFAULT_RULE) -> Verdict:
    """Decide about a freshly trained candidate.

    Args:
        state: State after the last matured session.
        guard_failure: Why a guard refused the candidate; None = it passed all guards.
        rule: Constants the state was folded with.

    Returns:
        Promote when skill is proven, hold while it is not, reject when a guard failed.
    """
    if guard_failure is not None:
        return Verdict(VerdictKind.REJECT, guard_failure)
    words = evidence_in_words(state, rule)
    if state.status is Skill.PROVEN:
        return Verdict(VerdictKind.PROMOTE, f"skill {words}; newest model replaces champion")
    subject = "skill" if state.status is Skill.LOST else "skill unproven:"
    return Verdict(VerdictKind.HOLD, f"{subject} {words}; candidate serves as challenger, shrunk")


def evidence_in_words(state: GateState, rule: GateRule) -> str:
    """One line on where the evidence stands.

    Examples: 'evidence 1.4 of the 20 needed after 31 sessions', 'proven in session 2026-02-11,
    evidence 310, peak 420', 'lost in session 2026-03-02, since then evidence 0.8 of the 20 needed
    after 3 sessions'.
    """
    evidence = _in_words(state.log_evidence)
    if state.status is Skill.PROVEN:
        peak = _in_words(state.log_peak)
        return f"proven in session {state.status_since}, evidence {evidence}, peak {peak}"
    noun = "session" if state.era_sessions == 1 else "sessions"
    progress = (
        f"evidence {evidence} of the {rule.needed_evidence:g} needed "
        f"after {state.era_sessions} {noun}"
    )
    if state.status is Skill.LOST:
        return f"lost in session {state.status_since}, since then {progress}"
    return progress


def evidence_number(log_evidence: float) -> float:
    """The evidence E of its natural logarithm, at most 1e12 so that it can be shown."""
    return math.exp(min(log_evidence, math.log(_LARGEST_SHOWN)))


def _in_words(log_evidence: float) -> str:
    evidence = evidence_number(log_evidence)
    if not 0.1 <= evidence < 1e6:
        return f"{evidence:.0e}"
    # Rounded down: 19.97 must not read as the 20 that are needed. The factor undoes what exp(log)
    # may have taken off a round number.
    evidence *= 1 + 1e-9
    return f"{math.floor(evidence)}" if evidence >= 100 else f"{math.floor(evidence * 10) / 10:.1f}"


# --- small parts -----------------------------------------------------------------------------


def folded_by_offset(state: str) -> bool:
    """Whether a stored state is of the rule that kept the wealth of each offset.

    What it folded cannot be folded again to the same numbers; it is where a refold begins.
    """
    return _is_by_offset(json.loads(state))


def _is_by_offset(fields: dict[str, Any]) -> bool:
    return "horizon" not in fields and isinstance(fields.get("log_wealth"), list)


def _mean_over_offsets(wealth: Sequence[Sequence[float | None]]) -> list[float]:
    _require(
        all(isinstance(row, list) for row in wealth) and len(set(map(len, wealth))) == 1,
        "gate state: log_wealth must have a number for each offset and factor",
    )
    rows = [[-math.inf if value is None else value for value in row] for row in wealth]
    mean: list[float] = (np.logaddexp.reduce(rows, axis=0) - math.log(len(rows))).tolist()
    return mean


def _no_wealth(rule: GateRule) -> tuple[float, ...]:
    return (-math.inf,) * len(rule.evidence_factors)


def _log(x: float) -> float:
    # A reserve staked away for a very long time underflows to 0.
    return math.log(x) if x > 0 else -math.inf


def _is_session(label: str) -> bool:
    try:
        return dt.date.fromisoformat(label).isoformat() == label
    except (TypeError, ValueError):
        return False


def _require_fit(state: GateState, evidence: SessionEvidence, rule: GateRule) -> None:
    sizes = (state.horizon, len(state.log_wealth), len(state.trust_weights))
    expected = (rule.horizon, len(rule.evidence_factors), len(rule.trust_grid))
    _require(sizes == expected, f"gate state has sizes {sizes}, the rule needs {expected}")
    label = f"session {evidence.session!r}"
    _require(
        bool((evidence.offset < rule.horizon).all()),
        f"{label}: offset must be below the horizon of {rule.horizon}",
    )
    _require(
        bool((np.abs(evidence.margin) <= rule.clip).all()),
        f"{label}: margin must be clipped to {rule.clip:g}",
    )


def _refuse_constant(token: str) -> NoReturn:
    raise ValueError(f"gate state: {token} is not strict JSON")
