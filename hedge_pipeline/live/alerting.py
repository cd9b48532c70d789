"""Alerts for signals: what they say, and that each signal has at most one, even across restarts.

A signal is alerted after its row is durable. Whoever first writes its row in `alerts` posts it;
being killed in between loses the alert and never doubles it. Delivery is somebody else's work.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hedge_pipeline.levels.signals import SIDES, Side
from hedge_pipeline.levels.trades import STOP, TARGET
from hedge_pipeline.market.tables import ALERTS, PREDICTION_LOG

if TYPE_CHECKING:
    from hedge_pipeline.stages import Deployment

Post = Callable[[str, str], object]

FRESH: Final = dt.timedelta(minutes=5)
SKILL_WORDS: Final = {
    "proven": "skill is proven",
    "unproven": "skill is NOT proven",
    "lost": "skill was proven and is LOST",
}


@dataclass(frozen=True)
class Alert:
    """What an alert says of a signal.

    Attributes:
        symbol: ticker symbol.
        bar_ts: start of the signal's bar, aware.
        side: long or short.
        price: close of the bar, quote currency.
        confidence: probability of the side, 0..1.
        strength: strength score, 0..100.
        level_source: HP, MHP or HG.
        level_price: the level, quote currency.
        model_version: which model.
        skill: unproven, proven or lost.
    """

    symbol: str
    bar_ts: dt.datetime
    side: Side
    price: float
    confidence: float
    strength: float
    level_source: str
    level_price: float
    model_version: int
    skill: str


def alert_text(alert: Alert, *, target: float = TARGET, stop: float = STOP) -> tuple[str, str]:
    """Title and text of an alert.

    Args:
        alert: the signal.
        target: gain at which the trade is meant to end, a fraction of the price.
        stop: loss at which it is.
    """
    sign = 1 if alert.side == "long" else -1
    level = "support" if alert.side == "long" else "resistance"
    stop_at, target_at = alert.price * (1 - sign * stop), alert.price * (1 + sign * target)
    lines = (
        f"confidence {alert.confidence:.1%}, strength {alert.strength:.1f}",
        f"level {_price(alert.level_price)}, {alert.level_source} {level}",
        f"stop {_price(stop_at)} ({-sign * stop * 100:+g} %), "
        f"target {_price(target_at)} ({sign * target * 100:+g} %)",
        f"model {alert.model_version}: {SKILL_WORDS[alert.skill]}",
        f"bar of {alert.bar_ts:%Y-%m-%d %H:%M %Z}",
    )
    return f"{alert.symbol} {alert.side} at {_price(alert.price)}", "\n".join(lines)


def _price(value: float) -> str:
    return f"{value:.2f}" if value >= 1 else f"{value:.4g}"


def alert_signals(deployment: Deployment, label: str, post: Post, *, unproven: bool) -> int:
    """Posts the session's signals that have no alert yet; returns how many.

    Only live signals of the last minutes: one that was caught up, or that a restart finds, is
    history. While skill is not proven nothing is posted unless it is asked for.

    Args:
        deployment: whose log.
        label: the session.
        post: takes text and title and returns at once.
        unproven: also while skill is not proven.
    """
    log = deployment.store.read(PREDICTION_LOG, [label])
    fired = log[(log["role"] == "served") & log["signal_fired"] & (log["mode"] == "live")]
    fired = fired[fired["decided_at"] >= deployment.clock() - FRESH]
    if not unproven:
        fired = fired[fired["skill"] == "proven"]
    posted = 0
    for row in fired.sort_values("bar_ts").to_dict("records"):
        title, text = alert_text(_alert(row))
        if _claim(deployment, label, row, title):
            post(text, title)
            posted += 1
    return posted


def _claim(deployment: Deployment, label: str, row: dict[Any, Any], title: str) -> bool:
    """Whether nobody has posted this signal's alert; nobody else will from now on."""
    entry = {
        "symbol": row["symbol"],
        "bar_ts": row["bar_ts"],
        "posted_at": deployment.clock(),
        "title": title,
    }
    return deployment.store.append(ALERTS, label, ALERTS.of_records([entry])) == 1


def _alert(row: dict[Any, Any]) -> Alert:
    return Alert(
        symbol=row["symbol"],
        bar_ts=row["bar_ts"].to_pydatetime(),
        side=SIDES[row["level_type"]][0],
        price=float(row["price"]),
        confidence=float(row["confidence"]),
        strength=float(row["strength_score"]),
        level_source=row["level_source"],
        level_price=float(row["level_price"]),
        model_version=int(row["model_version"]),
        skill=row["skill"],
    )
