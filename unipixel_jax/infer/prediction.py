"""The model's answer: words, and the objects that they point to.

F frames, H height, W width of the media.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.core.files import replacing
from unipixel_jax.processing.rle import encode_mask


@dataclass(frozen=True, eq=False)
class SegmentedObject:
    """One ``<|seg|>`` and its masks.

    Attributes:
        masks: bool [F, H, W].
        scores: probability that the object is present times the predicted IoU [F], float32; 1 for masks that the user gave.
        span: the index of the first character of its ``<|seg|>`` in the answer's text, and the one after the last; None if it stood in the prompt.
    """

    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    span: tuple[int, int] | None

    @property
    def areas(self) -> list[int]:
        """The number of pixels of each frame's mask."""
        return [int(np.count_nonzero(mask)) for mask in self.masks]

    @property
    def boxes(self) -> list[list[int] | None]:
        """The smallest box around each frame's mask, ``[x, y, width, height]`` in pixels as in COCO; None where the mask is empty."""
        return [_box(mask) for mask in self.masks]


@dataclass(frozen=True, eq=False)
class Prediction:
    """An answer.

    Attributes:
        text: the words, special tokens included.
        tokens: their ids.
        objects: what the ``<|seg|>`` tokens stand for, those of the prompt first.
        frames: the number of each frame in the video or folder that was read [F].
        size: height and width of the media in pixels.
    """

    text: str
    tokens: Sequence[int]
    objects: Sequence[SegmentedObject]
    frames: Sequence[int]
    size: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        """Everything but the pixels as plain numbers, lists and text.

        Keys: ``text``, ``tokens``, ``frames``, ``size`` (height and width), and ``objects`` with per object ``number`` (from 1), ``span``, and per frame
        ``scores``, ``boxes`` (COCO's ``[x, y, width, height]``, null where empty), ``areas`` in pixels and ``masks`` (COCO's compressed run lengths).
        """
        return {
            "text": self.text,
            "tokens": [int(token) for token in self.tokens],
            "frames": [int(frame) for frame in self.frames],
            "size": list(self.size),
            "objects": [
                {
                    "number": number,
                    "span": None if item.span is None else list(item.span),
                    "scores": [float(score) for score in item.scores],
                    "boxes": item.boxes,
                    "areas": item.areas,
                    "masks": [encode_mask(mask) for mask in item.masks],
                }
                for number, item in enumerate(self.objects, start=1)
            ],
        }

    def save_json(self, path: str | Path) -> None:
        """Write ``to_json`` to a file.

        Raises:
            UserError: it cannot be written.
        """
        with replacing(path) as aside:
            aside.write_text(json.dumps(self.to_json(), ensure_ascii=False) + "\n", encoding="utf-8")

    def save_masks(self, path: str | Path) -> None:
        """Write a compressed ``.npz`` with ``masks`` bool [objects, F, H, W], ``scores`` float32 [objects, F] and ``frames`` [F].

        Raises:
            UserError: it cannot be written.
        """
        masks = np.stack([o.masks for o in self.objects]) if self.objects else np.zeros((0, len(self.frames), *self.size), bool)
        scores = np.stack([o.scores for o in self.objects]) if self.objects else np.zeros((0, len(self.frames)), np.float32)
        with replacing(path) as aside, aside.open("wb") as file:
            np.savez_compressed(file, masks=masks, scores=scores, frames=np.asarray(self.frames))


def _box(mask: NDArray[np.bool_]) -> list[int] | None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]
