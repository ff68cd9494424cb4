"""Frames that come one by one, from a camera or a clip, and their masks as they come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.app.answer import notice, words
from unipixel_jax.app.pictures import frame_html
from unipixel_jax.app.worker import Worker, require_prompt
from unipixel_jax.infer.prediction import Collector, FrameResult
from unipixel_jax.infer.stream import Stream
from unipixel_jax.infer.visualize import draw_objects
from unipixel_jax.processing.frames import FrameSource

RECENT = 10
"""The frames over which the rate is taken."""


class Feed(Iterator[NDArray[np.uint8]]):
    """Frames that are pushed by one side and taken by the other. It ends where a frame is asked for and there is none."""

    def __init__(self) -> None:
        self._frames: deque[NDArray[np.uint8]] = deque()

    def push(self, frame: NDArray[np.uint8]) -> None:
        """Add a frame [H, W, 3]."""
        self._frames.append(frame)

    def __next__(self) -> NDArray[np.uint8]:
        if not self._frames:
            raise StopIteration
        return self._frames.popleft()


@dataclass(eq=False)
class Following:
    """A camera whose objects are followed.

    Attributes:
        prompt: what was asked for.
        size: height and width of its frames.
        feed: gets the frames.
        stream: gives their masks; None while nothing was found.
        times: when the latest frames were done.
    """

    prompt: str
    size: tuple[int, ...]
    feed: Feed = field(default_factory=Feed)
    stream: Stream | None = None
    times: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))


def look(worker: Worker, following: Following | None, frame: NDArray[np.uint8] | None, prompt: str) -> tuple[Following | None, str | None]:
    """Follow the objects to a camera's next frame. Where the words or the size changed, or nothing was found yet, the model is asked about this frame.

    Args:
        worker: the model.
        following: what came before; None at the beginning.
        frame: [H, W, 3], uint8; None where the camera gave none.
        prompt: the visitor's words.

    Returns:
        What to go on with, and the frame as HTML; None for no frame.

    Raises:
        UserError: there are no words, or see ``UniPixel.track``.
    """
    if frame is None:
        return following, None
    asked, size = require_prompt(prompt), frame.shape[:2]
    if following is None or following.stream is None or (following.prompt, following.size) != (asked, size):
        following = Following(asked, size)
    following.feed.push(frame)
    if following.stream is None:
        following.stream = worker.track(following.feed, asked, size)
    stream = following.stream
    if not stream.answer.spans:
        following.stream = None
        return following, frame_html(frame, f"nothing found yet · {_said(stream)}")
    with worker.turn():
        result = next(stream)
    following.times.append(time.perf_counter())
    return following, _shown(result, stream, following.times)


def play(worker: Worker, source: FrameSource, prompt: str) -> Iterator[str]:
    """Follow objects through a clip or a stream; each frame as HTML when it is done. While a stream's next frame is waited for, others have the model.

    Where a stream ends, whether its sender is done or broke off, its last frame comes once more with a line that says so.

    Raises:
        UserError: there are no words, or see ``UniPixel.track``.
    """
    asked, times = require_prompt(prompt), deque[float](maxlen=RECENT)
    if source.count is None:
        following, shown = None, None
        for frame in source:
            following, shown = look(worker, following, frame.pixels, asked)
            if shown is not None:
                yield shown
        yield (shown or "") + notice("The stream has ended.")
        return
    stream = worker.track(source, asked)
    if not stream.answer.spans:
        for frame in source:
            yield frame_html(frame.pixels, f"nothing found · {_said(stream)}")
            return
    for result in worker.frames(stream):
        times.append(time.perf_counter())
        yield _shown(result, stream, times)


def _shown(result: FrameResult, stream: Stream, times: deque[float]) -> str:
    rate = f" · {(len(times) - 1) / (times[-1] - times[0]):.1f} frames/s" if len(times) > 1 and times[-1] > times[0] else ""
    return frame_html(draw_objects(result.pixels, result.masks, result.objects), f"frame {result.frame}{rate} · {_said(stream)}")


def _said(stream: Stream) -> str:
    return words(Collector().prediction(stream.answer))
