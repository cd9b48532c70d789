"""The jobs say what a user can mend in one line."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from hedge_pipeline.replay import MARKER
from hedge_pipeline_tests.replays import environment
from hedge_pipeline_tests.runs import QUIET, code_location, failures


@pytest.mark.parametrize("name", ["poll_market", "close_session", "bootstrap", "housekeeping"])
def test_a_job_on_the_store_of_a_replay_fails_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for variable, value in environment(HEDGE_DATA_URL=str(tmp_path / "data")).items():
        monkeypatch.setenv(variable, value)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / MARKER).write_text("{}")
    with dg.DagsterInstance.ephemeral() as instance:
        done = (
            code_location()
            .resolve_job_def(name)
            .execute_in_process(instance=instance, run_config=QUIET, raise_on_error=False)
        )
    assert failures(done) == [f"{tmp_path / 'data'} holds a replay: set HEDGE_MODE=replay"]
