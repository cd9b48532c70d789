"""`hedge`: what a user types, what comes back, and the one line that a mistake gets."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from hedge_pipeline import cli, service, stages
from hedge_pipeline.market.tables import OUTCOMES, PROMOTIONS
from hedge_pipeline.resources.registry import MlflowRegistry
from hedge_pipeline_tests.replays import (
    DEMO_SESSIONS,
    SYMBOLS,
    Demo,
    demo_in,
    environment,
    hedge,
    replay_in,
    rows_of,
)
from hedge_pipeline_tests.runs import files

REPOSITORY = Path(__file__).resolve().parent.parent
COMMANDS = tuple(vars(typer.main.get_command(cli.app))["commands"])
CHECKS = ["configuration", "calendar", "store", "source", "mlflow", "clock", "files", "databases"]
CHECKS += ["model-SIMQ", "model-SIMN", "persistence", "backup", "daemon", "trainings"]
UNREADABLE = ["store", "mlflow", "files", "model-SIMQ", "model-SIMN"]
BARS = """symbol,ts,open,high,low,close,volume
QQQ,2024-01-02T14:30:00Z,400,401,399,400.5,1000
QQQ,2024-01-02T14:31:00Z,400.5,402,400,401,900
"""


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return demo_in(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither variables of ours nor a `.env` change what the tests do."""
    monkeypatch.chdir(tmp_path)
    # where the tests run, temporary folders may lie on a disk that is not kept
    monkeypatch.setattr("hedge_pipeline.status.filesystem_of", lambda folder, mounts: "ext4")
    wanted = environment()
    for name in list(os.environ):
        if name not in wanted:
            monkeypatch.delenv(name)


def invoke(*arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(cli.app, arguments, env={"HEDGE_DATA_URL": "data", **variables})


def looking_at(demo: Demo) -> dict[str, str]:
    return {"HEDGE_DATA_URL": str(demo.out), "HEDGE_MODE": "replay"}


# -- help ------------------------------------------------------------------------------------------


def test_help_names_every_command() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    assert all(name in result.output for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_has_json(name: str) -> None:
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.output
    assert "--json" in result.output


# -- what is printed -------------------------------------------------------------------------------


def test_the_demo_prints_the_summary_as_json_and_nothing_else(demo: Demo) -> None:
    assert demo.said.returncode == 0
    assert json.loads(demo.said.stdout) == demo.summary
    assert demo.said.stderr == ""


def test_the_demo_leaves_tables_summary_plot_and_mlflow(demo: Demo) -> None:
    names = {path.name for path in demo.out.iterdir()}
    assert {"raw_quotes", "summary.json", "demo.png", "mlflow.db", "mlartifacts"} <= names
    assert (demo.out / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert demo.summary["sessions"] == DEMO_SESSIONS


def test_replaying_the_demo_again_prints_the_same_numbers_for_people(
    demo: Demo, tmp_path: Path
) -> None:
    out = demo.copy(tmp_path / "out")
    result = invoke(
        *("replay", "--out", str(out), "--source", "simulated", "--symbols", "SIMQ,SIMN"),
        *("--from", "2024-01-02", "--to", "2024-01-11", "--no-registry"),
    )
    assert result.exit_code == 0, result.output
    assert f"{DEMO_SESSIONS} sessions replayed into" in result.stdout
    assert f"{demo.summary['bars']:,} bars, 0 gaps" in result.stdout
    part = demo.summary["per_symbol"]["SIMQ"]
    row = next(line for line in result.stdout.splitlines() if line.strip().startswith("SIMQ"))
    assert f"{part['predictions']:,}" in row
    assert f"{part['accuracy']['value']:.3f}" in row
    assert f"{part['accuracy']['base_rate']:.3f}" in row
    assert "unproven" in row
    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= 80
    assert json.loads((out / "summary.json").read_text())["accuracy"] == demo.summary["accuracy"]


def test_replay_prints_the_summary_as_json(tmp_path: Path) -> None:
    (tmp_path / "bars.csv").write_text(BARS)
    result = invoke(
        *("replay", "--out", "out", "--source", "file", "--path", "bars.csv"),
        *("--symbols", "QQQ", "--no-registry", "--json"),
    )
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["sessions"], summary["bars"], summary["gaps"]) == (1, 2, 388)
    assert summary["accuracy"]["value"] is None
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())


def test_status_is_json_for_machines_and_a_table_for_people(demo: Demo) -> None:
    found = json.loads(invoke("status", "--json", **looking_at(demo)).stdout)
    assert set(found["symbols"]) == set(SYMBOLS)
    shown = invoke("status", **looking_at(demo)).stdout
    assert f"{found['symbols']['SIMQ']['predictions']:,}" in shown
    assert found["sessions"][-1]["session"] in shown


def test_status_of_nothing_is_no_error() -> None:
    result = invoke("status")
    assert result.exit_code == 0
    assert "no session is stored yet" in result.stdout


def test_the_doctor_has_one_line_per_check_and_succeeds_on_a_healthy_store(demo: Demo) -> None:
    result = invoke("doctor", **looking_at(demo))
    lines = result.stdout.splitlines()
    assert result.exit_code == 0, result.stdout
    assert [line.split()[:2] for line in lines] == [["ok", name] for name in CHECKS]


def test_the_doctor_says_what_is_wrong_and_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = invoke("doctor", "--json", HEDGE_DATA_URL=str(tmp_path / "file" / "data"))
    findings = {finding["name"]: finding for finding in json.loads(result.stdout)}
    assert result.exit_code == 1
    assert list(findings) == CHECKS
    assert [name for name in CHECKS if not findings[name]["ok"]] == UNREADABLE
    assert "Not a directory" in findings["store"]["message"]


def test_the_doctor_keeps_one_line_per_check_when_several_fail(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = invoke("doctor", HEDGE_DATA_URL=str(tmp_path / "file" / "data"))
    marks = {line.split()[1]: line.split()[0] for line in result.stdout.splitlines()}
    assert marks == dict.fromkeys(CHECKS, "ok") | dict.fromkeys(UNREADABLE, "FAIL")


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}], ids=["no terminal", "NO_COLOR"])
@pytest.mark.parametrize("command", ["status", "doctor", "retrain --symbol NIX", "--help"])
def test_what_is_no_terminal_gets_no_escape_codes(
    demo: Demo, command: str, variables: dict[str, str]
) -> None:
    result = invoke(*command.split(), **looking_at(demo), **variables)
    assert result.output
    assert "\x1b" not in result.output


# -- mistakes --------------------------------------------------------------------------------------

REPLAY = ("replay", "--out", "out", "--no-registry")
FILE = (*REPLAY, "--source", "file", "--path", "bars.csv")
MISTAKES: dict[str, tuple[tuple[str, ...], dict[str, str], str]] = {
    "a symbol that is not watched": (
        ("retrain", "--symbol", "NIX"),
        {},
        "NIX is not watched; HEDGE_SYMBOLS has SIMQ, SIMN",
    ),
    "a variable out of range": (
        ("status",),
        {"RETRAIN_HOUR": "25"},
        "RETRAIN_HOUR='25': input should be less than or equal to 23",
    ),
    "a symbol that is no symbol": (
        (*REPLAY, "--symbols", "A B"),
        {},
        "'A B' is no symbol: letters or digits, and . - ^ = among them",
    ),
    "a history that begins later": (
        ("status",),
        {"HEDGE_HISTORY_START": "2999-01-04"},
        "HEDGE_HISTORY_START='2999-01-04': must not lie in the future",
    ),
    "an unknown source": ((*REPLAY, "--source", "nix"), {}, "nix"),
    "a symbol the simulated market has not": (
        (*REPLAY, "--source", "simulated", "--symbols", "QQQ"),
        {},
        "the simulated market has no symbol QQQ",
    ),
    "a file source without a file": (
        (*REPLAY, "--source", "file", "--symbols", "QQQ"),
        {},
        "the file source needs a file or folder: --path or HEDGE_SOURCE_PATH",
    ),
    "a file that is not there": (
        (*REPLAY, "--source", "file", "--path", "nix.csv", "--symbols", "QQQ"),
        {},
        "nix.csv: no such file or folder",
    ),
    "a file without the symbol": (
        (*FILE, "--symbols", "SPY"),
        {},
        "no file has bars of SPY; they have QQQ",
    ),
    "a file without one of two symbols": (
        (*FILE, "--symbols", "QQQ,SPY"),
        {},
        "no file has bars of SPY; they have QQQ",
    ),
    "a date that is none": ((*REPLAY, "--from", "2024-02-30"), {}, "'2024-02-30' is no ISO date"),
    "a date in another form": ((*REPLAY, "--from", "20240102"), {}, "'20240102' is no ISO date"),
    "a last session that is no date": ((*REPLAY, "--to", "tomorrow"), {}, "'tomorrow' is no ISO"),
    "dates in the wrong order": (
        (*REPLAY, "--from", "2024-02-05", "--to", "2024-02-01"),
        {},
        "no session of XNYS that is over lies between 2024-02-05 and 2024-02-01",
    ),
    "dates before the history": ((*REPLAY, "--to", "1999-12-31"), {}, "no session of XNYS"),
    "a data folder below a file": (
        ("replay", "--out", "bars.csv/out", "--to", "2024-01-02"),
        {},
        "the data folder bars.csv/out cannot be written: Not a directory",
    ),
    "a demo below a file": (
        ("demo", "--out", "bars.csv/out", "--sessions", "6"),
        {},
        "the data folder bars.csv/out cannot be written: Not a directory",
    ),
    "the status of a folder below a file": (
        ("status",),
        {"HEDGE_DATA_URL": "bars.csv/data"},
        "the data folder bars.csv/data cannot be read: Not a directory",
    ),
    "a log of the system before in no folder": (
        ("import-legacy", "nix"),
        {},
        "nix: no such folder",
    ),
    "a log of the system before in a folder without it": (
        ("import-legacy", "."),
        {},
        "none of predictions.csv, features.csv, outcomes.csv is in there",
    ),
    "a retraining of one of several symbols": (
        ("retrain",),
        {"HEDGE_SYMBOLS": "SIMQ,SIMN"},
        "name one of SIMQ, SIMN with --symbol",
    ),
    "a search for a symbol that is not watched": (
        ("search", "--symbol", "NIX"),
        {},
        "NIX is not watched; HEDGE_SYMBOLS has SIMQ, SIMN",
    ),
    "a search in nothing": (
        ("search", "--symbol", "SIMQ"),
        {"HEDGE_CALENDAR": "XNYS"},
        "SIMQ: 0 of the 35 sessions a search needs have outcomes",
    ),
    "a training of nothing": (
        ("retrain", "--symbol", "SIMQ"),
        {},
        "nothing trained: SIMQ has 0 new outcomes, 1 are needed",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(tmp_path: Path, mistake: str) -> None:
    arguments, variables, said = MISTAKES[mistake]
    (tmp_path / "bars.csv").write_text(BARS)
    result = invoke(*arguments, **variables)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert {path.name for path in tmp_path.rglob("*")} == {"bars.csv"}


CALLED_WRONGLY = {
    "nonsense": "No such command 'nonsense'; see `hedge --help`",
    "status --nix": "No such option: --nix; see `hedge status --help`",
    "rollback": "Missing option '--reason'; see `hedge rollback --help`",
    "demo --sessions 1": "Invalid value for '--sessions': Input should be greater than or equal "
    "to 6; see `hedge demo --help`",
    "up --port 99999": "Invalid value for '--port': Input should be less than or equal to 65535; "
    "see `hedge up --help`",
    "up --mlflow-port=-1": "Invalid value for '--mlflow-port': Input should be greater than or "
    "equal to 1; see `hedge up --help`",
}


@pytest.mark.parametrize("command", CALLED_WRONGLY)
def test_a_wrong_call_is_one_line_with_the_next_step(command: str) -> None:
    result = invoke(*command.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: {CALLED_WRONGLY[command]}\n"


def test_without_a_command_there_is_help() -> None:
    result = invoke()
    assert result.exit_code == 2
    assert "Usage: " in result.output and "error" not in result.output


@pytest.mark.parametrize(
    "command", ["status", "retrain --symbol simq", "import-legacy old", "bootstrap", "up"]
)
def test_a_replay_is_not_taken_for_live_data(demo: Demo, command: str) -> None:
    before = files(demo.out)
    Path("dagster.yaml").touch()
    result = invoke(*command.split(), HEDGE_DATA_URL=str(demo.out))
    assert result.exit_code == 1
    assert files(demo.out) == before
    assert result.stderr == f"error: {demo.out} holds a replay: set HEDGE_MODE=replay\n"


def test_a_mistake_is_one_line_in_a_process_of_its_own(tmp_path: Path) -> None:
    said = hedge("replay", "--out", "out", "--source", "file", "--symbols", "QQQ", cwd=tmp_path)
    assert said.returncode == 1
    assert said.stdout == ""
    assert said.stderr.count("\n") == 1
    assert said.stderr.startswith("error: the file source needs")


# -- retraining by hand ----------------------------------------------------------------------------


@pytest.fixture
def with_new_outcomes(demo: Demo, tmp_path: Path) -> dict[str, str]:
    """The variables of a store with a session more than the newest model has seen."""
    out = demo.copy(tmp_path / "out")
    deployment = replay_in(out)
    label = deployment.calendar.labels[DEMO_SESSIONS]
    stages.collect(deployment, label)
    stages.build_features(deployment, label)
    stages.log_predictions(deployment, label)
    stages.mature_outcomes(deployment, label)
    return {
        "HEDGE_DATA_URL": str(out),
        "HEDGE_MODE": "replay",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
    }


def test_retraining_by_hand_trains_once_says_the_verdict_and_publishes(
    with_new_outcomes: dict[str, str], tmp_path: Path
) -> None:
    arguments = ("retrain", "--symbol", "SIMQ", "--min-samples", "50")
    first = invoke(*arguments, **with_new_outcomes)
    assert first.exit_code == 0, first.output
    assert "SIMQ: trained version 5 on" in first.stdout
    assert "of 9 sessions to 2024-01-12" in " ".join(first.stdout.split())
    assert "hold: skill unproven" in first.stdout
    deployment = replay_in(Path(with_new_outcomes["HEDGE_DATA_URL"]))
    verdicts = rows_of(deployment.store, PROMOTIONS, symbols=["SIMQ"]).query("kind == 'verdict'")
    assert sorted(verdicts["model_version"]) == [1, 2, 3, 4, 5]
    registry = MlflowRegistry(with_new_outcomes["MLFLOW_TRACKING_URI"])
    assert registry.versions("SIMQ") == frozenset({1, 2, 3, 4, 5})

    second = invoke(*arguments, **with_new_outcomes)
    assert second.exit_code == 1
    assert second.stderr == "error: nothing trained: SIMQ has 0 new outcomes, 50 are needed\n"
    assert deployment.shelf.versions("SIMQ") == (1, 2, 3, 4, 5)


def test_retraining_by_hand_waits_for_as_many_outcomes_as_asked_for(
    with_new_outcomes: dict[str, str],
) -> None:
    deployment = replay_in(Path(with_new_outcomes["HEDGE_DATA_URL"]))
    label = deployment.calendar.labels[DEMO_SESSIONS]
    outcomes = rows_of(deployment.store, OUTCOMES, [label], ["SIMQ"])
    new = int(outcomes["status"].isin(["up", "down"]).sum())
    arguments = ("retrain", "--symbol", "SIMQ", "--min-samples", str(new + 1))
    result = invoke(*arguments, **with_new_outcomes)
    assert result.exit_code == 1
    said = f"error: nothing trained: SIMQ has {new} new outcomes, {new + 1} are needed\n"
    assert result.stderr == said


def test_retraining_by_hand_is_json_for_machines(
    with_new_outcomes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MlflowRegistry, "publish", lambda *given, **named: 0)
    result = invoke("retrain", "--symbol", "SIMN", "--json", **with_new_outcomes)
    found: dict[str, Any] = json.loads(result.stdout)
    assert {k: found[k] for k in ("symbol", "version", "new", "cutoff")} == {
        "symbol": "SIMN",
        "version": 5,
        "new": True,
        "cutoff": "2024-01-12",
    }
    assert found["verdict"].startswith("hold: ")


def test_a_second_service_in_the_same_home_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    Path("dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with (home / "service.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = invoke("up", "--headless", DAGSTER_HOME=str(home), HEDGE_DATA_URL=str(tmp_path))
        prepared = invoke("up", "--prepare", DAGSTER_HOME=str(home), HEDGE_DATA_URL=str(tmp_path))
    for said in (done, prepared):
        assert said.exit_code == 1
        assert f"uses {home}: stop it first" in said.stderr
    assert not (home / "history").exists()
    prepared = invoke("up", "--prepare", DAGSTER_HOME=str(home), HEDGE_DATA_URL=str(tmp_path))
    assert (prepared.exit_code, prepared.stdout) == (0, "no run was left over\n")


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "no run was left over"),
        (1, "1 run was left over and is reported as failed"),
        (2, "2 runs were left over and are reported as failed"),
    ],
)
def test_runs_that_were_left_over_are_counted_in_words(count: int, words: str) -> None:
    assert service.left_over_words(count) == words


def test_a_dagster_yaml_that_is_a_folder_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Docker makes one of a file that it was to mount and that is not there."""
    monkeypatch.chdir(REPOSITORY)
    (tmp_path / "home" / "dagster.yaml").mkdir(parents=True)
    refused = invoke("up", "--prepare", DAGSTER_HOME=str(tmp_path / "home"))
    assert refused.exit_code == 1
    (line,) = refused.stderr.strip().splitlines()
    assert "Is a directory" in line


def test_a_dagster_yaml_cut_at_any_byte_is_known_for_what_it_is(tmp_path: Path) -> None:
    whole = (REPOSITORY / "dagster.yaml").read_bytes()
    cut = [length for length in range(len(whole)) if service._is_cut(whole[:length], whole)]
    # one that ends with a line may be somebody's wish; the others are made anew
    assert len(whole) - len(cut) == whole.count(b"\n") - 1
    assert not service._is_cut(whole, whole)
    assert not service._is_cut(b"telemetry: {enabled: false}", whole)


@pytest.mark.parametrize("length", [0, 1000])
def test_a_dagster_yaml_that_a_power_loss_has_cut_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.chdir(REPOSITORY)
    own = tmp_path / "home" / "dagster.yaml"
    own.parent.mkdir()
    own.write_bytes((REPOSITORY / "dagster.yaml").read_bytes()[:length])
    prepared = invoke("up", "--prepare", DAGSTER_HOME=str(own.parent))
    assert prepared.exit_code == 0, prepared.output
    assert own.read_bytes() == (REPOSITORY / "dagster.yaml").read_bytes()
    assert not list(own.parent.glob(".dagster.yaml*"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dagster.yaml", b"run_launcher: {module: hedge_pi"),
        ("history/runs.db", b"half of a database" * 100),
    ],
)
def test_a_damaged_home_is_one_line_and_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    monkeypatch.chdir(REPOSITORY)
    home = tmp_path / "home"
    (home / "history").mkdir(parents=True)
    (home / name).write_bytes(content)
    refused = invoke("up", "--prepare", DAGSTER_HOME=str(home))
    assert refused.exit_code == 1
    (line,) = refused.stderr.strip().splitlines()
    assert f"{home / 'dagster.yaml'}, or a database it names, cannot be used: " in line
    assert (home / name).read_bytes() == content


@pytest.mark.parametrize("option", ["--prepare", "--headless"])
def test_a_home_that_cannot_be_written_is_one_line(tmp_path: Path, option: str) -> None:
    Path("dagster.yaml").write_text("telemetry: {enabled: false}\n")
    done = invoke("up", option, DAGSTER_HOME="dagster.yaml/home")
    home = tmp_path / "dagster.yaml" / "home"
    assert done.exit_code == 1
    assert done.stderr == (
        f"error: {home} cannot be written: Not a directory; set DAGSTER_HOME to a folder that can "
        "be\n"
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield int(listening.getsockname()[1])


def test_a_port_that_is_in_use_is_one_line_with_its_option(taken: int) -> None:
    Path("dagster.yaml").write_text("telemetry: {enabled: false}\n")
    done = invoke("up", "--mlflow-port", str(taken), "--port", str(free_port()))
    assert done.exit_code == 1
    line = f"error: port {taken} is in use: choose another with --mlflow-port\n"
    assert done.stderr == line


def test_two_uis_with_one_port_are_one_line() -> None:
    Path("dagster.yaml").write_text("telemetry: {enabled: false}\n")
    done = invoke("up", "--port", "5000")
    assert done.exit_code == 1
    assert done.stderr == "error: both UIs cannot have port 5000: change --mlflow-port\n"


def test_a_port_that_is_the_system_s_is_one_line_with_its_option(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever runs the tests may be allowed to take it."""

    def refused(own: socket.socket, address: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    Path("dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setattr(socket.socket, "bind", refused)
    done = invoke("up", "--port", "80")
    assert done.exit_code == 1
    assert done.stderr == (
        "error: port 80 is for the system's own services only: choose another with --port\n"
    )


def test_the_addresses_it_says_are_those_a_browser_needs(taken: int) -> None:
    Path("dagster.yaml").write_text("telemetry: {enabled: false}\n")
    ports = ("--port", str(taken), "--mlflow-port", "5000")  # it goes no further than this
    said = invoke("up", *ports).stdout
    assert f"Dagster http://127.0.0.1:{taken}\nMLflow  http://127.0.0.1:5000/#/exp" in said
    proxied = {"HEDGE_BEHIND_PROXY": "true", "HEDGE_MLFLOW_URL": "https://there/ml/"}
    said = invoke("up", *ports, **proxied).stdout
    assert "Dagster" not in said
    assert "MLflow  https://there/ml/#/experiments" in said
    found = json.loads(invoke("up", *ports, "--json", **proxied).stdout)
    assert set(found) == {"mlflow"}
    assert json.loads(invoke("up", *ports, "--json").stdout)["dagster"].endswith(f":{taken}")
