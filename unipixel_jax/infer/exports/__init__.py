"""Masks in the formats of other tools, each a folder that is filled picture by picture (docs/annotation.md)."""

from __future__ import annotations

from unipixel_jax.infer.exports.base import Export, labels_of
from unipixel_jax.infer.exports.coco import CocoExport
from unipixel_jax.infer.exports.cvat import CvatExport
from unipixel_jax.infer.exports.label_images import LabelImages
from unipixel_jax.infer.exports.label_studio import LabelStudioExport
from unipixel_jax.infer.exports.labelme import LabelmeExport
from unipixel_jax.infer.exports.yolo import YoloExport

EXPORTS: dict[str, type[Export]] = {
    "coco": CocoExport,
    "yolo": YoloExport,
    "labelme": LabelmeExport,
    "cvat": CvatExport,
    "label-studio": LabelStudioExport,
    "png": LabelImages,
}
"""The formats that ``--format`` knows besides those of overlays."""

__all__ = ["EXPORTS", "Export", "labels_of"]
