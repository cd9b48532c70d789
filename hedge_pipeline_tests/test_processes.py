"""Processes that are kept running: who is started again, who is left alone, and how all end."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hedge_pipeline import processes
from hedge_pipeline.processes import MOST_FAILURES, Keeper, Program
from hedge_pipeline_tests.disks import mounted

REPOSITORY = Path(__file__).resolve().parent.parent
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

    def module(self, name: str, text: str) -> str:
        """Name of a new module that writes its process id, as `LIVES` does, and then goes on."""
        told = (
            f"import os, sys\nopen({str(self.folder / name)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        )
        (self.folder / f"{name}_module.py").write_text(told + text)
        return f"{name}_module"

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
    # under `nohup`, and behind a shell's `&`, some are ignored
    before = {x: signal.signal(x, signal.SIG_DFL) for x in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    handlers = [signal.getsignal(number) for number in before]
    yield
    assert [signal.getsignal(number) for number in before] == handlers
    for number, handler in before.items():
        signal.signal(number, handler)


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


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_every_process_and_what_it_has_started(
    story: Story, number: int, code: int
) -> None:
    story.add("parent", "sh -c 'echo $$ >> {file}; exec sleep 100' & echo $$ >> {file}; wait")
    assert story.run(lambda: wait_until(lambda: len(story.starts("parent")) == 2), number) == code
    assert not any(lives(process) for process in story.starts("parent"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_was_ignored_before_ends_everything_all_the_same(
    story: Story, number: signal.Signals
) -> None:
    story.add("one")
    before = signal.signal(number, signal.SIG_IGN)
    try:
        assert story.run(lambda: wait_until(lambda: story.starts("one")), number) == 128 + number
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert not lives(story.starts("one")[0])


def test_a_terminal_that_is_closed_after_nohup_ends_nothing(story: Story) -> None:
    story.add("one")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def act() -> None:
        wait_until(lambda: story.starts("one"))
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.2)
        assert lives(story.starts("one")[0])

    try:
        assert story.run(act) == 143
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_process_for_which_there_is_no_room_is_started_later(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, attempts = Keeper._process, iter(range(1000))

    def process(keeper: Keeper, command: str | Program, writing: int) -> processes.Process:
        if next(attempts) < 2:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return real(keeper, command, writing)

    monkeypatch.setattr(Keeper, "_process", process)
    story.add("one")
    assert story.run(lambda: wait_until(lambda: story.starts("one"))) == 143
    assert sum("one     | cannot be started: Cannot allocate" in x for x in story.lines) == 2


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


def test_a_disk_that_turns_read_only_ends_everything(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "TRY_DISKS_EVERY_SECONDS", 0.05)
    disk = story.folder / "disk"
    disk.mkdir()
    with mounted(disk, "64k"):
        story.keeper.written = (str(story.folder), str(disk))
        remount = f"sleep 0.3; mount -o remount,ro {disk}"
        story.add("lasting", f"echo $$ >> {{file}}; {remount}; while :; do sleep 0.1; done")
        assert story.keeper.run() == 1
    assert not lives(story.starts("lasting")[0])
    told = f"service | the disk of {disk} takes no write: Read-only file system: check it and "
    assert any(told in line for line in story.lines)


@pytest.mark.parametrize(
    ("text", "said"), [("", "told"), ("import time\ntime.sleep(60)", ""), ("sys.exit(3)", "")]
)
def test_somebody_is_told_why_everything_ends_and_nothing_waits_long_for_that(
    copies: Story, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.setattr(processes, "ALARM_SECONDS", 1.0)
    monkeypatch.setattr(processes, "PATIENCE_SECONDS", 0.5)
    copies.add("lasting")
    copies.add("broken", "exit 3")
    ends = f"{text}\nprint('told:', sys.argv[1:])"
    copies.keeper.alarm = copies.module("alarm", ends)
    begun = time.monotonic()
    assert copies.keeper.run() == 1
    assert time.monotonic() - begun < PATIENCE
    assert len(copies.starts("alarm")) == 1
    assert not any(
        lives(process) for name in ("alarm", "lasting") for process in copies.starts(name)
    )
    lines = "\n".join(copies.lines)
    told = f"alarm   | told: ['broken ended {MOST_FAILURES} times in a row (exit code 3)']"
    assert (told in lines) is bool(said)


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


# -- copies ----------------------------------------------------------------------------------------

SLEEPS = "import time\nwhile True: time.sleep(0.1)\n"


@pytest.fixture
def copies(story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Story:
    """A story whose modules can be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return story


def test_a_killed_copy_is_started_again_and_its_sibling_is_left_alone(copies: Story) -> None:
    for name in ("one", "two"):
        copies.keeper.add(name, Program(copies.module(name, SLEEPS)))

    def act() -> None:
        wait_until(lambda: copies.starts("one") and copies.starts("two"))
        os.kill(copies.starts("one")[0], signal.SIGKILL)
        wait_until(lambda: len(copies.starts("one")) == 2)

    assert copies.run(act) == 143
    assert len(copies.starts("two")) == 1
    assert not any(lives(x) for x in [*copies.starts("one"), *copies.starts("two")])
    assert any(x.endswith("one     | ended (SIGKILL), starts again in 0.1 s") for x in copies.lines)


def test_a_copy_has_its_arguments_its_title_a_group_and_no_descriptor_of_the_keeper(
    copies: Story, tmp_path: Path
) -> None:
    says = (
        "found = os.listdir('/dev/fd')\n"  # one of them is of the listing itself
        "kept = sorted(int(x) for x in found if os.path.exists(f'/dev/fd/{x}'))\n"
        "print(sys.argv[1:], os.getpgid(0) == os.getpid(), kept)\n"
        "print(open('/proc/self/cmdline').read())\n"
    )
    copies.keeper.add("sibling", Program(copies.module("sibling", SLEEPS)))
    with (tmp_path / "held").open("w") as held:
        copies.keeper.inherited = [held.fileno()]
        copies.keeper.add("says", Program(copies.module("says", says + SLEEPS), ("a b", "c"), "me"))
        copies.run(lambda: wait_until(lambda: any("hedge: me" in line for line in copies.lines)))
        kept = [0, 1, 2, held.fileno()]
    said = next(line for line in copies.lines if "says    | [" in line)
    assert said.split("| ", 1)[1] == f"['a b', 'c'] True {kept}"


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [("sys.exit(3)", 3, None), ("raise OSError('no disk')", 1, "OSError: no disk")],
)
def test_a_copy_that_ends_by_itself_is_a_failure_with_its_words(
    copies: Story, text: str, code: int, said: str | None
) -> None:
    copies.keeper.add("broken", Program(copies.module("broken", text)))
    assert copies.keeper.run() == 1
    assert len(copies.starts("broken")) == MOST_FAILURES
    lines = "\n".join(copies.lines)
    assert f"broken  | ended {MOST_FAILURES} times in a row (exit code {code})" in lines
    assert said is None or lines.count(f"broken  | {said}") == MOST_FAILURES


def test_a_copy_that_has_hardly_begun_is_ended_too(
    copies: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine the keeper goes on long before its copy does."""
    real = processes._become

    def become(*arguments: Any) -> None:
        time.sleep(0.3)
        real(*arguments)

    monkeypatch.setattr(processes, "_become", become)
    for name in ("one", "two", "three"):
        copies.keeper.add(name, Program(copies.module(name, SLEEPS)))
    assert copies.run(lambda: wait_until(lambda: started(copies))) == 143
    assert len(started(copies)) == 3
    assert not any(lives(process) for process in started(copies))


def started(story: Story) -> list[int]:
    """Process ids as the keeper has told them."""
    return [int(x.rsplit(" ", 1)[1]) for x in story.lines if " | started, process " in x]


def test_a_copy_starts_afresh_after_what_it_waits_for(copies: Story, tmp_path: Path) -> None:
    (tmp_path / "socket").touch()
    server = Program(copies.module("server", SLEEPS), fresh=str(tmp_path / "socket"))
    client = Program(copies.module("client", SLEEPS), after=str(tmp_path / "other"))
    copies.keeper.add("server", server)
    copies.keeper.add("client", client)

    def act() -> None:
        wait_until(lambda: copies.starts("server"))
        assert not (tmp_path / "socket").exists()
        assert not copies.starts("client")
        (tmp_path / "other").touch()
        wait_until(lambda: copies.starts("client"))

    copies.run(act)


# -- runs of jobs ----------------------------------------------------------------------------------


@pytest.fixture
def asked(copies: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """Asks the keeper about runs."""
    address = str(tmp_path / "runs.sock")
    copies.keeper.listen(address)
    monkeypatch.setattr(processes, "REPORTER", copies.module("report", "print(sys.argv[1:])"))

    def ask(what: str, run_id: str, *command: str) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(address)
            request = {"what": what, "run_id": run_id, "name": "job", "command": command}
            connection.sendall(json.dumps(request).encode() + b"\n")
            return bool(json.loads(connection.makefile().readline()))

    return ask


def start_and_kill(copies: Story, asked: Callable[..., bool]) -> None:
    """A run that has begun dies, and the service has seen it."""
    asked("start", "r1", copies.module("run", SLEEPS))
    wait_until(lambda: copies.starts("run"))
    os.kill(copies.starts("run")[0], signal.SIGKILL)
    wait_until(lambda: any("its process ended (SIGKILL)" in line for line in copies.lines))


def test_a_run_is_started_on_request_and_not_again(
    copies: Story, asked: Callable[..., bool]
) -> None:
    run = copies.module("run", "print('ran', sys.argv[1:])")

    def act() -> None:
        assert asked("start", "r1", run, "x")
        wait_until(lambda: any("job     | ran ['x']" in line for line in copies.lines))
        wait_until(lambda: not any(lives(process) for process in copies.starts("run")))
        time.sleep(0.3)

    copies.run(act)
    assert len(copies.starts("run")) == 1
    assert not copies.starts("report")


def test_a_report_for_which_there_is_no_room_is_made_later_and_the_service_goes_on(
    copies: Story, asked: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, attempts = Keeper._process, iter(range(1000))

    def process(keeper: Keeper, command: str | Program, writing: int) -> processes.Process:
        reports = isinstance(command, Program) and command.module == processes.REPORTER
        if reports and next(attempts) < 2:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return real(keeper, command, writing)

    monkeypatch.setattr(Keeper, "_process", process)
    assert copies.run(lambda: start_and_kill(copies, asked)) == 143
    assert sum("report  | cannot be started: Cannot allocate" in x for x in copies.lines) == 2
    assert len(copies.starts("report")) == 1


def test_a_run_that_dies_is_reported_once_and_not_started_again(
    copies: Story, asked: Callable[..., bool]
) -> None:
    def act() -> None:
        start_and_kill(copies, asked)
        time.sleep(0.3)

    copies.run(act)
    assert (len(copies.starts("run")), len(copies.starts("report"))) == (1, 1)
    assert any("report  | ['r1', 'its process ended (SIGKILL)']" in x for x in copies.lines)


def test_a_report_that_nobody_takes_is_made_again_until_somebody_does(
    copies: Story, asked: Callable[..., bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """However often: it is no process without which the service cannot be."""
    monkeypatch.setattr(processes, "LONGEST_PAUSE_SECONDS", 0.05)
    attempts = tmp_path / "attempts"
    text = (
        f"made = open({str(attempts)!r}, 'a+b'); made.write(b'x'); made.flush()\n"
        f"sys.exit('no database' if made.tell() <= {processes.MOST_FAILURES} else 0)"
    )
    monkeypatch.setattr(processes, "REPORTER", copies.module("refused", text))

    def act() -> None:
        asked("start", "r1", copies.module("run", SLEEPS))
        wait_until(lambda: copies.starts("run"))
        os.kill(copies.starts("run")[0], signal.SIGKILL)
        wait_until(lambda: len(copies.starts("refused")) > processes.MOST_FAILURES)
        wait_until(lambda: not any(lives(process) for process in copies.starts("refused")))
        time.sleep(0.3)

    assert copies.run(act) == 143
    assert len(copies.starts("refused")) == processes.MOST_FAILURES + 1
    assert sum("report  | no database" in line for line in copies.lines) == processes.MOST_FAILURES


def test_a_report_may_be_refused_for_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused:
        pid = 0

        def poll(self) -> int:
            return 1

    def start(_: Keeper, child: processes.Child) -> None:
        child.process = Refused()  # type: ignore[assignment]

    monkeypatch.setattr(Keeper, "_start", start)
    keeper = Keeper({}, say=lambda _: None)
    child = processes.Child("report", Program("report"), until_done=True)
    for _ in range(2500):
        child.due = 0.0
        assert keeper._look_after(child)
    assert child.failures > 1000
    assert child.due - time.monotonic() <= processes.LONGEST_PAUSE_SECONDS


def test_a_run_is_looked_at_on_request(copies: Story, asked: Callable[..., bool]) -> None:
    answers = []

    def act() -> None:
        asked("start", "r1", copies.module("run", SLEEPS))
        wait_until(lambda: copies.starts("run"))
        answers.extend([asked("look", "r1"), asked("look", "r2")])
        os.kill(copies.starts("run")[0], signal.SIGKILL)
        wait_until(lambda: not asked("look", "r1"))

    copies.run(act)
    assert answers == [True, False]


def test_a_run_is_ended_on_request_and_an_unknown_one_is_not(
    copies: Story, asked: Callable[..., bool]
) -> None:
    run = copies.module("run", SLEEPS)
    answers = []

    def act() -> None:
        asked("start", "r1", run)
        asked("start", "r2", run)
        wait_until(lambda: len(copies.starts("run")) == 2)
        answers.extend([asked("end", "r3"), asked("end", "r1")])
        wait_until(lambda: sum(lives(process) for process in copies.starts("run")) == 1)
        answers.append(asked("end", "r1"))

    copies.run(act)
    assert answers == [False, True, False]
    assert not any(lives(process) for process in copies.starts("run"))


def test_who_asks_twice_for_a_run_gets_it_once(copies: Story, asked: Callable[..., bool]) -> None:
    """Two daemons may, or one whose first question was answered late."""
    run = copies.module("run", SLEEPS)

    def act() -> None:
        assert asked("start", "r1", run)
        assert asked("start", "r1", run)
        assert asked("start", "r2", run)
        wait_until(lambda: len(copies.starts("run")) == 2)
        time.sleep(0.1)

    copies.run(act)
    assert len(copies.starts("run")) == 2


def test_no_run_is_started_while_everything_is_ended(
    copies: Story, asked: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "PATIENCE_SECONDS", 1.5)
    copies.add("deaf", f"trap '' TERM INT; {LIVES}")
    run = copies.module("run", SLEEPS)

    def act() -> None:
        wait_until(lambda: copies.starts("deaf"))
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: any("SIGTERM: stopping" in line for line in copies.lines))
        assert not asked("start", "r1", run)

    assert copies.run(act) == 143
    assert not copies.starts("run")


def test_many_runs_leave_neither_a_descriptor_nor_a_zombie(
    copies: Story, asked: Callable[..., bool]
) -> None:
    run = copies.module("run", "")
    held: list[int] = []

    def act() -> None:
        for number in range(1, 13):
            assert asked("start", f"r{number}", run)
            wait_until(lambda: len(copies.starts("run")) == len(held) + 1)
            wait_until(lambda: not any(lives(process) for process in copies.starts("run")))
            time.sleep(0.1)
            held.append(len(list(Path("/proc/self/fd").iterdir())))

    copies.run(act)
    assert len(set(held[1:])) == 1
    assert not any(Path(f"/proc/{process}").exists() for process in copies.starts("run"))
    assert len(copies.keeper._children) == 0


def test_who_asks_nonsense_or_nothing_disturbs_nobody(
    copies: Story, asked: Callable[..., bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_ASKED_WITHIN_SECONDS", 0.1)
    run = copies.module("run", SLEEPS)

    def act() -> None:
        for said in (b"", b"nonsense\n", b"[1]\n", b'{"what": "start"}\n'):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(tmp_path / "runs.sock"))
                connection.sendall(said)
        assert asked("start", "r1", run)
        wait_until(lambda: copies.starts("run"))

    assert copies.run(act) == 143


def test_the_folder_of_the_service_is_removed_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "MOST_FAILURES", 2)
    monkeypatch.setenv(processes.REQUESTS, "")  # it is set for what is started, and restored here
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "code.sock").touch()
    command = f"echo $$ >> {tmp_path}/starts; exit 3"
    assert processes.keep({"broken": command}, str(folder), []) == 1
    assert len((tmp_path / "starts").read_text().split()) == 2
    assert not folder.exists()


# -- the keeper as a process -----------------------------------------------------------------------

_PR_SET_CHILD_SUBREAPER = 36


def adopt() -> None:
    """Makes this process what the first process of a container is: orphans become its own."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


@contextlib.contextmanager
def kept(
    folder: Path, commands: Mapping[str, object], stdout: Any = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """A keeper of its own; whatever it leaves running is killed."""
    (folder / "sockets").mkdir()
    order = {"commands": commands, "folder": str(folder / "sockets"), "inherited": []}
    with subprocess.Popen(
        [sys.executable, "-m", "hedge_pipeline.processes", json.dumps(order)],
        env={**os.environ, "PYTHONPATH": f"{folder}:{REPOSITORY}"},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        preexec_fn=adopt,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            for path in folder.glob("*.pids"):
                for word in path.read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(word), signal.SIGKILL)


def pids(folder: Path, name: str) -> list[int]:
    path = folder / f"{name}.pids"
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def in_shell(folder: Path, name: str) -> str:
    return LIVES.format(file=folder / f"{name}.pids")


def test_a_killed_keeper_takes_its_processes_with_it(tmp_path: Path) -> None:
    (tmp_path / "lasting.py").write_text(
        f"import os, time\nopen({str(tmp_path / 'copy.pids')!r}, 'a').write(f'{{os.getpid()}} ')\n"
        "while True: time.sleep(0.1)\n"
    )
    commands = {"shell": in_shell(tmp_path, "shell"), "copy": asdict(Program("lasting"))}
    with kept(tmp_path, commands) as keeper:
        wait_until(lambda: pids(tmp_path, "shell") and pids(tmp_path, "copy"))
        keeper.kill()
        wait_until(
            lambda: not any(lives(x) for x in [*pids(tmp_path, "shell"), *pids(tmp_path, "copy")])
        )


def test_the_dead_whose_parents_are_dead_do_not_pile_up(tmp_path: Path) -> None:
    orphans = f"(sh -c 'echo $$ >> {tmp_path}/orphan.pids; exec sleep 0.2' &)"
    commands = {"one": f"{orphans}; {orphans}; {in_shell(tmp_path, 'one')}"}
    with kept(tmp_path, commands) as keeper:
        wait_until(lambda: len(pids(tmp_path, "orphan")) == 2)
        orphans_there = [Path(f"/proc/{x}") for x in pids(tmp_path, "orphan")]
        wait_until(lambda: not any(x.exists() for x in orphans_there))
        assert lives(pids(tmp_path, "one")[0])
        begun = time.monotonic()
        keeper.terminate()
        assert keeper.wait(PATIENCE) == 143
        assert time.monotonic() - begun < processes.PATIENCE_SECONDS / 2


@pytest.mark.parametrize("where", ["full disk", "closed pipe"])
def test_a_log_that_takes_no_more_lines_ends_nothing(tmp_path: Path, where: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with Path("/dev/full").open("wb") as full, os.fdopen(writing, "wb") as pipe:
        said = full if where == "full disk" else pipe
        with kept(tmp_path, {"one": in_shell(tmp_path, "one")}, said) as keeper:
            wait_until(lambda: pids(tmp_path, "one"))
            os.kill(pids(tmp_path, "one")[0], signal.SIGKILL)
            wait_until(lambda: len(pids(tmp_path, "one")) == 2)
            keeper.terminate()
            assert keeper.wait(PATIENCE) == 143
    assert not any(lives(x) for x in pids(tmp_path, "one"))


SMAPS = """\
55d0c0a00000-55d0c0a2c000 r--p 00000000 fe:00 1311                       /usr/bin/python3.11
Rss:                 176 kB
Anonymous:             0 kB
55d0c0a2c000-55d0c0cd9000 r-xp 0002c000 fe:00 1311                       /usr/bin/python3.11
Anonymous:             0 kB
55d0c0fb0000-55d0c0fb1000 r--p 005af000 fe:00 1311                       /usr/bin/python3.11
Anonymous:             4 kB
55d0c0fb1000-55d0c10d9000 rw-p 005b0000 fe:00 1311                       /usr/bin/python3.11
Anonymous:             0 kB
7f0a00000000-7f0a00021000 r--p 00000000 00:00 0
Anonymous:             0 kB
7ffe4b5f2000-7ffe4b5f6000 r--p 00000000 00:00 0                          [vvar]
Anonymous:             0 kB
VmFlags: rd mr pf io de dd sd
"""


def test_only_what_is_a_file_and_was_never_written_is_let_go_of() -> None:
    assert processes._unchanged_areas(SMAPS) == [
        (0x55D0C0A00000, 0x55D0C0A2C000),
        (0x55D0C0A2C000, 0x55D0C0CD9000),
    ]


LETS_GO = """
import numpy as np, pyarrow.parquet, pathlib
from hedge_pipeline import processes
def mapped():
    text = pathlib.Path("/proc/self/smaps_rollup").read_text()
    return int(text.split("Rss:")[1].split()[0]) - int(text.split("Anonymous:")[1].split()[0])
rows = np.random.default_rng(1).standard_normal((50, 50))
before, held = np.linalg.svd(rows)[1], mapped()
processes._let_go_of_files()
print(mapped() / held, (np.linalg.svd(rows)[1] == before).all())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pages are let go of on Linux only")
def test_a_process_that_let_go_of_files_works_on_with_less_memory() -> None:
    said = subprocess.run(
        [sys.executable, "-c", LETS_GO], capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(said[0]) < 0.6
    assert said[1] == "True"
