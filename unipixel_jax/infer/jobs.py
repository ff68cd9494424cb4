"""Lists of jobs, and files of results that are complete up to any moment at which the process is killed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from unipixel_jax.core.files import drop_half_line, require_regular_file, whole_lines
from unipixel_jax.errors import UserError
from unipixel_jax.infer.job_source import Job, Outcome
from unipixel_jax.processing.media import natural_order
from unipixel_jax.processing.prompts import Box, Point, Reference, require_words

MAX_LINE = 1 << 20
"""The longest line of a list or of a file of prompts, in bytes."""
_KEYS = ("media", "prompt", "id", "sample_frames", "references")


def read_list(path: Path, sample_frames: int) -> list[Job]:
    """Read a list of jobs, JSON Lines with an object in each line.

    Keys: ``media``, a path, if relative then from the folder of the list; ``prompt``; and if wanted ``id`` (default: the number of the line),
    ``sample_frames``, and ``references``, a list of points [x, y] or [x, y, frame] and boxes [x0, y0, x1, y1] or [x0, y0, x1, y1, frame] in pixels.

    Args:
        path: the list.
        sample_frames: frames of a clip at most, where a line has no number of its own.

    Raises:
        UserError: the file cannot be read, is empty, or a line is no job; the message has the number of the line.
    """
    jobs: list[Job] = []
    lines: dict[str, int] = {}
    for number, line in _lines(path):
        try:
            job = _job(line, str(number), path.parent, sample_frames)
            if job.id in lines:
                raise UserError(f"the id {job.id!r} is that of line {lines[job.id]} too: give every job another")
        except (ValueError, OverflowError, RecursionError) as error:  # a UserError is a ValueError, and so is what is no JSON
            raise UserError(f"{path}, line {number}: {_reason(error)}") from None
        lines[job.id] = number
        jobs.append(job)
    if not jobs:
        raise UserError(f"{path} holds no job: expected lines such as {_EXAMPLE}")
    return jobs


def read_product(folder: Path, prompts: Path, sample_frames: int) -> list[Job]:
    """Make a job of each file in a folder, in natural order, with each line of a file of prompts. Hidden files and folders are left out.

    Raises:
        UserError: there are no files or no prompts, or a file of prompts that cannot be read.
    """
    asked = [(number, line.decode()) for number, line in _lines(prompts)]
    files = sorted((path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")), key=natural_order)
    if not asked or not files:
        raise UserError(f"{prompts} holds no prompt: expected one in each line" if files else f"{folder} holds no files: expected photos or videos")
    return [Job(path, prompt, (), f"{path.name}#{number}", sample_frames) for path in files for number, prompt in asked]


class Results:
    """The files ``results.jsonl`` and ``failures.jsonl`` of a folder, to which a line is added for each job when its outcome is there.

    Args:
        folder: the folder, which is made if it does not exist.
        resume: keep what is there, and leave out the jobs that it answers; jobs that failed run again.
        share: number of this process and number of all, each of which has files of its own, such as ``results-0.jsonl``.

    Raises:
        UserError: there are results and ``resume`` is not set, or a file cannot be read or written.
    """

    def __init__(self, folder: Path, resume: bool, share: tuple[int, int]) -> None:
        ending = "" if share[1] == 1 else f"-{share[0]}"
        self.answered, self.failed = 0, 0
        self.results, self.failures = folder / f"results{ending}.jsonl", folder / f"failures{ending}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        if self.results.exists() and not resume:
            raise UserError(f"{self.results} exists: give --resume to go on with it, or another --out")
        self._known = _known(folder) if resume else {}
        self._files: list[BinaryIO] = []

    def __enter__(self) -> Results:
        if self.results.exists():
            drop_half_line(self.results)
        self._files = [open(self.results, "ab"), open(self.failures, "wb")]
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def left(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the jobs that have no result yet.

        Raises:
            UserError: a result under the id of a job is that of another job.
        """
        for job in jobs:
            if self._known.get(job.id, _asked(job)) != _asked(job):
                raise UserError(f"{self.results.parent} has a result of another job with the id {job.id!r}: choose another --out")
        return [job for job in jobs if job.id not in self._known]

    def add(self, outcome: Outcome) -> None:
        """Write the outcome of a job as a line of one of the files."""
        if outcome.prediction is None:
            self.failed += 1
            return self._write(self._files[1], {**_named(outcome.job), "reason": outcome.reason})
        self.answered += 1
        return self._write(self._files[0], {**_named(outcome.job), **outcome.prediction.to_json()})

    def _write(self, file: BinaryIO, entry: Mapping[str, Any]) -> None:
        file.write(json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        file.flush()


_EXAMPLE = '{"media": "photo.jpg", "prompt": "Please segment the dog."}'


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not empty, with their numbers from 1.

    Raises:
        UserError: the file cannot be read, or a line is too long or not UTF-8.
    """
    require_regular_file(path, "expected a text file")
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if len(line) > MAX_LINE:
                raise UserError(f"{path}, line {number}: it has more than {MAX_LINE:,} bytes, expected one job or prompt in each line")
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, line {number}: it is not UTF-8 (at byte {error.start + 1}): write it in UTF-8") from None
            if line.strip():
                yield number, line.strip()


def _job(line: bytes, number: str, folder: Path, sample_frames: int) -> Job:
    entry = json.loads(line)
    if not isinstance(entry, dict):
        raise UserError(f"it holds a {type(entry).__name__}, expected a JSON object such as {_EXAMPLE}")
    if unknown := sorted(entry.keys() - set(_KEYS)):
        raise UserError(f"the key {unknown[0]!r} is unknown: expected {', '.join(_KEYS)}")
    for key in ("media", "prompt"):
        if not isinstance(entry.get(key), str):
            raise UserError(f"{key!r} is {_shown(entry.get(key)) if key in entry else 'missing'}, expected a text, as in {_EXAMPLE}")
    require_words(entry["prompt"])
    name, frames = entry.get("id", number), entry.get("sample_frames", sample_frames)
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise UserError(f"'id' is {_shown(name)}, expected a text or a whole number")
    if type(frames) is not int or frames < 1:
        raise UserError(f"'sample_frames' is {_shown(frames)}, expected a whole number from 1 on")
    references = entry.get("references", [])
    if not isinstance(references, list):
        raise UserError(f"'references' is {_shown(references)}, expected a list of points and boxes")
    return Job(folder / entry["media"], entry["prompt"], tuple(map(_reference, references)), str(name), frames)


def _reference(values: Any) -> Reference:
    sound = isinstance(values, list) and 2 <= len(values) <= 5 and all(type(value) in (int, float) and math.isfinite(value) for value in values)
    frame = values[-1] if sound and len(values) in (3, 5) else 0
    if not sound or int(frame) != frame:
        raise UserError(f"the reference {_shown(values)} is none: expected [x, y] or [x0, y0, x1, y1], and the whole number of a frame if you like")
    x, y, *corner = values[:2] if len(values) < 4 else values[:4]
    return Box(x, y, corner[0], corner[1], int(frame)) if corner else Point(x, y, int(frame))


def _known(folder: Path) -> dict[str, tuple[str, str]]:
    """What the results in a folder answer: media and prompt by the job's id. A line that was not written to its end counts for nothing."""
    known = {}
    for path in folder.glob("results*.jsonl"):
        for number, line in whole_lines(path):
            try:
                entry = json.loads(line)
                known[entry["id"]] = (entry["media"], entry["prompt"])
            except (ValueError, KeyError, TypeError, RecursionError):
                raise UserError(f"{path}, line {number}: it is no result: choose another --out, or remove the line") from None
    return known


def _named(job: Job) -> dict[str, str]:
    media, prompt = _asked(job)
    return {"id": job.id, "media": media, "prompt": prompt}


def _asked(job: Job) -> tuple[str, str]:
    return str(job.media), job.prompt


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON ({error.msg} at character {error.pos + 1}): expected an object such as {_EXAMPLE}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
