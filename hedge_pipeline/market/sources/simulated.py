"""A simulated market with a known truth: bars with a planted edge and the exact best probability.

Everything is a pure function of (seed, symbol, session ordinal, minute); nothing is accumulated
over sessions. Within a session the log price x follows

    x[m+1] = x[m] - theta (x[m] - c[m]) + sigma[m+1] eps[m+1],        m = 0..389

with a channel middle c renewed at minutes 0, 130 and 260 to x + u 8 s by a fair coin u, levels
c -+ w around it (w = s (10 + 8 U)), s the session's volatility and sigma its daily U-shape.
theta > 0: the price bounces off the level it starts near, and a model that sees the levels can
know it; theta < 0: it breaks through; theta = 0: a coin flip. Regimes repeat every 130 sessions:
60 bounce, 40 break, 30 nothing. A symbol that ends in N is the control and never has an edge.

The oracle is for plots and tests; no feature reads it.
"""

from __future__ import annotations

import bisect
import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import numpy as np

from hedge_pipeline.market.bars import days_of
from hedge_pipeline.market.calendar import SessionCalendar
from hedge_pipeline.market.sources.protocol import (
    BAR_COLUMNS,
    CHAIN_COLUMNS,
    BadInput,
    Capabilities,
    NoDataYet,
    SourceOptions,
    SymbolUnknown,
    WindowRefused,
)

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.market.calendar import Session

MINUTES = 390
HORIZON = 10
RENEWALS = (0, 130, 260)
REACH = 8.0
TYPICAL_SIGMA = 4.5e-4
EPOCH = "2024-01-02"
NEW_YORK = ZoneInfo("America/New_York")
EXPIRY_HOUR = 16


@dataclass(frozen=True)
class Regime:
    """A stretch of sessions with one pull towards the channel middle, per minute."""

    sessions: int
    theta: float
    name: str


REGIMES = (Regime(60, 0.009, "bounce"), Regime(40, -0.0045, "break"), Regime(30, 0.0, "none"))

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_quantile = NormalDist().inv_cdf
_cdf = NormalDist().cdf


def _mix(value: int) -> int:
    """One step of splitmix64 (Steele, Lea and Flood 2014)."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _fnv(text: str) -> int:
    """FNV-1a, 64 bits."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & _MASK
    return value


@dataclass(frozen=True)
class _Stream:
    """A counter-based random stream: draw number i is a pure function of (key, i)."""

    key: int

    @classmethod
    def of(cls, seed: int, symbol: str, ordinal: int, name: str) -> _Stream:
        key = _mix(seed & _MASK)
        for value in (_fnv(symbol), ordinal & _MASK, _fnv(name)):
            key = _mix(key ^ value)
        return cls(key)

    def uniform(self, number: int) -> float:
        return ((_mix((self.key + number * _GOLDEN) & _MASK) >> 11) + 0.5) / (1 << 53)

    def normal(self, number: int) -> float:
        return _quantile(self.uniform(number))


def _daily_shape() -> tuple[float, ...]:
    raw = [
        0.7 + 0.9 * math.exp(-m / 35) + 0.5 * math.exp(-(MINUTES - 1 - m) / 25)
        for m in range(MINUTES)
    ]
    scale = math.sqrt(sum(value * value for value in raw) / MINUTES)
    return tuple(value / scale for value in raw)


SHAPE = _daily_shape()


@dataclass(frozen=True)
class SimulatedSession:
    """The hidden state of one session, each series of length 390.

    Attributes:
        regime: what the price does at the levels.
        volatility: s, standard deviation of a minute's log return.
        sigma: s times the daily shape.
        log_price: x, relative to the anchor.
        middle: c, relative to the anchor.
        anchor: price at x = 0.
        support: level below, price.
        resistance: level above, price.
    """

    regime: Regime
    volatility: float
    sigma: Sequence[float]
    log_price: Sequence[float]
    middle: Sequence[float]
    anchor: float
    support: Sequence[float]
    resistance: Sequence[float]


@dataclass(frozen=True)
class SimulatedBar:
    """One bar; prices rounded to the cent, volume in shares."""

    open: float
    high: float
    low: float
    close: float
    volume: int
    bid: float
    ask: float
    support: float
    resistance: float


def regime_of(symbol: str, ordinal: int) -> Regime:
    """The regime of a session; the control symbols never have an edge."""
    if symbol.endswith("N"):
        return REGIMES[-1]
    position = ordinal % sum(regime.sessions for regime in REGIMES)
    for regime in REGIMES:
        if position < regime.sessions:
            return regime
        position -= regime.sessions
    raise AssertionError("the regimes cover every position")


@lru_cache(maxsize=64)
def simulate(seed: int, symbol: str, ordinal: int) -> SimulatedSession:
    """The hidden state of a session, about 1.5 ms."""
    regime = regime_of(symbol, ordinal)
    day = _Stream.of(seed, symbol, ordinal, "day")
    shocks = _Stream.of(seed, symbol, ordinal, "eps")
    volatility = TYPICAL_SIGMA * math.exp(0.30 * day.normal(0) - 0.045)
    anchor = _anchor(seed, symbol, ordinal, day.normal(1))
    sigma = [volatility * shape for shape in SHAPE]
    log_price: list[float] = []
    middle: list[float] = []
    support: list[float] = []
    resistance: list[float] = []
    price = centre = width = 0.0
    for minute in range(MINUTES):
        if minute:
            price += -regime.theta * (price - centre) + sigma[minute] * shocks.normal(minute)
        if minute in RENEWALS:
            number = RENEWALS.index(minute)
            side = REACH if day.uniform(10 + number) < 0.5 else -REACH
            centre = price + side * volatility
            width = volatility * (10 + 8 * day.uniform(20 + number))
        log_price.append(price)
        middle.append(centre)
        support.append(anchor * math.exp(centre - width))
        resistance.append(anchor * math.exp(centre + width))
    return SimulatedSession(
        regime, volatility, sigma, log_price, middle, anchor, support, resistance
    )


def _anchor(seed: int, symbol: str, ordinal: int, shock: float) -> float:
    """The session's opening level: two slow waves and a shock around the symbol's own price."""
    phase = _Stream.of(seed, symbol, 0, "phase")
    first, second = 2 * math.pi * phase.uniform(1), 2 * math.pi * phase.uniform(2)
    level = 100 + 500 * phase.uniform(3)
    return level * math.exp(
        0.05 * math.sin(2 * math.pi * ordinal / 97 + first)
        + 0.02 * math.sin(2 * math.pi * ordinal / 31 + second)
        + 0.004 * shock
    )


def close_price(seed: int, symbol: str, ordinal: int, minute: int) -> float:
    """Close of a minute, rounded to the cent."""
    state = simulate(seed, symbol, ordinal)
    return round(state.anchor * math.exp(state.log_price[minute]), 2)


def bar(seed: int, symbol: str, ordinal: int, minute: int) -> SimulatedBar:
    """The bar of a minute; it opens at the close of the one before."""
    state = simulate(seed, symbol, ordinal)
    draw = _Stream.of(seed, symbol, ordinal, "bar")
    sigma = state.sigma[minute]
    close = close_price(seed, symbol, ordinal, minute)
    if minute:
        opened = close_price(seed, symbol, ordinal, minute - 1)
    else:
        opened = round(state.anchor * math.exp(0.5 * sigma * draw.normal(3)), 2)
    high = max(opened, close) * math.exp(0.4 * sigma * abs(draw.normal(4 * minute)))
    low = min(opened, close) * math.exp(-0.4 * sigma * abs(draw.normal(4 * minute + 1)))
    return SimulatedBar(
        open=opened,
        high=max(round(high, 2), opened, close),
        low=min(round(low, 2), opened, close),
        close=close,
        volume=int(1e5 * SHAPE[minute] ** 2 * math.exp(0.4 * draw.normal(4 * minute + 2))),
        bid=round(close - 0.01, 2),
        ask=round(close + 0.01, 2),
        support=round(state.support[minute], 2),
        resistance=round(state.resistance[minute], 2),
    )


def oracle(seed: int, symbol: str, ordinal: int, minute: int) -> float | None:
    """Exact P(x[m+10] > x[m] | everything at m); None in the last ten minutes.

    Between renewals the price is a Gaussian autoregression; if the channel is renewed within the
    horizon, the coin gives an equal mixture of two Gaussians.
    """
    if minute + HORIZON >= MINUTES:
        return None
    state = simulate(seed, symbol, ordinal)
    keep = 1 - state.regime.theta
    variance = [sigma * sigma for sigma in state.sigma]
    deviation = state.log_price[minute] - state.middle[minute]
    renewals = [m for m in RENEWALS if minute < m <= minute + HORIZON]
    steps = renewals[0] - minute if renewals else HORIZON
    mean = (keep**steps - 1) * deviation
    total = sum(keep ** (2 * (steps - i)) * variance[minute + i] for i in range(1, steps + 1))
    if steps == HORIZON:
        return _cdf(mean / math.sqrt(total))
    rest = HORIZON - steps
    total += sum(
        keep ** (2 * (rest - i)) * variance[minute + steps + i] for i in range(1, rest + 1)
    )
    shift = (1 - keep**rest) * REACH * state.volatility
    deviation = math.sqrt(total)
    return 0.5 * (_cdf((mean + shift) / deviation) + _cdf((mean - shift) / deviation))


CHAIN_EVERY = 60
LADDER = tuple(range(-6, 7))
RUNG = 0.005
MONTHLIES = 4
WALL_OPEN_INTEREST = 20_000.0
_NO_QUOTE = ("bid", "ask", "last")


def option_chain(
    seed: int, symbol: str, ordinal: int, minute: int, front: dt.date
) -> dict[str, list[str | float]]:
    """The option chain as of the end of a minute, by column; about 130 contracts.

    The front expiration has its largest put open interest at the planted support and its largest
    call open interest at the planted resistance, and a ladder of strikes half a percent apart
    around the opening level; the next four monthlies have the ladder only. Open interest and
    volume of the ladder are draws, implied volatility a smile around 16 % a year.
    """
    state = simulate(seed, symbol, ordinal)
    draw = _Stream.of(seed, symbol, ordinal, "chain")
    strikes = [round(state.anchor * (1 + RUNG * rung), 2) for rung in LADDER]
    planted = {
        (round(state.support[minute], 2), "P"): WALL_OPEN_INTEREST,
        (round(state.resistance[minute], 2), "C"): WALL_OPEN_INTEREST,
    }
    found: dict[str, list[str | float]] = {
        name: [] for name in CHAIN_COLUMNS if name not in ("as_of", "available_at", *_NO_QUOTE)
    }
    number = 0
    for position, expiry in enumerate([front, *_monthlies(front)]):
        own = sorted({*strikes, *(strike for strike, _ in planted)}) if position == 0 else strikes
        for strike in own:
            for right in ("C", "P"):
                number += 1
                wall = planted.get((strike, right), 0.0) if position == 0 else 0.0
                interest = round(400 * math.exp(0.8 * draw.normal(2 * number)))
                distance = math.log(strike / state.anchor)
                found["expiry"].append(expiry.isoformat())
                found["strike"].append(strike)
                found["right"].append(right)
                found["open_interest"].append(wall or float(interest))
                found["volume"].append(float(round(interest * draw.uniform(2 * number + 1) / 2)))
                found["implied_volatility"].append(0.16 - 0.4 * distance + 4 * distance**2)
    return found


def _monthlies(front: dt.date) -> list[dt.date]:
    """The third Fridays of the next months after the front expiration."""
    found: list[dt.date] = []
    year, month = front.year, front.month
    while len(found) < MONTHLIES:
        first = dt.date(year, month, 1)
        third = first + dt.timedelta(days=(4 - first.weekday()) % 7 + 14)
        if third > front:
            found.append(third)
        year, month = (year + 1, 1) if month == 12 else (year, month + 1)
    return found


class SimulatedSource:
    """The simulated market as a source of one-minute bars and chains; symbols begin with SIM.

    Sessions are counted from 2024-01-02 on the configured calendar; a half day is the beginning of
    a full one. On a calendar with longer days (24/7) a day is several simulated sessions in a row.
    """

    name = "simulated"
    capabilities = Capabilities(has_levels=True, has_chains=True)
    delay = dt.timedelta(0)

    def __init__(self, options: SourceOptions) -> None:
        if options.calendar.bar_seconds != 60:
            raise BadInput("the simulated market has one-minute bars: HEDGE_BAR_SECONDS must be 60")
        self.seed = options.seed
        calendar = options.calendar
        if calendar.start.isoformat() > EPOCH:
            calendar = SessionCalendar(
                calendar.name, start=dt.date.fromisoformat(EPOCH), end=calendar.end
            )
        self._calendar = calendar
        self._days: dict[tuple[str, str], pd.DataFrame] = {}
        self._newest: dict[str, tuple[int, list[SimulatedBar]]] = {}
        self._first = bisect.bisect_left(calendar.labels, EPOCH)
        self._per_day = -(-calendar.full_session_bars // MINUTES)

    def ordinal(self, session: str) -> int:
        """Simulated sessions before this one, whatever the calendar's own first session."""
        return (self._calendar.ordinal(session) - self._first) * self._per_day

    def bars(self, symbol: str, session: Session, now: dt.datetime) -> pd.DataFrame:
        """See the protocol. Every bar has a volume, a spread of two cents and both levels."""
        import pandas as pd

        self._refuse(symbol, session)
        length = dt.timedelta(seconds=session.bar_seconds)
        final = (now - self.delay - session.opens) // length
        count = min(session.bars, max(final, 0))
        if count == 0:
            raise NoDataYet(f"no bar of {session.label} is final yet")
        rows = self._rows(symbol, self.ordinal(session.label), count)
        frame = pd.DataFrame([vars(row) for row in rows])
        frame.insert(0, "bar_ts", pd.to_datetime(session.bar_ts[:count], utc=True).as_unit("us"))
        return frame[list(BAR_COLUMNS)].astype({"volume": "float64"})

    def chains(
        self, symbol: str, session: Session, now: dt.datetime, *, sweep: bool
    ) -> pd.DataFrame:
        """See the protocol. A snapshot every hour and whenever the planted levels change.

        Quotes are unknown, and every expiration is in every snapshot.
        """
        import pandas as pd

        self._refuse(symbol, session)
        length = dt.timedelta(seconds=session.bar_seconds)
        final = min(session.bars, (now - self.delay - session.opens) // length)
        wanted = [m for m in range(final) if m % MINUTES in RENEWALS or m % CHAIN_EVERY == 0]
        if not wanted:
            raise NoDataYet(f"there is no option chain of {session.label} yet")
        ordinal = self.ordinal(session.label)
        columns: dict[str, list[str | float]] = {}
        moments: list[dt.datetime] = []
        for minute in wanted:
            as_of = session.opens + (minute + 1) * length
            day, number = ordinal + minute // MINUTES, minute % MINUTES
            chain = option_chain(self.seed, symbol, day, number, _front(as_of))
            for name, values in chain.items():
                columns.setdefault(name, []).extend(values)
            moments.extend([as_of] * len(chain["strike"]))
        at = pd.DatetimeIndex(moments).as_unit("us")
        found = pd.DataFrame({"as_of": at, "available_at": at + self.delay, **columns})
        return found.assign(**dict.fromkeys(_NO_QUOTE, np.nan))[list(CHAIN_COLUMNS)]

    def daily(self, symbol: str, first: str, last: str, now: dt.datetime) -> pd.DataFrame:
        """See the protocol; made of the minute bars."""
        import pandas as pd

        labels = self._calendar.between(max(first, EPOCH), last)
        over = [x for x in map(self._calendar.session, labels) if x.closes + self.delay <= now]
        if not over:
            raise NoDataYet(f"no simulated session from {first} to {last} is over")
        for session in over:
            if (symbol, session.label) not in self._days:
                bars = self.bars(symbol, session, session.closes)
                self._days[symbol, session.label] = days_of([(session.label, bars)])
        return pd.concat([self._days[symbol, x.label] for x in over], ignore_index=True)

    def _rows(self, symbol: str, ordinal: int, count: int) -> list[SimulatedBar]:
        """The first bars of a day; those of the day asked for last are remembered."""
        day, known = self._newest.get(symbol, (ordinal, []))
        known = known if day == ordinal else []
        known = known + [
            bar(self.seed, symbol, ordinal + minute // MINUTES, minute % MINUTES)
            for minute in range(len(known), count)
        ]
        self._newest[symbol] = (ordinal, known)
        return known[:count]

    def _refuse(self, symbol: str, session: Session) -> None:
        if not symbol.startswith("SIM"):
            raise SymbolUnknown(f"the simulated market has no symbol {symbol}; its begin with SIM")
        if session.label < EPOCH:
            raise WindowRefused(f"the simulated market begins on {EPOCH}")


def _front(as_of: dt.datetime) -> dt.date:
    """The next expiration: today's until it expires at 16:00 in New York."""
    local = as_of.astimezone(NEW_YORK)
    return local.date() if local.hour < EXPIRY_HOUR else local.date() + dt.timedelta(days=1)
