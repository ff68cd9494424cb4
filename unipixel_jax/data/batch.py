"""Samples padded to one batch of static shape, as numpy arrays.

B rows, L tokens, F frames, O objects, S side of SAM's square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.buckets import LADDERS, Ladders
from unipixel_jax.data.assemble import Sample
from unipixel_jax.errors import UserError
from unipixel_jax.processing.batch import Inputs
from unipixel_jax.processing.batch import collate as collate_prompts
from unipixel_jax.processing.chat import IGNORE_INDEX


@dataclass(frozen=True)
class ClipArrays:
    """What SAM is to find; the fields of train/objective.py's ``TrainClips``: frames [B, F, S, S, 3] of the samples' dtype, counts [B] int32,
    seg_positions [B, O] int32, masks [B, F, O, S, S] bool, valid [B, O] bool.
    """

    frames: NDArray[np.floating]
    counts: NDArray[np.int32]
    seg_positions: NDArray[np.int32]
    masks: NDArray[np.bool_]
    valid: NDArray[np.bool_]


@dataclass(frozen=True)
class BatchArrays:
    """One batch on the host.

    Attributes:
        inputs: the conversations.
        labels: [B, L] int32.
        label_weights: [B, L] float32: every sample counts the same, and every label of a sample, as with the reference's micro-batches of one sample.
        clips: None where nothing is segmented.
        samples: source and name of every sample, for reports.
    """

    inputs: Inputs
    labels: NDArray[np.int32]
    label_weights: NDArray[np.float32]
    clips: ClipArrays | None
    samples: tuple[tuple[str, str], ...]


def collate(
    samples: Sequence[Sample], config: UniPixelConfig, pad_id: int, ladders: Ladders = LADDERS, *, rows: Sequence[Sequence[int]] | None = None
) -> BatchArrays:
    """Pad samples to one batch.

    Args:
        samples: all with clips to segment, or none.
        config: the model's sizes and token ids.
        pad_id: the token that fills up rows.
        ladders: the padded sizes.
        rows: the numbers of the samples in each row, as ``pack`` gives them; one sample a row where absent. Neither what a sample sees nor what it counts
            for changes with others in its row.

    Raises:
        UserError: samples with and without clips, or a size beyond its ladder.
    """
    if len({sample.masks is None for sample in samples}) > 1:
        raise UserError(f"a batch mixes samples with and without masks ({', '.join(sorted({s.data_type for s in samples}))}): group them by data type")
    rows = rows or [[i] for i in range(len(samples))]
    samples = [samples[i] for row in rows for i in row]
    inputs = collate_prompts([sample.prompt for sample in samples], config, pad_id, ladders, per_row=[len(row) for row in rows])
    shape = inputs.input_ids.shape
    labels = np.full(shape, IGNORE_INDEX, np.int32)
    weights = np.zeros(shape, np.float32)
    following = iter(samples)
    for row, together in enumerate(rows):
        end = shape[1] - inputs.lengths[row]
        for sample in (next(following) for _ in together):
            place = slice(end, end := end + sample.tokens)
            counted = sample.labels != IGNORE_INDEX
            labels[row, place] = sample.labels
            weights[row, place][counted] = 1 / (max(counted.sum(), 1) * len(samples))
    clips = None if samples[0].masks is None else _clips(samples, inputs.seg_positions, config, ladders)
    return BatchArrays(inputs, labels, weights, clips, tuple((sample.source, sample.name) for sample in samples))


def _clips(samples: Sequence[Sample], seg_positions: NDArray[np.int32], config: UniPixelConfig, ladders: Ladders) -> ClipArrays:
    rows, side = len(seg_positions), config.sam2.image_size
    masks = [sample.masks for sample in samples if sample.masks is not None]
    shown = [s.prompt.picture.frames for s in samples if s.prompt.picture is not None and s.prompt.picture.frames is not None]
    frames, objects = ladders.frames.size(max(len(m) for m in masks)), ladders.objects.size(max(m.shape[1] for m in masks))
    out = ClipArrays(
        frames=np.zeros((rows, frames, side, side, 3), shown[0].dtype),
        counts=np.ones(rows, np.int32),
        seg_positions=np.zeros((rows, objects), np.int32),
        masks=np.zeros((rows, frames, objects, side, side), bool),
        valid=np.zeros((rows, objects), bool),
    )
    for row, (sample, mask, pixels) in enumerate(zip(samples, masks, shown, strict=True)):
        count, found = mask.shape[:2]
        out.frames[row, :count] = pixels
        out.counts[row] = count
        out.masks[row, :count, :found] = mask
        out.seg_positions[row, :found] = seg_positions[row, list(sample.objects)]
        out.valid[row, :found] = True
    return out
