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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.errors import UserError
from unipixel_jax.infer.clicks import find_by_clicks, marks_of
from unipixel_jax.infer.exports.base import class_name
from unipixel_jax.infer.loading import EMBEDDED
from unipixel_jax.infer.predictor import UniPixel
from unipixel_jax.infer.sam2 import EncodedImage, Sam2Predictor
from unipixel_jax.processing.media import Clip, Media, read_media
from unipixel_jax.processing.prompts import Clicks

MAX_PROMPTS = 32
"""Prompts in one text at most; the language model reads the picture once for each."""
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
        height, width = pixels.shape[:2]
        on = marks_of(clicks, (height, width)).on
        place = max(range(len(regions)), key=lambda index: _touched(regions[index].mask, on), default=0)
        mask, score = self._corrected(pixels, replace(clicks, mask=regions[place].mask) if regions else clicks)
        found = Region(regions[place].label if regions else "", mask, score)
        return [region for region in [*regions[:place], found, *regions[place + 1 :]] if region.mask.any()]

    def _corrected(self, pixels: NDArray[np.uint8], clicks: Clicks) -> tuple[NDArray[np.bool_], float]:
        """The mask of one object and its score. The picture is looked at where it is not the last one."""
        loaded = self._model.loaded
        predictor = Sam2Predictor(loaded.model.sam2)
        with loaded.on_mesh():
            key = hashlib.sha256(pixels.tobytes()).digest() + repr(pixels.shape).encode()
            if self._seen is None or self._seen[0] != key:
                self._seen = key, predictor.encode(pixels)
            found = find_by_clicks(predictor, self._seen[1], clicks)
        return found.mask, found.iou * found.presence


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


def _touched(mask: NDArray[np.bool_], points: Iterable[tuple[float, float]]) -> int:
    """How many points lie on a mask."""
    height, width = mask.shape
    return sum(bool(mask[min(int(y), height - 1), min(int(x), width - 1)]) for x, y in points if 0 <= x <= width and 0 <= y <= height)
