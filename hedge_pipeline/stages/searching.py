"""The search for hyper-parameters, which only somebody who asks for it starts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from hedge_pipeline.learning import search
from hedge_pipeline.learning.dataset import assemble
from hedge_pipeline.learning.search import SearchRecord
from hedge_pipeline.learning.walk_forward import course_of, cut
from hedge_pipeline.market.calendar import UTC
from hedge_pipeline.market.tables import FEATURE_ROWS
from hedge_pipeline.stages.deployment import SETTLING, StageError
from hedge_pipeline.stages.training import state_of, training_window

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Sequence

    from hedge_pipeline.learning.walk_forward import Course
    from hedge_pipeline.stages.deployment import Deployment


@dataclass(frozen=True)
class Searched:
    """The newest search; `new` is False if it had asked the same already."""

    record: SearchRecord
    new: bool

    def in_words(self) -> str:
        """One line."""
        record = self.record
        again = "" if self.new else " (it had asked the same already)"
        return (
            f"{record.symbol}: search {record.number} on {record.sessions} sessions to "
            f"{record.cutoff}{again}: {record.reason}"
        )


def search_hyperparameters(
    deployment: Deployment,
    symbol: str,
    *,
    trials: int = search.TRIALS,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Searched:
    """Searches parameters on the sessions a training would use now, and stores what came of it.

    Later trainings use the find, see `plan_of`; what was trained, predicted and proven stays as it
    is. The same rows, trials and seed as those of the newest search give no new one.

    Args:
        deployment: whose store and plans.
        symbol: whose parameters.
        trials: how many, the defaults included.
        seed: of the proposals.
        advance: called after every trial.

    Raises:
        StageError: too few sessions, one class only, or Optuna is not installed.
    """
    try:
        search.load_optuna()
    except search.SearchUnavailable as error:
        raise StageError(str(error)) from None
    if deployment.pooled:
        raise StageError("HEDGE_MODEL_SCOPE=pool: hyper-parameters are searched by symbol only")
    plan, least = deployment.plan, deployment.search_plan.least_sessions
    sessions = training_window(deployment, symbol, state_of(deployment, symbol))
    if len(sessions) < least:
        raise StageError(
            f"{symbol}: {len(sessions)} of the {least} sessions a search needs have outcomes"
        )
    known_by = deployment.asked_at(deployment.calendar.session(sessions[-1]))
    data = assemble(deployment.labelled, symbol, sessions, plan, deployment.horizon, known_by)
    newest = deployment.searches.newest(symbol)
    record = SearchRecord(
        symbol=symbol,
        number=newest.number + 1 if newest else 1,
        cutoff=sessions[-1],
        first_session=sessions[0],
        sessions=len(sessions),
        created_at=known_by.astimezone(UTC).isoformat(),
        horizon_bars=deployment.horizon,
        schema_hash=FEATURE_ROWS.schema_hash,
        data_hash=data.data_hash,
        trials=trials,
        seed=seed,
        defaults=asdict(plan),
    )
    if newest and newest.asks_the_same_as(record):
        return Searched(newest, new=False)
    try:
        course = _search_course(deployment, symbol, sessions, known_by)
        found = search.search(
            course, plan, deployment.rule, trials=trials, seed=seed, advance=advance
        )
    except ValueError as error:
        raise StageError(f"{symbol}: {error}") from error
    record = record.with_found(found)
    if not deployment.searches.put(record):
        raise StageError(f"{symbol}: another search has number {record.number} already")
    return Searched(record, new=True)


def _search_course(
    deployment: Deployment, symbol: str, sessions: Sequence[str], known_by: dt.datetime
) -> Course:
    divided = deployment.search_plan
    return course_of(
        deployment.labelled,
        symbol,
        cut(sessions, least=divided.least, block=divided.block),
        deployment.plan,
        deployment.rule,
        known_at=lambda label: deployment.calendar.session(label).closes + SETTLING,
        known_by=known_by,
    )
