"""What killed processes leave behind is swept, and nothing that a living one uses."""

from __future__ import annotations

import datetime as dt
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from hedge_pipeline import scratch, storage
from hedge_pipeline.backup import Places
from hedge_pipeline.resources import housekeeping
from hedge_pipeline.store import Store
from hedge_pipeline_tests.replays import environment
from hedge_pipeline_tests.runs import loop_at

DAY = dt.timedelta(days=1)

KILLED = """
import os, signal, sqlite3, sys
from pathlib import Path
from hedge_pipeline.backup import Places, back_up
from hedge_pipeline.store import Store

out = Path(sys.argv[1])
def kill(event, arguments):
    if event == sys.argv[2] and sys.argv[3] in str(arguments):
        os.kill(os.getpid(), signal.SIGKILL)
with sqlite3.connect(out / "mlflow.db") as database:
    database.execute("create table if not exists x (y)")
sys.addaudithook(kill)
Store(str(out)).write_bytes("models/a.json", b"0123456789")
back_up(Places(str(out), out / "mlflow.db", None), str(out.parent / "backup"))
"""


def killed(out: Path, event: str, words: str, temporary: Path) -> None:
    """A writer and a backup, killed before the first such event of Python's audit."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(out), event, words],
        env=environment(TMPDIR=str(temporary)),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder of temporary files, of the test's own."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def leftovers(root: Path) -> set[str]:
    found = {
        x for pattern in ("*.tmp", ".probe-*", "hedge-*", "*.db.*") for x in root.rglob(pattern)
    }
    return {x.relative_to(root).as_posix() for x in found}


def age(root: Path, by: dt.timedelta) -> None:
    """Makes everything below look that much older."""
    at = time.time() - by.total_seconds()
    for path in [*root.rglob("*"), root]:
        os.utime(path, (at, at))


def test_what_killed_processes_have_left_is_swept_after_a_day(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "data"
    out.mkdir()
    killed(out, "os.rename", "a.json", temporary)  # in the middle of a write
    killed(out, "os.rename", "objects", temporary)  # of a write into the backup
    killed(out, "sqlite3.connect", "copy.db", temporary)  # of the copy of a database
    (out / ".mlflow.db.x1y2").mkdir()
    (out / ".probe-4711").touch()
    found = leftovers(tmp_path)
    assert len([x for x in found if x.startswith("data/models/") and x.endswith(".tmp")]) == 1
    assert len([x for x in found if x.startswith("backup/objects/") and x.endswith(".tmp")]) == 1
    assert len([x for x in found if x.startswith("tmp/hedge-")]) >= 1
    places = Places(str(out), out / "mlflow.db", None)
    backup = str(tmp_path / "backup")
    whole = {x for x in tmp_path.rglob("*") if x.is_file()}

    assert storage.sweep(places, backup, DAY) == 0  # all of it is too young
    assert {x for x in tmp_path.rglob("*") if x.is_file()} == whole

    age(tmp_path, DAY + dt.timedelta(hours=1))
    kept = Store(str(out)).read_bytes("models/a.json")
    variables = {"HEDGE_DATA_URL": str(out), "HEDGE_BACKUP_URL": backup, "HEDGE_MODE": "replay"}
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow itself sets it
    for name, value in environment(**variables).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home")) as instance:
        night = dict(housekeeping.steps(instance, loop_at("2026-03-09T08:30:00+00:00")))
        assert night["temporary files"]() == f"{len(found)} removed"
    assert leftovers(tmp_path) == set()
    assert Store(str(out)).read_bytes("models/a.json") == kept
    assert storage.sweep(places, backup, DAY) == 0


HOLDER = """
import subprocess, sys, time
from hedge_pipeline import scratch
path, descriptor = scratch.make()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                         pass_fds=[descriptor])
print(path, child.pid, flush=True)
time.sleep(60)
"""


def test_a_folder_is_in_use_until_the_last_process_that_holds_it_has_ended(temporary: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        env=environment(TMPDIR=str(temporary)),
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        path, child = holder.stdout.readline().split()
        age(temporary, 40 * DAY)
        assert scratch.sweep(DAY) == 0
        holder.kill()
        holder.wait()
        assert scratch.sweep(DAY) == 0  # what it has started lives on
        os.kill(int(child), signal.SIGKILL)
        deadline = time.monotonic() + 10
        while not scratch.sweep(DAY) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not Path(path).exists()


def test_folders_that_are_not_ours_are_left_alone(temporary: Path, tmp_path: Path) -> None:
    (temporary / "hedge-data").mkdir()
    (temporary / "hedge-data" / "precious").touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / scratch.LOCK).touch()
    (temporary / "hedge-link").symlink_to(elsewhere)
    (temporary / "hedge-file").touch()
    age(temporary, 40 * DAY)
    assert scratch.sweep(DAY) == 0
    assert (temporary / "hedge-data" / "precious").exists()
    assert (elsewhere / scratch.LOCK).exists()


def test_only_names_that_mean_an_unfinished_write_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".artifact.uploading.x1y2").touch()  # MLflow's
    for name in ("notes.tmp", ".notes.tmp", ".a.json.1.2.tmp", ".a.json.1.tmp", ".probe-x"):
        (tmp_path / name).touch()
    age(tmp_path, 2 * DAY)
    assert Store(str(tmp_path)).sweep(DAY) == 2
    assert {x.name for x in tmp_path.iterdir()} == {
        *("notes.tmp", ".notes.tmp", ".a.json.1.tmp", ".probe-x"),
    }


def test_the_folder_is_private_and_gone_afterwards(temporary: Path) -> None:
    with scratch.folder() as path:
        assert path.parent == temporary
        assert path.stat().st_mode & 0o077 == 0
        assert scratch.sweep(dt.timedelta(0)) == 0
    assert list(temporary.iterdir()) == []
