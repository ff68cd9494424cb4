"""Masks in the formats of other tools: COCO, YOLO, labelme, and label images as DAVIS has them. Each is a folder that is filled frame by frame.

O objects, H height, W width of the frames.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unipixel_jax.core.files import replacing, writable
from unipixel_jax.errors import UserError, needing
from unipixel_jax.infer.prediction import FrameResult

MAX_LABEL = 255
"""The largest number of an object in a label image, whose pixels have 8 bits."""
JPEG_QUALITY = 95
LABELME_VERSION = "5.5.0"
"""The version of labelme whose files are written."""


def davis_palette() -> list[int]:
    """The colours of DAVIS's label images, red, green and blue of each index in turn [768]. Of the first 22 indices, bits 0, 1 and 2 set 128 in red, green and
    blue, and bits 3 and 4 set 64 in red and green, up to 191; later ones are grey.
    """
    known = [min(191, 128 * (index >> channel & 1) + 64 * (index >> (channel + 3) & 1)) for index in range(22) for channel in range(3)]
    return known + [index for index in range(22, 256) for _ in range(3)]


def label_image(masks: NDArray[np.bool_], scores: NDArray[np.float32], numbers: Sequence[int]) -> NDArray[np.uint8]:
    """The number of the object at each pixel, 0 where there is none. Where objects overlap, the one of the highest score wins, then the lower number.

    Args:
        masks: bool [O, H, W].
        scores: float32 [O].
        numbers: the objects' numbers, from 1 to ``MAX_LABEL`` [O].

    Returns:
        uint8 [H, W].

    Raises:
        UserError: a number is beyond ``MAX_LABEL``.
    """
    if max(numbers, default=0) > MAX_LABEL:
        raise UserError(f"a label image holds objects up to number {MAX_LABEL}, this one is {max(numbers)}: choose --format coco")
    out = np.zeros(masks.shape[1:], np.uint8)
    for place in sorted(range(len(numbers)), key=lambda place: (scores[place], -numbers[place])):
        out[masks[place]] = numbers[place]
    return out


def polygons(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """The outlines of a mask's connected parts, by OpenCV's ``findContours``. Holes are not among them, since neither YOLO nor labelme knows any.

    Args:
        mask: bool [H, W].

    Returns:
        The corners of each outline, x before y, in pixels, counted at the centres of the outermost pixels, so that the centre of the first pixel is 0.5
        [at least 3, 2], float64.
    """
    import cv2

    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    # Readers expect three corners; a part of one pixel, or a straight line of them, has fewer, and its last corner is repeated.
    corners = [contour.reshape(-1, 2).astype(np.float64) + 0.5 for contour in found]
    return [np.pad(part, ((0, max(0, 3 - len(part))), (0, 0)), mode="edge") for part in corners]


class Export(ABC):
    """A folder of results in one format.

    Attributes:
        folder: its path.
        labels: the name of each object, by its number.
    """

    def __init__(self, folder: Path, *, resume: bool = False) -> None:
        """Choose the folder; nothing is written yet.

        Args:
            folder: it must not exist, or be empty: labels in these formats are often mended by hand, and must not be lost.
            resume: it may hold the files of an interrupted run, which are written again.

        Raises:
            UserError: no files can be written there, it holds files already, or a package is missing.
        """
        writable(folder / "0.png")
        if not resume and folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} holds files already, which are not replaced: move it away, or choose another --output-dir")
        self.folder = folder
        self.labels: Mapping[int, str] = {}

    def start(self, labels: Mapping[int, str]) -> None:
        """Take the name of each object, before the first frame."""
        self.labels = labels

    @abstractmethod
    def add(self, result: FrameResult) -> None:
        """Write a frame's files.

        Raises:
            UserError: they cannot be written.
        """

    def finish(self) -> None:  # noqa: B027
        """Write what comes after the last frame, if there was any frame.

        Raises:
            UserError: it cannot be written.
        """

    def _write_image(self, folder: str, result: FrameResult) -> str:
        """Write a frame as a JPEG to a folder inside this one, and return its name."""
        name = f"{result.frame:06d}.jpg"
        with replacing(self.folder / folder / name) as aside:
            Image.fromarray(result.pixels).save(aside, quality=JPEG_QUALITY)
        return name


class CocoExport(Export):
    """``annotations.json`` as COCO's instances have it, with run lengths, and the frames in ``images``.

    Categories are the objects. Images also have ``frame``, annotations ``score`` and ``track_id``, the object's number.
    """

    def __init__(self, folder: Path, *, resume: bool = False) -> None:
        super().__init__(folder, resume=resume)
        with needing("export", "--format coco"):
            import pycocotools.mask

            self._coder = pycocotools.mask
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, result: FrameResult) -> None:
        """See ``Export``; of the annotations, which are written at the end, the run lengths are kept."""
        name = self._write_image("images", result)
        height, width = result.pixels.shape[:2]
        image = len(self._images) + 1
        self._images.append({"id": image, "file_name": name, "height": height, "width": width, "frame": result.frame})
        for number, mask, score in zip(result.objects, result.masks, result.scores, strict=True):
            if mask.any():
                runs = self._coder.encode(np.asfortranarray(mask, np.uint8))
                self._annotations.append(
                    {
                        "id": len(self._annotations) + 1,
                        "image_id": image,
                        "category_id": number,
                        "segmentation": {"size": list(mask.shape), "counts": runs["counts"].decode("ascii")},
                        "bbox": self._coder.toBbox(runs).tolist(),
                        "area": int(self._coder.area(runs)),
                        "iscrowd": 0,
                        "score": round(float(score), 6),
                        "track_id": number,
                    }
                )

    def finish(self) -> None:
        """See ``Export``."""
        if not self._images:
            return
        categories = [{"id": number, "name": name, "supercategory": ""} for number, name in self.labels.items()]
        found = {"info": {"description": self.folder.name}, "images": self._images, "annotations": self._annotations, "categories": categories}
        with replacing(self.folder / "annotations.json") as aside:
            aside.write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")


class YoloExport(Export):
    """``images``, ``labels`` with a text file for each frame, and ``data.yaml``, as Ultralytics trains segmenting models on them.

    A line is a class (the object's number less one) and the corners of one outline as shares of width and height.
    """

    def __init__(self, folder: Path, *, resume: bool = False) -> None:
        super().__init__(folder, resume=resume)
        _require_opencv("yolo")

    def add(self, result: FrameResult) -> None:
        """See ``Export``."""
        name = self._write_image("images", result)
        size = np.asarray(result.pixels.shape[1::-1])
        lines = [
            f"{number - 1} {' '.join(f'{share:.6f}' for share in (corners / size).ravel())}\n"
            for number, mask in zip(result.objects, result.masks, strict=True)
            for corners in polygons(mask)
        ]
        with replacing(self.folder / "labels" / f"{Path(name).stem}.txt") as aside:
            aside.write_text("".join(lines), encoding="ascii")

    def finish(self) -> None:
        """See ``Export``."""
        if not (self.folder / "labels").is_dir():
            return
        # A text of JSON is one of YAML too.
        names = [f"  {number - 1}: {json.dumps(name, ensure_ascii=False)}\n" for number, name in self.labels.items()]
        with replacing(self.folder / "data.yaml") as aside:
            aside.write_text("".join(["train: images\nval: images\nnames:\n", *names]), encoding="utf-8")


class LabelmeExport(Export):
    """A JSON file for each frame beside its image, as labelme opens them. The outlines of an object share its number as their group."""

    def __init__(self, folder: Path, *, resume: bool = False) -> None:
        super().__init__(folder, resume=resume)
        _require_opencv("labelme")

    def add(self, result: FrameResult) -> None:
        """See ``Export``."""
        name = self._write_image("", result)
        height, width = result.pixels.shape[:2]
        common = {"shape_type": "polygon", "flags": {}, "description": ""}
        shapes = [
            {"label": self.labels[number], "points": corners.tolist(), "group_id": number, **common}
            for number, mask in zip(result.objects, result.masks, strict=True)
            for corners in polygons(mask)
        ]
        found = {"version": LABELME_VERSION, "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None, "imageHeight": height, "imageWidth": width}
        with replacing(self.folder / f"{Path(name).stem}.json") as aside:
            aside.write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")


class LabelImages(Export):
    """A PNG with DAVIS's palette for each frame, whose indices are the objects' numbers (``label_image``)."""

    def add(self, result: FrameResult) -> None:
        """See ``Export``."""
        image = Image.fromarray(label_image(result.masks, result.scores, result.objects))
        image.putpalette(davis_palette())
        with replacing(self.folder / f"{result.frame:06d}.png") as aside:
            image.save(aside)


EXPORTS: dict[str, type[Export]] = {"coco": CocoExport, "yolo": YoloExport, "labelme": LabelmeExport, "png": LabelImages}
"""The formats that ``--format`` knows besides those of overlays."""


def labels_of(prompts: Sequence[str], owners: Sequence[int]) -> dict[int, str]:
    """A name for each object, by its number: its prompt, followed by the number where several objects would have the same name.

    Args:
        prompts: all prompts.
        owners: the index of each object's prompt [O].
    """
    names = [" ".join(prompts[owner].split()) for owner in owners]
    return {number: name if names.count(name) == 1 else f"{name} #{number}" for number, name in enumerate(names, start=1)}


def _require_opencv(name: str) -> None:
    with needing("export", f"--format {name}"):
        import cv2  # noqa: F401
