"""Data that teach nothing or hardly anything, and a fold that is killed between any two lines."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import guard_sabotage
from hedge_pipeline import stages
from hedge_pipeline.learning import novelty
from hedge_pipeline.market.tables import FEATURE_ROWS, OUTCOMES, PROMOTIONS, feature_names
from hedge_pipeline.stages import Deployment, StageError
from hedge_pipeline_tests.markets import copy_of

SYMBOL = "EDGE56X0"
SESSIONS = 6
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edge")
    guard_sabotage.world_in(folder, (SYMBOL,), SESSIONS, 3)
    return folder


@pytest.fixture
def loop(history: Path, tmp_path: Path) -> Deployment:
    return guard_sabotage.world_in(copy_of(history, tmp_path / "store"), (SYMBOL,), 0, 3)


Change = Callable[[pd.DataFrame], pd.DataFrame]


def change(loop: Deployment, table: Any, how: Change) -> None:
    for label in loop.store.sessions(table):
        loop.store.replace(table, label, how(loop.store.read(table, [label])))


def keep(rows: int) -> Change:
    """Leaves the first labels of every session; the others are flat."""

    def only(frame: pd.DataFrame) -> pd.DataFrame:
        rest = frame.index >= rows
        frame.loc[rest, "actual_direction"] = pd.NA
        frame.loc[rest, "status"] = "flat"
        return frame

    return only


@pytest.mark.parametrize("direction", [0, 1])
def test_a_class_that_never_occurs_trains_nothing_and_says_so(
    loop: Deployment, direction: int
) -> None:
    def one_way(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[frame["actual_direction"].notna(), "actual_direction"] = direction
        return frame

    change(loop, OUTCOMES, one_way)
    with pytest.raises(StageError, match="training needs both outcomes, up and down"):
        stages.train_candidate(loop, SYMBOL)
    assert loop.shelf.versions(SYMBOL) == ()
    folds = stages.fold_evidence(loop, SYMBOL)
    assert [fold.entry["skill"] for fold in folds] == ["unproven"] * SESSIONS


def test_ten_rows_make_a_candidate_that_says_nothing_and_is_rejected(loop: Deployment) -> None:
    change(loop, OUTCOMES, keep(2))
    card = stages.train_candidate(loop, SYMBOL).card
    assert card.rows == 2 * SESSIONS
    assert card.guard_failure is not None
    (entry,) = stages.judge(loop, SYMBOL)
    assert entry["event"] == "reject"


def test_no_rows_at_all_train_nothing(loop: Deployment) -> None:
    change(loop, OUTCOMES, keep(0))
    with pytest.raises(StageError, match="training needs both outcomes"):
        stages.train_candidate(loop, SYMBOL)


def test_constant_and_unknown_features_do_no_harm(
    loop: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(novelty, "LEAST_SESSIONS", SESSIONS)
    change(
        loop,
        FEATURE_ROWS,
        lambda frame: frame.assign(return_10=np.float32(0.5), volume_1_30=np.float32(np.nan)),
    )
    card = stages.train_candidate(loop, SYMBOL).card
    assert card.guard_failure is None
    assert not {"return_10", "volume_1_30"} & set(card.gain)
    place = card.features.index("volume_1_30")
    assert card.lows[place] is None
    assert card.lows[card.features.index("return_10")] == 0.5


def test_if_no_feature_is_ever_known_the_candidate_is_rejected(loop: Deployment) -> None:
    unknown = dict.fromkeys(feature_names(), np.float32(np.nan))
    change(loop, FEATURE_ROWS, lambda frame: frame.assign(**unknown))
    card = stages.train_candidate(loop, SYMBOL).card
    assert card.guard_failure is not None
    assert card.gain == {}
    assert stages.feature_drift(loop, SYMBOL).in_words() == "too few sessions to tell"
    assert stages.leaking_features(loop, SYMBOL) == {}


# --- the fold, line by line ------------------------------------------------------------------


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class KillsAtLine:
    """Ends the n-th line executed in the modules of the fold in a kill."""

    MODULES = ("stages.py", "ledger.py", "gate.py", "store.py")

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = Path(frame.f_code.co_filename).name
        if name not in self.MODULES or "hedge_pipeline" not in frame.f_code.co_filename:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise Killed
        return self


def test_killed_between_any_two_lines_of_the_fold_the_next_one_gives_the_same_state(
    loop: Deployment, tmp_path: Path
) -> None:
    stages.train_candidate(loop, SYMBOL)
    stages.judge(loop, SYMBOL)
    label = loop.calendar.labels[SESSIONS]
    for step in (stages.collect, stages.build_features, stages.mature_outcomes):
        step(loop, label)
    stages.fold_evidence(loop, SYMBOL)
    stages.log_predictions(loop, label)
    wanted = loop.ledger(SYMBOL).state
    folder = Path(loop.store.url, PROMOTIONS.name)
    shutil.rmtree(folder / f"session={label}")
    undisturbed = copy_of(folder, tmp_path / "promotions")

    def again() -> Deployment:
        return guard_sabotage.world_in(Path(loop.store.url), (SYMBOL,), 0, 3)

    reference = again()
    stages.fold_evidence(reference, SYMBOL)
    wanted = reference.ledger(SYMBOL).state
    assert wanted.era_sessions == 1
    shutil.rmtree(folder)
    copy_of(undisturbed, folder)
    counter = KillsAtLine(10**9)
    traced(counter, again())
    lines = 10**9 - counter.left
    assert lines > 200
    # the last lines are those around the write
    points = {*range(1, lines, lines // 25), *range(lines - 120, lines + 1, 6)}
    for number in sorted(points):
        shutil.rmtree(folder)
        copy_of(undisturbed, folder)
        with pytest.raises(Killed):
            traced(KillsAtLine(number), again())
        after = again()
        stages.fold_evidence(after, SYMBOL)
        assert after.ledger(SYMBOL).state == wanted, number
        folds = after.ledger(SYMBOL).entries.query("kind == 'fold'")
        assert list(folds["session"]) == list(loop.calendar.labels[: SESSIONS + 1])


def traced(kill: KillsAtLine, loop: Deployment) -> None:
    sys.settrace(kill)
    try:
        stages.fold_evidence(loop, SYMBOL)
    finally:
        sys.settrace(None)


def test_before_ten_sessions_nothing_is_novel(loop: Deployment) -> None:
    card = stages.train_candidate(loop, SYMBOL).card
    assert (card.lows, card.highs) == ((), ())
