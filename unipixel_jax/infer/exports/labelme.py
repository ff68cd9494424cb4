"""Outlines and masks as labelme opens them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unipixel_jax.infer.exports.base import Export, Labelled, has_holes, polygons, require_opencv
from unipixel_jax.infer.prediction import box_of

LABELME_VERSION = "5.5.0"
"""The version of labelme whose files are written; masks came with 5.3."""


class LabelmeExport(Export):
    """A JSON file for each picture beside its image, as labelme opens them.

    A mask is written as its outlines, which share the object's number as their group. One with holes, which outlines cannot say, is a shape of type ``mask``.
    """

    def __init__(self, folder: Path, *, resume: bool = False) -> None:
        super().__init__(folder, resume=resume)
        require_opencv("labelme")

    def _add(self, picture: Labelled) -> None:
        """See ``Export``."""
        name, (height, width), result = self._write_image("", picture), picture.size, picture.result
        shapes = [
            {"label": self.labels[kind], "group_id": number, "flags": {}, "description": "", **shape}
            for number, kind, mask in zip(result.objects, picture.classes, result.masks, strict=True)
            for shape in _shapes(mask)
        ]
        image = {"imagePath": name, "imageData": None, "imageHeight": height, "imageWidth": width}
        found: dict[str, Any] = {"version": LABELME_VERSION, "flags": {}, "shapes": shapes, **image}
        self._write_text(f"{picture.name}.json", json.dumps(found, ensure_ascii=False) + "\n")


def _shapes(mask: NDArray[np.bool_]) -> Iterator[dict[str, Any]]:
    box = box_of(mask)
    if box is None:
        return
    if not has_holes(mask):
        yield from ({"shape_type": "polygon", "points": corners.tolist(), "mask": None} for corners in polygons(mask))
        return
    left, top, width, height = box
    png = io.BytesIO()
    Image.fromarray(mask[top : top + height, left : left + width].astype(np.uint8)).save(png, "PNG")
    corners = [[left, top], [left + width - 1, top + height - 1]]
    yield {"shape_type": "mask", "points": corners, "mask": base64.b64encode(png.getvalue()).decode("ascii")}
