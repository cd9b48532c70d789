"""Collecting: bars of a session, daily bars before it, and a cause for every hole."""

from __future__ import annotations

import datetime as dt
import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hedge_pipeline.market.bars import collect_bars, collect_days, find_gaps
from hedge_pipeline.market.sources import DailySource, NoDataYet, SourceError
from hedge_pipeline.market.tables import DAILY_BARS, GAPS, RAW_QUOTES, without
from hedge_pipeline.stages.deployment import NothingStored

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.market.calendar import Session
    from hedge_pipeline.stages.deployment import Deployment


@dataclass(frozen=True)
class CollectedSession:
    """What one collection brought.

    Attributes:
        bars: stored bars of the session, of every symbol.
        new: those that were not there before.
        gaps: expected minutes without a bar.
        failures: the error of each symbol that did not answer.
        without_days: the same for daily bars; no other stage needs them to go on.
    """

    bars: int
    new: int
    gaps: int
    failures: dict[str, SourceError]
    without_days: dict[str, SourceError] = field(default_factory=dict)


def collect(deployment: Deployment, label: str) -> CollectedSession:
    """Asks the source for a session and stores bars and gaps. Stored bars are never changed.

    Daily bars up to the session come with it, see `collect_daily_bars`.
    """
    session = deployment.calendar.session(label)
    asked_at = deployment.asked_at(session)
    watched_live = symbols_watched_live(deployment, session)
    failures: dict[str, SourceError] = {}
    new = 0
    for live in (False, True):
        answer = collect_bars(
            deployment.source,
            [symbol for symbol in deployment.symbols if (symbol in watched_live) is live],
            session,
            asked_at,
            nominal_arrival=session.closes <= asked_at and not live,
            ingested_at=None if deployment.replay else deployment.clock(),
        )
        failures.update(answer.failures)
        new += len(store_bars(deployment, label, answer.bars))
    found = _account_for_gaps(deployment, session, new, failures)
    return replace(found, without_days=collect_daily_bars(deployment, label))


def collect_daily_bars(
    deployment: Deployment, label: str, *, since: str | None = None
) -> dict[str, SourceError]:
    """Stores the daily bars that are missing of the last sessions up to this one.

    Only sessions that are over have one; wanted are its own and as many before it as hedge levels
    look back. A bar is available at the close, but one that came after the symbol was watched in a
    later session is available only now.

    Args:
        deployment: whose source and store.
        label: the last session wanted.
        since: as many as levels look back on from this earlier session are wanted, too.

    Returns:
        The error of each symbol whose daily bars could not be asked for.
    """
    import pandas as pd

    source = deployment.source
    if not isinstance(source, DailySource):
        return {}
    asked_at = deployment.asked_at(deployment.calendar.session(label))
    until = asked_at - source.delay
    days = deployment.level_rules.gap_sessions + 1  # the session's own bar is for those after it
    before = deployment.calendar.between(None, since or label)[-days:]
    wanted = deployment.calendar.between(before[0], label)
    wanted = tuple(x for x in wanted if deployment.calendar.session(x).closes <= until)
    stored = deployment.store.read(DAILY_BARS, wanted, columns=DAILY_BARS.key)
    known = set(zip(stored["symbol"], stored["session"], strict=True))
    failures: dict[str, SourceError] = {}
    found: list[pd.DataFrame] = []
    for symbol in deployment.symbols:
        missing = [x for x in wanted if (symbol, x) not in known]
        if not missing:
            continue
        try:
            found.append(collect_days(source, symbol, missing, asked_at))
        except NoDataYet:
            continue
        except SourceError as error:
            failures[symbol] = error
    for day, bars in pd.concat(found).groupby("session") if found else ():
        closed = deployment.calendar.session(str(day)).closes + source.delay
        late = bars["symbol"].isin(_watched_after(deployment, str(day)))
        available = late.map({True: pd.Timestamp(asked_at), False: pd.Timestamp(closed)})
        deployment.store.append(DAILY_BARS, str(day), bars.assign(available_at=available))
    return failures


def stored_bars(
    deployment: Deployment, label: str, since: dt.datetime | None = None
) -> pd.DataFrame:
    """The stored bars of a session, or of those only that begin at `since` or later.

    Raises:
        NothingStored: there are none.
    """
    stored = deployment.store.read(RAW_QUOTES, [label], since=since)
    if stored.empty:
        raise NothingStored(f"raw_quotes has no bars of {label}: materialize raw_quotes first")
    return stored


def store_bars(deployment: Deployment, label: str, bars: pd.DataFrame) -> pd.DataFrame:
    """Stores the bars that are not there yet; returns those."""
    if bars.empty:
        return bars
    first = bars["bar_ts"].min().to_pydatetime()
    known = deployment.store.read(RAW_QUOTES, [label], columns=RAW_QUOTES.key, since=first)
    new = without(bars, known, RAW_QUOTES.key)
    # another process may have been faster
    added = deployment.store.append(RAW_QUOTES, label, new, known=known)
    return new if added else new.iloc[:0]


def symbols_watched_live(deployment: Deployment, session: Session) -> frozenset[str]:
    """Symbols with a bar of the session that came later than it could have: somebody polled.

    What is added to such a session afterwards is available only now, and therefore late.
    """
    stored = deployment.store.read(
        RAW_QUOTES, [session.label], columns=("symbol", "bar_ts", "available_at")
    )
    nominal = dt.timedelta(seconds=session.bar_seconds) + deployment.source.delay
    polled = stored["available_at"] > stored["bar_ts"] + nominal
    return frozenset(stored.loc[polled, "symbol"])


def _watched_after(deployment: Deployment, label: str) -> frozenset[str]:
    """Symbols somebody polled in a later session; in a replay nobody does."""
    if deployment.replay:
        return frozenset()
    later = itertools.takewhile(lambda x: x > label, deployment.store.newest_first(RAW_QUOTES))
    watched = (symbols_watched_live(deployment, deployment.calendar.session(x)) for x in later)
    return frozenset().union(*watched)


def _account_for_gaps(
    deployment: Deployment, session: Session, new: int, failures: dict[str, SourceError]
) -> CollectedSession:
    stored = deployment.store.read(RAW_QUOTES, [session.label], columns=("symbol", "bar_ts"))
    until = min(session.closes, deployment.asked_at(session) - deployment.source.delay)
    gaps = find_gaps(stored, deployment.symbols, session, until, failures)
    deployment.store.replace(GAPS, session.label, _with_known_causes(deployment, session, gaps))
    return CollectedSession(len(stored), new, len(gaps), failures)


def _with_known_causes(
    deployment: Deployment, session: Session, gaps: pd.DataFrame
) -> pd.DataFrame:
    """A hole the source has confirmed stays one, whatever hinders the source later."""
    import pandas as pd

    earlier = deployment.store.read(GAPS, [session.label])
    if earlier.empty:
        return gaps
    key = ["symbol", "bar_ts"]
    confirmed = earlier[earlier["cause"] == "vendor_hole"]
    confirmed = confirmed.merge(gaps[key], on=key)
    return pd.concat([confirmed, gaps]).drop_duplicates(key)
