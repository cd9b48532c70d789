"""Trainings from the store to the verdict: sabotage is refused, and two at once are one.

The candidates come from `stages.train_candidate` on a simulated edge; what is replaced is only the
sabotaged function.
"""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pytest

from benchmarks import guard_sabotage
from hedge_pipeline import stages
from hedge_pipeline.learning.drift import Drift
from hedge_pipeline.learning.gate import GateState, Skill
from hedge_pipeline.learning.shelf import ModelShelf
from hedge_pipeline.market.tables import PROMOTIONS, feature_names
from hedge_pipeline.stages import Deployment, StageError
from hedge_pipeline_tests.markets import copy_of

SYMBOL = "EDGE56X0"
SESSIONS = 9
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edge")
    guard_sabotage.world_in(folder, (SYMBOL,), SESSIONS, 3)
    return folder


@pytest.fixture
def trainer(history: Path, tmp_path: Path) -> Deployment:
    return opened(copy_of(history, tmp_path / "store"))


def opened(folder: Path) -> Deployment:
    """A deployment of its own on the folder, as another process has it."""
    return guard_sabotage.world_in(folder, (SYMBOL,), 0, 3)


# --- sabotage --------------------------------------------------------------------------------


EXPECTED = {
    "flipped labels": "in-sample: ",
    "permuted serving columns": "parity: ",
    "margins x5": "parity: ",
    "truncated file": "file: model ",
}


def test_every_sabotaged_candidate_is_refused_and_no_honest_one(trainer: Deployment) -> None:
    found = list(guard_sabotage.verdicts(trainer, SESSIONS))
    windows = SESSIONS - guard_sabotage.FIRST_WINDOW + 1
    assert len(found) == windows * len(guard_sabotage.SABOTAGES)
    for kind, failure in found:
        if kind == "honest":
            assert failure is None
        else:
            assert failure is not None
            assert failure.startswith(EXPECTED[kind])


@pytest.mark.parametrize("kind", list(EXPECTED))
def test_a_refused_candidate_is_rejected_with_the_reason_and_never_predicts(
    trainer: Deployment, kind: str
) -> None:
    with guard_sabotage.SABOTAGES[kind]():
        card = stages.train_candidate(trainer, SYMBOL).card
    (entry,) = stages.judge(trainer, SYMBOL)
    assert entry["event"] == "reject"
    assert entry["reason"] == card.guard_failure
    assert trainer.ledger(SYMBOL).accepted == ()


def test_serving_that_reads_other_rows_than_were_trained_on_is_refused(
    trainer: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The features table changed after the rows were read: the file is right, the rows are not."""
    read = type(trainer.store).read_arrow

    def older(store: Any, table: Any, *arguments: Any, **options: Any) -> Any:
        rows = read(store, table, *arguments, **options)
        for place, name in enumerate(rows.column_names):
            if name in feature_names():
                rows = rows.set_column(place, name, pc.negate(rows[name]))
        return rows

    labelled = [
        trainer.labelled.read(SYMBOL, label) for label in trainer.calendar.labels[:SESSIONS]
    ]
    assert sum(len(session.labels) for session in labelled) > 3000
    monkeypatch.setattr(type(trainer.store), "read_arrow", older)
    failure = stages.train_candidate(trainer, SYMBOL).card.guard_failure
    assert failure is not None
    assert failure.startswith("parity: ")


# --- two at once -----------------------------------------------------------------------------


def verdicts_in(deployment: Deployment) -> list[tuple[int, str]]:
    rows = deployment.store.read(PROMOTIONS)
    rows = rows[rows["kind"] == "verdict"]
    return list(zip(rows["model_version"], rows["event"], strict=True))


def other_trains(folder: str, last: int) -> None:
    """A whole training and verdict of another process, on a window of its own."""
    other = opened(Path(folder))
    labels = other.calendar.labels[:last]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hedge_pipeline.stages.training.training_window", lambda *_: labels)
        stages.train_candidate(other, SYMBOL)
        stages.judge(other, SYMBOL)


@pytest.mark.parametrize("last", [SESSIONS, SESSIONS - 1], ids=["same data", "other data"])
@pytest.mark.parametrize("moment", ["put_content", "written", "put_card"])
def test_another_training_in_the_middle_of_ours_gets_the_version_and_we_say_so(
    trainer: Deployment, monkeypatch: pytest.MonkeyPatch, moment: str, last: int
) -> None:
    real: Callable[..., Any] = getattr(ModelShelf, moment)

    def interrupted(shelf: ModelShelf, *arguments: Any) -> Any:
        monkeypatch.setattr(ModelShelf, moment, real)
        other_trains(trainer.store.url, last)
        return real(shelf, *arguments)

    monkeypatch.setattr(ModelShelf, moment, interrupted)
    with pytest.raises(StageError, match="another training has version 1 already"):
        stages.train_candidate(trainer, SYMBOL)
    assert stages.judge(trainer, SYMBOL) == []
    assert verdicts_in(trainer) == [(1, "hold")]
    card = ModelShelf(trainer.store).load(SYMBOL, 1).card
    assert card.cutoff == trainer.calendar.labels[last - 1]


def test_a_verdict_is_given_once_whoever_gives_it(
    trainer: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages.train_candidate(trainer, SYMBOL)
    other = opened(Path(trainer.store.url))
    judged: list[Any] = []
    append = stages.append_entry

    def interrupted(*arguments: Any) -> bool:
        monkeypatch.setattr("hedge_pipeline.stages.evidence.append_entry", append)
        judged.extend(stages.judge(other, SYMBOL))
        return append(*arguments)

    monkeypatch.setattr("hedge_pipeline.stages.evidence.append_entry", interrupted)
    assert stages.judge(trainer, SYMBOL) == []
    assert [entry["event"] for entry in judged] == ["hold"]
    assert verdicts_in(trainer) == [(1, "hold")]
    (row,) = trainer.ledger(SYMBOL).entries.to_dict("records")
    assert row["decided_at"] == judged[0]["decided_at"]


TRAINER = """
import sys
from pathlib import Path
from hedge_pipeline import stages
from hedge_pipeline.learning.shelf import ModelShelf
from hedge_pipeline_tests.learning.test_trainers import SYMBOL, opened

put_card = ModelShelf.put_card

def both_at_once(shelf, card):
    print("trained", flush=True)
    sys.stdin.readline()
    return put_card(shelf, card)

ModelShelf.put_card = both_at_once
loop = opened(Path(sys.argv[1]))
while last := sys.stdin.readline():
    labels = loop.calendar.labels[: int(last)]
    stages.training.training_window = lambda *_: labels
    said = "saved"
    try:
        stages.train_candidate(loop, SYMBOL)
    except stages.StageError as error:
        said = "refused"
        assert "another training has version" in str(error)
    given = [x["model_version"] for x in stages.judge(loop, SYMBOL) if x["event"] == "promote"]
    print(said, *given, flush=True)
"""


def say_proven(deployment: Deployment) -> None:
    """Folds every session and writes into the last entry that skill is proven after it."""
    label = stages.fold_evidence(deployment, SYMBOL)[-1].session
    rows = deployment.store.read(PROMOTIONS, [label])
    state = GateState.from_json(rows["state"].iloc[0])
    state = dataclasses.replace(
        state, status=Skill.PROVEN, status_since=label, peak_ordinal=state.ordinal
    )
    proven = rows.assign(skill=Skill.PROVEN.value, state=state.to_json())
    deployment.store.replace(PROMOTIONS, label, proven)


def test_of_two_processes_that_train_at_once_one_promotes(trainer: Deployment) -> None:
    say_proven(trainer)
    command = [sys.executable, "-c", TRAINER, trainer.store.url]
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as one,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as two,
    ):

        def tell_both(line: str) -> list[str]:
            for process in (one, two):
                assert process.stdin is not None
                print(line, file=process.stdin, flush=True)
            return [x.stdout.readline().strip() for x in (one, two) if x.stdout]

        windows = range(guard_sabotage.FIRST_WINDOW, SESSIONS + 1)
        for version, last in enumerate(windows, start=1):
            assert tell_both(str(last)) == ["trained", "trained"]
            said = sorted(tell_both("go on"))
            # whoever lost the version may still be the one that judges it; nobody does so again
            assert [words.split()[0] for words in said] == ["refused", "saved"]
            assert [x for words in said for x in words.split()[1:]] == [str(version)]
        for process in (one, two):
            assert process.stdin is not None
            process.stdin.close()
    assert verdicts_in(trainer) == [(version, "promote") for version in range(1, len(windows) + 1)]
    assert trainer.ledger(SYMBOL).champion == len(windows)


# --- drift -----------------------------------------------------------------------------------


def test_drift_changes_no_verdict_and_no_evidence(
    history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entries(name: str) -> Any:
        loop = opened(copy_of(history, tmp_path / name))
        stages.train_candidate(loop, SYMBOL)
        stages.fold_evidence(loop, SYMBOL)
        stages.judge(loop, SYMBOL)
        return loop.ledger(SYMBOL).entries

    calm = entries("calm")
    for name in ("feature_drift", "performance_drift"):
        monkeypatch.setattr(
            f"hedge_pipeline.stages.deciding.{name}",
            lambda *_: Drift(-99.0, -9.0, "return_10", 4.5),
        )
    pd.testing.assert_frame_equal(entries("alarmed"), calm)
    assert list(calm["event"].dropna()) == ["hold"]


# --- the same again --------------------------------------------------------------------------


def test_the_same_rows_give_the_same_file_and_description(history: Path, tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        deployment = opened(copy_of(history, tmp_path / name))
        card = stages.train_candidate(deployment, SYMBOL).card
        found.append((card, deployment.shelf.content(SYMBOL, 1)))
    assert found[0] == found[1]
    assert found[0][0].sha256 == hashlib.sha256(found[0][1]).hexdigest()


def test_sessions_stored_twice_give_no_new_version(trainer: Deployment) -> None:
    first = stages.train_candidate(trainer, SYMBOL)
    for label in trainer.calendar.labels[:SESSIONS]:
        stages.collect(trainer, label)
        stages.build_features(trainer, label)
        assert stages.mature_outcomes(trainer, label) == 0
    again = stages.train_candidate(opened(Path(trainer.store.url)), SYMBOL)
    assert first.new
    assert not again.new
    assert again.card == first.card


def test_a_clock_that_jumped_back_does_not_let_the_future_in(trainer: Deployment) -> None:
    """Live, with the clock in the middle of the seventh session: only six are over."""
    label = trainer.calendar.labels[6]
    noon = trainer.calendar.session(label).opens + 200 * np.timedelta64(1, "m").astype(object)
    live = dataclasses.replace(trainer, replay=False, clock=lambda: noon, settled=set())
    card = stages.train_candidate(live, SYMBOL).card
    assert card.cutoff == trainer.calendar.labels[5]
    assert card.sessions == 6
