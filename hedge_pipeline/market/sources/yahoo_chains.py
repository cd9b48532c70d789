"""Yahoo's option chains: which expirations to ask for, and what an answer says.

Nothing here asks; see `yahoo.py`. An answer to `/v7/finance/options/<symbol>` names every
expiration and holds the contracts of one. Its numbers drift between integers and floats, its keys
may be missing, and its data are about 30 minutes old.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hedge_pipeline.market.sources.protocol import CHAIN_COLUMNS, SchemaDrift

if TYPE_CHECKING:
    import pandas as pd

CHAIN_DELAY = dt.timedelta(minutes=30)
FRONT_EXPIRATIONS = 4
MONTHLIES = 4
_FRIDAY = 4
_FIELDS = {
    "strike": "strike",
    "openInterest": "open_interest",
    "volume": "volume",
    "impliedVolatility": "implied_volatility",
    "bid": "bid",
    "ask": "ask",
    "lastPrice": "last",
}


@dataclass(frozen=True)
class Page:
    """One answer: every expiration Yahoo lists, and the contracts of one of them.

    Attributes:
        expirations: Unix times of midnight UTC, ascending.
        expiration: the one whose contracts these are; None = there are none.
        contracts: rows with strike, right, open_interest, volume, implied_volatility, bid, ask,
            last; NaN = unknown.
    """

    expirations: tuple[int, ...]
    expiration: int | None
    contracts: pd.DataFrame


def read_page(symbol: str, content: Any) -> Page | None:
    """Reads an answer; None if Yahoo lists no options of the symbol.

    Raises:
        SchemaDrift: the answer has another shape.
    """
    try:
        results = content["optionChain"]["result"]
        if not results or not results[0]["expirationDates"]:
            return None
        expirations = tuple(sorted(int(x) for x in results[0]["expirationDates"]))
        options = results[0]["options"]
        if not options:
            return Page(expirations, None, _contracts([], []))
        contracts = _contracts(options[0]["calls"], options[0]["puts"])
        return Page(expirations, int(options[0]["expirationDate"]), contracts)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise SchemaDrift(
            f"{symbol}: Yahoo's option chain has an unknown shape ({type(error).__name__}: {error})"
        ) from error


def _contracts(calls: Sequence[Any], puts: Sequence[Any]) -> pd.DataFrame:
    import pandas as pd

    sides = []
    for right, rows in (("C", calls), ("P", puts)):
        side = pd.DataFrame(rows).reindex(columns=list(_FIELDS)).rename(columns=_FIELDS)
        sides.append(side.astype("float64").assign(right=right))
    return pd.concat(sides, ignore_index=True)


def expirations_to_ask(listed: Iterable[int], today: dt.date, *, sweep: bool) -> tuple[int, ...]:
    """Which of the listed expirations to ask for, ascending.

    All of them in a sweep; otherwise the nearest ones and the next standard monthlies. Yahoo lists
    an expired series until the evening: what lies before today is left out.

    Args:
        listed: Unix times of midnight UTC.
        today: exchange date.
        sweep: every expiration.
    """
    days = {at: _day(at) for at in sorted(listed) if _day(at) >= today}
    if sweep:
        return tuple(days)
    monthlies = [at for at, day in days.items() if _is_monthly(day, set(days.values()))]
    return tuple(sorted({*list(days)[:FRONT_EXPIRATIONS], *monthlies[:MONTHLIES]}))


def snapshot(pages: Sequence[Page], now: dt.datetime) -> pd.DataFrame:
    """The pages as one snapshot with the columns `CHAIN_COLUMNS`.

    Args:
        pages: answers that hold contracts.
        now: aware time of asking; the data describe the moment 30 minutes earlier.
    """
    import pandas as pd

    frames = [
        page.contracts.assign(expiry=_day(page.expiration).isoformat())
        for page in pages
        if page.expiration is not None
    ]
    rows = pd.concat(frames, ignore_index=True)
    asked = pd.Timestamp(now.replace(microsecond=0)).tz_convert("UTC").as_unit("us")
    rows = rows.assign(as_of=asked - CHAIN_DELAY, available_at=asked)
    rows = rows[rows["strike"] > 0].drop_duplicates(["expiry", "strike", "right"])
    return rows.reset_index(drop=True)[list(CHAIN_COLUMNS)]


def _day(at: int) -> dt.date:
    return dt.datetime.fromtimestamp(at, dt.UTC).date()


def _is_monthly(day: dt.date, listed: set[dt.date]) -> bool:
    """Whether it is a third Friday, or the day before one that is no trading day."""
    following = day + dt.timedelta(days=1)
    return _is_third_friday(day) or (_is_third_friday(following) and following not in listed)


def _is_third_friday(day: dt.date) -> bool:
    return day.weekday() == _FRIDAY and 15 <= day.day <= 21
