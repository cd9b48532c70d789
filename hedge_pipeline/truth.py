"""The simulated market's truth beside what the loop reached; for the demo and for tests only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hedge_pipeline.market.calendar import utc_times
from hedge_pipeline.market.sources.simulated import SimulatedSource, oracle
from hedge_pipeline.market.tables import OUTCOMES, PERFORMANCE
from hedge_pipeline.probability import log_likelihood, logit

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.stages import Deployment


def skill_against_oracle(deployment: Deployment) -> pd.DataFrame:
    """Skill by symbol and session: what was served, and what the exact probability would have had.

    Returns:
        Frame with symbol, session, served and oracle; both in 1e-4 nats per label above
        climatology, NaN where no model predicted.

    Raises:
        TypeError: the market is not the simulated one.
    """
    import pandas as pd

    store = deployment.store
    sums = store.read(PERFORMANCE)
    sums = sums[sums["role"] == "served"]
    totals = sums.groupby(["symbol", "session"])[["labels", "log_loss", "base_log_loss"]].sum()
    by_session = totals.to_dict("index")
    rows = []
    for label in store.sessions(OUTCOMES):
        outcomes = store.read(OUTCOMES, [label])
        outcomes = outcomes[outcomes["actual_direction"].notna()]
        for symbol, own in outcomes.groupby("symbol"):
            known = by_session[(symbol, label)]
            count = float(known["labels"])
            served = (
                1e4 * float(known["base_log_loss"] - known["log_loss"]) / count if count else np.nan
            )
            rows.append((symbol, label, served, _oracle_skill(deployment, str(symbol), label, own)))
    return pd.DataFrame(rows, columns=["symbol", "session", "served", "oracle"])


def _oracle_skill(deployment: Deployment, symbol: str, label: str, outcomes: pd.DataFrame) -> float:
    source = deployment.source
    if not isinstance(source, SimulatedSource):
        raise TypeError("only the simulated market knows its truth")
    session = deployment.calendar.session(label)
    times = utc_times(outcomes["bar_ts"])
    minutes = session.index_of(times)
    ordinal = source.ordinal(label)
    known = [oracle(source.seed, symbol, ordinal, int(minute)) for minute in minutes]
    truth = np.array(known, dtype=np.float64)
    up = outcomes["actual_direction"].to_numpy(dtype=np.float64)
    gained = log_likelihood(logit(truth), up) - log_likelihood(np.zeros_like(up), up)
    return float(1e4 * gained.mean())
