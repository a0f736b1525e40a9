"""One HTTP request within one time limit, even if the bytes of its response arrive slowly."""

from __future__ import annotations

import http.client
import socket
import threading
import urllib.parse
import urllib.request
from contextlib import suppress
from types import TracebackType
from typing import Any

#: Bytes of the longest response that is read; those of the largest rollouts have a tenth of it.
LONGEST = 2**28


class LongResponseError(OSError):
    """A server that sent more than :data:`LONGEST` bytes."""


class Attempt:
    """A request whose connection is cut when its time is over.

    A socket's own timeout starts again with every byte, so a server that sends one now and then would be waited for
    without end. Used as a context; :attr:`expired` says whether the time was over.

    Args:
        seconds: from the beginning of the context to the last byte.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.expired = seconds, False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> Attempt:
        self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._timer.cancel()

    def read(self, request: urllib.request.Request) -> str:
        """The text of the response; bytes that are no UTF-8 are replaced.

        Raises:
            urllib.error.HTTPError: any other status than success; a redirection too, which would hand the key on.
            OSError, http.client.HTTPException: no response, or not all of it.
        """
        with self._opener(request.full_url).open(request, timeout=self.seconds) as response:
            content: bytes = response.read(LONGEST + 1)
            if response.length and len(content) <= LONGEST:  # a read without a limit raises this by itself
                raise http.client.IncompleteRead(content, response.length)
        if self.expired:  # a cut looks like the end to a response without a stated length
            raise TimeoutError("timed out")
        if len(content) > LONGEST:
            raise LongResponseError(f"the response has more than {LONGEST >> 20} MiB")
        return content.decode(errors="replace")

    def _opener(self, url: str) -> urllib.request.OpenerDirector:
        """Through the environment's proxy, but never to this machine's own servers."""
        local = urllib.parse.urlsplit(url).hostname in {"localhost", "127.0.0.1", "::1"}
        proxy = [urllib.request.ProxyHandler({})] if local else []
        return urllib.request.build_opener(*proxy, _NoRedirection(), _plain(self), _secure(self))

    def watch(self, opened: socket.socket) -> None:
        """Cut this connection, too, when the time is over."""
        with self._lock:
            self._sockets.append(opened)
            late = self.expired
        if late:
            self._cut()

    def _cut(self) -> None:
        with self._lock:
            self.expired = True
            opened = list(self._sockets)
        for each in opened:
            with suppress(OSError):  # it is closed already
                socket.socket.shutdown(each, socket.SHUT_RDWR)  # below any TLS, whose own farewell would wait


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """None: the redirection is reported as the response."""


def _plain(attempt: Attempt) -> urllib.request.HTTPHandler:
    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            attempt.watch(self.sock)

    class Handler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Connection, req)

    return Handler()


def _secure(attempt: Attempt) -> urllib.request.HTTPSHandler:
    class Connection(http.client.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            attempt.watch(self.sock)

    class Handler(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Connection, req)

    return Handler()
