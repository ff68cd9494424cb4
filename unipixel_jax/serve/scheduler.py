"""One thread owns the model and answers many requests together (infer/many.py); the event loop hands it jobs and gets each one's outcome once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from unipixel_jax.infer.job_source import Watcher
from unipixel_jax.infer.many import Job, Options, Outcome, run_jobs
from unipixel_jax.infer.prediction import ClipAnswer, Prediction
from unipixel_jax.infer.predictor import UniPixel
from unipixel_jax.ops.attention import use_attention
from unipixel_jax.serve.faults import Fault, fault_of
from unipixel_jax.serve.metrics import Metrics
from unipixel_jax.serve.settings import Settings

log = logging.getLogger(__name__)

FRAMES_AHEAD = 4
"""Results of a tracked clip that wait for a client that reads slowly; then its clip waits too, memory stays where it is, and other clips pass."""
PAUSE_SECONDS = 0.5
"""How long the model's thread waits after all its work has failed, which it may do again."""


class Ticket(Watcher):
    """A request's place in the service. It belongs to the event loop in which it is made; what the model's thread tells comes there as events.

    Attributes:
        prompt_tokens: tokens of the prompt, once it was read.
        answered_at: when the answer was there, by ``time.monotonic``.
        outcome: the prediction, or the ``Fault``; it is set once.

    Args:
        wants: the kinds of events that are wanted: "tokens" (of the answer so far), "answer", "frame".
        close: closes the request's files, when the job has ended.
    """

    def __init__(self, wants: tuple[str, ...] = (), close: Callable[[], None] = lambda: None) -> None:
        self.takes_frames = "frame" in wants
        self.prompt_tokens, self.answered_at = 0, time.monotonic()
        self.outcome: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        self.outcome.add_done_callback(lambda future: future.cancelled() or future.exception())  # it may have nobody who asks for it
        self._wants, self._close = wants, close
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._ahead, self._lock = 0, threading.Lock()
        self._wake: Callable[[], None] = lambda: None

    def bind(self, wake: Callable[[], None]) -> None:
        """Take the function that wakes up the model's thread."""
        self._wake = wake

    def read(self, tokens: int) -> None:
        """See ``Watcher``."""
        self.prompt_tokens = tokens

    def said(self, tokens: NDArray[np.int32]) -> None:
        """See ``Watcher``."""
        self._tell("tokens", tokens)

    def answered(self, answer: ClipAnswer) -> None:
        """See ``Watcher``."""
        self.answered_at = time.monotonic()
        self._tell("answer", answer)

    def ready(self) -> bool:
        """See ``Watcher``."""
        return self._ahead < FRAMES_AHEAD

    def frame(self, line: dict[str, Any]) -> None:
        """See ``Watcher``."""
        with self._lock:
            self._ahead += 1
        self._tell("frame", line)

    def finish(self, found: Prediction | Fault) -> None:
        """Set the outcome, from any thread. Only the first one counts."""
        self._close()

        def settle() -> None:
            if not self.outcome.done():
                if isinstance(found, Fault):
                    self.outcome.set_exception(found)
                else:
                    self.outcome.set_result(found)
                self._events.put_nowait(("end", None))

        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever asked
            self._loop.call_soon_threadsafe(settle)

    def cancel(self) -> None:
        """Say that nobody waits for the outcome any more."""
        self.cancelled = True
        self._wake()

    async def events(self, seconds: float) -> AsyncGenerator[tuple[str, Any], None]:
        """The events up to the end, each within some seconds of the one before.

        Raises:
            Fault: the job failed, or the time is over.
        """
        while True:
            kind, value = await within(self._events.get(), seconds, seconds)
            if kind == "end":
                await self.outcome  # raises the fault
                return
            if kind == "frame":
                with self._lock:
                    self._ahead -= 1
                self._wake()
            yield kind, value

    def _tell(self, kind: str, value: Any) -> None:
        if kind in self._wants:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._events.put_nowait, (kind, value))


async def within(waited: Any, seconds: float, limit: float) -> Any:
    """What is waited for.

    Args:
        waited: an awaitable.
        seconds: how long it may still take.
        limit: how long the request may take, as the message tells.

    Raises:
        Fault: it takes longer.
    """
    try:
        return await asyncio.wait_for(waited, seconds)
    except TimeoutError:
        raise Fault(503, "timeout", f"the request was not answered within {limit:g} s: send it again later, with a smaller input or fewer tokens") from None


class Scheduler:
    """Runs the jobs of all requests.

    Attributes:
        stopping: whether no further job is taken.

    Args:
        model: the model, which the scheduler's thread uses alone.
        settings: the limits.
        metrics: what is counted.
        seed: of jobs that give none.
    """

    def __init__(self, model: UniPixel, settings: Settings, metrics: Metrics) -> None:
        self.stopping = False
        self._model, self._settings, self._metrics = model, settings, metrics
        self._bell, self._lock = threading.Event(), threading.Lock()
        self._queue: deque[Job] = deque()
        self._active: dict[int, Job] = {}
        self._thread = threading.Thread(target=self._run, args=(use_attention.value,), name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that have no outcome yet."""
        with self._lock:
            return len(self._queue) + len(self._active)

    def submit(self, job: Job) -> None:
        """Take a job, whose watcher is a ``Ticket``.

        Raises:
            Fault: the service is stopping.
        """
        ticket = _ticket(job)
        ticket.bind(self._bell.set)
        with self._lock:
            refused = self.stopping
            if not refused:
                self._queue.append(job)
        if refused:
            ticket.finish(stopping_fault())
            raise stopping_fault()
        self._bell.set()

    async def drain(self, seconds: float) -> None:
        """Take no further job, wait for those that were taken, and after some seconds fail what is left."""
        with self._lock:
            self.stopping = True
        self._bell.set()
        end = time.monotonic() + seconds
        while self.waiting and time.monotonic() < end:
            await asyncio.sleep(0.02)
        with self._lock:
            left = [*self._queue, *self._active.values()]
        for job in left:
            _ticket(job).finish(stopping_fault())
            _ticket(job).cancel()
        await asyncio.to_thread(self._thread.join, 5)

    def _feed(self) -> Iterator[Job | None]:
        """The jobs, and None where there is none at the moment."""
        while True:
            with self._lock:
                job = self._queue.popleft() if self._queue else None
                if job is None and self.stopping:
                    return
                if job is not None:
                    self._active[id(job)] = job
            yield job

    def _run(self, attention: Any) -> None:
        settings = self._settings
        options = Options(settings.max_batch, settings.max_new_tokens, live=self._bell, note_group=self._metrics.group.observe)
        model, devices = self._model, jax.local_devices()[: settings.devices]
        while True:
            try:
                with use_attention(attention):
                    for outcome in run_jobs(model.loaded, model.sampling, model.seed, self._feed(), options, devices):
                        self._settle(outcome)
                return
            except Exception as error:
                log.exception("all requests that were running failed (%s: %s)", type(error).__name__, error)
                with self._lock:
                    lost = list(self._active.values())
                for job in lost:
                    self._settle(Outcome(job, reason=str(error), error=error))
                time.sleep(PAUSE_SECONDS)

    def _settle(self, outcome: Outcome) -> None:
        with self._lock:
            if self._active.pop(id(outcome.job), None) is None:
                return
        ticket, found = _ticket(outcome.job), outcome.prediction
        self._metrics.tokens.labels("prompt").inc(ticket.prompt_tokens)
        if found is None:
            if outcome.error is not None and fault_of(outcome.error, outcome.reason).status == 500:
                log.error("a request failed (%s)", outcome.reason, exc_info=outcome.error)
            ticket.finish(fault_of(outcome.error, outcome.reason))
            return
        self._metrics.tokens.labels("answer").inc(len(found.tokens))
        self._metrics.masks.inc(sum(len(item.areas) for item in found.objects))
        ticket.finish(found)


def stopping_fault() -> Fault:
    """The fault of a request that comes while the service stops, or that it could not finish."""
    return Fault(503, "stopping", "the service is stopping: send the request again later")


def _ticket(job: Job) -> Ticket:
    assert isinstance(job.watcher, Ticket)
    return job.watcher
