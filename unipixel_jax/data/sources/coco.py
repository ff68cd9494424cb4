"""Your own images, annotated in a JSON file as COCO's are.

The file has ``images`` (``id``, ``file_name``, and ``height`` and ``width`` if you like), ``annotations`` (``image_id``, ``segmentation`` as polygons or
run lengths, ``category_id``) and ``categories`` (``id``, ``name``). The images lie beside the file, or in a folder ``images`` beside it. What is
learned from an annotation depends on the words that it has:

- ``sentences`` (or ``sentence``): its mask is what they ask for;
- ``caption``: it describes what is at a point in, or a box around, the mask;
- ``question`` and ``answer``: about the object, which may be written ``<region>`` in the question;
- none of these: its category's name asks for all objects of that category in the image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from unipixel_jax.data.annotation import Annotation, FrameFiles, Turn
from unipixel_jax.data.files import read_json
from unipixel_jax.data.masks import Tracks
from unipixel_jax.data.regions import Region, decode_region, read_corners
from unipixel_jax.data.sources.image_files import segmenting_turn, stored_size
from unipixel_jax.data.sources.marked import points_and_boxes
from unipixel_jax.errors import UserError
from unipixel_jax.processing.prompts import REGION
from unipixel_jax.processing.rle import mask_size


def load_coco(path: Path, source: str) -> list[Annotation]:
    """The samples of a file: for each image one that segments and one that refers, as far as there are words for them, and one for each question.

    Args:
        path: of the JSON file.
        source: the source's name.

    Raises:
        UserError: an image is missing or of another size than the file says, an annotation does not fit its image or has no words, or a part of the
            file is missing or of another kind.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, expected an object with images, annotations and categories")
    images = _by_id(content, "images", path)
    names = {number: _field(raw, "name", str, f"{path}: category {number}") for number, raw in _by_id(content, "categories", path, needed=False).items()}
    found: dict[Any, list[tuple[Mapping[str, Any], str]]] = defaultdict(list)
    for number, raw in enumerate(_list(content, "annotations", path)):
        where = f"{path}: annotation {raw.get('id', number)}"
        if not _is_id(image := raw.get("image_id")) or image not in images:
            raise UserError(f"{where} has the image_id {image!r}, expected the id of one of the {len(images)} images: add the image or take it out")
        found[image].append((raw, where))
    out: list[Annotation] = []
    for number, items in found.items():
        image, size = _image(images[number], number, path)
        out += _samples(source, image, [(raw, _region(raw, size, where), where) for raw, where in items], names)
    referring = points_and_boxes([a for a in out if a.task == "referring"])
    return [a for a in out if a.task != "referring"] + referring


def _samples(source: str, image: Path, items: Sequence[tuple[Mapping[str, Any], Region, str]], names: Mapping[Any, str]) -> list[Annotation]:
    """All samples of one image."""
    media, name = FrameFiles((str(image),)), f"{source} {image.stem}"
    segmenting, referring, asking = [], [], []
    categories: dict[str, list[Region]] = defaultdict(list)
    for raw, region, where in items:
        masks = Tracks((((region,),),))
        sentences = raw.get("sentences", raw.get("sentence", []))
        for sentence in sentences if isinstance(sentences, list) else [sentences]:
            segmenting.append(segmenting_turn(_words(sentence, "sentence", where), masks))
        if "caption" in raw:
            referring.append(Turn("caption", "", _words(raw["caption"], "caption", where), masks))
        if "question" in raw or "answer" in raw:
            question = _words(raw.get("question"), "question", where)
            if question.count(REGION) > 1:
                raise UserError(f"{where} has the question {question!r}, expected {REGION} once at most, since it has one mask")
            text = question if REGION in question else f"{REGION}: {question}"
            asking.append(Turn("qa", text, _words(raw.get("answer"), "answer", where), masks))
        if not any(key in raw for key in ("sentences", "sentence", "caption", "question", "answer")):
            if not _is_id(raw.get("category_id")) or raw["category_id"] not in names:
                raise UserError(f"{where} has no words and the category_id {raw.get('category_id')!r}, expected one of {list(names)[:20]}, or sentences")
            categories[names[raw["category_id"]]].append(region)
    segmenting += [segmenting_turn(category, Tracks((tuple((r,) for r in regions),))) for category, regions in categories.items()]
    out = [Annotation(source, "region_image", "region", media, (turn,), f"{name} question {i}") for i, turn in enumerate(asking)]
    if segmenting:
        out.append(Annotation(source, "seg_image", "segmentation", media, tuple(segmenting), name))
    if referring:
        out.append(Annotation(source, "ref_{}", "referring", media, tuple(referring), f"{name} captions"))
    return out


def _image(raw: Mapping[str, Any], number: Any, path: Path) -> tuple[Path, tuple[int, int]]:
    """Where an image is, and its height and width."""
    name = _field(raw, "file_name", str, f"{path}: image {number}")
    candidates = [path.parent / name, path.parent / "images" / name]
    image = next((c for c in candidates if c.is_file()), None)
    if image is None:
        raise UserError(f"{path}: image {number} is missing: expected {candidates[0]} or {candidates[1]}")
    size = stored_size(image)
    told = raw.get("height", size[0]), raw.get("width", size[1])
    if not all(isinstance(side, int | float) and not isinstance(side, bool) for side in told):
        raise UserError(f"{path}: image {number} has the height {told[0]!r} and the width {told[1]!r}, expected numbers of pixels, without quotes")
    if told != size:
        raise UserError(f"{image} is {size[1]}x{size[0]} pixels, but {path} says {told[1]}x{told[0]}: the masks were made for another size")
    return image, size


def _region(raw: Mapping[str, Any], size: tuple[int, int], where: str) -> Region:
    """The mask of an annotation, once it is checked that it belongs to an image of this size."""
    region: Any = raw.get("segmentation")
    try:
        if isinstance(region, Mapping):
            if mask_size(region.get("size")) != size:
                raise UserError(f"run lengths for the size {region.get('size')}, expected {list(size)} (height, width) as its image")
        else:
            _check_polygons(region, size)
        decode_region(region, size)
    except UserError as error:
        raise UserError(f"{where} has {error}") from None
    return cast(Region, region)


def _check_polygons(region: Any, size: tuple[int, int]) -> None:
    if not isinstance(region, list) or not region:
        raise UserError(f"the segmentation {region!r}, expected polygons [[x0, y0, x1, y1, ...], ...] or run lengths with counts and size")
    for polygon in region:
        corners = read_corners(polygon, size)
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise UserError(f"the polygon {str(polygon)[:60]}, expected at least three corners as x0, y0, x1, y1, x2, y2, ...")
        across, down = corners.max(axis=0).tolist()
        if across > size[1] + 1 or down > size[0] + 1 or corners.min() < -1:
            raise UserError(f"corners up to {across:g}, {down:g}, but its image is {size[1]}x{size[0]}: the mask is of another size")


def _list(content: Mapping[str, Any], key: str, path: Path, needed: bool = True) -> list[dict[str, Any]]:
    items = content.get(key, [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items) or (needed and not items):
        raise UserError(f"{path} has no usable {key!r}, expected a list of objects as in COCO's files; it has: {', '.join(content) or 'nothing'}")
    return items


def _by_id(content: Mapping[str, Any], key: str, path: Path, needed: bool = True) -> dict[Any, dict[str, Any]]:
    out: dict[Any, dict[str, Any]] = {}
    for raw in _list(content, key, path, needed):
        if not _is_id(raw.get("id")) or raw["id"] in out:
            raise UserError(f"{path}: an entry of {key!r} has the id {raw.get('id')!r}, expected a number or text that no other has")
        out[raw["id"]] = raw
    return out


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str)


def _field(raw: Mapping[str, Any], key: str, kind: type[str], where: str) -> str:
    if not isinstance(raw.get(key), kind):
        raise UserError(f"{where} has the {key} {raw.get(key)!r}, expected text")
    return str(raw[key])


def _words(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where} has the {key} {value!r}, expected words")
    return value.strip()
