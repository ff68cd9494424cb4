"""Jobs, whose media and prompts are prepared ahead on threads, so that the device does not wait for files.

S side of SAM's square image.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.errors import UserError, one_line
from unipixel_jax.infer.clicks import marks_of
from unipixel_jax.infer.generate import Sampling
from unipixel_jax.infer.loading import LoadedModel
from unipixel_jax.infer.prediction import ClipAnswer, Prediction
from unipixel_jax.processing import batch
from unipixel_jax.processing.chat import seconds_per_grid
from unipixel_jax.processing.frames import Frame, FrameSource, open_frames
from unipixel_jax.processing.media import Media
from unipixel_jax.processing.memory import memory_grid, memory_prefix
from unipixel_jax.processing.prompts import Clicks, Reference, SquareReference, name_regions
from unipixel_jax.processing.tokenizer import REF_TOKEN, Message

_NO_MORE = object()
ROWS = 16
"""Answers that are generated together; half as many prompts are read together."""
MARKED_FRAMES = 16
"""Frames of a clip with clicks at most, since they are held."""


class Watcher:
    """Follows a job while it runs, for a service. The methods are called by the thread that runs the jobs; the job tells all of its ``Outcome`` without them.

    Attributes:
        cancelled: set by anyone once nobody waits for the job any more: it is then given up, wherever it is.
        takes_frames: whether the results of a clip's frames go to ``frame``, and not into the outcome.
    """

    cancelled = False
    takes_frames = False

    def read(self, tokens: int) -> None:
        """The prompt, of ``tokens`` tokens, those of the media included, is being read."""

    def said(self, tokens: NDArray[np.int32]) -> None:
        """These are the tokens of the answer so far [tokens], int32."""

    def answered(self, answer: ClipAnswer) -> None:
        """The answer is there, and what it segments is not."""

    def ready(self) -> bool:
        """Whether the next frame's result may come."""
        return True

    def frame(self, line: dict[str, Any]) -> None:
        """Take the result of the next frame, as ``FrameResult.to_json`` has it."""


NO_FRAMES = FrameSource("", 0, None, False, lambda: iter(()))
NO_MEDIA = batch.PreparedMedia(np.zeros((0, 0), np.float32), (0, 0, 0), None, (0, 0), 0)
"""What a job without media has in their place."""


@dataclass(frozen=True, eq=False)
class Job:
    """One prompt about one photo or clip.

    Attributes:
        media: see ``UniPixel.segment``; or a function that opens it on one of the threads, when the job's turn comes. Jobs that follow one another with the
            same path, source or function share what is read. None for words alone, which segment nothing.
        prompt: any words.
        references: points and boxes for ``<region>`` in the prompt.
        id: a name by which results are told apart.
        sample_frames: how many frames of a clip the language model looks at, spread evenly.
        answer_start: words with which the answer has to begin; they are part of its text.
        given_answer: an answer that is given rather than generated, of which only what its ``<|seg|>`` stand for is wanted; "" for none.
        remembered: a function from the frames' height and width to the masks [O, F, H, W], bool, of the objects that the prompt speaks of by ``ids``, on the
            frames that the language model looks at; None for none.
        ids: the numbers of those objects [O].
        min_pixels, max_pixels: see ``UniPixel.segment``.
        max_new_tokens: where the answer is cut off; None for where those of all jobs are.
        max_objects: how many objects of the answer are segmented, the first ones; None for all.
        history: the turns of a conversation before the prompt; the media come before all words of the user.
        skip_objects: how many ``<|seg|>`` of the prompt, those of ``history`` among them, are not segmented, the first ones.
        sampling: how the tokens are drawn; None as for all jobs. It counts where jobs come live (see ``Options``).
        seed: the seed with which they are drawn then.
        clicks: what marks the objects, in place of words, with their numbers (see ``processing/prompts.py:numbered``): SAM 2.1 alone finds them, and follows
            them from the first marked frame on. The prompt is then empty, and what else is said of prompts and answers counts for nothing.
        watcher: what follows the job while it runs.
    """

    media: Media | FrameSource | Callable[[], FrameSource] | None
    prompt: str
    references: Sequence[Reference | SquareReference] = ()
    id: str = ""
    sample_frames: int = 16
    answer_start: str = ""
    given_answer: str = ""
    remembered: Callable[[tuple[int, int]], NDArray[np.bool_]] | None = None
    ids: Sequence[int] = ()
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_new_tokens: int | None = None
    max_objects: int | None = None
    history: Sequence[Message] = ()
    skip_objects: int = 0
    sampling: Sampling | None = None
    seed: int = 0
    clicks: Sequence[Clicks] = ()
    watcher: Watcher | None = None

    @property
    def dropped(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.watcher is not None and self.watcher.cancelled


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a job.

    Attributes:
        job: the job.
        prediction: the answer, as ``UniPixel.segment`` gives it; None where the job failed.
        reason: why it failed, in one line; empty where it did not.
        error: the exception of which the reason tells.
    """

    job: Job
    prediction: Prediction | None = None
    reason: str = ""
    error: Exception | None = None


@dataclass(frozen=True)
class Options:
    """How jobs are run.

    Attributes:
        rows: answers that are generated together on a device.
        max_new_tokens: where an answer is cut off.
        threads: threads that read media and finish masks.
        upright: see ``read_media``.
        note_wait: called with the seconds that a device waited for media, each time it did.
        note_group: called with the number of prompts that are read together, each time.
        live: for jobs that come while others run; None where all are known to come. The iterator of jobs then gives None where there is none at the moment, and
            the event is set whenever a job has come or a ``Watcher`` has become ready. Whatever is there is run at once, in short pieces of work.
    """

    rows: int = ROWS
    max_new_tokens: int = 512
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    upright: bool = True
    note_wait: Callable[[float], None] = field(default=lambda seconds: None)
    note_group: Callable[[int], None] = field(default=lambda prompts: None)
    live: threading.Event | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "max_new_tokens", "threads"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1")

    @property
    def group(self) -> int:
        """The number of prompts that are read together."""
        return max(1, self.rows // 2)


class Shared:
    """Media that several jobs ask about, read by the first of them."""

    def __init__(self, job: Job, loaded: LoadedModel, upright: bool) -> None:
        self._job, self._loaded, self._upright = job, loaded, upright
        self._lock = threading.Lock()

    def get(self) -> tuple[FrameSource, batch.PreparedMedia]:
        """The frames, and what the language model looks at; see ``Ready``."""
        with self._lock:
            return self._read

    @cached_property
    def _read(self) -> tuple[FrameSource, batch.PreparedMedia]:
        most = self._job.sample_frames
        if most < 1:
            raise UserError(f"sample_frames is {most}, expected at least 1")
        config = self._loaded.config
        if self._job.media is None:
            return NO_FRAMES, NO_MEDIA
        source = open_media(self._job, self._upright)
        prepared = batch.prepare_media(
            source.sample(most),
            config,
            sample_frames=most,
            segment=len(source) == 1 and self._job.max_objects != 0,
            min_pixels=self._job.min_pixels,
            max_pixels=self._job.max_pixels,
        )
        return source, replace(prepared, seconds_per_grid=seconds_per_grid(config.vision, 1 / source.seconds_per_frame))


@dataclass(frozen=True, eq=False)
class Ready:
    """A job whose media and prompt were prepared.

    Attributes:
        job: the job.
        source: the frames that are segmented. Those of a file are not read before its answer is there, so that waiting clips take little memory.
        media: what the language model looks at; with ``frames`` [1, S, S, 3] for SAM if it is a photo, whose masks are decoded with those of others.
        conversation: the prompt.
    """

    job: Job
    source: FrameSource
    media: batch.PreparedMedia
    conversation: batch.Conversation


@dataclass(frozen=True, eq=False)
class Marked:
    """A job with clicks, whose marked frames were read.

    Attributes:
        job: the job.
        source: the frames that are segmented.
        frames: those of them on which there are clicks, in order.
    """

    job: Job
    source: FrameSource
    frames: Sequence[Frame]


class Source:
    """Jobs that are prepared ahead on threads, for several runners.

    Args:
        loaded: the model.
        jobs: the jobs; None among them stands for none at the moment.
        options: how they are run.
        pool: the threads.
        ahead: how many jobs may be prepared and not yet taken.
    """

    def __init__(self, loaded: LoadedModel, jobs: Iterable[Job | None], options: Options, pool: ThreadPoolExecutor, ahead: int) -> None:
        self._loaded, self._options, self.pool, self._ahead = loaded, options, pool, ahead
        self._jobs = iter(jobs)
        self._futures: deque[Future[Ready | Marked | Outcome]] = deque()
        self._shared: OrderedDict[Any, Shared] = OrderedDict()
        self._lock = threading.Lock()
        self._exhausted = False

    @property
    def finished(self) -> bool:
        """Whether all jobs were taken."""
        with self._lock:
            self._submit()
            return self._exhausted and not self._futures

    @property
    def empty(self) -> bool:
        """Whether there is no further job at the moment."""
        with self._lock:
            self._submit()
            return not self._futures

    def take_done(self, most: int) -> list[Ready | Marked | Outcome]:
        """Return at most ``most`` jobs that are prepared, in whatever order they are."""
        with self._lock:
            self._submit()
            done = [future for future in self._futures if future.done()][:most]
            for future in done:
                self._futures.remove(future)
        return [future.result() for future in done]

    def take(self, most: int, wait: bool) -> list[Ready | Marked | Outcome]:
        """Return at most ``most`` jobs in their order. With ``wait`` none are returned only after the last; without, only such as are ready are."""
        out: list[Ready | Marked | Outcome] = []
        while len(out) < most:
            with self._lock:
                self._submit()
                if not self._futures or not (wait or self._futures[0].done()):
                    break
                future = self._futures.popleft()
            if future.done():
                out.append(future.result())
            else:
                start = time.perf_counter()
                out.append(future.result())
                self._options.note_wait(time.perf_counter() - start)
        return out

    def close(self) -> None:
        """Give up what was not taken."""
        with self._lock:
            self._exhausted = True
            for future in self._futures:
                future.cancel()

    def _submit(self) -> None:
        while not self._exhausted and len(self._futures) < self._ahead:
            job = next(self._jobs, _NO_MORE)
            if job is None:
                return
            if isinstance(job, Job):
                self._futures.append(self.pool.submit(self._prepare, job, self._media(job)))
                if self._options.live is not None:
                    self._futures[-1].add_done_callback(lambda _, bell=self._options.live: bell.set())  # type: ignore[misc]
            else:
                self._exhausted = True

    def _media(self, job: Job) -> Shared:
        if job.watcher is not None:
            return Shared(job, self._loaded, self._options.upright)
        if not isinstance(job.media, str | Path | FrameSource) and not callable(job.media):
            return Shared(job, self._loaded, self._options.upright)
        media = str(job.media) if isinstance(job.media, Path) else job.media
        key = (media, job.sample_frames, job.min_pixels, job.max_pixels, job.max_objects == 0)
        shared = self._shared.pop(key, None) or Shared(job, self._loaded, self._options.upright)
        self._shared[key] = shared
        while len(self._shared) > self._options.threads + 1:
            self._shared.popitem(last=False)
        return shared

    def _prepare(self, job: Job, shared: Shared) -> Ready | Marked | Outcome:
        if job.dropped:
            return Outcome(job, reason="cancelled")
        try:
            if job.clicks:
                return _marked(job, open_media(job, self._options.upright))
            source, media = shared.get()
            text = name_regions(job.prompt, [REF_TOKEN] * len(job.references)) if job.references else job.prompt
            memory = None
            if job.remembered is not None:
                memory = memory_grid(job.remembered(media.frame_size), media.grid_thw, self._loaded.config.vision, fill=False)
                text = memory_prefix(memory, media.frame_count, job.ids) + text
            turns: list[Message] = [*job.history, {"role": "user", "content": text}]
            messages = turns if job.media is None else batch.about_media(turns)
            if job.given_answer:
                messages.append({"role": "assistant", "content": job.given_answer})
            conversation = batch.prepare_conversation(
                messages,
                None if job.media is None else media,
                self._loaded.tokenizer,
                self._loaded.config,
                references=job.references,
                memory=memory,
                answer_start=job.answer_start,
            )
            return Ready(job, source, media, conversation)
        except Exception as error:  # one job's failure, whatever it is, must not stop the others
            return failed(job, error)


def open_media(job: Job, upright: bool) -> FrameSource:
    """Open a job's media, which it has."""
    assert job.media is not None
    opened = job.media() if callable(job.media) else job.media
    return opened if isinstance(opened, FrameSource) else open_frames(opened, upright=upright)


def _marked(job: Job, source: FrameSource) -> Marked:
    """Read the frames on which there are clicks, and check them, before the device's turn comes."""
    numbers = sorted({one.frame for one in job.clicks})
    if len(numbers) > MARKED_FRAMES:
        raise UserError(f"there are clicks on {len(numbers)} frames, expected at most {MARKED_FRAMES}: leave some out")
    frames = source.take(numbers)
    sizes = {frame.number: frame.pixels.shape[:2] for frame in frames}
    for one in job.clicks:
        marks_of(one, sizes[one.frame])
    return Marked(job, source, frames)


def failed(job: Job, error: Exception) -> Outcome:
    """The outcome of a job that an error ended."""
    return Outcome(job, reason=reason_of(error), error=error)


def reason_of(error: Exception) -> str:
    """Why a job failed, in one line."""
    return one_line(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
