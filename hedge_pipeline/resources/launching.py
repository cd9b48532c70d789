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
from dagster._grpc.types import ExecuteRunArgs

from hedge_pipeline.logs import first_line
from hedge_pipeline.processes import REQUESTS

if TYPE_CHECKING:
    from dagster._core.launcher.base import LaunchRunContext

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
