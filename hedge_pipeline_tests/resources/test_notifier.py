"""Alerts reach a real receiver, never hold anybody up, and never show where they go."""

from __future__ import annotations

import datetime as dt
import json
import logging
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import urllib3
from pydantic import SecretStr
from typer.testing import CliRunner

from hedge_pipeline import cli
from hedge_pipeline.live.alerting import SKILL_WORDS, Alert, alert_text
from hedge_pipeline.resources.notifier import WITHHELD, Delivery, Notifier
from hedge_pipeline.settings import SettingsError
from hedge_pipeline_tests.receivers import PATIENCE, Receiver, receiving

CANARY = "c4nary"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with receiving() as found:
        yield found


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> int:
    """A port at which nobody listens."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


# --- the text ----------------------------------------------------------------------------------

ALERT = Alert(
    symbol="QQQ",
    bar_ts=dt.datetime(2026, 3, 2, 15, 4, tzinfo=dt.UTC),
    side="long",
    price=600.0,
    confidence=0.5734,
    strength=22.46,
    level_source="MHP",
    level_price=599.5,
    model_version=17,
    skill="proven",
)


def test_an_alert_says_what_where_how_sure_and_by_which_model() -> None:
    title, text = alert_text(ALERT)
    assert title == "QQQ long at 600.00"
    assert text.splitlines() == [
        "confidence 57.3%, strength 22.5",
        "level 599.50, MHP support",
        "stop 594.00 (-1 %), target 609.00 (+1.5 %)",
        "model 17: skill is proven",
        "bar of 2026-03-02 15:04 UTC",
    ]


def test_stop_and_target_of_a_short_trade_lie_on_the_other_sides() -> None:
    values = vars(ALERT) | {"side": "short", "price": 0.5, "level_price": 0.50123}
    title, text = alert_text(Alert(**values))
    assert title == "QQQ short at 0.5"
    assert "level 0.5012, MHP resistance" in text
    assert "stop 0.505 (+1 %), target 0.4925 (-1.5 %)" in text


@pytest.mark.parametrize("skill", ["unproven", "lost"])
def test_an_alert_without_proof_says_so(skill: str) -> None:
    _, text = alert_text(Alert(**vars(ALERT) | {"skill": skill}))
    assert SKILL_WORDS[skill] in text
    assert "skill is proven" not in text


# --- delivery ----------------------------------------------------------------------------------


def test_an_alert_arrives_and_the_sender_is_told(receiver: Receiver) -> None:
    notifier = Notifier([SecretStr(receiver.url("/hook"))])
    title, text = alert_text(ALERT)
    assert notifier.send(text, title) == [Delivery("json://*** (1 of 1)", True, "delivered")]
    (request,) = receiver.got
    assert request["path"] == "/hook"
    assert (request["json"]["title"], request["json"]["message"]) == (title, text)


def test_every_url_is_tried_and_answers_for_itself(receiver: Receiver, nobody: int) -> None:
    urls = [f"json://127.0.0.1:{nobody}/", receiver.url(), f"xml://127.0.0.1:{nobody}/"]
    assert Notifier(urls).send("text", "title") == [
        Delivery("json://*** (1 of 3)", False, "no connection or no answer"),
        Delivery("json://*** (2 of 3)", True, "delivered"),
        Delivery("xml://*** (3 of 3)", False, "no connection or no answer"),
    ]


@pytest.mark.parametrize(
    ("status", "detail"),
    [
        (401, "HTTP 401 Unauthorized"),
        (404, "HTTP 404 Not Found"),
        (500, "HTTP 500 Internal Server Error"),
        (599, "HTTP 599"),
    ],
)
@pytest.mark.parametrize("level", [logging.DEBUG, logging.CRITICAL])
def test_a_refusal_is_named_whatever_the_log_level(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, status: int, detail: str, level: int
) -> None:
    caplog.set_level(level)
    receiver.status = status
    (found,) = Notifier([receiver.url()]).send("text", "title")
    assert (found.ok, found.detail) == (False, detail)


def test_a_slow_receiver_costs_the_time_out_and_no_more(receiver: Receiver) -> None:
    receiver.open.clear()
    notifier = Notifier([receiver.url(), receiver.url()], timeout=0.3)
    begun = time.monotonic()
    found = notifier.send("text", "title")
    assert 0.25 < time.monotonic() - begun < 2
    assert [entry.detail for entry in found] == ["no answer within 0.3 s"] * 2


def test_an_alert_that_was_given_up_is_not_delivered_late(receiver: Receiver) -> None:
    receiver.open.clear()
    notifier = Notifier([receiver.url()], timeout=1)
    for text in ("under way", "given up", "given up"):
        assert notifier.send(text, "title")[0].detail == "no answer within 1 s"
    receiver.open.set()
    deadline = time.monotonic() + PATIENCE
    while not notifier.send("free again", "title")[0].ok:
        assert time.monotonic() < deadline
    messages = {request["json"]["message"] for request in receiver.got}
    # on a busy machine the thread of the first one may also have begun too late
    assert {"free again"} <= messages <= {"under way", "free again"}


def test_an_alert_whose_thread_begins_too_late_is_not_delivered(receiver: Receiver) -> None:
    notifier = Notifier([receiver.url()], timeout=0)
    assert notifier.send("too late", "title")[0].detail == "no answer within 0 s"
    notifier = Notifier([receiver.url()])
    assert notifier.send("in time", "title")[0].ok
    assert [request["json"]["message"] for request in receiver.got] == ["in time"]


def test_what_apprise_does_not_explain_is_refused(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    import apprise

    monkeypatch.setattr(apprise.Apprise, "notify", lambda self, **arguments: False)
    assert Notifier([receiver.url()]).send("text", "title")[0].detail == "refused"


def test_a_service_that_breaks_is_a_failed_delivery(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    import apprise

    def broken(self: object, **arguments: object) -> bool:
        raise KeyError(CANARY)

    monkeypatch.setattr(apprise.Apprise, "notify", broken)
    assert Notifier([receiver.url()]).send("text", "title") == [
        Delivery("json://*** (1 of 1)", False, "failed (KeyError)")
    ]


# --- handing over ------------------------------------------------------------------------------


def test_handing_over_returns_at_once_and_the_alert_arrives_later(receiver: Receiver) -> None:
    receiver.open.clear()
    notifier = Notifier([receiver.url()])
    begun = time.monotonic()
    assert all(notifier.post(f"text {i}", "title") for i in range(5))
    assert time.monotonic() - begun < 1
    assert not notifier.flush(0.05)
    receiver.open.set()
    assert notifier.flush(PATIENCE)
    messages = [request["json"]["message"] for request in receiver.got]
    assert messages == [f"text {i}" for i in range(5)]


def test_when_too_many_wait_the_newest_is_dropped_and_named(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.open.clear()
    notifier = Notifier([receiver.url()], capacity=2)
    assert notifier.post("under way", "title")
    receiver.wait_for(1)
    assert notifier.post("waits", "title")
    assert notifier.post("waits too", "title")
    assert not notifier.post("too many", "QQQ long")
    assert "alert dropped, 2 others wait: QQQ long" in caplog.text
    receiver.open.set()
    assert notifier.flush(PATIENCE)
    assert len(receiver.got) == 3


def test_how_an_alert_ended_is_the_only_line_in_the_log(
    receiver: Receiver, nobody: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[tuple[str, str]] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append((record.levelname, record.getMessage()))

    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [Lines()])
    before = root.level
    root.setLevel(logging.INFO)
    try:
        notifier = Notifier([receiver.url(), f"json://127.0.0.1:{nobody}/"])
        notifier.post("text", "QQQ long")
        assert notifier.flush(PATIENCE)
    finally:
        root.setLevel(before)
    assert lines == [
        ("INFO", "alert 'QQQ long' to json://*** (1 of 2): delivered"),
        ("WARNING", "alert 'QQQ long' to json://*** (2 of 2): no connection or no answer"),
    ]


def test_a_failure_of_our_own_costs_one_alert(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier([receiver.url()])
    whole = notifier.send

    def fails_once(text: str, title: str) -> list[Delivery]:
        monkeypatch.setattr(notifier, "send", whole)
        raise OSError(CANARY)

    monkeypatch.setattr(notifier, "send", fails_once)
    notifier.post("lost", "first")
    notifier.post("arrives", "second")
    assert notifier.flush(PATIENCE)
    assert "alert 'first' failed (OSError)" in caplog.text
    assert [request["json"]["message"] for request in receiver.got] == ["arrives"]


def test_without_a_thread_to_spare_the_caller_is_not_disturbed(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier([receiver.url()])

    def exhausted(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", exhausted)
        assert notifier.post("first", "title")
    assert "there is no thread" in caplog.text
    assert notifier.post("second", "title")
    assert notifier.flush(PATIENCE)
    assert [request["json"]["message"] for request in receiver.got] == ["first", "second"]


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )


def test_without_urls_nobody_is_told_and_apprise_is_not_loaded() -> None:
    found = run(
        "import sys\n"
        "from hedge_pipeline.resources.notifier import Notifier\n"
        "none = Notifier(())\n"
        "print(bool(none), none.post('a', 'b'), none.send('a', 'b'), none.flush(0))\n"
        "print('apprise' in sys.modules)"
    )
    assert found.stdout.split("\n")[:2] == ["False False [] True", "False"], found.stderr


def test_a_process_ends_without_waiting_for_an_alert(receiver: Receiver) -> None:
    receiver.open.clear()
    found = run(
        "import time\n"
        "from hedge_pipeline.resources.notifier import Notifier\n"
        f"notifier = Notifier(['{receiver.url('/?rto=50')}'], timeout=50)\n"
        "notifier.post('a', 'b')\n"
        "notifier.flush(1.0)\n"
        "print(time.time())"
    )
    ended = time.time()
    assert len(receiver.got) == 1
    assert ended - float(found.stdout) < 10, found.stderr


# --- secrecy -----------------------------------------------------------------------------------


def secret_url(port: int) -> str:
    """A canary in every part of the URL that can hold one, and a path that is one."""
    return (
        f"json://{CANARY}-user:{CANARY}-password@127.0.0.1:{port}/{CANARY}-path"
        f"?+X-Token={CANARY}-header&-q={CANARY}-query&:extra={CANARY}-field"
    )


@pytest.fixture
def everything(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    """Every logger of the process speaks, at every level."""
    caplog.set_level(1)
    for name in ("urllib3", "requests", "asyncio"):
        monkeypatch.setattr(logging.getLogger(name), "level", 1)
    return caplog


@pytest.mark.parametrize("case", ["delivered", "refused", "slow", "nobody"])
def test_no_part_of_an_alert_url_is_ever_shown(
    receiver: Receiver,
    nobody: int,
    everything: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    case: str,
) -> None:
    receiver.status = 500 if case == "refused" else 200
    if case == "slow":
        receiver.open.clear()
    notifier = Notifier(
        [SecretStr(secret_url(nobody if case == "nobody" else receiver.port))],
        timeout=0.5 if case == "slow" else PATIENCE,
    )
    deliveries = notifier.send("text", "title")
    assert deliveries[0].ok is (case == "delivered")
    notifier.post("text", "title")
    assert notifier.flush(PATIENCE)
    if case == "delivered":
        request = receiver.got[0]
        assert request["headers"]["X-Token"] == f"{CANARY}-header"
        assert request["path"] == f"/{CANARY}-path?q={CANARY}-query"
        assert any(record.getMessage() == WITHHELD for record in everything.records)
    output = capfd.readouterr()
    shown = (everything.text, output.out, output.err, deliveries, vars(notifier), repr(notifier))
    for text in map(str, shown):
        assert CANARY not in text


def test_outside_a_delivery_other_libraries_log_as_ever(
    receiver: Receiver, everything: pytest.LogCaptureFixture
) -> None:
    """And so the canary above would have been seen."""
    Notifier([receiver.url()]).send("text", "title")
    urllib3.PoolManager().request(
        "POST", f"http://127.0.0.1:{receiver.port}/{CANARY}", body=b"{}", timeout=PATIENCE
    )
    assert f"/{CANARY}" in everything.text


@pytest.mark.parametrize(
    "url",
    [
        f"nosuchservice://{CANARY}",
        f"json://{CANARY}:port/{CANARY}",
        f"tgram://{CANARY}",
        f"discord://{CANARY}",
        f"{CANARY}",
        "",
        f"mailto://{CANARY}",
        f"json://[{CANARY}/",
    ],
)
def test_a_url_that_is_not_understood_stops_the_start_without_being_shown(
    receiver: Receiver,
    everything: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    url: str,
) -> None:
    with pytest.raises(SettingsError) as refused:
        Notifier([receiver.url(), SecretStr(url)])
    line = str(refused.value)
    assert line == ("HEDGE_ALERT_URLS=***: entry 2 of 2 is no URL that Apprise understands")
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None
    output = capfd.readouterr()
    assert CANARY not in everything.text + output.out + output.err


def test_a_vendors_own_address_is_masked_by_the_name_of_the_service() -> None:
    address = "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"
    (channel,) = Notifier([address])._channels
    assert re.fullmatch(r"slack://\*\*\* \(1 of 1\)", channel.name)


# --- on the command line -----------------------------------------------------------------------


def test_the_test_alert_arrives_and_no_url_is_shown(receiver: Receiver) -> None:
    url = receiver.url(f"/{CANARY}")
    found = CliRunner().invoke(cli.app, ["alert-test"], env={"HEDGE_ALERT_URLS": url})
    assert found.exit_code == 0, found.output
    (got,) = receiver.got
    assert got["json"]["title"] == "hedge: test alert"
    assert "ok" in found.output and CANARY not in found.output


def test_a_test_alert_that_fails_is_an_error_exit(nobody: int) -> None:
    env = {"HEDGE_ALERT_URLS": f"json://127.0.0.1:{nobody}/{CANARY}"}
    found = CliRunner().invoke(cli.app, ["alert-test", "--json"], env=env)
    assert found.exit_code == 1
    (delivery,) = json.loads(found.output)
    assert delivery["ok"] is False and CANARY not in found.output


def test_without_urls_there_is_nobody_to_tell() -> None:
    found = CliRunner().invoke(cli.app, ["alert-test"], env={"HEDGE_ALERT_URLS": ""})
    assert found.exit_code == 1
    assert "HEDGE_ALERT_URLS is empty" in found.output
