"""The retraining sensor on a real instance: whom it asks for, why not, and what it survives."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

# there is no public way to make a run that is queued: it must say which server launches it
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)

from hedge_pipeline import stages
from hedge_pipeline.assets import pictures
from hedge_pipeline.opening import open_deployment
from hedge_pipeline.resources.queueing import LANE
from hedge_pipeline.sensors import retraining
from hedge_pipeline.settings import load_settings
from hedge_pipeline_tests.runs import (
    SESSIONS,
    code_location,
    failures,
    loop_at,
    shown,
    train,
    verdicts,
)

SYMBOLS = ("SIMQ", "SIMN")
NIGHT = "2024-01-09T07:30:00+00:00"  # 02:30 in New York, after the fifth session
EVENING = "2024-01-08T23:30:00+00:00"
SUMMER_NIGHT = "2024-07-09T06:30:00+00:00"
SAMPLES = {"SIMQ": 1886, "SIMN": 1860}  # up and down outcomes of five sessions


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five matured sessions of a live deployment, no model yet."""
    folder = tmp_path_factory.mktemp("sensor") / "data"
    with pytest.MonkeyPatch.context() as patch:
        point_to(patch, folder)
        deployment = open_deployment(load_settings())
        for session in SESSIONS[:5]:
            stages.collect(deployment, session)
            stages.build_features(deployment, session)
            stages.log_predictions(deployment, session)
            stages.mature_outcomes(deployment, session)
    return folder


@pytest.fixture
def store(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The filled store in a folder of the test's own; MLflow is down, nothing here needs it."""
    shutil.copytree(filled, tmp_path / "data")
    point_to(monkeypatch, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        yield opened


def point_to(patch: pytest.MonkeyPatch, folder: Path) -> None:
    for name in ("HEDGE_SOURCE", "HEDGE_SYMBOLS", "RETRAIN_HOUR", "MIN_SAMPLES_FOR_RETRAIN"):
        patch.delenv(name, raising=False)
    patch.setenv("HEDGE_DATA_URL", str(folder))
    patch.setenv("HEDGE_MODE", "live")
    patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")


def evaluate(instance: dg.DagsterInstance, now: str = NIGHT) -> dg.SensorExecutionData:
    """One tick of the committed sensor at an ISO time, with a new resource."""
    definitions = code_location()
    with dg.build_sensor_context(
        instance=instance, definitions=definitions, resources={"loop": loop_at(now)}
    ) as context:
        return definitions.resolve_sensor_def("retraining_sensor").evaluate_tick(context)


def asked(instance: dg.DagsterInstance, now: str = NIGHT) -> tuple[str | None, ...]:
    """Symbols a tick asks for."""
    return tuple(request.partition_key for request in evaluate(instance, now).run_requests or ())


def why_not(instance: dg.DagsterInstance, now: str = NIGHT) -> str:
    """The reason of a tick that asks for nothing."""
    tick = evaluate(instance, now)
    assert not tick.run_requests
    return str(tick.skip_message)


def training(
    instance: dg.DagsterInstance, symbol: str, status: dg.DagsterRunStatus
) -> dg.DagsterRun:
    """A run of the job as the daemon would have created it."""
    job = code_location().resolve_job_def("train_model")
    tags = {**job.run_tags, "dagster/partition": symbol}
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("hedge_pipeline"), "location")
    return instance.create_run_for_job(
        job_def=job,
        tags=tags,
        status=status,
        remote_job_origin=RemoteJobOrigin(repository, "train_model"),
    )


# -- asking ------------------------------------------------------------------------------------


def test_with_enough_outcomes_every_symbol_is_asked_for(
    store: Path, instance: dg.DagsterInstance
) -> None:
    assert asked(instance) == SYMBOLS


def test_a_request_has_no_run_key_so_that_a_failed_training_can_be_asked_for_again(
    store: Path, instance: dg.DagsterInstance
) -> None:
    requests = evaluate(instance).run_requests or []
    assert [request.run_key for request in requests] == [None, None]


@pytest.mark.parametrize("position", [0, 1])
def test_a_request_says_why(store: Path, instance: dg.DagsterInstance, position: int) -> None:
    requests = evaluate(instance).run_requests or []
    symbol = SYMBOLS[position]
    reason = requests[position].tags["hedge/reason"]
    assert reason == f"{symbol} has {SAMPLES[symbol]} new outcomes, 100 are needed"


def test_the_run_of_a_request_is_seen_by_the_next_tick(
    store: Path, instance: dg.DagsterInstance
) -> None:
    """The request becomes a run as the daemon makes it: job tags, request tags, partition."""
    job = code_location().resolve_job_def("train_model")
    request = (evaluate(instance).run_requests or [])[0]
    instance.create_run_for_job(
        job_def=job,
        tags={**job.run_tags, **request.tags},
        status=dg.DagsterRunStatus.STARTING,
    )
    assert asked(instance) == ("SIMN",)


# -- not asking --------------------------------------------------------------------------------


def test_an_empty_store_has_no_samples(
    tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_to(monkeypatch, tmp_path / "nothing")
    assert (
        why_not(instance)
        == "SIMQ has 0 new outcomes, 100 are needed; SIMN has 0 new outcomes, 100 are needed"
    )


def test_of_many_symbols_a_tick_names_the_first_ones_and_the_number_of_the_others(
    tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_to(monkeypatch, tmp_path / "nothing")
    monkeypatch.setenv("HEDGE_SYMBOLS", ",".join(f"SIM{number}" for number in range(20)))
    *named, rest = why_not(instance).split("; ")
    assert named == [f"SIM{x} has 0 new outcomes, 100 are needed" for x in range(8)]
    assert rest == "and 12 more symbols, see the log of this tick"


def test_too_few_outcomes_are_counted(
    store: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIN_SAMPLES_FOR_RETRAIN", "5000")
    assert why_not(instance) == "; ".join(
        f"{symbol} has {SAMPLES[symbol]} new outcomes, 5000 are needed" for symbol in SYMBOLS
    )


def test_enough_outcomes_of_too_few_sessions_are_not_enough(
    store: Path, instance: dg.DagsterInstance
) -> None:
    shutil.rmtree(store / "outcomes" / f"session={SESSIONS[0]}")
    expected = "4 of the 5 sessions a training needs"
    assert why_not(instance) == f"SIMQ has {expected}; SIMN has {expected}"


def test_before_the_hour_it_waits(store: Path, instance: dg.DagsterInstance) -> None:
    assert why_not(instance, EVENING) == "; ".join(
        f"{symbol} has {SAMPLES[symbol]} new outcomes, 100 are needed; it waits for 2:00 "
        "exchange time"
        for symbol in SYMBOLS
    )


def test_the_hour_is_the_exchange_s_in_summer_too(
    store: Path, instance: dg.DagsterInstance
) -> None:
    assert asked(instance, SUMMER_NIGHT) == SYMBOLS
    assert asked(instance, SUMMER_NIGHT.replace("T06", "T07")) == ()


@pytest.mark.parametrize(
    ("since", "now", "wanted"),
    [
        ("2024-01-09T06:59:58+00:00", "2024-01-09T08:00:01+00:00", SYMBOLS),
        ("2024-01-09T03:00:00+00:00", "2024-01-09T14:00:00+00:00", SYMBOLS),
        ("2024-01-09T07:10:00+00:00", "2024-01-09T08:10:00+00:00", ()),
    ],
)
def test_an_hour_that_passed_between_two_ticks_is_made_up_for(
    store: Path,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    since: str,
    now: str,
    wanted: tuple[str, ...],
) -> None:
    before = dt.datetime.fromisoformat(since).timestamp()
    monkeypatch.setattr(dg.SensorEvaluationContext, "last_tick_completion_time", before)
    assert asked(instance, now) == wanted


def test_without_an_hour_any_is_right(
    store: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETRAIN_HOUR", "")
    assert asked(instance, EVENING) == SYMBOLS


def test_a_session_that_is_not_over_does_not_count(
    store: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETRAIN_HOUR", "")
    during_the_fifth = "2024-01-08T20:59:00+00:00"
    assert "SIMQ has 4 of the 5 sessions" in why_not(instance, during_the_fifth)


# -- trainings under way -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "status",
    [
        dg.DagsterRunStatus.QUEUED,
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    ],
)
@pytest.mark.parametrize(("busy", "free"), [SYMBOLS, SYMBOLS[::-1]])
def test_a_training_under_way_suppresses_only_its_own_symbol(
    store: Path, instance: dg.DagsterInstance, status: dg.DagsterRunStatus, busy: str, free: str
) -> None:
    training(instance, busy, status)
    assert asked(instance) == (free,)


def test_with_every_symbol_in_training_the_tick_says_so(
    store: Path, instance: dg.DagsterInstance
) -> None:
    training(instance, "SIMQ", dg.DagsterRunStatus.STARTED)
    training(instance, "SIMN", dg.DagsterRunStatus.QUEUED)
    expected = "SIMQ is being trained; SIMN is being trained"
    assert why_not(instance) == expected


@pytest.mark.parametrize(
    "status",
    [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.SUCCESS],
)
def test_a_training_that_ended_suppresses_nothing(
    store: Path, instance: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    training(instance, "SIMQ", status)
    assert asked(instance) == SYMBOLS


def test_a_run_of_another_lane_suppresses_nothing(
    store: Path, instance: dg.DagsterInstance
) -> None:
    instance.create_run_for_job(
        job_def=code_location().resolve_job_def("train_model"),
        tags={LANE: "poll", "dagster/partition": "SIMQ"},
        status=dg.DagsterRunStatus.STARTED,
    )
    assert asked(instance) == SYMBOLS


def test_a_training_left_behind_by_a_power_loss_is_forgotten_after_a_day(
    store: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    training(instance, "SIMQ", dg.DagsterRunStatus.STARTED)

    class Tomorrow(dt.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return dt.datetime.now(tz) + dt.timedelta(hours=25)

    later = SimpleNamespace(datetime=Tomorrow, timedelta=dt.timedelta, UTC=dt.UTC)
    assert asked(instance) == ("SIMN",)
    monkeypatch.setattr(retraining, "dt", later)
    assert asked(instance) == SYMBOLS


# -- after a training --------------------------------------------------------------------------


def test_a_training_that_failed_is_asked_for_again(
    store: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("hedge_pipeline.stages.training.fit", out_of_memory)
        result = train(instance, "SIMQ", now=NIGHT)
    assert len(failures(result)) == 1
    (run,) = instance.get_runs()
    assert run.status is dg.DagsterRunStatus.FAILURE
    assert asked(instance) == SYMBOLS


@pytest.mark.parametrize(("symbol", "other"), [SYMBOLS, SYMBOLS[::-1]])
def test_a_trained_symbol_is_not_asked_for_again_and_the_other_one_still_is(
    store: Path, instance: dg.DagsterInstance, symbol: str, other: str
) -> None:
    assert train(instance, symbol, now=NIGHT).success
    assert asked(instance) == (other,)


def test_a_rejected_candidate_is_not_asked_for_again(
    store: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "spread: the model says the same of every row"
    monkeypatch.setattr("hedge_pipeline.stages.training.guard", lambda *_: reason)
    for symbol in SYMBOLS:
        result = train(instance, symbol, now=NIGHT)
        assert result.success
        assert verdicts(result)["model_files_are_untouched"].passed
        verdict = shown(result)[("champion_model", symbol)]["verdict"]
        assert verdict.startswith("version 1, reject: ") and reason in verdict
    assert (
        why_not(instance)
        == "SIMQ has 0 new outcomes, 100 are needed; SIMN has 0 new outcomes, 100 are needed"
    )


def said(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    """What the run's steps told in their own words."""
    records = [entry for entry in instance.all_logs(run_id) if not entry.is_dagster_event]
    return [entry.user_message for entry in records]


def test_a_training_is_told_line_by_line(store: Path, instance: dg.DagsterInstance) -> None:
    lines = said(instance, train(instance, "SIMQ", now=NIGHT).run_id)
    saved = f"{SAMPLES['SIMQ']} rows of 5 sessions to {SESSIONS[4]}"
    assert lines[0] == "SIMQ: retraining started"
    assert lines[1].startswith(f"SIMQ: version 1 saved: {saved}, guards ")
    assert lines[-1] == "SIMQ: no prediction that counts as evidence has matured yet"
    again = said(instance, train(instance, "SIMQ", now=NIGHT).run_id)
    expected = f"has learned from these {SAMPLES['SIMQ']} rows already; nothing new is saved"
    assert again[1] == f"SIMQ: version 1 {expected}"


def test_an_accuracy_is_told_with_its_interval_and_the_base_rate() -> None:
    shown = {
        "accuracy": 0.5312,
        "accuracy_low": 0.498,
        "accuracy_high": 0.5651,
        "labels": 1886,
        "base_rate_accuracy": 0.5049,
    }
    assert pictures.scored_in_words(shown) == (
        "accuracy 0.531 [0.498, 0.565] of 1886 outcomes, base rate 0.505"
    )


def test_outcomes_of_a_new_session_are_asked_for_after_a_training(
    store: Path, instance: dg.DagsterInstance
) -> None:
    assert train(instance, "SIMQ", now=NIGHT).success
    deployment = open_deployment(load_settings())
    stages.collect(deployment, SESSIONS[5])
    stages.build_features(deployment, SESSIONS[5])
    stages.mature_outcomes(deployment, SESSIONS[5])
    requests = evaluate(instance, "2024-01-10T07:30:00+00:00").run_requests or []
    reasons = {request.partition_key: request.tags["hedge/reason"] for request in requests}
    assert set(reasons) == set(SYMBOLS)
    new = int(reasons["SIMQ"].split()[2])
    assert 300 < new < 380  # one session of it, not six


def test_a_restart_changes_no_answer(store: Path, instance: dg.DagsterInstance) -> None:
    assert train(instance, "SIMQ", now=NIGHT).success
    before = evaluate(instance)
    code_location.cache_clear()
    with dg.DagsterInstance.ephemeral() as restarted:
        after = evaluate(restarted)
    assert after.run_requests == before.run_requests
    assert (after.cursor, after.skip_message) == (before.cursor, before.skip_message)
    assert asked(instance) == ("SIMN",)
