"""Ref-SAV: videos of SA-V with long descriptions of their objects. Source: ``RefSAVDataset`` in UniPixel's
``unipixel/dataset/sub_classes/segmentation.py``.

The videos have 24 frames a second and masks on every fourth.
"""

from __future__ import annotations

from pathlib import Path

from unipixel_jax.data.annotation import Annotation, Turn, VideoFrames
from unipixel_jax.data.files import read_json
from unipixel_jax.data.masks import Masklet
from unipixel_jax.data.sources.base import Filters, Loader, choose_split
from unipixel_jax.errors import UserError

_STRIDE = 4


def _load(root: Path, split: str, filters: Filters) -> list[Annotation]:
    listed = choose_split("ref_sav", split, {"train": root / "ref_sav/Ref-SAV-Min-Ratio-0.3.json"})
    found = []
    for video, meta in read_json(listed).items():
        # the paths begin with the name of a folder that is not there
        movie, masks = (meta[key].split("/", 1)[-1] for key in ("video_path", "anno_path"))
        if not movie.startswith("sav_train") or not masks.startswith("sav_train") or "manual" not in masks:
            raise UserError(f"{listed}: {video} names {movie} and {masks}, expected a video and manual masks of sav_train")
        for number, item in meta["objects"].items():
            name = f"ref_sav {video} {number}"
            if item["video_id"] != video or str(item["obj_id"]) != number:
                raise UserError(f"{name} is said to be object {item['obj_id']} of {item['video_id']}: the annotation is broken")
            turn = Turn("description", item["formated"].strip(), masks=Masklet(str(root / "sav" / masks), int(number)))
            media = VideoFrames(str(root / "sav" / movie), stride=_STRIDE)
            found.append(Annotation("ref_sav", "seg_video", "segmentation", media, (turn,), name))
    return found


LOADERS: dict[str, Loader] = {"ref_sav": _load}
