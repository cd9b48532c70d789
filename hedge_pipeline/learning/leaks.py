"""Does a single feature know the outcome? Then it was made from the future.

No feature of a market orders ups before downs nearly perfectly. The measure is the area under the
ROC curve of one feature alone: 0.5 = it knows nothing. On five sessions of a planted 58 % edge the
best feature reaches 0.6; sessions of noise stay within 0.35 to 0.65. A feature that sees the price
at the horizon is beyond 0.9.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hedge_pipeline.learning.training import Matrix

SUSPICIOUS = 0.75
LEAST_ROWS = 300


def area_under_curve(values: npt.NDArray[np.float64], up: npt.NDArray[np.float64]) -> float:
    """Probability that an up has a higher value than a down, ties counted half.

    Mann-Whitney's statistic over the number of pairs.

    Args:
        values: of one feature, [n], all known.
        up: outcomes, 1 or 0, [n].

    Returns:
        0..1; NaN if only one outcome occurs.
    """
    ups = int(up.sum())
    downs = len(up) - ups
    if not ups or not downs:
        return float("nan")
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[inverse]
    return float((ranks[up > 0].sum() - ups * (ups + 1) / 2) / (ups * downs))


def leaking(
    features: Matrix, up: npt.NDArray[np.float64], names: Sequence[str]
) -> dict[str, float]:
    """Features that know the outcome on their own, with their area under the curve.

    Args:
        features: float32 [rows, features], NaN = unknown.
        up: outcomes, 1 or 0, [rows].
        names: of the features.

    Returns:
        Empty if there is none; features with fewer than 300 known rows are not judged.
    """
    found = {}
    for name, column in zip(names, np.asarray(features, dtype=np.float64).T, strict=True):
        known = np.isfinite(column)
        if known.sum() < LEAST_ROWS:
            continue
        area = area_under_curve(column[known], up[known])
        if abs(area - 0.5) > SUSPICIOUS - 0.5:
            found[name] = area
    return found
