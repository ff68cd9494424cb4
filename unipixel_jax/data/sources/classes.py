"""ADE20K, COCO-Stuff and Mapillary: photos with label images of classes. Source: ``ADE20KDataset`` in UniPixel's
``unipixel/dataset/sub_classes/segmentation.py``.

Which classes a photo has is only known once its label image is read, when it is drawn.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from unipixel_jax.data.annotation import Annotation, FrameFiles, Turn
from unipixel_jax.data.files import list_files
from unipixel_jax.data.masks import LabelClasses
from unipixel_jax.data.sources.base import Filters, Loader, choose_split
from unipixel_jax.data.sources.class_names import ADE20K, COCO_STUFF, MAPILLARY, Classes

_ADE20K = {
    "train": ("lisa/ade20k/annotations/training", "lisa/ade20k/images/training"),
    "val": ("lisa/ade20k/annotations/validation", "lisa/ade20k/images/validation"),
}
_COCO_STUFF = {split: (f"lisa/cocostuff/{split}2017", f"lisa/coco/{split}2017") for split in ("train", "val")}
_MAPILLARY = {
    "train": ("lisa/mapillary/training/v2.0/labels", "lisa/mapillary/training/images"),
    "val": ("lisa/mapillary/validation/v2.0/labels", "lisa/mapillary/validation/images"),
}


def _load(source: str, classes: Classes, splits: dict[str, tuple[str, str]], root: Path, split: str, filters: Filters) -> list[Annotation]:
    labels, images = choose_split(source, split, splits)
    found = []
    for path in list_files(root / labels, ".png"):
        turn = Turn("classes", "", masks=LabelClasses(str(path), classes.names, classes.ignored))
        media = FrameFiles((str(root / images / f"{path.stem}.jpg"),))
        found.append(Annotation(source, "seg_image", "segmentation", media, (turn,), f"{source} {path.stem}"))
    return found


LOADERS: dict[str, Loader] = {
    "ade20k": partial(_load, "ade20k", ADE20K, _ADE20K),
    "cocostuff": partial(_load, "cocostuff", COCO_STUFF, _COCO_STUFF),
    "mapillary": partial(_load, "mapillary", MAPILLARY, _MAPILLARY),
}
