"""Worlds with a known truth, run through the product's own replay.

Noise must stay unproven and cost nothing, a planted edge must be proven, and a leak must show.
Seeds are fixed: the numbers are the same on every run.
"""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks.worlds import exchanged_outcomes
from hedge_pipeline import stages
from hedge_pipeline.learning import scoring
from hedge_pipeline.learning.gate import GateState, Skill, fold
from hedge_pipeline.learning.ledger import Ledger
from hedge_pipeline.learning.scoring import Score
from hedge_pipeline.market.calendar import Session, SessionCalendar
from hedge_pipeline.market.sources import Capabilities, MarketSource, SourceOptions
from hedge_pipeline.market.sources.protocol import BAR_COLUMNS
from hedge_pipeline.market.sources.simulated import SimulatedSource
from hedge_pipeline.market.tables import PERFORMANCE, PREDICTION_LOG
from hedge_pipeline.replay import replay
from hedge_pipeline.settings import load_settings
from hedge_pipeline.stages import Deployment, deploy
from hedge_pipeline_tests.learning.conftest import times_of
from hedge_pipeline_tests.markets import copy_of

pytestmark = pytest.mark.slow

HORIZON = 10
WARM_UP = 5
# 1e-4 nats per label; ln 2 is 6931
NEGLIGIBLE = 3.0
LEARNING_COST = 10.0
# the edge of the simulated market turns round in its session 60, counted from 0
FLIP = 60
BEFORE = 34


@dataclass(frozen=True)
class World:
    """A replayed deployment and what it found for its one symbol."""

    deployment: Deployment

    @property
    def symbol(self) -> str:
        return self.deployment.symbols[0]

    @property
    def ledger(self) -> Ledger:
        return self.deployment.ledger(self.symbol)

    @property
    def folds(self) -> pd.DataFrame:
        entries = self.ledger.entries
        return entries[entries["kind"] == "fold"].reset_index(drop=True)

    @property
    def cards(self) -> list[Any]:
        shelf = self.deployment.shelf
        return [shelf.card(self.symbol, version) for version in shelf.versions(self.symbol)]

    @property
    def scores(self) -> pd.DataFrame:
        rows = self.deployment.store.read(PERFORMANCE)
        return rows[rows["role"] == "served"]

    @property
    def score(self) -> Score:
        return scoring.score(self.scores, HORIZON)


def run(
    folder: Path,
    symbol: str,
    sessions: int,
    open_source: Callable[[SessionCalendar], MarketSource],
    first: int = 0,
) -> World:
    settings = load_settings(
        HEDGE_MODE="replay",
        HEDGE_DATA_URL=str(folder),
        HEDGE_SYMBOLS=symbol,
        HEDGE_HISTORY_START="2024-01-02",
    )
    deployment = deploy(settings, open_source)
    replay(deployment, deployment.calendar.labels[first : first + sessions])
    return World(deployment)


def simulated(calendar: SessionCalendar, seed: int = 7) -> SimulatedSource:
    return SimulatedSource(SourceOptions(calendar, seed=seed))


class RandomWalk:
    """A source of its own: independent Gaussian minute returns, no levels."""

    name = "random_walk"
    capabilities = Capabilities()
    delay = dt.timedelta(0)

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def bars(self, symbol: str, session: Session, now: dt.datetime) -> pd.DataFrame:
        rng = np.random.default_rng([self._seed, int(session.label.replace("-", ""))])
        close = 100 * np.exp(np.cumsum(5e-4 * rng.standard_normal(session.bars)))
        opened = np.concatenate([[100.0], close[:-1]])
        spread = 2e-4 * np.abs(rng.standard_normal((2, session.bars)))
        frame = pd.DataFrame(
            {
                "bar_ts": times_of(session),
                "open": opened,
                "high": np.maximum(opened, close) * (1 + spread[0]),
                "low": np.minimum(opened, close) * (1 - spread[1]),
                "close": close,
                "volume": rng.lognormal(11, 0.5, session.bars).round(),
            }
        )
        return frame.reindex(columns=list(BAR_COLUMNS))


class Leaking(RandomWalk):
    """The same noise, but a column the features read holds the close ten bars ahead."""

    def bars(self, symbol: str, session: Session, now: dt.datetime) -> pd.DataFrame:
        frame = super().bars(symbol, session, now)
        return frame.assign(support=frame["close"].shift(-HORIZON))


@pytest.fixture(scope="module")
def bounce(tmp_path_factory: pytest.TempPathFactory) -> World:
    return run(tmp_path_factory.mktemp("bounce"), "SIMQ", FLIP - BEFORE, simulated, BEFORE)


@pytest.fixture(scope="module", params=[7, 8, 9])
def flipped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Markets whose edge turns round: six sessions of it, after as many as a proof needs."""
    seed, first = request.param, {7: BEFORE, 8: 36, 9: 44}[request.param]
    folder = tmp_path_factory.mktemp("flipped") / "store"
    if seed == 7:
        bounce: World = request.getfixturevalue("bounce")
        copy_of(Path(bounce.deployment.store.url), folder)
    source = partial(simulated, seed=seed)
    return run(folder, "SIMQ", FLIP + 6 - first, source, first)


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> World:
    return run(tmp_path_factory.mktemp("control"), "SIMN", 26, simulated)


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> World:
    return run(tmp_path_factory.mktemp("walk"), "WALK", 26, lambda calendar: RandomWalk(1))


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory: pytest.TempPathFactory) -> World:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "mature_outcomes", exchanged_outcomes(26))
        return run(tmp_path_factory.mktemp("exchanged"), "SIMQ", 26, simulated)


@pytest.fixture(scope="module")
def leak(tmp_path_factory: pytest.TempPathFactory) -> World:
    return run(tmp_path_factory.mktemp("leak"), "LEAK", 8, lambda calendar: Leaking(1))


@pytest.fixture(params=["walk", "control", "exchanged"])
def noise(request: pytest.FixtureRequest) -> World:
    world: World = request.getfixturevalue(request.param)
    return world


# --- nothing to find -------------------------------------------------------------------------


def test_noise_is_never_proven(noise: World) -> None:
    assert len(noise.folds) >= 26
    assert set(noise.folds["skill"]) == {"unproven"}
    assert noise.folds["event"].isna().all()
    assert noise.folds["evidence"].max() < np.log(20)
    assert noise.ledger.champion is None


def test_noise_is_predicted_all_the_same_and_scores_as_the_base_rate(noise: World) -> None:
    found = noise.score
    assert found.n > 300 * (len(noise.folds) - WARM_UP - 1)
    assert found.lo < 0.5 < found.hi
    assert abs(found.base_log_loss - np.log(2)) < 1e-3


def test_the_unshrunk_models_lose_on_noise_what_trust_keeps(noise: World) -> None:
    """The first models are the worst and trust has yet to learn it; still it keeps most."""
    found = noise.score
    raw = (found.raw_log_loss - found.base_log_loss) * 1e4
    assert raw > 50
    assert 0 < -found.skill < min(raw / 5, LEARNING_COST)


def test_once_trust_has_learned_noise_costs_next_to_nothing(
    walk: World, control: World, exchanged: World
) -> None:
    rows = [
        world.scores.assign(symbol=str(number))
        for number, world in enumerate((walk, control, exchanged))
    ]
    late = pd.concat([frame[frame["session"] > frame["session"].unique()[19]] for frame in rows])
    assert abs(scoring.score(late, HORIZON).skill) < NEGLIGIBLE
    assert max(world.folds["trust"].iloc[-1] for world in (walk, control, exchanged)) < 0.11


def test_on_noise_candidates_are_held_not_rejected(noise: World) -> None:
    assert len(noise.cards) >= 20
    assert {card.guard_failure for card in noise.cards} == {None}
    verdicts = noise.ledger.entries[noise.ledger.entries["kind"] == "verdict"]
    assert set(verdicts["event"]) == {"hold"}
    assert verdicts["reason"].str.contains("of the 20 needed").all()


# --- an edge to find -------------------------------------------------------------------------


def test_a_planted_edge_is_proven(bounce: World) -> None:
    events = bounce.folds[bounce.folds["event"].notna()]
    assert list(events["event"]) == ["skill_proven"]
    assert bounce.ledger.state.status is Skill.PROVEN
    assert bounce.ledger.champion == bounce.ledger.accepted[-1]
    assert bounce.score.skill > 20
    assert bounce.score.lo > 0.5


def test_twenty_honest_candidates_of_an_edge_pass_every_guard(bounce: World) -> None:
    assert len(bounce.cards) >= 20
    assert {card.guard_failure for card in bounce.cards} == {None}


def test_candidates_are_held_before_the_proof_and_promoted_after(bounce: World) -> None:
    entries = bounce.ledger.entries
    verdicts = entries[entries["kind"] == "verdict"]
    proven = verdicts["skill"] == "proven"
    assert set(verdicts.loc[proven, "event"]) == {"promote"}
    assert set(verdicts.loc[~proven, "event"]) == {"hold"}


def test_trust_rises_with_an_edge_and_falls_without(bounce: World, control: World) -> None:
    prior = 0.26
    assert bounce.folds["trust"].iloc[-1] > prior > control.folds["trust"].iloc[-1]


def test_a_flip_is_lost_within_five_sessions_and_training_forgets_what_was_before(
    flipped: World,
) -> None:
    labels = flipped.deployment.calendar.labels
    events = flipped.folds[flipped.folds["event"].notna()]
    assert list(events["event"]) == ["skill_proven", "skill_lost"]
    lost = str(events["session"].iloc[-1])
    assert labels[FLIP] <= lost <= labels[FLIP + 5]
    state = flipped.ledger.state
    assert state.status is Skill.LOST
    assert flipped.ledger.champion is None
    assert state.train_from is not None
    # five sessions at least are kept
    assert labels[FLIP - 4] <= state.train_from <= lost
    earlier = {card.first_session for card in flipped.cards if card.cutoff < lost}
    assert earlier == {flipped.folds["session"].iloc[0]}
    later = [card for card in flipped.cards if card.cutoff >= lost]
    assert later
    assert {card.first_session for card in later} == {state.train_from}
    verdicts = flipped.ledger.entries[flipped.ledger.entries["kind"] == "verdict"]
    since = verdicts.loc[verdicts["session"] >= lost, "event"]
    assert set(since) <= {"hold", "reject"}


# --- a leak ----------------------------------------------------------------------------------


def test_a_feature_from_the_future_makes_the_evidence_explode(leak: World) -> None:
    """Its first predicted session is enough: so fast a proof is an alarm, not a success."""
    predicted = leak.folds[leak.folds["labels"] > 0]
    assert list(predicted["event"].dropna()) == ["skill_proven"]
    assert predicted["event"].iloc[0] == "skill_proven"
    assert predicted["evidence"].iloc[0] > np.log(10_000)
    assert leak.score.value > 0.95


def test_the_leak_check_names_the_feature_and_no_honest_one(
    leak: World, walk: World, bounce: World
) -> None:
    found = stages.leaking_features(leak.deployment, "LEAK")
    assert list(found) == ["support_distance"]
    assert found["support_distance"] < 0.05
    for world in (walk, bounce):
        assert stages.leaking_features(world.deployment, world.symbol) == {}


# --- the loop --------------------------------------------------------------------------------


def test_predicting_a_past_session_again_asks_no_model_that_saw_it(bounce: World) -> None:
    """Every later model is on the shelf by now; the rows must come out as they did that day."""
    store, label = bounce.deployment.store, bounce.folds["session"][20]
    before = store.read(PREDICTION_LOG, [label])
    shutil.rmtree(Path(store.url, PREDICTION_LOG.name, f"session={label}"))
    assert stages.log_predictions(bounce.deployment, label) == len(before)
    pd.testing.assert_frame_equal(store.read(PREDICTION_LOG, [label]), before)
    served = before.loc[before["role"] == "served", "model_version"].unique()
    cutoffs = {card.version: card.cutoff for card in bounce.cards}
    assert [cutoffs[version] for version in served] == [bounce.folds["session"][19]]


@pytest.mark.parametrize("name", ["bounce", "control"])
def test_the_log_holds_what_a_fold_from_scratch_gives(
    name: str, request: pytest.FixtureRequest
) -> None:
    world: World = request.getfixturevalue(name)
    state = GateState.new(world.deployment.rule)
    for label in world.folds["session"]:
        found = stages.evidence_of(world.deployment, world.symbol, label)
        state, _ = fold(state, found, world.deployment.rule)
    assert state == world.ledger.state


def test_a_live_deployment_makes_no_evidence_of_its_past(tmp_path: Path) -> None:
    """The same stages on a store that is no replay, with a model that knows the future."""
    settings = load_settings(HEDGE_DATA_URL=str(tmp_path), HEDGE_SYMBOLS="LEAK")
    live = deploy(settings, lambda calendar: Leaking(1))
    labels = live.calendar.labels
    for label in labels[:5]:
        stages.collect(live, label)
        stages.build_features(live, label)
        stages.mature_outcomes(live, label)
    stages.train_candidate(live, "LEAK")
    clock = live.calendar.session(labels[4]).closes + dt.timedelta(hours=1)
    stages.judge(replace(live, clock=lambda: clock), "LEAK")
    for label in labels[5:8]:
        stages.collect(live, label)
        stages.build_features(live, label)
        stages.log_predictions(live, label)
        stages.mature_outcomes(live, label)
    log = live.store.read(PREDICTION_LOG)
    assert set(log["mode"]) == {"backfill"}
    assert log["margin"].abs().mean() > 0.5
    folds = stages.fold_evidence(live, "LEAK")
    assert len(folds) == 8
    assert {fold.entry["labels"] for fold in folds} == {0}
    assert live.ledger("LEAK").state.log_evidence == 0
