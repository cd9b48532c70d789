"""The protocol of a market data source and its typed outcomes.

A failed read is not an empty read: what a caller must treat differently has a class of its own.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.market.calendar import Session, SessionCalendar

BAR_COLUMNS = (
    "bar_ts",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "bid",
    "ask",
    "support",
    "resistance",
)
CHAIN_COLUMNS = (
    "as_of",
    "available_at",
    "expiry",
    "strike",
    "right",
    "open_interest",
    "volume",
    "implied_volatility",
    "bid",
    "ask",
    "last",
)
DAILY_COLUMNS = ("session", "open", "high", "low", "close", "volume")
GROUP = "hedge_pipeline.sources"


class SourceError(RuntimeError):
    """A read that did not deliver; `cause` is the gap cause of the minutes it leaves empty."""

    cause = "source_down"


class SourceDown(SourceError):
    """The source cannot be reached or answers with an error of its own; try again later."""


class RateLimited(SourceError):
    """The source asks for patience; do not ask again before the cool-down is over."""

    cause = "rate_limited"


class NoDataYet(SourceError):
    """The session has not begun, or the source has nothing of it yet; not a fault."""

    cause = "vendor_hole"


class SymbolUnknown(SourceError):
    """The source has no such symbol; asking again is useless."""

    cause = "vendor_hole"


class WindowRefused(SourceError):
    """The source does not serve this stretch of time (too old, or bars of another length)."""

    cause = "vendor_hole"


class SchemaDrift(SourceError):
    """The answer has not the shape the source is known for."""


class BadInput(SourceError):
    """A file or setting of the user's is wrong; the message names the place."""


class UnknownSource(BadInput):
    """No source is installed under this name."""


@dataclass(frozen=True)
class Capabilities:
    """What a source can do.

    Attributes:
        history: past sessions can be read, not only the running one.
        has_chains: it serves option chains; it is a `ChainSource` then.
        has_nbbo: bid and ask are the national best bid and offer; otherwise no feature uses them.
        has_levels: bars carry support and resistance levels.
    """

    history: bool = True
    has_chains: bool = False
    has_nbbo: bool = False
    has_levels: bool = False


@dataclass(frozen=True)
class SourceOptions:
    """What a source may need to be opened.

    Attributes:
        calendar: sessions, and the length of a bar.
        paths: files or folders of the user; empty = none.
        seed: of a simulated market.
        extra: what only one source knows, by name.
    """

    calendar: SessionCalendar
    paths: Sequence[str] = ()
    seed: int = 7
    extra: dict[str, str] = field(default_factory=dict)


class MarketSource(Protocol):
    """A source of minute bars.

    Attributes:
        name: what is written into the `source` column.
        capabilities: what it can do.
        delay: a bar is final and delivered this long after its end.
    """

    name: str
    capabilities: Capabilities
    delay: dt.timedelta

    def bars(self, symbol: str, session: Session, now: dt.datetime) -> pd.DataFrame:
        """Final bars of one session known at `now`.

        Args:
            symbol: ticker symbol.
            session: which session.
            now: aware time of asking; bars final later are not in the answer.

        Returns:
            Frame with the columns `BAR_COLUMNS`, ascending `bar_ts` (datetime64[us, UTC]), bar
            starts only on the session's grid, NaN = unknown (volume, bid, ask, levels).

        Raises:
            SourceError: one of its subclasses, by what went wrong.
        """
        ...


class ChainSource(Protocol):
    """A source that serves option chains too; declared by `capabilities.has_chains`."""

    def chains(
        self, symbol: str, session: Session, now: dt.datetime, *, sweep: bool
    ) -> pd.DataFrame:
        """Snapshots of the option chain that belong to one session and are known at `now`.

        Args:
            symbol: ticker symbol of the underlying.
            session: which session; a snapshot belongs to the exchange date it became available.
            now: aware time of asking.
            sweep: every expiration; otherwise a live source may leave out what matters least.

        Returns:
            Frame with the columns `CHAIN_COLUMNS`, any number of snapshots: as_of and available_at
            are datetime64[us, UTC], expiry is text (YYYY-MM-DD), right is C or P, open interest and
            volume are contracts, implied volatility is per year, prices are in quote currency;
            NaN = unknown. `as_of` is the moment the data describe, `available_at` the moment they
            could first be had.

        Raises:
            SourceError: one of its subclasses, by what went wrong.
        """
        ...


@runtime_checkable
class DailySource(MarketSource, Protocol):
    """A source that serves daily bars too; what has a method `daily` is one."""

    def daily(self, symbol: str, first: str, last: str, now: dt.datetime) -> pd.DataFrame:
        """Daily bars of the sessions that are over at `now`; never the unfinished one.

        Args:
            symbol: ticker symbol.
            first: first session wanted.
            last: last session wanted; included.
            now: aware time of asking.

        Returns:
            Frame with the columns `DAILY_COLUMNS`, ascending `session`, prices as in `bars`,
            NaN = unknown (volume); sessions the source has nothing of are left out.

        Raises:
            SourceError: one of its subclasses, by what went wrong.
        """
        ...


def available_sources() -> tuple[str, ...]:
    """Names of the installed sources."""
    return tuple(sorted(point.name for point in entry_points(group=GROUP)))


def open_source(name: str, options: SourceOptions) -> MarketSource:
    """Opens an installed source.

    Raises:
        UnknownSource: there is none of this name.
        BadInput: the source refuses the options.
    """
    for point in entry_points(group=GROUP):
        if point.name == name:
            source: MarketSource = point.load()(options)
            return source
    known = ", ".join(available_sources())
    raise UnknownSource(f"HEDGE_SOURCE={name!r}: no such source; installed are {known}")
