"""Small data sets of photos with masks: ReasonSeg, classes, parts, and the RefCOCO family. The words of a sample name the colours of its discs."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .discs import COLOURS, draw_discs, run_length, write_json, write_photo

CLASSES = {"ade20k": (4, 7, 13), "cocostuff": (1, 2, 61), "mapillary": (21, 61, 105)}
"""The numbers that the red, the green and the blue disc have in the label images of each source."""

_NOTHING = {"ade20k": 0, "cocostuff": 255, "mapillary": 123}


def write_reason_seg(root: Path) -> None:
    """Write polygons. The second photo's blue disc has a square hole that is to be ignored, and a flag without a meaning."""
    folder = root / "lisa/reason_seg/ReasonSeg"
    for split in ("train", "val", "test"):
        for number in range(2):
            frames, masks = draw_discs(1, 3, start=number)
            write_photo(folder / split / f"photo_{number}.jpg", frames[0])
            shape = {"image_name": f"photo_{number}.jpg", "shape_type": "polygon"}
            shapes = [shape | {"label": "target", "points": octagon(masks[2, 0])}]
            if number:
                y, x = (int(v.mean()) for v in masks[2, 0].nonzero())
                shapes.append(shape | {"label": "ignore", "points": [[x - 1, y - 1], [x + 1, y - 1], [x + 1, y + 1], [x - 1, y + 1]]})
                shapes.insert(0, shape | {"label": "flag", "points": [[0, 0], [5, 0], [5, 5]]})
            texts = ["Which disc is at the bottom? It is blue.", "Show the blue one."] if number else ["the blue disc"]
            write_json(folder / split / f"photo_{number}.json", {"text": texts, "is_sentence": bool(number), "shapes": shapes})
    explained = [{"image": "photo_1.jpg", "query": "Which disc is blue?", "outputs": "It is the lowest one."}]
    write_json(folder / "explanatory/train.json", explained)


def write_classes(source: str, folders: tuple[tuple[str, str], ...], root: Path) -> None:
    """Write label images, one for each photo; the last photo of a split has only one class."""
    for labels, images in folders:
        for number in range(3):
            frames, masks = draw_discs(1, 3, start=number)
            label = np.full(masks.shape[2:], _NOTHING[source], np.uint8)
            for disc, value in enumerate(CLASSES[source][: 3 if number < 2 else 1]):
                label[masks[disc, 0]] = value
            write_photo(root / images / f"photo_{number}.jpg", frames[0])
            image = Image.fromarray(label)
            if source == "mapillary":  # its label images have palettes
                image.putpalette(np.arange(768, dtype=np.uint16).astype(np.uint8).tobytes())
            write_photo(root / labels / f"photo_{number}.png", image)


def write_parts(listed: tuple[str, ...], images: str, inside: str, root: Path) -> None:
    """Write categories of objects and of parts, as polygons and as both kinds of run lengths, and a photo without any."""
    names = ("red disc_(round)", "disc_(round):green rim", "disc:blue rim")
    categories = [{"id": 10 + i, "name": name} for i, name in enumerate(names)]
    for path in listed:
        content: dict[str, list[dict[str, Any]]] = {"categories": categories, "images": [], "annotations": []}
        for number in range(3):
            frames, masks = draw_discs(1, 3, start=number)
            name = f"{inside}photo_{number}.jpg"
            write_photo(root / images / name, frames[0])
            content["images"].append({"id": number, "file_name": name, "height": frames[0].height, "width": frames[0].width})
            regions = ([_flat(octagon(masks[0, 0]))], run_length(masks[1, 0]), _uncompressed(masks[2, 0]))
            for disc, region in enumerate(regions if number < 2 else ()):
                content["annotations"].append({"id": 10 * number + disc, "image_id": number, "category_id": 10 + disc, "segmentation": region})
        write_json(root / path, content)


def write_refer(source: str, version: str, images: str, root: Path) -> None:
    """Write expressions in a pickle and objects in JSON, as polygons or, for RefCLEF, as run lengths in several pieces."""
    content: dict[str, list[dict[str, Any]]] = {"categories": [{"id": 1, "name": "disc"}], "images": [], "annotations": []}
    refs: list[dict[str, Any]] = []
    splits = ("train", "train", "val", "testAB" if source == "refclef" else "testA")
    for number, split in enumerate(splits):
        frames, masks = draw_discs(1, 3, start=number)
        name = f"photo_{number}.jpg"
        write_photo(root / images / name, frames[0])
        content["images"].append({"id": number, "file_name": name, "height": frames[0].height, "width": frames[0].width})
        for disc in range(3):
            region: list[Any] = [_flat(octagon(masks[disc, 0]))]
            if source == "refclef":
                left = masks[disc, 0] & (np.arange(masks.shape[3]) < int(masks[disc, 0].nonzero()[1].mean()))
                region = [run_length(left), _uncompressed(masks[disc, 0] & ~left)]
            key = 10 * number + disc
            content["annotations"].append({"id": key, "image_id": number, "category_id": 1, "bbox": [0, 0, 9, 9], "segmentation": region})
            texts = (f"{COLOURS[disc]} disc", f"the {COLOURS[disc]}")
            sentences = [{"sent_id": 10 * key + i, "sent": text, "tokens": text.split()} for i, text in enumerate(texts)]
            refs.append({"ref_id": key, "ann_id": key, "image_id": number, "category_id": 1, "split": split, "sentences": sentences})
    folder = root / "lisa/refer_seg" / source
    write_json(folder / "instances.json", content)
    # sorted so that the objects of a photo are not next to one another
    (folder / f"refs({version}).p").write_bytes(pickle.dumps(sorted(refs, key=lambda ref: ref["ref_id"] % 10), protocol=2))


def octagon(mask: NDArray[np.bool_]) -> list[list[float]]:
    """Return the corners [x, y] of an octagon inside a disc, given its mask [H, W]."""
    y, x = (float(v.mean()) for v in mask.nonzero())
    r = 0.95 * (float(mask.nonzero()[0].max()) - y)
    return [[x + r * across, y + r * down] for across, down in ((1, 0.4), (0.4, 1), (-0.4, 1), (-1, 0.4), (-1, -0.4), (-0.4, -1), (0.4, -1), (1, -0.4))]


def _flat(points: list[list[float]]) -> list[float]:
    return [value for point in points for value in point]


def _uncompressed(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return COCO's uncompressed run lengths of a mask [H, W]: numbers of pixels down the columns, beginning with pixels outside."""
    pixels = np.concatenate([[False], mask.T.ravel(), [not mask.T.ravel()[-1]]])
    edges = np.flatnonzero(pixels[1:] != pixels[:-1])
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], edges])).tolist()}


_ADE20K = tuple((f"lisa/ade20k/annotations/{s}", f"lisa/ade20k/images/{s}") for s in ("training", "validation"))
_STUFF = tuple((f"lisa/cocostuff/{s}2017", f"lisa/coco/{s}2017") for s in ("train", "val"))
_MAPILLARY = tuple((f"lisa/mapillary/{s}/v2.0/labels", f"lisa/mapillary/{s}/images") for s in ("training", "validation"))
_PACO = tuple(f"lisa/vlpart/paco/annotations/paco_lvis_v1_{s}.json" for s in ("train", "val"))
_COCO = "lisa/refer_seg/images/mscoco/images/train2014"

WRITERS: dict[str, Callable[[Path], None]] = {
    "reason_seg": write_reason_seg,
    "ade20k": partial(write_classes, "ade20k", _ADE20K),
    "cocostuff": partial(write_classes, "cocostuff", _STUFF),
    "mapillary": partial(write_classes, "mapillary", _MAPILLARY),
    "paco_lvis": partial(write_parts, _PACO, "lisa/coco", "train2017/paco_"),
    "pascal_part": partial(write_parts, ("lisa/vlpart/pascal_part/train.json",), "lisa/vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages", ""),
    "refcoco": partial(write_refer, "refcoco", "unc", _COCO),
    "refcoco+": partial(write_refer, "refcoco+", "unc", _COCO),
    "refcocog": partial(write_refer, "refcocog", "umd", _COCO),
    "refclef": partial(write_refer, "refclef", "unc", "lisa/refer_seg/images/saiapr_tc-12"),
}
