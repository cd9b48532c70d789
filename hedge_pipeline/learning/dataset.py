"""Training rows: features joined with matured outcomes, cut at session boundaries.

Labels come from the outcomes table only, so from observed prices. A session enters whole or not at
all: labels never cross a close, so cutting between sessions is the purge.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hedge_pipeline.market.tables import FEATURE_ROWS, OUTCOMES, feature_names

if TYPE_CHECKING:
    from hedge_pipeline.learning.training import TrainingPlan
    from hedge_pipeline.store import Store

_REMEMBERED = 4096


@dataclass(frozen=True)
class LabelledSession:
    """Labelled rows of one symbol and session.

    Attributes:
        features: float32 [rows, features], NaN = unknown.
        labels: float64 [rows], 1 up and 0 down; flat and unlabelable bars are left out.
        digest: sha256 over both.
    """

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float64]
    digest: str


@dataclass(frozen=True)
class TrainingSet:
    """Rows for one fit, oldest session first.

    Attributes:
        features: float32 [rows, features].
        labels: float64 [rows].
        weights: float64 [rows]; one over the horizon, halved every half-life.
        recent: the rows of the last sessions, for the guards.
        sessions: labels of the sessions used.
        data_hash: sha256 over names, values, labels and what the weights are made of.
    """

    names: Sequence[str]
    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]
    recent: slice
    sessions: tuple[str, ...]
    data_hash: str

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.labels)

    @property
    def base_rate(self) -> float:
        """Weighted share of ups, strictly between 0 and 1 when both classes occur."""
        return float(np.average(self.labels, weights=self.weights))


class LabelledSessions:
    """Reads labelled sessions and remembers them; closed sessions do not change.

    Keep one for a run of trainings (a replay), not for ever.
    """

    def __init__(self, store: Store, horizon: int) -> None:
        self._store = store
        self._horizon = horizon
        self._known: OrderedDict[tuple[str, str], LabelledSession] = OrderedDict()

    def read(self, symbol: str, session: str) -> LabelledSession:
        """The labelled rows; without rows if the session has none."""
        key = (symbol, session)
        if key not in self._known:
            self._known[key] = self._load(symbol, session)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return self._known[key]

    def _load(self, symbol: str, session: str) -> LabelledSession:
        outcomes = self._store.read(
            OUTCOMES,
            [session],
            symbols=[symbol],
            columns=("symbol", "bar_ts", "horizon_bars", "actual_direction"),
        )
        outcomes = outcomes[
            (outcomes["horizon_bars"] == self._horizon) & outcomes["actual_direction"].notna()
        ]
        rows = self._store.read(FEATURE_ROWS, [session], symbols=[symbol])
        joined = rows.merge(
            outcomes[["bar_ts", "actual_direction"]], on="bar_ts", validate="one_to_one"
        ).sort_values("bar_ts")
        features = np.ascontiguousarray(joined[list(feature_names())].to_numpy(dtype=np.float32))
        labels = joined["actual_direction"].to_numpy(dtype=np.float64)
        digest = hashlib.sha256(features.tobytes() + labels.tobytes()).hexdigest()
        return LabelledSession(features, labels, digest)


def assemble(
    reader: LabelledSessions,
    symbol: str,
    sessions: Sequence[str],
    plan: TrainingPlan,
    horizon: int,
) -> TrainingSet:
    """The rows of whole sessions, weighted.

    Weight = uniqueness x age: each label shares its minutes with the next `horizon` - 1, so a row
    counts 1 / horizon; and half as much for every `half_life_sessions` before the last session
    (Lopez de Prado 2018, chapter 4, with the average uniqueness of overlapping labels).

    Args:
        reader: where the rows come from.
        symbol: whose rows.
        sessions: ascending session labels; the caller has cut them at the cutoff.
        plan: half-life and number of recent sessions.
        horizon: label horizon, bars.
    """
    parts = [reader.read(symbol, session) for session in sessions]
    ages = np.arange(len(parts) - 1, -1, -1, dtype=np.float64)
    counts = [len(part.labels) for part in parts]
    weights = np.repeat(0.5 ** (ages / plan.half_life_sessions) / horizon, counts)
    width = len(feature_names())
    features = np.concatenate(
        [np.empty((0, width), np.float32), *(part.features for part in parts)]
    )
    labels = np.concatenate([np.empty(0), *(part.labels for part in parts)])
    recent = slice(sum(counts[: -plan.least_sessions]), None)
    columns = ",".join(feature_names())
    text = f"{columns};{horizon};{plan.half_life_sessions!r};" + ";".join(
        f"{session}:{part.digest}" for session, part in zip(sessions, parts, strict=True)
    )
    return TrainingSet(
        feature_names(),
        features,
        labels,
        weights,
        recent,
        tuple(sessions),
        hashlib.sha256(text.encode()).hexdigest(),
    )
