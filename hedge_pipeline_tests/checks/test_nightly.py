"""What the night reports of the checks: one event each, whatever becomes of one of them."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from hedge_pipeline import storage
from hedge_pipeline.checks import nightly
from hedge_pipeline.disks import Disk
from hedge_pipeline.resources.loop import LoopResource
from hedge_pipeline_tests.replays import Demo, demo_in, environment
from hedge_pipeline_tests.runs import code_location, loop_at

NOW = "2024-01-12T08:30:00+00:00"


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return demo_in(tmp_path_factory.getbasetemp())


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home")) as found:
        yield found


@pytest.fixture
def out(demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the demo, named by the environment, on a disk that has room."""
    roomy = lambda *_: (Disk("/", 50 << 30, 100 << 30),)  # noqa: E731
    monkeypatch.setattr(storage, "disks", roomy)
    variables = {"HEDGE_DATA_URL": str(tmp_path / "out"), "HEDGE_MODE": "replay"}
    # an earlier test may have told MLflow another one, which MLflow leaves in the environment
    variables["MLFLOW_TRACKING_URI"] = ""
    for name, value in environment(**variables).items():
        monkeypatch.setenv(name, value)
    return demo.copy(tmp_path / "out")


def told(instance: dg.DagsterInstance) -> dict[str, dg.AssetCheckEvaluation]:
    """The newest evaluation of every check that the instance knows."""
    keys = code_location().resolve_asset_graph().asset_check_keys
    records = instance.event_log_storage.get_latest_asset_check_execution_by_key(list(keys))
    return {key.name: x.evaluation for key, x in records.items() if x.evaluation is not None}


def rows(instance: dg.DagsterInstance) -> int:
    return len(instance.event_log_storage.get_logs_for_run(""))


def test_every_check_but_the_slow_ones_has_a_state_of_this_night(
    out: Path, instance: dg.DagsterInstance
) -> None:
    said = nightly.evaluate(instance, loop_at(NOW))
    found = told(instance)
    known = {key.name for key in code_location().resolve_asset_graph().asset_check_keys}
    assert set(found) == known - nightly.NOT_AT_NIGHT
    assert rows(instance) == len(found)
    # the copy has no MLflow
    assert {name for name, x in found.items() if not x.passed} == {"mlflow_shows_every_version"}
    assert said.startswith(f"{len(found)} evaluated, not passed: mlflow_shows_every_version (")
    assert found["quotes_cover_the_session"].blocking
    assert found["most_bars_are_like_the_training_data"].severity is dg.AssetCheckSeverity.WARN
    assert found["model_files_are_untouched"].metadata["versions"].value == 8


def test_a_session_that_goes_on_is_not_evaluated(out: Path, instance: dg.DagsterInstance) -> None:
    counts = []
    for now in ("2024-01-11T18:00:00+00:00", NOW):
        nightly.evaluate(instance, loop_at(now))
        counts.append(told(instance)["quotes_cover_the_session"].metadata["sessions"].value)
    assert counts == [7, 8]


def test_what_is_wrong_is_shown_the_next_night(out: Path, instance: dg.DagsterInstance) -> None:
    nightly.evaluate(instance, loop_at(NOW))
    (path,) = (out / "models" / "SIMQ").glob("000004-*.ubj")
    path.write_bytes(path.read_bytes()[:-1])
    assert "model_files_are_untouched" in nightly.evaluate(instance, loop_at(NOW))
    assert not told(instance)["model_files_are_untouched"].passed


@dg.asset_check(asset="raw_quotes")
def breaks(loop: LoopResource) -> dg.AssetCheckResult:
    """Raises."""
    raise OSError("no disk\nat line 3")


@dg.asset_check(asset="raw_quotes")
def passes(context: dg.AssetCheckExecutionContext, loop: LoopResource) -> dg.AssetCheckResult:
    """Passes."""
    return dg.AssetCheckResult(passed=not context.has_partition_key)


def test_a_check_that_raises_does_not_pass_and_stops_no_other(
    out: Path, instance: dg.DagsterInstance
) -> None:
    said = nightly.evaluate(instance, loop_at(NOW), [breaks, passes])
    assert said == "2 evaluated, not passed: breaks (no disk)"
    keys = [dg.AssetCheckKey(dg.AssetKey("raw_quotes"), name) for name in ("breaks", "passes")]
    found = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    assert [found[key].evaluation.passed for key in keys] == [False, True]  # type: ignore[union-attr]
