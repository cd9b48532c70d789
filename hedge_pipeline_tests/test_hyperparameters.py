"""A search from the store to the next training: only when asked, only forward, never into the past.

The sessions are simulated with an edge; a search divides them as sparingly as it can.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from hedge_pipeline import cli, opening, stages
from hedge_pipeline.learning import search
from hedge_pipeline.learning.dataset import assemble
from hedge_pipeline.learning.search import DEFAULTS, INSTALL, SearchPlan, SearchRecord, tuned
from hedge_pipeline.learning.training import TrainingPlan
from hedge_pipeline.market.tables import FEATURE_ROWS, OUTCOMES, PREDICTION_LOG, RAW_QUOTES
from hedge_pipeline.resources.registry import _params
from hedge_pipeline.stages import Deployment, StageError, training
from hedge_pipeline_tests.markets import copy_of
from hedge_pipeline_tests.replays import environment, replay_in
from hedge_pipeline_tests.runs import code_location, failures, files, materialize, shown

SYMBOL = "SIMQ"
SESSIONS = 9
SPARING = SearchPlan(least=3, block=1)
WINDOW = "hedge_pipeline.stages.training.training_window"
OTHER = {"depth": 2, "trees": 40, "rows_per_tree": 0.7, "learning_rate": 0.08}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("history") / "data"
    deployment = replay_in(folder, (SYMBOL,))
    for label in deployment.calendar.labels[:SESSIONS]:
        stages.collect(deployment, label)
        stages.build_features(deployment, label)
        stages.mature_outcomes(deployment, label)
    return folder


@pytest.fixture
def folder(history: Path, tmp_path: Path) -> Path:
    return copy_of(history, tmp_path / "data")


@pytest.fixture
def market(folder: Path) -> Deployment:
    return opened(folder)


def opened(folder: Path) -> Deployment:
    """A deployment of its own on the folder, as after a start."""
    return replace(replay_in(folder, (SYMBOL,)), search_plan=SPARING)


def on(deployment: Deployment, sessions: int, **changes: Any) -> Deployment:
    """Live, after so many sessions: the store may hold later ones."""
    last = deployment.calendar.session(deployment.calendar.labels[sessions - 1])
    moment = last.closes + stages.SETTLING
    return replace(deployment, replay=False, clock=lambda: moment, settled=set(), **changes)


def add_record(
    deployment: Deployment, *, cutoff: int, adopted: bool = True, **changes: Any
) -> SearchRecord:
    """A search on the first sessions, as if it had found something."""
    parameters = {**tuned(deployment.plan), **(OTHER if adopted else {})}
    shelf = deployment.searches
    record = SearchRecord(
        symbol=SYMBOL,
        number=len(shelf.numbers(SYMBOL)) + 1,
        cutoff=deployment.calendar.labels[cutoff - 1],
        first_session=deployment.calendar.labels[0],
        sessions=cutoff,
        created_at="2024-01-10T21:15:00+00:00",
        horizon_bars=deployment.horizon,
        schema_hash=FEATURE_ROWS.schema_hash,
        data_hash="hash",
        trials=2,
        seed=0,
        defaults=dataclasses.asdict(deployment.plan),
        adopted=adopted,
        parameters=parameters,
    )
    record = replace(record, **changes)
    assert shelf.put(record)
    return record


# -- the search ------------------------------------------------------------------------------------


def test_a_search_stores_its_record_and_nothing_else(market: Deployment) -> None:
    before = files(Path(market.store.url))
    found = stages.search_hyperparameters(market, SYMBOL, trials=3)
    after = files(Path(market.store.url))
    assert set(after) - set(before) == {f"searches/{SYMBOL}/000001.json"}
    assert {name: after[name] for name in before} == before
    record = found.record
    assert found.new
    assert (record.cutoff, record.sessions) == (market.calendar.labels[SESSIONS - 1], SESSIONS)
    assert len(record.tried) == 3
    assert record.tried[0]["parameters"] == tuned(TrainingPlan())
    assert market.searches.newest(SYMBOL) == record


def test_the_same_asked_again_is_no_new_search_and_another_seed_is(market: Deployment) -> None:
    first = stages.search_hyperparameters(market, SYMBOL, trials=2)
    again = stages.search_hyperparameters(opened(Path(market.store.url)), SYMBOL, trials=2)
    assert (again.new, again.record) == (False, first.record)
    assert "asked the same already" in again.in_words()
    other = stages.search_hyperparameters(market, SYMBOL, trials=2, seed=1)
    assert (other.new, other.record.number) == (True, 2)


def test_what_lies_after_the_cutoff_could_be_anything(history: Path, tmp_path: Path) -> None:
    """The same bytes without later sessions, with them, and with nonsense in their place."""
    found = []
    for what in ("absent", "present", "poisoned"):
        folder = copy_of(history, tmp_path / what)
        market = opened(folder)
        for label in market.calendar.labels[SESSIONS - 1 : SESSIONS]:
            for table in (FEATURE_ROWS, OUTCOMES, RAW_QUOTES):
                rows = market.store.read(table, [label])
                market.store.drop(table, label)
                if what == "poisoned":
                    rows = poisoned(rows)
                if what != "absent":
                    market.store.replace(table, label, rows)
        stages.search_hyperparameters(on(market, SESSIONS - 1), SYMBOL, trials=4)
        found.append(market.store.read_bytes(f"searches/{SYMBOL}/000001.json"))
    assert found[0] == found[1] == found[2]
    assert json.loads(found[0])["cutoff"] == market.calendar.labels[SESSIONS - 2]


def poisoned(rows: pd.DataFrame) -> pd.DataFrame:
    if "actual_direction" in rows:
        return rows.assign(actual_direction=1 - rows["actual_direction"])
    values = rows.select_dtypes(["float32", "float64"]).columns
    return rows.assign(**{name: np.abs(rows[name]) * 7 + 1 for name in values})


def test_too_few_sessions_are_told_in_one_line(market: Deployment) -> None:
    with pytest.raises(StageError, match=f"^{SYMBOL}: 9 of the 35 sessions a search needs"):
        stages.search_hyperparameters(replace(market, search_plan=SearchPlan()), SYMBOL)


def test_of_two_searches_at_once_one_gets_the_number(
    market: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = search.search

    def interrupted(*arguments: Any, **named: Any) -> Any:
        add_record(market, cutoff=SESSIONS)
        return real(*arguments, **named)

    monkeypatch.setattr(search, "search", interrupted)
    with pytest.raises(StageError, match="another search has number 1 already"):
        stages.search_hyperparameters(market, SYMBOL, trials=2)
    newest = market.searches.newest(SYMBOL)
    assert newest is not None
    assert newest.adopted


# -- going forward only ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cutoff", "adopted", "changes", "parameters_from", "trees"),
    [
        (8, True, {}, "search 1 on sessions to 2024-01-11", 40),
        (8, False, {}, "the defaults, kept by search 1 on sessions to 2024-01-11", 60),
        (9, True, {}, DEFAULTS, 60),
        (8, True, {"horizon_bars": 5}, DEFAULTS, 60),
        (8, True, {"schema_hash": "other"}, DEFAULTS, 60),
        (8, True, {"symbol": "SIMN"}, DEFAULTS, 60),
    ],
    ids=["earlier", "kept", "same cutoff", "other horizon", "other features", "other symbol"],
)
def test_a_training_uses_what_was_found_before_its_cutoff(
    market: Deployment,
    cutoff: int,
    adopted: bool,
    changes: dict[str, Any],
    parameters_from: str,
    trees: int,
) -> None:
    add_record(market, cutoff=cutoff, adopted=adopted, **changes)
    card = stages.train_candidate(market, SYMBOL).card
    assert card.guard_failure is None
    assert card.parameters_from == parameters_from
    assert card.plan["trees"] == trees
    assert market.shelf.load(SYMBOL, 1).booster.num_boosted_rounds() == trees
    assert {"parameters_from": parameters_from, "trees": str(trees)}.items() <= {
        param.key: param.value for param in _params(card)
    }.items()


def test_a_search_makes_no_new_version_of_the_same_data(market: Deployment) -> None:
    before = stages.train_candidate(market, SYMBOL)
    add_record(market, cutoff=SESSIONS)
    after = stages.train_candidate(market, SYMBOL)
    assert before.new
    assert (after.new, after.card) == (False, before.card)


def test_a_find_is_judged_on_later_sessions_only_and_leaves_the_past_as_it_was(
    folder: Path, history: Path, tmp_path: Path
) -> None:
    """Two equal replays, one of them with a find after session 7, and then two sessions more."""
    market, plain = opened(folder), opened(copy_of(history, tmp_path / "plain"))
    labels = market.calendar.labels[:SESSIONS]
    for number, label in enumerate(labels, start=1):
        for deployment in (market, plain):
            stages.log_predictions(deployment, label)
            stages.fold_evidence(deployment, SYMBOL)
        if number == 7:
            past = files(folder), market.ledger(SYMBOL).state
            record = add_record(market, cutoff=number)
            assert market.ledger(SYMBOL).state == past[1]
        if number >= 6:
            for deployment in (market, plain):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(WINDOW, lambda *_, n=number: labels[:n])
                    stages.train_candidate(deployment, SYMBOL)
                stages.judge(deployment, SYMBOL)

    cards = {x: market.shelf.card(SYMBOL, x) for x in market.shelf.versions(SYMBOL)}
    found = {x for x, card in cards.items() if card.plan["trees"] == OTHER["trees"]}
    assert {x: card.parameters_from == record.source for x, card in cards.items()} == {
        x: x in found for x in cards
    }
    assert {cards[x].cutoff for x in found} == set(labels[7:])
    for version in set(cards) - found:  # the same bytes as without any search
        assert plain.shelf.content(SYMBOL, version) == market.shelf.content(SYMBOL, version)
    log = market.store.read(PREDICTION_LOG)
    served = log[log["model_version"].isin(found)]
    assert len(served) > 0
    closes = market.calendar.session(record.cutoff).closes
    assert (served["bar_ts"] > closes).all()
    now = files(folder)
    assert {name: now[name] for name in past[0]} == past[0]


def test_the_spread_of_other_parameters_is_not_what_is_usual(
    market: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loud model after quiet ones of another plan, or a quiet one before, refuses nothing."""
    cards = [stages.train_candidate(market, SYMBOL).card]
    stages.judge(market, SYMBOL)
    seen: list[list[float]] = []
    monkeypatch.setattr(
        "hedge_pipeline.stages.training.guard", lambda *given: seen.append(given[-1])
    )
    for parameters in ({}, OTHER):
        card = replace(cards[0], plan={**cards[0].plan, **parameters})
        data = assemble(
            market.labelled,
            SYMBOL,
            market.calendar.labels[:SESSIONS],
            market.plan,
            market.horizon,
            market.asked_at(market.calendar.session(card.cutoff)),
        )
        later = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
        wanted = dict.fromkeys(data.sessions, (SYMBOL,))
        training._guarded(market, card, np.empty(0), data, wanted, 0.5, later)
    assert seen == [[cards[0].spread], []]


# -- the asset -------------------------------------------------------------------------------------


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def at_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The settings name the folder, and searches divide their sessions sparingly."""
    variables = {"HEDGE_DATA_URL": str(folder), "HEDGE_MODE": "replay"}
    wanted = environment(**variables)
    for name in list(os.environ):
        if name not in wanted:
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder.parent)
    made = stages.deploy

    def sparing(*given: Any, **named: Any) -> Deployment:
        return replace(made(*given, **named), search_plan=SPARING)

    monkeypatch.setattr(stages, "deploy", sparing)
    monkeypatch.setattr(opening, "deploy", sparing)
    return variables


def test_nothing_but_a_person_launches_a_search() -> None:
    location = code_location()
    key = dg.AssetKey("hyperparameters")
    for job in location.resolve_all_job_defs():
        if not job.name.startswith("__"):
            assert key not in job.asset_layer.selected_asset_keys
    spec = next(x for x in location.resolve_all_asset_specs() if x.key == key)
    assert spec.automation_condition is None
    assert spec.freshness_policy is None


def test_the_asset_searches_and_shows_what_it_found(
    at_the_folder: dict[str, str], folder: Path, instance: dg.DagsterInstance
) -> None:
    result = materialize(
        instance,
        ["hyperparameters"],
        SYMBOL,
        config={"hyperparameters": {"config": {"trials": 3, "seed": 5}}},
    )
    assert result.success, failures(result)
    found = shown(result)[("hyperparameters", SYMBOL)]
    record = opened(folder).searches.newest(SYMBOL)
    assert record is not None
    assert (record.trials, record.seed, len(record.tried)) == (3, 5, 3)
    assert (found["search"], found["new"], found["adopted"]) == (1, True, record.adopted)
    assert found["verdict"] == record.reason
    assert found["parameters"] == record.parameters
    assert found["trials"].count("\n") == 4
    assert not (folder / "models").exists()  # what is found waits for the next training


def test_the_asset_without_sessions_fails_with_one_line(
    at_the_folder: dict[str, str], instance: dg.DagsterInstance
) -> None:
    result = materialize(instance, ["hyperparameters"], "SIMN")
    assert not result.success
    assert failures(result) == ["SIMN: 0 of the 7 sessions a search needs have outcomes"]


# -- the command -----------------------------------------------------------------------------------


def test_the_command_says_what_became_of_the_search(at_the_folder: dict[str, str]) -> None:
    arguments = ["search", "--symbol", "simq", "--trials", "2"]
    for people in (CliRunner().invoke(cli.app, arguments), CliRunner().invoke(cli.app, arguments)):
        assert people.exit_code == 0, people.output
        assert people.stdout.count("\n") == 1
        assert people.stdout.startswith("SIMQ: search 1 on 9 sessions to 2024-01-12")
    machines = CliRunner().invoke(cli.app, [*arguments, "--json"])
    found = json.loads(machines.stdout)
    assert (found["new"], found["number"], len(found["tried"])) == (False, 1, 2)
    assert found["reason"] in people.stdout


def test_without_optuna_asset_and_command_say_how_to_install_it(
    at_the_folder: dict[str, str], instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    said = CliRunner().invoke(cli.app, ["search", "--symbol", SYMBOL])
    assert said.exit_code == 1
    assert said.stderr == f"error: {INSTALL}\n"
    assert failures(materialize(instance, ["hyperparameters"], SYMBOL)) == [INSTALL]


def test_training_needs_no_optuna(market: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    add_record(market, cutoff=8)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert stages.train_candidate(market, SYMBOL).card.plan["trees"] == OTHER["trees"]
