"""The model's answer: words, and the objects that they point to.

F frames, O objects, H height, W width of the media.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, overload

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
                object_line(number, score, presence, box, int(np.count_nonzero(mask)), encode_mask(mask)) for number, score, presence, box, mask in parts
            ],
        }


def object_line(number: int, score: float, presence: float, box: Sequence[int] | None, area: int, mask: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object of a frame as ``FrameResult.to_json`` has it; ``mask`` is in COCO's compressed run lengths."""
    return {"number": number, "score": round(float(score), 6), "presence": round(float(presence), 6), "box": box, "area": area, "mask": mask}


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
        first: the number of the first object: 1, or what numbers in brackets in the words begin at, which is 0 for PixelQA.
    """

    text: str
    tokens: Sequence[int]
    objects: Sequence[SegmentedObject]
    frames: Sequence[int]
    size: tuple[int, int]
    prompts: Sequence[str] = ()
    first: int = 1

    @property
    def numbers(self) -> range:
        """The numbers of the objects."""
        return range(self.first, self.first + len(self.objects))

    @property
    def found(self) -> bool:
        """Whether any object is to be seen on any frame."""
        return any(item.found for item in self.objects)

    def to_json(self) -> dict[str, Any]:
        """Everything but the pixels as plain numbers, lists and text.

        Keys: ``text``, ``tokens``, ``frames``, ``size`` (height and width), ``found``; ``prompts`` with each one's words as ``prompt``, ``found``, and the
        numbers of its ``objects``; and ``objects`` with per object ``number`` (see ``numbers``), ``prompt`` (its index), ``found``, ``span``, and per frame
        ``scores``, ``presence``, ``boxes`` (COCO's ``[x, y, width, height]``, null where empty), ``areas`` in pixels and ``masks`` (COCO's compressed run
        lengths).
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
                    "objects": [number for number, item in zip(self.numbers, self.objects, strict=True) if item.prompt == index],
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
                for number, item in zip(self.numbers, self.objects, strict=True)
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


class RunLengths(Sequence[Mapping[str, Any]]):
    """The run lengths of an object's masks, which are all of one size: of each, only the text of the runs is held.

    Args:
        size: height and width of the masks.
    """

    def __init__(self, size: Sequence[int]) -> None:
        self._size = list(size)
        self._counts: list[bytes] = []

    def append(self, encoded: Mapping[str, Any]) -> None:
        """Add a mask, as ``processing/rle.py:encode_mask`` made it."""
        self._counts.append(encoded["counts"].encode("ascii"))

    def __len__(self) -> int:
        return len(self._counts)

    @overload
    def __getitem__(self, place: int) -> Mapping[str, Any]: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Mapping[str, Any]]: ...

    def __getitem__(self, place: int | slice) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
        """A mask, or several, as ``encode_mask`` made them."""
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        return {"size": list(self._size), "counts": self._counts[place].decode("ascii")}


class Collector:
    """Gathers the results of frames into a ``Prediction``, without their pixels and in little memory, since a clip may have any length.

    Attributes:
        frames: the numbers of the frames whose results have come.
    """

    def __init__(self) -> None:
        self.frames = array("q")
        self._objects: list[_Collected] = []

    def add(self, line: Mapping[str, Any]) -> None:
        """Take the next frame's ``FrameResult.to_json``."""
        self.frames.append(line["frame"])
        if not self._objects:
            self._objects = [_Collected(RunLengths(item["mask"]["size"])) for item in line["objects"]]
        for own, item in zip(self._objects, line["objects"], strict=True):
            own.add(item)

    def prediction(self, answer: ClipAnswer) -> Prediction:
        """The answer with its objects, whose numbers are 1 to O. Where no frame has come, since the answer segments nothing, its frames are those that the
        language model looked at.
        """
        found = self._objects or [_Collected(RunLengths(answer.size)) for _ in answer.spans]
        objects = [own.object(span, owner) for own, span, owner in zip(found, answer.spans, answer.owners, strict=True)]
        return Prediction(answer.text, answer.tokens, objects, self.frames.tolist() or answer.sampled, answer.size, answer.prompts)


@dataclass
class _Collected:
    """What has come of one object; the boxes stand in one row, four numbers each, all -1 where the mask is empty."""

    runs: RunLengths
    areas: array[int] = field(default_factory=lambda: array("q"))
    boxes: array[int] = field(default_factory=lambda: array("q"))
    scores: array[float] = field(default_factory=lambda: array("d"))
    presence: array[float] = field(default_factory=lambda: array("d"))

    def add(self, item: Mapping[str, Any]) -> None:
        """Take the object's entry of ``FrameResult.to_json``."""
        self.runs.append(item["mask"])
        self.areas.append(item["area"])
        self.boxes.extend(item["box"] or (-1,) * 4)
        self.scores.append(item["score"])
        self.presence.append(item["presence"])

    def object(self, span: tuple[int, int] | None, owner: int) -> SegmentedObject:
        """The object with its masks; the arguments are the attributes ``span`` and ``prompt``."""
        boxes = [None if self.boxes[start] < 0 else self.boxes[start : start + 4].tolist() for start in range(0, len(self.boxes), 4)]
        scores, presence = (np.asarray(values, np.float32) for values in (self.scores, self.presence))
        return SegmentedObject(self.runs, self.areas.tolist(), boxes, scores, presence, span, owner)


def box_of(mask: NDArray[np.bool_]) -> list[int] | None:
    """The smallest box around a mask [H, W], ``[x, y, width, height]`` in pixels as in COCO; None where it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]
