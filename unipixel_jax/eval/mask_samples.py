"""Samples that ask for masks: expressions about videos, and about photos.

H height, W width. Sources: UniPixel's ``unipixel/eval/infer_seg.py``, and its data sets.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unipixel_jax.core.files import aside_of, remove_abandoned
from unipixel_jax.data.annotation import MaskReader
from unipixel_jax.data.files import list_files, read_json, read_pickle
from unipixel_jax.data.masks import Shape, Shapes
from unipixel_jax.data.sources import reason_seg, refcoco
from unipixel_jax.data.sources.base import choose_split
from unipixel_jax.errors import UserError
from unipixel_jax.eval.layouts import LAYOUTS, list_expressions, list_questions, naming_files
from unipixel_jax.eval.metrics import box_iou, box_of_parts
from unipixel_jax.eval.samples import DESCRIPTION, QUERY, QUESTION, SENTENCE, ListSamples, Sample, Settings, first_masks, segmentation_prompt, why_no_masks
from unipixel_jax.infer.job_source import Job
from unipixel_jax.infer.prediction import Prediction
from unipixel_jax.processing.frames import FrameSource, open_files
from unipixel_jax.processing.images import open_image
from unipixel_jax.processing.media import sample_indices

T = TypeVar("T")

HIT = 0.5
"""The least overlap of two boxes that counts as a hit."""


def video_samples(benchmark: str, split: str, root: Path, out: Path, settings: Settings) -> list[Sample]:
    """The expressions of ReVOS, MeViS, Ref-YouTube-VOS, Ref-DAVIS17 or Ref-SAV. Arguments as ``samples.ListSamples``."""
    folder = root / LAYOUTS[benchmark, split][2]
    sources: dict[str, FrameSource] = {}
    found = []
    for item in list_expressions(root, benchmark, split):
        names = _seen(item.frames, settings)
        if item.video not in sources:
            sources[item.video] = open_files([folder / item.video / f"{name}.jpg" for name in names], item.video, upright=False)
        kind = DESCRIPTION if benchmark == "ref_sav" else SENTENCE if benchmark == "revos" and item.text.endswith("?") else QUERY
        found.append(_mask_sample(item.video, item.number, kind, item.text, sources[item.video], names, out, settings))
    return found


def groundmore_samples(benchmark: str, split: str, root: Path, out: Path, settings: Settings) -> list[Sample]:
    """The questions of GroundMoRe. Arguments as ``samples.ListSamples``."""
    sources: dict[str, FrameSource] = {}
    found = []
    for item in list_questions(root):
        frames = _seen(item.frames, settings)
        if item.video not in sources:
            sources[item.video] = open_files(frames, item.video, upright=False)
        names = [frame.stem for frame in frames]
        found.append(_mask_sample(item.video, item.number, QUESTION, item.text, sources[item.video], names, out, settings))
    return found


def refcoco_samples(benchmark: str, split: str, root: Path, out: Path, settings: Settings) -> list[Sample]:
    """The sentences of RefCOCO, RefCOCO+ or RefCOCOg, photo by photo. Arguments as ``samples.ListSamples``."""
    folder, version = root / refcoco.ROOT / benchmark, "umd" if benchmark == "refcocog" else "unc"
    belongs = choose_split(benchmark, split, refcoco.SPLITS)
    asked: dict[Any, list[Sample]] = {}
    with naming_files(benchmark):
        instances = read_json(folder / "instances.json")
        images = {image["id"]: image for image in instances["images"]}
        objects = {item["id"]: item for item in instances["annotations"]}
        for ref in read_pickle(folder / f"refs({version}).p"):
            if not belongs(ref["split"]):
                continue
            image, item = images[ref["image_id"]], objects[ref["ann_id"]]
            path = root / refcoco.COCO / image["file_name"]
            x, y, width, height = item["bbox"]
            masks = refcoco.region_tracks(item["segmentation"], (image["height"], image["width"]))
            source = open_files([path], path.stem, upright=False)
            for sentence in ref["sentences"]:
                photo = _Photo(path.stem, sentence["sent_id"], path, masks, None, (x, y, x + width, y + height))
                asked.setdefault(ref["image_id"], []).append(_photo_sample(photo, QUERY, sentence["sent"], source, settings))
    return [sample for samples in asked.values() for sample in samples]


def reason_seg_samples(benchmark: str, split: str, root: Path, out: Path, settings: Settings) -> list[Sample]:
    """The sentences of ReasonSeg. Arguments as ``samples.ListSamples``."""
    found = []
    with naming_files(benchmark):
        for path in list_files(root / choose_split(benchmark, split, reason_seg.FOLDERS), ".jpg"):
            described = path.with_suffix(".json")
            content = read_json(described, reason_seg.FALLBACK)
            masks = reason_seg.read_shapes(content, described, path)
            ignored = Shapes(tuple(Shape(shape.points, not shape.is_target) for shape in masks.shapes))
            source = open_files([path], path.stem, upright=False)
            for number, text in enumerate(content["text"]):
                photo = _Photo(path.stem, number, path, masks, ignored, None)
                found.append(_photo_sample(photo, SENTENCE if content["is_sentence"] else QUERY, text, source, settings))
    return found


@dataclass(frozen=True)
class _Photo:
    """A photo with an object. ``ignored`` reads the pixels that do not count, ``box`` is the object's ``(x0, y0, x1, y1)``; None where there are none."""

    name: str
    number: Any
    path: Path
    masks: MaskReader
    ignored: MaskReader | None
    box: tuple[float, float, float, float] | None


def _seen(frames: Sequence[T], settings: Settings) -> list[T]:
    """The frames that SAM sees."""
    return [frames[place] for place in sample_indices(len(frames), settings.sample_frames if settings.consistent else None)]


def _mask_sample(video: str, number: str, kind: str, text: str, source: FrameSource, frames: Sequence[str], out: Path, settings: Settings) -> Sample:
    """An expression about a video, whose masks are written as ``{video}/{number}/{frame}.png``."""
    media = "video" if len(frames) > 1 else "image"

    def record(prediction: Prediction | None) -> dict[str, Any]:
        reason = "" if prediction is None else why_no_masks(prediction, len(frames))
        write_masks(out / video / number, frames, _empty(source) if prediction is None or reason else first_masks(prediction))
        return {"reason": reason} if reason else {}

    return Sample(f"{video}/{number}", partial(_job, kind, text, media, source, f"{video}/{number}", settings), record)


def _photo_sample(photo: _Photo, kind: str, text: str, source: FrameSource, settings: Settings) -> Sample:
    name = f"{photo.name}/{photo.number}"
    return Sample(name, partial(_job, kind, text, "image", source, name, settings), partial(_compare, photo))


def _job(kind: str, text: str, media: str, source: FrameSource, name: str, settings: Settings) -> Job:
    return Job(source, segmentation_prompt(kind, text, media), id=name, sample_frames=settings.sample_frames, max_objects=1)


def _compare(photo: _Photo, prediction: Prediction | None) -> dict[str, Any]:
    """The record of a photo: pixels that are in both masks, and in either."""
    size = _size_of(photo.path)
    truth = photo.masks.read([0], size)[0, 0]
    reason = "" if prediction is None else why_no_masks(prediction, 1)
    found = np.zeros(size, bool) if prediction is None or reason else next(first_masks(prediction))
    if found.shape != size:
        raise UserError(f"the mask is {found.shape[1]}x{found.shape[0]} pixels, expected {size[1]}x{size[0]} as {photo.path}")
    record = {"vid": photo.name, "qid": photo.number, **_overlap(truth, found)}
    if photo.ignored is not None:
        counts = ~photo.ignored.read([0], size)[0, 0]
        record["without_ignored"] = _overlap(truth & counts, found & counts)
    if photo.box is not None:
        box = box_of_parts(found)
        record["hit"] = box is not None and box_iou(box, photo.box) >= HIT
    return {**record, "reason": reason} if reason else record


def _overlap(truth: NDArray[np.bool_], found: NDArray[np.bool_]) -> dict[str, float]:
    both, either = int(np.count_nonzero(truth & found)), int(np.count_nonzero(truth | found))
    return {"inter": both, "union": either, "iou": both / either if either else 1}


def _empty(source: FrameSource) -> Iterator[NDArray[np.bool_]]:
    """Masks of nothing, for each frame, of the first frame's size."""
    size = next(iter(source)).pixels.shape[:2]
    return (np.zeros(size, bool) for _ in range(len(source)))


def write_masks(folder: Path, names: Sequence[str], masks: Iterator[NDArray[np.bool_]]) -> None:
    """Write the masks of an expression as images of 0 and 255; the folder appears when it is complete, in place of an older one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder.parent)
    aside = aside_of(folder)
    aside.mkdir()
    try:
        for name, mask in zip(names, masks, strict=True):
            Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(aside / f"{name}.png")
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _size_of(path: Path) -> tuple[int, int]:
    with open_image(path) as image:
        return image.height, image.width


PHOTOS = ("refcoco", "refcoco+", "refcocog", "reason_seg")
"""The benchmarks of photos, whose predictions are records of overlaps instead of masks."""

SAMPLES: Mapping[str, ListSamples] = {
    **dict.fromkeys(("revos", "mevis", "ref_youtube_vos", "ref_davis17", "ref_sav"), video_samples),
    "groundmore": groundmore_samples,
    **dict.fromkeys(("refcoco", "refcoco+", "refcocog"), refcoco_samples),
    "reason_seg": reason_seg_samples,
}
