"""Many jobs at once: media are read ahead on threads, answers are generated together, and photos' masks are decoded together.

U photos, O objects, S side of SAM's square image, D language width.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unipixel_jax.core.buckets import BUCKETS
from unipixel_jax.core.programs import Programs
from unipixel_jax.errors import UserError, one_line
from unipixel_jax.infer.answers import segmented_objects, text_and_spans
from unipixel_jax.infer.engine import Answer, Engine
from unipixel_jax.infer.generate import Sampling
from unipixel_jax.infer.loading import LoadedModel
from unipixel_jax.infer.prediction import Prediction
from unipixel_jax.infer.segmentation import ClipMasks, clip_logits
from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.ops.attention import use_attention
from unipixel_jax.processing import batch
from unipixel_jax.processing.media import Clip, Media, read_media
from unipixel_jax.processing.prompts import Reference, name_regions
from unipixel_jax.processing.tokenizer import REF_TOKEN

ROWS = 16
"""Answers that are generated together; half as many prompts are read together."""
PHOTOS, OBJECTS = 8, 32
"""Photos, and objects in them, whose masks are decoded in one call; a single photo may have more objects."""


@dataclass(frozen=True, eq=False)
class Job:
    """One prompt about one photo or clip.

    Attributes:
        media: see ``UniPixel.segment``. Jobs that follow one another with the same path share what is read.
        prompt: any words.
        references: points and boxes for ``<region>`` in the prompt.
        id: a name by which results are told apart.
        sample_frames: how many frames of a clip to take at most.
    """

    media: Media
    prompt: str
    references: Sequence[Reference] = ()
    id: str = ""
    sample_frames: int = 16


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a job.

    Attributes:
        job: the job.
        prediction: the answer, as ``UniPixel.segment`` gives it; None where the job failed.
        reason: why it failed, in one line; empty where it did not.
    """

    job: Job
    prediction: Prediction | None = None
    reason: str = ""


@dataclass(frozen=True)
class Options:
    """How jobs are run.

    Attributes:
        rows: answers that are generated together on a device.
        max_new_tokens: where an answer is cut off.
        threads: threads that read media and finish masks.
        upright: see ``read_media``.
    """

    rows: int = ROWS
    max_new_tokens: int = 512
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    upright: bool = True

    def __post_init__(self) -> None:
        for name in ("rows", "max_new_tokens", "threads"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1")

    @property
    def group(self) -> int:
        """The number of prompts that are read together."""
        return max(1, self.rows // 2)


def run_jobs(
    loaded: LoadedModel, sampling: Sampling, seed: int, jobs: Iterable[Job], options: Options, devices: Sequence[jax.Device] | None
) -> Iterator[Outcome]:
    """Run jobs, and yield each one's outcome when it is there, in any order. Jobs are taken as they are needed, so that there may be any number.

    Args:
        loaded: the model.
        sampling: how tokens are drawn.
        seed: seed of the random numbers for it.
        jobs: the jobs.
        options: how they are run.
        devices: the devices that take jobs, each with a copy of the weights; None for all of this process. A model on a mesh is one device here.
    """
    devices = list(jax.local_devices() if devices is None else devices)
    with ThreadPoolExecutor(options.threads) as pool:
        source = _Source(loaded, jobs, options, pool, (2 * options.rows + options.group) * len(devices))
        try:
            if loaded.mesh is not None or len(devices) == 1:
                yield from _Runner(loaded, sampling, seed, options, source).outcomes()
            else:
                yield from _on_devices(devices, lambda own: _Runner(on_device(loaded, own), sampling, seed, options, source))
        finally:
            source.close()


def on_device(loaded: LoadedModel, device: jax.Device) -> LoadedModel:
    """Return a copy of a model that lies on a device."""
    return replace(loaded, model=jax.device_put(loaded.model, device))


def _on_devices(devices: Sequence[jax.Device], make: Callable[[jax.Device], _Runner]) -> Iterator[Outcome]:
    """The outcomes of a runner on each device, which has a thread of its own."""
    found: queue.Queue[Outcome | BaseException | None] = queue.Queue(4 * len(devices))
    stop, attention = threading.Event(), use_attention.value

    def put(item: Outcome | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                found.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work(device: jax.Device) -> None:
        try:
            with jax.default_device(device), use_attention(attention):
                for outcome in make(device).outcomes():
                    if not put(outcome):
                        return
            put(None)
        except BaseException as error:  # the thread that yields raises it
            put(error)

    threads = [threading.Thread(target=work, args=(device,), daemon=True) for device in devices]
    try:
        for thread in threads:
            thread.start()
        running = len(threads)
        while running:
            item = found.get()
            if isinstance(item, BaseException):
                raise item
            running -= item is None
            if item is not None:
                yield item
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@Programs
def photo_masks(model: UniPixelModel, frames: jax.Array, photo: jax.Array, hidden: jax.Array, *, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Masks of objects in photos.

    Args:
        model: the weights.
        frames: [U, S, S, 3] float32, normalised.
        photo: the photo that each object is in [O], int32.
        hidden: [O, D] states that predicted the objects' ``<|seg|>``.
        dtype: compute dtype.

    Returns:
        Logits [O, S / 4, S / 4], object scores [O] and predicted IoU [O], float32.
    """
    features = model.sam2.encode(frames.astype(dtype))
    out = model.sam2.segment(jax.tree.map(lambda a: a[photo], features), model.seg_head(hidden))
    return out.low_res, out.decoded.object_score, jnp.max(out.decoded.iou, axis=-1)


class _Shared:
    """Media that several jobs ask about, read by the first of them."""

    def __init__(self, job: Job, loaded: LoadedModel, upright: bool) -> None:
        self._job, self._loaded, self._upright = job, loaded, upright
        self._lock = threading.Lock()

    def get(self) -> tuple[Clip, batch.PreparedMedia]:
        with self._lock:
            return self._read

    @cached_property
    def _read(self) -> tuple[Clip, batch.PreparedMedia]:
        clip = read_media(self._job.media, self._job.sample_frames, upright=self._upright)
        return clip, batch.prepare_media(clip, self._loaded.config, sample_frames=self._job.sample_frames)


@dataclass(frozen=True, eq=False)
class _Ready:
    """A job whose media and prompt were prepared."""

    job: Job
    clip: Clip
    media: batch.PreparedMedia
    conversation: batch.Conversation


@dataclass(frozen=True, eq=False)
class _Answered:
    """A job whose answer is there and whose masks are not."""

    ready: _Ready
    answer: Answer
    text: str
    spans: list[tuple[int, int] | None]


class _Source:
    """Jobs that are prepared ahead on threads, for several runners.

    Args:
        loaded: the model.
        jobs: the jobs.
        options: how they are run.
        pool: the threads.
        ahead: how many jobs may be prepared and not yet taken.
    """

    def __init__(self, loaded: LoadedModel, jobs: Iterable[Job], options: Options, pool: ThreadPoolExecutor, ahead: int) -> None:
        self._loaded, self._options, self.pool, self._ahead = loaded, options, pool, ahead
        self._jobs = iter(jobs)
        self._futures: deque[Future[_Ready | Outcome]] = deque()
        self._shared: OrderedDict[Any, _Shared] = OrderedDict()
        self._lock = threading.Lock()
        self._exhausted = False

    @property
    def finished(self) -> bool:
        """Whether all jobs were taken."""
        with self._lock:
            self._submit()
            return self._exhausted and not self._futures

    def take(self, most: int, wait: bool) -> list[_Ready | Outcome]:
        """Return at most ``most`` jobs in their order. With ``wait`` none are returned only after the last; without, only such as are ready are."""
        out: list[_Ready | Outcome] = []
        while len(out) < most:
            with self._lock:
                self._submit()
                if not self._futures or not (wait or self._futures[0].done()):
                    break
                future = self._futures.popleft()
            out.append(future.result())
        return out

    def close(self) -> None:
        """Give up what was not taken."""
        with self._lock:
            self._exhausted = True
            for future in self._futures:
                future.cancel()

    def _submit(self) -> None:
        while not self._exhausted and len(self._futures) < self._ahead:
            job = next(self._jobs, None)
            if job is None:
                self._exhausted = True
            else:
                self._futures.append(self.pool.submit(self._prepare, job, self._media(job)))

    def _media(self, job: Job) -> _Shared:
        if not isinstance(job.media, str | Path):
            return _Shared(job, self._loaded, self._options.upright)
        key = (str(job.media), job.sample_frames)
        shared = self._shared.pop(key, None) or _Shared(job, self._loaded, self._options.upright)
        self._shared[key] = shared
        while len(self._shared) > self._options.threads + 1:
            self._shared.popitem(last=False)
        return shared

    def _prepare(self, job: Job, shared: _Shared) -> _Ready | Outcome:
        try:
            clip, media = shared.get()
            text = name_regions(job.prompt, [REF_TOKEN] * len(job.references)) if job.references else job.prompt
            turn = batch.user_turn(text)
            return _Ready(job, clip, media, batch.prepare_conversation(turn, media, self._loaded.tokenizer, self._loaded.config, references=job.references))
        except Exception as error:  # one job's failure, whatever it is, must not stop the others
            return Outcome(job, reason=reason_of(error))


def reason_of(error: Exception) -> str:
    """Why a job failed, in one line."""
    return one_line(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")


class _Runner:
    """Runs the jobs of a source on one device or mesh. The arguments are those of ``run_jobs``."""

    def __init__(self, loaded: LoadedModel, sampling: Sampling, seed: int, options: Options, source: _Source) -> None:
        self._loaded, self._options, self._source = loaded, options, source
        self._engine = Engine(loaded, sampling, seed, options.rows, options.group, options.max_new_tokens)
        self._waiting: list[_Ready] = []
        self._rows: dict[int, _Ready] = {}
        self._photos: list[_Answered] = []
        self._done: deque[Future[Outcome]] = deque()

    def outcomes(self) -> Iterator[Outcome]:
        """Yield the outcome of every job that this runner took."""
        engine, group = self._engine, self._options.group
        while True:
            yield from self._fill()
            while self._waiting and len(engine.free) >= min(group, len(self._waiting)) and (len(self._waiting) >= group or self._last):
                yield from self._admit(self._choose(min(group, len(self._waiting))))
                yield from self._fill()
            if engine.busy:
                yield from self._advance(self._options.rows if self._last and not self._waiting else group)
            yield from self._mask_photos(least=PHOTOS if engine.busy else 1)
            if not engine.busy and self._last and not self._waiting:
                break
            yield from self._finished(wait=len(self._done) > 4 * self._options.rows)
        while self._done:
            yield from self._finished(wait=True)

    @property
    def _last(self) -> bool:
        """Whether no further job will come."""
        return self._source.finished

    def _fill(self) -> Iterator[Outcome]:
        """Take prepared jobs, as many as a choice of similar ones needs; wait for a group of them where nothing else can be done."""
        while (room := 2 * self._options.rows - len(self._waiting)) > 0:
            idle = not self._engine.busy and len(self._waiting) < self._options.group
            found = self._source.take(1 if idle else room, wait=idle)
            self._waiting += [item for item in found if isinstance(item, _Ready)]
            yield from (item for item in found if isinstance(item, Outcome))
            if not found:
                return

    def _choose(self, count: int) -> list[_Ready]:
        """The job that has waited longest, and those whose prompts are closest to its prompt in length, since they are padded to one length."""
        length = len(self._waiting[0].conversation.input_ids)
        chosen = sorted(self._waiting, key=lambda ready: abs(len(ready.conversation.input_ids) - length))[:count]
        self._waiting = [ready for ready in self._waiting if ready not in chosen]
        return chosen

    def _admit(self, chosen: list[_Ready]) -> Iterator[Outcome]:
        """Read the prompts of a group; if that fails, one by one, to find out whose fault it is."""
        try:
            rows = self._engine.admit([ready.conversation for ready in chosen])
        except Exception as error:
            if len(chosen) == 1:
                yield Outcome(chosen[0].job, reason=reason_of(error))
            else:
                for ready in chosen:
                    yield from self._admit([ready])
            return
        self._rows.update(zip(rows, chosen, strict=True))

    def _advance(self, free: int) -> Iterator[Outcome]:
        try:
            answers = self._engine.advance(free)
        except Exception as error:
            self._engine.reset()
            failed, self._rows = list(self._rows.values()), {}
            yield from (Outcome(ready.job, reason=reason_of(error)) for ready in failed)
            return
        for answer in answers:
            yield from self._sort(self._rows.pop(answer.row), answer)

    def _sort(self, ready: _Ready, answer: Answer) -> Iterator[Outcome]:
        """Keep a photo with objects until others have come; track a clip's objects at once."""
        try:
            text, spans = text_and_spans(answer.tokens, self._loaded.tokenizer, self._loaded.config.seg_token_id)
            answered = _Answered(ready, answer, text, [*[None] * (len(answer.hidden) - len(spans)), *spans])
            assert ready.media.frames is not None, "media are prepared for masks"
            if len(ready.media.frames) == 1 and len(answer.hidden):
                self._photos.append(answered)
                return
            with self._loaded.on_mesh():
                found = clip_logits(self._loaded.model, ready.media.frames, answer.hidden, self._loaded.dtype)
            self._done.append(self._source.pool.submit(_finish, answered, found))
        except Exception as error:
            yield Outcome(ready.job, reason=reason_of(error))

    def _mask_photos(self, least: int) -> Iterator[Outcome]:
        """Decode the masks of photos that wait for them, in calls of ``PHOTOS``, as long as there are ``least`` photos."""
        while len({id(answered.ready.media) for answered in self._photos}) >= least:
            taken: list[_Answered] = []
            frames: dict[int, int] = {}
            for answered in self._photos:
                objects = sum(len(other.answer.hidden) for other in taken) + len(answered.answer.hidden)
                new = id(answered.ready.media) not in frames
                if taken and (objects > OBJECTS or (new and len(frames) == PHOTOS)):
                    break
                frames.setdefault(id(answered.ready.media), len(frames))
                taken.append(answered)
            self._photos = self._photos[len(taken) :]
            try:
                for answered, found in zip(taken, self._decode(taken, frames), strict=True):
                    self._done.append(self._source.pool.submit(_finish, answered, found))
            except Exception as error:
                yield from (Outcome(answered.ready.job, reason=reason_of(error)) for answered in taken)

    def _decode(self, taken: list[_Answered], frames: dict[int, int]) -> list[ClipMasks]:
        """The masks of each job; ``frames`` are the places of the photos by their identity."""
        images = {frames[id(answered.ready.media)]: answered.ready.media.frames for answered in taken}
        stacked = np.concatenate([image for _, image in sorted(images.items()) if image is not None])
        stacked = np.pad(stacked, ((0, PHOTOS - len(stacked)), (0, 0), (0, 0), (0, 0)))
        hidden = np.concatenate([answered.answer.hidden for answered in taken])
        photo = np.repeat([frames[id(answered.ready.media)] for answered in taken], [len(answered.answer.hidden) for answered in taken]).astype(np.int32)
        pad = BUCKETS.objects.size(len(hidden)) - len(hidden)
        arrays = (stacked, np.pad(photo, (0, pad)), np.pad(hidden, ((0, pad), (0, 0))))
        with self._loaded.on_mesh():
            out = [np.asarray(a)[None] for a in photo_masks(self._loaded.model, *map(jax.device_put, arrays), dtype=self._loaded.dtype)]
        ends = np.cumsum([len(answered.answer.hidden) for answered in taken])
        return [ClipMasks(*(a[:, end - len(answered.answer.hidden) : end] for a in out)) for end, answered in zip(ends, taken, strict=True)]

    def _finished(self, wait: bool) -> Iterator[Outcome]:
        while self._done and (wait or self._done[0].done()):
            yield self._done.popleft().result()
            wait = False


def _finish(answered: _Answered, found: ClipMasks) -> Outcome:
    ready = answered.ready
    try:
        objects = segmented_objects(found, ready.media.frame_size, answered.spans)
        tokens = answered.answer.tokens.tolist()
        return Outcome(ready.job, Prediction(answered.text, tokens, objects, ready.clip.indices.tolist(), ready.clip.frames.shape[1:3]))
    except Exception as error:
        return Outcome(ready.job, reason=reason_of(error))
