"""LLaVA-Instruct-665K with VideoGPT+ 576K: conversations about photos, about videos, and without media.

Source: ``unipixel/dataset/sub_classes/multimodal.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unipixel_jax.data.annotation import Annotation, Photo, Turn, VideoFrames
from unipixel_jax.data.files import read_json
from unipixel_jax.data.sources.base import Filters, Loader, choose_split
from unipixel_jax.errors import UserError

ANNOTATIONS = "general/llava_v1_5_mix665k_with_videogpt_plus_576k.json"
PHOTOS = "llava_instruct"
VIDEOS = "videogpt_plus"

_NAME = "llava_instruct_665k_videogpt_plus_576k"


def _load(root: Path, split: str, filters: Filters) -> list[Annotation]:
    path = root / choose_split(_NAME, split, {"train": ANNOTATIONS})
    out = []
    for number, raw in enumerate(read_json(path)):
        name = f"{_NAME} {raw.get('id', number)}"
        if "image" in raw and "video" in raw:
            raise UserError(f"{path}: record {number} has both an image and a video, expected one at most")
        if len(raw["conversations"]) < 2:
            raise UserError(f"{path}: record {number} has {len(raw['conversations'])} messages, expected a question and an answer at least")
        words = len(raw["conversations"][1]["value"].split(" "))
        if not filters.allow(words=words, seconds=raw.get("duration")):
            continue
        media: Photo | VideoFrames | None = None
        if "image" in raw:
            media = Photo(str(root / PHOTOS / raw["image"]))
        elif "video" in raw:
            media = VideoFrames(str(root / VIDEOS / raw["video"]))
        out.append(Annotation(_NAME, "multimodal" if media else "text", "multimodal", media, _turns(raw["conversations"]), name))
    return out


def _turns(messages: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """Questions with their answers. Where the speakers do not alternate, a turn lacks one of the two, and drawing it fails."""
    pairs: list[tuple[str, str]] = []
    for number, message in enumerate(messages):
        text = _without_media(message["value"]) if number == 0 else message["value"]
        if message["from"] == "human":
            pairs.append((text, ""))
        elif pairs and not pairs[-1][1]:
            pairs[-1] = (pairs[-1][0], text)
        else:
            pairs.append(("", text))
    return tuple(Turn("chat", question, answer) for question, answer in pairs)


def _without_media(text: str) -> str:
    """A first question without the sign for its media, which stands on a line of its own before or after it."""
    for sign in ("<image>", "<video>"):
        text = text.removeprefix(f"{sign}\n").removesuffix(f"\n{sign}")
    return text


LOADERS: dict[str, Loader] = {_NAME: _load}
