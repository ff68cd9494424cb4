"""Index tables of the vision tower."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from processing_cases import recorded

from unipixel_jax.config import VisionConfig, preset
from unipixel_jax.core.buckets import BUCKETS, Buckets
from unipixel_jax.errors import UserError
from unipixel_jax.processing.vision_index import build_vision_index, vision_counts, window_order

TINY = preset("tiny").vision
GRIDS = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9).map(lambda n: 2 * n), st.integers(1, 9).map(lambda n: 2 * n)), min_size=1, max_size=3)


def patches_of(grids):
    """(clip, frame, row, column) of every patch in the order in which patches arrive, by plain loops."""
    return [
        (clip, t, 2 * y + dy, 2 * x + dx)
        for clip, (time, height, width) in enumerate(grids)
        for t in range(time)
        for y in range(height // 2)
        for x in range(width // 2)
        for dy in range(2)
        for dx in range(2)
    ]


@pytest.mark.parametrize("case", ["vision_image", "vision_videos", "vision_window_edges"])
def test_window_order_matches_the_reference(case):
    order = recorded()[f"{case}.window_order"]
    np.testing.assert_array_equal(window_order(recorded()[f"{case}.grid"], TINY), order)


@given(GRIDS, st.sampled_from([TINY, VisionConfig()]))
def test_each_patch_is_in_one_window_and_one_frame(grids, config):
    index = build_vision_index(grids, config)
    places = patches_of(grids)
    counts = vision_counts(grids, config)
    assert counts["patches"] == len(places) and counts["grid_frames"] == (index.frame_table < len(index.rope)).any(axis=1).sum()
    assert counts["windows"] == (index.window_table < len(index.rope)).any(axis=1).sum()
    assert counts["frame_patches"] == (index.frame_table < len(index.rope)).sum(axis=1).max()
    side = config.window_size // config.patch_size
    for table, inverse, key in (
        (index.window_table, index.window_inverse, lambda p: (p[0], p[1], p[2] // side, p[3] // side)),
        (index.frame_table, index.frame_inverse, lambda p: (p[0], p[1])),
    ):
        members = [set(row[row < len(inverse)].tolist()) for row in table]
        groups: dict[tuple[int, ...], set[int]] = {}
        for number, place in enumerate(places):
            groups.setdefault(key(place), set()).add(number)
        assert [m for m in members if m] == sorted(groups.values(), key=lambda g: members.index(g))
        assert sum(map(len, members)) == len(places)
        np.testing.assert_array_equal(table.reshape(-1)[inverse[: len(places)]], np.arange(len(places)))
        assert inverse.min() >= 0 and inverse.max() < table.size
    np.testing.assert_array_equal(index.rope[: len(places)], np.array(places)[:, 2:])
    assert index.window_table.shape[1] == side**2


@given(GRIDS)
def test_larger_sizes_only_add_empty_slots(grids):
    """The tables for N equal those for N padded further, except for the number that marks an empty slot."""
    roomy = dataclasses.replace(
        BUCKETS, patches=Buckets("patches", 4096, 2.0, 65536), windows=Buckets("windows", 512, 2.0, 65536), grid_frames=Buckets("frames", 32, 2.0, 64)
    )
    small, large = build_vision_index(grids, TINY), build_vision_index(grids, TINY, roomy)
    used = len(patches_of(grids))
    assert len(large.rope) > len(small.rope)
    for name in ("window", "frame"):
        a, b = getattr(small, f"{name}_table"), getattr(large, f"{name}_table")
        rows, columns = a.shape
        assert np.array_equal(np.where(b == len(large.rope), len(small.rope), b)[:rows, :columns], a)
        assert np.all(b[rows:] == len(large.rope)) and np.all(b[:, columns:] == len(large.rope))
    np.testing.assert_array_equal(small.rope[:used], large.rope[:used])


def test_no_clip_at_all():
    index = build_vision_index([], TINY)
    assert np.all(index.window_table == len(index.rope)) and np.all(index.frame_table == len(index.rope))


@pytest.mark.parametrize("grid", [(1, 3, 4), (1, 4, 5), (0, 4, 4)])
def test_a_grid_that_does_not_divide(grid):
    with pytest.raises(UserError, match="multiples of 2"):
        build_vision_index([grid], TINY)
