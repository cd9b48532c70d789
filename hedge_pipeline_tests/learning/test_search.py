"""The search for hyper-parameters: folds in time, one rule to replace the defaults, a record."""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hedge_pipeline.learning import gate, search
from hedge_pipeline.learning.dataset import LabelledSessions
from hedge_pipeline.learning.gate import GateRule, GateState
from hedge_pipeline.learning.paired import SessionPair, compare
from hedge_pipeline.learning.search import (
    SPACE,
    Found,
    SearchPlan,
    SearchRecord,
    SearchShelf,
    SearchUnavailable,
    tuned,
)
from hedge_pipeline.learning.training import ModelError, TrainingPlan, fit, margins
from hedge_pipeline.learning.walk_forward import (
    Course,
    Fold,
    SplitRefused,
    Walk,
    course_of,
    cut,
    walk,
)
from hedge_pipeline.market.tables import FEATURE_ROWS, OUTCOMES
from hedge_pipeline.probability import trusted_probability
from hedge_pipeline.store import Store
from hedge_pipeline_tests.learning.conftest import (
    HORIZON,
    MINUTE,
    Floats,
    feature_rows,
    learnable_rows,
    outcome_rows,
    session_on,
    training_set,
)

DAYS = range(1, 25)
SESSIONS = {session_on(day).label: session_on(day) for day in DAYS}
LABELS = tuple(SESSIONS)
# sixty bars a session are few: with the usual weight of a leaf nothing would be learned
PLAN = TrainingPlan(child_weight=10.0)
RULE = GateRule(labels_per_session=60 - HORIZON)
CUTS = cut(LABELS, least=8, block=4)
LATER = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)


def known_at(label: str) -> dt.datetime:
    return SESSIONS[label].closes + 5 * MINUTE


def fill(store: Store, slope: float, sessions: Sequence[str] = LABELS, noise: int = 0) -> Store:
    """Sixty bars per session whose outcome depends on the first feature by `slope`."""
    for label in sessions:
        values, up = learnable_rows(60, int(label[-2:]) + noise, slope)
        store.append(FEATURE_ROWS, label, feature_rows(SESSIONS[label], values))
        outcomes = outcome_rows(SESSIONS[label], [int(x) for x in up[:-HORIZON]])
        store.append(OUTCOMES, label, outcomes)
    return store


def course_in(
    store: Store,
    cuts: Sequence[tuple[Sequence[str], Sequence[str]]] = CUTS,
    known_by: dt.datetime = LATER,
) -> Course:
    reader = LabelledSessions(store, HORIZON)
    return course_of(reader, "SIMQ", cuts, PLAN, RULE, known_at=known_at, known_by=known_by)


@pytest.fixture(scope="module")
def strong(tmp_path_factory: pytest.TempPathFactory) -> Course:
    """An edge that cautious parameters do not learn."""
    return course_in(fill(Store(str(tmp_path_factory.mktemp("strong"))), 2.0))


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Course:
    return course_in(fill(Store(str(tmp_path_factory.mktemp("noise"))), 0.0))


# --- folds -----------------------------------------------------------------------------------


@given(
    number=st.integers(0, len(LABELS)), least=st.integers(1, len(LABELS)), block=st.integers(1, 6)
)
def test_every_scored_session_comes_right_after_the_fitted_ones(
    number: int, least: int, block: int
) -> None:
    sessions = LABELS[:number]
    cuts = cut(sessions, least=least, block=block)
    assert len(cuts) == max(0, (number - least) // block)
    for fitted, scored in cuts:
        assert fitted == sessions[: len(fitted)]
        assert len(fitted) >= least
        assert scored == sessions[len(fitted) :][:block]
        assert len(scored) == block
    once = [label for _, scored in cuts for label in scored]
    assert tuple(once) == (sessions[-len(once) :] if once else ())


@given(
    least=st.integers(1, 4),
    block=st.integers(1, 3),
    delays=st.lists(st.integers(0, 90), min_size=7, max_size=7),
)
@settings(max_examples=8, deadline=None)
def test_no_label_to_fit_overlaps_or_follows_one_to_score(
    least: int, block: int, delays: list[int]
) -> None:
    """By the moments at which the labels read prices, with outcomes that come late."""
    sessions = LABELS[:7]
    with TemporaryDirectory() as folder:
        store = Store(folder)
        for label, delay in zip(sessions, delays, strict=True):
            values, up = learnable_rows(60, int(label[-2:]))
            store.append(FEATURE_ROWS, label, feature_rows(SESSIONS[label], values))
            outcomes = outcome_rows(SESSIONS[label], [int(x) for x in up[:-HORIZON]])
            outcomes["available_at"] += pd.Timedelta(minutes=delay)
            store.append(OUTCOMES, label, outcomes)
        reader = LabelledSessions(store, HORIZON)
        for fold in course_in(store, cut(sessions, least=least, block=block)).folds:
            fitted = [
                reader.read("SIMQ", x).known_by(known_at(fold.rows.sessions[-1]))
                for x in fold.rows.sessions
            ]
            assert fold.rows.counts == tuple(len(x.labels) for x in fitted)
            ends = np.concatenate([x.bar_ts for x in fitted]) + np.timedelta64(HORIZON + 1, "m")
            known = np.concatenate([x.known_at for x in fitted])
            starts = np.concatenate([x.bar_ts for _, x in fold.scored])
            assert len(starts)
            if len(ends):
                assert ends.max() <= starts.min()
                assert known.max() <= starts.min()


def divided(to_score: Sequence[Sequence[bool]]) -> Fold:
    """Rows by session, each of them to score or else to fit."""
    sides = dict(zip(LABELS, to_score, strict=False))
    fitted = tuple(label for label, side in sides.items() if not all(side))
    rows = replace(training_set(*learnable_rows(4)), sessions=fitted)
    session: Any = None
    return Fold(rows, tuple((label, session) for label, side in sides.items() if any(side)))


@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 0.95))
def test_a_random_split_is_refused(seed: int, share: float) -> None:
    evaluated = np.random.default_rng(seed).random((len(LABELS), 60)) < share
    with pytest.raises(SplitRefused, match="the split runs through session 2024-03-"):
        divided(evaluated.tolist())


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=3), min_size=1, max_size=5))
def test_only_a_cut_between_sessions_that_scores_the_later_ones_is_taken(
    to_score: list[list[bool]],
) -> None:
    whole = all(len(set(side)) == 1 for side in to_score)
    in_order = [side[0] for side in to_score]
    if whole and in_order == sorted(in_order):
        divided(to_score)
    else:
        with pytest.raises(SplitRefused):
            divided(to_score)


def test_a_split_at_a_minute_is_refused_even_if_it_is_only_one_row_off() -> None:
    one_off = [[False] * 59 + [True], [True] * 60]
    with pytest.raises(SplitRefused, match=f"through session {LABELS[0]}"):
        divided(one_off)


def test_scoring_the_past_of_what_was_fitted_is_refused(tmp_path: Path) -> None:
    store = fill(Store(str(tmp_path)), 2.0, LABELS[:4])
    with pytest.raises(SplitRefused, match="the past comes first"):
        course_in(store, [(LABELS[2:4], LABELS[:2])])


def test_a_fold_learns_from_the_rows_and_weights_of_a_training_of_that_day(strong: Course) -> None:
    for fold in strong.folds:
        last = fold.rows.weights[-fold.rows.counts[-1] :]
        np.testing.assert_allclose(last, 1 / HORIZON)  # the newest session weighs full


@pytest.mark.parametrize("late", ["features", "outcomes"])
def test_what_became_available_after_the_cutoff_changes_nothing(tmp_path: Path, late: str) -> None:
    """Poison in rows that came a day late gives the same course, bit for bit."""
    found = []
    for poison in (0.0, 1e6):
        store = Store(str(tmp_path / f"{poison:g}"))
        fill(store, 2.0, LABELS[:-1])
        label = LABELS[-1]
        values, up = learnable_rows(60, 24, 2.0)
        values[30:] += np.float32(poison)
        directions = [int(x) for x in up[:-HORIZON]]
        if poison:
            directions[30:] = [1] * len(directions[30:])
        features = feature_rows(SESSIONS[label], values)
        outcomes = outcome_rows(SESSIONS[label], directions)
        frame = features if late == "features" else outcomes
        frame.loc[30:, "available_at"] += pd.Timedelta(days=1)
        store.append(FEATURE_ROWS, label, features)
        store.append(OUTCOMES, label, outcomes)
        course = course_in(store, known_by=known_at(label))
        assert len(course.folds[-1].scored[-1][1].labels) == 30
        found.append(walk(course, PLAN, RULE))
    assert found[0] == found[1]


# --- the score -------------------------------------------------------------------------------


def test_the_score_is_what_the_gate_would_have_served(strong: Course) -> None:
    """Climatology, margin and trust, one session after the other, each by the gate itself."""
    state = strong.before
    sessions = sum(len(fitted) for fitted, _ in CUTS[:1])
    assert state.labels == sessions * (60 - HORIZON)
    assert gate.trust(state, RULE) == gate.trust(GateState.new(RULE), RULE)
    gains = []
    for fold in strong.folds:
        booster = fit(fold.rows, PLAN)[1]
        for label, session in fold.scored:
            margin = margins(booster, session.features, fold.rows.base_rate)
            base = state.base_rate(RULE)
            p = trusted_probability(base, margin, gate.trust(state, RULE))
            up = session.labels
            served = up * np.log(p) + (1 - up) * np.log1p(-p)
            climatology = up * np.log(base) + (1 - up) * np.log1p(-base)
            gains.append(float((served - climatology).sum()))
            evidence = gate.SessionEvidence(
                label,
                margin,
                up.astype(np.int64),
                np.arange(len(up)) % HORIZON,
                np.full(len(up), base),
                int(up.sum()),
                len(up),
            )
            state = gate.fold(state, evidence, RULE)[0]
    done = walk(strong, PLAN, RULE)
    np.testing.assert_allclose([x.gain for x in done.pairs], gains, rtol=1e-9)
    assert [x.labels for x in done.pairs] == [50] * 16
    assert compare(done.pairs).gain > 100  # there is something to learn


def test_the_earlier_folds_do_not_know_the_later_ones(strong: Course) -> None:
    earlier, seen = strong.halves()
    assert (len(earlier.folds), seen) == (2, 8)
    assert walk(earlier, PLAN, RULE).pairs == walk(strong, PLAN, RULE).pairs[:8]


# --- the space -------------------------------------------------------------------------------


def test_the_defaults_lie_inside_the_space() -> None:
    for name, value in tuned(TrainingPlan()).items():
        assert SPACE[name].least <= value <= SPACE[name].most
        step = SPACE[name].step
        assert isinstance(value, int) is (step is not None)
        assert step is None or (value - SPACE[name].least) % step == 0


@given(
    corner=st.fixed_dictionaries({name: st.sampled_from(["least", "most"]) for name in SPACE}),
    rows=st.sampled_from([200, 600]),
)
@settings(max_examples=10, deadline=None)
def test_equal_rows_give_equal_bytes_in_every_corner_of_the_space(
    corner: dict[str, str], rows: int
) -> None:
    chosen: dict[str, Any] = {name: getattr(SPACE[name], end) for name, end in corner.items()}
    plan = replace(PLAN, **chosen)
    data = training_set(*learnable_rows(rows))
    assert fit(data, plan)[0] == fit(data, plan)[0]
    assert plan.xgboost_parameters(0.5)["nthread"] == 1


# --- the rule --------------------------------------------------------------------------------


def scored(gains: Sequence[float], spread: float = 0.2) -> Walk:
    return Walk(tuple(SessionPair(100, gain) for gain in gains), spread)


def bare_course(sessions: int) -> Course:
    """Two folds of which only the number of scored sessions matters."""
    rows = replace(training_set(*learnable_rows(4)), sessions=())
    session: Any = None
    fold = Fold(rows, tuple((label, session) for label in LABELS[: sessions // 2]))
    return Course((fold, fold), GateState.new(RULE))


def found_by(
    monkeypatch: pytest.MonkeyPatch,
    score: Callable[[TrainingPlan], tuple[Sequence[float], Sequence[float], float]],
    trials: int = 6,
) -> Found:
    """A search in a market where a plan scores as told: choosing, confirming, spread."""

    def told(course: Course, plan: TrainingPlan, rule: GateRule) -> Walk:
        choosing, confirming, spread = score(plan)
        return scored([*choosing, *confirming][: sum(len(x.scored) for x in course.folds)], spread)

    monkeypatch.setattr(search, "walk", told)
    return search.search(bare_course(20), PLAN, RULE, trials=trials)


def wobble(mean: float) -> Floats:
    return mean + np.tile([1.0, -1.0], 5)


def test_the_first_trial_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_by(monkeypatch, lambda plan: ([0.0] * 10, [0.0] * 10, 0.2))
    assert found.trials[0].parameters == tuned(PLAN)
    assert len({json.dumps(x.parameters) for x in found.trials}) == 6


def test_no_better_score_leaves_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_by(
        monkeypatch, lambda plan: (wobble(2.0 * (plan == PLAN)).tolist(), [0.0] * 10, 0.2)
    )
    assert (found.best, found.adopted, found.parameters) == (0, False, tuned(PLAN))
    assert found.reason == "the defaults stay: none of 6 trials scored better on 10 sessions"


@pytest.mark.parametrize(
    ("later", "adopted", "said"),
    [
        (wobble(2.0), True, "adopted: trial 1 is better than the defaults: +200.0 ["),
        (wobble(0.2), False, "not confirmed; trial 1 is not shown to differ from the defaults"),
        (wobble(-2.0), False, "not confirmed; trial 1 is worse than the defaults: -200.0 ["),
    ],
    ids=["confirmed", "noise", "worse"],
)
def test_the_best_trial_counts_only_as_far_as_later_sessions_confirm_it(
    monkeypatch: pytest.MonkeyPatch, later: Floats, adopted: bool, said: str
) -> None:
    def score(plan: TrainingPlan) -> tuple[Sequence[float], Sequence[float], float]:
        if plan == PLAN:
            return [0.0] * 10, [0.0] * 10, 0.2
        return [50.0] * 10, later.tolist(), 0.2

    found = found_by(monkeypatch, score)
    assert found.adopted is adopted
    assert found.best == 1
    assert (found.parameters == found.trials[1].parameters) is adopted
    assert (found.parameters == tuned(PLAN)) is not adopted
    assert said in found.reason
    assert found.chosen.gain == pytest.approx(5000)
    assert found.confirmed.gain == pytest.approx(1e2 * later.mean())
    assert found.difference == found.confirmed  # the defaults scored nothing


def test_a_model_that_says_the_same_of_every_row_is_never_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def score(plan: TrainingPlan) -> tuple[Sequence[float], Sequence[float], float]:
        return ([-9.0] * 10, [-9.0] * 10, 0.2) if plan == PLAN else ([0.0] * 10, [0.0] * 10, 1e-9)

    assert found_by(monkeypatch, score).best == 0


def test_sessions_without_outcomes_cannot_be_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "walk", lambda *_: Walk((SessionPair(0, 0.0),), 0.0))
    with pytest.raises(ValueError, match="the sessions to score have no outcome"):
        search.search(bare_course(20), PLAN, RULE, trials=2)


def test_a_strong_edge_is_learned_with_other_parameters_and_noise_is_not(
    strong: Course, noise: Course
) -> None:
    cautious = replace(PLAN, child_weight=160.0)
    found = search.search(strong, cautious, RULE, trials=12)
    assert found.adopted, found.reason
    assert found.difference.lo > 0
    assert not search.search(noise, cautious, RULE, trials=12).adopted


def test_the_same_rows_and_seed_give_the_same_search_and_other_seeds_others(noise: Course) -> None:
    first, again = (search.search(noise, PLAN, RULE, trials=12, seed=3) for _ in range(2))
    assert first == again
    other = search.search(noise, PLAN, RULE, trials=2, seed=4)
    assert other.trials[0] == first.trials[0]
    assert other.trials[1] != first.trials[1]


def test_every_trial_is_told(noise: Course) -> None:
    told: list[int] = []
    search.search(noise, PLAN, RULE, trials=3, advance=lambda: told.append(1))
    assert len(told) == 3


def test_without_optuna_one_line_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, noise: Course
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SearchUnavailable, match=r"^the search needs Optuna[^\n]+pip install"):
        search.search(noise, PLAN, RULE, trials=2)


def test_a_search_needs_the_sessions_of_four_blocks_after_the_first_training() -> None:
    plan = SearchPlan()
    sessions = [f"{number:03d}" for number in range(plan.least_sessions)]
    assert len(cut(sessions, least=plan.least, block=plan.block)) == 4
    assert len(cut(sessions[1:], least=plan.least, block=plan.block)) == 3


# --- the record ------------------------------------------------------------------------------


def record_of(**changes: Any) -> SearchRecord:
    values: dict[str, Any] = {
        "symbol": "SIMQ",
        "number": 1,
        "cutoff": "2024-03-20",
        "first_session": "2024-03-01",
        "sessions": 20,
        "created_at": "2024-03-21T06:00:00+00:00",
        "horizon_bars": HORIZON,
        "schema_hash": FEATURE_ROWS.schema_hash,
        "data_hash": "hash",
        "trials": 2,
        "seed": 0,
        "defaults": {"trees": 60},
        "parameters": tuned(PLAN),
    }
    return SearchRecord(**{**values, **changes})


def test_a_record_comes_back_as_it_was_written(noise: Course) -> None:
    record = record_of().with_found(search.search(noise, PLAN, RULE, trials=2))
    again = SearchRecord.from_json(record.to_json())
    assert again == record
    assert again.parameters == tuned(PLAN)
    assert again.tried[0]["parameters"] == tuned(PLAN)
    assert set(again.scores) == {"chosen", "confirmed", "defaults", "difference"}


def test_an_interval_that_does_not_exist_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "walk", lambda *_: scored([0.0] * 4))
    found = search.search(bare_course(4), PLAN, RULE, trials=2)
    scores = json.loads(record_of().with_found(found).to_json())["scores"]
    assert scores["difference"] == {"gain": 0, "lo": None, "hi": None, "labels": 200, "sessions": 2}
    assert not found.adopted


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"symbol": "SIMQ"}', b"\xff"])
def test_a_broken_record_is_refused(store: Store, content: bytes) -> None:
    store.write_bytes("searches/SIMQ/000001.json", content)
    with pytest.raises(ModelError, match="the record of a search cannot be read"):
        SearchShelf(store).newest("SIMQ")


def test_a_record_never_changes(store: Store) -> None:
    shelf = SearchShelf(store)
    assert shelf.put(record_of())
    assert not shelf.put(record_of(adopted=True))
    assert shelf.newest("SIMQ") == record_of()


def test_the_newest_search_before_a_session_is_the_one_that_counts(store: Store) -> None:
    shelf = SearchShelf(store)
    assert shelf.newest("SIMQ") is None
    for number, cutoff in ((1, "2024-03-10"), (2, "2024-03-20")):
        shelf.put(record_of(number=number, cutoff=cutoff))
    shelf.put(record_of(symbol="SIMN", number=1, cutoff="2024-03-01"))
    assert shelf.numbers("SIMQ") == (1, 2)
    found = {x: shelf.newest("SIMQ", before=x) for x in ("2024-03-10", "2024-03-11", "2024-03-21")}
    assert [record and record.number for record in found.values()] == [None, 1, 2]
    assert shelf.newest("SIMQ", before="2024-03-20").number == 1  # type: ignore[union-attr]


def test_a_record_says_where_parameters_come_from() -> None:
    assert record_of(adopted=True).source == "search 1 on sessions to 2024-03-20"
    assert record_of().source == "the defaults, kept by search 1 on sessions to 2024-03-20"


@pytest.mark.parametrize(
    "change", [{"data_hash": "other"}, {"seed": 1}, {"trials": 3}, {"defaults": {"trees": 50}}]
)
def test_other_rows_seeds_trials_or_defaults_ask_something_else(change: dict[str, Any]) -> None:
    assert record_of().asks_the_same_as(record_of(number=2, reason="x", adopted=True))
    assert not record_of().asks_the_same_as(record_of(**change))
