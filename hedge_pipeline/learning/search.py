"""A search for hyper-parameters: which trees to try, and when a find may replace the defaults.

Trials are scored walk-forward on the earlier folds; the best of them is then compared with the
defaults on the later folds, which no trial has seen. The record of a search is stored beside the
models and never changes. Nothing here runs on its own: a person asks for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hedge_pipeline.learning.gate import GateRule
from hedge_pipeline.learning.paired import Paired, SessionPair, compare
from hedge_pipeline.learning.training import ModelError, TrainingPlan
from hedge_pipeline.learning.walk_forward import Course, Walk, walk
from hedge_pipeline.store import Store

Parameters = dict[str, int | float]

TRIALS = 30
LEAST_SPREAD = 1e-6
DEFAULTS = "the defaults"
INSTALL = (
    "the search needs Optuna, which is not installed: pip install 'optuna>=4,<5' "
    "(or the extra hedge-pipeline[search])"
)


class SearchUnavailable(RuntimeError):
    """Optuna is not installed; the message says how to install it."""


@dataclass(frozen=True)
class Bounds:
    """Range of one parameter of `TrainingPlan`; a whole number if it has a step."""

    least: float
    most: float
    step: int | None = None
    log: bool = False


# around the defaults: shallow, slowly learned trees on rows that say little each; one thread and a
# fixed seed come from the plan, so a sampled fit has equal bytes, too
SPACE: dict[str, Bounds] = {
    "depth": Bounds(2, 4, step=1),
    "trees": Bounds(20, 120, step=20),
    "learning_rate": Bounds(0.02, 0.1, log=True),
    "child_weight": Bounds(10.0, 160.0, log=True),
    "penalty": Bounds(5.0, 80.0, log=True),
    "rows_per_tree": Bounds(0.5, 1.0),
    "columns_per_node": Bounds(0.2, 1.0),
}


@dataclass(frozen=True)
class SearchPlan:
    """How the sessions of a search are divided.

    Attributes:
        least: sessions the first training learns from.
        block: sessions one training is scored on.
        least_blocks: half of the blocks choose, the newer half confirms.
    """

    least: int = 15
    block: int = 5
    least_blocks: int = 4

    @property
    def least_sessions(self) -> int:
        """Sessions without which no search is made."""
        return self.least + self.block * self.least_blocks


@dataclass(frozen=True)
class Trial:
    """One set of parameters and what it scored on the choosing sessions, 1e-4 nats per label."""

    parameters: Parameters
    gain: float
    spread: float


@dataclass(frozen=True)
class Found:
    """The outcome of a search; gains are over climatology unless said otherwise.

    Attributes:
        adopted: whether the best trial replaces the defaults.
        parameters: those in force from now on, the defaults unless `adopted`.
        best: number of the trial with the highest gain; 0 = the defaults.
        trials: every one, in order; the defaults first.
        chosen: the best trial's gain on the sessions that chose it: optimistic.
        confirmed: its gain on the later sessions.
        defaults: the defaults' gain on the later sessions.
        difference: the best trial against the defaults there, paired by session.
        reason: the verdict in words.
    """

    adopted: bool
    parameters: Parameters
    best: int
    trials: tuple[Trial, ...]
    chosen: Paired
    confirmed: Paired
    defaults: Paired
    difference: Paired
    reason: str


def search(
    course: Course,
    plan: TrainingPlan,
    rule: GateRule,
    *,
    trials: int = TRIALS,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Found:
    """Tries parameters, says whether the best replace the defaults; equal inputs, equal outcome.

    Trial 0 are the defaults; the others are proposed by a tree-structured Parzen estimator
    (Bergstra et al. 2011) from the scores on the earlier half of the folds. The best of many scores
    is partly luck, so it counts only for choosing: the parameters are adopted if on the later
    sessions they beat the defaults by more than noise, that is, if the lower end of the 95 %
    interval of the paired gain lies above 0, whole sessions resampled.

    Args:
        course: two folds or more.
        plan: the defaults.
        rule: constants of base rate and trust.
        trials: how many, the defaults included.
        seed: of the proposals.
        advance: called after every trial.

    Raises:
        SearchUnavailable: Optuna is not installed.
        ValueError: a fold has one class only, or there is nothing to score.
    """
    choosing, seen = course.halves()
    tried: list[Trial] = []

    def score(parameters: Parameters) -> float:
        done = walk(choosing, replace(plan, **parameters), rule)  # type: ignore[arg-type]
        gain = compare(done.pairs).gain
        if math.isnan(gain):
            raise ValueError("the sessions to score have no outcome, up or down")
        tried.append(Trial(parameters, gain, done.spread))
        advance()
        return tried[-1].gain

    _propose(score, tuned(plan), trials, seed)
    # a guard refuses models that say the same of every row, cheap as they are on noise
    says_something = [number for number, one in enumerate(tried) if one.spread > LEAST_SPREAD]
    eligible = {0, *says_something}
    best = max(eligible, key=lambda number: (tried[number].gain, -number))
    better = replace(plan, **tried[best].parameters)  # type: ignore[arg-type]
    return _verdict(tried, best, seen, walk(course, plan, rule), walk(course, better, rule))


def tuned(plan: TrainingPlan) -> Parameters:
    """The parameters of a plan that a search may change."""
    return {name: getattr(plan, name) for name in SPACE}


def load_optuna() -> Any:
    """The module `optuna`, which says no more than warnings.

    Raises:
        SearchUnavailable: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise SearchUnavailable(INSTALL) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _propose(
    score: Callable[[Parameters], float], defaults: Parameters, trials: int, seed: int
) -> None:
    optuna = load_optuna()
    distributions = {
        name: optuna.distributions.FloatDistribution(x.least, x.most, log=x.log)
        if x.step is None
        else optuna.distributions.IntDistribution(int(x.least), int(x.most), step=x.step)
        for name, x in SPACE.items()
    }
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.enqueue_trial(defaults)
    for _ in range(trials):
        trial = study.ask(distributions)
        study.tell(trial, score(dict(trial.params)))


def _verdict(tried: Sequence[Trial], best: int, seen: int, defaults: Walk, better: Walk) -> Found:
    difference = compare(
        [
            SessionPair(one.labels, one.gain - other.gain)
            for one, other in zip(better.pairs[seen:], defaults.pairs[seen:], strict=True)
        ]
    )
    adopted = best > 0 and difference.lo > 0
    said = difference.in_words(f"trial {best}", DEFAULTS)
    if best == 0:
        reason = f"the defaults stay: none of {len(tried)} trials scored better on {seen} sessions"
    elif adopted:
        reason = f"adopted: {said}"
    else:
        reason = f"the defaults stay: the best of {len(tried)} trials is not confirmed; {said}"
    return Found(
        adopted=adopted,
        parameters=tried[best if adopted else 0].parameters,
        best=best,
        trials=tuple(tried),
        chosen=compare(better.pairs[:seen]),
        confirmed=compare(better.pairs[seen:]),
        defaults=compare(defaults.pairs[seen:]),
        difference=difference,
        reason=reason,
    )


# -- the record ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SearchRecord:
    """What is stored of a search.

    Attributes:
        symbol: whose parameters.
        number: 1, 2, ... by symbol.
        cutoff: last session whose outcomes were used; trainings of later cutoffs may use the find.
        first_session: first session used.
        sessions: number of sessions used.
        created_at: when the search was made, ISO 8601, UTC; simulated in a replay.
        horizon_bars: label horizon; the find is for this one only.
        schema_hash: hash of the features table; the find is for these features only.
        data_hash: sha256 of the rows and of what their weights are made of.
        trials: number of trials.
        seed: of the proposals.
        defaults: the plan the search began with; the fields below come from `with_found`.
        adopted: whether the find replaces the defaults.
        parameters: in force from here on.
        reason: the verdict in words.
        best: number of the trial with the highest gain.
        scores: see `Found`; NaN is null.
        tried: every trial with its gain on the choosing sessions and its spread.
    """

    symbol: str
    number: int
    cutoff: str
    first_session: str
    sessions: int
    created_at: str
    horizon_bars: int
    schema_hash: str
    data_hash: str
    trials: int
    seed: int
    defaults: dict[str, Any]
    adopted: bool = False
    parameters: Parameters = field(default_factory=dict)
    reason: str = ""
    best: int = 0
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    tried: list[dict[str, Any]] = field(default_factory=list)

    @property
    def source(self) -> str:
        """Where the parameters come from, for the description of a model."""
        search = f"search {self.number} on sessions to {self.cutoff}"
        return search if self.adopted else f"{DEFAULTS}, kept by {search}"

    def asks_the_same_as(self, other: SearchRecord) -> bool:
        """Whether the other search had the same rows, defaults, trials and seed."""
        names = ("data_hash", "defaults", "trials", "seed")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def with_found(self, found: Found) -> SearchRecord:
        """The record with the outcome of the search."""
        return replace(
            self,
            adopted=found.adopted,
            parameters=found.parameters,
            reason=found.reason,
            best=found.best,
            scores=_scores(found),
            tried=[asdict(trial) for trial in found.trials],
        )

    def to_json(self) -> bytes:
        """Readable, strict JSON."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False).encode()

    @classmethod
    def from_json(cls, content: bytes) -> SearchRecord:
        """The inverse of `to_json`.

        Raises:
            ModelError: the text is no record of a search.
        """
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError) as error:
            raise ModelError(f"the record of a search cannot be read: {error}") from error


class SearchShelf:
    """The searches of a store, `searches/<symbol>/<number>.json`; they are only ever added."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def numbers(self, symbol: str) -> tuple[int, ...]:
        """Numbers of the searches, ascending."""
        names = self._store.names(f"searches/{symbol}")
        return tuple(sorted(int(x.removesuffix(".json")) for x in names if x.endswith(".json")))

    def newest(self, symbol: str, *, before: str | None = None) -> SearchRecord | None:
        """The newest search, or the newest with a cutoff before a session; None = there is none.

        Raises:
            ModelError: a record cannot be read.
        """
        for number in reversed(self.numbers(symbol)):
            record = SearchRecord.from_json(self._store.read_bytes(_name(symbol, number)))
            if before is None or record.cutoff < before:
                return record
        return None

    def put(self, record: SearchRecord) -> bool:
        """Adds a record; False if another search has the number already."""
        return self._store.create_bytes(_name(record.symbol, record.number), record.to_json())


def _scores(found: Found) -> dict[str, dict[str, Any]]:
    names = ("chosen", "confirmed", "defaults", "difference")
    return {
        name: {key: None if math.isnan(x) else x for key, x in asdict(getattr(found, name)).items()}
        for name in names
    }


def _name(symbol: str, number: int) -> str:
    return f"searches/{symbol}/{number:06d}.json"
