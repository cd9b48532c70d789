"""What the tables say about a symbol beyond its accuracy: for asset pages, status and MLflow.

Reads the store, writes nothing, decides nothing.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import pandas as pd

from hedge_pipeline.learning import calibration, drift, paired
from hedge_pipeline.learning.paired import Paired, SessionPair
from hedge_pipeline.learning.scoring import sums_of
from hedge_pipeline.market.calendar import to_datetime64, utc_times
from hedge_pipeline.market.tables import FEATURE_ROWS, OUTCOMES, PREDICTION_LOG, feature_names
from hedge_pipeline.probability import logit, trusted_probability
from hedge_pipeline.serving.predicting import usual_margins
from hedge_pipeline.stages import Deployment
from hedge_pipeline.store import Store

if TYPE_CHECKING:
    from hedge_pipeline.learning.ledger import Ledger
    from hedge_pipeline.learning.training import Model

Floats = npt.NDArray[np.float64]
RECENT = 250
TRIED = 20


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
        moments = utc_times(rows["available_at"])
        base = ledger.in_force(moments).base_rate
        with np.errstate(invalid="ignore"):  # NaN where it abstains
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
    rows = _scored(deployment, symbol, [label], (role,))
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
) -> tuple[Floats, Floats]:
    """Served probabilities of up and what became of them, newest sessions, [n] each."""
    rows = _scored(deployment, symbol, deployment.store.sessions(OUTCOMES, last=last), ("served",))
    return (
        rows["prob_up"].to_numpy(dtype=np.float64),
        rows["actual_direction"].to_numpy(dtype=np.float64),
    )


@dataclass(frozen=True)
class TriedModels:
    """What the log has of the models' predictions, and what the price did, [n] each.

    Attributes:
        probability: of up, the model's own, before trust shrinks it.
        up: 1 or 0.
        first: the oldest version among them; `last` the newest.
        sessions: how many.
    """

    probability: Floats
    up: Floats
    first: int
    last: int
    sessions: int

    def in_words(self) -> str:
        """Whose predictions these are."""
        one = self.first == self.last
        who = f"version {self.last}" if one else f"versions {self.first} to {self.last}"
        return (
            f"{len(self.up):,} outcomes of the {self.sessions} newest sessions, each beside "
            f"what the log has of the newest of {who}; the model's own probability, before trust"
        )


def tried_models(deployment: Deployment, symbol: str, last: int = TRIED) -> TriedModels | None:
    """The newest sessions as the models of their time saw them; None = none has predicted yet.

    A version that was trained a moment ago has predicted nothing yet: this is what the versions
    before it said, each until the next one came. Predictions that were made up for after an outage
    are among them. No further back than 250 sessions.
    """
    sessions = deployment.store.sessions(OUTCOMES, last=RECENT)
    parts: list[pd.DataFrame] = []
    # some at once: in a history without predictions all of them are looked at
    for end in range(len(sessions), 0, -last):
        parts = [*_newest_said(deployment, symbol, sessions[max(0, end - last) : end]), *parts]
        if len(parts) >= last:
            break
    if not parts:
        return None
    rows = pd.concat(parts[-last:])
    base, margin = rows[["base_rate", "margin"]].to_numpy(dtype=np.float64).T
    return TriedModels(
        trusted_probability(base, margin, 1.0),
        rows["actual_direction"].to_numpy(dtype=np.float64),
        int(rows["model_version"].min()),
        int(rows["model_version"].max()),
        len(parts[-last:]),
    )


def _newest_said(deployment: Deployment, symbol: str, labels: Sequence[str]) -> list[pd.DataFrame]:
    """Of each session with predictions those of the newest version by bar, and what became of them.

    Args:
        deployment: whose tables.
        symbol: ticker symbol.
        labels: sessions, ascending; the result is, too.
    """
    said = _scored(deployment, symbol, labels, ("served", "newest"))
    said = said.sort_values("model_version", kind="stable").drop_duplicates("bar_ts", keep="last")
    opens = [to_datetime64(deployment.calendar.session(label).opens) for label in labels]
    place = np.searchsorted(
        np.array(opens, dtype="datetime64[us]"), utc_times(said["bar_ts"]), side="right"
    )
    return [said[place == number] for number in np.unique(place)]


def feature_moves(
    deployment: Deployment, label: str, symbols: Sequence[str]
) -> dict[str, dict[str, float]]:
    """How far the features had moved when a session was over, by symbol; see `drift`.

    Args:
        deployment: whose tables.
        label: the last of the sessions that are compared.
        symbols: whose features.

    Returns:
        Standard errors by feature; nothing of a symbol with too few sessions, and nothing at all
        while the session is running.
    """
    closed = deployment.calendar.closed_by(deployment.clock())
    names = list(feature_names())
    earlier = itertools.dropwhile(lambda x: x > label, deployment.store.newest_first(FEATURE_ROWS))
    most = drift.RECENT + drift.MOST_REFERENCE
    known = tuple(itertools.islice(earlier, most))[::-1]
    enough = len(known) >= drift.RECENT + drift.LEAST_REFERENCE
    if not enough or closed is None or label > closed:
        return {}
    summaries = _summaries(deployment.store, known, tuple(symbols))
    moves = {
        symbol: drift.feature_moves(
            np.array([one[symbol] for one in summaries if symbol in one]), names
        )
        for symbol in symbols
        if any(symbol in one for one in summaries)
    }
    return {symbol: own for symbol, own in moves.items() if own}


# a backfill asks for nearly the same sessions again and again
_SUMMARIES: WeakKeyDictionary[Store, dict[Any, dict[str, Floats]]] = WeakKeyDictionary()


def _summaries(
    store: Store, labels: Sequence[str], symbols: tuple[str, ...]
) -> list[dict[str, Floats]]:
    """Summaries of sessions by symbol; what was summarized before and is unchanged is not read."""
    names = list(feature_names())
    marks, now = store.fingerprints(FEATURE_ROWS), time.time_ns()
    known, found = _SUMMARIES.get(store, {}), {}
    for label in labels:
        key = (label, symbols, marks.get(label))
        if key not in known:
            rows = store.read(FEATURE_ROWS, [label], symbols=symbols, columns=("symbol", *names))
            known[key] = {
                str(symbol): drift.session_summary(own[names].to_numpy(np.float32))
                for symbol, own in rows.groupby("symbol")
            }
        found[key] = known[key]
    certain = {k: v for k, v in found.items() if k[2] and not store.is_recent(k[2], now)}
    _SUMMARIES[store] = certain
    return list(found.values())


def _scored(
    deployment: Deployment, symbol: str, labels: Sequence[str], roles: Sequence[str]
) -> pd.DataFrame:
    log, outcomes = _rows(deployment, symbol, labels)
    log = log[log["role"].isin(roles) & log["prob_up"].notna()]
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
