"""The process that publishes beside a replay: what it answers, and how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hedge_pipeline.opening import open_registry
from hedge_pipeline.resources.publishing import BackgroundRegistry
from hedge_pipeline.resources.registry import MlflowRegistry, model_name
from hedge_pipeline.settings import Settings
from hedge_pipeline.stages import Deployment
from hedge_pipeline_tests.replays import Demo, demo_in, replay_in, settings_in

VERSIONS = frozenset((1, 2, 3, 4))
PATIENCE = 60.0


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return demo_in(tmp_path_factory.getbasetemp())


@pytest.fixture
def settings(demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of a replay of eight sessions of its own, with four versions of each symbol."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return settings_in(demo.copy(tmp_path / "data"))


@pytest.fixture
def deployment(settings: Settings) -> Deployment:
    return replay_in(Path(settings.data_url))


@pytest.fixture
def background(settings: Settings) -> Iterator[BackgroundRegistry]:
    started = BackgroundRegistry(settings)
    yield started
    started.close()


def test_what_was_asked_for_is_there_when_it_has_finished(
    settings: Settings, deployment: Deployment, background: BackgroundRegistry
) -> None:
    for symbol in deployment.symbols:
        background.publish(symbol)
    background.draw("SIMQ")
    background.report("SIMQ")
    background.finish()
    assert background.failure is None
    registry: MlflowRegistry = open_registry(settings)
    assert [registry.versions(symbol) for symbol in deployment.symbols] == [VERSIONS, VERSIONS]
    newest = registry.client.get_model_version(model_name("SIMQ"), "4")
    files = registry.client.list_artifacts(str(newest.run_id))
    assert {"importance.png", "evidence.png"} <= {x.path for x in files}
    runs = registry.client.search_runs([registry.client.get_run(newest.run_id).info.experiment_id])
    assert "SIMQ signals" in {run.info.run_name for run in runs}


def test_a_publication_that_fails_is_kept_until_the_next_of_the_same_completes_it(
    settings: Settings,
) -> None:
    blocked = Path(settings.data_url) / "mlflow.db"
    blocked.mkdir()
    background = BackgroundRegistry(settings)
    background.publish("SIMQ")
    background.report("SIMQ")
    background.finish()
    assert "mlflow.db" in str(background.failure)
    blocked.rmdir()
    background.publish("SIMN")
    background.finish()
    assert "mlflow.db" in str(background.failure)
    background.publish("SIMQ")
    background.finish()
    assert "mlflow.db" in str(background.failure)
    background.report("SIMQ")
    background.finish()
    assert background.failure is None
    background.close()
    assert open_registry(settings).versions("SIMQ") == VERSIONS


def test_a_plot_that_cannot_be_stored_ends_nothing(
    settings: Settings, background: BackgroundRegistry
) -> None:
    background.publish("SIMQ")
    background.finish()
    artifacts = Path(settings.data_url) / "mlartifacts"
    artifacts.rename(artifacts.with_name("away"))
    artifacts.touch()
    background.draw("SIMQ")
    background.finish()
    assert "does not answer" in str(background.failure)
    artifacts.unlink()
    artifacts.with_name("away").rename(artifacts)
    background.draw("SIMQ")
    background.finish()
    assert background.failure is None
    assert list(artifacts.rglob("evidence.png"))


def test_one_that_was_ended_by_somebody_else_is_told(background: BackgroundRegistry) -> None:
    background._process.kill()
    background._process.wait()
    background.publish("SIMQ")
    with pytest.raises(RuntimeError, match="the publisher ended with code -9"):
        background.finish()


def test_closing_ends_it_at_once(background: BackgroundRegistry) -> None:
    for _ in range(50):
        background.draw("SIMQ")
    background.close()
    assert background._process.returncode == -signal.SIGKILL


PARENT = """
import sys, time
from pathlib import Path
from hedge_pipeline.resources.publishing import BackgroundRegistry
from hedge_pipeline_tests.replays import settings_in
background = BackgroundRegistry(settings_in(Path(sys.argv[1])))
print(background._process.pid, flush=True)
background.publish("SIMQ")
time.sleep(100)
"""


def _is_running(process: Path) -> bool:
    try:
        return "Z" not in (process / "stat").read_text().split()[2]
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="the signal at a parent's death is Linux's")
@pytest.mark.parametrize("begun", [True, False], ids=["at work", "before it has begun"])
def test_it_dies_with_whoever_started_it(settings: Settings, begun: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, settings.data_url], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        publisher = Path("/proc", parent.stdout.readline().strip())
        database = Path(settings.data_url) / "mlflow.db"
        deadline = time.monotonic() + PATIENCE
        while begun and not database.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        parent.kill()
    while _is_running(publisher):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert begun or not database.exists()
