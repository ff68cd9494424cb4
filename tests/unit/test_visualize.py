"""Drawing objects over photos and clips."""

import sys
from dataclasses import replace

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from unipixel_jax.errors import UserError
from unipixel_jax.infer.overlays import SIDE, save_overlay
from unipixel_jax.infer.prediction import Prediction, SegmentedObject
from unipixel_jax.infer.visualize import PALETTE, _badge_place, _grow, color_label, colour_of, draw_objects, format_answer


def disc(height=120, width=160, x=80, y=60, radius=40):
    ys, xs = np.ogrid[:height, :width]
    return (xs - x) ** 2 + (ys - y) ** 2 <= radius**2


def contrast(one, other):
    """WCAG's contrast ratio of two colours."""

    def light(colour):
        part = np.array(colour) / 255
        return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    bright, dark = sorted((light(one), light(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("level", [0, 90, 128, 255])
def test_the_outline_stands_out_on_any_background(level):
    frame = np.full((120, 160, 3), level, np.uint8)
    mask = disc()
    drawn = draw_objects(frame, [mask])
    ring = drawn[_grow(mask, 2) & ~mask]
    assert max(contrast(pixel, frame[0, 0]) for pixel in np.unique(ring, axis=0)) > 4
    np.testing.assert_array_equal(drawn[~_grow(mask, 4)], frame[~_grow(mask, 4)])
    assert np.all(frame == level)


def test_the_fill_lets_the_image_through():
    frame = np.zeros((120, 160, 3), np.uint8)
    frame[:, 80:] = 255
    drawn = draw_objects(frame, [disc()]).astype(int)
    assert drawn[85, 60].tolist() == [int(0.45 * c) for c in PALETTE[0]]
    assert np.all(drawn[85, 100] > drawn[85, 60])


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=25)), st.integers(0, 9))
def test_growing_reaches_every_near_pixel(mask, by):
    expected = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        expected[max(0, y - by) : y + by + 1, max(0, x - by) : x + by + 1] = True
    np.testing.assert_array_equal(_grow(mask, by), expected)


def test_badges_lie_inside_and_apart():
    ring = disc(radius=50) & ~disc(radius=25)
    x, y = _badge_place(ring, [], 12)
    assert ring[y, x]
    a, b = _badge_place(ring, [(x, y)], 12)
    assert ring[b, a] and (a - x) ** 2 + (b - y) ** 2 > 24**2
    dot = np.zeros((2000, 3000), bool)
    dot[1001, 7] = True
    assert _badge_place(dot, [], 12) == (7, 1001)


def test_an_empty_mask_draws_nothing():
    frame = np.full((50, 50, 3), 9, np.uint8)
    np.testing.assert_array_equal(draw_objects(frame, [np.zeros((50, 50), bool)]), frame)


def test_colours_repeat_but_numbers_go_on():
    assert colour_of(8) == colour_of(1) and len(set(PALETTE)) == 7
    assert " 8 " in color_label(8) and color_label(8, colour=False) == "[8]"


def test_answers_show_numbers_for_segments():
    def item(span):
        return SegmentedObject.from_masks(np.zeros((1, 2, 2), bool), np.zeros(1, np.float32), np.zeros(1, np.float32), span)

    prediction = Prediction("A <|seg|> and <|seg|>.", [], [item(None), item((2, 9)), item((14, 21))], [0], (4, 6))
    assert format_answer(prediction, colour=False) == "A [2] and [3]."
    assert format_answer(prediction) == f"A {color_label(2)} and {color_label(3)}."
    assert format_answer(replace(prediction, first=0), colour=False) == "A [1] and [2]."


def test_a_photo_file_holds_what_was_drawn(tmp_path):
    frame = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    save_overlay(tmp_path / "out" / "a.png", frame[None], [disc()[None]])
    with Image.open(tmp_path / "out" / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), draw_objects(frame, [disc()]))
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_clip_files_hold_every_frame(tmp_path):
    frames = np.full((3, 121, 161, 3), 128, np.uint8)
    masks = np.stack([np.pad(disc(x=50 + 20 * i), ((0, 1), (0, 1))) for i in range(3)])
    save_overlay(tmp_path / "a.gif", frames, [masks])
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 3 and image.size == (161, 121) and image.info["loop"] == 0
        for i in range(3):
            image.seek(i)
            difference = np.asarray(image.convert("RGB")).astype(int) - draw_objects(frames[i], [masks[i]])
            assert np.abs(difference).mean() < 2
    save_overlay(tmp_path / "a.mp4", frames, [masks])
    with av.open(str(tmp_path / "a.mp4")) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(decoded) == 3 and decoded[0].shape == (122, 162, 3)
    assert np.abs(decoded[2][:121, :161].astype(int) - draw_objects(frames[2], [masks[2]])).mean() < 8


def test_a_large_clip_is_shrunk_for_a_gif(tmp_path):
    save_overlay(tmp_path / "a.gif", np.zeros((2, 100, 2 * SIDE, 3), np.uint8), [])
    with Image.open(tmp_path / "a.gif") as image:
        assert image.size == (SIDE, 50)


@pytest.mark.parametrize(("name", "frames"), [("a.jpg", 1), ("a.png", 2), ("a", 2)])
def test_names_that_do_not_fit(tmp_path, name, frames):
    with pytest.raises(UserError, match=f"for {frames} frames: expected a name ending in"):
        save_overlay(tmp_path / name, np.zeros((frames, 20, 20, 3), np.uint8), [])
    assert not list(tmp_path.iterdir())


def test_without_pyav_a_gif_is_offered(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"writing MP4 needs PyAV.*gif"):
        save_overlay(tmp_path / "a.mp4", np.zeros((2, 20, 20, 3), np.uint8), [])
    assert not list(tmp_path.iterdir())


def test_an_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_overlay(tmp_path / "file" / "a.png", np.zeros((1, 20, 20, 3), np.uint8), [])
