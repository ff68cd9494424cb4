"""ReasonSeg: photos with sentences that take some thought to understand, and polygons. Source: ``ReasonSegDataset`` in UniPixel's
``unipixel/dataset/sub_classes/segmentation.py``.

Beside each photo lies a JSON file. For training, a further file adds questions whose answers explain the mask.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unipixel_jax.data.annotation import Annotation, FrameFiles, Turn
from unipixel_jax.data.files import list_files, read_json
from unipixel_jax.data.masks import Shape, Shapes
from unipixel_jax.data.sources.base import Filters, Loader, choose_split
from unipixel_jax.errors import UserError

_FOLDER = "lisa/reason_seg/ReasonSeg"
FOLDERS = {split: f"{_FOLDER}/{split}" for split in ("train", "val", "test")}
_LABELS = ("target", "ignore", "flag")
FALLBACK = "cp1252"
"""The encoding of a few of the files, which were written on Windows; all other data sets must be in UTF-8."""


def _load(root: Path, split: str, filters: Filters) -> list[Annotation]:
    explained: dict[str, Any] = {}
    if split == "train":
        listed = root / _FOLDER / "explanatory/train.json"
        explained = {Path(item["image"]).stem: item for item in read_json(listed, FALLBACK)}
    found = []
    for image in list_files(root / choose_split("reason_seg", split, FOLDERS), ".jpg"):
        path = image.with_suffix(".json")
        content = read_json(path, FALLBACK)
        masks = read_shapes(content, path, image)
        kind = "sentence" if content["is_sentence"] else "query"
        turns = [(str(i), Turn(kind, text, masks=masks)) for i, text in enumerate(content["text"])]
        if item := explained.pop(image.stem, None):
            turns.append(("exp", Turn("explanatory", item["query"], item["outputs"], masks)))
        for number, turn in turns:
            found.append(Annotation("reason_seg", "seg_image", "segmentation", FrameFiles((str(image),)), (turn,), f"reason_seg {image.stem} {number}"))
    if explained:
        raise UserError(f"{listed} explains photos that are not there: {', '.join(sorted(explained)[:3])}; the data set is incomplete")
    return found


def read_shapes(content: dict[str, Any], path: Path, image: Path) -> Shapes:
    """The polygons of a photo: those to segment are targets, those to ignore are not.

    Args:
        content: of the photo's JSON file.
        path: of that file.
        image: path of the photo.

    Raises:
        UserError: there is something other than named polygons of this photo.
    """
    shapes = []
    for shape in content["shapes"]:
        if shape["image_name"] != image.name or shape["shape_type"] != "polygon" or shape["label"] not in _LABELS:
            found = f"a {shape['shape_type']} named {shape['label']} of {shape['image_name']}"
            raise UserError(f"{path} has {found}, expected polygons named {', '.join(_LABELS)} of {image.name}")
        if shape["label"] != "flag":
            shapes.append(Shape(shape["points"], shape["label"] == "target"))
    return Shapes(tuple(shapes))


LOADERS: dict[str, Loader] = {"reason_seg": _load}
