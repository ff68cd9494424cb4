"""Scores of the benchmarks whose predictions are records in JSON: RefCOCO, RefCOCO+, RefCOCOg, ReasonSeg, VideoRefer-Bench, PixelQA, MVBench and Video-MME.

Sources: ``eval_refcoco.py``, ``eval_general.py`` and ``eval_pixelqa.py`` in UniPixel's ``unipixel/eval``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unipixel_jax.data.files import read_json
from unipixel_jax.errors import UserError
from unipixel_jax.eval.scores import SCORES, Scores, mean

IGNORED = (
    "ReasonSeg leaves the pixels of its 'ignore' polygons out, but in the reference these polygons are drawn as background (cv2 writes -1 into unsigned "
    "bytes as 0); here they are left out."
)
UNANSWERED = "The reference's scorer stops at an empty answer; here it counts as failed, so as wrong."


def read_records(predictions: Path, keys: Sequence[str], benchmark: str) -> list[dict[str, Any]]:
    """The records of all ``output*.json`` in a folder.

    Args:
        predictions: the folder.
        keys: what each record has to have.
        benchmark: for messages.

    Raises:
        UserError: there are none, or they are of another benchmark.
    """
    if not predictions.is_dir():
        raise UserError(f"the predictions {predictions} are not a folder: give the folder with the output_0.json, output_1.json, ... of {benchmark}")
    files = sorted(path for path in predictions.iterdir() if path.name.startswith("output") and path.suffix in (".json", ".jsonl"))
    records: list[dict[str, Any]] = []
    for path in files:
        content = read_json(path)
        if not isinstance(content, list):
            raise UserError(f"{path} holds a {type(content).__name__}, expected a list of records: give the predictions of {benchmark}")
        for number, record in enumerate(content):
            missing = [key for key in keys if key not in record] if isinstance(record, dict) else keys
            if missing:
                raise UserError(f"{path}: record {number} has no {missing[0]!r}, which those of {benchmark} have: give the predictions of this benchmark")
        records += content
    if not records:
        there = sorted(path.name for path in predictions.iterdir())[:3]
        raise UserError(f"{predictions} has no records in output*.json (it has {', '.join(there) or 'nothing'}): give the predictions of {benchmark}")
    return records


def score_photos(benchmark: str, split: str, predictions: Path) -> Scores:
    """Score RefCOCO, RefCOCO+, RefCOCOg or ReasonSeg, in percent. Arguments and errors are those of ``scoring.score``."""
    records = read_records(predictions, ("vid", "qid", "inter", "union", "iou"), benchmark)
    for record in records:
        for key in ("inter", "union", "iou"):
            _number(record[key], key, predictions)
    if benchmark != "reason_seg" and not any("hit" in record for record in records):
        raise UserError(f"{predictions} has no records with 'hit', which those of {benchmark} have: give the predictions of this benchmark")
    corrected = None
    if benchmark == "reason_seg" and all("without_ignored" in record for record in records):
        corrected = _overlap([record["without_ignored"] for record in records]) | {"BBox Acc": None}
    scores = _overlap(records) | {"BBox Acc": 100 * sum(bool(record.get("hit")) for record in records) / len(records)}
    return Scores(benchmark, split, scores, records, corrected, [IGNORED] if corrected else [])


def score_choices(benchmark: str, split: str, predictions: Path) -> Scores:
    """Score answers to multiple-choice questions, in percent of each task and of all. Arguments and errors are those of ``scoring.score``."""
    records = read_records(predictions, ("options", "ans"), benchmark)
    scores, samples, failures, empty = _choices(records, benchmark, predictions)
    return Scores(benchmark, split, scores, samples, why=[UNANSWERED] if empty else [], failures=failures)


def score_pixelqa(benchmark: str, split: str, predictions: Path) -> Scores:
    """Score PixelQA, in percent: the answers as ``score_choices``, and J and F of the objects' masks as ``masks``.

    Arguments and errors are those of ``scoring.score``.
    """
    records = read_records(predictions, ("options", "ans", "j_values", "f_values"), benchmark)
    scores, samples, failures, empty = _choices(records, benchmark, predictions)
    values = {}
    for name, key in (("J", "j_values"), ("F", "f_values")):
        values[name] = [_number(value, key, predictions) for record in records for value in _listed(record[key], key, predictions)]
    j, f = mean(values["J"]), mean(values["F"])
    both = None if j is None or f is None else 50 * (j + f)
    scores["masks"] = {"J": None if j is None else 100 * j, "F": None if f is None else 100 * f, "J&F": both}
    for sample, record in zip(samples, records, strict=True):
        sample.update(J=100 * (mean(record["j_values"]) or 0.0), F=100 * (mean(record["f_values"]) or 0.0))
    return Scores(benchmark, split, scores, samples, why=[UNANSWERED] if empty else [], failures=failures)


def chosen_letter(response: str) -> str:
    """The letter, in lower case, that an answer chooses: its first word without brackets and stops, of which the first letter counts; "" for none."""
    word = response.lower().split(" ")[0]
    for mark in "().":
        word = word.replace(mark, "")
    return word[:1]


def _choices(records: Sequence[Mapping[str, Any]], benchmark: str, predictions: Path) -> tuple[SCORES, list[dict[str, Any]], list[dict[str, str]], bool]:
    """The scores by task and of all, each sample's, those that chose no option, and whether an answer was empty."""
    counts: dict[str, list[int]] = {}
    every = [0, 0, 0]
    samples, failures, empty = [], [], False
    for number, record in enumerate(records):
        answer, task = record.get("response"), record.get("task", "unknown")
        tasks = [task] if isinstance(task, str) else task
        if not isinstance(tasks, list) or not all(isinstance(name, str) for name in tasks) or not isinstance(record["options"], list):
            raise UserError(f"{predictions}: record {number} has the task {str(task)[:40]!r} and options that are no list: give the predictions of {benchmark}")
        own = [counts.setdefault(name, [0, 0, 0]) for name in tasks]
        sample = {"vid": record.get("vid", record.get("video_path", number)), "task": task, "ans": record["ans"], "response": answer, "correct": None}
        samples.append(sample)
        if not isinstance(answer, str):
            failures.append({"sample": str(sample["vid"]), "reason": "there is no response"})
            continue
        letter = chosen_letter(answer)
        known = letter in [chr(ord("a") + i) for i in range(len(record["options"]))]
        sample["correct"] = known and letter == str(record["ans"]).lower()
        empty |= not letter
        if not known:
            failures.append({"sample": str(sample["vid"]), "reason": f"the response {answer[:60]!r} chooses none of {len(record['options'])} options"})
        for count in (*own, every):
            count[0] += 1
            count[1] += not known
            count[2] += sample["correct"]
    return {name: _counted(count) for name, count in (*sorted(counts.items()), ("all", every))}, samples, failures, empty


def _counted(count: Sequence[int]) -> dict[str, float | int]:
    return {"samples": count[0], "failed": count[1], "acc": 100 * count[2] / count[0] if count[0] else 0.0}


def _overlap(records: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The intersections of all photos over their unions, and the mean of each photo's, in percent."""
    union = sum(record["union"] for record in records)
    iou = mean([record["iou"] for record in records])
    return {"CIoU": 100 * sum(record["inter"] for record in records) / union if union else None, "GIoU": None if iou is None else 100 * iou}


def _listed(value: Any, key: str, predictions: Path) -> Sequence[Any]:
    if not isinstance(value, list):
        raise UserError(f"{predictions} has {str(value)[:40]!r} for {key!r}, expected a list of numbers: write the predictions again")
    return value


def _number(value: Any, key: str, predictions: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise UserError(f"{predictions} has {str(value)[:40]!r} for {key!r}, expected a number from 0 on: write the predictions again")
    return float(value)
