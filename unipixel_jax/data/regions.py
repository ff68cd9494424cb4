"""Masks in COCO's encodings, checked before they are decoded.

pycocotools follows a polygon's coordinates wherever they lead, even out of its memory, so it only gets coordinates that were checked here.

O objects, F frames, H and W height and width in pixels, P corners.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from unipixel_jax.data.frames import resize_masks
from unipixel_jax.errors import UserError
from unipixel_jax.processing.rle import decode_mask, mask_size

Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""

Region: TypeAlias = Mapping[str, Any] | Sequence[Sequence[float]]
"""COCO's encodings: ``{"size": [H, W], "counts": text or numbers}``, or polygons, each ``[x0, y0, x1, y1, ...]``."""

MAX_MASKS = 1 << 30
"""Pixels of all masks that are held at once, a byte each."""

MAX_OUTLINE = 1 << 22
"""Pixels of the outlines of an object's polygons together; drawing them takes some 50 bytes for each."""

_MAX_WORK = 1 << 35
"""Pixels of all masks that are decoded for a sample, which takes up to half a minute."""

_RESIZING, _DRAWING = 32, 256
"""The time to resize a pixel of a mask, and to follow a pixel of an outline, as multiples of the time to decode a pixel."""

_REACH = 4
"""How far a corner may lie from the image's origin, as a multiple of the image's longer side."""


def decode_regions(objects: Sequence[Sequence[Any]], size: Size, polygon_size: Size | None, where: str) -> NDArray[np.bool_]:
    """Decode the masks of objects in some frames.

    Args:
        objects: for each object a list of frames, each a list of regions that make it up there, or None for none. They are taken as a file has them.
        size: height and width of the frames; regions of another size are resized.
        polygon_size: height and width of the image in which polygons are drawn; those of the frames by default.
        where: the file or place that the regions come from, for messages.

    Returns:
        bool [O, F, H, W].

    Raises:
        UserError: a region is broken, or there is more than can be decoded.
    """
    require_room(len(objects), len(objects[0]), size, where)
    out = np.zeros((len(objects), len(objects[0]), *size), bool)
    work = 0
    for o, f in np.ndindex(out.shape[:2]):
        regions = objects[o][f]
        if not isinstance(regions, Sequence):
            raise UserError(f"{where}: a frame's masks are a {type(regions).__name__}, expected a list of regions")
        for region in regions:
            if region is None:
                continue
            try:
                mask, outline = decode_region(region, polygon_size or size)
            except UserError as error:
                raise UserError(f"{where} has a mask that is not in one of COCO's encodings: {error}; export it again") from None
            if mask.shape == size[::-1] != size:
                raise UserError(f"{where} has a mask of the size {list(mask.shape)}, expected {list(size)} (height, width): its sides are swapped")
            work += mask.size * (1 if mask.shape == size else _RESIZING) + outline * _DRAWING + out[o, f].size
            if work > _MAX_WORK:
                raise UserError(f"{where} has too many masks for one sample (of more than {_MAX_WORK} pixels): use smaller images, or fewer objects")
            out[o, f] |= resize_masks(mask, *size)
    return out


def decode_region(region: Any, size: Any) -> tuple[NDArray[np.bool_], int]:
    """Decode one mask.

    Args:
        region: run lengths with their size, or polygons, as it was read from a file.
        size: height and width of the image in which polygons are drawn.

    Returns:
        bool [H, W], and how many pixels its polygons' outlines have.

    Raises:
        UserError: it is neither, or broken; the message says what was found and expected.
    """
    if isinstance(region, Mapping):
        return decode_mask(region), 0
    height, width = mask_size(size)
    if not isinstance(region, Sequence) or isinstance(region, str | bytes) or not region:
        raise UserError(f"{str(region)[:60]!r}, expected polygons [[x0, y0, x1, y1, ...], ...] or run lengths with counts and size")
    polygons = [read_corners(polygon, (height, width)) for polygon in region]
    if any(len(corners) < 3 for corners in polygons):
        raise UserError(f"the polygons {str(region)[:60]}, expected at least three corners of each")
    outline = require_short_outlines(polygons)
    decoded = coco.decode(coco.merge(coco.frPyObjects([corners.ravel().tolist() for corners in polygons], height, width)))
    return decoded.view(np.bool_), outline


def read_corners(points: Any, size: Size) -> NDArray[np.float64]:
    """Read the corners of a polygon.

    Args:
        points: ``[x0, y0, x1, y1, ...]`` or ``[[x0, y0], ...]``, as it was read from a file.
        size: height and width of the image.

    Returns:
        x and y in pixels [P, 2], float64, all of them finite and not far from the image.

    Raises:
        UserError: they are no numbers, or lead too far.
    """
    try:
        numbers = np.asarray(points)
    except ValueError:  # the list holds lists of different lengths
        numbers = np.zeros(0, object)
    if numbers.dtype.kind not in "iuf" or numbers.size == 0:
        raise UserError(f"the polygon {str(points)[:60]!r}, expected numbers x0, y0, x1, y1, ...")
    corners = numbers.ravel()[: numbers.size // 2 * 2].astype(np.float64).reshape(-1, 2)
    if not np.all(np.abs(corners) <= _REACH * max(size)):  # also where one of them is no number
        raise UserError(f"the polygon {str(points)[:60]}, expected corners near its image of {size[1]}x{size[0]} pixels")
    return corners


def require_short_outlines(polygons: Sequence[NDArray[np.float64]]) -> int:
    """Count the pixels of the outlines of an object's polygons, each [P, 2]; the count may be a little too large, never too small.

    Raises:
        UserError: there are more than ``MAX_OUTLINE``.
    """
    outline = sum(int(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum()) + 2 * len(corners) for corners in polygons)
    if outline > MAX_OUTLINE:
        raise UserError(f"polygons with outlines of {outline} pixels, expected at most {MAX_OUTLINE}")
    return outline


def require_room(objects: int, frames: int, size: Size, where: str) -> None:
    """Check that all masks of a sample fit in memory.

    Raises:
        UserError: they have more than ``MAX_MASKS`` pixels.
    """
    if objects * frames * size[0] * size[1] > MAX_MASKS:
        raise UserError(
            f"{where} has {objects} masks on {frames} frames of {size[1]}x{size[0]} pixels, expected at most {MAX_MASKS} pixels: take fewer frames or objects"
        )
