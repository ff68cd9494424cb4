"""Index tables that turn the vision tower's ragged windows and frames into dense batches.

N patches, M merged tokens (``merge_unit`` patches each), W windows, G grid frames (pairs of frames). Patches stay in the order in which they
arrive: frame by frame, merged tokens row by row, and the patches of a merged token side by side. Source: ``rot_pos_emb`` and
``get_window_index`` of transformers' Qwen2.5-VL, which instead reorders the patches themselves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unipixel_jax.batch import VisionTables
from unipixel_jax.config import VisionConfig
from unipixel_jax.core.buckets import BUCKETS, BucketTable
from unipixel_jax.errors import UserError


def vision_counts(grid_thw: ArrayLike, config: VisionConfig) -> dict[str, int]:
    """How many patches, windows and grid frames some clips have, and the patches of their largest frame, under the names of ``BucketTable``' fields.

    Args:
        grid_thw: patches of each clip in time, height and width [clips, 3].
        config: the tower's sizes.

    Raises:
        UserError: a grid that does not divide into merged tokens.
    """
    time, height, width = _checked(grid_thw, config).T
    side = _window_side(config) * config.spatial_merge_size
    return {
        "patches": int((time * height * width).sum()),
        "windows": int((time * -(-height // side) * -(-width // side)).sum()),
        "grid_frames": int(time.sum()),
        "frame_patches": int((height * width).max(initial=0)),
    }


def window_order(grid_thw: ArrayLike, config: VisionConfig) -> NDArray[np.int32]:
    """The merged tokens of some clips in the order in which the reference's tower holds them, window after window.

    Args:
        grid_thw: patches of each clip in time, height and width [clips, 3].
        config: the tower's sizes.

    Returns:
        [merged tokens], int32; a token's number says where it stands in reading order.
    """
    _, _, windows, _ = _label_tokens(_checked(grid_thw, config), config)
    return np.argsort(windows, kind="stable").astype(np.int32)


def build_vision_index(grid_thw: ArrayLike, config: VisionConfig, buckets: BucketTable = BUCKETS) -> VisionTables:
    """The tables for a list of clips whose patches follow one another.

    Args:
        grid_thw: patches of each clip in time, height and width [clips, 3]; height and width are multiples of ``spatial_merge_size``.
        config: the tower's sizes.
        buckets: the padded sizes of what ``vision_counts`` counts.

    Raises:
        UserError: a grid that does not divide into merged tokens, or a size beyond its buckets.
    """
    grids = _checked(grid_thw, config)
    sizes = {name: getattr(buckets, name).size(count) for name, count in vision_counts(grids, config).items()}
    merge, unit, total = config.spatial_merge_size, config.merge_unit, sizes["patches"]
    rows, columns, windows, frames = _label_tokens(grids, config)
    within_rows, within_columns = np.divmod(np.arange(unit), merge)
    rope = np.zeros((total, 2), np.int32)
    rope[: len(rows) * unit, 0] = (rows[:, None] * merge + within_rows).reshape(-1)
    rope[: len(rows) * unit, 1] = (columns[:, None] * merge + within_columns).reshape(-1)
    window_table, window_inverse = _group(np.repeat(windows, unit), total, sizes["windows"], _window_side(config) ** 2 * unit)
    frame_table, frame_inverse = _group(np.repeat(frames, unit), total, sizes["grid_frames"], sizes["frame_patches"])
    return VisionTables(rope, window_table, window_inverse, frame_table, frame_inverse)


def _checked(grid_thw: ArrayLike, config: VisionConfig) -> NDArray[np.int64]:
    """The grids [clips, 3].

    Raises:
        UserError: one that does not divide into merged tokens.
    """
    grids = np.asarray(grid_thw, np.int64).reshape(-1, 3)
    merge = config.spatial_merge_size
    if np.any(grids < 1) or np.any(grids[:, 1:] % merge):
        raise UserError(f"patch grids {grids.tolist()}: expected positive sizes, height and width multiples of {merge}")
    return grids


def _window_side(config: VisionConfig) -> int:
    """Merged tokens along the side of a window."""
    return config.window_size // config.spatial_merge_size // config.patch_size


def _label_tokens(grids: NDArray[np.int64], config: VisionConfig) -> tuple[NDArray[np.int64], ...]:
    """Row, column, window and frame number of every merged token; the numbers of windows and frames run on from clip to clip."""
    merge, side = config.spatial_merge_size, _window_side(config)
    labels: list[tuple[NDArray[np.int64], ...]] = [(np.zeros(0, np.int64),) * 4]
    first_window = first_frame = 0
    for time, height, width in grids // np.array([1, merge, merge]):
        frame, row, column = np.indices((time, height, width)).reshape(3, -1)
        down, across = -(-height // side), -(-width // side)
        window = (frame * down + row // side) * across + column // side
        labels.append((row, column, window + first_window, frame + first_frame))
        first_window += time * down * across
        first_frame += time
    return tuple(np.concatenate(part) for part in zip(*labels, strict=True))


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
