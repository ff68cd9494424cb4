"""Clips whose objects are followed while other work goes on: a frame of each at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.infer.clicks import clicked
from unipixel_jax.infer.job_source import Job, Marked, Outcome, Ready, Watcher, failed
from unipixel_jax.infer.loading import LoadedModel
from unipixel_jax.infer.prediction import Answer, ClipAnswer, Collector, FrameResult
from unipixel_jax.infer.stream import Stream
from unipixel_jax.processing.media import sample_indices

AT_ONCE, OPEN = 4, 16
"""Clips that are followed in turns, and clips that are open, each with a tracker's state on the device: those whose users are not ready for a frame let others
pass. All others wait."""


Results = Stream | Generator[FrameResult, None, None]
"""The results of a clip's frames; closing them stops its reading."""


def clip_answer(ready: Ready, answer: Answer) -> ClipAnswer:
    """A job's answer as the one answer about its media."""
    sampled = (ready.source.first + sample_indices(len(ready.source), ready.job.sample_frames)).tolist()
    return ClipAnswer.joined([answer], [ready.job.prompt], sampled, ready.media.frame_size)


def no_answer(marked: Marked) -> ClipAnswer:
    """What stands for an answer where clicks are in the place of words: no text, and an object for each number."""
    count = max(one.number or 0 for one in marked.job.clicks)
    sampled, size = [frame.number for frame in marked.frames], marked.frames[0].pixels.shape[:2]
    return ClipAnswer.joined([Answer("", [], np.zeros((count, 0), np.float32), [None] * count)], [""], sampled, size)


def no_words(frame: NDArray[np.uint8], words: str) -> Answer:
    """What a ``Stream`` asks when it is prompted on its way, as a job's never is."""
    raise NotImplementedError("a job has one prompt")


class Clips:
    """Answers about clips whose objects are still to be followed.

    Args:
        loaded: the model.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._waiting: deque[_Clip] = deque()
        self._followed: list[_Clip] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self._followed)

    def add(self, ready: Ready, answer: ClipAnswer) -> None:
        """Take an answer with objects; they are followed when their turn comes."""
        self._waiting.append(_Clip(ready.job, answer, lambda: Stream(self._loaded, no_words, ready.source, answer)))

    def add_marked(self, marked: Marked, answer: ClipAnswer) -> None:
        """Take a clip with clicks, whose objects are followed when their turn comes; ``answer`` is what ``no_answer`` makes of it."""
        self._waiting.append(_Clip(marked.job, answer, lambda: clicked(self._loaded, marked.source, marked.frames, marked.job.clicks)))

    def step(self) -> Iterator[Outcome]:
        """Go on by a frame of each clip whose user is ready for it; yields the outcomes of those that ended."""
        while self._waiting and self._has_room:
            self._followed.append(self._waiting.popleft())
        for clip in list(self._followed):
            if (outcome := clip.step()) is not None:
                self._followed.remove(clip)
                yield outcome
        for clip in [clip for clip in self._waiting if clip.job.dropped]:
            self._waiting.remove(clip)
            yield Outcome(clip.job, reason="cancelled")

    @property
    def can_step(self) -> bool:
        """Whether there is a clip to go on with."""
        return any(clip.is_awaited for clip in self._followed) or (bool(self._waiting) and self._has_room)

    @property
    def _has_room(self) -> bool:
        return len(self._followed) < OPEN and sum(clip.is_awaited for clip in self._followed) < AT_ONCE


class _Clip:
    """A clip and what was found in it so far."""

    def __init__(self, job: Job, answer: ClipAnswer, open_results: Callable[[], Results]) -> None:
        self.job = job
        self._answer, self._open = answer, open_results
        self._results: Results | None = None
        self._collector = Collector()

    @property
    def is_awaited(self) -> bool:
        """Whether the clip's user is ready for a frame."""
        return self.job.watcher is None or self.job.watcher.ready()

    def step(self) -> Outcome | None:
        """Go on by a frame; returns the outcome where that was the last."""
        watcher = self.job.watcher
        if self.job.dropped:
            return self._end(Outcome(self.job, reason="cancelled"))
        if not self.is_awaited:
            return None
        try:
            self._results = self._results or self._open()
            result = next(self._results, None)
            if result is None:
                return self._end(Outcome(self.job, self._collector.prediction(self._answer)))
            deliver(result, watcher, self._collector)
        except Exception as error:  # one clip's failure, whatever it is, must not stop the others
            return self._end(failed(self.job, error))
        return None

    def _end(self, outcome: Outcome) -> Outcome:
        if self._results is not None:
            self._results.close()
        return outcome


def deliver(result: FrameResult, watcher: Watcher | None, collector: Collector) -> None:
    """Hand a frame's result to whom takes frames, or keep it for the outcome."""
    if watcher is not None and watcher.takes_frames:
        watcher.frame(result.to_json())
    else:
        collector.add(result.to_json())
