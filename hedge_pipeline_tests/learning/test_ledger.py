"""What the promotion log says was in force, what counts as evidence, and that it can be rebuilt."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hedge_pipeline.learning import gate
from hedge_pipeline.learning.gate import GateRule, GateState, SessionEvidence, Skill
from hedge_pipeline.learning.ledger import (
    PIN,
    UNPIN,
    InForce,
    Ledger,
    fold_entry,
    override_entry,
    session_evidence,
    verdict_entry,
)
from hedge_pipeline.market.tables import OUTCOMES, PREDICTION_LOG, PROMOTIONS
from hedge_pipeline.store import Store
from hedge_pipeline_tests.learning.conftest import (
    HORIZON,
    MINUTE,
    card_of,
    learnable_rows,
    log_rows,
    outcome_rows,
    session_on,
    training_set,
)

RULE = GateRule()
LIVE = ("live", "catch_up")
SESSION = session_on(4)
NIGHT = dt.datetime(2024, 3, 4, 21, 0, tzinfo=dt.UTC)
SECOND = dt.timedelta(seconds=1)
PROVEN = replace(
    GateState.new(RULE),
    status=Skill.PROVEN,
    status_since="2024-03-05",
    log_evidence=4.0,
    log_peak=4.0,
    peak_ordinal=1,
    last_session="2024-03-05",
    ups=300,
    labels=400,
    trust_weights=(0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
)
UNPROVEN = replace(GateState.new(RULE), last_session="2024-03-04")
LOST = replace(GateState.new(RULE), status=Skill.LOST, era=1, last_session="2024-03-06")
NOTHING = SessionEvidence(
    "2024-03-04", np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), 0, 0
)


def frame_of(*entries: dict[str, Any]) -> pd.DataFrame:
    frame = pd.DataFrame(entries)
    return PROMOTIONS.conform(
        frame.assign(decided_at=pd.to_datetime(frame["decided_at"], utc=True))
    )


def folded(state: GateState, nights: int) -> dict[str, Any]:
    return fold_entry("SIMQ", state, None, NOTHING, RULE, NIGHT + dt.timedelta(days=nights))


def judged(
    version: int, state: GateState, nights: int, failure: str | None = None
) -> dict[str, Any]:
    values, labels = learnable_rows(20)
    card = card_of(training_set(values, labels), b"", version=version, guard_failure=failure)
    return verdict_entry(card, state, RULE, NIGHT + dt.timedelta(days=nights, hours=5))


def ledger_of(entries: pd.DataFrame) -> Ledger:
    return Ledger("SIMQ", PROMOTIONS.in_arrow(entries), RULE)


def at(ledger: Ledger, *moments: dt.datetime) -> InForce:
    plain = [np.datetime64(moment.replace(tzinfo=None), "us") for moment in moments]
    return ledger.in_force(np.array(plain, dtype="datetime64[us]"))


ENTRIES = frame_of(
    folded(UNPROVEN, 0),
    judged(1, UNPROVEN, 0),
    judged(2, UNPROVEN, 0, "spread: too wide"),
    folded(PROVEN, 1),
    judged(3, PROVEN, 1),
)
LEDGER = ledger_of(ENTRIES)


# --- in force --------------------------------------------------------------------------------


def test_before_the_first_entry_the_prior_is_in_force() -> None:
    force = at(LEDGER, NIGHT - SECOND)
    assert (force.base_rate[0], force.trust[0], force.skill[0]) == (
        0.5,
        pytest.approx(0.26),
        "unproven",
    )
    assert (force.version[0], force.baseline[0]) == (0, 0)


@pytest.mark.parametrize(
    ("shift", "skill", "trust"),
    [(-SECOND, "unproven", 0.26), (0 * SECOND, "proven", 1.0), (SECOND, "proven", 1.0)],
    ids=["before", "at", "after"],
)
def test_a_fold_is_in_force_from_its_moment_on(
    shift: dt.timedelta, skill: str, trust: float
) -> None:
    force = at(LEDGER, NIGHT + dt.timedelta(days=1) + shift)
    assert force.skill[0] == skill
    assert force.trust[0] == pytest.approx(trust)
    expected = PROVEN if skill == "proven" else UNPROVEN
    assert force.base_rate[0] == expected.base_rate(RULE)


@pytest.mark.parametrize(
    ("shift", "version", "baseline"), [(-SECOND, 0, 0), (0 * SECOND, 1, 1), (SECOND, 1, 1)]
)
def test_an_accepted_version_is_in_force_from_its_verdict_on(
    shift: dt.timedelta, version: int, baseline: int
) -> None:
    force = at(LEDGER, NIGHT + dt.timedelta(hours=5) + shift)
    assert (force.version[0], force.baseline[0]) == (version, baseline)


def test_the_newest_accepted_version_is_in_force_and_the_first_stays_baseline() -> None:
    days = [NIGHT + dt.timedelta(days=days) for days in (-1, 1, 2, 9)]
    force = at(LEDGER, *days)
    assert force.version.tolist() == [0, 1, 3, 3]
    assert force.baseline.tolist() == [0, 1, 1, 1]


def test_moments_are_answered_in_the_order_they_are_asked_for() -> None:
    force = at(LEDGER, NIGHT + dt.timedelta(days=9), NIGHT - SECOND, NIGHT + dt.timedelta(days=1))
    assert force.version.tolist() == [3, 0, 1]
    assert force.skill.tolist() == ["proven", "unproven", "proven"]


def test_a_clock_that_was_set_back_makes_no_older_entry_the_newest() -> None:
    """The second night's fold and verdict, and a rollback, are dated before what they follow."""
    pin = override_entry(LEDGER, 1, PIN, "calmer", "2024-03-05", NIGHT + dt.timedelta(days=3))
    pinned = ledger_of(pd.concat([ENTRIES, frame_of(pin)]))
    let_go = override_entry(
        pinned, 1, UNPIN, "enough", "2024-03-05", NIGHT + dt.timedelta(days=2, hours=9)
    )
    entries = frame_of(
        folded(UNPROVEN, 1), judged(1, UNPROVEN, 1), folded(PROVEN, 0), judged(3, PROVEN, 0)
    )
    ledger = ledger_of(pd.concat([entries, frame_of(pin, let_go)]))
    force = at(ledger, *(NIGHT + dt.timedelta(days=days) for days in (1, 2, 4)))
    assert force.version.tolist() == [3, 3, 3]
    assert force.baseline.tolist() == [1, 1, 1]
    assert force.skill.tolist() == ["proven"] * 3
    assert force.newest.tolist() == [0, 0, 0]
    assert ledger.accepted == (1, 3)
    assert ledger.champion == 3
    assert ledger.pinned is None
    assert ledger.state == PROVEN


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_entries_does_not_matter(seed: int) -> None:
    shuffled = ledger_of(ENTRIES.sample(frac=1, random_state=seed))
    assert shuffled.accepted == LEDGER.accepted
    assert shuffled.state == LEDGER.state
    pd.testing.assert_frame_equal(shuffled.entries, LEDGER.entries)


def test_entries_of_other_symbols_do_not_matter() -> None:
    other = ENTRIES.assign(symbol="SIMN", model_version=ENTRIES["model_version"] + 7)
    both = ledger_of(pd.concat([other, ENTRIES]))
    assert both.accepted == (1, 3)
    pd.testing.assert_frame_equal(both.entries, LEDGER.entries)


def test_an_empty_log_is_the_state_before_the_first_session() -> None:
    ledger = ledger_of(PROMOTIONS.empty())
    assert ledger.state == GateState.new(RULE)
    assert (ledger.accepted, ledger.champion, ledger.judged) == ((), None, frozenset())
    assert at(ledger, NIGHT).version.tolist() == [0]


# --- champion and verdicts -------------------------------------------------------------------


def test_rejected_versions_are_judged_but_not_accepted() -> None:
    assert LEDGER.judged == {1, 2, 3}
    assert LEDGER.accepted == (1, 3)


@pytest.mark.parametrize(
    ("last", "champion"), [(UNPROVEN, None), (PROVEN, 3), (LOST, None)], ids=lambda x: str(x)[-9:]
)
def test_there_is_a_champion_only_while_skill_is_proven(
    last: GateState, champion: int | None
) -> None:
    state = replace(last, last_session="2024-03-07")
    ledger = ledger_of(pd.concat([ENTRIES, frame_of(folded(state, 3))]))
    assert ledger.state.status is last.status
    assert ledger.champion == champion
    assert ledger.accepted == (1, 3)


def test_without_an_accepted_model_there_is_no_champion() -> None:
    ledger = ledger_of(frame_of(folded(PROVEN, 1), judged(1, PROVEN, 1, "parity: off")))
    assert ledger.champion is None


@pytest.mark.parametrize(
    ("state", "failure", "event", "words"),
    [
        (UNPROVEN, None, "hold", "skill unproven: evidence 1.0 of the 20 needed"),
        (LOST, None, "hold", "candidate serves as challenger, shrunk"),
        (PROVEN, None, "promote", "newest model replaces champion"),
        (PROVEN, "parity: off", "reject", "parity: off"),
        (UNPROVEN, "parity: off", "reject", "parity: off"),
    ],
)
def test_a_verdict_says_what_and_why(
    state: GateState, failure: str | None, event: str, words: str
) -> None:
    entry = judged(4, state, 1, failure)
    assert (entry["event"], entry["kind"], entry["model_version"]) == (event, "verdict", 4)
    assert words in entry["reason"]
    assert entry["skill"] == state.status.value
    assert GateState.from_json(entry["state"]) == state


def test_the_state_is_that_of_the_newest_session_whenever_it_was_written() -> None:
    """Verdicts carry a state too, and two folds of one night may carry one time."""
    entries = frame_of(folded(PROVEN, 1), folded(UNPROVEN, 1), judged(9, LOST, 2))
    assert ledger_of(entries).state == PROVEN


# --- evidence --------------------------------------------------------------------------------

DIRECTIONS: list[int | None] = [1, 0, None, 1, -1, 0] * 8


@pytest.fixture
def filled(store: Store) -> Store:
    store.append(OUTCOMES, SESSION.label, outcome_rows(SESSION, DIRECTIONS))
    return store


def evidence(
    store: Store, log: pd.DataFrame, modes: tuple[str, ...] = LIVE, ledger: Ledger = LEDGER
) -> SessionEvidence:
    store.append(PREDICTION_LOG, SESSION.label, log)
    return session_evidence(store, "SIMQ", SESSION, HORIZON, modes, ledger)


def test_evidence_are_served_predictions_with_an_up_or_down_outcome(filled: Store) -> None:
    margin = np.linspace(-0.9, 0.9, 48).astype(np.float32)
    found = evidence(filled, log_rows(SESSION, margin).assign(base_rate=0.51))
    bars = np.array([i for i, x in enumerate(DIRECTIONS) if x in (0, 1)])
    np.testing.assert_array_equal(found.margin, margin[bars].astype(np.float64))
    np.testing.assert_array_equal(found.up, [DIRECTIONS[i] for i in bars])
    np.testing.assert_array_equal(found.offset, bars % HORIZON)
    assert set(found.base_rate) == {0.51}
    assert (found.labels, found.ups, found.rows) == (32, 16, 32)
    assert found.session == SESSION.label


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "backfill"},
        {"mode": "replay"},
        {"role": "baseline"},
        {"role": "newest"},
        {"margin": np.nan},
        {"symbol": "SIMN"},
    ],
    ids=lambda changes: "-".join(map(str, next(iter(changes.items())))),
)
def test_other_rows_are_no_evidence_but_their_labels_count(
    filled: Store, changes: dict[str, Any]
) -> None:
    found = evidence(filled, log_rows(SESSION, np.full(48, 0.3)).assign(**changes))
    assert (found.rows, found.labels, found.ups) == (0, 32, 16)


@pytest.mark.parametrize(("mode", "modes"), [("catch_up", LIVE), ("replay", ("replay",))])
def test_the_modes_that_count_are_the_deployments(
    filled: Store, mode: str, modes: tuple[str, ...]
) -> None:
    assert evidence(filled, log_rows(SESSION, np.full(48, 0.3), mode=mode), modes).rows == 32


@pytest.mark.parametrize(
    ("late", "rows"), [(-SECOND, 32), (0 * SECOND, 31), (SECOND, 31)], ids=["before", "at", "after"]
)
def test_a_prediction_decided_when_its_outcome_could_be_known_is_no_evidence(
    filled: Store, late: dt.timedelta, rows: int
) -> None:
    log = log_rows(SESSION, np.full(48, 0.3))
    decided = log["decided_at"].copy()
    decided[0] = log["bar_ts"][0] + (HORIZON + 1) * MINUTE + late
    assert evidence(filled, log.assign(decided_at=decided)).rows == rows


def test_the_first_decided_of_two_served_versions_counts(filled: Store) -> None:
    first = log_rows(SESSION, np.full(48, 0.3), model_version=2)
    swapped = log_rows(SESSION, np.full(48, -0.3))
    later = swapped.assign(decided_at=swapped["decided_at"] + SECOND)
    found = evidence(filled, pd.concat([later, first]))
    assert found.rows == 32
    assert set(found.margin) == {np.float64(np.float32(0.3))}


def test_labels_of_another_horizon_do_not_count(filled: Store) -> None:
    filled.append(OUTCOMES, SESSION.label, outcome_rows(SESSION, [1] * 48, horizon=5))
    found = evidence(filled, log_rows(SESSION, np.full(48, 0.3)))
    assert (found.rows, found.labels) == (32, 32)


# --- the log as a pure fold ------------------------------------------------------------------


def test_the_state_in_the_log_equals_folding_from_scratch(store: Store) -> None:
    """Also when every step reads its state back from the log, as after a restart."""
    rng = np.random.default_rng(3)
    sessions = [session_on(day) for day in (4, 5, 6, 7, 8, 11, 12, 13)]
    for number, session in enumerate(sessions):
        up = rng.integers(0, 2, 50)
        sign = np.where(up == 1, 1, -1) * (1 if number < 5 else -1)
        margin = np.clip(0.9 * sign + 0.3 * rng.standard_normal(50), -1, 1)
        store.append(PREDICTION_LOG, session.label, log_rows(session, margin))
        store.append(OUTCOMES, session.label, outcome_rows(session, up.tolist()))
        found = session_evidence(store, "SIMQ", session, HORIZON, LIVE, LEDGER)
        before = ledger_of(store.read(PROMOTIONS)).state
        state, event = gate.fold(before, found, RULE)
        entry = fold_entry("SIMQ", state, event, found, RULE, session.closes)
        store.append(PROMOTIONS, session.label, frame_of(entry))
    scratch, events = GateState.new(RULE), []
    for session in sessions:
        found = session_evidence(store, "SIMQ", session, HORIZON, LIVE, LEDGER)
        scratch, event = gate.fold(scratch, found, RULE)
        events.append(event.kind.value if event else None)
    ledger = ledger_of(store.read(PROMOTIONS))
    assert ledger.state == scratch
    assert {"skill_proven", "skill_lost"} <= set(events)
    assert [x if isinstance(x, str) else None for x in ledger.entries["event"]] == events
    assert (ledger.entries["labels"] == 50).all()
    assert (ledger.entries["effective_labels"] == 5).all()


def test_the_entry_of_a_loss_keeps_the_number_that_decided_it() -> None:
    event = gate.Event(gate.EventKind.SKILL_LOST, "draw", "2024-03-06", -1.5)
    entry = fold_entry("SIMQ", LOST, event, NOTHING, RULE, NIGHT)
    assert (entry["event"], entry["skill"], entry["evidence"]) == ("skill_lost", "lost", -1.5)
    assert entry["reason"] == "skill lost: the evidence fell by more than a factor 20 from its peak"


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (None, "evidence 1.0 of the 20 needed after 0 sessions"),
        (gate.Event(gate.EventKind.SKILL_LOST, "stale", "2024-03-06", 1.0), "for 30 sessions"),
        (gate.Event(gate.EventKind.SKILL_PROVEN, "", "2024-03-06", 3.1), "skill "),
    ],
)
def test_a_fold_says_what_it_found(event: gate.Event | None, words: str) -> None:
    assert words in fold_entry("SIMQ", UNPROVEN, event, NOTHING, RULE, NIGHT)["reason"]
