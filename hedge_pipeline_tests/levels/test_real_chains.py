"""Levels of recorded chains: what a vendor really sends, and what must be refused."""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest

from hedge_pipeline.levels.chain import CHAIN_COLUMNS, Chain, parity_price
from hedge_pipeline.levels.exposure import exposure
from hedge_pipeline.levels.gaps import DailyBars
from hedge_pipeline.levels.rules import LevelRules
from hedge_pipeline.levels.snapshot import CHAIN_LEVELS
from hedge_pipeline.levels.walls import monthlies
from hedge_pipeline_tests.levels.chains import MONTHLIES, levels_of, snapshot_of

pytestmark = pytest.mark.shared_data

NEW_YORK = ZoneInfo("America/New_York")
YAHOO_DELAY = dt.timedelta(minutes=30)
# what Yahoo lacks here: gap levels come from bars, not from the chain
NO_BARS = DailyBars.none()


@dataclass(frozen=True, eq=False)
class Recorded:
    """A snapshot with the price of the underlying at its time."""

    symbol: str
    frame: pd.DataFrame
    as_of: dt.datetime
    available_at: dt.datetime
    spot: float

    def levels(self, rules: LevelRules | None = None) -> dict[str, Any]:
        return levels_of(
            self.frame,
            as_of=self.as_of,
            available_at=self.available_at,
            spot=self.spot,
            daily=NO_BARS,
            rules=rules,
        )

    @property
    def chain(self) -> Chain:
        return Chain.from_frame(self.frame, self.as_of)

    @property
    def clock(self) -> str:
        return f"{self.as_of.astimezone(NEW_YORK):%H:%M}"

    @property
    def day(self) -> str:
        return f"{self.as_of.astimezone(NEW_YORK):%Y-%m-%d}"

    def lists_the_day(self) -> bool:
        return self.day in set(self.frame["expiry"].astype(str))


def last_close(bars: pd.DataFrame, symbol: str, as_of: pd.Timestamp, bar: pd.Timedelta) -> float:
    """Close of the last bar that had ended; NaN if that is more than a quarter of an hour ago."""
    ended = bars[(bars["symbol"] == symbol) & (bars["ts"] + bar <= as_of)]
    stale = as_of - ended["ts"].iloc[-1] > pd.Timedelta(minutes=15)
    return math.nan if stale else float(ended["close"].iloc[-1])


def snapshots(chains: pd.DataFrame) -> Iterator[tuple[str, pd.Timestamp, pd.DataFrame]]:
    """Symbol, time and rows of every snapshot of a file."""
    for _, frame in chains.groupby(["symbol", "as_of"]):
        first = frame.iloc[0]
        yield str(first["symbol"]), pd.Timestamp(first["as_of"]), frame


@lru_cache(maxsize=1)
def yahoo_chains(folder: Path) -> tuple[Recorded, ...]:
    """Whole chains of February 2026; fetched half an hour after their newest trade."""
    bars = pd.read_parquet(folder / "bars_1m_qqq_spy_2026-01_2026-03.parquet")
    chains = pd.read_parquet(folder / "options_yahoo_qqq_spy_2026-02.parquet")
    return tuple(
        Recorded(
            symbol,
            frame,
            as_of.to_pydatetime(),
            as_of.to_pydatetime() + YAHOO_DELAY,
            last_close(bars, symbol, as_of, pd.Timedelta(minutes=1)),
        )
        for symbol, as_of, frame in snapshots(chains)
    )


@lru_cache(maxsize=1)
def cboe_chains(folder: Path) -> tuple[Recorded, ...]:
    """The nearest ten expirations, 27 sessions of summer 2026."""
    bars = pd.read_parquet(folder / "bars_5m_qqq_spy_2026-05_2026-08.parquet")
    chains = pd.read_parquet(folder / "options_cboe_qqq_spy_2026-07_2026-08.parquet")
    return tuple(
        Recorded(
            symbol,
            frame,
            as_of.to_pydatetime(),
            frame["fetched"].iloc[0].to_pydatetime(),
            last_close(bars, symbol, as_of, pd.Timedelta(minutes=5)),
        )
        for symbol, as_of, frame in snapshots(chains)
    )


# -- whole chains of Yahoo ---------------------------------------------------------------------


def test_february_chains_give_the_levels_of_those_days(shared_data: Path) -> None:
    """QQQ fell from 612 to 600: puts at 600, dealers short gamma below 613 to 619."""
    found = [x for x in yahoo_chains(shared_data) if x.symbol == "QQQ"]
    assert len(found) == 5
    for snapshot in found:
        row = snapshot.levels()
        assert row["usable"], row["unusable_reason"]
        assert 600 < row["spot"] < 613
        assert row["put_oi_wall"] == 600
        assert row["call_oi_wall"] in (620, 630)
        assert row["gex"] < 0
        assert row["gex_ex_front"] < 0
        assert row["gamma_flip_count"] == 1
        assert 613 <= row["gamma_flip"] <= 619
        assert row["spot"] < row["gamma_flip"]
        assert 0.19 < row["atm_iv"] < 0.25
        assert 0.05 < row["skew_25d"] < 0.11
        assert abs(row["gex"]) < row["gex_gross"]
        assert row["hp_support"] <= row["spot"] <= row["hp_resistance"]


def test_monthly_levels_of_february_are_round_strikes_with_puts(shared_data: Path) -> None:
    for snapshot in yahoo_chains(shared_data):
        row = snapshot.levels()
        months = monthlies(snapshot.chain.expirations, 4)
        assert months.astype(str).tolist() == list(MONTHLIES)
        assert row["mhp_support"] in (600, 610, 680, 690)
        assert 0.5 < row["mhp_score"] < 1


def test_juneteenth_moves_the_monthly_to_thursday(shared_data: Path) -> None:
    expirations = yahoo_chains(shared_data)[0].chain.expirations
    months = monthlies(expirations, 20).astype(str).tolist()
    assert "2026-06-18" in months
    assert "2027-06-17" in months
    assert "2027-12-17" in months


def test_the_price_at_the_snapshot_s_time_is_the_one_its_quotes_imply(shared_data: Path) -> None:
    """Half an hour later, when the file was fetched, it was another."""
    gaps = []
    for snapshot in yahoo_chains(shared_data):
        implied = parity_price(snapshot.chain)
        gaps.append(abs(implied / snapshot.spot - 1))
        assert gaps[-1] < 1e-3
    later = [abs(float(x.frame["spot"].iloc[0]) / x.spot - 1) for x in yahoo_chains(shared_data)]
    assert np.mean(gaps) < np.mean(later) / 3


def test_yahoo_s_calls_and_puts_disagree_and_the_smile_does_not_care(shared_data: Path) -> None:
    """Its volatilities are inverted without interest: calls too high, puts too low."""
    snapshot = yahoo_chains(shared_data)[0]
    chain = snapshot.chain
    month = (chain.expiry == np.datetime64("2026-03-13")) & (
        np.abs(chain.strike - snapshot.spot) < 2
    )
    calls = chain.implied_volatility[month & chain.is_call].mean()
    puts = chain.implied_volatility[month & ~chain.is_call].mean()
    assert calls - puts > 0.02
    assert snapshot.levels()["atm_iv"] == pytest.approx((calls + puts) / 2, abs=0.005)


def test_every_default_reaches_the_flip_alike(shared_data: Path) -> None:
    """Interest and dividends move the flip by less than the spacing of two strikes."""
    snapshot = yahoo_chains(shared_data)[0]
    flips = [
        exposure(
            snapshot.chain, snapshot.spot, LevelRules(rate=rate, dividend_yield=dividends)
        ).flip
        for rate, dividends in ((0.0, 0.0), (0.03, 0.0), (0.04, 0.01), (0.05, 0.005))
    ]
    assert max(flips) - min(flips) < 1.5


def test_the_poll_of_some_expirations_is_completed_by_the_sweep(shared_data: Path) -> None:
    sweep, poll = yahoo_chains(shared_data)[1:3]
    assert sweep.as_of < poll.as_of
    earlier = snapshot_of(
        sweep.frame, as_of=sweep.as_of, available_at=sweep.available_at, spot=sweep.spot
    )
    front = poll.frame[poll.frame["expiry"].isin(sorted(poll.frame["expiry"].unique())[:2])]
    row: dict[str, Any] = levels_of(
        front,
        as_of=poll.as_of,
        available_at=poll.available_at,
        spot=poll.spot,
        daily=NO_BARS,
        earlier=earlier.chain,
    )
    whole = poll.levels()
    assert row["contracts"] == whole["contracts"]
    assert row["gamma_flip"] == pytest.approx(whole["gamma_flip"], rel=2e-3)
    assert row["hp_support"] == whole["hp_support"]
    assert row["gex"] < 0


# -- chains of CBOE ----------------------------------------------------------------------------


def test_cboe_chains_are_usable_or_say_why(shared_data: Path) -> None:
    rows = [snapshot.levels() for snapshot in cboe_chains(shared_data)]
    usable = [row for row in rows if row["usable"]]
    refused = Counter(
        re.sub(r"[0-9]", "9", row["unusable_reason"]) for row in rows if not row["usable"]
    )
    assert len(usable) == 86
    assert refused == {
        # bars end on 17 August
        "no spot price": 16,
        # the close was fetched the next morning, or on the weekend
        "taken at 99:99 New York, outside 99:99 to 99:99": 48,
        "quotes of 9999-99-99, but taken on 9999-99-99": 6,
    }
    for row in usable:
        assert row["gamma_flip_count"] == 1
        assert abs(row["gamma_flip"] / row["spot"] - 1) < 0.04
        assert math.isnan(row["atm_iv"])  # ten daily expirations do not reach 30 days


def test_a_close_that_was_fetched_the_next_morning_is_of_two_days(shared_data: Path) -> None:
    weekend = [
        snapshot
        for snapshot in cboe_chains(shared_data)
        if snapshot.clock in ("15:59", "16:00")
        and dt.time(12, 45) <= snapshot.available_at.time() <= dt.time(23, 59)
    ]
    assert weekend
    for snapshot in weekend:
        spot = float(snapshot.frame["spot"].iloc[0])
        assert replace(snapshot, spot=spot).levels()["unusable_reason"].startswith("quotes of 2026")


def test_the_series_of_the_day_is_gone_at_four(shared_data: Path) -> None:
    listed = [x for x in cboe_chains(shared_data) if x.lists_the_day()]
    ended = [x for x in listed if x.clock == "16:00"]
    assert ended
    assert len(listed) > 2 * len(ended)
    for snapshot in listed:
        front = str(snapshot.chain.expirations[0])
        assert (front == snapshot.day) == (snapshot not in ended)


def test_the_flip_of_the_default_grid_is_within_three_basis_points(shared_data: Path) -> None:
    for snapshot in cboe_chains(shared_data)[::20]:
        row = snapshot.levels()
        if row["usable"]:
            fine = exposure(snapshot.chain, snapshot.spot, LevelRules(flip_points=2001))
            assert row["gamma_flip"] == pytest.approx(fine.flip, rel=3e-4)


# -- single recorded answers of Yahoo ----------------------------------------------------------


def recorded_answer(path: Path) -> Recorded:
    """A chain request's answer: its contracts, its quote, and when it was given."""
    record = json.loads(path.read_text())
    body = record.get("body", record)
    answer = (json.loads(body) if isinstance(body, str) else body)["optionChain"]["result"][0]
    quote = answer["quote"]
    times = ("regularMarketTime", "preMarketTime", "postMarketTime")
    seconds = max(quote[name] for name in times if name in quote)
    fetched = dt.datetime.fromtimestamp(seconds, dt.UTC)
    rows = [
        {
            "expiry": f"{dt.datetime.fromtimestamp(series['expirationDate'], dt.UTC):%Y-%m-%d}",
            "strike": contract["strike"],
            "right": right,
            "open_interest": contract.get("openInterest"),
            "volume": contract.get("volume"),
            "implied_volatility": contract.get("impliedVolatility"),
            "bid": contract.get("bid"),
            "ask": contract.get("ask"),
        }
        for series in answer["options"]
        for right, side in (("C", "calls"), ("P", "puts"))
        for contract in series[side]
    ]
    frame = pd.DataFrame(rows, columns=list(CHAIN_COLUMNS))
    spot = float(quote["regularMarketPrice"])
    return Recorded(answer["underlyingSymbol"], frame, fetched - YAHOO_DELAY, fetched, spot)


@pytest.mark.parametrize(
    ("name", "clock"),
    [
        ("options-QQQ.v2.json", "05:19"),
        ("options-QQQ.v3.json", "04:24"),
        ("options-AAPL.v3.json", "04:24"),
    ],
)
def test_chains_of_the_early_morning_are_refused(name: str, clock: str, shared_data: Path) -> None:
    snapshot = recorded_answer(shared_data / "yahoo_json" / name)
    row = snapshot.levels()
    assert row["unusable_reason"] == f"taken at {clock} New York, outside 08:45 to 20:00"
    assert np.isnan([row[level] for level in CHAIN_LEVELS]).all()
    assert row["contracts"] > 90
    # and if the clock were wrong, the open interest would tell
    at_any_time = LevelRules(taken_from=dt.time(0))
    reason = snapshot.levels(at_any_time)["unusable_reason"]
    assert reason.startswith("open interest is zero or missing in ")


AFTERNOON_OF_AAPL = (
    "options_v7_AAPL.json",
    "options_v7_AAPL_1757030400.json",
    "options_v7_AAPL_1757635200.json",
    "options_v7_AAPL_1758240000.json",
    "options_v7_AAPL_1758844800.json",
    "options_v7_AAPL_1759449600.json",
    "options_v7_AAPL_1760659200.json",
    "options_v7_AAPL_1761868800.json",
)


@pytest.mark.parametrize("name", AFTERNOON_OF_AAPL)
def test_a_share_s_single_expiration_gives_front_levels_only(name: str, shared_data: Path) -> None:
    snapshot = recorded_answer(shared_data / "yahoo_json" / name)
    row = snapshot.levels()
    assert row["usable"], row["unusable_reason"]
    assert np.isfinite([row["hp_support"], row["hp_resistance"]]).any()
    assert not row["hp_support"] > row["spot"]
    assert not row["hp_resistance"] < row["spot"]
    assert row["gex_gross"] > 0
    assert math.isnan(row["gex_ex_front"])
    assert math.isnan(row["atm_iv"])
    monthly = snapshot.chain.expirations[0] in (
        np.datetime64("2025-09-19"),
        np.datetime64("2025-10-17"),
    )
    assert math.isnan(row["mhp_score"]) != monthly


@pytest.mark.parametrize(
    "name", ["options-AAPL-expire-2022-03-01.v3.json", "options-BTC-USD.v3.json"]
)
def test_an_answer_without_contracts_is_refused(name: str, shared_data: Path) -> None:
    snapshot = recorded_answer(shared_data / "yahoo_json" / name)
    at_any_time = LevelRules(taken_from=dt.time(0))
    assert snapshot.levels(at_any_time)["unusable_reason"] == "no contracts that are still alive"


def test_the_price_of_another_share_is_refused(shared_data: Path) -> None:
    """AAPL's chain with QQQ's price, and prices after a split."""
    aapl = recorded_answer(shared_data / "yahoo_json" / "options_v7_AAPL_1758240000.json")
    other = replace(aapl, spot=570.9).levels()["unusable_reason"]
    assert other.startswith("spot 570.9 lies outside the strikes")
    split = replace(aapl, spot=aapl.spot / 4).levels()["unusable_reason"]
    assert split == "spot 59.7475 is far from 239.09, which put-call parity implies"
    wide = next(x for x in yahoo_chains(shared_data) if x.symbol == "QQQ")
    split = replace(wide, spot=wide.spot / 2).levels()["unusable_reason"]
    assert split == "spot 305.71 is far from 611.42, which put-call parity implies"


def all_recorded(folder: Path) -> Iterator[Recorded]:
    """Every snapshot with contracts."""
    yield from yahoo_chains(folder)
    yield from cboe_chains(folder)[::10]


def test_the_order_of_real_rows_does_not_matter(shared_data: Path) -> None:
    for snapshot in all_recorded(shared_data):
        shuffled = replace(snapshot, frame=snapshot.frame.sample(frac=1, random_state=1))
        one, other = snapshot.levels(), shuffled.levels()
        assert np.array_equal(
            [one[name] for name in CHAIN_LEVELS],
            [other[name] for name in CHAIN_LEVELS],
            equal_nan=True,
        )
