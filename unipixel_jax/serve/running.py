"""A service in a process: the socket, the warm-up, and the stop that loses no request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Sequence
from dataclasses import replace
from types import FrameType
from typing import Any

import numpy as np
import uvicorn

from unipixel_jax.errors import UserError
from unipixel_jax.infer.many import PHOTOS, Job
from unipixel_jax.infer.predictor import UniPixel
from unipixel_jax.processing.prompts import Clicks, numbered
from unipixel_jax.processing.tokenizer import SEG_TOKEN
from unipixel_jax.serve.app import make_app
from unipixel_jax.serve.scheduler import Ticket
from unipixel_jax.serve.service import Service
from unipixel_jax.serve.settings import Settings

log = logging.getLogger(__name__)

LAST_SECONDS = 10
"""How long connections may stay open after the last request was answered or failed."""


def open_socket(host: str, port: int) -> socket.socket:
    """A socket at an address, before a model is loaded, so that an address that is taken is found out at once. It does not listen yet.

    Raises:
        UserError: it cannot be had.
    """
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port is {port}, expected 0 to 65535")
    with contextlib.ExitStack() as stack:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            bound = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError as error:
            raise UserError(f"{host}:{port} cannot be listened on ({error.strerror or error}): choose another --host or --port") from None
        stack.pop_all()
        return bound


class Server(uvicorn.Server):
    """A server of one service. Told to stop, it takes no further request, and ends when those that it has taken are answered or failed."""

    def __init__(self, service: Service, sizes: Sequence[tuple[int, int]] = (), shown: str = "") -> None:
        config = uvicorn.Config(
            make_app(service),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(service.settings.grace) + LAST_SECONDS,
            proxy_headers=False,
            http="h11",
            ws="none",
            lifespan="off",
        )
        super().__init__(config)
        self._service, self._sizes, self._shown = service, sizes, shown

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at a signal; a second Ctrl-C does not wait for anything."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and warm up beside it: whoever asks for /health learns that it is not over."""
        self._service.ready = not self._sizes
        await super().startup(sockets)
        self._warming = asyncio.create_task(self._warm_up())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish, or fail, each request once."""
        draining = asyncio.create_task(self._service.scheduler.drain(self._service.settings.grace))
        await super().shutdown(sockets)
        await draining
        self._warming.cancel()

    async def _warm_up(self) -> None:
        for size in self._sizes:
            await warm_up(self._service, *size)
        self._service.ready = True
        if self._shown:
            print(f"ready on {self._shown}", flush=True)


async def warm_up(service: Service, width: int, height: int) -> None:
    """Answer 1, 2, 4, ... prompts together about photos of a size, one about a clip, and clicks in both, so that their programs are compiled."""
    rng = np.random.default_rng(0)
    together = [count for count in (1, 2, 4, 8) if count <= min(PHOTOS, service.settings.max_batch)]
    words = Job(None, f"Is this {SEG_TOKEN} an object?", max_new_tokens=2)
    marked = numbered([Clicks([(0.0, 0.0)], mask=np.ones((height, width), bool))])
    clicks = Job(None, "", clicks=marked), Job(None, "", clicks=[replace(marked[0], off=[(0.0, 0.0)] * 4)])
    for asked, count, frames in [*((words, count, 1) for count in together), (words, 1, 2), *((job, 1, frames) for job in clicks for frames in (1, 2))]:
        tickets = [Ticket() for _ in range(count)]
        for ticket in tickets:
            media: Any = rng.integers(0, 256, (frames, height, width, 3), np.uint8)
            service.scheduler.submit(replace(asked, media=media, watcher=ticket))
        for found in await asyncio.gather(*(ticket.outcome for ticket in tickets), return_exceptions=True):
            if isinstance(found, BaseException):
                log.warning("media of %dx%d pixels cannot be warmed up for: %s", width, height, found)
                return


def run(model: UniPixel, settings: Settings, listening: socket.socket, sizes: Sequence[tuple[int, int]], shown: str) -> int:
    """Serve until the process is told to stop; returns the exit status."""
    server = Server(Service(model, settings), sizes, shown)
    server.run([listening])
    return 0
