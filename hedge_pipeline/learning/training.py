"""Fitting one model: weights, XGBoost parameters, and the model as a file with its description.

A model is native XGBoost UBJ beside a JSON description with its sha256; no pickle is ever read.
The margin of a model is its log-odds minus the log-odds of its own base rate, clipped.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hedge_pipeline.probability import log_likelihood, logit

if TYPE_CHECKING:
    import xgboost

    from hedge_pipeline.learning.dataset import Block, TrainingSet

Margins = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float32]

MANY_ROWS = 32_768
_ROWS_PER_BIN = 64
_UBJ_OBJECT = b"{L"


class ModelError(RuntimeError):
    """A model file is not what its description says."""


class TrainingFailed(RuntimeError):
    """The rows could not be fitted where they were sent; one line with the next step."""


@dataclass(frozen=True)
class TrainingPlan:
    """What is decided before looking at data (learning defaults measured on simulated worlds).

    `child_weight` and `penalty` are in effective rows: a row weighs uniqueness (one over the
    horizon, since labels overlap) times the half-life decay, and the second derivative of the
    logistic loss is about a quarter per row.

    Attributes:
        window_sessions: a training looks back on so many settled sessions.
        half_life_sessions: sessions after which a row counts half.
        least_sessions: without so many there is no training; as many are the recent ones that
            guards look at.
        trees: how many are grown.
        learning_rate: share of each tree's answer that is taken.
        depth: levels of splits of a tree.
        columns_per_node: share of the features a split may choose from.
        rows_per_tree: share of the rows a tree is grown on.
        bins: of a feature's values.
        child_weight: least effective rows on either side of a split.
        penalty: ridge penalty on a leaf, effective rows.
        seed: of every draw.
    """

    window_sessions: int = 60
    half_life_sessions: float = 20.0
    least_sessions: int = 5
    trees: int = 60
    learning_rate: float = 0.05
    depth: int = 3
    columns_per_node: float = 0.5
    rows_per_tree: float = 1.0
    bins: int = 64
    child_weight: float = 40.0
    penalty: float = 20.0
    seed: int = 0

    def xgboost_parameters(self, base_rate: float) -> dict[str, Any]:
        """Parameters of `xgboost.train`; one thread, so that equal inputs give equal bytes."""
        return {
            "objective": "binary:logistic",
            "tree_method": "hist",
            "eta": self.learning_rate,
            "max_depth": self.depth,
            "colsample_bynode": self.columns_per_node,
            "subsample": self.rows_per_tree,
            "max_bin": self.bins,
            "min_child_weight": self.child_weight / 4,
            "reg_lambda": self.penalty / 4,
            "base_score": base_rate,
            "seed": self.seed,
            "nthread": 1,
        }


@dataclass(frozen=True)
class ModelCard:
    """The description stored beside a model file.

    Attributes:
        symbol: ticker symbol it is a version of, or the name of the pool.
        version: 1, 2, ... by symbol, in order of training; rejected candidates count.
        cutoff: last session whose outcomes were used.
        first_session: first session of the training window.
        sessions: number of sessions in it.
        features: names in the order of the columns.
        schema_hash: hash of the features table.
        horizon_bars: label horizon.
        base_rate: weighted share of ups in the training rows.
        rows: training rows; `effective_rows` is the sum of their weights.
        data_hash: sha256 of the training rows and of what their weights are made of.
        sha256: of the UBJ file.
        plan: fields of the `TrainingPlan`.
        gain: total gain by feature, zero left out.
        contributions: mean absolute contribution to the log-odds by feature on the last sessions
            of training (SHAP values), zero left out.
        lows: lowest usual value of every feature in the training rows; see `novelty`.
        highs: highest usual value.
        spread: standard deviation of the margin on the last sessions of training.
        in_sample_skill: log-loss of the base rate minus that of the model there, nats per label.
        guard_failure: why the candidate may not predict; None = it passed every guard.
        parameters_from: where the parameters of the plan come from, in words.
        members: symbols whose rows a pooled model was trained on; empty = the model of one symbol.
        backend: where it was fitted, local or dask.
    """

    symbol: str
    version: int
    cutoff: str
    first_session: str
    sessions: int
    features: tuple[str, ...]
    schema_hash: str
    horizon_bars: int
    base_rate: float
    rows: int
    effective_rows: float
    data_hash: str
    sha256: str
    spread: float
    in_sample_skill: float
    plan: dict[str, Any]
    gain: dict[str, float] = field(default_factory=dict)
    contributions: dict[str, float] = field(default_factory=dict)
    lows: tuple[float | None, ...] = ()
    highs: tuple[float | None, ...] = ()
    guard_failure: str | None = None
    parameters_from: str = "the defaults"
    members: tuple[str, ...] = ()
    backend: str = "local"

    def to_json(self) -> bytes:
        """Readable JSON."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, content: bytes) -> ModelCard:
        """The inverse of `to_json`.

        Raises:
            ModelError: the text is no model description.
        """
        try:
            values = json.loads(content)
            lists = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
            return cls(**{**values, **lists})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(f"a model description cannot be read: {error}") from error


@dataclass(frozen=True)
class Model:
    """A fitted model ready to predict."""

    card: ModelCard
    booster: xgboost.Booster

    def margin(self, features: Matrix) -> Margins:
        """Clipped log-odds above the model's own base rate, float64 [rows].

        Args:
            features: float32 [rows, features], NaN = unknown.
        """
        return margins(self.booster, features, self.card.base_rate)


def native_xgboost() -> Any:
    """The module `xgboost`, imported without scikit-learn.

    Nothing here needs the scikit-learn wrappers; importing them costs two seconds and 100 MB, which
    a poll process would pay for nothing. Other imports of scikit-learn are not affected.
    """
    hidden = "sklearn" not in sys.modules
    if hidden:
        sys.modules["sklearn"] = None  # type: ignore[assignment]
    try:
        import xgboost
    finally:
        if hidden:
            del sys.modules["sklearn"]
    return xgboost


Trainer = Callable[["TrainingSet", TrainingPlan], tuple[bytes, "xgboost.Booster"]]


def check_classes(data: TrainingSet) -> None:
    """Refuses rows nothing can be learned from.

    Raises:
        ValueError: one class only, or no rows.
    """
    if data.rows == 0 or len(np.unique(data.labels)) < 2:
        raise ValueError("training needs both outcomes, up and down")


def fit(data: TrainingSet, plan: TrainingPlan) -> tuple[bytes, xgboost.Booster]:
    """Fits one candidate; returns its UBJ bytes and the booster. Equal inputs, equal bytes.

    Rows that lie on disk are fed block by block; the bytes are those of the same rows in memory.
    Of more than `MANY_ROWS` rows a sample says where the bins of a feature's values lie: looking at
    every row for that took a third of a fit. What it costs in skill is measured in
    `benchmarks/bins.py`.

    Raises:
        ValueError: one class only, or no rows.
    """
    xgboost = native_xgboost()
    check_classes(data)
    binning = {"max_bin": plan.bins, "nthread": 1}
    if data.rows > MANY_ROWS:
        drawn = data.some(drawn_rows(data.rows, _ROWS_PER_BIN * plan.bins, plan.seed))
        binning["ref"] = xgboost.QuantileDMatrix(
            drawn.features, drawn.labels, weight=drawn.weights, **binning
        )
    if data.spool is None:
        matrix = xgboost.QuantileDMatrix(
            data.features,
            data.labels,
            weight=data.weights,
            base_margin=data.base_margin,
            **binning,
        )
    else:
        matrix = xgboost.QuantileDMatrix(_feed(xgboost, data.blocks), **binning)
    booster = xgboost.train(plan.xgboost_parameters(data.base_rate), matrix, plan.trees)
    # a matrix that has them compares them with those of the booster at every tree
    booster.feature_names = list(data.names)
    return bytes(booster.save_raw("ubj")), booster


def drawn_rows(rows: int, wanted: int, seed: int) -> npt.NDArray[np.int64]:
    """One row of each of so many stretches of equal length, ascending.

    Args:
        rows: how many there are.
        wanted: number of stretches; all rows if there are no more than that.
        seed: of the draw.
    """
    if rows <= wanted:
        return np.arange(rows)
    edges = np.linspace(0, rows, wanted + 1).astype(np.int64)
    return np.random.default_rng(seed).integers(edges[:-1], edges[1:])


def _feed(xgboost: Any, blocks: Callable[[], Iterator[Block]]) -> Any:
    """The blocks as XGBoost asks for them; it goes through them several times."""

    class Feed(xgboost.DataIter):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = blocks()
            super().__init__(release_data=True)

        def reset(self) -> None:
            self._left = blocks()

        def next(self, input_data: Callable[..., None]) -> bool:
            block = next(self._left, None)
            if block is None:
                return False
            input_data(
                data=block.features,
                label=block.labels,
                weight=block.weights,
                base_margin=block.base_margin,
            )
            return True

    return Feed()


def margins(
    booster: xgboost.Booster,
    features: Matrix,
    base_rate: float,
    clip: float = 1.0,
) -> Margins:
    """See `Model.margin`."""
    if len(features) == 0:
        return np.empty(0)
    raw = booster.inplace_predict(
        np.ascontiguousarray(features, dtype=np.float32), predict_type="margin"
    )
    above = np.asarray(raw, dtype=np.float64) - logit(base_rate)
    # the log keeps margins as float32: what is logged is what was used
    return np.clip(above, -clip, clip).astype(np.float32).astype(np.float64)


def contributions(
    booster: xgboost.Booster, features: Matrix, names: Sequence[str]
) -> dict[str, float]:
    """Mean absolute SHAP value by feature, log-odds; features that never contribute left out.

    Exact for trees (Lundberg, Erion and Lee 2018), as XGBoost computes them.
    """
    if len(features) == 0:
        return {}
    matrix = native_xgboost().DMatrix(features, feature_names=list(names), nthread=1)
    shares = np.abs(booster.predict(matrix, pred_contribs=True)[:, :-1]).mean(axis=0)
    return {name: float(x) for name, x in zip(names, shares, strict=True) if x > 0}


def load_model(described: ModelCard, content: bytes) -> Model:
    """Loads a model through the serving path.

    Raises:
        ModelError: the file's sha256 differs from the description, or it is no UBJ model.
    """
    xgboost = native_xgboost()
    if hashlib.sha256(content).hexdigest() != described.sha256:
        raise ModelError(
            f"model {described.version} of {described.symbol} was changed after it was stored "
            "(sha256 differs); it is refused"
        )
    booster = xgboost.Booster({"nthread": 1})
    refusal = f"model {described.version} of {described.symbol} is no UBJ model"
    # XGBoost ends the process on an empty buffer
    if not content.startswith(_UBJ_OBJECT):
        raise ModelError(refusal)
    try:
        booster.load_model(bytearray(content))
    except xgboost.core.XGBoostError as error:
        raise ModelError(refusal) from error
    return Model(described, booster)


def skill_in_nats(
    margin: Margins, labels: npt.NDArray[np.float64], base_rate: float | npt.NDArray[np.float64]
) -> float:
    """Mean log-loss of the base rate minus that of base rate plus margin, nats per label."""
    base = logit(base_rate)
    return float(
        np.mean(
            log_likelihood(base + margin, labels)
            - log_likelihood(np.full_like(margin, base), labels)
        )
    )
