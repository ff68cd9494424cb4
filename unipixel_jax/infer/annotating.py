"""What annotation tools ask for: objects of a picture by words, by clicks, boxes and brush strokes, or by words whose masks clicks correct.

The tools' own forms are translated in ``scripts/annotation``. H height, W width of the picture.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.errors import UserError
from unipixel_jax.infer.exports.base import class_name
from unipixel_jax.infer.loading import EMBEDDED
from unipixel_jax.infer.masks import sigmoid
from unipixel_jax.infer.predictor import UniPixel
from unipixel_jax.infer.sam2 import EncodedImage, Sam2Predictor
from unipixel_jax.infer.tracking import resized
from unipixel_jax.processing.media import Clip, Media, read_media

MAX_PROMPTS = 32
"""Prompts in one text at most; the language model reads the picture once for each."""
BRUSH_POINTS = 8
"""The points that stand for a brush stroke."""
_STROKE_PIXELS = 4096
"""Pixels of a stroke at most among which its points are chosen."""
_SURE = 10.0
"""The logit of a pixel of a mask that is corrected, as SAM 2 takes masks."""
_DETERMINED = re.compile(r"(a|all|an|any|both|each|every|her|his|its|my|our|that|the|their|these|this|those|your)\b", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Region:
    """An object that was found.

    Attributes:
        label: what the words call it; "" where it was found without words.
        mask: bool [H, W], not empty.
        score: probability that the object is there times the predicted IoU of its mask.
    """

    label: str
    mask: NDArray[np.bool_]
    score: float


@dataclass(frozen=True, eq=False)
class Clicks:
    """What an annotator marked of one object.

    Attributes:
        on: points (x, y) on the object, in pixels from the left and from the top.
        off: points beside it.
        box: left, top, right and bottom in pixels; what reaches beyond the picture is cut off.
        brush: a stroke along the object, bool [H, W].
    """

    on: Sequence[tuple[float, float]] = ()
    off: Sequence[tuple[float, float]] = ()
    box: tuple[float, float, float, float] | None = None
    brush: NDArray[np.bool_] | None = None

    def __bool__(self) -> bool:
        return bool(self.on or self.off or self.box or self.brush is not None)


class Annotator:
    """A model that answers requests of annotation tools one after the other, from any thread.

    Clicks are answered by SAM 2.1 alone, which looks at a picture once, however many clicks follow. The last picture is kept for that.

    Args:
        model: the model.
    """

    def __init__(self, model: UniPixel) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._seen: tuple[bytes, EncodedImage] | None = None

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Annotator:
        """Load the model that a tool's settings name.

        Args:
            settings: ``model`` and ``dtype``, see ``UniPixel.from_pretrained``; without ``model`` the small model is loaded that ships with the package.

        Raises:
            UserError: there is no such model, or it cannot be loaded.
        """
        return cls(UniPixel.from_pretrained(settings.get("model") or EMBEDDED, settings.get("dtype") or None))

    @classmethod
    def from_environment(cls) -> Annotator:
        """Load the model that the variables ``UNIPIXEL_MODEL`` and ``UNIPIXEL_DTYPE`` name; see ``from_settings``."""
        return cls.from_settings({"model": os.environ.get("UNIPIXEL_MODEL"), "dtype": os.environ.get("UNIPIXEL_DTYPE")})

    def find(self, media: Media, text: str = "", clicks: Clicks = Clicks()) -> list[Region]:
        """Find objects in a picture.

        With words and clicks, the clicks correct the object of the words on which most of them lie.

        Args:
            media: the picture: a path, an image, its content, or an array [H, W, 3] of uint8.
            text: what to look for; see ``prompts_of``.
            clicks: what was marked of one object.

        Returns:
            What was found, in the order of the words; without words at most one object.

        Raises:
            UserError: the picture cannot be read or is a clip, nothing is asked for, or clicks lie outside the picture.
        """
        clip = read_media(media, 2)  # two frames tell a clip, however long it is
        if len(clip.frames) != 1:
            raise UserError(f"{clip.name} is a clip, expected one picture: take one of its frames")
        pixels = clip.frames[0]
        if not text.strip() and not clicks:
            raise UserError("nothing is asked for: give words, points, a box or a brush stroke")
        with self._lock:
            regions = self._by_words(clip, text) if text.strip() else []
            if not clicks:
                return regions
            if text.strip() and not regions:
                raise UserError(f"the words {text!r} find nothing that the clicks could correct: leave out the words, or the clicks")
            return self._by_clicks(pixels, regions, clicks)

    def _by_words(self, clip: Clip, text: str) -> list[Region]:
        asked = prompts_of(text)
        labels = list(asked)
        found = self._model.segment(clip, list(asked.values()))
        return [Region(labels[item.prompt], item.mask(0), float(item.scores[0])) for item in found.objects if item.found]

    def _by_clicks(self, pixels: NDArray[np.uint8], regions: list[Region], clicks: Clicks) -> list[Region]:
        size = pixels.shape[:2]
        on = [*clicks.on, *(stroke_points(clicks.brush) if clicks.brush is not None else ())]
        points = [*on, *clicks.off]
        for x, y in points:
            if not (0 <= x <= size[1] and 0 <= y <= size[0]):
                raise UserError(f"the point {x:g},{y:g} lies outside the picture of {size[1]}x{size[0]} pixels")
        place = max(range(len(regions)), key=lambda index: _touched(regions[index].mask, on), default=0)
        known = regions[place].mask if regions else None
        mask, score = self._corrected(pixels, known, points, [1] * len(on) + [0] * len(clicks.off), clicks.box and _within(clicks.box, size))
        found = Region(regions[place].label if regions else "", mask, score)
        return [region for region in [*regions[:place], found, *regions[place + 1 :]] if region.mask.any()]

    def _corrected(
        self,
        pixels: NDArray[np.uint8],
        known: NDArray[np.bool_] | None,
        points: Sequence[tuple[float, float]],
        labels: Sequence[int],
        box: Sequence[float] | None,
    ) -> tuple[NDArray[np.bool_], float]:
        """The mask of one object and its score: of the four masks that SAM 2.1 gives, the one with the highest predicted IoU."""
        loaded = self._model.loaded
        predictor = Sam2Predictor(loaded.model.sam2)
        given: dict[str, Any] = {"points": points, "labels": labels} if points else {}
        if known is not None:
            side = 4 * loaded.config.sam2.grid
            given["mask_input"] = resized(known.astype(np.float32) * (2 * _SURE) - _SURE, side)
        with loaded.on_mesh():
            key = hashlib.sha256(pixels.tobytes()).digest() + repr(pixels.shape).encode()
            if self._seen is None or self._seen[0] != key:
                self._seen = key, predictor.encode(pixels)
            found = [predictor.segment(self._seen[1], box=box, multimask=several, **given) for several in (False, True)]
        masks, iou = (np.concatenate([getattr(answer, name)[0] for answer in found]) for name in ("masks", "iou"))
        best = int(np.argmax(iou))
        return masks[best], float(iou[best] * sigmoid(found[0].presence)[0])


def prompts_of(text: str) -> dict[str, str]:
    """The prompts in a text that an annotator typed, by the labels of what they ask for.

    A text with the word "segment" or "find", a question, or one with ``<|seg|>`` is one prompt as it is. Any other is a list of names, separated by commas,
    semicolons or ends of lines: ``cat, red car`` asks "Please segment the cat." and "Please segment the red car."

    Raises:
        UserError: there are no words, or more than ``MAX_PROMPTS`` names.
    """
    if re.search(r"\b(segment|find)\b", text, re.IGNORECASE) or text.strip().endswith("?") or "<|seg|>" in text:
        return {class_name(text): text.strip()}
    names = dict.fromkeys(name for part in re.split(r"[,;\n]", text) if (name := part.strip(" \t\r.")))
    if not 0 < len(names) <= MAX_PROMPTS:
        raise UserError(f"the text has {len(names)} names, expected 1 to {MAX_PROMPTS}, separated by commas")
    return {name: f"Please segment {name if _DETERMINED.match(name) else f'the {name}'}." for name in names}


def label_for(name: str, labels: Sequence[str]) -> str:
    """The label of a project that is meant by what words call an object: the same, the longest that stands in the words, or the first of all.

    Raises:
        UserError: the project has no labels.
    """
    if not labels:
        raise UserError("the labelling configuration has no labels: add at least one")
    words = name.lower()
    within = [label for label in labels if re.search(rf"(?<!\w){re.escape(label.lower())}(?!\w)", words)]
    return max(within, key=len, default=labels[0])


def numbers(value: Any, count: int, what: str) -> tuple[float, ...]:
    """Numbers of a request, checked.

    Args:
        value: what the request holds.
        count: how many there must be.
        what: what they are, for the message.

    Raises:
        UserError: it is no list of so many finite numbers.
    """
    sound = isinstance(value, list | tuple) and len(value) == count and all(type(part) in (int, float) and math.isfinite(part) for part in value)
    if not sound:
        raise UserError(f"{what} is {str(value)[:60]}, expected {count} finite numbers")
    return tuple(map(float, value))


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


def _distances(points: NDArray[np.floating], to: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.square(points - to[None]).sum(1)


def _within(box: tuple[float, float, float, float], size: tuple[int, ...]) -> tuple[float, float, float, float]:
    """The part of a box that lies within a picture of the size (height, width)."""
    height, width = size
    left, right = sorted((box[0], box[2]))
    top, bottom = sorted((box[1], box[3]))
    left, top, right, bottom = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    if left >= right or top >= bottom:
        raise UserError(f"the box {', '.join(f'{value:g}' for value in box)} has no area within the picture of {width}x{height} pixels")
    return left, top, right, bottom


def _touched(mask: NDArray[np.bool_], points: Iterable[tuple[float, float]]) -> int:
    """How many points lie on a mask."""
    height, width = mask.shape
    return sum(bool(mask[min(int(y), height - 1), min(int(x), width - 1)]) for x, y in points if 0 <= x <= width and 0 <= y <= height)
