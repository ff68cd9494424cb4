"""COCO's instances, with exact masks as run lengths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from unipixel_jax.errors import needing
from unipixel_jax.infer.exports.base import Export, Labelled


class CocoExport(Export):
    """``annotations.json`` as COCO's instances have it, with run lengths, and the pictures in ``images``.

    Images also have ``frame``, the number in their clip, and annotations ``score`` and, in a clip, ``track_id``, the object's number.
    """

    def __init__(self, folder: Path, *, resume: bool = False) -> None:
        super().__init__(folder, resume=resume)
        with needing("export", "--format coco"):
            import pycocotools.mask

            self._coder = pycocotools.mask
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def _add(self, picture: Labelled) -> None:
        """See ``Export``; of the annotations, which are written at the end, the run lengths are kept."""
        name, (height, width), result = self._write_image("images", picture), picture.size, picture.result
        image = len(self._images) + 1
        self._images.append({"id": image, "file_name": name, "height": height, "width": width, "frame": result.frame})
        for number, kind, mask, score in zip(result.objects, picture.classes, result.masks, result.scores, strict=True):
            if mask.any():
                runs = self._coder.encode(np.asfortranarray(mask, np.uint8))
                found = {
                    "id": len(self._annotations) + 1,
                    "image_id": image,
                    "category_id": kind,
                    "segmentation": {"size": list(mask.shape), "counts": runs["counts"].decode("ascii")},
                    "bbox": self._coder.toBbox(runs).tolist(),
                    "area": int(self._coder.area(runs)),
                    "iscrowd": 0,
                    "score": round(float(score), 6),
                }
                self._annotations.append(found | ({"track_id": number} if self.tracked else {}))

    def finish(self) -> None:
        """See ``Export``."""
        if not self._images:
            return
        categories = [{"id": number, "name": name, "supercategory": ""} for number, name in self.labels.items()]
        found = {"info": {"description": self.folder.name}, "images": self._images, "annotations": self._annotations, "categories": categories}
        self._write_text("annotations.json", json.dumps(found, ensure_ascii=False) + "\n")
