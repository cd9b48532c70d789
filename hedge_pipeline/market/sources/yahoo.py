"""Minute bars from Yahoo through the real yfinance client, with typed outcomes.

yfinance hides most errors and guesses at the rest ("possibly delisted"), so an answer is judged by
its HTTP status, which one metered session sees. That session also keeps a request budget and stops
asking for a while after a 429; yfinance's own instant repeat is stopped with it.

What is delivered: minutes on the session's grid only, final at their end plus 90 s, unadjusted.
Until the session is long over, a minute must also have ended by Yahoo's own clock: a delayed feed
shows an old minute in progress. A null minute is no bar. The row of the running minute, rows
between minutes, the closing print and the previous session's rows (Yahoo's answer before the first
print) are dropped. A daily bar is delivered when its session is over, by Yahoo's clock too.

Yahoo's data are for personal use; see the terms of use of Yahoo and the notes of yfinance.
"""

from __future__ import annotations

import collections
import datetime as dt
import json
import logging
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import numpy as np

from hedge_pipeline.market.calendar import utc_times
from hedge_pipeline.market.sources import yahoo_chains
from hedge_pipeline.market.sources.protocol import (
    BAR_COLUMNS,
    DAILY_COLUMNS,
    BadInput,
    Capabilities,
    NoDataYet,
    RateLimited,
    SchemaDrift,
    SourceDown,
    SourceError,
    SourceOptions,
    SymbolUnknown,
    WindowRefused,
)

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.market.calendar import Session

log = logging.getLogger(__name__)

INTERVALS = {60: "1m", 120: "2m", 300: "5m", 900: "15m", 1800: "30m", 3600: "1h"}
DEPTH_DAYS = {60: 29}
DEFAULT_DEPTH_DAYS = 59
REQUESTS_PER_MINUTE = 60
TIMEOUT_SECONDS = 10.0
CACHE_ATTEMPTS = 10
SETTLED = dt.timedelta(hours=1)
COOL_DOWN_SECONDS = (60.0, 300.0, 900.0)
PRICE_DECIMALS = 4
CHAIN_PAUSE_SECONDS = 2.0


class BreakerOpen(Exception):
    """Yahoo asked for patience and the time is not up. No OSError: yfinance would repeat those."""


class Meter:
    """Request budget, breaker and last status; shared by every request of the process.

    Args:
        per_minute: requests allowed in any minute; more wait.
        clock: monotonic seconds.
        sleep: waits.
    """

    def __init__(
        self,
        per_minute: int = REQUESTS_PER_MINUTE,
        clock: Any = time.monotonic,
        sleep: Any = time.sleep,
    ) -> None:
        self._lock = threading.Lock()
        self._local = threading.local()
        self._per_minute = per_minute
        self._clock = clock
        self._sleep = sleep
        self._sent: collections.deque[float] = collections.deque()
        self._open_until = 0.0
        self._strikes = 0

    @property
    def last_status(self) -> int | None:
        """HTTP status of this thread's last request; None if it brought none."""
        status: int | None = getattr(self._local, "status", None)
        return status

    def before(self) -> None:
        """Waits for the budget.

        Raises:
            BreakerOpen: after a 429, until the cool-down is over.
        """
        self._local.status = None
        with self._lock:
            now = self._clock()
            self._refuse_while_open(now)
            while self._sent and self._sent[0] <= now - 60:
                self._sent.popleft()
            full = len(self._sent) >= self._per_minute
            pause = self._sent[-self._per_minute] + 60 - now if full else 0.0
            self._sent.append(now + pause)
        if pause > 0:
            self._sleep(pause)
            self._refuse_while_open(self._clock())

    def pause(self, seconds: float) -> None:
        """Waits between requests that are in no hurry."""
        self._sleep(seconds)

    def after(self, status: int) -> None:
        """Notes the answer; a 429 opens the breaker, for longer each time in a row.

        Answers to what was sent before it opened are part of the same burst and count for nothing.
        """
        self._local.status = status
        with self._lock:
            now = self._clock()
            if now < self._open_until:
                return
            if status == 429:
                pause = COOL_DOWN_SECONDS[min(self._strikes, len(COOL_DOWN_SECONDS) - 1)]
                self._open_until = now + pause
                self._strikes += 1
            elif status < 400:
                self._strikes = 0

    def _refuse_while_open(self, now: float) -> None:
        if now < self._open_until:
            raise BreakerOpen(f"asked for patience; {self._open_until - now:.0f} s to go")


def metered_session(meter: Meter) -> Any:
    """A curl_cffi session for yfinance whose every request goes through the meter.

    Cookies and crumbs cost budget, but only an answer with data says how Yahoo feels: charts need
    neither, and the consent page answers 200 in the middle of a ban.
    """
    from curl_cffi import requests

    class MeteredSession(requests.Session):  # type: ignore[type-arg]
        def request(self, method: Any, url: Any, *rest: Any, **options: Any) -> Any:
            meter.before()
            options["timeout"] = TIMEOUT_SECONDS  # yfinance waits 30 s for a cookie
            answer = super().request(method, url, *rest, **options)
            if "/finance/" in urlsplit(str(url)).path:
                meter.after(answer.status_code)
            return answer

    return MeteredSession(impersonate="chrome")


class YahooSource:
    """Yahoo as a source; yfinance is imported with the first request.

    `options.extra["cache_dir"]` is a private folder for yfinance's cookie and time zone caches.
    yfinance has one session per process: open no two sources that are used at the same time.
    """

    name = "yahoo"
    capabilities = Capabilities(has_chains=True)
    delay = dt.timedelta(seconds=90)

    def __init__(self, options: SourceOptions, meter: Meter | None = None) -> None:
        seconds = options.calendar.bar_seconds
        if seconds not in INTERVALS:
            known = ", ".join(map(str, INTERVALS))
            raise BadInput(f"HEDGE_BAR_SECONDS={seconds}: Yahoo has bars of {known} seconds")
        self._calendar = options.calendar
        self._interval = INTERVALS[seconds]
        self._depth = dt.timedelta(days=DEPTH_DAYS.get(seconds, DEFAULT_DEPTH_DAYS))
        self._cache_dir = options.extra.get("cache_dir")
        self._meter = meter or Meter()
        self._delivered: set[str] = set()
        self._lock = threading.Lock()
        self._chain_turn = threading.Lock()
        self._client: Any = None
        self._session: Any = None

    def bars(self, symbol: str, session: Session, now: dt.datetime) -> pd.DataFrame:
        """See the protocol; bid, ask and levels are unknown, a zero volume is passed on."""
        length = dt.timedelta(seconds=session.bar_seconds)
        if now < session.opens + length + self.delay:
            raise NoDataYet(f"{symbol}: no bar of {session.label} is final yet")
        if session.opens < now - self._depth:
            raise WindowRefused(
                f"{symbol}: Yahoo keeps {self._interval} bars for {self._depth.days} days; "
                f"{session.label} is older"
            )
        window: dict[str, Any] = {"period": "1d"}
        if not session.opens <= now < session.closes:
            window = {"start": session.opens, "end": session.closes}
        frame, metadata = self._ask(symbol, session.label, self._interval, window)
        bars = self._clean(symbol, frame, session, now, metadata)
        if bars.empty:
            raise NoDataYet(f"{symbol}: Yahoo has no bar of {session.label} yet")
        self._delivered.add(symbol)
        return bars

    def chains(
        self, symbol: str, session: Session, now: dt.datetime, *, sweep: bool
    ) -> pd.DataFrame:
        """See the protocol: one snapshot, of now; Yahoo keeps none of the past.

        An expiration that fails is left out; the others count. Symbols take turns and requests
        are spaced, so that bars always find room in the request budget.
        """
        today = now.astimezone(ZoneInfo(self._calendar.timezone)).date()
        if session.label != today.isoformat():
            raise WindowRefused(f"{symbol}: Yahoo keeps no option chains of {session.label}")
        with self._chain_turn:
            first = self._ask_chain(symbol, None)
            if first is None:
                raise NoDataYet(f"{symbol}: Yahoo lists no options")
            wanted = yahoo_chains.expirations_to_ask(first.expirations, today, sweep=sweep)
            pages = [first] if first.expiration in wanted else []
            for expiration in wanted:
                if expiration != first.expiration:
                    pages.extend(self._ask_expiration(symbol, expiration))
        if not any(len(page.contracts) for page in pages):
            raise NoDataYet(f"{symbol}: Yahoo's option chain is empty")
        return yahoo_chains.snapshot(pages, now)

    def _ask_expiration(self, symbol: str, expiration: int) -> list[yahoo_chains.Page]:
        """The page of one expiration, or nothing if it fails."""
        self._meter.pause(CHAIN_PAUSE_SECONDS)
        try:
            page = self._ask_chain(symbol, expiration)
        except SourceError as error:
            log.warning("%s: expiration %d is left out: %s", symbol, expiration, error)
            return []
        # Yahoo answers an expiration it does not know with the nearest one
        return [page] if page is not None and page.expiration == expiration else []

    def _ask_chain(self, symbol: str, expiration: int | None) -> yahoo_chains.Page | None:
        """One answer; yfinance's own chain methods hide every error.

        Raises:
            SourceError: by the HTTP status.
        """
        client = self._open()
        data = client.data.YfData(session=self._session)
        url = f"{client.const._BASE_URL_}/v7/finance/options/{symbol}"
        query = {} if expiration is None else {"date": expiration}
        try:
            answer = data.get(url, params=query)
            if answer.status_code == 401:
                data._crumb = None  # a refusal while throttled is remembered as the crumb
                answer = data.get(url, params=query)
            if answer.status_code >= 400:
                raise self._refused_chain(symbol, answer.status_code)
            return yahoo_chains.read_page(symbol, answer.json())
        except SourceError:
            raise
        except BreakerOpen as error:
            raise RateLimited(f"{symbol}: Yahoo {error}") from error
        except OSError as error:
            raise SourceDown(f"{symbol}: Yahoo cannot be reached ({_first_line(error)})") from error
        except client.exceptions.YFRateLimitError as error:
            raise RateLimited(f"{symbol}: Yahoo answers 429, too many requests") from error
        except Exception as error:  # HTML, malformed JSON, and what else yfinance meets
            raise SourceDown(f"{symbol}: Yahoo's option chain cannot be read") from error

    def _refused_chain(self, symbol: str, status: int) -> SourceError:
        if status == 429:
            return RateLimited(f"{symbol}: Yahoo answers 429, too many requests")
        if status == 404:
            return SymbolUnknown(f"{symbol}: Yahoo has no options of it")
        return SourceDown(f"{symbol}: Yahoo answers {status} when asked for options")

    def daily(self, symbol: str, first: str, last: str, now: dt.datetime) -> pd.DataFrame:
        """See the protocol; adjusted for splits, not for dividends, with the auctions' volume."""
        zone = ZoneInfo(self._calendar.timezone)
        labels = self._calendar.between(first, last)
        over = [x for x in map(self._calendar.session, labels) if x.closes + self.delay <= now]
        if not over:
            raise NoDataYet(f"{symbol}: no session from {first} to {last} is over")
        days = [dt.date.fromisoformat(x.label) for x in (over[0], over[-1])]
        begin, end = (dt.datetime.combine(day, dt.time(), zone) for day in days)
        window = {"start": begin, "end": end + dt.timedelta(days=1)}
        about = f"the days {first} to {last}"
        frame, metadata = self._ask(symbol, about, "1d", window)
        bars = _whole(_rows(symbol, frame))
        bars["session"] = bars.pop("bar_ts").dt.tz_convert(zone).dt.strftime("%Y-%m-%d")
        last_trade = metadata.get("regularMarketTime")
        final = {x.label for x in over if now >= x.closes + SETTLED or _over(x, last_trade)}
        # yfinance takes a quote that follows the day's row for the day itself
        quote = (bars["high"] == bars["low"]) & (bars["volume"] == 0)
        bars = bars[bars["session"].isin(final) & ~quote].drop_duplicates("session")
        if bars.empty:
            raise NoDataYet(f"{symbol}: Yahoo has nothing of {about} yet")
        return bars.sort_values("session").reset_index(drop=True)[list(DAILY_COLUMNS)]

    # -- asking ----------------------------------------------------------------------------------

    def _ask(
        self, symbol: str, about: str, interval: str, window: dict[str, Any]
    ) -> tuple[pd.DataFrame, Any]:
        """Rows as yfinance gives them, and the metadata of the answer; `about` is for errors."""
        client = self._open()
        if "start" in window:
            client.data.YfData.cache_get.cache_clear()  # it remembers bad answers for ever
        ticker = None
        try:
            zones = client.cache.get_tz_cache()
            if zones.lookup(symbol) != self._calendar.timezone:
                zones.store(symbol, self._calendar.timezone)
            ticker = client.Ticker(symbol, session=self._session)
            frame: pd.DataFrame = ticker.history(
                interval=interval,
                prepost=False,
                auto_adjust=False,
                actions=False,
                keepna=True,
                **window,
            )
        except Exception as error:  # every one of them is given its outcome
            raise self._outcome(symbol, about, error, ticker) from error
        return frame, ticker.history_metadata

    def _open(self) -> Any:
        with self._lock:
            if self._client is None:
                import yfinance

                warnings.filterwarnings("ignore", category=DeprecationWarning, module="yfinance")
                logging.getLogger("yfinance").setLevel(logging.CRITICAL)
                if self._cache_dir:
                    _keep_caches_in(_private(Path(self._cache_dir)), yfinance)
                yfinance.config.debug.hide_exceptions = False
                self._session = metered_session(self._meter)
                self._client = yfinance
            return self._client

    def _outcome(self, symbol: str, about: str, error: Exception, ticker: Any) -> SourceError:
        """The outcome an exception of yfinance stands for, judged by the HTTP status first."""
        from peewee import PeeweeException
        from yfinance import exceptions as yahoo

        status = self._meter.last_status
        reason = getattr(error, "yahoo_reason", None)  # Yahoo's own words, not yfinance's guess
        if isinstance(error, BreakerOpen):
            return RateLimited(f"{symbol}: Yahoo {error}")
        if isinstance(error, yahoo.YFRateLimitError) or status == 429:
            return RateLimited(f"{symbol}: Yahoo answers 429, too many requests")
        if isinstance(error, OSError):
            return SourceDown(f"{symbol}: Yahoo cannot be reached ({_first_line(error)})")
        if isinstance(error, PeeweeException):
            return SourceDown(f"{symbol}: yfinance's cache fails ({_first_line(error)})")
        if status == 404 and reason and symbol not in self._delivered:
            return SymbolUnknown(f"Yahoo has no symbol {symbol}")
        if status in (400, 422) and reason:
            return WindowRefused(f"{symbol}: Yahoo refuses {about} ({_first_line(error)})")
        if status is not None and status >= 400:
            return SourceDown(f"{symbol}: Yahoo answers {status}")
        if isinstance(error, json.JSONDecodeError | yahoo.YFDataException):
            return SourceDown(f"{symbol}: Yahoo's answer cannot be read")
        if isinstance(error, yahoo.YFPricesMissingError):
            if reason:
                return SourceDown(f"{symbol}: Yahoo answers with an error ({_first_line(error)})")
            if "symbol" not in ticker.history_metadata:
                return SourceDown(f"{symbol}: Yahoo answers with nothing")
            return NoDataYet(f"{symbol}: Yahoo has nothing of {about}")
        return SchemaDrift(f"{symbol}: Yahoo's answer has an unknown shape ({_first_line(error)})")

    # -- cleaning --------------------------------------------------------------------------------

    def _clean(
        self,
        symbol: str,
        frame: pd.DataFrame,
        session: Session,
        now: dt.datetime,
        metadata: Any,
    ) -> pd.DataFrame:
        bars = _rows(symbol, frame)
        times = utc_times(bars["bar_ts"])
        on_grid = session.index_of(times) >= 0
        ends = bars["bar_ts"] + dt.timedelta(seconds=session.bar_seconds)
        final = ends + self.delay <= now
        if now < session.closes + SETTLED:
            final &= ends <= _seen(bars["bar_ts"], metadata)
        bars = _whole(bars[on_grid & final]).drop_duplicates("bar_ts")
        bars = bars.sort_values("bar_ts").reset_index(drop=True)
        for column in ("bid", "ask", "support", "resistance"):
            bars[column] = np.nan
        return bars[list(BAR_COLUMNS)]


def _rows(symbol: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of yfinance: bar_ts (UTC), open, high, low, close, volume; NaN where Yahoo has null."""
    import pandas as pd

    names = {"Open": "open", "High": "high", "Low": "low", "Close": "close", "Volume": "volume"}
    missing = [name for name in names if name not in frame.columns]
    if missing or not isinstance(frame.index, pd.DatetimeIndex) or frame.index.tz is None:
        raise SchemaDrift(f"{symbol}: Yahoo's answer lacks {', '.join(missing) or 'times'}")
    rows = frame[list(names)].rename(columns=names).astype("float64")
    rows.insert(0, "bar_ts", frame.index.tz_convert("UTC").as_unit("us"))
    return rows.reset_index(drop=True)


def _whole(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that are bars, in rounded prices: nothing unknown, nothing outside high and low."""
    prices = rows[["open", "high", "low", "close"]]
    known = (prices.notna() & (prices > 0)).all(axis=1)
    torn = (prices["high"] < prices.max(axis=1)) | (prices["low"] > prices.min(axis=1))
    bars = rows[known & ~torn].copy()
    bars[prices.columns] = bars[prices.columns].round(PRICE_DECIMALS)
    return bars


def _over(session: Session, last_trade: Any) -> bool:
    """Whether Yahoo's feed has reached the last minute of the session."""
    import pandas as pd

    last_minute = session.closes - dt.timedelta(seconds=60)
    return isinstance(last_trade, pd.Timestamp) and bool(last_trade >= last_minute)


def _seen(bar_ts: pd.Series[Any], metadata: Any) -> Any:
    """The moment Yahoo's feed had reached: its newest row or its last trade."""
    import pandas as pd

    last_trade = metadata.get("regularMarketTime")
    times = [bar_ts.max(), last_trade if isinstance(last_trade, pd.Timestamp) else pd.NaT]
    return pd.Series(pd.to_datetime(times, utc=True)).max()


def _private(folder: Path) -> Path:
    """Makes the folder, for its owner only: yfinance keeps pickled cookies in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    except OSError as error:
        raise BadInput(f"{folder}: Yahoo's cache cannot be kept there: {error.strerror}") from error
    return folder


def _keep_caches_in(folder: Path, client: Any) -> None:
    """Makes yfinance's SQLite files before two threads or processes do so at once.

    SQLite does not wait for the lock when a new file is given its write-ahead log.
    """
    import peewee

    client.set_tz_cache_location(str(folder))
    for attempts_left in reversed(range(CACHE_ATTEMPTS)):
        try:
            client.cache.get_tz_cache().lookup("")
            client.cache.get_cookie_cache().lookup("")
            return
        except peewee.PeeweeException as error:
            if not attempts_left:
                raise BadInput(f"{folder}: Yahoo's cache cannot be read: {error}") from error
        time.sleep(0.1)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().split("\n", 1)[0] or type(error).__name__)[:160]
