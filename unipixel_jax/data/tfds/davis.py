"""``davis`` of tensorflow-datasets: clips in which every pixel of some objects is marked. It has no words.

Its samples teach to follow objects that a user points at: each is marked by a point, and all are segmented through the clip, as in the task memory.
Source: ``tensorflow_datasets/video/davis``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from unipixel_jax.data.annotation import Annotation, Turn, VideoFrames
from unipixel_jax.data.files import read_labels
from unipixel_jax.data.sources.marked import locate_turn
from unipixel_jax.data.tfds.labels import LabelContents
from unipixel_jax.errors import UserError
from unipixel_jax.processing.media import Content
from unipixel_jax.processing.tokenizer import REF_TOKEN


def davis_annotation(record: Mapping[str, Any], source: str) -> Annotation:
    """A clip with one turn, about the objects of its first frame.

    Args:
        record: the record, with ``video/frames`` and ``video/segmentations`` as the files' bytes.
        source: the source's name.

    Raises:
        UserError: the first frame has no object, or cannot be read.
    """
    name = record["metadata"]["video_name"].decode("utf-8")
    video = record["video"]
    frames = tuple(Content(f"{source}/{name}/{i:05d}.jpg", data) for i, data in enumerate(video["frames"]))
    labels = tuple(Content(f"{source}/{name}/{i:05d}.png", data) for i, data in enumerate(video["segmentations"]))
    numbers = [n for n in np.unique(read_labels(labels[0])).tolist() if n]
    if not numbers:
        raise UserError(f"{source}, {name}: no object is marked in the first frame")
    marks = [f"[{i}] {REF_TOKEN}" for i in range(len(numbers))]
    turn: Turn = locate_turn(f"Where do {' and '.join(marks)} go?", range(len(numbers)), LabelContents(labels, tuple(numbers)))
    return Annotation(source, "mem_point_video", "memory", VideoFrames(frames), (turn,), name)
