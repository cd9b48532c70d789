"""Which predictions are signals, and which rule refused the others.

The rules are asked in one order and the first that fails is named. All values are compared as the
log stores them, so that every decision can be made again from its row.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from hedge_pipeline.levels.strength import Texts
from hedge_pipeline.market.calendar import to_datetime64, utc_times

if TYPE_CHECKING:
    import pandas as pd

Flags = npt.NDArray[np.bool_]
Side = Literal["long", "short"]
Words: TypeAlias = Callable[[int], str]

NO_LEVEL: Final = "no hedge level near"
ONLY_SUPPORT: Final = "at resistance: signals are for support only"
NO_STRENGTH: Final = "strength unknown"
NO_CONFIDENCE: Final = "confidence unknown"

# what a level of each type is traded as, and the prediction that agrees with it
SIDES: Final[dict[str, tuple[Side, int]]] = {"support": ("long", 1), "resistance": ("short", 0)}


@dataclass(frozen=True)
class SignalRules:
    """What a prediction must fulfil to be a signal.

    Attributes:
        sides: `support` = long at support only; `both` = also short at resistance.
        min_strength: least strength score, 0..100, included.
        max_strength: greatest strength score, included.
        min_confidence: least confidence, a probability, included.
        cooldown: seconds after a signal's bar in which the symbol has no other; the bar exactly
            then may be one again.
        horizon: label horizon, bars; it must end inside the session.
    """

    sides: Literal["support", "both"] = "support"
    min_strength: float = 15.0
    max_strength: float = 30.0
    min_confidence: float = 0.55
    cooldown: float = 300.0
    horizon: int = 10


def decide_signals(
    rows: pd.DataFrame, rules: SignalRules, last_signals: Mapping[str, dt.datetime]
) -> tuple[Flags, Texts]:
    """Decides bars in time order; at once or one by one is the same.

    A signal fires when a level is near and its side is traded, strength is in the band, confidence
    suffices, the prediction agrees with the side, the horizon ends inside the session, and no
    signal of the symbol came less than the cooldown before.

    Args:
        rows: [n] symbol; bar_ts; prediction (NULL = abstained); confidence; strength_score (NaN =
            unknown); level_type; bars_left, the bars of the session after this one; reason, which
            is kept where the prediction abstained.
        rules: what must hold.
        last_signals: start of the bar of each symbol's newest signal in the log, aware; a symbol
            that had none is missing.

    Returns:
        [n] whether the signal fired, and [n] the first rule that failed, in words.

    Raises:
        ValueError: the bars of a symbol are not in time order.
    """
    times = utc_times(rows["bar_ts"])
    symbols = rows["symbol"].to_numpy(dtype=object)
    _, codes = np.unique(symbols.astype(np.str_), return_inverse=True)
    order = np.argsort(codes, kind="stable")
    backwards = np.diff(times[order]) < np.timedelta64(0, "us")
    if (backwards & (np.diff(codes[order]) == 0)).any():
        raise ValueError("bars must be in time order")
    fired = np.ones(len(rows), dtype=np.bool_)
    reason = np.full(len(rows), "", dtype=object)
    for failed, words in _refusals(rows, rules):
        for place in np.flatnonzero(failed & fired):
            reason[place] = words(int(place))
        fired &= ~failed

    side = rows["level_type"].tolist()
    last = {symbol: to_datetime64(at) for symbol, at in last_signals.items()}
    for place in np.flatnonzero(fired):
        before = last.get(symbols[place])
        passed = math.inf
        if before is not None:
            passed = float((times[place] - before) / np.timedelta64(1, "s"))
        if 0 <= passed < rules.cooldown:
            fired[place] = False
            reason[place] = f"{passed:.0f} s after a signal, cooldown {rules.cooldown:g} s"
        else:
            last[symbols[place]] = times[place]
            reason[place] = f"{SIDES[side[place]][0]}: every rule holds"
    return fired, reason


def _refusals(rows: pd.DataFrame, rules: SignalRules) -> Iterator[tuple[Flags, Words]]:
    """Every rule but the cooldown, in order: where it fails, and the words for a bar."""
    said = rows["prediction"].to_numpy(dtype=np.float64, na_value=np.nan)
    side = rows["level_type"].to_numpy(dtype=object)
    strength = rows["strength_score"].to_numpy(dtype=np.float32)
    confidence = rows["confidence"].to_numpy(dtype=np.float32)
    left = rows["bars_left"].to_numpy(dtype=np.int64)
    kept = rows["reason"].tolist()

    yield np.isnan(said), lambda i: str(kept[i])
    yield side == "none", lambda i: NO_LEVEL
    if rules.sides == "support":
        yield side == "resistance", lambda i: ONLY_SUPPORT
    yield np.isnan(strength), lambda i: NO_STRENGTH
    yield (
        strength < np.float32(rules.min_strength),
        lambda i: f"strength {_below(strength[i], 1)} < {rules.min_strength:g}",
    )
    yield (
        strength > np.float32(rules.max_strength),
        lambda i: f"strength {_above(strength[i], 1)} > {rules.max_strength:g}",
    )
    yield np.isnan(confidence), lambda i: NO_CONFIDENCE
    yield (
        confidence < np.float32(rules.min_confidence),
        lambda i: f"confidence {_below(confidence[i], 3)} < {rules.min_confidence:g}",
    )
    agrees = [SIDES[name][1] if name in SIDES else -1 for name in side]
    yield said != np.array(agrees), lambda i: f"prediction {_direction(said[i])} at {side[i]}"
    yield left < rules.horizon, lambda i: f"{left[i]} bars left, horizon {rules.horizon}"


def _direction(prediction: float) -> str:
    return "up" if prediction == 1 else "down"


def _below(value: np.float32, digits: int) -> str:
    """The number rounded down: a value just under its bound is not shown as the bound."""
    return f"{math.floor(float(value) * 10**digits) / 10**digits:.{digits}f}"


def _above(value: np.float32, digits: int) -> str:
    return f"{math.ceil(float(value) * 10**digits) / 10**digits:.{digits}f}"
