"""What happens now, by symbol: what `hedge watch` shows. Reads the store and writes nothing."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hedge_pipeline.learning.scoring import sums_of
from hedge_pipeline.live.supervision import Heartbeat
from hedge_pipeline.market.tables import OUTCOMES, PREDICTION_LOG, RAW_QUOTES
from hedge_pipeline.stages import Deployment
from hedge_pipeline.stages.features import levels_in_force

if TYPE_CHECKING:
    import pandas as pd

LEVELS = {
    "hp_support": "HP",
    "hp_resistance": "HP",
    "mhp_support": "MHP",
    "mhp_resistance": "MHP",
    "hg_below": "HG",
    "hg_above": "HG",
    "gamma_flip": "flip",
}


def look(deployment: Deployment) -> dict[str, Any]:
    """The newest stored session as it stands, ready for JSON; None = unknown or none yet.

    Returns:
        now (ISO, UTC), session (newest stored), open (whether it is running), last_poll (ISO), and
        symbols. Each symbol has: price (close of the newest bar), change_pct (since the first bar
        of the session), bar (ISO start of the newest bar), lag_seconds (from its end until it was
        stored), below and above (nearest hedge level in force at that bar: price, kind,
        distance_pct), and of the newest served row probability (of up), prediction (up or down),
        skill, trust, model_version, signal, reason; of the session signals, matured (up or down
        outcomes of its predictions), hit_rate and base_hit_rate of these.
    """
    now = deployment.clock()
    labels = deployment.store.sessions(RAW_QUOTES, last=1)
    running = deployment.calendar.session_at(now)
    beat = Heartbeat.read(deployment.store)
    label = labels[-1] if labels else None
    return {
        "now": now.isoformat(timespec="seconds"),
        "session": label,
        "open": running is not None and running.label == label and not deployment.replay,
        "last_poll": beat.at if beat and not deployment.replay else None,
        "symbols": dict(_symbols(deployment, label)),
    }


def _symbols(deployment: Deployment, label: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    labels = [label] if label else []
    all_bars = deployment.store.read(RAW_QUOTES, labels).sort_values("bar_ts")
    said = deployment.store.read(PREDICTION_LOG, labels)
    known = deployment.store.read(OUTCOMES, labels, only={"horizon_bars": [deployment.horizon]})
    levels = _levels(deployment, label, all_bars) if label else {}
    for symbol in deployment.symbols:
        bars, log, outcomes = (
            frame[frame["symbol"] == symbol] for frame in (all_bars, said, known)
        )
        yield (
            symbol,
            {
                **_price(bars, deployment.calendar.bar_seconds),
                **_nearest(
                    levels.get(symbol), float(bars["close"].iloc[-1]) if len(bars) else None
                ),
                **_said(log),
                **_matured(log, outcomes),
            },
        )


def _price(bars: pd.DataFrame, bar_seconds: int) -> dict[str, Any]:
    if bars.empty:
        return dict.fromkeys(("price", "change_pct", "bar", "lag_seconds"))
    newest = bars.iloc[-1]
    end = newest["bar_ts"] + dt.timedelta(seconds=bar_seconds)
    return {
        "price": float(newest["close"]),
        "change_pct": 100 * (float(newest["close"]) / float(bars["open"].iloc[0]) - 1),
        "bar": newest["bar_ts"].isoformat(),
        "lag_seconds": round((newest["available_at"] - end).total_seconds(), 1),
    }


def _levels(deployment: Deployment, label: str, bars: pd.DataFrame) -> dict[str, dict[Any, Any]]:
    """The levels in force at the newest bar of every symbol that has one.

    Args:
        deployment: where the levels are.
        label: the session.
        bars: of the session, in order of time.
    """
    newest = bars.drop_duplicates("symbol", keep="last")
    found = levels_in_force(deployment, label, newest).to_dict("records")
    return dict(zip(newest["symbol"], found, strict=True))


def _nearest(levels: dict[Any, Any] | None, price: float | None) -> dict[str, Any]:
    """The nearest of the levels on both sides of the price."""
    found: dict[str, Any] = {"below": None, "above": None}
    if levels is None or price is None:
        return found
    known = [(float(levels[name]), kind) for name, kind in LEVELS.items()]
    for side, ones in (
        ("below", [one for one in known if one[0] <= price]),
        ("above", [one for one in known if one[0] > price]),
    ):
        if ones:  # NaN is on neither side
            level, kind = min(ones, key=lambda one: abs(one[0] - price))
            away = 100 * (level / price - 1)
            found[side] = {"price": level, "kind": kind, "distance_pct": away}
    return found


def _said(log: pd.DataFrame) -> dict[str, Any]:
    names = ("probability", "prediction", "skill", "trust", "model_version", "signal", "reason")
    served = log[log["role"] == "served"].sort_values(["bar_ts", "decided_at"])
    if served.empty:
        return {**dict.fromkeys(names), "signals": 0}
    newest = served.iloc[-1]
    abstained = bool(served["prediction"].isna().iloc[-1])
    return {
        "probability": None if abstained else float(newest["prob_up"]),
        "prediction": None if abstained else ("down", "up")[int(newest["prediction"])],
        "skill": str(newest["skill"]),
        "trust": float(newest["trust"]),
        "model_version": int(newest["model_version"]) or None,
        "signal": bool(newest["signal_fired"]),
        "reason": str(newest["reason"]),
        "signals": int(served["signal_fired"].sum()),
    }


def _matured(log: pd.DataFrame, outcomes: pd.DataFrame) -> dict[str, Any]:
    made = log[(log["role"] == "served") & log["prediction"].notna()]
    known = outcomes.loc[outcomes["actual_direction"].notna(), ["bar_ts", "actual_direction"]]
    sums = sums_of(made.merge(known, on="bar_ts"))
    matured = int(sums["labels"])
    return {
        "matured": matured,
        "hit_rate": sums["hits"] / matured if matured else None,
        "base_hit_rate": sums["base_hits"] / matured if matured else None,
    }
