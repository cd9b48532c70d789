"""Training rows: labels from outcomes only, whole sessions, exact weights, a hash of it all."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hedge_pipeline.learning import dataset
from hedge_pipeline.learning.dataset import (
    LabelledSessions,
    TrainingSet,
    assemble,
)
from hedge_pipeline.learning.labels import mature
from hedge_pipeline.learning.training import TrainingPlan
from hedge_pipeline.market.tables import FEATURE_ROWS, OUTCOMES, PREDICTION_LOG
from hedge_pipeline.store import Store
from hedge_pipeline_tests.learning.conftest import (
    HORIZON,
    MINUTE,
    NAMES,
    bars_of,
    feature_rows,
    log_rows,
    outcome_rows,
    session_on,
    times_of,
)

DAYS = (4, 5, 6, 7, 8, 11, 12)
SESSIONS = {session_on(day).label: session_on(day) for day in DAYS}
LABELS = tuple(SESSIONS)
PLAN = TrainingPlan()
LATER = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)


def values_of(label: str, symbol: str = "SIMQ") -> npt.NDArray[np.float32]:
    seed = int(label[-2:]) + 1000 * (symbol != "SIMQ")
    return np.random.default_rng(seed).standard_normal((60, len(NAMES))).astype(np.float32)


def directions_of(label: str) -> list[int | None]:
    """Per bar up, down, flat or unlabelable, in turns that differ by session."""
    first = int(label[-2:])
    return [(1, 0, 0, 1, None, 1, -1)[(first + minute) % 7] for minute in range(60)]


@pytest.fixture
def filled(store: Store) -> Store:
    return fill(store)


def fill(store: Store) -> Store:
    for label, session in SESSIONS.items():
        rows = [feature_rows(session, values_of(label, x), x) for x in ("SIMN", "SIMQ")]
        outcomes = [
            outcome_rows(session, directions_of(label)),
            outcome_rows(session, [1] * 60, "SIMN"),
            outcome_rows(session, [0] * 60, horizon=5),
        ]
        store.append(FEATURE_ROWS, label, pd.concat(rows))
        store.append(OUTCOMES, label, pd.concat(outcomes))
    return store


def rows_of(
    store: Store,
    sessions: Sequence[str] = LABELS,
    plan: TrainingPlan = PLAN,
    symbol: str = "SIMQ",
) -> TrainingSet:
    return assemble(LabelledSessions(store, HORIZON), symbol, sessions, plan, HORIZON, LATER)


def test_the_rows_are_the_features_of_the_bars_with_an_up_or_down_outcome(filled: Store) -> None:
    data = rows_of(filled, LABELS[:2])
    directions = [directions_of(label) for label in LABELS[:2]]
    kept = [[x in (0, 1) for x in one] for one in directions]
    expected = [values_of(label)[keep] for label, keep in zip(LABELS[:2], kept, strict=True)]
    np.testing.assert_array_equal(data.features, np.concatenate(expected))
    assert data.labels.tolist() == [x for one in directions for x in one if x in (0, 1)]
    assert data.names == NAMES
    assert 0 < data.rows < 120


def test_flat_and_unlabelable_bars_are_left_out(filled: Store) -> None:
    session = SESSIONS[LABELS[0]]
    _remove(filled, OUTCOMES.name, LABELS[0])
    filled.append(OUTCOMES, LABELS[0], outcome_rows(session, [1, None, -1, 0]))
    data = rows_of(filled, LABELS[:1])
    np.testing.assert_array_equal(data.features, values_of(LABELS[0])[[0, 3]])
    assert data.labels.tolist() == [1, 0]


def test_other_symbols_and_horizons_do_not_enter(filled: Store) -> None:
    assert rows_of(filled, symbol="SIMN").labels.min() == 1
    assert rows_of(filled).labels.mean() == pytest.approx(0.6, abs=0.03)


@pytest.mark.parametrize("prediction", [0, 1])
def test_predictions_are_no_labels(filled: Store, prediction: int) -> None:
    before = rows_of(filled)
    for label, session in SESSIONS.items():
        log = log_rows(session, np.full(60, 0.9 if prediction else -0.9)).assign(prob_up=0.99)
        filled.append(PREDICTION_LOG, label, log)
    after = rows_of(filled)
    assert after.data_hash == before.data_hash
    np.testing.assert_array_equal(after.labels, before.labels)


@pytest.mark.parametrize("half_life", [1.0, 20.0])
def test_a_row_weighs_its_uniqueness_halved_by_age(filled: Store, half_life: float) -> None:
    data = rows_of(filled, LABELS[:3], TrainingPlan(half_life_sessions=half_life))
    counts = [sum(x in (0, 1) for x in directions_of(label)) for label in LABELS[:3]]
    expected = [
        0.5 ** (age / half_life) / 10
        for age, count in zip((2, 1, 0), counts, strict=True)
        for _ in range(count)
    ]
    np.testing.assert_allclose(data.weights, expected, rtol=1e-15)
    assert data.base_rate == pytest.approx(np.average(data.labels, weights=expected))


@pytest.mark.parametrize("sessions", [1, 5, 6, 7])
def test_recent_are_the_rows_of_the_last_sessions(filled: Store, sessions: int) -> None:
    data = rows_of(filled, LABELS[:sessions])
    last = rows_of(filled, LABELS[:sessions][-PLAN.least_sessions :])
    np.testing.assert_array_equal(data.features[data.recent], last.features)
    assert data.labels[data.recent].tolist() == last.labels.tolist()


def _changed_feature(store: Store) -> None:
    values = values_of(LABELS[2])
    values[1, 3] = np.nextafter(values[1, 3], np.float32(9))
    _remove(store, FEATURE_ROWS.name, LABELS[2])
    store.append(FEATURE_ROWS, LABELS[2], feature_rows(SESSIONS[LABELS[2]], values))


def _unknown_feature(store: Store) -> None:
    values = values_of(LABELS[2])
    values[1, 3] = np.nan
    _remove(store, FEATURE_ROWS.name, LABELS[2])
    store.append(FEATURE_ROWS, LABELS[2], feature_rows(SESSIONS[LABELS[2]], values))


def _changed_label(store: Store) -> None:
    directions = directions_of(LABELS[2])
    first = next(i for i, x in enumerate(directions) if x == 1)
    directions[first] = 0
    _remove(store, OUTCOMES.name, LABELS[2])
    store.append(OUTCOMES, LABELS[2], outcome_rows(SESSIONS[LABELS[2]], directions))


def _missing_label(store: Store) -> None:
    _remove(store, OUTCOMES.name, LABELS[2])
    store.append(
        OUTCOMES, LABELS[2], outcome_rows(SESSIONS[LABELS[2]], directions_of(LABELS[2])[:-1])
    )


def _remove(store: Store, table: str, label: str) -> None:
    for part in Path(store.url, table, f"session={label}").iterdir():
        part.unlink()


@pytest.mark.parametrize(
    "change", [_changed_feature, _unknown_feature, _changed_label, _missing_label]
)
def test_the_hash_changes_with_any_value(filled: Store, change: Callable[[Store], None]) -> None:
    before = rows_of(filled).data_hash
    change(filled)
    assert rows_of(filled).data_hash != before


@pytest.mark.parametrize(
    ("sessions", "plan"),
    [(LABELS[:-1], PLAN), (LABELS[1:], PLAN), (LABELS, TrainingPlan(half_life_sessions=19.0))],
)
def test_the_hash_changes_with_sessions_and_weights(
    filled: Store, sessions: Sequence[str], plan: TrainingPlan
) -> None:
    assert rows_of(filled, sessions, plan).data_hash != rows_of(filled).data_hash


def test_the_hash_changes_with_the_meaning_of_a_column(
    filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = LabelledSessions(filled, HORIZON)
    before = assemble(reader, "SIMQ", LABELS, PLAN, HORIZON, LATER).data_hash
    monkeypatch.setattr(
        "hedge_pipeline.learning.dataset.feature_names", lambda: ("renamed", *NAMES[1:])
    )
    assert assemble(reader, "SIMQ", LABELS, PLAN, HORIZON, LATER).data_hash != before


def test_reading_again_or_compacting_does_not_change_the_hash(filled: Store) -> None:
    before = rows_of(filled).data_hash
    assert rows_of(Store(filled.url)).data_hash == before
    for label in LABELS:
        filled.compact(OUTCOMES, label)
        filled.compact(FEATURE_ROWS, label)
    assert rows_of(Store(filled.url)).data_hash == before


def test_a_session_is_read_once(filled: Store) -> None:
    reader = LabelledSessions(filled, HORIZON)
    first = reader.read("SIMQ", LABELS[0])
    assert reader.read("SIMQ", LABELS[0]) is first


def test_trainings_that_ask_at_once_get_what_they_ask_for_within_the_bound(
    filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = LabelledSessions(filled, HORIZON).read("SIMQ", LABELS[0])
    monkeypatch.setattr(dataset, "read_labelled", lambda *_: {"SIMQ": some})
    reader = LabelledSessions(filled, HORIZON, most=5 * some.nbytes // 2)

    def ask(first: int) -> int:
        return sum(reader.read("SIMQ", str((first + place) % 4)) is some for place in range(30_000))

    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(ask, range(4))) == [30_000] * 4
    finally:
        sys.setswitchinterval(usual)
    assert reader._bytes == len(reader._known) * some.nbytes
    assert len(reader._known) == 2


def test_of_more_sessions_than_there_is_room_for_the_oldest_asked_for_is_forgotten(
    filled: Store,
) -> None:
    size = LabelledSessions(filled, HORIZON).read("SIMQ", LABELS[0]).nbytes
    reader = LabelledSessions(filled, HORIZON, most=5 * size // 2)
    first, second = (reader.read("SIMQ", label) for label in LABELS[:2])
    assert reader.read("SIMQ", LABELS[0]) is first
    reader.read("SIMQ", LABELS[2])
    assert reader.read("SIMQ", LABELS[0]) is first
    again = reader.read("SIMQ", LABELS[1])
    assert again is not second
    assert again.digest == second.digest


@pytest.mark.parametrize("sessions", [(), ("2024-03-13",)])
def test_sessions_without_outcomes_give_no_rows(filled: Store, sessions: Sequence[str]) -> None:
    data = rows_of(filled, sessions)
    assert data.rows == 0
    assert data.features.shape == (0, len(NAMES))


@given(
    cut=st.integers(1, 2),
    steps=st.lists(st.sampled_from([-0.1, 0.0, 0.1, np.nan]), min_size=60, max_size=60),
    lateness=st.lists(st.sampled_from([0.0, 240.0]), min_size=60, max_size=60),
)
@settings(max_examples=8, deadline=None)
def test_no_training_label_reads_a_price_of_a_later_session(
    cut: int, steps: list[float], lateness: list[float]
) -> None:
    """The cut between sessions is the purge: what follows it could be anything."""
    used, first_later = LABELS[:cut], SESSIONS[LABELS[cut]]
    price = 100 + np.nancumsum(steps)
    price[np.isnan(steps)] = np.nan
    hashes = []
    for later in (1.0, 1000.0):
        with TemporaryDirectory() as folder:
            store = Store(folder)
            for label, session in list(SESSIONS.items())[:3]:
                close = np.where(label > used[-1], later, price)
                bars = bars_of(session, close, lateness=lateness)
                store.append(FEATURE_ROWS, label, feature_rows(session, values_of(label)))
                if not bars.empty:
                    end = session.closes + dt.timedelta(hours=1)
                    own = mature(bars, session, horizon=HORIZON, dead_band_bp=0.2, now=end)
                    store.append(OUTCOMES, label, own)
            data = rows_of(store, used)
            hashes.append(data.data_hash)
            labelled = store.read(OUTCOMES, used)
            labelled = labelled[labelled["actual_direction"].notna()]
            assert len(labelled) == data.rows
            ends = labelled["bar_ts"] + (HORIZON + 1) * MINUTE
            assert (ends <= times_of(first_later)[0]).all()
    assert hashes[0] == hashes[1]


# --- nothing from after the cutoff -----------------------------------------------------------


@given(
    feature_delay=st.lists(st.integers(0, 90), min_size=60, max_size=60),
    outcome_delay=st.lists(st.integers(0, 90), min_size=60, max_size=60),
    cut=st.integers(-10, 160),
)
@settings(max_examples=25, deadline=None)
def test_nothing_that_became_available_after_the_cutoff_enters(
    feature_delay: list[int], outcome_delay: list[int], cut: int
) -> None:
    """Features and outcomes that come late, each by minutes of their own."""
    label, session = LABELS[0], SESSIONS[LABELS[0]]
    moment = session.opens + cut * MINUTE
    features = feature_rows(session, values_of(label))
    outcomes = outcome_rows(session, [1, 0] * 30)
    for frame, delay in ((features, feature_delay), (outcomes, outcome_delay)):
        frame["available_at"] += pd.to_timedelta(delay, unit="min").as_unit("us")
    with TemporaryDirectory() as folder:
        store = Store(folder)
        store.append(FEATURE_ROWS, label, features)
        store.append(OUTCOMES, label, outcomes)
        reader = LabelledSessions(store, HORIZON)
        data = assemble(reader, "SIMQ", (label,), PLAN, HORIZON, moment)
        known = (features["available_at"] <= moment) & (outcomes["available_at"] <= moment)
        np.testing.assert_array_equal(data.features, values_of(label)[known.to_numpy()])
        np.testing.assert_array_equal(
            data.labels, outcomes["actual_direction"].to_numpy(dtype=float)[known.to_numpy()]
        )
        assert data.counts == (int(known.sum()),)
        everything = assemble(reader, "SIMQ", (label,), PLAN, HORIZON, LATER)
        assert (data.data_hash == everything.data_hash) is bool(known.all())
