"""The model's answer: words, and the objects that they point to.

F frames, O objects, H height, W width of the media.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.core.files import replacing
from unipixel_jax.processing.rle import decode_mask, encode_mask


@dataclass(frozen=True, eq=False)
class FrameResult:
    """What was found on one frame.

    Attributes:
        frame: the frame's number in the video, folder or stream.
        seconds: its time in the video, where the file tells it.
        pixels: RGB [H, W, 3], uint8.
        objects: the numbers of the objects, from 1 on in the order of their coming [O].
        masks: bool [O, H, W].
        scores: probability that the object is on the frame times the predicted IoU of its mask [O], float32.
        presence: probability that the object is on the frame [O], float32.
    """

    frame: int
    seconds: float | None
    pixels: NDArray[np.uint8]
    objects: tuple[int, ...]
    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    presence: NDArray[np.float32]

    @property
    def boxes(self) -> list[list[int] | None]:
        """The smallest box around each mask, ``[x, y, width, height]`` in pixels as in COCO; None where the mask is empty."""
        return [box_of(mask) for mask in self.masks]

    def to_json(self) -> dict[str, Any]:
        """The result as plain numbers and text: ``frame``, ``seconds``, and ``objects`` with per object ``number``, ``score``, ``presence``, ``box`` (COCO's
        ``[x, y, width, height]``, null where empty), ``area`` in pixels and ``mask`` (COCO's compressed run lengths).
        """
        parts = zip(self.objects, self.scores, self.presence, self.boxes, self.masks, strict=True)
        return {
            "frame": self.frame,
            "seconds": self.seconds,
            "objects": [
                {
                    "number": number,
                    "score": round(float(score), 6),
                    "presence": round(float(presence), 6),
                    "box": box,
                    "area": int(np.count_nonzero(mask)),
                    "mask": encode_mask(mask),
                }
                for number, score, presence, box, mask in parts
            ],
        }


@dataclass(frozen=True, eq=False)
class SegmentedObject:
    """One ``<|seg|>`` and its masks, which are held as run lengths, so that a long clip fits in memory.

    Attributes:
        runs: each frame's mask in COCO's compressed run lengths (``processing/rle.py``) [F].
        areas: pixels of each frame's mask [F].
        boxes: the smallest box around each frame's mask, ``[x, y, width, height]`` in pixels as in COCO; None where the mask is empty [F].
        scores: probability that the object is present times the predicted IoU [F], float32; 1 for masks that the user gave.
        presence: probability that the object is on the frame [F], float32.
        span: the index of the first character of its ``<|seg|>`` in the answer's text, and the one after the last; None if it stood in the prompt.
        prompt: the index of the prompt that asked for it.
    """

    runs: Sequence[Mapping[str, Any]]
    areas: Sequence[int]
    boxes: Sequence[Sequence[int] | None]
    scores: NDArray[np.float32]
    presence: NDArray[np.float32]
    span: tuple[int, int] | None
    prompt: int = 0

    @classmethod
    def from_masks(
        cls, masks: NDArray[np.bool_], scores: NDArray[np.float32], presence: NDArray[np.float32], span: tuple[int, int] | None, prompt: int = 0
    ) -> SegmentedObject:
        """Encode masks, bool [F, H, W]; the other arguments are the attributes."""
        areas = [int(np.count_nonzero(mask)) for mask in masks]
        return cls([encode_mask(mask) for mask in masks], areas, [box_of(mask) for mask in masks], scores, presence, span, prompt)

    def mask(self, frame: int) -> NDArray[np.bool_]:
        """The mask of one frame, bool [H, W]; ``frame`` counts among the frames of the prediction."""
        return decode_mask(self.runs[frame])

    @property
    def found(self) -> bool:
        """Whether it is to be seen on any frame."""
        return any(self.areas)

    @cached_property
    def masks(self) -> NDArray[np.bool_]:
        """The masks of all frames, bool [F, H, W], decoded at the first use: a byte for every pixel of every frame."""
        return np.stack([decode_mask(runs) for runs in self.runs])


@dataclass(frozen=True, eq=False)
class Answer:
    """What the language model said.

    Attributes:
        text: the words, special tokens included.
        tokens: their ids.
        hidden: the states that predicted each ``<|seg|>``, those of the prompt first [O, D].
        spans: where each ``<|seg|>`` stands in the text, see ``SegmentedObject`` [O].
    """

    text: str
    tokens: Sequence[int]
    hidden: NDArray[Any]
    spans: Sequence[tuple[int, int] | None]


@dataclass(frozen=True, eq=False)
class ClipAnswer(Answer):
    """The answers to all prompts about a clip, with each text on a line of its own.

    Attributes:
        prompts: what was asked.
        owners: the index of each object's prompt [O].
        sampled: the numbers of the frames that the language model looked at.
        size: height and width of the frames in pixels.
    """

    prompts: Sequence[str]
    owners: Sequence[int]
    sampled: Sequence[int]
    size: tuple[int, int]

    @classmethod
    def joined(cls, answers: Sequence[Answer], prompts: Sequence[str], sampled: Sequence[int], size: tuple[int, int]) -> ClipAnswer:
        """Join the answers to several prompts, one for each; the other arguments are the attributes."""
        spans: list[tuple[int, int] | None] = []
        start = 0
        for answer in answers:
            spans += [span and (start + span[0], start + span[1]) for span in answer.spans]
            start += len(answer.text) + 1
        text, tokens = "\n".join(answer.text for answer in answers), [token for answer in answers for token in answer.tokens]
        owners = [index for index, answer in enumerate(answers) for _ in answer.spans]
        return cls(text, tokens, np.concatenate([answer.hidden for answer in answers]), spans, prompts, owners, sampled, size)


@dataclass(frozen=True, eq=False)
class Prediction:
    """An answer.

    Attributes:
        text: the words, special tokens included; the answers to several prompts follow one another on lines of their own.
        tokens: their ids.
        objects: what the ``<|seg|>`` tokens stand for, those of the prompt first.
        frames: the number of each frame in the video or folder that was read [F].
        size: height and width of the media in pixels.
        prompts: what was asked.
    """

    text: str
    tokens: Sequence[int]
    objects: Sequence[SegmentedObject]
    frames: Sequence[int]
    size: tuple[int, int]
    prompts: Sequence[str] = ()

    @property
    def found(self) -> bool:
        """Whether any object is to be seen on any frame."""
        return any(item.found for item in self.objects)

    def to_json(self) -> dict[str, Any]:
        """Everything but the pixels as plain numbers, lists and text.

        Keys: ``text``, ``tokens``, ``frames``, ``size`` (height and width), ``found``; ``prompts`` with each one's words as ``prompt``, ``found``, and the
        numbers of its ``objects``; and ``objects`` with per object ``number`` (from 1), ``prompt`` (its index), ``found``, ``span``, and per frame ``scores``,
        ``presence``, ``boxes`` (COCO's ``[x, y, width, height]``, null where empty), ``areas`` in pixels and ``masks`` (COCO's compressed run lengths).
        """
        return {
            "text": self.text,
            "tokens": [int(token) for token in self.tokens],
            "frames": [int(frame) for frame in self.frames],
            "size": list(self.size),
            "found": self.found,
            "prompts": [
                {
                    "prompt": words,
                    "found": any(item.found for item in self.objects if item.prompt == index),
                    "objects": [number for number, item in enumerate(self.objects, start=1) if item.prompt == index],
                }
                for index, words in enumerate(self.prompts)
            ],
            "objects": [
                {
                    "number": number,
                    "prompt": item.prompt,
                    "found": item.found,
                    "span": None if item.span is None else list(item.span),
                    "scores": [float(score) for score in item.scores],
                    "presence": [float(presence) for presence in item.presence],
                    "boxes": list(item.boxes),
                    "areas": list(item.areas),
                    "masks": list(item.runs),
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


@dataclass
class Collector:
    """Gathers the results of frames into a ``Prediction``, without their pixels.

    Attributes:
        lines: what ``FrameResult.to_json`` said of each frame.
    """

    lines: list[dict[str, Any]] = field(default_factory=list)

    def add(self, line: dict[str, Any]) -> None:
        """Take the next frame's ``FrameResult.to_json``."""
        self.lines.append(line)

    def prediction(self, answer: ClipAnswer) -> Prediction:
        """The answer with its objects, whose numbers are 1 to O. Where no frame has come, since the answer segments nothing, its frames are those that the
        language model looked at.
        """
        objects = []
        for place, (span, owner) in enumerate(zip(answer.spans, answer.owners, strict=True)):
            own = [line["objects"][place] for line in self.lines]
            scores, presence = (np.asarray([item[name] for item in own], np.float32) for name in ("score", "presence"))
            runs, areas, boxes = ([item[name] for item in own] for name in ("mask", "area", "box"))
            objects.append(SegmentedObject(runs, areas, boxes, scores, presence, span, owner))
        frames = [line["frame"] for line in self.lines] or answer.sampled
        return Prediction(answer.text, answer.tokens, objects, frames, answer.size, answer.prompts)


def box_of(mask: NDArray[np.bool_]) -> list[int] | None:
    """The smallest box around a mask [H, W], ``[x, y, width, height]`` in pixels as in COCO; None where it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]
