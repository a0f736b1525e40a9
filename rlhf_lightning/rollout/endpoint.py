"""JSON over HTTP with time limits and retries, for engines and judges on a server.

It uses the standard library alone, so a judge needs no dependency.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from rlhf_lightning.rollout.attempt import Attempt
from rlhf_lightning.rollout.request_options import RequestOptions

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

#: Statuses that a server may not repeat a moment later: time-outs, locks, too many requests, and its own failures.
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})

#: Bytes of a refusal that are read.
_QUOTED = 4096


class ServerError(RuntimeError):
    """A server refused a request, or could not be reached.

    Attributes:
        status: HTTP status of the answer; None: there was no answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Endpoint:
    """A server, with time limits and retries.

    Attributes:
        url: root of its routes, such as ``http://127.0.0.1:8000``; a trailing ``/v1`` is understood.
        api_key_env: name of the environment variable that holds the key; the variable may be unset.
        timeout: seconds that one attempt may take, from the first byte that is sent to the last of the response.
        retries: further attempts after the first.
        backoff: seconds before the first of them; doubled for each further one, with up to a quarter added at random.

    Raises:
        ValueError: an option is out of range, or the address is none.
    """

    url: str
    api_key_env: str = "OPENAI_API_KEY"
    timeout: float = 120.0
    retries: int = 4
    backoff: float = 1.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url={self.url!r} is no address of a server; write it as http://host:port")
        if self.timeout <= 0 or self.retries < 0 or self.backoff < 0:
            raise ValueError(
                f"timeout={self.timeout} must be positive, retries={self.retries} and backoff={self.backoff} at least 0"
            )

    @classmethod
    def asked(cls, url: str, requests: RequestOptions, api_key_env: str = "OPENAI_API_KEY") -> Endpoint:
        """A server that is asked so."""
        return cls(url, api_key_env, requests.timeout, requests.retries, requests.backoff)

    def path(self, route: str) -> str:
        """The full address of a route such as ``/v1/models``."""
        return self.url.rstrip("/").removesuffix("/v1") + route

    def post(self, route: str, body: Mapping[str, Any] | None = None) -> Any:
        """Send a JSON object (None: an empty body) and read the answer.

        Returns:
            The parsed answer; None where it is empty.

        Raises:
            ServerError: it was refused, or every attempt failed.
        """
        return _parsed(self._retrying(route, _encoded(body), "POST"), self.path(route))

    def send(self, route: str, body: Mapping[str, Any] | None = None) -> None:
        """Send a JSON object, as :meth:`post` does, to a route whose answer says nothing further."""
        self._retrying(route, _encoded(body), "POST")

    def get(self, route: str) -> Any:
        """Ask for a route and read the answer, as :meth:`post` does."""
        return _parsed(self._retrying(route, None, "GET"), self.path(route))

    def _retrying(self, route: str, data: bytes | None, method: str) -> str:
        for attempt in range(self.retries + 1):
            try:
                return self._once(route, data, method)
            except ServerError as error:
                last = attempt == self.retries
                if last or (error.status is not None and error.status not in RETRIED):
                    raise
                wait = self.backoff * 2**attempt * (1 + random.random() / 4)
                log.warning("%s; trying again in %.1f s", error, wait)
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _once(self, route: str, data: bytes | None, method: str) -> str:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(self.api_key_env):
            headers["Authorization"] = f"Bearer {key}"
        with Attempt(self.timeout) as attempt:
            try:
                request = urllib.request.Request(self.path(route), data=data, headers=headers, method=method)
                return attempt.read(request)
            except urllib.error.HTTPError as error:
                raise ServerError(_refusal(self.path(route), error, key), error.code) from None
            except (OSError, http.client.HTTPException, UnicodeError) as error:
                reason = getattr(error, "reason", None) or error or type(error).__name__
                told = "timed out" if attempt.expired else _shown(str(reason))
                raise ServerError(
                    f"no response from {self.path(route)} within {self.timeout:g} s ({told}): is the server running "
                    "there? A slow one needs a larger timeout"
                ) from None


def _encoded(body: Mapping[str, Any] | None) -> bytes:
    return b"" if body is None else json.dumps(body).encode()


def _refusal(url: str, error: urllib.error.HTTPError, key: str | None) -> str:
    try:
        text = error.read(_QUOTED).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException):
        text = ""
    hint = {
        401: ": set the environment variable that api_key_env names",
        403: ": the key that api_key_env names may not use this model",
        404: ": no such route or model on this server; its models are listed at /v1/models",
        429: ": it is asked too much; lower concurrency, or raise retries and backoff",
    }.get(error.code, "")
    if 300 <= error.code < 400:
        hint = f": it points to {error.headers.get('Location')}; give that address as url, if you trust it"
    if key:
        text = text.replace(key, "***")
    return f"{url} answered {error.code} {_shown(str(error.reason))}{_shown(hint)}. It sent: {_shown(text)[:500]}"


def _shown(text: str) -> str:
    """Text of a server as a terminal may print it: control characters are replaced."""
    return "".join(letter if letter.isprintable() or letter == " " else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _parsed(text: str, url: str) -> Any:
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ServerError(f"{url} sent no JSON: {_shown(text[:200])!r}; is it an OpenAI-compatible server?") from None


def in_threads(function: Callable[[T], R], items: Iterable[T], concurrency: int) -> list[R]:
    """Results in the order of the items, with so many calls at once; the first error ends the rest.

    Raises:
        ValueError: ``concurrency`` is below 1.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency={concurrency} must be at least 1")
    with ThreadPoolExecutor(concurrency) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise
