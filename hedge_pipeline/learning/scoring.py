"""Scores of predictions on real outcomes, and honest intervals around them.

Sums are stored by session, so that any period can be scored by adding up and intervals can
resample whole sessions: labels overlap and sessions differ, single rows are not independent.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from hedge_pipeline.learning.paired import Paired, SessionPair, compare
from hedge_pipeline.market.tables import PERFORMANCE, in_pandas, places_among
from hedge_pipeline.probability import log_likelihood, logit
from hedge_pipeline.resampling import DRAWS, LEAST_SESSIONS, ratio_interval

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

_SAID = ("prediction", "prob_up", "margin", "base_rate")


@dataclass(frozen=True)
class Score:
    """Accuracy with its interval and the base rate's, and log-losses in nats per label.

    Attributes:
        value: share of right directions; NaN without labels.
        lo: lower end of the 95 % interval, by resampling whole sessions. Fewer than five tell
            little about their scatter: it is no narrower then than Wilson's of effective labels.
        hi: upper end.
        n: labels.
        n_effective: labels over the horizon (overlap-adjusted).
        base_rate: accuracy of always saying what climatology says.
        log_loss: of the trusted probability.
        base_log_loss: of climatology.
        raw_log_loss: of the unshrunk model.
    """

    value: float
    lo: float
    hi: float
    n: int
    n_effective: float
    base_rate: float
    log_loss: float
    base_log_loss: float
    raw_log_loss: float

    @property
    def skill(self) -> float:
        """Log-loss gained over climatology, 1e-4 nats per label; positive is better."""
        return (self.base_log_loss - self.log_loss) * 1e4

    def accuracy(self) -> dict[str, float | int | None]:
        """The accuracy part, ready for JSON; None where there is no label."""
        names = ("value", "lo", "hi", "n", "n_effective", "base_rate")
        return {name: _or_none(value) for name, value in asdict(self).items() if name in names}

    def losses(self) -> dict[str, float | int | None]:
        """The log-loss part, ready for JSON."""
        names = ("log_loss", "base_log_loss", "raw_log_loss")
        return {name: _or_none(value) for name, value in asdict(self).items() if name in names}


def performance(log: pd.DataFrame, outcomes: pd.DataFrame, session: str) -> pd.DataFrame:
    """Rows of `performance` of one session.

    Args:
        log: rows of `prediction_log` of the session.
        outcomes: rows of `outcomes` of the session, one horizon.
        session: its label.
    """
    if log.empty:
        return PERFORMANCE.empty()
    names = ["symbol", "model_version", "role", "mode"]
    values = {name: _numbers(log[name]) for name in _SAID}
    values["actual_direction"] = directions(log, outcomes)
    found = [
        {
            **dict(zip(names, cast("tuple[Any, ...]", key), strict=True)),
            "session": session,
            **_sums({name: numbers[places] for name, numbers in values.items()}),
        }
        for key, places in sorted(log[names].groupby(names).indices.items())
    ]
    return in_pandas(PERFORMANCE.of_records(found))


def sums_of(rows: pd.DataFrame) -> dict[str, float | int]:
    """Counts and sums of predictions, log-losses in nats; see `performance`.

    Args:
        rows: prediction (NULL = it abstained), actual_direction (NULL = no outcome counts),
            base_rate, prob_up and margin.
    """
    return _sums({name: _numbers(rows[name]) for name in (*_SAID, "actual_direction")})


def directions(log: pd.DataFrame, outcomes: pd.DataFrame) -> npt.NDArray[np.float64]:
    """The outcome of each row of the log, [rows]: 1 up, 0 down, NaN = none counts.

    Args:
        log: rows of `prediction_log`.
        outcomes: rows of `outcomes`, one horizon.
    """
    place = places_among(log, outcomes)
    found = np.full(len(log), np.nan)
    found[place >= 0] = _numbers(outcomes["actual_direction"])[place[place >= 0]]
    return found


def _numbers(column: pd.Series[Any]) -> npt.NDArray[np.float64]:
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _sums(rows: Mapping[str, npt.NDArray[np.float64]]) -> dict[str, float | int]:
    """`sums_of` of plain numbers, NaN = NULL."""
    made = ~np.isnan(rows["prediction"])
    scored = made & ~np.isnan(rows["actual_direction"])
    up, base, prob = (rows[name][scored] for name in ("actual_direction", "base_rate", "prob_up"))
    margin, said = (rows[name][scored] for name in ("margin", "prediction"))
    spread = rows["prob_up"][made]
    return {
        "predictions": int(made.sum()),
        "abstentions": int((~made).sum()),
        "labels": int(scored.sum()),
        "hits": int((said == up).sum()),
        "base_hits": int(((base > 0.5) == (up > 0)).sum()),
        "log_loss": float(-log_likelihood(logit(prob), up).sum()),
        "base_log_loss": float(-log_likelihood(logit(base), up).sum()),
        "raw_log_loss": float(-log_likelihood(logit(base) + margin, up).sum()),
        "brier": float(((prob - up) ** 2).sum()),
        "spread": float(np.std(spread)) if len(spread) else 0.0,
    }


def score(sums: pd.DataFrame, horizon: int, *, draws: int = DRAWS, seed: int = 0) -> Score:
    """One score of rows of `performance`, with a 95 % interval.

    Sessions are resampled whole (all symbols and versions of a session together), `draws` times.

    Args:
        sums: rows of `performance`, of one role.
        horizon: label horizon, bars.
        draws: bootstrap draws.
        seed: of the draws.
    """
    columns = ["hits", "labels", "base_hits", "log_loss", "base_log_loss", "raw_log_loss"]
    by_session = sums.groupby("session", sort=True)[columns].sum().to_numpy(dtype=np.float64)
    total = by_session.sum(axis=0) if len(by_session) else np.zeros(len(columns))
    labels = total[1]
    if labels == 0:
        nan = float("nan")
        return Score(nan, nan, nan, 0, 0.0, nan, nan, nan, nan)
    scored = by_session[by_session[:, 1] > 0]
    lo, hi = ratio_interval(scored[:, 0], scored[:, 1], draws, seed)
    if len(scored) < LEAST_SESSIONS:
        # symbols of one session move together
        effective = float(labels / horizon / sums["symbol"].nunique())
        low, high = _wilson(float(total[0] / labels), effective)
        lo, hi = min(lo, low), max(hi, high)
    return Score(
        value=float(total[0] / labels),
        lo=lo,
        hi=hi,
        n=int(labels),
        n_effective=float(labels / horizon),
        base_rate=float(total[2] / labels),
        log_loss=float(total[3] / labels),
        base_log_loss=float(total[4] / labels),
        raw_log_loss=float(total[5] / labels),
    )


def shares(row: Mapping[Any, Any]) -> dict[str, float]:
    """Scores of one session from the sums of `performance`; NaN = nothing was scored."""
    count = float(row["labels"]) or math.nan
    asked = float(row["predictions"] + row["abstentions"]) or math.nan
    return {
        "accuracy": row["hits"] / count,
        "base_rate_accuracy": row["base_hits"] / count,
        "log_loss": row["log_loss"] / count,
        "base_log_loss": row["base_log_loss"] / count,
        "skill_1e4_nats": 1e4 * (row["base_log_loss"] - row["log_loss"]) / count,
        "brier": row["brier"] / count,
        "labels": float(row["labels"]),
        "abstentions": float(row["abstentions"]),
        "coverage": row["predictions"] / asked,
    }


def skill(sums: pd.DataFrame, *, draws: int = DRAWS) -> Paired:
    """Log-loss gained over climatology with its interval, whole sessions resampled.

    Args:
        sums: rows of `performance`, of one role.
        draws: bootstrap draws.
    """
    columns = ["labels", "log_loss", "base_log_loss"]
    by_session = sums.groupby("session", sort=True)[columns].sum().to_numpy(dtype=np.float64)
    return compare(
        [SessionPair(int(labels), float(base - loss)) for labels, loss, base in by_session],
        draws=draws,
    )


def _wilson(share: float, number: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of so many independent trials."""
    z = 1.96
    middle = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    root = math.sqrt(share * (1 - share) / number + (z / (2 * number)) ** 2)
    half = z * root / (1 + z**2 / number)
    return max(0.0, middle - half), min(1.0, middle + half)


def _or_none(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value
