"""The order in which the vision tower holds patches, and the tables by which it attends: windows of a frame in most layers, whole frames in a few.

N patches, M merged tokens (``merge_unit`` patches each), W bins of C patches (those of a full window), G grid frames (pairs of frames). Patches arrive frame
by frame, merged tokens row by row, the patches of a merged token side by side. The tower holds them window by window: each full window is a bin, and windows
cut off by a frame's edge share bins, so that hardly any place stays empty. Source: ``rot_pos_emb`` and ``get_window_index`` of transformers' Qwen2.5-VL,
which keeps windows in reading order instead, since its attention takes them in any length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unipixel_jax.batch import VisionTables
from unipixel_jax.config import VisionConfig
from unipixel_jax.core.buckets import BUCKETS, BucketTable
from unipixel_jax.errors import UserError


def vision_sizes(grid_thw: ArrayLike, config: VisionConfig, buckets: BucketTable = BUCKETS) -> dict[str, int]:
    """The padded sizes of the tables for some clips, under the names of ``BucketTable``' fields, found without making them.

    Args:
        grid_thw: patches of each clip in time, height and width [clips, 3].
        config: the tower's sizes.
        buckets: the padded sizes to choose from; that of the patches is then made whole bins.

    Raises:
        UserError: a grid that does not divide into merged tokens, or a size beyond its buckets.
    """
    grids, capacity = _checked(grid_thw, config), config.window_patches
    _, bins = pack_windows(_window_counts(grids, config), capacity // config.merge_unit)
    return {
        "patches": -(-buckets.patches.size(bins * capacity) // capacity) * capacity,
        "grid_frames": buckets.grid_frames.size(int(grids[:, 0].sum())),
        "frame_patches": buckets.frame_patches.size(int((grids[:, 1] * grids[:, 2]).max(initial=0))),
    }


def build_vision_index(grid_thw: ArrayLike, config: VisionConfig, buckets: BucketTable = BUCKETS) -> tuple[VisionTables, NDArray[np.int32]]:
    """The tables for a list of clips whose patches follow one another.

    Args:
        grid_thw: patches of each clip in time, height and width [clips, 3]; height and width are multiples of ``spatial_merge_size``.
        config: the tower's sizes.
        buckets: the padded sizes that ``vision_sizes`` chooses from.

    Returns:
        The tables, and for each merged token, in the order of arrival, its place among those of the tower [tokens], int32.

    Raises:
        UserError: a grid that does not divide into merged tokens, or a size beyond its buckets.
    """
    grids, merge, unit = _checked(grid_thw, config), config.spatial_merge_size, config.merge_unit
    rows, columns, windows, frames = _label_tokens(grids, config)
    counts, capacity = _window_counts(grids, config), config.window_patches
    starts, _ = pack_windows(counts, capacity // unit)
    places = np.empty(len(windows), np.int32)
    places[np.argsort(windows, kind="stable")] = np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(len(windows))
    sizes = vision_sizes(grids, config, buckets)
    total = sizes["patches"]

    within_rows, within_columns = np.divmod(np.arange(unit), merge)
    rope = np.zeros((total // unit, unit, 2), np.int32)
    rope[places, :, 0] = rows[:, None] * merge + within_rows
    rope[places, :, 1] = columns[:, None] * merge + within_columns
    window_of = np.zeros((total // unit, unit), np.int32)
    window_of[places] = windows[:, None] + 1

    shape = sizes["grid_frames"], sizes["frame_patches"]
    counts = np.bincount(frames)
    within = np.arange(len(frames)) - np.repeat(np.cumsum(counts) - counts, counts)
    slots = (frames * shape[1] + within * unit)[:, None] + np.arange(unit)
    frame_inverse = np.zeros((total // unit, unit), np.int32)
    frame_inverse[places] = slots
    frame_table = np.full(shape, total, np.int32)
    frame_table.reshape(-1)[slots] = places[:, None] * unit + np.arange(unit)
    return VisionTables(rope.reshape(total, 2), window_of.reshape(-1, capacity), frame_table, frame_inverse.reshape(total)), places


def place_patches(patches: Sequence[NDArray[np.floating]], places: NDArray[np.int32], out: NDArray[np.floating]) -> None:
    """Lay patches in the tower's order, copying each once.

    Args:
        patches: of clips one after the other, as they arrive, each [patches, patch_dim].
        places: of all their merged tokens, from ``build_vision_index``.
        out: what is written to [N, patch_dim], contiguous, zeros before.
    """
    start, unit = 0, sum(map(len, patches)) // max(len(places), 1)
    for own in patches:
        stop = start + len(own) // unit
        out.reshape(-1, unit * out.shape[1])[places[start:stop]] = own.reshape(stop - start, -1)
        start = stop


def reference_order(grid_thw: ArrayLike, config: VisionConfig) -> NDArray[np.int32]:
    """The merged tokens in the order in which the reference's tower holds them, window after window: numbers in the order of arrival [tokens], int32."""
    return np.argsort(_label_tokens(_checked(grid_thw, config), config)[2], kind="stable").astype(np.int32)


def _checked(grid_thw: ArrayLike, config: VisionConfig) -> NDArray[np.int64]:
    """The grids [clips, 3].

    Raises:
        UserError: one that does not divide into merged tokens.
    """
    grids = np.asarray(grid_thw, np.int64).reshape(-1, 3)
    if np.any(grids < 1) or np.any(grids[:, 1:] % config.spatial_merge_size):
        raise UserError(f"patch grids {grids.tolist()}: expected positive sizes, height and width multiples of {config.spatial_merge_size}")
    return grids


def _window_side(config: VisionConfig) -> int:
    """Merged tokens along the side of a window."""
    return config.window_size // config.patch_size // config.spatial_merge_size


def _window_counts(grids: NDArray[np.int64], config: VisionConfig) -> NDArray[np.int64]:
    """Merged tokens of every window, frame by frame in reading order."""
    side, merge = _window_side(config), config.spatial_merge_size
    counts = [np.zeros(0, np.int64)]
    for time, height, width in grids // np.array([1, merge, merge]):
        down, across = (np.minimum(side, length - np.arange(0, length, side)) for length in (height, width))
        counts.append(np.tile(np.outer(down, across).reshape(-1), time))
    return np.concatenate(counts)


def _label_tokens(grids: NDArray[np.int64], config: VisionConfig) -> tuple[NDArray[np.int64], ...]:
    """Row, column, window and frame number of every merged token; the numbers of windows and frames run on from clip to clip."""
    side = _window_side(config)
    labels: list[tuple[NDArray[np.int64], ...]] = [(np.zeros(0, np.int64),) * 4]
    first_window = first_frame = 0
    for time, height, width in grids // np.array([1, config.spatial_merge_size, config.spatial_merge_size]):
        frame, row, column = np.indices((time, height, width)).reshape(3, -1)
        down, across = -(-height // side), -(-width // side)
        window = (frame * down + row // side) * across + column // side
        labels.append((row, column, window + first_window, frame + first_frame))
        first_window += time * down * across
        first_frame += time
    return tuple(np.concatenate(part) for part in zip(*labels, strict=True))


def pack_windows(counts: NDArray[np.int64], capacity: int) -> tuple[NDArray[np.int64], int]:
    """Where each window begins, so that none crosses the end of a bin, and how many bins that takes.

    Full windows come first. The others go, the largest first, into the fullest bin that still holds them.

    Args:
        counts: merged tokens of each window [windows].
        capacity: merged tokens of a bin.
    """
    full = counts == capacity
    bins = int(full.sum())
    starts = np.zeros(len(counts), np.int64)
    starts[full] = np.arange(bins) * capacity
    free: list[list[int]] = [[] for _ in range(capacity)]  # for each number of free places the bins that have as many
    cut = np.flatnonzero(~full)
    for window in cut[np.argsort(-counts[cut], kind="stable")].tolist():
        size = int(counts[window])
        room = next((room for room in range(size, capacity) if free[room]), capacity)
        if room == capacity:
            chosen, bins = bins, bins + 1
        else:
            chosen = free[room].pop()
        starts[window] = (chosen + 1) * capacity - room
        free[room - size].append(chosen)
    return starts, bins
