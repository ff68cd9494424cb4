"""Label Studio's tasks with predictions, whose masks are those of its brush.

The brush has a run-length code of its own, that of the JavaScript package ``@thi.ng/rle-pack``: the number of values in 32 bits, their bits less one in 5, four
sizes of lengths less one in 4 each, then the runs. A run is a bit 1, the number of its size in 2 bits, its length less one, and its value. The values are red,
green, blue and opacity of each pixel, row by row, all 255 on the object.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.errors import UserError
from unipixel_jax.infer.exports.base import Export, Labelled, xml_text

BRUSH, IMAGE = "brush", "image"
"""The names of the tags in the labelling configuration, by which results say to what they belong."""
_MAX_BYTES = 1 << 22
"""The most bytes of a stroke that are read."""
_VALUE_BITS, _LENGTH_BITS = 8, 16
_SIZES = (3, 4, 8, _LENGTH_BITS)
"""The four sizes of lengths in bits, those that Label Studio's own converter writes; here all runs have the largest."""


def brush_runs(mask: NDArray[np.bool_]) -> list[int]:
    """A mask [H, W] in the run-length code of Label Studio's brush: numbers from 0 to 255.

    Source: ``label_studio_sdk.converter.brush``, whose ``decode_rle`` reads it.
    """
    flat = mask.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = 4 * np.diff(starts, append=flat.size)
    longest = 1 << _LENGTH_BITS
    pieces = -(-lengths // longest)
    values = np.repeat(flat[starts], pieces)
    parts = np.full(len(values), longest)
    parts[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * longest
    header = [_bits(np.array([4 * flat.size]), 32), _bits(np.array([_VALUE_BITS - 1]), 5), *(_bits(np.array([size - 1]), 4) for size in _SIZES)]
    run = [np.ones((len(parts), 3), bool), _bits(parts - 1, _LENGTH_BITS), np.repeat(values[:, None], _VALUE_BITS, axis=1)]
    return np.packbits(np.concatenate([*(part.ravel() for part in header), np.concatenate(run, axis=1).ravel()])).tolist()


def brush_mask(runs: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask bool [H, W] that the brush's code holds: the pixels whose opacity is not 0.

    Args:
        runs: what ``brush_runs`` or Label Studio wrote.
        size: height and width in pixels.

    Raises:
        UserError: it is no such code, or one of another size.
    """
    if not isinstance(runs, list) or not 0 < len(runs) <= _MAX_BYTES or not all(type(byte) is int and 0 <= byte < 256 for byte in runs):
        raise UserError(f"the brush stroke is {str(runs)[:40]}, expected a list of at most {_MAX_BYTES:,} numbers from 0 to 255")
    text, place = (np.unpackbits(np.asarray(runs, np.uint8)) + 48).tobytes(), 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        if place > len(text):
            raise UserError(f"the brush stroke of {len(runs)} bytes ends amid a run: send it again")
        return int(text[place - count : place], 2)

    total, value_bits, sizes = read(32), read(5) + 1, [read(4) + 1 for _ in range(4)]
    if total != 4 * size[0] * size[1]:
        raise UserError(f"the brush stroke has {total // 4} pixels, expected {size[1]}x{size[0]}, those of the picture")
    values, done = np.zeros(total, bool), 0
    while done < total:
        same, length = read(1), read(sizes[read(2)]) + 1
        values[done : done + length] = read(value_bits) if same else [read(value_bits) for _ in range(min(length, total - done))]
        done += length
    return values.reshape(*size, 4)[..., 3]


def brush_region(mask: NDArray[np.bool_], label: str, score: float, *, region: str, control: str = BRUSH, image: str = IMAGE) -> dict[str, Any]:
    """A region of a brush, as the ``result`` of a prediction holds it.

    Args:
        mask: bool [H, W].
        label: a label of the labelling configuration.
        score: from 0 to 1.
        region: an id of the region, which no other of the task has.
        control, image: the names of the ``BrushLabels`` and the ``Image`` tag.
    """
    height, width = mask.shape
    return {
        "id": region,
        "from_name": control,
        "to_name": image,
        "type": "brushlabels",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": brush_runs(mask), "brushlabels": [label]},
        "score": round(float(score), 6),
    }


def labelling_config(labels: Sequence[str]) -> str:
    """A labelling configuration for pictures and masks with these labels."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=IMAGE, value=f"${IMAGE}", zoom="true")
    brush = ElementTree.SubElement(view, "BrushLabels", name=BRUSH, toName=IMAGE)
    for label in labels:
        ElementTree.SubElement(brush, "Label", value=xml_text(label))
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


class LabelStudioExport(Export):
    """``tasks.json``, which Label Studio imports as tasks with predictions, ``labeling_config.xml``, and the pictures in ``images``.

    Tasks name their pictures as Label Studio's local storage does, by paths from the folder in which this one lies.
    """

    def __init__(self, folder: Path, *, resume: bool = False) -> None:
        super().__init__(folder, resume=resume)
        self._tasks: list[Mapping[str, Any]] = []

    def _add(self, picture: Labelled) -> None:
        """See ``Export``; the tasks are written at the end."""
        name, result = self._write_image("images", picture), picture.result
        found = [
            brush_region(mask, xml_text(self.labels[kind]), score, region=f"{picture.name}-{number}")
            for number, kind, mask, score in zip(result.objects, picture.classes, result.masks, result.scores, strict=True)
            if mask.any()
        ]
        address = f"/data/local-files/?d={quote(f'{self.folder.resolve().name}/images/{name}')}"
        score = float(np.mean([region["score"] for region in found])) if found else 0.0
        self._tasks.append({"data": {IMAGE: address}, "predictions": [{"model_version": "unipixel-jax", "score": round(score, 6), "result": found}]})

    def finish(self) -> None:
        """See ``Export``."""
        if not self._tasks:
            return
        self._write_text("tasks.json", json.dumps(self._tasks, ensure_ascii=False) + "\n")
        self._write_text("labeling_config.xml", labelling_config(list(self.labels.values())))


def _bits(numbers: NDArray[np.integer], count: int) -> NDArray[np.bool_]:
    """The lowest bits of numbers [N], the highest of them first [N, count]."""
    return (numbers[:, None] >> np.arange(count - 1, -1, -1) & 1).astype(bool)
