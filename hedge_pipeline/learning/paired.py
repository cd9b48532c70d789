"""Two streams on the very same rows, and how sure the difference is.

"Does retraining help?" is the served stream against the first model ever, on bars both predicted
with different versions. Sessions are resampled whole: single rows are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hedge_pipeline.market.calendar import utc_times
from hedge_pipeline.probability import log_likelihood, logit
from hedge_pipeline.resampling import DRAWS, LEAST_SESSIONS, ratio_interval

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SessionPair:
    """One session of two streams: common labels, and the sum of the first one's gain in nats."""

    labels: int
    gain: float


@dataclass(frozen=True)
class Paired:
    """Mean gain of one stream over another, 1e-4 nats per label; positive = the first is better.

    Attributes:
        gain: NaN without common labels.
        lo: lower end of the 95 % interval; NaN with fewer than five sessions.
        hi: upper end.
        labels: common labels.
        sessions: sessions with common labels.
    """

    gain: float
    lo: float
    hi: float
    labels: int
    sessions: int

    def in_words(self, first: str = "retraining", second: str = "the first model") -> str:
        """One line that claims no more than the interval does."""
        if self.labels == 0:
            return f"{first} and {second} have not been compared on any outcome yet"
        where = f"on {self.labels:,} labels of {self.sessions} sessions"
        if np.isnan(self.lo):
            return f"{first} against {second}: {self.gain:+.1f}e-4 nats per label {where}, too few"
        numbers = f"{self.gain:+.1f} [{self.lo:+.1f}, {self.hi:+.1f}] 1e-4 nats per label {where}"
        if self.lo > 0:
            return f"{first} is better than {second}: {numbers}"
        if self.hi < 0:
            return f"{first} is worse than {second}: {numbers}"
        return f"{first} is not shown to differ from {second}: {numbers}"


def pair(
    log: pd.DataFrame,
    outcomes: pd.DataFrame,
    opens: npt.NDArray[np.datetime64],
    first: str = "served",
    second: str = "baseline",
) -> list[SessionPair]:
    """Compares two roles on sessions of one symbol.

    Only bars count that both predicted, with different versions, and whose outcome is up or down.

    Args:
        log: rows of `prediction_log` of the modes that count: bar_ts, role, decided_at,
            model_version, prob_up.
        outcomes: rows of `outcomes`, one horizon: bar_ts, actual_direction.
        opens: [sessions] datetime64[us] in UTC, ascending.
        first: role.
        second: role.

    Returns:
        One for each session.
    """
    columns = ["bar_ts", "model_version", "prob_up"]
    known = outcomes.loc[outcomes["actual_direction"].notna(), ["bar_ts", "actual_direction"]]
    made = log[log["prob_up"].notna()]
    # a hot swap may leave a bar with two served versions: the first one decided counts
    made = made.sort_values(["bar_ts", "decided_at"]).drop_duplicates(["bar_ts", "role"])
    rows = (
        made.loc[made["role"] == first, columns]
        .merge(made.loc[made["role"] == second, columns], on="bar_ts", suffixes=("", "_second"))
        .merge(known, on="bar_ts")
    )
    rows = rows[rows["model_version"] != rows["model_version_second"]]
    up = rows["actual_direction"].to_numpy(dtype=np.float64)
    one, other = (
        log_likelihood(logit(rows[name].to_numpy(dtype=np.float64)), up)
        for name in ("prob_up", "prob_up_second")
    )
    times = utc_times(rows["bar_ts"])
    place = np.searchsorted(opens, times, side="right") - 1
    labels = np.bincount(place, minlength=len(opens))
    gains = np.bincount(place, weights=one - other, minlength=len(opens))
    return [SessionPair(int(n), float(x)) for n, x in zip(labels, gains, strict=True)]


def compare(pairs: Sequence[SessionPair], *, draws: int = DRAWS, seed: int = 0) -> Paired:
    """The mean gain over sessions, with an interval.

    Args:
        pairs: one per session; sessions without common labels do not count.
        draws: bootstrap draws of whole sessions.
        seed: of the draws.
    """
    used = [one for one in pairs if one.labels]
    labels = np.array([one.labels for one in used], dtype=np.float64)
    gains = np.array([one.gain for one in used], dtype=np.float64)
    if not used:
        return Paired(float("nan"), float("nan"), float("nan"), 0, 0)
    lo = hi = float("nan")
    if len(used) >= LEAST_SESSIONS:
        lo, hi = (1e4 * x for x in ratio_interval(gains, labels, draws, seed))
    mean = 1e4 * float(gains.sum() / labels.sum())
    return Paired(mean, lo, hi, int(labels.sum()), len(used))
