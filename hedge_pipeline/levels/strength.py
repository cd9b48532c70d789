"""How strong the hedge levels around a price are, and which level is the nearest.

The score is a sum of parts that are kept beside it. A part that cannot be known counts as 0 in the
sum, is NaN itself and is named. Where the levels come from is not decided here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
Texts = npt.NDArray[np.object_]

REACH = 0.005
BROKEN = -0.0005
OVERLAP_REACH = 0.002
OVERLAP_POINTS = 5.0
OVERLAP_MOST = 10.0

RANK_SESSIONS = 20
RANK_LEAST = 20

# the order decides between levels that are equally near
LEVELS: Final[tuple[tuple[str, str, str], ...]] = (
    ("hp_support", "HP", "support"),
    ("hp_resistance", "HP", "resistance"),
    ("mhp_support", "MHP", "support"),
    ("mhp_resistance", "MHP", "resistance"),
    ("hg_below", "HG", "support"),
    ("hg_above", "HG", "resistance"),
)
PARTS: Final = ("gex", "vanna", "hp", "mhp", "hg")
POINTS: Final = {"gex": 20.0, "vanna": 15.0, "hp": 10.0, "mhp": 20.0, "hg": 25.0}

# Fixed, and not the operator's MIN_STRENGTH and MAX_STRENGTH (whose defaults are 15 and 30): what
# was seen in a band is added up over months and must mean the same throughout.
BANDS: Final = ("0-15", "15-30", "30-50", "50-100")
_BAND_EDGES = np.array([15, 30, 50], dtype=np.float32)

# binary fractions put a level exactly at a bound on either side of it; far below a tick
_DIGITS = 9


@dataclass(frozen=True)
class Strength:
    """Strength of the levels at n bars.

    Attributes:
        score: [n] sum of the parts, 0..100; NaN = no level is known. Rounded to what the log
            stores, so that whatever is decided on it can be decided again from the log.
        gex: [n] points for the size of the gamma exposure, 0..20; NaN = unknown.
        vanna: [n] the same for the vanna exposure, 0..15.
        hp: [n] points for nearness to an HP level, 0..10; NaN = there is none.
        mhp: [n] the same for MHP, 0..20.
        hg: [n] the same for a half gap, 0..25.
        overlap: [n] points for other levels beside the nearest, 0, 5 or 10; NaN = no level.
        missing: [n] names of the parts that are NaN, comma-separated; empty = all are known.
        level_type: [n] support or resistance: side of the nearest level within 0.5 %; or none.
        level_source: [n] HP, MHP or HG: kind of that level; or none.
        level_price: [n] that level, quote currency; NaN = none.
    """

    score: Floats32
    gex: Floats
    vanna: Floats
    hp: Floats
    mhp: Floats
    hg: Floats
    overlap: Floats
    missing: Texts
    level_type: Texts
    level_source: Texts
    level_price: Floats


def proximity(distance: Floats) -> Floats:
    """Nearness of a level, 1 at the level and 0 from half a percent on.

    p(d) = max(0, 1 - d / 0.005) for d >= -0.0005, else 0; at most 1, so that a level that is just
    being broken counts as touched and not for more.

    Args:
        distance: signed, as a fraction of the price; negative = the price is beyond the level.
            NaN = there is no level.

    Returns:
        Shape of `distance`; NaN where that is NaN.
    """
    near = np.clip(1 - distance / REACH, 0.0, 1.0)
    return np.where(distance < BROKEN, 0.0, near)


def measure(close: Floats, levels: Mapping[str, Any] | pd.DataFrame) -> Strength:
    """Strength, nearest level and missing parts of n bars.

    Distances are signed fractions of the close: (S - K)/S to a support K, (K - S)/S to a
    resistance. Of the support and the resistance of one kind the nearer one (the larger p) counts.
    score = 20 rank(|GEX|) + 15 rank(|vanna|) + 10 p(HP) + 20 p(MHP) + 25 p(HG) + overlap.
    The nearest level is the one with the smallest |d| among those with -0.0005 <= d <= 0.005; of
    equally near ones the order is HP, MHP, HG, support first. Overlap is 5 points for every other
    level, of either side, within 0.2 % of the nearest (a fraction of the close), at most 10.

    Args:
        close: [n] price S, quote currency.
        levels: by name [n] the levels of `LEVELS` in force at each bar, and `gex_rank` and
            `vanna_rank` (see `ranks`); NaN = unknown.
    """
    price = np.asarray(close, dtype=np.float64)
    level = np.array([_column(levels, name) for name, _, _ in LEVELS])
    above = np.array([[side == "resistance"] for _, _, side in LEVELS])
    distance = np.round(np.where(above, level - price, price - level) / price, _DIGITS)

    parts = {
        "gex": POINTS["gex"] * _column(levels, "gex_rank"),
        "vanna": POINTS["vanna"] * _column(levels, "vanna_rank"),
    }
    near = proximity(distance)
    for number, name in enumerate(("hp", "mhp", "hg")):
        parts[name] = POINTS[name] * np.fmax(near[2 * number], near[2 * number + 1])

    nearest = np.where((distance >= BROKEN) & (distance <= REACH), np.abs(distance), np.inf)
    chosen = np.argmin(nearest, axis=0)
    found = np.isfinite(nearest.min(axis=0))
    at = np.where(found, np.take_along_axis(level, chosen[None], axis=0)[0], np.nan)
    beside = np.round(np.abs(level - at) / price, _DIGITS) <= OVERLAP_REACH
    extra = np.maximum(beside.sum(axis=0) - 1, 0)
    known = np.isfinite(distance).any(axis=0)
    overlap = np.where(known, np.minimum(OVERLAP_POINTS * extra, OVERLAP_MOST), np.nan)

    total = sum((np.nan_to_num(parts[name]) for name in PARTS), np.nan_to_num(overlap))
    code = sum(np.isnan(parts[name]).astype(np.int64) << i for i, name in enumerate(PARTS))
    place = np.where(found, chosen, len(LEVELS))
    return Strength(
        score=np.where(known, total, np.nan).astype(np.float32),
        **parts,
        overlap=overlap,
        missing=_MISSING[code],
        level_type=_SIDES[place],
        level_source=_KINDS[place],
        level_price=at,
    )


def _column(levels: Mapping[str, Any] | pd.DataFrame, name: str) -> Floats:
    return np.asarray(levels[name], dtype=np.float64)


_SIDES = np.array([side for _, _, side in LEVELS] + ["none"], dtype=object)
_KINDS = np.array([kind for _, kind, _ in LEVELS] + ["none"], dtype=object)
_MISSING = np.array(
    [
        ",".join(name for i, name in enumerate(PARTS) if code >> i & 1)
        for code in range(2 ** len(PARTS))
    ],
    dtype=object,
)


def strength_band(score: npt.ArrayLike) -> Texts:
    """Band of each score, one of `BANDS`; `none` where the score is NaN.

    A score on an edge belongs to the higher band. Scores are compared as the log stores them.

    Args:
        score: [n] strength scores.
    """
    stored = np.asarray(score, dtype=np.float32)
    names = np.array([*BANDS, "none"], dtype=object)
    return names[np.where(np.isnan(stored), len(BANDS), np.digitize(stored, _BAND_EDGES))]


def ranks(values: npt.ArrayLike, sessions: npt.ArrayLike) -> Floats:
    """The rank of each snapshot among the usable ones of the last 20 sessions before it.

    A rank is the share of those (the running session included) whose size is below that of the
    snapshot; ties count half.

    Args:
        values: [n] exposures of one symbol in time order; NaN = the snapshot was not usable.
        sessions: [n] ordinals of their sessions in the calendar, not descending.

    Returns:
        [n] 0..1; NaN where the value is NaN or fewer than 20 snapshots came before within the last
        20 sessions.

    Raises:
        ValueError: the sessions are not in order.
    """
    size = np.abs(np.asarray(values, dtype=np.float64))
    session = np.asarray(sessions, dtype=np.int64)
    if (np.diff(session) < 0).any():
        raise ValueError("snapshots must be in time order")
    known = np.isfinite(size)
    found = np.full(len(size), np.nan)
    for number in np.unique(session):
        own = session == number
        window = known & (session < number) & (session > number - RANK_SESSIONS)
        earlier, mine = np.sort(size[window]), size[own]
        before = np.tri(len(mine), k=-1, dtype=np.bool_) & known[own]
        low = np.searchsorted(earlier, mine, side="left")
        high = np.searchsorted(earlier, mine, side="right")
        below = low + (before & (mine < mine[:, None])).sum(axis=1)
        equal = high - low + (before & (mine == mine[:, None])).sum(axis=1)
        count = len(earlier) + before.sum(axis=1)
        enough = known[own] & (count >= RANK_LEAST)
        found[own] = np.where(enough, (below + 0.5 * equal) / np.maximum(count, 1), np.nan)
    return found
