"""Small data sets of videos with expressions: ReVOS, MeViS, LV-VIS, Ref-YouTube-VOS, Ref-DAVIS17. The words of a sample name the colours of its discs."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .discs import COLOURS, draw_discs, run_length, write_folder, write_json

LENGTH = 10

Track = list[dict[str, Any] | None]


def hide(frames: list[Image.Image], masks: NDArray[np.bool_], disc: int, gone: range) -> list[Image.Image]:
    """Return the frames without one of the discs on some of them; its masks [O, F, H, W] are emptied there in place."""
    pixels = [np.array(frame) for frame in frames]
    for f in gone:
        pixels[f][masks[disc, f]] = 128
        masks[disc, f] = False
    return [Image.fromarray(p) for p in pixels]


def tracks(masks: NDArray[np.bool_]) -> list[Track]:
    """Return the run lengths of masks [O, F, H, W] bool, for each disc and frame; None where a disc is hidden."""
    return [[run_length(mask) if mask.any() else None for mask in disc] for disc in masks]


def write_revos(root: Path) -> None:
    """Write a clip, a clip of one frame, and one of TAO whose discs come late and leave early, so that the source cuts it."""
    videos, masks = {}, {}
    for number, (name, length) in enumerate({"MOSE/clip": LENGTH, "UVO/still": 1, "TAO/long": 3 * LENGTH}.items()):
        frames, discs = draw_discs(length, 3, start=number)
        if length > LENGTH:
            for disc, last in ((0, 25), (1, 20), (2, 6)):
                frames = hide(hide(frames, discs, disc, range(5)), discs, disc, range(last, length))
        write_folder(root / "revos" / name, frames)
        masks |= {str(10 * number + disc): track for disc, track in enumerate(tracks(discs))}
        asked = [
            ("The red disc.", [0]),
            ("Which disc is green?", [1]),
            ("the blue disc", [2]),
            ("red and green", [1, 0]),
            ("a purple square", []),
            ("A green disc", [1]),
        ]
        expressions = {str(i): {"exp": text, "obj_id": ids, "anno_id": [10 * number + d for d in ids]} for i, (text, ids) in enumerate(asked)}
        videos[name] = {"frames": [f"{f:05d}" for f in range(length)], "expressions": expressions}
    for split in ("train", "valid"):
        write_json(root / f"revos/meta_expressions_{split}_.json", {"videos": videos})
    write_json(root / "revos/mask_dict.json", masks)


def write_mevis(root: Path) -> None:
    """Write MeViS's three splits, of which only two have masks."""
    for split in ("train", "valid_u", "valid"):
        videos, masks = _clips(root / f"mevis/{split}/JPEGImages", empty=split == "train")
        write_json(root / f"mevis/{split}/meta_expressions.json", {"videos": videos})
        if split != "valid":
            write_json(root / f"mevis/{split}/mask_dict.json", masks)


def write_lvvis(root: Path) -> None:
    """Write clips whose expressions are names of classes, with underscores instead of spaces."""
    videos, masks = _clips(root / "lvvis/train/JPEGImages", empty=True, space="_")
    write_json(root / "lvvis/meta_expressions.json", {"videos": videos})
    write_json(root / "lvvis/mask_dict.json", masks)


def write_ref_youtube_vos(root: Path) -> None:
    """Write clips whose masks are numbered through all expressions."""
    videos, masks = _clips(root / "ref_youtube_vos/train/JPEGImages")
    _clips(root / "ref_youtube_vos/valid/JPEGImages")
    for split in ("train", "valid"):
        write_json(root / f"ref_youtube_vos/meta_expressions/{split}/meta_expressions.json", {"videos": _bare(videos)})
    _write_counted(root / "ref_youtube_vos/mask_dict.pkl", videos, masks)


def write_ref_davis17(root: Path) -> None:
    """Write clips whose masks are numbered through all expressions, in both splits."""
    videos, masks = _clips(root / "ref_davis17/DAVIS/JPEGImages/480p")
    for split in ("train", "valid"):
        write_json(root / f"ref_davis17/meta_expressions/{split}/meta_expressions.json", {"videos": _bare(videos)})
        _write_counted(root / f"ref_davis17/{split}/mask_dict.pkl", videos, masks)


def _clips(folder: Path, empty: bool = False, space: str = " ") -> tuple[dict[str, Any], dict[str, Track]]:
    """Write two clips of two discs, the red one of which is hidden at the start; return their annotations and masks."""
    videos, masks = {}, {}
    for number, name in enumerate(("first", "second")):
        frames, discs = draw_discs(LENGTH, 2, start=2 * number)
        frames = hide(frames, discs, 0, range(3))
        write_folder(folder / name, frames)
        masks |= {str(5 * number + disc): track for disc, track in enumerate(tracks(discs))}
        expressions = {str(d): {"exp": f"{COLOURS[d]}{space}disc ", "obj_id": [d], "anno_id": [5 * number + d]} for d in range(2)}
        if empty:
            expressions["2"] = {"exp": "a purple square", "obj_id": [], "anno_id": []}
            expressions["3"] = {"exp": f"red{space}and{space}green", "obj_id": [0, 1], "anno_id": [5 * number, 5 * number + 1]}
        videos[name] = {"frames": [f"{f:05d}" for f in range(LENGTH)], "expressions": expressions}
    return videos, masks


def _bare(videos: dict[str, Any]) -> dict[str, Any]:
    """Return the annotations of videos with expressions that do not name their masks."""
    return {name: meta | {"expressions": {n: {"exp": e["exp"]} for n, e in meta["expressions"].items()}} for name, meta in videos.items()}


def _write_counted(path: Path, videos: dict[str, Any], masks: dict[str, Track]) -> None:
    found = [masks[str(e["anno_id"][0])] for meta in videos.values() for e in meta["expressions"].values()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({str(i): track for i, track in enumerate(found)}))


WRITERS: dict[str, Callable[[Path], None]] = {
    "revos": write_revos,
    "mevis": write_mevis,
    "lvvis": write_lvvis,
    "ref_youtube_vos": write_ref_youtube_vos,
    "ref_davis17": write_ref_davis17,
}
