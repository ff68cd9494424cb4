"""ReVOS: videos with expressions and questions, some of which nothing answers. Source: ``ReVOSDataset`` in UniPixel's
``unipixel/dataset/sub_classes/segmentation.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unipixel_jax.data.annotation import Annotation, Turn
from unipixel_jax.data.files import read_json
from unipixel_jax.data.masks import Tracks
from unipixel_jax.data.sources.base import Filters, Loader, choose_split
from unipixel_jax.data.sources.expressions import object_tracks, refuse_empty, video_annotation
from unipixel_jax.errors import UserError

LISTS = {"train": "revos/meta_expressions_train_.json", "valid": "revos/meta_expressions_valid_.json"}


def _load(root: Path, split: str, filters: Filters) -> list[Annotation]:
    videos = read_json(root / choose_split("revos", split, LISTS))["videos"]
    masks = read_json(root / "revos/mask_dict.json")
    found = []
    for video, meta in videos.items():
        frames = [str(root / "revos" / video / f"{n}.jpg") for n in meta["frames"]]
        is_long = split == "train" and video.split("/")[0] == "TAO"
        samples = []
        for number, item in meta["expressions"].items():
            name = f"revos {video} {number}"
            if len(item["obj_id"]) != len(item["anno_id"]):
                raise UserError(f"{name} has {len(item['obj_id'])} objects and {len(item['anno_id'])} masks, expected as many: the annotation is broken")
            if split == "train" and not item["obj_id"]:
                continue
            tracks = object_tracks(name, item["anno_id"], masks, len(frames))
            if split == "train":
                refuse_empty(name, tracks)
            samples.append((_objects(item) if is_long else "", number, item["exp"].strip(), tracks))
        if is_long:  # samples about the same objects stand together, as the reference groups them
            order = list(dict.fromkeys(key for key, *_ in samples))
            samples.sort(key=lambda sample: order.index(sample[0]))
        for _, number, text, tracks in samples:
            first, end = _visible(tracks.objects[0]) if is_long else (0, len(frames))
            if is_long and end - first < 2:
                continue
            turn = Turn("sentence" if text.endswith("?") else "query", text, masks=_cut(tracks, first, end))
            found.append(video_annotation("revos", video, frames[first:end], turn, number))
    return found


def _objects(item: dict[str, Any]) -> str:
    return "_".join(str(o) for o in sorted(item["obj_id"]))


def _visible(tracks: Sequence[Sequence[Any]]) -> tuple[int, int]:
    """The first frame with a mask, and the one past the last. Only TAO's videos are cut to this range, since they are too long."""
    seen = [i for i, regions in enumerate(zip(*tracks, strict=True)) if any(r is not None for r in regions)]
    return seen[0], seen[-1] + 1


def _cut(tracks: Tracks, first: int, end: int) -> Tracks:
    return Tracks((tuple(track[first:end] for track in tracks.objects[0]),))


LOADERS: dict[str, Loader] = {"revos": _load}
