"""VideoRefer-700K: captions of, and questions about, objects in videos, each marked on some frames.

Five sources read three files. The masks of record N lie in a file of their own, ``N.json``: for each object, for each listed frame, run lengths.
Source: the ``VideoRefer…`` classes in ``unipixel/dataset/sub_classes/{referring,region,memory}.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from unipixel_jax.data.annotation import Annotation, MaskReader, Turn, VideoFrames
from unipixel_jax.data.files import read_json
from unipixel_jax.data.masks import OnOneFrame, TrackFile
from unipixel_jax.data.sources.base import Filters, Loader, choose_split
from unipixel_jax.data.sources.marked import choose_stable, locate_turn, points_and_boxes, with_option
from unipixel_jax.errors import UserError
from unipixel_jax.processing.prompts import REGION
from unipixel_jax.processing.tokenizer import REF_TOKEN

FOLDER = "videorefer/VideoRefer-700K"
VIDEOS = f"{FOLDER}/videos"

_SHORT, _DETAILED, _QA = "short-caption-500k", "detailed-caption-125k", "qa-75k"
_MASKS = {_SHORT: "masks_short_caption", _DETAILED: "masks_detailed_caption", _QA: "masks_qa"}
_MOST_OBJECTS = 5
_FEWEST_MARKED = 0.3
_OBJECT = re.compile(r"<object(\d+)>")
_LISTED = re.compile(r"<object(\d+)><region>")


@dataclass(frozen=True)
class _Record:
    """One record of a file.

    Attributes:
        number: its place in the file, by which its masks are named.
        name: the record's name, for reports.
        question: the question without the token for the video; objects are written ``<region>``.
        answer: the answer, which may speak of objects as ``<object0>``.
        objects: how many objects are marked.
        ratio: the part of the frames that is marked; 0 where the file does not tell.
        video: the video, with the frames of it that count.
        masks: the masks of the objects.
    """

    number: int
    name: str
    question: str
    answer: str
    objects: int
    ratio: float
    video: VideoFrames
    masks: MaskReader


def _records(source: str, file: str, root: Path, split: str, single: bool) -> Iterator[_Record]:
    """The records of a file. Where ``single``, or where only one frame is marked, all frames of the video count, but only the marked one has masks."""
    path = root / FOLDER / f"videorefer-{choose_split(source, split, {'train': file})}-wo-masks.json"
    for number, raw in enumerate(read_json(path)):
        frames = tuple(sorted({int(frame) for marked in raw["annotation"] for frame in marked}))
        question, answer = _texts(raw, f"{path}: record {number}")
        masks: MaskReader = TrackFile(str(root / FOLDER / _MASKS[file] / f"{number}.json"))
        video = str(root / VIDEOS / raw["video"])
        if single or len(frames) == 1:
            only = frames[0] if frames else 0
            media, masks = VideoFrames(video, anchor=only), OnOneFrame(masks, only)
        else:
            media = VideoFrames(video, keep=frames)
        yield _Record(number, f"{source} {raw['id']}", question, answer, len(raw["annotation"]), raw.get("ratio", 0), media, masks)


def _texts(raw: Mapping[str, Any], name: str) -> tuple[str, str]:
    if len(raw["conversations"]) != 2:
        raise UserError(f"{name} has {len(raw['conversations'])} messages, expected a question and an answer")
    question, answer = (message["value"].strip() for message in raw["conversations"])
    text = question.removeprefix("<video>\n").removesuffix("\n<video>").strip()
    if text == question or "<video>" in text:
        raise UserError(f"{name} asks {question[:60]!r}, expected <video> once, on a first or last line of its own")
    if text.count(REGION) != len(raw["annotation"]):
        raise UserError(f"{name} has {text.count(REGION)} {REGION} for {len(raw['annotation'])} marked objects, expected one each: {text[:60]!r}")
    return text, answer


def _referring(source: str, root: Path, split: str, filters: Filters) -> list[Annotation]:
    out = []
    for record in _records(source, _SHORT, root, split, single=True):
        if record.objects != 1:
            raise UserError(f"{record.name} has {record.objects} marked objects, expected one")
        turn = Turn("qa", record.question.replace(REGION, REF_TOKEN), record.answer, record.masks)
        out.append(Annotation(source, "ref_{}", "referring", record.video, (turn,), record.name))
    return points_and_boxes(out)


def _region(source: str, file: str, root: Path, split: str, filters: Filters) -> list[Annotation]:
    out = []
    for record in _usable(_records(source, file, root, split, single=file == _SHORT)):
        if not filters.allow(words=len(record.question.split(" ")) + len(record.answer.split(" "))):
            continue
        question, answer, ids = record.question, record.answer, tuple(map(int, _LISTED.findall(record.question)))
        if ids:  # a first line lists them
            question, answer = _numbered(question.partition("\n")[2]), _numbered(answer)
        if len(ids) != (0 if REGION in question else record.objects) or question.count(REGION) > 1 or not question:
            raise UserError(_unclear(record))
        out.append(Annotation(source, "region_video", "region", record.video, (Turn("qa", question, answer, record.masks, ids),), record.name))
    return out


def _memory(source: str, root: Path, split: str, filters: Filters) -> list[Annotation]:
    out = []
    for record in _usable(_records(source, _QA, root, split, single=False)):
        if record.video.keep is None:
            continue
        text = with_option(record.question, record.answer, record.name)
        ids = tuple(map(int, _LISTED.findall(text)))
        if ids:
            text = _numbered(_LISTED.sub(rf"[\1] {REF_TOKEN}", text))
        else:
            ids = (choose_stable(range(16), record.name),)
            text = text.replace(REGION, f"[{ids[0]}] {REF_TOKEN}")
        if REGION in text or len(ids) != record.objects:
            raise UserError(_unclear(record))
        out.append(Annotation(source, "mem_{}_video", "memory", record.video, (locate_turn(text, ids, record.masks),), record.name))
    return points_and_boxes(out)


def _usable(records: Iterator[_Record]) -> Iterator[_Record]:
    """The records with one to five objects, marked on enough frames."""
    return (r for r in records if 1 <= r.objects <= _MOST_OBJECTS and r.ratio >= _FEWEST_MARKED)


def _unclear(record: _Record) -> str:
    return f"{record.name}: {record.objects} objects in {record.question[:80]!r}, expected <region> once, or <object0><region> and so on, in a first line"


def _numbered(text: str) -> str:
    return _OBJECT.sub(r"[\1]", text)


LOADERS: dict[str, Loader] = {
    "videorefer_short_caption_ref": partial(_referring, "videorefer_short_caption_ref"),
    "videorefer_short_caption": partial(_region, "videorefer_short_caption", _SHORT),
    "videorefer_detailed_caption": partial(_region, "videorefer_detailed_caption", _DETAILED),
    "videorefer_qa": partial(_region, "videorefer_qa", _QA),
    "videorefer_qa_mem": partial(_memory, "videorefer_qa_mem"),
}
