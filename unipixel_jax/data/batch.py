"""Samples padded to static shapes, as numpy arrays.

A batch is made of rows that know nothing of each other: each has tables of its own, so that any number of chips can share the rows. R rows of a batch;
B rows of ``collate``, which share their tables (1 in a batch), L tokens, F frames, O objects, S side of SAM's square.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.buckets import LADDERS, Ladder, Ladders
from unipixel_jax.data.assemble import Sample
from unipixel_jax.errors import UserError
from unipixel_jax.processing.batch import Inputs
from unipixel_jax.processing.batch import collate as collate_prompts
from unipixel_jax.processing.chat import IGNORE_INDEX

Agree = Callable[[dict[str, int]], dict[str, int]]
"""From this host's padded sizes to the largest of all hosts; every host calls it once for each batch."""
SINGLE = Ladder("rows that share tables", 1, 1.0, 1)


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
    """Rows on the host; ``collate_rows`` puts R in front of every shape.

    Attributes:
        inputs: the conversations; ``seg_positions`` those of ``clips``.
        labels: [B, L] int32.
        label_weights: [B, L] float32, in a batch summing to 1: every sample counts the same, and every label of a sample, as with the reference's
            micro-batches of one sample.
        clips: None where nothing is segmented.
        samples: source and name of every sample, for reports.
    """

    inputs: Inputs
    labels: NDArray[np.int32]
    label_weights: NDArray[np.float32]
    clips: ClipArrays | None
    samples: tuple[tuple[str, str], ...]


def collate(
    samples: Sequence[Sample],
    config: UniPixelConfig,
    pad_id: int,
    ladders: Ladders = LADDERS,
    *,
    rows: Sequence[Sequence[int]] | None = None,
    parts: int | None = None,
) -> BatchArrays:
    """Pad samples to rows that share their tables.

    Args:
        samples: all with clips to segment, or none.
        config: the model's sizes and token ids.
        pad_id: the token that fills up rows.
        ladders: the padded sizes.
        rows: the numbers of the samples in each row, as ``pack`` gives them; one sample a row where absent. Neither what a sample sees nor what it counts
            for changes with others in its row.
        parts: see processing/batch.py.

    Raises:
        UserError: samples with and without clips, or a size beyond its ladder.
    """
    if len({sample.masks is None for sample in samples}) > 1:
        raise UserError(f"a batch mixes samples with and without masks ({', '.join(sorted({s.data_type for s in samples}))}): group them by data type")
    rows = rows or [[i] for i in range(len(samples))]
    samples = [samples[i] for row in rows for i in row]
    # the conversation may hold more <|seg|> than are trained on; only the latter's positions go on
    sizes = replace(ladders, objects=LADDERS.objects)
    inputs = collate_prompts([sample.prompt for sample in samples], config, pad_id, sizes, per_row=[len(row) for row in rows], parts=parts)
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
    inputs = replace(inputs, seg_positions=np.zeros((shape[0], 0), np.int32) if clips is None else clips.seg_positions)
    return BatchArrays(inputs, labels, weights, clips, tuple((sample.source, sample.name) for sample in samples))


def collate_rows(
    samples: Sequence[Sample],
    rows: Sequence[Sequence[int]],
    batch_size: int,
    config: UniPixelConfig,
    pad_id: int,
    ladders: Ladders = LADDERS,
    agree: Agree | None = None,
    parts: int | None = None,
) -> BatchArrays:
    """A host's part of a batch.

    Args:
        samples: this host's, all with clips to segment, or none.
        rows: the numbers of the samples in each row.
        batch_size: samples of the whole batch, on all hosts.
        config: the model's sizes and token ids.
        pad_id: the token that fills up rows.
        ladders: the padded sizes of one row, and of the number of rows; rows that fill up count nothing.
        agree: needed where there are several hosts, whose arrays must have the same shapes.
        parts: of the frames of a row, one for each chip that shares it (processing/batch.py).

    Raises:
        UserError: see ``collate``.
    """
    single = replace(ladders, batch=SINGLE)
    groups = [[samples[i] for i in row] for row in rows]
    made = [collate(part, config, pad_id, single, rows=[range(len(part))], parts=parts) for part in groups]
    found = [sizes_of(row) for row in made]
    sizes = {name: max(one[name] for one in found) for name in found[0]} | {"batch": ladders.batch.size(len(rows))}
    if agree is not None:
        sizes = agree(sizes)
    count = sizes.pop("batch")
    fixed = replace(single.fixed(sizes), batch=SINGLE)
    for number, part in enumerate(groups):
        if any(found[number][name] != size for name, size in sizes.items()):
            made[number] = collate(part, config, pad_id, fixed, rows=[range(len(part))], parts=parts)
        made[number] = replace(made[number], label_weights=made[number].label_weights * np.float32(len(part) / batch_size))
    made += [_uncounted(made[-1])] * (count - len(made))
    return replace(_stack([replace(row, samples=()) for row in made]), samples=tuple(name for row in made for name in row.samples))


def sizes_of(arrays: BatchArrays) -> dict[str, int]:
    """The size of every dimension of ``collate``'s arrays that depends on the samples, named after the ladders. Collating with ``ladders.fixed(sizes)``
    gives just these, or larger ones, so that the elementwise maximum over rows and hosts fits them all.
    """
    inputs, clips = arrays.inputs, arrays.clips
    rows, tokens = inputs.input_ids.shape
    return {
        "batch": rows,
        "tokens": tokens,
        "patches": inputs.patches.shape[-2],
        "frame_patches": inputs.vision.frame_table.shape[-1],
        "windows": inputs.vision.window_table.shape[-2],
        "grid_frames": inputs.vision.frame_table.shape[-2],
        "frames": 1 if clips is None else clips.frames.shape[1],
        "references": len(inputs.references.frames),
        "memories": inputs.memory_rows.shape[0],
        "memory_tokens": inputs.memory_rows.shape[1],
        **({} if clips is None else {"objects": clips.masks.shape[2]}),
    }


def _uncounted(row: BatchArrays) -> BatchArrays:
    """A row that counts nothing."""
    clips = None if row.clips is None else replace(row.clips, valid=np.zeros_like(row.clips.valid))
    return BatchArrays(row.inputs, row.labels, np.zeros_like(row.label_weights), clips, ())


def _stack(trees: Sequence[Any]) -> Any:
    """The arrays of equal trees of dataclasses, stacked along a new first axis."""
    first = trees[0]
    if isinstance(first, np.ndarray):
        return np.stack(trees)
    if is_dataclass(first) and not isinstance(first, type):
        return replace(first, **{field.name: _stack([getattr(tree, field.name) for tree in trees]) for field in fields(first)})
    return first


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
