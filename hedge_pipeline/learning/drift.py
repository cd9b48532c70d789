"""Has something changed? Features and performance of the last sessions against those before.

A session is one observation: bars of a day resemble each other, and a test that counts them singly
finds drift every day. What is compared are effect sizes, differences in standard deviations between
sessions. Drift is information. It may ask for a retraining; it never promotes, and what is served
is for the evidence to say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from hedge_pipeline.learning.training import Matrix

Floats = npt.NDArray[np.float64]

RECENT = 5
RECENT_SCORES = 10
LEAST_REFERENCE = 20
MOST_REFERENCE = 60
# calibrated on stationary worlds, see `benchmarks/drift_alarms.py`
FEATURE_LIMIT = 4.5
PERFORMANCE_LIMIT = 2.5
SPREAD_OF = "spread of "


@dataclass(frozen=True)
class Drift:
    """One comparison.

    Attributes:
        statistic: the largest difference, in standard errors; NaN if there is too little to
            compare, or nothing to measure it by.
        effect: the same difference in standard deviations between sessions.
        what: name of the feature that moved most, or "skill"; empty while there is too little.
        limit: above it the size of the statistic is an alarm.
        falls_only: a rise is none, however large.
    """

    statistic: float
    effect: float
    what: str
    limit: float
    falls_only: bool = False

    @property
    def alarm(self) -> bool:
        """Whether the difference is larger than stationary markets bring."""
        size = -self.statistic if self.falls_only else abs(self.statistic)
        return size > self.limit

    def in_words(self) -> str:
        """One line."""
        if math.isnan(self.statistic):
            if self.what:
                return f"{self.what} was the same in every session before: no drift can be measured"
            return "too few sessions to tell"
        size = f"{self.what} moved by {self.effect:+.1f} standard deviations between sessions"
        numbers = f"{abs(self.statistic):.1f} standard errors, alarm above {self.limit:g}"
        return f"{'drift' if self.alarm else 'no drift'}: {size} ({numbers})"


def session_summary(features: Matrix) -> Floats:
    """Mean and log standard deviation of every feature in one session, [2 x features].

    Args:
        features: float32 [bars, features], NaN = unknown.

    Returns:
        NaN where fewer than two values are known, or where they do not differ.
    """
    values = np.asarray(features, dtype=np.float64)
    known = np.isfinite(values)
    number = known.sum(axis=0)
    filled = np.where(known, values, 0.0)
    mean = filled.sum(axis=0) / np.maximum(number, 1)
    squares = np.where(known, (values - mean) ** 2, 0.0).sum(axis=0)
    spread = np.sqrt(squares / np.maximum(number - 1, 1))
    mean = np.where(number >= 2, mean, np.nan)
    varies = (number >= 2) & (spread > 0)
    return np.concatenate([mean, np.where(varies, np.log(np.where(varies, spread, 1.0)), np.nan)])


def feature_drift(summaries: Floats, names: Sequence[str]) -> Drift:
    """The last five sessions against the up to sixty before.

    Args:
        summaries: `session_summary` of consecutive sessions, oldest first, [sessions, 2 x names].
        names: of the features.
    """
    recent, reference = summaries[-RECENT:], summaries[:-RECENT][-MOST_REFERENCE:]
    if len(reference) < LEAST_REFERENCE:
        return Drift(math.nan, math.nan, "", FEATURE_LIMIT)
    standard_errors, effects = _differences(recent, reference)
    if not np.isfinite(standard_errors).any():
        return Drift(math.nan, math.nan, "", FEATURE_LIMIT)
    worst = int(np.nanargmax(np.abs(standard_errors)))
    kind = "" if worst < len(names) else SPREAD_OF
    return Drift(
        float(standard_errors[worst]),
        float(effects[worst]),
        kind + names[worst % len(names)],
        FEATURE_LIMIT,
    )


def feature_moves(summaries: Floats, names: Sequence[str]) -> dict[str, float]:
    """How far mean and spread of every feature moved, in standard errors, as `feature_drift` sees.

    Args:
        summaries: as of `feature_drift`.
        names: of the features.

    Returns:
        By name, for the spread with "spread of" before it; what cannot be compared is left out, all
        of it while there are too few sessions.
    """
    recent, reference = summaries[-RECENT:], summaries[:-RECENT][-MOST_REFERENCE:]
    if len(reference) < LEAST_REFERENCE:
        return {}
    moved, _ = _differences(recent, reference)
    known = [*names, *(f"{SPREAD_OF}{name}" for name in names)]
    return {name: float(x) for name, x in zip(known, moved, strict=True) if math.isfinite(x)}


def performance_drift(skill: Floats) -> Drift:
    """Skill of the last ten sessions against the up to sixty before; only a fall is an alarm.

    Args:
        skill: log-loss of the base rate minus that of what was served, nats per label, by session,
            oldest first; every one is known.
    """
    recent, reference = skill[-RECENT_SCORES:], skill[:-RECENT_SCORES][-MOST_REFERENCE:]
    if len(reference) < LEAST_REFERENCE:
        return Drift(math.nan, math.nan, "", PERFORMANCE_LIMIT)
    standard_errors, effects = _differences(recent[:, None], reference[:, None])
    statistic, effect = float(standard_errors[0]), float(effects[0])
    return Drift(statistic, effect, "skill", PERFORMANCE_LIMIT, falls_only=True)


def _differences(recent: Floats, reference: Floats) -> tuple[Floats, Floats]:
    """Difference of means by column, in standard errors and in standard deviations."""
    complete = np.isfinite(recent).all(axis=0) & (
        np.isfinite(reference).sum(axis=0) >= LEAST_REFERENCE
    )
    number = np.maximum(np.isfinite(reference).sum(axis=0), 1)
    filled = np.where(np.isfinite(reference), reference, 0.0)
    mean = filled.sum(axis=0) / number
    squares = np.where(np.isfinite(reference), (reference - mean) ** 2, 0.0).sum(axis=0)
    deviation = np.sqrt(squares / np.maximum(number - 1, 1))
    complete &= deviation > 1e-9 * np.maximum(np.abs(mean), 1.0)
    effect = np.where(complete, recent.mean(axis=0) - mean, np.nan) / np.where(
        complete, deviation, 1.0
    )
    return effect / np.sqrt(1 / len(recent) + 1 / number), effect
