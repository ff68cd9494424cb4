"""Frames one at a time: they have the numbers and pixels of ``read_media``, and clips that break off give what came before."""

import logging
import os
from dataclasses import replace

import numpy as np
import pytest
from made_media import gray, write_timed, write_video
from PIL import Image

from unipixel_jax.errors import UserError
from unipixel_jax.processing.frames import Crop, open_frames
from unipixel_jax.processing.images import Content, OpenedContent
from unipixel_jax.processing.media import Clip, read_media

COUNT = 23


def video(tmp_path):
    return write_video(tmp_path / "a.mp4", frames=COUNT)


def folder(tmp_path):
    for number in range(COUNT):
        gray(10 * number).save(tmp_path / f"frame_{number + 1}.png")
    return tmp_path


def transparent(tmp_path):
    for number in range(COUNT):
        Image.new("RGBA", (6, 4), (200, 10 * number, 0, 11 * number)).save(tmp_path / f"{number:02}.png")
    return tmp_path


def animation(tmp_path):
    gray(0).save(tmp_path / "a.gif", save_all=True, append_images=[gray(10 * number) for number in range(1, COUNT)], duration=40)
    return tmp_path / "a.gif"


def array(tmp_path):
    return np.random.default_rng(0).integers(0, 256, (COUNT, 5, 7, 3), np.uint8)


def images(tmp_path):
    return [Image.new("RGBA", (6, 4), (0, 10 * number, 90, 128)) for number in range(COUNT)]


def sampled(tmp_path):
    return read_media(array(tmp_path), 9)


def photo(tmp_path):
    Image.new("RGBA", (6, 4), (200, 100, 0, 50)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def content(tmp_path):
    return Content("a.mp4", video(tmp_path).read_bytes())


def same(found, wanted):
    np.testing.assert_array_equal(found.frames, wanted.frames)
    np.testing.assert_array_equal(found.indices, wanted.indices)
    assert (found.is_image, found.name, found.over_white is None) == (wanted.is_image, wanted.name, wanted.over_white is None)
    if wanted.over_white is not None:
        np.testing.assert_array_equal(found.over_white, wanted.over_white)


@pytest.mark.parametrize("make", [video, content, folder, transparent, animation, array, images, sampled, photo])
def test_numbers_and_pixels_are_those_of_read_media(tmp_path, make):
    media = make(tmp_path)
    source, every = open_frames(media), read_media(media, None)
    frames = list(source)
    assert len(source) == source.count == len(every.frames) == (1 if make is photo else 9 if make is sampled else COUNT)
    assert [frame.number for frame in frames] == every.indices.tolist()
    np.testing.assert_array_equal([frame.pixels for frame in frames], every.frames)
    for most in (1, 5, COUNT + 1):
        # what was sampled is sampled again by place
        places = np.linspace(0, len(frames) - 1, most).round().astype(int) if 1 < most < len(frames) else np.arange(min(most, len(frames)))
        over = None if every.over_white is None else every.over_white[places]
        same(source.sample(most), Clip(every.frames[places], every.indices[places], every.is_image, every.name, over))
        if make is not sampled:
            same(source.sample(most), read_media(media, most))


@pytest.mark.parametrize("make", [video, animation, photo])
def test_an_open_file_is_read_without_its_name(tmp_path, make):
    path = make(tmp_path)
    every = read_media(path, None)
    with path.open("rb") as file:
        path.unlink()
        source = open_frames(OpenedContent(path.name, file=file))
        np.testing.assert_array_equal([frame.pixels for frame in source], every.frames)
        same(source.sample(COUNT), every)
        assert file.tell() == 0


@pytest.mark.parametrize("make", [folder, transparent, animation, video])
def test_one_frame_and_a_part_of_it(tmp_path, make):
    media = make(tmp_path)
    crop = Crop(1, 2, 3, 2)
    source = replace(open_frames(media), crop=crop).only(7)
    every = read_media(media, None)
    (frame,) = source
    assert frame.number == 7 and len(source) == 1
    np.testing.assert_array_equal(frame.pixels, every.frames[7, 2:4, 1:4])
    over = None if every.over_white is None else every.over_white[7:8, 2:4, 1:4]
    same(source.sample(16), Clip(every.frames[7:8, 2:4, 1:4], np.array([7]), True, every.name, over))


@pytest.mark.parametrize("make", [folder, transparent, animation, video])
def test_frames_are_taken_by_their_numbers(tmp_path, make):
    media = make(tmp_path)
    source, every = replace(open_frames(media), crop=Crop(1, 2, 3, 2)), read_media(media, None)
    taken = source.take([0, 7, COUNT - 1])
    assert [frame.number for frame in taken] == [0, 7, COUNT - 1]
    np.testing.assert_array_equal([frame.pixels for frame in taken], every.frames[[0, 7, COUNT - 1], 2:4, 1:4])
    with pytest.raises(UserError, match=f"has no frame {COUNT}: expected 0 to {COUNT - 1}"):
        source.take([3, COUNT])
    with pytest.raises(UserError, match="has no frame 8: expected 7, since it is one picture"):
        source.only(7).take([8])


def test_a_stream_gives_its_first_frame_again(tmp_path):
    source, clip = replace(open_frames(iter(array(tmp_path))), crop=Crop(0, 0, 2, 2)).with_first_frame()
    assert clip.is_image and clip.indices.tolist() == [0]
    frames = list(iter(source))
    assert [frame.number for frame in frames] == list(range(COUNT)) and source.count is None
    np.testing.assert_array_equal([frame.pixels for frame in frames], array(tmp_path)[:, :2, :2])


@pytest.mark.parametrize(
    ("start", "end", "numbers"),
    [
        (None, None, (0, 50)),
        (0.4, None, (10, 50)),
        (None, 0.4, (0, 10)),
        (0.2, 1, (5, 25)),
        (0.21, 0.22, (6, 7)),
        (1, 1e300, (25, 50)),
        (1.9, np.inf, (48, 50)),
    ],
)
def test_seconds_choose_frames(tmp_path, start, end, numbers):
    source = open_frames(write_timed(tmp_path / "a.mp4", range(50))).between(start, end)
    wanted = list(range(*numbers))
    assert [frame.number for frame in source] == wanted and len(source) == len(wanted)
    clip = source.sample(4)
    assert clip.indices[0] == wanted[0] and len(clip.frames) == min(4, len(wanted))
    assert clip.indices[-1] == wanted[-1]
    np.testing.assert_allclose(clip.frames.mean(axis=(1, 2, 3)), 4 * clip.indices, atol=4)


@pytest.mark.parametrize(
    ("start", "end"), [(2, None), (1.999999999, None), (-1, 1), (1, 0.5), (1, 1), (np.nan, 1), (0, np.nan), (np.inf, None), (3, 9), (0, -np.inf)]
)
def test_seconds_beyond_the_clip(tmp_path, start, end):
    with pytest.raises(UserError, match=r"expected two times in order within the 2\.000 s of a$"):
        open_frames(write_timed(tmp_path / "a.mp4", range(50))).between(start, end)


def broken(tmp_path):
    """A transport stream of which packets in the middle are lost, and all its pixels."""
    path = write_video(tmp_path / "a.ts", frames=60, size=(160, 120))
    every, content = read_media(path, None).frames, path.read_bytes()
    half = len(content) // 2 // 188 * 188
    path.write_bytes(content[:half] + content[half + 20 * 188 :])
    return path, every


def test_a_video_that_breaks_off_gives_the_frames_before(tmp_path, caplog):
    path, every = broken(tmp_path)
    source = open_frames(path)
    with caplog.at_level(logging.DEBUG):
        clip = source.sample(5)
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
        frames = list(source)
    assert 20 < len(frames) < 40
    np.testing.assert_array_equal([frame.pixels for frame in frames], every[: len(frames)])
    assert [frame.number for frame in frames] == list(range(len(frames)))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert f"only the first {len(frames)} frames are used" in warning and str(path) in warning
    assert clip.indices[0] == 0 and clip.indices[-1] == len(frames) - 1 and len(clip.frames) == 5
    np.testing.assert_array_equal(clip.frames, every[clip.indices])


def test_frames_before_a_break_are_taken(tmp_path):
    path, every = broken(tmp_path)
    source = open_frames(path)
    (frame,) = source.take([12])
    np.testing.assert_array_equal(frame.pixels, every[12])
    with pytest.raises(UserError, match=r"broken or incomplete \(frame 55 cannot be read\)"):
        replace(source, count=60).take([12, 55])


def test_nothing_is_left_of_a_part_after_the_break(tmp_path):
    source = replace(open_frames(broken(tmp_path)[0]), first=55, stop=58, count=60)
    with pytest.raises(UserError, match="no frame from number 55 on can be read"):
        source.sample(4)


def test_a_cut_matroska_file_gives_the_frames_before(tmp_path):
    path = write_video(tmp_path / "a.mkv", frames=60, size=(160, 120))
    every, content = read_media(path, None).frames, path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    source = open_frames(path)
    frames = list(source)
    assert 20 < len(frames) < 40
    np.testing.assert_array_equal([frame.pixels for frame in frames], every[: len(frames)])
    assert source.sample(3).indices.tolist() == np.linspace(0, len(frames) - 1, 3).round().astype(int).tolist()


@pytest.mark.parametrize("damage", ["broken", "another size"])
def test_a_folder_ends_before_a_frame_that_cannot_be_read(tmp_path, caplog, damage):
    source = open_frames(folder(tmp_path))
    if damage == "broken":
        (tmp_path / "frame_13.png").write_bytes((tmp_path / "frame_13.png").read_bytes()[:50])
    else:
        gray(0, (9, 9)).save(tmp_path / "frame_13.png")
    assert [frame.number for frame in source] == list(range(12)) and "only the first 12 frames are used" in caplog.text
    assert source.sample(COUNT).indices.tolist() == list(range(12))


@pytest.mark.parametrize("crop", [(-1, 0, 3, 3), (0, 0, 0, 2), (0, 0, 7, 2), (5, 3, 2, 1), (0, 4, 1, 1)])
def test_crops_outside_the_frame(tmp_path, crop):
    source = replace(open_frames(folder(tmp_path)), crop=Crop(*crop))
    for read in (lambda: next(iter(source)), lambda: source.sample(3), lambda: source.with_first_frame()):
        with pytest.raises(UserError, match="does not lie within the frame of 6x4 pixels"):
            read()


def pipe(tmp_path):
    os.mkfifo(tmp_path / "a")
    return tmp_path / "a"


def empty(tmp_path):
    (tmp_path / "a").touch()
    return tmp_path / "a"


MISTAKES = {
    "an empty folder": (lambda path: open_frames(path), "has no frames: expected files ending in .jpg"),
    "a missing file": (lambda path: open_frames(path / "a.mp4"), "a.mp4"),
    "a pipe": (lambda path: open_frames(pipe(path)), "expected"),
    "an empty file": (lambda path: open_frames(empty(path)), "expected"),
    "no images": (lambda path: open_frames([]), "has no frames"),
    "an empty stream": (lambda path: open_frames(iter([])).with_first_frame(), "stream has no frames, expected at least one"),
    "a stream of words": (lambda path: open_frames(iter(["a"])).with_first_frame(), "a"),
    "the length of a stream": (lambda path: len(open_frames(iter([]))), "stream is a stream, whose length nobody knows"),
    "seconds of a folder": (lambda path: open_frames(folder(path)).between(0.0, None), "no frame at 0 s: give a video file"),
    "a frame beyond the end": (lambda path: open_frames(folder(path)).only(COUNT), f"has no frame {COUNT}: expected 0 to {COUNT - 1}"),
    "a frame before the part": (lambda path: open_frames(video(path)).between(0.2, 0.4).only(4), "has no frame 4: expected 5 to 9"),
    "a frame below zero": (lambda path: open_frames(folder(path)).only(-1), "has no frame -1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_get_one_clear_line(tmp_path, mistake):
    make, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message) as caught:
        make(tmp_path)
    assert "\n" not in str(caught.value)
