"""Reading photos, clips and folders."""

import sys

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_media import decode_all, gray, write_video
from PIL import Image

from unipixel_jax.errors import UserError
from unipixel_jax.processing.media import Clip, read_media, sample_indices


@given(st.integers(1, 2000), st.integers(2, 64))
def test_sampling_is_even_and_keeps_both_ends(count, wanted):
    indices = sample_indices(count, wanted)
    assert len(indices) == min(count, wanted)
    assert indices[0] == 0 and indices[-1] == count - 1
    assert np.ptp(np.diff(indices)) <= 1 if len(indices) > 1 else True


def test_sampling_one_and_all():
    assert sample_indices(9, 1).tolist() == [0]
    assert sample_indices(9, None).tolist() == list(range(9))
    assert sample_indices(7, 4).tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.ts", "libx264"), ("a.mpg", "mpeg2video"), ("a.h264", "libx264")]
)
def test_a_video_gives_the_very_frames_asked_for(tmp_path, name, codec):
    path = write_video(tmp_path / name, codec)
    every = decode_all(path)
    for wanted in (1, 3, 16, None):
        clip = read_media(path, wanted)
        assert len(clip.frames) == (wanted or 40) and not clip.is_image and clip.name == "a"
        np.testing.assert_array_equal(clip.frames, every[clip.indices])


def test_a_turned_video_is_turned_back(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    upright = read_media(path, 3).frames
    content = path.read_bytes()
    one, turned = "00010000", "ffff0000"
    straight = bytes.fromhex(one + "0" * 24 + one + "0" * 24 + "40000000")
    quarter = bytes.fromhex("0" * 8 + one + "0" * 8 + turned + "0" * 32 + "40000000")
    assert content.count(straight) >= 1
    place = content.index(straight, content.index(b"tkhd"))
    path.write_bytes(content[:place] + quarter + content[place + 36 :])
    np.testing.assert_array_equal(read_media(path, 3).frames, np.rot90(upright, -1, axes=(1, 2)))


def test_a_folder_is_sorted_by_number(tmp_path):
    for name, value in (("f10.png", 30), ("f9.PNG", 20), ("f1.bmp", 10)):
        gray(value).save(tmp_path / name)
    (tmp_path / "._f0.png").write_bytes(b"not an image")
    (tmp_path / "notes.txt").write_text("no frame")
    clip = read_media(tmp_path)
    assert clip.frames[:, 0, 0, 0].tolist() == [10, 20, 30] and not clip.is_image


def test_a_photo(tmp_path):
    gray(7).save(tmp_path / "a.png")
    clip = read_media(str(tmp_path / "a.png"))
    assert clip.is_image and clip.frames.shape == (1, 4, 6, 3) and clip.name == "a" and clip.over_white is None
    assert read_media(clip) is clip


def test_a_photo_under_another_ending_is_recognised(tmp_path):
    gray(7).save(tmp_path / "a.jpg", format="PNG")
    assert np.all(read_media(tmp_path / "a.jpg").frames == 7)


def test_transparency_is_shown_both_ways(tmp_path):
    gray(100, mode="RGBA").save(tmp_path / "a.png")
    clip = read_media(tmp_path / "a.png")
    assert np.all(clip.frames == 100) and clip.over_white is not None
    np.testing.assert_array_equal(clip.over_white, 255 - round(155 * 100 / 255))


def test_an_animation(tmp_path):
    images = [gray(v) for v in (0, 50, 100, 150, 200)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:])
    clip = read_media(tmp_path / "a.gif", 3)
    assert clip.frames[:, 0, 0, 0].tolist() == [0, 100, 200] and not clip.is_image


def test_images_in_memory():
    array = np.full((4, 6, 3), 9, np.uint8)
    assert read_media(array).is_image and read_media(Image.fromarray(array)).is_image
    for several in ([array] * 5, np.stack([array] * 5), [Image.fromarray(array)] * 5):
        clip = read_media(several, 3)
        assert isinstance(clip, Clip) and clip.frames.shape == (3, 4, 6, 3) and clip.indices.tolist() == [0, 2, 4]


def broken(tmp_path, kind):
    path = tmp_path / kind
    if kind == "cut.mp4":
        write_video(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "cut_front.mp4":
        write_video(path, options={"movflags": "faststart"})
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "cut.png":
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "sound.mp4":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=44100)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 44100
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    elif kind == "none.mkv":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            container.start_encoding()
    elif kind == "text.mp4":
        path.write_text("hello " * 100)
    elif kind == "text.txt":
        path.write_text("hello\n" * 100)
    elif kind == "empty.png":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "mixed":
        path.mkdir()
        gray(1).save(path / "1.png")
        gray(1, (5, 4)).save(path / "2.png")
    elif kind == "thin.png":
        gray(1, (300, 1)).save(path)
    elif kind == "huge.png":
        Image.new("1", (20000, 20000)).save(path)
    elif kind == "large.png":
        Image.new("1", (9500, 9500)).save(path)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing.png", "does not exist"),
        ("cut.mp4", "broken"),
        ("cut_front.mp4", r"broken or incomplete \(it ends, or is damaged, after \d+ frames"),
        ("cut.png", "broken or incomplete"),
        ("sound.mp4", "no images in it, only audio"),
        ("none.mkv", "not a photo or video"),
        ("text.mp4", "not a photo or video"),
        ("text.txt", "not a photo or video"),
        ("empty.png", "is empty"),
        ("folder", "has no frames"),
        ("mixed", "frame 1 is 5x4 pixels, the first 6x4"),
        ("thin.png", "300x1 pixels.*crop it or pad it"),
        ("huge.png", "400000000 pixels, expected at most 89478485"),
        ("large.png", "90250000 pixels, expected at most 89478485"),
    ],
)
def test_bad_files_get_one_clear_line(tmp_path, kind, message):
    with pytest.raises(UserError, match=message) as error:
        read_media(broken(tmp_path, kind))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("media", "message"),
    [
        ([], "no frames"),
        (np.zeros((0, 4, 4, 3), np.uint8), "no frames"),
        (np.zeros((4, 4), np.uint8), r"uint8 \[4, 4\], expected uint8"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        ([3], "a frame is a int"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)], "frame 1 is 5x4"),
    ],
)
def test_bad_arrays(media, message):
    with pytest.raises(UserError, match=message):
        read_media(media)


def test_a_photo_20000_pixels_wide_is_read(tmp_path):
    Image.new("RGB", (20000, 100)).save(tmp_path / "a.png")
    assert read_media(tmp_path / "a.png").frames.shape == (1, 100, 20000, 3)


def test_without_pyav_photos_are_read_and_videos_explained(tmp_path, monkeypatch):
    gray(7).save(tmp_path / "a.png")
    (tmp_path / "a.mp4").write_bytes(b"no photo")
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.delitem(sys.modules, "unipixel_jax.processing.video", raising=False)
    assert read_media(tmp_path / "a.png").is_image
    with pytest.raises(UserError, match=r"needs PyAV: run pip install 'unipixel-jax\[video\]'"):
        read_media(tmp_path / "a.mp4")


def test_no_frames_asked_for():
    with pytest.raises(UserError, match="sample_frames is 0"):
        read_media(np.zeros((4, 4, 3), np.uint8), 0)
