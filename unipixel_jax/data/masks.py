"""Readers of the masks of objects, one for each encoding (see ``MaskReader``).

O objects, F frames asked for, H and W in pixels. Each reader keeps paths or encoded masks and decodes only the frames that are asked for. Source:
``process_masks`` in UniPixel's ``unipixel/dataset/utils.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.data.annotation import MaskReader, Turn
from unipixel_jax.data.files import read_json, read_labels
from unipixel_jax.data.polygons import polygon_mask
from unipixel_jax.data.regions import Region, Size, decode_regions, read_corners, require_room, require_short_outlines
from unipixel_jax.errors import UserError


@dataclass(frozen=True)
class LabelImages:
    """Images in which each pixel holds the number of an object.

    Attributes:
        paths: the label image of each frame; None where a frame has no object.
        objects: for each object the numbers that belong to it.
    """

    paths: tuple[str | None, ...]
    objects: tuple[tuple[int, ...], ...]

    def read(self, frames: Sequence[int], size: Size) -> NDArray[np.bool_]:
        """See ``MaskReader``; an image must have the frame's size."""
        out = np.zeros((len(self.objects), len(frames), *size), bool)
        for f, frame in enumerate(frames):
            if (path := _at(self.paths, frame, "label images")) is not None:
                labels = _of_size(read_labels(path), size, path)
                most = np.iinfo(labels.dtype).max  # for numbers beyond the dtype, numpy would compare Python's integers one by one
                for mask, numbers in zip(out[:, f], self.objects, strict=True):
                    mask[:] = np.isin(labels, [n for n in numbers if n <= most])
        return out


@dataclass(frozen=True)
class Tracks:
    """Masks in COCO's encodings, held in memory.

    Attributes:
        objects: for each object the tracks that make it up; a track has one ``Region`` for each frame, or None where it is not visible.
        polygon_size: height and width of the image in which polygons are drawn; those of the frames by default.
    """

    objects: tuple[tuple[Sequence[Region | None], ...], ...]
    polygon_size: Size | None = None

    def read(self, frames: Sequence[int], size: Size) -> NDArray[np.bool_]:
        """See ``MaskReader``; masks of another size are resized."""
        parts = [[[_at(track, f, "masks") for track in tracks] for f in frames] for tracks in self.objects]
        return decode_regions(parts, size, self.polygon_size, "the annotation")


@dataclass(frozen=True)
class TrackFile:
    """A JSON file with masks of all objects in COCO's encodings: a list of objects, each a list of frames, each a list of regions or nulls."""

    path: str

    def read(self, frames: Sequence[int], size: Size) -> NDArray[np.bool_]:
        """See ``MaskReader``; masks of another size are resized."""
        objects = read_json(self.path)
        if not isinstance(objects, list) or not objects:
            raise UserError(f"{self.path} holds no objects: expected a list of them, each a list of frames with their regions")
        return decode_regions([[_at(regions, f, self.path) for f in frames] for regions in objects], size, None, self.path)


@dataclass(frozen=True)
class ObjectTrackFiles:
    """JSON files, one for each object: a list of frames, each a list of regions or nulls in COCO's encodings (as ViCaS is kept)."""

    paths: tuple[str, ...]

    def read(self, frames: Sequence[int], size: Size) -> NDArray[np.bool_]:
        """See ``MaskReader``; masks of another size are resized."""
        contents = [(path, read_json(path)) for path in self.paths]
        return np.concatenate([decode_regions([[_at(regions, f, path) for f in frames]], size, None, path) for path, regions in contents])


@dataclass(frozen=True)
class Masklet:
    """One object of an annotation file of SA-V, whose ``masklet`` lists for each annotated frame the objects' run lengths.

    Attributes:
        path: the JSON file.
        number: the object's number in each frame's list.
    """

    path: str
    number: int

    def read(self, frames: Sequence[int], size: Size) -> NDArray[np.bool_]:
        """See ``MaskReader``; masks of another size are resized."""
        content = read_json(self.path)
        masklet = content.get("masklet") if isinstance(content, dict) else None
        if not isinstance(masklet, list):
            raise UserError(f"{self.path} has no masklet: expected an annotation file of SA-V")
        regions = [_at(_at(masklet, f, self.path), self.number, self.path) for f in frames]
        return decode_regions([[[r] for r in regions]], size, None, self.path)


class Shape(NamedTuple):
    """A polygon of ``Shapes``: its corners [P, 2] as x and y in pixels, and whether it belongs to the object or is cut out of it."""

    points: Sequence[Sequence[float]]
    is_target: bool


@dataclass(frozen=True)
class Shapes:
    """An object in a photo, painted by polygons from the largest to the smallest; later ones cover earlier ones."""

    shapes: tuple[Shape, ...]

    def read(self, frames: Sequence[int], size: Size) -> NDArray[np.bool_]:
        """See ``MaskReader``; there is one frame, number 0."""
        polygons = [read_corners(s.points, size) for s in self.shapes]
        require_room(len(polygons), 1, size, "the annotation")
        require_short_outlines(polygons)
        drawn = [polygon_mask(corners, *size) for corners in polygons]
        mask = np.zeros(size, bool)
        for i in np.argsort([m.sum() for m in drawn])[::-1]:
            mask[drawn[i]] = self.shapes[i].is_target
        return np.stack([[_at([mask], f, "shapes") for f in frames]])


@dataclass(frozen=True)
class OnOneFrame:
    """Masks of one annotated frame in a longer clip; on the other frames there is nothing.

    Attributes:
        masks: the reader of that frame's masks, which has this frame only.
        frame: the number of that frame in the clip.
    """

    masks: MaskReader
    frame: int

    def read(self, frames: Sequence[int], size: Size) -> NDArray[np.bool_]:
        """See ``MaskReader``."""
        one = self.masks.read([0], size)
        return one & (np.asarray(frames) == self.frame).reshape(1, -1, 1, 1)


@dataclass(frozen=True)
class LabelClasses:
    """A photo's label image of classes, of which each that is present makes a turn.

    Attributes:
        path: the label image.
        names: the classes' names, by number.
        ignored: numbers that are no class.
    """

    path: str
    names: tuple[str, ...]
    ignored: frozenset[int]

    def turns(self) -> tuple[Turn, ...]:
        """One turn for each class that is there, in the order of their numbers.

        Raises:
            UserError: the image is missing or broken, has a class without a name, or none at all.
        """
        numbers = [n for n in np.unique(read_labels(self.path)).tolist() if n not in self.ignored]
        if not numbers:
            raise UserError(f"{self.path} has no class to segment, only ignored ones")
        if unknown := [n for n in numbers if not 0 <= n < len(self.names)]:
            raise UserError(f"{self.path} has class {unknown[-1]}, expected numbers from 0 to {len(self.names) - 1}: it belongs to another data set")
        return tuple(Turn("query", self.names[n], masks=LabelImages((self.path,), ((n,),))) for n in numbers)

    def read(self, frames: Sequence[int], size: Size) -> NDArray[np.bool_]:
        """The masks of all classes that are there, in the order of ``turns``; see ``MaskReader``."""
        return np.concatenate([turn.masks.read(frames, size) for turn in self.turns() if turn.masks is not None])


def _at(items: Any, number: int, where: str) -> Any:
    """An item of a list that was read from a file, which may be anything else or too short."""
    if not isinstance(items, Sequence) or not 0 <= number < len(items):
        found = f"{len(items)} entries" if isinstance(items, Sequence) else f"a {type(items).__name__}"
        raise UserError(f"{where}: number {number} is wanted of {found}; the masks and the clip do not belong together")
    return items[number]


def _of_size(labels: NDArray[Any], size: Size, path: str) -> NDArray[Any]:
    if labels.shape != size:
        raise UserError(f"{path} is {labels.shape[1]}x{labels.shape[0]} pixels, expected {size[1]}x{size[0]} as the frame: masks must fit their frames")
    return labels
