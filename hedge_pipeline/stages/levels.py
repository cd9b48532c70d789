"""Hedge levels of the stored snapshots of option chains.

Levels of a snapshot are computed from it and the earlier snapshots of its session alone, in the
order they became available: computing them again gives the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hedge_pipeline.levels.chain import Chain, chain_columns
from hedge_pipeline.levels.exposure import gamma_profile, priced
from hedge_pipeline.levels.gaps import DailyBars
from hedge_pipeline.levels.joining import NO_CHAIN
from hedge_pipeline.levels.snapshot import CHAIN_LEVELS, gated, row_of
from hedge_pipeline.levels.strength import RANK_SESSIONS, ranks
from hedge_pipeline.market.calendar import to_datetime64, utc_times
from hedge_pipeline.market.tables import (
    DAILY_BARS,
    HEDGE_LEVELS,
    OPTION_CHAINS,
    RAW_QUOTES,
    in_pandas,
)
from hedge_pipeline.stages.chains import stored_snapshots

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.market.calendar import Session
    from hedge_pipeline.stages.deployment import Deployment

OLDEST_SPOT = np.timedelta64(15, "m")


@dataclass(frozen=True, eq=False)
class ChainsDone:
    """How far the snapshots of a symbol were read.

    Attributes:
        session: label of their session.
        snapshots: `as_of` of those that were read.
        earlier: the last usable chain, what the next snapshot may borrow from.
        last: (available_at, as_of) of the last one; empty = none was read.
    """

    session: str
    snapshots: frozenset[Any] = frozenset()
    earlier: Chain | None = None
    last: tuple[Any, ...] = ()


def build_levels(deployment: Deployment, label: str) -> int:
    """Computes the levels of every stored snapshot of a session anew; returns the rows.

    A symbol with daily bars has a first row at the open, with half gaps only.
    """
    session = deployment.calendar.session(label)
    rows = [
        row
        for symbol, daily in daily_bars(deployment, deployment.symbols, session).items()
        for row in _session_rows(deployment, label, symbol, daily, known=frozenset())
    ]
    frame = in_pandas(HEDGE_LEVELS.of_records(rows)) if rows else HEDGE_LEVELS.empty()
    ranked = _with_ranks(deployment, label, frame, HEDGE_LEVELS.empty())
    return deployment.store.replace(HEDGE_LEVELS, label, ranked)


def build_missing_levels(deployment: Deployment, label: str, symbol: str) -> int:
    """Computes the levels of the symbol's snapshots that have none yet; returns how many."""
    present = deployment.store.read(HEDGE_LEVELS, [label], symbols=[symbol])
    daily = daily_bars(deployment, [symbol], deployment.calendar.session(label))[symbol]
    rows = list(_session_rows(deployment, label, symbol, daily, frozenset(present["as_of"])))
    if not rows:
        return 0
    frame = in_pandas(HEDGE_LEVELS.of_records(rows))
    ranked = _with_ranks(deployment, label, frame, present)
    return deployment.store.append(HEDGE_LEVELS, label, ranked)


def _session_rows(
    deployment: Deployment, label: str, symbol: str, daily: DailyBars, known: frozenset[Any]
) -> Iterator[dict[str, object]]:
    """Rows of `hedge_levels` without ranks, of the snapshots that are not known."""
    import pandas as pd

    session = deployment.calendar.session(label)
    rules = deployment.level_rules
    common = {"symbol": symbol, "dealer_sign": deployment.dealer_sign, "gex_rank": np.nan}
    common |= {"vanna_rank": np.nan}
    if len(daily.close) and pd.Timestamp(session.opens) not in known:
        yield common | _opening_row(session, daily, deployment)
    stored = stored_snapshots(deployment, label, symbol)
    if not stored - known:
        return
    done, chains = _read_on(deployment, label, symbol, stored, known)
    columns = chain_columns(chains)
    prices = _Prices(deployment, session, symbol)
    earlier, last = done.earlier, done.last
    groups = chains.groupby(["available_at", "as_of"]).indices
    for key, place in sorted(groups.items()):
        available_at, as_of = cast("tuple[pd.Timestamp, pd.Timestamp]", key)
        snapshot = gated(
            Chain.from_columns(
                {name: values[place] for name, values in columns.items()}, as_of.to_pydatetime()
            ),
            available_at=available_at.to_pydatetime(),
            spot=prices.at(as_of, available_at),
            earlier=earlier if _is_before(earlier, as_of) else None,
            rules=rules,
        )
        if snapshot.usable:
            earlier = snapshot.chain
        last = (available_at, as_of)
        if as_of not in known:
            yield common | row_of(snapshot, daily=daily, rules=rules)
    deployment.chains_done[symbol] = ChainsDone(label, frozenset(stored), earlier, last)


def _read_on(
    deployment: Deployment, label: str, symbol: str, stored: set[Any], known: frozenset[Any]
) -> tuple[ChainsDone, pd.DataFrame]:
    """How far the symbol's snapshots were read in this process, and the contracts of the others.

    A day's chains take a second and half a gigabyte to read. They are read on only where that
    gives what reading all would: every other snapshot came later than those that were read, and
    those have their levels. Otherwise all are read.
    """

    def read(snapshots: set[Any]) -> pd.DataFrame:
        only = {"symbol": [symbol], "as_of": sorted(snapshots)}
        return deployment.store.read(OPTION_CHAINS, [label], only=only)

    done = deployment.chains_done.get(symbol, ChainsDone(label))
    if done.session == label and done.snapshots <= stored & known:
        chains = read(stored - done.snapshots)
        order = chains[["available_at", "as_of"]].drop_duplicates().itertuples(index=False)
        if all(tuple(moment) > done.last for moment in order):
            return done, chains
    return ChainsDone(label), read(stored)


def newest_profile(
    deployment: Deployment, label: str, symbol: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
    """Gamma exposure of the session's newest usable snapshot over a grid of prices.

    Returns:
        Prices in quote currency and exposures in dollars per 1 % move, both of shape [points];
        None if no snapshot is usable.
    """
    rows = deployment.store.read(HEDGE_LEVELS, [label], symbols=[symbol])
    rows = rows[rows["usable"].astype(bool)].sort_values("available_at")
    if rows.empty:
        return None
    rules, newest = deployment.level_rules, rows.iloc[-1]
    only = {"symbol": [symbol], "as_of": [newest["as_of"]]}
    contracts = deployment.store.read(OPTION_CHAINS, [label], only=only)
    chain = Chain.from_frame(contracts, newest["as_of"].to_pydatetime())
    spot, reach = float(newest["spot"]), rules.flip_range
    spots = np.linspace((1 - reach) * spot, (1 + reach) * spot, rules.flip_points)
    return spots, gamma_profile(chain.part(priced(chain, rules)), spots, rules)


def _is_before(earlier: Chain | None, as_of: pd.Timestamp) -> bool:
    """Whether the later snapshot may borrow: it is of the same New York day."""
    if earlier is None or as_of < earlier.as_of:
        return False
    day = as_of.tz_convert("America/New_York").date()
    return bool(earlier.day == np.datetime64(day, "D"))


def _opening_row(session: Session, daily: DailyBars, deployment: Deployment) -> dict[str, object]:
    """Half gaps around yesterday's close, before the first chain."""
    from hedge_pipeline.levels.gaps import half_gaps

    spot = float(daily.close[-1])
    gaps = half_gaps(daily, spot, deployment.level_rules)
    return {
        **dict.fromkeys(CHAIN_LEVELS, np.nan),
        "as_of": session.opens,
        "available_at": session.opens,
        "spot": spot,
        "hg_below": gaps.below,
        "hg_above": gaps.above,
        "gamma_flip_count": None,
        "contracts": 0,
        "usable": False,
        "unusable_reason": NO_CHAIN,
        "oi_reused": False,
    }


def daily_bars(
    deployment: Deployment, symbols: Sequence[str], session: Session
) -> dict[str, DailyBars]:
    """Daily bars of the sessions before this one that were known when it opened, by symbol.

    One entry for every session of the calendar in the window, from the first that is known on;
    NaN = unknown.
    """
    calendar, length = deployment.calendar, deployment.level_rules.gap_sessions
    before = calendar.labels[: calendar.ordinal(session.label)][-length:]
    stored = deployment.store.read(DAILY_BARS, before, symbols=symbols)
    known = utc_times(stored["available_at"]) < to_datetime64(session.opens)
    owners = stored["symbol"].to_numpy(dtype=object)
    places = {day: place for place, day in enumerate(before)}
    place = np.array([places[day] for day in stored["session"]], dtype=np.int64)
    values = stored[["high", "low", "close"]].to_numpy(dtype=float).T
    found = dict.fromkeys(symbols, DailyBars.none())
    for symbol in symbols:
        own = known & (owners == symbol)
        if own.any():
            window = np.full((3, len(before)), np.nan)
            window[:, place[own]] = values[:, own]
            found[symbol] = DailyBars(*window[:, place[own].min() :])
    return found


class _Prices:
    """Closes of a symbol's bars by the moment they were known; yesterday's before the first."""

    def __init__(self, deployment: Deployment, session: Session, symbol: str) -> None:
        length = np.timedelta64(session.bar_seconds, "s")
        self._opens, self._closes = to_datetime64(session.opens), to_datetime64(session.closes)
        before = deployment.calendar.previous(session.label)
        labels = [session.label] if before is None else [before, session.label]
        columns = ("symbol", "bar_ts", "close", "available_at")
        bars = deployment.store.read(RAW_QUOTES, labels, symbols=[symbol], columns=columns)
        bars = bars.sort_values("bar_ts")
        self._ends = bars["bar_ts"].dt.tz_localize(None).to_numpy() + length
        self._known = bars["available_at"].dt.tz_localize(None).to_numpy()
        self._close = bars["close"].to_numpy(dtype=float)

    def at(self, as_of: pd.Timestamp, available_at: pd.Timestamp) -> float:
        """Close of the last bar that had ended at `as_of` and was known at `available_at`.

        During the session a price that is a quarter of an hour old is none: walls move with it.
        """
        moment = to_datetime64(as_of)
        seen = np.flatnonzero((self._ends <= moment) & (self._known <= to_datetime64(available_at)))
        if not len(seen):
            return float("nan")
        during = moment >= self._opens
        age = min(moment, self._closes) - self._ends[seen[-1]]
        return float("nan") if during and age > OLDEST_SPOT else float(self._close[seen[-1]])


def _with_ranks(
    deployment: Deployment, label: str, rows: pd.DataFrame, present: pd.DataFrame
) -> pd.DataFrame:
    """Fills in the ranks of the exposures among the symbol's snapshots of the last sessions."""
    import pandas as pd

    exposures = {"gex_rank": "gex", "vanna_rank": "vanna_exposure"}
    if rows[list(exposures.values())].isna().all(axis=None):
        return rows
    calendar = deployment.calendar
    place = calendar.ordinal(label)
    before = calendar.labels[max(0, place - RANK_SESSIONS + 1) : place]
    columns = ["symbol", "available_at", "as_of", *exposures.values()]
    history = deployment.store.read(HEDGE_LEVELS, before, columns=columns)
    known = pd.concat([history, present[columns]])
    pieces = []
    for symbol, own in rows.groupby("symbol", sort=True):
        earlier = known[known["symbol"] == symbol].assign(new=False)
        both = pd.concat([earlier, own.assign(new=True)]).sort_values(["available_at", "as_of"])
        day = both["available_at"].dt.tz_convert(calendar.timezone).dt.strftime("%Y-%m-%d")
        # what came on a day without a session counts for the session before
        ordinals = np.searchsorted(calendar.labels, day.to_numpy(dtype=str), side="right") - 1
        new = both["new"].to_numpy(dtype=np.bool_)
        own = own.sort_values(["available_at", "as_of"])
        found = {
            name: ranks(both[exposure].to_numpy(dtype=float), ordinals)[new]
            for name, exposure in exposures.items()
        }
        pieces.append(own.assign(**found))
    return pd.concat(pieces, ignore_index=True)


def build_all_missing_levels(deployment: Deployment, label: str) -> int:
    """Levels of the session's snapshots that have none yet, of every symbol; returns how many."""
    return sum(build_missing_levels(deployment, label, symbol) for symbol in deployment.symbols)
