"""Confidence in a prediction at a hedge level: the trusted probability, moved by what was seen.

Sums are stored by session, so that a decision can add up exactly the sessions known before it.
They count what the price did at levels, whatever was predicted there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from hedge_pipeline.levels.strength import Texts, strength_band
from hedge_pipeline.probability import logit, sigmoid

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.float64]
Cell = tuple[str, str, str]

PRIOR: Final = 200.0
# the row of a symbol that counts every outcome, at a level or not
EVERYWHERE: Final[Cell] = ("all", "all", "all")
CELL_COLUMNS: Final = ("level_type", "level_source", "strength_band")
COUNT_COLUMNS: Final = ("labels", "ups", "effective_labels", "effective_ups")


class Seen(NamedTuple):
    """Effective counts (overlap-adjusted) of outcomes in the cells of n bars.

    Attributes:
        labels: [n] up or down outcomes of the bar's cell; 0 = nothing was seen there.
        ups: [n] those that were up.
        base_rate: [n], or one for all: share of ups among all outcomes of the symbol in the same
            sessions; NaN = none.
    """

    labels: Floats
    ups: Floats
    base_rate: Floats | float


class Confidence(NamedTuple):
    """What is believed of n predictions at their levels.

    Attributes:
        prob_up: [n] the probability of up after the evidence; NaN = abstained.
        value: [n] the same of the predicted side; NaN = abstained. Below 1/2 if the evidence
            speaks against the prediction.
    """

    prob_up: Floats
    value: Floats


@dataclass(frozen=True)
class LevelEvidence:
    """What one symbol's price did at its levels, in cells of side, kind and strength band.

    Attributes:
        cells: effective labels and ups by cell, and of `EVERYWHERE`.
    """

    cells: Mapping[Cell, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, sums: pd.DataFrame) -> LevelEvidence:
        """Adds up rows of `cell_sums` of one symbol, of any number of sessions.

        Args:
            sums: only sessions whose outcomes were all known before the decision.

        Raises:
            ValueError: the rows are of several symbols.
        """
        found = cls.by_symbol(sums)
        if len(found) > 1:
            raise ValueError("evidence at levels is kept per symbol")
        return next(iter(found.values()), cls())

    @classmethod
    def by_symbol(cls, sums: pd.DataFrame) -> dict[str, LevelEvidence]:
        """Like `of`, for each of the symbols."""
        counts = sums.groupby(["symbol", *CELL_COLUMNS])[["effective_labels", "effective_ups"]]
        added = counts.sum()
        cells: dict[str, dict[Cell, tuple[float, float]]] = {}
        for (symbol, *cell), (labels, ups) in zip(added.index, added.to_numpy(), strict=True):
            side, kind, band = map(str, cell)
            cells.setdefault(str(symbol), {})[side, kind, band] = float(labels), float(ups)
        return {symbol: cls(own) for symbol, own in cells.items()}

    def at(self, level_type: Texts, level_source: Texts, strength_score: npt.ArrayLike) -> Seen:
        """The counts in the cell of each bar.

        Args:
            level_type: [n] support, resistance or none.
            level_source: [n] HP, MHP, HG or none.
            strength_score: [n] 0..100; NaN = unknown.
        """
        nothing = (0.0, 0.0)
        bands = strength_band(strength_score)
        found = [
            self.cells.get(cell, nothing)
            for cell in zip(level_type, level_source, bands, strict=True)
        ]
        labels, ups = np.array(found, dtype=np.float64).reshape(-1, 2).T
        every, every_up = self.cells.get(EVERYWHERE, nothing)
        return Seen(labels, ups, every_up / every if every else float("nan"))


def seen_at(
    evidence: Mapping[str, LevelEvidence],
    symbols: Texts,
    level_type: Texts,
    level_source: Texts,
    strength_score: npt.NDArray[np.floating[Any]],
) -> Seen:
    """The counts in the cell of each bar of several symbols; see `LevelEvidence.at`.

    Args:
        evidence: by symbol; of a symbol that is missing nothing was seen.
        symbols: [n] of the bars.
        level_type: [n].
        level_source: [n].
        strength_score: [n].
    """
    found = np.full((3, len(symbols)), np.nan)
    for symbol in dict.fromkeys(symbols):
        own = np.flatnonzero(symbols == symbol)
        seen = evidence.get(symbol, LevelEvidence()).at(
            level_type[own], level_source[own], strength_score[own]
        )
        found[:, own] = seen.labels, seen.ups, np.broadcast_to(seen.base_rate, len(own))
    return Seen(*found)


def confident(prob_up: npt.ArrayLike, seen: Seen, prior: float = PRIOR) -> Confidence:
    """Moves probabilities by what was seen at the levels.

    logit(q) = logit(prob_up) + logit(h) - logit(b) with h = (ups + k b) / (labels + k): the share
    of ups in the bar's cell, shrunk to the base rate b by k outcomes' worth. Where nothing was
    seen, and where b is 0 or 1 (the cells cannot differ then), q is `prob_up` to the last bit.

    Args:
        prob_up: [n] trusted probabilities; NaN = abstained. The prediction is up above 1/2.
        seen: of the same bars.
        prior: k, effective outcomes.
    """
    prob = np.asarray(prob_up, dtype=np.float64)
    base_rate = np.broadcast_to(seen.base_rate, prob.shape)
    q = prob.copy()
    moved = (seen.labels > 0) & (base_rate > 0) & (base_rate < 1) & (prob > 0) & (prob < 1)
    b = base_rate[moved]
    h = (seen.ups[moved] + prior * b) / (seen.labels[moved] + prior)
    q[moved] = sigmoid(logit(prob[moved]) + logit(h) - logit(b))
    return Confidence(q, np.where(prob > 0.5, q, 1 - q))


def cell_sums(rows: pd.DataFrame, horizon: int) -> pd.DataFrame:
    """Counts of one settled session by symbol and cell.

    Outcomes of neighbouring bars overlap: an effective count is the count over the horizon. That
    is too careful for bars of a cell that lie far apart, and never too bold. Flat and unlabelable
    bars, and bars without a level nearby, are in no cell; the latter count in `EVERYWHERE`.

    Args:
        rows: rows of `prediction_log` joined with `actual_direction` of `outcomes`. Only the
            served stream is counted: the level of a bar is the same in every stream.
        horizon: label horizon, bars.

    Returns:
        symbol, `CELL_COLUMNS`, `COUNT_COLUMNS`; sorted, no row without a label.
    """
    import pandas as pd

    up = rows["actual_direction"].to_numpy(dtype=np.float64, na_value=np.nan)
    labelled = (rows["role"].to_numpy(dtype=object) == "served") & ~np.isnan(up)
    names = ("symbol", "level_type", "level_source")
    bars = np.array([rows[name].to_numpy(dtype=object) for name in names])
    band = strength_band(rows["strength_score"].to_numpy(dtype=np.float32))

    def counted(chosen: npt.NDArray[np.bool_]) -> Counter[tuple[str, ...]]:
        own = list(zip(*bars[:, chosen], band[chosen], strict=True))
        everywhere = Counter((symbol, *EVERYWHERE) for symbol, *_ in own)
        return everywhere + Counter(cell for cell in own if cell[1] != "none")

    labels, ups = counted(labelled), counted(labelled & (up > 0))
    cells = sorted(labels)
    columns = ("symbol", *CELL_COLUMNS)
    sums: dict[str, Any] = {
        name: pd.array([cell[place] for cell in cells], dtype="str")
        for place, name in enumerate(columns)
    }
    for name, counts in (("labels", labels), ("ups", ups)):
        sums[name] = np.array([counts[cell] for cell in cells], dtype=np.int64)
    for name in ("labels", "ups"):
        sums[f"effective_{name}"] = sums[name] / horizon
    return pd.DataFrame(sums)
