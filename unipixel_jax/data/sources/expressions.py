"""Videos with expressions that each name one or more objects, in MeViS's layout: mevis, lvvis, ref_youtube_vos, ref_davis17.

``meta_expressions.json`` lists for each video its frames and expressions; a second file holds run-length masks. Source: UniPixel's
``unipixel/dataset/sub_classes/segmentation.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from unipixel_jax.data.annotation import Annotation, FrameFiles, Turn
from unipixel_jax.data.files import read_json, read_pickle
from unipixel_jax.data.masks import Tracks
from unipixel_jax.data.sources.base import Filters, Loader, choose_split
from unipixel_jax.errors import UserError


def video_annotation(source: str, video: str, frames: Sequence[str], turn: Turn, number: str) -> Annotation:
    """One expression about one video whose frames are files; a single frame makes it a photo."""
    data_type = "seg_video" if len(frames) > 1 else "seg_image"
    return Annotation(source, data_type, "segmentation", FrameFiles(tuple(frames)), (turn,), f"{source} {video} {number}")


def object_tracks(name: str, numbers: Sequence[Any], masks: Mapping[str, Any], frames: int) -> Tracks:
    """The object that is made up of some annotated tracks.

    Args:
        name: the sample's name, for errors.
        numbers: the numbers of these tracks.
        masks: all tracks by number.
        frames: how many frames the video has.

    Raises:
        UserError: a track is missing or has another number of frames.
    """
    if missing := [n for n in numbers if str(n) not in masks]:
        raise UserError(f"{name}: masks {missing} are not in the file of masks: the files are of different versions")
    tracks = tuple(masks[str(n)] for n in numbers)
    if wrong := [len(t) for t in tracks if len(t) != frames]:
        raise UserError(f"{name} has masks for {wrong[0]} frames, expected {frames}, as its video has: the files are of different versions")
    return Tracks((tracks,))


def refuse_empty(name: str, masks: Tracks) -> Tracks:
    """Return the masks if the object is visible on any frame.

    Raises:
        UserError: it never is.
    """
    if all(region is None for tracks in masks.objects for track in tracks for region in track):
        raise UserError(f"{name} has no mask on any frame, expected one at least: the annotation is broken")
    return masks


def _load_numbered(source: str, splits: Mapping[str, tuple[str, str | None, str]], root: Path, split: str, filters: Filters) -> list[Annotation]:
    """Load MeViS or LV-VIS, whose expressions name their tracks. Expressions about no object are left out of training."""
    listed, masked, folder = choose_split(source, split, splits)
    masks = read_json(root / masked) if masked else None
    found = []
    for video, meta in read_json(root / listed)["videos"].items():
        frames = [str(root / folder / video / f"{n}.jpg") for n in meta["frames"]]
        for number, item in meta["expressions"].items():
            if split == "train" and not item["obj_id"]:
                continue
            name = f"{source} {video} {number}"
            text = item["exp"].replace("_", " ") if source == "lvvis" else item["exp"]
            tracks = refuse_empty(name, object_tracks(name, item["anno_id"], masks, len(frames))) if masks is not None else None
            found.append(video_annotation(source, video, frames, Turn("query", text.strip(), masks=tracks), number))
    return found


def _load_counted(source: str, splits: Mapping[str, tuple[str, str | None, str]], root: Path, split: str, filters: Filters) -> list[Annotation]:
    """Load Ref-YouTube-VOS or Ref-DAVIS17, whose masks are numbered by counting all expressions in order."""
    listed, masked, folder = choose_split(source, split, splits)
    videos = read_json(root / listed)["videos"]
    masks = read_pickle(root / masked) if masked else None
    count = sum(len(meta["expressions"]) for meta in videos.values())
    if masks is not None and len(masks) != count:
        raise UserError(f"{root / str(masked)} has masks for {len(masks)} expressions, expected {count}: the files are of different versions")
    found: list[Annotation] = []
    for video, meta in videos.items():
        frames = [str(root / folder / video / f"{n}.jpg") for n in meta["frames"]]
        for number, item in meta["expressions"].items():
            name = f"{source} {video} {number}"
            tracks = object_tracks(name, [len(found)], masks, len(frames)) if masks is not None else None
            if tracks and source == "ref_youtube_vos":  # five expressions of Ref-DAVIS17 have no mask at all
                refuse_empty(name, tracks)
            found.append(video_annotation(source, video, frames, Turn("query", item["exp"].strip(), masks=tracks), number))
    return found


MEVIS = {
    "train": ("mevis/train/meta_expressions.json", "mevis/train/mask_dict.json", "mevis/train/JPEGImages"),
    "valid": ("mevis/valid/meta_expressions.json", None, "mevis/valid/JPEGImages"),
    "valid_u": ("mevis/valid_u/meta_expressions.json", "mevis/valid_u/mask_dict.json", "mevis/valid_u/JPEGImages"),
}
_LVVIS = {"train": ("lvvis/meta_expressions.json", "lvvis/mask_dict.json", "lvvis/train/JPEGImages")}
YOUTUBE = {
    "train": ("ref_youtube_vos/meta_expressions/train/meta_expressions.json", "ref_youtube_vos/mask_dict.pkl", "ref_youtube_vos/train/JPEGImages"),
    "valid": ("ref_youtube_vos/meta_expressions/valid/meta_expressions.json", None, "ref_youtube_vos/valid/JPEGImages"),
}
DAVIS = {
    split: (f"ref_davis17/meta_expressions/{split}/meta_expressions.json", f"ref_davis17/{split}/mask_dict.pkl", "ref_davis17/DAVIS/JPEGImages/480p")
    for split in ("train", "valid")
}

LOADERS: dict[str, Loader] = {
    "mevis": partial(_load_numbered, "mevis", MEVIS),
    "lvvis": partial(_load_numbered, "lvvis", _LVVIS),
    "ref_youtube_vos": partial(_load_counted, "ref_youtube_vos", YOUTUBE),
    "ref_davis17": partial(_load_counted, "ref_davis17", DAVIS),
}
