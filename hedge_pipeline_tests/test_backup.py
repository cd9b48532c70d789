"""Everything is destroyed and comes back: from a folder, and from S3 over HTTP."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hedge_pipeline import backup
from hedge_pipeline.backup import BackupError, Places, back_up, restore, verify
from hedge_pipeline.live.loop import Fetcher, Work, poll
from hedge_pipeline.market.tables import PREDICTION_LOG, RAW_QUOTES
from hedge_pipeline.resources.registry import MlflowRegistry
from hedge_pipeline.stages import Deployment, bootstrap, history_window
from hedge_pipeline.store import Store
from hedge_pipeline_tests.replays import (
    Demo,
    assert_equal_tables,
    command,
    demo_in,
    environment,
    hedge,
    one_session_of,
    replay_in,
    settings_in,
)
from hedge_pipeline_tests.runs import files


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return demo_in(tmp_path_factory.getbasetemp())


def places_in(out: Path) -> Places:
    return Places(str(out), out / "mlflow.db", out / "dagster_home")


@pytest.fixture
def small(tmp_path: Path, demo: Demo) -> Places:
    """A session of the demo with its models, MLflow database and a Dagster home."""
    out = tmp_path / "data"
    one_session_of(demo, out)
    runs = out / "dagster_home" / "history" / "runs"
    runs.mkdir(parents=True)
    for name in (".db", "index.db", "../runs.db"):
        with contextlib.closing(sqlite3.connect(runs / name)) as database, database:
            database.execute("pragma journal_mode=wal")
            database.execute("create table event_logs (id integer primary key, text)")
            database.execute("insert into event_logs (text) values ('first')")
    return places_in(out)


def lines_of(database: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(database)) as opened:
        return [text for (text,) in opened.execute("select text from event_logs order by id")]


# -- what a snapshot holds -------------------------------------------------------------------------


def test_a_restored_place_has_every_file_and_every_row(small: Places, tmp_path: Path) -> None:
    data = Path(small.data_url)
    before = files(data)
    done = back_up(small, str(tmp_path / "backup"))
    assert done.snapshot.at_one_moment
    assert done.snapshot.left_out == ()
    shutil.rmtree(data)
    restored = restore(small, str(tmp_path / "backup"))
    assert restored == done.snapshot
    after = files(data)
    assert after.pop(backup.LAST_BACKUP)
    tables = {k: v for k, v in before.items() if not k.startswith(("dagster_home", "operations"))}
    assert {k: v for k, v in after.items() if not k.startswith("dagster_home")} == tables
    for name in ("history/runs/.db", "history/runs/index.db", "history/runs.db"):
        assert lines_of(data / "dagster_home" / name) == ["first"]
    assert not list(data.rglob("*-wal"))


@pytest.mark.parametrize("linked", ["data", "data/dagster_home"])
def test_databases_below_a_linked_folder_are_copied_as_databases(
    small: Places, tmp_path: Path, linked: str
) -> None:
    link, elsewhere = tmp_path / linked, tmp_path / "elsewhere"
    link.rename(elsewhere)
    link.symlink_to(elsewhere)
    url, home = str(tmp_path / "backup"), small.home
    assert home is not None
    snapshot = back_up(small, url).snapshot
    assert {"history/runs/.db", "history/runs.db"} <= set(snapshot.files["dagster"])
    assert set(snapshot.files["mlflow"]) == {"mlflow.db"}
    assert not [x for x in snapshot.files["data"] if x.startswith(("dagster_home", "mlflow.db"))]
    shutil.rmtree(elsewhere)
    shutil.rmtree(tmp_path / "data", ignore_errors=True)  # refuses if it is the link
    elsewhere.mkdir()
    link.parent.mkdir(exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(elsewhere)
    assert restore(small, url) == snapshot
    assert lines_of(home / "history/runs.db") == ["first"]
    assert back_up(small, url).snapshot.files["data"] == snapshot.files["data"]


def test_a_run_that_is_deleted_meanwhile_is_not_missed(
    small: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert small.home is not None
    deleted = small.home / "storage" / "run"
    deleted.mkdir(parents=True)
    scandir = os.scandir

    def deleting(path: Any) -> Any:
        if str(path) == str(deleted):
            deleted.rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deleting)
    snapshot = back_up(small, str(tmp_path / "backup")).snapshot
    assert not deleted.exists()
    assert "history/runs.db" in snapshot.files["dagster"]


def test_a_second_backup_writes_only_what_is_new(small: Places, tmp_path: Path) -> None:
    url = str(tmp_path / "backup")
    assert back_up(small, url).new > 15
    again = back_up(small, url)
    assert (again.new, again.new_bytes) == (0, 0)
    store = Store(small.data_url)
    label = store.sessions(RAW_QUOTES)[-1]
    rows = store.read(RAW_QUOTES, [label]).tail(1)
    store.append(RAW_QUOTES, label, rows.assign(bar_ts=rows["bar_ts"] + pd.Timedelta("1D")))
    assert back_up(small, url).new == 1


def test_private_and_temporary_files_stay_behind(small: Places, tmp_path: Path) -> None:
    data = Path(small.data_url)
    for name in (".cache/yahoo/cookies.db", "raw_quotes/.part.parquet.1.1.tmp", "x.lock"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(b"secret")
    snapshot = back_up(small, str(tmp_path / "backup")).snapshot
    named = [path for area in snapshot.files.values() for path in area]
    assert not [x for x in named if "cookies" in x or x.endswith((".tmp", ".lock"))]
    assert set(snapshot.files["mlflow"]) == {"mlflow.db"}
    assert not [x for x in snapshot.files["data"] if "dagster_home" in x or "mlflow.db" in x]


def test_what_a_writer_has_not_finished_is_in_no_copy_of_its_database(
    small: Places, tmp_path: Path
) -> None:
    index = Path(small.data_url) / "dagster_home/history/runs/index.db"
    with contextlib.closing(sqlite3.connect(index, isolation_level=None)) as writer:
        writer.execute("insert into event_logs (text) values ('second')")
        writer.execute("begin immediate")
        writer.execute("insert into event_logs (text) values ('half')")
        back_up(small, str(tmp_path / "backup"))
    shutil.rmtree(small.data_url)
    restore(small, str(tmp_path / "backup"))
    assert lines_of(index) == ["first", "second"]


def test_tables_that_change_under_its_hands_are_copied_until_they_stand_still(
    small: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, real = Store(small.data_url), backup._read
    label = store.sessions(PREDICTION_LOG)[0]
    rows = store.read(PREDICTION_LOG, [label])
    later = rows.tail(3).assign(bar_ts=rows["bar_ts"].tail(3) + pd.Timedelta("1D"))
    steps = iter(range(1000))

    def read(fs: object, path: str) -> bytes:
        step = next(steps)
        if step == 3:
            store.append(PREDICTION_LOG, label, later)
        if step == 6:
            store.compact(PREDICTION_LOG, label)
        return real(fs, path)

    monkeypatch.setattr(backup, "_read", read)
    snapshot = back_up(small, str(tmp_path / "backup")).snapshot
    assert snapshot.at_one_moment
    shutil.rmtree(small.data_url)
    restore(small, str(tmp_path / "backup"))
    assert len(Store(small.data_url).read(PREDICTION_LOG, [label])) == len(rows) + 3


def test_what_lies_in_a_server_of_its_own_is_said_to_be_left_out(
    small: Places, tmp_path: Path
) -> None:
    assert small.home is not None
    (small.home / "dagster.yaml").write_text("storage:\n  postgres:\n    postgres_url: x\n")
    done = back_up(replace(small, mlflow=None), str(tmp_path / "backup"))
    assert [line.split(" ", 1)[0] for line in done.snapshot.left_out] == ["Dagster's", "MLflow"]


def test_the_last_backup_is_known_and_no_password_with_it(small: Places, tmp_path: Path) -> None:
    assert backup.last_backup(Store(small.data_url)) is None
    back_up(small, str(tmp_path / "backup"))
    told = backup.last_backup(Store(small.data_url))
    assert told is not None
    assert dt.datetime.fromisoformat(told["at"]).tzinfo is not None
    assert backup.shown("s3://canary:secret@bucket/folder") == "s3://…@bucket/folder"


def test_a_restored_place_knows_the_backup_it_came_from(small: Places, tmp_path: Path) -> None:
    done = back_up(small, str(tmp_path / "backup"))
    told = backup.last_backup(Store(small.data_url))
    shutil.rmtree(small.data_url)
    restore(small, str(tmp_path / "backup"))
    assert told is not None
    assert told["snapshot"] == done.snapshot.name
    assert backup.last_backup(Store(small.data_url)) == told


def test_only_the_newest_snapshots_and_their_contents_are_kept(
    small: Places, tmp_path: Path
) -> None:
    url = str(tmp_path / "backup")
    store = Store(small.data_url)
    for number in range(4):
        store.write_bytes("note.txt", f"note {number}".encode())
        done = back_up(small, url, keep=2)
        time.sleep(1.05)  # names are by the second
    assert done.removed == 1
    assert len(backup.Repository(url).snapshots()) == 2
    assert verify(url) == done.snapshot
    with backup.Repository(url).lease():  # somebody else is backing up
        store.write_bytes("note.txt", b"last")
        assert back_up(small, url, keep=1).removed == 0
    assert len(backup.Repository(url).snapshots()) == 3


# -- damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("how", ["cut", "changed", "gone"])
def test_a_damaged_content_is_found_before_anything_is_written(
    small: Places, tmp_path: Path, how: str, packed: bool
) -> None:
    url = tmp_path / "backup"
    back_up(small, str(url))
    contents = sorted(x for x in url.glob("objects/*/*") if (x.suffix == ".gz") is packed)
    content = contents[0].read_bytes()
    if how == "gone":
        contents[0].unlink()
    else:
        changed = content[:-9] if how == "cut" else content[:20] + b"\0\0\0\0" + content[24:]
        contents[0].write_bytes(changed)
    with pytest.raises(BackupError, match=r"^[^\n]*(damaged|lacks)[^\n]*earlier snapshot$"):
        verify(str(url))


def test_a_damaged_manifest_is_named(small: Places, tmp_path: Path) -> None:
    back_up(small, str(tmp_path / "backup"))
    (manifest,) = (tmp_path / "backup" / "snapshots").iterdir()
    manifest.write_bytes(manifest.read_bytes()[:-1])
    with pytest.raises(BackupError, match="is damaged"):
        verify(str(tmp_path / "backup"))


def test_a_damaged_database_is_told_and_keeps_nothing_else_from_being_saved(
    small: Places, tmp_path: Path
) -> None:
    assert small.mlflow is not None
    assert small.home is not None
    whole = back_up(small, str(tmp_path / "whole")).snapshot
    content = bytearray(small.mlflow.read_bytes())
    content[8192:40_000] = bytes(40_000 - 8192)
    small.mlflow.write_bytes(content)
    (small.home / "history" / "runs.db").write_bytes(b"no database at all" * 100)
    done = back_up(small, str(tmp_path / "backup"))
    first, second = done.damaged
    assert re.search(r"runs\.db (is damaged|cannot be copied)", first)
    assert re.search(r"mlflow\.db (is damaged|cannot be copied)", second)
    assert set(done.damaged) <= set(done.snapshot.left_out)
    assert verify(str(tmp_path / "backup")).files["data"] == whole.files["data"]
    assert set(done.snapshot.files["dagster"]) == set(whole.files["dagster"]) - {"history/runs.db"}
    said = hedge(
        "backup",
        str(tmp_path / "backup"),
        cwd=tmp_path,
        HEDGE_DATA_URL=small.data_url,
        HEDGE_MODE="replay",
        DAGSTER_HOME=str(small.home),
        MLFLOW_TRACKING_URI=f"sqlite:///{small.mlflow}",
    )
    assert said.returncode == 1, said
    assert "not included: " in said.stdout


@pytest.mark.parametrize("inside", ["backup", "dagster_home/backup", "."])
def test_a_backup_does_not_lie_inside_what_it_saves(small: Places, inside: str) -> None:
    before = files(Path(small.data_url))
    with pytest.raises(BackupError, match=r"^the backup .* lies inside .*, which it saves"):
        back_up(small, str(Path(small.data_url) / inside))
    assert files(Path(small.data_url)) == before


@pytest.mark.parametrize("what", ["tables", "mlflow", "dagster"])
def test_nothing_is_restored_over_something(small: Places, tmp_path: Path, what: str) -> None:
    back_up(small, str(tmp_path / "backup"))
    other = places_in(tmp_path / "other")
    kept = {"tables": "raw_quotes/x.parquet", "mlflow": "mlflow.db", "dagster": "dagster_home"}
    path = tmp_path / "other" / kept[what]
    if what == "dagster":
        path = path / "history" / "runs.db"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    with pytest.raises(BackupError, match="restore into an empty place"):
        restore(other, str(tmp_path / "backup"))
    assert path.read_bytes() == b"mine"


def test_a_place_without_a_backup_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="holds no backup"):
        verify(str(tmp_path))


@pytest.mark.parametrize("stage", ["backup", "restore"])
def test_killed_at_every_fifth_write_it_goes_on(
    small: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    class Killed(BaseException):
        pass

    url, wanted = str(tmp_path / "backup"), files(Path(small.data_url))
    if stage == "restore":
        back_up(small, url)
        shutil.rmtree(small.data_url)
    work: Callable[[], object] = (
        (lambda: back_up(small, url)) if stage == "backup" else (lambda: restore(small, url))
    )
    real, kills, done = Store.write_bytes, 0, False
    while not done:
        left = [5 + 5 * kills]

        def write(store: Store, name: str, content: bytes, left: list[int] = left) -> None:
            real(store, name, content)
            left[0] -= 1
            if not left[0]:
                raise Killed

        monkeypatch.setattr(Store, "write_bytes", write)
        try:
            work()
            done = True
        except Killed:
            kills += 1
    monkeypatch.undo()
    assert kills >= 2
    if stage == "backup":
        verify(url)
    else:
        found = {k: v for k, v in files(Path(small.data_url)).items() if "dagster_home" not in k}
        assert found.pop(backup.LAST_BACKUP)
        assert found == {k: v for k, v in wanted.items() if "dagster_home" not in k}


def test_a_backup_killed_for_real_leaves_the_earlier_snapshot_whole(
    small: Places, tmp_path: Path
) -> None:
    url = tmp_path / "backup"
    back_up(small, str(url))
    known = len(list(url.glob("objects/*/*")))
    for number in range(300):
        Store(small.data_url).write_bytes(f"more/{number}.txt", str(number).encode())
    with subprocess.Popen(
        command("backup", str(url)),
        cwd=tmp_path,
        env=environment(HEDGE_DATA_URL=small.data_url, HEDGE_MODE="replay"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None and len(list(url.glob("objects/*/*"))) < known + 20:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert len(backup.Repository(str(url)).snapshots()) == 1
    verify(str(url))
    assert back_up(small, str(url)).new < 300


# -- the command, in the middle of a session -------------------------------------------------------


class Clock:
    """A clock that the test moves."""

    def __init__(self, now: str) -> None:
        self.now = dt.datetime.fromisoformat(now)

    def __call__(self) -> dt.datetime:
        return self.now


def live_in(out: Path, clock: Clock) -> Deployment:
    live = {"HEDGE_MODE": "live", "HEDGE_HISTORY_START": "2026-03-02"}
    return replace(replay_in(out, ("SIMQ",), **live), clock=clock)


def polled(deployment: Deployment, clock: Clock, minutes: int) -> None:
    session = deployment.calendar.session_at(clock())
    assert session is not None
    for _ in range(minutes):
        poll(deployment, Fetcher(deployment, 20.0), session, Work(deployment))
        clock.now += dt.timedelta(minutes=1)


@pytest.mark.slow
def test_destroyed_in_the_middle_of_a_session_it_goes_on_after_a_restoration(
    tmp_path: Path,
) -> None:
    """Nothing recorded before the backup is lost or changed; the minutes since are caught up."""
    out, clock = tmp_path / "data", Clock("2026-03-09T14:00:31+00:00")
    deployment = live_in(out, clock)
    bootstrap(deployment, history_window(deployment, 8))
    registry = MlflowRegistry(
        f"sqlite:///{out}/mlflow.db", artifacts=(out / "mlartifacts").as_uri(), plots=False
    )
    registry.publish(deployment, "SIMQ")
    polled(deployment, clock, 3)
    kept = deployment.store.read(PREDICTION_LOG)
    variables = {
        "HEDGE_DATA_URL": str(out),
        "HEDGE_SYMBOLS": "SIMQ",
        "HEDGE_BACKUP_URL": str(tmp_path / "backup"),
    }
    said = hedge("backup", "--json", cwd=tmp_path, **variables)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["at_one_moment"]
    polled(deployment, clock, 2)
    shutil.rmtree(out)
    elsewhere = tmp_path / "elsewhere"
    variables["HEDGE_DATA_URL"] = str(elsewhere)
    checked = hedge("restore", "--verify", cwd=tmp_path, **variables)
    assert checked.stdout.strip().endswith("verified")
    assert not elsewhere.exists()
    assert hedge("restore", cwd=tmp_path, **variables).returncode == 0
    restored = live_in(elsewhere, clock)
    pd.testing.assert_frame_equal(restored.store.read(PREDICTION_LOG), kept)
    polled(restored, clock, 1)
    log = restored.store.read(PREDICTION_LOG)
    served = log[(log["role"] == "served")]
    bars = restored.store.read(RAW_QUOTES, ["2026-03-09"])["bar_ts"]
    assert served["bar_ts"].tolist() == bars.tolist()
    merged = kept.merge(log, on=list(log.columns), how="left", indicator=True)
    assert (merged["_merge"] == "both").all()
    again = MlflowRegistry(
        f"sqlite:///{elsewhere}/mlflow.db", artifacts=(elsewhere / "mlartifacts").as_uri()
    )
    assert again.publish(restored, "SIMQ") == 0  # it knows what it had
    (version,) = again.client.search_model_versions("name='hedge-SIMQ'")
    import mlflow

    loaded = mlflow.xgboost.load_model(f"models:/hedge-SIMQ/{version.version}")
    assert loaded.num_boosted_rounds() > 0


# -- S3 --------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """An S3 server on loopback with a bucket; the variables that name it."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()  # the clients of a server that is gone
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(
                        urllib.request.Request(f"{address}/hedge", method="PUT"), timeout=5
                    )
                    break
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield {
                "AWS_ENDPOINT_URL": address,
                "AWS_ACCESS_KEY_ID": "canary-key",
                "AWS_SECRET_ACCESS_KEY": "canary-secret",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        finally:
            process.kill()
            S3FileSystem.clear_instance_cache()


def test_tables_and_backup_may_both_lie_in_s3(
    small: Places, tmp_path: Path, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    source = replace(small, mlflow=None, home=None)
    back_up(source, "s3://hedge/backup")
    assert back_up(source, "s3://hedge/backup").new == 0
    variables = {
        **s3,
        "HEDGE_DATA_URL": "s3://hedge/data",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "HEDGE_BACKUP_URL": "s3://hedge/backup",
        "HEDGE_MODE": "replay",
    }
    said = hedge("restore", cwd=tmp_path, **variables)
    assert said.returncode == 0, said.stderr
    assert_equal_tables(Store("s3://hedge/data"), Store(small.data_url))
    found = hedge("status", "--json", cwd=tmp_path, **variables)
    assert json.loads(found.stdout)["data"] == "s3://hedge/data"
    again = hedge("backup", "s3://hedge/second", "--json", cwd=tmp_path, **variables)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["at_one_moment"]
    assert "canary" not in again.stdout + said.stdout + said.stderr


def test_an_s3_server_that_is_down_is_one_line(small: Places, tmp_path: Path) -> None:
    said = hedge(
        *("backup", "s3://hedge/backup"),
        cwd=tmp_path,
        HEDGE_DATA_URL=small.data_url,
        HEDGE_MODE="replay",
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}",
        AWS_ACCESS_KEY_ID="canary-key",
        AWS_SECRET_ACCESS_KEY="canary-secret",
        AWS_MAX_ATTEMPTS="1",
    )
    assert said.returncode == 1
    (line,) = said.stderr.strip().splitlines()
    assert line.startswith("error: the backup at s3://hedge/backup cannot be ")
    assert "canary" not in line


def test_a_deployment_names_its_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hedge_pipeline.opening import places

    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    found = places(settings_in(tmp_path / "data"))
    assert found == places_in(tmp_path / "data")
    elsewhere = settings_in(tmp_path, MLFLOW_TRACKING_URI="http://127.0.0.1:5000")
    assert places(elsewhere).mlflow is None
