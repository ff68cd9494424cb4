"""Inst-IT: captions of numbered objects in photos, and questions about numbered objects in clips.

Source: the ``InstIT…`` classes in ``unipixel/dataset/sub_classes/{referring,region,memory}.py``. Its repairs of numbers are kept. Where it lists the
objects of a question in the arbitrary order of a set, so that a ``<|ref|>`` may get another object's point, they come here in the order of mention.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unipixel_jax.data.annotation import Annotation, FrameFiles, Turn
from unipixel_jax.data.files import read_json
from unipixel_jax.data.masks import Tracks
from unipixel_jax.data.sources.base import Filters, Loader, choose_split
from unipixel_jax.data.sources.marked import locate_turn, points_and_boxes, with_option
from unipixel_jax.errors import UserError
from unipixel_jax.processing.media import list_frames
from unipixel_jax.processing.tokenizer import REF_TOKEN

FOLDER = "inst_it/Inst-IT-Dataset"
PHOTOS = f"{FOLDER}/images_raw"
CLIPS = f"{FOLDER}/videos_raw"
PHOTO_ANNOTATIONS = f"{FOLDER}/inst_it_dataset_image_51k_w_mask.json"
CLIP_ANNOTATIONS = f"{FOLDER}/inst_it_dataset_video_21k_w_mask.json"

_CAPTIONS, _QA, _MEMORY = "inst_it_image_short_caption_raw_ref", "inst_it_video_qa_raw", "inst_it_video_qa_raw_mem"
_MOST_OBJECTS = 5
_MOST_FRAMES, _MOST_FRAMES_MEMORY = 10, 8
_MENTION = re.compile(r"\[(\d+)\]")


def _captions(root: Path, split: str, filters: Filters) -> list[Annotation]:
    out = []
    for raw in read_json(root / choose_split(_CAPTIONS, split, {"train": PHOTO_ANNOTATIONS})):
        media = FrameFiles((str(root / PHOTOS / _below(raw["image_path"])),))
        for number, caption in raw["instance_level_caption"].items():
            turn = Turn("caption", "", caption["short"], Tracks((((raw["segmentations"][number]["mask"],),),)))
            out.append(Annotation(_CAPTIONS, "ref_{}", "referring", media, (turn,), f"{_CAPTIONS} {raw['image_id']}_{number}"))
    return points_and_boxes(out)


def _questions(root: Path, split: str, filters: Filters) -> list[Annotation]:
    out = []
    for raw, files in _clips(root, split, _QA, _MOST_FRAMES):
        found = []
        for number, pair in enumerate(raw["question_answer_pairs"]):
            question, answer, name = _repaired(pair["question"]), _repaired(pair["answer"]), f"{_QA} {raw['video_id']}_{number}"
            if ids := _mentions(f"{question} {answer}", name):
                found.append((question, answer, ids, name))
        # the reference counts the objects of all questions of a clip
        if len({i for _, _, ids, _ in found for i in ids}) > _MOST_OBJECTS:
            continue
        for question, answer, ids, name in found:
            if filters.allow(words=len(question.split(" ")) + len(answer.split(" "))):
                turn = Turn("clip_qa", question, answer, _masks(raw, files, ids), ids)
                out.append(Annotation(_QA, "region_video", "region", FrameFiles(files, take_all=True), (turn,), name))
    return out


def _memories(root: Path, split: str, filters: Filters) -> list[Annotation]:
    out = []
    for raw, files in _clips(root, split, _MEMORY, _MOST_FRAMES_MEMORY):
        for number, pair in enumerate(raw["question_answer_pairs"]):
            name = f"{_MEMORY} {raw['video_id']}_{number}"
            text = _repaired(with_option(pair["question"], pair["answer"], name))
            ids = _mentions(text, name)
            if not 1 <= len(ids) <= _MOST_OBJECTS:
                continue
            for i in ids:
                text = text.replace(f"[{i}]", f"[{i}] {REF_TOKEN}", 1)
            data_type = "mem_{}_video" if len(files) > 1 else "mem_{}_image"
            turn = locate_turn(text, ids, _masks(raw, files, ids))
            out.append(Annotation(_MEMORY, data_type, "memory", FrameFiles(files, take_all=True), (turn,), name))
    return points_and_boxes(out)


def _clips(root: Path, split: str, source: str, most_frames: int) -> Iterator[tuple[Mapping[str, Any], tuple[str, ...]]]:
    """Each record of the file of clips, with its frames, where they are few enough."""
    for raw in read_json(root / choose_split(source, split, {"train": CLIP_ANNOTATIONS})):
        folder = root / CLIPS / _below(raw["video_path"])
        if not folder.is_dir():
            raise UserError(f"{folder} is missing: put the frames of the clip {raw['video_id']} there")
        files = tuple(map(str, list_frames(folder)))
        if len(files) <= most_frames:
            yield raw, files


def _masks(raw: Mapping[str, Any], files: Sequence[str], ids: Sequence[int]) -> Tracks:
    marked = [raw["segmentations"].get(Path(file).name, {}) for file in files]
    return Tracks(tuple((tuple(frame[str(i)]["mask"] if str(i) in frame else None for frame in marked),) for i in ids))


def _repaired(text: str) -> str:
    """The text with its first frame numbered 1, and with objects written without leading zeros."""
    return re.sub(r"\[0([1-9])\]", r"[\1]", text.replace("<0>", "<1>"))


def _mentions(text: str, name: str) -> tuple[int, ...]:
    """The numbers of the objects that a text mentions, in order."""
    found = dict.fromkeys(_MENTION.findall(text))
    if any(digits.startswith("0") for digits in found):
        raise UserError(f"{name} mentions the objects {', '.join(found)}, expected numbers from 1 without leading zeros")
    return tuple(map(int, found))


def _below(path: str) -> str:
    """A path of the file without its first folder."""
    return path.split("/", 1)[1]


LOADERS: dict[str, Loader] = {_CAPTIONS: _captions, _QA: _questions, _MEMORY: _memories}
