"""Scores of the benchmarks with masks on videos: ReVOS, MeViS, Ref-DAVIS17, Ref-SAV and GroundMoRe.

F frames, H height, W width. Sources: ``eval_seg.py``, ``eval_revos.py`` and ``eval_groundmore.py`` in UniPixel's ``unipixel/eval``. Predictions are
``{video}/{expression}/{frame}.png``, where whatever is not black belongs to the object.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unipixel_jax.data.files import list_files, read_json, read_labels, read_pickle
from unipixel_jax.errors import UserError
from unipixel_jax.eval.layouts import LAYOUTS, REVOS_FOREGROUND, Expression, Question, list_expressions, list_questions, naming_files, number_in
from unipixel_jax.eval.metrics import box_of, joint_box, score_frame, score_part
from unipixel_jax.eval.scores import Scores, map_samples, mean
from unipixel_jax.processing.images import NotAnImage, open_image
from unipixel_jax.processing.media import sample_indices
from unipixel_jax.processing.rle import decode_mask

MISSING = (
    "The reference leaves an expression whose masks are missing or broken out of the mean, since the process that scores it ends; here it counts as 0, "
    "as a missing video does."
)
EMPTY_QUESTION = "The reference gives no scores where a question has no prediction; here its masks count as empty."
KINDS = ("Causal", "Sequential", "Counterfactual", "Descriptive")


@dataclass(frozen=True)
class Task:
    """An expression to score, small enough to be sent to another process.

    Attributes:
        folder: the folder of its predictions.
        frames: the names of the frames [F].
        places: which of them count.
        tracks: the run lengths, or None, on each frame [F] of each track that it means.
        foreground: the run lengths of all objects on each frame [F], for ReVOS; None for the others.
    """

    folder: Path
    frames: Sequence[str]
    places: Sequence[int]
    tracks: Sequence[Sequence[Any]]
    foreground: Sequence[Any] | None = None


def score_expressions(
    benchmark: str, split: str, root: Path, predictions: Path, workers: int, shown: int | None = None, names: Collection[str] | None = None
) -> Scores:
    """Score MeViS, Ref-DAVIS17 or Ref-SAV, in percent. Arguments and errors are those of ``scoring.score``."""
    chosen = _list(root, benchmark, split, names)
    require_videos(benchmark, predictions, [expression.video for expression, _ in chosen])
    found = _scored(chosen, None, predictions, workers, shown)
    _require_some(benchmark, found)
    present = [sample for sample in found if "reason" not in sample or sample["reason"] == NO_VIDEO]
    failures = [_failure(sample) for sample in found if "reason" in sample]
    scores = _means(present, 100.0)
    vanished = len(present) < len(found)
    return Scores(
        benchmark,
        split,
        scores,
        [{**sample, "J": 100 * sample["J"], "F": 100 * sample["F"]} for sample in found],
        _means(found, 100.0) if vanished else None,
        [MISSING] if vanished else [],
        failures,
    )


def score_revos(
    benchmark: str, split: str, root: Path, predictions: Path, workers: int, shown: int | None = None, names: Collection[str] | None = None
) -> Scores:
    """Score ReVOS, in percent: J, F, A (accuracy of the pixels) and R (robustness: no pixels beyond the object), rounded for each expression.

    A and R compare truth and prediction as booleans; the reference compares 1 with 255, so that its own A and R mean nothing. Arguments and errors are
    those of ``scoring.score``.
    """
    chosen = _list(root, benchmark, split, names)
    require_videos(benchmark, predictions, [expression.video for expression, _ in chosen])
    with naming_files(benchmark):
        masks = read_json(root / REVOS_FOREGROUND)
        foreground = [masks[expression.video]["masks_rle"] for expression, _ in chosen]
    found = _scored(chosen, foreground, predictions, workers, shown)
    _require_some(benchmark, found)
    samples, groups = [], {}
    for (expression, _), sample in zip(chosen, found, strict=True):
        rounded = {name: float(np.round(100 * np.float64(sample[name]), 2)) for name in ("J", "F", "A", "R")}
        both = float(np.round(100 * np.float64(sample["J"] + sample["F"]) / 2, 2))
        samples.append({**sample, **rounded, "JF": both, "type_id": expression.item.get("type_id")})
    for group, kind in (("referring", 0), ("reason", 1)):
        own = [sample for sample in samples if sample["type_id"] == kind]
        groups[group] = {name: mean([sample[name] for sample in own]) for name in ("J", "F", "A", "R")}
    groups["overall"] = {name: _middle(groups["referring"][name], groups["reason"][name]) for name in ("J", "F", "A", "R")}
    for scores in groups.values():
        scores["JF"] = _middle(scores["J"], scores["F"])
    return Scores(benchmark, split, groups, samples, failures=[_failure(sample) for sample in found if "reason" in sample])


def score_groundmore(
    benchmark: str, split: str, root: Path, predictions: Path, workers: int, shown: int | None = None, names: Collection[str] | None = None
) -> Scores:
    """Score GroundMoRe, in fractions: means over all questions, and over those of each kind. Arguments and errors are those of ``scoring.score``."""
    questions = [question for question in list_questions(root) if names is None or f"{question.video}/{question.number}" in names]
    if shown is not None:
        questions = [question.shown(shown) for question in questions]
    require_videos(benchmark, predictions, [question.video for question in questions])
    found = list(map_samples(_score_question, [(question, predictions / question.video / question.number) for question in questions], workers))
    _require_some(benchmark, found)
    samples = [{"vid": q.video, "qid": q.number, "q_type": q.kind, **sample} for q, sample in zip(questions, found, strict=True)]
    scores = {}
    for prefix, own in (("final", samples), *((f"final_{kind.lower()}", [s for s in samples if s["q_type"] == kind]) for kind in KINDS)):
        for name, value in _means(own, 1.0).items():
            scores[f"{prefix}_{'JF' if name == 'J&F' else name}"] = value
    failures = [_failure(sample) for sample in samples if "reason" in sample]
    return Scores(benchmark, split, scores, samples, why=[EMPTY_QUESTION] if failures else [], failures=failures)


def require_videos(benchmark: str, predictions: Path, videos: Sequence[str]) -> None:
    """Check that a folder holds predictions of this benchmark.

    Raises:
        UserError: there is no folder, or none for any video.
    """
    if not predictions.is_dir():
        raise UserError(f"the predictions {predictions} are not a folder: give the folder that holds one for each video of {benchmark}")
    if not any((predictions / video).is_dir() for video in videos):
        there = sorted(path.name for path in predictions.iterdir())[:3]
        raise UserError(
            f"{predictions} has no folder for any of the {len(set(videos))} videos of {benchmark} (such as {videos[0]}), but {', '.join(there) or 'nothing'}: "
            "give the predictions of this benchmark and split"
        )


def _require_some(benchmark: str, found: Sequence[Mapping[str, Any]]) -> None:
    """Check that a prediction is sound.

    Raises:
        UserError: none is.
    """
    if all("reason" in sample for sample in found):
        raise UserError(f"none of the {len(found)} predictions fits {benchmark}: {found[0]['reason']}; give the predictions of this benchmark and split")


def read_prediction(path: Path) -> NDArray[np.bool_]:
    """The mask of a frame, bool [H, W]: whatever is not black.

    Raises:
        UserError: the file is missing or broken.
    """
    with _open_prediction(path) as image:
        return np.asarray(image).astype(bool)


@contextlib.contextmanager
def _open_prediction(path: Path) -> Iterator[Image.Image]:
    """Open the mask of a frame as an image with one channel. Errors are those of ``read_prediction``."""
    try:
        with open_image(path, ("PNG",)) as image:
            yield image if image.mode in ("1", "L", "I;16", "I") else image.convert("L")
    except NotAnImage:
        raise UserError(f"{path} is not a PNG image: write it again") from None


NO_VIDEO = "there is no folder for the video"


def _list(root: Path, benchmark: str, split: str, names: Collection[str] | None) -> list[tuple[Expression, list[Sequence[Any]]]]:
    """The expressions, all or those with the names, with the tracks that each means."""
    expressions = list_expressions(root, benchmark, split)
    pairs = zip(expressions, _tracks(root, benchmark, split, expressions), strict=True)
    return [pair for pair in pairs if names is None or f"{pair[0].video}/{pair[0].number}" in names]


def _tracks(root: Path, benchmark: str, split: str, expressions: Sequence[Expression]) -> list[list[Sequence[Any]]]:
    """The tracks that each expression means. Ref-DAVIS17 numbers its expressions in the order of sorted names, the others name their tracks."""
    masked = LAYOUTS[benchmark, split][1]
    if masked is None:
        raise UserError(f"the masks of {benchmark}'s split {split} are not public: upload its zip file to the benchmark's server")
    with naming_files(benchmark):
        if benchmark == "ref_davis17":
            masks = read_pickle(root / masked)
            order = sorted(range(len(expressions)), key=lambda i: (expressions[i].video, expressions[i].number))
            numbers = {place: [number] for number, place in enumerate(order)}
        else:
            masks = read_json(root / masked)
            numbers = {place: expression.item["anno_id"] for place, expression in enumerate(expressions)}
        return [[masks[str(number)] for number in numbers[place]] for place in range(len(expressions))]


def _scored(
    chosen: Sequence[tuple[Expression, Sequence[Sequence[Any]]]], foreground: Sequence[Any] | None, predictions: Path, workers: int, shown: int | None
) -> list[dict[str, Any]]:
    """The scores of all expressions, on all frames or on ``shown`` of them, spread evenly."""
    tasks = []
    for (expression, own), fore in zip(chosen, foreground or [None] * len(chosen), strict=True):
        places = tuple(sample_indices(len(expression.frames), shown).tolist())
        tasks.append(Task(predictions / expression.video / expression.number, expression.frames, places, own, fore))
    found = map_samples(_score_task, tasks, workers)
    return [{"vid": expression.video, "qid": expression.number, **sample} for (expression, _), sample in zip(chosen, found, strict=True)]


def _score_task(task: Task) -> dict[str, Any]:
    """J and F of an expression, for ReVOS A and R as well, as means over its frames; zeros with a ``reason`` where its predictions are not sound."""
    names = ("J", "F") if task.foreground is None else ("J", "F", "A", "R")
    if not task.folder.parent.is_dir():
        return {**dict.fromkeys(names, 0.0), "reason": NO_VIDEO}
    try:
        rows = [_score_masks(task, place) for place in task.places]
    except UserError as error:
        return {**dict.fromkeys(names, 0.0), "reason": str(error)}
    return {name: float(value) for name, value in zip(names, np.mean(rows, axis=0), strict=True)}


def _score_masks(task: Task, place: int) -> tuple[float, ...]:
    """J and F of a frame, for ReVOS A and R as well. Only the box around truth and prediction is looked at, since that of most objects is small."""
    path = task.folder / f"{task.frames[place]}.png"
    with _open_prediction(path) as image:
        size = image.height, image.width
        truth = np.zeros(size, bool)
        for number, track in enumerate(task.tracks):
            mask = _track_mask(track, place, size, path)
            truth = mask if number == 0 else truth | mask
        box = joint_box(box_of(truth), image.getbbox(), size)
        if box is None:
            return (1.0, 1.0) if task.foreground is None else (1.0, 1.0, 1.0, 1.0)
        rows, columns = box
        found = np.asarray(image.crop((columns.start, rows.start, columns.stop, rows.stop))).astype(bool)
    truth = truth[box]
    j, f = score_part(truth, found, size)
    if task.foreground is None:
        return j, f
    wrong, beyond = np.count_nonzero(truth != found), np.count_nonzero(found & ~truth)
    regions = task.foreground[place] if isinstance(task.foreground[place], list) else [task.foreground[place]]
    shown = sum(int(np.count_nonzero(_decoded(region))) for region in regions)
    return j, f, 1 - wrong / (size[0] * size[1]), max(1 - beyond / (shown + 1e-6), 0.0)


def _track_mask(track: Sequence[Any], place: int, size: tuple[int, int], path: Path) -> NDArray[np.bool_]:
    """The mask of a track on a frame, bool [H, W]; empty where it is not visible."""
    if len(track) <= place:
        raise UserError(f"a track has {len(track)} frames, expected more than {place}: the files of masks and expressions are of different versions")
    if not track[place]:
        return np.zeros(size, bool)
    mask = _decoded(track[place])
    if mask.shape != size:
        raise UserError(f"{path} is {size[1]}x{size[0]} pixels, expected {mask.shape[1]}x{mask.shape[0]} as the video: write it again")
    return mask


def _decoded(region: Any) -> NDArray[np.bool_]:
    if not isinstance(region, Mapping):
        raise UserError(f"a mask of the truth is {str(region)[:60]!r}, expected run lengths with counts and size: copy the data set again")
    return decode_mask(region)


def _score_question(task: tuple[Question, Path]) -> dict[str, Any]:
    """J and F of a question about GroundMoRe, as means over its frames; a missing prediction is an empty mask."""
    question, folder = task
    try:
        files = {path.stem: path for path in list_files(folder, ".png")} if folder.is_dir() else {}
        first = min(files.values(), key=number_in, default=None)
        size: tuple[int, ...] = read_prediction(first).shape if first else _frame_size(question)
        rows = []
        for index in question.indices:
            name = question.name_of(index)
            found = read_prediction(files[name]) if name in files else np.zeros(size, bool)
            truth = np.zeros(size, bool)
            if question.span[0] <= index <= question.span[1] and (question.masks / f"{name}.png").exists():
                truth = np.isin(read_labels(question.masks / f"{name}.png"), question.objects)
            if truth.shape != found.shape:
                raise UserError(f"{folder / name}.png is {found.shape[1]}x{found.shape[0]} pixels, expected {truth.shape[1]}x{truth.shape[0]}: write it again")
            rows.append(score_frame(truth, found))
    except UserError as error:
        return {"J": 0.0, "F": 0.0, "reason": str(error)}
    scores = dict(zip(("J", "F"), np.mean(rows, axis=0).tolist(), strict=True))
    return scores if files else {**scores, "reason": f"there are no masks in {folder}"}


def _frame_size(question: Question) -> tuple[int, int]:
    with open_image(question.frames[0]) as image:
        return image.height, image.width


def _means(samples: Sequence[Mapping[str, Any]], unit: float) -> dict[str, float | None]:
    """The means of J and F, and the mean of both, times ``unit``."""
    j, f = (mean([sample[name] for sample in samples]) for name in ("J", "F"))
    return {"J": _times(j, unit), "F": _times(f, unit), "J&F": _times(_middle(j, f), unit)}


def _times(value: float | None, unit: float) -> float | None:
    return None if value is None else unit * value


def _middle(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else (one + other) / 2


def _failure(sample: Mapping[str, Any]) -> dict[str, str]:
    return {"sample": f"{sample['vid']}/{sample['qid']}", "reason": sample["reason"]}
