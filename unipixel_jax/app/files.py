"""What a visitor can download: pictures, videos, masks and JSON, written into Gradio's cache, from which files go when they are old or too many.

O objects, F frames, H height, W width.
"""

from __future__ import annotations

import contextlib
import json
import uuid
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unipixel_jax.app.worker import Result
from unipixel_jax.core.files import replacing
from unipixel_jax.errors import UserError
from unipixel_jax.infer.exports import labels_of
from unipixel_jax.infer.exports.label_images import davis_palette, label_image
from unipixel_jax.infer.looks import ContactSheet, draw
from unipixel_jax.infer.overlays import open_overlay
from unipixel_jax.infer.prediction import FrameResult
from unipixel_jax.processing.frames import open_frames


class Folder:
    """The folder of results inside Gradio's cache."""

    def __init__(self, cache: Path, megabytes: int) -> None:
        """Take a cache.

        Args:
            cache: Gradio's cache, which holds uploads too.
            megabytes: how much there may be in it.
        """
        self.cache, self._most = cache, megabytes << 20

    def new(self, name: str) -> Path:
        """A path for a result that nobody else has; the oldest files of the cache go where there are too many."""
        self.trim()
        folder = self.cache / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder / name

    def trim(self) -> None:
        """Remove the oldest files until the cache is as small as it may be."""
        files = []
        for path in self.cache.rglob("*"):
            with contextlib.suppress(OSError):  # another visitor's call may remove it meanwhile
                if path.is_file():
                    status = path.stat()
                    files.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._most:
                return
            with contextlib.suppress(OSError):
                path.unlink()
                path.parent.rmdir()
            total -= size


def frames_of(result: Result) -> Iterator[FrameResult]:
    """The frames of an answer with their masks, the pixels read from the upload again.

    Raises:
        UserError: the upload is gone, since it was too long ago.
    """
    prediction = result.prediction
    if not result.path.exists():
        raise UserError("the upload is no longer here, since files are removed after a while: upload it again")
    places = {frame: place for place, frame in enumerate(prediction.frames)}
    numbers = tuple(prediction.numbers)
    for frame in open_frames(result.path):
        if (place := places.get(frame.number)) is not None:
            yield _frame(result, frame, place, numbers)


def _frame(result: Result, frame: Any, place: int, numbers: tuple[int, ...]) -> FrameResult:
    objects, size = result.prediction.objects, result.prediction.size
    masks = np.stack([item.mask(place) for item in objects]) if objects else np.zeros((0, *size), bool)
    scores = np.asarray([item.scores[place] for item in objects], np.float32)
    return FrameResult(frame.number, frame.seconds, frame.pixels, numbers, masks, scores, scores)


def photo(result: Result, look: str, folder: Folder) -> Path:
    """An answer's first frame in one of ``looks.LOOKS`` as a PNG."""
    frame = next(frames_of(result))
    path = folder.new(f"{_name(result)}-{look}.png")
    Image.fromarray(draw(look, frame.pixels, frame.masks, frame.objects)).save(path)
    return path


def film(result: Result, look: str, folder: Folder) -> Path:
    """An answer about a clip as an MP4, with the clip's sound where all of its frames are there; of the look "cutout" as an animated PNG."""
    source = open_frames(result.path)
    every = source.count == len(result.prediction.frames)
    path = folder.new(f"{_name(result)}-{look}.{'png' if look == 'cutout' else 'mp4'}")
    rate = source.rate or 10
    rate = rate if every else max(2.0, rate * len(result.prediction.frames) / (source.count or 1))
    with open_overlay(path, rate, look, source.sound if every else None) as overlay:
        for frame in frames_of(result):
            overlay.add(frame.pixels, frame.masks, frame.objects)
    return path


def sheet(result: Result, folder: Folder) -> Path:
    """The contact sheet of an answer about a clip."""
    drawn, path = ContactSheet(), folder.new(f"{_name(result)}-sheet.png")
    for frame in frames_of(result):
        drawn.add(frame)
    drawn.save(path)
    return path


def masks(result: Result, folder: Folder) -> Path:
    """A label image with DAVIS's palette, whose indices are the objects' numbers from 1; of a clip a ZIP with one for each frame."""
    images = (_labels(result, place) for place in range(len(result.prediction.frames)))
    if len(result.prediction.frames) == 1:
        path = folder.new(f"{_name(result)}-masks.png")
        next(images).save(path)
        return path
    path = folder.new(f"{_name(result)}-masks.zip")
    with replacing(path) as aside, zipfile.ZipFile(aside, "w") as archive:
        for frame, image in zip(result.prediction.frames, images, strict=True):
            content = BytesIO()
            image.save(content, "PNG")
            archive.writestr(f"{frame:06d}.png", content.getvalue())
    return path


def _labels(result: Result, place: int) -> Image.Image:
    objects, size = result.prediction.objects, result.prediction.size
    stacked: NDArray[np.bool_] = np.stack([item.mask(place) for item in objects]) if objects else np.zeros((0, *size), bool)
    scores = np.asarray([item.scores[place] for item in objects], np.float32)
    image = Image.fromarray(label_image(stacked, scores, range(1, len(objects) + 1)))
    image.putpalette(davis_palette())
    return image


def coco(result: Result, folder: Folder) -> Path:
    """The masks as COCO's instances have them, in one JSON file: categories are the objects, whose masks are run lengths."""
    prediction = result.prediction
    height, width = prediction.size
    names = labels_of(prediction.prompts or ("object",), [item.prompt for item in prediction.objects])
    images = [
        {"id": place, "file_name": f"{_name(result)}-{frame:06d}.png", "height": height, "width": width, "frame": int(frame)}
        for place, frame in enumerate(prediction.frames, start=1)
    ]
    annotations = [
        {
            "image_id": place + 1,
            "category_id": number,
            "track_id": number,
            "segmentation": dict(item.runs[place]),
            "bbox": list(item.boxes[place] or ()),
            "area": int(item.areas[place]),
            "iscrowd": 0,
            "score": round(float(item.scores[place]), 6),
        }
        for number, item in enumerate(prediction.objects, start=1)
        for place in range(len(prediction.frames))
        if item.areas[place]
    ]
    found = {
        "info": {"description": prediction.text},
        "images": images,
        "annotations": [{"id": number, **item} for number, item in enumerate(annotations, start=1)],
        "categories": [{"id": number, "name": name, "supercategory": ""} for number, name in names.items()],
    }
    path = folder.new(f"{_name(result)}-coco.json")
    path.write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _name(result: Result) -> str:
    return result.path.stem[:60] or "upload"
