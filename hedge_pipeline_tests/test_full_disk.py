"""The disk fills under the running service and is freed again, with real processes.

There is one story, told by the fixture: the service polls on a small file system, a file takes all
room for a minute, the file is removed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from hedge_pipeline.market.tables import PREDICTION_LOG, RAW_QUOTES
from hedge_pipeline_tests.disks import mounted
from hedge_pipeline_tests.markets import stored_twice
from hedge_pipeline_tests.replays import hedge
from hedge_pipeline_tests.test_service import Service, free_port

pytestmark = pytest.mark.long

FULL_SECONDS = 60.0


@dataclass(frozen=True)
class Story:
    """What happened; the service still runs.

    Attributes:
        before: predictions that were recorded before the disk was full.
        full: when it was.
        freed: when there was room again.
        said: what `hedge health --json` said in between, and its exit code.
    """

    service: Service
    before: pd.DataFrame
    full: pd.Timestamp
    freed: pd.Timestamp
    said: str
    code: int


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 256 MB."""
    with mounted(tmp_path_factory.mktemp("disk"), "256m") as folder:
        yield folder


def fill(path: Path) -> None:
    """Takes all room there is."""
    with path.open("wb", buffering=0) as filler:
        for size in (1 << 20, 1 << 12):
            block = bytes(size)
            try:
                while filler.write(block) == size:
                    pass
            except OSError:
                continue


@pytest.fixture(scope="module")
def story(small_disk: Path) -> Iterator[Story]:
    service = Service(small_disk / "data", free_port(), free_port())
    service.data.mkdir()
    filler = small_disk / "filler"
    try:
        assert "SIMQ: version 1 on " in service.run("bootstrap", "--days", "6")
        service.start()
        service.wait_for("live prediction", 120, lambda: len(service.live_rows()))
        fill(filler)
        full = pd.Timestamp.now("UTC")
        before = service.live_rows()
        time.sleep(FULL_SECONDS)
        said = hedge("health", "--json", cwd=Path("/"), **service.variables)
        assert os.statvfs(small_disk).f_bavail == 0
        filler.unlink()
        freed = pd.Timestamp.now("UTC")
        yield Story(service, before, full, freed, said.stdout, said.returncode)
    finally:
        service.kill_everything()


def test_the_full_disk_is_named(story: Story) -> None:
    assert story.code == 1
    troubles = {x["name"]: x for x in json.loads(story.said)["troubles"]}
    (name,) = [name for name in troubles if name.startswith("disk full: ")]
    assert troubles[name]["grave"]
    assert "has 0 MB left, soon nothing can be stored: make room" in troubles[name]["message"]


def test_with_room_the_service_goes_on_by_itself(story: Story) -> None:
    service = story.service

    def decided() -> bool:
        return bool((service.live_rows()["decided_at"] > story.freed).any())

    # the run that could not report its end is found out by its silence
    service.wait_for("prediction", 240, decided)


def test_the_log_of_the_run_names_the_disk_and_says_from_when_to_when(story: Story) -> None:
    """What could not be written while it was full is written when there is room, with its time."""
    service = story.service

    def words() -> list[str]:
        said = [words for run in service.runs() for _, words in service.told(run["id"])]
        found = [line for line in said if line.startswith(("the data folder", "Dagster's"))]
        return found if any(x.startswith("Dagster's database took nothing") for x in found) else []

    found = service.wait_for("words", 120, words)
    refused = f"the data folder {service.data} cannot be written: No space left on device"
    first = next(line for line in found if line.startswith(refused))
    at = re.search(r"; polling goes on \(at (\d\d:\d\d:\d\d) UTC\)$", first)
    assert at is not None
    assert f"{story.full:%H:%M:%S}" <= at.group(1) <= f"{story.freed:%H:%M:%S}"
    assert any(line.startswith("the data folder takes what is polled again") for line in found)


def test_what_was_recorded_before_is_there_and_nothing_is_missing_or_doubled(story: Story) -> None:
    service = story.service
    service.assert_no_minute_is_missing_or_doubled()
    now = service.live_rows().set_index("bar_ts")["decided_at"]
    before = story.before.set_index("bar_ts")["decided_at"]
    assert now.loc[before.index].equals(before)
    assert stored_twice(service.data, (RAW_QUOTES, PREDICTION_LOG)) == {}
    assert not list(service.data.rglob("*.tmp"))
    assert service.store.quarantined() == ()


def test_the_runs_are_told_apart_and_the_service_is_well_and_ends(story: Story) -> None:
    service = story.service
    service.wait_for(
        "one run", 120, lambda: [x["status"] for x in service.runs()].count("STARTED") == 1
    )

    def well() -> bool:
        return hedge("health", cwd=Path("/"), **service.variables).returncode == 0

    service.wait_for("health", 90, well)
    service.assert_ends_on(signal.SIGTERM)
