"""Child processes that are kept running: each one that ends is started again, alone.

A process whose sibling dies goes on: while the daemon or the code server is started again, the poll
run polls. What ends soon after every start is not started for ever. Runs of jobs are started on
request (`resources/launching.py`) and are not started again; one that dies is reported.

What runs Python is a copy of this process, which has imported what all of them need: the pages of
these modules exist once, and a start takes no time. So there is one thread only. Nothing about the
market belongs here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from hedge_pipeline.disks import refusal

LOOK_EVERY_SECONDS = 0.2
TRY_DISKS_EVERY_SECONDS = 15.0
SETTLED_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 30.0
MOST_FAILURES = 6
PATIENCE_SECONDS = 8.0
ALARM_SECONDS = 15.0
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
REQUESTS = "HEDGE_RUNS_SOCKET"
REPORTER = "hedge_pipeline.resources.launching"
_ASKED_WITHIN_SECONDS = 2.0
_PR_SET_PDEATHSIG = 1
_MADV_DONTNEED = 4


@dataclass(frozen=True)
class Program:
    """A Python module that is run as `python -m` does it, in a copy of this process.

    Attributes:
        module: name.
        arguments: of its command line.
        title: what lists of processes show; "" = module and arguments.
        fresh: path that is removed before the start; "" = none.
        after: path that must exist before the module runs; "" = none.
    """

    module: str
    arguments: tuple[str, ...] = ()
    title: str = ""
    fresh: str = ""
    after: str = ""


class Process(Protocol):
    """What `Keeper` needs of a process it has started."""

    @property
    def pid(self) -> int:
        """Its id, which is that of its group."""

    def poll(self) -> int | None:
        """Exit code, negative after a signal; None while it runs."""

    def wait(self) -> int | None:
        """Waits for its end."""


class Copy:
    """A copy of this process that runs a program; what it says goes to a pipe."""

    def __init__(self, program: Program, writing: int, kept: set[int]) -> None:
        context = multiprocessing.get_context("fork")
        waiting, ready = os.pipe()
        try:
            self._process = context.Process(target=_become, args=(program, writing, ready, kept))
            self._process.start()
        finally:
            os.close(ready)
            with os.fdopen(waiting, "rb") as pipe:
                pipe.read()  # until it leads a group of its own and can be ended, or is gone
        self.pid = self._process.pid or 0

    def poll(self) -> int | None:
        """Exit code, negative after a signal; None while it runs."""
        return self._process.exitcode

    def wait(self) -> int | None:
        """Waits for its end."""
        self._process.join()
        return self._process.exitcode


def _say(line: str) -> None:
    """On standard output; a full disk or a closed pipe behind it must not end the service."""
    with contextlib.suppress(OSError):
        os.write(1, f"{line}\n".encode(errors="replace"))


@dataclass
class Child:
    """One process that is to run.

    Attributes:
        name: before each of its lines.
        command: for the shell, which it replaces at its end (`exec`), or a Python module.
        once: it is not started again, however it ends; `until_done`: unless it fails.
        run_id: of the run of a job; "" = it is none.
        process: as long as it runs, and until its end was noticed.
        begun: monotonic seconds of the last start.
        due: monotonic seconds before which it is not started.
        failures: ends in a row that came soon after the start.
    """

    name: str
    command: str | Program
    once: bool = False
    until_done: bool = False
    run_id: str = ""
    process: Process | None = None
    begun: float = 0.0
    due: float = 0.0
    failures: int = 0


@dataclass
class Keeper:
    """Runs processes until it is told to stop, or until one of them cannot be kept running.

    Every process leads a group of its own, so that what it has started can be ended with it, also
    what a killed one has left running. If the keeper itself is killed, they are sent SIGTERM.

    Args:
        environment: of every process that is no copy of this one.
        inherited: file descriptors that every process keeps open.
        written: folders without which nothing can go on; if the disk of one turns read-only,
            everything is ended, since it must be mounted again.
        alarm: Python module that is run with the reason before everything is ended for one; "" =
            nobody is told.
        say: takes one line.
        adopts: orphans of its processes become its own, as in a container, and are waited for.
    """

    environment: Mapping[str, str]
    inherited: Sequence[int] = ()
    written: Sequence[str] = ()
    alarm: str = ""
    say: Callable[[str], None] = _say
    adopts: bool = False
    _children: list[Child] = field(default_factory=list)
    _groups: set[int] = field(default_factory=set)
    _waiting: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _told: int | None = None
    _why: str = ""
    _tried: float = 0.0
    _ending: bool = False

    def add(self, name: str, command: str | Program) -> None:
        """Adds a process; it is started by `run`."""
        self._children.append(Child(name, command))

    def listen(self, path: str) -> None:
        """Takes requests about runs at this socket from now on; see `_answer`."""
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.bind(path)
        server.listen()
        server.setblocking(False)
        self._waiting.register(server, selectors.EVENT_READ, self._serve)

    def run(self) -> int:
        """Blocks until a signal to stop; returns 128 + its number, or 1 if it gave up before."""
        with self._listening():
            try:
                while self._told is None:
                    # a run that ends adds its report
                    well = all(self._look_after(child) for child in list(self._children))
                    if not well or self._refused():
                        self._raise_alarm()
                        return 1
                    if self.adopts:
                        self._bury_orphans()
                    self._wait(LOOK_EVERY_SECONDS)
                self._tell("service", f"{signal.Signals(self._told).name}: stopping")
                return 128 + self._told
            finally:
                self._end_everything()

    # -- starting and looking after --------------------------------------------------------

    def _look_after(self, child: Child) -> bool:
        """Starts the process if it does not run; False if it has failed too often."""
        now = time.monotonic()
        if child.process is not None:
            code = child.process.poll()
            if code is None:
                return True
            child.process = None
            if child.once or (child.until_done and not code):
                self._children.remove(child)
                if code:
                    self._tell(child.name, f"ended ({_words(code)})")
                if code and child.run_id:
                    self._report(child.run_id, code)
                return True
            soon = now - child.begun < SETTLED_SECONDS or child.until_done
            child.failures = child.failures + 1 if soon else 1
            if child.failures == MOST_FAILURES and not child.until_done:
                self._why = f"ended {MOST_FAILURES} times in a row ({_words(code)})"
                self._tell(child.name, self._why)
                self._why = f"{child.name} {self._why}"
                return False
            pause = min(2.0 ** min(child.failures - 1, 30), LONGEST_PAUSE_SECONDS)
            child.due = now + pause
            self._tell(child.name, f"ended ({_words(code)}), starts again in {pause:g} s")
        if now >= child.due:
            try:
                self._start(child)
            except OSError as error:  # no memory, no process or no descriptor is left
                child.due = now + LONGEST_PAUSE_SECONDS
                self._tell(child.name, f"cannot be started: {error.strerror or error}")
        return True

    def _refused(self) -> bool:
        """Whether a disk takes no write, looked at now and then."""
        if time.monotonic() < self._tried + TRY_DISKS_EVERY_SECONDS:
            return False
        self._tried = time.monotonic()
        for folder in self.written:
            if reason := refusal(Path(folder), (errno.EROFS,)):
                self._why = (
                    f"the disk of {folder} takes no write: {reason}: check it and mount it again"
                )
                self._tell("service", f"{self._why}; stopping")
                return True
        return False

    def _raise_alarm(self) -> None:
        """Has somebody told why everything is ended, and waits for that, though not for long."""
        if not self.alarm:
            return
        child = Child("alarm", Program(self.alarm, (self._why,), "alarm"), once=True)
        self._children.append(child)
        deadline = time.monotonic() + ALARM_SECONDS
        while self._look_after(child) and child in self._children:
            if self._told is not None or time.monotonic() > deadline:
                return
            self._wait(LOOK_EVERY_SECONDS)

    def _start(self, child: Child) -> None:
        child.begun = time.monotonic()
        reading, writing = os.pipe()
        try:
            process = self._process(child.command, writing)
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        child.process = process
        self._groups = {group for group in self._groups if _signal(group, 0)}
        self._groups.add(process.pid)
        self._tell(child.name, f"started, process {process.pid}")
        os.set_blocking(reading, False)
        self._waiting.register(reading, selectors.EVENT_READ, _Lines(child.name, self._tell))

    def _process(self, command: str | Program, writing: int) -> Process:
        if isinstance(command, Program):
            return Copy(command, writing, set(self.inherited))
        return subprocess.Popen(
            ["/bin/sh", "-c", command],
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=subprocess.STDOUT,
            pass_fds=self.inherited,
            start_new_session=True,
            preexec_fn=partial(_end_with, os.getpid()),
        )

    def _bury_orphans(self) -> None:
        """Waits for the dead whose parents are dead; nobody else would, and they would pile up."""
        own = {child.process.pid for child in self._children if child.process is not None}
        with contextlib.suppress(ChildProcessError):
            while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if found.si_pid in own:  # its end is noticed at the next look
                    return
                os.waitpid(found.si_pid, 0)

    # -- runs of jobs ----------------------------------------------------------------------

    def _serve(self, server: socket.socket) -> None:
        # who asks is gone, or asks nonsense
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            connection, _ = server.accept()
            connection.settimeout(_ASKED_WITHIN_SECONDS)
            with connection, connection.makefile("rw") as stream:
                stream.write(json.dumps(self._answer(json.loads(stream.readline()))) + "\n")

    def _answer(self, request: dict[str, Any]) -> bool:
        """`start` = starts a run by its command line; `end` = sends it SIGTERM; `look` = no more.

        Returns:
            Whether the run is one of ours and alive. Who asks twice to start it gets one process;
            while everything is being ended none is started.
        """
        run_id = str(request["run_id"])
        groups = [
            child.process.pid
            for child in self._children
            if child.run_id == run_id and child.process and child.process.poll() is None
        ]
        if request["what"] == "look":
            return bool(groups)
        if request["what"] != "start":
            return any(_signal(group, signal.SIGTERM) for group in groups)
        if groups or self._ending:
            return bool(groups)
        module, *arguments = request["command"]
        program = Program(module, tuple(arguments), f"{request['name']} {run_id}")
        run = Child(str(request["name"]), program, once=True, run_id=run_id)
        self._start(run)  # who asks is told if it cannot be
        self._children.append(run)
        return True

    def _report(self, run_id: str, code: int) -> None:
        """Has Dagster told that a run's process has died; a run that has ended stays as it is.

        While Dagster's database takes nothing the report is made again and again: a run that seems
        to go on keeps others waiting.
        """
        why = f"its process ended ({_words(code)})"
        program = Program(REPORTER, (run_id, why), f"report of {run_id}")
        self._children.append(Child("report", program, until_done=True))

    # -- what they say ---------------------------------------------------------------------

    def _wait(self, seconds: float) -> None:
        """Passes lines on and answers requests, for this long if nothing comes."""
        for key, _ in self._waiting.select(seconds):
            if not isinstance(key.data, _Lines):
                key.data(key.fileobj)
            elif not key.data.read(key.fd):
                self._waiting.unregister(key.fd)
                os.close(key.fd)

    def _tell(self, name: str, text: str) -> None:
        self.say(f"{time.strftime('%H:%M:%S')} {name:<7} | {text}")

    # -- the end ---------------------------------------------------------------------------

    def _end_everything(self) -> None:
        """SIGTERM to every group, SIGKILL to what is left after a while."""
        self._ending = True
        deadline = time.monotonic() + PATIENCE_SECONDS
        for group in self._groups:
            _signal(group, signal.SIGTERM)
        while self._living() and time.monotonic() < deadline:
            self._wait(LOOK_EVERY_SECONDS)
        for group in self._living():
            _signal(group, signal.SIGKILL)
        for child in self._children:
            if child.process is not None:
                child.process.wait()
        self._wait(0)
        self._waiting.close()

    def _living(self) -> set[int]:
        for child in self._children:
            if child.process is not None:
                child.process.poll()  # a zombie would keep its group alive
        if self.adopts:
            self._bury_orphans()
        return {group for group in self._groups if _signal(group, 0)}

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        def told(number: int, frame: FrameType | None) -> None:
            self._told = number

        # `nohup` has SIGHUP ignored, and that stays so; what a shell starts in the background has
        # SIGINT ignored, and must end all the same
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        heard = [x for x in STOPPING if x != signal.SIGHUP or not ignored]
        before = {x: signal.signal(x, told) for x in heard}
        # whoever became this process held them back meanwhile, so that none is lost
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Lines:
    """Passes on what one process says, line by line."""

    def __init__(self, name: str, tell: Callable[[str, str], None]) -> None:
        self._name = name
        self._tell = tell
        self._rest = b""

    def read(self, descriptor: int) -> bool:
        """Reads what is there; False at the end."""
        try:
            found = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return True
        *lines, self._rest = (self._rest + found).split(b"\n")
        if not found:
            lines, self._rest = [self._rest], b""
        for line in lines:
            text = line.decode(errors="replace").rstrip()
            if text:
                self._tell(self._name, text)
        return bool(found)


def _become(program: Program, writing: int, ready: int, kept: set[int]) -> None:
    """Makes a copy of the keeper a process like any other, and runs the program in it."""
    keeper = os.getppid()
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    _end_with(keeper)
    os.close(ready)
    for descriptor in (1, 2):
        os.dup2(writing, descriptor)
    sys.stdout, sys.stderr = (os.fdopen(x, "w", buffering=1, closefd=False) for x in (1, 2))
    for descriptor in [int(path.name) for path in Path("/dev/fd").iterdir()]:
        if descriptor > 2 and descriptor not in kept:  # the keeper's own
            with contextlib.suppress(OSError):
                os.close(descriptor)
    _entitle(program.title or " ".join((program.module, *program.arguments)))
    if program.fresh:
        Path(program.fresh).unlink(missing_ok=True)
    while program.after and not Path(program.after).exists():
        time.sleep(LOOK_EVERY_SECONDS)
    sys.argv = [program.module, *program.arguments]
    runpy.run_module(program.module, run_name="__main__", alter_sys=True)


def _end_with(keeper: int) -> None:
    """Lets this process be sent SIGTERM when the keeper is killed, where the system can do that.

    A daemon that goes on without it would start no run and keep the next service from starting.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != keeper:
            os.kill(os.getpid(), signal.SIGTERM)


def _entitle(title: str) -> None:
    """What lists of processes show of this one."""
    import setproctitle

    setproctitle.setproctitle(f"hedge: {title}")


def keep(
    commands: Mapping[str, str | dict[str, Any]],
    folder: str,
    inherited: Sequence[int],
    *,
    written: Sequence[str] = (),
    alarm: str = "",
    imported: str = "",
) -> int:
    """Runs commands in this process's environment until a signal comes; returns the exit code.

    Args:
        commands: command line of the shell, or fields of a `Program`, by name.
        folder: removed at the end; where runs are asked for.
        inherited: file descriptors that every process keeps open.
        written: see `Keeper`.
        alarm: see `Keeper`.
        imported: module that imports what the programs need; "" = none.
    """
    _entitle("keeper")
    keeper = Keeper(os.environ, inherited, written, alarm, adopts=True)
    requests = Path(folder) / "runs.sock"
    os.environ[REQUESTS] = str(requests)
    keeper.listen(str(requests))
    for name, command in commands.items():
        keeper.add(name, command if isinstance(command, str) else Program(**command))
    try:
        if imported:
            importlib.import_module(imported)
            gc.collect()
            gc.freeze()  # a collection in a copy would touch, and so copy, every page
            _let_go_of_files()
        return keeper.run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _let_go_of_files() -> None:
    """Lets go of the pages of files this process has read and not changed, where Linux can.

    Imports touch much that waiting does not need: 22 MB of libraries that no copy used either.
    What is needed after all is mapped again by itself.
    """
    with contextlib.suppress(OSError):  # no such system
        areas = _unchanged_areas(Path("/proc/self/smaps").read_text())
        let_go = ctypes.CDLL(None).madvise
        let_go.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for first, end in areas:
            let_go(first, end - first, _MADV_DONTNEED)


def _unchanged_areas(smaps: str) -> list[tuple[int, int]]:
    """First and end address of what is mapped from files, cannot be written, and never was."""
    found: list[tuple[int, int]] = []
    area: tuple[int, int] | None = None
    for line in smaps.splitlines():
        words = line.split()
        if "-" in words[0]:  # start-end, permissions, offset, device, inode, path
            first, end = (int(x, 16) for x in words[0].split("-"))
            area = (first, end) if "w" not in words[1] and words[4] != "0" else None
        elif area and words[:2] == ["Anonymous:", "0"]:  # a written page is a copy in no file
            found.append(area)
    return found


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
