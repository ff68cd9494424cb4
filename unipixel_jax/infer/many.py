"""Many jobs at once: media are read ahead on threads, answers are generated together, and photos' masks are decoded together; clips are followed one by one.
Jobs may also come live, from users who wait for them: then each is taken when it has come, and the work goes on in short pieces.

U photos, O objects, S side of SAM's square image, D language width.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from numpy.typing import NDArray

from unipixel_jax.core.buckets import BUCKETS, Buckets
from unipixel_jax.core.programs import Programs
from unipixel_jax.infer import prediction
from unipixel_jax.infer.answers import segmented_objects, text_and_spans
from unipixel_jax.infer.clicks import clicked
from unipixel_jax.infer.clips import Clips, clip_answer, deliver, no_answer, no_words
from unipixel_jax.infer.engine import Answer, Engine
from unipixel_jax.infer.generate import Sampling
from unipixel_jax.infer.job_source import ROWS, Job, Marked, Options, Outcome, Ready, Source, failed
from unipixel_jax.infer.loading import LoadedModel
from unipixel_jax.infer.masks import ClipMasks
from unipixel_jax.infer.prediction import Collector, Prediction, SegmentedObject, object_line
from unipixel_jax.infer.stream import Stream
from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.ops.attention import use_attention

__all__ = ["ROWS", "Job", "Options", "Outcome", "on_devices", "photo_masks", "run_jobs"]

PHOTOS, OBJECTS = 8, 32
"""Photos, and objects in them, whose masks are decoded in one call; a single photo may have more objects."""
LIVE_STEPS = 8
"""Tokens of each answer that are generated between two looks at what jobs have come live."""
_LIVE_WAIT = 0.1
"""Seconds after which a runner looks for jobs without having been told, since another device's runner may have heard the bell."""
_LIVE_PHOTOS = Buckets("photos", 1, 2.0, PHOTOS)
_LIVE_OBJECTS = replace(BUCKETS.objects, growth=2.0)


def run_jobs(
    loaded: LoadedModel, sampling: Sampling, seed: int, jobs: Iterable[Job | None], options: Options, devices: Sequence[jax.Device] | None
) -> Iterator[Outcome]:
    """Run jobs, and yield each one's outcome when it is there, in any order. Jobs are taken as they are needed, so that there may be any number.

    Args:
        loaded: the model.
        sampling: how tokens are drawn.
        seed: seed of the random numbers for it.
        jobs: the jobs; None among them where they come live (see ``Options``).
        options: how they are run.
        devices: the devices that take jobs, each with a copy of the weights, or as many together as the model's mesh has; None for all of this process.
    """
    devices = list(jax.local_devices() if devices is None else devices)
    each = 1 if loaded.mesh is None else loaded.mesh.size
    groups = [devices[start : start + each] for start in range(0, len(devices) - each + 1, each)]
    with ThreadPoolExecutor(options.threads) as pool:
        source = Source(loaded, jobs, options, pool, (2 * options.rows + options.group) * max(1, len(groups)))
        try:
            if len(groups) <= 1:
                yield from _Runner(loaded, sampling, seed, options, source).outcomes()
            else:
                yield from _on_devices(groups, lambda own: _Runner(on_devices(loaded, own), sampling, seed, options, source))
        finally:
            source.close()


def on_devices(loaded: LoadedModel, devices: Sequence[jax.Device]) -> LoadedModel:
    """Return a copy of a model that lies on a device, or on as many as its mesh has."""
    if loaded.mesh is None:
        return replace(loaded, model=jax.device_put(loaded.model, devices[0]))
    mesh = Mesh(np.array(devices).reshape(loaded.mesh.devices.shape), loaded.mesh.axis_names, axis_types=loaded.mesh.axis_types)
    model = jax.tree.map(lambda a: jax.device_put(a, NamedSharding(mesh, a.sharding.spec)), loaded.model)
    return replace(loaded, model=model, mesh=mesh)


def _on_devices(groups: Sequence[Sequence[jax.Device]], make: Callable[[Sequence[jax.Device]], _Runner]) -> Iterator[Outcome]:
    """The outcomes of a runner on each group of devices, which has a thread of its own."""
    found: queue.Queue[Outcome | BaseException | None] = queue.Queue(4 * len(groups))
    stop, attention = threading.Event(), use_attention.value

    def put(item: Outcome | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                found.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work(group: Sequence[jax.Device]) -> None:
        try:
            with jax.default_device(group[0]), use_attention(attention):
                for outcome in make(group).outcomes():
                    if not put(outcome):
                        return
            put(None)
        except BaseException as error:  # the thread that yields raises it
            put(error)

    threads = [threading.Thread(target=work, args=(group,), daemon=True) for group in groups]
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


@dataclass(frozen=True, eq=False)
class _Answered:
    """A job whose answer is there and whose masks are not."""

    ready: Ready
    answer: Answer
    text: str
    spans: list[tuple[int, int] | None]

    @property
    def whole(self) -> prediction.ClipAnswer:
        """The answer as the one answer about its media."""
        return clip_answer(self.ready, prediction.Answer(self.text, self.answer.tokens.tolist(), self.answer.hidden, self.spans))


class _Runner:
    """Runs the jobs of a source on one device or mesh. The arguments are those of ``run_jobs``."""

    def __init__(self, loaded: LoadedModel, sampling: Sampling, seed: int, options: Options, source: Source) -> None:
        self._loaded, self._options, self._source = loaded, options, source
        self._sampling = sampling
        self._engine = Engine(loaded, sampling, seed, options.rows, options.group, options.max_new_tokens, options.live is not None)
        self._clips = Clips(loaded)
        self._waiting: list[Ready] = []
        self._marked: list[Marked] = []
        self._rows: dict[int, Ready] = {}
        self._photos: list[_Answered] = []
        self._done: deque[Future[Outcome]] = deque()

    def outcomes(self) -> Iterator[Outcome]:
        """Yield the outcome of every job that this runner took."""
        return self._known() if self._options.live is None else self._live(self._options.live)

    def _live(self, bell: threading.Event) -> Iterator[Outcome]:
        """The outcomes of jobs that come while others run. Each round does a little of everything that is there, and clips get as much time as all the rest."""
        engine = self._engine
        while not (self._last and not self._busy):
            start = time.perf_counter()
            bell.clear()
            found = self._source.take_done(2 * self._options.rows - len(self._waiting))
            yield from self._receive(found)
            yield from self._drop()
            while self._waiting and engine.free:
                yield from self._admit(self._choose(min(self._options.group, len(self._waiting), len(engine.free))))
            working = engine.busy or self._photos or self._marked or self._clips.can_step or (self._done and self._done[0].done())
            if engine.busy:
                yield from self._advance(self._options.group if self._waiting else self._options.rows, LIVE_STEPS)
            yield from self._mask_photos(least=1)
            if self._marked:
                yield self._click(self._marked.pop(0))
            rest = time.perf_counter() - start
            yield from self._clips.step()
            while self._clips.can_step and time.perf_counter() - start < 2 * rest:
                yield from self._clips.step()
            yield from self._finished(wait=False)
            if not working and not found:
                bell.wait(_LIVE_WAIT)

    @property
    def _busy(self) -> bool:
        return bool(self._engine.busy or self._waiting or self._marked or self._photos or self._done or self._clips)

    def _drop(self) -> Iterator[Outcome]:
        """Give up the jobs for which nobody waits any more."""
        rows = [row for row, ready in self._rows.items() if ready.job.dropped]
        if rows:
            self._engine.stop(rows)
        gone = [self._rows.pop(row) for row in rows]
        gone += [ready for ready in self._waiting if ready.job.dropped] + [answered.ready for answered in self._photos if answered.ready.job.dropped]
        jobs = [ready.job for ready in gone] + [marked.job for marked in self._marked if marked.job.dropped]
        self._waiting = [ready for ready in self._waiting if not ready.job.dropped]
        self._marked = [marked for marked in self._marked if not marked.job.dropped]
        self._photos = [answered for answered in self._photos if not answered.ready.job.dropped]
        yield from (Outcome(job, reason="cancelled") for job in jobs)

    def _receive(self, found: Sequence[Ready | Marked | Outcome]) -> Iterator[Outcome]:
        """Keep what was prepared until its turn comes. Clicks, for which no group has to gather, are answered at once unless jobs come live."""
        for item in found:
            if isinstance(item, Outcome):
                yield item
            elif isinstance(item, Ready):
                self._waiting.append(item)
            else:
                answer = no_answer(item)
                if item.job.watcher is not None:
                    item.job.watcher.answered(answer)
                if self._options.live is None:
                    yield self._click(item)
                elif len(item.source) > 1:
                    self._clips.add_marked(item, answer)
                else:
                    self._marked.append(item)

    def _click(self, marked: Marked) -> Outcome:
        """The outcome of a job with clicks, all at once."""
        collector = Collector()
        try:
            for result in clicked(self._loaded, marked.source, marked.frames, marked.job.clicks):
                deliver(result, marked.job.watcher, collector)
            return Outcome(marked.job, collector.prediction(no_answer(marked)))
        except Exception as error:
            return failed(marked.job, error)

    def _known(self) -> Iterator[Outcome]:
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
            yield from self._receive(found)
            if not found:
                return

    def _choose(self, count: int) -> list[Ready]:
        """The job that has waited longest, and those whose prompts are closest to its prompt in length, since they are padded to one length."""
        length = len(self._waiting[0].conversation.input_ids)
        chosen = sorted(self._waiting, key=lambda ready: abs(len(ready.conversation.input_ids) - length))[:count]
        self._waiting = [ready for ready in self._waiting if ready not in chosen]
        return chosen

    def _admit(self, chosen: list[Ready]) -> Iterator[Outcome]:
        """Read the prompts of a group; if that fails, one by one, to find out whose fault it is."""
        conversations, limits = [ready.conversation for ready in chosen], [_limit(ready.job) for ready in chosen]
        try:
            rows = self._engine.admit(conversations, limits, [(ready.job.sampling or self._sampling, ready.job.seed) for ready in chosen])
        except Exception as error:
            if len(chosen) == 1:
                yield failed(chosen[0].job, error)
            else:
                for ready in chosen:
                    yield from self._admit([ready])
            return
        self._rows.update(zip(rows, chosen, strict=True))
        self._options.note_group(len(chosen))
        for ready in chosen:
            if ready.job.watcher is not None:
                ready.job.watcher.read(len(ready.conversation.input_ids))

    def _advance(self, free: int, steps: int | None = None) -> Iterator[Outcome]:
        try:
            answers = self._engine.advance(free, steps)
        except Exception as error:
            self._engine.reset()
            lost, self._rows = list(self._rows.values()), {}
            yield from (failed(ready.job, error) for ready in lost)
            return
        for row, ready in self._rows.items():
            if ready.job.watcher is not None:
                ready.job.watcher.said(self._engine.said[row])
        for answer in answers:
            yield from self._sort(self._rows.pop(answer.row), answer)

    def _sort(self, ready: Ready, answer: Answer) -> Iterator[Outcome]:
        """Keep a photo with objects until others have come; follow a clip's objects at once, or among other work where jobs come live."""
        try:
            tokenizer = self._loaded.tokenizer
            if ready.job.answer_start:
                answer = replace(answer, tokens=np.concatenate([tokenizer.encode(ready.job.answer_start), answer.tokens]))
            text, found = text_and_spans(answer.tokens, tokenizer, self._loaded.config.seg_token_id)
            skipped = ready.job.skip_objects
            most = 0 if ready.job.media is None else ready.job.max_objects
            spans = [*[None] * (len(answer.hidden) - len(found)), *found][skipped:][:most]
            answered = _Answered(ready, replace(answer, hidden=answer.hidden[skipped:][: len(spans)]), text, spans)
            if ready.job.watcher is not None:
                ready.job.watcher.answered(answered.whole)
            if ready.media.frames is not None and answered.spans:
                self._photos.append(answered)
            elif self._options.live is not None and answered.spans:
                self._clips.add(ready, answered.whole)
            else:
                yield Outcome(ready.job, _follow(self._loaded, answered))
        except Exception as error:
            yield failed(ready.job, error)

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
                # A thread waits for the masks, so that the device has the next prompts to read meanwhile.
                found = self._source.pool.submit(_fetch, self._decode(taken, frames))
                ends = np.cumsum([len(answered.answer.hidden) for answered in taken]).tolist()
                for answered, end in zip(taken, ends, strict=True):
                    self._done.append(self._source.pool.submit(_finish, answered, found, slice(end - len(answered.answer.hidden), end)))
                    if (bell := self._options.live) is not None:
                        self._done[-1].add_done_callback(lambda _, bell=bell: bell.set())  # type: ignore[misc]
            except Exception as error:
                yield from (failed(answered.ready.job, error) for answered in taken)

    def _decode(self, taken: list[_Answered], frames: dict[int, int]) -> tuple[jax.Array, ...]:
        """What ``photo_masks`` returns of all jobs; ``frames`` are the places of the photos by their identity."""
        images = {frames[id(answered.ready.media)]: answered.ready.media.frames for answered in taken}
        stacked = np.concatenate([image for _, image in sorted(images.items()) if image is not None])
        live = self._options.live is not None
        stacked = np.pad(stacked, ((0, (_LIVE_PHOTOS.size(len(stacked)) if live else PHOTOS) - len(stacked)), (0, 0), (0, 0), (0, 0)))
        hidden = np.concatenate([answered.answer.hidden for answered in taken])
        photo = np.repeat([frames[id(answered.ready.media)] for answered in taken], [len(answered.answer.hidden) for answered in taken]).astype(np.int32)
        pad = (_LIVE_OBJECTS if live else BUCKETS.objects).size(len(hidden)) - len(hidden)
        arrays = (stacked, np.pad(photo, (0, pad)), np.pad(hidden, ((0, pad), (0, 0))))
        with self._loaded.on_mesh():
            return photo_masks(self._loaded.packed, *map(jax.device_put, arrays), dtype=self._loaded.dtype)

    def _finished(self, wait: bool) -> Iterator[Outcome]:
        while self._done and (wait or self._done[0].done()):
            yield self._done.popleft().result()
            wait = False


def _limit(job: Job) -> int | None:
    """Where a job's answer is cut off; None for where those of all jobs are. Of a given answer nothing more is wanted."""
    return 1 if job.given_answer else job.max_new_tokens


def _follow(loaded: LoadedModel, answered: _Answered) -> Prediction:
    """The objects of a clip on every frame, of which only a few are in memory at a time. If there are none, no frame is read."""
    collector, whole = Collector(), answered.whole
    for result in Stream(loaded, no_words, answered.ready.source, whole) if answered.spans else ():
        collector.add(result.to_json())
    return collector.prediction(whole)


def _fetch(found: tuple[jax.Array, ...]) -> list[NDArray[np.float32]]:
    """Arrays of objects [O, ...] as arrays of a frame's objects [1, O, ...] on the host."""
    return [np.asarray(a)[None] for a in found]


def _finish(answered: _Answered, found: Future[list[NDArray[np.float32]]], own: slice) -> Outcome:
    """The outcome of a job whose objects are those of a slice."""
    ready = answered.ready
    try:
        masks = ClipMasks(*(a[:, own] for a in found.result()))
        objects = segmented_objects(masks, ready.media.frame_size, answered.spans)
        if ready.job.watcher is not None and ready.job.watcher.takes_frames:
            ready.job.watcher.frame(_line(ready.source.first, objects))
            return Outcome(ready.job, Collector().prediction(answered.whole))
        tokens, frames = answered.answer.tokens.tolist(), [ready.source.first]
        return Outcome(ready.job, Prediction(answered.text, tokens, objects, frames, ready.media.frame_size, [ready.job.prompt]))
    except Exception as error:
        return failed(ready.job, error)


def _line(frame: int, objects: Sequence[SegmentedObject]) -> dict[str, Any]:
    """A photo's objects as ``FrameResult.to_json`` has them."""
    found = [object_line(number, one.scores[0], one.presence[0], one.boxes[0], one.areas[0], one.runs[0]) for number, one in enumerate(objects, start=1)]
    return {"frame": frame, "seconds": None, "objects": found}
