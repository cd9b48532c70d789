"""The disk turns read-only under the running service, as ext4 does after an error of its device.

There is one story, told by the fixture: the service polls with all it has on one file system, which
takes no write any more, and ends itself; it cannot be started before the file system is mended and
mounted again, and then it goes on.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from hedge_pipeline.market.tables import FEATURE_ROWS, OUTCOMES, PREDICTION_LOG, RAW_QUOTES
from hedge_pipeline_tests.disks import Ext4, ext4
from hedge_pipeline_tests.markets import stored_twice
from hedge_pipeline_tests.receivers import receiving
from hedge_pipeline_tests.replays import hedge
from hedge_pipeline_tests.test_service import REPOSITORY, Service, free_port

pytestmark = pytest.mark.long

END_SECONDS = 60.0
SIZE = 512 << 20
REASON = "Read-only file system"


@dataclass
class Watched(Service):
    """A service that sends alerts and whose output is on another disk, as of a supervisor."""

    receiver: str = ""

    @property
    def log(self) -> Path:
        return self.data.parent.parent / "service.log"

    @property
    def variables(self) -> dict[str, str]:
        return {**super().variables, "HEDGE_ALERT_URLS": self.receiver}


@dataclass(frozen=True)
class Story:
    """What happened; the service was started again.

    Attributes:
        before: predictions, as they could be read while nothing could be written.
        code: exit code of the service.
        log: what it said from the error on.
        alerts: that arrived until then.
        refused: what a start said while the disk was read-only.
        health: what `hedge health --json` said then.
        status: what `hedge status` said then.
        restarted: when it was started on the mended disk.
    """

    service: Service
    before: pd.DataFrame
    code: int
    log: str
    alerts: tuple[str, ...]
    refused: subprocess.CompletedProcess[str]
    health: subprocess.CompletedProcess[str]
    status: subprocess.CompletedProcess[str]
    restarted: pd.Timestamp


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ext4]:
    with ext4(tmp_path_factory.mktemp("errors"), SIZE) as found:
        yield found


@pytest.fixture(scope="module")
def story(disk: Ext4) -> Iterator[Story]:
    service = Watched(disk.folder / "data", free_port(), free_port())
    service.data.mkdir()
    with receiving() as alerts, contextlib.ExitStack() as stack:
        stack.callback(service.kill_everything)
        service.receiver = alerts.url()
        assert "SIMQ: version 1 on " in service.run("bootstrap", "--days", "6")
        service.start()
        service.wait_for("live prediction", 120, lambda: len(service.live_rows()))
        said = service.log.stat().st_size
        disk.fail()
        assert service.process is not None
        code = service.process.wait(END_SECONDS)
        assert service.processes() == {}
        log = service.log.read_text(errors="replace")[said:]
        before = service.live_rows()
        refused, health, status = (
            hedge(*command, cwd=REPOSITORY, **service.variables)
            for command in (("up", "--headless"), ("health", "--json"), ("status",))
        )
        disk.unmount()
        disk.repair()
        disk.mount()
        told = tuple(f"{got['json']['title']}: {got['json']['message']}" for got in alerts.got)
        restarted = pd.Timestamp.now("UTC")
        service.start()
        yield Story(service, before, code, log, told, refused, health, status, restarted)


def test_the_service_says_why_and_ends(story: Story) -> None:
    assert story.code == 1
    assert f"the disk of {story.service.data}/dagster_home takes no write: {REASON}" in story.log


def test_one_alert_says_that_it_has_ended_and_why(story: Story) -> None:
    (alert,) = story.alerts
    assert alert.startswith("hedge_pipeline: the service has ended: the disk of ")
    assert REASON in alert


def test_it_is_not_started_on_a_disk_that_takes_no_write(story: Story) -> None:
    assert story.refused.returncode == 1
    (line,) = story.refused.stderr.splitlines()
    assert f"cannot be written: {REASON}" in line


def test_health_names_the_disk(story: Story) -> None:
    assert story.health.returncode == 1, story.health
    troubles = json.loads(story.health.stdout)["troubles"]
    told = f"the disk of {story.service.data}"
    assert troubles[0]["message"].startswith(told), troubles
    assert f" takes no write: {REASON}: " in troubles[0]["message"]
    assert troubles[0]["grave"]


def test_what_is_there_can_be_read(story: Story) -> None:
    assert story.status.returncode == 0, story.status
    assert "SIMQ" in story.status.stdout


def test_mounted_again_the_service_goes_on_and_nothing_is_missing_or_doubled(story: Story) -> None:
    service = story.service

    def decided() -> bool:
        return bool((service.live_rows()["decided_at"] > story.restarted).any())

    service.wait_for("prediction", 120, decided)
    service.assert_no_minute_is_missing_or_doubled()
    now = service.live_rows().set_index("bar_ts")
    before = story.before.set_index("bar_ts")
    pd.testing.assert_frame_equal(now.loc[before.index], before)
    tables = (RAW_QUOTES, FEATURE_ROWS, PREDICTION_LOG, OUTCOMES)
    assert stored_twice(service.data, tables) == {}
    assert not list(service.data.rglob("*.tmp"))
    assert service.store.quarantined() == ()


def test_runs_that_could_not_report_their_end_are_failures_and_the_service_is_well(
    story: Story,
) -> None:
    service = story.service
    (polls, *left) = service.wait_for("run", 60, lambda: service.runs())
    assert polls["status"] == "STARTED"
    assert {run["status"] for run in left} == {"FAILURE"}

    def well() -> bool:
        return hedge("health", cwd=Path("/"), **service.variables).returncode == 0

    service.wait_for("health", 90, well)
    service.assert_ends_on(signal.SIGTERM)
