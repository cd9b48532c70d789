"""What the tables say about a symbol beyond its accuracy: for asset pages, status and MLflow.

Reads the store, writes nothing, decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hedge_pipeline.learning import calibration, paired
from hedge_pipeline.learning.gate import logit, trusted_probability
from hedge_pipeline.learning.paired import Paired, SessionPair
from hedge_pipeline.learning.scoring import sums_of
from hedge_pipeline.live.predicting import usual_margins
from hedge_pipeline.market.calendar import to_datetime64
from hedge_pipeline.market.tables import FEATURE_ROWS, OUTCOMES, PREDICTION_LOG
from hedge_pipeline.stages import Deployment

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.learning.ledger import Ledger
    from hedge_pipeline.learning.training import Model

RECENT = 250


def retraining_value(
    deployment: Deployment,
    symbol: str,
    last: int = RECENT,
    known: dict[str, SessionPair] | None = None,
) -> Paired:
    """Does retraining help? The served stream against the first model, on the same rows.

    Args:
        deployment: whose tables.
        symbol: ticker symbol.
        last: newest sessions that are looked at.
        known: remembers the sessions that are over between two calls.
    """
    known = {} if known is None else known
    sessions = deployment.store.sessions(OUTCOMES, last=last)
    unknown = [label for label in sessions if label not in known]
    if unknown:
        columns = ("bar_ts", "decided_at", "role", "mode", "model_version", "prob_up")
        log, outcomes = _rows(deployment, symbol, unknown, columns)
        opens = [to_datetime64(deployment.calendar.session(label).opens) for label in unknown]
        pairs = paired.pair(log, outcomes, np.array(opens, dtype="datetime64[us]"))
        known |= dict(zip(unknown, pairs, strict=True))
    found = [known[label] for label in sessions]
    for label in sessions[-1:]:  # it may not be over
        del known[label]
    return paired.compare(found)


def out_of_time(
    deployment: Deployment, ledger: Ledger, model: Model, sessions: Sequence[str]
) -> pd.DataFrame:
    """What a version says, asked afterwards, of sessions after its cutoff, whoever served them.

    Unshrunk: the probability is that of the base rate in force at the bar and the whole margin, for
    trust belongs to what was served. It abstains where it would have abstained.

    Args:
        deployment: whose tables.
        ledger: promotion log of the symbol; base rates come from it.
        model: the version, verified.
        sessions: settled ones, ascending.

    Returns:
        One row by session: session, symbol, the sums of `scoring.sums_of`, and the slope of
        calibration (NaN if it said nothing).
    """
    import pandas as pd

    found = []
    for label in sessions:
        rows = deployment.store.read(FEATURE_ROWS, [label], symbols=[ledger.symbol])
        happened = deployment.store.read(
            OUTCOMES,
            [label],
            symbols=[ledger.symbol],
            columns=("bar_ts", "actual_direction"),
            only={"horizon_bars": [deployment.horizon]},
        )
        margin = usual_margins(rows, model)
        moments = rows["available_at"].dt.tz_localize(None).to_numpy().astype("datetime64[us]")
        base = ledger.in_force(moments).base_rate
        prob = trusted_probability(base, margin, 1.0)
        said = pd.DataFrame(
            {
                "bar_ts": rows["bar_ts"],
                "prediction": np.where(np.isnan(margin), np.nan, prob > 0.5),
                "prob_up": prob,
                "base_rate": base,
                "margin": margin,
            }
        ).merge(happened, on="bar_ts", how="left")
        scored = said.dropna()
        slope = calibration.slope(
            scored["base_rate"].to_numpy(dtype=np.float64),
            scored["margin"].to_numpy(dtype=np.float64),
            scored["actual_direction"].to_numpy(dtype=np.float64),
        )
        sums = {"session": label, "symbol": ledger.symbol, **sums_of(said)}
        found.append({**sums, "calibration_slope": slope})
    return pd.DataFrame(found)


def calibration_slope(
    deployment: Deployment, symbol: str, label: str, version: int, role: str
) -> float:
    """Slope of the trusted log-odds of one version in one session; NaN if it said nothing."""
    rows = _scored(deployment, symbol, [label], role)
    rows = rows[rows["model_version"] == version]
    base = rows["base_rate"].to_numpy(dtype=np.float64)
    said = logit(rows["prob_up"].to_numpy(dtype=np.float64)) - logit(base)
    return calibration.slope(base, said, rows["actual_direction"].to_numpy(dtype=np.float64))


def probability_spread(
    deployment: Deployment, symbol: str, label: str, version: int, role: str
) -> float:
    """Standard deviation of one version's trusted probability in a session; 0 if it made none."""
    log, _ = _rows(deployment, symbol, [label])
    made = log[(log["role"] == role) & (log["model_version"] == version) & log["prob_up"].notna()]
    return float(np.std(made["prob_up"].to_numpy(dtype=np.float64))) if len(made) else 0.0


def served_probabilities(
    deployment: Deployment, symbol: str, last: int = RECENT
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Served probabilities of up and what became of them, newest sessions, [n] each."""
    rows = _scored(deployment, symbol, deployment.store.sessions(OUTCOMES, last=last), "served")
    return (
        rows["prob_up"].to_numpy(dtype=np.float64),
        rows["actual_direction"].to_numpy(dtype=np.float64),
    )


def _scored(deployment: Deployment, symbol: str, labels: Sequence[str], role: str) -> pd.DataFrame:
    log, outcomes = _rows(deployment, symbol, labels)
    log = log[(log["role"] == role) & log["prob_up"].notna()]
    known = outcomes.loc[outcomes["actual_direction"].notna(), ["bar_ts", "actual_direction"]]
    return log.merge(known, on="bar_ts")


def _rows(
    deployment: Deployment,
    symbol: str,
    labels: Sequence[str],
    columns: Sequence[str] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions that count as evidence, and outcomes of the horizon."""
    log = deployment.store.read(
        PREDICTION_LOG,
        labels,
        symbols=[symbol],
        columns=columns,
        only={"mode": deployment.evidence_modes},
    )
    outcomes = deployment.store.read(
        OUTCOMES, labels, symbols=[symbol], only={"horizon_bars": [deployment.horizon]}
    )
    return log, outcomes
