"""A Yahoo on the loopback for tests of the real, unmodified yfinance client.

It is an HTTP proxy that ends TLS itself with a CA of its own, so a client needs nothing but
environment variables (`YahooDouble.env`). Nothing is ever forwarded: a host that is not Yahoo's
gets 502 and is remembered in `strangers`. Served are the chart endpoint with its limits, the
option chains, and the cookie, consent and crumb pages. Shapes follow recorded answers. Certificates
are made with `cryptography`, which MLflow brings along.

What is true here (`true_bars`) is a pure function of symbol and minute. How it is told is not:
the minute in progress, holes, doubled and revised minutes and faults can be set.

    with YahooDouble(folder, Clock(moment)) as yahoo:     # in process: set os.environ before the
        subprocess.run(..., env={**os.environ, **yahoo.env})  # first request, or start a child

    python -m hedge_pipeline_tests.yahoo_double --port 8765 --now 2025-11-21T10:37:42-05:00
"""

from __future__ import annotations

import argparse
import calendar
import contextlib
import dataclasses
import datetime as dt
import hashlib
import json
import re
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd

from hedge_pipeline.market.calendar import Session, SessionCalendar

HOSTS = (
    "query1.finance.yahoo.com",
    "query2.finance.yahoo.com",
    "finance.yahoo.com",
    "fc.yahoo.com",
    "guce.yahoo.com",
    "consent.yahoo.com",
)
NEW_YORK = ZoneInfo("America/New_York")
LOOPBACK = "localhost,127.0.0.1,::1"
RANGES = ("1d", "5d", "1mo", "3mo", "6mo", "1y", "2y", "5y", "10y", "ytd", "max")
MINUTES = {"1m": 1, "2m": 2, "5m": 5, "15m": 15, "30m": 30, "60m": 60, "1h": 60}
DAY = 86_400
CONSENT_PAGE = b'<input name="csrfToken" value="t"/><input name="sessionId" value="s"/>'
FORMS = Literal["null", "absent", "partial", "none"]

Prices = npt.NDArray[np.float64]
Row = tuple[int, float | None, float | None, float | None, float | None, int | None]
Answer = tuple[int, bytes, dict[str, str]]


# -- what is true ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Listing:
    """A symbol Yahoo knows.

    Attributes:
        price: about which it moves.
        calendar: it trades by.
        kind: in Yahoo's words.
        walks: at random over a small wave, so that little can be known of the next minute;
            otherwise on waves alone.
    """

    price: float
    calendar: str = "XNYS"
    kind: str = "ETF"
    walks: bool = False


LISTINGS = {
    "SPY": Listing(689.43),
    "QQQ": Listing(612.10),
    "AAPL": Listing(333.69, kind="EQUITY"),
    "BTC-USD": Listing(871.25, "24/7", "CRYPTOCURRENCY"),  # open whenever a test runs
    "SIMQ": Listing(512.40, walks=True),  # one of the committed partitions
}


@cache
def calendar_of(symbol: str, bar_seconds: int = 60) -> SessionCalendar:
    """The calendar a symbol trades by."""
    return SessionCalendar(LISTINGS[symbol].calendar, bar_seconds=bar_seconds)


def true_minutes(symbol: str, minutes: npt.NDArray[np.int64]) -> dict[str, Prices]:
    """Open, high, low, close and volume of minutes given by their number since 1970.

    Prices have four decimals as far as a float32 can hold them, which is what Yahoo sends.
    """
    opens, closes = _path(symbol, minutes), _path(symbol, minutes + 1)
    high = np.maximum(opens, closes) * (1 + 0.0003 * abs(_noise(symbol, minutes, "high")))
    low = np.minimum(opens, closes) * (1 - 0.0003 * abs(_noise(symbol, minutes, "low")))
    volume = np.floor(200_000 * (1 + 0.8 * _noise(symbol, minutes, "volume")))
    prices = {"open": opens, "high": high, "low": low, "close": closes}
    told = {name: np.round(_sent(value), 4) for name, value in prices.items()}
    return {**told, "volume": volume}


def true_bars(symbol: str, session: Session) -> pd.DataFrame:
    """All bars of a session as symbol, ts (UTC), open, high, low, close, volume."""
    starts = session.bar_ts.astype("datetime64[s]").astype(np.int64)
    length = session.bar_seconds // 60
    grid = (starts // 60)[:, None] + np.arange(length)
    values = true_minutes(symbol, grid.ravel())
    shaped = {name: value.reshape(grid.shape) for name, value in values.items()}
    return pd.DataFrame(
        {
            "symbol": symbol,
            "ts": pd.DatetimeIndex(session.bar_ts).tz_localize("UTC"),
            "open": shaped["open"][:, 0],
            "high": shaped["high"].max(axis=1),
            "low": shaped["low"].min(axis=1),
            "close": shaped["close"][:, -1],
            "volume": shaped["volume"].sum(axis=1),
        }
    )


def true_interest(strike: int, right: str) -> int:
    """Open interest of an option, contracts: more at every tenth strike."""
    return (500 if strike % 10 == 0 else 100) + (7 if right == "C" else 3)


def write_true_bars(path: Path, symbols: Sequence[str], labels: Sequence[str]) -> Path:
    """Writes the true minute bars of sessions as a Parquet file of the file source."""
    frames = [
        true_bars(symbol, calendar_of(symbol).session(label))
        for symbol in symbols
        for label in labels
    ]
    pd.concat(frames, ignore_index=True).to_parquet(path, index=False)
    return path


def _path(symbol: str, minutes: npt.NDArray[np.int64]) -> Prices:
    if LISTINGS[symbol].walks:
        walk = _walk(symbol, minutes) + 0.0008 * np.sin(minutes / 15.4)
        walked: Prices = np.round(LISTINGS[symbol].price * np.exp(walk), 4)
        return walked
    wave = (
        0.010 * np.sin(minutes / 453.1)
        + 0.004 * np.sin(minutes / 15.4)
        + 0.001 * np.sin(minutes / 2.07)
        + 0.0004 * _noise(symbol, minutes, "price")
    )
    priced: Prices = np.round(LISTINGS[symbol].price * np.exp(wave), 4)
    return priced


def _walk(symbol: str, minutes: npt.NDArray[np.int64]) -> Prices:
    """A random walk of 4 basis points a minute, by Levy's midpoints: from any minute at once."""
    path = np.zeros(len(minutes))
    for span in 2 ** np.arange(1, 15):
        share = (minutes % span) / span
        midpoint = 4e-4 * np.sqrt(3 * span) / 2 * _noise(symbol, minutes // span, f"walk {span}")
        path += midpoint * (1 - abs(2 * share - 1))
    return path


def _noise(symbol: str, minutes: npt.NDArray[np.int64], what: str) -> Prices:
    """Uniform in -1..1 by symbol and minute (splitmix64)."""
    seed = hashlib.sha256(f"{symbol}/{what}".encode()).digest()[:8]
    mixed = minutes.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= np.uint64(int.from_bytes(seed, "big"))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**52 - 1.0


def _sent(prices: Prices) -> Prices:
    """Yahoo sends a float32 widened: 225.42 arrives as 225.4199981689453."""
    return prices.astype(np.float32).astype(np.float64)


# -- how it is told --------------------------------------------------------------------------------


class Clock:
    """A clock that stands still (speed 0), runs, or runs fast; without `at` the system's."""

    def __init__(self, at: dt.datetime | None = None, speed: float = 0.0) -> None:
        self.set(at, speed)

    def set(self, at: dt.datetime | None, speed: float = 0.0) -> None:
        """Moves the clock."""
        self._at, self._speed, self._begun = at, speed, time.monotonic()

    def now(self) -> dt.datetime:
        """The time, in UTC."""
        if self._at is None:
            return dt.datetime.now(dt.UTC)
        passed = dt.timedelta(seconds=self._speed * (time.monotonic() - self._begun))
        return (self._at + passed).astimezone(dt.UTC)


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request that reached the double."""

    host: str
    path: str
    query: dict[str, str]
    cookies: str = ""

    @property
    def kind(self) -> str:
        """One of chart, options, crumb, cookie, consent, other."""
        if self.host == "fc.yahoo.com":
            return "cookie"
        if self.host in ("guce.yahoo.com", "consent.yahoo.com"):
            return "consent"
        names = {
            "/v1/test/getcrumb": "crumb",
            "/v8/finance/chart/": "chart",
            "/v7/finance/options/": "options",
        }
        return next((kind for start, kind in names.items() if self.path.startswith(start)), "other")


@dataclasses.dataclass
class Fault:
    """What happens to requests whose path matches, so often (None = always).

    `answer` sends status and body instead of the truth, `drop` closes the connection, `truncate`
    sends half of the true body, `delay` waits before the true answer.
    """

    action: Literal["answer", "drop", "truncate", "delay"]
    path: str = "/chart/"
    status: int = 200
    body: bytes = b""
    seconds: float = 0.0
    times: int | None = None


class YahooDouble:
    """The server. Every attribute may be changed between requests.

    Attributes:
        clock: its time; answers know nothing later.
        forming: how the minute in progress is told. `null`: a row of nulls, then the last trade as
            a row at mm:ss with volume 0, as recorded; `absent`: only that row; `partial`: a bar so
            far, then that row; `none`: not at all.
        trade_after_days: whether daily rows are followed by the last trade as a row of its own.
        behind: seconds its feed is behind its clock.
        expirations: how many daily expirations are listed beside the monthlies.
        holes: (symbol, minute start in epoch seconds) told as nulls, and when it is filled.
        doubled: minute starts told twice.
        revisions: what is added to the close of a (symbol, minute start).
        requests: everything that was asked.
        strangers: hosts asked for that are not Yahoo's.
    """

    def __init__(self, folder: Path, clock: Clock | None = None, port: int = 0) -> None:
        self.clock = clock or Clock()
        self._certificates = make_certificates(folder)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(self._certificates / "cert.pem", self._certificates / "key.pem")
        self._lock = threading.Lock()
        self.reset()
        self._server = _Server(("127.0.0.1", port), _Proxy)
        self._server.double = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def reset(self) -> None:
        """Forgets requests and faults, and tells everything as it is."""
        self.forming: FORMS = "null"
        self.trade_after_days = False
        self.behind = 0
        self.expirations = 10
        self.holes: dict[tuple[str, int], dt.datetime | None] = {}
        self.doubled: set[int] = set()
        self.revisions: dict[tuple[str, int], float] = {}
        self.requests: list[Asked] = []
        self.strangers: list[str] = []
        self._faults: list[Fault] = []

    def __enter__(self) -> YahooDouble:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def env(self) -> dict[str, str]:
        """Environment that leads any client here; loopback addresses stay direct."""
        proxy = f"http://127.0.0.1:{self._server.server_address[1]}"
        ca = str(self._certificates / "ca.pem")
        proxies = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY"), proxy)
        direct = {"NO_PROXY": LOOPBACK}
        lower = {name.lower(): value for name, value in {**proxies, **direct}.items()}
        trust = dict.fromkeys(("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"), ca)
        return {**proxies, **direct, **lower, **trust}

    def fault(self, fault: Fault) -> Fault:
        """From now on; faults are tried in the order they were given."""
        self._faults.append(fault)
        return fault

    def mend(self) -> None:
        """No faults any more."""
        self._faults.clear()

    def count(self, kind: str = "chart") -> int:
        """Requests of a kind so far."""
        return sum(asked.kind == kind for asked in self.requests)

    # -- answers -----------------------------------------------------------------------------

    def note(self, asked: Asked) -> Fault | None:
        """Remembers the request; returns what shall happen to it."""
        with self._lock:
            self.requests.append(asked)
            for fault in self._faults:
                if fault.times != 0 and re.search(fault.path, asked.path):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None

    def answer(self, asked: Asked) -> Answer:
        """The answer to a request: status, body, headers."""
        if asked.kind == "cookie":
            return 404, b"<html>404</html>", _cookie("basic")
        if asked.kind == "consent":
            return 200, CONSENT_PAGE, _cookie("csrf")
        if asked.kind == "crumb":
            known = re.search(r"\bA3=([^;]+)", asked.cookies)
            if known is None:
                return _json(401, _finance_error("Unauthorized", "Invalid Cookie"))
            crumb = hashlib.sha256(known[1].encode()).hexdigest()[:11]
            return 200, crumb.encode(), {"Content-Type": "text/plain;charset=utf-8"}
        symbol = asked.path.rsplit("/", 1)[1].upper()
        if asked.kind == "chart":
            return _json(*self.chart(symbol, asked.query))
        if asked.kind == "options":
            cookie = re.search(r"\bA3=([^;]+)", asked.cookies)
            expected = hashlib.sha256(cookie[1].encode()).hexdigest()[:11] if cookie else None
            if expected is None or asked.query.get("crumb") != expected:
                return _json(401, _finance_error("Unauthorized", "Invalid Crumb"))
            return _json(200, self.options(symbol, asked.query.get("date")))
        return _json(404, _finance_error("Not Found", f"HTTP 404 Not Found {asked.path}"))

    def chart(self, symbol: str, query: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """The chart endpoint: status and JSON."""
        if symbol not in LISTINGS:
            return 404, _chart_error("Not Found", "No data found, symbol may be delisted")
        now = int(self.clock.now().timestamp())
        interval = query.get("interval", "1d")
        told = query.get("range", "")
        if "period1" in query:
            first, last = int(query["period1"]), int(query["period2"])
        elif told not in RANGES:
            text = f"Invalid input - range={told} is not supported. Valid ranges: {list(RANGES)}"
            return 422, _chart_error("Unprocessable Entity", text)
        else:
            days = {"1d": 1, "5d": 5}.get(told, 20)
            first, last = int(self._begun(symbol, now)[-days:][0].opens.timestamp()), now + 1
        refusal = _refused(interval, first, last, now)
        if refusal:
            return 422, _chart_error("Unprocessable Entity", refusal)
        rows, sessions = self._rows(symbol, interval, first, last, now)
        appended = self.trade_after_days if interval == "1d" else "period1" in query
        if rows and appended and rows[-1][0] < now - 120:
            rows.append(self._last_trade(symbol, now - self.behind))  # as recorded
        return 200, self._told(symbol, interval, told, rows, sessions, now)

    def options(self, symbol: str, date: str | None) -> dict[str, Any]:
        """The option chain of one expiration; open interest as `true_interest` has it."""
        if symbol not in LISTINGS:  # as recorded: no error
            return {"optionChain": {"result": [], "error": None}}
        today = self.clock.now().astimezone(NEW_YORK).date()
        days = [today + dt.timedelta(days=n) for n in range(130)]
        listed = [day for day in days if day.weekday() < 5][: self.expirations]
        listed += [day for day in days if _is_monthly(day) and day not in listed]
        times = [calendar.timegm(day.timetuple()) for day in sorted(listed)]
        asked = times[0] if date is None or int(date) not in times else int(date)
        strikes = [round(LISTINGS[symbol].price) + n for n in range(-20, 21)]
        sides = {
            name: [
                {
                    "strike": strike,
                    "openInterest": true_interest(strike, right),
                    "volume": 10,
                    "impliedVolatility": 0.2,
                    "bid": 1,
                    "ask": 1.1,
                    "lastPrice": 1.05,
                }
                for strike in strikes
            ]
            for name, right in (("calls", "C"), ("puts", "P"))
        }
        del sides["calls"][0]["volume"]  # keys may be missing
        return {
            "optionChain": {
                "result": [
                    {
                        "underlyingSymbol": symbol,
                        "expirationDates": times,
                        "options": [{"expirationDate": asked, **sides}],
                    }
                ],
                "error": None,
            }
        }

    def _begun(self, symbol: str, now: int) -> list[Session]:
        """Sessions that have had their first print, ascending."""
        calendar = calendar_of(symbol)
        day = dt.datetime.fromtimestamp(now, dt.UTC).date()
        labels = calendar.between(str(day - dt.timedelta(days=120)), str(day))
        sessions = [calendar.session(label) for label in labels]
        return [session for session in sessions if session.opens.timestamp() <= now]

    def _rows(
        self, symbol: str, interval: str, first: int, last: int, now: int
    ) -> tuple[list[Row], list[Session]]:
        known = now - self.behind
        rows: list[Row] = []
        sessions = []
        for session in self._begun(symbol, now):
            opens, closes = int(session.opens.timestamp()), int(session.closes.timestamp())
            if closes <= first or opens >= last:
                continue
            sessions.append(session)
            if interval == "1d":
                rows += self._bars(symbol, opens, closes, (closes - opens) // 60, known)
                continue
            length = MINUTES[interval]
            own = self._bars(symbol, opens, closes, length, known)
            if own and opens <= known < closes:
                own = self._with_minute_in_progress(symbol, own, length, known)
            elif closes <= known and LISTINGS[symbol].calendar != "24/7":
                price = own[-1][4]
                own.append((closes, price, price, price, price, 0))  # the closing print, recorded
            rows += [row for row in own if first <= row[0] < last or row[0] == closes]
        return rows, sessions

    def _bars(self, symbol: str, opens: int, closes: int, length: int, known: int) -> list[Row]:
        """Bars begun by `known`; the last one is told whole."""
        end = min(closes, known + 1)
        rows: list[Row] = []
        starts = np.arange(opens, end, 60 * length)
        if not len(starts):
            return rows
        grid = (starts // 60)[:, None] + np.arange(length)
        values = true_minutes(symbol, grid.ravel())
        o, h, low, c, v = (_sent(values[name]).reshape(grid.shape) for name in values)
        for i, start in enumerate(starts.tolist()):
            close = float(c[i, -1]) + self.revisions.get((symbol, start), 0.0)
            high, bottom = max(float(h[i].max()), close), min(float(low[i].min()), close)
            row: Row = (start, float(o[i, 0]), high, bottom, close, int(v[i].sum()))
            if (symbol, start) in self.holes:
                filled = self.holes[symbol, start]
                if filled is None or self.clock.now() < filled:
                    row = (start, None, None, None, None, None)
            rows += [row, row] if start in self.doubled else [row]
        return rows

    def _with_minute_in_progress(
        self, symbol: str, rows: list[Row], length: int, known: int
    ) -> list[Row]:
        start = rows[-1][0]
        kept = [row for row in rows if row[0] < start]
        trade = self._last_trade(symbol, known)
        tick = [trade] if known > start else []
        if self.forming == "none":
            return kept
        if self.forming == "absent":
            return kept + tick
        if self.forming == "null":
            return [*kept, (start, None, None, None, None, None), *tick]
        opens, price = rows[-1][1], trade[1]
        if opens is None or price is None:
            return [*kept, rows[-1], *tick]
        volume = int((rows[-1][5] or 0) * (known - start) / (60 * length))
        return [*kept, (start, opens, max(opens, price), min(opens, price), price, volume), *tick]

    def _last_trade(self, symbol: str, known: int) -> Row:
        """The row at mm:ss: the price on the way from the minute's open to its close."""
        closes = int(self._begun(symbol, known)[-1].closes.timestamp())
        at = min(known, closes)
        minute = (at - 1) // 60 if at == closes else at // 60
        values = true_minutes(symbol, np.array([minute]))
        share = (at - 60 * minute) / 60
        price = values["open"][0] + share * (values["close"][0] - values["open"][0])
        told = float(_sent(np.array([price]))[0])
        return (at, told, told, told, told, 0)

    def _told(
        self,
        symbol: str,
        interval: str,
        asked_range: str,
        rows: list[Row],
        sessions: list[Session],
        now: int,
    ) -> dict[str, Any]:
        listing, zone = LISTINGS[symbol], calendar_of(symbol).timezone
        offset = dt.datetime.fromtimestamp(now, ZoneInfo(zone)).utcoffset() or dt.timedelta(0)
        trade = self._last_trade(symbol, now - self.behind)
        periods = [[_period(session, zone)] for session in sessions]
        current = _period(self._begun(symbol, now)[-1], zone)
        meta: dict[str, Any] = {
            "currency": "USD",
            "symbol": symbol,
            "exchangeName": "PCX",
            "fullExchangeName": "NYSEArca",
            "instrumentType": listing.kind,
            "firstTradeDate": 728317800,
            "regularMarketTime": trade[0],
            "regularMarketPrice": trade[4],
            "hasPrePostMarketData": True,
            "gmtoffset": int(offset.total_seconds()),
            "timezone": current["timezone"],
            "exchangeTimezoneName": zone,
            "chartPreviousClose": listing.price,
            "previousClose": listing.price,
            "scale": 3,
            "priceHint": 2,
            "currentTradingPeriod": {"pre": current, "regular": current, "post": current},
            "dataGranularity": interval,
            "range": asked_range,
            "validRanges": list(RANGES),
        }
        result: dict[str, Any] = {"meta": meta, "indicators": {"quote": [{}]}}
        if rows:
            if interval in MINUTES:
                meta["tradingPeriods"] = periods
            names = ("open", "high", "low", "close", "volume")
            result["timestamp"] = [row[0] for row in rows]
            columns = {name: [row[i + 1] for row in rows] for i, name in enumerate(names)}
            result["indicators"] = {"quote": [columns]}
        return {"chart": {"result": [result], "error": None}}


def _refused(interval: str, first: int, last: int, now: int) -> str | None:
    """Yahoo's own words if it does not serve such a window."""
    if interval not in MINUTES:
        return None
    times = f"{interval} data not available for startTime={first} and endTime={last}."
    if interval == "1m" and last - first > 8 * DAY:
        return (
            f"{times} Only 8 days worth of 1m granularity data are allowed to be fetched per "
            "request."
        )
    depth = 30 if interval == "1m" else 60
    if first < now - depth * DAY:
        return f"{times} The requested range must be within the last {depth} days."
    return None


def _period(session: Session, zone: str) -> dict[str, Any]:
    local = session.opens.astimezone(ZoneInfo(zone))
    offset = local.utcoffset() or dt.timedelta(0)
    return {
        "timezone": local.tzname(),
        "start": int(session.opens.timestamp()),
        "end": int(session.closes.timestamp()),
        "gmtoffset": int(offset.total_seconds()),
    }


def _is_monthly(day: dt.date) -> bool:
    return day.weekday() == 4 and 15 <= day.day <= 21


def _chart_error(code: str, text: str) -> dict[str, Any]:
    return {"chart": {"result": None, "error": {"code": code, "description": text}}}


def _finance_error(code: str, text: str) -> dict[str, Any]:
    return {"finance": {"result": None, "error": {"code": code, "description": text}}}


def _json(status: int, content: dict[str, Any]) -> Answer:
    return status, json.dumps(content).encode(), {"Content-Type": "application/json;charset=utf-8"}


def _cookie(value: str) -> dict[str, str]:
    until = dt.datetime.now(dt.UTC) + dt.timedelta(days=365)
    expires = until.strftime("%a, %d %b %Y %H:%M:%S GMT")
    cookie = f"A3=d={value}; Expires={expires}; Domain=.yahoo.com; Path=/; SameSite=None; Secure"
    return {"Content-Type": "text/html", "Set-Cookie": cookie}


def forget_yfinance() -> None:
    """Undoes all that yfinance keeps for the life of a process: session, crumb, answers, caches."""
    from yfinance import cache, data

    data.SingletonMeta._instances.clear()
    data.YfData.cache_get.cache_clear()
    cache._TzCacheManager._tz_cache = None
    cache._CookieCacheManager._Cookie_cache = None
    cache._ISINCacheManager._isin_cache = None


# -- the wire --------------------------------------------------------------------------------------


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    double: YahooDouble

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the job."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


class _Proxy(_Handler):
    """What the client takes for its proxy: everything but Yahoo is refused."""

    def do_CONNECT(self) -> None:
        double = self.server.double
        host = self.path.rpartition(":")[0]
        self.close_connection = True
        if host not in HOSTS:
            double.strangers.append(host)
            self.send_error(502)
            return
        self.send_response_only(200, "Connection established")
        self.end_headers()
        with double._tls.wrap_socket(self.connection, server_side=True) as connection:
            _Origin(connection, self.client_address, self.server)

    def _refuse(self) -> None:
        self.close_connection = True
        self.server.double.strangers.append(urlsplit(self.path).hostname or "")
        self.send_error(502)

    do_GET = do_POST = do_HEAD = do_PUT = _refuse  # noqa: N815


class _Origin(_Handler):
    """What the client takes for Yahoo, behind the tunnel."""

    def _serve(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        double, url = self.server.double, urlsplit(self.path)
        host = str(self.headers.get("Host", "")).partition(":")[0]
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        asked = Asked(host, unquote(url.path) or "/", query, self.headers.get("Cookie", ""))
        fault = double.note(asked)
        if fault and fault.action == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault and fault.action == "answer":
            kind = "application/json" if fault.body[:1] == b"{" else "text/html"
            self._reply(fault.status, fault.body, {"Content-Type": kind})
        else:
            if fault and fault.action == "delay":
                time.sleep(fault.seconds)
            half = fault is not None and fault.action == "truncate"
            self._reply(*double.answer(asked), half=half)

    def _reply(
        self, status: int, body: bytes, headers: dict[str, str], *, half: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if half else body)
        self.close_connection = self.close_connection or half

    do_GET = do_POST = _serve  # noqa: N815


def make_certificates(folder: Path) -> Path:
    """Writes ca.pem, cert.pem and key.pem for Yahoo's hosts, once per folder."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    if (folder / "key.pem").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    now = dt.datetime.now(dt.UTC)
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA of the Yahoo double")])
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def certificate(name: x509.Name, public: Any) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=30))
        )

    usage = {
        "digital_signature": False,
        "content_commitment": False,
        "key_encipherment": False,
        "data_encipherment": False,
        "key_agreement": False,
        "key_cert_sign": True,
        "crl_sign": True,
        "encipher_only": False,
        "decipher_only": False,
    }
    ca_id = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    ca = (
        certificate(issuer, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(ca_id, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    names = x509.SubjectAlternativeName([x509.DNSName(host) for host in HOSTS])
    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_id)
    host = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOSTS[0])])
    leaf = (
        certificate(host, key.public_key())
        .add_extension(names, critical=False)
        .add_extension(authority, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(ca.public_bytes(pem))
    (folder / "cert.pem").write_bytes(leaf.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the exports of a shell and serves until interrupted."""
    parser = argparse.ArgumentParser(description="A Yahoo on the loopback")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--now", help="ISO time with offset; default: the system's clock")
    parser.add_argument("--speed", type=float, default=1.0, help="seconds of its clock per second")
    parser.add_argument("--certificates", type=Path, help="folder of the CA; default: a new one")
    told = parser.parse_args(arguments)
    clock = Clock(dt.datetime.fromisoformat(told.now), told.speed) if told.now else Clock()
    folder = told.certificates or Path(tempfile.mkdtemp(prefix="yahoo-double-"))
    with YahooDouble(folder, clock, told.port) as double:
        print("\n".join(f"export {name}={value}" for name, value in double.env.items()), flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
