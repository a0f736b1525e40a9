"""A small server in the test's process that speaks the routes of OpenAI-compatible servers and of vLLM.

It answers what it is told to, notes what it was asked, and fails on demand.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any]], Any]


class FakeServer:
    """Answers by route; ``failures`` are statuses (or seconds of silence) that come first, one a request."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self.failures: list[int | float] = []
        self.refusal = b'{"error": "told to fail"}'
        self.redirect: str | None = None  #: where every request is sent on to
        self.trickle: str | None = None  #: ``headers`` or ``body``: sent byte by byte, without end
        self.under_way = self.most_under_way = 0
        self.answers: dict[str, Answer] = {
            "/v1/models": lambda _: {"data": [{"id": "fake"}]},
            "/health": lambda _: None,
        }
        self.lock = threading.Lock()
        self.url = ""

    def bodies(self, route: str) -> list[dict[str, Any]]:
        return [body for path, body in self.requests if path.partition("?")[0] == route]

    def answer(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, bytes]:
        with self.lock:
            self.requests.append((path, body))
            self.headers.append(headers)
            failure = self.failures.pop(0) if self.failures else None
        if isinstance(failure, float):
            time.sleep(failure)
        elif failure is not None:
            return failure, self.refusal
        if self.redirect is not None:
            return 302, b""
        route = self.answers.get(path.partition("?")[0])
        if route is None:
            return 404, b'{"error": "no such route"}'
        value = route(body)
        return 200, value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with fake.lock:
                fake.under_way += 1
                fake.most_under_way = max(fake.most_under_way, fake.under_way)
            status, text = fake.answer(self.path, json.loads(raw) if raw else {}, dict(self.headers))
            with fake.lock:
                fake.under_way -= 1
            try:
                if fake.trickle is not None:
                    self._trickle(fake.trickle)
                self.send_response(status)
                if fake.redirect is not None:
                    self.send_header("Location", fake.redirect)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client's patience was at an end

        def _trickle(self, part: str) -> None:
            self.wfile.write(b"HTTP/1.0 200 OK\r\nX: " if part == "headers" else b"HTTP/1.0 200 OK\r\n\r\n")
            while True:  # until the client is gone
                self.wfile.write(b" ")
                time.sleep(0.02)

        do_GET = do_POST = _serve  # noqa: N815

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
