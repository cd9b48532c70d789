"""The rules that other loops use, on the very candidates and rows of a finished replay.

Always replace   the newest model is served as it is, unshrunk.
Best accuracy    a candidate is scored on the ten sessions after its training data; it replaces the
                 champion when its accuracy is the best any candidate ever had there.
Paired test      the same ten sessions; it replaces the champion when a one-sided test of the
                 difference in log-loss, session by session, says 5 %. The first champion is the
                 base rate.

Nothing is fitted here. A candidate whose data end ten sessions ago and that is scored on those ten
is what a trainer that holds out its last ten sessions would have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hedge_pipeline.probability import log_likelihood, logit

if TYPE_CHECKING:
    from hedge_pipeline.stages import Deployment

Floats = npt.NDArray[np.float64]

HELD_OUT = 10
ONE_SIDED_5_PERCENT = 1.645


@dataclass(frozen=True)
class NaiveRun:
    """What a rule served and claimed.

    Attributes:
        likelihood: log-likelihood of what was served, summed by session, nats.
        promotions: how often the champion was replaced.
        claim: accuracy the last champion was promoted with; NaN where the rule claims none.
    """

    likelihood: Floats
    promotions: int
    claim: float


class Candidates:
    """The models of a replay and what each says of later sessions.

    Args:
        deployment: a finished replay.
        symbol: whose models.
        sessions: labels of the replay, ascending.
        base_rates: climatology in force in each session.
    """

    def __init__(
        self,
        deployment: Deployment,
        symbol: str,
        sessions: tuple[str, ...],
        base_rates: Floats,
    ) -> None:
        self._deployment = deployment
        self._symbol = symbol
        self.sessions = sessions
        self.base = logit(base_rates)
        place = {label: position for position, label in enumerate(sessions)}
        cards = [
            deployment.shelf.card(symbol, version) for version in deployment.ledger(symbol).accepted
        ]
        self.by_cutoff = {place[card.cutoff]: card.version for card in cards}
        self._known: dict[tuple[int, int], Floats] = {}

    def labels(self, session: int) -> Floats:
        """Ups of a session, [labels]."""
        return self._deployment.labelled.read(self._symbol, self.sessions[session]).labels

    def log_odds(self, version: int | None, session: int) -> Floats:
        """What a version says of a session's labels, unshrunk; None = the base rate."""
        if version is None:
            return np.full(len(self.labels(session)), self.base[session])
        key = (version, session)
        if key not in self._known:
            rows = self._deployment.labelled.read(self._symbol, self.sessions[session]).features
            model = self._deployment.shelf.load(self._symbol, version)
            self._known[key] = self.base[session] + model.margin(rows)
        return self._known[key]

    def likelihood(self, version: int | None, session: int) -> float:
        """Sum over the labels of a session, nats."""
        return float(log_likelihood(self.log_odds(version, session), self.labels(session)).sum())

    def accuracy(self, version: int, sessions: range) -> float:
        """Share of right directions in the sessions together."""
        right = [
            (self.log_odds(version, session) > 0) == (self.labels(session) > 0)
            for session in sessions
        ]
        return float(np.concatenate(right).mean())


def always_replace(candidates: Candidates) -> NaiveRun:
    """The newest candidate, whatever it scored."""
    champion: int | None = None
    served, promotions = [], 0
    for session in range(len(candidates.sessions)):
        served.append(candidates.likelihood(champion, session))
        if session in candidates.by_cutoff:
            champion = candidates.by_cutoff[session]
            promotions += 1
    return NaiveRun(np.array(served), promotions, math.nan)


def best_accuracy(candidates: Candidates) -> NaiveRun:
    """The candidate with the best accuracy so far on the sessions after its data."""
    champion: int | None = None
    served, promotions, best = [], 0, 0.0
    for session in range(len(candidates.sessions)):
        served.append(candidates.likelihood(champion, session))
        version = candidates.by_cutoff.get(session - HELD_OUT)
        if version is None:
            continue
        found = candidates.accuracy(version, range(session - HELD_OUT + 1, session + 1))
        if found > best:
            champion, best = version, found
            promotions += 1
    return NaiveRun(np.array(served), promotions, best if promotions else math.nan)


def paired_test(candidates: Candidates) -> NaiveRun:
    """The candidate that beats the champion significantly, tested anew every session."""
    champion: int | None = None
    served, promotions = [], 0
    for session in range(len(candidates.sessions)):
        served.append(candidates.likelihood(champion, session))
        version = candidates.by_cutoff.get(session - HELD_OUT)
        if version is None:
            continue
        gains = np.array(
            [
                (candidates.likelihood(version, one) - candidates.likelihood(champion, one))
                / len(candidates.labels(one))
                for one in range(session - HELD_OUT + 1, session + 1)
            ]
        )
        error = gains.std(ddof=1) / math.sqrt(HELD_OUT)
        if error > 0 and gains.mean() / error > ONE_SIDED_5_PERCENT:
            champion = version
            promotions += 1
    return NaiveRun(np.array(served), promotions, math.nan)


RULES = {
    "always replace": always_replace,
    "best accuracy so far": best_accuracy,
    "single paired test": paired_test,
}
