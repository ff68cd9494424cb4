"""CVAT for images 1.1, with exact masks as run lengths. Source: CVAT's documentation of its XML annotation format.

Clips are written in the same form: a task that was made of the clip finds each frame by its number. CVAT for video has tracks, but CVAT reads no track of
masks (of each it keeps the first frame alone), and tracks of polygons would lose holes and all parts of a mask but one.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.core.files import replacing
from unipixel_jax.infer.exports.base import Export, Labelled, xml_text
from unipixel_jax.infer.prediction import box_of


def cvat_mask(mask: NDArray[np.bool_]) -> tuple[list[int], tuple[int, int, int, int]]:
    """A mask as CVAT holds it: row by row within its box, in runs of pixels that do not belong to it and that do, in turn.

    Args:
        mask: bool [H, W], which is not empty.

    Returns:
        The lengths of the runs, and the box: left, top, width and height in pixels.
    """
    box = box_of(mask)
    assert box is not None
    left, top, width, height = box
    flat = mask[top : top + height, left : left + width].ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff(edges, prepend=0, append=flat.size).tolist(), (left, top, width, height)


class CvatExport(Export):
    """``annotations.xml`` and the pictures in ``images``. In a clip, masks have their object's number as ``group_id``, and images the frame's as ``id``."""

    def __init__(self, folder: Path, *, resume: bool = False) -> None:
        super().__init__(folder, resume=resume)
        self._images: list[ElementTree.Element] = []

    def _add(self, picture: Labelled) -> None:
        """See ``Export``; the annotations are written at the end."""
        name, (height, width), result = self._write_image("images", picture), picture.size, picture.result
        number_of_image = result.frame if self.tracked else len(self._images)
        image = ElementTree.Element("image", id=str(number_of_image), name=xml_text(name), width=str(width), height=str(height))
        for number, kind, mask in zip(result.objects, picture.classes, result.masks, strict=True):
            if mask.any():
                runs, box = cvat_mask(mask)
                place = dict(zip(("left", "top", "width", "height"), map(str, box), strict=True))
                group = {"group_id": str(number)} if self.tracked else {}
                runs_text = ", ".join(map(str, runs))
                common = {"source": "auto", "occluded": "0", "z_order": "0"}
                ElementTree.SubElement(image, "mask", {"label": xml_text(self.labels[kind]), "rle": runs_text, **common, **place, **group})
        self._images.append(image)

    def finish(self) -> None:
        """See ``Export``."""
        if not self._images:
            return
        root = ElementTree.Element("annotations")
        ElementTree.SubElement(root, "version").text = "1.1"
        task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
        for key, text in (("name", self.folder.name), ("size", str(len(self._images))), ("mode", "annotation")):
            ElementTree.SubElement(task, key).text = xml_text(text)
        labels = ElementTree.SubElement(task, "labels")
        for name in self.labels.values():
            label = ElementTree.SubElement(labels, "label")
            ElementTree.SubElement(label, "name").text = xml_text(name)
            ElementTree.SubElement(label, "type").text = "mask"
            ElementTree.SubElement(label, "attributes")
        root.extend(self._images)
        ElementTree.indent(root)
        with replacing(self.folder / "annotations.xml") as aside:
            ElementTree.ElementTree(root).write(aside, encoding="utf-8", xml_declaration=True)

