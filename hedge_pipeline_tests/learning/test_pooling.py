"""One model for all symbols: rows, base margins, versions, verdicts; and rows that lie on disk."""

from __future__ import annotations

import dataclasses
import datetime as dt
import tempfile
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from hedge_pipeline import control, stages
from hedge_pipeline.learning import pooling
from hedge_pipeline.learning.dataset import LabelledSessions, Spool, TrainingSet, assemble
from hedge_pipeline.learning.pooling import POOL, PooledSessions, assemble_pool
from hedge_pipeline.learning.shelf import ModelShelf
from hedge_pipeline.learning.training import TrainingPlan, fit, margins
from hedge_pipeline.market.tables import (
    FEATURE_ROWS,
    OUTCOMES,
    PREDICTION_LOG,
    PROMOTIONS,
    RAW_QUOTES,
)
from hedge_pipeline.probability import logit
from hedge_pipeline.replay import replay
from hedge_pipeline.serving.predicting import margins_of
from hedge_pipeline.settings import load_settings
from hedge_pipeline.stages import Deployment, StageError, training
from hedge_pipeline.store import Store
from hedge_pipeline_tests import runs
from hedge_pipeline_tests.learning.conftest import (
    HORIZON,
    NAMES,
    card_of,
    feature_rows,
    learnable_rows,
    outcome_rows,
    session_on,
    training_set,
)
from hedge_pipeline_tests.replays import (
    SYMBOLS,
    assert_equal_tables,
    environment,
    replay_in,
    sessions_of,
)

PLAN = TrainingPlan()
LATER = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
DAYS = (4, 5, 6, 7, 8, 11)
LABELS = tuple(session_on(day).label for day in DAYS)


def values_of(label: str, symbol: str) -> np.ndarray[Any, Any]:
    seed = int(label[-2:]) + 100 * ("AAA", "BBB", "CCC").index(symbol)
    return np.random.default_rng(seed).standard_normal((60, len(NAMES))).astype(np.float32)


@pytest.fixture
def filled(store: Store) -> Store:
    """AAA rises in 3 of 4 bars, BBB in 1 of 4; CCC begins in the fourth session."""
    for label, day in zip(LABELS, DAYS, strict=True):
        session = session_on(day)
        symbols = ("AAA", "BBB") if label < LABELS[3] else ("AAA", "BBB", "CCC")
        ups: dict[str, list[int | None]] = {
            "AAA": [1, 1, 1, 0] * 15,
            "BBB": [0, 1, 0, 0] * 15,
            "CCC": [1, 0] * 30,
        }
        rows = [feature_rows(session, values_of(label, x), x) for x in symbols]
        store.append(FEATURE_ROWS, label, pd.concat(rows))
        known = [outcome_rows(session, ups[x], x) for x in symbols]
        store.append(OUTCOMES, label, pd.concat(known))
    return store


def pooled_rows(store: Store, *, spooled: bool = False) -> TrainingSet:
    wanted = {x: ("AAA", "BBB") if x < LABELS[3] else ("AAA", "BBB", "CCC") for x in LABELS}
    reader = PooledSessions(store, HORIZON)
    return assemble_pool(reader, wanted, PLAN, HORIZON, LATER, spooled=spooled)


# --- rows on disk ----------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [700, 1024])
@pytest.mark.parametrize("margin", [False, True])
def test_rows_on_disk_give_the_bytes_of_rows_in_memory(rows: int, margin: bool) -> None:
    values, labels = learnable_rows(3000)
    values[np.random.default_rng(1).random(values.shape) < 0.1] = np.nan
    values[:, 4] = np.nan
    data = training_set(values, labels)
    rates = np.random.default_rng(2).uniform(0.4, 0.6, len(labels))
    data = dataclasses.replace(data, base_margin=np.asarray(logit(rates)) if margin else None)
    spool = Spool(len(NAMES))
    spool.add(values[:1000])
    spool.add(values[1000:])
    on_disk = dataclasses.replace(data, features=spool.rows(), spool=spool)
    blocks = on_disk.blocks
    object.__setattr__(on_disk, "blocks", lambda: blocks(rows))
    np.testing.assert_array_equal(on_disk.features, values)
    assert fit(on_disk, PLAN)[0] == fit(data, PLAN)[0]


def test_any_of_the_rows_on_disk_can_be_read() -> None:
    values, _ = learnable_rows(500)
    spool = Spool(len(NAMES))
    spool.add(values[:300])
    np.testing.assert_array_equal(spool.read(100, 250), values[100:250])
    spool.add(values[300:])
    np.testing.assert_array_equal(spool.rows(), values)
    np.testing.assert_array_equal(spool.read(290, 500), values[290:])
    assert spool.read(7, 7).shape == (0, len(NAMES))


def test_a_spool_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spool = Spool(2)
    spool.add(np.ones((3, 2), np.float32))
    assert spool.rows().tolist() == [[1, 1]] * 3
    assert list(tmp_path.iterdir()) == []
    assert Spool(2).rows().shape == (0, 2)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize(("most", "kept"), [(3000, 3000), (1000, 1000), (999, 750)])
def test_a_sample_is_evenly_spaced(most: int, kept: int, on_disk: bool) -> None:
    data = training_set(*learnable_rows(3000))
    if on_disk:
        spool = Spool(len(NAMES))
        spool.add(data.features)
        data = dataclasses.replace(data, features=spool.rows(), spool=spool)
    found = data.sample(most)
    np.testing.assert_array_equal(found, data.features[:: 3000 // kept])


def test_a_symbols_rows_are_the_same_on_disk(filled: Store) -> None:
    known = assemble(LabelledSessions(filled, HORIZON), "AAA", LABELS, PLAN, HORIZON, LATER)
    reader = PooledSessions(filled, HORIZON)
    wanted = dict.fromkeys(LABELS, ("AAA",))
    for spooled in (False, True):
        found = assemble_pool(reader, wanted, PLAN, HORIZON, LATER, spooled=spooled)
        for name in ("features", "labels", "weights"):
            np.testing.assert_array_equal(getattr(found, name), getattr(known, name))
        fields = ("recent", "sessions", "counts", "data_hash", "base_margin")
        for name in fields:
            a, b = getattr(found, name), getattr(known, name)
            assert a == b or (name == "recent" and range(360)[a] == range(360)[b])


def test_a_window_too_long_for_memory_gives_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = []
    for name, limit in (("memory", 10**9), ("disk", 0)):
        monkeypatch.setattr("hedge_pipeline.stages.training.SPOOL_FROM", limit)
        cards.append(stages.train_candidate(market(tmp_path / name, "symbol"), "SIMQ").card)
    assert cards[0] == cards[1]


# --- rows of many symbols --------------------------------------------------------------------


@pytest.mark.parametrize("spooled", [False, True])
def test_the_rows_are_whole_sessions_with_symbols_in_order(filled: Store, spooled: bool) -> None:
    data = pooled_rows(filled, spooled=spooled)
    expected = [
        values_of(label, symbol)
        for label in LABELS
        for symbol in ("AAA", "BBB", "CCC")
        if symbol != "CCC" or label >= LABELS[3]
    ]
    np.testing.assert_array_equal(data.features, np.concatenate(expected))
    assert data.counts == (120, 120, 120, 180, 180, 180)
    assert data.rows - data.recent.start == 120 + 120 + 3 * 180
    ages = np.repeat(np.arange(5, -1, -1), data.counts)
    np.testing.assert_allclose(data.weights, 0.5 ** (ages / 20) / HORIZON)


def test_the_base_margin_is_that_of_the_rows_symbol(filled: Store) -> None:
    data = pooled_rows(filled)
    assert data.base_margin is not None
    owners = np.concatenate([np.repeat(np.arange(n // 60), 60) for n in data.counts])
    for symbol, rate in enumerate((0.75, 0.25, 0.5)):
        own = owners == symbol
        weight = data.weights[own].sum()
        expected = (weight * rate + 20 * data.base_rate) / (weight + 20)
        np.testing.assert_allclose(data.base_margin[own], logit(expected))
    np.testing.assert_allclose(data.base_rates(slice(0, 60)), data.base_rates(slice(120, 180)))


@pytest.mark.parametrize("symbol", ["AAA", "CCC"])
def test_the_hash_knows_every_row_of_every_symbol(filled: Store, symbol: str) -> None:
    before = pooled_rows(filled).data_hash
    session = session_on(DAYS[-1])
    folder = Path(filled.url, FEATURE_ROWS.name, f"session={session.label}")
    for file in folder.iterdir():
        file.unlink()
    changed = {x: values_of(session.label, x) for x in ("AAA", "BBB", "CCC")}
    changed[symbol][7, 7] += 1
    rows = [feature_rows(session, values, x) for x, values in changed.items()]
    filled.append(FEATURE_ROWS, session.label, pd.concat(rows))
    assert pooled_rows(filled).data_hash != before


def test_what_became_known_later_does_not_enter(filled: Store) -> None:
    reader = PooledSessions(filled, HORIZON)
    session = session_on(DAYS[0])
    moment = session.opens + dt.timedelta(minutes=HORIZON + 1 + 5)
    wanted = {session.label: ("AAA", "BBB")}
    data = assemble_pool(reader, wanted, PLAN, HORIZON, moment, spooled=False)
    assert data.rows == 2 * 6


def test_a_feature_that_only_tells_symbols_apart_teaches_nothing() -> None:
    """One symbol rises in 65 % of its bars, the other in 35 %, and nothing else can be known."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((20_000, len(NAMES))).astype(np.float32)
    owners = np.arange(20_000) % 2
    rates = np.array([0.65, 0.35])[owners]
    values[:, 0] = owners
    data = training_set(values, (rng.random(20_000) < rates).astype(np.float64))
    alone = dataclasses.replace(data, base_margin=np.asarray(logit(rates)))
    said = [margins(fit(rows, PLAN)[1], values, data.base_rate) for rows in (data, alone)]
    apart = [abs(x[owners == 0].mean() - x[owners == 1].mean()) for x in said]
    assert apart[0] > 0.8
    assert apart[1] < 0.02


# --- versions --------------------------------------------------------------------------------


def test_a_version_of_the_pool_is_a_version_of_every_symbol(
    store: Store, learnable: TrainingSet, fitted: tuple[bytes, Any]
) -> None:
    shelf = ModelShelf(store, pooled=True)
    put(shelf, card_of(learnable, fitted[0], symbol=POOL, members=SYMBOLS), fitted[0])
    for symbol in (*SYMBOLS, "NEW"):
        assert shelf.versions(symbol) == (1,)
        model = shelf.load(symbol, 1)
        assert (model.card.symbol, model.card.members) == (symbol, SYMBOLS)
        assert shelf.content(symbol, 1) == fitted[0]
    assert shelf.load("NEW", 1).booster is shelf.load("SIMQ", 1).booster
    assert ModelShelf(store).versions("SIMQ") == ()


def test_numbers_do_not_repeat_when_the_scope_changes(
    store: Store, learnable: TrainingSet, fitted: tuple[bytes, Any]
) -> None:
    own, pooled = ModelShelf(store), ModelShelf(store, pooled=True)
    lines = [(own, "SIMQ"), (own, "SIMQ"), (pooled, POOL), (own, "SIMN"), (pooled, POOL)]
    numbers = []
    for shelf, line in lines:
        numbers.append(shelf.next_version(line if line != POOL else "SIMQ"))
        members = SYMBOLS if line == POOL else ()
        changes = {"symbol": line, "version": numbers[-1], "members": members}
        put(shelf, card_of(learnable, fitted[0], **changes), fitted[0])
    assert numbers == [1, 2, 3, 4, 5]
    assert pooled.versions("SIMQ") == (1, 2, 3, 5)
    for version in (1, 2, 3, 5):
        assert own.load("SIMQ", version).card.version == version
    assert own.newest("SIMQ") == own.card("SIMQ", 2)
    newest = pooled.newest("SIMN")
    assert newest is not None
    assert (newest.version, newest.symbol) == (5, "SIMN")


def put(shelf: ModelShelf, card: Any, content: bytes) -> None:
    shelf.put_content(card.symbol, card.version, content)
    assert shelf.put_card(card)


# --- the loop --------------------------------------------------------------------------------


def market(out: Path, scope: str = "pool", sessions: int = 6) -> Deployment:
    """Simulated sessions up to their outcomes, no model yet."""
    made = replay_in(out, HEDGE_MODEL_SCOPE=scope)
    for label in sessions_of(made, sessions):
        observe(made, label)
    return made


def observe(deployment: Deployment, label: str) -> None:
    stages.collect(deployment, label)
    stages.build_features(deployment, label)
    stages.log_predictions(deployment, label)
    stages.mature_outcomes(deployment, label)


def test_one_training_serves_every_symbol_and_each_gives_its_own_verdict(tmp_path: Path) -> None:
    made = market(tmp_path)
    first, second = (stages.train_candidate(made, symbol) for symbol in SYMBOLS)
    assert (first.new, second.new) == (True, False)
    assert first.card.sha256 == second.card.sha256
    assert first.card.members == tuple(sorted(SYMBOLS))
    assert first.card.guard_failure is None
    assert [x.card.symbol for x in (first, second)] == list(SYMBOLS)
    assert stages.judge(made, "SIMQ")[0]["symbol"] == "SIMQ"
    assert not made.ledger("SIMN").judged
    stages.judge(made, "SIMN")
    folder = sorted(x.name for x in (tmp_path / "models").iterdir())
    assert folder == [POOL]
    label = sessions_of(made, 7)[-1]
    observe(made, label)
    log = made.store.read(PREDICTION_LOG, [label])
    served = log[(log["role"] == "served") & log["prediction"].notna()]
    assert set(served["symbol"]) == set(SYMBOLS)
    assert set(served["model_version"]) == {1}


def test_a_symbol_asks_for_a_run_while_a_version_waits_for_its_verdict(tmp_path: Path) -> None:
    made = market(tmp_path)
    stages.train_candidate(made, "SIMQ")
    stages.judge(made, "SIMQ")
    asked = {x: stages.retraining_decision(made, x, hour=12) for x in SYMBOLS}
    assert not asked["SIMQ"].retrain
    assert asked["SIMN"].retrain
    assert asked["SIMN"].reason == "SIMN: version 1 of the pool waits for a verdict"
    assert not stages.retraining_decision(made, "SIMN", hour=12, in_flight=True).retrain
    stages.judge(made, "SIMN")
    assert not stages.retraining_decision(made, "SIMN", hour=12).retrain


def test_a_waiting_verdict_comes_before_a_newer_version(tmp_path: Path) -> None:
    made = market(tmp_path)
    stages.train_candidate(made, "SIMQ")
    observe(made, sessions_of(made, 7)[-1])
    assert not stages.train_candidate(made, "SIMN").new
    stages.judge(made, "SIMN")
    again = stages.train_candidate(made, "SIMN")
    assert (again.new, again.card.version) == (True, 2)


def test_a_session_is_learned_once_whoever_asks(tmp_path: Path) -> None:
    made = market(tmp_path)
    for symbol in SYMBOLS:
        stages.train_candidate(made, symbol)
        stages.judge(made, symbol)
    later = replay_in(tmp_path, HEDGE_MODEL_SCOPE="pool")  # after a restart
    for symbol in SYMBOLS:
        assert not stages.train_candidate(later, symbol).new
    assert later.shelf.versions(POOL) == (1,)


def test_a_symbol_that_lost_its_skill_forgets_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = market(tmp_path)
    labels = sessions_of(made, 6)
    state = training.state_of

    def reset(deployment: Deployment, symbol: str) -> Any:
        found = state(deployment, symbol)
        since = labels[4] if symbol == "SIMN" else None
        return dataclasses.replace(found, train_from=since)

    monkeypatch.setattr(training, "state_of", reset)
    window = stages.pool_window(made)
    assert tuple(window) == labels
    assert [len(window[x]) for x in labels] == [1, 1, 1, 1, 2, 2]


def test_a_session_that_is_not_settled_for_a_symbol_enters_without_it(tmp_path: Path) -> None:
    made = market(tmp_path)
    label = sessions_of(made, 7)[-1]
    stages.collect(made, label)
    bars = made.store.read(RAW_QUOTES, [label], symbols=["SIMQ"])
    made.store.replace(RAW_QUOTES, label, bars)
    stages.build_features(made, label)
    stages.mature_outcomes(made, label)
    assert stages.pool_window(made)[label] == ("SIMQ",)


def test_a_tampered_candidate_of_the_pool_is_rejected_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = market(tmp_path)
    monkeypatch.setattr(training, "margins_of", lambda *given: margins_of(*given) + 0.01)
    card = stages.train_candidate(made, "SIMQ").card
    assert str(card.guard_failure).startswith("parity: served margins differ")
    for symbol in SYMBOLS:
        assert [x["event"] for x in stages.judge(made, symbol)] == ["reject"]


def test_the_scope_may_change_on_a_store_and_what_was_said_stays(tmp_path: Path) -> None:
    own = market(tmp_path, "symbol")
    for symbol in SYMBOLS:
        stages.train_candidate(own, symbol)
        stages.judge(own, symbol)
    label = sessions_of(own, 7)[-1]
    observe(own, label)
    before = own.store.read(PREDICTION_LOG, [label])
    pooled = replay_in(tmp_path, HEDGE_MODEL_SCOPE="pool")
    for symbol in SYMBOLS:
        stages.train_candidate(pooled, symbol)
        stages.judge(pooled, symbol)
    observe(pooled, sessions_of(own, 8)[-1])
    back = replay_in(tmp_path, HEDGE_MODEL_SCOPE="symbol")
    card = stages.train_candidate(back, "SIMQ").card
    assert (card.version, card.members) == (3, ())
    stages.judge(back, "SIMQ")
    observe(back, sessions_of(own, 9)[-1])
    versions = [
        set(back.store.read(PREDICTION_LOG, [x])["model_version"]) for x in sessions_of(own, 9)[-3:]
    ]
    assert versions[0] == {1}
    assert versions[1] == {1, 2}  # the baseline is the first one for ever
    assert {1, 2, 3} == versions[2]
    pd.testing.assert_frame_equal(back.store.read(PREDICTION_LOG, [label]), before)


def test_no_search_in_a_pool(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="HEDGE_MODEL_SCOPE=pool"):
        stages.search_hyperparameters(market(tmp_path), "SIMQ")


def test_a_version_of_the_pool_can_be_replayed_without_retraining(tmp_path: Path) -> None:
    made = market(tmp_path / "made")
    for symbol in SYMBOLS:
        stages.train_candidate(made, symbol)
        stages.judge(made, symbol)
    frozen = replay_in(tmp_path / "frozen")
    labels = sessions_of(made, 8)[-2:]
    control.freeze(frozen, made.store, 1, labels[0])
    replay(frozen, labels, train=False)
    log = frozen.store.read(PREDICTION_LOG)
    assert set(log.loc[log["prediction"].notna(), "symbol"]) == set(SYMBOLS)
    assert set(log["model_version"]) == {1}


def test_a_replay_in_one_go_equals_one_that_was_stopped(tmp_path: Path) -> None:
    labels = sessions_of(replay_in(tmp_path / "whole"), 7)
    whole = replay_in(tmp_path / "whole", HEDGE_MODEL_SCOPE="pool")
    replay(whole, labels)
    for part in (labels[:6], labels):
        stopped = replay_in(tmp_path / "parts", HEDGE_MODEL_SCOPE="pool")
        replay(stopped, part)
    assert_equal_tables(stopped.store, whole.store)
    assert whole.shelf.versions(POOL) == (1, 2, 3)
    verdicts = whole.store.read(PROMOTIONS)
    verdicts = verdicts[verdicts["kind"] == "verdict"]
    assert verdicts.groupby("symbol").size().to_dict() == {"SIMQ": 3, "SIMN": 3}
    for version in (1, 3):
        assert whole.shelf.content("SIMQ", version) == stopped.shelf.content("SIMQ", version)


def test_the_assets_train_once_and_judge_by_symbol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    market(tmp_path / "data")
    variables = environment(
        HEDGE_DATA_URL=str(tmp_path / "data"), HEDGE_MODE="replay", HEDGE_MODEL_SCOPE="pool"
    )
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    with dg.DagsterInstance.ephemeral() as instance:
        for symbol in SYMBOLS:
            assert runs.train(instance, symbol).success
    after = replay_in(tmp_path / "data", HEDGE_MODEL_SCOPE="pool")
    assert after.shelf.versions(POOL) == (1,)
    assert [after.ledger(symbol).accepted for symbol in SYMBOLS] == [(1,), (1,)]


@pytest.mark.parametrize("value", ["pools", "", "Symbol"])
def test_another_scope_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="HEDGE_MODEL_SCOPE"):
        load_settings(HEDGE_MODEL_SCOPE=value)


def test_the_pool_is_nobodys_symbol() -> None:
    with pytest.raises(ValueError, match="is no symbol"):
        load_settings(HEDGE_SYMBOLS=POOL)
    assert pooling.SPOOL_FROM > 60 * BARS_OF_A_DAY


BARS_OF_A_DAY = 1440
