"""What stands before all routes: the key, the limits on bytes, time and requests at once, and the counting."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import time
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unipixel_jax.serve.faults import CLIENT_GONE, Fault
from unipixel_jax.serve.metrics import Metrics
from unipixel_jax.serve.scheduler import stopping_fault
from unipixel_jax.serve.settings import Settings

log = logging.getLogger(__name__)

OPEN = ("/health",)
"""The paths that need no key."""
WORK = ("/v1/segment", "/v1/track", "/v1/chat/completions")
"""The paths whose requests take a place in the queue."""
DRAIN_SECONDS = 1.0
"""How long what follows a refused body is still read, since many clients look for the answer only when they have sent it all."""


class Guard:
    """The ASGI application around the routes.

    Attributes:
        taken: requests that hold a place in the queue.

    Args:
        app: the routes.
        settings: the limits.
        metrics: what is counted.
        stopping: whether the service is stopping.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, stopping: Callable[[], bool]) -> None:
        self.taken = 0
        self._app, self._settings, self._metrics, self._stopping = app, settings, metrics, stopping
        self._key = hashlib.sha256(settings.api_key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever it is: exactly once, and never with a traceback."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, start = scope["path"], time.monotonic()
        route = path if path in (*WORK, *OPEN, "/v1/models", "/metrics", "/openapi.json") else "other"
        body = _Body(receive, self._settings, self._metrics)
        answer = _Answer(send, body, self._settings.seconds)
        works = path in WORK and scope["method"] == "POST"
        scope.setdefault("state", {})["arrived"] = start
        try:
            self._check(scope, body, works)
            self.taken += works
            try:
                await self._app(scope, body.receive, answer.send)
            finally:
                self.taken -= works
        except Fault as fault:
            await answer.refuse(fault, scope, receive)
        except OSError as error:
            log.warning("a response to %s was not sent to its end (%s)", route, error)
        except Exception as error:
            log.exception("answering %s failed (%s: %s)", route, type(error).__name__, error)
            await answer.refuse(Fault(500, "internal_error", "answering this request failed in the service, whose log says why"), scope, receive)
        finally:
            self._metrics.requests.labels(route, str(answer.status or CLIENT_GONE)).inc()
            self._metrics.seconds.labels(route).observe(time.monotonic() - start)

    def _check(self, scope: Scope, body: _Body, works: bool) -> None:
        headers = dict(scope["headers"])
        if self._settings.api_key and scope["path"] not in OPEN and not self._knows(headers.get(b"authorization", b"")):
            raise Fault(401, "invalid_api_key", "the key is missing or wrong: send the header Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced[:20]) > self._settings.max_upload:
            raise body.too_large()
        if works and self._stopping():
            raise stopping_fault()
        if works and self.taken >= self._settings.queue:
            raise Fault(429, "queue_full", f"{self.taken} requests are taken and not yet answered, as many as may be: send it again later")

    def _knows(self, header: bytes) -> bool:
        """Compare the key in a time that does not depend on it."""
        scheme, _, key = header.partition(b" ")
        return hmac.compare_digest(hashlib.sha256(key.strip()).digest(), self._key) and scheme.lower() == b"bearer"


class _Body:
    """The body of a request, of which too much, or too slow, ends in a ``Fault``."""

    def __init__(self, receive: Receive, settings: Settings, metrics: Metrics) -> None:
        self._receive, self._settings, self._metrics = receive, settings, metrics
        self._read, self._complete = 0, False
        self._end = time.monotonic() + settings.upload_seconds

    async def receive(self) -> Message:
        """The next part."""
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout(self._end - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            raise Fault(408, "upload_timeout", f"the body did not come within {self._settings.upload_seconds:g} s", {"Connection": "close"}) from None
        size = len(message.get("body", b""))
        self._metrics.uploaded.inc(size)
        self._read += size
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        if self._read > self._settings.max_upload:
            raise self.too_large()
        return message

    async def drain(self) -> None:
        """Read and forget what is still coming, for a moment."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self._complete:
                    message = await self._receive()
                    self._complete = message["type"] != "http.request" or not message.get("more_body", False)

    def too_large(self) -> Fault:
        """The fault of a body that is too large."""
        return Fault(413, "too_large", f"the body has more than {self._settings.max_upload} bytes: make it smaller", {"Connection": "close"})


class _Answer:
    """The response to a request.

    Attributes:
        status: its status, once it has begun; 0 before.
    """

    def __init__(self, send: Send, body: _Body, seconds: float) -> None:
        self.status = 0
        self._send, self._body, self._seconds = send, body, seconds

    async def send(self, message: Message) -> None:
        """Pass on a part of it. An error waits until its request has been read, or a moment.

        Raises:
            OSError: the client does not read what was sent before.
        """
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status >= 400:
                await self._body.drain()
        try:
            async with asyncio.timeout(self._seconds):
                await self._send(message)
        except TimeoutError:
            raise OSError(f"the client has not read its response for {self._seconds:g} s") from None

    async def refuse(self, fault: Fault, scope: Scope, receive: Receive) -> None:
        """Send an error, unless a response has begun."""
        if not self.status:
            answer: Any = fault.response
            await answer(scope, receive, self.send)
