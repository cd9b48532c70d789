"""Are the probabilities right? Slope, and observed shares by predicted probability."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def slope(base_rate: Floats, log_odds_gain: Floats, up: Floats) -> float:
    """By what factor the log-odds above the base rate should have been scaled.

    One Newton step from 0 of the maximum-likelihood slope: sum g (y - b) / sum g^2 b (1 - b).
    1 = as sure as it should be, less = too sure, negative = wrong way round.

    Args:
        base_rate: probability of up, [n].
        log_odds_gain: log-odds above the base rate's, [n].
        up: outcomes, 1 or 0, [n].

    Returns:
        NaN if nothing was said.
    """
    information = float(np.sum(log_odds_gain**2 * base_rate * (1 - base_rate)))
    if information == 0:
        return float("nan")
    return float(np.sum(log_odds_gain * (up - base_rate))) / information


@dataclass(frozen=True)
class Reliability:
    """Predicted and observed shares of ups by bin, ascending; every bin has about as many rows.

    Attributes:
        predicted: [bins] mean probability.
        observed: [bins] share of ups.
        count: [bins] rows.
    """

    predicted: Floats
    observed: Floats
    count: npt.NDArray[np.int64]


def reliability(probability: Floats, up: Floats, bins: int = 10) -> Reliability:
    """Bins by quantile of the predicted probability.

    Args:
        probability: of up, [n].
        up: outcomes, 1 or 0, [n].
        bins: at most so many.
    """
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return Reliability(
        np.array([probability[part].mean() for part in parts]),
        np.array([up[part].mean() for part in parts]),
        np.array([len(part) for part in parts], dtype=np.int64),
    )
