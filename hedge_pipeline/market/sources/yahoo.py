"""Minute bars from Yahoo through the real yfinance client, with typed outcomes.

yfinance hides most errors and guesses at the rest ("possibly delisted"), so an answer is judged by
its HTTP status, which one metered session sees. That session also keeps a request budget and stops
asking for a while after a 429; yfinance's own instant repeat is stopped with it.

What is delivered: minutes on the session's grid only, final at their end plus 90 s, unadjusted.
A null minute is no bar. The row of the running minute, rows between minutes, the closing print and
the previous session's rows (Yahoo's answer before the first print) are dropped.

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

import numpy as np

from hedge_pipeline.market.sources.protocol import (
    BAR_COLUMNS,
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
COOL_DOWN_SECONDS = (60.0, 300.0, 900.0)
PRICE_DECIMALS = 4


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
            if now < self._open_until:
                raise BreakerOpen(f"asked for patience; {self._open_until - now:.0f} s to go")
            while self._sent and self._sent[0] <= now - 60:
                self._sent.popleft()
            full = len(self._sent) >= self._per_minute
            pause = self._sent[0] + 60 - now if full else 0.0
            self._sent.append(now + pause)
        if pause > 0:
            self._sleep(pause)

    def after(self, status: int) -> None:
        """Notes the answer; a 429 opens the breaker, for longer each time in a row."""
        self._local.status = status
        with self._lock:
            if status == 429:
                pause = COOL_DOWN_SECONDS[min(self._strikes, len(COOL_DOWN_SECONDS) - 1)]
                self._open_until = self._clock() + pause
                self._strikes += 1
            elif status < 400:
                self._strikes = 0


def metered_session(meter: Meter) -> Any:
    """A curl_cffi session for yfinance whose every request goes through the meter."""
    from curl_cffi import requests

    class MeteredSession(requests.Session):  # type: ignore[type-arg]
        def request(self, method: Any, url: Any, *rest: Any, **options: Any) -> Any:
            meter.before()
            answer = super().request(method, url, *rest, **options)
            if "getcrumb" not in urlsplit(str(url)).path:
                meter.after(answer.status_code)
            return answer

    return MeteredSession(impersonate="chrome")


class YahooSource:
    """Yahoo as a source; yfinance is imported with the first request.

    `options.extra["cache_dir"]` is a private folder for yfinance's cookie and time zone caches.
    """

    name = "yahoo"
    capabilities = Capabilities()
    delay = dt.timedelta(seconds=90)

    def __init__(self, options: SourceOptions) -> None:
        seconds = options.calendar.bar_seconds
        if seconds not in INTERVALS:
            known = ", ".join(map(str, INTERVALS))
            raise BadInput(f"HEDGE_BAR_SECONDS={seconds}: Yahoo has bars of {known} seconds")
        self._calendar = options.calendar
        self._interval = INTERVALS[seconds]
        self._depth = dt.timedelta(days=DEPTH_DAYS.get(seconds, DEFAULT_DEPTH_DAYS))
        self._cache_dir = options.extra.get("cache_dir")
        self._meter = Meter()
        self._lock = threading.Lock()
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
        frame = self._ask(symbol, session, now)
        bars = self._clean(symbol, frame, session, now)
        if bars.empty:
            raise NoDataYet(f"{symbol}: Yahoo has no bar of {session.label} yet")
        return bars

    # -- asking ----------------------------------------------------------------------------------

    def _ask(self, symbol: str, session: Session, now: dt.datetime) -> pd.DataFrame:
        client = self._open()
        running = session.opens <= now < session.closes + dt.timedelta(hours=1)
        window: dict[str, Any]
        if running:
            window = {"period": "1d"}
        else:
            client.data.YfData.cache_get.cache_clear()  # it remembers bad answers for ever
            window = {"start": session.opens, "end": session.closes}
        client.cache.get_tz_cache().store(symbol, self._calendar.timezone)
        try:
            frame: pd.DataFrame = client.Ticker(symbol, session=self._session).history(
                interval=self._interval,
                prepost=False,
                auto_adjust=False,
                actions=False,
                keepna=True,
                timeout=10,
                **window,
            )
        except Exception as error:  # every one of them is given its outcome
            raise self._outcome(symbol, session, error) from error
        return frame

    def _open(self) -> Any:
        with self._lock:
            if self._client is None:
                import yfinance

                warnings.filterwarnings("ignore", category=DeprecationWarning, module="yfinance")
                logging.getLogger("yfinance").setLevel(logging.CRITICAL)
                if self._cache_dir:
                    folder = Path(self._cache_dir)
                    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                    folder.chmod(0o700)
                    yfinance.set_tz_cache_location(str(folder))
                yfinance.config.debug.hide_exceptions = False
                self._session = metered_session(self._meter)
                self._client = yfinance
            return self._client

    def _outcome(self, symbol: str, session: Session, error: Exception) -> SourceError:
        """The outcome an exception of yfinance stands for, judged by the HTTP status first."""
        from yfinance import exceptions as yahoo

        status = self._meter.last_status
        if isinstance(error, BreakerOpen | yahoo.YFRateLimitError) or status == 429:
            return RateLimited(
                f"{symbol}: Yahoo {error}"
                if isinstance(error, BreakerOpen)
                else f"{symbol}: Yahoo answers 429, too many requests"
            )
        if isinstance(error, OSError):
            return SourceDown(f"{symbol}: Yahoo cannot be reached ({_first_line(error)})")
        if status is not None and status >= 500:
            return SourceDown(f"{symbol}: Yahoo answers {status}")
        if status == 404:
            return SymbolUnknown(f"Yahoo has no symbol {symbol}")
        if status in (400, 422):
            return WindowRefused(f"{symbol}: Yahoo refuses {session.label} ({_first_line(error)})")
        if status is not None and status >= 400:
            return SourceDown(f"{symbol}: Yahoo answers {status}")
        if isinstance(error, json.JSONDecodeError | yahoo.YFDataException):
            return SourceDown(f"{symbol}: Yahoo's answer cannot be read")
        if isinstance(error, yahoo.YFPricesMissingError):
            return NoDataYet(f"{symbol}: Yahoo has nothing of {session.label}")
        return SchemaDrift(f"{symbol}: Yahoo's answer has an unknown shape ({_first_line(error)})")

    # -- cleaning --------------------------------------------------------------------------------

    def _clean(
        self, symbol: str, frame: pd.DataFrame, session: Session, now: dt.datetime
    ) -> pd.DataFrame:
        import pandas as pd

        names = {"Open": "open", "High": "high", "Low": "low", "Close": "close", "Volume": "volume"}
        missing = [name for name in names if name not in frame.columns]
        if missing or not isinstance(frame.index, pd.DatetimeIndex) or frame.index.tz is None:
            raise SchemaDrift(f"{symbol}: Yahoo's answer lacks {', '.join(missing) or 'times'}")
        bars = frame[list(names)].rename(columns=names).astype("float64")
        bars.insert(0, "bar_ts", frame.index.tz_convert("UTC").as_unit("us"))
        bars = bars.reset_index(drop=True)
        times = bars["bar_ts"].dt.tz_localize(None).to_numpy().astype("datetime64[us]")
        on_grid = session.index_of(times) >= 0
        final = bars["bar_ts"] + dt.timedelta(seconds=session.bar_seconds) + self.delay <= now
        prices = bars[["open", "high", "low", "close"]]
        known = (prices.notna() & (prices > 0)).all(axis=1)
        torn = (prices["high"] < prices.max(axis=1)) | (prices["low"] > prices.min(axis=1))
        bars = bars[on_grid & final & known & ~torn].drop_duplicates("bar_ts")
        bars = bars.sort_values("bar_ts").reset_index(drop=True)
        for column in ("open", "high", "low", "close"):
            bars[column] = bars[column].round(PRICE_DECIMALS)
        for column in ("bid", "ask", "support", "resistance"):
            bars[column] = np.nan
        return bars[list(BAR_COLUMNS)]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().split("\n", 1)[0] or type(error).__name__)[:160]
