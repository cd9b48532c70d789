"""Processes that are kept running: who is started again, who is left alone, and how all end."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hedge_pipeline import processes
from hedge_pipeline.processes import MOST_FAILURES, Keeper

PATIENCE = 20.0
LIVES = "echo $$ >> {file}; while :; do sleep 0.1; done"


class Story:
    """A keeper that runs in the test's thread while another one acts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.keeper = Keeper(dict(os.environ), say=self.lines.append)

    def add(self, name: str, command: str = LIVES) -> None:
        self.keeper.add(name, command.format(file=self.folder / name))

    def starts(self, name: str) -> list[int]:
        """Process ids of the starts so far."""
        with contextlib.suppress(FileNotFoundError):
            return [int(line) for line in (self.folder / name).read_text().split()]
        return []

    def run(self, act: Callable[[], None], number: int = signal.SIGTERM) -> int:
        """Exit code of the keeper, which is sent the signal after the action."""
        failed: list[BaseException] = []

        def other() -> None:
            try:
                act()
            except BaseException as error:
                failed.append(error)
            finally:
                if not ended.is_set():
                    os.kill(os.getpid(), number)

        ended = threading.Event()
        acting = threading.Thread(target=other)
        acting.start()
        code = self.keeper.run()
        ended.set()
        acting.join()
        if failed:
            raise failed[0]
        return code


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(processes, "LOOK_EVERY_SECONDS", 0.02)
    monkeypatch.setattr(processes, "LONGEST_PAUSE_SECONDS", 0.1)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    yield
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lives(process: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_killed_process_is_started_again_and_its_sibling_is_left_alone(story: Story) -> None:
    story.add("one")
    story.add("two")

    def act() -> None:
        wait_until(lambda: story.starts("one") and story.starts("two"))
        os.kill(story.starts("one")[0], signal.SIGKILL)
        wait_until(lambda: len(story.starts("one")) == 2)

    story.run(act)
    first, second = story.starts("one")
    assert first != second
    assert len(story.starts("two")) == 1
    assert not any(lives(x) for x in [*story.starts("one"), *story.starts("two")])
    assert next(x for x in story.lines if "SIGKILL" in x).endswith(
        "one     | ended (SIGKILL), starts again in 0.1 s"
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_every_process_and_what_it_has_started(
    story: Story, number: int, code: int
) -> None:
    story.add("parent", "sh -c 'echo $$ >> {file}; exec sleep 100' & echo $$ >> {file}; wait")
    assert story.run(lambda: wait_until(lambda: len(story.starts("parent")) == 2), number) == code
    assert not any(lives(process) for process in story.starts("parent"))


def test_what_a_killed_process_left_running_goes_on_and_ends_with_the_rest(story: Story) -> None:
    story.add("parent", "sh -c 'echo $$ >> {file}; exec sleep 100' & wait")

    def act() -> None:
        wait_until(lambda: len(story.starts("parent")) == 1)
        (orphan,) = story.starts("parent")
        os.kill(os.getpgid(orphan), signal.SIGKILL)
        wait_until(lambda: len(story.starts("parent")) == 2)
        assert lives(orphan)

    story.run(act)
    assert not any(lives(process) for process in story.starts("parent"))


def test_who_does_not_listen_is_killed(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE_SECONDS", 0.5)
    story.add("deaf", f"trap '' TERM INT; {LIVES}")
    assert story.run(lambda: wait_until(lambda: story.starts("deaf"))) == 143
    assert not lives(story.starts("deaf")[0])


def test_what_ends_after_every_start_ends_the_others_too(story: Story) -> None:
    story.add("lasting")
    story.add("broken", "echo $$ >> {file}; echo no such module; exit 3")
    assert story.keeper.run() == 1
    assert len(story.starts("broken")) == MOST_FAILURES
    assert not lives(story.starts("lasting")[0])
    assert story.lines.count(story.lines[-1]) == 1
    assert f"broken  | ended {MOST_FAILURES} times in a row (exit code 3)" in "\n".join(story.lines)
    assert sum("broken  | no such module" in line for line in story.lines) == MOST_FAILURES


def test_one_that_had_settled_is_no_failure_in_a_row(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "SETTLED_SECONDS", 0.0)
    story.add("short", "echo $$ >> {file}")
    wanted = MOST_FAILURES + 2
    assert story.run(lambda: wait_until(lambda: len(story.starts("short")) == wanted)) == 143


def test_every_line_is_passed_on_under_its_name_whatever_its_bytes(story: Story) -> None:
    story.add("talks", r"printf 'one\n\n\377two\n'; exec sleep 100")
    story.run(lambda: wait_until(lambda: any("two" in line for line in story.lines)))
    said = [line.split(" ", 1)[1] for line in story.lines]
    assert "talks   | one" in said
    assert "talks   | \ufffdtwo" in said
    assert "talks   | " not in said


def test_a_descriptor_is_kept_open_by_every_process(story: Story, tmp_path: Path) -> None:
    with (tmp_path / "held").open("w") as held:
        story.keeper.inherited = [held.fileno()]
        story.add("holds", f"echo kept > /proc/self/fd/{held.fileno()}; " + LIVES)
        story.run(lambda: wait_until(lambda: story.starts("holds")))
    assert (tmp_path / "held").read_text() == "kept\n"


def test_the_folder_of_the_service_is_removed_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "MOST_FAILURES", 2)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "code.sock").touch()
    command = f"echo $$ >> {tmp_path}/starts; exit 3"
    assert processes.keep({"broken": command}, str(folder), []) == 1
    assert len((tmp_path / "starts").read_text().split()) == 2
    assert not folder.exists()
