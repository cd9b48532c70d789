"""The report of a deployment: one page that answers "does it work?", and its numbers.

The page needs nothing but itself: pictures and styles are in it, and it asks no server for
anything. Reads the store, writes nothing, decides nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from importlib import resources
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from hedge_pipeline import stages, status
from hedge_pipeline.learning import scoring
from hedge_pipeline.market.tables import GAPS, RAW_QUOTES
from hedge_pipeline.stages import Deployment, StageError

if TYPE_CHECKING:
    import pandas as pd

RECENT_SESSIONS = 250
SHOWN_VERSIONS = 20
_DPI = 150  # screens have more pixels than the two UIs ask for


def numbers(deployment: Deployment) -> dict[str, Any]:
    """What the page says, ready for JSON; None = not known yet.

    Returns:
        data, mode, source, created (ISO, UTC), first_session, last_session, sessions, and by symbol
        in symbols: verdict (words), skill, evidence (words), trust, predictions, abstentions,
        outcomes, retrains, promotions, champion; last_verdict, accuracy, log_loss and
        base_log_loss as in `hedge status`; skill_1e4_nats with lo and hi, retraining,
        feature_drift and performance_drift (words), signals (see `stages.signal_report`), win_rate,
        profit_factor and false_positive_rate with lo and hi, coverage (of the newest 250 sessions)
        and versions (newest first, at most 20 of them).

    Raises:
        StageError: no session is stored.
    """
    sessions = deployment.store.sessions(RAW_QUOTES)
    if not sessions:
        raise StageError(
            f"{deployment.store.url} holds no session: run `hedge bootstrap`, `hedge demo` or "
            "`hedge replay` first, or set HEDGE_DATA_URL"
        )
    coverage = _coverage(deployment, sessions[-RECENT_SESSIONS:])
    return {
        "data": deployment.store.url,
        "mode": "replay" if deployment.replay else "live",
        "source": deployment.source.name,
        "created": deployment.clock().isoformat(timespec="seconds"),
        "first_session": sessions[0],
        "last_session": sessions[-1],
        "sessions": len(sessions),
        "symbols": {
            symbol: _symbol(deployment, symbol) | {"coverage": coverage[symbol]}
            for symbol in deployment.symbols
        },
    }


def headline(found: dict[str, Any]) -> dict[str, Any]:
    """The few numbers of every symbol that a person would ask for first."""
    names = ["verdict", "skill", "predictions", "outcomes", "retrains", "accuracy"]
    names += ["skill_1e4_nats", "win_rate", "profit_factor", "false_positive_rate"]
    return {
        symbol: {name: part[name] for name in names} for symbol, part in found["symbols"].items()
    }


def page(deployment: Deployment, found: dict[str, Any]) -> str:
    """The page in HTML.

    Args:
        deployment: whose tables, for the pictures.
        found: its `numbers`.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "share": _share, "interval": _interval}
    text = resources.files("hedge_pipeline").joinpath("report.html.jinja").read_text("utf-8")
    pictures = {symbol: _pictures(deployment, symbol, found) for symbol in deployment.symbols}
    zone = ZoneInfo(deployment.calendar.timezone)
    now = deployment.clock()
    return environment.from_string(text).render(
        found=found,
        pictures=pictures,
        made=f"{now:%Y-%m-%d %H:%M} UTC ({now.astimezone(zone):%H:%M} at the exchange)",
        recent=RECENT_SESSIONS,
        minutes=deployment.horizon * deployment.calendar.bar_seconds // 60,
        needed=deployment.rule.needed_evidence,
    )


# -- numbers ---------------------------------------------------------------------------------------


def _symbol(deployment: Deployment, symbol: str) -> dict[str, Any]:
    known = status.symbol_status(deployment, symbol)
    ledger = deployment.ledger(symbol)
    sums = deployment.scores(symbol)
    served = sums[sums["role"] == "served"]
    gain = scoring.skill(served)
    signals = stages.signal_report(deployment, symbol)
    overall = signals["overall"]
    names = ["skill", "evidence", "trust", "predictions", "abstentions", "accuracy", "log_loss"]
    names += ["base_log_loss", "retraining", "feature_drift", "performance_drift", "last_verdict"]
    return {
        "verdict": _verdict(symbol, known, overall),
        **{name: known[name] for name in names},
        "outcomes": known["matured_outcomes"],
        "retrains": len(deployment.shelf.versions(symbol)),
        "promotions": int((ledger.entries["event"] == "promote").sum()),
        "champion": ledger.champion,
        "skill_1e4_nats": _with_ends(gain.gain, gain.lo, gain.hi),
        "signals": signals,
        "win_rate": _with_ends(overall["win_rate"], overall["lo"], overall["hi"]),
        "profit_factor": _with_ends(
            overall["profit_factor"], overall["profit_factor_lo"], overall["profit_factor_hi"]
        ),
        "false_positive_rate": _with_ends(
            *(None if x is None else 1 - x for x in (overall[k] for k in ("win_rate", "hi", "lo")))
        ),
        "versions": _versions(deployment, symbol, served),
    }


def _verdict(symbol: str, known: dict[str, Any], signals: dict[str, Any]) -> str:
    """Whether predictions and signals are worth anything, as far as it is known."""
    accuracy = known["accuracy"]
    if accuracy["value"] is None:
        return (
            f"Nothing is known about predictions of {symbol} yet: none that counts has met its "
            "outcome."
        )
    said = {
        "proven": f"Predictions of {symbol} are proven to be better than the base rate",
        "lost": f"Predictions of {symbol} were better than the base rate once, and no longer are",
        "unproven": f"Predictions of {symbol} are not shown to be better than the base rate",
    }
    return (
        f"{said[known['skill']]}: {known['evidence']}. Over all sessions they were right "
        f"{100 * accuracy['value']:.1f} % of the time on {accuracy['n']:,} outcomes; the base rate "
        f"alone was {100 * accuracy['base_rate']:.1f} %. {_signals_verdict(signals)}"
    )


def _signals_verdict(signals: dict[str, Any]) -> str:
    if not signals["scored"]:
        return "No signal has been scored yet."
    low, high = signals["profit_factor_lo"], signals["profit_factor_hi"]
    if low is None or (low <= 1 and (high is None or high >= 1)):
        verb = "are" if signals["scored"] > 1 else "is"
        earned = f"{verb} not shown to win or lose money"
    else:
        earned = "won money" if low > 1 else "lost money"
    count = f"{signals['scored']:,} signals" if signals["scored"] > 1 else "1 signal"
    return f"Traded as they ask, {count} {earned} after costs."


def _versions(deployment: Deployment, symbol: str, served: pd.DataFrame) -> list[dict[str, Any]]:
    entries = deployment.ledger(symbol).entries
    verdicts = entries[entries["kind"] == "verdict"].drop_duplicates("model_version", keep="last")
    given = {int(row["model_version"]): row for row in verdicts.to_dict("records")}
    found = []
    for version in sorted(deployment.shelf.versions(symbol), reverse=True)[:SHOWN_VERSIONS]:
        own = served[served["model_version"] == version]
        score = scoring.score(own, deployment.horizon, draws=500)
        gain = scoring.skill(own, draws=500)
        verdict = given.get(version)
        found.append(
            {
                "version": version,
                "cutoff": deployment.shelf.card(symbol, version).cutoff,
                "verdict": str(verdict["event"]) if verdict else None,
                "sessions": int(own.loc[own["labels"] > 0, "session"].nunique()),
                "accuracy": score.accuracy(),
                "skill_1e4_nats": _with_ends(gain.gain, gain.lo, gain.hi),
            }
        )
    return found


def _coverage(deployment: Deployment, labels: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Bars, minutes that have ended and gaps by cause of every symbol in the sessions."""
    bars: Counter[str] = Counter()
    causes: dict[str, Counter[str]] = {symbol: Counter() for symbol in deployment.symbols}
    worst: dict[str, Counter[str]] = {symbol: Counter() for symbol in deployment.symbols}
    for label in labels:
        stored = deployment.store.read(RAW_QUOTES, [label], columns=("symbol",))
        bars.update(stored["symbol"].tolist())
        gaps = deployment.store.read(GAPS, [label], columns=("symbol", "cause"))
        for symbol, own in gaps.groupby("symbol"):
            if symbol in causes:
                causes[str(symbol)].update(own["cause"].tolist())
                worst[str(symbol)][label] = len(own)
    sessions = [deployment.calendar.session(label) for label in labels]
    expected = sum(session.bars_by(deployment.asked_at(session)) for session in sessions)
    return {
        symbol: {
            "sessions": len(labels),
            "expected": expected,
            "bars": bars[symbol],
            "share": bars[symbol] / expected if expected else None,
            "gaps": sum(causes[symbol].values()),
            "causes": dict(sorted(causes[symbol].items())),
            "worst": dict(worst[symbol].most_common(3)),
        }
        for symbol in deployment.symbols
    }


def _with_ends(value: float | None, lo: float | None, hi: float | None) -> dict[str, float | None]:
    ends = {"value": value, "lo": lo, "hi": hi}
    return {k: None if x is None or math.isnan(x) else x for k, x in ends.items()}


# -- the page --------------------------------------------------------------------------------------


def _pictures(deployment: Deployment, symbol: str, found: dict[str, Any]) -> dict[str, str]:
    """Pictures by name, as addresses that need no request; only those there is something for."""
    from hedge_pipeline.resources import plots

    part = found["symbols"][symbol]
    entries = deployment.ledger(symbol).entries
    figures = {}
    if (entries["kind"] == "fold").any():
        figures["evidence"] = plots.evidence(entries, deployment.rule.needed_evidence, symbol)
    if part["accuracy"]["value"] is not None:
        sums = deployment.scores(symbol)
        figures["accuracy"] = plots.scores(sums, symbol, deployment.horizon)
        figures["gain"] = plots.gains(sums, symbol)
        figures["reliability"] = plots.reliability(deployment, symbol)
    signals = part["signals"]
    if signals["predictions_scored"]:
        figures["confidence"] = plots.confidence(signals["reliability"], symbol)
    if signals["overall"]["scored"]:
        figures["false_positives"] = plots.false_positives(signals["by_session"], symbol)
    return {name: plots.data_uri(figure, dpi=_DPI) for name, figure in figures.items()}


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _share(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def _interval(found: dict[str, Any], factor: float = 1, digits: int = 1) -> str:
    """The 95 % interval in brackets; an end that is not known is open."""
    lo, hi = found["lo"], found["hi"]
    if lo is None and hi is None:
        return ""
    ends = ("?" if x is None else f"{factor * x:.{digits}f}" for x in (lo, hi))
    return f"[{', '.join(ends)}]"
