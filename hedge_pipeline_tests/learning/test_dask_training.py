"""Training on a real Dask cluster: what a local training gives, or one line that says why not."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from hedge_pipeline import stages
from hedge_pipeline.learning import dask_training
from hedge_pipeline.learning.dask_training import DaskTrainer
from hedge_pipeline.learning.dataset import Spool, TrainingSet
from hedge_pipeline.learning.training import (
    TrainingFailed,
    TrainingPlan,
    fit,
    load_model,
    margins,
    skill_in_nats,
)
from hedge_pipeline.probability import logit
from hedge_pipeline.stages import Deployment, StageError
from hedge_pipeline_tests import runs
from hedge_pipeline_tests.clusters import Cluster, cluster_in
from hedge_pipeline_tests.learning.conftest import card_of, learnable_rows, training_set
from hedge_pipeline_tests.replays import environment, replay_in, sessions_of

PLAN = TrainingPlan()
# a training of these takes some ten seconds, so that something can happen in the middle
LONG = TrainingPlan(trees=1500)
NOBODY = "tcp://127.0.0.1:9"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster_in(tmp_path_factory.mktemp("cluster"), workers=2) as made:
        yield made


@pytest.fixture(scope="module")
def rows() -> TrainingSet:
    return training_set(*learnable_rows(20_000, slope=0.3))


def assert_equal_within_tolerance(found: Any, data: TrainingSet) -> None:
    """Not further from a local training than a local one of the same rows in another order.

    The edges of the bins depend a little on the order of the rows, on a cluster also on how they
    are divided; trees follow the edges.
    """
    values, labels = learnable_rows(20_000, seed=5, slope=0.3)
    order = np.random.default_rng(0).permutation(data.rows)
    margin = None if data.base_margin is None else data.base_margin[order]
    shuffled = dataclasses.replace(
        data,
        features=data.features[order],
        labels=data.labels[order],
        base_margin=margin,
        spool=None,
    )
    boosters = (found, *(fit(rows, PLAN)[1] for rows in (data, shuffled)))
    said, local, other = (margins(x, values, data.base_rate) for x in boosters)
    assert np.abs(said - local).mean() < 1.5 * np.abs(other - local).mean()
    assert np.corrcoef(said, local)[0, 1] > 0.985
    skill, skill_of_local = (skill_in_nats(x, labels, data.base_rate) for x in (said, local))
    assert skill_of_local > 5e-3
    assert abs(skill - skill_of_local) < 5e-4


# --- the result ------------------------------------------------------------------------------


def test_two_workers_give_what_a_local_training_gives(cluster: Cluster, rows: TrainingSet) -> None:
    content, booster = DaskTrainer(cluster.address)(rows, PLAN)
    _, local = fit(rows, PLAN)
    assert booster.num_boosted_rounds() == PLAN.trees
    assert booster.feature_names == local.feature_names
    assert_equal_within_tolerance(booster, rows)
    loaded = load_model(card_of(rows, content), content)
    np.testing.assert_array_equal(
        loaded.margin(rows.features), margins(booster, rows.features, rows.base_rate)
    )


def test_one_cluster_gives_equal_bytes_for_equal_rows(cluster: Cluster, rows: TrainingSet) -> None:
    trainer = DaskTrainer(cluster.address)
    assert trainer(rows, PLAN)[0] == trainer(rows, PLAN)[0]


def test_both_workers_have_a_share_of_the_rows(
    cluster: Cluster, rows: TrainingSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    import xgboost.dask

    shares: list[int] = []
    train = xgboost.dask.train

    def spied(client: Any, parameters: Any, matrix: Any, rounds: int, **more: Any) -> Any:
        shares.extend(len(parts) for parts in matrix.worker_map.values())
        return train(client, parameters, matrix, rounds, **more)

    monkeypatch.setattr(xgboost.dask, "train", spied)
    DaskTrainer(cluster.address)(rows, PLAN)
    assert shares == [1, 1]


def test_rows_on_disk_and_base_margins_get_there(cluster: Cluster, rows: TrainingSet) -> None:
    spool = Spool(rows.features.shape[1])
    spool.add(rows.features)
    rates = np.where(np.arange(rows.rows) % 2, 0.55, 0.45)
    margin = np.asarray(logit(rates))
    on_disk = dataclasses.replace(rows, features=spool.rows(), spool=spool, base_margin=margin)
    _, booster = DaskTrainer(cluster.address)(on_disk, PLAN)
    assert_equal_within_tolerance(booster, on_disk)


def test_the_asset_trains_on_the_cluster_the_settings_name(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    market = small_market(tmp_path / "replay")
    variables = environment(
        HEDGE_DATA_URL=str(tmp_path / "replay"),
        HEDGE_MODE="replay",
        HEDGE_TRAIN_BACKEND="dask",
        HEDGE_DASK_SCHEDULER=cluster.address,
    )
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.ephemeral() as instance:
        assert runs.materialize(instance, ["trained_model"], "SIMQ").success
    card = market.shelf.newest("SIMQ")
    assert card is not None
    assert (card.backend, card.guard_failure, card.version) == ("dask", None, 1)
    assert market.shelf.load("SIMQ", 1).card == card


# --- what can go wrong -----------------------------------------------------------------------


@pytest.mark.parametrize("labels", [np.zeros(50), np.ones(50), np.empty(0)])
def test_one_class_is_refused_before_anybody_is_asked(labels: np.ndarray[Any, Any]) -> None:
    values, _ = learnable_rows(len(labels))
    with pytest.raises(ValueError, match="needs both outcomes"):
        DaskTrainer(NOBODY)(training_set(values, labels), PLAN)


def test_a_scheduler_that_does_not_answer_is_one_line(rows: TrainingSet) -> None:
    said = refusal(lambda: DaskTrainer(NOBODY, connect_seconds=0.5)(rows, PLAN))
    assert said.startswith(f"the Dask scheduler at {NOBODY} (HEDGE_DASK_SCHEDULER) does not answer")


@pytest.mark.parametrize("module", ["distributed", "xgboost.dask"])
def test_without_dask_the_line_says_how_to_install_it(
    rows: TrainingSet, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert "pip install 'dask>=2026.8'" in refusal(lambda: DaskTrainer(NOBODY)(rows, PLAN))


def test_a_cluster_without_workers_is_one_line(rows: TrainingSet, tmp_path: Path) -> None:
    with cluster_in(tmp_path, workers=0) as empty:
        trainer = DaskTrainer(empty.address, connect_seconds=1)
        assert refusal(lambda: trainer(rows, PLAN)).endswith("has no workers")


def test_an_error_of_xgboost_is_one_line(cluster: Cluster, rows: TrainingSet) -> None:
    plan = TrainingPlan(depth=-1)
    said = refusal(lambda: DaskTrainer(cluster.address)(rows, plan))
    assert said.startswith(f"the training on the Dask cluster at {cluster.address} failed: ")


# --- what can die ----------------------------------------------------------------------------


@pytest.fixture
def in_the_middle(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], list[int]]:
    """Does something once in every attempt, when workers have been fitting for a moment."""

    def arrange(happen: Callable[[], None]) -> list[int]:
        looks: list[int] = []
        look = dask_training._lost

        async def watched(client: Any, workers: list[str], address: str) -> int:
            looks.append(len(workers))
            if looks.count(len(workers)) == 1:
                happen()
            return await look(client, workers, address)

        monkeypatch.setattr(dask_training, "_lost", watched)
        return looks

    return arrange


@pytest.mark.parametrize("warm", [True, False], ids=["while they fit", "before they meet"])
def test_a_worker_killed_in_the_middle_leaves_the_training_to_the_others(
    rows: TrainingSet, tmp_path: Path, in_the_middle: Callable[..., list[int]], warm: bool
) -> None:
    with cluster_in(tmp_path, workers=2) as cluster:
        trainer = DaskTrainer(cluster.address, gather_seconds=8)
        if warm:  # the first training of a worker imports XGBoost
            trainer(rows, PLAN)

        def kill() -> None:
            if len([x for x in cluster.workers if x.poll() is None]) == 2:
                cluster.workers[1].kill()

        looks = in_the_middle(kill)
        _, booster = trainer(rows, LONG)
        assert set(looks) == {2, 1}
        assert booster.num_boosted_rounds() == LONG.trees
        # said when all workers have met: by the warm-up, the training that was hit, and the last
        assert cluster.log_of("worker-0").count("got rank") == (3 if warm else 1)


def test_a_training_whose_workers_all_die_fails_and_writes_nothing(
    tmp_path: Path, in_the_middle: Callable[..., list[int]]
) -> None:
    with cluster_in(tmp_path, workers=2) as cluster:
        trainer = DaskTrainer(cluster.address, connect_seconds=1)
        market = small_market(tmp_path / "replay", trainer=trainer, backend="dask", plan=LONG)

        def kill_all() -> None:
            for worker in cluster.workers:
                worker.kill()

        in_the_middle(kill_all)
        with pytest.raises(StageError, match=r"SIMQ: the Dask cluster at .* has no workers"):
            stages.train_candidate(market, "SIMQ")
    assert not (tmp_path / "replay" / "models").exists()
    assert stages.judge(market, "SIMQ") == []


def test_a_scheduler_killed_in_the_middle_is_one_line_and_writes_nothing(
    tmp_path: Path, in_the_middle: Callable[..., list[int]]
) -> None:
    with cluster_in(tmp_path, workers=1) as cluster:
        trainer = DaskTrainer(cluster.address, connect_seconds=1)
        market = small_market(tmp_path / "replay", trainer=trainer, backend="dask", plan=LONG)
        in_the_middle(cluster.scheduler.kill)
        with pytest.raises(StageError, match=r"SIMQ: the Dask scheduler at .* lost in a training"):
            stages.train_candidate(market, "SIMQ")
    assert not (tmp_path / "replay" / "models").exists()


def small_market(out: Path, **changes: Any) -> Deployment:
    """Six simulated sessions up to their outcomes, no model yet."""
    market = dataclasses.replace(replay_in(out), **changes)
    for label in sessions_of(market, 6):
        stages.collect(market, label)
        stages.build_features(market, label)
        stages.mature_outcomes(market, label)
    return market


def refusal(work: Callable[[], object]) -> str:
    """The one line a training fails with."""
    with pytest.raises(TrainingFailed) as error:
        work()
    said = str(error.value)
    assert "\n" not in said
    return said
