"""Predictions for feature rows: pick what is in force, ask the model, shrink, make the log row.

What hedge levels say of a prediction is added by `signalling.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from hedge_pipeline.learning.gate import trusted_probability
from hedge_pipeline.learning.ledger import InForce, Ledger
from hedge_pipeline.learning.novelty import novelties
from hedge_pipeline.learning.training import Margins, ModelError
from hedge_pipeline.levels.signals import NO_LEVEL
from hedge_pipeline.levels.strength import PARTS
from hedge_pipeline.market.tables import FEATURE_ROWS, PREDICTION_LOG, ROLES, feature_names

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.learning.training import Model

log = logging.getLogger(__name__)

STRENGTH_PARTS = tuple(f"strength_{part}" for part in (*PARTS, "overlap"))
LoadModel = Callable[[str, int], "Model"]

NO_MODEL = "no model was accepted yet"
LATE_BAR = "the bar came after a later one"
OTHER_FEATURES = "the model was trained on other features"


def predict(
    rows: pd.DataFrame, ledger: Ledger, load: LoadModel, roles: Sequence[str] = ROLES
) -> pd.DataFrame:
    """Log rows for bars of one symbol, by role.

    The served model is the pinned or else the newest accepted one at `decided_at`; `newest` is the
    newest accepted one while another way of serving is pinned; the baseline is the first one ever.
    prob_up = sigmoid(logit(base rate) + trust x margin). Without a model, for a bar without
    features, with a model of other features, or for a bar unlike its training data, the row
    abstains and says why (the baseline, a yardstick, speaks on any bar). If the file of the
    served model is refused, the version accepted before it serves.

    Args:
        rows: symbol, bar_ts, decided_at, price, mode, and the feature columns.
        ledger: the symbol's promotion log.
        load: gives a verified model by symbol and version, or raises `ModelError`.
        roles: which streams.

    Returns:
        Rows of `prediction_log`; other roles than served have rows only where they have a model.
    """
    import pandas as pd

    moments = rows["decided_at"].dt.tz_localize(None).to_numpy().astype("datetime64[us]")
    force = ledger.in_force(moments)
    load = cache(load)
    versions = {"served": force.version, "newest": force.newest, "baseline": force.baseline}
    streams = []
    for role in roles:
        if role == "served" or versions[role].any():
            stream = _stream(rows, ledger, load, force, versions[role], role)
            streams.append(stream if role == "served" else stream[versions[role] > 0])
    if not streams:
        return PREDICTION_LOG.empty()
    return PREDICTION_LOG.conform(pd.concat(streams, ignore_index=True))


def _usable(
    ledger: Ledger, load: LoadModel, version: int, role: str
) -> tuple[int, Model | None, str]:
    """The model to ask, its version, and why the wanted one was refused ("" = it was not).

    What is served falls back to the versions accepted before; other roles mean one version.
    """
    refusal = ""
    for number in (version, *(ledger.accepted_before(version) if role == "served" else ())):
        try:
            return number, load(ledger.symbol, number), refusal
        except ModelError as error:
            log.warning("%s", error)
            refusal = refusal or str(error)
    return version, None, refusal


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
    refused, novel = (np.full(len(rows), "", dtype=object) for _ in range(2))
    wanted, version = version, version.copy()
    for number in np.unique(wanted[(wanted > 0) & ~late]):
        chosen = (wanted == number) & ~late
        version[chosen], model, refusal = _usable(ledger, load, int(number), role)
        if model is None:
            refused[chosen] = refusal
        else:
            margin[chosen] = margins_of(rows[chosen], model)
            if role != "baseline" and model.card.features == tuple(feature_names()):
                card = model.card
                novel[chosen] = novelties(features[chosen], card.lows, card.highs, card.features)
    margin[novel != ""] = np.nan
    abstains = np.isnan(margin)
    prob_up = np.full(len(rows), np.nan)
    made = ~abstains
    prob_up[made] = trusted_probability(force.base_rate[made], margin[made], force.trust[made])
    reason = np.select(
        [version == 0, late, refused != "", novel != "", abstains],
        [NO_MODEL, LATE_BAR, refused, novel, OTHER_FEATURES],
        NO_LEVEL,
    )
    said = np.where(prob_up > 0.5, 1, 0)
    return pd.DataFrame(
        {
            "symbol": rows["symbol"].array,
            "bar_ts": rows["bar_ts"].array,
            "decided_at": rows["decided_at"].array,
            "price": rows["price"].array,
            "prediction": pd.array(np.where(abstains, -1, said), dtype="Int8"),
            "prob_up": prob_up,
            "confidence": np.where(said == 1, prob_up, 1 - prob_up),
            "strength_score": np.nan,
            "level_type": "none",
            "level_source": "none",
            "level_price": np.nan,
            **dict.fromkeys(STRENGTH_PARTS, np.nan),
            "strength_missing": "",
            "signal_fired": False,
            "reason": reason,
            "model_version": version,
            "role": role,
            "base_rate": force.base_rate,
            "margin": margin,
            "trust": force.trust,
            "skill": force.skill,
            "mode": rows["mode"].array,
            "schema_hash": FEATURE_ROWS.schema_hash,
        }
    ).assign(prediction=lambda frame: frame["prediction"].mask(abstains))
