"""Markets whose truth is known, for the learning benchmarks and their tests.

A symbol names its world and its run: FLIP3 is run 3 of the world FLIP. Every run is another draw
of the same market; runs are symbols, so that one replay holds all of them. The market is that of
`gate_power`: a price pulled to (or pushed from) the middle of a channel whose levels the bars
carry, a coin flip where theta is 0. What the product sees are bars; the truth stays here.
"""

from __future__ import annotations

import datetime as dt
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from benchmarks.gate_power import (
    BARS,
    CHANNEL_STARTS,
    channel_oracle,
    channel_prices,
    intraday_volatility,
)
from hedge_pipeline.learning.labels import mature
from hedge_pipeline.market.sources import Capabilities
from hedge_pipeline.market.sources.protocol import BAR_COLUMNS
from hedge_pipeline.market.sources.simulated import SimulatedSource
from hedge_pipeline.market.tables import OUTCOMES

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.market.calendar import Session, SessionCalendar
    from hedge_pipeline.stages import Deployment

Floats = npt.NDArray[np.float64]

TYPICAL_SIGMA = 4.5e-4
CHANGE = 60


@dataclass(frozen=True)
class Stretch:
    """A pull that holds up to a session (excluded); the last stretch holds for ever."""

    until: float
    theta: float


FOR_EVER = float("inf")
WORLDS: dict[str, tuple[Stretch, ...]] = {
    "NOISE": (Stretch(FOR_EVER, 0.0),),
    "EDGE52X": (Stretch(FOR_EVER, 0.0018),),
    "EDGE54X": (Stretch(FOR_EVER, 0.0039),),
    "EDGE56X": (Stretch(FOR_EVER, 0.0066),),
    "EDGE58X": (Stretch(FOR_EVER, 0.0102),),
    "FLIP": (Stretch(CHANGE, 0.0066), Stretch(FOR_EVER, -0.0040)),
    "VANISH": (Stretch(CHANGE, 0.0066), Stretch(FOR_EVER, 0.0)),
}


def world_of(symbol: str) -> str:
    """The world a symbol belongs to: its name without the number of the run."""
    return symbol.rstrip("0123456789")


def theta_of(symbol: str, ordinal: int) -> float:
    """The pull in a session; positive towards the middle, negative away from it."""
    stretches = WORLDS[world_of(symbol)]
    return next(stretch.theta for stretch in stretches if ordinal < stretch.until)


@dataclass(frozen=True)
class Truth:
    """The hidden state of one session, in units of its volatility.

    Attributes:
        price: log price, [390].
        middle: middle of the channel, [390].
        width: half the distance of the levels, [390].
        theta: pull towards the middle.
        volatility: standard deviation of a minute's log return.
    """

    price: Floats
    middle: Floats
    width: Floats
    theta: float
    volatility: float

    @property
    def oracle(self) -> Floats:
        """Exact probability that the price is higher after the horizon, [380]."""
        oracle: Floats = channel_oracle(self.price[None], self.middle[None], self.theta)[0]
        return oracle


@lru_cache(maxsize=4096)
def truth_of(seed: int, symbol: str, ordinal: int) -> Truth:
    """The hidden state of a session: a pure function of seed, symbol and session."""
    rng = _random(seed, symbol, ordinal, 0)
    theta = theta_of(symbol, ordinal)
    volatility = TYPICAL_SIGMA * float(np.exp(0.30 * rng.standard_normal() - 0.045))
    prices, middles = channel_prices(rng, theta, 1)
    channel = np.searchsorted(CHANNEL_STARTS, np.arange(BARS), side="right") - 1
    widths = rng.uniform(10, 18, len(CHANNEL_STARTS))
    return Truth(prices[0], middles[0], widths[channel], theta, volatility)


class WorldSource:
    """Bars of every world; sessions are counted from the calendar's first one."""

    name = "world"
    capabilities = Capabilities(has_levels=True)
    delay = dt.timedelta(0)

    def __init__(self, calendar: SessionCalendar, seed: int) -> None:
        self._calendar = calendar
        self.seed = seed

    def truth(self, symbol: str, session: str) -> Truth:
        """What the bars do not tell."""
        return truth_of(self.seed, symbol, self._calendar.ordinal(session))

    def bars(self, symbol: str, session: Session, now: dt.datetime) -> pd.DataFrame:
        """See the protocol; a half day is the beginning of a full one."""
        import pandas as pd

        truth = self.truth(symbol, session.label)
        rng = _random(self.seed, symbol, self._calendar.ordinal(session.label), 1)
        close = 400 * np.exp(truth.volatility * truth.price)
        opened = np.concatenate([[400.0], close[:-1]])
        wicks = truth.volatility * intraday_volatility() * np.abs(rng.standard_normal((2, BARS)))
        volume = 1e5 * intraday_volatility() ** 2 * np.exp(0.4 * rng.standard_normal(BARS))
        frame = pd.DataFrame(
            {
                "open": opened,
                "high": np.maximum(opened, close) * np.exp(0.4 * wicks[0]),
                "low": np.minimum(opened, close) * np.exp(-0.4 * wicks[1]),
                "close": close,
                "volume": volume.round(),
                "support": 400 * np.exp(truth.volatility * (truth.middle - truth.width)),
                "resistance": 400 * np.exp(truth.volatility * (truth.middle + truth.width)),
            }
        )[: session.bars]
        frame["bar_ts"] = pd.DatetimeIndex(session.bar_ts).tz_localize("UTC")
        return frame.reindex(columns=list(BAR_COLUMNS))


class DemoSource:
    """The demo's market at several seeds: SIMQ3 is SIMQ of the market with seed 3."""

    name = "simulated"
    delay = SimulatedSource.delay

    def __init__(
        self, open_market: Callable[[int], SimulatedSource], has_chains: bool = True
    ) -> None:
        self.capabilities = replace(SimulatedSource.capabilities, has_chains=has_chains)
        self._open = open_market
        self._markets: dict[int, SimulatedSource] = {}

    def bars(self, symbol: str, session: Session, now: dt.datetime) -> pd.DataFrame:
        """See the protocol."""
        market, plain = self._market(symbol)
        return market.bars(plain, session, now)

    def chains(
        self, symbol: str, session: Session, now: dt.datetime, *, sweep: bool
    ) -> pd.DataFrame:
        """See the protocol."""
        market, plain = self._market(symbol)
        return market.chains(plain, session, now, sweep=sweep)

    def daily(self, symbol: str, first: str, last: str, now: dt.datetime) -> pd.DataFrame:
        """See the protocol."""
        market, plain = self._market(symbol)
        return market.daily(plain, first, last, now)

    def _market(self, symbol: str) -> tuple[SimulatedSource, str]:
        plain = world_of(symbol)
        seed = int(symbol.removeprefix(plain))
        return self._markets.setdefault(seed, self._open(seed)), plain


def exchanged_outcomes(sessions: int) -> Callable[[Deployment, str], int]:
    """Instead of `stages.mature_outcomes`: every session gets the outcomes of another one.

    Whole sessions are exchanged, half a history away, so the offset of a label stays what it was.
    Shuffling within a session would be no null: the labels that remain are those of the day, and
    the day's trend so far tells of them.

    Args:
        sessions: length of the history; all of them full days.
    """

    def exchange(deployment: Deployment, label: str) -> int:
        import pandas as pd

        calendar = deployment.calendar
        place = (calendar.ordinal(label) + sessions // 2) % sessions
        own, other = calendar.session(label), calendar.session(calendar.labels[place])
        answers = []
        for symbol in deployment.symbols:
            answer = deployment.source.bars(symbol, other, other.closes)
            arrived = answer["bar_ts"] + dt.timedelta(seconds=other.bar_seconds)
            answers.append(answer.assign(symbol=symbol, available_at=arrived))
        outcomes = mature(
            pd.concat(answers, ignore_index=True),
            other,
            horizon=deployment.horizon,
            dead_band_bp=deployment.dead_band_bp,
            now=other.closes + dt.timedelta(hours=1),
        )
        shift = own.opens - other.opens
        moved = {name: outcomes[name] + shift for name in ("bar_ts", "available_at")}
        return deployment.store.append(OUTCOMES, label, outcomes.assign(**moved))

    return exchange


def _random(seed: int, symbol: str, ordinal: int, stream: int) -> np.random.Generator:
    return np.random.default_rng((seed, zlib.crc32(symbol.encode()), ordinal, stream))
