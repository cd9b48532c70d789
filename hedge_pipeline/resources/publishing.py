"""MLflow beside a replay: a process of its own that publishes what the store holds when asked.

Python computes on one core at a time; publishing in a thread made a replay a third longer. The
process is told by lines on its standard input, answers by lines on its standard output, and dies
with whoever started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hedge_pipeline.resources.registry import RegistryError

if TYPE_CHECKING:
    from hedge_pipeline.settings import Settings

_SECRETS = {"alert_urls", "backup_url"}
_SET_PARENT_DEATH_SIGNAL = 1  # of prctl, linux/prctl.h


class BackgroundRegistry:
    """Publishes from a process of its own, so that a replay does not wait for MLflow.

    A failure of MLflow is kept in `failure` and ends nothing: the next publication of the symbol,
    or its next report, completes what is missing.

    Args:
        settings: of the replay.
    """

    def __init__(self, settings: Settings) -> None:
        self._failures: dict[tuple[str, str], RegistryError] = {}
        self._asked: deque[tuple[str, str]] = deque()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hedge_pipeline.resources.publishing", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # one heap for all threads: less memory, and there is one thread that works
            env={**os.environ, "MALLOC_ARENA_MAX": "1"},
        )
        self._send(settings.model_dump(mode="json", by_alias=True, exclude=_SECRETS))

    @property
    def failure(self) -> RegistryError | None:
        """The first failure that no later success has made good; None = there is none."""
        return next(iter(self._failures.values()), None)

    def publish(self, symbol: str) -> None:
        """Asks for a publication of the symbol and returns at once."""
        self._ask(symbol, "publish")

    def draw(self, symbol: str) -> None:
        """Asks for a publication with plots and returns at once."""
        self._ask(symbol, "draw")

    def report(self, symbol: str) -> None:
        """Asks for the report of the symbol's signals and returns at once."""
        self._ask(symbol, "report")

    def finish(self) -> None:
        """Waits until everything asked for is done.

        Raises:
            RuntimeError: the process failed for another reason than MLflow.
        """
        assert self._process.stdout is not None
        while self._asked:
            line = self._process.stdout.readline()
            if not line:
                raise RuntimeError(f"the publisher ended with code {self._process.wait()}")
            refused, (symbol, what) = json.loads(line)["refused"], self._asked.popleft()
            key = symbol, "report" if what == "report" else "publish"
            if refused is None:
                self._failures.pop(key, None)
            else:
                self._failures[key] = RegistryError(refused)

    def memory_mb(self) -> float:
        """Memory of the process that it shares with no other; 0 where the kernel does not tell."""
        summary = Path("/proc", str(self._process.pid), "smaps_rollup")
        with contextlib.suppress(OSError):
            lines = [line.split() for line in summary.read_text().splitlines()]
            return sum(int(x[1]) for x in lines if x[0].startswith("Private_")) / 1024
        return 0.0

    def close(self) -> None:
        """Ends the process, whatever it has not done yet."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, symbol: str, what: str) -> None:
        self._asked.append((symbol, what))
        self._send({"symbol": symbol, "what": what})

    def _send(self, content: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `finish` tells that it has ended
            self._process.stdin.write(json.dumps(content) + "\n")
            self._process.stdin.flush()


def main(parent: int) -> None:
    """Publishes what the lines on standard input ask for, until there are no more.

    Args:
        parent: process that asks. What it has asked is left undone when it has ended, be it
            before this one could ask for the signal: the replay that goes on asks again, and two
            at once would register a version twice.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what MLflow prints is no answer
    from hedge_pipeline.opening import open_deployment, open_registry
    from hedge_pipeline.settings import load_settings
    from hedge_pipeline.stages import signal_report

    settings = load_settings(**json.loads(sys.stdin.readline()))
    registry, deployment = open_registry(settings, plots=False), open_deployment(settings)
    for line in sys.stdin:
        if os.getppid() != parent:
            break
        asked, refused = json.loads(line), None
        symbol, what = asked["symbol"], asked["what"]
        try:
            if what == "report":
                found = signal_report(deployment, symbol)
                registry.publish_signals(deployment, symbol, found)
            else:
                registry.publish(deployment, symbol)
            if what == "draw":
                registry.draw(deployment, symbol)
        except RegistryError as error:
            refused = str(error)
        print(json.dumps({"refused": refused}), file=answers, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
