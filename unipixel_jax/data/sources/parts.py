"""PACO-LVIS and PASCAL-Part: objects and their parts in photos, in COCO's format. Source: ``PACOLVISDataset`` in UniPixel's
``unipixel/dataset/sub_classes/segmentation.py``.

A category is named ``object`` or ``object:part``. Text from ``_(`` on, in either, only tells meanings of a word apart.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from unipixel_jax.data.annotation import Annotation, FrameFiles, Turn
from unipixel_jax.data.files import read_json
from unipixel_jax.data.masks import Tracks
from unipixel_jax.data.sources.base import Filters, Loader, choose_split
from unipixel_jax.errors import UserError

_PACO = {split: (f"lisa/vlpart/paco/annotations/paco_lvis_v1_{split}.json", "lisa/coco") for split in ("train", "val")}
_PASCAL = {"train": ("lisa/vlpart/pascal_part/train.json", "lisa/vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages")}


def _load(source: str, splits: dict[str, tuple[str, str]], root: Path, split: str, filters: Filters) -> list[Annotation]:
    listed, folder = choose_split(source, split, splits)
    content = read_json(root / listed)
    names = {category["id"]: _name(category["name"], root / listed) for category in content["categories"]}
    images = {image["id"]: image for image in content["images"]}
    turns: dict[int, list[Turn]] = {number: [] for number in images}
    for item in content["annotations"]:
        if item["image_id"] not in images or item["category_id"] not in names:
            raise UserError(f"{root / listed}: annotation {item['id']} is of photo {item['image_id']} and category {item['category_id']}, expected known ones")
        image, name = images[item["image_id"]], names[item["category_id"]]
        masks = Tracks((([item["segmentation"]],),), (image["height"], image["width"]))
        turns[item["image_id"]].append(Turn("part" if ":" in name else "query", name, masks=masks))
    found = []
    for number, image in images.items():
        if turns[number]:
            media = FrameFiles((str(root / folder / image["file_name"]),))
            found.append(Annotation(source, "seg_image", "segmentation", media, tuple(turns[number]), f"{source} {Path(image['file_name']).stem}"))
    return found


def _name(category: str, path: Path) -> str:
    words = [word.split("_(")[0] for word in category.strip().split(":")]
    if len(words) > 2:
        raise UserError(f"{path} has a category {category!r}, expected an object or an object:part")
    return ":".join(words)


LOADERS: dict[str, Loader] = {"paco_lvis": partial(_load, "paco_lvis", _PACO), "pascal_part": partial(_load, "pascal_part", _PASCAL)}
