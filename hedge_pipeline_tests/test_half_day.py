"""A half day on Yahoo from before the opening to the next session, by schedule, run and sensor.

The committed jobs run on a real instance with the real yfinance client; only Yahoo is a double on
the loopback, and its clock and that of the loop is one which passes in sleep. There is one story,
told by the fixture: a holiday, the half day with holes, an outage, a 429 and a time nobody polled,
its close, the training the sensor asks for, and the first minutes of the next session.
"""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import dagster as dg
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from hedge_pipeline import jobs, stages
from hedge_pipeline.definitions import defs
from hedge_pipeline.live.loop import AFTER_FINAL
from hedge_pipeline.market.calendar import SessionCalendar
from hedge_pipeline.market.sources import MarketSource
from hedge_pipeline.market.sources.yahoo import Meter, YahooSource
from hedge_pipeline.market.tables import (
    FEATURE_ROWS,
    GAPS,
    OUTCOMES,
    PERFORMANCE,
    PREDICTION_LOG,
    PROMOTIONS,
    RAW_QUOTES,
)
from hedge_pipeline.opening import open_registry, source_options
from hedge_pipeline.resources.loop import (
    LoopResource,
    RegistryResource,
    SourceResource,
    StoreResource,
)
from hedge_pipeline.resources.registry import VERSION_TAG, MlflowRegistry, model_name
from hedge_pipeline.schedules import build_schedules
from hedge_pipeline.sensors.retraining import build_retraining_sensor
from hedge_pipeline.serving.predicting import LATE_BAR
from hedge_pipeline.settings import load_settings
from hedge_pipeline.stages import Deployment
from hedge_pipeline.store import Store
from hedge_pipeline_tests.markets import (
    MINUTE,
    SECOND,
    FakeClock,
    FakeMarket,
    assert_same_session,
    deployment_in,
)
from hedge_pipeline_tests.runs import QUIET
from hedge_pipeline_tests.yahoo_double import Clock, Fault, YahooDouble, forget_yfinance, true_bars

pytestmark = pytest.mark.slow

SYMBOL = "SIMQ"  # one of the committed partitions
HALF_DAY, MONDAY = "2025-11-28", "2025-12-01"
NEW_YORK = ZoneInfo("America/New_York")
BAR = 5 * MINUTE
ARRIVAL = BAR + YahooSource.delay + AFTER_FINAL  # from a bar's start until it is polled


def at(moment: str, day: str = HALF_DAY) -> dt.datetime:
    """A time of New York."""
    return dt.datetime.fromisoformat(f"{day}T{moment}").replace(tzinfo=NEW_YORK)


BARS = [pd.Timestamp(at("09:30")) + i * BAR for i in range(42)]
NEVER_FILLED, FILLED_LATER, FILLED = at("10:05"), at("10:15"), at("10:30")
DOWN, MENDED = at("10:45"), at("11:05")
ALONE, WATCHED = at("11:27"), at("11:52")
THROTTLED = at("12:20")


class SharedClock(FakeClock):
    """One time for the loop and for Yahoo."""

    def __init__(self, now: dt.datetime, yahoo: Clock) -> None:
        super().__init__(now.astimezone(dt.UTC))
        self.yahoo = yahoo
        yahoo.set(self.now)

    @property
    def time(self) -> SimpleNamespace:
        """What a poll run knows of time."""
        return SimpleNamespace(sleep=self.sleep, monotonic=lambda: self.now.timestamp())

    def sleep(self, seconds: float) -> None:
        self.yahoo.set(self.now + dt.timedelta(seconds=seconds))
        super().sleep(seconds)

    def until(self, moment: dt.datetime) -> None:
        self.sleep((moment - self.now).total_seconds())


CLOCKS: list[SharedClock] = []


class PacedYahoo(SourceResource):
    """The committed source, whose patience passes with the shared clock."""

    def open(self, calendar: SessionCalendar) -> MarketSource:
        clock = CLOCKS[-1]
        meter = Meter(clock=lambda: clock.now.timestamp(), sleep=lambda seconds: None)
        return YahooSource(source_options(load_settings(), calendar), meter)


class PassingLoop(LoopResource):
    """The committed resource at the shared clock."""

    @cached_property
    def deployment(self) -> Deployment:
        return replace(super().deployment, clock=CLOCKS[-1])


def resource() -> PassingLoop:
    return PassingLoop(source=PacedYahoo(), store=StoreResource(), registry=RegistryResource())


@dataclass
class Story:
    """What happened.

    Attributes:
        ticks: time and reason of every tick of the polling schedule.
        runs: ids of the runs of a job, oldest first.
        closing: reasons of the ticks of the close schedule.
        sensor: reasons of the ticks of the sensor.
    """

    instance: dg.DagsterInstance
    clock: SharedClock
    folder: Path
    yahoo: YahooDouble
    registry: MlflowRegistry
    ticks: list[tuple[dt.datetime, str]] = field(default_factory=list)
    runs: dict[str, list[str]] = field(default_factory=dict)
    closing: list[str] = field(default_factory=list)
    sensor: list[str] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return Store(str(self.folder))

    def run(self, job: str, request: dg.RunRequest | None = None) -> dg.ExecuteInProcessResult:
        """One run, as the daemon starts it on request."""
        definitions = location()
        result = definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            run_config=QUIET,
            tags=dict(request.tags) if request else {},
            partition_key=request.partition_key if request else None,
        )
        self.runs.setdefault(job, []).append(result.run_id)
        return result

    def tick(self, name: str) -> dg.ScheduleExecutionData:
        schedule = {found.name: found for found in build_schedules(load_settings())}[name]
        context = dg.build_schedule_context(
            instance=self.instance,
            scheduled_execution_time=self.clock.now,
            resources={"loop": resource()},
        )
        with context:
            return schedule.evaluate_tick(context)

    def supervise(self, until: dt.datetime) -> None:
        """A tick every minute; a run that is asked for is executed, during which time passes."""
        while self.clock.now < until:
            asked, reason = answer_of(self.tick("polling_schedule"))
            self.ticks.append((self.clock.now, reason))
            if asked:
                self.run("poll_market", asked)
            self.clock.until(self.clock.now.replace(second=0) + MINUTE)

    def close(self) -> None:
        """A tick of the close schedule, and the run it asks for."""
        asked, reason = answer_of(self.tick("close_session_schedule"))
        self.closing.append(reason)
        if asked:
            self.run("close_session", asked)

    def look(self) -> None:
        """A tick of the sensor, and the training if it asks for one."""
        with dg.build_sensor_context(
            instance=self.instance, definitions=location(), resources={"loop": resource()}
        ) as context:
            tick = build_retraining_sensor(3600).evaluate_tick(context)
        asked, reason = answer_of(tick)
        self.sensor.append(reason)
        if asked:
            self.run("train_model", asked)

    def said(self, job: str) -> list[str]:
        """What the runs of a job told in their own words, oldest first."""
        records = [entry for run in self.runs[job] for entry in self.instance.all_logs(run)]
        return [entry.user_message for entry in records if not entry.is_dagster_event]

    def rows(self, table: object, label: str = HALF_DAY, role: str | None = None) -> pd.DataFrame:
        frame = self.store.read(table, [label])  # type: ignore[arg-type]
        if role:
            frame = frame[frame["role"] == role]
        return frame.reset_index(drop=True)


def answer_of(
    tick: dg.ScheduleExecutionData | dg.SensorExecutionData,
) -> tuple[dg.RunRequest | None, str]:
    """The run a tick asks for, if any, and why."""
    if not tick.run_requests:
        return None, str(tick.skip_message)
    (request,) = tick.run_requests
    return request, str(request.tags["hedge/reason"])


def location() -> dg.Definitions:
    """The committed definitions at the shared clock."""
    committed = defs()
    return dg.Definitions(
        assets=committed.assets,
        asset_checks=committed.asset_checks,
        jobs=committed.jobs,
        resources={"loop": resource()},
        executor=committed.executor,
    )


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("half_day")
    (folder / "dagster").mkdir()
    with (
        pytest.MonkeyPatch.context() as patch,
        YahooDouble(folder / "certificates") as yahoo,
        dg.DagsterInstance.local_temp(str(folder / "dagster")) as instance,
    ):
        clock = SharedClock(at("12:00", "2025-11-27"), yahoo.clock)
        CLOCKS.append(clock)
        for name in ("RETRAIN_HOUR", "HEDGE_CALENDAR", "HEDGE_POLL_RUN_MINUTES"):
            patch.delenv(name, raising=False)
        ours = {
            "HEDGE_DATA_URL": str(folder / "data"),
            "HEDGE_MODE": "live",
            "HEDGE_SOURCE": "yahoo",
            "HEDGE_SYMBOLS": SYMBOL,
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "HEDGE_BAR_SECONDS": "300",
            "POLLING_INTERVAL": "300",
            "MIN_SAMPLES_FOR_RETRAIN": "20",
            "CACHE_TTL": "3600",
        }
        for name, value in {**yahoo.env, **ours}.items():
            patch.setenv(name, value)
        patch.setattr(jobs, "time", clock.time)
        patch.setattr(
            "hedge_pipeline.stages.training.guard", lambda *_: None
        )  # a random walk teaches nothing
        forget_yfinance()
        try:
            registry = open_registry(load_settings())
            found = Story(instance, clock, folder / "data", yahoo, registry)
            tell(found)
            yield found
        finally:
            forget_yfinance()
            CLOCKS.remove(clock)


def tell(story: Story) -> None:
    clock, yahoo = story.clock, story.yahoo
    story.supervise(until=clock.now + SECOND)  # Thanksgiving
    days = {"ops": {"collect_history": {"config": {"days": 8}}}}
    job = location().resolve_job_def("bootstrap")
    job.execute_in_process(instance=story.instance, run_config={**QUIET, **days})
    yahoo.holes[SYMBOL, int(NEVER_FILLED.timestamp())] = None
    yahoo.holes[SYMBOL, int(FILLED_LATER.timestamp())] = FILLED

    def go_down() -> None:
        yahoo.fault(Fault("answer", status=503, body=b"Service Unavailable"))

    def throttle() -> None:
        yahoo.fault(Fault("answer", status=429, times=1))

    for moment, action in ((DOWN, go_down), (MENDED, yahoo.mend), (THROTTLED, throttle)):
        clock.at(moment, action)
    clock.until(at("09:28"))
    story.supervise(until=ALONE)
    clock.until(WATCHED)
    story.supervise(until=at("13:04"))
    story.close()
    clock.until(at("13:20"))
    story.close()
    story.close()
    story.look()
    clock.until(at("02:10", "2025-11-29"))
    story.look()
    story.look()
    clock.until(at("09:30", MONDAY))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEDGE_POLL_RUN_MINUTES", "12")
        story.supervise(until=at("09:31", MONDAY))


# -- the session -----------------------------------------------------------------------------------


def test_the_schedule_starts_a_run_when_nobody_polls_and_says_when_the_market_opens(
    story: Story,
) -> None:
    nobody = "the session is open and nobody polls"
    assert [(moment.astimezone(NEW_YORK), reason) for moment, reason in story.ticks] == [
        (at("12:00", "2025-11-27"), "XNYS is closed; it opens Fri 2025-11-28 09:30 EST"),
        (at("09:28"), "XNYS is closed; it opens Fri 2025-11-28 09:30 EST"),
        (at("09:29"), "XNYS is closed; it opens Fri 2025-11-28 09:30 EST"),
        (at("09:30"), nobody),
        (at("10:27"), nobody),  # the time box ends before the first poll it would not hold
        (WATCHED, nobody),
        (at("12:52"), nobody),
        (at("13:02"), "XNYS is closed; it opens Mon 2025-12-01 09:30 EST"),
        (at("13:03"), "XNYS is closed; it opens Mon 2025-12-01 09:30 EST"),
        (at("09:30", MONDAY), nobody),
    ]
    runs = story.instance.get_run_records(dg.RunsFilter(job_name="poll_market"))
    assert {record.dagster_run.status for record in runs} == {dg.DagsterRunStatus.SUCCESS}


def test_every_bar_is_there_or_a_gap_with_its_cause(story: Story) -> None:
    bars, gaps = story.rows(RAW_QUOTES), story.rows(GAPS)
    assert sorted([*bars["bar_ts"], *gaps["bar_ts"]]) == BARS
    (gap,) = gaps.to_dict("records")
    assert (gap["bar_ts"], gap["cause"]) == (NEVER_FILLED, "vendor_hole")
    session = SessionCalendar(bar_seconds=300).session(HALF_DAY)
    truth = true_bars(SYMBOL, session).rename(columns={"ts": "bar_ts"})
    columns = ["bar_ts", "open", "high", "low", "close", "volume"]
    truth = truth.loc[truth["bar_ts"] != NEVER_FILLED, columns].reset_index(drop=True)
    assert_frame_equal(bars[columns], truth, check_exact=True, check_dtype=False)


def test_every_bar_is_predicted_once_when_it_arrives_or_is_caught_up(story: Story) -> None:
    served = story.rows(PREDICTION_LOG, role="served").set_index("bar_ts")
    assert list(served.index) == [bar for bar in BARS if bar != NEVER_FILLED]
    assert list(story.rows(PREDICTION_LOG, role="baseline")["bar_ts"]) == list(served.index)
    assert set(served["model_version"]) == {1}
    late = served.loc[FILLED_LATER]
    assert (late["mode"], late["reason"]) == ("catch_up", LATE_BAR)
    assert served.drop(FILLED_LATER)["prediction"].notna().all()
    late = served.pop("mode") == "catch_up"
    caught_up = [f"{bar.astimezone(NEW_YORK):%H:%M}" for bar in served.index[late]]
    assert caught_up == [
        *("10:15",),  # the hole that was filled
        *("10:40", "10:45", "10:50", "10:55"),  # the outage
        *("11:25", "11:30", "11:35", "11:40"),  # nobody polled
        *("12:15",),  # a minute of patience after the 429
    ]
    after = (served["decided_at"] - served.index)[~late]
    assert after.pop(WATCHED - 7 * MINUTE) == BAR + 2 * MINUTE  # polled at once, not on the grid
    assert set(after) == {ARRIVAL}
    # what was missing came with the first answer
    (first,) = set(served.loc[DOWN : DOWN + 2 * BAR, "decided_at"])
    assert MENDED < first < MENDED + BAR
    assert set(served.loc[ALONE : ALONE + 2 * BAR, "decided_at"]) == {WATCHED}


def test_every_outcome_has_matured(story: Story) -> None:
    outcomes, bars = story.rows(OUTCOMES), story.rows(RAW_QUOTES)
    assert outcomes["bar_ts"].tolist() == bars["bar_ts"].tolist()
    unknown = outcomes["status"] == "unlabelable"
    assert outcomes.loc[unknown, "bar_ts"].tolist() == BARS[32:]
    assert set(outcomes.loc[unknown, "reason"]) == {"crosses_close"}
    closes = dict(zip(bars["bar_ts"], bars["close"], strict=True))
    known = outcomes[~unknown]
    assert known["exit_price"].tolist() == [closes[bar + 10 * BAR] for bar in known["bar_ts"]]


def test_the_features_predictions_and_outcomes_are_those_of_a_replay_of_the_bars(
    story: Story, tmp_path: Path
) -> None:
    folder = tmp_path / "replay"
    shutil.copytree(story.folder, folder)
    for table in (FEATURE_ROWS, PREDICTION_LOG, OUTCOMES):
        shutil.rmtree(folder / table.name / f"session={HALF_DAY}")
    replay = deployment_in(
        folder,
        FakeMarket(delay=YahooSource.delay),  # nobody asks it
        story.clock,
        (SYMBOL,),
        HEDGE_MODE="replay",
        HEDGE_BAR_SECONDS=300,
    )
    stages.build_features(replay, HALF_DAY)
    stages.log_predictions(replay, HALF_DAY)
    stages.mature_outcomes(replay, HALF_DAY)
    assert_same_session(story.store, replay.store, HALF_DAY, ignoring=())


# -- what the UIs show ---------------------------------------------------------------------------


def test_the_runs_say_who_did_not_answer_and_when_it_answered_again(story: Story) -> None:
    assert [line for line in story.said("poll_market") if not line.endswith(" polls")] == [
        "SIMQ does not answer: SIMQ: Yahoo answers 503",
        "SIMQ answers again after 20 min; this poll stored 5 bars",
        "SIMQ does not answer: SIMQ: Yahoo asked for patience; 60 s to go",
        "SIMQ answers again after 5 min; this poll stored 2 bars",
    ]


def test_materializations_follow_the_session_and_say_what_is_stored(story: Story) -> None:
    records = story.instance.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey("raw_quotes"), asset_partitions=[HALF_DAY]), limit=100
    ).records
    made = [record.asset_materialization for record in records[::-1]]
    shown = pd.DataFrame(
        {name: value.value for name, value in found.metadata.items()}
        for found in made
        if found is not None and "last_bar" in found.metadata
    )
    assert len(shown) > 9  # every 15 minutes of polls that brought bars
    assert shown["dagster/row_count"].is_monotonic_increasing
    assert shown["dagster/row_count"].iloc[-1] == shown["new_rows"].sum() == len(BARS) - 1
    assert pd.to_datetime(shown["last_bar"]).iloc[-1] == BARS[-1]
    assert set(shown["lag_seconds"]) == {91.0}  # the median, whatever the outage
    assert shown["failed_answers"].sum() == 5  # four of the outage, and the 429


# -- the close, the training, the next session -----------------------------------------------------


def test_the_session_is_closed_once_when_it_has_settled(story: Story) -> None:
    closed = "every session that is over is closed"
    assert story.closing == [closed, f"{HALF_DAY} is over and not closed yet", closed]
    brought = "0 late bars, 1 gaps, 0 predictions, 0 outcomes"
    assert f"{HALF_DAY} closed: {brought}" in story.said("close_session")
    folds = story.store.read(PROMOTIONS)
    folds = folds[(folds["kind"] == "fold") & (folds["session"] == HALF_DAY)]
    assert len(folds) == 1
    scores = story.rows(PERFORMANCE)
    assert scores.loc[scores["role"] == "served", "predictions"].sum() == len(BARS) - 2
    for table in (RAW_QUOTES, FEATURE_ROWS, PREDICTION_LOG, OUTCOMES):
        assert len(list((story.folder / table.name / f"session={HALF_DAY}").iterdir())) == 1


def test_the_sensor_asks_for_a_training_at_its_hour_and_only_once(story: Story) -> None:
    counted = story.rows(OUTCOMES)["status"].isin(["up", "down"]).sum()
    assert story.sensor == [
        f"SIMQ has {counted} new outcomes, 20 are needed; it waits for 2:00 exchange time",
        f"SIMQ has {counted} new outcomes, 20 are needed",
        "SIMQ has 0 new outcomes, 20 are needed",
    ]
    assert len(story.runs["train_model"]) == 1
    assert story.said("train_model")[0] == "SIMQ: retraining started"
    assert story.said("train_model")[1].startswith("SIMQ: version 2 saved: ")


def test_the_new_version_serves_the_next_bar(story: Story) -> None:
    served = story.rows(PREDICTION_LOG, MONDAY, "served")
    assert served["bar_ts"].tolist() == [pd.Timestamp(at("09:30", MONDAY)), at("09:35", MONDAY)]
    assert set(served["model_version"]) == {2}
    assert served["prediction"].notna().all()
    assert set(served["mode"]) == {"live"}
    baseline = story.rows(PREDICTION_LOG, MONDAY, "baseline")
    assert set(baseline["model_version"]) == {1}


def test_mlflow_has_both_versions_and_how_the_first_one_did(story: Story) -> None:
    client = story.registry.client
    found = client.search_model_versions(f"name='{model_name(SYMBOL)}'")
    versions = {version.tags[VERSION_TAG]: version for version in found}
    assert set(versions) == {"1", "2"}
    metrics = client.get_run(versions["1"].run_id).data.metrics
    scores = story.rows(PERFORMANCE)
    assert (
        metrics["live_total/labels"] == scores.loc[scores["role"] == "served", "labels"].sum() > 0
    )


def test_nobody_but_yahoo_was_asked(story: Story) -> None:
    assert story.yahoo.strangers == []
