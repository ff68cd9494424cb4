"""Multimodal rotary positions."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from processing_cases import recorded

from unipixel_jax.config import preset
from unipixel_jax.errors import UserError
from unipixel_jax.processing.rope_index import rope_index

CONFIG = preset("tiny")
START, END, VIDEO, IMAGE = CONFIG.vision_start_token_id, CONFIG.vision_end_token_id, CONFIG.video_token_id, CONFIG.image_token_id


def video_prompt(before, grid, after):
    return [1] * before + [START] + [VIDEO] * (grid[0] * grid[1] * grid[2] // 4) + [END] + [2] * after


@pytest.mark.parametrize("suffix", ["", "_b"])
def test_matches_the_reference(suffix):
    case = {k.removeprefix("rope_index."): v for k, v in recorded().items()}
    images = case["inputs.image_grid_thw"] if not suffix else None
    positions, deltas = rope_index(
        case[f"inputs.input_ids{suffix}"],
        CONFIG,
        image_grid_thw=images,
        video_grid_thw=case[f"inputs.video_grid_thw{suffix}"],
        second_per_grid_ts=case[f"inputs.second_per_grid_ts{suffix}"],
    )
    np.testing.assert_array_equal(positions, case[f"outputs.position_ids{suffix}"])
    np.testing.assert_array_equal(deltas[:, None], case[f"outputs.rope_deltas{suffix}"])


@pytest.mark.parametrize(("seconds", "times"), [(0.9, [0, 0, 0]), (1.0, [0, 2, 4]), (2.7, [0, 4, 8])])
def test_a_fraction_of_a_second_is_dropped_before_multiplying(seconds, times):
    positions, _ = rope_index([video_prompt(0, (3, 2, 2), 0)], CONFIG, video_grid_thw=[(3, 2, 2)], second_per_grid_ts=[seconds])
    np.testing.assert_array_equal(positions[0, 0, 1:4], np.array(times) + 1)


def test_a_fractional_rate_is_cut_off_after_multiplying():
    config = dataclasses.replace(CONFIG, vision=dataclasses.replace(CONFIG.vision, tokens_per_second=1.5))
    positions, _ = rope_index([video_prompt(0, (3, 2, 2), 0)], config, video_grid_thw=[(3, 2, 2)], second_per_grid_ts=[1.0])
    np.testing.assert_array_equal(positions[0, 0, 1:4], [1, 2, 4])


@given(st.integers(1, 20), st.integers(0, 9), st.integers(0, 9))
def test_words_alone_count_up_and_padding_changes_nothing(length, left, right):
    ids = [7] * left + list(range(1, length + 1)) + [7] * right
    mask = [0] * left + [1] * length + [0] * right
    positions, deltas = rope_index([ids], CONFIG, attention_mask=[mask])
    np.testing.assert_array_equal(positions[:, 0, left : left + length], np.tile(np.arange(length), (3, 1)))
    assert np.all(positions[:, 0, :left] == 1) and np.all(positions[:, 0, left + length :] == 1)
    assert len(ids) + deltas[0] == length


@given(st.integers(0, 5), st.tuples(st.integers(1, 3), st.sampled_from([2, 4, 6]), st.sampled_from([2, 8])), st.integers(0, 5), st.integers(0, 30))
def test_rows_of_a_batch_do_not_see_each_other(before, grid, after, padding):
    alone = video_prompt(before, grid, after)
    other = video_prompt(2, (2, 4, 4), 3)
    width = max(len(alone), len(other)) + padding
    ids = np.zeros((2, width), int)
    mask = np.zeros((2, width), int)
    for row, tokens in enumerate((alone, other)):
        ids[row, width - len(tokens) :], mask[row, width - len(tokens) :] = tokens, 1
    together, deltas = rope_index(ids, CONFIG, video_grid_thw=[grid, (2, 4, 4)], attention_mask=mask)
    single, delta = rope_index([alone], CONFIG, video_grid_thw=[grid])
    np.testing.assert_array_equal(together[:, 0, width - len(alone) :], single[:, 0])
    assert deltas[0] + width == delta[0] + len(alone) == single.max() + 1


@pytest.mark.parametrize(
    ("ids", "grids", "message"),
    [
        ([START, VIDEO, END], [], "more images than there are grids"),
        ([1, 2], [(1, 2, 2)], "more grids than images"),
        ([START, VIDEO, END], [(1, 2, 4)], "too few image tokens"),
        ([START, VIDEO], [(1, 2, 4)], "too few image tokens"),
    ],
)
def test_images_and_grids_that_do_not_fit(ids, grids, message):
    with pytest.raises(UserError, match=message):
        rope_index([ids], CONFIG, video_grid_thw=grids)


def test_an_empty_row():
    with pytest.raises(UserError, match="prompt 1 of the batch is empty"):
        rope_index([[1, 2], [0, 0]], CONFIG, attention_mask=[[1, 1], [0, 0]])


def test_images_keep_one_time():
    ids = [START] + [IMAGE] * 4 + [END]
    positions, _ = rope_index([ids], CONFIG, image_grid_thw=[(1, 4, 4)])
    np.testing.assert_array_equal(positions[:, 0, 1:5], [[1, 1, 1, 1], [1, 1, 2, 2], [1, 2, 1, 2]])
    assert positions[0, 0, 5] == 3
