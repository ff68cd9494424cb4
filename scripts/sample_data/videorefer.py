"""A small VideoRefer-700K: three files of records with their masks, and videos as MP4 and as folders of frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .discs import COLOURS, draw_discs, run_length, write_folder, write_json, write_video

FRAMES = 24


def write_videorefer(root: Path) -> None:
    """Write all three files, and two videos."""
    folder = root / "videorefer/VideoRefer-700K"
    frames, masks = draw_discs(FRAMES, 4)
    write_video(folder / "videos/panda/clip_a.mp4", frames)
    write_folder(folder / "videos/ytb_vos/clip_b", frames)
    videos = ("panda/clip_a.mp4", "ytb_vos/clip_b")

    def write(file: str, masks_folder: str, records: list[tuple[dict[str, Any], list[int], list[list[int]]]]) -> None:
        """Write records, given their objects and the frames on which each object is marked; where only others are marked, an object's mask is null."""
        content = []
        for number, (record, objects, marked) in enumerate(records):
            listed = sorted({f for own in marked for f in own})
            regions = [[[run_length(masks[o, f])] if f in own else [None] for f in listed] for o, own in zip(objects, marked, strict=True)]
            write_json(folder / masks_folder / f"{number}.json", regions)
            content.append({"id": f"{file}_{number}", "video": videos[number % 2], "annotation": [{str(f): None for f in own} for own in marked], **record})
        write_json(folder / f"videorefer-{file}-wo-masks.json", content)

    write("short-caption-500k", "masks_short_caption", [(_short(o), [o], [[5 * o + 2]]) for o in range(4)])
    every = np.arange(0, FRAMES, 2).tolist()
    detailed = [(_talk("<video>\nDescribe <region> at length.", f"A {COLOURS[o]} disc moves to the right."), [o], [every[o:]]) for o in range(3)]
    few = _talk("<video>\nDescribe <region>.", "Marked too seldom.") | {"ratio": 0.1}
    write("detailed-caption-125k", "masks_detailed_caption", [*detailed, (few, [0], [every]), (_talk("<video>\nWhat is <region>?", "A disc."), [1], [[7]])])
    questions = [
        (_talk("What moves at <region>?\n<video>", "A red disc."), [0], [every]),
        (_two("Is <object0> above <object1>?", "Yes, <object0> is above <object1>."), [0, 1], [every, every[3:]]),
        (_two("Where does <object1> go?", "To the right."), [2, 3], [[4], [4]]),
        (_talk("<video>\nWhat is <region>?", "A blue disc."), [2], [every[:4]]),
    ]
    write("qa-75k", "masks_qa", questions)


def _talk(question: str, answer: str) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], "ratio": 0.9}


def _short(colour: int) -> dict[str, Any]:
    return _talk(f"<video>\nWhat is <region>, seen {colour} times before?", f"A {COLOURS[colour]} disc.")


def _two(question: str, answer: str) -> dict[str, Any]:
    return _talk(f"<video>\nThere are two objects: <object0><region>, <object1><region>.\n{question}", answer)


WRITERS: dict[str, Callable[[Path], None]] = dict.fromkeys(
    (
        "videorefer_short_caption_ref",
        "videorefer_short_caption",
        "videorefer_detailed_caption",
        "videorefer_qa",
        "videorefer_qa_mem",
    ),
    write_videorefer,
)
