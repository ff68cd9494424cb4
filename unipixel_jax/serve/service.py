"""What the routes share: the model, the queue, and from a job to its outcome."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from unipixel_jax.infer.many import Job
from unipixel_jax.infer.prediction import Prediction
from unipixel_jax.infer.predictor import UniPixel
from unipixel_jax.serve.faults import CLIENT_GONE, Fault
from unipixel_jax.serve.metrics import Metrics
from unipixel_jax.serve.scheduler import Scheduler, Ticket, within
from unipixel_jax.serve.schema import RunLengths, Segmented, SegmentedObject, Timing, Usage
from unipixel_jax.serve.settings import Settings

EVENTS = "text/event-stream"
BEAT_SECONDS = 15.0
"""How long a stream of events may be silent."""


@dataclass(eq=False)
class Service:
    """A model that answers requests.

    Attributes:
        model: the model.
        settings: the limits.
        metrics: what is counted.
        scheduler: runs the jobs.
        ready: whether the warm-up is over.
        created: when it was started, in seconds of Unix time.
    """

    model: UniPixel
    settings: Settings
    metrics: Metrics = field(init=False)
    scheduler: Scheduler = field(init=False)
    ready: bool = True
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.metrics = Metrics(lambda: self.scheduler.waiting)
        self.scheduler = Scheduler(self.model, self.settings, self.metrics)

    def limit(self, asked: int | None) -> int:
        """Where an answer is cut off, of what a request asks for."""
        return min(asked or self.settings.max_new_tokens, self.settings.max_new_tokens)

    async def predict(self, request: Request, job: Job, ticket: Ticket) -> Prediction:
        """The outcome of a job; if the client goes away before, the job is given up.

        Raises:
            Fault: the job failed, took too long, or nobody waits for it.
        """
        self.scheduler.submit(job)
        gone: asyncio.Future[Any] = asyncio.create_task(_disconnected(request))
        try:
            waited = asyncio.wait([ticket.outcome, gone], return_when=asyncio.FIRST_COMPLETED)
            await within(waited, self._seconds_left(request), self.settings.seconds)
            if ticket.outcome.done():
                return ticket.outcome.result()
            raise Fault(CLIENT_GONE, "client_gone", "the client closed the connection")
        finally:
            gone.cancel()
            ticket.cancel()

    async def events(self, job: Job, ticket: Ticket) -> AsyncGenerator[tuple[str, Any], None]:
        """The events of a job up to its end; if nobody takes them any more, the job is given up.

        Raises:
            Fault: see ``predict``.
        """
        self.scheduler.submit(job)
        async with contextlib.aclosing(ticket.events(self.settings.seconds)) as events:
            try:
                async for event in events:
                    yield event
            finally:
                ticket.cancel()

    async def first(self, request: Request, events: AsyncGenerator[tuple[str, Any], None]) -> tuple[str, Any] | None:
        """The first event of a job; None where there is none. If the client goes away before, the job is given up.

        Raises:
            Fault: see ``predict``.
        """
        gone, first = asyncio.create_task(_disconnected(request)), asyncio.ensure_future(anext(events, None))
        try:
            await asyncio.wait([first, gone], return_when=asyncio.FIRST_COMPLETED)
            if first.done():
                return first.result()
            raise Fault(CLIENT_GONE, "client_gone", "the client closed the connection")
        finally:
            gone.cancel()
            first.cancel()

    def _seconds_left(self, request: Request) -> float:
        return max(0.001, request.state.arrived + self.settings.seconds - time.monotonic())


class EventStream(StreamingResponse):
    """A response of server-sent events, which no proxy is to hold back. What makes them is closed however the response ends.

    A comment is sent where nothing else was for ``BEAT_SECONDS``, so that neither the client nor a proxy takes the connection for dead.
    """

    def __init__(self, lines: AsyncGenerator[str, None]) -> None:
        self._lines = _with_beats(lines)
        super().__init__(self._lines, media_type=EVENTS, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        async with contextlib.aclosing(self._lines):
            await super().__call__(scope, receive, send)


async def _with_beats(lines: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """The lines, and comments while there is none."""
    async with contextlib.aclosing(lines):
        while True:
            line = asyncio.ensure_future(anext(lines, None))
            try:
                while not (await asyncio.wait([line], timeout=BEAT_SECONDS))[0]:
                    yield ": wait\n\n"
                found = line.result()
            finally:
                if not line.done():
                    line.cancel()
                    await asyncio.wait([line])  # a generator that is running cannot be closed
            if found is None:
                return
            yield found


def usage_of(ticket: Ticket, tokens: int) -> Usage:
    """The tokens of a job, whose answer has ``tokens``."""
    return Usage(prompt_tokens=ticket.prompt_tokens, completion_tokens=tokens, total_tokens=ticket.prompt_tokens + tokens)


def segmented(found: Prediction) -> Segmented:
    """The objects of a prediction."""
    objects = [
        SegmentedObject(
            number=number,
            found=item.found,
            span=None if item.span is None else list(item.span),
            scores=[round(float(score), 6) for score in item.scores],
            presence=[round(float(score), 6) for score in item.presence],
            boxes=[None if box is None else list(box) for box in item.boxes],
            areas=list(item.areas),
            masks=[RunLengths(**runs) for runs in item.runs],
        )
        for number, item in enumerate(found.objects, start=1)
    ]
    return Segmented(size=list(found.size), frames=list(found.frames), objects=objects)


class Clock:
    """The times of a request since it came, in seconds."""

    def __init__(self, request: Request, ticket: Ticket) -> None:
        self._ticket, self._start, self._read = ticket, request.state.arrived, time.monotonic()

    @property
    def timing(self) -> Timing:
        """All of them, now that all is done."""
        read, answered, total = (round(at - self._start, 6) for at in (self._read, self._ticket.answered_at, time.monotonic()))
        return Timing(read=read, answered=answered, total=total)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
