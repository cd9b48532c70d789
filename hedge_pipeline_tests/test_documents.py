"""README and docs: every command in them exists and parses, the quick ones run, links resolve."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from hedge_pipeline import cli
from hedge_pipeline_tests.replays import Demo, demo_in, environment, hedge

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    {
        REPOSITORY / "README.md",
        *(REPOSITORY / "docs").glob("*.md"),
        *(REPOSITORY / "deploy").rglob("*.md"),
    }
)
COMMANDS: dict[str, Any] = vars(typer.main.get_command(cli.app))["commands"]
PLACEHOLDERS = {"[URL]", "DIR"}
LARGEST_PICTURE = 150_000


def lines_of(path: Path) -> Iterator[str]:
    """Command lines of the fenced blocks, joined where they go on."""
    text = path.read_text()
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        without_files = re.sub(r"<<'END'\n.*?\nEND", "", block, flags=re.DOTALL)
        yield from without_files.replace("\\\n", " ").splitlines()


def words_of(line: str) -> list[str]:
    return shlex.split(line, comments=True)


def hedge_commands() -> list[tuple[str, tuple[str, ...]]]:
    """Every use of `hedge` with its arguments, in blocks and in running text."""
    found: set[tuple[str, tuple[str, ...]]] = set()
    for path in DOCUMENTS:
        for line in lines_of(path):
            words = words_of(line)
            # docker exec hedge hedge status: the last one is the program
            places = [i for i, word in enumerate(words) if Path(word).name == "hedge"]
            if places and (path.parent.name != "deploy" or words[:2] == ["docker", "exec"]):
                found.add((path.name, tuple(words[places[-1] + 1 :])))
        for code in re.findall(r"`hedge\s([^`]+)`", path.read_text()):
            found.add((path.name, tuple(x for x in words_of(code) if x not in PLACEHOLDERS)))
    return sorted(found)


def short(value: object) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize(("document", "arguments"), hedge_commands(), ids=short)
def test_every_command_of_hedge_exists_and_its_options_parse(
    document: str, arguments: tuple[str, ...]
) -> None:
    name, *given = arguments
    if name.startswith("--"):
        assert name == "--install-completion"
        return
    assert name in COMMANDS
    # running text leaves out what a command needs besides
    words = list(given)
    for parameter in COMMANDS[name].params:
        if parameter.required and parameter.param_type_name == "option":
            words += [] if set(parameter.opts) & set(given) else [parameter.opts[0], "1"]
        elif parameter.required and all(word.startswith("-") for word in given):
            words.append("1")
    COMMANDS[name].make_context(name, words)


def test_every_command_is_in_the_readme() -> None:
    table = re.findall(r"^\| (`hedge .*?) \|", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    shown = {word.removeprefix("hedge ").split()[0] for word in re.findall("`([^`]+)`", str(table))}
    assert set(COMMANDS) - shown == {"up"}  # `make up`
    assert shown <= set(COMMANDS)


def dagster_commands() -> list[tuple[str, ...]]:
    found = set()
    for path in DOCUMENTS:
        for line in lines_of(path):
            words = words_of(line)
            if words and Path(words[0]).name == "dagster":
                found.add(tuple(words[1:]))
    return sorted(found)


@pytest.mark.parametrize("arguments", dagster_commands(), ids=short)
def test_every_command_of_dagster_parses_and_names_what_there_is(
    arguments: tuple[str, ...],
) -> None:
    from hedge_pipeline.definitions import defs

    (program,) = (x for x in entry_points(group="console_scripts") if x.name == "dagster")
    command: Any = program.load().__globals__["create_dagster_cli"]()
    rest = list(arguments)
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    given = command.make_context("dagster", rest).params
    assets = {key.to_user_string() for key in defs().resolve_asset_graph().get_all_asset_keys()}
    if "select" in given:
        assert set(given["select"].split(",")) <= assets
    for file in given.get("workspace") or ():
        assert (REPOSITORY / file).is_file()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_file_resolves(path: Path) -> None:
    text = path.read_text()
    links = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    local = [x for x in links if "://" not in x]
    assert [x for x in local if not (path.parent / x).exists()] == []


def test_the_readme_shows_a_small_picture_of_each_ui() -> None:
    shown = re.findall(r'src="([^"]+)"', (REPOSITORY / "README.md").read_text())
    assert sorted(shown) == ["docs/images/dagster.png", "docs/images/mlflow.png"]
    for name in shown:
        content = (REPOSITORY / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) < LARGEST_PICTURE


def test_every_target_of_make_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        used = {w[i + 1] for line in lines_of(path) for w in [words_of(line)] for i in _makes(w)}
        assert used <= targets


def _makes(words: list[str]) -> list[int]:
    return [i for i, word in enumerate(words[:-1]) if word == "make"]


# -- the quick ones run ----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return demo_in(tmp_path_factory.getbasetemp())


QUICK = (
    "status",
    "storage",
    "history --symbol SIMQ",
    "rebuild-evidence --symbol SIMQ",
    "report --out report.html",
    "watch --once",
    "backup saved",
    "restore saved --verify",
)


@pytest.mark.parametrize("json", ["", " --json"], ids=["words", "json"])
def test_the_quick_commands_run_one_after_the_other(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, json: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)
    place = {
        "HEDGE_DATA_URL": str(demo.copy(tmp_path / "out")),
        "HEDGE_MODE": "replay",
        "DAGSTER_HOME": str(tmp_path / "home"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }
    for line in QUICK:
        done = CliRunner().invoke(cli.app, f"{line}{json}", env=place)
        assert done.exit_code == 0, f"{line}: {done.output}"
        assert done.stdout.startswith(("{", "[")) is bool(json)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_installed_and_knows_the_commands(tmp_path: Path, shell: str) -> None:
    place = {
        "HOME": str(tmp_path),
        "SHELL": f"/bin/{shell}",
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    said = hedge("--show-completion", shell, cwd=tmp_path, **place)
    assert said.returncode == 0, said.stderr
    done = hedge("--install-completion", shell, cwd=tmp_path, **place)
    assert done.returncode == 0, done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()]
