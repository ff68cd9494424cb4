"""GroundMoRe: questions about motion, answered by a word and a mask. Source: ``GroundMoReDataset`` in UniPixel's
``unipixel/dataset/sub_classes/segmentation.py``.

Each video has a folder with ``images/`` and, for some of the frames, label images in ``masks/``.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from unipixel_jax.data.annotation import Annotation, Turn
from unipixel_jax.data.files import list_files, read_json
from unipixel_jax.data.masks import LabelImages
from unipixel_jax.data.sources.base import Filters, Loader, choose_split
from unipixel_jax.data.sources.expressions import video_annotation
from unipixel_jax.errors import UserError

_LISTS = {"train": "groundmore/trainval_v2.json", "test": "groundmore/test_v2.json"}
_TEST_FRAMES = 20


def _load(root: Path, split: str, filters: Filters) -> list[Annotation]:
    found = []
    for video, meta in read_json(root / choose_split("groundmore", split, _LISTS))["videos"].items():
        folder = root / "groundmore/annotations" / video
        if not folder.is_dir():  # some videos are no longer to be had
            continue
        frames, masks = _masked_frames(folder) if split == "train" else _spread_frames(folder)
        if not frames:
            continue
        for number, item in meta["questions"].items():
            text = item["question"].strip()
            objects = tuple(int(o) for o in item["obj_id"].split(", "))
            turn = Turn("question", text if text.endswith("?") else f"{text}?", item["answer"], LabelImages(masks, (objects,)))
            found.append(video_annotation("groundmore", video, frames, turn, number))
    return found


def _masked_frames(folder: Path) -> tuple[list[str], tuple[str | None, ...]]:
    """The frames that have masks, on which training runs."""
    masks = sorted(list_files(folder / "masks", ".png"), key=_number)
    return [str(folder / "images" / f"{p.stem}.jpg") for p in masks], tuple(str(p) for p in masks)


def _spread_frames(folder: Path) -> tuple[list[str], tuple[str | None, ...]]:
    """Frames spread over the whole video, with or without masks, on which tests run."""
    frames = sorted(list_files(folder / "images", ".jpg"), key=_number)
    if not frames:
        raise UserError(f"{folder / 'images'} has no frames, expected JPEG files")
    chosen = [frames[i] for i in np.linspace(0, len(frames) - 1, num=_TEST_FRAMES, dtype=int)]
    masked = {p.stem for p in list_files(folder / "masks", ".png")}
    return [str(p) for p in chosen], tuple(str(folder / "masks" / f"{p.stem}.png") if p.stem in masked else None for p in chosen)


def _number(path: Path) -> int:
    digits = re.search(r"\d+", path.stem)
    if digits is None:
        raise UserError(f"{path} has no number in its name, by which frames are put in order")
    return int(digits[0])


LOADERS: dict[str, Loader] = {"groundmore": _load}
