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


Files = dict[str, bytes]


class EveryLine:
    """What lies on the disk before every line of the fold: all that a kill there would leave."""

    MODULES = ("evidence.py", "outcomes.py", "deployment.py", "ledger.py", "gate.py", "store.py")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines = 0
        self.pictures: list[Files] = []

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = Path(frame.f_code.co_filename).name
        if name not in self.MODULES or "hedge_pipeline" not in frame.f_code.co_filename:
            return None
        if event == "line":
            self.lines += 1
            found = files_in(self.folder)
            if found not in self.pictures:
                self.pictures.append(found)
        return self


def files_in(folder: Path) -> Files:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_killed_between_any_two_lines_of_the_fold_the_next_one_gives_the_same_state(
    loop: Deployment,
) -> None:
    """Two sessions are folded, of which the second one has predictions."""
    stages.train_candidate(loop, SYMBOL)
    stages.judge(loop, SYMBOL)
    label = loop.calendar.labels[SESSIONS]
    for step in (stages.collect, stages.build_features, stages.mature_outcomes):
        step(loop, label)
    stages.fold_evidence(loop, SYMBOL)
    stages.log_predictions(loop, label)
    folder = Path(loop.store.url, PROMOTIONS.name)
    for folded in loop.calendar.labels[SESSIONS - 1 : SESSIONS + 1]:
        rows = loop.store.read(PROMOTIONS, [folded])
        loop.store.replace(PROMOTIONS, folded, rows[rows["kind"] != "fold"])

    def again() -> Deployment:
        return guard_sabotage.world_in(Path(loop.store.url), (SYMBOL,), 0, 3)

    seen = EveryLine(folder)
    reference = again()
    sys.settrace(seen)
    try:
        folds = stages.fold_evidence(reference, SYMBOL)
    finally:
        sys.settrace(None)
    assert len(folds) == 2
    wanted = reference.ledger(SYMBOL).state
    assert wanted.era_sessions == 1
    assert seen.lines > 2000
    # before, while and after each of the two is written
    assert len(seen.pictures) >= 5
    for number, picture in enumerate(seen.pictures):
        shutil.rmtree(folder)
        for name, content in picture.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        after = again()
        stages.fold_evidence(after, SYMBOL)
        assert after.ledger(SYMBOL).state == wanted, number
        entries = after.ledger(SYMBOL).entries.query("kind == 'fold'")
        assert list(entries["session"]) == list(loop.calendar.labels[: SESSIONS + 1])


def test_before_ten_sessions_nothing_is_novel(loop: Deployment) -> None:
    card = stages.train_candidate(loop, SYMBOL).card
    assert (card.lows, card.highs) == ((), ())
