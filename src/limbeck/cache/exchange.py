"""One question over HTTP and its whole answer, in bounded time and of bounded size.

``urllib`` limits each read of a socket, not their sum: a server that sends a byte a second would be listened to for ever.
Here a watch shuts the socket when the time for the whole answer is over, whatever is going on.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

LARGEST = 1 << 30
"""Bytes of one question or answer."""

_BUSY = (429, 502, 503, 504)
_PIECE = 1 << 20
_SAID = 300  # bytes that are read of an error's text


class Failed(Exception):
    """A question that got no answer.

    Attributes:
        status: what the endpoint answered in place of one; ``None`` where it did not answer.
        again: whether the same question may be answered later.
        late: whether the time for the answer was over.
        wait: seconds that the endpoint asks for until then.
    """

    def __init__(self, text: str, status: int | None = None, again: bool = False, wait: float = 0.0) -> None:
        super().__init__(text)
        self.status, self.again, self.wait = status, again, wait
        self.late = False


@dataclass(frozen=True)
class Asker:
    """How an endpoint is asked.

    Attributes:
        timeout: seconds for a whole answer, connecting and sending included.
        retries: how often a question is asked again after a failure that may pass.
        token: a bearer token.
        basic: name and password.
        wait: seconds before it is asked again, doubled every time; longer where the endpoint itself says so.
        content: what is sent.
    """

    timeout: float = 60.0
    retries: int = 0
    token: str | None = field(default=None, repr=False)
    basic: tuple[str, str] | None = field(default=None, repr=False)
    wait: float = 0.25
    content: str = "application/octet-stream"

    def ask(self, url: str, body: bytes | None = None, limit: int = LARGEST) -> bytes:
        """The answer's bytes, or `Failed` with the cause.

        Args:
            url: the address, without credentials.
            body: what is sent (POST); nothing (GET) when ``None``.
            limit: how many bytes the answer may have.
        """
        for attempt in range(self.retries + 1):
            try:
                return self._once(url, body, limit)
            except Failed as failure:
                if not failure.again or attempt == self.retries:
                    tried = f", {attempt + 1} times" if attempt else ""
                    failure.args = (f"{self._unsaid(str(failure))}{tried}",)
                    raise
                time.sleep(min(self.timeout, max(failure.wait, self.wait * 2**attempt)))
        raise AssertionError("unreachable")

    def _unsaid(self, text: str) -> str:
        """A server may repeat what it was sent."""
        sent = self._headers().get("Authorization", "").partition(" ")[2]
        for secret in (self.token, sent, *(self.basic or ())):
            if secret:
                text = text.replace(secret, "***")
        return text

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": self.content, "Accept-Encoding": "identity"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        elif self.basic is not None:
            pair = ":".join(self.basic).encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        return headers

    def _once(self, url: str, body: bytes | None, limit: int) -> bytes:
        request = urllib.request.Request(url, data=body, headers=self._headers())
        failure, found = None, b""
        with _Watch(self.timeout) as watch:
            try:
                with contextlib.closing(watch.opener().open(request, timeout=self.timeout)) as answer:
                    found = _whole(answer, limit)
            except Failed as told:
                failure = told
            except urllib.error.HTTPError as error:
                failure = _refused(error)
            except (OSError, http.client.HTTPException, ValueError) as error:
                cause = error.reason if isinstance(error, urllib.error.URLError) else error
                if not isinstance(cause, TimeoutError):
                    again = isinstance(error, (OSError, http.client.HTTPException))
                    failure = Failed(f"does not answer ({_words(cause)})", again=again)
                else:
                    failure = self._late()
        if watch.over():  # what a shut socket looks like, an end or an error, is not what happened
            raise self._late()
        if failure is not None:
            raise failure
        return found

    def _late(self) -> Failed:
        failure = Failed(f"did not give its whole answer within {self.timeout:g} seconds")
        failure.late = True
        return failure


class _Watch:
    """Shuts a connection when its time is over."""

    def __init__(self, seconds: float) -> None:
        self.ends = time.monotonic() + seconds
        self.sockets: list[socket.socket] = []
        self.timer = threading.Timer(seconds, self._shut)
        self.timer.daemon = True

    def __enter__(self) -> _Watch:
        self.timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.timer.cancel()

    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.ends

    def _shut(self) -> None:
        for held in self.sockets:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(held, socket.SHUT_RDWR)  # of a TLS socket too, under the feet of its reader

    def opener(self) -> urllib.request.OpenerDirector:
        """Opens addresses by connections that this watch can shut; follows no redirection, which would take secrets along."""
        watch = self

        class Plain(http.client.HTTPConnection):
            def connect(self) -> None:
                super().connect()
                watch.sockets.append(self.sock)

        class Secure(http.client.HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                watch.sockets.append(self.sock)

        class PlainHandler(urllib.request.HTTPHandler):
            def http_open(self, req: urllib.request.Request) -> Any:
                return self.do_open(Plain, req)

        class SecureHandler(urllib.request.HTTPSHandler):
            def https_open(self, req: urllib.request.Request) -> Any:
                return self.do_open(Secure, req)

        class Nowhere(urllib.request.HTTPRedirectHandler):
            def redirect_request(self, *about: Any) -> None:
                return None

        return urllib.request.build_opener(PlainHandler, SecureHandler, Nowhere)


def _whole(answer: Any, limit: int) -> bytes:
    """All of an answer."""
    length = answer.headers.get("Content-Length")
    if length is not None and length.isdigit() and int(length) > limit:
        raise Failed(f"announces {int(length):,} bytes, and this answer has {limit:,} at most")
    found = bytearray()
    while piece := answer.read(_PIECE):
        found += piece
        if len(found) > limit:
            raise Failed(f"sends more than the {limit:,} bytes that this answer has at most")
    if length is not None and length.isdigit() and len(found) < int(length):
        raise Failed(f"broke off after {len(found):,} of {int(length):,} bytes", again=True)
    return bytes(found)


def _refused(error: urllib.error.HTTPError) -> Failed:
    said = ""
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        said = " ".join(error.read(_SAID).decode("utf-8", "replace").split())
    if 300 <= error.code < 400:
        where = error.headers.get("Location", "elsewhere")
        return Failed(f"sends us on to {where} (status {error.code}); give the address that answers itself", error.code)
    if error.code in (401, 403):
        return Failed(f"asks for other credentials (status {error.code})", error.code)
    wait = error.headers.get("Retry-After", "")
    seconds = float(wait) if wait.isdigit() and len(wait) < 6 else 0.0
    text = f"answered with status {error.code}" + (f": {said}" if said else "")
    return Failed(text, error.code, again=error.code in _BUSY, wait=seconds)


def _words(cause: Any) -> str:
    """A failure in words."""
    if isinstance(cause, http.client.IncompleteRead):
        return f"broke off after {len(cause.partial):,} bytes"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return " ".join(str(cause).split())[:200] or type(cause).__name__
