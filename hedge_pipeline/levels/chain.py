"""One snapshot of an option chain as arrays, whether it can be used, and what it may borrow.

Contracts that cannot be read are dropped and counted, never repaired. Levels are computed
elsewhere.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from hedge_pipeline.levels.rules import DEFAULT_RULES, NEW_YORK, LevelRules

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Days = npt.NDArray[np.datetime64]

CHAIN_COLUMNS = (
    "expiry",
    "strike",
    "right",
    "open_interest",
    "volume",
    "implied_volatility",
    "bid",
    "ask",
)
SERIES_END = dt.time(16, 0)
FLOOR_MINUTES = 5.0
MINUTES_PER_YEAR = 365 * 24 * 60
PARITY_PAIRS = 5

_QUANTITIES = ("open_interest", "volume", "implied_volatility", "bid", "ask")
_ARRAYS = ("expiry", "strike", "is_call", *_QUANTITIES)
# a strike that is near by the arithmetic of pencil and paper is near in binary, too
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Dropped:
    """Rows of a snapshot that are not in the chain.

    Attributes:
        expired: series that ended at or before the snapshot.
        malformed: no readable expiry, a right other than C and P, or a strike that is not a
            positive number.
        duplicate: further rows of a contract.
    """

    expired: int = 0
    malformed: int = 0
    duplicate: int = 0


@dataclass(frozen=True, eq=False)
class Chain:
    """Contracts of one underlying at one moment, by expiry, strike and put before call.

    Every array has shape [contracts]; no contract appears twice, no series has ended at `as_of`.

    Attributes:
        as_of: aware time in UTC that the quantities describe.
        expiry: last day of the series, exchange date, `datetime64[D]`.
        strike: in quote currency, positive.
        is_call: true for calls, false for puts.
        open_interest: contracts; NaN = unknown.
        volume: contracts traded on the day; NaN = unknown.
        implied_volatility: per square root of a year, as the vendor gave it; NaN = unknown.
        bid: in quote currency; NaN = unknown.
        ask: in quote currency; NaN = unknown.
        dropped: rows that were left out.
    """

    as_of: dt.datetime
    expiry: Days
    strike: Array
    is_call: Flags
    open_interest: Array
    volume: Array
    implied_volatility: Array
    bid: Array
    ask: Array
    dropped: Dropped = Dropped()

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, as_of: dt.datetime) -> Chain:
        """A snapshot's rows as a chain, independent of their order.

        A series ends at 16:00 New York of its expiry (on half days, too: the contracts' own
        closing time is not in the data). Negative and infinite quantities are unknown. Of several
        rows of one contract the one with the largest open interest stays, then by the largest
        volume, implied volatility, bid and ask; unknown counts as smallest.

        Args:
            frame: columns expiry (text YYYY-MM-DD or dates), strike, right (C or P),
                open_interest, volume, implied_volatility, bid and ask; others are ignored.
            as_of: aware time that the rows describe.

        Raises:
            ValueError: `as_of` has no time zone.
            KeyError: a column is missing.
        """
        return cls.from_columns(chain_columns(frame), as_of)

    @classmethod
    def from_columns(cls, columns: Mapping[str, npt.NDArray[Any]], as_of: dt.datetime) -> Chain:
        """As `from_frame`, from the arrays of `chain_columns`."""
        if as_of.tzinfo is None:
            raise ValueError(f"the time of a snapshot needs a time zone: {as_of}")
        as_of = as_of.astimezone(dt.UTC)
        expiry, right, strike = columns["expiry"], columns["right"], columns["strike"]
        numbers = {"strike": strike, **{name: columns[name] for name in _QUANTITIES}}
        for name in _QUANTITIES:
            values = numbers[name]
            numbers[name] = np.where(np.isfinite(values) & (values >= 0), values, np.nan)
        is_call = np.asarray(right == "C", dtype=np.bool_)
        readable = is_call | np.asarray(right == "P", dtype=np.bool_)
        readable &= ~np.isnat(expiry) & np.isfinite(strike) & (strike > 0)
        alive = readable & _alive(expiry, as_of)
        arrays = {"expiry": expiry, "is_call": is_call, **numbers}
        kept, duplicates = _unique_contracts({name: arrays[name][alive] for name in _ARRAYS})
        return cls(
            as_of,
            **kept,
            dropped=Dropped(
                expired=int(readable.sum() - alive.sum()),
                malformed=int((~readable).sum()),
                duplicate=duplicates,
            ),
        )

    def __len__(self) -> int:
        return len(self.strike)

    @cached_property
    def day(self) -> np.datetime64:
        """New York date of the snapshot, `datetime64[D]`."""
        return np.datetime64(self.as_of.astimezone(ZoneInfo(NEW_YORK)).date(), "D")

    @cached_property
    def expirations(self) -> Days:
        """The different expiries, ascending."""
        return np.unique(self.expiry)

    @cached_property
    def years(self) -> Array:
        """Time to the end of each series in years of 365 days, counted in minutes.

        Never less than five minutes: gamma at the money grows without bound towards the end.
        """
        place = np.searchsorted(self.expirations, self.expiry)
        ends = np.array([_minutes_to_end(day, self.as_of) for day in self.expirations])
        return np.maximum(ends, FLOOR_MINUTES)[place] / MINUTES_PER_YEAR if len(ends) else ends

    def near(self, spot: float, rules: LevelRules = DEFAULT_RULES) -> Flags:
        """Contracts whose strike is within `rules.near` of the spot; none if it is unknown."""
        return is_near(self.strike, spot, rules)

    def part(self, chosen: Flags) -> Chain:
        """The chosen contracts, shape of `chosen` [contracts]."""
        return replace(self, **{name: getattr(self, name)[chosen] for name in _ARRAYS})


def chain_columns(frame: pd.DataFrame) -> dict[str, npt.NDArray[Any]]:
    """The columns of a chain as arrays [rows]: days, text, and numbers with NaN = unknown.

    Raises:
        KeyError: a column is missing.
    """
    columns = frame[list(CHAIN_COLUMNS)]
    return {
        "expiry": _expiries(columns["expiry"]),
        "right": columns["right"].to_numpy(),
        **{
            name: columns[name].to_numpy(dtype=np.float64, na_value=np.nan)
            for name in ("strike", *_QUANTITIES)
        },
    }


def is_near(strike: Array, spot: float, rules: LevelRules = DEFAULT_RULES) -> Flags:
    """Strikes within `rules.near` of the spot; none if it is unknown."""
    reach = (rules.near + _ROUNDING) * spot
    return np.asarray(np.abs(strike - spot) <= reach, dtype=np.bool_)


def unusable_reason(
    chain: Chain, spot: float, taken_at: dt.datetime, rules: LevelRules = DEFAULT_RULES
) -> str | None:
    """Why no level may be computed from the snapshot, None if it is usable.

    Open interest is of the day of fetching, volume and volatility are of the day of the quotes; a
    snapshot that was fetched after midnight mixes two days.

    Args:
        chain: the snapshot.
        spot: price of the underlying at `chain.as_of`; NaN = unknown.
        taken_at: aware time of fetching.
        rules: thresholds.

    Returns:
        The first of these that holds: taken outside the hours or on another day than the quotes,
        no spot, no contracts, spot outside the strikes or far from the price that the quotes imply
        (a split, another symbol's price), too few contracts near the spot, too many of them
        without open interest.
    """
    taken = taken_at.astimezone(ZoneInfo(NEW_YORK))
    if not rules.taken_from <= taken.time() <= rules.taken_until:
        return (
            f"taken at {taken:%H:%M} New York, outside "
            f"{rules.taken_from:%H:%M} to {rules.taken_until:%H:%M}"
        )
    if np.datetime64(taken.date(), "D") != chain.day:
        return f"quotes of {chain.day}, but taken on {taken.date()}"
    if not (np.isfinite(spot) and spot > 0):
        return "no spot price"
    if not len(chain):
        return "no contracts that are still alive"
    lowest, highest = float(chain.strike.min()), float(chain.strike.max())
    if not lowest <= spot <= highest:
        return f"spot {spot:g} lies outside the strikes {lowest:g} to {highest:g}"
    implied = parity_price(chain)
    if abs(implied - spot) > rules.parity_tolerance * spot:
        return f"spot {spot:g} is far from {implied:g}, which put-call parity implies"
    near = int(chain.near(spot, rules).sum())
    if near < rules.least_contracts:
        return (
            f"{near} contracts within {rules.near:.0%} of the spot, "
            f"{rules.least_contracts} are needed"
        )
    return blank_reason(chain, spot, rules)


def blank_reason(chain: Chain, spot: float, rules: LevelRules = DEFAULT_RULES) -> str | None:
    """Why the open interest may not be read, None if it may or if too few contracts are near.

    Args:
        chain: the snapshot.
        spot: price of the underlying at `chain.as_of`; NaN = unknown.
        rules: largest share of contracts with zero or missing open interest.
    """
    interest = chain.open_interest[chain.near(spot, rules)]
    if len(interest) < rules.least_contracts:
        return None
    blank = float(np.mean(~(interest > 0)))
    if blank <= rules.most_blank_open_interest:
        return None
    return (
        f"open interest is zero or missing in {blank:.0%} of {len(interest)} contracts "
        f"within {rules.near:.0%} of the spot"
    )


def parity_price(chain: Chain) -> float:
    """Price of the underlying that the quotes imply: K + call - put where both cost about the same.

    Put-call parity without interest and dividends (Stoll 1969), on the mid prices of the first
    expiration that has at least five strikes with two-sided quotes in both rights. Quotes are of
    the snapshot's own time, so this also tells whether the spot is.

    Returns:
        In quote currency; NaN if no expiration has enough quotes.
    """
    quoted = (chain.bid > 0) & (chain.ask >= chain.bid)
    middle = (chain.bid + chain.ask) / 2
    for day in chain.expirations:
        series = quoted & (chain.expiry == day)
        puts, calls = series & ~chain.is_call, series & chain.is_call
        strikes, put, call = np.intersect1d(
            chain.strike[puts], chain.strike[calls], assume_unique=True, return_indices=True
        )
        if len(strikes) < PARITY_PAIRS:
            continue
        difference = middle[calls][call] - middle[puts][put]
        closest = int(np.argmin(np.abs(difference)))
        return float(strikes[closest] + difference[closest])
    return float("nan")


def with_open_interest_of(chain: Chain, earlier: Chain) -> Chain:
    """The chain with open interest filled in from an earlier snapshot of the same session.

    Open interest is published once a day, so an earlier figure of the session is still the
    figure. A contract's own positive open interest stays; zero and missing ones are replaced
    where the earlier snapshot knows the contract.

    Raises:
        ValueError: the earlier snapshot is of another day or is not earlier.
    """
    _refuse_other_session(chain, earlier)
    place = _find(chain, earlier)
    found = np.where(place >= 0, _take(earlier.open_interest, place), np.nan)
    known = chain.open_interest > 0
    replaced = np.where(~known & np.isfinite(found), found, chain.open_interest)
    return replace(chain, open_interest=replaced)


def complete(chain: Chain, earlier: Chain) -> Chain:
    """The chain with the expirations it did not ask for, from an earlier snapshot of the session.

    An expiration of which the chain holds any contract is the chain's own; the others are taken
    whole with their earlier quantities, unless their series has ended since.

    Raises:
        ValueError: the earlier snapshot is of another day or is not earlier.
    """
    _refuse_other_session(chain, earlier)
    missing = ~np.isin(earlier.expiry, chain.expirations) & _alive(earlier.expiry, chain.as_of)
    if not missing.any():
        return chain
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(chain, name), getattr(earlier, name)[missing]])
        for name in _ARRAYS
    }
    order = np.argsort(joined["expiry"], kind="stable")
    return replace(chain, **{name: values[order] for name, values in joined.items()})


def _refuse_other_session(chain: Chain, earlier: Chain) -> None:
    if earlier.day != chain.day or earlier.as_of > chain.as_of:
        raise ValueError(f"{earlier.as_of} is no earlier snapshot of the session of {chain.as_of}")


def _expiries(column: pd.Series[str]) -> Days:
    """Dates of the column, NaT where there is none; the few different ones are read once."""
    codes, values = column.factorize()
    days: Days = np.array([*map(_day, values), np.datetime64("NaT", "D")], dtype="datetime64[D]")
    return np.asarray(days[codes], dtype="datetime64[D]")


@lru_cache(maxsize=4096)
def _day(value: object) -> np.datetime64:
    try:
        return np.datetime64(dt.date.fromisoformat(str(value)[:10]), "D")
    except ValueError:
        return np.datetime64("NaT", "D")


def _minutes_to_end(day: np.datetime64, as_of: dt.datetime) -> float:
    ends = dt.datetime.combine(day.astype(object), SERIES_END, ZoneInfo(NEW_YORK))
    return (ends - as_of).total_seconds() / 60


def _alive(expiry: Days, as_of: dt.datetime) -> Flags:
    """Whether each series ends after the snapshot; false where the expiry is unknown."""
    days, place = np.unique(expiry, return_inverse=True)
    alive: Flags = np.array(
        [not np.isnat(day) and _minutes_to_end(day, as_of) > 0 for day in days], dtype=np.bool_
    )
    return alive[place]


def _unique_contracts(arrays: dict[str, npt.NDArray[Any]]) -> tuple[dict[str, Any], int]:
    """Arrays in the order of the chain without repeated contracts, and the number of these."""
    identity = (arrays["is_call"], arrays["strike"], arrays["expiry"])
    order = np.lexsort(identity)
    repeated = _repeats(arrays, order)
    if repeated.any():
        # the largest quantities come last and NaN is sorted behind every number
        ranks = [np.nan_to_num(arrays[name], nan=-1.0) for name in reversed(_QUANTITIES)]
        order = np.lexsort((*(-rank for rank in ranks), *identity))
        repeated = _repeats(arrays, order)
    return {name: values[order[~repeated]] for name, values in arrays.items()}, int(repeated.sum())


def _repeats(arrays: dict[str, npt.NDArray[Any]], order: npt.NDArray[np.intp]) -> Flags:
    """Whether each contract, in this order, is the same as the one before it."""
    repeated = np.zeros(len(order), dtype=np.bool_)
    same = np.ones(max(len(order) - 1, 0), dtype=np.bool_)
    for name in ("expiry", "strike", "is_call"):
        values = arrays[name][order]
        same &= values[1:] == values[:-1]
    repeated[1:] = same
    return repeated


def _find(chain: Chain, among: Chain) -> npt.NDArray[np.intp]:
    """Position of each contract in another chain, -1 where it is not there."""
    both = [
        np.concatenate([getattr(among, name), getattr(chain, name)])
        for name in ("is_call", "strike", "expiry")
    ]
    order = np.lexsort((np.arange(len(both[0])), *both))
    position = np.full(len(both[0]), -1)
    previous, current = order[:-1], order[1:]
    same = np.ones(len(previous), dtype=np.bool_)
    for values in both:
        same &= values[current] == values[previous]
    position[current[same]] = previous[same]
    return position[len(among) :]


def _take(values: Array, place: npt.NDArray[np.intp]) -> Array:
    return values[np.maximum(place, 0)] if len(values) else np.full(len(place), np.nan)
