"""B10: do the guards stop broken candidates, and only those?

Candidates are trained by `stages.train_candidate` on growing windows of simulated worlds, honest
ones and ones whose making or serving is sabotaged: labels flipped, feature columns permuted where
the model is served, served margins scaled, the file cut short. The product's own code runs; only
the sabotaged function is replaced.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.worlds import WorldSource
from hedge_pipeline import stages
from hedge_pipeline.learning.shelf import ModelShelf
from hedge_pipeline.learning.training import Model, fit
from hedge_pipeline.settings import load_settings
from hedge_pipeline.stages import Deployment, deploy

FIRST_WINDOW = 6
WINDOW = "hedge_pipeline.stages.training.training_window"


def flipped_labels() -> AbstractContextManager[Any]:
    """The trainer learns the opposite."""

    def flipped(data: Any, plan: Any) -> Any:
        return fit(dataclasses.replace(data, labels=1 - data.labels), plan)

    return mock.patch("hedge_pipeline.stages.training.fit", flipped)


def permuted_columns() -> AbstractContextManager[Any]:
    """Serving hands the columns over in another order."""
    return _serving(lambda margin, model, rows: margin(model, np.roll(rows, 1, axis=1)))


def scaled_margins() -> AbstractContextManager[Any]:
    """Serving says everything five times as loud."""
    return _serving(lambda margin, model, rows: np.clip(5 * margin(model, rows), -1, 1))


def truncated_file() -> AbstractContextManager[Any]:
    """Half of the file is gone when it is read back."""
    whole = ModelShelf.written

    def half(shelf: ModelShelf, symbol: str, version: int, digest: str) -> bytes:
        content = whole(shelf, symbol, version, digest)
        return content[: len(content) // 2]

    return mock.patch.object(ModelShelf, "written", half)


def _serving(change: Callable[[Any, Model, Any], Any]) -> AbstractContextManager[Any]:
    margin = Model.margin
    return mock.patch.object(Model, "margin", lambda model, rows: change(margin, model, rows))


SABOTAGES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "honest": nullcontext,
    "flipped labels": flipped_labels,
    "permuted serving columns": permuted_columns,
    "margins x5": scaled_margins,
    "truncated file": truncated_file,
}


def world_in(folder: Path, symbols: tuple[str, ...], sessions: int, seed: int) -> Deployment:
    """Features and outcomes of some worlds; no model yet."""
    settings = load_settings(
        HEDGE_MODE="replay",
        HEDGE_DATA_URL=str(folder),
        HEDGE_SYMBOLS=",".join(symbols),
        HEDGE_HISTORY_START="2024-01-02",
    )
    deployment = deploy(settings, lambda calendar: WorldSource(calendar, seed))
    for label in deployment.calendar.labels[:sessions]:
        stages.collect(deployment, label)
        stages.build_features(deployment, label)
        stages.mature_outcomes(deployment, label)
    return deployment


def verdicts(deployment: Deployment, sessions: int) -> Iterator[tuple[str, str | None]]:
    """(kind of candidate, why the guards refused it) of every kind and window."""
    labels = deployment.calendar.labels[:sessions]
    for kind, sabotage in SABOTAGES.items():
        for symbol in deployment.symbols:
            for last in range(FIRST_WINDOW, sessions + 1):
                window = mock.patch(WINDOW, lambda *_: labels[:last])  # noqa: B023
                with window, sabotage():
                    yield kind, stages.train_candidate(deployment, symbol).card.guard_failure


def count(seed: int, symbols: tuple[str, ...], sessions: int) -> dict[str, tuple[int, int]]:
    """By kind: candidates, and how many of them the guards refused."""
    found: dict[str, tuple[int, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        deployment = world_in(Path(folder), symbols, sessions, seed)
        for kind, failure in verdicts(deployment, sessions):
            made, refused = found.get(kind, (0, 0))
            found[kind] = made + 1, refused + (failure is not None)
    return found
