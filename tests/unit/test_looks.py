"""Side by side, cut-outs, contact sheets, and the sound of a video beside its objects."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from unipixel_jax.errors import UserError
from unipixel_jax.infer.looks import LOOKS, SHEET_COLUMNS, SHEET_FRAMES, ContactSheet, check_sheet, cutout, draw
from unipixel_jax.infer.overlays import FRAMES, check_kind, open_overlay, save_overlay
from unipixel_jax.infer.prediction import FrameResult
from unipixel_jax.infer.visualize import draw_objects
from unipixel_jax.processing.frames import SoundSource, open_frames

RATE = 10


def square(frame=0):
    mask = np.zeros((60, 80), bool)
    mask[20:40, 10 + frame : 40 + frame] = True
    return mask


def photo():
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def test_side_by_side_holds_the_frame_and_the_overlay():
    frame = photo()
    shown = draw("side-by-side", frame, [square()])
    np.testing.assert_array_equal(shown[:, :80], frame)
    np.testing.assert_array_equal(shown[:, -80:], draw_objects(frame, [square()]))
    assert shown.shape[1] > 160


def test_a_cutout_has_the_objects_and_nothing_else():
    frame, other = photo(), np.zeros((60, 80), bool)
    other[50:55, 70:75] = True
    cut = cutout(frame, [square(), other])
    both = square() | other
    np.testing.assert_array_equal(cut[..., 3] == 255, both)
    np.testing.assert_array_equal(cut[both, :3], frame[both])
    assert not cut[~both].any()
    assert not cutout(frame, np.zeros((0, 60, 80), bool)).any()


def test_a_clip_becomes_an_animated_cutout(tmp_path):
    frames = np.stack([photo()] * 3)
    save_overlay(tmp_path / "a.png", frames, [np.stack([square(10 * i) for i in range(3)])], look="cutout")
    with Image.open(tmp_path / "a.png") as image:
        assert image.n_frames == 3
        for number in range(3):
            image.seek(number)
            np.testing.assert_array_equal(np.asarray(image.convert("RGBA"))[..., 3] == 255, square(10 * number))


def test_transparency_needs_a_png(tmp_path):
    for name in ("a.mp4", "a.gif"):
        with pytest.raises(UserError, match="transparent: expected a PNG"):
            save_overlay(tmp_path / name, np.zeros((2, 20, 20, 3), np.uint8), [], look="cutout")
    assert not list(tmp_path.iterdir())
    for look in LOOKS:
        check_kind("a.png", look)


def test_too_many_frames_for_an_animated_png(tmp_path):
    with pytest.raises(UserError, match=f"an animated PNG of more than {FRAMES} frames"), open_overlay(tmp_path / "a.png", 10, "cutout") as overlay:
        for _ in range(FRAMES + 1):
            overlay.add(np.zeros((4, 4, 3), np.uint8), [])
    assert not list(tmp_path.iterdir())


def result(number, seconds=None):
    return FrameResult(number, seconds, photo(), (1,), square()[None], np.ones(1, np.float32), np.ones(1, np.float32))


@pytest.mark.parametrize("count", [1, 3, SHEET_FRAMES, 5 * SHEET_FRAMES + 1])
def test_a_contact_sheet_is_spread_over_the_clip(count):
    sheet = ContactSheet()
    for number in range(count):
        sheet.add(result(number, number / 10))
        assert len(sheet._kept) <= 2 * SHEET_FRAMES
    held = [int(caption.split()[1]) for caption, _ in sheet._kept]
    assert held[0] == 0 and held[-1] >= 0.8 * (count - 1)
    assert len(set(np.diff(held))) <= 1
    image = sheet.image()
    rows = -(-min(count, SHEET_FRAMES) // SHEET_COLUMNS)
    assert image.height == pytest.approx(rows * 90, abs=20) and image.width == pytest.approx(min(count, SHEET_COLUMNS) * 92, abs=20)


def test_a_contact_sheet_needs_a_frame_and_the_name_of_a_picture(tmp_path):
    with pytest.raises(UserError, match="no frame for a contact sheet"):
        ContactSheet().image()
    ContactSheet().save(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"--sheet a.txt: expected a name ending in .png"):
        check_sheet(tmp_path.__class__("a.txt"))


def film(path, codec, seconds=2.0):
    """A video of grey frames with a sound that is silent in its first second and a tone after it."""
    rate = 48000
    with av.open(str(path), "w") as container:
        video, sound = container.add_stream("libx264", rate=RATE), container.add_stream(codec, rate=rate, layout="mono")
        video.width, video.height, video.pix_fmt = 80, 60, "yuv420p"
        for _ in range(round(seconds * RATE)):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.full((60, 80, 3), 128, np.uint8), format="rgb24")))
        container.mux(video.encode())
        time = np.arange(round(seconds * rate)) / rate
        wave = np.where(time < 1, 0, 0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
        for start in range(0, len(wave), 960):
            frame = av.AudioFrame.from_ndarray(wave[None, start : start + 960], format="flt" if codec == "libopus" else "fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            container.mux(sound.encode(frame))
        container.mux(sound.encode())


def loudness(path):
    """The name of a file's codec, and the loudness of each tenth of a second."""
    with av.open(str(path)) as container:
        name = container.streams.audio[0].codec_context.name
        tenths = {}
        for frame in container.decode(audio=0):
            tenths.setdefault(int(frame.time * 10), []).append(float(np.abs(frame.to_ndarray()).mean()))
    return name, [float(np.mean(tenths[key])) for key in sorted(tenths)]


@pytest.mark.parametrize(("codec", "name"), [("aac", "film.mp4"), ("libopus", "film.mkv")])
@pytest.mark.parametrize("start", [None, 0.5])
def test_an_overlay_keeps_the_sound_at_its_time(tmp_path, codec, name, start):
    film(tmp_path / name, codec)
    source = open_frames(tmp_path / name).between(start, None)
    with open_overlay(tmp_path / "out.mp4", source.rate, sound=source.sound) as overlay:
        for frame in source:
            overlay.add(frame.pixels, [square()])
    kept, levels = loudness(tmp_path / "out.mp4")
    begin = 10 - round(10 * (start or 0))
    assert kept == "aac" and len(levels) == pytest.approx(begin + 10, abs=1)
    assert max(levels[: begin - 1]) < 0.02 and min(levels[begin + 1 : begin + 8]) > 0.1
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == begin + 10


def test_what_has_no_sound_gives_none(tmp_path, caplog):
    save_overlay(tmp_path / "silent.mp4", np.zeros((3, 20, 20, 3), np.uint8), [])
    source = open_frames(tmp_path / "silent.mp4")
    assert source.sound == SoundSource(tmp_path / "silent.mp4", 0.0) and source.only(1).sound is None
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    for path in (tmp_path / "silent.mp4", tmp_path / "broken.mp4"):
        with open_overlay(tmp_path / "out.mp4", 10, sound=SoundSource(path)) as overlay:
            overlay.add(np.zeros((20, 20, 3), np.uint8), [])
        with av.open(str(tmp_path / "out.mp4")) as container:
            assert not container.streams.audio and len(container.streams.video) == 1
    assert "broken.mp4: its sound cannot be read" in caplog.text
