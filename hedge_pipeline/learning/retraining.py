"""When to retrain: a pure function from facts to a decision that says why."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass


@dataclass(frozen=True)
class RetrainingFacts:
    """What the decision is made from; all of it is read from the store, nothing from memory.

    Attributes:
        symbol: ticker symbol.
        new_samples: matured up or down outcomes since the newest version's cutoff, in sessions
            that are over; rejected candidates count as versions, so they are not asked for again.
        needed_samples: MIN_SAMPLES_FOR_RETRAIN.
        sessions: labelled sessions that a training could use.
        needed_sessions: sessions of a first training.
        hour: exchange-local hour that counts now; see `hour_that_counts`.
        retrain_hour: RETRAIN_HOUR; None = any.
        in_flight: a training of the symbol is running or waiting.
        drift: what has drifted, in words; it asks for a retraining before the samples are complete.
    """

    symbol: str
    new_samples: int
    needed_samples: int
    sessions: int
    needed_sessions: int
    hour: int
    retrain_hour: int | None
    in_flight: bool
    drift: str | None = None


@dataclass(frozen=True)
class Decision:
    """Whether to retrain, and why or why not, in words."""

    retrain: bool
    reason: str


def hour_that_counts(now: dt.datetime, since: dt.datetime | None, retrain_hour: int | None) -> int:
    """The hour of `now`, or RETRAIN_HOUR if it has begun since the last look.

    Looks may be more than an hour apart, the machine may sleep at night, and in spring two o'clock
    does not exist: an hour nobody looked in is made up for at the next look.

    Args:
        now: time of the look, in exchange time.
        since: time of the look before; None if there was none.
        retrain_hour: RETRAIN_HOUR; None = any.
    """
    if retrain_hour is None or since is None:
        return now.hour
    begun = now.replace(hour=retrain_hour, minute=0, second=0, microsecond=0)
    if begun.astimezone(dt.UTC) > now.astimezone(dt.UTC):
        begun -= dt.timedelta(days=1)
    return retrain_hour if since < begun.astimezone(dt.UTC) else now.hour


def decide(facts: RetrainingFacts) -> Decision:
    """Asks for a retraining when every condition holds; names the first that does not."""
    samples = f"{facts.new_samples} new outcomes, {facts.needed_samples} are needed"
    if facts.in_flight:
        return Decision(False, f"{facts.symbol} is being trained")
    if facts.drift and facts.new_samples:
        samples = f"{samples}, and {facts.drift}"
    elif facts.new_samples < facts.needed_samples:
        return Decision(False, f"{facts.symbol} has {samples}")
    if facts.sessions < facts.needed_sessions:
        needed = f"{facts.needed_sessions} sessions a training needs"
        return Decision(False, f"{facts.symbol} has {facts.sessions} of the {needed}")
    if facts.retrain_hour is not None and facts.hour != facts.retrain_hour:
        waits = f"it waits for {facts.retrain_hour}:00 exchange time"
        return Decision(False, f"{facts.symbol} has {samples}; {waits}")
    return Decision(True, f"{facts.symbol} has {samples}")
