"""Frames are chosen and read, and masks are resized to SAM's square."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from sample_data.discs import write_folder, write_video

from unipixel_jax.data.annotation import Annotation, DrawOptions, FrameFiles, Photo, Turn, VideoFrames
from unipixel_jax.data.draw import draw
from unipixel_jax.data.frames import choose_frames, read_frames, resize_masks, square_masks
from unipixel_jax.data.records import decode, encode
from unipixel_jax.errors import UserError
from unipixel_jax.processing.resize import bilinear_weights

LENGTH = 30


def options(low, high=None, kind="random"):
    return DrawOptions(sample_frames=(low, high or low), sample_type=kind)


def shades(count=LENGTH):
    return [Image.new("RGB", (48, 32), (8 * i, 8 * i, 8 * i)) for i in range(count)]


def numbers(clip):
    """The number of each frame, which its shade tells."""
    return np.rint(clip.frames.mean(axis=(1, 2, 3)) / 8).astype(int).tolist()


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    root = tmp_path_factory.mktemp("frames")
    write_folder(root / "folder", shades(), "frame{}.jpg")
    write_video(root / "video.mp4", shades())
    return root


@given(st.integers(1, 200), st.integers(1, 20), st.integers(0, 9))
def test_random_takes_one_frame_of_each_segment(count, wanted, seed):
    chosen = choose_frames(count, options(wanted), np.random.default_rng(seed))
    if count <= wanted:
        assert chosen.tolist() == list(range(count))
        return
    assert len(chosen) == wanted and (np.diff(chosen) > 0).all() and chosen[-1] < count - 1
    edges = [round(i * (count - 1) / wanted) for i in range(wanted + 1)]
    assert all(a - 1 <= c <= max(a, b) for a, b, c in zip(edges, edges[1:], chosen, strict=False))


@given(st.integers(2, 200), st.integers(2, 20))
def test_uniform_reaches_from_the_first_to_the_last(count, wanted):
    chosen = choose_frames(count, options(wanted, kind="uniform"), np.random.default_rng(0))
    assert chosen[0] == 0 and chosen[-1] == count - 1 and len(chosen) == min(count, wanted)


@given(st.integers(1, 100), st.integers(1, 12), st.integers(0, 10**6), st.sampled_from(["uniform", "random"]))
def test_an_anchor_is_always_taken(count, wanted, seed, kind):
    anchor = seed % count
    chosen = choose_frames(count, options(wanted, kind=kind), np.random.default_rng(seed), anchor)
    assert anchor in chosen and (np.diff(chosen) > 0).all() and len(chosen) == min(count, wanted)


def test_every_frame_of_a_segment_and_every_length_comes_up():
    rng = np.random.default_rng(0)
    drawn = [choose_frames(9, options(2, 4), rng) for _ in range(300)]
    assert {len(c) for c in drawn} == {2, 3, 4}
    assert {c[0] for c in drawn if len(c) == 2} == {0, 1, 2, 3}


def test_files(media):
    paths = tuple(str(media / f"folder/frame{i}.jpg") for i in range(LENGTH))
    clip, indices = read_frames(FrameFiles(paths), options(5), np.random.default_rng(1))
    assert numbers(clip) == list(indices) == clip.indices.tolist() and len(indices) == 5 and not clip.is_image
    clip, indices = read_frames(FrameFiles(paths, take_all=True), options(5), np.random.default_rng(1))
    assert numbers(clip) == list(indices) == list(range(LENGTH))
    clip, indices = read_frames(FrameFiles(paths[4:5]), options(5), np.random.default_rng(1))
    assert numbers(clip) == [4] and indices == (0,) and clip.is_image and clip.name == "frame4"


@pytest.mark.parametrize("name", ["folder", "video.mp4"])
def test_videos_count_the_frames_that_are_kept(media, name):
    path, rng = str(media / name), np.random.default_rng(2)
    clip, indices = read_frames(VideoFrames(path), options(6), rng)
    assert numbers(clip) == list(indices)
    keep = (3, 4, 10, 20, 21, 29)
    clip, indices = read_frames(VideoFrames(path, keep=keep, anchor=5), options(3), rng)
    assert numbers(clip) == [keep[i] for i in indices] and indices[-1] == 5
    clip, indices = read_frames(VideoFrames(path, stride=4), options(5), rng)
    assert numbers(clip) == [4 * i for i in indices] and max(indices) < 8
    clip, indices = read_frames(VideoFrames(path, anchor=17), options(4, kind="uniform"), rng)
    assert numbers(clip) == list(indices) == [0, 10, 17, 29]


@pytest.mark.parametrize("name", ["folder", "video.mp4"])
def test_frames_that_a_video_does_not_have(media, name):
    path, rng = str(media / name), np.random.default_rng(0)
    for keep in ((3, 30), (4, 3), (-1, 2), ()):
        with pytest.raises(UserError, match="expected increasing numbers from 0 to 29"):
            read_frames(VideoFrames(path, keep=keep), options(4), rng)
    with pytest.raises(UserError, match="frame 30 must be taken, but the clip has frames 0 to 29"):
        read_frames(VideoFrames(path, anchor=30), options(4), rng)


def test_media_that_are_not_there(media):
    with pytest.raises(UserError, match=r"gone\.mp4 does not exist"):
        read_frames(VideoFrames(str(media / "gone.mp4")), options(4), np.random.default_rng(0))
    with pytest.raises(UserError, match=r"gone\.jpg does not exist"):
        read_frames(FrameFiles((str(media / "gone.jpg"),)), options(4), np.random.default_rng(0))
    with pytest.raises(UserError, match="no frames, expected at least one"):
        read_frames(FrameFiles(()), options(4), np.random.default_rng(0))


@pytest.mark.parametrize("size", [(7, 9), (48, 40), (96, 200), (311, 64)])
@pytest.mark.parametrize("density", [0.002, 0.5])
def test_a_square_mask_holds_every_share(size, density, rng):
    """The masks are compared with the resize itself, written as two matrix products."""
    masks = rng.random((2, 3, *size)) < density
    rows, columns = bilinear_weights(size[0], 48), bilinear_weights(size[1], 48)
    expected = np.einsum("sh,ofhw,tw->ofst", rows, masks.astype(np.float32), columns) > 0
    assert (square_masks(masks, 48) == expected).all()


def test_masks_of_the_right_size_stay(rng):
    masks = rng.random((1, 2, 8, 8)) < 0.5
    assert resize_masks(masks, 8, 8) is masks
    assert not resize_masks(np.zeros((2, 5, 6), bool), 9, 9).any()


def test_images_are_taken_as_they_are_stored(tmp_path):
    """The masks of published data sets are drawn on the stored images, whatever EXIF says of turning them."""
    exif = Image.Exif()
    exif[274] = 6
    path = str(tmp_path / "a.jpg")
    Image.new("RGB", (48, 32)).save(path, exif=exif)
    for media in (FrameFiles((path,)), VideoFrames(str(tmp_path))):
        assert read_frames(media, options(1), np.random.default_rng(0))[0].frames.shape == (1, 32, 48, 3)
    annotation = Annotation("s", "multimodal", "multimodal", Photo(path), (Turn("chat", "a", "b"),), "n")
    for one in (annotation, decode(encode(annotation))):
        assert draw(one, options(1), np.random.default_rng(0)).clip.frames.shape == (1, 32, 48, 3)


def test_frames_that_are_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    for media in (FrameFiles((str(tmp_path / "a.jpg"),)), VideoFrames(str(tmp_path)), VideoFrames(str(tmp_path / "a.jpg"))):
        with pytest.raises(UserError, match=r"is a pipe, socket or device|does not exist: expected a video"):
            read_frames(media, options(1), np.random.default_rng(0))
