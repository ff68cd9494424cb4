"""Samples padded to static shapes, as numpy arrays.

A batch is made of rows that know nothing of each other: each has tables of its own, so that any number of devices can share the rows. R rows of a batch,
F frames, O objects, S side of SAM's square; the letters of the other shapes are those of ``unipixel_jax/batch.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from unipixel_jax.batch import TrainBatch, TrainClips, row
from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.buckets import BUCKETS, Buckets, BucketTable
from unipixel_jax.data.assemble import Sample
from unipixel_jax.errors import UserError
from unipixel_jax.processing.batch import Sizes, empty_inputs, measure, pixel_dtype, write_inputs
from unipixel_jax.processing.chat import IGNORE_INDEX

Agree = Callable[[dict[str, int]], dict[str, int]]
"""A function from this host's padded sizes to the largest sizes of all hosts. Every host calls it once for each batch."""
SINGLE = Buckets("rows that share tables", 1, 1.0, 1)


def collate(
    samples: Sequence[Sample],
    rows: Sequence[Sequence[int]],
    batch_size: int,
    config: UniPixelConfig,
    pad_id: int,
    buckets: BucketTable = BUCKETS,
    agree: Agree | None = None,
    parts: int | None = None,
) -> TrainBatch:
    """Make a host's part of a batch: its sizes are measured and agreed on, then each array is allocated once and the samples are written into it.

    Args:
        samples: this host's, all with clips to segment, or none.
        rows: the numbers of the samples in each row; neither what a sample sees nor what it counts for changes with others in its row.
        batch_size: samples of the whole batch, on all hosts.
        config: the model's sizes and token ids.
        pad_id: the token that fills up rows.
        buckets: the padded sizes of one row, and of the number of rows; rows of padding count nothing.
        agree: needed where there are several hosts, whose arrays must have the same shapes.
        parts: how many devices share the frames of a row, which are split into one part for each (processing/batch.py); None where none do.

    Returns:
        Arrays [R, ...] of numpy, in which each row is a batch with B = 1.

    Raises:
        UserError: samples with and without clips, a size beyond its buckets, or what ``write_inputs`` refuses.
    """
    if len({sample.masks is None for sample in samples}) > 1:
        raise UserError(f"a batch mixes samples with and without masks ({', '.join(sorted({s.data_type for s in samples}))}): group them by data type")
    groups = [[samples[i] for i in together] for together in rows]
    found = [_measure(group, config, buckets, parts) for group in groups]
    sizes = {name: max(one[name] for one in found) for name in found[0]} | {"batch": buckets.batch.size(len(rows))}
    if agree is not None:
        sizes = agree(sizes)
    ordered = [sample for group in groups for sample in group]
    out = _empty(ordered, sizes, config, pad_id, parts)
    for number, group in enumerate(groups):
        _write(row(out, number), group, batch_size, config)
    return replace(out, samples=tuple((sample.source, sample.name) for sample in ordered))


def _measure(samples: Sequence[Sample], config: UniPixelConfig, buckets: BucketTable, parts: int | None) -> Sizes:
    """The padded sizes of a row."""
    sizes = measure([[sample.conversation for sample in samples]], config, replace(buckets, batch=SINGLE), parts)
    return sizes | {"frames": buckets.frames.size(max(0 if sample.masks is None else len(sample.masks) for sample in samples))}


def _empty(samples: Sequence[Sample], sizes: Mapping[str, int], config: UniPixelConfig, pad_id: int, parts: int | None) -> TrainBatch:
    """A batch of padding, in which nothing counts."""
    conversations = [sample.conversation for sample in samples]
    rows, frames, objects, side = sizes["batch"], sizes["frames"], sizes["objects"], config.sam2.image_size
    dtype = pixel_dtype(conversations)
    inputs = empty_inputs({**sizes, "batch": 1}, config, pad_id, dtype, parts, lead=(rows,))
    clips = None
    if samples[0].masks is not None:
        clips = TrainClips(
            frames=np.zeros((rows, 1, frames, side, side, 3), dtype),
            counts=np.ones((rows, 1), np.int32),
            masks=np.zeros((rows, 1, frames, objects, side, side), bool),
            valid=np.zeros((rows, 1, objects), bool),
        )
    shape = inputs.input_ids.shape
    return TrainBatch(inputs, np.full(shape, IGNORE_INDEX, np.int32), np.zeros(shape, np.float32), clips)


def _write(out: TrainBatch, samples: Sequence[Sample], batch_size: int, config: UniPixelConfig) -> None:
    """Write the samples of a row into it. A row in which something is to be segmented holds one sample."""
    write_inputs(out.inputs, [[sample.conversation for sample in samples]], config)
    end = out.labels.shape[1] - out.inputs.lengths[0]
    for sample in samples:
        place = slice(end, end := end + sample.tokens)
        counted = sample.labels != IGNORE_INDEX
        out.labels[0, place] = sample.labels
        out.label_weights[0, place][counted] = 1 / (max(counted.sum(), 1) * batch_size)
        if out.clips is not None and sample.masks is not None and sample.conversation.media is not None:
            count, objects = sample.masks.shape[:2]
            out.clips.frames[0, :count] = sample.conversation.media.frames
            out.clips.counts[0] = count
            out.clips.masks[0, :count, :objects] = sample.masks
            out.clips.valid[0, :objects] = True
