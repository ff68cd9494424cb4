"""A small Osprey-724K: conversations and descriptions with misspelt tags, some beyond repair, and masks as polygons and as run lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .discs import draw_discs, run_length, write_json, write_photo

FOLDER = "osprey/Osprey-724K"

_TALKS = (
    ("What is <region1>?", "<region1> is a red disc.", "And <region 2>?", "<region of2> is green."),
    ("Is <region2] above <region3,?", "No, <region3> lies below."),
    ("What is <region>?", "A disc whose number is missing."),
    ("What is <region7>?", "A disc that is not there."),
    ("Describe the picture.", "Three discs."),
)
_DESCRIPTIONS = (
    ("<region1>: A red disc at the top.", "<Region2>: A green disc in the middle.", "<regin 3>: A blue disc at the bottom."),
    ("<region2>: Two <region3> in one.",),
    ("<region4>: Not there.",),
)


def write_talks(file: str, images: str, root: Path) -> None:
    """Write conversations in which every other message is an answer."""
    texts = [[{"from": "gpt" if i % 2 else "human", "value": text} for i, text in enumerate(talk)] for talk in _TALKS]
    _write(root, file, images, [{"conversations": talk} for talk in texts])


def write_descriptions(root: Path) -> None:
    """Write descriptions of numbered regions."""
    _write(root, "osprey_detail_description.json", "osprey/coco/train2014", [{"description": list(texts)} for texts in _DESCRIPTIONS])


def _write(root: Path, file: str, images: str, records: Sequence[dict[str, Any]]) -> None:
    content = []
    for number, record in enumerate(records):
        frames, masks = draw_discs(1, 3, start=number)
        name = f"{file.split('.')[0]}_{number:06}.jpg"
        write_photo(root / images / name, frames[0])
        width, height = frames[0].size
        # an octagon drawn inside each disc, except that the second has run lengths
        polygons = [_octagon(masks[o, 0].nonzero()) for o in range(3)]
        regions = [{"segmentation": [polygons[0]]}, {"segmentation": run_length(masks[1, 0])}, {"segmentation": [polygons[2]]}]
        content.append({"id": number, "file_name": name, "height": height, "width": width, "annotation": regions, **record})
    write_json(root / FOLDER / file, content)


def _octagon(pixels: tuple[Any, ...]) -> list[float]:
    """Return a polygon inside a disc, given its pixels' rows and columns, as x0, y0, x1, y1, ..."""
    y, x = float(pixels[0].mean()), float(pixels[1].mean())
    r = float(pixels[0].max() - y)
    corners = ((1, 0.4), (0.4, 1), (-0.4, 1), (-1, 0.4), (-1, -0.4), (-0.4, -1), (0.4, -1), (1, -0.4))
    return [value for across, down in corners for value in (x + 0.9 * r * across, y + 0.9 * r * down)]


WRITERS: dict[str, Callable[[Path], None]] = {
    "osprey_conversation": partial(write_talks, "osprey_conversation.json", "osprey/coco/train2014"),
    "osprey_pos_neg": partial(write_talks, "osprey_lvis_positive_negative.json", "osprey/coco/imgs"),
    "osprey_detail_description": write_descriptions,
}
