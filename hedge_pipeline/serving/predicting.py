"""Predictions for feature rows: pick what is in force, ask the model, shrink, make the log row.

What hedge levels say of a prediction is added by `signalling.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from hedge_pipeline.learning.ledger import InForce, Ledger
from hedge_pipeline.learning.novelty import novelties
from hedge_pipeline.learning.training import Margins, ModelError
from hedge_pipeline.levels.signals import NO_LEVEL
from hedge_pipeline.levels.strength import PARTS
from hedge_pipeline.market.calendar import utc_times
from hedge_pipeline.market.tables import FEATURE_ROWS, PREDICTION_LOG, ROLES, feature_names
from hedge_pipeline.probability import trusted_probability

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.learning.training import Matrix, Model

log = logging.getLogger(__name__)

STRENGTH_PARTS = tuple(f"strength_{part}" for part in (*PARTS, "overlap"))
LoadModel = Callable[[str, int], "Model"]

NO_MODEL = "no model was accepted yet"
LATE_BAR = "the bar came after a later one"
OTHER_FEATURES = "the model was trained on other features"


def predict(
    rows: pd.DataFrame,
    ledgers: Mapping[str, Ledger],
    load: LoadModel,
    roles: Sequence[str] = ROLES,
) -> pd.DataFrame:
    """Log rows for bars, by role.

    The served model is the pinned or else the newest accepted one at `decided_at`; `newest` is the
    newest accepted one while another way of serving is pinned; the baseline is the first one ever.
    prob_up = sigmoid(logit(base rate) + trust x margin). Without a model, for a bar without
    features, with a model of other features, or for a bar unlike its training data, the row
    abstains and says why (the baseline, a yardstick, speaks on any bar). If the file of the
    served model is refused, the version accepted before it serves.

    Args:
        rows: symbol, bar_ts, decided_at, price, mode, and the feature columns.
        ledgers: the promotion log of each symbol.
        load: gives a verified model by symbol and version, or raises `ModelError`.
        roles: which streams.

    Returns:
        Rows of `prediction_log`, those of a role in the order of `rows`; other roles than served
        have rows only where they have a model.
    """
    import pandas as pd

    features = rows[list(feature_names())].to_numpy(dtype=np.float32)
    force = in_force_of(ledgers, rows["symbol"], rows["decided_at"])
    load = cache(load)
    versions = {"served": force.version, "newest": force.newest, "baseline": force.baseline}
    streams = []
    for role in roles:
        if role == "served" or versions[role].any():
            said = _asked(rows["symbol"], features, ledgers, load, versions[role], role)
            stream = _stream(rows, force, said, role)
            streams.append(stream if role == "served" else stream[versions[role] > 0])
    if not streams:
        return PREDICTION_LOG.empty()
    return PREDICTION_LOG.conform(pd.concat(streams, ignore_index=True))


def in_force_of(
    ledgers: Mapping[str, Ledger], symbols: pd.Series[str], decided_at: pd.Series[pd.Timestamp]
) -> InForce:
    """What held for each row's symbol at its moment.

    Args:
        ledgers: the promotion log of each symbol.
        symbols: [n].
        decided_at: [n] UTC.
    """
    moments = utc_times(decided_at)
    names = symbols.to_numpy(dtype=object)
    found = InForce.empty(len(names))
    for symbol in dict.fromkeys(names):
        own = np.flatnonzero(names == symbol)
        found.put(own, ledgers[symbol].in_force(moments[own]))
    return found


def _usable(
    ledger: Ledger, load: LoadModel, version: int, role: str
) -> tuple[int, Model | None, str]:
    """The model to ask, its version, and why the wanted one was refused ("" = it was not).

    What is served falls back to the versions accepted before; other roles mean one version.
    """
    try:
        return version, load(ledger.symbol, version), ""
    except ModelError as error:
        log.warning("%s", error)
        refusal = str(error)
    for earlier in ledger.accepted_before(version) if role == "served" else ():
        try:
            return earlier, load(ledger.symbol, earlier), refusal
        except ModelError as error:
            log.warning("%s", error)
    return version, None, refusal


def margins_of(features: Matrix, model: Model) -> Margins:
    """What the log gets as the margins of a model; NaN where it can say nothing.

    Args:
        features: float32 [rows, features]; no feature known = the bar has no features.
        model: verified.
    """
    known = np.asarray(np.isfinite(features).any(axis=1))
    margin = np.full(len(features), np.nan)
    if model.card.features == tuple(feature_names()):
        margin[known] = model.margin(features[known])
    return margin


def usual_margins(rows: pd.DataFrame, model: Model) -> Margins:
    """The same without the bars on which a served model abstains; see `novelty`."""
    features = rows[list(feature_names())].to_numpy(dtype=np.float32)
    return np.where(_novelties(features, model) == "", margins_of(features, model), np.nan)


def _novelties(features: Matrix, model: Model) -> npt.NDArray[np.object_]:
    card = model.card
    if card.features != tuple(feature_names()):
        return np.full(len(features), "", dtype=object)
    return novelties(features, card.lows, card.highs, card.features)


class _Said(NamedTuple):
    """What the models of a stream say of n bars.

    Attributes:
        version: [n] which version spoke, or should have; 0 = none.
        margin: [n] NaN = it abstains.
        reason: [n] why it abstains, `NO_LEVEL` where it does not.
    """

    version: npt.NDArray[np.int64]
    margin: Margins
    reason: npt.NDArray[np.object_]


def _asked(
    symbols: pd.Series[str],
    features: Matrix,
    ledgers: Mapping[str, Ledger],
    load: LoadModel,
    wanted: npt.NDArray[np.int64],
    role: str,
) -> _Said:
    """Asks the wanted version of every bar's symbol, each version once for all its bars."""
    known = np.asarray(np.isfinite(features).any(axis=1))
    margin = np.full(len(features), np.nan)
    refused, novel = (np.full(len(features), "", dtype=object) for _ in range(2))
    version = wanted.copy()
    for (symbol, number), bars in _bars_by_version(symbols, wanted, known).items():
        version[bars], model, refusal = _usable(ledgers[symbol], load, number, role)
        if model is None:
            refused[bars] = refusal
            continue
        margin[bars] = margins_of(features[bars], model)
        if role != "baseline":
            novel[bars] = _novelties(features[bars], model)
    margin[novel != ""] = np.nan
    reason = np.select(
        [version == 0, ~known, refused != "", novel != "", np.isnan(margin)],
        [NO_MODEL, LATE_BAR, refused, novel, OTHER_FEATURES],
        NO_LEVEL,
    )
    return _Said(version, margin, reason)


def _bars_by_version(
    symbols: pd.Series[str], versions: npt.NDArray[np.int64], ask: npt.NDArray[np.bool_]
) -> dict[tuple[str, int], list[int]]:
    """Places of the bars to ask about, by symbol and version."""
    found: dict[tuple[str, int], list[int]] = {}
    names = symbols.tolist()
    for place in np.flatnonzero(ask & (versions > 0)).tolist():
        found.setdefault((names[place], int(versions[place])), []).append(place)
    return found


def _stream(rows: pd.DataFrame, force: InForce, said: _Said, role: str) -> pd.DataFrame:
    import pandas as pd

    made = ~np.isnan(said.margin)
    prob_up = np.full(len(rows), np.nan)
    prob_up[made] = trusted_probability(force.base_rate[made], said.margin[made], force.trust[made])
    up = np.where(prob_up > 0.5, 1, 0)
    unknown = np.full(len(rows), np.nan, dtype=np.float32)
    no = np.zeros(len(rows), dtype=np.bool_)
    return pd.DataFrame(
        {
            "symbol": rows["symbol"].array,
            "bar_ts": rows["bar_ts"].array,
            "decided_at": rows["decided_at"].array,
            "price": rows["price"].array,
            "prediction": pd.arrays.IntegerArray(up.astype(np.int8), ~made),
            "prob_up": prob_up,
            "confidence": np.where(up == 1, prob_up, 1 - prob_up).astype(np.float32),
            "strength_score": unknown,
            "level_type": "none",
            "level_source": "none",
            "level_price": np.nan,
            **dict.fromkeys(STRENGTH_PARTS, unknown),
            "strength_missing": "",
            "signal_fired": pd.arrays.BooleanArray(no, no.copy()),
            "reason": said.reason,
            "model_version": pd.arrays.IntegerArray(said.version, no.copy()),
            "role": role,
            "base_rate": force.base_rate,
            "margin": said.margin.astype(np.float32),
            "trust": force.trust,
            "skill": force.skill,
            "mode": rows["mode"].array,
            "schema_hash": FEATURE_ROWS.schema_hash,
        }
    )
