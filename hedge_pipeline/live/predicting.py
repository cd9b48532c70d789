"""Predictions for feature rows: pick what is in force, ask the model, shrink, write the log row."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from hedge_pipeline.learning.gate import trusted_probability
from hedge_pipeline.learning.ledger import InForce, Ledger
from hedge_pipeline.learning.training import Margins
from hedge_pipeline.market.tables import FEATURE_ROWS, PREDICTION_LOG, feature_names

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.learning.training import Model

LoadModel = Callable[[str, int], "Model"]

NO_MODEL = "no model was accepted yet"
LATE_BAR = "the bar came after a later one"
OTHER_FEATURES = "the model was trained on other features"
NO_LEVEL = "no hedge level near"


def predict(rows: pd.DataFrame, ledger: Ledger, load: LoadModel) -> pd.DataFrame:
    """Log rows for bars of one symbol: the served stream, then the baseline.

    The served model is the newest accepted one at `decided_at`; the baseline is the first one ever.
    prob_up = sigmoid(logit(base rate) + trust x margin). Without a model, for a bar without
    features, or with a model of other features, the row abstains and says why.

    Args:
        rows: symbol, bar_ts, decided_at, price, mode, and the feature columns.
        ledger: the symbol's promotion log.
        load: gives a verified model by symbol and version.

    Returns:
        Rows of `prediction_log`; the baseline has rows only where a model existed.
    """
    import pandas as pd

    moments = rows["decided_at"].dt.tz_localize(None).to_numpy().astype("datetime64[us]")
    force = ledger.in_force(moments)
    load = cache(load)
    served = _stream(rows, ledger, load, force, force.version, "served")
    has_baseline = force.baseline > 0
    baseline = _stream(rows, ledger, load, force, force.baseline, "baseline")[has_baseline]
    return PREDICTION_LOG.conform(pd.concat([served, baseline], ignore_index=True))


def margins_of(rows: pd.DataFrame, model: Model) -> Margins:
    """What the log gets as the margins of a model; NaN where it can say nothing.

    Args:
        rows: the feature columns; no feature known = the bar has no features.
        model: verified.
    """
    features = rows[list(feature_names())].to_numpy(dtype=np.float32)
    known = np.isfinite(features).any(axis=1)
    margin = np.full(len(rows), np.nan)
    if model.card.features == tuple(feature_names()):
        margin[known] = model.margin(features[known])
    return margin


def _stream(
    rows: pd.DataFrame,
    ledger: Ledger,
    load: LoadModel,
    force: InForce,
    version: np.ndarray[tuple[int], np.dtype[np.int64]],
    role: str,
) -> pd.DataFrame:
    import pandas as pd

    features = rows[list(feature_names())].to_numpy(dtype=np.float32)
    late = ~np.isfinite(features).any(axis=1)
    margin = np.full(len(rows), np.nan)
    for number in np.unique(version[(version > 0) & ~late]):
        chosen = (version == number) & ~late
        margin[chosen] = margins_of(rows[chosen], load(ledger.symbol, int(number)))
    abstains = np.isnan(margin)
    prob_up = np.full(len(rows), np.nan)
    made = ~abstains
    prob_up[made] = trusted_probability(force.base_rate[made], margin[made], force.trust[made])
    reason = np.select(
        [version == 0, late, abstains], [NO_MODEL, LATE_BAR, OTHER_FEATURES], NO_LEVEL
    )
    said = np.where(prob_up > 0.5, 1, 0)
    return pd.DataFrame(
        {
            "symbol": rows["symbol"].to_numpy(),
            "bar_ts": rows["bar_ts"].to_numpy(),
            "decided_at": rows["decided_at"].to_numpy(),
            "price": rows["price"].to_numpy(),
            "prediction": pd.array(np.where(abstains, -1, said), dtype="Int8"),
            "prob_up": prob_up,
            "confidence": np.where(said == 1, prob_up, 1 - prob_up),
            "strength_score": np.nan,
            "level_type": "none",
            "level_source": "none",
            "signal_fired": False,
            "reason": reason,
            "model_version": version,
            "role": role,
            "base_rate": force.base_rate,
            "margin": margin,
            "trust": force.trust,
            "skill": force.skill,
            "mode": rows["mode"].to_numpy(),
            "schema_hash": FEATURE_ROWS.schema_hash,
        }
    ).assign(prediction=lambda frame: frame["prediction"].mask(abstains))
