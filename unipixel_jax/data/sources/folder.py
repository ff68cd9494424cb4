"""Your own images in a folder, with masks and sentences.

    images/NAME.jpg       images
    masks/NAME.png        numbers of objects, 0 for none; a mask of 0 and 255 is one object
    masks/NAME/CUP.png    or, instead of that file, a mask for each object, to which the pixels that are not 0 belong
    sentences.json        or .csv, or .txt: what to ask for

A line of ``sentences.csv`` is ``NAME,sentence`` or ``NAME,sentence,object``, one of ``sentences.txt`` the same with tabs between. ``sentences.json`` is
``{"NAME": sentences}`` or ``{"NAME": {"object": sentences}}``, where ``sentences`` is a text or a list of texts. An object is its number in
``masks/NAME.png``, or the name of its file in ``masks/NAME/``; a sentence without one is about all of them together. NAME may have its ending.
Line breaks in a sentence are spaces.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.data.annotation import Annotation, FrameFiles, MaskReader, Turn
from unipixel_jax.data.files import read_json, read_labels, read_text
from unipixel_jax.data.masks import LabelImages
from unipixel_jax.data.sources.image_files import join_lines, require_black_zero, segmenting_turn
from unipixel_jax.errors import UserError
from unipixel_jax.processing.media import FRAME_SUFFIXES

SENTENCES = ("sentences.json", "sentences.csv", "sentences.txt")


@dataclass(frozen=True)
class Painted:
    """One object, made of all pixels that are not 0 in any of some images.

    Attributes:
        paths: the images.
    """

    paths: tuple[str, ...]

    def read(self, frames: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
        """See ``MaskReader``; the masks are the same for every frame."""
        mask = np.zeros(size, bool)
        for path in self.paths:
            labels = read_labels(path)
            if labels.shape != size:
                raise UserError(f"{path} is {labels.shape[1]}x{labels.shape[0]} pixels, its image {size[1]}x{size[0]}: save the mask in the image's size")
            mask |= labels != 0
        return np.broadcast_to(mask, (1, len(frames), *size))


def load_folder(root: Path, source: str) -> list[Annotation]:
    """One sample for each image, with a turn for each of its sentences.

    Args:
        root: the folder.
        source: the source's name.

    Raises:
        UserError: a part of the folder is missing or empty, a file has an unknown ending, or images, masks and sentences do not fit one another.
    """
    images = _images(root)
    turns: dict[str, list[Turn]] = {name: [] for name in images}
    for name, sentence, thing, where in _sentences(root):
        if (stem := _stem(name)) not in images:
            raise UserError(f"{where} is about {name!r}, but {root / 'images'} has no such image: write the name as the file's, or add the image")
        if not sentence:
            raise UserError(f"{where} has no sentence for {name!r}, expected words")
        turns[stem].append(segmenting_turn(sentence, _masks(root, stem, thing, where)))
    if silent := [name for name in images if not turns[name]]:
        raise UserError(f"{len(silent)} of {len(images)} images have no sentence, the first is {images[silent[0]].name}: add sentences or take them out")
    return [
        Annotation(source, "seg_image", "segmentation", FrameFiles((str(path),)), tuple(turns[name]), f"{source} {name}") for name, path in images.items()
    ]


def _images(root: Path) -> dict[str, Path]:
    """The images by their names without endings. Masks without an image are refused, and so are masks whose number 0 looks like an object."""
    folder, masks = root / "images", root / "masks"
    for needed in (folder, masks):
        if not needed.is_dir():
            raise UserError(f"{needed} is missing: own data is a folder with images/, masks/ and {' or '.join(SENTENCES)}, or a COCO-style .json file")
    out: dict[str, Path] = {}
    for path in _visible(folder):
        if path.suffix.lower() not in FRAME_SUFFIXES:
            raise UserError(f"{path} ends in {path.suffix or 'nothing'}, expected an image ending in {', '.join(FRAME_SUFFIXES)}: convert it or take it out")
        if path.stem in out:
            raise UserError(f"{path} and {out[path.stem].name} have one name, expected different ones, since masks are found by it: rename one")
        out[path.stem] = path
    if not out:
        raise UserError(f"{folder} is empty: put images there that end in {', '.join(FRAME_SUFFIXES)}")
    for path in _visible(masks):
        if path.is_file() and path.suffix != ".png":
            raise UserError(f"{path} ends in {path.suffix or 'nothing'}, expected a mask ending in .png, which keeps every pixel as it is: convert it")
        if (path.name if path.is_dir() else path.stem) not in out:
            raise UserError(f"{path} belongs to no image in {folder}: give both the same name, or take it out")
        for mask in _visible(path) if path.is_dir() else [path]:
            require_black_zero(mask)
    return out


def _masks(root: Path, name: str, thing: str, where: str) -> MaskReader:
    one, many = root / "masks" / f"{name}.png", root / "masks" / name
    if one.is_file() and many.is_dir():
        raise UserError(f"there are both {one} and the folder {many}, expected one of them")
    if one.is_file():
        if not thing:
            return Painted((str(one),))
        if not thing.isdecimal() or int(thing) == 0:
            raise UserError(f"{where} asks for the object {thing!r} of {one}, expected its number in that image, 1 or more")
        return LabelImages((str(one),), ((int(thing),),))
    files = {p.stem: str(p) for p in _visible(many)} if many.is_dir() else {}
    if not files:
        raise UserError(f"the image {name} has no mask: expected {one}, or masks of its objects in {many}")
    if thing and _stem(thing) not in files:
        raise UserError(f"{where} asks for the object {thing!r}, but {many} has only {', '.join(files)}")
    return Painted((files[_stem(thing)],) if thing else tuple(files.values()))


def _sentences(root: Path) -> Iterator[tuple[str, str, str, str]]:
    """Each sentence's image, words, object (empty for all), and where it stands."""
    found = [root / name for name in SENTENCES if (root / name).is_file()]
    if len(found) != 1:
        raise UserError(f"{root} has {', '.join(p.name for p in found) or 'no sentences'}, expected exactly one of {', '.join(SENTENCES)}")
    yield from (_from_json if found[0].suffix == ".json" else _from_table)(found[0])


def _from_table(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """The lines of a file with commas or tabs. A line break within quotes does not end the line, but becomes a space."""
    rows = csv.reader(io.StringIO(read_text(path), newline=""), delimiter="," if path.suffix == ".csv" else "\t", skipinitialspace=True, strict=True)
    for number in itertools.count(1):
        where = f"{path}, line {rows.line_num + 1}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise UserError(f"{where} has a quote that is not closed, or more behind one ({error}): write a quote within quotes twice") from None
        if row is None:
            return
        cells = [join_lines(cell) for cell in row]
        if not any(cells) or (number == 1 and cells[1:2] == ["sentence"]):
            continue
        if not 2 <= len(cells) <= 3:
            hint = 'between commas, and "quotes" around a sentence with commas' if path.suffix == ".csv" else "with tabs between"
            raise UserError(f"{where} has {len(cells)} parts, expected the image's name, a sentence and perhaps an object, {hint}")
        yield cells[0], cells[1], cells[2] if len(cells) == 3 else "", where


def _from_json(path: Path) -> Iterator[tuple[str, str, str, str]]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f'{path} holds a {type(content).__name__}, expected an object such as {{"NAME": ["sentence", ...]}}')
    for name, entry in content.items():
        objects: dict[str, Any] = entry if isinstance(entry, dict) else {"": entry}
        for thing, sentences in objects.items():
            for sentence in [sentences] if isinstance(sentences, str) else sentences if isinstance(sentences, list) else [None]:
                if not isinstance(sentence, str):
                    raise UserError(f"{path}: {name!r} has {str(sentences)[:60]}, expected a sentence, a list of sentences, or those for each object")
                yield name, join_lines(sentence), thing, f"{path}: {name!r}"


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, by name, without hidden files."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _stem(name: str) -> str:
    """A name without the ending of an image."""
    path = Path(name)
    return path.stem if path.suffix.lower() in FRAME_SUFFIXES else name
