"""Alerts to wherever an operator wants them, by Apprise. The loop never waits for one.

An alert URL is a secret as a whole: tokens hide in its host, path, user and query. Nothing here
ever shows more of it than the name of the service, and while one is used the log records of every
other library in that thread are emptied.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hedge_pipeline.settings import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apprise import Apprise
    from pydantic import SecretStr

log = logging.getLogger(__name__)

TIMEOUT: Final = 10.0
CAPACITY: Final = 32
OURS: Final = "hedge_pipeline"
WITHHELD: Final = "(withheld: it may name an alert URL)"

# -- secrecy ---------------------------------------------------------------------------------------

_heard: ContextVar[list[str] | None] = ContextVar("heard", default=None)


@contextmanager
def _discreet() -> Iterator[list[str]]:
    """Empties what other libraries log in this thread; gives what Apprise would have said."""
    _withhold()
    said: list[str] = []
    token = _heard.set(said)
    try:
        yield said
    finally:
        _heard.reset(token)


def _withhold() -> None:
    """Installs the record factory once; outside `_discreet` it changes nothing."""
    with _install:
        previous = logging.getLogRecordFactory()
        if isinstance(previous, _DiscreetFactory):
            return
        logging.setLogRecordFactory(_DiscreetFactory(previous))
        # our own lines say how a delivery ended; its warnings are heard whatever LOG_LEVEL is
        apprise = logging.getLogger("apprise")
        apprise.propagate = False
        apprise.addHandler(logging.NullHandler())
        apprise.setLevel(logging.WARNING)


_install = threading.Lock()


class _DiscreetFactory:
    def __init__(self, previous: Any) -> None:
        self._previous = previous

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = self._previous(*args, **kwargs)
        said = _heard.get()
        if said is not None and record.name.split(".")[0] != OURS:
            if record.name == "apprise":
                with suppress(Exception):
                    said.append(record.getMessage())
            record.msg, record.args, record.exc_info, record.stack_info = WITHHELD, (), None, None
        return record


# -- delivery --------------------------------------------------------------------------------------


class Delivery(NamedTuple):
    """How an alert fared at one URL; `url` is masked."""

    url: str
    ok: bool
    detail: str


class _Channel:
    """One alert URL; at most one delivery at a time is under way."""

    def __init__(self, service: Apprise, name: str) -> None:
        self.name = name
        self._service = service
        self._busy = threading.Lock()

    def start(self, text: str, title: str, until: float) -> Future[Delivery]:
        """Delivers in a thread of its own, which ends with the process.

        Args:
            text: of the alert.
            title: of the alert.
            until: monotonic time until which an earlier delivery is waited for; then this one is
                given up, for a late alert is worse than none.
        """
        future: Future[Delivery] = Future()
        threading.Thread(
            target=self._run, args=(future, text, title, until), name="alert", daemon=True
        ).start()
        return future

    def _run(self, future: Future[Delivery], text: str, title: str, until: float) -> None:
        if self._busy.acquire(timeout=max(0.0, until - time.monotonic())):
            try:
                if time.monotonic() < until:  # on a busy machine a thread may begin late
                    future.set_result(self._deliver(text, title))
            finally:
                self._busy.release()

    def _deliver(self, text: str, title: str) -> Delivery:
        with _discreet() as said:
            try:
                ok = bool(self._service.notify(body=text, title=title, body_format="text"))
            except Exception as error:  # a service's mistake concerns its alert only
                return Delivery(self.name, False, f"failed ({type(error).__name__})")
            return Delivery(self.name, ok, "delivered" if ok else _why(said))


def _why(said: Sequence[str]) -> str:
    """The cause in words of our own: the library's may name the URL."""
    text = " ".join(said)
    code = re.search(r"\berror=(\d{3})\b", text)
    if code:
        phrases = {status.value: status.phrase for status in HTTPStatus}
        return f"HTTP {code[1]} {phrases.get(int(code[1]), '')}".rstrip()
    return "no connection or no answer" if "Connection error" in text else "refused"


class Notifier:
    """Sends alerts to every configured URL.

    Args:
        urls: Apprise URLs, secret. None at all is allowed: nothing is sent then.
        timeout: seconds after which a delivery counts as failed.
        capacity: alerts that may wait; further ones are dropped, with a line in the log.

    Raises:
        SettingsError: a URL is not understood; the line does not show it.
    """

    def __init__(
        self,
        urls: Sequence[SecretStr | str] = (),
        *,
        timeout: float = TIMEOUT,
        capacity: int = CAPACITY,
    ) -> None:
        self._timeout = timeout
        self._channels = [_channel(url, i, len(urls)) for i, url in enumerate(urls, start=1)]
        self._waiting: queue.Queue[tuple[str, str]] = queue.Queue(capacity)
        self._worker: threading.Thread | None = None
        self._starting = threading.Lock()

    def __bool__(self) -> bool:
        """Whether there is anybody to tell."""
        return bool(self._channels)

    def post(self, text: str, title: str) -> bool:
        """Hands an alert over and returns at once, whatever happens to it.

        Returns:
            False if nobody is to be told or too many alerts wait.
        """
        if not self._channels:
            return False
        try:
            self._waiting.put_nowait((text, title))
            self._start_worker()
        except queue.Full:
            log.warning("alert dropped, %d others wait: %s", self._waiting.maxsize, title)
            return False
        except RuntimeError:
            log.warning("alert waits, there is no thread to send it: %s", title)
        return True

    def send(self, text: str, title: str) -> list[Delivery]:
        """Delivers to all URLs at the same time and waits, at most the time-out.

        Returns:
            One entry per URL, in their order.
        """
        until = time.monotonic() + self._timeout
        started = [(channel.name, channel.start(text, title, until)) for channel in self._channels]
        return [self._outcome(name, future, until) for name, future in started]

    def flush(self, timeout: float) -> bool:
        """Waits until every alert handed over was tried; False if the time was too short."""
        with self._waiting.all_tasks_done:
            return self._waiting.all_tasks_done.wait_for(
                lambda: not self._waiting.unfinished_tasks, timeout
            )

    def _outcome(self, name: str, future: Future[Delivery], until: float) -> Delivery:
        try:
            return future.result(max(0.0, until - time.monotonic()))
        except TimeoutError:
            return Delivery(name, False, f"no answer within {self._timeout:g} s")

    def _start_worker(self) -> None:
        with self._starting:
            if self._worker is None or not self._worker.is_alive():
                self._worker = threading.Thread(target=self._work, name="alerts", daemon=True)
                self._worker.start()

    def _work(self) -> None:
        while True:
            text, title = self._waiting.get()
            try:
                for delivery in self.send(text, title):
                    level = logging.INFO if delivery.ok else logging.WARNING
                    log.log(level, "alert %r to %s: %s", title, delivery.url, delivery.detail)
            except Exception as error:  # the thread must outlive any one alert
                log.warning("alert %r failed (%s)", title, type(error).__name__)
            finally:
                self._waiting.task_done()


def _channel(url: SecretStr | str, place: int, number: int) -> _Channel:
    from apprise import Apprise, AppriseAsset

    # no time limit of its own: its threads would keep the process from ending
    asset = AppriseAsset(app_id="hedge_pipeline", service_timeout=0)
    text = url if isinstance(url, str) else url.get_secret_value()
    service = None
    with _discreet(), suppress(Exception):
        service = Apprise.instantiate(text, asset=asset)
    if service is None:
        raise SettingsError(
            f"HEDGE_ALERT_URLS=***: entry {place} of {number} is no URL that Apprise understands"
        )
    apprise = Apprise(asset=asset)
    apprise.add(service)
    schema = apprise.urls(privacy=True)[0].partition("://")[0]
    return _Channel(apprise, f"{schema}://*** ({place} of {number})")
