"""Child processes that are kept running: each one that ends is started again, alone.

A process whose sibling dies goes on: while the daemon or the code server is started again, the poll
run polls. What ends soon after every start is not started for ever. Nothing about Dagster or the
market belongs here, and nothing large is imported: this process lives as long as the service.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType

LOOK_EVERY_SECONDS = 0.2
SETTLED_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 30.0
MOST_FAILURES = 6
PATIENCE_SECONDS = 8.0
STOPPING = (signal.SIGTERM, signal.SIGINT)


@dataclass
class Child:
    """One process that is to run.

    Attributes:
        name: before each of its lines.
        command: for the shell, which it replaces at its end (`exec`).
        process: as long as it runs, and until its end was noticed.
        begun: monotonic seconds of the last start.
        due: monotonic seconds before which it is not started.
        failures: ends in a row that came soon after the start.
    """

    name: str
    command: str
    process: subprocess.Popen[bytes] | None = None
    begun: float = 0.0
    due: float = 0.0
    failures: int = 0


@dataclass
class Keeper:
    """Runs processes until it is told to stop, or until one of them cannot be kept running.

    Every process leads a group of its own, so that what it has started can be ended with it, also
    what a killed one has left running.

    Args:
        environment: of every process.
        inherited: file descriptors that every process keeps open.
        say: takes one line.
    """

    environment: Mapping[str, str]
    inherited: Sequence[int] = ()
    say: Callable[[str], None] = lambda line: print(line, flush=True)
    _children: list[Child] = field(default_factory=list)
    _groups: set[int] = field(default_factory=set)
    _told: int | None = None

    def add(self, name: str, command: str) -> None:
        """Adds a process; it is started by `run`."""
        self._children.append(Child(name, command))

    def run(self) -> int:
        """Blocks until SIGTERM or SIGINT; returns 128 + its number, or 1 if it gave up before."""
        with self._listening():
            try:
                while self._told is None:
                    if not all(self._look_after(child) for child in self._children):
                        return 1
                    time.sleep(LOOK_EVERY_SECONDS)
                self._tell("service", f"{signal.Signals(self._told).name}: stopping")
                return 128 + self._told
            finally:
                self._end_everything()

    def _look_after(self, child: Child) -> bool:
        """Starts the process if it does not run; False if it has failed too often."""
        now = time.monotonic()
        if child.process is not None:
            code = child.process.poll()
            if code is None:
                return True
            child.process = None
            child.failures = child.failures + 1 if now - child.begun < SETTLED_SECONDS else 1
            if child.failures == MOST_FAILURES:
                self._tell(child.name, f"ended {MOST_FAILURES} times in a row ({_words(code)})")
                return False
            pause = min(2.0 ** (child.failures - 1), LONGEST_PAUSE_SECONDS)
            child.due = now + pause
            self._tell(child.name, f"ended ({_words(code)}), starts again in {pause:g} s")
        if now >= child.due:
            self._start(child)
        return True

    def _start(self, child: Child) -> None:
        child.begun = time.monotonic()
        child.process = subprocess.Popen(
            ["/bin/sh", "-c", child.command],
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=self.inherited,
            start_new_session=True,
        )
        self._groups = {group for group in self._groups if _signal(group, 0)}
        self._groups.add(child.process.pid)
        self._tell(child.name, f"started, process {child.process.pid}")
        reader = threading.Thread(target=self._pass_on, args=(child.name, child.process))
        reader.daemon = True  # a process that is left behind may hold the pipe for ever
        reader.start()

    def _pass_on(self, name: str, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            text = line.decode(errors="replace").rstrip()
            if text:
                self._tell(name, text)

    def _tell(self, name: str, text: str) -> None:
        self.say(f"{time.strftime('%H:%M:%S')} {name:<7} | {text}")

    def _end_everything(self) -> None:
        """SIGTERM to every group, SIGKILL to what is left after a while."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        for group in self._groups:
            _signal(group, signal.SIGTERM)
        while self._living() and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY_SECONDS)
        for group in self._living():
            _signal(group, signal.SIGKILL)
        for child in self._children:
            if child.process is not None:
                child.process.wait()

    def _living(self) -> set[int]:
        for child in self._children:
            if child.process is not None:
                child.process.poll()  # a zombie would keep its group alive
        return {group for group in self._groups if _signal(group, 0)}

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        def told(number: int, frame: FrameType | None) -> None:
            self._told = number

        before = {x: signal.signal(x, told) for x in STOPPING}
        # whoever became this process held them back meanwhile, so that none is lost
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def keep(commands: Mapping[str, str], folder: str, inherited: Sequence[int]) -> int:
    """Runs commands in this process's environment until a signal comes; returns the exit code.

    Args:
        commands: command line by name.
        folder: removed at the end.
        inherited: file descriptors that every process keeps open.
    """
    keeper = Keeper(os.environ, inherited)
    for name, command in commands.items():
        keeper.add(name, command)
    try:
        return keeper.run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _signal(group: int, number: int) -> bool:
    """Sends a signal to a process group; False if there is none."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS says so of a group of zombies
        return sys.platform != "darwin"
    return True


def _words(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


if __name__ == "__main__":
    sys.exit(keep(**json.loads(sys.argv[1])))
