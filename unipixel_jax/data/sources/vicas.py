"""ViCaS: phrases for one or more objects of a video. Source: ``ViCaSDataset`` in UniPixel's ``unipixel/dataset/sub_classes/segmentation.py``.

The annotations are one file without masks, whose masks lie in files of their own, or a folder of that name with one file for each video, masks
included.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unipixel_jax.data.annotation import Annotation, MaskReader, Turn
from unipixel_jax.data.files import read_json
from unipixel_jax.data.masks import ObjectTrackFiles, Tracks
from unipixel_jax.data.sources.base import Filters, Loader, choose_split
from unipixel_jax.data.sources.expressions import refuse_empty, video_annotation
from unipixel_jax.errors import UserError

_SPLITS = {split: f"vicas/splits/v1.0/{split}.json" for split in ("train", "val", "test")}


def _load(root: Path, split: str, filters: Filters) -> list[Annotation]:
    numbers = [str(n).zfill(6) for n in read_json(root / choose_split("vicas", split, _SPLITS))]
    path = root / "vicas/annotations/annotations_wo_masks_v1.0.json"
    found = []
    for item in _from_folder(path, numbers) if path.is_dir() else _from_file(path, numbers):
        video, steps = item["filename"][:6], item["segmentations"]
        frames = [str(root / "vicas/video_frames" / video / s["filename"]) for s in steps]
        for i, referral in enumerate(item["object_referrals"]):
            masks: MaskReader | None = None
            if split == "train" and path.is_dir():
                masks = refuse_empty(f"vicas {video} {i}", Tracks((tuple(_track(steps, number) for number in referral["track_ids"]),)))
            elif split == "train":
                masks = ObjectTrackFiles((str(root / "vicas/masks" / video / f"{i}.json"),))
            found.append(video_annotation("vicas", video, frames, Turn("sentence", referral["prompt"].strip(), masks=masks), str(i)))
    return found


def _from_file(path: Path, numbers: list[str]) -> Iterator[dict[str, Any]]:
    content = read_json(path)
    for number in numbers:
        if number not in content:
            raise UserError(f"{path} has no video {number}, which the split names: the files are of different versions")
        yield content[number]


def _from_folder(path: Path, numbers: list[str]) -> Iterator[dict[str, Any]]:
    for number in numbers:
        yield read_json(path / f"{number}.json")


def _track(steps: list[dict[str, Any]], number: int) -> list[Any]:
    return [step["mask_rles"][step["track_ids"].index(number)] for step in steps]


LOADERS: dict[str, Loader] = {"vicas": _load}
