"""Runs launched through the service's keeper: what is asked for, and what a lost run leaves."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.errors import DagsterLaunchFailedError
from dagster._core.launcher import LaunchRunContext
from dagster._core.launcher.base import WorkerStatus
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import serialize_value

from hedge_pipeline.processes import REQUESTS
from hedge_pipeline.resources import launching
from hedge_pipeline.resources.launching import STARTED_BY, KeptRunLauncher, report

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An instance as the project's own `dagster.yaml` makes it."""
    (tmp_path / "dagster.yaml").write_text((REPOSITORY / "dagster.yaml").read_text())
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.delenv(REQUESTS, raising=False)
    return tmp_path


@pytest.fixture
def instance(home: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.get() as opened:
        yield opened


class Keeper:
    """Answers one request after the other with what it was given, and remembers them."""

    def __init__(self, address: str, answers: list[bytes]) -> None:
        self.asked: list[dict[str, Any]] = []
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(address)
        self._server.listen()
        self._thread = threading.Thread(target=self._answer, args=(answers,), daemon=True)
        self._thread.start()

    def _answer(self, answers: list[bytes]) -> None:
        for answer in answers:
            connection, _ = self._server.accept()
            with connection:
                self.asked.append(json.loads(connection.makefile().readline()))
                connection.sendall(answer)


def keeper(home: Path, monkeypatch: pytest.MonkeyPatch, *answers: bytes) -> Keeper:
    address = str(home / "runs.sock")
    monkeypatch.setenv(REQUESTS, address)
    return Keeper(address, list(answers))


def started(instance: dg.DagsterInstance) -> dg.DagsterRun:
    """A run of a job of ours, which no process executes."""
    from dagster._core.code_pointer import ModuleCodePointer
    from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin

    repository = RepositoryPythonOrigin(
        executable_path="python",
        code_pointer=ModuleCodePointer("hedge_pipeline.definitions", "defs"),
        container_image=None,
        entry_point=["dagster"],
        container_context=None,
    )
    return instance.create_run_for_job(
        _job, job_code_origin=JobPythonOrigin("poll_market", repository), status=_STARTED
    )


@dg.job(name="poll_market")
def _job() -> None:
    """Nothing."""


_STARTED = dg.DagsterRunStatus.STARTED


def test_the_project_s_instance_launches_runs_so(instance: dg.DagsterInstance) -> None:
    assert isinstance(instance.run_launcher, KeptRunLauncher)


def test_the_keeper_is_asked_to_execute_the_run(
    instance: dg.DagsterInstance, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keeper(home, monkeypatch, b"true\n")
    run = started(instance)
    instance.run_launcher.launch_run(LaunchRunContext(run, None))
    (asked,) = kept.asked
    assert {name: asked[name] for name in ("what", "run_id", "name")} == {
        "what": "start",
        "run_id": run.run_id,
        "name": "poll_market",
    }
    module, *arguments = asked["command"]
    assert (module, arguments[:2]) == ("dagster", ["api", "execute_run"])
    assert run.run_id in arguments[2]


@pytest.mark.parametrize(("answer", "ended"), [(b"true\n", True), (b"false\n", False)])
def test_the_keeper_is_asked_to_end_the_run_which_is_shown_as_canceling(
    instance: dg.DagsterInstance,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: bytes,
    ended: bool,
) -> None:
    kept = keeper(home, monkeypatch, b"true\n", answer)
    run = started(instance)
    instance.run_launcher.launch_run(LaunchRunContext(run, None))
    monkeypatch.delenv(REQUESTS)  # whoever ends it need not be a process of the service
    assert instance.run_launcher.terminate(run.run_id) is ended
    assert [(x["what"], x["run_id"]) for x in kept.asked[1:]] == [("end", run.run_id)]
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    assert found.status == dg.DagsterRunStatus.CANCELING


def test_a_keeper_that_is_gone_is_one_line(
    instance: dg.DagsterInstance, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REQUESTS, str(home / "nobody.sock"))
    run = started(instance)
    with pytest.raises(DagsterLaunchFailedError) as failed:
        instance.run_launcher.launch_run(LaunchRunContext(run, None))
    assert str(failed.value).startswith("the service starts no runs: ")
    assert instance.run_launcher.terminate(run.run_id) is False


@pytest.mark.parametrize("answer", [b"", b"false\n"], ids=["nonsense", "it is being ended"])
def test_no_answer_or_a_refusal_of_the_keeper_is_no_start(
    instance: dg.DagsterInstance, home: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    keeper(home, monkeypatch, answer)
    with pytest.raises(DagsterLaunchFailedError, match="starts no runs"):
        instance.run_launcher.launch_run(LaunchRunContext(started(instance), None))


def test_without_a_keeper_the_code_server_is_asked(instance: dg.DagsterInstance) -> None:
    with pytest.raises(dg.DagsterInvariantViolationError, match="requires a workspace"):
        instance.run_launcher.launch_run(LaunchRunContext(started(instance), None))


def test_a_run_whose_process_died_is_reported_as_failed_with_the_reason(
    instance: dg.DagsterInstance,
) -> None:
    run = started(instance)
    report(run.run_id, "its process ended (SIGKILL)")
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    assert found.status == dg.DagsterRunStatus.FAILURE
    said = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    assert [event.message for event in said] == ["its process ended (SIGKILL)"]


def test_a_run_that_had_ended_or_is_unknown_is_left_alone(instance: dg.DagsterInstance) -> None:
    run = started(instance)
    instance.report_run_canceled(run)
    report(run.run_id, "its process ended (SIGKILL)")
    report("00000000-0000-0000-0000-000000000000", "its process ended (SIGKILL)")
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    assert found.status == dg.DagsterRunStatus.CANCELED


def test_a_report_that_the_database_does_not_take_fails_in_one_line(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(instance)

    def refuse(*_: object) -> None:
        raise OSError("no database\nwith a trace")

    monkeypatch.setattr(launching, "report", refuse)
    monkeypatch.setattr("sys.argv", ["x", run.run_id, "its process ended (SIGKILL)"])
    with pytest.raises(SystemExit) as told:
        launching._main()
    assert told.value.code == "Dagster's database takes no report: no database"


@pytest.mark.parametrize(
    ("answer", "status"),
    [(b"true\n", "RUNNING"), (b"false\n", "FAILED"), (b"nonsense\n", "RUNNING")],
)
def test_the_keeper_is_asked_whether_the_process_of_a_run_lives(
    instance: dg.DagsterInstance,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: bytes,
    status: str,
) -> None:
    run = started(instance)
    asked = keeper(home, monkeypatch, answer)
    instance.add_run_tags(run.run_id, {STARTED_BY: str(home / "runs.sock")})
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    assert instance.run_launcher.supports_check_run_worker_health
    assert instance.run_launcher.check_run_worker_health(found).status.value == status
    assert asked.asked == [{"what": "look", "run_id": run.run_id}]


def test_of_a_run_that_nobody_knows_nothing_is_said(
    instance: dg.DagsterInstance, home: Path
) -> None:
    """It may be one of `dagster job execute`, or of a keeper that is gone."""
    run = started(instance)
    launcher = instance.run_launcher
    assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
    instance.add_run_tags(run.run_id, {STARTED_BY: str(home / "nobody.sock")})
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    assert launcher.check_run_worker_health(found).status is WorkerStatus.RUNNING


@pytest.mark.parametrize(("known", "status"), [(True, "RUNNING"), (False, "FAILED")])
def test_the_code_server_is_asked_about_a_run_that_it_has_started(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, known: bool, status: str
) -> None:
    class Server:
        def can_cancel_execution(self, request: CanCancelExecutionRequest, timeout: int) -> str:
            assert request.run_id == run.run_id
            return serialize_value(CanCancelExecutionResult(can_cancel=known))

    run = started(instance)
    launcher = instance.run_launcher
    monkeypatch.setattr(launcher, "_get_grpc_client_for_termination", lambda _: Server())
    assert launcher.check_run_worker_health(run).status.value == status
