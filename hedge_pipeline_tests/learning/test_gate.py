"""What the gate promises: its numbers, its guarantee, and that it is a pure fold."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import FrozenInstanceError, dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import gate_power
from hedge_pipeline.learning import gate
from hedge_pipeline.learning.gate import (
    Event,
    EventKind,
    GateRule,
    GateState,
    SessionEvidence,
    Skill,
    VerdictKind,
    climatology,
    evidence_in_words,
    fold,
    trust,
    verdict,
)
from hedge_pipeline.probability import (
    FloatArray,
    IntArray,
    log_likelihood,
    logit,
    sigmoid,
    trusted_probability,
)

RULE = GateRule()
FIRST_DAY = dt.date(2025, 9, 1)

# A session of 380 labels, |margin| = 0.6, of which exactly 80 % have the right sign (of the modest
# one 60 %), whatever the offset as nearly as 38 labels can.
BAR = np.arange(380)
MARGIN = np.where((BAR // 13) % 2 == 0, 0.6, -0.6)
TURN = (BAR + BAR // 10) % 10
UP = np.where(TURN < 8, MARGIN > 0, MARGIN < 0).astype(np.int64)
MODEST_UP = np.where(TURN < 6, MARGIN > 0, MARGIN < 0).astype(np.int64)


def label_of(ordinal: int) -> str:
    return (FIRST_DAY + dt.timedelta(days=ordinal)).isoformat()


def session_of(
    ordinal: int,
    margin: Sequence[float] | FloatArray = MARGIN,
    up: Sequence[int] | IntArray = UP,
    offset: Sequence[int] | IntArray | None = None,
    base_rate: float | FloatArray = 0.5,
    unpredicted: int = 0,
) -> SessionEvidence:
    rows = len(up)
    return SessionEvidence(
        session=label_of(ordinal),
        margin=np.asarray(margin, dtype=np.float64),
        up=np.asarray(up, dtype=np.int64),
        offset=np.arange(rows) % 10 if offset is None else np.asarray(offset, dtype=np.int64),
        base_rate=np.broadcast_to(np.asarray(base_rate, dtype=np.float64), (rows,)),
        ups=int(np.sum(up)),
        labels=rows + unpredicted,
    )


def without_rows(ordinal: int, ups: int = 200, labels: int = 380) -> SessionEvidence:
    return replace(session_of(ordinal, [], []), ups=ups, labels=labels)


def fold_all(
    sessions: Iterable[SessionEvidence], state: GateState | None = None, rule: GateRule = RULE
) -> tuple[GateState, list[Event]]:
    state = GateState.new(rule) if state is None else state
    events = []
    for session in sessions:
        state, event = fold(state, session, rule)
        if event is not None:
            events.append(event)
    return state, events


def skilful(first: int, count: int) -> list[SessionEvidence]:
    return [session_of(ordinal) for ordinal in range(first, first + count)]


def silent(first: int, count: int) -> list[SessionEvidence]:
    return [session_of(ordinal, 0 * MARGIN) for ordinal in range(first, first + count)]


def random_sessions(seed: int, count: int) -> list[SessionEvidence]:
    """Skill, then the opposite, then none; some sessions have no rows; base rates differ by row."""
    rng = np.random.default_rng(seed)
    sessions = []
    for ordinal in range(count):
        slope = 0.5 if ordinal < 0.4 * count else (-0.5 if ordinal < 0.5 * count else 0.0)
        rows = 0 if rng.random() < 0.05 else int(rng.integers(150, 381))
        margin = np.clip(0.5 * rng.standard_normal(rows), -1, 1)
        base_rate = 0.49 + 0.03 * rng.random(rows)
        up = (rng.random(rows) < sigmoid(logit(base_rate) + slope * margin)).astype(int)
        offset = rng.integers(0, 10, rows)
        sessions.append(session_of(ordinal, margin, up, offset, base_rate, unpredicted=5))
    return sessions


# --- golden values ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sessions", "log_evidence", "factor"),
    [(1, 0.408087, 0.358385), (2, 0.890373, 0.464175), (5, 2.673968, 0.713094)],
)
def test_sixty_percent_hits_give_the_golden_evidence_and_trust(
    sessions: int, log_evidence: float, factor: float
) -> None:
    assert np.mean((MARGIN > 0) == (MODEST_UP > 0)) == 0.6
    state, events = fold_all(session_of(x, MARGIN / 2, MODEST_UP) for x in range(sessions))
    assert state.log_evidence == pytest.approx(log_evidence, abs=5e-7)
    assert trust(state, RULE) == pytest.approx(factor, abs=5e-7)
    assert events == []


def test_eighty_percent_hits_are_proven_in_the_first_session() -> None:
    state, events = fold_all(skilful(0, 3))
    assert state.status is Skill.PROVEN
    assert [(event.kind, event.detail, event.session) for event in events] == [
        (EventKind.SKILL_PROVEN, "", label_of(0))
    ]


def test_a_flip_is_lost_by_draw_at_once_and_keeps_five_sessions_to_train_on() -> None:
    before, _ = fold_all(skilful(0, 60))
    state, (event,) = fold_all([session_of(60, -MARGIN)], before)
    assert (event.kind, event.detail) == (EventKind.SKILL_LOST, "draw")
    assert event.log_evidence == pytest.approx(305.092724, abs=5e-7)
    assert trust(state, RULE) == pytest.approx(0.036450, abs=5e-7)
    assert (state.status, state.era) == (Skill.LOST, 1)
    assert state.train_from == label_of(56)


def test_margins_of_zero_are_no_evidence_for_ever() -> None:
    state, events = fold_all(silent(0, 50))
    assert state.log_evidence == pytest.approx(0, abs=1e-12)
    assert trust(state, RULE) == pytest.approx(0.26)
    assert (state.status, events) == (Skill.UNPROVEN, [])


def test_proof_without_a_new_peak_is_stale_in_the_thirtieth_session() -> None:
    proven, _ = fold_all(skilful(0, 8))
    still, events = fold_all(silent(8, 29), proven)
    assert (still.status, still.since, events) == (Skill.PROVEN, 29, [])
    lost, (event,) = fold_all(silent(37, 1), still)
    assert (event.kind, event.detail) == (EventKind.SKILL_LOST, "stale")
    assert lost.train_from is None


# --- the guarantee ---------------------------------------------------------------------------


def test_expected_wealth_under_the_null_is_one_by_enumeration_of_all_outcomes() -> None:
    rule = GateRule(horizon=2)
    margins, offsets, base_rate = [0.3, -0.5, 0.2, 0.9, -0.1, 0.4], [0, 1, 0, 1, 0, 1], 0.37
    expected = 0.0
    for first in itertools.product((0, 1), repeat=6):
        after_first, _ = fold(
            GateState.new(rule), session_of(0, margins, first, offsets, base_rate), rule
        )
        for second in itertools.product((0, 1), repeat=3):
            session = session_of(1, margins[:3], second, offsets[:3], base_rate)
            state, _ = fold(after_first, session, rule)
            ups = sum(first) + sum(second)
            probability = base_rate**ups * (1 - base_rate) ** (9 - ups)
            expected += probability * math.exp(state.log_evidence)
    assert expected == pytest.approx(1, abs=1e-12)


def autoregression(
    rng: np.random.Generator, shape: tuple[int, int], half_life: float
) -> FloatArray:
    """Stationary AR(1) along the last axis, unit variance; an infinite half-life is a constant."""
    memory = 0.5 ** (1 / half_life)
    values = rng.standard_normal(shape)
    for bar in range(1, shape[1]):
        shock = math.sqrt(1 - memory**2) * values[:, bar]
        values[:, bar] = memory * values[:, bar - 1] + shock
    return values


def sessions_to_proof(margins: FloatArray, ups: IntArray) -> float:
    """Sessions until proof, infinite if there is none; margins and ups are [sessions, labels]."""
    state = GateState.new(RULE)
    for ordinal, (margin, up) in enumerate(zip(margins, ups, strict=True)):
        session = session_of(ordinal, margin, up, base_rate=state.base_rate(RULE))
        state, _ = fold(state, session, RULE)
        if state.status is Skill.PROVEN:
            return ordinal + 1
    return math.inf


def random_walk_labels(rng: np.random.Generator, sessions: int) -> IntArray:
    """Overlapping labels of the next ten bars, [sessions, 380]."""
    prices = rng.standard_normal((sessions, 390)).cumsum(axis=1)
    return (prices[:, 10:] > prices[:, :-10]).astype(np.int64)


def pulled_price(rng: np.random.Generator, sessions: int) -> tuple[FloatArray, IntArray]:
    """Exact log-odds and labels of a price that is pulled to a middle 8 volatilities away.

    Every session has three channels of 130 bars; only labels within a channel are used, so both
    arrays are [sessions, 360]. The log-odds are right 56 % of the time.
    """
    keep = 1 - 0.0066
    distance = np.empty((3 * sessions, 130))
    distance[:, 0] = rng.choice((-8.0, 8.0), 3 * sessions)
    for bar in range(1, 130):
        distance[:, bar] = keep * distance[:, bar - 1] + rng.standard_normal(3 * sessions)
    now, later = distance[:, :-10], distance[:, 10:]
    spread = math.sqrt(sum(keep ** (2 * step) for step in range(10)))
    normal = statistics.NormalDist(0, spread)
    oracle = np.vectorize(normal.cdf)((keep**10 - 1) * now)
    rows = (sessions, 360)
    return logit(oracle).reshape(rows), (later > now).astype(np.int64).reshape(rows)


@pytest.mark.parametrize("half_life", [3.0, 50.0, math.inf])
def test_at_most_five_of_a_hundred_noise_streams_are_ever_called_proven(half_life: float) -> None:
    proofs = []
    for stream in range(100):
        rng = np.random.default_rng((1, stream))
        margins = np.clip(0.15 * autoregression(rng, (110, 380), half_life), -1, 1)
        proofs.append(sessions_to_proof(margins, random_walk_labels(rng, 110)))
    assert sum(math.isfinite(proof) for proof in proofs) <= 5


def test_an_edge_of_56_percent_is_proven_within_weeks() -> None:
    proofs, right = [], []
    for stream in range(20):
        rng = np.random.default_rng((1, stream))
        log_odds, ups = pulled_price(rng, 40)
        margins = 0.8 * log_odds + 0.15 * autoregression(rng, (40, 360), 20.0)
        proofs.append(sessions_to_proof(np.clip(margins, -1, 1), ups))
        right.append(np.mean((log_odds > 0) == (ups > 0)))
    assert np.mean(right) == pytest.approx(0.56, abs=0.01)
    assert statistics.median(proofs) <= 16
    assert sum(proof <= 30 for proof in proofs) >= 19


@pytest.mark.parametrize(("accuracy", "sessions", "most"), [(54, 60, 4), (58, 15, 1)])
def test_an_edge_is_proven_in_as_many_sessions_as_its_size_needs(
    accuracy: int, sessions: int, most: int
) -> None:
    """Of many streams 7 % need more than 60 sessions at 54 %, and 0.3 % more than 15 at 58 %."""
    theta = gate_power.THETA_BY_ACCURACY[accuracy]
    late = 0
    for stream in range(20):
        rng = np.random.default_rng((4, accuracy, stream))
        proof = gate_power.sessions_to_proof(gate_power.edge_stream(rng, theta, sessions))
        late += proof is None
    assert late <= most


def test_a_fold_of_a_session_takes_milliseconds() -> None:
    """The fastest of many: whatever else the machine does, it costs no more than that."""
    typical, _slow = gate_power.measure_latency(100).values
    assert typical is not None
    assert typical < 5


# --- the same rule written a second time -----------------------------------------------------


@dataclass
class PlainGate:
    """The rule in plain Python, row by row, with wealth as numbers instead of logarithms."""

    wealth: dict[float, float] = field(default_factory=dict)
    reserve: float = 1.0
    weights: list[float] = field(default_factory=lambda: [0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
    status: str = "unproven"
    peak: float = 0.0
    peak_session: int = 0
    waiting: int = 0
    train_from: int | None = None

    GRID: ClassVar = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
    TESTED: ClassVar = (0.25, 0.5, 1.0)

    def ratios(self, margin: float, up: int, base_rate: float) -> dict[float, float]:
        ratios = {}
        for factor in self.GRID:
            odds = base_rate / (1 - base_rate) * math.exp(factor * margin)
            probability = odds / (1 + odds)
            ratios[factor] = probability / base_rate if up else (1 - probability) / (1 - base_rate)
        return ratios

    def session(
        self, number: int, rows: Sequence[tuple[float, int, int, float]]
    ) -> tuple[float, str | None]:
        stake = 0.75 if not self.wealth else self.reserve / 40
        self.reserve -= stake
        won = dict.fromkeys(itertools.product(range(10), self.TESTED), 1.0)
        gains = dict.fromkeys(self.GRID, 0.0)
        for margin, up, offset, base_rate in rows:
            for factor, ratio in self.ratios(margin, up, base_rate).items():
                gains[factor] += math.log(ratio) / 10
                if factor in self.TESTED:
                    won[offset, factor] *= ratio
        for tested in self.TESTED:
            mean = sum(won[offset, tested] for offset in range(10)) / 10
            self.wealth[tested] = (self.wealth.get(tested, 0.0) + stake / 3) * mean
        total = math.log(self.reserve + sum(self.wealth.values()))
        raw = [w * math.exp(gains[c]) for w, c in zip(self.weights, self.GRID, strict=True)]
        prior = (0.5, 0.1, 0.1, 0.1, 0.1, 0.1)
        self.weights = [0.97 * w / sum(raw) + 0.03 * p for w, p in zip(raw, prior, strict=True)]
        return total, self.judge(number, total)

    def judge(self, number: int, total: float) -> str | None:
        proving = self.status != "proven" and total >= math.log(20)
        if proving or (self.status == "proven" and total > self.peak):
            self.status, self.peak, self.peak_session, self.waiting = "proven", total, number, 0
            return "skill_proven" if proving else None
        if self.status != "proven":
            return None
        self.waiting += 1
        fallen = self.peak - total >= math.log(20)
        if not fallen and self.waiting < 30:
            return None
        self.status, self.wealth, self.reserve = "lost", {}, 1.0
        if fallen:
            self.train_from = min(self.peak_session + 1, number - 4)
        return "skill_lost"


@pytest.mark.parametrize("seed", [5, 6])
def test_a_second_implementation_agrees_on_random_sessions(seed: int) -> None:
    plain, state, kinds = PlainGate(), GateState.new(RULE), []
    for number, session in enumerate(random_sessions(seed, 200)):
        state, event = fold(state, session, RULE)
        if session.rows == 0:
            assert event is None
            continue
        columns = (session.margin, session.up, session.offset, session.base_rate)
        rows = list(zip(*(column.tolist() for column in columns), strict=True))
        total, kind = plain.session(number, rows)
        log_evidence = event.log_evidence if event else state.log_evidence
        factor = sum(w * c for w, c in zip(plain.weights, plain.GRID, strict=True))
        assert log_evidence == pytest.approx(total, abs=1e-11, rel=1e-12)
        assert trust(state, RULE) == pytest.approx(factor, abs=1e-12)
        assert (event.kind.value if event else None) == kind
        assert state.status.value == plain.status
        assert state.train_from == (
            None if plain.train_from is None else label_of(plain.train_from)
        )
        kinds.append(kind)
    assert {"skill_proven", "skill_lost"} <= set(kinds)


# --- the fold is pure ------------------------------------------------------------------------


def test_a_session_submitted_twice_changes_nothing() -> None:
    state, _ = fold_all(skilful(0, 3))
    again, event = fold(state, session_of(2, -MARGIN), RULE)
    assert again is state
    assert event is None


def test_a_session_older_than_the_last_changes_nothing() -> None:
    state, _ = fold_all(skilful(0, 3))
    assert fold(state, session_of(0), RULE) == (state, None)


def test_the_fold_leaves_its_input_alone() -> None:
    state, _ = fold_all(skilful(0, 2))
    before = state.to_json()
    fold(state, session_of(2), RULE)
    assert state.to_json() == before
    with pytest.raises(FrozenInstanceError):
        state.era = 3  # type: ignore[misc]


def test_two_symbols_do_not_depend_on_the_order_in_which_they_are_folded() -> None:
    left, right = random_sessions(1, 12), random_sessions(2, 12)
    one, other = GateState.new(RULE), GateState.new(RULE)
    for left_session, right_session in zip(left, right, strict=True):
        other, _ = fold(other, right_session, RULE)
        one, _ = fold(one, left_session, RULE)
    assert one == fold_all(left)[0]
    assert other == fold_all(right)[0]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(0, 30))
def test_a_restart_from_json_at_any_session_gives_the_same_state_and_events(
    seed: int, cut: int
) -> None:
    sessions = random_sessions(seed, 30)
    whole, events = fold_all(sessions)
    first, first_events = fold_all(sessions[:cut])
    second, second_events = fold_all(sessions[cut:], GateState.from_json(first.to_json()))
    assert second == whole
    assert first_events + second_events == events


def test_a_session_without_rows_counts_only_for_the_base_rate_and_the_ordinal() -> None:
    before, _ = fold_all(skilful(0, 1))
    after, event = fold(before, without_rows(1), RULE)
    assert event is None
    assert after == replace(
        before,
        ups=before.ups + 200,
        labels=before.labels + 380,
        last_session=label_of(1),
        ordinal=1,
        recent_sessions=(label_of(0), label_of(1)),
        after_peak=label_of(1),
    )


def test_sessions_before_the_first_model_do_not_touch_the_stake() -> None:
    early, _ = fold_all([without_rows(0), without_rows(1), session_of(2)])
    late, _ = fold_all([session_of(2)])
    assert early.log_evidence == late.log_evidence
    assert early.reserve == late.reserve == 0.25


def test_labels_without_a_prediction_count_for_the_base_rate() -> None:
    state, _ = fold_all([replace(session_of(0, [0.1], [1]), ups=30, labels=40)])
    assert (state.ups, state.labels) == (30, 40)
    assert state.base_rate(RULE) == climatology(30, 40)


def permute_within_offsets(rng: np.random.Generator, offset: IntArray) -> IntArray:
    order = np.arange(len(offset))
    for value in np.unique(offset):
        members = np.flatnonzero(offset == value)
        order[members] = rng.permutation(members)
    return order


@pytest.mark.parametrize("seed", range(5))
def test_labels_may_be_permuted_within_an_offset_only_together_with_their_margins(
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    margin = np.clip(0.4 * rng.standard_normal(380), -1, 1)
    up = (rng.random(380) < sigmoid(margin)).astype(int)
    order = permute_within_offsets(rng, BAR % 10)
    original, together, apart = (
        fold_all([session_of(0, m, u)])[0].log_evidence
        for m, u in ((margin, up), (margin[order], up[order]), (margin, up[order]))
    )
    assert together == pytest.approx(original, abs=1e-12)
    assert abs(apart - original) > 1e-3


# --- the state -------------------------------------------------------------------------------

numbers = st.floats(allow_nan=False, allow_infinity=False)
shares = st.floats(0, 1)
counts = st.integers(0, 10**9)
labels_of_sessions = st.dates().map(lambda day: day.isoformat())


@st.composite
def gate_states(draw: st.DrawFn) -> GateState:
    status = draw(st.sampled_from(Skill))
    ups = draw(counts)
    row = st.tuples(*[numbers | st.just(-math.inf)] * 3)
    return GateState(
        horizon=draw(st.integers(1, 120)),
        log_wealth=tuple(draw(row)),
        reserve=draw(shares),
        trust_weights=tuple(draw(st.lists(shares, min_size=6, max_size=6))),
        status=status,
        status_since=draw(st.none() | labels_of_sessions),
        era=draw(counts),
        era_sessions=draw(counts),
        log_evidence=draw(numbers),
        log_peak=draw(numbers),
        peak_ordinal=draw(counts) if status is Skill.PROVEN else None,
        after_peak=draw(st.none() | labels_of_sessions),
        since=draw(counts),
        train_from=draw(st.none() | labels_of_sessions),
        ups=ups,
        labels=ups + draw(counts),
        last_session=draw(st.none() | labels_of_sessions),
        ordinal=draw(st.integers(-1, 10**6)),
        recent_sessions=tuple(draw(st.lists(labels_of_sessions, max_size=5))),
    )


def refuse(token: str) -> None:
    raise AssertionError(f"{token} is not strict JSON")


@given(state=gate_states())
def test_json_round_trips_exactly_and_is_strict(state: GateState) -> None:
    text = state.to_json()
    json.loads(text, parse_constant=refuse)
    restored = GateState.from_json(text)
    assert restored == state
    assert isinstance(restored.status, Skill)
    assert restored.to_json() == text


@pytest.mark.parametrize(
    "damage",
    [
        lambda fields: fields.pop("era"),
        lambda fields: fields.update(colour="blue"),
        lambda fields: fields.update(status="certain"),
        lambda fields: fields.update(reserve=math.nan),
        lambda fields: fields.update(log_wealth=[0.0, math.inf]),
        lambda fields: fields.update(log_wealth=[]),
        lambda fields: fields.update(log_wealth=[[0.0], [0.0]]),
        lambda fields: (fields.pop("horizon"), fields.update(log_wealth=[[0.0], [0.0, 0.0]])),
        lambda fields: fields.pop("horizon"),
        lambda fields: fields.update(horizon=0),
        lambda fields: fields.update(log_wealth=7),
        lambda fields: fields.update(log_evidence=None),
        lambda fields: fields.update(trust_weights=[2.0]),
        lambda fields: fields.update(ups=5, labels=4),
        lambda fields: fields.update(since=-1),
        lambda fields: fields.update(era="first"),
        lambda fields: fields.update(status="proven"),
    ],
)
def test_damaged_state_json_is_refused_in_one_line(
    damage: Callable[[dict[str, Any]], object],
) -> None:
    fields = json.loads(GateState.new(RULE).to_json())
    damage(fields)
    with pytest.raises(ValueError, match=r"^gate state: [^\n]+$"):
        GateState.from_json(json.dumps(fields))


def test_a_state_that_kept_the_wealth_of_each_offset_goes_on_with_the_same_evidence() -> None:
    now, _ = fold_all(random_sessions(4, 12))
    by_offset = [[math.log(1 + offset), -2.0 * offset, None] for offset in range(10)]
    mean = [math.log(5.5), math.log(sum(math.exp(-2 * x) for x in range(10)) / 10), -math.inf]
    total = math.log(0.25 + sum(map(math.exp, mean)))
    fields = json.loads(now.to_json()) | {"reserve": 0.25, "log_evidence": total}
    assert not gate.folded_by_offset(now.to_json())
    del fields["horizon"]
    old = json.dumps(fields | {"log_wealth": by_offset})
    assert gate.folded_by_offset(old)
    read = GateState.from_json(old)
    assert read.horizon == 10
    assert read.log_wealth == pytest.approx(mean)
    after, event = fold(read, session_of(12, 0 * MARGIN), RULE)
    assert event is None
    assert after.log_evidence == pytest.approx(total)
    assert not gate.folded_by_offset(after.to_json())


@pytest.mark.parametrize("seed", range(3))
def test_offsets_that_take_turns_are_as_good_as_offsets_that_always_win(seed: int) -> None:
    """What one offset has won is not tied to it: the next session's winner starts with it too."""
    rng = np.random.default_rng(seed)
    ahead = np.arange(20) % 10
    turns, always = (
        fold_all(
            session_of(number, np.full(38, 0.4), [1] * 38, [int(offset)] * 38)
            for number, offset in enumerate(offsets)
        )[0]
        for offsets in (rng.permutation(ahead), np.zeros(20, dtype=np.int64))
    )
    assert turns.log_evidence == pytest.approx(always.log_evidence)


def test_the_state_stays_small_however_long_it_lives() -> None:
    state, longest = GateState.new(RULE), 0
    for session in skilful(0, 400) + silent(400, 29) + random_sessions_after(429, 100):
        state, _ = fold(state, session, RULE)
        longest = max(longest, len(state.to_json()))
        assert len(state.recent_sessions) <= RULE.min_keep
    assert longest < 2000


def random_sessions_after(first: int, count: int) -> list[SessionEvidence]:
    return [
        replace(session, session=label_of(first + number))
        for number, session in enumerate(random_sessions(3, count))
    ]


# --- losing skill ----------------------------------------------------------------------------


def weak_flip(ordinal: int) -> SessionEvidence:
    """Costs evidence, but less than a factor of 20 in one session."""
    return session_of(ordinal, -MARGIN[:60], UP[:60])


def test_after_a_slow_fall_training_starts_in_the_session_after_the_peak() -> None:
    state, _ = fold_all(skilful(0, 20))
    ordinal, event = 20, None
    while event is None:
        session = without_rows(ordinal) if ordinal % 2 == 0 else weak_flip(ordinal)
        state, event = fold(state, session, RULE)
        ordinal += 1
    assert event.detail == "draw"
    assert ordinal - 1 >= 24
    assert state.train_from == label_of(20)


@pytest.mark.parametrize(
    ("empty", "first_kept"), [(0, 16), (1, 17), (2, 18), (3, 19), (4, 20), (5, 20), (9, 20)]
)
def test_training_starts_after_the_peak_but_keeps_five_sessions(
    empty: int, first_kept: int
) -> None:
    between = [without_rows(20 + number) for number in range(empty)]
    flip = session_of(20 + empty, -MARGIN)
    state, events = fold_all([*skilful(0, 20), *between, flip])
    assert events[-1].detail == "draw"
    assert state.train_from == label_of(first_kept)


def test_a_loss_in_the_fifth_session_keeps_all_five() -> None:
    state, events = fold_all([*skilful(0, 4), session_of(4, -MARGIN)])
    assert events[-1].detail == "draw"
    assert state.train_from == label_of(0)


def test_a_loss_within_the_first_sessions_forgets_nothing() -> None:
    state, events = fold_all([*skilful(0, 2), session_of(2, -MARGIN), session_of(3, -MARGIN)])
    assert [event.kind for event in events] == [EventKind.SKILL_PROVEN, EventKind.SKILL_LOST]
    assert state.train_from is None


def test_a_stale_loss_keeps_what_an_earlier_draw_forgot() -> None:
    after_draw, _ = fold_all([*skilful(0, 20), session_of(20, -MARGIN)])
    state, events = fold_all([*skilful(21, 8), *silent(29, 40)], after_draw)
    assert [event.detail for event in events] == ["", "stale"]
    assert state.train_from == after_draw.train_from == label_of(16)


def test_a_lost_era_starts_anew_but_trust_and_base_rate_do_not() -> None:
    before, _ = fold_all(skilful(0, 60))
    lost, _ = fold(before, session_of(60, -MARGIN), RULE)
    new = GateState.new(RULE)
    assert lost.log_wealth == new.log_wealth
    assert (lost.reserve, lost.log_evidence, lost.era_sessions) == (1.0, 0.0, 0)
    assert trust(lost, RULE) < 0.2 * trust(new, RULE)  # it was the opposite of skill
    assert lost.labels == 61 * 380


def test_lost_skill_can_be_proven_again_at_once() -> None:
    lost, _ = fold_all([*skilful(0, 60), session_of(60, -MARGIN)])
    state, events = fold_all(skilful(61, 1), lost)
    assert [event.kind for event in events] == [EventKind.SKILL_PROVEN]
    assert events[0].log_evidence == pytest.approx(3.992543, abs=5e-7)
    assert (state.status, state.era, state.status_since) == (Skill.PROVEN, 1, label_of(61))


def test_a_new_peak_restarts_the_wait() -> None:
    state, _ = fold_all([*skilful(0, 8), *silent(8, 20), *skilful(28, 1)])
    assert (state.since, state.peak_ordinal, state.after_peak) == (0, 28, None)


# --- verdicts and words ----------------------------------------------------------------------


def test_a_failed_guard_rejects_whatever_the_evidence_says() -> None:
    state, _ = fold_all(skilful(0, 5))
    decision = verdict(state, "margins differ between training and serving by 0.02")
    assert decision.kind is VerdictKind.REJECT
    assert decision.reason == "margins differ between training and serving by 0.02"


def test_unproven_skill_holds_and_says_what_is_missing() -> None:
    state = replace(GateState.new(RULE), log_evidence=math.log(1.4), era_sessions=31)
    decision = verdict(state, None)
    assert decision.kind is VerdictKind.HOLD
    assert decision.reason == (
        "skill unproven: evidence 1.4 of the 20 needed after 31 sessions; "
        "candidate serves as challenger, shrunk"
    )


def test_proven_skill_promotes_the_newest_model() -> None:
    state = replace(
        fold_all(skilful(0, 1))[0],
        status_since="2026-02-11",
        log_evidence=math.log(310),
        log_peak=math.log(420),
    )
    assert evidence_in_words(state, RULE) == (
        "proven in session 2026-02-11, evidence 310, peak 420"
    )
    decision = verdict(state, None)
    assert decision.kind is VerdictKind.PROMOTE
    assert decision.reason == (
        "skill proven in session 2026-02-11, evidence 310, peak 420; newest model replaces champion"
    )


def test_lost_skill_holds_and_counts_from_the_loss() -> None:
    lost, _ = fold_all([*skilful(0, 60), session_of(60, -MARGIN), *silent(61, 1)])
    decision = verdict(lost, None)
    assert decision.kind is VerdictKind.HOLD
    assert decision.reason == (
        f"skill lost in session {label_of(60)}, since then evidence 1.0 of the 20 needed "
        "after 1 session; candidate serves as challenger, shrunk"
    )


@pytest.mark.parametrize(
    ("log_evidence", "words"),
    [
        (1e6, "1e+12"),
        (30.0, "1e+12"),
        (math.log(3e8), "3e+08"),
        (math.log(310), "310"),
        (math.log(19.97), "19.9"),
        (math.log(0.004), "4e-03"),
    ],
)
def test_evidence_is_capped_and_never_rounded_up_to_proof(log_evidence: float, words: str) -> None:
    state = replace(GateState.new(RULE), log_evidence=log_evidence)
    assert evidence_in_words(state, RULE).startswith(f"evidence {words} of the 20 needed")


def test_the_words_follow_the_rule() -> None:
    strict = GateRule(alpha=0.01)
    state, events = fold_all(skilful(0, 1), rule=strict)
    assert events == []
    assert "54.1 of the 100 needed after 1 session;" in verdict(state, None, strict).reason


# --- probabilities ---------------------------------------------------------------------------


def test_the_base_rate_starts_at_a_half_and_follows_the_counts() -> None:
    assert climatology(0, 0) == 0.5
    assert climatology(1900, 1900) == 0.75
    assert climatology(10, 10, labels_per_session=2) == 0.75
    assert GateState.new(RULE).base_rate(RULE) == 0.5


def test_no_trust_serves_the_base_rate_and_full_trust_the_model() -> None:
    margin = np.array([-0.4, 0.0, 0.7])
    np.testing.assert_allclose(trusted_probability(0.53, margin, 0.0), 0.53)
    np.testing.assert_allclose(
        trusted_probability(0.53, margin, 1.0), sigmoid(logit(0.53) + margin)
    )
    assert float(trusted_probability(0.5, 0.2, 0.5)) == pytest.approx(1 / (1 + math.exp(-0.1)))


@given(x=st.floats(-700, 700))
def test_the_probability_of_log_odds_never_overflows(x: float) -> None:
    with np.errstate(all="raise"):
        p = float(sigmoid(x))
        both = log_likelihood(np.array([x, x]), np.array([1, 0]))
    assert 0 <= p <= 1
    assert p + float(sigmoid(-x)) == pytest.approx(1)
    assert np.isfinite(both).all()
    assert both[0] == pytest.approx(math.log(p))


@given(p=st.floats(1e-9, 1 - 1e-9))
def test_log_odds_and_probability_are_inverse(p: float) -> None:
    assert float(sigmoid(logit(p))) == pytest.approx(p)


# --- validation ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        ({"session": "2025-9-1"}, "the label must be an ISO date"),
        ({"session": "20250901"}, "the label must be an ISO date"),
        ({"margin": np.zeros(2)}, "columns must be vectors of one length"),
        ({"margin": np.zeros((3, 1))}, "columns must be vectors of one length"),
        ({"margin": np.array([0.1, np.nan, 0.1])}, "margin must be finite"),
        ({"up": np.array([0, 1, 2])}, "up must be 0 or 1"),
        ({"up": np.array([0, 1, np.nan])}, "up must be 0 or 1"),
        ({"offset": np.array([0, -1, 2])}, "offset must be whole and at least 0"),
        ({"offset": np.array([0, 0.5, 2])}, "offset must be whole and at least 0"),
        ({"base_rate": np.array([0.5, 1.0, 0.5])}, "base_rate must be strictly between 0 and 1"),
        ({"base_rate": np.full(3, np.nan)}, "base_rate must be strictly between 0 and 1"),
        ({"ups": 0}, "ups must include the ups among the rows"),
        ({"labels": 1}, "labels less ups must include the downs among the rows"),
    ],
)
def test_impossible_evidence_is_refused_in_one_line_that_names_the_session(
    change: dict[str, Any], claim: str
) -> None:
    with pytest.raises(ValueError, match=rf"^session '{change.get('session', '2025-09-01')}': .*"):
        replace(session_of(0, [0.1, 0.2, -0.1], [1, 0, 0]), **change)
    with pytest.raises(ValueError, match=claim):
        replace(session_of(0, [0.1, 0.2, -0.1], [1, 0, 0]), **change)


def test_evidence_is_a_read_only_copy() -> None:
    margin = np.array([0.1, 0.2])
    evidence = session_of(0, margin, [1, 0])
    margin[0] = 9.0
    assert evidence.margin[0] == 0.1
    with pytest.raises(ValueError, match="read-only"):
        evidence.margin[0] = 0.0


@pytest.mark.parametrize(
    ("session", "claim"),
    [
        (session_of(0, [0.1], [1], [10]), "session '2025-09-01': offset must be below the horizon"),
        (session_of(0, [1.01], [1]), "session '2025-09-01': margin must be clipped to 1"),
    ],
)
def test_evidence_that_the_rule_does_not_know_is_refused(
    session: SessionEvidence, claim: str
) -> None:
    with pytest.raises(ValueError, match=claim):
        fold(GateState.new(RULE), session, RULE)


@pytest.mark.parametrize("other", [GateRule(horizon=5), GateRule(evidence_factors=(0.5, 1.0))])
def test_a_state_of_another_rule_is_refused(other: GateRule) -> None:
    with pytest.raises(ValueError, match="gate state has sizes"):
        fold(GateState.new(other), session_of(0), RULE)


@pytest.mark.parametrize(
    "change",
    [
        {"horizon": 0},
        {"stale": 0},
        {"min_keep": 0},
        {"labels_per_session": 0},
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"first_stake": 1.0},
        {"later_stake": 0.0},
        {"share": 0.0},
        {"clip": 0.0},
        {"clip": math.nan},
        {"prior_sessions": 0},
        {"draw": 1.0},
        {"evidence_factors": ()},
        {"evidence_factors": (0.0, 1.0)},
        {"trust_grid": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)},
        {"trust_grid": (0.0, 0.1, 0.25, 0.5, 0.75, 1.1)},
        {"trust_prior": (1.0,)},
        {"trust_prior": (0.6, 0.1, 0.1, 0.1, 0.1, 0.1)},
        {"trust_prior": (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)},
    ],
)
def test_a_rule_that_voids_the_guarantee_is_refused_by_name(change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(ValueError, match=rf"^gate rule: {name} [^\n]+$"):
        GateRule(**change)


def test_the_default_rule_is_the_measured_one() -> None:
    assert gate.DEFAULT_RULE == RULE
    assert RULE.needed_evidence == 20
