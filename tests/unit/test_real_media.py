"""Files as phones, cameras and strangers make them: the right pixels, or one clear line before anything large is decoded."""

import os
import shutil
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from made_media import decode_all, gray, write_timed, write_video
from PIL import Image

from unipixel_jax.errors import UserError
from unipixel_jax.processing.images import Content
from unipixel_jax.processing.media import MAX_ANIMATION_FRAMES, list_frames, read_media

CASES = Path(__file__).parents[1] / "cases"


def numbers_of(clip):
    """The numbers of the frames that ``write_timed`` drew."""
    return np.rint(clip.frames.mean(axis=(1, 2, 3)) / 4).astype(int).tolist()


def test_frames_that_an_edit_list_hides_do_not_count():
    clip = read_media(CASES / "trimmed_mp4_edit_list" / "long_trim.mp4", None)
    assert len(clip.frames) == 30


def test_dropped_frames_do_not_make_a_video_broken(tmp_path):
    numbers = [n for n in range(40) if n not in (5, 6, 7, 20, 38, 39)]
    clip = read_media(write_timed(tmp_path / "a.avi", numbers), None)
    assert np.abs(np.subtract(numbers_of(clip), numbers)).max() <= 1


@pytest.mark.parametrize(("name", "codec", "unit"), [("a.ts", "libx264", 188), ("a.h264", "libx264", 1), ("a.mpg", "mpeg2video", 2048)])
def test_a_recording_may_begin_between_key_frames(tmp_path, name, codec, unit):
    path = write_video(tmp_path / name, codec, frames=60, size=(320, 240))
    content = path.read_bytes()
    path.write_bytes(content[len(content) // 4 // unit * unit :])
    whole = decode_all(path)
    assert 20 < len(whole) < 60
    np.testing.assert_array_equal(read_media(path, None).frames[-10:], whole[-10:])
    assert len(read_media(path, 5).frames) == 5


def test_a_cover_is_not_taken_for_the_clip(tmp_path):
    write_timed(tmp_path / "clip.mp4", range(10), "libx264")
    Image.new("RGB", (200, 200), (255, 0, 0)).save(tmp_path / "cover.jpg")
    with av.open(str(tmp_path / "covered.mp4"), "w") as out, av.open(str(tmp_path / "clip.mp4")) as clip, av.open(str(tmp_path / "cover.jpg")) as cover:
        first = out.add_stream_from_template(cover.streams.video[0])
        first.disposition = av.stream.Disposition.attached_pic
        second = out.add_stream_from_template(clip.streams.video[0])
        for source, stream in ((cover, first), (clip, second)):
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)
    with av.open(str(tmp_path / "covered.mp4")) as container:
        assert len(container.streams.video) == 2
    assert read_media(tmp_path / "covered.mp4", None).frames.shape == (10, 48, 64, 3)


def test_only_a_cover_is_said(tmp_path):
    Image.new("RGB", (200, 200)).save(tmp_path / "cover.jpg")
    with av.open(str(tmp_path / "song.mp4"), "w") as out, av.open(str(tmp_path / "cover.jpg")) as cover:
        stream = out.add_stream_from_template(cover.streams.video[0])
        stream.disposition = av.stream.Disposition.attached_pic
        for packet in cover.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    with pytest.raises(UserError, match="has a cover image, but no video"):
        read_media(tmp_path / "song.mp4")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("codec_without_decoder/codec_evc1.mp4", "a format that cannot be decoded here"),
        ("codec_without_decoder/svg.svg", "not a photo or video"),
        ("media/bigcanvas.gif", "16 frames of 9400x9400 are more than"),
    ],
)
def test_files_of_which_no_frame_can_be_had(name, message):
    with pytest.raises(UserError, match=message):
        read_media(CASES / name)


@pytest.mark.parametrize("text", ["ffconcat version 1.0\nfile {clip}\n", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n"])
def test_a_playlist_opens_nothing(tmp_path, text):
    clip = write_video(tmp_path / "clip.ts")
    for suffix in ("mp4", "m3u8", "ffconcat"):
        (tmp_path / f"list.{suffix}").write_text(text.format(clip=clip.name))
        with pytest.raises(UserError, match="not a photo or video"):
            read_media(tmp_path / f"list.{suffix}")


@pytest.mark.parametrize("name", ["2024-05-01T12:30:45.mp4", "http:a.mp4", "file:b.mp4", "%03d.mp4", "-.mp4", "a b'c.mp4", os.fsdecode(b"caf\xe9.mp4")])
@pytest.mark.parametrize("before", ["", "./"])
def test_names_are_names(tmp_path, monkeypatch, name, before):
    monkeypatch.chdir(tmp_path)
    shutil.copy(CASES / "colon_in_name" / "2024-05-01T12_30_45.mp4", name)
    assert len(read_media(before + name, 4).frames) == 4


@pytest.mark.parametrize(
    "pattern", ["cam1_frame_{}.png", "2024-05-01_{}.png", "720p_{}.png", "clip02-{}.png", "{}.png", "{}_of_12.png", "v1.2_f{}.png", "a{}b7.png"]
)
def test_frames_come_in_their_natural_order(tmp_path, pattern):
    for number in range(12):
        gray(number).save(tmp_path / pattern.format(number))
    assert read_media(tmp_path, None).frames[:, 0, 0, 0].tolist() == list(range(12))


def test_the_folder_here_has_its_own_name(tmp_path, monkeypatch):
    (tmp_path / "walk").mkdir()
    gray(1).save(tmp_path / "walk" / "1.png")
    monkeypatch.chdir(tmp_path / "walk")
    assert read_media(".").name == "walk" and read_media("../walk/.").name == "walk"


@pytest.mark.parametrize(("name", "size"), [("phone_grid.heic", (1024, 1280)), ("grid.avif", (384, 512))])
def test_a_photo_in_tiles_is_whole(name, size):
    clip = read_media(CASES / "heic_tile_grid" / name)
    assert clip.is_image and clip.frames.shape == (1, *size, 3)
    assert len(np.unique(clip.frames.reshape(-1, 3), axis=0)) > 3, "more than the background of one tile"


def test_the_largest_image_of_an_icon_is_taken(tmp_path):
    Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / "a.ico", sizes=[(16, 16), (64, 64), (32, 32)])
    assert read_media(tmp_path / "a.ico").frames.shape == (1, 64, 64, 3)


@pytest.mark.parametrize("suffix", ["avif", "webp", "png", "gif"])
def test_animated_images_are_clips(tmp_path, suffix):
    images = [gray(v, (32, 32)) for v in (0, 60, 120, 180, 240)]
    options = {"lossless": True} if suffix == "webp" else {"quality": 100} if suffix == "avif" else {}
    images[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=images[1:], duration=100, **options)
    clip = read_media(tmp_path / f"a.{suffix}", 3)
    assert not clip.is_image and np.abs(clip.frames[:, 5, 5, 0].astype(int) - [0, 120, 240]).max() <= 3


@pytest.mark.parametrize("name", ["gray16.png", "gray16.tiff", "float.tiff"])
def test_deep_pixels_are_scaled(name):
    """The images hold the same scene with values spread over the whole range."""
    clip = read_media(CASES / "gray16_white" / name)
    assert clip.frames.min() < 100 and 150 < clip.frames.mean() < 230 and len(np.unique(clip.frames)) > 2


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([[0, 32768, 65535]], np.uint16), [0, 128, 255]),
        (np.array([[0, 300, 65535]], np.int32), [0, 1, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 100.4, 255]], np.float32), [0, 100, 255]),
    ],
)
def test_the_range_of_deep_pixels(tmp_path, values, wanted):
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert read_media(tmp_path / "a.tiff").frames[0, 0, :, 0].tolist() == wanted


@pytest.mark.parametrize("values", [[[0, 1e6]], [[np.nan, 1]], [[-1.0, 1]], [[0, np.inf]]])
def test_numbers_that_are_no_brightness(tmp_path, values):
    Image.fromarray(np.array(values, np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(UserError, match=r"holds floats from .* to .*, expected 0 to 1 or 0 to 255"):
        read_media(tmp_path / "a.tiff")


def test_nearly_black_deep_pixels_are_said(tmp_path, caplog):
    Image.fromarray(np.array([[0, 900]], np.uint16)).save(tmp_path / "a.png")
    read_media(tmp_path / "a.png")
    assert "its brightest is 900 of 65535" in caplog.text


def test_a_turned_photo_is_upright_unless_asked_otherwise(tmp_path):
    photo = CASES / "exif_turned_photo" / "exif_phone.jpg"
    upright, stored = read_media(photo).frames[0], read_media(photo, upright=False).frames[0]
    np.testing.assert_array_equal(upright, np.rot90(stored, -1))
    red = upright[99, 109].astype(int)
    assert red[0] > 150 > red[1] + 50, "the red circle is where a viewer shows it"
    with Image.open(photo) as image:
        np.testing.assert_array_equal(read_media(image).frames[0], upright)
        np.testing.assert_array_equal(read_media([photo, photo]).frames[1], upright)
    exif = Image.Exif()
    exif[274] = 3
    for suffix in ("png", "webp"):
        image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
        image.save(tmp_path / f"a.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
        np.testing.assert_array_equal(read_media(tmp_path / f"a.{suffix}").frames[0], np.rot90(np.asarray(image), 2))


@pytest.mark.parametrize("name", ["folder", "a.png"])
def test_a_pipe_does_not_block(tmp_path, name):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "1.png")
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UserError, match="is a pipe, socket or device"):
        read_media(tmp_path / name)


def test_many_tiny_frames_are_counted_quickly(tmp_path):
    head = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0x80, 0, 0) + bytes(6)
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x4c\x01\x00"
    (tmp_path / "a.gif").write_bytes(head + frame * 300_000 + b"\x3b")
    with pytest.raises(UserError, match=rf"{MAX_ANIMATION_FRAMES + 1} frames of 4x4 pixels, expected at most {MAX_ANIMATION_FRAMES}"):
        read_media(tmp_path / "a.gif")
    (tmp_path / "a.gif").write_bytes(head + frame * 50 + b"\x3b")
    assert len(read_media(tmp_path / "a.gif", None).frames) == 50


def test_an_animation_that_promises_billions_of_frames(tmp_path):
    images = [gray(v, (32, 32)) for v in (0, 60)]
    images[0].save(tmp_path / "a.png", save_all=True, append_images=images[1:])
    content = (tmp_path / "a.png").read_bytes()
    place = content.index(b"acTL") + 4
    (tmp_path / "a.png").write_bytes(content[:place] + struct.pack(">I", 2**31 - 1) + content[place + 4 :])
    with pytest.raises(UserError, match=r"broken|expected at most"):
        read_media(tmp_path / "a.png")


def test_a_video_is_bounded_before_it_is_decoded(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", frames=40)
    monkeypatch.setattr("unipixel_jax.processing.video.MAX_CLIP_PIXELS", 64 * 48 * 10)
    assert len(read_media(path, 10).frames) == 10
    with pytest.raises(UserError, match="11 frames have 33792 pixels, expected 30720: take fewer"):
        read_media(path, 11)
    monkeypatch.setattr("unipixel_jax.processing.video.FRAME_COST", 0)
    monkeypatch.setattr("unipixel_jax.processing.video.MAX_DECODED_PIXELS", 64 * 48 * 8)
    assert len(read_media(path, 2).frames) == 2, "the last frame is seven after a key frame"
    monkeypatch.setattr("unipixel_jax.processing.video.MAX_DECODED_PIXELS", 64 * 48 * 7)
    with pytest.raises(UserError, match="frames would be decoded to reach those wanted"):
        read_media(path, 2)


def test_the_bytes_of_packets_are_not_kept(tmp_path):
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for _ in range(120):
            container.mux(stream.encode(av.VideoFrame(640, 480, "yuv420p")))
    size = path.stat().st_size
    before = _resident()
    clip = read_media(path, 2)
    grown = _resident() - before
    assert len(clip.frames) == 2 and size > 50e6 and grown < size / 2


def _resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "webp", "bmp", "tiff", "avif", "mp4", "avi", "mkv", "heic"])
def test_flipped_and_missing_bytes_are_one_line_or_harmless(tmp_path, kind):
    rng = np.random.default_rng(0)
    path = tmp_path / f"a.{kind}"
    if kind in ("mp4", "avi", "mkv"):
        write_video(path, "mpeg4" if kind == "avi" else "libx264", frames=8)
    elif kind == "heic":
        shutil.copy(CASES / "heic_tile_grid" / "phone_grid.heic", path)
    else:
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    for trial in range(10 if kind == "heic" else 60):
        changed = bytearray(content)
        for place in rng.integers(0, min(len(content), 600 if trial % 2 else len(content)), 1 + trial % 4):
            changed[place] = rng.integers(0, 256)
        data = bytes(changed[: rng.integers(1, len(content))] if trial % 5 == 0 else changed)
        try:
            clip = read_media(Content(path.name, data), 4)
            assert clip.frames.dtype == np.uint8 and 0 < len(clip.frames) <= 4
        except UserError as error:
            assert "\n" not in str(error)


def test_a_broken_video_prints_nothing(capfd):
    """The video sends FFmpeg to a position before the beginning of the file."""
    path = CASES / "media" / "seek_before_start.wmv"
    for media in (path, Content(path.name, path.read_bytes())):
        with pytest.raises(UserError, match=r"seek_before_start\.wmv is not a photo or video that can be read, or is broken"):
            read_media(media)
    assert capfd.readouterr() == ("", "")


def test_frames_of_a_folder_are_listed_by_their_endings(tmp_path):
    for name in ("2.JPG", "1.png", "notes.txt", ".3.png"):
        (tmp_path / name).touch()
    assert [path.name for path in list_frames(tmp_path)] == ["1.png", "2.JPG"]
