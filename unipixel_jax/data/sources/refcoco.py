"""RefCOCO, RefCOCO+, RefCOCOg and RefCLEF: short expressions for objects in photos. Source: ``RefCOCODataset`` in UniPixel's
``unipixel/dataset/sub_classes/segmentation.py``, which reads the files of github.com/lichengunc/refer.

Training takes all expressions of a photo together, so that a conversation can have several; the other splits take them one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from unipixel_jax.data.annotation import Annotation, FrameFiles, Turn
from unipixel_jax.data.files import read_json, read_pickle
from unipixel_jax.data.masks import Tracks
from unipixel_jax.data.sources.base import Filters, Loader, choose_split
from unipixel_jax.errors import UserError

ROOT = "lisa/refer_seg"
COCO = f"{ROOT}/images/mscoco/images/train2014"
_CLEF = f"{ROOT}/images/saiapr_tc-12"

SPLITS: dict[str, Callable[[str], bool]] = {
    "train": lambda found: found == "train",
    "val": lambda found: found == "val",
    "test": lambda found: "test" in found,
    "testA": lambda found: "A" in found,
    "testB": lambda found: "B" in found,
    "testC": lambda found: "C" in found,
}
"""Whether a sample whose split has a name in the files belongs to a split; some files carry the letters of several tests, "testAB" for example."""


def _load(source: str, version: str, folder: str, root: Path, split: str, filters: Filters) -> list[Annotation]:
    belongs = choose_split(source, split, SPLITS)
    listed, described = root / ROOT / source / f"refs({version}).p", root / ROOT / source / "instances.json"
    instances = read_json(described)
    images = {image["id"]: image for image in instances["images"]}
    objects = {item["id"]: item for item in instances["annotations"]}
    turns: dict[int, list[Turn]] = {}
    for ref in read_pickle(listed):
        if not belongs(ref["split"]):
            continue
        image, item = images.get(ref["image_id"]), objects.get(ref["ann_id"])
        if image is None or item is None:
            raise UserError(f"{listed} speaks of photo {ref['image_id']} and object {ref['ann_id']}, expected both in {described}")
        masks = region_tracks(item["segmentation"], (image["height"], image["width"]))
        turns.setdefault(ref["image_id"], []).extend(Turn("query", s["sent"], masks=masks) for s in ref["sentences"])
    found = []
    for number, asked in turns.items():
        path = str(root / folder / images[number]["file_name"])
        annotation = Annotation(source, "seg_image", "segmentation", FrameFiles((path,)), tuple(asked), f"{source} {Path(path).stem}")
        if split == "train":
            found.append(annotation)
        else:
            found += [replace(annotation, turns=(turn,), name=f"{annotation.name} {i}") for i, turn in enumerate(asked)]
    return [a for a in found if a.turns]


def region_tracks(segmentation: list[Any], size: tuple[int, int]) -> Tracks:
    """Polygons (RefCOCO) or several run lengths (RefCLEF), on the photo's only frame."""
    if segmentation and isinstance(segmentation[0], list):
        return Tracks((([segmentation],),), size)
    return Tracks((tuple([region] for region in segmentation),), size)


LOADERS: dict[str, Loader] = {
    "refcoco": partial(_load, "refcoco", "unc", COCO),
    "refcoco+": partial(_load, "refcoco+", "unc", COCO),
    "refcocog": partial(_load, "refcocog", "umd", COCO),
    "refclef": partial(_load, "refclef", "unc", _CLEF),
}
