"""A market whose faults are chosen, and a clock as fast as the work, for the live side."""

from __future__ import annotations

import datetime as dt
import shutil
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from hedge_pipeline import stages
from hedge_pipeline.live.loop import Poll, run_loop
from hedge_pipeline.market.calendar import Session, SessionCalendar
from hedge_pipeline.market.sources import Capabilities, MarketSource, NoDataYet, SourceError
from hedge_pipeline.market.tables import (
    FEATURE_ROWS,
    OUTCOMES,
    PREDICTION_LOG,
    RAW_QUOTES,
    Table,
)
from hedge_pipeline.settings import load_settings
from hedge_pipeline.stages import Deployment
from hedge_pipeline.store import Store

SECOND, MINUTE, HOUR = dt.timedelta(seconds=1), dt.timedelta(minutes=1), dt.timedelta(hours=1)
HALF_DAY = "2024-11-29"  # 09:30 to 13:00 in New York, 210 bars
BEFORE = ("2024-11-20", "2024-11-21", "2024-11-22", "2024-11-25", "2024-11-26", "2024-11-27")
FULL_DAY = "2024-12-02"
SYMBOLS = ("SIMA", "SIMB")
OUTSIDE = ("available_at", "ingested_at")


@cache
def walk(symbol: str, session: Session) -> pd.DataFrame:
    """Every bar of a session: a random walk that is always the same."""
    random = np.random.default_rng(zlib.crc32(f"{symbol} {session.label}".encode()))
    close = np.round(100 * np.exp(np.cumsum(random.normal(0, 5e-4, session.bars))), 2)
    opened = np.concatenate([[100.0], close[:-1]])
    return pd.DataFrame(
        {
            "bar_ts": pd.DatetimeIndex(session.bar_ts).tz_localize("UTC"),
            "open": opened,
            "high": np.maximum(opened, close) + 0.01,
            "low": np.minimum(opened, close) - 0.01,
            "close": close,
            "volume": random.integers(1, 10_000, session.bars).astype(float),
            "bid": np.nan,
            "ask": np.nan,
            "support": np.nan,
            "resistance": np.nan,
        }
    )


@dataclass
class FakeMarket(MarketSource):
    """Random walks with the faults a test asks for.

    Attributes:
        delay: of every bar.
        holes: when a bar that is missing at first is delivered, by symbol and bar start.
        outages: error raised while it lasts, by symbol ("" = every one), from, until.
        slow: seconds the next answers for a symbol take, one item each.
        held: answers for the symbol wait until the event is set.
        asked: how often each symbol was asked for.
    """

    delay: dt.timedelta = dt.timedelta(0)
    holes: dict[tuple[str, dt.datetime], dt.datetime] = field(default_factory=dict)
    outages: list[tuple[str, dt.datetime, dt.datetime, SourceError]] = field(default_factory=list)
    slow: dict[str, list[float]] = field(default_factory=dict)
    held: dict[str, threading.Event] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    name: str = "fake"
    capabilities: Capabilities = field(default_factory=Capabilities)

    def bars(self, symbol: str, session: Session, now: dt.datetime) -> pd.DataFrame:
        self.asked[symbol] += 1
        if self.slow.get(symbol):
            time.sleep(self.slow[symbol].pop(0))
        if symbol in self.held:
            assert self.held[symbol].wait(30)
        for whose, begin, end, error in self.outages:
            if whose in ("", symbol) and begin <= now < end:
                raise error
        length = dt.timedelta(seconds=session.bar_seconds)
        frame = walk(symbol, session)
        final = frame["bar_ts"] + length + self.delay <= pd.Timestamp(now)
        missing = {bar for (s, bar), filled in self.holes.items() if s == symbol and filled > now}
        frame = frame[final & ~frame["bar_ts"].isin(missing)].reset_index(drop=True)
        if frame.empty:
            raise NoDataYet(f"no bar of {session.label} is final yet")
        return frame


class FakeClock:
    """Time that passes only in sleep; actions happen when it reaches their moment."""

    def __init__(self, now: dt.datetime) -> None:
        self.now = now
        self.planned: list[tuple[dt.datetime, Callable[[], None]]] = []

    def __call__(self) -> dt.datetime:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += dt.timedelta(seconds=seconds)
        for moment, action in [item for item in self.planned if item[0] <= self.now]:
            self.planned.remove((moment, action))
            action()

    def at(self, moment: dt.datetime, action: Callable[[], None]) -> None:
        self.planned.append((moment, action))


def deployment_in(
    folder: Path,
    market: MarketSource,
    clock: Callable[[], dt.datetime],
    symbols: Iterable[str] = SYMBOLS,
    calendar: str = "XNYS",
    **given: Any,
) -> Deployment:
    """A fresh deployment on a folder, as after a start: nothing is remembered."""
    values = {
        "HEDGE_DATA_URL": str(folder),
        "HEDGE_MODE": "live",
        "HEDGE_SYMBOLS": ",".join(symbols),
        "HEDGE_CALENDAR": calendar,
    }
    settings = load_settings(**{**values, **given})
    made = stages.deploy(settings, lambda _: market, clock=clock)
    return replace(made, calendar=calendar_of(calendar, settings.bar_seconds))


@cache
def calendar_of(name: str, bar_seconds: int = 60) -> SessionCalendar:
    return SessionCalendar(name, bar_seconds=bar_seconds)


def history_in(folder: Path, **given: Any) -> Path:
    """Six sessions before the half day, and a first model of each symbol."""
    morning = dt.datetime(2024, 11, 29, 5, tzinfo=dt.UTC)
    deployment = deployment_in(folder, FakeMarket(), lambda: morning, **given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "hedge_pipeline.stages.training.guard", lambda *_: None
        )  # a random walk teaches nothing
        found = stages.bootstrap(deployment, BEFORE)
    assert all(words.startswith("version 1") for words in found["models"].values()), found
    return folder


def copy_of(history: Path, folder: Path) -> Path:
    shutil.copytree(history, folder)
    return folder


@dataclass
class Watch:
    """A deployment with its clock, and the polls of the loops that ran on it."""

    deployment: Deployment
    clock: FakeClock
    polls: list[Poll] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return self.deployment.store

    def run(
        self, until: dt.datetime, interval: dt.timedelta = MINUTE, run_id: str = "run-1"
    ) -> int:
        return run_loop(
            self.deployment,
            run_id=run_id,
            interval=interval,
            until=until,
            sleep=self.clock.sleep,
            report=self.polls.append,
            warn=self.warnings.append,
        )

    def rows(
        self, table: Table, label: str, symbol: str | None = None, role: str | None = None
    ) -> pd.DataFrame:
        frame = self.store.read(table, [label], symbols=[symbol] if symbol else None)
        if role:
            frame = frame[frame["role"] == role]
        return frame.reset_index(drop=True)

    def served(self, label: str, symbol: str | None = None) -> pd.DataFrame:
        return self.rows(PREDICTION_LOG, label, symbol, "served")


def watch(
    folder: Path,
    market: MarketSource,
    now: dt.datetime,
    symbols: Iterable[str] = SYMBOLS,
    calendar: str = "XNYS",
    **given: Any,
) -> Watch:
    clock = FakeClock(now)
    return Watch(deployment_in(folder, market, clock, symbols, calendar, **given), clock)


def minutes(session: Session, *indices: int) -> list[dt.datetime]:
    """Starts of the bars at these positions, aware."""
    return [session.opens.astimezone(dt.UTC) + index * MINUTE for index in indices]


def stored_twice(folder: Path, tables: Sequence[Table]) -> dict[str, int]:
    """Keys that are in the files more than once, by table; readers hide them."""
    found = {}
    for table in tables:
        files = [pd.read_parquet(x, partitioning=None) for x in folder.glob(f"{table.name}/*/*")]
        rows = pd.concat(files) if files else table.empty()
        found[table.name] = int(rows.duplicated(list(table.key)).sum())
    return {name: count for name, count in found.items() if count}


def assert_same_session(
    found: Store,
    wanted: Store,
    label: str,
    *,
    ignoring: Sequence[str] = OUTSIDE,
    decisions: Sequence[str] = ("decided_at", "mode"),
) -> None:
    """Bars, features, predictions and outcomes of a session, bit for bit but for some columns."""
    for table in (RAW_QUOTES, FEATURE_ROWS, PREDICTION_LOG, OUTCOMES):
        left_out = [*ignoring, *decisions] if table is PREDICTION_LOG else list(ignoring)
        left, right = (
            store.read(table, [label]).drop(columns=left_out, errors="ignore")
            for store in (found, wanted)
        )
        assert len(right), table.name
        assert_frame_equal(
            left.reset_index(drop=True),
            right.reset_index(drop=True),
            check_exact=True,
            obj=table.name,
        )
