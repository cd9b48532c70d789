"""The real yfinance behind our source, asked against a Yahoo on the loopback."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import re
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from hedge_pipeline import stages
from hedge_pipeline.market.bars import collect_bars, days_of
from hedge_pipeline.market.calendar import Session, SessionCalendar
from hedge_pipeline.market.sources import (
    BadInput,
    NoDataYet,
    RateLimited,
    SchemaDrift,
    SourceDown,
    SourceError,
    SourceOptions,
    SymbolUnknown,
    WindowRefused,
)
from hedge_pipeline.market.sources import (
    yahoo as yahoo_source,
)
from hedge_pipeline.market.sources.file import FileSource
from hedge_pipeline.market.sources.protocol import BAR_COLUMNS, CHAIN_COLUMNS, DAILY_COLUMNS
from hedge_pipeline.market.sources.yahoo import BreakerOpen, Meter, YahooSource
from hedge_pipeline.market.sources.yahoo_chains import expirations_to_ask, read_page, snapshot
from hedge_pipeline.market.tables import GAPS, RAW_QUOTES
from hedge_pipeline.settings import load_settings
from hedge_pipeline.store import Store
from hedge_pipeline_tests.conftest import REPOSITORY
from hedge_pipeline_tests.yahoo_double import (
    CONSENT_PAGE,
    FORMS,
    Clock,
    Fault,
    YahooDouble,
    forget_yfinance,
    true_bars,
    write_true_bars,
)

NEW_YORK = ZoneInfo("America/New_York")
MINUTE = dt.timedelta(minutes=1)
CALENDAR = SessionCalendar()
SESSION = CALENDAR.session("2025-11-21")
THROTTLED = Fault("answer", status=429, body=b"Too Many Requests\r\n")


def at(moment: str, day: str = SESSION.label) -> dt.datetime:
    """A time of New York."""
    return dt.datetime.fromisoformat(f"{day}T{moment}").replace(tzinfo=NEW_YORK)


NOW = at("10:37:42")  # the bar of 10:35 became final twelve seconds ago


class Seconds:
    """A monotonic clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[YahooDouble]:
    with YahooDouble(tmp_path_factory.mktemp("yahoo")) as running:
        yield running


@pytest.fixture
def yahoo(double: YahooDouble, monkeypatch: pytest.MonkeyPatch) -> Iterator[YahooDouble]:
    """A fresh Yahoo at 10:37:42, and this process led to it."""
    double.reset()
    double.clock.set(NOW)
    for name, value in double.env.items():
        monkeypatch.setenv(name, value)
    forget_yfinance()
    yield double
    forget_yfinance()
    assert double.strangers == []


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
def source(yahoo: YahooDouble, seconds: Seconds, tmp_path: Path) -> YahooSource:
    return make_source(tmp_path, seconds)


def make_source(
    folder: Path, seconds: Seconds, calendar: SessionCalendar = CALENDAR, per_minute: int = 1000
) -> YahooSource:
    options = SourceOptions(calendar, extra={"cache_dir": str(folder / "cache")})
    return YahooSource(options, Meter(per_minute, clock=seconds, sleep=seconds.sleep))


def truth(symbol: str, session: Session = SESSION, last: str | None = None) -> pd.DataFrame:
    """What the source shall deliver, up to and with the bar that starts at `last`."""
    bars = true_bars(symbol, session).rename(columns={"ts": "bar_ts"}).drop(columns="symbol")
    if last is not None:
        bars = bars[bars["bar_ts"] <= pd.Timestamp(at(last, session.label))]
    return bars.assign(bid=np.nan, ask=np.nan, support=np.nan, resistance=np.nan)


def without_bar(bars: pd.DataFrame, *starts: str) -> pd.DataFrame:
    gone = [pd.Timestamp(at(start)) for start in starts]
    return bars[~bars["bar_ts"].isin(gone)].reset_index(drop=True)


def epoch(moment: str) -> int:
    return int(at(moment).timestamp())


# -- what is delivered -----------------------------------------------------------------------------


@pytest.mark.parametrize("forming", ["null", "absent", "partial", "none"])
@pytest.mark.parametrize("moment", ["10:37:00", "10:37:29", "10:37:42", "10:38:29"])
def test_only_final_minutes_are_delivered_whatever_form_the_last_row_has(
    yahoo: YahooDouble, source: YahooSource, forming: FORMS, moment: str
) -> None:
    yahoo.forming = forming
    yahoo.clock.set(at(moment))
    last = "10:34" if moment < "10:37:30" else "10:35"
    bars = source.bars("SPY", SESSION, at(moment))
    assert_frame_equal(bars, truth("SPY", last=last), check_exact=True)
    assert tuple(bars.columns) == BAR_COLUMNS
    assert str(bars["bar_ts"].dtype) == "datetime64[us, UTC]"


@pytest.mark.parametrize("forming", ["null", "absent", "partial", "none"])
@pytest.mark.parametrize("behind", [45, 90, 120, 900])
def test_a_minute_a_slow_feed_has_not_seen_the_end_of_is_not_final(
    yahoo: YahooDouble, source: YahooSource, forming: FORMS, behind: int
) -> None:
    yahoo.forming, yahoo.behind = forming, behind
    bars = source.bars("SPY", SESSION, NOW)
    known = min(NOW - dt.timedelta(seconds=behind), at("10:36:00"))
    expected = truth("SPY")
    expected = expected[expected["bar_ts"] + MINUTE <= pd.Timestamp(known)]
    assert_frame_equal(bars, expected, check_exact=True)


def test_a_machine_whose_clock_is_fast_takes_no_minute_in_progress_for_final(
    yahoo: YahooDouble, source: YahooSource
) -> None:
    bars = source.bars("SPY", SESSION, NOW + 5 * MINUTE)
    assert_frame_equal(bars, truth("SPY", last="10:36"), check_exact=True)


@pytest.mark.parametrize("moment", ["16:01:30", "16:15:00", "16:59:59", "17:00:00", "23:59:00"])
def test_the_day_ends_with_the_minute_before_the_closing_print(
    yahoo: YahooDouble, source: YahooSource, moment: str
) -> None:
    yahoo.clock.set(at(moment))
    bars = source.bars("SPY", SESSION, at(moment))
    assert_frame_equal(bars, truth("SPY"), check_exact=True)
    assert len(bars) == 390


def test_the_last_minute_waits_for_its_time(yahoo: YahooDouble, source: YahooSource) -> None:
    yahoo.clock.set(at("16:01:29"))
    bars = source.bars("SPY", SESSION, at("16:01:29"))
    assert_frame_equal(bars, truth("SPY", last="15:58"), check_exact=True)


@pytest.mark.parametrize(
    ("label", "asked_at", "minutes"),
    [
        ("2025-11-20", at("10:37:42"), 390),  # yesterday
        ("2025-11-20", at("09:00"), 390),  # yesterday, before today's open
        ("2025-11-21", at("12:00", "2025-11-22"), 390),  # on a Saturday
        ("2025-11-26", at("12:00", "2025-11-27"), 390),  # on Thanksgiving
        ("2025-11-28", at("13:20", "2025-11-28"), 210),  # a half day, just over
        ("2025-11-28", at("12:00", "2025-12-01"), 210),
        ("2025-10-31", at("12:00"), 390),  # before the clocks changed
    ],
)
def test_a_past_session_is_delivered_whole_and_nothing_else(
    yahoo: YahooDouble, source: YahooSource, label: str, asked_at: dt.datetime, minutes: int
) -> None:
    yahoo.clock.set(asked_at)
    session = CALENDAR.session(label)
    bars = source.bars("QQQ", session, asked_at)
    assert_frame_equal(bars, truth("QQQ", session), check_exact=True)
    assert len(bars) == minutes


def test_bars_of_five_minutes(yahoo: YahooDouble, seconds: Seconds, tmp_path: Path) -> None:
    calendar = SessionCalendar(bar_seconds=300)
    session = calendar.session(SESSION.label)
    source = make_source(tmp_path, seconds, calendar)
    bars = source.bars("SPY", session, NOW)
    assert_frame_equal(bars, truth("SPY", session, last="10:30"), check_exact=True)


def test_a_calendar_without_nights(yahoo: YahooDouble, seconds: Seconds, tmp_path: Path) -> None:
    calendar = SessionCalendar("24/7")
    source = make_source(tmp_path, seconds, calendar)
    today, yesterday = calendar.session("2025-11-21"), calendar.session("2025-11-20")
    bars = source.bars("BTC-USD", today, NOW)
    assert_frame_equal(bars, truth("BTC-USD", today, last="10:35"), check_exact=True)
    bars = source.bars("BTC-USD", yesterday, NOW)
    assert_frame_equal(bars, truth("BTC-USD", yesterday), check_exact=True)
    past_midnight = yesterday.closes + dt.timedelta(minutes=2)
    yahoo.clock.set(past_midnight)
    bars = source.bars("BTC-USD", yesterday, past_midnight)
    assert_frame_equal(bars, truth("BTC-USD", yesterday), check_exact=True)


def test_a_null_minute_is_a_gap_until_it_is_filled(yahoo: YahooDouble, source: YahooSource) -> None:
    yahoo.holes["SPY", epoch("10:20")] = at("10:38:30")
    yahoo.holes["SPY", epoch("10:21")] = None
    bars = source.bars("SPY", SESSION, NOW)
    whole = truth("SPY", last="10:35")
    assert_frame_equal(bars, without_bar(whole, "10:20", "10:21"), check_exact=True)
    yahoo.clock.set(at("10:38:31"))
    bars = source.bars("SPY", SESSION, at("10:38:31"))
    whole = truth("SPY", last="10:36")
    assert_frame_equal(bars, without_bar(whole, "10:21"), check_exact=True)


def test_a_minute_told_twice_is_delivered_once(yahoo: YahooDouble, source: YahooSource) -> None:
    yahoo.doubled = {epoch("09:30"), epoch("10:20"), epoch("10:35"), epoch("10:36")}
    bars = source.bars("SPY", SESSION, NOW)
    assert_frame_equal(bars, truth("SPY", last="10:35"), check_exact=True)


def test_before_the_first_minute_is_final_nobody_is_asked(
    yahoo: YahooDouble, source: YahooSource
) -> None:
    for moment in ("08:00", "09:30", "09:32:29"):
        with pytest.raises(NoDataYet, match="no bar of 2025-11-21 is final yet"):
            source.bars("SPY", SESSION, at(moment))
    assert yahoo.requests == []


def test_the_previous_session_s_rows_are_no_bars_of_this_one(
    yahoo: YahooDouble, source: YahooSource
) -> None:
    yahoo.clock.set(at("09:29:50"))  # Yahoo has no first print yet: it answers with yesterday
    with pytest.raises(NoDataYet, match="Yahoo has no bar of 2025-11-21 yet"):
        source.bars("SPY", SESSION, at("09:35"))
    assert yahoo.count() == 1


def test_a_closed_market_asked_for_as_if_it_were_open_has_no_data_yet(
    yahoo: YahooDouble, seconds: Seconds, tmp_path: Path
) -> None:
    thanksgiving = SessionCalendar("24/7").session("2025-11-27")
    noon = at("12:00", "2025-11-27")
    yahoo.clock.set(noon)
    source = make_source(tmp_path, seconds, SessionCalendar("24/7"))
    with pytest.raises(NoDataYet):
        source.bars("SPY", thanksgiving, noon)  # running: period=1d answers with Wednesday
    saturday = SessionCalendar("24/7").session("2025-11-22")
    yahoo.clock.set(at("12:00", "2025-11-24"))
    with pytest.raises(NoDataYet, match="Yahoo has nothing of 2025-11-22"):
        source.bars("SPY", saturday, at("12:00", "2025-11-24"))


# -- daily bars ------------------------------------------------------------------------------------


def true_days(
    symbol: str, first: str, last: str, calendar: SessionCalendar = CALENDAR
) -> pd.DataFrame:
    labels = calendar.between(first, last)
    return days_of((label, true_bars(symbol, calendar.session(label))) for label in labels)


@pytest.mark.parametrize(
    ("first", "asked_at", "last"),
    [
        ("2025-08-27", NOW, "2025-11-20"),  # sixty sessions over the change of the clocks
        ("2025-11-20", NOW, "2025-11-20"),
        ("2025-11-17", at("16:01:30"), "2025-11-21"),
        ("2025-11-17", at("12:00", "2025-11-22"), "2025-11-21"),
        ("2025-11-24", at("13:01:29", "2025-11-28"), "2025-11-26"),  # a half day in its last second
        ("2025-11-24", at("13:01:30", "2025-11-28"), "2025-11-28"),
    ],
)
def test_a_daily_bar_is_delivered_when_its_session_is_over(
    yahoo: YahooDouble, source: YahooSource, first: str, asked_at: dt.datetime, last: str
) -> None:
    yahoo.clock.set(asked_at)
    days = source.daily("SPY", first, "2025-11-28", asked_at)
    assert_frame_equal(days, true_days("SPY", first, last), check_exact=True)
    assert tuple(days.columns) == DAILY_COLUMNS
    assert yahoo.count() == 1


@pytest.mark.parametrize(("moment", "whole"), [("16:13:59", False), ("16:14", True)])
def test_a_daily_bar_waits_for_a_slow_feed_to_reach_the_close(
    yahoo: YahooDouble, source: YahooSource, moment: str, whole: bool
) -> None:
    yahoo.behind = 900
    yahoo.clock.set(at(moment))
    days = source.daily("SPY", "2025-11-17", SESSION.label, at(moment))
    expected = true_days("SPY", "2025-11-17", SESSION.label if whole else "2025-11-20")
    assert_frame_equal(days, expected, check_exact=True)


def test_days_of_a_calendar_without_nights(
    yahoo: YahooDouble, seconds: Seconds, tmp_path: Path
) -> None:
    calendar = SessionCalendar("24/7")
    source = make_source(tmp_path, seconds, calendar)
    days = source.daily("BTC-USD", "2025-11-01", SESSION.label, NOW)
    expected = true_days("BTC-USD", "2025-11-01", "2025-11-20", calendar)
    assert_frame_equal(days, expected, check_exact=True)


def test_a_null_day_is_left_out_until_it_is_there(yahoo: YahooDouble, source: YahooSource) -> None:
    opens = int(CALENDAR.session("2025-11-19").opens.timestamp())
    yahoo.holes["SPY", opens] = at("10:38:30")
    whole = true_days("SPY", "2025-11-17", "2025-11-20")
    days = source.daily("SPY", "2025-11-17", "2025-11-20", NOW)
    assert days["session"].tolist() == ["2025-11-17", "2025-11-18", "2025-11-20"]
    yahoo.clock.set(at("10:38:31"))
    days = source.daily("SPY", "2025-11-17", "2025-11-20", at("10:38:31"))
    assert_frame_equal(days, whole, check_exact=True)


def test_a_quote_in_the_place_of_a_day_is_no_day(yahoo: YahooDouble, source: YahooSource) -> None:
    yahoo.trade_after_days = True
    yahoo.clock.set(at("16:30"))
    days = source.daily("SPY", "2025-11-17", SESSION.label, at("16:30"))
    expected = true_days("SPY", "2025-11-17", "2025-11-20")
    assert_frame_equal(days, expected, check_exact=True)


def test_without_a_day_that_is_over_nobody_is_asked(
    yahoo: YahooDouble, source: YahooSource
) -> None:
    with pytest.raises(NoDataYet, match="no session from 2025-11-21 to 2025-11-24 is over"):
        source.daily("SPY", "2025-11-21", "2025-11-24", NOW)
    assert yahoo.requests == []


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (THROTTLED, RateLimited),
        (Fault("answer", status=503, body=b"<html>busy</html>"), SourceDown),
        (Fault("answer", body=b"{"), SourceDown),
        (Fault("drop"), SourceDown),
    ],
)
def test_days_have_the_outcomes_of_minutes(
    yahoo: YahooDouble, source: YahooSource, fault: Fault, outcome: type[SourceError]
) -> None:
    yahoo.fault(replace(fault))
    with pytest.raises(outcome, match="SPY: Yahoo"):
        source.daily("SPY", "2025-11-17", "2025-11-20", NOW)


def test_days_of_an_unknown_symbol(yahoo: YahooDouble, source: YahooSource) -> None:
    with pytest.raises(SymbolUnknown, match="Yahoo has no symbol NOSUCH"):
        source.daily("NOSUCH", "2025-11-17", "2025-11-20", NOW)


# -- what is refused -------------------------------------------------------------------------------


def test_a_session_beyond_yahoo_s_depth_is_refused_without_asking(
    yahoo: YahooDouble, source: YahooSource
) -> None:
    old = CALENDAR.session("2025-10-22")
    with pytest.raises(WindowRefused, match="keeps 1m bars for 29 days; 2025-10-22 is older"):
        source.bars("SPY", old, NOW)
    assert yahoo.requests == []


def test_yahoo_s_own_refusal_of_a_window_is_passed_on(
    yahoo: YahooDouble, source: YahooSource
) -> None:
    session = CALENDAR.session("2025-10-24")
    yahoo.clock.set(NOW + dt.timedelta(days=5))
    with pytest.raises(WindowRefused, match=r"refuses 2025-10-24 \(.*within the last 30 days"):
        source.bars("SPY", session, NOW)


@pytest.mark.parametrize("bar_seconds", [30, 240, 7200])
def test_bars_of_a_length_yahoo_has_not_are_refused_at_once(
    bar_seconds: int, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=f"HEDGE_BAR_SECONDS={bar_seconds}: Yahoo has bars of 60,"):
        make_source(tmp_path, Seconds(), SessionCalendar(bar_seconds=bar_seconds))


def test_an_unknown_symbol(yahoo: YahooDouble, source: YahooSource) -> None:
    with pytest.raises(SymbolUnknown, match="Yahoo has no symbol NOSUCH"):
        source.bars("NOSUCH", SESSION, NOW)


@pytest.mark.parametrize("body", [b"<html>404</html>", b'{"finance":{"result":null,"error":{}}}'])
def test_a_404_that_does_not_speak_of_the_symbol_is_a_fault_of_yahoo_s(
    yahoo: YahooDouble, source: YahooSource, body: bytes
) -> None:
    yahoo.fault(Fault("answer", status=404, body=body))
    with pytest.raises(SourceDown):
        source.bars("SPY", SESSION, NOW)


def test_a_symbol_that_had_bars_cannot_become_unknown(
    yahoo: YahooDouble, source: YahooSource
) -> None:
    source.bars("SPY", SESSION, NOW)
    words = {"code": "Not Found", "description": "No data found, symbol may be delisted"}
    body = json.dumps({"chart": {"result": None, "error": words}}).encode()
    yahoo.fault(Fault("answer", status=404, body=body))
    with pytest.raises(SourceDown, match="Yahoo answers 404"):
        source.bars("SPY", SESSION, NOW)
    with pytest.raises(SymbolUnknown):
        source.bars("QQQ", SESSION, NOW)


# -- faults ----------------------------------------------------------------------------------------

ERROR = b'{"chart":{"result":null,"error":{"code":"Internal","description":"fake"}}}'
NOTHING = b'{"chart":{"result":[],"error":null}}'
META = {
    "symbol": "SPY",
    "currency": "USD",
    "instrumentType": "ETF",
    "exchangeTimezoneName": "America/New_York",
    "validRanges": ["1d"],
    "tradingPeriods": [
        [{"timezone": "EST", "start": 1763735400, "end": 1763758800, "gmtoffset": -18000}]
    ],
}
COLUMNS: dict[str, list[float]] = {"open": [], "high": [], "low": [], "close": [], "volume": []}


def body_of(quote: dict[str, Any], **result: Any) -> bytes:
    told = {"meta": META, "indicators": {"quote": [quote]}, **result}
    return json.dumps({"chart": {"result": [told], "error": None}}).encode()


EMPTY_DAY = body_of({})
EMPTY_COLUMNS = body_of(COLUMNS, timestamp=[])
NO_VOLUME = body_of({name: [1.0] for name in COLUMNS if name != "volume"}, timestamp=[1763735400])
FAULTS = {
    "401": (Fault("answer", status=401, body=b'{"finance":{"error":{}}}'), SourceDown, "401"),
    "422 HTML": (Fault("answer", status=422, body=b"<html>"), SourceDown, "answers 422"),
    "500 JSON": (Fault("answer", status=500, body=ERROR), SourceDown, "answers 500"),
    "503 HTML": (Fault("answer", status=503, body=b"<html>"), SourceDown, "answers 503"),
    "error with 200": (Fault("answer", body=ERROR), SourceDown, "fake"),
    "malformed": (Fault("answer", body=b'{"chart":{"result":[{'), SourceDown, "cannot be read"),
    "HTML": (Fault("answer", body=b"<html>"), SourceDown, "cannot be read"),
    "down": (Fault("answer", body=b"Will be right back..."), SourceDown, "cannot be read"),
    "truncated": (Fault("truncate"), SourceDown, "cannot be reached"),
    "dropped": (Fault("drop"), SourceDown, "cannot be reached"),
    "another shape": (
        Fault("answer", body=b'{"chart":{"result":[{"indicators":{"quote":[{"open":[1]}]}}]}}'),
        SchemaDrift,
        "unknown shape",
    ),
    "an array": (Fault("answer", body=b"[]"), SourceDown, "answers with nothing"),
    "no result": (Fault("answer", body=NOTHING), SourceDown, "answers with nothing"),
    "null result": (Fault("answer", body=b'{"chart":null}'), SourceDown, "answers with nothing"),
    "an empty day": (Fault("answer", body=EMPTY_DAY), NoDataYet, "has nothing of 2025-11-2"),
    "empty columns": (Fault("answer", body=EMPTY_COLUMNS), NoDataYet, "no bar of 2025-11-2"),
    "no volume": (Fault("answer", body=NO_VOLUME), SchemaDrift, "unknown shape"),
    "another error shape": (Fault("answer", body=b'{"chart":[1]}'), SchemaDrift, "unknown shape"),
}


@pytest.mark.parametrize("window", ["running", "past"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_has_its_outcome_and_the_next_call_asks_again(
    yahoo: YahooDouble, source: YahooSource, name: str, window: str
) -> None:
    fault, outcome, words = FAULTS[name]
    session = SESSION if window == "running" else CALENDAR.session("2025-11-20")
    yahoo.fault(replace(fault))
    with pytest.raises(SourceError, match=words) as failed:
        source.bars("SPY", session, NOW)
    assert type(failed.value) is outcome
    assert str(failed.value).startswith("SPY: ")
    yahoo.mend()
    last = "10:35" if window == "running" else None
    assert_frame_equal(source.bars("SPY", session, NOW), truth("SPY", session, last))


def test_impossible_rows_are_no_bars_and_the_newest_row_waits_for_the_next(
    yahoo: YahooDouble, source: YahooSource
) -> None:
    rows = {  # open, high, low, close, volume; no last trade in the metadata
        "09:30": (5.0, 6.0, 4.0, 5.5, 10),
        "09:31": (5.0, 5.4, 4.0, 5.5, 10),
        "09:32": (5.0, 6.0, 5.1, 5.5, 10),
        "09:33": (5.0, 6.0, 0.0, 5.5, 10),
        "09:34": (5.0, None, 4.0, 5.5, 10),
        "09:35": (-5.0, 6.0, -6.0, 5.5, 10),
        "09:37": (5.0, 6.0, 4.0, 5.5, None),
        "09:36": (5.0, 6.0, 4.0, 5.5, 0),
        "09:38": (5.0, 6.0, 4.0, 5.5, 10),
    }
    quote = dict(zip(COLUMNS, map(list, zip(*rows.values(), strict=True)), strict=True))
    body = body_of(quote, timestamp=[epoch(start) for start in rows])
    yahoo.fault(Fault("answer", body=body))
    bars = source.bars("SPY", SESSION, NOW)
    kept = [pd.Timestamp(at(start)) for start in ("09:30", "09:36", "09:37")]
    assert bars["bar_ts"].tolist() == kept
    assert bars["volume"].tolist() == [10, 0, 0]


def test_a_bad_answer_to_a_past_window_is_not_remembered(
    yahoo: YahooDouble, source: YahooSource
) -> None:
    past = CALENDAR.session("2025-11-20")
    yahoo.fault(Fault("answer", body=EMPTY_DAY, times=1))
    with pytest.raises(NoDataYet):
        source.bars("SPY", past, NOW)
    assert len(source.bars("SPY", past, NOW)) == 390
    assert yahoo.count() == 2


def test_a_silent_yahoo_is_waited_for_only_so_long(
    yahoo: YahooDouble, source: YahooSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.bars("SPY", SESSION, NOW)
    monkeypatch.setattr(yahoo_source, "TIMEOUT_SECONDS", 0.3)
    yahoo.fault(Fault("delay", seconds=1.0))
    with pytest.raises(SourceDown, match=r"cannot be reached.*timed out"):
        source.bars("SPY", SESSION, NOW)


def test_no_yahoo_at_all(
    yahoo: YahooDouble, source: YahooSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    with pytest.raises(SourceDown, match="SPY: Yahoo cannot be reached"):
        source.bars("SPY", SESSION, NOW)
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, yahoo.env[name])
    assert len(source.bars("SPY", SESSION, NOW))


@pytest.mark.parametrize("path", ["getcrumb", "^/$", "getcrumb|^/$|consent|Consent"])
@pytest.mark.parametrize(
    "fault", [THROTTLED, Fault("drop"), Fault("answer", status=503, body=b"<html>")]
)
def test_bars_need_neither_cookie_nor_crumb(
    yahoo: YahooDouble, source: YahooSource, path: str, fault: Fault
) -> None:
    yahoo.fault(replace(fault, path=path))
    bars = source.bars("SPY", SESSION, NOW)
    assert_frame_equal(bars, truth("SPY", last="10:35"), check_exact=True)


def test_a_cache_folder_that_cannot_be_made_is_named(
    yahoo: YahooDouble, seconds: Seconds, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("in the way")
    source = make_source(tmp_path, seconds)
    with pytest.raises(BadInput, match=f"{tmp_path}/cache"):
        source.bars("SPY", SESSION, NOW)
    assert yahoo.requests == []


@pytest.mark.parametrize("name", ["tkr-tz.db", "cookies.db"])
def test_a_broken_cache_file_is_told_with_its_folder(
    yahoo: YahooDouble,
    seconds: Seconds,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setattr(yahoo_source, "CACHE_ATTEMPTS", 2)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / name).write_bytes(b"no database" * 1000)
    source = make_source(tmp_path, seconds)
    with pytest.raises(BadInput, match=f"{tmp_path}/cache: Yahoo's cache cannot be read"):
        source.bars("SPY", SESSION, NOW)
    assert yahoo.requests == []


def test_a_cache_that_breaks_later_is_a_source_that_is_down(
    yahoo: YahooDouble, source: YahooSource, tmp_path: Path
) -> None:
    source.bars("SPY", SESSION, NOW)
    with contextlib.closing(sqlite3.connect(tmp_path / "cache" / "tkr-tz.db")) as cache:
        cache.execute("DROP TABLE _tz_kv")
    with pytest.raises(SourceDown, match=r"yfinance's cache fails \(no such table"):
        source.bars("SPY", SESSION, NOW)


# -- patience --------------------------------------------------------------------------------------


def test_a_429_opens_the_breaker_for_longer_each_time(
    yahoo: YahooDouble, source: YahooSource, seconds: Seconds
) -> None:
    source.bars("SPY", SESSION, NOW)
    fault = yahoo.fault(replace(THROTTLED))
    for asked, pause in enumerate((60, 300, 900, 900), start=2):
        with pytest.raises(RateLimited):
            source.bars("SPY", SESSION, NOW)
        assert yahoo.count() == asked  # one, not yfinance's two
        total = len(yahoo.requests)
        seconds.now += pause - 1
        for symbol in ("SPY", "QQQ", "AAPL"):
            with pytest.raises(RateLimited, match=f"{symbol}: Yahoo .*1 s to go"):
                source.bars(symbol, SESSION, NOW)
        assert len(yahoo.requests) == total
        seconds.now += 1
    yahoo.mend()
    source.bars("SPY", SESSION, NOW)
    yahoo.fault(fault)
    with pytest.raises(RateLimited):
        source.bars("SPY", SESSION, NOW)
    seconds.now += 60
    yahoo.mend()
    assert len(source.bars("SPY", SESSION, NOW))


def test_the_first_answer_of_all_may_be_a_429(
    yahoo: YahooDouble, source: YahooSource, seconds: Seconds
) -> None:
    yahoo.fault(replace(THROTTLED))
    for pause in (60, 300):
        with pytest.raises(RateLimited):
            source.bars("SPY", SESSION, NOW)
        seconds.now += pause - 1
        with pytest.raises(RateLimited, match="1 s to go"):
            source.bars("SPY", SESSION, NOW)
        seconds.now += 1
    assert yahoo.count() == 2


def test_a_consent_page_in_the_middle_of_a_ban_ends_no_series(
    yahoo: YahooDouble, source: YahooSource, seconds: Seconds
) -> None:
    yahoo.fault(Fault("drop", path="^/$"))  # no cookie, so yfinance asks for consent each time
    yahoo.fault(Fault("answer", path="(?i)consent", body=CONSENT_PAGE))
    yahoo.fault(replace(THROTTLED))
    for pause in (60, 300):
        with pytest.raises(RateLimited):
            source.bars("SPY", SESSION, NOW)
        seconds.now += pause - 1
        with pytest.raises(RateLimited, match="1 s to go"):
            source.bars("SPY", SESSION, NOW)
        seconds.now += 1
    assert yahoo.count("consent") > 3


def test_one_burst_of_429s_is_one_strike() -> None:
    seconds = Seconds()
    meter = Meter(clock=seconds, sleep=seconds.sleep)
    for _ in range(5):
        meter.before()
    for _ in range(4):  # five requests were on their way when the first was refused
        meter.after(429)
    meter.after(200)
    seconds.now += 60
    meter.before()
    meter.after(429)
    seconds.now += 299
    with pytest.raises(BreakerOpen):
        meter.before()
    seconds.now += 1
    meter.before()


def test_a_success_ends_the_series() -> None:
    seconds = Seconds()
    meter = Meter(clock=seconds, sleep=seconds.sleep)
    for status in (429, 200, 429, 500, 429):
        meter.before()
        meter.after(status)
        seconds.now += {200: 0, 500: 0}.get(status, 60)
    with pytest.raises(BreakerOpen, match="240 s to go"):
        meter.before()


def test_no_minute_sees_more_requests_than_the_budget() -> None:
    seconds = Seconds()
    meter = Meter(3, clock=seconds, sleep=seconds.sleep)
    sent = []
    for _ in range(10):
        meter.before()
        sent.append(seconds.now)
        seconds.now += 1
    times = np.array(sent)
    assert max(((times >= t) & (times < t + 60)).sum() for t in times) == 3
    assert times[-1] < 60 * 4


def test_the_budget_holds_for_those_who_wait_at_the_same_time() -> None:
    wakes: list[float] = []
    meter = Meter(2, clock=lambda: 0.0, sleep=wakes.append)
    for _ in range(7):
        meter.before()
    assert wakes == [60, 60, 120, 120, 180]


def test_who_waited_for_the_budget_still_minds_the_breaker() -> None:
    seconds = Seconds()
    meter = Meter(1, clock=seconds, sleep=lambda pause: refuse(pause))

    def refuse(pause: float) -> None:
        seconds.sleep(pause)
        meter.after(429)

    meter.before()
    with pytest.raises(BreakerOpen):
        meter.before()


def test_the_status_belongs_to_the_thread_that_asked() -> None:
    meter = Meter()
    meter.before()
    meter.after(500)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: meter.last_status).result() is None
    assert meter.last_status == 500
    meter.before()
    assert meter.last_status is None


def test_the_source_spends_its_budget_slowly(
    yahoo: YahooDouble, seconds: Seconds, tmp_path: Path
) -> None:
    source = make_source(tmp_path, seconds, per_minute=3)
    for _ in range(4):  # cookie and crumb count too
        source.bars("SPY", SESSION, NOW)
    assert seconds.slept == [60]
    assert len(yahoo.requests) == 6


def test_a_poll_is_one_request(yahoo: YahooDouble, source: YahooSource) -> None:
    for symbol in ("SPY", "QQQ"):
        source.bars(symbol, SESSION, NOW)
    cold = len(yahoo.requests)
    assert cold == 4  # cookie, crumb, two charts: the time zones are known
    for _ in range(3):
        for symbol in ("SPY", "QQQ"):
            source.bars(symbol, SESSION, NOW)
    assert len(yahoo.requests) == cold + 6
    query = dict(yahoo.requests[-1].query)
    assert len(query.pop("crumb")) == 11
    wanted = {"range": "1d", "interval": "1m", "includePrePost": "false"}
    assert query == {**wanted, "events": "div,splits,capitalGains"}


def test_two_threads_at_once_get_their_own_answers(yahoo: YahooDouble, source: YahooSource) -> None:
    yahoo.fault(Fault("answer", path="/chart/QQQ", status=500, body=ERROR))
    barrier = threading.Barrier(3)

    def ask(symbol: str) -> list[str]:
        barrier.wait()
        told = []
        for _ in range(5):
            try:
                bars = source.bars(symbol, SESSION, NOW)
                assert_frame_equal(bars, truth(symbol, last="10:35"), check_exact=True)
                told.append("bars")
            except SourceError as error:
                told.append(type(error).__name__)
        return told

    with ThreadPoolExecutor(3) as pool:
        spy, qqq, aapl = pool.map(ask, ("SPY", "QQQ", "AAPL"))
    assert (set(spy), set(qqq), set(aapl)) == ({"bars"}, {"SourceDown"}, {"bars"})


# -- with the store --------------------------------------------------------------------------------


def deployment_of(folder: Path, source: YahooSource, clock: Clock) -> stages.Deployment:
    settings = load_settings(
        HEDGE_DATA_URL=str(folder / "data"),
        HEDGE_MODE="live",
        HEDGE_SOURCE="yahoo",
        HEDGE_SYMBOLS="SPY,QQQ",
        MLFLOW_TRACKING_URI="",
    )
    store = Store(str(folder / "data"))
    return stages.deploy(settings, lambda calendar: source, store=store, clock=clock.now)


def test_a_revised_bar_stays_as_it_was_first_seen(
    yahoo: YahooDouble, source: YahooSource, tmp_path: Path
) -> None:
    deployment = deployment_of(tmp_path, source, yahoo.clock)
    assert stages.collect(deployment, SESSION.label).new == 2 * 66
    seen = deployment.store.read(RAW_QUOTES, [SESSION.label])
    yahoo.revisions["SPY", epoch("10:35")] = 0.5
    yahoo.clock.set(NOW + MINUTE)
    revised = source.bars("SPY", SESSION, NOW + MINUTE)
    assert revised["close"].iloc[-2] != truth("SPY", last="10:35")["close"].iloc[-1]
    collected = stages.collect(deployment, SESSION.label)
    assert (collected.new, collected.gaps, collected.failures) == (2, 0, {})
    stored = deployment.store.read(RAW_QUOTES, [SESSION.label])
    kept = stored[stored["bar_ts"] < pd.Timestamp(at("10:36"))].reset_index(drop=True)
    assert_frame_equal(kept, seen, check_exact=True)


def test_a_filled_hole_is_stored_late_and_no_gap_any_more(
    yahoo: YahooDouble, source: YahooSource, tmp_path: Path
) -> None:
    deployment = deployment_of(tmp_path, source, yahoo.clock)
    yahoo.holes["SPY", epoch("10:20")] = NOW + MINUTE
    yahoo.fault(Fault("answer", path="/chart/QQQ", status=503, body=b"<html>"))
    collected = stages.collect(deployment, SESSION.label)
    assert (collected.new, collected.gaps) == (65, 1 + 66)
    gaps = deployment.store.read(GAPS, [SESSION.label])
    assert gaps.groupby("symbol")["cause"].unique().map(list).to_dict() == {
        "QQQ": ["source_down"],
        "SPY": ["vendor_hole"],
    }
    yahoo.clock.set(NOW + MINUTE)
    yahoo.mend()
    collected = stages.collect(deployment, SESSION.label)
    assert (collected.new, collected.gaps) == (2 + 67, 0)
    stored = deployment.store.read(RAW_QUOTES, [SESSION.label], symbols=["SPY"])
    late = stored[stored["bar_ts"] == pd.Timestamp(at("10:20"))]
    assert late["available_at"].tolist() == [pd.Timestamp(NOW + MINUTE)]


def test_the_truth_file_of_the_double_is_what_the_source_delivers(
    yahoo: YahooDouble, source: YahooSource, tmp_path: Path
) -> None:
    path = write_true_bars(tmp_path / "truth.parquet", ["SPY", "QQQ"], ["2025-11-20"])
    session = CALENDAR.session("2025-11-20")
    file = FileSource(SourceOptions(CALENDAR, (str(path),)))
    for symbol in file.symbols:
        delivered = source.bars(symbol, session, NOW)
        assert_frame_equal(delivered, file.bars(symbol, session, NOW), check_exact=True)


# -- the process -----------------------------------------------------------------------------------

CHILD = """
import datetime as dt, sys
from hedge_pipeline.market.calendar import SessionCalendar
from hedge_pipeline.market.sources import SourceOptions
from hedge_pipeline.market.sources.yahoo import YahooSource

calendar = SessionCalendar()
source = YahooSource(SourceOptions(calendar, extra={"cache_dir": sys.argv[1]}))
assert "yfinance" not in sys.modules and "curl_cffi" not in sys.modules
session = calendar.session("2025-11-21")
bars = source.bars("SPY", session, dt.datetime.fromisoformat(sys.argv[2]))
assert "yfinance" in sys.modules
print(bars["close"].tolist())
"""


def test_a_child_process_is_led_by_its_environment_and_writes_into_its_cache_only(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    for folder in (home, tmp_path / "tmp"):
        folder.mkdir()
    command = [sys.executable, "-m", "hedge_pipeline_tests.yahoo_double", "--now", NOW.isoformat()]
    places = {"HOME": str(home), "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(REPOSITORY)}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    environment = {**kept, **places, "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        [*command, "--certificates", str(tmp_path / "ca")],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            lines = [server.stdout.readline() for _ in range(9)]
            exports = dict(line.removeprefix("export ").strip().split("=", 1) for line in lines)
            child = subprocess.run(
                [sys.executable, "-c", CHILD, str(tmp_path / "a" / "cache"), NOW.isoformat()],
                env={**environment, **exports},
                cwd=home,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        finally:
            server.terminate()
    assert child.returncode == 0, child.stderr
    assert child.stderr == ""
    assert json.loads(child.stdout) == truth("SPY", last="10:35")["close"].tolist()
    written = {path.parent for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {tmp_path / "ca", tmp_path / "a" / "cache"}
    assert stat.S_IMODE((tmp_path / "a" / "cache").stat().st_mode) == 0o700


FAULTY_CHILD = """
import datetime as dt, sys
from hedge_pipeline.market.calendar import SessionCalendar
from hedge_pipeline.market.sources import SourceError, SourceOptions
from hedge_pipeline.market.sources import yahoo

yahoo.TIMEOUT_SECONDS = 0.5
calendar = SessionCalendar()
options = SourceOptions(calendar, extra={"cache_dir": sys.argv[1]})
source = yahoo.YahooSource(options, yahoo.Meter(per_minute=1000))
for line in sys.stdin:
    label, now = line.split()
    try:
        bars = source.bars("SPY", calendar.session(label), dt.datetime.fromisoformat(now))
        print(len(bars), bars["bar_ts"].iloc[-1].isoformat(), flush=True)
    except SourceError as error:
        print(type(error).__name__, str(error), flush=True)
"""


class Child:
    """A process that asks for bars of SPY whenever it is told to."""

    def __init__(self, yahoo: YahooDouble, folder: Path) -> None:
        self.yahoo = yahoo
        self.process = subprocess.Popen(
            [sys.executable, "-c", FAULTY_CHILD, str(folder / "cache")],
            env={**os.environ, **yahoo.env, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def asks(self, now: dt.datetime, session: str = SESSION.label) -> str:
        """What it says of a session at a time, which is Yahoo's time, too."""
        self.yahoo.clock.set(now)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{session} {now.isoformat()}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().rstrip()


def told(number: int, last: str, day: str = SESSION.label) -> str:
    """What the child says of so many bars up to the one that starts then."""
    return f"{number} {at(last, day).astimezone(dt.UTC).isoformat()}"


@pytest.mark.slow
def test_a_child_process_led_by_its_environment_meets_every_fault_and_goes_on(
    yahoo: YahooDouble, tmp_path: Path
) -> None:
    child = Child(yahoo, tmp_path)
    good = told(66, "10:35")
    try:
        assert child.asks(NOW) == good
        for fault, outcome, words in FAULTS.values():
            yahoo.fault(replace(fault))
            said = child.asks(NOW)
            assert said.startswith(f"{outcome.__name__} SPY: ") and re.search(words, said)
            yahoo.mend()
            assert child.asks(NOW) == good
        yahoo.fault(Fault("delay", seconds=1.0))
        assert re.match("SourceDown SPY: Yahoo cannot be reached.*timed out", child.asks(NOW))
        yahoo.mend()
        for forming in ("null", "absent", "partial", "none"):
            yahoo.forming = forming
            assert child.asks(at("10:38:29")) == good
            assert child.asks(at("10:38:30")) == told(67, "10:36")
        # pre-open, holiday, half day
        assert child.asks(at("09:00")) == "NoDataYet SPY: no bar of 2025-11-21 is final yet"
        thanksgiving = at("12:00", "2025-11-27")
        assert child.asks(thanksgiving, "2025-11-26") == told(390, "15:59", "2025-11-26")
        black_friday = at("13:20", "2025-11-28")
        assert child.asks(black_friday, "2025-11-28") == told(210, "12:59", "2025-11-28")
        # a hole that is filled later, and a revision
        yahoo.holes["SPY", epoch("10:20")] = at("10:38:30")
        assert child.asks(NOW) == told(65, "10:35")
        yahoo.revisions["SPY", epoch("10:35")] = 0.5
        assert child.asks(at("10:38:30")) == told(67, "10:36")
        yahoo.fault(replace(THROTTLED))
        asked = yahoo.count()
        assert child.asks(NOW).startswith("RateLimited SPY: Yahoo ")
        assert yahoo.count() == asked + 1
        yahoo.mend()
        assert re.match(r"RateLimited SPY: Yahoo asked for patience; \d+ s to go", child.asks(NOW))
        assert yahoo.count() == asked + 1
    finally:
        child.process.kill()
        child.process.wait(10)


def test_a_child_process_that_is_refused_the_connection_says_so(
    yahoo: YahooDouble, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    nobody = dict.fromkeys(("HTTPS_PROXY", "https_proxy"), f"http://127.0.0.1:{port}")
    done = subprocess.run(
        [sys.executable, "-c", FAULTY_CHILD, str(tmp_path / "cache")],
        env={**os.environ, **yahoo.env, **nobody, "PYTHONPATH": str(REPOSITORY)},
        input=f"{SESSION.label} {NOW.isoformat()}\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.startswith("SourceDown SPY: Yahoo cannot be reached"), done.stderr


# -- what was recorded, made anew: the recordings themselves are not part of the project -----------


def test_a_day_told_with_a_null_minute_and_the_last_price_behind_it(
    yahoo: YahooDouble, source: YahooSource
) -> None:
    """As recorded of AAPL 2024-10-02: 390 minutes, one of nulls, and the next day's last price."""
    session = CALENDAR.session("2025-11-20")
    starts = [int(x) for x in session.bar_ts.astype("datetime64[s]").astype(np.int64)]
    whole = truth("SPY", session)
    quote = {name: [*whole[name].tolist(), 701.23] for name in COLUMNS}
    quote["volume"][-1] = 0
    for column in quote.values():
        column[345] = None
    yahoo.fault(Fault("answer", body=body_of(quote, timestamp=[*starts, epoch("09:31:07")])))
    bars = source.bars("SPY", session, NOW)
    assert_frame_equal(bars, whole.drop(index=345).reset_index(drop=True), check_exact=True)


@pytest.mark.parametrize(
    ("status", "words", "outcome"),
    [
        (400, "Data doesn't exist for startDate = 1577854800, endDate = 1578027600", WindowRefused),
        (422, "Invalid input - start date cannot be after end date", WindowRefused),
        (500, "Internal Server Error", SourceDown),
    ],
)
def test_a_refusal_in_yahoo_s_words_is_told_in_them_unless_yahoo_is_ill(
    yahoo: YahooDouble, source: YahooSource, status: int, words: str, outcome: type[SourceError]
) -> None:
    error = {"code": "Bad Request", "description": words}
    body = json.dumps({"chart": {"result": None, "error": error}}).encode()
    yahoo.fault(Fault("answer", status=status, body=body))
    with pytest.raises(SourceError) as met:
        source.bars("SPY", CALENDAR.session("2025-11-20"), NOW)
    assert type(met.value) is outcome
    assert (words[:40] in str(met.value)) is (outcome is WindowRefused)


# -- recorded answers ------------------------------------------------------------------------------


def recorded(folder: Path, name: str) -> dict[str, Any]:
    found = sorted((folder / "yahoo_json").glob(f"{name}*"))
    if not found:
        pytest.skip(f"no recorded answer {name} beside the real market data")
    content: dict[str, Any] = json.loads(found[0].read_text())
    return content


def serve(yahoo: YahooDouble, record: dict[str, Any]) -> None:
    body = json.dumps(record["body"]).encode()
    yahoo.fault(Fault("answer", status=record["status"], body=body))


@pytest.mark.shared_data
def test_a_recorded_day_with_a_null_bar_and_an_appended_live_quote(
    yahoo: YahooDouble, source: YahooSource, shared_data: Path
) -> None:
    record = recorded(shared_data, "chart-AAPL-2024-10-02")
    serve(yahoo, record)
    session = CALENDAR.session("2024-10-02")
    now = dt.datetime(2024, 10, 4, 12, 7, 44, tzinfo=dt.UTC)
    bars = source.bars("AAPL", session, now)
    result = record["body"]["chart"]["result"][0]
    quote = pd.DataFrame(result["indicators"]["quote"][0])
    quote["bar_ts"] = pd.to_datetime(result["timestamp"], unit="s", utc=True).as_unit("us")
    assert quote["bar_ts"].iloc[-1] > pd.Timestamp(session.closes)  # the next day's last price
    whole = quote[quote["bar_ts"] < pd.Timestamp(session.closes)].dropna()
    assert len(bars) == len(whole) == 389
    missing = set(session.bar_ts) - set(bars["bar_ts"].dt.tz_localize(None).to_numpy())
    assert missing == {np.datetime64("2024-10-02T15:15:00", "us")}
    for column in ("open", "high", "low", "close", "volume"):
        expected = whole[column].astype(float).round(4).to_numpy()
        np.testing.assert_array_equal(bars[column].to_numpy(), expected)
    collected = collect_bars(source, ["AAPL"], session, now, nominal_arrival=True, ingested_at=None)
    assert (len(collected.bars), collected.failures) == (389, {})


@pytest.mark.shared_data
def test_a_recorded_weekend_has_no_data(
    yahoo: YahooDouble, seconds: Seconds, tmp_path: Path, shared_data: Path
) -> None:
    serve(yahoo, recorded(shared_data, "chart-AAPL-2025-02-01"))
    calendar = SessionCalendar("24/7")
    source = make_source(tmp_path, seconds, calendar)
    saturday = calendar.session("2025-02-01")
    with pytest.raises(NoDataYet, match="AAPL: Yahoo has nothing of 2025-02-01"):
        source.bars("AAPL", saturday, saturday.closes + dt.timedelta(days=2))


@pytest.mark.shared_data
def test_a_recorded_refusal_of_a_window(
    yahoo: YahooDouble, source: YahooSource, shared_data: Path
) -> None:
    serve(yahoo, recorded(shared_data, "chart-BEKE-2020-01-01"))
    with pytest.raises(WindowRefused, match="Data doesn't exist for startDate"):
        source.bars("BEKE", CALENDAR.session("2025-11-20"), NOW)


@pytest.mark.shared_data
def test_a_recorded_404_of_a_wrong_address_is_no_unknown_symbol(
    yahoo: YahooDouble, source: YahooSource, shared_data: Path
) -> None:
    serve(yahoo, recorded(shared_data, "pageWithUnknownError"))
    with pytest.raises(SourceDown, match="Yahoo answers 404"):
        source.bars("SPY", SESSION, NOW)


# -- option chains -----------------------------------------------------------------------------

OPTIONS = "/v7/finance/options/"


def expiries(chain: pd.DataFrame) -> list[str]:
    return sorted(chain["expiry"].unique())


def test_a_chain_has_the_nearest_expirations_and_the_next_monthlies(
    yahoo: YahooDouble, source: YahooSource, seconds: Seconds
) -> None:
    chain = source.chains("QQQ", SESSION, NOW, sweep=False)
    assert expiries(chain) == [
        "2025-11-21",  # itself a monthly
        "2025-11-24",
        "2025-11-25",
        "2025-11-26",
        "2025-12-19",
        "2026-01-16",
        "2026-02-20",
    ]
    assert yahoo.count("options") == 7
    assert seconds.slept == [yahoo_source.CHAIN_PAUSE_SECONDS] * 6
    asked = pd.Timestamp(NOW)
    assert chain["available_at"].unique().tolist() == [asked]
    assert chain["as_of"].unique().tolist() == [asked - 30 * MINUTE]
    tens = chain[(chain["strike"] == 610) & (chain["right"] == "C")]
    assert tens["open_interest"].unique().tolist() == [507.0]
    assert chain["volume"].isna().sum() == 7  # one key is missing in every answer


def test_a_sweep_has_every_expiration(yahoo: YahooDouble, source: YahooSource) -> None:
    chain = source.chains("QQQ", SESSION, NOW, sweep=True)
    assert len(expiries(chain)) == 14 == yahoo.count("options")


def test_an_expiration_that_fails_costs_only_itself(
    yahoo: YahooDouble, source: YahooSource
) -> None:
    source.chains("QQQ", SESSION, NOW, sweep=False)  # cookies and crumb
    whole = expiries(source.chains("QQQ", SESSION, NOW, sweep=False))
    yahoo.fault(Fault("delay", path=OPTIONS, times=1))
    yahoo.fault(Fault("answer", path=OPTIONS, status=200, body=b"<html>", times=1))
    assert expiries(source.chains("QQQ", SESSION, NOW, sweep=False)) == [whole[0], *whole[2:]]


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (replace(THROTTLED, path=OPTIONS), RateLimited),
        (Fault("answer", path=OPTIONS, status=500, body=b"{}"), SourceDown),
        (Fault("answer", path=OPTIONS, status=401, body=b"{}"), SourceDown),
        (Fault("answer", path=OPTIONS, status=404, body=b"{}"), SymbolUnknown),
        (Fault("answer", path=OPTIONS, body=b"<html>"), SourceDown),
        (Fault("answer", path=OPTIONS, body=b'{"optionChain": {"result": [{}]}}'), SchemaDrift),
        (Fault("answer", path=OPTIONS, body=b'{"optionChain": {"result": []}}'), NoDataYet),
        (Fault("truncate", path=OPTIONS), SourceDown),
        (Fault("drop", path=OPTIONS), SourceDown),
    ],
)
def test_every_failure_of_a_chain_has_its_outcome(
    yahoo: YahooDouble, source: YahooSource, fault: Fault, outcome: type[SourceError]
) -> None:
    yahoo.fault(fault)
    with pytest.raises(outcome) as met:
        source.chains("QQQ", SESSION, NOW, sweep=False)
    assert type(met.value) is outcome
    assert "\n" not in str(met.value)


def test_a_crumb_that_has_expired_is_asked_for_again(
    yahoo: YahooDouble, source: YahooSource
) -> None:
    source.chains("QQQ", SESSION, NOW, sweep=False)
    yahoo.fault(Fault("answer", path=OPTIONS, status=401, body=b"{}", times=2))
    assert len(source.chains("QQQ", SESSION, NOW, sweep=False)) > 0


def test_bars_go_on_while_chains_fail(yahoo: YahooDouble, source: YahooSource) -> None:
    yahoo.fault(Fault("answer", path=OPTIONS, status=500, body=b"{}"))
    with pytest.raises(SourceDown):
        source.chains("QQQ", SESSION, NOW, sweep=False)
    assert len(source.bars("QQQ", SESSION, NOW)) > 60


def test_a_symbol_without_options_has_no_chain(source: YahooSource) -> None:
    with pytest.raises(NoDataYet, match="lists no options"):
        source.chains("NOPE", SESSION, NOW, sweep=False)


def test_yahoo_has_no_chains_of_the_past(yahoo: YahooDouble, source: YahooSource) -> None:
    with pytest.raises(WindowRefused, match="keeps no option chains"):
        source.chains("QQQ", CALENDAR.session("2025-11-20"), NOW, sweep=True)
    assert yahoo.count("options") == 0


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "name",
    [
        "options-QQQ.v2.json",
        "options-QQQ.v3.json",
        "options-AAPL.v3.json",
        "options_v7_AAPL.json",
        "options_v7_AAPL_1757030400.json",
        "options_v7_AAPL_1757635200.json",
        "options_v7_AAPL_1758240000.json",
        "options_v7_AAPL_1758844800.json",
        "options_v7_AAPL_1759449600.json",
        "options_v7_AAPL_1760659200.json",
        "options_v7_AAPL_1761868800.json",
    ],
)
def test_recorded_chains_are_read(shared_data: Path, name: str) -> None:
    recorded = json.loads((shared_data / "yahoo_json" / name).read_text())
    body = recorded.get("body", recorded)
    page = read_page("QQQ", json.loads(body) if isinstance(body, str) else body)
    assert page is not None and page.expiration in page.expirations
    assert len(page.contracts) > 50
    assert (page.contracts["strike"] > 0).all()
    chain = snapshot([page], NOW)
    assert tuple(chain.columns) == CHAIN_COLUMNS


@pytest.mark.shared_data
@pytest.mark.parametrize("version", ["v2", "v3"])
def test_a_recorded_symbol_without_options_and_a_day_without_expiration(
    shared_data: Path, version: str
) -> None:
    assert read_page("BTC-USD", recorded(shared_data, f"options-BTC-USD.{version}")["body"]) is None
    body = recorded(shared_data, f"options-AAPL-expire-2022-03-01.{version}")["body"]
    page = read_page("AAPL", body)
    assert page is not None
    assert page.expiration not in page.expirations and page.contracts.empty


@pytest.mark.shared_data
def test_a_recorded_404_of_a_symbol_that_is_gone(
    yahoo: YahooDouble, source: YahooSource, shared_data: Path
) -> None:
    serve(yahoo, recorded(shared_data, "historical-via-chart-SI"))
    with pytest.raises(SymbolUnknown, match="Yahoo has no symbol SI"):
        source.bars("SI", CALENDAR.session("2025-11-20"), NOW)


def test_the_day_before_a_holiday_friday_is_a_monthly() -> None:
    """The third Friday of April 2025 was Good Friday."""
    days = [dt.date(2025, 4, n) for n in (7, 8, 9, 10, 11, 17, 25)]
    listed = [int(dt.datetime(d.year, d.month, d.day, tzinfo=dt.UTC).timestamp()) for d in days]
    chosen = expirations_to_ask(listed, dt.date(2025, 4, 7), sweep=False)
    assert chosen == (*listed[:4], listed[5])
