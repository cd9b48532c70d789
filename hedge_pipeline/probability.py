"""Log-odds, the likelihood of what happened, and the probability that is served; pure functions."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]


def logit(p: float | FloatArray) -> FloatArray:
    """Log-odds of a probability.

    Args:
        p: Probability strictly between 0 and 1, any shape.

    Returns:
        Log-odds in nats, same shape as `p` (0-d for a number).
    """
    return np.asarray(np.log(p / (1 - p)), dtype=np.float64)


def sigmoid(x: float | FloatArray) -> FloatArray:
    """Probability of log-odds, without overflow at either end.

    Args:
        x: Log-odds in nats, any shape.

    Returns:
        Probability in [0, 1], same shape as `x` (0-d for a number).
    """
    return np.asarray(np.exp(-np.logaddexp(0.0, -np.asarray(x))), dtype=np.float64)


def log_likelihood(eta: FloatArray, y: FloatArray | IntArray) -> FloatArray:
    """Log-likelihood of binary outcomes, stable for any size of the log-odds.

    Args:
        eta: Log-odds of an up move, [..., n].
        y: Outcomes, [n]; 1 = up, 0 = down.

    Returns:
        log P(y) in nats, shape of `eta`.
    """
    return -np.logaddexp(0.0, np.where(y > 0, -eta, eta))


def trusted_probability(
    base_rate: float | FloatArray, margin: float | FloatArray, trust: float | FloatArray
) -> FloatArray:
    """Probability that is served: the base rate moved by the trusted part of the margin.

    Args:
        base_rate: Climatology of the session, strictly between 0 and 1, scalar or [n].
        margin: Clipped model margin in nats, scalar or [n].
        trust: Shrink factor in [0, 1], as returned by `trust`.

    Returns:
        sigmoid(logit(base_rate) + trust * margin), broadcast shape (0-d for numbers).
    """
    return sigmoid(logit(base_rate) + trust * np.asarray(margin))
