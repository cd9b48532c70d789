"""A web server on the loopback that takes alerts."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PATIENCE = 20.0


@dataclass
class Receiver:
    """A web server on the loopback that keeps what it is sent.

    Attributes:
        status: of every answer.
        open: answers wait for it.
        got: path, headers and JSON of every request, in order of arrival.
    """

    port: int = 0
    status: int = 200
    open: threading.Event = field(default_factory=threading.Event)
    got: list[dict[str, Any]] = field(default_factory=list)

    def url(self, rest: str = "/") -> str:
        return f"json://127.0.0.1:{self.port}{rest}"

    def wait_for(self, number: int) -> None:
        end = time.monotonic() + PATIENCE
        while len(self.got) < number:
            assert time.monotonic() < end, f"{len(self.got)} of {number} requests"
            time.sleep(0.005)


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver from its first answer on."""
    told = Receiver()
    told.open.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            told.got.append({"path": self.path, "headers": self.headers, "json": json.loads(body)})
            told.open.wait(PATIENCE)
            self.send_response(told.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST  # noqa: N815 - the name is the standard library's

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def handle(self) -> None:
            # a sender that has given up closes the connection
            with contextlib.suppress(ConnectionError):
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    told.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield told
    finally:
        told.open.set()
        server.shutdown()
        server.server_close()
        thread.join()
