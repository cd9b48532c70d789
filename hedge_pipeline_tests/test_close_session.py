"""Closing a session and a first start: what is fetched, finished, folded and scored, once."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from hedge_pipeline import stages
from hedge_pipeline.market.bars import days_of
from hedge_pipeline.market.sources import SchemaDrift, SourceDown, SourceError, SymbolUnknown
from hedge_pipeline.market.tables import (
    DAILY_BARS,
    FEATURE_ROWS,
    GAPS,
    OUTCOMES,
    PERFORMANCE,
    PREDICTION_LOG,
    PROMOTIONS,
    RAW_QUOTES,
    TABLES,
)
from hedge_pipeline.opening import open_deployment
from hedge_pipeline.serving.predicting import LATE_BAR
from hedge_pipeline.settings import load_settings
from hedge_pipeline.stages import (
    PATIENCE,
    PATIENCE_FOR_DAYS,
    SETTLING,
    Deployment,
    StageError,
    starting,
)
from hedge_pipeline.stages.closing import sessions_to_close
from hedge_pipeline.store import Store
from hedge_pipeline_tests.markets import (
    BEFORE,
    FULL_DAY,
    HALF_DAY,
    HOUR,
    MINUTE,
    SECOND,
    SYMBOLS,
    FakeMarket,
    Watch,
    calendar_of,
    copy_of,
    deployment_in,
    history_in,
    minutes,
    walk,
    watch,
)
from hedge_pipeline_tests.runs import files

SESSION = calendar_of("XNYS").session(HALF_DAY)
OPENS, CLOSES = (x.astimezone(dt.UTC) for x in (SESSION.opens, SESSION.closes))
SETTLED = CLOSES + SETTLING
COMPACTED = (RAW_QUOTES, FEATURE_ROWS, PREDICTION_LOG, OUTCOMES)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return history_in(tmp_path_factory.mktemp("history") / "data")


@pytest.fixture(scope="module")
def afternoon(history: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A half day polled in three stretches and left before its end; nothing is closed."""
    folder = copy_of(history, tmp_path_factory.mktemp("afternoon") / "data")
    for begin, end in ((5, 8), (100, 102), (203, 206)):
        found = watch(folder, FakeMarket(), OPENS + begin * MINUTE + SECOND)
        found.run(until=OPENS + end * MINUTE + 2 * SECOND)
    return folder


@pytest.fixture
def polled(afternoon: Path, tmp_path: Path) -> Path:
    return copy_of(afternoon, tmp_path / "data")


def after(folder: Path, market: FakeMarket, now: dt.datetime = SETTLED) -> Watch:
    return watch(folder, market, now)


def parts(folder: Path, label: str = HALF_DAY) -> dict[str, int]:
    return {
        table.name: len(list((folder / table.name / f"session={label}").glob("*.parquet")))
        for table in COMPACTED
    }


# -- a session that was polled -------------------------------------------------------------------


def test_closing_fetches_the_last_bars_and_finishes_every_stage(polled: Path) -> None:
    found = after(polled, FakeMarket())
    assert len(found.rows(RAW_QUOTES, HALF_DAY)) == 2 * 206
    before = found.served(HALF_DAY)
    closed = stages.close_session(found.deployment, HALF_DAY)
    assert (closed.label, closed.bars, closed.gaps) == (HALF_DAY, 8, 0)
    for table in (RAW_QUOTES, FEATURE_ROWS, OUTCOMES):
        assert len(found.rows(table, HALF_DAY)) == 420, table.name
    served = found.served(HALF_DAY)
    assert_frame_equal(served[served["mode"] != "backfill"].reset_index(drop=True), before)
    added = served[served["mode"] == "backfill"]
    assert len(added) == 8
    assert set(added["bar_ts"]) == set(minutes(SESSION, 206, 207, 208, 209))
    assert set(added["decided_at"]) == {SETTLED}  # the session was watched: they came only now


def test_an_exit_that_came_after_the_grace_is_none(polled: Path) -> None:
    found = after(polled, FakeMarket())
    stages.close_session(found.deployment, HALF_DAY)
    outcomes = found.rows(OUTCOMES, HALF_DAY, "SIMA")
    unknown = outcomes[outcomes["status"] == "unlabelable"].set_index("bar_ts")["reason"]
    expected = ["gap"] * 4 + ["crosses_close"] * 10
    assert unknown.tolist() == expected
    assert list(unknown.index) == minutes(SESSION, *range(196, 210))


def test_closing_leaves_one_file_per_table(polled: Path) -> None:
    assert min(parts(polled).values()) > 1
    stages.close_session(after(polled, FakeMarket()).deployment, HALF_DAY)
    assert set(parts(polled).values()) == {1}


def test_closing_folds_the_evidence_once_and_stores_the_scores(polled: Path) -> None:
    found = after(polled, FakeMarket())
    closed = stages.close_session(found.deployment, HALF_DAY)
    assert {s: [fold.session for fold in x] for s, x in closed.folds.items()} == {
        symbol: [HALF_DAY] for symbol in SYMBOLS
    }
    entries = found.store.read(PROMOTIONS)
    folds = entries[(entries["kind"] == "fold") & (entries["session"] == HALF_DAY)]
    assert folds["symbol"].tolist() == list(SYMBOLS)
    assert (folds["decided_at"] == SETTLED).all()
    scores = found.rows(PERFORMANCE, HALF_DAY)
    totals = scores[scores["role"] == "served"].groupby("symbol")["predictions"].sum()
    assert totals.to_dict() == dict.fromkeys(SYMBOLS, 210)
    # evidence: what was decided live or in time, and had an outcome that is not flat
    outcomes = found.rows(OUTCOMES, HALF_DAY, "SIMA")
    served = found.served(HALF_DAY, "SIMA").merge(outcomes, on="bar_ts")
    in_time = served["decided_at"] < served["bar_ts"] + 11 * MINUTE
    counted = served[in_time & (served["mode"] != "backfill") & served["actual_direction"].notna()]
    assert folds["labels"].tolist()[0] == len(counted) > 20


def test_closing_again_changes_nothing(polled: Path) -> None:
    stages.close_session(after(polled, FakeMarket()).deployment, HALF_DAY)
    before = files(polled)
    found = after(polled, FakeMarket(), SETTLED + HOUR)
    again = stages.close_session(found.deployment, HALF_DAY)
    assert (again.bars, again.predictions, again.outcomes) == (0, 0, 0)
    assert not any(again.folds.values())
    assert files(polled) == before


def test_closing_an_earlier_session_again_does_not_open_the_later_one(polled: Path) -> None:
    found = after(polled, FakeMarket())
    stages.close_session(found.deployment, HALF_DAY)
    stages.close_session(found.deployment, BEFORE[-1])
    assert stages.pending_sessions(found.deployment) == ()


def test_a_hole_filled_at_the_close_is_stored_as_late(polled: Path, tmp_path: Path) -> None:
    (hole,) = minutes(SESSION, 101)
    folder = copy_of(polled, tmp_path / "with_hole")
    bars = Store(str(folder)).read(RAW_QUOTES, [HALF_DAY])
    kept = bars[(bars["symbol"] != "SIMA") | (bars["bar_ts"] != hole)]
    Store(str(folder)).replace(RAW_QUOTES, HALF_DAY, kept)
    for table in (FEATURE_ROWS, PREDICTION_LOG, OUTCOMES):
        rows = Store(str(folder)).read(table, [HALF_DAY])
        kept = rows[(rows["symbol"] != "SIMA") | (rows["bar_ts"] != hole)]
        Store(str(folder)).replace(table, HALF_DAY, kept)
    found = after(folder, FakeMarket())
    assert stages.close_session(found.deployment, HALF_DAY).gaps == 0
    late = found.served(HALF_DAY, "SIMA").set_index("bar_ts").loc[hole]
    assert (late["reason"], late["mode"], late["decided_at"]) == (LATE_BAR, "backfill", SETTLED)


# -- a source that is down -----------------------------------------------------------------------

AWAY = SourceDown("no route to host")


def down(until: dt.datetime, symbol: str = "") -> FakeMarket:
    return FakeMarket(outages=[(symbol, CLOSES, until, AWAY)])


@pytest.mark.parametrize("symbol", ["", "SIMB"])
def test_while_the_source_is_down_nothing_is_closed_or_folded(polled: Path, symbol: str) -> None:
    market = down(CLOSES + 3 * HOUR, symbol)
    found = after(polled, market)
    before = found.store.read(PROMOTIONS)
    with pytest.raises(StageError, match=f"{HALF_DAY} is not closed yet: no route to host"):
        stages.close_session(found.deployment, HALF_DAY)
    assert_frame_equal(found.store.read(PROMOTIONS), before)
    assert found.rows(PERFORMANCE, HALF_DAY).empty
    assert stages.pending_sessions(found.deployment) == (HALF_DAY,)
    found.clock.now = CLOSES + 3 * HOUR
    assert stages.close_session(found.deployment, HALF_DAY).gaps == 0
    assert stages.pending_sessions(found.deployment) == ()


def test_when_patience_is_over_the_session_is_closed_with_its_gaps(polled: Path) -> None:
    found = after(polled, down(CLOSES + 99 * HOUR), CLOSES + PATIENCE)
    closed = stages.close_session(found.deployment, HALF_DAY)
    assert (closed.bars, closed.gaps) == (0, 8)
    gaps = found.rows(GAPS, HALF_DAY)
    assert set(gaps["cause"]) == {"source_down"}
    assert set(gaps["detail"]) == {"no route to host"}
    assert set(gaps["bar_ts"]) == set(minutes(SESSION, 206, 207, 208, 209))
    assert all(closed.folds.values())
    assert len(found.rows(OUTCOMES, HALF_DAY)) == 2 * 206
    assert stages.pending_sessions(found.deployment) == ()


def test_a_day_without_any_bar_is_closed_once_and_not_for_ever(
    history: Path, tmp_path: Path
) -> None:
    folder = copy_of(history, tmp_path / "data")
    found = after(folder, down(CLOSES + 99 * HOUR), CLOSES + PATIENCE)
    assert stages.pending_sessions(found.deployment) == (HALF_DAY,)
    closed = stages.close_session(found.deployment, HALF_DAY)
    assert (closed.bars, closed.gaps, closed.folds) == (0, 420, {s: [] for s in SYMBOLS})
    assert stages.pending_sessions(found.deployment) == ()


def test_a_symbol_the_source_does_not_know_keeps_no_session_open(polled: Path) -> None:
    unknown = SymbolUnknown("no symbol SIMX")
    market = FakeMarket(outages=[("SIMX", OPENS, CLOSES + 99 * HOUR, unknown)])
    found = watch(polled, market, SETTLED, symbols=(*SYMBOLS, "SIMX"))
    for label in stages.pending_sessions(found.deployment):
        stages.close_session(found.deployment, label)
    assert stages.pending_sessions(found.deployment) == ()
    assert all(found.deployment.ledger(s).state.last_session == HALF_DAY for s in SYMBOLS)


# -- days nobody watched -------------------------------------------------------------------------


def test_a_missed_day_is_caught_up_as_history(history: Path, tmp_path: Path) -> None:
    now = dt.datetime(2024, 12, 2, 22, tzinfo=dt.UTC)
    found = watch(copy_of(history, tmp_path / "data"), FakeMarket(), now)
    pending = stages.pending_sessions(found.deployment)
    assert pending == (HALF_DAY, FULL_DAY)
    for label in pending:
        closed = stages.close_session(found.deployment, label)
        assert closed.bars == 2 * calendar_of("XNYS").session(label).bars
        served = found.served(label)
        assert set(served["mode"]) == {"backfill"}
        assert (served["decided_at"] == served["bar_ts"] + MINUTE).all()
        assert served["prediction"].notna().all()
        assert {s: x[-1].entry["labels"] for s, x in closed.folds.items()} == dict.fromkeys(
            SYMBOLS, 0
        )
    assert stages.pending_sessions(found.deployment) == ()


def test_a_session_folded_by_a_training_is_closed_all_the_same(polled: Path) -> None:
    """The sensor may train between the end of the grace and the close."""
    found = after(polled, FakeMarket(), CLOSES + 2 * HOUR)
    found.clock.now = CLOSES + 10 * MINUTE
    stages.mature_outcomes(found.deployment, HALF_DAY)
    for symbol in SYMBOLS:
        (fold,) = stages.fold_evidence(found.deployment, symbol)
        assert fold.session == HALF_DAY
    found.clock.now = SETTLED
    assert stages.pending_sessions(found.deployment) == (HALF_DAY,)
    closed = stages.close_session(found.deployment, HALF_DAY)
    assert (closed.bars, closed.gaps) == (8, 0)
    assert not any(closed.folds.values())
    assert set(parts(polled).values()) == {1}


# -- daily bars ----------------------------------------------------------------------------------


@dataclass
class MarketWithDays(FakeMarket):
    """Random walks that serve daily bars too, unless they fail for a reason of their own.

    Attributes:
        failing: error raised for daily bars until a moment.
        windows: what was asked for: symbol, first and last session.
    """

    failing: tuple[SourceError, dt.datetime] | None = None
    windows: list[tuple[str, str, str]] = field(default_factory=list)

    def daily(self, symbol: str, first: str, last: str, now: dt.datetime) -> pd.DataFrame:
        self.windows.append((symbol, first, last))
        if self.failing and now < self.failing[1]:
            raise self.failing[0]
        calendar = calendar_of("XNYS")
        over = [x for x in calendar.between(first, last) if calendar.session(x).closes <= now]
        return days_of((label, walk(symbol, calendar.session(label))) for label in over)


def true_days(labels: Sequence[str]) -> pd.DataFrame:
    """What the store shall hold of sessions nobody was late for."""
    calendar = calendar_of("XNYS")
    pieces = [
        days_of((label, walk(symbol, calendar.session(label))) for label in labels).assign(
            symbol=symbol, available_at=[calendar.session(label).closes for label in labels]
        )
        for symbol in SYMBOLS
    ]
    return DAILY_BARS.conform(pd.concat(pieces))


def assert_days(store: Store, labels: Sequence[str]) -> None:
    order = ["symbol", "session"]
    found = store.read(DAILY_BARS).sort_values(order).reset_index(drop=True)
    assert_frame_equal(found, true_days(labels).reset_index(drop=True), check_exact=True)


@pytest.fixture
def unwatched(history: Path, tmp_path: Path) -> Path:
    """The sessions before the half day, and nobody polls on it."""
    return copy_of(history, tmp_path / "data")


def test_closing_stores_the_days_that_levels_look_back_on_and_asks_once(unwatched: Path) -> None:
    market = MarketWithDays()
    found = after(unwatched, market)
    stages.close_session(found.deployment, HALF_DAY)
    labels = calendar_of("XNYS").between(None, HALF_DAY)[-61:]
    assert_days(found.store, labels)
    assert market.windows == [(symbol, labels[0], HALF_DAY) for symbol in SYMBOLS]
    before = files(unwatched)
    stages.close_session(after(unwatched, market, SETTLED + HOUR).deployment, HALF_DAY)
    assert files(unwatched) == before
    assert len(market.windows) == 2


def test_the_day_that_is_not_over_has_no_daily_bar(unwatched: Path) -> None:
    found = after(unwatched, MarketWithDays(), CLOSES - MINUTE)
    stages.collect_daily_bars(found.deployment, HALF_DAY)
    assert_days(found.store, calendar_of("XNYS").between(None, BEFORE[-1])[-60:])
    found.clock.now = SETTLED
    stages.close_session(found.deployment, HALF_DAY)
    assert_days(found.store, calendar_of("XNYS").between(None, HALF_DAY)[-61:])


def test_daily_bars_that_fail_keep_a_session_open_only_for_a_while(polled: Path) -> None:
    found = after(polled, MarketWithDays(failing=(AWAY, CLOSES + 99 * HOUR)))
    with pytest.raises(StageError, match=f"{HALF_DAY} is not closed yet: no route to host"):
        stages.close_session(found.deployment, HALF_DAY)
    assert stages.pending_sessions(found.deployment) == (HALF_DAY,)
    found.clock.now = CLOSES + PATIENCE_FOR_DAYS
    assert all(stages.close_session(found.deployment, HALF_DAY).folds.values())
    assert stages.pending_sessions(found.deployment) == ()
    assert found.store.read(DAILY_BARS).empty


def test_a_source_that_does_not_know_the_symbol_s_days_keeps_nothing_open(polled: Path) -> None:
    unknown = SymbolUnknown("no such symbol")
    found = after(polled, MarketWithDays(failing=(unknown, CLOSES + 99 * HOUR)))
    stages.close_session(found.deployment, HALF_DAY)
    assert stages.pending_sessions(found.deployment) == ()


def test_a_day_that_came_after_the_next_session_was_watched_is_available_only_then(
    polled: Path,
) -> None:
    stages.close_session(after(polled, FakeMarket()).deployment, HALF_DAY)
    opens = calendar_of("XNYS").session(FULL_DAY).opens
    found = watch(polled, FakeMarket(), opens + 5 * MINUTE + SECOND, ["SIMA"])
    found.run(until=opens + 8 * MINUTE)
    late = opens + HOUR
    found = after(polled, MarketWithDays(), late)
    stages.collect_daily_bars(found.deployment, FULL_DAY)
    stored = found.store.read(DAILY_BARS, [HALF_DAY]).set_index("symbol")["available_at"]
    assert stored.to_dict() == {"SIMA": pd.Timestamp(late), "SIMB": pd.Timestamp(CLOSES)}


def test_a_first_start_has_the_days_before_its_oldest_session(tmp_path: Path) -> None:
    market = MarketWithDays()
    deployment = deployment_in(tmp_path, market, lambda: OPENS - 9 * HOUR)
    found = stages.bootstrap(deployment, BEFORE)
    assert found["failures"] == []
    first = calendar_of("XNYS").between(None, BEFORE[0])[-61]
    assert market.windows == [(symbol, first, BEFORE[-1]) for symbol in SYMBOLS]
    assert_days(deployment.store, calendar_of("XNYS").between(first, BEFORE[-1]))


def test_a_first_start_without_daily_bars_says_so_and_goes_on(tmp_path: Path) -> None:
    market = MarketWithDays(failing=(SourceDown("no days today"), CLOSES))
    deployment = deployment_in(tmp_path, market, lambda: OPENS - 9 * HOUR)
    found = stages.bootstrap(deployment, BEFORE)
    assert found["failures"] == ["no days today"]
    assert all(words.startswith("version 1 on ") for words in found["models"].values())
    assert stages.pending_sessions(deployment) == ()


def test_a_first_model_that_somebody_else_judged_meanwhile_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second(deployment: Deployment, symbol: str) -> list[dict[str, object]]:
        judge(deployment, symbol)
        return judge(deployment, symbol)

    judge = stages.judge
    monkeypatch.setattr(starting, "judge", second)
    deployment = deployment_in(tmp_path, MarketWithDays(), lambda: OPENS - 9 * HOUR)
    found = stages.bootstrap(deployment, BEFORE)
    assert all(words.endswith("rows, judged meanwhile") for words in found["models"].values())


@pytest.mark.parametrize("column", ["session", "high", "close"])
def test_days_that_cannot_be_stored_are_the_source_s_fault(polled: Path, column: str) -> None:
    class Drifting(MarketWithDays):
        def daily(self, symbol: str, first: str, last: str, now: dt.datetime) -> pd.DataFrame:
            days = super().daily(symbol, first, last, now)
            return days.drop(columns=column) if symbol == "SIMA" else days.assign(**{column: None})

    found = after(polled, Drifting())
    failures = stages.collect_daily_bars(found.deployment, HALF_DAY)
    assert {symbol: (type(error), str(error)) for symbol, error in failures.items()} == {
        "SIMA": (SchemaDrift, f"fake: the daily bars lack {column}"),
        "SIMB": (SchemaDrift, f"fake: a daily bar has no {column}"),
    }
    assert found.store.read(DAILY_BARS).empty


# -- a first start -------------------------------------------------------------------------------

SIMULATED = {"HEDGE_SOURCE": "simulated", "HEDGE_SYMBOLS": "SIMQ,SIMN", "HEDGE_MODE": "live"}


@pytest.mark.parametrize("calendar", ["XNYS", "24/7"])
def test_bootstrap_gives_a_first_model_and_predicts_nothing(tmp_path: Path, calendar: str) -> None:
    settings = load_settings(
        **{**SIMULATED, "HEDGE_DATA_URL": str(tmp_path), "HEDGE_CALENDAR": calendar}
    )
    now = dt.datetime(2024, 11, 28, 5, tzinfo=dt.UTC)

    def start(moment: dt.datetime) -> stages.Deployment:
        deployment = open_deployment(settings)
        return replace(deployment, clock=lambda: moment)

    deployment = start(now)
    sessions = stages.history_window(deployment, 8 if calendar == "XNYS" else 6)
    assert len(sessions) == 6 if calendar == "XNYS" else 5
    walked: list[str] = []
    found = stages.bootstrap(deployment, sessions, advance=walked.append)
    assert tuple(walked) == sessions
    bars = deployment.calendar.session(sessions[0]).bars
    assert (found["sessions"], found["gaps"], found["failures"]) == (len(sessions), 0, [])
    assert found["bars"] == 2 * sum(deployment.calendar.session(x).bars for x in sessions)
    assert bars == (390 if calendar == "XNYS" else 1440)
    for symbol in deployment.symbols:
        assert found["models"][symbol].startswith("version 1 on ")
        assert deployment.shelf.versions(symbol) == (1,)
    assert deployment.store.sessions(PREDICTION_LOG) == ()
    assert stages.pending_sessions(deployment) == ()
    before = files(tmp_path)
    again = stages.bootstrap(start(now + HOUR), sessions)
    assert set(again["models"].values()) == {"has a model already"}
    assert files(tmp_path) == before


def test_bootstrap_does_not_close_what_was_polled(polled: Path) -> None:
    found = after(polled, FakeMarket())
    stages.bootstrap(found.deployment, [*BEFORE, HALF_DAY])
    assert stages.pending_sessions(found.deployment) == (HALF_DAY,)
    closed = stages.close_session(found.deployment, HALF_DAY)
    assert closed.predictions == 2 * 8  # served and baseline of the bars that came at the end
    assert set(parts(polled).values()) == {1}


def test_bootstrap_without_a_source_says_why_there_is_no_model(tmp_path: Path) -> None:
    market = FakeMarket(outages=[("", dt.datetime(2024, 1, 1, tzinfo=dt.UTC), CLOSES, AWAY)])
    deployment = deployment_in(tmp_path, market, lambda: OPENS - 9 * HOUR)
    found = stages.bootstrap(deployment, BEFORE)
    assert (found["bars"], found["failures"]) == (0, ["no route to host"])
    expected = "0 of the 5 sessions a training needs have outcomes"
    assert found["models"] == {symbol: f"{symbol}: {expected}" for symbol in SYMBOLS}


def test_bootstrap_after_the_source_is_back_fills_the_gaps(tmp_path: Path) -> None:
    market = FakeMarket(outages=[("SIMB", dt.datetime(2024, 1, 1, tzinfo=dt.UTC), OPENS, AWAY)])
    first = deployment_in(tmp_path, market, lambda: OPENS - 9 * HOUR)
    found = stages.bootstrap(first, BEFORE)
    assert found["models"]["SIMB"].startswith("SIMB: 0 of the 5")
    assert set(first.store.read(GAPS)["cause"]) == {"source_down"}
    second = deployment_in(tmp_path, FakeMarket(), lambda: OPENS - 8 * HOUR)
    found = stages.bootstrap(second, BEFORE)
    assert found["models"]["SIMA"] == "has a model already"
    assert found["models"]["SIMB"].startswith("version 1 on ")
    assert second.store.read(GAPS).empty
    assert (second.store.read(RAW_QUOTES)["available_at"] < pd.Timestamp(OPENS)).all()


def test_every_table_of_a_closed_session_keeps_its_schema(polled: Path) -> None:
    found = after(polled, FakeMarket())
    stages.close_session(found.deployment, HALF_DAY)
    problems = {t.name: t.violations(found.store.read(t, [HALF_DAY])) for t in TABLES}
    assert problems == {table.name: {} for table in TABLES}


# -- which sessions to close -----------------------------------------------------------------------


def to_close(
    now: str,
    stored: tuple[str, ...],
    closed_through: tuple[str | None, ...],
    calendar: str = "XNYS",
    **given: int,
) -> tuple[str, ...]:
    moment = dt.datetime.fromisoformat(now)
    return sessions_to_close(
        calendar_of(calendar), moment, stored, closed_through, settling=SETTLING, **given
    )


STORED = ("2024-11-25", "2024-11-26", "2024-11-27")


@pytest.mark.parametrize(
    ("now", "closed_through", "expected"),
    [
        pytest.param("2024-11-27T21:14:59+00:00", "2024-11-26", (), id="not settled yet"),
        pytest.param("2024-11-27T21:15:00+00:00", "2024-11-26", STORED[-1:], id="settled"),
        pytest.param("2024-11-27T21:15:00+00:00", "2024-11-27", (), id="closed"),
        pytest.param("2024-11-27T21:15:00+00:00", None, STORED, id="nothing closed yet"),
        pytest.param("2024-11-29T18:15:00+00:00", "2024-11-27", ("2024-11-29",), id="half day"),
        pytest.param(
            "2024-12-03T22:00:00+00:00",
            "2024-11-27",
            ("2024-11-29", "2024-12-02", "2024-12-03"),
            id="days the service was down, without the holiday and the weekend",
        ),
    ],
)
def test_sessions_that_are_over_and_not_closed_are_asked_for_oldest_first(
    now: str, closed_through: str | None, expected: tuple[str, ...]
) -> None:
    assert to_close(now, STORED, (closed_through,)) == expected


def test_the_symbol_that_is_furthest_behind_decides() -> None:
    now = "2024-11-27T21:15:00+00:00"
    assert to_close(now, STORED, ("2024-11-27", "2024-11-25")) == STORED[1:]
    assert to_close(now, STORED, ("2024-11-27", None)) == STORED


def test_an_empty_store_has_nothing_to_close() -> None:
    assert to_close("2024-11-27T21:15:00+00:00", (), (None,)) == ()


def test_round_the_clock_a_day_is_closed_after_midnight() -> None:
    stored = ("2024-11-30",)
    assert to_close("2024-12-01T00:14:00+00:00", stored, (None,), "24/7") == ()
    assert to_close("2024-12-01T00:15:00+00:00", stored, (None,), "24/7") == stored


@pytest.mark.parametrize("most", [1, 3, 10])
def test_after_a_long_absence_only_the_newest_sessions_are_closed(most: int) -> None:
    found = to_close("2024-12-31T23:00:00+00:00", STORED, ("2024-11-27",), most=most)
    assert len(found) == most
    assert found[-1] == "2024-12-31"
    assert list(found) == sorted(found)
