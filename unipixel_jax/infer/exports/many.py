"""The results of many jobs in the formats of other tools: one folder for all photos and clips.

O objects, F frames of a clip, H height, W width.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unipixel_jax.core.files import whole_lines
from unipixel_jax.errors import UserError
from unipixel_jax.infer.exports.base import Export, class_name
from unipixel_jax.infer.job_source import Job
from unipixel_jax.infer.prediction import FrameResult
from unipixel_jax.processing.frames import Frame, open_frames
from unipixel_jax.processing.rle import decode_mask

_LONGEST_NAME = 200
"""The most bytes of a picture's name, to which formats add suffixes; file systems take 255."""


def export_results(folder: Path, jobs: Sequence[Job], exports: Sequence[Export], *, upright: bool = True) -> int:
    """Write the photos and the clips' frames that jobs have asked about, with the objects that all their answers found.

    A class is what a prompt asks for, and the objects of a picture come in the order of its prompts. What has no result is left out, and a photo in which
    nothing was found is written without objects.

    Args:
        folder: the folder of the results.
        jobs: the jobs, whose media are paths; pictures come in their order.
        exports: what is filled.
        upright: see ``read_media``.

    Returns:
        The number of pictures.

    Raises:
        UserError: there are no results, a line is none, or a photo or clip cannot be read or has changed.
    """
    order = {prompt: place for place, prompt in enumerate(dict.fromkeys(job.prompt for job in jobs))}
    names = list(dict.fromkeys(class_name(job.prompt) for job in jobs))
    classes = {name: number for number, name in enumerate(names, start=1)}
    answered = _lines_of(folder, {(str(job.media), job.prompt) for job in jobs})
    if not answered:
        raise UserError(f"{folder} holds no results of these jobs, and there is nothing to export: see its failures.jsonl")
    for export in exports:
        export.start({number: name for name, number in classes.items()}, tracked=False)
    count, used = 0, set[str]()
    for media in dict.fromkeys(str(job.media) for job in jobs):
        if media not in answered:
            continue
        found = [item for line in sorted(answered[media], key=lambda line: order[line.prompt]) for item in _objects(line, classes)]
        source = open_frames(media, upright=upright)
        name = _free_name(source.name, used)
        for frame in source:
            picture = name if source.is_image else f"{name}-{frame.number:06d}"
            for export in exports:
                export.add(_result(media, frame, found), picture, [item.kind for item in found])
            count += 1
    for export in exports:
        export.finish()
    return count


@dataclass(frozen=True)
class _Line:
    """Where a result stands: the file, the place of its line's first byte, and what was asked."""

    path: Path
    place: int
    prompt: str


@dataclass(frozen=True)
class _Found:
    """An object of a result: the number of its class, and by the frame's number its mask in run lengths, its score and its presence."""

    kind: int
    frames: Mapping[int, tuple[Mapping[str, Any], float, float]]


def _lines_of(folder: Path, wanted: set[tuple[str, str]]) -> dict[str, list[_Line]]:
    """The results of each photo or clip under a prompt that is asked for. Only their places are kept, since masks may be many."""
    found: dict[str, list[_Line]] = {}
    for path in sorted(folder.glob("results*.jsonl")):
        place = 0
        for number, line in whole_lines(path):
            try:
                entry = json.loads(line)
                asked = entry["media"], entry["prompt"]
            except (ValueError, KeyError, TypeError, RecursionError):
                raise UserError(f"{path}, line {number}: it is no result: remove the line") from None
            if asked in wanted:
                found.setdefault(asked[0], []).append(_Line(path, place, asked[1]))
            place += len(line)
    return found


def _objects(line: _Line, classes: Mapping[str, int]) -> Iterator[_Found]:
    with open(line.path, "rb") as file:
        file.seek(line.place)
        entry = json.loads(file.readline())
    try:
        for item in entry["objects"]:
            frames = zip(entry["frames"], zip(item["masks"], item["scores"], item["presence"], strict=True), strict=True)
            yield _Found(classes[class_name(line.prompt)], dict(frames))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{line.path}, the line at byte {line.place}: it is no result: remove it, and run the job again") from None


def _result(media: str, frame: Frame, found: Sequence[_Found]) -> FrameResult:
    size = frame.pixels.shape[:2]
    masks, scores, presence = np.zeros((len(found), *size), bool), np.zeros(len(found), np.float32), np.zeros(len(found), np.float32)
    for place, item in enumerate(found):
        if frame.number not in item.frames:
            continue
        runs, scores[place], presence[place] = item.frames[frame.number]
        mask = decode_mask(runs)
        if mask.shape != size:
            raise UserError(f"{media} has {size[1]}x{size[0]} pixels, and its result {mask.shape[1]}x{mask.shape[0]}: it was changed; run its job again")
        masks[place] = mask
    return FrameResult(frame.number, frame.seconds, frame.pixels, tuple(range(1, len(found) + 1)), masks, scores, presence)


def _free_name(name: str, used: set[str]) -> str:
    """A name for the files of a photo or clip that no other has, of letters, digits, spaces, dots, underscores and hyphens."""
    plain = re.sub(r"[^\w. -]", "_", name).strip(" .") or "picture"
    plain = plain.encode()[:_LONGEST_NAME].decode(errors="ignore")
    free = plain
    for number in range(2, len(used) + 3):
        if free.lower() not in used:
            break
        free = f"{plain}-{number}"
    used.add(free.lower())
    return free
