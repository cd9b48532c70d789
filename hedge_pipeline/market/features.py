"""Features of minute bars and hedge levels: relative, bounded in memory, vectorised over symbols.

What belongs here: the list of features with their meaning, and one function that computes them for
any stretch of a session. Rules every feature keeps:

* It reads bars of its own session up to its own bar, and of the previous session only the close
  and the volatility. So a bar's vector can be computed minute by minute or for the whole session
  at once, with the same bits: windows are summed lag by lag and session totals from left to right,
  never by a reduction whose order depends on the length of the array.
* It is relative: returns in units of volatility, prices as distances, volumes as ratios. Price
  level, listing and currency do not show.
* Hedge levels are those in force at the bar (see `levels/joining.py`); a distance to a level is in
  units of volatility and signed: a support below the price and a resistance below it are positive.
* Unknown is NaN. A sum or mean over a window is known when at least 80 % of its bars are, a highest
  or lowest price when one of them is.

Volatility `sigma` is per bar: sqrt((30 v + sum of squares of the last 30 returns) / (30 + their
number)), v the mean squared return of the previous session. Without a previous session v drops
out and five returns are needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

LONGEST_WINDOW = 60
_PRIOR_BARS = 30
_KNOWN_SHARE = 0.8


@dataclass(frozen=True)
class Feature:
    """Name and meaning of one feature; the unit is in the meaning."""

    name: str
    description: str


@dataclass(frozen=True)
class Bars:
    """Bars of several symbols on the grid of one session; every array has shape [symbols, bars].

    NaN = no bar, or unknown (volume, support, resistance). Prices in quote currency.
    """

    open: Array
    high: Array
    low: Array
    close: Array
    volume: Array
    support: Array
    resistance: Array


LEVEL_COLUMNS = (
    "hp_support",
    "hp_resistance",
    "hp_net",
    "mhp_support",
    "mhp_resistance",
    "mhp_score",
    "hg_below",
    "hg_above",
    "put_oi_wall",
    "call_oi_wall",
    "gamma_flip",
    "max_gamma_strike",
    "gex",
    "gex_gross",
    "vanna_exposure",
    "put_call_oi_ratio",
    "atm_iv",
    "skew_25d",
    "term_slope",
    "age_minutes",
)


@dataclass(frozen=True)
class LevelGrid:
    """Hedge levels in force at each bar; every array has shape [symbols, bars], NaN = unknown.

    Attributes:
        values: by name, all of `LEVEL_COLUMNS`; units as in `hedge_levels`, `age_minutes` since
            the snapshot became available.
    """

    values: dict[str, Array]

    @classmethod
    def unknown(cls, symbols: int, bars: int) -> LevelGrid:
        """A grid without levels."""
        return cls({name: np.full((symbols, bars), np.nan) for name in LEVEL_COLUMNS})


@dataclass(frozen=True)
class Previous:
    """What is remembered of the previous session, shape [symbols]; NaN = no such session."""

    close: Array
    variance: Array


_DISTANCES = {
    "hp_support": "the front put wall",
    "hp_resistance": "the front call wall",
    "mhp_support": "the monthly wall below",
    "mhp_resistance": "the monthly wall above",
    "hg_below": "the nearest open daily gap below",
    "hg_above": "the nearest open daily gap above",
    "put_oi_wall": "the strike of the largest put open interest",
    "call_oi_wall": "the strike of the largest call open interest",
    "gamma_flip": "the gamma flip",
    "max_gamma_strike": "the strike of the largest gamma",
}
_YEAR_SESSIONS = 252
_RETURNS = (1, 2, 3, 5, 10, 15, 30, 60)

HEDGE_FEATURES: tuple[Feature, ...] = (
    *(
        Feature(f"{name}_distance", f"log of close over {meaning}, in sigma")
        for name, meaning in _DISTANCES.items()
    ),
    Feature("wall_position", "log distance from the middle of the open-interest walls, in sigma"),
    Feature("hp_net", "balance of the front expiration's walls, -1..1"),
    Feature("mhp_score", "balance of the monthly walls, -1..1"),
    Feature("gamma_balance", "gamma exposure over the sum of its absolute parts, -1..1"),
    Feature("vanna_balance", "vanna exposure over the gross gamma exposure, per volatility point"),
    Feature("put_call_ratio", "log of put over call open interest"),
    Feature("implied_to_realized", "log ratio of at-the-money volatility to yearly sigma"),
    Feature("skew_25d", "25-delta put less call volatility, per year"),
    Feature("term_slope", "at-the-money volatility at 60 days less that at 30 days, per year"),
    Feature("levels_age", "hours from when the levels became available to the end of the bar"),
)
FEATURES: tuple[Feature, ...] = (
    *(Feature(f"return_{k}", f"log return over {k} bars, in sigma x sqrt({k})") for k in _RETURNS),
    Feature("return_since_open", "log return since the open, in sigma x sqrt(bars)"),
    Feature("gap_overnight", "log of open over previous close, in previous sigma x sqrt(session)"),
    Feature("volatility_10_60", "log ratio of the volatility of 10 bars to that of 60"),
    Feature("volatility_to_previous", "log ratio of sigma to the previous session's volatility"),
    Feature("range_15", "log of high over low of 15 bars, in sigma x sqrt(15)"),
    Feature("range_position_15", "place of the close in the range of 15 bars, -0.5..0.5"),
    Feature("range_position_60", "place of the close in the range of 60 bars, -0.5..0.5"),
    Feature("range_position_session", "place of the close in the session's range, -0.5..0.5"),
    Feature("bar_body", "log of close over open of the bar, in sigma"),
    Feature("bar_upper_wick", "log of high over the body's top, in sigma"),
    Feature("bar_lower_wick", "log of the body's bottom over low, in sigma"),
    Feature("distance_to_mean_20", "log of close over the mean of 20 closes, in sigma x sqrt(20)"),
    Feature("distance_to_mean_60", "log of close over the mean of 60 closes, in sigma x sqrt(60)"),
    Feature("distance_to_vwap", "log of close over the session's volume-weighted price, sigma"),
    Feature("efficiency_20", "net over gross movement of 20 bars, -1..1 (Kaufman)"),
    Feature("autocorrelation_30", "lag-one autocorrelation of the last 30 returns, -1..1"),
    Feature("up_share_20", "share of rising bars among 20, minus one half"),
    Feature("volume_1_30", "log ratio of the bar's volume to the mean of 30"),
    Feature("volume_5_30", "log ratio of the mean volume of 5 bars to that of 30"),
    Feature("signed_volume_15", "volume of rising minus falling bars over all, 15 bars, -1..1"),
    Feature("session_elapsed", "bars since the open over bars of the session, 0..1"),
    Feature("session_remaining", "hours until the close"),
    Feature("support_distance", "log of close over the source's support level, in sigma"),
    Feature("resistance_distance", "log of close over the source's resistance level, in sigma"),
    Feature("channel_position", "log distance from the middle of both levels, in sigma"),
    *HEDGE_FEATURES,
)


@dataclass(frozen=True)
class Totals:
    """What the first bars of a session add up to; every array has shape [symbols].

    Attributes:
        bars: how many bars they are.
        open: of the first one known; NaN = none was.
        high: highest price; NaN = none was known.
        low: lowest price.
        value: sum of typical price times volume.
        volume: sum of the volumes that are in `value`.
    """

    bars: int
    open: Array
    high: Array
    low: Array
    value: Array
    volume: Array

    @classmethod
    def of_nothing(cls, symbols: int) -> Totals:
        """Before the first bar."""
        unknown, zero = np.full(symbols, np.nan), np.zeros(symbols)
        return cls(0, unknown, unknown, unknown, zero, zero)

    def through(self, bars: Bars, until: int) -> Totals:
        """With the bars that follow, up to `until` (excluded); only those are looked at."""
        if until == self.bars:
            return self
        opened, high, low, value, volume = self.at_each(bars, until)
        return Totals(until, opened[:, -1], high[:, -1], low[:, -1], value[:, -1], volume[:, -1])

    def at_each(self, bars: Bars, until: int) -> tuple[Array, Array, Array, Array, Array]:
        """Open, high, low, value and volume at each bar that follows, [symbols, bars] each."""
        new = slice(self.bars, until)
        high, low, close = bars.high[:, new], bars.low[:, new], bars.close[:, new]
        typical = (high + low + close) / 3
        known = np.isfinite(typical) & np.isfinite(bars.volume[:, new])
        volume = np.where(known, bars.volume[:, new], 0.0)
        value = np.where(known, typical, 0.0) * volume

        def run(pick: np.ufunc, before: Array, values: Array) -> Array:
            found: Array = pick.accumulate(np.column_stack([before, values]), axis=1)[:, 1:]
            return found

        opens = np.column_stack([self.open, bars.open[:, new]])
        seen = np.isfinite(opens)
        price = opens[np.arange(len(opens)), np.argmax(seen, axis=1)]
        opened = np.where(np.maximum.accumulate(seen, axis=1)[:, 1:], price[:, None], np.nan)
        return (
            opened,
            run(np.fmax, self.high, high),
            run(np.fmin, self.low, low),
            run(np.add, self.value, value),
            run(np.add, self.volume, volume),
        )


def no_previous(symbols: int) -> Previous:
    """A memory without a previous session."""
    return Previous(np.full(symbols, np.nan), np.full(symbols, np.nan))


def remember(bars: Bars, least_bars: int) -> Previous:
    """What the next session needs of this one; NaN where fewer than `least_bars` were seen."""
    known = np.isfinite(bars.close)
    count = known.sum(axis=1)
    change = _log_ratio(bars.close[:, 1:], bars.close[:, :-1])
    squares = np.where(np.isfinite(change), change * change, 0.0)
    total = np.cumsum(squares, axis=1)[:, -1]
    number = np.isfinite(change).sum(axis=1)
    enough = (count >= least_bars) & (number > 0) & (total > 0)
    last = known.shape[1] - 1 - np.argmax(known[:, ::-1], axis=1)
    close = bars.close[np.arange(len(last)), last]
    return Previous(
        np.where(enough, close, np.nan), np.where(enough, total / np.maximum(number, 1), np.nan)
    )


def compute_features(
    bars: Bars,
    previous: Previous,
    levels: LevelGrid | None = None,
    *,
    bar_seconds: int,
    session_bars: int,
    first: int = 0,
    totals: Totals | None = None,
) -> npt.NDArray[np.float32]:
    """Feature vectors of the bars from `first` on.

    Args:
        bars: the session up to now, shape [symbols, bars seen].
        previous: memory of the previous session.
        levels: hedge levels in force at the bars wanted, [symbols, bars seen - first]; None = all
            unknown.
        bar_seconds: bar length.
        session_bars: bars of the whole session (known from the calendar).
        first: index of the first bar wanted; earlier ones are only read.
        totals: of the bars before `first`, or of the first of them; None = they are added up here.
            With those of all of them a bar costs the same at any time of the session.

    Returns:
        float32 array [symbols, bars seen - first, features] in the order of `FEATURES`.
        Rows without a bar are NaN throughout.
    """
    wanted = bars.close.shape[1] - first
    grid = levels or LevelGrid.unknown(len(bars.close), wanted)
    before = totals or Totals.of_nothing(len(bars.close))
    columns = _Session(bars, previous, grid, bar_seconds, session_bars, first, before).columns()
    stacked = np.stack([columns[feature.name] for feature in FEATURES], axis=-1)
    missing = ~np.isfinite(bars.close[:, first:])
    stacked[missing] = np.nan
    stacked[~np.isfinite(stacked)] = np.nan
    return stacked.astype(np.float32)


class _Session:
    """One computation: the bars wanted plus as many before them as the longest window reads.

    `past` has them all, by name; `open`, `high`, `low`, `close`, `sigma` and every column are of
    the bars wanted only, shape [symbols, bars wanted].
    """

    def __init__(
        self,
        bars: Bars,
        previous: Previous,
        levels: LevelGrid,
        bar_seconds: int,
        session_bars: int,
        first: int,
        totals: Totals,
    ) -> None:
        self.start = max(0, first - LONGEST_WINDOW - 1)
        self.wanted = first - self.start
        cut_off = slice(first - totals.bars, None)
        self.opened, self.session_high, self.session_low, self.value, self.volume = (
            array[:, cut_off] for array in totals.at_each(bars, bars.close.shape[1])
        )
        self.previous = previous
        self.bar_seconds = bar_seconds
        self.session_bars = session_bars
        cut = slice(self.start, None)
        self.past = {
            name: np.ascontiguousarray(getattr(bars, name)[:, cut])
            for name in ("high", "low", "close", "volume")
        }
        self.open, self.high, self.low, self.close, self.support, self.resistance = (
            np.ascontiguousarray(array[:, first:])
            for array in (bars.open, bars.high, bars.low, bars.close, bars.support, bars.resistance)
        )
        self.first = first
        self.levels = levels.values
        closes = self.past["close"]
        self.change = _log_ratio(closes, _lag(closes, 1))
        self.sigma = self._sigma()

    def columns(self) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for part in (self._returns, self._ranges, self._averages, self._volumes, self._session):
            found.update(part())
        return found | self._source_levels() | self._hedge_levels()

    def _window(self, values: Array, length: int) -> tuple[Array, Array]:
        return _window(values, length, self.wanted)

    def _sigma(self) -> Array:
        squares, number = self._window(self.change * self.change, _PRIOR_BARS)
        prior = self.previous.variance[:, None]
        with_prior = (_PRIOR_BARS * prior + squares) / (_PRIOR_BARS + number)
        alone = np.where(number >= 5, squares / np.maximum(number, 1), np.nan)
        variance = np.where(np.isfinite(prior), with_prior, alone)
        return np.sqrt(np.where(variance > 0, variance, np.nan))

    def _returns(self) -> dict[str, Array]:
        found = {
            f"return_{k}": _log_ratio(self.close, self._close_before(k)) / (self.sigma * np.sqrt(k))
            for k in _RETURNS
        }
        ten, sixty = self._volatility(10), self._volatility(60)
        previous_sigma = np.sqrt(self.previous.variance)[:, None]
        opened = self.opened
        bars = np.arange(self.first, self.first + self.close.shape[1]) + 1.0
        found["return_since_open"] = _log_ratio(self.close, opened) / (self.sigma * np.sqrt(bars))
        overnight = _log_ratio(opened, np.broadcast_to(self.previous.close[:, None], opened.shape))
        found["gap_overnight"] = overnight / (previous_sigma * np.sqrt(float(self.session_bars)))
        found["volatility_10_60"] = 0.5 * _log_ratio(ten, sixty)
        found["volatility_to_previous"] = _log_ratio(
            self.sigma, np.broadcast_to(previous_sigma, self.sigma.shape)
        )
        return found

    def _volatility(self, length: int) -> Array:
        squares, number = self._window(self.change * self.change, length)
        return _known(squares / np.maximum(number, 1), number, length)

    def _close_before(self, bars: int) -> Array:
        return _lag(self.past["close"], bars)[:, self.wanted :]

    def _ranges(self) -> dict[str, Array]:
        found = {}
        for length in (15, 60):
            high = _extreme(self.past["high"], length, np.fmax, self.wanted)
            low = _extreme(self.past["low"], length, np.fmin, self.wanted)
            found[f"range_position_{length}"] = _place(self.close, low, high)
            if length == 15:
                found["range_15"] = _log_ratio(high, low) / (self.sigma * np.sqrt(15))
        found["range_position_session"] = _place(self.close, self.session_low, self.session_high)
        top, bottom = np.maximum(self.open, self.close), np.minimum(self.open, self.close)
        found["bar_body"] = _log_ratio(self.close, self.open) / self.sigma
        found["bar_upper_wick"] = _log_ratio(self.high, top) / self.sigma
        found["bar_lower_wick"] = _log_ratio(bottom, self.low) / self.sigma
        return found

    def _averages(self) -> dict[str, Array]:
        found = {}
        for length in (20, 60):
            total, number = self._window(self.past["close"], length)
            mean = _known(total / np.maximum(number, 1), number, length)
            scale = self.sigma * np.sqrt(length)
            found[f"distance_to_mean_{length}"] = _log_ratio(self.close, mean) / scale
        net, number = self._window(self.change, 20)
        gross, _ = self._window(np.abs(self.change), 20)
        found["efficiency_20"] = _known(_ratio(net, gross), number, 20)
        # 30 returns have 29 pairs; with a 30th the ratio would not be bounded by one
        products, pairs = self._window(self.change * _lag(self.change, 1), 29)
        squares, _ = self._window(self.change * self.change, 30)
        found["autocorrelation_30"] = _known(_ratio(products, squares), pairs, 29)
        rising = np.where(np.isfinite(self.change), (self.change > 0).astype(float), np.nan)
        ups, number = self._window(rising, 20)
        found["up_share_20"] = _known(ups / np.maximum(number, 1) - 0.5, number, 20)
        return found

    def _volumes(self) -> dict[str, Array]:
        volumes = self.past["volume"]
        short, number_short = self._window(volumes, 5)
        long, number_long = self._window(volumes, 30)
        mean_short = _known(short / np.maximum(number_short, 1), number_short, 5)
        mean_long = _known(long / np.maximum(number_long, 1), number_long, 30)
        direction = np.sign(self.change)
        signed, number = self._window(direction * volumes, 15)
        total, _ = self._window(np.where(np.isfinite(direction), volumes, np.nan), 15)
        price = _ratio(self.value, self.volume)
        return {
            "volume_1_30": _log_ratio(volumes[:, self.wanted :], mean_long),
            "volume_5_30": _log_ratio(mean_short, mean_long),
            "signed_volume_15": _known(_ratio(signed, total), number, 15),
            "distance_to_vwap": _log_ratio(self.close, price) / self.sigma,
        }

    def _session(self) -> dict[str, Array]:
        shape = self.close.shape
        elapsed = np.arange(self.first, self.first + shape[1], dtype=float)
        remaining = (self.session_bars - elapsed - 1) * self.bar_seconds / 3600
        return {
            "session_elapsed": np.broadcast_to(elapsed / self.session_bars, shape),
            "session_remaining": np.broadcast_to(remaining, shape),
        }

    def _source_levels(self) -> dict[str, Array]:
        below = _log_ratio(self.close, self.support) / self.sigma
        above = _log_ratio(self.close, self.resistance) / self.sigma
        return {
            "support_distance": below,
            "resistance_distance": above,
            "channel_position": (below + above) / 2,
        }

    def _hedge_levels(self) -> dict[str, Array]:
        levels = self.levels
        found = {
            f"{name}_distance": _log_ratio(self.close, levels[name]) / self.sigma
            for name in _DISTANCES
        }
        found["wall_position"] = (
            found["put_oi_wall_distance"] + found["call_oi_wall_distance"]
        ) / 2
        yearly = self.sigma * np.sqrt(float(_YEAR_SESSIONS * self.session_bars))
        return found | {
            "hp_net": levels["hp_net"],
            "mhp_score": levels["mhp_score"],
            "gamma_balance": _ratio(levels["gex"], levels["gex_gross"]),
            "vanna_balance": _ratio(levels["vanna_exposure"], levels["gex_gross"]),
            "put_call_ratio": _log_ratio(levels["put_call_oi_ratio"], np.ones_like(self.close)),
            "implied_to_realized": _log_ratio(levels["atm_iv"], yearly),
            "skew_25d": levels["skew_25d"],
            "term_slope": levels["term_slope"],
            "levels_age": levels["age_minutes"] / 60,
        }


def _lag(values: Array, bars: int) -> Array:
    """The values so many bars earlier; NaN before the session began."""
    shifted = np.full_like(values, np.nan)
    if bars < values.shape[1]:
        shifted[:, bars:] = values[:, : values.shape[1] - bars]
    return shifted


def _window(values: Array, length: int, first: int) -> tuple[Array, Array]:
    """Sum and number of the known values among the last `length` bars, oldest lag last.

    Both are of the bars from `first` on.
    """
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    total, number = filled[:, first:].copy(), known[:, first:].astype(np.float64)
    bars = values.shape[1]
    for lag in range(1, min(length, bars)):
        begin = max(first, lag)
        total[:, begin - first :] += filled[:, begin - lag : bars - lag]
        number[:, begin - first :] += known[:, begin - lag : bars - lag]
    return total, number


def _extreme(values: Array, length: int, pick: Callable[..., Array], first: int) -> Array:
    """Largest or smallest known value among the last `length` bars, of the bars from `first` on."""
    found = values[:, first:].copy()
    bars = values.shape[1]
    for lag in range(1, min(length, bars)):
        begin = max(first, lag)
        part = found[:, begin - first :]
        found[:, begin - first :] = pick(part, values[:, begin - lag : bars - lag])
    return found


def _known(values: Array, number: Array, length: int) -> Array:
    return np.where(number >= _KNOWN_SHARE * length, values, np.nan)


def _ratio(top: Array, bottom: Array) -> Array:
    """Top over bottom, NaN where the bottom is not positive."""
    positive = bottom > 0
    return np.where(positive, top / np.where(positive, bottom, 1.0), np.nan)


def _log_ratio(top: Array, bottom: Array) -> Array:
    """Log of top over bottom, NaN where either is unknown or not positive."""
    valid = (top > 0) & (bottom > 0)
    return np.where(valid, np.log(np.where(valid, top, 1.0) / np.where(valid, bottom, 1.0)), np.nan)


def _place(value: Array, low: Array, high: Array) -> Array:
    """Place of a value between low and high, -0.5..0.5; NaN where the range is empty."""
    return _ratio(value - low, high - low) - 0.5
