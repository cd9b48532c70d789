"""Dagster's web server answers its own pages and programs, not pages of other sites."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hedge_pipeline.resources.dagster_ui import OwnPagesOnly

OWN = {"host": "localhost:3000"}
QUERY = b"query=%7Bversion%7D"
CHANGE = b"query=mutation%7BsetNuxSeen%7D"


def asked(
    headers: dict[str, str],
    *,
    method: str = "POST",
    path: str = "/graphql",
    query: bytes = b"",
    kind: str = "http",
    server: str = "127.0.0.1",
    behind_proxy: bool = False,
    address: str = "",
) -> int:
    """Status of the answer; of a websocket the code it is closed with, 101 if it is let through."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        sent.append({"status": 101 if kind == "websocket" else 200})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    scope = {
        "type": kind,
        "method": method,
        "path": path,
        "query_string": query,
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "server": (server, 3000),
    }
    asyncio.run(OwnPagesOnly(app, behind_proxy=behind_proxy, address=address)(scope, receive, send))
    return int(sent[0].get("status") or sent[0]["code"])


@pytest.mark.parametrize("host", ["localhost:3000", "127.0.0.1:3000", "[::1]:3000", "LOCALHOST"])
def test_programs_and_own_pages_may_ask(host: str) -> None:
    assert asked({"host": host}) == 200
    assert asked({"host": host, "origin": f"http://{host}"}) == 200
    assert asked({"host": host, "origin": f"http://{host}"}, kind="websocket") == 101
    assert asked({"host": host, "sec-fetch-site": "same-origin"}, method="GET", query=QUERY) == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:5000", ""])
@pytest.mark.parametrize("path", ["/graphql", "/report_asset_materialization/x", "/"])
def test_pages_of_other_sites_may_not(origin: str, path: str) -> None:
    assert asked({**OWN, "origin": origin}, path=path) == 403
    assert asked({**OWN, "origin": origin}, path=path, kind="websocket") == 1008


def test_a_link_of_another_site_opens_a_page_and_changes_nothing() -> None:
    away = {**OWN, "sec-fetch-site": "cross-site"}
    assert asked(away, method="GET", path="/assets/raw_quotes") == 200
    assert asked(away, method="GET", query=QUERY) == 403
    for headers in (OWN, away):  # an old browser does not say where it comes from
        assert asked(headers, method="GET", query=CHANGE) == 403


@pytest.mark.parametrize("host", ["evil.example:3000", "evil.localhost.example", "", "10.0.0.1"])
def test_on_loopback_a_name_of_another_machine_is_refused(host: str) -> None:
    origin = {"origin": f"http://{host}"} if host else {}
    assert asked({"host": host, **origin}) == 403
    if host:  # where a proxy passes on what it was asked by
        assert asked({"host": host, **origin}, behind_proxy=True) == 200
        assert asked({"host": host, **origin}, server="172.18.0.5") == 200


def test_a_proxy_may_ask_by_its_own_name() -> None:
    headers = {"host": "webserver:3000", "x-forwarded-host": "hedge.example"}
    own = {**headers, "origin": "https://hedge.example"}
    assert asked(own, server="172.18.0.5") == 200
    assert asked({**headers, "origin": "https://evil.example"}, server="172.18.0.5") == 403


def test_behind_a_proxy_that_hides_its_name_the_settings_name_it() -> None:
    headers = {"host": "127.0.0.1:3000", "origin": "https://hedge.example"}
    assert asked(headers, behind_proxy=True) == 403
    assert asked(headers, behind_proxy=True, address="https://hedge.example/") == 200
    evil = {**headers, "origin": "https://evil.example"}
    assert asked(evil, behind_proxy=True, address="https://hedge.example/") == 403
