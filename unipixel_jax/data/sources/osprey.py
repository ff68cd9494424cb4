"""Osprey-724K: conversations about, and descriptions of, numbered regions of COCO's images.

Source: the ``Osprey…`` classes in ``unipixel/dataset/sub_classes/region.py``. Its repairs of misspelt tags are kept; a record that cannot be repaired is
left out. Unlike there, a region numbered 0 is such a record; the reference takes the last region for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from unipixel_jax.data.annotation import Annotation, FrameFiles, Turn
from unipixel_jax.data.files import read_json
from unipixel_jax.data.masks import Tracks
from unipixel_jax.data.sources.base import Filters, Loader, choose_split

FOLDER = "osprey/Osprey-724K"

_TAG = re.compile(r"<region(\d+)[^\d\n]|<region (?:of)?(\d+)>")
_DESCRIPTION = re.compile(r"<(?:[rR]egion|regin ?)(\d+)>: (.+)")
_ANY_DESCRIBED = re.compile(r"<(?:[rR]egion|regin ?)\d+>")

_WORDS_FREE = 100
"""The reference counts this many words less for each drawn question."""


def _load(source: str, file: str, images: str, root: Path, split: str, filters: Filters) -> list[Annotation]:
    path = root / FOLDER / choose_split(source, split, {"train": file})
    out = []
    for raw in read_json(path):
        found = _described(raw["description"]) if "description" in raw else _discussed(raw["conversations"])
        if found is None:
            continue
        pairs, ids = found
        if not pairs or not ids or not all(1 <= number <= len(raw["annotation"]) for number in ids):
            continue
        kind = "describe" if "description" in raw else "qa"
        words = sum(len(answer.split(" ")) + (-_WORDS_FREE if kind == "describe" else len(text.split(" "))) for text, answer in pairs)
        if not filters.allow(words=words):
            continue
        masks = Tracks(tuple(((raw["annotation"][number - 1]["segmentation"],),) for number in ids), (raw["height"], raw["width"]))
        first = Turn(kind, *pairs[0], masks, ids)
        turns = (first, *(Turn(kind, text, answer) for text, answer in pairs[1:]))
        media = FrameFiles((str(root / images / raw["file_name"]),))
        out.append(Annotation(source, "region_image", "region", media, turns, f"{source} {raw['id']}"))
    return out


def _discussed(messages: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[str, str]], tuple[int, ...]] | None:
    """Questions with answers in which regions are numbers in brackets, and the numbers in order; None where a tag cannot be repaired."""
    texts: list[str] = []
    ids: list[int] = []
    for message in messages:
        ids += [int(first or second) for first, second in _TAG.findall(message["value"])]
        texts.append(_TAG.sub(lambda tag: f"[{tag[1] or tag[2]}]", message["value"]))
    if any("<region" in text for text in texts):
        return None
    return list(zip(texts[::2], texts[1::2], strict=False)), tuple(dict.fromkeys(ids))


def _described(descriptions: Sequence[str]) -> tuple[list[tuple[str, str]], tuple[int, ...]] | None:
    """Each region's number in brackets with its description, and the numbers in order; None where one does not tell which region it is about."""
    pairs, ids = [], []
    for text in descriptions:
        found = _DESCRIPTION.match(text.strip())
        if found is None or len(_ANY_DESCRIBED.findall(text)) != 1:
            return None
        pairs.append((f"[{found[1]}]", found[2]))
        ids.append(int(found[1]))
    return pairs, tuple(dict.fromkeys(ids))


LOADERS: dict[str, Loader] = {
    "osprey_conversation": partial(_load, "osprey_conversation", "osprey_conversation.json", "osprey/coco/train2014"),
    "osprey_detail_description": partial(_load, "osprey_detail_description", "osprey_detail_description.json", "osprey/coco/train2014"),
    "osprey_pos_neg": partial(_load, "osprey_pos_neg", "osprey_lvis_positive_negative.json", "osprey/coco/imgs"),
}
