"""The claims about stored rows, plain functions: how many rows of a session break each one."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from hedge_pipeline.learning.novelty import UNLIKE
from hedge_pipeline.market.calendar import utc_times
from hedge_pipeline.market.tables import (
    CHAIN_FETCHES,
    FEATURE_ROWS,
    GAPS,
    HEDGE_LEVELS,
    OPTION_CHAINS,
    OUTCOMES,
    PREDICTION_LOG,
    RAW_QUOTES,
    Table,
)
from hedge_pipeline.stages.outcomes import observed_outcomes

if TYPE_CHECKING:
    from hedge_pipeline.stages import Deployment

KEY = ["symbol", "bar_ts"]


def misshapen_quotes(deployment: Deployment, label: str) -> int:
    """Violations of the schema of `raw_quotes` and `gaps`."""
    return _misshapen(deployment, label, RAW_QUOTES) + _misshapen(deployment, label, GAPS)


def misshapen_chains(deployment: Deployment, label: str) -> int:
    """Violations of the schema of `option_chains` and `chain_fetches`."""
    chains = _misshapen(deployment, label, OPTION_CHAINS)
    return chains + _misshapen(deployment, label, CHAIN_FETCHES)


def hasty_snapshots(deployment: Deployment, label: str) -> int:
    """Contracts that were available before the moment they describe."""
    rows = deployment.store.read(OPTION_CHAINS, [label], columns=["as_of", "available_at"])
    return int((rows["available_at"] < rows["as_of"]).sum())


def misshapen_levels(deployment: Deployment, label: str) -> int:
    """Violations of the schema of `hedge_levels`."""
    return _misshapen(deployment, label, HEDGE_LEVELS)


def unexplained_levels(deployment: Deployment, label: str) -> int:
    """Rows that are unusable without a reason, or usable with one."""
    rows = deployment.store.read(HEDGE_LEVELS, [label], columns=["usable", "unusable_reason"])
    return int((rows["usable"].astype(bool) == rows["unusable_reason"].notna()).sum())


def misplaced_levels(deployment: Deployment, label: str) -> int:
    """Front or monthly levels and half gaps on the wrong side of the spot."""
    rows = deployment.store.read(HEDGE_LEVELS, [label])
    below = ["hp_support", "mhp_support", "hg_below"]
    above = ["hp_resistance", "mhp_resistance", "hg_above"]
    wrong = rows[below].gt(rows["spot"], axis=0).any(axis=1)
    wrong |= rows[above].lt(rows["spot"], axis=0).any(axis=1)
    return int(wrong.sum())


def misshapen_features(deployment: Deployment, label: str) -> int:
    """Violations of the schema of `features`."""
    return _misshapen(deployment, label, FEATURE_ROWS)


def misshapen_predictions(deployment: Deployment, label: str) -> int:
    """Violations of the schema of `prediction_log`."""
    return _misshapen(deployment, label, PREDICTION_LOG)


def misshapen_outcomes(deployment: Deployment, label: str) -> int:
    """Violations of the schema of `outcomes`."""
    return _misshapen(deployment, label, OUTCOMES)


def _misshapen(deployment: Deployment, label: str, table: Table) -> int:
    """Types, ranges, NULL where none may be; a doubled key counts once."""
    rows = deployment.store.read(table, [label])
    doubled = rows.duplicated(list(table.key))
    single = rows[~doubled].reset_index(drop=True)
    return int(doubled.sum()) + sum(table.violations(single).values())


def uncovered_minutes(deployment: Deployment, label: str) -> int:
    """Expected minutes by now that are neither bar nor gap, and minutes that are both."""
    session = deployment.calendar.session(label)
    bars = _minutes(deployment, label, RAW_QUOTES)
    gaps = _minutes(deployment, label, GAPS)
    length = dt.timedelta(seconds=session.bar_seconds)
    arrived = deployment.asked_at(session) - deployment.source.delay
    expected = {
        (symbol, session.opens + minute * length)
        for symbol in deployment.symbols
        for minute in range(session.bars_by(arrived - 2 * length))
    }
    return len(bars & gaps) + len(expected - bars - gaps)


def _minutes(deployment: Deployment, label: str, table: Table) -> set[tuple[str, dt.datetime]]:
    rows = deployment.store.read(table, [label], columns=KEY)
    return set(zip(rows["symbol"], rows["bar_ts"], strict=True))


def implausible_bars(deployment: Deployment, label: str) -> int:
    """Bars whose high or low does not contain open and close, or that lie outside the session."""
    bars = deployment.store.read(RAW_QUOTES, [label])
    times = utc_times(bars["bar_ts"])
    outside = deployment.calendar.session(label).index_of(times) < 0
    body = bars[["open", "close"]]
    torn = (bars["high"] < body.max(axis=1)) | (bars["low"] > body.min(axis=1))
    return int((torn | outside).sum())


def rows_from_the_future(deployment: Deployment, label: str) -> int:
    """Feature rows without their bar, or available before their bar was."""
    rows = deployment.store.read(FEATURE_ROWS, [label], columns=[*KEY, "available_at"])
    bars = deployment.store.read(RAW_QUOTES, [label], columns=[*KEY, "available_at"])
    joined = rows.merge(bars, on=KEY, how="left", suffixes=("", "_of_bar"))
    known = joined["available_at_of_bar"].notna()
    early = joined["available_at"] < joined["available_at_of_bar"]
    return int((~known | early).sum())


def bars_without_features(deployment: Deployment, label: str) -> int:
    """Bars that have no feature row."""
    rows = deployment.store.read(FEATURE_ROWS, [label], columns=KEY)
    bars = deployment.store.read(RAW_QUOTES, [label], columns=KEY)
    return len(bars.merge(rows, on=KEY, how="left", indicator=True).query("_merge != 'both'"))


def doubled_predictions(deployment: Deployment, label: str) -> int:
    """Bars with more than one served prediction."""
    log = deployment.store.read(PREDICTION_LOG, [label], columns=[*KEY, "role"])
    return int(log[log["role"] == "served"].duplicated(KEY).sum())


def unknown_models(deployment: Deployment, label: str) -> int:
    """Predictions that name a version without a verdict that accepts it."""
    log = deployment.store.read(
        PREDICTION_LOG, [label], columns=["symbol", "model_version", "prediction"]
    )
    made = log[log["prediction"].notna()]
    count = 0
    for symbol, own in made.groupby("symbol"):
        accepted = set(deployment.ledger(str(symbol)).accepted)
        count += int((~own["model_version"].isin(accepted)).sum())
    return count


def hasty_decisions(deployment: Deployment, label: str) -> int:
    """Predictions decided before their bar had ended."""
    log = deployment.store.read(PREDICTION_LOG, [label], columns=["bar_ts", "decided_at"])
    length = dt.timedelta(seconds=deployment.calendar.bar_seconds)
    return int((log["decided_at"] < log["bar_ts"] + length).sum())


def novel_share(deployment: Deployment, label: str) -> float:
    """Of the bars a model was there for, the share that abstained as unlike its training data."""
    log = deployment.store.read(
        PREDICTION_LOG, [label], columns=["role", "model_version", "reason"]
    )
    asked = log[(log["role"] == "served") & (log["model_version"] > 0)]
    return float(asked["reason"].str.startswith(UNLIKE).mean()) if len(asked) else 0.0


def invented_outcomes(deployment: Deployment, label: str) -> int:
    """Outcomes that differ from what the observed closes of the session give."""
    stored = deployment.store.read(OUTCOMES, [label])
    stored = stored[stored["horizon_bars"] == deployment.horizon]
    bars = deployment.store.read(RAW_QUOTES, [label])
    observed = observed_outcomes(deployment, label, bars)
    claimed = ["entry_price", "exit_price", "return_pct", "actual_direction", "status"]
    columns = [*KEY, *claimed]
    joined = stored[columns].merge(observed[columns], on=KEY, how="left", suffixes=("", "_seen"))
    differs = joined["status_seen"].isna()
    for name in claimed:
        told, seen = joined[name], joined[f"{name}_seen"]
        differs |= ~((told == seen).fillna(False) | (told.isna() & seen.isna()))
    return int(differs.sum())
