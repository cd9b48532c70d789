"""How sure a ratio of sums over sessions is: whole sessions are drawn again, rows are not.

Rows of one session depend on each other; the bootstrap of whole sessions (Kuensch 1989, with
sessions as blocks) keeps that.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

DRAWS = 2000
LEAST_SESSIONS = 5  # fewer tell nothing of how much sessions differ


def ratio_interval(
    tops: npt.NDArray[np.float64], bottoms: npt.NDArray[np.float64], draws: int, seed: int
) -> tuple[float, float]:
    """95 % interval of a ratio of sums over sessions, whole sessions resampled.

    Args:
        tops: by session, [sessions], one or more.
        bottoms: by session, positive.
        draws: bootstrap draws.
        seed: of the draws.
    """
    picks = np.random.default_rng(seed).integers(0, len(tops), (draws, len(tops)))
    ratios = tops[picks].sum(axis=1) / bottoms[picks].sum(axis=1)
    lo, hi = np.quantile(ratios, [0.025, 0.975])
    return float(lo), float(hi)
