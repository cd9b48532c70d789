"""README and docs: every command in them exists and parses, the quick ones run, links resolve."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from hedge_pipeline import cli
from hedge_pipeline.market.tables import OUTCOMES, PROMOTIONS, RAW_QUOTES
from hedge_pipeline.settings import Settings
from hedge_pipeline.store import Store
from hedge_pipeline_tests import configuration
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
LEGACY = """\
timestamp,symbol,entry_price,exit_price,return_pct,actual_direction
2024-01-02 10:00:00,SIMQ,400,401,0.25,1
"""


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
    "doctor",
    "storage --quarantine",
    "history --symbol SIMQ",
    "rebuild-evidence --symbol SIMQ",
    "import-legacy old",
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
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "outcomes.csv").write_text(LEGACY)
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


def written_in(document: str, program: str, *words: str) -> list[str]:
    """The one command of a document that has the words; its arguments."""
    lines = [words_of(line) for line in lines_of(REPOSITORY / document)]
    (found,) = (
        line[1:] for line in lines if line and Path(line[0]).name == program and {*words} <= {*line}
    )
    return found


def test_the_replay_of_a_file_runs_as_it_is_written(demo: Demo, tmp_path: Path) -> None:
    bars = demo.store.read(RAW_QUOTES, ["2024-01-02"]).rename(columns={"bar_ts": "ts"})
    bars["symbol"] = bars["symbol"].map({"SIMQ": "QQQ", "SIMN": "SPY"})
    columns = ["symbol", "ts", "open", "high", "low", "close", "volume"]
    bars[columns].to_parquet(tmp_path / "bars.parquet")
    arguments = written_in("README.md", "hedge", "replay")
    said = hedge(*arguments, cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    for name in ("mlflow.db", "summary.json", "prediction_log/session=2024-01-02"):
        assert (tmp_path / "replay" / name).exists()


@pytest.mark.slow
def test_the_assets_are_materialized_as_it_is_written(tmp_path: Path) -> None:
    """Nine sessions and a first model, by `dagster` and nothing else."""
    place = environment(
        DAGSTER_HOME=str(tmp_path),
        HEDGE_DATA_URL=str(tmp_path / "data"),
        PYTHONPATH=str(REPOSITORY),
    )
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    for words in (("--partition-range",), ("--partition",)):
        line = [str(Path(sys.executable).parent / "dagster")]
        line += written_in("README.md", "dagster", "materialize", *words)
        done = subprocess.run(
            line,
            cwd=REPOSITORY,
            env=place,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    store = Store(str(tmp_path / "data"))
    assert store.sessions(OUTCOMES)[::8] == ("2024-01-02", "2024-01-12")
    assert list(store.read(PROMOTIONS)["kind"]).count("verdict") == 1


def test_the_lines_of_the_shell_prepare_what_they_say(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "dagster.yaml", tmp_path)
    text = (REPOSITORY / "README.md").read_text()
    (settings,) = re.findall(r"^cat > \.env <<'END'\n.*?\nEND$", text, re.DOTALL | re.MULTILINE)
    (home,) = re.findall(r"^mkdir -p \.dagster_home.*?(?=\n\S*dagster dev)", text, re.DOTALL | re.M)
    script = f"set -e\n{settings}\n{home}\necho $DAGSTER_HOME\n"
    said = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert Path(said.stdout.strip(), "dagster.yaml").is_file()
    found = Settings(_env_file=tmp_path / ".env")
    assert (found.source, found.symbols) == ("yahoo", ("QQQ", "SPY"))


# what needs a service, weeks of data, a receiver or an extra, and the test that runs it
ELSEWHERE = {
    "up": ("test_service.py", 'command("up", '),
    "health": ("test_health.py", '"health", "--json"'),
    "promote": ("test_control.py", 'invoke(out, "promote"'),
    "rollback": ("test_control.py", 'invoke(out, "rollback"'),
    "bootstrap": ("test_secrets.py", '"bootstrap", "--days"'),
    "retrain": ("test_cli.py", '"retrain"'),
    "search": ("test_hyperparameters.py", '["search", "--symbol"'),
    "alert-test": ("resources/test_notifier.py", '["alert-test"]'),
    "demo": ("replays.py", '("demo", "--sessions"'),
}
# Docker and Make are not run: an image takes minutes and a daemon, and `make check` is these tests
NOT_RUN = {"docker", "make"}


def test_every_command_of_the_documents_is_run_by_a_test() -> None:
    run_here = {line.split()[0] for line in QUICK} | {"replay", "--install-completion"}
    assert {words[0] for _, words in hedge_commands()} - run_here - set(ELSEWHERE) == set()
    for file, call in ELSEWHERE.values():
        assert call in (REPOSITORY / "hedge_pipeline_tests" / file).read_text()
    programs = {
        Path(words[0]).name
        for path in DOCUMENTS
        for line in lines_of(path)
        if (words := words_of(line))
    }
    assert programs - {"hedge", "dagster", "mkdir", "export", "cat"} == NOT_RUN


def test_the_table_of_settings_is_what_the_code_reads() -> None:
    assert configuration.PAGE.read_text() == configuration.page()
    aliases = {str(field.alias) for field in Settings.model_fields.values()}
    assert set(re.findall(r"^\| `(\w+)` \|", configuration.page(), re.MULTILINE)) == aliases
    assert set(configuration.PARTS) <= aliases


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
