"""Runs of jobs as copies of the service's keeper: no imports, and memory for what is new only.

Named in `dagster.yaml`. Where no keeper runs (`dagster dev`, tests, other deployments) a run is
launched by the code server, as always.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

from dagster import DagsterInstance
from dagster._core.errors import DagsterLaunchFailedError
from dagster._core.launcher import DefaultRunLauncher
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult, ExecuteRunArgs
from dagster._serdes import deserialize_value

from hedge_pipeline.logs import first_line
from hedge_pipeline.processes import REQUESTS

if TYPE_CHECKING:
    from dagster import DagsterRun
    from dagster._core.launcher.base import LaunchRunContext
    from dagster._grpc.client import DagsterGrpcClient

STARTED_BY = ".dagster/hedge_keeper"  # tag of a run, hidden in the UI: the keeper's socket
_PATIENCE_SECONDS = 10.0


class KeptRunLauncher(DefaultRunLauncher):
    """Asks the keeper, if there is one, to start and to end runs."""

    def launch_run(self, context: LaunchRunContext) -> None:
        """Starts the process of a run.

        Raises:
            DagsterLaunchFailedError: the keeper does not answer, or is being ended.
        """
        run = context.dagster_run
        address, origin = os.environ.get(REQUESTS), context.job_code_origin
        if not address or origin is None:
            super().launch_run(context)
            return
        arguments = ExecuteRunArgs(
            job_origin=origin,
            run_id=run.run_id,
            instance_ref=self._instance.get_ref(),
            set_exit_code_on_failure=True,  # it may not have been able to say so otherwise
        )
        request = {
            "what": "start",
            "run_id": run.run_id,
            "name": run.job_name,
            "command": ["dagster", *arguments.get_command_args()[-3:]],
        }
        self._instance.add_run_tags(run.run_id, {STARTED_BY: address})
        try:
            if not _ask(address, request):
                raise ValueError("it is being stopped")
        except (OSError, ValueError) as error:
            said = f"the service starts no runs: {error}"
            raise DagsterLaunchFailedError(said) from error  # type: ignore[no-untyped-call]
        self._run_ids.add(run.run_id)

    def terminate(self, run_id: str) -> bool:
        """Sends SIGTERM to the process of a run; False if it has none."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        address = run.tags.get(STARTED_BY)
        if not address:
            return bool(super().terminate(run_id))  # type: ignore[no-untyped-call]
        self._instance.report_run_canceling(run)
        try:
            return _ask(address, {"what": "end", "run_id": run_id})
        except (OSError, ValueError):
            return False

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Whether the daemon's run monitoring may ask; it reports a run as failed that is gone."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the process of a run lives; in doubt it does.

        Keeper or code server know it. What was lost with a code server's container would seem to go
        on for hours and keep others waiting.
        """
        address = run.tags.get(STARTED_BY)
        try:
            if address:
                lives = _ask(address, {"what": "look", "run_id": run.run_id})
            else:
                client = self._get_grpc_client_for_termination(run.run_id)  # type: ignore[no-untyped-call]
                lives = client is None or _is_known(client, run.run_id)
        except Exception as error:  # who does not answer now may do so at the next look
            return CheckRunHealthResult(WorkerStatus.RUNNING, first_line(error))
        if lives:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, "its process is gone")


def _is_known(client: DagsterGrpcClient, run_id: str) -> bool:
    """Whether a code server has a process for the run."""
    answer = client.can_cancel_execution(CanCancelExecutionRequest(run_id=run_id), timeout=10)
    return deserialize_value(answer, CanCancelExecutionResult).can_cancel


def _ask(address: str, request: dict[str, Any]) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PATIENCE_SECONDS)
        connection.connect(address)
        with connection.makefile("rw") as stream:
            stream.write(json.dumps(request) + "\n")
            stream.flush()
            return bool(json.loads(stream.readline()))


def report(run_id: str, why: str) -> None:
    """Reports a run whose process has died as failed, if it has not ended."""
    with DagsterInstance.get() as instance:
        run = instance.get_run_by_id(run_id)
        if run is not None and not run.is_finished:
            instance.report_run_failed(run, why)


def _main() -> None:
    try:
        report(*sys.argv[1:])
    except Exception as error:  # every storage has errors of its own; the keeper has it done again
        sys.exit(f"Dagster's database takes no report: {first_line(error)}")


if __name__ == "__main__":
    _main()
