"""Small sessions, rows and models to test the learning layers with; nothing here is random
unless it names its seed.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from hedge_pipeline.learning.dataset import TrainingSet
from hedge_pipeline.learning.training import Margins, Matrix, Model, ModelCard, TrainingPlan, fit
from hedge_pipeline.market.calendar import Session
from hedge_pipeline.market.tables import (
    FEATURE_ROWS,
    OUTCOMES,
    PREDICTION_LOG,
    RAW_QUOTES,
    feature_names,
)
from hedge_pipeline.serving.predicting import STRENGTH_PARTS
from hedge_pipeline.store import Store

Floats = npt.NDArray[np.float64]

NAMES = tuple(feature_names())
MINUTE = dt.timedelta(minutes=1)
HORIZON = 10


def session_on(day: int, bars: int = 60) -> Session:
    """A session of March 2024 that opens at 14:30 UTC."""
    opens = dt.datetime(2024, 3, day, 14, 30, tzinfo=dt.UTC)
    return Session(f"2024-03-{day:02d}", opens, opens + bars * MINUTE, 60)


def times_of(session: Session) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(session.bar_ts).tz_localize("UTC")


def bars_of(
    session: Session,
    close: Sequence[float] | Floats,
    *,
    symbol: str = "SIMQ",
    lateness: Sequence[float] | Floats | float = 0.0,
) -> pd.DataFrame:
    """Rows of `raw_quotes`, one per known close.

    Args:
        session: grid.
        close: one per bar of the session; NaN = no bar.
        symbol: whose.
        lateness: seconds between the end of a bar and its arrival.
    """
    price = np.asarray(close, dtype=np.float64)
    seconds = np.broadcast_to(np.asarray(lateness, dtype=np.float64), price.shape)
    times = times_of(session)
    arrived = times + MINUTE + pd.to_timedelta(seconds, unit="s")
    frame = pd.DataFrame(
        {
            "symbol": symbol,
            "bar_ts": times,
            **dict.fromkeys(("open", "high", "low", "close"), price),
            **dict.fromkeys(("volume", "bid", "ask", "support", "resistance"), np.nan),
            "source": "test",
            "available_at": arrived,
            "ingested_at": arrived,
        }
    )
    return RAW_QUOTES.conform(frame[np.isfinite(price)].reset_index(drop=True))


def feature_rows(
    session: Session, values: npt.NDArray[np.float32], symbol: str = "SIMQ"
) -> pd.DataFrame:
    keys = pd.DataFrame(
        {"symbol": symbol, "bar_ts": times_of(session), "available_at": times_of(session) + MINUTE}
    )
    return FEATURE_ROWS.conform(
        pd.concat([keys, pd.DataFrame(values, columns=list(NAMES))], axis=1)
    )


def outcome_rows(
    session: Session, directions: Sequence[int | None], symbol: str = "SIMQ", horizon: int = HORIZON
) -> pd.DataFrame:
    """Rows of `outcomes`; None = flat, -1 = unlabelable."""
    status = [{1: "up", 0: "down", None: "flat", -1: "unlabelable"}[x] for x in directions]
    direction = [x if x in (0, 1) else None for x in directions]
    return OUTCOMES.conform(
        pd.DataFrame(
            {
                "symbol": symbol,
                "bar_ts": times_of(session)[: len(directions)],
                "horizon_bars": horizon,
                "entry_price": 100.0,
                "exit_price": [np.nan if x == -1 else 100.0 for x in directions],
                "return_pct": 0.0,
                "actual_direction": pd.array(direction, dtype="Int8"),
                "status": status,
                "reason": ["gap" if x == -1 else None for x in directions],
                "available_at": times_of(session)[: len(directions)] + (horizon + 1) * MINUTE,
            }
        )
    )


def log_rows(
    session: Session,
    margin: Sequence[float] | Floats | npt.NDArray[np.float32],
    symbol: str = "SIMQ",
    **columns: Any,
) -> pd.DataFrame:
    """Served live rows of `prediction_log` for the first bars; `columns` replace the defaults."""
    number = len(margin)
    times = times_of(session)[:number]
    frame = pd.DataFrame(
        {
            "symbol": symbol,
            "bar_ts": times,
            "decided_at": times + MINUTE,
            "price": 100.0,
            "prediction": pd.array((np.asarray(margin) > 0).astype(int), dtype="Int8"),
            "prob_up": 0.5,
            "confidence": 0.5,
            "strength_score": np.nan,
            "level_type": "none",
            "level_source": "none",
            "level_price": np.nan,
            **dict.fromkeys(STRENGTH_PARTS, np.nan),
            "strength_missing": "",
            "signal_fired": False,
            "reason": "",
            "model_version": 1,
            "role": "served",
            "base_rate": 0.5,
            "margin": np.asarray(margin, dtype=np.float32),
            "trust": 0.25,
            "skill": "unproven",
            "mode": "live",
            "schema_hash": FEATURE_ROWS.schema_hash,
        }
    )
    return PREDICTION_LOG.conform(frame.assign(**columns))


def learnable_rows(rows: int, seed: int = 0, slope: float = 1.0) -> tuple[Matrix, Floats]:
    """Standard normal features and labels whose log-odds are `slope` times the first one."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, len(NAMES))).astype(np.float32)
    up = rng.random(rows) < 1 / (1 + np.exp(-slope * values[:, 0].astype(np.float64)))
    return values, up.astype(np.float64)


def training_set(
    values: Matrix, labels: Floats, *, recent: int = 500, weight: float = 1 / HORIZON
) -> TrainingSet:
    """The rows as a training set whose last `recent` rows are the recent sessions."""
    return TrainingSet(
        NAMES,
        values,
        labels,
        np.full(len(labels), weight),
        slice(max(0, len(labels) - recent), None),
        ("2024-03-04", "2024-03-05"),
        (len(labels) - min(recent, len(labels)), min(recent, len(labels))),
        "hash",
    )


def card_of(data: TrainingSet, content: bytes, **changes: Any) -> ModelCard:
    values: dict[str, Any] = {
        "symbol": "SIMQ",
        "version": 1,
        "cutoff": data.sessions[-1],
        "first_session": data.sessions[0],
        "sessions": len(data.sessions),
        "features": tuple(data.names),
        "schema_hash": FEATURE_ROWS.schema_hash,
        "horizon_bars": HORIZON,
        "base_rate": data.base_rate,
        "rows": data.rows,
        "effective_rows": float(data.weights.sum()),
        "data_hash": data.data_hash,
        "sha256": hashlib.sha256(content).hexdigest(),
        "spread": 0.25,
        "in_sample_skill": 0.01,
        "plan": {"trees": 60},
        "gain": {NAMES[0]: 1.5},
    }
    return ModelCard(**{**values, **changes})


class Steps:
    """Stands for a booster: raw margins computed by a function of the feature matrix."""

    def __init__(self, raw: Callable[[Matrix], Any]) -> None:
        self._raw = raw

    def inplace_predict(self, features: Matrix, predict_type: str) -> npt.NDArray[np.float32]:
        assert predict_type == "margin"
        return np.asarray(self._raw(features), dtype=np.float32)


def model_of(raw: Callable[[Matrix], Any], **card: Any) -> Model:
    """A model with base rate 1/2 whose margins are `raw`, clipped."""
    values, labels = learnable_rows(4)
    given = {"base_rate": 0.5, **card}
    return Model(card_of(training_set(values, labels), b"", **given), Steps(raw))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


@pytest.fixture(scope="session")
def learnable() -> TrainingSet:
    return training_set(*learnable_rows(3000))


@pytest.fixture(scope="session")
def fitted(learnable: TrainingSet) -> tuple[bytes, Any]:
    """Content and booster of one fit with the default plan."""
    return fit(learnable, TrainingPlan())


def margins_like(values: Matrix, slope: float = 0.5) -> Margins:
    """What `model_of(lambda x: slope * x[:, 0])` says of the rows."""
    clipped: Margins = np.clip(np.float32(slope) * values[:, 0], -1, 1).astype(np.float64)
    return clipped
