"""A clip while a visitor mends it by clicks on any frame: what is clicked changes at once, the rest of the clip when it is tracked again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from unipixel_jax.app.marks import draw_point
from unipixel_jax.app.media import SIDE, shown, whole
from unipixel_jax.app.worker import Figures, Result, Worker, require_prompt
from unipixel_jax.errors import UserError
from unipixel_jax.infer.prediction import ClipAnswer, Collector, FrameResult
from unipixel_jax.infer.sam2_session import Sam2Session
from unipixel_jax.infer.visualize import colour_of, draw_objects

Clicks = dict[tuple[int, int], list[tuple[float, float, bool]]]
"""The clicks on a frame for an object, by both their numbers: x and y in pixels of the upload, and whether it is on the object."""


@dataclass(eq=False)
class Correction:
    """A clip while it is mended.

    Attributes:
        path: the upload.
        answer: the words with which it began, and the objects that are followed.
        figures: what that cost.
        session: follows the objects.
        results: of each frame, the latest.
        clicks: what was clicked.
        before: the masks that were there before the first of them.
        stale: whether there was a click since the clip was tracked.
        frame: which is shown.
    """

    path: Path
    answer: ClipAnswer
    figures: Figures
    session: Sam2Session
    results: list[FrameResult]
    clicks: Clicks = field(default_factory=dict)
    before: dict[tuple[int, int], NDArray[np.bool_]] = field(default_factory=dict)
    stale: bool = False
    frame: int = 0

    def picture(self) -> NDArray[np.uint8]:
        """The frame as it is shown, with objects and clicks."""
        result = self.results[self.frame]
        small = shown(result.pixels)
        scale = small.shape[1] / result.pixels.shape[1]
        size = small.shape[1::-1]
        masks = [np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)) for mask in result.masks]
        image = Image.fromarray(draw_objects(small, masks, result.objects))
        pen = ImageDraw.Draw(image)
        for (frame, number), places in self.clicks.items():
            if frame == self.frame:
                for x, y, on_it in places:
                    draw_point(pen, (x * scale, y * scale), max(5, max(size) // 90), colour_of(number) if on_it else (200, 30, 30), on_it)
        return np.asarray(image)


def begin(worker: Worker, path: str | None, prompt: str, tell: Callable[[int, int], None] = lambda done, of: None) -> Correction:
    """Answer, and follow the objects through the clip.

    Args:
        worker: the model.
        path: the upload.
        prompt: the visitor's words.
        tell: see ``Worker.segment``.

    Raises:
        UserError: nothing is segmented; or see ``Worker.segment`` and ``media.whole``.
    """
    found = worker.segment(path, require_prompt(prompt), photo=False, tell=tell)
    said = found.prediction
    seen = [(item, place) for item in said.objects if (place := next((place for place, area in enumerate(item.areas) if area), None)) is not None]
    if not seen:
        raise UserError("nothing is segmented, so there is nothing to correct: ask for something that is to be seen")
    clip = whole(path, worker.limits)
    with worker.turn() as model, model.loaded.on_mesh():
        session = Sam2Session(model.loaded.model.sam2, model.loaded.dtype, clip)
        for item, place in seen:
            session.add(place, mask=item.mask(place))
    spans, owners = [item.span for item, _ in seen], [item.prompt for item, _ in seen]
    answer = ClipAnswer(said.text, said.tokens, np.zeros((0, 0)), spans, said.prompts, owners, said.frames, said.size)
    correction = Correction(found.path, answer, found.figures, session, [])
    return propagate(worker, correction)


def click(worker: Worker, correction: Correction | None, number: int, on_it: bool, x: float, y: float) -> Correction:
    """Mend an object's mask on the frame that is shown.

    Args:
        worker: the model.
        correction: the clip.
        number: the object.
        on_it: whether the click is on the object.
        x, y: in pixels of the picture as it is shown.

    Raises:
        UserError: there is no such object.
    """
    if correction is None:
        raise UserError("there is nothing to correct yet: segment something first")
    result = correction.results[correction.frame]
    if number not in result.objects:
        raise UserError(f"there is no object {number} on this frame: choose one of {', '.join(map(str, result.objects))}")
    height, width = result.pixels.shape[:2]
    scale = max(1.0, max(height, width) / SIDE)
    places = correction.clicks.setdefault((correction.frame, number), [])
    correction.before.setdefault((correction.frame, number), result.masks[result.objects.index(number)])
    places.append((min(x * scale, width), min(y * scale, height), on_it))
    _apply(worker, correction, number)
    return correction


def _apply(worker: Worker, correction: Correction, number: int) -> None:
    key = correction.frame, number
    places = correction.clicks[key]
    given: dict[str, Any] = {"points": [place[:2] for place in places], "labels": [int(place[2]) for place in places]}
    with worker.turn() as model, model.loaded.on_mesh():
        found = correction.session.add(correction.frame, number, **(given if places else {"mask": correction.before[key]}))
    correction.results[correction.frame] = found
    correction.stale = len(correction.results) > 1


def undo(worker: Worker, correction: Correction | None, number: int) -> Correction:
    """Take back the last click for an object on the frame that is shown. With none left, its mask is what it was before.

    Raises:
        UserError: there is nothing to take back.
    """
    places = correction.clicks.get((correction.frame, number)) if correction is not None else None
    if correction is None or not places:
        raise UserError("there is no click for this object on this frame that could be taken back")
    places.pop()
    _apply(worker, correction, number)
    return correction


def propagate(worker: Worker, correction: Correction | None) -> Correction:
    """Track the clip again with the clicks, from the first frame that was prompted to both ends.

    Raises:
        UserError: there is no clip.
    """
    if correction is None:
        raise UserError("there is nothing to track yet: segment something first")
    session, results = correction.session, dict(enumerate(correction.results))
    first = 0
    for backward in (False, True):
        if backward and not first:
            break
        frames = session.propagate(first if backward else None, backward=backward)
        began = None
        while True:
            with worker.turn() as model, model.loaded.on_mesh():
                result = next(frames, None)
            if result is None:
                break
            began = result.frame if began is None else began
            results[result.frame] = result
        first = began or 0
    correction.results = [results[place] for place in range(len(session.clip.frames))]
    correction.stale = False
    return correction


def result_of(correction: Correction) -> Result:
    """The clip's masks as an answer."""
    collector = Collector()
    for item in correction.results:
        collector.add(item.to_json())
    return Result(correction.path, collector.prediction(correction.answer), correction.figures)
