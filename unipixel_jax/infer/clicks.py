"""Objects that a user marked by points, boxes, brush strokes and masks, found by SAM 2.1 alone: in a picture, or followed through a clip.

H height, W width of the picture, O objects.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.errors import UserError
from unipixel_jax.infer.loading import LoadedModel
from unipixel_jax.infer.masks import sigmoid
from unipixel_jax.infer.prediction import FrameResult
from unipixel_jax.infer.sam2 import EncodedImage, Sam2Predictor
from unipixel_jax.infer.stream import frame_result, frames_with_features
from unipixel_jax.infer.tracking import ObjectOutput, Tracker, resized
from unipixel_jax.processing.frames import Frame, FrameSource
from unipixel_jax.processing.prompts import Clicks

BRUSH_POINTS = 8
"""The points that stand for a brush stroke."""
_STROKE_PIXELS = 4096
"""Pixels of a stroke at most among which its points are chosen."""
_SURE = 10.0
"""The logit of a pixel of a mask that is corrected, as SAM 2 takes masks."""


class Found(NamedTuple):
    """An object in a picture.

    Attributes:
        mask: bool [H, W].
        iou: predicted intersection over union of the mask.
        presence: probability that the object is there.
    """

    mask: NDArray[np.bool_]
    iou: float
    presence: float


class Marks(NamedTuple):
    """Clicks whose place was checked.

    Attributes:
        on: points on the object, those of its brush stroke among them.
        off: points beside it.
        box: left, top, right and bottom within the picture; None for none.
    """

    on: list[tuple[float, float]]
    off: list[tuple[float, float]]
    box: tuple[float, float, float, float] | None

    @property
    def points(self) -> list[tuple[float, float]]:
        """All points."""
        return [*self.on, *self.off]

    @property
    def labels(self) -> list[int]:
        """1 for each point on the object, 0 for each beside it."""
        return [1] * len(self.on) + [0] * len(self.off)


def marks_of(clicks: Clicks, size: tuple[int, int]) -> Marks:
    """Check clicks against a picture of the size (height, width).

    Raises:
        UserError: a point lies outside the picture, a box has no area in it, or a stroke or a mask is empty or of another size.
    """
    for name, pixels in (("brush stroke", clicks.brush), ("mask", clicks.mask)):
        if pixels is not None and (pixels.shape != size or pixels.dtype != np.bool_):
            raise UserError(f"the {name} is {pixels.dtype} {list(pixels.shape)}, expected bool {list(size)} (height, width) as the picture has it")
    if clicks.mask is not None and not clicks.mask.any():
        raise UserError("the mask is empty: mark at least one pixel of the object")
    on = [*clicks.on, *(stroke_points(clicks.brush) if clicks.brush is not None else ())]
    for x, y in [*on, *clicks.off]:
        if not (0 <= x <= size[1] and 0 <= y <= size[0]):
            raise UserError(f"the point {x:g},{y:g} lies outside the picture of {size[1]}x{size[0]} pixels")
    return Marks(on, list(clicks.off), clicks.box and _within(clicks.box, size))


def find_by_clicks(predictor: Sam2Predictor, seen: EncodedImage, clicks: Clicks) -> Found:
    """Find the object that clicks mark: of the four masks that SAM 2.1 gives, the one with the highest predicted IoU.

    Raises:
        UserError: see ``marks_of``.
    """
    marks = marks_of(clicks, seen.size)
    given: dict[str, Any] = {"points": marks.points, "labels": marks.labels} if marks.points else {}
    if clicks.mask is not None:
        given["mask_input"] = resized(clicks.mask.astype(np.float32) * (2 * _SURE) - _SURE, 4 * predictor.sam2.config.grid)
    answers = [predictor.segment(seen, box=marks.box, multimask=several, **given) for several in (False, True)]
    masks, iou = (np.concatenate([getattr(answer, name)[0] for answer in answers]) for name in ("masks", "iou"))
    best = int(np.argmax(iou))
    return Found(masks[best], float(iou[best]), float(sigmoid(answers[0].presence)[0]))


def clicked(loaded: LoadedModel, source: FrameSource, marked: Sequence[Frame], clicks: Sequence[Clicks]) -> Generator[FrameResult, None, None]:
    """Find the objects that clicks mark in a picture, or follow them from the first marked frame to the end of a clip.

    What is kept has a fixed size, whatever the clip's length. All objects are prompted on their frames before any is tracked, so that a frame between two
    marked ones knows of both, as in SAM 2's video predictor.

    Args:
        loaded: the model.
        source: the picture or the clip.
        marked: those of its frames on which there are clicks, in order.
        clicks: with the numbers of their objects, see ``numbered``.

    Yields:
        The result of each frame, whose objects are in the order of their numbers.

    Raises:
        UserError: see ``marks_of``; or there are too many objects.
    """
    if len(source) > 1:
        yield from _followed(loaded, source, marked, clicks)
    else:
        yield _click_on_picture(loaded, marked[0], sorted(clicks, key=lambda one: one.number or 0))


def _click_on_picture(loaded: LoadedModel, frame: Frame, clicks: Sequence[Clicks]) -> FrameResult:
    """The objects of a picture, which is looked at once; each has one of the clicks, in order."""
    predictor = Sam2Predictor(loaded.model.sam2)
    with loaded.on_mesh():
        seen = predictor.encode(frame.pixels)
        found = [find_by_clicks(predictor, seen, one) for one in clicks]
    iou, presence = (np.asarray([getattr(one, name) for one in found], np.float32) for name in ("iou", "presence"))
    numbers = tuple(range(1, len(found) + 1))
    return FrameResult(frame.number, frame.seconds, frame.pixels, numbers, np.stack([one.mask for one in found]), iou * presence, presence)


def _followed(loaded: LoadedModel, source: FrameSource, marked: Sequence[Frame], clicks: Sequence[Clicks]) -> Generator[FrameResult, None, None]:
    tracker = Tracker(loaded.model.sam2, loaded.dtype, clip_length=len(source))
    rows: dict[int | None, int] = {}
    known: dict[int, dict[int, ObjectOutput]] = {}
    with loaded.on_mesh():
        for frame, features in frames_with_features(loaded, replace(source, frames=lambda: iter(marked), first=0, stop=None, crop=None)):
            tracker.observe(frame.number, features)
            for one in (one for one in clicks if one.frame == frame.number):
                rows[one.number] = _prompt(tracker, frame.pixels.shape[:2], rows.get(one.number), one)
            known[frame.number] = {row: out for row in rows.values() if (out := tracker.output(row)) is not None}
    order = [tracker.objects.index(rows[number]) for number in range(1, len(rows) + 1)]
    frames = frames_with_features(loaded, replace(source, first=marked[0].number))
    try:
        while True:
            with loaded.on_mesh():
                shown = next(frames, None)
                if shown is None:
                    return
                tracker.observe(shown[0].number, shown[1], known=known.get(shown[0].number, {}))
                tracker.step()
            found = frame_result(shown[0], tracker)
            arrays = {name: getattr(found, name)[order] for name in ("masks", "scores", "presence")}
            yield replace(found, objects=tuple(range(1, len(order) + 1)), **arrays)
    finally:
        frames.close()


def stroke_points(brush: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """Points (x, y) that are spread over a brush stroke [H, W]: first the pixel next to its middle, then each time the one farthest from those before.

    Raises:
        UserError: the stroke is empty.
    """
    pixels = np.argwhere(brush)[:, ::-1] + 0.5
    if not len(pixels):
        raise UserError("the brush stroke is empty: mark at least one pixel")
    pixels = pixels[:: -(-len(pixels) // _STROKE_PIXELS)]
    chosen = [int(np.argmin(_distances(pixels, pixels.mean(0))))]
    nearest = _distances(pixels, pixels[chosen[0]])
    while len(chosen) < BRUSH_POINTS and nearest.max() > 0:
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, _distances(pixels, pixels[chosen[-1]]))
    return [(float(x), float(y)) for x, y in pixels[chosen]]


def _prompt(tracker: Tracker, size: tuple[int, int], number: int | None, clicks: Clicks) -> int:
    """Prompt an object on the frame at which the tracker is; a mask first, which points and a box then correct. Returns the object's number there."""
    marks = marks_of(clicks, size)
    if clicks.mask is not None:
        number = tracker.add(size, number, mask=clicks.mask)
    if marks.points or marks.box is not None:
        number = tracker.add(size, number, points=marks.points, labels=marks.labels, box=marks.box)
    assert number is not None, "numbered() refuses clicks that mark nothing"
    return number


def _distances(points: NDArray[np.floating], to: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.square(points - to[None]).sum(1)


def _within(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The part of a box that lies within a picture of the size (height, width)."""
    height, width = size
    left, right = sorted((box[0], box[2]))
    top, bottom = sorted((box[1], box[3]))
    left, top, right, bottom = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    if left >= right or top >= bottom:
        raise UserError(f"the box {', '.join(f'{value:g}' for value in box)} has no area within the picture of {width}x{height} pixels")
    return left, top, right, bottom
