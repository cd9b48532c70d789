"""Dagster's web server, which refuses what pages of other sites ask for.

Dagster itself takes changes from anybody's page, by GET too: one that is open in the same browser
could start runs and turn schedules off, behind a password as well once the browser knows it.

`python -m hedge_pipeline.resources.dagster_ui` takes the command line of `dagster-webserver`.
"""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import urlsplit

from dagster_webserver import cli
from dagster_webserver.app import create_app_from_workspace_process_context
from starlette.applications import Starlette
from starlette.datastructures import Headers, QueryParams
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from hedge_pipeline.settings import load_settings


class OwnPagesOnly:
    """Answers 403 to what another site's page asks for, and to names that are not this machine's.

    A browser says whose page asks (`Origin`, `Sec-Fetch-Site`); programs say nothing and may ask.
    On loopback a name of another machine means that somebody's name server lies.

    Args:
        app: what is guarded.
        behind_proxy: a proxy on this machine passes names on that are not loopback's.
        address: of the UI, for a proxy that does not pass its own name on; "" = it does.
    """

    def __init__(self, app: ASGIApp, *, behind_proxy: bool, address: str = "") -> None:
        self._app = app
        self._behind_proxy = behind_proxy
        self._known = urlsplit(address).netloc.lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what may be asked."""
        reason = self._refusal(scope) if scope["type"] in ("http", "websocket") else ""
        if not reason:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": reason})
        else:
            await PlainTextResponse(reason, 403)(scope, receive, send)

    def _refusal(self, scope: Scope) -> str:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        server = (scope.get("server") or ("",))[0]
        if not self._behind_proxy and _loopback(server) and not _loopback(_name(host)):
            return "this is not the name of this machine"
        origin = headers.get("origin")
        own = {host, headers.get("x-forwarded-host", host).lower(), self._known or host}
        if origin is not None and urlsplit(origin).netloc.lower() not in own:
            return "the page of another site asks"
        if not scope["path"].endswith("/graphql"):
            return ""
        query = QueryParams(scope["query_string"]).get("query", "")
        if query and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return "the page of another site asks"
        if "mutation" in query:
            return "changes are asked for by POST"
        return ""


def _name(host: str) -> str:
    """The name or address in a `Host` header."""
    return urlsplit(f"//{host}").hostname or ""


def _loopback(name: str) -> bool:
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def create_app(*given: Any, **named: Any) -> Starlette:
    """Dagster's application, guarded."""
    app = create_app_from_workspace_process_context(*given, **named)
    settings = load_settings()
    app.add_middleware(
        OwnPagesOnly, behind_proxy=settings.behind_proxy, address=settings.dagster_url
    )
    return app


if __name__ == "__main__":
    cli.create_app_from_workspace_process_context = create_app  # type: ignore[attr-defined]
    cli.main()  # type: ignore[no-untyped-call]
