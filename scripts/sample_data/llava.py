"""A small LLaVA-Instruct-665K with VideoGPT+: conversations about photos, about videos, and without media."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .discs import draw_discs, write_json, write_photo, write_video


def write_llava(root: Path) -> None:
    """Write two records of each kind, and one in which two questions follow each other."""
    talks: list[tuple[dict[str, Any], tuple[str, ...]]] = []
    for number in range(2):
        frames, _ = draw_discs(30, 2, start=number)
        write_photo(root / f"llava_instruct/coco/train2017/{number:012}.jpg", frames[0])
        write_video(root / f"videogpt_plus/activitynet/v_{number}.mp4", frames)
        talks += [
            ({"image": f"coco/train2017/{number:012}.jpg"}, ("<image>\nHow many discs?", "Two.", "Which is on top?", "The red one.")),
            ({"video": f"activitynet/v_{number}.mp4", "duration": 3.0}, ("What moves?\n<video>", "Two discs move to the right.")),
            ({}, ("Name a colour.", "Red.", "Another?", "Green.")),
        ]
    records = [
        {"id": f"talk_{i}", **media, "conversations": [{"from": "gpt" if j % 2 else "human", "value": text} for j, text in enumerate(texts)]}
        for i, (media, texts) in enumerate(talks)
    ]
    records.append({"id": "broken", "conversations": [{"from": "human", "value": text} for text in ("Hello?", "Anyone?")]})
    write_json(root / "general/llava_v1_5_mix665k_with_videogpt_plus_576k.json", records)


WRITERS: dict[str, Callable[[Path], None]] = {"llava_instruct_665k_videogpt_plus_576k": write_llava}
