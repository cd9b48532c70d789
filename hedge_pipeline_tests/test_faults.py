"""Disks that fill up, break or refuse, and clocks that jump: nothing is lost or doubled."""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
from fsspec.implementations.local import LocalFileSystem

from hedge_pipeline.backup import LAST_BACKUP, last_backup
from hedge_pipeline.health import TOLD, Trouble, untold
from hedge_pipeline.learning.shelf import ModelShelf
from hedge_pipeline.learning.training import ModelError
from hedge_pipeline.live.loop import Fetcher, Work, poll
from hedge_pipeline.live.supervision import HEARTBEAT, Heartbeat
from hedge_pipeline.market.tables import FEATURE_ROWS, PREDICTION_LOG, RAW_QUOTES
from hedge_pipeline.stages import build_missing_features, log_predictions
from hedge_pipeline.stages.closing import CLOSED, _closed_through
from hedge_pipeline.status import _databases
from hedge_pipeline.storage import MARKER, SIZES, damage_of, forgotten_before, noted_sizes
from hedge_pipeline.store import BrokenFile, Store, StoreError
from hedge_pipeline_tests.disks import mounted
from hedge_pipeline_tests.replays import (
    Demo,
    demo_in,
    environment,
    hedge,
    replay_in,
    rows_of,
    settings_in,
)
from hedge_pipeline_tests.test_storage import some_run, written_down

REPOSITORY = Path(__file__).resolve().parent.parent
SESSION = "2024-01-03"


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return demo_in(tmp_path_factory.getbasetemp())


# -- broken files ----------------------------------------------------------------------------------


@pytest.fixture
def two_parts(demo: Demo, tmp_path: Path) -> tuple[Store, Path]:
    """A store with two parts of five rows each, and the path of the second one."""
    store = Store(str(tmp_path / "two"))
    rows = demo.store.read(RAW_QUOTES, [SESSION])
    for part in (rows.head(5), rows.tail(5)):
        store.append(RAW_QUOTES, SESSION, part)
    return store, sorted((tmp_path / "two" / "raw_quotes").rglob("*.parquet"))[1]


def test_a_part_cut_at_any_byte_is_broken(two_parts: tuple[Store, Path]) -> None:
    store, second = two_parts
    whole = second.read_bytes()
    assert store.broken(RAW_QUOTES, SESSION) == ()
    for length in range(len(whole)):
        second.write_bytes(whole[:length])
        assert store.broken(RAW_QUOTES, SESSION) == (str(second),), length


def test_a_changed_byte_is_never_taken_for_another_price(two_parts: tuple[Store, Path]) -> None:
    """Wherever it lies: the file is refused, or its rows are what they were."""
    store, second = two_parts
    whole, wanted = second.read_bytes(), store.read(RAW_QUOTES, [SESSION])
    found = []
    for place in range(0, len(whole), 3):
        second.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            rows = Store(store.url).read(RAW_QUOTES, [SESSION])
        except StoreError:
            found.append(place)
            continue
        pd.testing.assert_frame_equal(rows, wanted)
    assert len(found) > len(whole) / 4


@pytest.mark.parametrize("length", [0, 3, 4, 500, 2000, -9, -8, -1])
def test_a_cut_part_is_moved_aside_and_the_rest_is_readable(
    two_parts: tuple[Store, Path], length: int
) -> None:
    store, second = two_parts
    whole = second.read_bytes()
    second.write_bytes(whole[:length])
    with pytest.raises(BrokenFile):
        Store(store.url).read(RAW_QUOTES, [SESSION])
    (moved,) = Store(store.url).quarantine(RAW_QUOTES, SESSION)
    assert Path(moved).read_bytes() == whole[:length]
    assert len(Store(store.url).read(RAW_QUOTES, [SESSION])) == 5
    assert len(pd.read_parquet(second.parent.parent)) == 5
    assert len(store.quarantined()) == 1
    # somebody else is just moving another part aside, and has finished when its name is read
    (Path(store.url) / "quarantined" / ".0123.1.2.tmp").symlink_to("gone")
    assert len(store.quarantined()) == 1
    second.write_bytes(whole)
    assert store.quarantine(RAW_QUOTES, SESSION) == ()
    assert len(Store(store.url).read(RAW_QUOTES, [SESSION])) == 10


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.ESTALE])
def test_a_part_that_cannot_be_read_now_is_not_taken_for_a_broken_one(
    two_parts: tuple[Store, Path], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store, second = two_parts

    def refused(path: str) -> bytes:
        raise OSError(number, os.strerror(number), path)

    with monkeypatch.context() as patched:
        patched.setattr(LocalFileSystem, "cat_file", lambda _, path: refused(path))
        for touch in (
            lambda: Store(store.url).read(RAW_QUOTES),
            lambda: store.quarantine(RAW_QUOTES, SESSION),
        ):
            with pytest.raises(StoreError, match=f"cannot be read: {os.strerror(number)}$") as told:
                touch()
            assert not isinstance(told.value, BrokenFile)
    assert second.exists()
    assert store.quarantined() == ()
    assert len(store.read(RAW_QUOTES, [SESSION])) == 10


def test_a_part_on_a_bad_sector_is_broken(
    two_parts: tuple[Store, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, second = two_parts
    read = LocalFileSystem.cat_file

    def read_around(self: LocalFileSystem, path: str) -> bytes:
        if path == str(second):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return bytes(read(self, path))

    monkeypatch.setattr(LocalFileSystem, "cat_file", read_around)
    assert store.broken(RAW_QUOTES, SESSION) == (str(second),)


NOTES = {
    HEARTBEAT: Heartbeat("run", "2024-01-12T15:00:00+00:00", "2024-01-12").__dict__,
    LAST_BACKUP: {"at": "2024-01-12T03:30:00+00:00", "place": "x", "snapshot": "y"},
    TOLD: {"disk": "2024-01-12T03:30:00+00:00"},
    MARKER: {"before": "2024-01-03"},
    CLOSED: {"through": "2024-01-03"},
    SIZES: {
        "at": "2024-01-12T03:30:00+00:00",
        "tables": {"raw_quotes": 7},
        "areas": {"dagster": 9},
    },
}


@pytest.mark.parametrize("name", NOTES)
def test_a_note_cut_at_any_byte_is_as_if_it_were_not_there(tmp_path: Path, name: str) -> None:
    deployment = replay_in(tmp_path)
    store, whole = deployment.store, json.dumps(NOTES[name]).encode()
    now, every = dt.datetime(2024, 1, 12, 4, tzinfo=dt.UTC), dt.timedelta(hours=12)
    trouble = Trouble("disk", "full")

    def read() -> list[object]:
        return [
            Heartbeat.read(store),
            last_backup(store),
            untold(store, [trouble], now, every),
            forgotten_before(store),
            _closed_through(deployment),
            noted_sizes(store),
        ]

    nothing = read()
    for length in range(len(whole)):
        store.write_bytes(name, whole[:length])
        assert read() == nothing, length
    store.write_bytes(name, whole)
    assert read() != nothing


@pytest.mark.parametrize("ending", [".json", ".ubj"])
def test_a_model_cut_at_any_byte_is_refused_in_one_line(
    demo: Demo, tmp_path: Path, ending: str
) -> None:
    """Or, of its description, is as good as whole: what is missing is the end of the last line."""
    out = demo.copy(tmp_path / "out")
    path = next((out / "models" / "SIMQ").glob(f"000002*{ending}"))
    whole, wanted = path.read_bytes(), ModelShelf(Store(str(out))).load("SIMQ", 2).card
    step = max(1, len(whole) // 400)
    for length in (*range(0, len(whole), step), len(whole) - 1):
        path.write_bytes(whole[:length])
        try:
            found = ModelShelf(Store(str(out))).load("SIMQ", 2).card
        except ModelError as error:
            assert "SIMQ" in str(error) or path.name in str(error), error
            assert "\n" not in str(error)
        else:
            assert length == len(whole) - 1
            assert found == wanted
    path.write_bytes(whole)
    assert ModelShelf(Store(str(out))).load("SIMQ", 2).card == wanted


def rows_in(database: Path) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table."""
    with contextlib.closing(sqlite3.connect(database)) as opened:
        tables = opened.execute("select name from sqlite_master where type = 'table'").fetchall()
        return {name: opened.execute(f"select * from {name}").fetchall() for (name,) in tables}


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory, demo: Demo) -> Path:
    """A home of Dagster with a run, and the demo's MLflow."""
    out = tmp_path_factory.mktemp("databases") / "data"
    shutil.copytree(demo.out, out)
    home = out / "dagster_home"
    home.mkdir()
    shutil.copy(REPOSITORY / "dagster.yaml", home)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        some_run(instance)
        written_down(instance, "polling_schedule", dt.datetime.now(dt.UTC))
    return out


DATABASES = (
    "mlflow.db",
    "dagster_home/history/runs.db",
    "dagster_home/history/runs/index.db",
    "dagster_home/schedules/schedules.db",
)


@pytest.mark.parametrize("name", DATABASES)
def test_a_database_cut_at_any_byte_is_found_damaged_or_has_every_row(
    databases: Path, tmp_path: Path, name: str
) -> None:
    cut = tmp_path / "cut.db"
    with contextlib.closing(sqlite3.connect(databases / name)) as opened:
        opened.execute("pragma wal_checkpoint(truncate)")
    whole = (databases / name).read_bytes()
    cut.write_bytes(whole)
    assert damage_of(cut) is None
    wanted = rows_in(cut)
    assert sum(map(len, wanted.values())) > 0
    pages = range(4096, len(whole), 4096 * max(1, len(whole) // 4096 // 30))
    lengths = {length + more for length in pages for more in (-1, 0, 2048)}
    found = 0
    for length in sorted({1, 17, 99, 100, 512, *lengths, len(whole) - 1} & {*range(1, len(whole))}):
        cut.write_bytes(whole[:length])
        if damage_of(cut) is None:
            assert rows_in(cut) == wanted, length
        else:
            found += 1
    assert found > 50


def test_a_database_that_cannot_be_read_now_is_not_called_damaged(
    databases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error

    settings = settings_in(databases, HEDGE_MODE="live")
    monkeypatch.setenv("DAGSTER_HOME", str(databases / "dagster_home"))
    assert "are sound" in _databases(settings)
    monkeypatch.setattr(sqlite3, "connect", refuse)
    with pytest.raises(ValueError, match=r"^cannot be read now: .*: disk I/O error") as told:
        _databases(settings)
    assert "move" not in str(told.value)


@pytest.mark.parametrize("name", DATABASES[:1])
def test_a_cut_database_is_named_with_the_next_step_and_costs_no_table(
    databases: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "data"
    shutil.copytree(databases, out)
    for path in out.rglob("*.db-*"):
        path.unlink()
    os.truncate(out / name, (out / name).stat().st_size // 2)
    variables = {
        "HEDGE_DATA_URL": str(out),
        "HEDGE_MODE": "replay",
        "DAGSTER_HOME": str(out / "dagster_home"),
    }
    said = hedge("doctor", "--json", cwd=tmp_path, **variables)
    assert said.returncode == 1
    findings = {x["name"]: x for x in json.loads(said.stdout)}
    assert not findings["databases"]["ok"]
    assert findings["databases"]["message"].startswith(f"damaged: {out / name}: ")
    assert findings["files"]["ok"]
    assert hedge("status", cwd=tmp_path, **variables).returncode == 0
    (out / name).rename(out / f"{name}.aside")  # as it says
    again = hedge("doctor", "--json", cwd=tmp_path, **variables)
    assert {x["name"]: x["ok"] for x in json.loads(again.stdout)}["databases"]


def test_a_broken_file_is_named_moved_and_its_rows_are_made_again(
    demo: Demo, tmp_path: Path
) -> None:
    out = demo.copy(tmp_path / "out")
    (part,) = (out / "features" / f"session={SESSION}").glob("*.parquet")
    part.write_bytes(part.read_bytes()[:-20])
    variables = {"HEDGE_DATA_URL": str(out), "HEDGE_MODE": "replay"}
    said = hedge("doctor", "--json", cwd=tmp_path, **variables)
    findings = {x["name"]: x for x in json.loads(said.stdout)}
    assert said.returncode == 1
    assert part.name in findings["files"]["message"]
    assert "`hedge storage --quarantine`" in findings["files"]["message"]
    said = hedge("storage", "--quarantine", cwd=tmp_path, **variables)
    assert f"moved aside: {part.parent / ('.broken-' + part.name)}" in said.stderr
    found = json.loads(hedge("status", "--json", cwd=tmp_path, **variables).stdout)
    assert found["quarantined"] == [f"features/session={SESSION}/.broken-{part.name}"]
    deployment = replay_in(out)
    assert build_missing_features(deployment, SESSION) > 0
    pd.testing.assert_frame_equal(
        rows_of(deployment.store, FEATURE_ROWS, [SESSION]),
        rows_of(demo.store, FEATURE_ROWS, [SESSION]),
    )
    assert log_predictions(deployment, SESSION) == 0


def test_what_cannot_be_opened_is_not_taken_for_broken(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(demo.copy(tmp_path / "out")))

    def refuse(path: str) -> bytes:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(store._fs, "cat_file", refuse)
    with pytest.raises(StoreError, match="Permission denied"):
        store.quarantine(RAW_QUOTES, SESSION)
    monkeypatch.undo()
    assert store.quarantined() == ()


# -- a disk that is full or read-only --------------------------------------------------------------

APPEND = """
import sys
from hedge_pipeline.market.tables import RAW_QUOTES
from hedge_pipeline.store import Store, StoreError
source, target = Store(sys.argv[1]), Store(sys.argv[2])
try:
    for label in source.sessions(RAW_QUOTES):
        target.append(RAW_QUOTES, label, source.read(RAW_QUOTES, [label]))
except StoreError as error:
    sys.exit(str(error))
"""


def append_all(source: Path, target: Path, limit: int | None = None) -> str:
    """Copies `raw_quotes` in a process whose files may not be longer; what it said."""

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-c", APPEND, str(source), str(target)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=limited,
    )
    return done.stderr.strip()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted(folder, "64k"):
        yield folder


def assert_whole(store: Store, wanted: Store) -> None:
    """What is there is there whole, and nothing half-written lies about."""
    for label in store.sessions(RAW_QUOTES):
        pd.testing.assert_frame_equal(
            store.read(RAW_QUOTES, [label]), wanted.read(RAW_QUOTES, [label])
        )
    assert not list(Path(store.url).rglob("*.tmp"))


def test_a_full_disk_is_told_in_one_line_and_what_was_stored_stays(
    demo: Demo, small_disk: Path
) -> None:
    said = append_all(demo.out, small_disk)
    assert said == f"the data folder {small_disk} cannot be written: No space left on device"
    store = Store(str(small_disk))
    assert 0 < len(store.sessions(RAW_QUOTES)) < 8
    assert_whole(store, demo.store)
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert append_all(demo.out, small_disk) == ""
    assert_whole(store, demo.store)
    assert store.sessions(RAW_QUOTES) == demo.store.sessions(RAW_QUOTES)


def test_a_file_that_may_not_grow_is_told_in_one_line(demo: Demo, tmp_path: Path) -> None:
    said = append_all(demo.out, tmp_path, 1000)
    assert said == f"the data folder {tmp_path} cannot be written: File too large"
    assert_whole(Store(str(tmp_path)), demo.store)
    assert append_all(demo.out, tmp_path) == ""
    assert_whole(Store(str(tmp_path)), demo.store)


def test_a_read_only_disk_can_be_read_and_says_why_nothing_is_stored(
    demo: Demo, small_disk: Path
) -> None:
    append_all(demo.out, small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    said = append_all(demo.out, small_disk)
    assert said == f"the data folder {small_disk} cannot be written: Read-only file system"
    assert_whole(Store(str(small_disk)), demo.store)
    variables = {"HEDGE_DATA_URL": str(small_disk), "MLFLOW_TRACKING_URI": "sqlite:////tmp/no.db"}
    assert hedge("status", cwd=Path("/"), **variables).returncode == 0
    found = hedge("doctor", cwd=Path("/"), **variables)
    assert found.returncode == 1
    assert "cannot be written: Read-only file system" in found.stdout


# -- a clock that jumps ----------------------------------------------------------------------------


def test_a_clock_that_jumps_back_and_forth_loses_and_doubles_nothing(tmp_path: Path) -> None:
    begun = dt.datetime(2026, 3, 9, 14, 0, 31, tzinfo=dt.UTC)
    now = [begun]
    live = {"HEDGE_MODE": "live", "HEDGE_HISTORY_START": "2026-03-02"}
    deployment = replace(replay_in(tmp_path, ("SIMQ",), **live), clock=lambda: now[0])
    for minutes in (0, 1, 2, -20, -19, 3, 4, -1, 5, 6):
        now[0] = begun + dt.timedelta(minutes=minutes)
        session = deployment.calendar.session_at(now[0])
        assert session is not None
        with contextlib.suppress(StoreError):
            poll(deployment, Fetcher(deployment, 20.0), session, Work(deployment))
    bars = deployment.store.read(RAW_QUOTES)["bar_ts"]
    assert (bars.diff().dropna() == pd.Timedelta("1min")).all()
    log = deployment.store.read(PREDICTION_LOG)
    served = log[log["role"] == "served"]
    assert served["bar_ts"].tolist() == bars.tolist()
    assert not served.duplicated(["symbol", "bar_ts"]).any()
