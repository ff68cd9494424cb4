"""References, memories, and how questions name them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unipixel_jax.config import VisionConfig
from unipixel_jax.core.buckets import BUCKETS
from unipixel_jax.errors import UserError
from unipixel_jax.processing.memory import memory_grid, memory_prefix, memory_tokens
from unipixel_jax.processing.prompts import Box, Clicks, Mask, Point, locating_turn, name_regions, numbered, reference_table, to_square

CONFIG = VisionConfig()


def test_coordinates_are_scaled_to_the_square():
    np.testing.assert_allclose(to_square(Point(50, 10, 2), 4, 40, 100, 768).coords, [[384, 192]])
    np.testing.assert_allclose(to_square(Box(0, 0, 100, 40), 1, 40, 100, 768).coords, [[0, 0], [768, 768]])


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (Point(101, 0), "outside the image, expected 0 <= x <= 100 and 0 <= y <= 40"),
        (Point(-1, 0), "outside"),
        (Box(0, 0, 10, 41), "outside"),
        (Box(5, 5, 5, 9), "no area"),
        (Point(1, 1, 4), "frame 4 is not in the clip, expected 0 to 3"),
        (Point(float("nan"), 1), "outside"),
    ],
)
def test_references_that_are_nowhere(reference, message):
    with pytest.raises(UserError, match=message):
        to_square(reference, 4, 40, 100, 768)


def test_reference_table():
    references = [(to_square(Point(1, 2, 3), 5, 10, 10, 10), 6), (to_square(Box(1, 2, 3, 4), 1, 10, 10, 10), 2)]
    table = reference_table(references, BUCKETS.references)
    assert table.labels.tolist() == [[1, -1, -1], [2, 3, -1], [-1, -1, -1], [-1, -1, -1]]
    assert table.coords[:2].tolist() == [[[1, 2], [0, 0], [0, 0]], [[1, 2], [3, 4], [0, 0]]]
    assert table.is_box.tolist() == [False, True, False, False]
    assert table.frames.tolist() == [3, 0, 0, 0] and table.spans.tolist() == [5, 1, 1, 1]


def test_regions_are_named_in_order():
    assert name_regions("Is <region> left of <region>?", ["[0]", "[1]"]) == "Is [0] left of [1]?"
    assert name_regions("Describe <|ref|>.", ["<|ref|>"]) == "Describe <|ref|>."
    assert name_regions("What is this?", ["[0]", "[1]"]) == "[0], [1]: What is this?"
    assert name_regions("What is this?", []) == "What is this?"
    with pytest.raises(UserError, match="1 <region> for 2 points"):
        name_regions("<region>", ["a", "b"])


def test_locating_turn_is_worded_as_in_training():
    question, answer = locating_turn("Who follows <region> and <region>?", 2)
    assert question == "Who follows [0] <|ref|> and [1] <|ref|>?. Please localize the relevant objects with IDs."
    assert answer == "[0] <|seg|> [1] <|seg|>"


def test_clicks_are_objects_of_their_own_or_have_numbers():
    alone = numbered([Clicks([(1, 2)]), Clicks(box=(1, 2, 3, 4), frame=3)])
    assert [(one.number, one.frame) for one in alone] == [(1, 0), (2, 3)] and numbered([]) == []
    given = [Clicks([(1, 2)], number=2), Clicks([(1, 2)], number=1, frame=1), Clicks([(1, 2)], number=2, frame=1)]
    assert numbered(given) == given


@pytest.mark.parametrize(
    ("clicks", "message"),
    [
        ([Clicks()], "clicks 1 hold nothing: give a point on the object"),
        ([Clicks([(1, 2)]), Clicks(off=[(1, 2)])], "clicks 2 hold points beside an object alone"),
        ([Clicks([(1, 2)], number=2)], r"are 2: expected 1, 2, \.\.\. without gaps"),
        ([Clicks([(1, 2)], number=0)], "are 0: expected"),
        ([Clicks([(1, 2)]), Clicks([(1, 2)], number=1)], "are none, 1: expected"),
        ([Clicks([(1, 2)], number=1, frame=4), Clicks(box=(1, 2, 3, 4), number=1, frame=4)], "object 1 is clicked on twice on frame 4"),
    ],
)
def test_clicks_that_mark_nothing(clicks, message):
    with pytest.raises(UserError, match=message):
        numbered(clicks)


def test_masks_on_a_clip():
    array = np.zeros((4, 6), bool)
    array[1, 2] = True
    on = Mask(array, 1).on_clip(3, 4, 6)
    assert on.sum() == 1 and on[1, 1, 2]
    np.testing.assert_array_equal(Mask(on).on_clip(3, 4, 6), on)
    with pytest.raises(UserError, match="frame 3 is not in the clip"):
        Mask(array, 3).on_clip(3, 4, 6)
    with pytest.raises(UserError, match=r"bool \[4, 6\], expected bool \[4, 7\] or \[3, 4, 7\]"):
        Mask(array).on_clip(3, 4, 7)
    with pytest.raises(UserError, match="uint8"):
        Mask(array.astype(np.uint8)).on_clip(3, 4, 6)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="mask is empty"):
        Mask(np.zeros((4, 6), bool)).on_clip(3, 4, 6)


def test_memory_prefix_lists_visible_pairs():
    grid = np.zeros((2, 2, 1, 1), bool)
    grid[:, 0] = grid[1, 1] = True
    assert memory_prefix(grid, 3) == (
        "Here is a video with 3 frames denoted as <1> to <3>. The highlighted regions are as follows:\n"
        "[0]: <1>-<2> <|mem|> <3>-<4> <|mem|>\n[1]: <3>-<4> <|mem|>\n"
    )
    assert memory_prefix(grid[:1, :1], 1) == "Here is an image with the following highlighted regions:\n[0]: <|mem|>\n"


def test_memory_grid_pairs_frames_and_touches_tokens():
    masks = np.zeros((2, 3, 56, 84), bool)
    masks[0, 1, 0, 0] = True  # second frame of the first pair, first token
    masks[0, 2, 55, 83] = True  # the odd frame, last token
    grid = memory_grid(masks, (2, 4, 6), CONFIG)
    assert grid.shape == (2, 2, 2, 3)
    assert np.argwhere(grid[:, 0]).tolist() == [[0, 0, 0], [1, 1, 2]]
    assert grid[:, 1].all()  # an object that is nowhere counts as everywhere


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_memory_rows_follow_the_window_order_quirk(seed):
    """The reference takes row i of the features in window order where token i in reading order is masked."""
    rng = np.random.default_rng(seed)
    clips = [rng.random((rng.integers(1, 4), rng.integers(1, 3), 2, 3)) < 0.3 for _ in range(2)]
    sizes = [clip[:, 0].size for clip in clips]
    order = rng.permutation(64).astype(np.int32)
    features = rng.random(64)
    expected = []
    for start, clip in zip((0, sizes[0]), clips, strict=True):
        reordered = features[order][start:]
        for seen in clip.swapaxes(0, 1):
            expected += [reordered[t * 6 : t * 6 + 6][mask.reshape(-1)].mean() for t, mask in enumerate(seen) if mask.any()]
    rows = [order[start + tokens] for start, clip in zip((0, sizes[0]), clips, strict=True) for tokens in memory_tokens(clip)]
    np.testing.assert_allclose([features[row].mean() for row in rows], expected)
