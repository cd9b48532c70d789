"""The schedules on a real instance: when they ask for a run, when not, and why."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest

# there is no public way to make a run that is queued: it must say which server launches it
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)

from hedge_pipeline import jobs, stages
from hedge_pipeline.jobs import UNFINISHED
from hedge_pipeline.live.supervision import Heartbeat
from hedge_pipeline.market.tables import PREDICTION_LOG, RAW_QUOTES
from hedge_pipeline.opening import open_deployment
from hedge_pipeline.resources.loop import RegistryResource, SourceResource, StoreResource
from hedge_pipeline.resources.queueing import POLL_LANE
from hedge_pipeline.resources.upkeep import why_it_failed
from hedge_pipeline.schedules import build_schedules
from hedge_pipeline.settings import load_settings
from hedge_pipeline.stages import Deployment
from hedge_pipeline.store import Store, StoreError
from hedge_pipeline_tests.markets import FakeClock
from hedge_pipeline_tests.runs import SESSION_ASSETS, LoopAt, code_location, failures, loop_at

ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
EACH = pytest.mark.parametrize("name", ["polling_schedule", "close_session_schedule"])


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty live store round the clock; MLflow is down, nothing here needs it."""
    for name in ("HEDGE_SEED", "POLLING_INTERVAL", "RETRAIN_HOUR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HEDGE_DATA_URL", str(tmp_path / "data"))
    monkeypatch.setenv("HEDGE_MODE", "live")
    monkeypatch.setenv("HEDGE_SOURCE", "simulated")
    monkeypatch.setenv("HEDGE_SYMBOLS", "SIMQ")
    monkeypatch.setenv("HEDGE_CALENDAR", "24/7")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    """A schedule opens its instance from a reference, so it cannot be an ephemeral one."""
    with dg.DagsterInstance.local_temp(str(tmp_path_factory.mktemp("dagster"))) as opened:
        yield opened


@pytest.fixture
def instance(on_disk: dg.DagsterInstance) -> Iterator[dg.DagsterInstance]:
    yield on_disk
    for run in on_disk.get_runs():
        on_disk.delete_run(run.run_id)


def schedule(name: str) -> dg.ScheduleDefinition:
    return {found.name: found for found in build_schedules(load_settings())}[name]


def tick(
    instance: dg.DagsterInstance, now: dt.datetime, name: str = "polling_schedule"
) -> dg.ScheduleExecutionData:
    """One tick at a time, with a new resource."""
    context = dg.build_schedule_context(
        instance=instance,
        scheduled_execution_time=now,
        resources={"loop": loop_at(now.isoformat())},
    )
    with context:
        return schedule(name).evaluate_tick(context)


def why_not(instance: dg.DagsterInstance, now: dt.datetime, name: str = "polling_schedule") -> str:
    found = tick(instance, now, name)
    assert not found.run_requests
    return str(found.skip_message)


def asked(instance: dg.DagsterInstance, now: dt.datetime, name: str = "polling_schedule") -> str:
    """The reason of a tick that asks for one run."""
    (request,) = tick(instance, now, name).run_requests or []
    assert request.run_key is None  # a run that failed may be asked for again
    return str(request.tags["hedge/reason"])


def run_of(instance: dg.DagsterInstance, job: str, status: dg.DagsterRunStatus) -> dg.DagsterRun:
    """A run of a job as the daemon would have created it."""
    definition = code_location().resolve_job_def(job)
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("hedge_pipeline"), "location")
    return instance.create_run_for_job(
        job_def=definition,
        tags=definition.run_tags,
        status=status,
        remote_job_origin=RemoteJobOrigin(repository, job),
    )


def created(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dt.datetime:
    record = instance.get_run_record_by_id(run.run_id)
    assert record is not None
    return record.create_timestamp


# -- as committed ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calendar", "timezone"),
    [("XNYS", "America/New_York"), ("24/7", "UTC"), ("XTKS", "Asia/Tokyo")],
)
@EACH
def test_a_schedule_runs_in_exchange_time(
    monkeypatch: pytest.MonkeyPatch, name: str, calendar: str, timezone: str
) -> None:
    monkeypatch.setenv("HEDGE_CALENDAR", calendar)
    assert schedule(name).execution_timezone == timezone


@pytest.mark.parametrize(
    ("name", "cron", "job"),
    [
        ("polling_schedule", "* * * * *", "poll_market"),
        ("close_session_schedule", "*/10 * * * *", "close_session"),
    ],
)
def test_a_schedule_starts_its_job(name: str, cron: str, job: str) -> None:
    found = schedule(name)
    assert (found.cron_schedule, found.job_name) == (cron, job)
    committed = code_location().resolve_schedule_def(name)
    assert (committed.cron_schedule, committed.job_name) == (cron, job)


@pytest.mark.parametrize(
    ("value", "status"),
    [("false", dg.DefaultScheduleStatus.STOPPED), ("true", dg.DefaultScheduleStatus.RUNNING)],
)
@EACH
def test_schedules_start_by_themselves_only_in_the_service(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, status: dg.DefaultScheduleStatus
) -> None:
    monkeypatch.setenv("HEDGE_AUTOSTART", value)
    assert schedule(name).default_status is status


# -- polling -----------------------------------------------------------------------------------


def test_outside_the_session_the_tick_names_the_next_opening(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEDGE_CALENDAR", "XNYS")
    now = dt.datetime(2024, 11, 29, 18, 30, tzinfo=dt.UTC)
    assert why_not(instance, now) == "XNYS is closed; it opens Mon 2024-12-02 09:30 EST"


def test_inside_the_session_a_poll_run_is_asked_for(instance: dg.DagsterInstance) -> None:
    now = dt.datetime.now(dt.UTC)
    assert asked(instance, now) == "the session is open and nobody polls"


@pytest.mark.parametrize(("minutes", "seconds"), [("60", "4200"), ("1440", "87000")])
def test_a_poll_run_may_last_longer_than_its_time_box_but_not_for_ever(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, minutes: str, seconds: str
) -> None:
    monkeypatch.setenv("HEDGE_POLL_RUN_MINUTES", minutes)
    (request,) = tick(instance, NIGHT, "polling_schedule").run_requests or []
    assert request.tags["dagster/max_runtime"] == seconds


def test_the_run_of_a_request_is_seen_by_the_next_tick(instance: dg.DagsterInstance) -> None:
    (request,) = tick(instance, dt.datetime.now(dt.UTC)).run_requests or []
    job = code_location().resolve_job_def("poll_market")
    run = instance.create_run_for_job(
        job_def=job,
        tags={**job.run_tags, **request.tags},
        status=dg.DagsterRunStatus.STARTING,
    )
    assert why_not(instance, created(instance, run)) == f"run {run.run_id[:8]} is polling"


@pytest.mark.parametrize("status", UNFINISHED)
def test_a_young_run_is_left_alone_whatever_its_status(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    run = run_of(instance, "poll_market", status)
    assert why_not(instance, created(instance, run)) == f"run {run.run_id[:8]} is polling"


@pytest.mark.parametrize("status", ENDED)
def test_a_run_that_ended_is_followed_by_a_new_one(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    run = run_of(instance, "poll_market", status)
    assert asked(instance, created(instance, run)) == "the session is open and nobody polls"


@pytest.mark.parametrize("status", UNFINISHED)
def test_a_dead_run_is_reported_as_failed_and_replaced(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    run = run_of(instance, "poll_market", status)
    later = created(instance, run) + dt.timedelta(minutes=10)
    reason = f"run {run.run_id[:8]} is dead, nobody has polled yet; another one starts"
    assert asked(instance, later) == reason
    failed = instance.get_run_by_id(run.run_id)
    assert failed is not None
    assert failed.status is dg.DagsterRunStatus.FAILURE
    assert why_it_failed(instance, run.run_id) == (
        "taken for dead, it gave no sign of life (nobody has polled yet)"
    )
    # the next tick starts anew, the one after it has nothing to report
    assert asked(instance, later) == "the session is open and nobody polls"


def test_no_run_is_taken_for_dead_while_none_could_give_a_sign_of_life(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(instance, "poll_market", dg.DagsterRunStatus.STARTED)
    later = created(instance, run) + dt.timedelta(minutes=10)

    def refuses(_: Store) -> None:
        raise StoreError("the data folder cannot be written: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "check_writable", refuses)
        assert why_not(instance, later) == (
            "the data folder cannot be written: No space left on device; no run is taken for dead "
            "before that"
        )
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    assert found.status is dg.DagsterRunStatus.STARTED
    assert asked(instance, later).startswith(f"run {run.run_id[:8]} is dead")


def test_a_run_with_a_fresh_heartbeat_lives_however_old_it_is(
    instance: dg.DagsterInstance, data: Path
) -> None:
    run = run_of(instance, "poll_market", dg.DagsterRunStatus.STARTED)
    later = created(instance, run) + dt.timedelta(minutes=50)
    store = Store(str(data))
    Heartbeat(run.run_id, later.isoformat(), later.date().isoformat()).write(store)
    assert why_not(instance, later + dt.timedelta(seconds=180)) == (
        f"run {run.run_id[:8]} is polling"
    )
    assert "is dead" in asked(instance, later + dt.timedelta(seconds=181))


def test_a_dead_run_is_not_told_what_another_one_does(
    instance: dg.DagsterInstance, data: Path
) -> None:
    dead, lives = (run_of(instance, "poll_market", dg.DagsterRunStatus.STARTED) for _ in range(2))
    later = created(instance, lives) + dt.timedelta(minutes=10)
    Heartbeat(lives.run_id, later.isoformat(), later.date().isoformat()).write(Store(str(data)))
    assert why_not(instance, later) == f"run {lives.run_id[:8]} is polling"
    at = later.isoformat(timespec="seconds")
    assert why_it_failed(instance, dead.run_id) == (
        f"taken for dead, it gave no sign of life (the last poll, of {lives.run_id[:8]}, was at "
        f"{at})"
    )


def test_several_dead_runs_are_all_reported_and_one_is_started(
    instance: dg.DagsterInstance,
) -> None:
    runs = [run_of(instance, "poll_market", dg.DagsterRunStatus.STARTED) for _ in range(3)]
    assert "is dead" in asked(instance, created(instance, runs[-1]) + dt.timedelta(minutes=10))
    left = instance.get_runs(dg.RunsFilter(tags=POLL_LANE, statuses=UNFINISHED))
    assert left == []


def test_runs_of_other_jobs_are_none_of_its_business(instance: dg.DagsterInstance) -> None:
    for job in ("close_session", "train_model"):
        run = run_of(instance, job, dg.DagsterRunStatus.STARTED)
    now = created(instance, run) + dt.timedelta(minutes=10)
    assert asked(instance, now) == "the session is open and nobody polls"
    assert len(instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))) == 2


# -- closing -----------------------------------------------------------------------------------

CLOSE = "close_session_schedule"
NIGHT = dt.datetime(2024, 1, 4, 0, 20, tzinfo=dt.UTC)


def fill(*sessions: str) -> None:
    deployment = open_deployment(load_settings())
    for label in sessions:
        stages.collect(deployment, label)


def test_an_empty_store_has_nothing_to_close(instance: dg.DagsterInstance) -> None:
    assert why_not(instance, NIGHT, CLOSE) == "every session that is over is closed"


def test_sessions_that_are_over_are_named(instance: dg.DagsterInstance) -> None:
    fill("2024-01-02", "2024-01-03")
    assert asked(instance, NIGHT, CLOSE) == "2024-01-02, 2024-01-03 are over and not closed yet"
    before_settling = NIGHT - dt.timedelta(minutes=6)
    assert asked(instance, before_settling, CLOSE) == "2024-01-02 is over and not closed yet"


@pytest.mark.parametrize("status", UNFINISHED)
def test_while_a_run_closes_there_is_no_second_one(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    fill("2024-01-03")
    run = run_of(instance, "close_session", status)
    assert why_not(instance, NIGHT, CLOSE) == f"run {run.run_id[:8]} is closing 2024-01-03"


@pytest.mark.parametrize("status", ENDED)
def test_a_close_that_ended_without_success_is_asked_for_again(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    fill("2024-01-03")
    run_of(instance, "close_session", status)
    assert asked(instance, NIGHT, CLOSE) == "2024-01-03 is over and not closed yet"


# -- the jobs they start -------------------------------------------------------------------------


def test_the_close_job_closes_reports_and_is_not_asked_for_again(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEDGE_CALENDAR", "XNYS")
    fill("2024-01-02", "2024-01-03")
    job = code_location(NIGHT.isoformat()).resolve_job_def("close_session")
    result = job.execute_in_process(instance=instance)
    assert result.success
    made = result.get_asset_materialization_events()
    found = {
        (e.step_materialization_data.materialization.asset_key.to_user_string(), e.partition)
        for e in made
    }
    for label in ("2024-01-02", "2024-01-03"):
        for asset in SESSION_ASSETS:
            assert (asset, label) in found
    assert why_not(instance, NIGHT, CLOSE) == "every session that is over is closed"


def test_the_bootstrap_job_leaves_history_and_first_models_and_shows_both(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, data: Path
) -> None:
    monkeypatch.setenv("HEDGE_CALENDAR", "XNYS")
    job = code_location("2024-01-10T07:30:00+00:00").resolve_job_def("bootstrap")
    config = {"ops": {"collect_history": {"config": {"days": 8}}}}
    result = job.execute_in_process(instance=instance, run_config=config)
    assert result.success
    labels = ("2024-01-02", "2024-01-03", "2024-01-04", "2024-01-05", "2024-01-08", "2024-01-09")
    made = result.get_asset_materialization_events()
    found = {
        (e.step_materialization_data.materialization.asset_key.to_user_string(), e.partition)
        for e in made
    }
    shown = set(SESSION_ASSETS) - {"prediction_log"}
    assert found == {(x, y) for x in shown for y in labels}
    deployment = open_deployment(load_settings())
    assert [deployment.shelf.versions(symbol) for symbol in deployment.symbols] == [(1,)]
    assert deployment.store.sessions(PREDICTION_LOG) == ()


def test_a_bootstrap_that_brought_nothing_has_failed_and_says_why(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEDGE_CALENDAR", "XNYS")
    monkeypatch.setenv("HEDGE_SYMBOLS", "QQQ")
    job = code_location("2024-01-10T07:30:00+00:00").resolve_job_def("bootstrap")
    result = job.execute_in_process(instance=instance, raise_on_error=False)
    assert not result.success
    assert failures(result) == ["the simulated market has no symbol QQQ; its begin with SIM"]


class PassingLoop(LoopAt):
    """The committed resource with a clock that passes only in the loop's sleep."""

    @cached_property
    def deployment(self) -> Deployment:
        clock = FakeClock(dt.datetime.fromisoformat(self.now))
        CLOCKS.append(clock)
        return replace(super().deployment, clock=clock)


CLOCKS: list[FakeClock] = []


def test_the_poll_job_ends_at_its_time_box_and_reports_what_it_stored(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, data: Path
) -> None:
    """A quarter of an hour of a day long gone; the clock passes only in the loop's sleep."""

    def sleep(seconds: float) -> None:
        CLOCKS[-1].sleep(seconds)

    def monotonic() -> float:
        return CLOCKS[-1].now.timestamp()

    monkeypatch.setattr(jobs, "time", SimpleNamespace(sleep=sleep, monotonic=monotonic))
    monkeypatch.setenv("HEDGE_POLL_RUN_MINUTES", "15")
    resource = PassingLoop(
        source=SourceResource(),
        store=StoreResource(),
        registry=RegistryResource(),
        now="2024-01-03T00:02:30+00:00",
    )
    definitions = dg.Definitions(jobs=[jobs.poll_market], resources={"loop": resource})
    result = definitions.resolve_job_def("poll_market").execute_in_process(instance=instance)
    assert result.success
    assert len(Store(str(data)).read(RAW_QUOTES, ["2024-01-03"])) == 17
    made = [
        event.step_materialization_data.materialization
        for event in result.get_asset_materialization_events()
    ]
    assert {found.partition for found in made} == {"2024-01-03"}
    rows = [
        found.metadata["dagster/row_count"].value
        for found in made
        if found.asset_key.to_user_string() == "raw_quotes"
    ]
    assert rows == [2, 15, 17]  # at once, every twelve polls, and at the end
    beat = Heartbeat.read(Store(str(data)))
    assert beat is not None
    assert beat.run_id == result.run_id
