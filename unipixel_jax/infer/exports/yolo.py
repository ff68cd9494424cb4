"""Outlines as Ultralytics reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from unipixel_jax.core.files import replacing
from unipixel_jax.infer.exports.base import Export, Labelled, polygons, require_opencv


class YoloExport(Export):
    """``images``, ``labels`` with a text file for each picture, and ``data.yaml``, as Ultralytics trains segmenting models on them.

    A line is a class (its number less one) and the corners of one outline as shares of width and height.
    """

    def __init__(self, folder: Path, *, resume: bool = False) -> None:
        super().__init__(folder, resume=resume)
        require_opencv("yolo")

    def _add(self, picture: Labelled) -> None:
        """See ``Export``."""
        self._write_image("images", picture)
        size = np.asarray(picture.size[::-1])
        lines = [
            f"{kind - 1} {' '.join(f'{share:.6f}' for share in (corners / size).ravel())}\n"
            for kind, mask in zip(picture.classes, picture.result.masks, strict=True)
            for corners in polygons(mask)
        ]
        with replacing(self.folder / "labels" / f"{picture.name}.txt") as aside:
            aside.write_text("".join(lines), encoding="ascii")

    def finish(self) -> None:
        """See ``Export``."""
        if not (self.folder / "labels").is_dir():
            return
        # A text of JSON is one of YAML too.
        names = [f"  {number - 1}: {json.dumps(name, ensure_ascii=False)}\n" for number, name in self.labels.items()]
        self._write_text("data.yaml", "".join(["train: images\nval: images\nnames:\n", *names]))
