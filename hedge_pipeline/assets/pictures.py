"""What each asset shows of itself in the UI: numbers under stable keys and small pictures.

What comes first is what a trader asks first. Dagster shows Markdown of fewer than a thousand
characters at once (`glance` and the tables), longer ones, such as the larger pictures, on a click.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.insight import TriedModels
    from hedge_pipeline.live.loop import Poll
    from hedge_pipeline.resources.registry import MlflowRegistry
    from hedge_pipeline.stages import Candidate, CollectedSession, Deployment, Searched
    from hedge_pipeline.stages.chains import CollectedChains

log = logging.getLogger(__name__)


def quotes(
    deployment: Deployment, label: str, found: CollectedSession, *, draw: bool = True
) -> dict[str, Any]:
    """Counts, range and coverage of a session's bars, with its price."""
    from hedge_pipeline.market.tables import GAPS, RAW_QUOTES
    from hedge_pipeline.resources import plots

    bars = deployment.store.read(RAW_QUOTES, [label])
    gaps = deployment.store.read(GAPS, [label])
    shown: dict[str, Any] = {
        "dagster/row_count": found.bars,
        "new_rows": found.new,
        "gaps": found.gaps,
        "coverage_pct": _coverage(len(bars), len(gaps)),
        "bytes": deployment.store.size(RAW_QUOTES, label),
    }
    if len(bars):
        shown["lag_seconds"] = round(float(_lags(deployment, bars).median()), 1)
        shown["first_bar"] = bars["bar_ts"].min().isoformat()
        shown["last_bar"] = bars["bar_ts"].max().isoformat()
        if draw:
            at_once = {"glance": _glance(_relative(bars)), "volume": _glance(_volumes(bars))}
            shown = at_once | shown
            shown["price"] = _picture(plots.prices(bars, gaps, label))
    return shown


def _coverage(bars: int, gaps: int) -> float:
    """Bars of the minutes that were expected, percent."""
    return round(100 * bars / (bars + gaps), 3) if bars + gaps else 0.0


def _lags(deployment: Deployment, bars: pd.DataFrame) -> pd.Series[float]:
    """Seconds from the end of each bar until it was there."""
    waited: pd.Series[float] = (bars["available_at"] - bars["bar_ts"]).dt.total_seconds()
    return waited - deployment.calendar.bar_seconds


def _relative(bars: pd.DataFrame) -> list[tuple[str, Any]]:
    """Price of the first symbols by minute, percent of the first one."""
    wide = bars.pivot(index="bar_ts", columns="symbol", values="close").sort_index()
    return [(f"{name} %", 100 * (own / own.bfill().iloc[0] - 1)) for name, own in wide.items()]


def _volumes(bars: pd.DataFrame) -> list[tuple[str, Any]]:
    """Shares of the first symbols by five minutes."""
    by_time = bars.groupby([bars["bar_ts"].dt.floor("5min"), "symbol"])["volume"].sum().unstack()
    return [(f"{name} shares/5 min", own) for name, own in by_time.items()]


def _glance(lines: Sequence[tuple[str, Any]]) -> dg.MarkdownMetadataValue:
    """The first three lines, at once to be seen on the asset's page."""
    from hedge_pipeline.resources import plots

    return dg.MetadataValue.md(plots.glance(lines[:3]))


def chains(deployment: Deployment, label: str, found: CollectedChains) -> dict[str, Any]:
    """Snapshots of a session and what became of the requests."""
    from hedge_pipeline.market.tables import CHAIN_FETCHES, OPTION_CHAINS

    rows = deployment.store.read(OPTION_CHAINS, [label], columns=("symbol",))
    fetches = deployment.store.read(CHAIN_FETCHES, [label])
    shown: dict[str, Any] = {
        "dagster/row_count": len(rows),
        "snapshots": found.snapshots,
        "new_snapshots": found.new,
        "requests": _requests(fetches),
        "bytes": deployment.store.size(OPTION_CHAINS, label),
    }
    if found.failures:
        shown["failures"] = "; ".join(str(error) for error in found.failures.values())
    if not deployment.source.capabilities.has_chains:
        shown["note"] = f"the source {deployment.source.name} has no option chains"
    return shown


def _requests(fetches: pd.DataFrame) -> str:
    """Requests for chains by what came of them, in words."""
    statuses = fetches["status"].value_counts().sort_index()
    return ", ".join(f"{count} {status}" for status, count in statuses.items()) or "none"


def levels(deployment: Deployment, label: str, *, draw: bool = True) -> dict[str, Any]:
    """Usable snapshots of a session, with the levels over the price and the gamma profile."""
    from hedge_pipeline.market.tables import HEDGE_LEVELS, RAW_QUOTES
    from hedge_pipeline.resources import plots
    from hedge_pipeline.stages.levels import newest_profile

    rows = deployment.store.read(HEDGE_LEVELS, [label])
    bars = deployment.store.read(RAW_QUOTES, [label])
    usable = rows[rows["usable"].astype(bool)]
    refused = rows.loc[~rows["usable"].astype(bool), "unusable_reason"].value_counts()
    shown: dict[str, Any] = {
        "dagster/row_count": len(rows),
        "usable_snapshots": len(usable),
        "dealer_sign": deployment.dealer_sign,
        "bytes": deployment.store.size(HEDGE_LEVELS, label),
    }
    if len(refused):
        lines = [f"| {reason} | {count} |" for reason, count in refused.items()]
        shown["unusable"] = dg.MetadataValue.md(
            "\n".join(["| reason | rows |", "|---|---|", *lines])
        )
    glances: dict[str, Any] = {}
    for symbol, own in usable.groupby("symbol", sort=True):
        newest = own.sort_values("available_at").iloc[-1]
        shown[f"{symbol}_gex_musd"] = round(float(newest["gex"]) / 1e6, 1)
        if not draw:
            continue
        price = bars[bars["symbol"] == symbol].sort_values("bar_ts")
        glances[f"{symbol}_glance"] = _glance(_between_walls(price, own))
        shown[f"{symbol}_levels"] = _picture(
            plots.levels(bars[bars["symbol"] == symbol], own, f"{symbol} {label}")
        )
        profile = newest_profile(deployment, label, str(symbol))
        if profile is not None:
            shown[f"{symbol}_gamma_profile"] = _picture(
                plots.gamma_profile(*profile, newest, f"{symbol} {label}")
            )
    return glances | shown


def _between_walls(bars: pd.DataFrame, rows: pd.DataFrame) -> list[tuple[str, Any]]:
    """Price of a symbol by minute, with the front walls as far as they were available."""
    import pandas as pd

    walls = rows[["available_at", "hp_support", "hp_resistance"]].sort_values("available_at")
    joined = pd.merge_asof(
        bars[["available_at", "close"]].sort_values("available_at"), walls, on="available_at"
    )
    return [
        ("price", joined["close"]),
        ("resistance", joined["hp_resistance"]),
        ("support", joined["hp_support"]),
    ]


def signals(symbol: str, found: dict[str, Any]) -> dict[str, Any]:
    """Counts, win rate and profit factor of the signals, with the reliability of confidence."""
    from hedge_pipeline.levels.trades import in_markdown
    from hedge_pipeline.resources import plots

    overall = found["overall"]
    names = ("signals", "scored", "win_rate", "lo", "hi", "profit_factor", "average_pct")
    numbers = {name: overall[name] for name in names if overall[name] is not None}
    shown: dict[str, Any] = {
        "sessions": found["sessions"],
        "predictions_scored": found["predictions_scored"],
        **{k: round(v, 4) if isinstance(v, float) else v for k, v in numbers.items()},
        "groups": dg.MetadataValue.md(in_markdown(found)),
    }
    if found["predictions_scored"]:
        shown["reliability"] = _picture(plots.confidence(found["reliability"], symbol))
    if overall["scored"]:
        shown["false_positives"] = _picture(plots.false_positives(found["by_session"], symbol))
    return shown


def publish_signals(
    registry: MlflowRegistry, deployment: Deployment, symbol: str, found: dict[str, Any]
) -> str:
    """Logs the report to MLflow; an MLflow that is down costs nothing but the view."""
    from hedge_pipeline.resources.registry import RegistryError

    try:
        registry.publish_signals(deployment, symbol, found)
    except RegistryError as error:
        log.warning("%s", error)
        return str(error)
    return "up to date"


def features(deployment: Deployment, label: str, rows: int, *, draw: bool = True) -> dict[str, Any]:
    """Rows, the share of NULL by feature, and how far the features of the symbols have moved.

    Of many symbols the first three are compared with their past; those of every symbol are with
    its `model_performance`.
    """
    from hedge_pipeline import insight
    from hedge_pipeline.market.tables import FEATURE_ROWS, feature_names
    from hedge_pipeline.resources import plots

    frame = deployment.store.read(FEATURE_ROWS, [label], columns=feature_names())
    unknown = (100 * frame.isna().mean()).sort_values(ascending=False)
    lines = [f"| {name} | {share:.1f} |" for name, share in unknown.items() if share > 0]
    table = "\n".join(["| feature | NULL, % |", "|---|---|", *lines[:8]])
    moves = insight.feature_moves(deployment, label, deployment.symbols[:3])
    shown: dict[str, Any] = {
        "drift": _drift_table(moves) if moves else "too few sessions to tell",
        "null_share_pct": round(float(unknown.mean()), 3),
        "most_unknown": dg.MetadataValue.md(table),
        "dagster/row_count": rows,
        "bytes": deployment.store.size(FEATURE_ROWS, label),
        "schema_hash": FEATURE_ROWS.schema_hash,
    }
    for symbol, own in moves.items():
        shown[f"{symbol}_drift_se"] = round(max(map(abs, own.values())), 2)
    if moves and draw:
        shown["drift_by_feature"] = _picture(plots.feature_moves(moves, label))
    return shown


def _drift_table(
    moves: Mapping[str, Mapping[str, float]], most: int = 9
) -> dg.MarkdownMetadataValue:
    """What moved most of every symbol, and whether that is an alarm."""
    from hedge_pipeline.learning.drift import FEATURE_LIMIT, RECENT

    lines = [f"| moved most in {RECENT} sessions | standard errors |", "|---|---|"]
    for symbol, own in moves.items():
        worst = sorted(own.items(), key=lambda one: -abs(one[1]))[: most // len(moves)]
        for name, size in worst:
            alarm = ", drift" if abs(size) > FEATURE_LIMIT else ""
            lines.append(f"| {symbol} {name} | {size:+.1f}{alarm} |")
    return dg.MetadataValue.md("\n".join(lines))


def predictions(
    deployment: Deployment, label: str, new: int, *, draw: bool = True
) -> dict[str, Any]:
    """Predictions, abstentions and versions of a session, with the probability over time."""
    from hedge_pipeline.learning.novelty import UNLIKE
    from hedge_pipeline.market.tables import PREDICTION_LOG
    from hedge_pipeline.resources import plots

    log = deployment.store.read(PREDICTION_LOG, [label])
    served = log[log["role"] == "served"]
    abstained = served["prediction"].isna()
    shown: dict[str, Any] = {
        "dagster/row_count": len(log),
        "new_rows": new,
        "bytes": deployment.store.size(PREDICTION_LOG, label),
        "predictions": int((~abstained).sum()),
        "abstentions": int(abstained.sum()),
        "signals": int(served["signal_fired"].sum()),
        "versions": _versions(served),
        "mode": ", ".join(sorted(set(served["mode"]))),
    }
    strange = served["reason"].str.startswith(UNLIKE)
    if len(served):
        waited = (served["decided_at"] - served["bar_ts"]).dt.total_seconds()
        shown["lag_seconds"] = round(float(waited.median()) - deployment.calendar.bar_seconds, 1)
    shown["unlike_training_data_pct"] = round(100 * float(strange.mean()), 2) if len(served) else 0
    if abstained.any():
        shown["abstained_because"] = served.loc[abstained, "reason"].mode().iloc[0]
    if draw and (~abstained).any():
        wide = served.drop_duplicates(["symbol", "bar_ts"], keep="last").pivot(
            index="bar_ts", columns="symbol", values="prob_up"
        )
        lines = [(f"{name} P(up)", own) for name, own in wide.sort_index().items()]
        shown = {"glance": _glance(lines), **shown}
        shown["probability"] = _picture(plots.probabilities(served[~abstained], label))
    return shown


def _versions(served: pd.DataFrame, most: int = 12) -> str:
    """Who was served by which version, in words; of many symbols the first ones."""
    pairs = sorted(set(zip(served["symbol"], served["model_version"], strict=True)))
    said = [f"{symbol} v{version}" for symbol, version in pairs[:most]]
    return ", ".join([*said, *([f"{len(pairs) - most} more"] if len(pairs) > most else [])])


def outcomes(deployment: Deployment, label: str, new: int, *, draw: bool = True) -> dict[str, Any]:
    """Outcomes by status, and how often the served predictions were right."""
    from hedge_pipeline.learning.scoring import sums_of
    from hedge_pipeline.market.tables import OUTCOMES, PREDICTION_LOG
    from hedge_pipeline.resources import plots

    own = {"horizon_bars": [deployment.horizon]}
    known = deployment.store.read(OUTCOMES, [label], only=own)
    log = deployment.store.read(PREDICTION_LOG, [label])
    log = log[(log["role"] == "served") & log["prediction"].notna()]
    rows = log.merge(known[known["actual_direction"].notna()], on=["symbol", "bar_ts"])
    rows["hit"] = (rows["prediction"] == rows["actual_direction"]).astype(float)
    counts = known["status"].value_counts()
    shown: dict[str, Any] = {
        "dagster/row_count": len(known),
        "new_rows": new,
        "bytes": deployment.store.size(OUTCOMES, label),
        **{status: int(counts.get(status, 0)) for status in ("up", "down", "flat", "unlabelable")},
    }
    if len(rows):
        sums = sums_of(rows)
        rates = {
            "accuracy": round(sums["hits"] / len(rows), 4),
            "base_rate_accuracy": round(sums["base_hits"] / len(rows), 4),
            "log_loss": round(sums["log_loss"] / len(rows), 6),
            "base_log_loss": round(sums["base_log_loss"] / len(rows), 6),
        }
        shown = rates | ({"by_hour": _hits_by_hour(rows)} if draw else {}) | shown
        if draw:
            shown["hits"] = _picture(plots.hits_by_hour(rows, label))
    return shown


def _hits_by_hour(rows: pd.DataFrame) -> dg.MarkdownMetadataValue:
    """Predictions and hit rate of every hour, as a table."""
    by_hour = rows.groupby(rows["bar_ts"].dt.hour)["hit"].agg(["count", "mean"])
    lines = [
        f"| {hour}:00 | {count:.0f} | {mean:.3f} |" for hour, count, mean in by_hour.itertuples()
    ]
    head = ["| hour, UTC | predictions | hit rate |", "|---|---|---|"]
    return dg.MetadataValue.md("\n".join([*head, *lines]))


def candidate(deployment: Deployment, found: Candidate) -> dict[str, Any]:
    """The description of a trained version, with the importance of its features.

    It has predicted nothing yet: reliability is that of the versions before it.
    """
    from hedge_pipeline import insight
    from hedge_pipeline.resources import plots

    card = found.card
    tried = insight.tried_models(deployment, card.symbol)
    said: dict[str, Any] = {"reliability_of": "no version has met an outcome yet"}
    if tried is not None:
        said = {
            "said_and_happened": _said_and_happened(tried),
            "reliability_of": tried.in_words(),
            "reliability": _picture(plots.tried(tried, card.symbol)),
        }
    return {
        "version": card.version,
        "new": found.new,
        "guards": card.guard_failure or "passed",
        **said,
        "strongest_features": _strongest(card.gain),
        "rows": card.rows,
        "effective_rows": round(card.effective_rows, 1),
        "window": f"{card.first_session} to {card.cutoff} ({card.sessions} sessions)",
        "in_sample_skill_nats": round(card.in_sample_skill, 5),
        "margin_spread": round(card.spread, 4),
        "parameters_from": card.parameters_from,
        "importance": _picture(plots.importance(card.gain, card.symbol)),
        "bytes": len(deployment.shelf.content(card.symbol, card.version)),
        "sha256": card.sha256[:12],  # as in the name of the file
    }


def _said_and_happened(tried: TriedModels, bins: int = 5) -> dg.MarkdownMetadataValue:
    """Probability of up that models said against the share of ups, as a table."""
    from hedge_pipeline.learning.calibration import reliability

    one = reliability(tried.probability, tried.up, bins)
    lines = [
        f"| {said:.3f} | {share:.3f} | {count} |"
        for said, share, count in zip(one.predicted, one.observed, one.count, strict=True)
    ]
    head = ["| P(up) that was said | share of ups | outcomes |", "|---|---|---|"]
    return dg.MetadataValue.md("\n".join([*head, *lines]))


def _strongest(gain: dict[str, float], most: int = 8) -> dg.MarkdownMetadataValue:
    """The features that gained most, as a table."""
    total = sum(gain.values()) or 1.0
    best = sorted(gain.items(), key=lambda item: -item[1])[:most]
    lines = [f"| {name} | {100 * value / total:.1f} |" for name, value in best]
    return dg.MetadataValue.md("\n".join(["| feature | share of gain, % |", "|---|---|", *lines]))


def champion(deployment: Deployment, symbol: str, folds: int, verdicts: int) -> dict[str, Any]:
    """The state of the evidence and the newest verdict in words, with the evidence over time."""
    from hedge_pipeline.learning import gate
    from hedge_pipeline.resources import plots

    ledger = deployment.ledger(symbol)
    state, rule = ledger.state, deployment.rule
    given = ledger.entries[ledger.entries["kind"] == "verdict"]
    last = given.iloc[-1] if len(given) else None
    verdict = (
        "no candidate yet"
        if last is None
        else f"version {last['model_version']}, {last['event']}: {last['reason']}"
    )
    folds_given = ledger.entries[ledger.entries["kind"] == "fold"].sort_values("session")
    course = folds_given["evidence"] / math.log(10)
    needed = math.log10(rule.needed_evidence)
    lines = [("evidence (log10)", course), ("proven above", [needed] * len(course))]
    return {
        "verdict": verdict,
        **({"glance": _glance(lines)} if len(course) else {}),
        "skill": state.status.value,
        "evidence": round(math.exp(min(state.log_evidence, 27.0)), 3),
        "log_evidence": round(state.log_evidence, 4),
        "evidence_in_words": gate.evidence_in_words(state, rule),
        "trust": round(gate.trust(state, rule), 4),
        "base_rate": round(state.base_rate(rule), 5),
        "champion": f"version {ledger.champion}" if ledger.champion else "none",
        "sessions_folded": folds,
        "verdicts_given": verdicts,
        "timeline": _picture(plots.evidence(ledger.entries, rule.needed_evidence, symbol)),
    }


def performance(deployment: Deployment, symbol: str, sessions: int) -> dict[str, Any]:
    """Accuracy and log-loss of the served stream against the base rate, with an interval."""
    from hedge_pipeline import insight, stages
    from hedge_pipeline.learning import scoring
    from hedge_pipeline.resources import plots

    sums = deployment.scores(symbol)
    served = sums[sums["role"] == "served"]
    moved = {
        "feature_drift": stages.feature_drift(deployment, symbol),
        "performance_drift": stages.performance_drift(deployment, symbol),
    }
    words: dict[str, Any] = {
        "does_retraining_help": insight.retraining_value(deployment, symbol).in_words(),
        **{name: one.in_words() for name, one in moved.items()},
        **{
            f"{name}_se": round(one.statistic, 2)  # standard errors
            for name, one in moved.items()
            if not math.isnan(one.statistic)
        },
        "sessions": served["session"].nunique(),
        "sessions_scored": sessions,
    }
    score = scoring.score(served, deployment.horizon)
    if score.n == 0:
        return {"note": "no prediction that counts as evidence has matured yet"} | words
    numbers = {
        "accuracy": round(score.value, 4),
        "accuracy_low": round(score.lo, 4),
        "accuracy_high": round(score.hi, 4),
        "base_rate_accuracy": round(score.base_rate, 4),
        "log_loss": round(score.log_loss, 6),
        "base_log_loss": round(score.base_log_loss, 6),
        "skill_1e4_nats": round(score.skill, 3),
        "labels": score.n,
    }
    return {
        "in_words": scored_in_words(numbers),
        "glance": _glance(_accuracies(served)),
        **numbers,
        **words,
        "versions": _version_table(deployment, served),
        "by_session": _picture(plots.scores(served, symbol, deployment.horizon)),
        "log_loss_by_session": _picture(plots.gains(served, symbol)),
        "reliability": _picture(plots.reliability(deployment, symbol)),
    }


def _accuracies(served: pd.DataFrame, sessions: int = 10) -> list[tuple[str, Any]]:
    """Accuracy and the base rate's over the last ten sessions, by session."""
    sums = served.groupby("session", sort=True)[["hits", "base_hits", "labels"]].sum()
    moving = sums[sums["labels"] > 0].rolling(sessions, min_periods=1).sum()
    return [
        (f"accuracy of {sessions} sessions", moving["hits"] / moving["labels"]),
        ("base rate", moving["base_hits"] / moving["labels"]),
    ]


def _version_table(
    deployment: Deployment, served: pd.DataFrame, most: int = 8
) -> dg.MarkdownMetadataValue:
    """Accuracy of the newest versions that have outcomes, with intervals, newest first."""
    from hedge_pipeline.learning import scoring

    head = ["| version | outcomes | accuracy | 95 % | base rate |", "|---|---|---|---|---|"]
    lines = []
    known = served[served["labels"] > 0]
    for version in sorted(known["model_version"].unique(), reverse=True)[:most]:
        own = known[known["model_version"] == version]
        one = scoring.score(own, deployment.horizon, draws=500)
        lines.append(
            f"| {version} | {one.n} | {one.value:.3f} | {one.lo:.3f} to {one.hi:.3f} | "
            f"{one.base_rate:.3f} |"
        )
    return dg.MetadataValue.md("\n".join([*head, *lines]))


def trained_in_words(found: Candidate) -> str:
    """One line on a training."""
    card = found.card
    said = f"{card.symbol}: version {card.version}"
    if not found.new:
        return f"{said} has learned from these {card.rows} rows already; nothing new is saved"
    return (
        f"{said} saved: {card.rows} rows of {card.sessions} sessions to {card.cutoff}, "
        f"guards {card.guard_failure or 'passed'}"
    )


def searched(found: Searched) -> dict[str, Any]:
    """The verdict of a search for hyper-parameters, and every trial."""
    record = found.record
    names = list(record.parameters)
    head = ["trial", "gain, 1e-4 nats per label", *names]
    rows = [
        [str(number), f"{one['gain']:+.1f}", *(f"{one['parameters'][x]:.4g}" for x in names)]
        for number, one in enumerate(record.tried)
    ]
    lines = [head, ["---"] * len(head), *rows]
    return {
        "search": record.number,
        "new": found.new,
        "verdict": record.reason,
        "adopted": record.adopted,
        "window": f"{record.first_session} to {record.cutoff} ({record.sessions} sessions)",
        "parameters": dg.MetadataValue.json(record.parameters),
        "scores": dg.MetadataValue.json(record.scores),
        "trials": dg.MetadataValue.md("\n".join(f"| {' | '.join(line)} |" for line in lines)),
    }


def scored_in_words(shown: dict[str, Any]) -> str:
    """One line on what `performance` shows."""
    if "accuracy" not in shown:
        return str(shown["note"])
    return (
        f"accuracy {shown['accuracy']:.3f} [{shown['accuracy_low']:.3f}, "
        f"{shown['accuracy_high']:.3f}] of {shown['labels']} outcomes, "
        f"base rate {shown['base_rate_accuracy']:.3f}"
    )


def publish(registry: MlflowRegistry, deployment: Deployment, symbol: str, run: str) -> str:
    """Publishes to MLflow; an MLflow that is down costs nothing but the view."""
    from hedge_pipeline.resources.registry import RegistryError

    try:
        added = registry.publish(deployment, symbol, source_run=run)
    except RegistryError as error:
        log.warning("%s", error)
        return str(error)
    return f"up to date, {added} version{'' if added == 1 else 's'} added"


def published(
    registry: MlflowRegistry, deployment: Deployment, symbol: str, run: str
) -> dict[str, Any]:
    """Publishes to MLflow; how it went, and links to model, versions and the newest one's run."""
    said = publish(registry, deployment, symbol, run)
    pages = {name: dg.MetadataValue.url(page) for name, page in registry.links(symbol).items()}
    return {"mlflow": said, **pages}


def _picture(figure: Any) -> dg.MarkdownMetadataValue:
    from hedge_pipeline.resources import plots

    return dg.MetadataValue.md(plots.markdown(figure))


def session(deployment: Deployment, label: str, *, draw: bool = True) -> dict[str, dict[str, Any]]:
    """What the session assets show of a stored session, by asset.

    Those of option chains are left out where no chain was asked for.
    """
    from hedge_pipeline.market.tables import (
        CHAIN_FETCHES,
        FEATURE_ROWS,
        GAPS,
        HEDGE_LEVELS,
        RAW_QUOTES,
    )
    from hedge_pipeline.stages import CollectedSession
    from hedge_pipeline.stages.chains import CollectedChains

    store = deployment.store
    bars = len(store.read(RAW_QUOTES, [label], columns=("symbol",)))
    gaps = len(store.read(GAPS, [label], columns=("symbol",)))
    rows = len(store.read(FEATURE_ROWS, [label], columns=("symbol",)))
    hedges = {}
    fetches = store.read(CHAIN_FETCHES, [label], columns=("snapshots",))
    if len(fetches):
        known = CollectedChains(int(fetches["snapshots"].sum()), 0, {})
        hedges["option_chains"] = chains(deployment, label, known)
    if len(store.read(HEDGE_LEVELS, [label], columns=("symbol",))):
        hedges["hedge_levels"] = levels(deployment, label, draw=draw)
    return {
        "raw_quotes": quotes(deployment, label, CollectedSession(bars, 0, gaps, {}), draw=draw),
        **hedges,
        "features": features(deployment, label, rows, draw=draw),
        "prediction_log": predictions(deployment, label, 0, draw=draw),
        "outcomes": outcomes(deployment, label, 0, draw=draw),
    }


def models(deployment: Deployment, symbol: str) -> dict[str, dict[str, Any]]:
    """What the model assets show of a symbol, by asset."""
    from hedge_pipeline.stages import Candidate, signal_report

    newest = deployment.shelf.newest(symbol)
    shown = {}
    if newest is not None:
        shown["trained_model"] = candidate(deployment, Candidate(newest, new=False))
    return {
        **shown,
        "champion_model": champion(deployment, symbol, 0, 0),
        "model_performance": performance(deployment, symbol, 0),
        "signal_report": signals(symbol, signal_report(deployment, symbol)),
    }


def live(
    deployment: Deployment, label: str, polls: Sequence[Poll], *, inputs: bool = True
) -> dict[str, dict[str, Any]]:
    """What a few minutes of polling added to the running session, by asset.

    Args:
        deployment: what is polled.
        label: the running session.
        polls: those since the last report.
        inputs: with features, option chains and hedge levels.
    """
    from hedge_pipeline.market.tables import RAW_QUOTES

    columns = ("symbol", "bar_ts", "available_at")
    bars = deployment.store.read(RAW_QUOTES, [label], columns=columns).sort_values("bar_ts")
    lags = _lags(deployment, bars)
    failures = sum(len(poll.failures) for poll in polls)
    added = {name: sum(getattr(poll, name) for poll in polls) for name in _ADDED}
    return {
        **(_live_inputs(deployment, label) if inputs else {}),
        "raw_quotes": {
            "dagster/row_count": len(bars),
            "new_rows": added["bars"],
            "coverage_pct": _coverage_so_far(deployment, label, bars),
            "lag_seconds": round(float(lags.median()), 1),
            **({"failed_answers": failures} if failures else {}),
            "last_bar": bars["bar_ts"].iloc[-1].isoformat(),
        },
        "prediction_log": {
            **_only(_FOLLOWED, predictions(deployment, label, added["predictions"], draw=False)),
            "seconds_to_store": round(max(poll.seconds for poll in polls), 3),
        },
        "outcomes": _only(_FOLLOWED, outcomes(deployment, label, added["outcomes"], draw=False)),
    }


def _coverage_so_far(deployment: Deployment, label: str, bars: pd.DataFrame) -> float:
    """Of the minutes up to the newest bar; whether one is a gap is known after the close."""
    own = bars[bars["symbol"].isin(deployment.symbols)]
    session = deployment.calendar.session(label)
    newest = own["bar_ts"].max() + dt.timedelta(seconds=session.bar_seconds)
    expected = session.bars_by(newest) * len(deployment.symbols)
    return _coverage(len(own), expected - len(own))


_ADDED = ("bars", "predictions", "outcomes")
# every entry takes 130 bytes, twice, at every report
_FOLLOWED = (
    *("dagster/row_count", "new_rows", "lag_seconds"),
    *("predictions", "abstentions", "signals"),
    *("accuracy", "base_rate_accuracy", "log_loss"),
)


def _only(names: Sequence[str], shown: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in shown.items() if name in names}


def _live_inputs(deployment: Deployment, label: str) -> dict[str, dict[str, Any]]:
    """Features, chains and levels of the running session so far."""
    from hedge_pipeline.market.tables import CHAIN_FETCHES, FEATURE_ROWS, HEDGE_LEVELS

    features = deployment.store.read(FEATURE_ROWS, [label], columns=("symbol",))
    shown: dict[str, dict[str, Any]] = {"features": {"dagster/row_count": len(features)}}
    fetches = deployment.store.read(CHAIN_FETCHES, [label])
    if len(fetches):
        shown["option_chains"] = {
            "dagster/row_count": int(fetches["contracts"].sum()),
            "snapshots": int(fetches["snapshots"].sum()),
            "requests": _requests(fetches),
        }
    rows = deployment.store.read(HEDGE_LEVELS, [label], columns=("symbol", "usable"))
    if len(rows):
        shown["hedge_levels"] = {
            "dagster/row_count": len(rows),
            "usable_snapshots": int(rows["usable"].sum()),
        }
    return shown
