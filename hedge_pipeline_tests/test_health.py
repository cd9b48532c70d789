"""The service says when it does not do its work, once, with cause and next step."""

from __future__ import annotations

import datetime as dt
import errno
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from hedge_pipeline import health, stages, status, storage
from hedge_pipeline.assets.reporting import plain_failures
from hedge_pipeline.backup import LAST_BACKUP, UNDER_WAY
from hedge_pipeline.disks import Disk, disks, refusal, written_folders
from hedge_pipeline.health import Facts, Trouble
from hedge_pipeline.learning.gate import GateState, Skill
from hedge_pipeline.learning.ledger import Ledger
from hedge_pipeline.live.supervision import Heartbeat
from hedge_pipeline.market.tables import OUTCOMES, PROMOTIONS, RAW_QUOTES, Table
from hedge_pipeline.resources import housekeeping, notifier, upkeep
from hedge_pipeline.resources.notifier import Delivery
from hedge_pipeline.store import Store, StoreError
from hedge_pipeline_tests.disks import mounted
from hedge_pipeline_tests.replays import Demo, demo_in, environment, hedge, replay_in, settings_in
from hedge_pipeline_tests.runs import loop_at

NOW = dt.datetime(2026, 3, 9, 15, 0, tzinfo=dt.UTC)
MINUTE = dt.timedelta(minutes=1)
PATIENCE = 15 * MINUTE


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return demo_in(tmp_path_factory.getbasetemp())


def bars(simq: int | None, simn: int | None) -> dict[str, dt.datetime | None]:
    """When the newest bars of the two symbols ended, minutes ago; None = there is none."""
    ages = {"SIMQ": simq, "SIMN": simn}
    return {symbol: None if x is None else NOW - x * MINUTE for symbol, x in ages.items()}


def facts(**changed: Any) -> Facts:
    """A service in the middle of a session that does everything it should."""
    well = Facts(
        now=NOW,
        session="2026-03-09",
        opened=NOW - 90 * MINUTE,
        last_bars=bars(1, 1),
        last_outcome=NOW - 11 * MINUTE,
        last_poll=NOW - MINUTE,
        daemon=NOW - MINUTE,
    )
    return replace(well, **changed)


# -- what is wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"last_bars": bars(15, 15)},
        {"session": None, "opened": None, "last_bars": bars(2000, 2000)},
        {"opened": NOW - 10 * MINUTE, "last_bars": bars(2000, None)},
        {"daemon": None, "last_poll": None, "last_outcome": None},
    ],
    ids=["well", "just patient", "closed", "just opened", "nothing known"],
)
def test_nothing_is_wrong(changed: dict[str, Any]) -> None:
    assert health.live_troubles(facts(**changed), PATIENCE) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"last_bars": bars(17, 16)}, "bar for 16 min; the poll run is alive, so the source"),
        (
            {"last_bars": bars(16, 16), "last_poll": NOW - 16 * MINUTE},
            "bar for 16 min; nobody polls",
        ),
        ({"last_bars": bars(None, None), "last_poll": None}, "bar for 90 min; nobody polls"),
        ({"daemon": NOW - 4 * MINUTE}, "daemon is silent for 4 min; stop the service and start"),
        ({"daemon": NOW - 4 * MINUTE, "session": None, "opened": None}, "daemon is silent"),
        ({"daemon": None, "unseen": "Dagster's database does not answer"}, "does not answer"),
    ],
)
def test_what_is_wrong_has_a_cause_and_a_next_step(changed: dict[str, Any], words: str) -> None:
    (trouble,) = health.live_troubles(facts(**changed), PATIENCE)
    assert words in trouble.message
    assert trouble.grave


def test_a_clock_that_was_set_back_is_told_and_until_when_it_matters() -> None:
    (trouble,) = health.live_troubles(facts(daemon=NOW + 20 * MINUTE), PATIENCE)
    assert trouble.message.startswith("the clock was set back: ")
    assert trouble.message.endswith(f"for 20 min, before {NOW + 20 * MINUTE:%Y-%m-%d %H:%M} UTC")
    assert not trouble.grave


@pytest.mark.parametrize(("age", "minutes"), [(16, 16), (2000, 90), (None, 90)])
def test_one_silent_symbol_of_several_is_told_by_its_name_and_ends_no_service(
    age: int | None, minutes: int
) -> None:
    (trouble,) = health.live_troubles(facts(last_bars=bars(1, age)), PATIENCE)
    assert trouble.name == "no new bar of SIMN in 2026-03-09"
    assert f"no new bar of SIMN for {minutes} min; the poll run is alive" in trouble.message
    assert not trouble.grave


@pytest.mark.parametrize(
    ("given", "minutes"),
    [
        ({}, 16),
        ({"HEDGE_BAR_SECONDS": 3600}, 75),
        ({"POLLING_INTERVAL": 1800, "HEDGE_ALERT_NO_BAR_MINUTES": 5}, 35),
    ],
)
def test_nobody_expects_a_bar_before_it_can_be_there(
    tmp_path: Path, given: dict[str, Any], minutes: int
) -> None:
    """Hours between two bars, or two polls, are no reason for an alert."""
    settings = settings_in(tmp_path, **given)
    long_ago = {"opened": NOW - 600 * MINUTE, "last_bars": bars(minutes, minutes)}
    deployment = replay_in(tmp_path)
    assert health.service_troubles(deployment, settings, facts(**long_ago)) == []
    long_ago["last_bars"] = bars(minutes + 1, minutes + 1)
    (trouble,) = health.service_troubles(deployment, settings, facts(**long_ago))
    assert "the poll run is alive" in trouble.message


def test_the_symbol_that_is_silent_is_seen_in_the_store(demo: Demo, tmp_path: Path) -> None:
    deployment = replay_in(demo.copy(tmp_path / "out"))
    label = deployment.store.sessions(RAW_QUOTES)[-1]
    rows = deployment.store.read(RAW_QUOTES, [label])
    opens = deployment.calendar.session(label).opens
    late = (rows["symbol"] == "SIMN") & (rows["bar_ts"] >= opens + 10 * MINUTE)
    deployment.store.replace(RAW_QUOTES, label, rows[~late])
    found = health.facts(deployment, None)
    assert found.last_bars == {
        "SIMQ": deployment.calendar.session(label).closes,
        "SIMN": opens + 10 * MINUTE,
    }
    assert found.last_bar == deployment.calendar.session(label).closes
    deployment.store.replace(RAW_QUOTES, label, rows[rows["symbol"] == "SIMQ"])
    assert health.facts(deployment, None).last_bars["SIMN"] is None


@pytest.mark.parametrize(("age", "told"), [(None, True), (25, False), (27, True)])
def test_a_backup_that_is_asked_for_must_be_younger_than_a_day(
    demo: Demo, tmp_path: Path, age: int | None, told: bool
) -> None:
    out = demo.copy(tmp_path / "out")
    deployment = replace(replay_in(out), clock=lambda: NOW)
    if age is not None:
        at = (NOW - age * 60 * MINUTE).isoformat()
        deployment.store.write_bytes(LAST_BACKUP, json.dumps({"at": at}).encode())
    asked = settings_in(out, HEDGE_BACKUP_URL="backup")
    assert (health.backup_trouble(deployment, asked) is not None) is told
    assert health.backup_trouble(deployment, settings_in(out)) is None


# -- the old guide's troubles ----------------------------------------------------------------------


def test_too_little_data_for_a_training_is_said_with_what_helps(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"SIMQ: not enough data for retraining: 0 of .*bootstrap"):
        health.learning_words(replay_in(tmp_path), "SIMQ")


def test_too_few_new_outcomes_are_counted(demo: Demo) -> None:
    words = health.learning_words(replay_in(demo.out), "SIMQ")
    assert "0 of 100 new outcomes (MIN_SAMPLES_FOR_RETRAIN)" in words


def test_data_without_a_model_ask_for_a_training(demo: Demo, tmp_path: Path) -> None:
    out = demo.copy(tmp_path / "out")
    for path in out.glob("models/SIMQ/*"):
        path.unlink()
    deployment = replay_in(out)
    with pytest.raises(ValueError, match=r"no model found: run `hedge retrain --symbol SIMQ`"):
        health.learning_words(deployment, "SIMQ")
    trouble = health.model_trouble(deployment, "SIMQ")
    assert trouble is not None
    assert trouble.grave
    assert "restore models/ from the backup" in trouble.message
    said = hedge("doctor", cwd=tmp_path, HEDGE_DATA_URL=str(out), HEDGE_MODE="replay")
    assert said.returncode == 1
    assert any(
        line.startswith("FAIL model-SIMQ") and "model 4 of SIMQ has no" in line
        for line in said.stdout.splitlines()
    )


def test_a_model_that_was_changed_is_a_trouble(demo: Demo, tmp_path: Path) -> None:
    out = demo.copy(tmp_path / "out")
    (path,) = (out / "models" / "SIMQ").glob("000004-*.ubj")
    path.write_bytes(path.read_bytes()[:-1])
    trouble = health.model_trouble(replay_in(out), "SIMQ")
    assert trouble is not None
    assert trouble.name == "SIMQ: model not found"


@pytest.mark.parametrize(
    ("kind", "place"),
    [("overlay", "/"), ("tmpfs", "/srv"), ("ext4", "/srv/data"), (None, "/elsewhere")],
)
def test_a_folder_that_does_not_persist_is_found(
    tmp_path: Path, kind: str | None, place: str
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"none {place} {kind} rw 0 0\nproc /proc proc rw 0 0\n")
    assert status.filesystem_of(Path("/srv/data/x"), mounts) == kind


def test_data_on_a_container_layer_are_a_finding(
    demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "filesystem_of", lambda folder, mounts: "overlay")
    with pytest.raises(ValueError, match=r"data are not persisting .* mount a volume"):
        status._persistence(replay_in(demo.out))


def test_a_training_that_fails_again_and_again_is_told(tmp_path: Path) -> None:
    @dg.job(name="train_model", tags={"dagster/partition": "SIMQ"})
    def train_model() -> None:
        """Stands for the real one."""

    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        last = ""
        for word in ("FAILURE", "SUCCESS", "FAILURE", "FAILURE"):
            run = instance.create_run_for_job(
                train_model,
                status=dg.DagsterRunStatus[word],
                tags={"dagster/partition": "SIMQ"},
            )
            last = run.run_id
        assert upkeep.failed_trainings(instance, "SIMQ") == (2, last)
        assert upkeep.failed_trainings(instance, "SIMN") == (0, "")
    assert health.training_trouble("SIMQ", 2, last, "no disk", 3) is None
    trouble = health.training_trouble("SIMQ", 3, last, "no disk", 3)
    assert trouble is not None
    assert f"3 in a row: no disk (run {last[:8]}); " in trouble.message
    assert "`hedge retrain --symbol SIMQ`" in trouble.message


@dg.op
def _train() -> None:
    with plain_failures():
        raise StoreError("the data folder /x cannot be written: No space left on device")


@dg.op
def _train_by_mistake() -> None:
    raise ZeroDivisionError("division by zero")


def failing(instance: dg.DagsterInstance, op: dg.OpDefinition = _train) -> str:
    """A training of SIMQ that fails as the real ones do; the id of its run."""
    job = dg.GraphDefinition("train_model", node_defs=[op]).to_job(
        name="train_model", tags={"dagster/partition": "SIMQ"}
    )
    done = job.execute_in_process(instance=instance, raise_on_error=False)
    assert not done.success
    return done.run_id


def test_a_failed_training_is_a_finding_of_the_doctor_with_its_cause(
    demo: Demo, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    variables = {"HEDGE_DATA_URL": str(demo.out), "HEDGE_MODE": "replay", "DAGSTER_HOME": str(home)}
    with dg.DagsterInstance.from_config(str(home)) as instance:
        mistaken = failing(instance, _train_by_mistake)
        assert upkeep.why_it_failed(instance, mistaken).endswith("division by zero")
        run_id = failing(instance)
    said = hedge("doctor", cwd=tmp_path, **variables)
    assert said.returncode == 1
    (line,) = (x for x in said.stdout.splitlines() if "trainings" in x)
    assert line.startswith("FAIL trainings")
    assert "SIMQ: retraining failed, 2 in a row: the data folder /x cannot be" in line
    assert f"(run {run_id[:8]}); when that is mended: `hedge retrain --symbol SIMQ`" in line


def test_failed_trainings_and_lost_skill_are_alerts_once_per_period(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = demo.copy(tmp_path / "out")
    variables = environment(
        HEDGE_DATA_URL=str(out),
        HEDGE_MODE="replay",
        HEDGE_SYMBOLS="SIMQ",
        HEDGE_ALERT_URLS="json://127.0.0.1:9",
        HEDGE_ALERT_FAILED_TRAININGS="2",
    )
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    Told.sent, Told.ok = [], True
    monkeypatch.setattr(notifier, "Notifier", Told)
    night = dt.datetime(2024, 1, 13, 3, 0, tzinfo=dt.UTC)
    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home")) as instance:

        def look(hours: float) -> list[str]:
            before = len(Told.sent)
            housekeeping.watch(instance, loop_at((night + dt.timedelta(hours=hours)).isoformat()))
            return [title.removeprefix("hedge_pipeline: ") for title, _ in Told.sent[before:]]

        failing(instance)
        assert look(0) == []  # one is none
        failing(instance)
        assert look(0.1) == ["SIMQ: retraining failed"]
        assert "No space left on device" in Told.sent[-1][1]
        assert look(5) == []
        state = replay_in(out).ledger("SIMQ").state
        lost = replace(state, status=Skill.LOST, era=3)
        monkeypatch.setattr(Ledger, "state", lost)
        assert look(6) == ["SIMQ: skill lost in era 3"]
        assert look(7) == []
        assert look(12.2) == ["SIMQ: retraining failed"]
        assert look(18.1) == ["SIMQ: skill lost in era 3"]


def test_lost_skill_is_told_once_per_era(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = replay_in(demo.out)
    ledger = deployment.ledger("SIMQ")
    state = ledger.state

    class Lost:
        accepted, pinned = ledger.accepted, ledger.pinned
        state: GateState

    Lost.state = replace(state, status=Skill.LOST, era=3)
    monkeypatch.setattr(stages.Deployment, "ledger", lambda deployment, symbol: Lost())
    trouble = health.model_trouble(deployment, "SIMQ")
    assert trouble is not None
    assert (trouble.name, trouble.grave) == ("SIMQ: skill lost in era 3", False)


@pytest.mark.parametrize("table", [RAW_QUOTES, OUTCOMES, PROMOTIONS])
def test_a_broken_file_is_told_and_keeps_nothing_else_from_being_told(
    demo: Demo, tmp_path: Path, table: Table
) -> None:
    deployment = replay_in(demo.copy(tmp_path / "out"))
    parts = sorted((tmp_path / "out" / table.name).rglob("*.parquet"))
    cut = next(x for x in reversed(parts) if x.stat().st_size)
    os.truncate(cut, cut.stat().st_size // 2)
    disk = Disk("/d", 5_000_000, 1_000_000_000)
    found = replace(health.facts(deployment, None), disks=(disk,))
    troubles = health.service_troubles(deployment, settings_in(tmp_path / "out"), found)
    broken = [x for x in troubles if x.message.startswith(f"{cut} is no whole Parquet file")]
    assert [(x.name, x.grave) for x in broken] == [("data folder", True)]
    assert "disk full: /d" in {x.name for x in troubles}
    assert not health.as_json(found, troubles, deployment)["healthy"]


@pytest.mark.parametrize(
    ("table", "next_step"),
    [(RAW_QUOTES, "check the disk; materialize"), (PROMOTIONS, "promotions have lost is in a ")],
)
def test_of_what_is_lost_for_good_the_backup_is_named(
    demo: Demo, tmp_path: Path, table: Table, next_step: str
) -> None:
    deployment = replay_in(demo.copy(tmp_path / "out"))
    cut = next((tmp_path / "out" / table.name).rglob("*.parquet"))
    os.truncate(cut, cut.stat().st_size // 2)
    storage.quarantine(deployment)
    (trouble,) = health.file_troubles(deployment)
    assert next_step in trouble.message


def test_a_restoration_that_did_not_end_is_grave(tmp_path: Path) -> None:
    deployment = replay_in(tmp_path)
    deployment.store.write_bytes(UNDER_WAY, b"{}")
    (trouble,) = health.file_troubles(deployment)
    assert trouble.grave


# -- telling ---------------------------------------------------------------------------------------


def test_a_trouble_is_told_once_per_period_and_again_when_it_lasts(tmp_path: Path) -> None:
    store, every = Store(str(tmp_path)), dt.timedelta(hours=12)
    first, second = Trouble("bars", "a"), Trouble("disk", "b")
    assert health.untold(store, [first], NOW, every) == [first]
    health.mark_told(store, [first], NOW, every)
    later = NOW + dt.timedelta(hours=11)
    assert health.untold(store, [first, second], later, every) == [second]
    health.mark_told(store, [second], later, every)
    again = NOW + every
    assert health.untold(store, [first, second], again, every) == [first]
    store.write_bytes(health.TOLD, b"no json")
    assert health.untold(store, [first], NOW, every) == [first]


class Told:
    """Stands for the notifier; remembers what was sent."""

    sent: list[tuple[str, str]]
    ok = True

    def __init__(self, urls: Sequence[object]) -> None:
        self._urls = urls

    def __bool__(self) -> bool:
        return bool(self._urls)

    def send(self, text: str, title: str) -> list[Delivery]:
        Told.sent.append((title, text))
        return [Delivery("json://***", Told.ok, "")]


def test_the_watch_sends_one_alert_per_trouble_until_the_period_is_over(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = demo.copy(tmp_path / "out")
    (out / "replay.json").unlink()
    variables = environment(
        HEDGE_DATA_URL=str(out),
        HEDGE_CALENDAR="24/7",
        HEDGE_MODE="live",
        HEDGE_ALERT_URLS="json://127.0.0.1:9",
        HEDGE_BACKUP_URL="backup",
        HEDGE_DISK_BUDGET_MB="1",
    )
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    Told.sent = []
    monkeypatch.setattr(notifier, "Notifier", Told)
    now = dt.datetime(2024, 1, 12, 12, 0, tzinfo=dt.UTC)
    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home")) as instance:

        def look(hours: float) -> str:
            at = (now + dt.timedelta(hours=hours)).isoformat()
            return housekeeping.watch(instance, loop_at(at))

        Told.ok = False
        look(0)
        Told.ok = True
        words = look(0.1)  # nobody has heard it yet
        assert len(Told.sent) == 2
        title, text = Told.sent[-1]
        assert title == "hedge_pipeline: no new bar in 2024-01-12, backup, disk"
        assert "HEDGE_DISK_BUDGET_MB is 1" in text
        assert text.replace("\n", "; ") == words
        seen = json.loads((out / health.SEEN).read_text())
        assert not seen["healthy"]
        assert "; ".join(trouble["message"] for trouble in seen["troubles"]) == words
        assert seen["at"] == "2024-01-12T12:06:00+00:00"
        assert look(1) != "all is well"
        assert len(Told.sent) == 2
        look(13)
        assert len(Told.sent) == 3

        def full(store: Store, path: str, content: bytes) -> None:
            raise StoreError("the data folder cannot be written: No space left on device")

        monkeypatch.setattr(Store, "write_bytes", full)
        monkeypatch.setattr(housekeeping, "_UNWRITTEN", {})
        assert "No space left" in look(13.1)
        assert Told.sent[3:] == [
            (
                "hedge_pipeline: data folder",
                "the data folder cannot be written: No space left on device",
            )
        ]
        look(13.2)
        assert len(Told.sent) == 4


@pytest.mark.parametrize(
    ("free", "names"),
    [(200_000_000_000, []), (400_000_000, ["disk space: /d"]), (99_000_000, ["disk full: /d"])],
)
def test_a_disk_that_fills_is_said_and_grave_when_nothing_is_left(
    free: int, names: list[str]
) -> None:
    troubles = health.disk_troubles([Disk("/d", free, 1_000_000_000_000)])
    assert [trouble.name for trouble in troubles] == names
    assert [trouble.grave for trouble in troubles] == [
        name.startswith("disk full") for name in names
    ]
    for trouble in troubles:
        assert f"the disk of /d has {free / 1e6:.0f} MB left" in trouble.message
        assert trouble.message.endswith(": make room")


def test_a_read_only_disk_is_told_and_nothing_is_left_on_another(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    with mounted(tmp_path / "disk", "64k") as folder:
        home = tmp_path / "home"
        (home / "history").mkdir(parents=True)
        assert {disk.refuses for disk in disks(str(folder), home)} == {""}
        assert [*folder.iterdir(), *home.iterdir()] == [home / "history"]
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        first, second = disks(str(folder), home)
        assert (first.refuses, second.refuses) == ("Read-only file system", "")
        (trouble,) = health.disk_troubles([replace(first, free=10**10, total=10**10)])
        assert trouble.grave
        assert trouble.message.startswith(f"the disk of {folder} takes no write: Read-only file ")
        # a home that has no databases needs no write
        assert {disk.refuses for disk in disks(str(home), folder)} == {""}


def test_what_may_pass_is_told_and_is_not_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise OSError(errno.EIO, "lost")

    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "not yours")

    monkeypatch.setattr(Path, "touch", lost)
    assert refusal(tmp_path) == "Input/output error"
    assert refusal(tmp_path, (errno.EROFS,)) == ""
    monkeypatch.setattr(Path, "touch", refused)  # who looks may be somebody else
    assert refusal(tmp_path) == ""


def test_without_which_disks_nothing_can_go_on(tmp_path: Path) -> None:
    assert written_folders("s3://bucket/folder", tmp_path) == ()
    assert written_folders("data", tmp_path) == ("data",)
    (tmp_path / "history").mkdir()  # the databases of Dagster, where they are SQLite's
    assert written_folders("s3://bucket/folder", tmp_path) == (str(tmp_path),)
    assert written_folders("data", tmp_path) == (str(tmp_path), "data")


def test_a_file_system_is_looked_at_once_and_a_bucket_not_at_all(tmp_path: Path) -> None:
    (disk,) = disks(str(tmp_path / "data"), tmp_path / "data" / "dagster_home")
    assert disk.folder == str(tmp_path)  # of the folder that is to be made
    assert 0 < disk.free <= disk.total
    assert disks("s3://bucket/folder", None) == ()
    assert [x.folder for x in disks("s3://bucket/folder", tmp_path)] == [str(tmp_path)]
    kinds = {x.folder for x in disks(str(tmp_path), Path("/proc"))}
    assert kinds == {str(tmp_path), "/proc"}


def test_a_full_disk_ends_the_probe_and_machines_read_the_numbers(
    demo: Demo, tmp_path: Path
) -> None:
    disk = Disk("/d", 5_000_000, 1_000_000_000)
    deployment = replay_in(demo.out)
    found = replace(health.facts(deployment, tmp_path), disks=(disk,))
    wrong = health.service_troubles(deployment, settings_in(demo.out), found)
    shown = health.as_json(found, wrong, deployment)
    assert not shown["healthy"]
    assert shown["disks"] == [
        {"folder": "/d", "free_bytes": 5_000_000, "total_bytes": 1_000_000_000, "refuses": ""}
    ]
    assert [x["message"] for x in shown["troubles"] if x["grave"]] == [
        "the disk of /d has 5 MB left, soon nothing can be stored: make room"
    ]


# -- for machines ----------------------------------------------------------------------------------


def test_health_is_json_and_an_exit_code(tmp_path: Path) -> None:
    variables = {"HEDGE_DATA_URL": str(tmp_path / "data"), "HEDGE_SYMBOLS": "SIMQ"}
    said = hedge("health", "--json", cwd=tmp_path, HEDGE_CALENDAR="XNYS", **variables)
    found = json.loads(said.stdout)
    assert (said.returncode == 0) is found["healthy"]
    assert found["last_bar_age_seconds"] is None
    assert not (tmp_path / "data").exists()
    # round the clock a session has been open since midnight and nobody has polled
    at = dt.datetime.now(dt.UTC)
    said = hedge(
        *("health", "--json"),
        cwd=tmp_path,
        HEDGE_CALENDAR="24/7",
        HEDGE_ALERT_NO_BAR_MINUTES="2",
        **variables,
    )
    found = json.loads(said.stdout)
    if at.hour or at.minute > 5:  # in the first minutes of the day nothing is missing yet
        assert (said.returncode, found["healthy"]) == (1, False)
        assert "nobody polls" in found["troubles"][0]["message"]


def test_the_ages_are_those_of_the_newest_rows(demo: Demo, tmp_path: Path) -> None:
    deployment = replay_in(demo.out)
    last = deployment.store.read(RAW_QUOTES)["bar_ts"].max()
    deployment = replace(deployment, clock=lambda: (last + 5 * MINUTE).to_pydatetime())
    found = health.facts(deployment, None)
    shown = health.as_json(found, [], deployment)
    assert shown["last_bar_age_seconds"] == 240
    assert shown["last_outcome_age_seconds"] == 300
    assert shown["healthy"]
    assert shown["next_opening"] > str(found.now.date())


def test_a_heartbeat_is_the_last_poll(tmp_path: Path) -> None:
    deployment = replace(replay_in(tmp_path), clock=lambda: NOW)
    Heartbeat("run", (NOW - MINUTE).isoformat(), "2026-03-09").write(deployment.store)
    assert health.facts(deployment, None).last_poll == NOW - MINUTE


@pytest.mark.parametrize("replayed", [True, False])
def test_nobody_polls_a_replay_so_it_lacks_no_bars_while_the_exchange_is_open(
    tmp_path: Path, replayed: bool
) -> None:
    deployment = replace(replay_in(tmp_path), clock=lambda: NOW, replay=replayed)
    troubles = health.live_troubles(health.facts(deployment, None), PATIENCE)
    assert [trouble.name for trouble in troubles] == (
        [] if replayed else ["no new bar in 2026-03-09"]
    )
