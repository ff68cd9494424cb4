"""``ref_coco`` of tensorflow-datasets: COCO's photos, and objects in them with several expressions each.

Source: ``tensorflow_datasets/datasets/ref_coco``; the samples are those of the reference's ``RefCOCODataset``, one for each photo.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unipixel_jax.data.annotation import Annotation, FrameFiles, Turn
from unipixel_jax.data.tfds.labels import LabelContents
from unipixel_jax.processing.media import Content


def ref_coco_annotation(record: Mapping[str, Any], source: str) -> Annotation:
    """A photo with one turn for each expression.

    Args:
        record: the record, with ``image`` and ``objects/mask`` as the files' bytes.
        source: the source's name.
    """
    number = int(record["image/id"])
    objects = record["objects"]
    turns = []
    for identity, mask, expressions in zip(objects["id"], objects["mask"], objects["refexp"]["raw"], strict=True):
        masks = LabelContents((Content(f"{source}/{number}/{identity}.png", mask),), (None,))
        turns += [Turn("query", text.decode("utf-8"), masks=masks) for text in expressions]
    return Annotation(source, "seg_image", "segmentation", FrameFiles((Content(f"{source}/{number}.jpg", record["image"]),)), tuple(turns), str(number))
