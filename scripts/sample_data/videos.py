"""Small data sets of Ref-SAV, GroundMoRe and ViCaS. The words of a sample name the colours of its discs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from .discs import COLOURS, draw_discs, run_length, write_folder, write_json, write_photo, write_video

STRIDE = 4
"""The distance of SA-V's frames with masks."""


def write_ref_sav(root: Path) -> None:
    """Write a video file, its masks on every fourth frame, and a description of each disc."""
    frames, masks = draw_discs(41, 2, start=0)
    write_video(root / "sav/sav_train/sav_000/sav_000001.mp4", frames, rate=24)
    masklet = [[run_length(masks[disc, f]) for disc in range(2)] for f in range(0, len(frames), STRIDE)]
    write_json(root / "sav/sav_train/sav_000/sav_000001_manual.json", {"masklet": masklet})
    objects = {str(d): {"video_id": "sav_000001", "obj_id": d, "formated": f"A disc, {COLOURS[d]}, moves to the right. "} for d in range(2)}
    paths = {key: f"data/sav_train/sav_000/sav_000001{end}" for key, end in (("video_path", ".mp4"), ("anno_path", "_manual.json"))}
    write_json(root / "ref_sav/Ref-SAV-Min-Ratio-0.3.json", {"sav_000001": {**paths, "objects": objects}})


def write_groundmore(root: Path) -> None:
    """Write frames of which every second has a label image; one video of the list is missing."""
    videos = {}
    for number, name in enumerate(("clip_a", "clip_b", "gone")):
        questions = {
            "0": {"question": "Which disc is red", "answer": "The red one", "obj_id": "1", "q_type": "causal"},
            "1": {"question": "Where are red and blue? ", "answer": "At the rim", "obj_id": "1, 3", "q_type": "descriptive"},
        }
        videos[name] = {"questions": questions}
        if name != "gone":
            frames, masks = draw_discs(24, 3, start=number)
            write_folder(root / f"groundmore/annotations/{name}/images", frames, "frame_{}.jpg")
            labels = (np.arange(1, 4).reshape(3, 1, 1, 1) * masks).max(axis=0).astype(np.uint8)
            for f in range(0, len(frames), 2):
                write_photo(root / f"groundmore/annotations/{name}/masks/frame_{f}.png", Image.fromarray(labels[f]))
    for file in ("trainval_v2", "test_v2"):
        write_json(root / f"groundmore/{file}.json", {"videos": videos})


def write_vicas(root: Path) -> None:
    """Write one file of annotations, and a file of masks for each phrase; the masks have half the size of the frames."""
    content = {}
    for number in (1, 2):
        video = f"{number:06d}"
        frames, masks = draw_discs(8, 3, start=number)
        frames = [f.resize((192, 128), Image.Resampling.NEAREST) for f in frames]
        write_folder(root / "vicas/video_frames" / video, frames)
        phrases = (("the red disc", [0]), ("green and blue", [1, 2]))
        steps = [{"filename": f"{f:05d}.jpg"} for f in range(8)]
        referrals = [{"prompt": text, "track_ids": [t + 1 for t in ids]} for text, ids in phrases]
        content[video] = {"filename": f"{video}.mp4", "segmentations": steps, "object_referrals": referrals}
        for i, (_, ids) in enumerate(phrases):
            write_json(root / f"vicas/masks/{video}/{i}.json", [[run_length(masks[t, f]) for t in ids] + [None] for f in range(8)])
    write_json(root / "vicas/annotations/annotations_wo_masks_v1.0.json", content)
    for split, numbers in {"train": [1, 2], "val": [2], "test": [2]}.items():
        write_json(root / f"vicas/splits/v1.0/{split}.json", numbers)


WRITERS: dict[str, Callable[[Path], None]] = {"ref_sav": write_ref_sav, "groundmore": write_groundmore, "vicas": write_vicas}
