"""A failing check of the models says of every symbol what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from hedge_pipeline.checks.model_checks import models_that_do_not_load
from hedge_pipeline_tests.replays import SYMBOLS, Demo, demo_in, replay_in


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return demo_in(tmp_path_factory.getbasetemp())


def test_models_that_load_are_counted(demo: Demo) -> None:
    assert models_that_do_not_load(replay_in(demo.out), SYMBOLS) == (8, [])


def test_every_broken_model_is_named_not_only_the_first(demo: Demo, tmp_path: Path) -> None:
    out = demo.copy(tmp_path / "out")
    for symbol in SYMBOLS:
        (path,) = (out / "models" / symbol).glob("000004-*.ubj")
        path.write_bytes(path.read_bytes()[:-1])
    count, wrong = models_that_do_not_load(replay_in(out), SYMBOLS)
    assert count == 8
    assert [line.split(" was ")[0] for line in wrong] == ["model 4 of SIMQ", "model 4 of SIMN"]


def test_no_version_at_all_is_said(tmp_path: Path) -> None:
    found = models_that_do_not_load(replay_in(tmp_path), SYMBOLS)
    assert found == (0, ["there is no version of SIMQ, SIMN yet"])
