"""Is a bar like those a model was trained on? If not, the model abstains and names the features.

Trees say the same far outside their training rows as at the edge, however absurd the value. So a
row is novel when more than three of its features lie outside the range of the training rows, or a
single one by more than half the range's width. The range leaves out the outermost 0.05 % at each
end; before ten sessions nobody knows what is usual, and nothing is novel.

Measured on 40 sessions of QQQ and SPY minute bars, each session against the models of the days
before: 0.4 % of bars are novel (0.2 to 0.3 % once twenty sessions are known; 9 % of the most
unusual day). One feature outside is common (an overnight gap is one value all day: a fifth of all
bars), so it does not suffice. Of the twenty bars around a fault, the rule finds 95 % when volume
falls to 2 % in the middle of a session and 75 % when prices are split unannounced; of a day with
eight times its volatility a third. A half day, and a day whose volume is 2 % throughout, are no
novelty, because every feature is relative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from hedge_pipeline.learning.training import Matrix

LEAST_SESSIONS = 10
LEFT_OUT = 0.0005
MOST_OUTSIDE = 3
FAR = 0.5
MOST_NOVEL = 0.1  # of a session; 0.09 was the most unusual of the days above
UNLIKE = "unlike the training data"
_NAMED = 4

Bounds = tuple[float | None, ...]


def ranges(features: Matrix, left_out: Sequence[bool] = ()) -> tuple[Bounds, Bounds]:
    """Lowest and highest usual value of every feature.

    Args:
        features: float32 [rows, features], NaN = unknown.
        left_out: features of which no value is ever novel; empty = none.

    Returns:
        Two tuples by feature; None where it was never known, or is left out.
    """
    lows: list[float | None] = []
    highs: list[float | None] = []
    for number, values in enumerate(features.T):
        column = np.ascontiguousarray(values)
        kept = not np.any(left_out[number : number + 1])
        ascending = np.sort(column[np.isfinite(column)]) if kept else column[:0]
        lows.append(_quantile(ascending, LEFT_OUT))
        highs.append(_quantile(ascending, 1 - LEFT_OUT))
    return tuple(lows), tuple(highs)


def _quantile(ascending: npt.NDArray[np.float32], share: float) -> float | None:
    """`numpy.quantile` of sorted values, to the bit; None if there are none."""
    if len(ascending) == 0:
        return None
    place = share * (len(ascending) - 1)
    below = int(place)
    beyond = place - below
    low, high = float(ascending[below]), float(ascending[min(below + 1, len(ascending) - 1)])
    if beyond < 0.5:
        return low + (high - low) * beyond
    return high - (high - low) * (1 - beyond)


def novelties(
    features: Matrix, lows: Bounds, highs: Bounds, names: Sequence[str]
) -> npt.NDArray[np.object_]:
    """Why each row is novel, "" where it is not.

    Unknown values are never outside, and neither is anything of a feature that was never known.

    Args:
        features: float32 [rows, features], NaN = unknown.
        lows: see `ranges`; empty = every row is usual.
        highs: likewise.
        names: of the features.
    """
    found = np.full(len(features), "", dtype=object)
    if not lows:
        return found
    low = np.array([-np.inf if x is None else x for x in lows])
    high = np.array([np.inf if x is None else x for x in highs])
    known = np.isfinite(low)
    width = np.where(known, high, 0.0) - np.where(known, low, 0.0)
    # of a feature that was the same throughout, any other value would be infinitely far outside
    width = np.where(width > 0, width, np.inf)
    values = np.asarray(features, dtype=np.float64)
    outside = (values < low) | (values > high)
    far = (values < low - FAR * width) | (values > high + FAR * width)
    novel = (outside.sum(axis=1) > MOST_OUTSIDE) | far.any(axis=1)
    for row in np.flatnonzero(novel):
        shown = np.flatnonzero(far[row] if far[row].any() else outside[row])
        words = ", ".join(names[column] for column in shown[:_NAMED])
        more = f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
        found[row] = f"{UNLIKE}: {words}{more}"
    return found
