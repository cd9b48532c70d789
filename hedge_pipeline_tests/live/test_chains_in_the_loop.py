"""Broken option chains through the loop, and recorded chains through the replay.

A vendor's fault costs level features and nothing else, its reason is stored, and what was collected
bar by bar is what a replay makes of the same bars and chains.
"""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hedge_pipeline import stages
from hedge_pipeline.levels.joining import NO_CHAIN
from hedge_pipeline.levels.signals import NO_LEVEL
from hedge_pipeline.live import chain_polling
from hedge_pipeline.market.bars import days_of
from hedge_pipeline.market.calendar import Session
from hedge_pipeline.market.features import HEDGE_FEATURES
from hedge_pipeline.market.sources import (
    CHAIN_COLUMNS,
    Capabilities,
    SourceDown,
    SourceError,
    SourceOptions,
    open_source,
)
from hedge_pipeline.market.tables import (
    CHAIN_FETCHES,
    FEATURE_ROWS,
    HEDGE_LEVELS,
    LEVEL_EVIDENCE,
    OPTION_CHAINS,
    OUTCOMES,
    PREDICTION_LOG,
    RAW_QUOTES,
    TABLES,
    Table,
)
from hedge_pipeline.replay import replay
from hedge_pipeline.stages import Deployment
from hedge_pipeline.stages.levels import newest_profile
from hedge_pipeline.store import Store
from hedge_pipeline_tests.live.test_chain_polling import Inline
from hedge_pipeline_tests.live.test_loop import CLOSES, at
from hedge_pipeline_tests.markets import (
    BEFORE,
    HALF_DAY,
    HOUR,
    MINUTE,
    SECOND,
    SYMBOLS,
    FakeMarket,
    Watch,
    calendar_of,
    copy_of,
    deployment_in,
    history_in,
    walk,
    watch,
)

YESTERDAY, TODAY = BEFORE[-1], HALF_DAY
MONTHLIES = ("2024-12-20", "2025-01-17", "2025-02-21", "2025-03-21")
EXPIRIES = (TODAY, "2024-12-02", *MONTHLIES)
STRIKES = np.arange(90, 110.5, 0.5)
DELAY = 15 * MINUTE
Fault = Callable[[pd.DataFrame], pd.DataFrame]


def healthy(frame: pd.DataFrame) -> pd.DataFrame:
    return frame


def contracts(expiry: str, put_wall: float, call_wall: float) -> pd.DataFrame:
    """Both rights at every strike; quotes imply a price of 100."""
    grid = pd.MultiIndex.from_product([STRIKES, ["C", "P"]], names=["strike", "right"])
    frame = grid.to_frame(index=False)
    call = frame["right"] == "C"
    wall = frame["strike"] == np.where(call, call_wall, put_wall)
    value = 1 + np.maximum(np.where(call, 100 - frame["strike"], frame["strike"] - 100), 0)
    return frame.assign(
        expiry=expiry,
        open_interest=np.where(wall, 9000.0, 500.0),
        volume=10.0,
        implied_volatility=0.2 + 0.001 * np.abs(frame["strike"] - 100),
        bid=value - 0.01,
        ask=value + 0.01,
        last=np.nan,
    )


@dataclass
class ChainedMarket(FakeMarket):
    """Random walks with chains a quarter of an hour old, whose walls move every seven minutes.

    Attributes:
        reach: distance of the walls from 100.
        fault: what the vendor makes of an answer for the first symbol.
        until: when that ends.
    """

    reach: float = 4.5
    fault: Fault = healthy
    until: dt.datetime = dt.datetime(2100, 1, 1, tzinfo=dt.UTC)
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(has_chains=True))

    def chains(
        self, symbol: str, session: Session, now: dt.datetime, *, sweep: bool
    ) -> pd.DataFrame:
        wall = self.reach + 0.5 * (now.minute // 7 % 3)
        asked = pd.Timestamp(now).as_unit("us")
        pieces = [contracts(x, 100 - wall, 100 + wall) for x in (EXPIRIES if sweep else [TODAY])]
        frame = pd.concat(pieces, ignore_index=True)
        frame = frame.assign(as_of=asked - DELAY, available_at=asked)[list(CHAIN_COLUMNS)]
        return self.fault(frame) if symbol == SYMBOLS[0] and now < self.until else frame


@dataclass
class DailyMarket(ChainedMarket):
    """The same with daily bars, one session far above the others: its gap stays open."""

    def daily(self, symbol: str, first: str, last: str, now: dt.datetime) -> pd.DataFrame:
        calendar = calendar_of("XNYS")
        labels = [x for x in calendar.between(first, last) if calendar.session(x).closes <= now]
        days = days_of((label, walk(symbol, calendar.session(label))) for label in labels)
        prices = ["open", "high", "low", "close"]
        days.loc[days["session"] == BEFORE[2], prices] += 5
        return days


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_polling, "Thread", Inline)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return history_in(tmp_path_factory.mktemp("history") / "data")


# -- what a fault costs ----------------------------------------------------------------------------


def down(frame: pd.DataFrame) -> pd.DataFrame:
    raise SourceDown("SIMA: HTTP 503")


def nothing(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.iloc[:0]


def mostly_blank(frame: pd.DataFrame) -> pd.DataFrame:
    """Six of ten contracts have no open interest; some of them because it is missing."""
    place = np.arange(len(frame)) % 10
    interest = frame["open_interest"].mask(place < 4, 0.0).mask((place == 4) | (place == 5))
    return frame.assign(open_interest=interest)


def half_blank(frame: pd.DataFrame) -> pd.DataFrame:
    """Every put but the wall's, and the wall's call in exchange: exactly half."""
    return frame.assign(
        open_interest=frame["open_interest"].where((np.arange(len(frame)) // 2) % 2 == 0, 0.0)
    )


def only_expired(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["expiry"] == TODAY].assign(expiry=YESTERDAY)


def split(frame: pd.DataFrame) -> pd.DataFrame:
    """Two for one: the vendor's strikes and quotes are new, the bars are still the old ones."""
    return frame.assign(**{name: frame[name] / 2 for name in ("strike", "bid", "ask")})


def split_among_wide_strikes(frame: pd.DataFrame) -> pd.DataFrame:
    """The same where strikes reach so far that the old price is among them."""
    far = frame.assign(strike=frame["strike"] * 2, bid=np.nan, ask=np.nan, open_interest=1.0)
    return pd.concat([split(frame), far], ignore_index=True)


LEVEL_FEATURES = [feature.name for feature in HEDGE_FEATURES if not feature.name.startswith("hg_")]
FAULTY, HEALTHY = SYMBOLS
MOST_AGE = 3 * MINUTE


def polled(
    history: Path, folder: Path, market: ChainedMarket, until: dt.datetime, **given: Any
) -> Watch:
    """The first minutes of the half day, a chain every minute."""
    copy_of(history, folder)
    limits = {"CACHE_TTL": 60, "HEDGE_CHAIN_MAX_AGE": int(MOST_AGE.total_seconds())}
    found = watch(folder, market, at(1, 1), **{**limits, **given})
    found.run(until=until)
    return found


def features(found: Watch, symbol: str) -> pd.DataFrame:
    rows = found.rows(FEATURE_ROWS, TODAY, symbol).sort_values("bar_ts")
    return rows.set_index("available_at")[LEVEL_FEATURES]


def predicts_every_bar(found: Watch, minutes: int) -> pd.DataFrame:
    """The served rows of the faulty symbol, in order."""
    served = found.served(TODAY).sort_values("bar_ts")
    assert len(served) == minutes * len(SYMBOLS)
    assert served["prediction"].notna().all()
    assert set(served["mode"]) == {"live"}
    return served[served["symbol"] == FAULTY]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (down, NO_CHAIN),
        (nothing, NO_CHAIN),
        (mostly_blank, "open interest is zero or missing in "),
        (only_expired, "no contracts that are still alive"),
        (split, "lies outside the strikes 45 to 55"),
        (split_among_wide_strikes, "is far from 50, which put-call parity implies"),
    ],
)
def test_a_broken_chain_costs_its_level_features_until_it_is_mended(
    history: Path, tmp_path: Path, fault: Fault, reason: str
) -> None:
    mended = at(6)
    found = polled(history, tmp_path / "data", ChainedMarket(fault=fault, until=mended), at(10, 2))
    own, other = features(found, FAULTY), features(found, HEALTHY)
    broken = own.index < mended
    assert broken.sum() == 5
    assert own[broken].isna().all(axis=None)
    # mended in the poll of minute six, stored in the next, in force in the one after
    assert own[own.index > at(8)]["hp_support_distance"].notna().all()
    assert other[other.index > at(3)]["hp_support_distance"].notna().all()

    served = predicts_every_bar(found, 10)
    told = served["reason"].tolist()
    assert all(words.startswith(f"{NO_LEVEL}: ") and reason in words for words in told[2:6])
    assert served["strength_score"].isna().tolist() == [True] * 7 + [False] * 3
    levels = found.rows(HEDGE_LEVELS, TODAY, FAULTY)
    levels = levels[(levels["available_at"] <= mended) & (levels["contracts"] >= 0)]
    assert not levels["usable"].any()
    assert levels["unusable_reason"].str.contains(reason, regex=False).all()
    assert levels["gex"].isna().all() and levels["gamma_flip_count"].isna().all()


def test_an_outage_in_the_middle_makes_the_levels_stale_and_says_how_old(
    history: Path, tmp_path: Path
) -> None:
    begun, mended = at(4), at(10)

    def fault(frame: pd.DataFrame) -> pd.DataFrame:
        return down(frame) if begun < frame["available_at"].iloc[0] else frame

    found = polled(history, tmp_path / "data", ChainedMarket(fault=fault, until=mended), at(13, 2))
    usable = found.rows(HEDGE_LEVELS, TODAY, FAULTY)
    last = usable[usable["available_at"] < mended]["available_at"].max()
    own = features(found, FAULTY)
    known = own["hp_support_distance"].notna()
    stale = (own.index > last + MOST_AGE) & (own.index <= at(11, 1))
    assert known[(own.index > last) & ~stale].all()
    assert stale.sum() >= 3 and own[stale].isna().all(axis=None)
    reasons = predicts_every_bar(found, 13).set_index("bar_ts")["reason"]
    words = reasons[stale].tolist()
    assert words[0] == f"{NO_LEVEL}: the option chain is 4 minutes old"
    fetches = found.rows(CHAIN_FETCHES, TODAY, FAULTY)
    failed = fetches[fetches["status"] == "source_down"]
    assert failed["detail"].tolist() == ["SIMA: HTTP 503"] * len(failed)
    assert len(failed) >= 5


def test_a_chain_that_never_changes_is_stale_although_every_request_succeeds(
    history: Path, tmp_path: Path
) -> None:
    def frozen(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(as_of=pd.Timestamp(at(1) - DELAY).as_unit("us"))

    found = polled(history, tmp_path / "data", ChainedMarket(fault=frozen), at(8, 2))
    fetches = found.rows(CHAIN_FETCHES, TODAY, FAULTY).sort_values("asked_at")
    assert fetches["status"].tolist()[0] == "ok"
    assert set(fetches["status"].tolist()[1:]) == {"nothing_new"}
    own = features(found, FAULTY)
    assert own["hp_support_distance"].notna().sum() == 3
    assert own[own.index > at(6)].isna().all(axis=None)
    reason = predicts_every_bar(found, 8)["reason"].iloc[-1]
    assert reason == f"{NO_LEVEL}: the option chain is 6 minutes old"


def test_blank_open_interest_later_in_the_session_borrows_what_was_known(
    history: Path, tmp_path: Path
) -> None:
    def fault(frame: pd.DataFrame) -> pd.DataFrame:
        later = frame["available_at"].iloc[0] > at(4)
        return frame.assign(open_interest=0.0) if later else frame

    found = polled(history, tmp_path / "data", ChainedMarket(fault=fault), at(9, 2))
    levels = found.rows(HEDGE_LEVELS, TODAY, FAULTY).sort_values("available_at")
    assert levels["usable"].all()
    assert levels["oi_reused"].tolist() == (levels["as_of"] > at(4) - DELAY).tolist()
    assert levels["oi_reused"].sum() >= 4
    assert (
        features(found, FAULTY)["hp_support_distance"].notna().tolist() == [False] * 2 + [True] * 7
    )
    predicts_every_bar(found, 9)


def test_a_session_with_a_snapshot_that_came_on_a_day_without_a_session_can_be_closed(
    history: Path, tmp_path: Path
) -> None:
    """A Friday, asked for on Saturday at a source that still gives a chain."""
    saturday = CLOSES + 24 * HOUR
    market = ChainedMarket()
    deployment = deployment_in(copy_of(history, tmp_path / "data"), market, lambda: saturday)
    assert saturday.date().isoformat() not in deployment.calendar
    stages.close_session(deployment, TODAY)
    (level,) = deployment.store.read(HEDGE_LEVELS, [TODAY], symbols=[FAULTY]).to_dict("records")
    assert level["usable"] and level["available_at"] == saturday
    prices, exposures = newest_profile(deployment, TODAY, FAULTY) or ([], [])
    assert len(prices) == len(exposures) == deployment.level_rules.flip_points


def test_half_of_the_open_interest_may_be_zero(history: Path, tmp_path: Path) -> None:
    found = polled(history, tmp_path / "data", ChainedMarket(fault=half_blank), at(5, 2))
    (first, *_) = found.rows(OPTION_CHAINS, TODAY, FAULTY).groupby("as_of")
    assert (first[1]["open_interest"] == 0).mean() == pytest.approx(0.5, abs=0.02)
    levels = found.rows(HEDGE_LEVELS, TODAY, FAULTY)
    assert levels["usable"].all() and not levels["oi_reused"].any()


def test_missing_monthlies_cost_the_monthly_features_only_and_are_named(
    history: Path, tmp_path: Path
) -> None:
    def fault(frame: pd.DataFrame) -> pd.DataFrame:
        return frame[~frame["expiry"].isin(MONTHLIES)]

    found = polled(history, tmp_path / "data", ChainedMarket(fault=fault), at(9, 2))
    later = features(found, FAULTY)
    later = later[later.index > at(3)]
    monthly = ["mhp_support_distance", "mhp_resistance_distance", "mhp_score", "term_slope"]
    assert later[monthly].isna().all(axis=None)
    assert later["hp_support_distance"].notna().all()
    served = predicts_every_bar(found, 9)
    assert served["strength_missing"].tolist()[-1].split(",")[-2:] == ["mhp", "hg"]
    assert served["strength_mhp"].isna().all() and served["strength_hp"].tolist()[-1] >= 0


def test_an_expiration_that_is_missing_later_is_completed_from_the_sweep(
    history: Path, tmp_path: Path
) -> None:
    """The front is missing in later answers: it is known from the first, and still is the front."""

    def fault(frame: pd.DataFrame) -> pd.DataFrame:
        moment = frame["available_at"].iloc[0]
        if moment < at(4):
            return frame
        other = contracts("2024-12-02", 97.0, 103.0)
        times = {"as_of": frame["as_of"].iloc[0], "available_at": moment}
        return other.assign(**times)[list(CHAIN_COLUMNS)]

    found = polled(history, tmp_path / "data", ChainedMarket(fault=fault), at(9, 2))
    levels = found.rows(HEDGE_LEVELS, TODAY, FAULTY).sort_values("available_at")
    assert len(levels) >= 6 and levels["usable"].all()
    assert set(levels["contracts"]) == {len(EXPIRIES) * 2 * len(STRIKES)}
    assert levels["hp_support"].iloc[-1] == levels["hp_support"].iloc[0] < 97
    assert features(found, FAULTY)["hp_support_distance"].notna().tolist()[2:] == [True] * 7
    predicts_every_bar(found, 9)


def test_an_expired_front_series_changes_no_level(history: Path, tmp_path: Path) -> None:
    """A vendor still lists yesterday's series, with more open interest than all others."""

    def fault(frame: pd.DataFrame) -> pd.DataFrame:
        ended = contracts(YESTERDAY, 95.0, 105.0)
        ended = ended.assign(
            open_interest=100 * ended["open_interest"],
            as_of=frame["as_of"].iloc[0],
            available_at=frame["available_at"].iloc[0],
        )
        return pd.concat([ended[list(CHAIN_COLUMNS)], frame], ignore_index=True)

    found = polled(history, tmp_path / "data", ChainedMarket(fault=fault), at(9, 2))
    without = polled(history, tmp_path / "without", ChainedMarket(), at(9, 2))
    stored = found.rows(OPTION_CHAINS, TODAY, FAULTY)
    assert (stored["expiry"] == YESTERDAY).any()
    for table in (HEDGE_LEVELS, FEATURE_ROWS, PREDICTION_LOG):
        pd.testing.assert_frame_equal(found.rows(table, TODAY), without.rows(table, TODAY))
    assert features(found, FAULTY)["hp_support_distance"].notna().sum() == 7


def test_bars_that_come_late_see_the_levels_of_their_own_time(
    history: Path, tmp_path: Path
) -> None:
    """I1: at the end of an outage of bars the newest chain would tell them where the price went."""
    gone: list[tuple[str, dt.datetime, dt.datetime, SourceError]] = [
        (FAULTY, at(3), at(9), SourceDown("SIMA: HTTP 503"))
    ]
    late = polled(history, tmp_path / "late", ChainedMarket(outages=gone), at(10, 2))
    prompt = polled(history, tmp_path / "prompt", ChainedMarket(), at(10, 2))
    caught_up = late.served(TODAY, FAULTY)["mode"] == "catch_up"
    assert caught_up.sum() >= 4
    left, right = (
        found.rows(FEATURE_ROWS, TODAY).drop(columns="available_at") for found in (late, prompt)
    )
    assert left["levels_age"].nunique() > 0 and left["hp_support_distance"].notna().sum() >= 12
    pd.testing.assert_frame_equal(left, right, check_exact=True)


# -- live equals replay ----------------------------------------------------------------------------


def recorded(store: Store, folder: Path) -> list[Path]:
    """Bars and chains of the day as files that a user could have."""
    folder.mkdir()
    bars = store.read(RAW_QUOTES, [TODAY]).rename(columns={"bar_ts": "ts"})
    wanted = ["symbol", "ts", "open", "high", "low", "close", "volume"]
    bars[wanted].to_parquet(folder / "bars.parquet")
    store.read(OPTION_CHAINS, [TODAY]).to_parquet(folder / "chains.parquet")
    return [folder / "bars.parquet", folder / "chains.parquet"]


def replayed(found: Watch, folder: Path) -> Deployment:
    """The day replayed from files of what was collected live, with the models of that morning."""
    paths = recorded(found.store, folder)
    copy_of(Path(found.store.url), folder / "data")
    for table in TABLES:
        shutil.rmtree(folder / "data" / table.name / f"session={TODAY}", ignore_errors=True)
    live = found.deployment
    source = open_source("file", SourceOptions(live.calendar, tuple(map(str, paths))))
    deployment = deployment_in(
        folder / "data",
        source,
        lambda: CLOSES + HOUR,
        HEDGE_MODE="replay",
        HEDGE_BAR_SECONDS=live.calendar.bar_seconds,
        **{name: str(value) for name, value in SIGNALS.items()},
    )
    replay(deployment, [TODAY], train=False)
    return deployment


# so wide that signals fire and the cooldown matters
SIGNALS: dict[str, Any] = {
    "HEDGE_SIGNAL_SIDES": "both",
    "MIN_STRENGTH": 0,
    "MAX_STRENGTH": 100,
    "MIN_CONFIDENCE": 0.4,
    "ALERT_COOLDOWN": 900,
}
TIMES: dict[Table, tuple[str, ...]] = {
    RAW_QUOTES: ("available_at", "ingested_at", "source"),
    OPTION_CHAINS: (),
    HEDGE_LEVELS: (),
    FEATURE_ROWS: ("available_at",),
    PREDICTION_LOG: ("decided_at", "mode"),
    OUTCOMES: ("available_at",),
}


def troubled(frame: pd.DataFrame) -> pd.DataFrame:
    """Answers fail, are blank, or lack contracts, each at its time."""
    minute = round((frame["available_at"].iloc[0] - pd.Timestamp(at(0))) / MINUTE)
    if minute % 50 in (20, 21, 22, 25):
        return down(frame)
    if minute % 50 in (30, 31, 35):
        return mostly_blank(frame)
    return split(frame) if minute % 50 in (40, 41, 45) else frame


def seen_before(deployment: Deployment) -> None:
    """Outcomes at levels of sessions before, so that confidence is moved."""
    for label in BEFORE:
        rows = [
            (symbol, label, kind, source, band, 40, ups, 4.0, ups / 10)
            for symbol in SYMBOLS
            for kind, source, band, ups in (
                ("all", "all", "all", 20),
                ("support", "HP", "0-15", 30),
                ("resistance", "HP", "0-15", 12),
                ("support", "MHP", "15-30", 28),
            )
        ]
        deployment.store.append(
            LEVEL_EVIDENCE, label, pd.DataFrame(rows, columns=list(LEVEL_EVIDENCE.names))
        )


@pytest.fixture(scope="module", params=[300, pytest.param(60, marks=pytest.mark.slow)])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Watch, Deployment]:
    """A half day collected bar by bar with chains and their faults, and its replay."""
    seconds: int = request.param
    folder = tmp_path_factory.mktemp("both")
    market = DailyMarket(reach=0.5, fault=troubled)
    history_in(folder / "data", HEDGE_BAR_SECONDS=seconds)
    given: dict[str, Any] = {"HEDGE_BAR_SECONDS": seconds, **SIGNALS}
    found = watch(folder / "data", market, at(0, 2), **given)
    stages.collect_daily_bars(found.deployment, TODAY)
    seen_before(found.deployment)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain_polling, "Thread", Inline)
        found.run(until=CLOSES + 5 * HOUR, interval=seconds * SECOND)
    return found, replayed(found, folder / "replay")


@pytest.mark.parametrize("table", TIMES, ids=lambda table: table.name)
def test_a_session_with_chains_replayed_equals_what_was_live(
    both: tuple[Watch, Deployment], table: Table
) -> None:
    """I2: bit for bit but for times and mode."""
    left, right = (
        store.read(table, [TODAY])
        .drop(columns=list(TIMES[table]))
        .sort_values(list(table.key), ignore_index=True)
        for store in (both[0].store, both[1].store)
    )
    assert len(left)
    pd.testing.assert_frame_equal(left, right, check_exact=True)


def test_that_session_had_everything_that_could_have_differed(
    both: tuple[Watch, Deployment],
) -> None:
    """Otherwise the equality above would prove little."""
    found, again = both
    levels = found.rows(HEDGE_LEVELS, TODAY)
    assert levels["usable"].any() and not levels["usable"].all()
    assert levels["oi_reused"].any()
    assert levels["gex_rank"].notna().any()
    assert levels[["hg_below", "hg_above"]].notna().any(axis=None)
    assert levels["hp_support"].nunique() > 1
    assert {"ok", "source_down"} <= set(found.rows(CHAIN_FETCHES, TODAY)["status"])
    served = found.served(TODAY)
    assert set(served["level_source"]) >= {"HP", "none"}
    assert served["signal_fired"].any()
    assert served["reason"].str.contains("cooldown").any()
    said = np.maximum(served["prob_up"], 1 - served["prob_up"]).astype(np.float32)
    assert (served["confidence"] != said).any()
    assert set(served["mode"]) == {"live"}
    assert set(again.store.read(PREDICTION_LOG, [TODAY])["mode"]) == {"replay"}


def test_all_levels_at_once_equal_snapshot_by_snapshot(
    both: tuple[Watch, Deployment], tmp_path: Path
) -> None:
    found, _ = both
    before = found.rows(HEDGE_LEVELS, TODAY)
    copy_of(Path(found.store.url), tmp_path / "data")
    again = deployment_in(
        tmp_path / "data",
        found.deployment.source,
        lambda: CLOSES + HOUR,
        HEDGE_BAR_SECONDS=found.deployment.calendar.bar_seconds,
    )
    stages.build_levels(again, TODAY)
    after = again.store.read(HEDGE_LEVELS, [TODAY]).reset_index(drop=True)
    pd.testing.assert_frame_equal(after, before, check_exact=True)
