"""Index tables that turn the vision tower's ragged windows and frames into dense batches.

N patches, M merged tokens (``merge_unit`` patches each), W windows, G grid frames (pairs of frames). Patches stay in the order in which they
arrive: frame by frame, merged tokens row by row, and the patches of a merged token side by side. Source: ``rot_pos_emb`` and
``get_window_index`` of transformers' Qwen2.5-VL, which instead reorders the patches themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unipixel_jax.config import VisionConfig
from unipixel_jax.core.buckets import LADDERS, Ladders
from unipixel_jax.errors import UserError


@dataclass(frozen=True)
class VisionIndex:
    """Where every patch goes. All arrays are int32; N, W and G are padded sizes, and an empty slot of a table holds N.

    Attributes:
        rope: row and column of each patch in its frame [N, 2]; 0 at padding.
        window_table: the patches of each window [W, patches of a full window].
        window_inverse: where each patch lies in the flattened ``window_table`` [N]; 0 at padding.
        frame_table: the patches of each grid frame [G, patches of the largest frame, padded].
        frame_inverse: where each patch lies in the flattened ``frame_table`` [N]; 0 at padding.
        window_order: the merged tokens in the order in which the reference's tower holds them, window after window [M]; padding keeps its place.
    """

    rope: NDArray[np.int32]
    window_table: NDArray[np.int32]
    window_inverse: NDArray[np.int32]
    frame_table: NDArray[np.int32]
    frame_inverse: NDArray[np.int32]
    window_order: NDArray[np.int32]


def build_vision_index(grid_thw: ArrayLike, config: VisionConfig, ladders: Ladders = LADDERS) -> VisionIndex:
    """The tables for a list of clips whose patches follow one another.

    Args:
        grid_thw: patches of each clip in time, height and width [clips, 3]; height and width are multiples of ``spatial_merge_size``.
        config: the tower's sizes.
        ladders: the padded sizes; N comes from ``patches``, W from ``windows``, G from ``grid_frames``, and the width of the frame table from
            ``frame_patches``.

    Raises:
        UserError: a grid that does not divide into merged tokens, or a size beyond its ladder.
    """
    grids = np.asarray(grid_thw, np.int64).reshape(-1, 3)
    merge, unit = config.spatial_merge_size, config.merge_unit
    if np.any(grids < 1) or np.any(grids[:, 1:] % merge):
        raise UserError(f"patch grids {grids.tolist()}: expected positive sizes, height and width multiples of {merge}")
    side = config.window_size // merge // config.patch_size
    rows, columns, windows, frames = (np.concatenate(part) for part in zip(*_label_tokens(grids // np.array([1, merge, merge]), side), strict=True))

    patches = len(rows) * unit
    total = ladders.patches.size(patches)
    within_rows, within_columns = np.divmod(np.arange(unit), merge)
    rope = np.zeros((total, 2), np.int32)
    rope[:patches, 0] = (rows[:, None] * merge + within_rows).reshape(-1)
    rope[:patches, 1] = (columns[:, None] * merge + within_columns).reshape(-1)

    window_table, window_inverse = _group(np.repeat(windows, unit), total, ladders.windows.size(windows.max(initial=-1) + 1), side**2 * unit)
    largest = int((grids[:, 1] * grids[:, 2]).max(initial=0))
    shown = ladders.grid_frames.size(frames.max(initial=-1) + 1)
    frame_table, frame_inverse = _group(np.repeat(frames, unit), total, shown, ladders.frame_patches.size(largest))
    window_order = np.arange(total // unit, dtype=np.int32)
    window_order[: len(windows)] = np.argsort(windows, kind="stable")
    return VisionIndex(rope, window_table, window_inverse, frame_table, frame_inverse, window_order)


def _label_tokens(grids: NDArray[np.int64], side: int) -> list[tuple[NDArray[np.int64], ...]]:
    """Row, column, window and frame number of every merged token, clip by clip; the numbers of windows and frames run on from clip to clip."""
    labels: list[tuple[NDArray[np.int64], ...]] = [(np.zeros(0, np.int64),) * 4]
    first_window = first_frame = 0
    for time, height, width in grids:
        frame, row, column = np.indices((time, height, width)).reshape(3, -1)
        down, across = -(-height // side), -(-width // side)
        window = (frame * down + row // side) * across + column // side
        labels.append((row, column, window + first_window, frame + first_frame))
        first_window += time * down * across
        first_frame += time
    return labels


def _group(group: NDArray[np.int64], total: int, groups: int, size: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The members of each group as a table [groups, size] filled up with ``total``, and each member's slot in it [total]."""
    order = np.argsort(group, kind="stable")
    counts = np.bincount(group, minlength=groups)
    rank = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
    slot = group[order] * size + rank
    table = np.full(groups * size, total, np.int32)
    table[slot] = order
    inverse = np.zeros(total, np.int32)
    inverse[order] = slot
    return table.reshape(groups, size), inverse
