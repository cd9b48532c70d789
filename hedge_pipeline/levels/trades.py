"""Signals scored as the trades they ask for, and honest reports about many of them.

A trade is scored from observed bars of one session only. What cannot be known from them is
unscorable with a reason, and where bars leave the order of events open the worse one counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from hedge_pipeline.levels.signals import SIDES
from hedge_pipeline.levels.strength import Floats, Texts, strength_band
from hedge_pipeline.market.calendar import Session, utc_times
from hedge_pipeline.resampling import DRAWS, ratio_interval

if TYPE_CHECKING:
    import pandas as pd

TARGET: Final = 0.015
STOP: Final = 0.01

TRADE_COLUMNS: Final = (
    "symbol",
    "session",
    "bar_ts",
    "side",
    "level_source",
    "strength_band",
    "confidence",
    "entry_price",
    "exit_price",
    "exit_reason",
    "reason",
    "return_pct",
    "win",
)
UNSCORABLE: Final = ("crosses_close", "no_next_bar", "gap")

CONFIDENCE_EDGES: Final = (0.0, 0.5, 0.55, 0.6, 0.65, 0.7, 1.0)
RELIABILITY_EDGES: Final = (0.0, 0.4, 0.45, 0.475, 0.5, 0.525, 0.55, 0.575, 0.6, 0.65, 0.7, 1.0)

# binary fractions put a price exactly at a bound on either side of it; a fraction of the price
_ROUNDING = 1e-9


def score_trades(
    signals: pd.DataFrame,
    bars: pd.DataFrame,
    session: Session,
    *,
    horizon: int,
    cost_bps: float,
    target: float = TARGET,
    stop: float = STOP,
) -> pd.DataFrame:
    """One trade per signal: in at the next bar's open, out at target, stop, or the horizon.

    A support is bought, a resistance sold short. Within bar t+1 to t+H the stop is asked before the
    target: if one bar has both, the stop counts. A bar that opens beyond the stop fills there, one
    that opens beyond the target fills at the target. Otherwise the trade ends at the close of bar
    t+H. A trade is unscorable if t+H lies behind the close (`crosses_close`), if bar t+1 is missing
    (`no_next_bar`), or if a bar on the way to its exit is (`gap`): what the price did then is
    unknown.

    Args:
        signals: rows of `prediction_log` of the session that are signals, any number of symbols.
        bars: rows of `raw_quotes` of the session.
        session: the session, over.
        horizon: H, bars.
        cost_bps: of every side of a trade, basis points of what is bought or sold.
        target: gain that is taken, as a fraction of the entry price.
        stop: loss that is taken.

    Returns:
        `TRADE_COLUMNS`, in the order of the signals. return_pct is percent of the entry price after
        costs; win means it is above 0. Prices, return_pct and win are NULL if unscorable, reason is
        NULL otherwise.

    Raises:
        ValueError: a signal is at no bar of the session.
    """
    import pandas as pd

    side = [SIDES[level_type][0] for level_type in signals["level_type"]]
    frame = pd.DataFrame(
        {
            "symbol": signals["symbol"].to_numpy(),
            "session": session.label,
            "bar_ts": signals["bar_ts"].to_numpy(),
            "side": side,
            "level_source": signals["level_source"].to_numpy(),
            "strength_band": strength_band(signals["strength_score"].to_numpy()),
            "confidence": signals["confidence"].to_numpy(dtype=np.float64),
        }
    )
    sign = np.where(np.array(side, dtype=object) == "long", 1.0, -1.0)
    times = utc_times(signals["bar_ts"])
    place = session.index_of(times)
    if (place < 0).any():
        raise ValueError(f"a signal is at no bar of {session.label}")
    path = place[:, None] + np.arange(1, horizon + 1)
    crosses = path[:, -1] >= session.bars
    path = np.minimum(path, session.bars - 1)
    prices = np.full((4, len(signals), horizon), np.nan)
    for symbol, own in frame.groupby("symbol").indices.items():
        grid = _on_grid(bars[bars["symbol"] == symbol], session)
        prices[:, own] = grid[:, path[own]]
    opens, _, _, close = prices
    entry = opens[:, 0]

    found, exits, beyond = _exits(prices, sign, target, stop)
    reason = np.select(
        [crosses, np.isnan(entry), beyond], list(UNSCORABLE), default=np.array(None, dtype=object)
    )
    lost = reason != None  # noqa: E711 - elementwise
    exits = np.where(found == "time", close[:, -1], exits)
    paid = cost_bps / 1e4 * (entry + exits)
    gain = np.where(lost, np.nan, (sign * (exits - entry) - paid) / entry * 100)
    win = pd.array(gain > 0, dtype="boolean")
    win[lost] = pd.NA
    return frame.assign(
        entry_price=np.where(lost, np.nan, entry),
        exit_price=np.where(lost, np.nan, exits),
        exit_reason=np.where(lost, "unscorable", found),
        reason=pd.array(reason.tolist(), dtype="str"),
        return_pct=gain,
        win=win,
    )[list(TRADE_COLUMNS)]


def _on_grid(bars: pd.DataFrame, session: Session) -> Floats:
    """Open, high, low and close on the session's grid, [4, bars]; NaN = no bar."""
    grid = np.full((4, session.bars), np.nan)
    times = utc_times(bars["bar_ts"])
    place = session.index_of(times)
    values = bars[["open", "high", "low", "close"]].to_numpy(dtype=np.float64).T
    grid[:, place[place >= 0]] = values[:, place >= 0]
    return grid


def _exits(
    prices: Floats, sign: Floats, target: float, stop: float
) -> tuple[Texts, Floats, npt.NDArray[np.bool_]]:
    """How each trade ends, its exit price (NaN = at the horizon), and if a gap comes before."""
    opens, high, low, close = prices
    entry = opens[:, :1]
    long = sign[:, None] > 0
    # a short trade is a long one in the mirror
    worst, best = np.where(long, low, -high), np.where(long, high, -low)
    at_open = sign[:, None] * opens
    stop_at = sign[:, None] * entry - stop * entry
    target_at = sign[:, None] * entry + target * entry
    rounding = _ROUNDING * entry
    stopped = worst <= stop_at + rounding
    ended = stopped | (best >= target_at - rounding)

    rows = np.arange(len(entry))
    first = np.argmax(ended, axis=1)
    has_ended = ended.any(axis=1)
    missing = np.isnan(close)
    first_missing = np.where(missing.any(axis=1), np.argmax(missing, axis=1), close.shape[1])
    beyond = first_missing < np.where(has_ended, first, close.shape[1])

    by_stop = stopped[rows, first]
    filled = np.where(by_stop, np.minimum(at_open[rows, first], stop_at[:, 0]), target_at[:, 0])
    found = np.where(has_ended, np.where(by_stop, "stop", "target"), "time").astype(object)
    return found, np.where(has_ended, sign * filled, np.nan), beyond


def report(trades: pd.DataFrame, *, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """What became of many signals, ready for JSON; None = unknown.

    Every group has: signals; scored; unscorable by reason; exits by kind; win_rate with the 95 %
    interval lo, hi from resampling whole sessions (None with fewer than two); profit_factor, gains
    over losses (None without a loss), with its interval profit_factor_lo, profit_factor_hi made the
    same way (None = an end that is infinite); average_pct, mean return after costs. `by_session`
    has the false-positive rate: the share of a session's scored signals that did not win.

    Args:
        trades: rows of `score_trades` of any number of sessions.
        draws: bootstrap draws.
        seed: of the draws.
    """
    names = np.array([*_names(CONFIDENCE_EDGES), "none"], dtype=object)
    bins = _bins(trades["confidence"].to_numpy(dtype=np.float32), CONFIDENCE_EDGES)
    trades = trades.assign(confidence_bin=names[bins])
    groups = {
        "by_level_source": "level_source",
        "by_strength_band": "strength_band",
        "by_confidence": "confidence_bin",
    }
    return {
        "overall": _group(trades, draws, seed),
        **{
            title: {str(name): _group(own, draws, seed) for name, own in trades.groupby(column)}
            for title, column in groups.items()
        },
        "by_session": {
            str(label): _false_positives(own) for label, own in trades.groupby("session")
        },
    }


def _group(trades: pd.DataFrame, draws: int, seed: int) -> dict[str, Any]:
    scored = trades[trades["exit_reason"] != "unscorable"]
    gain = scored["return_pct"].to_numpy(dtype=np.float64)
    wins = scored["win"].to_numpy(dtype=np.float64)
    lo, hi = _interval(wins, scored["session"].to_numpy(), draws, seed)
    losses = -gain[gain < 0].sum()
    least, most = _factor_interval(gain, scored["session"].to_numpy(), draws, seed)
    return {
        "signals": len(trades),
        "scored": len(scored),
        "unscorable": _counts(trades["reason"].dropna()),
        "exits": _counts(scored["exit_reason"]),
        "win_rate": _mean(wins),
        "lo": lo,
        "hi": hi,
        "profit_factor": float(gain[gain > 0].sum() / losses) if losses else None,
        "profit_factor_lo": least,
        "profit_factor_hi": most,
        "average_pct": _mean(gain),
    }


def _false_positives(trades: pd.DataFrame) -> dict[str, Any]:
    wins = trades["win"].dropna().to_numpy(dtype=np.float64)
    rate = _mean(1 - wins)
    return {"signals": len(trades), "scored": len(wins), "false_positive_rate": rate}


def _counts(names: pd.Series[Any]) -> dict[str, int]:
    return {str(name): int(count) for name, count in names.value_counts().sort_index().items()}


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None


def _interval(
    wins: Floats, session: Texts, draws: int, seed: int
) -> tuple[float | None, float | None]:
    labels, place = np.unique(session.astype(str), return_inverse=True)
    if len(labels) < 2:
        return None, None
    counts = np.bincount(place, minlength=len(labels)).astype(np.float64)
    sums = np.bincount(place, weights=wins, minlength=len(labels)).astype(np.float64)
    return ratio_interval(sums, counts, draws, seed)


def _factor_interval(
    gain: Floats, session: Texts, draws: int, seed: int
) -> tuple[float | None, float | None]:
    """95 % interval of gains over losses, whole sessions resampled."""
    labels, place = np.unique(session.astype(str), return_inverse=True)
    if len(labels) < 2:
        return None, None
    gains = np.bincount(place, minlength=len(labels), weights=np.maximum(gain, 0))
    losses = np.bincount(place, minlength=len(labels), weights=np.maximum(-gain, 0))
    picks = np.random.default_rng(seed).integers(0, len(labels), (draws, len(labels)))
    won, lost = gains[picks].sum(axis=1), losses[picks].sum(axis=1)
    # a draw without any loss has no factor; it counts as the largest
    factors = np.divide(won, lost, out=np.full(draws, np.inf), where=lost > 0)
    lo, hi = np.quantile(factors, [0.025, 0.975], method="higher")
    return float(lo) if np.isfinite(lo) else None, float(hi) if np.isfinite(hi) else None


def in_markdown(found: dict[str, Any]) -> str:
    """The groups of a report as a Markdown table."""
    lines = [
        "| group | signals | win rate | 95 % | profit factor | 95 % |",
        "|---|---|---|---|---|---|",
    ]
    groups = [("all", found["overall"])]
    for title in ("by_level_source", "by_strength_band", "by_confidence"):
        words = title.removeprefix("by_").replace("_", " ")
        groups += [(f"{words} {name}", group) for name, group in found[title].items()]
    for name, group in groups:
        cells = [
            name,
            str(group["signals"]),
            _or_dash(group["win_rate"], 3),
            _ends(group["lo"], group["hi"], 3),
            _or_dash(group["profit_factor"], 2),
            _ends(group["profit_factor_lo"], group["profit_factor_hi"], 2),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ends(low: float | None, high: float | None, digits: int) -> str:
    known = low is not None or high is not None
    return f"{_or_dash(low, digits)} to {_or_dash(high, digits)}" if known else "-"


def _or_dash(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def reliability(
    confidence: npt.ArrayLike, hit: npt.ArrayLike, bins: Sequence[float] = RELIABILITY_EDGES
) -> list[dict[str, Any]]:
    """Confidence against what happened: in a good forecast both are equal in every bin.

    Args:
        confidence: [n] probabilities of the predicted side; NaN = abstained.
        hit: [n] 1 = the price went to that side, 0 = the other; NaN = flat or unlabelable.
        bins: ascending edges; a value on an edge belongs to the bin above, the last edge to the
            last bin.

    Returns:
        One entry per bin, ready for JSON: from, to, n, confidence (mean) and frequency (share of
        hits); both None in an empty bin.
    """
    said = np.asarray(confidence, dtype=np.float32)
    happened = np.asarray(hit, dtype=np.float64)
    place = np.where(np.isnan(happened), len(bins) - 1, _bins(said, bins))
    return [
        {
            "from": float(low),
            "to": float(high),
            "n": int((place == number).sum()),
            "confidence": _mean(said[place == number].astype(np.float64)),
            "frequency": _mean(happened[place == number]),
        }
        for number, (low, high) in enumerate(itertools.pairwise(bins))
    ]


def _bins(values: npt.NDArray[np.float32], edges: Sequence[float]) -> npt.NDArray[np.int64]:
    """Bin of each value, as it is stored; the number of bins for NaN and what lies outside."""
    bounds = np.asarray(edges, dtype=np.float32)
    place = np.searchsorted(bounds, values, side="right") - 1
    place = np.where(values == bounds[-1], len(bounds) - 2, place)
    return np.where((place < 0) | np.isnan(values), len(bounds) - 1, place).astype(np.int64)


def _names(edges: Sequence[float]) -> list[str]:
    return [f"{low:.2f}-{high:.2f}" for low, high in itertools.pairwise(edges)]
