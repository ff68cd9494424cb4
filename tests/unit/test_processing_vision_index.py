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
from unipixel_jax.processing.vision_index import build_vision_index, pack_windows, place_patches, reference_order, vision_sizes

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
    np.testing.assert_array_equal(reference_order(recorded()[f"{case}.grid"], TINY), recorded()[f"{case}.window_order"])


@given(GRIDS, st.sampled_from([TINY, VisionConfig(), VisionConfig(window_size=84)]))
def test_each_patch_is_in_one_window_and_one_frame(grids, config):
    index, tokens = build_vision_index(grids, config)
    arriving = patches_of(grids)
    places = (4 * tokens[:, None] + np.arange(4)).reshape(-1)
    total, side = len(index.rope), config.window_size // config.patch_size
    assert vision_sizes(grids, config) == {"patches": total, "grid_frames": index.frame_table.shape[0], "frame_patches": index.frame_table.shape[1]}
    assert index.windows.shape == (total // side**2, side**2) and len(set(places.tolist())) == len(arriving)
    np.testing.assert_array_equal(index.rope[places], np.array(arriving)[:, 2:])

    def grouped(labels):
        groups = {}
        for label, place in zip(labels, places.tolist(), strict=True):
            groups.setdefault(label, set()).add(place)
        return sorted(groups.values(), key=min)

    flat = index.windows.reshape(-1)
    windows = [set(np.flatnonzero(flat == number).tolist()) for number in np.unique(flat[flat > 0])]
    assert sorted(windows, key=min) == grouped([(clip, t, y // side, x // side) for clip, t, y, x in arriving])
    assert all(len({place // side**2 for place in window}) == 1 for window in windows), "no window lies in two bins"
    frames = [set(row[row < total].tolist()) for row in index.frame_table]
    assert sorted(filter(None, frames), key=min) == grouped([(clip, t) for clip, t, _, _ in arriving])
    np.testing.assert_array_equal(index.frame_table.reshape(-1)[index.frame_inverse[places]], places)
    empty = np.setdiff1d(np.arange(total), places)
    assert not index.rope[empty].any() and not flat[empty].any() and not index.frame_inverse[empty].any()


@given(GRIDS)
def test_larger_sizes_only_add_empty_places(grids):
    """The tables for N equal those for N padded further, but for the number that marks an empty place."""
    roomy = dataclasses.replace(BUCKETS, patches=Buckets("patches", 4096, 2.0, 65536), grid_frames=Buckets("frames", 32, 2.0, 64))
    (small, places), (large, same_places) = build_vision_index(grids, TINY), build_vision_index(grids, TINY, roomy)
    np.testing.assert_array_equal(places, same_places)
    total, more = len(small.rope), len(large.rope)
    assert more > total
    rows, columns = small.frame_table.shape
    assert np.array_equal(np.where(large.frame_table == more, total, large.frame_table)[:rows, :columns], small.frame_table)
    assert np.all(large.frame_table[rows:] == more) and np.all(large.frame_table[:, columns:] == more)
    for name in ("rope", "windows"):
        a, b = getattr(small, name), getattr(large, name)
        assert np.array_equal(b[: len(a)], a) and not b[len(a) :].any()


@given(st.lists(st.integers(1, 16), max_size=40).map(np.array))
def test_windows_share_bins_and_waste_few(counts):
    counts = counts.astype(np.int64)
    starts, bins = pack_windows(counts, 16)
    taken = np.concatenate([np.zeros(0, np.int64), *(np.arange(start, start + count) for start, count in zip(starts, counts, strict=True))])
    assert len(set(taken.tolist())) == counts.sum() and taken.max(initial=-1) < 16 * bins
    assert all(start // 16 == (start + count - 1) // 16 for start, count in zip(starts, counts, strict=True))
    # any two bins that are not more than half full would have been one
    assert bins <= 2 * counts.sum() / 16 + 1


def test_patches_are_laid_out_by_window():
    rng = np.random.default_rng(0)
    clips = [rng.random((24, 5)).astype(np.float32), rng.random((60, 5)).astype(np.float32)]
    index, places = build_vision_index([(1, 4, 6), (1, 6, 10)], TINY)
    out = np.zeros((len(index.rope), 5), np.float32)
    place_patches(clips, places, out)
    np.testing.assert_array_equal(out.reshape(-1, 20)[places], np.concatenate(clips).reshape(-1, 20))
    assert not np.delete(out.reshape(-1, 20), places, axis=0).any()


def test_no_clip_at_all():
    index, places = build_vision_index([], TINY)
    assert np.all(index.frame_table == len(index.rope)) and not index.windows.any() and places.shape == (0,)
    place_patches([], places, np.zeros((len(index.rope), 3), np.float32))


@pytest.mark.parametrize("grid", [(1, 3, 4), (1, 4, 5), (0, 4, 4)])
def test_a_grid_that_does_not_divide(grid):
    with pytest.raises(UserError, match="multiples of 2"):
        build_vision_index([grid], TINY)
