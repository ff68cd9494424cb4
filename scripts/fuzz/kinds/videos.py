"""Cases of videos in several containers and codecs, which are read, and some of them segmented."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

from ..case import Case, Kind
from ..odd_bytes import INTERESTING, change_bytes
from ..odd_files import copy
from . import ROOT
from .images import PROMPT, reading

FRAMES, SIDE = 12, 64
CONTAINERS = {
    "mp4": ("mpeg4", "libx264"),
    "mov": ("mjpeg", "png"),
    "mkv": ("libx264", "ffv1"),
    "avi": ("mpeg4", "mjpeg"),
    "webm": ("libvpx", "libvpx-vp9"),
    "ts": ("mpeg2video", "libx264"),
    **{"mpg": ("mpeg2video",), "flv": ("flv",), "wmv": ("wmv2",), "ogv": ("libtheora",), "nut": ("mpeg4",), "m4v": ("mpeg4",)},
}
BOXES = (
    b"mvhd", b"tkhd", b"elst", b"mdhd", b"stts", b"ctts", b"stsc", b"stsz", b"stco", b"stss", b"stsd", b"mdat", b"moov", b"trak", b"hdlr", b"vmhd", b"avcC",
    b"esds", b"RIFF", b"avih", b"strh", b"strf", b"idx1", b"movi", b"\x1a\x45\xdf\xa3", b"\x16\x54\xae\x6b", b"\x1f\x43\xb6\x75",
)  # fmt: skip
"""The marks of boxes of MP4, of chunks of AVI and of elements of Matroska."""


def prepare(folder: Path) -> None:
    """Write a video of a moving square, in every container and codec that this FFmpeg supports."""
    import av
    import numpy as np

    for suffix, codecs in CONTAINERS.items():
        for codec in codecs:
            path = folder / f"{codec}.{suffix}"
            try:
                with av.open(str(path), "w") as container:
                    stream = container.add_stream(codec, rate=25)
                    stream.width = stream.height = SIDE
                    stream.pix_fmt = {"mjpeg": "yuvj420p", "png": "rgb24"}.get(codec, "yuv420p")
                    stream.gop_size = 5
                    for number in range(FRAMES):
                        pixels = np.full((SIDE, SIDE, 3), 200, np.uint8)
                        pixels[8:24, 3 * number : 3 * number + 16] = (30, 60, 220)
                        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
                    container.mux(stream.encode())
            except (av.FFmpegError, ValueError):  # not every build of FFmpeg has all encoders
                path.unlink(missing_ok=True)
    for file in sorted((ROOT / "tests" / "cases").rglob("*")):
        if file.suffix.lower() in (".mp4", ".mkv", ".avi", ".mov", ".ts") and file.stat().st_size < 300_000:
            copy(file, folder / f"case_{file.parent.name}_{file.name}")
    assert list(folder.iterdir()), "FFmpeg has none of the encoders"


def make(seeds: Path, folder: Path, rng: Random) -> Case:
    """Change one video."""
    seed = rng.choice(sorted(seeds.iterdir()))
    data, note = _change(seed.read_bytes(), rng)
    name = f"clip{seed.suffix if rng.random() < 0.9 else rng.choice(('.mp4', '.gif', '.m3u8', '.txt'))}"
    (folder / name).write_bytes(data)
    if rng.random() < 0.05:
        run = ["segment", name, PROMPT, "--output-dir", "out", "--max-new-tokens", "8", "--sample-frames", "2", "--format", rng.choice(("gif", "mp4"))]
        return Case(run, f"{seed.name}: {note}", ("out",))

    return reading(name, f"{seed.name} as {name}: {note}")


def _change(data: bytes, rng: Random) -> tuple[bytes, str]:
    """Change any bytes, or numbers in one of the container's boxes; return the video and what was done."""
    places = [place for mark in BOXES if (place := data.find(mark)) >= 0]
    if not places or rng.random() < 0.4:
        return change_bytes(data, rng)
    changed, notes = bytearray(data), []
    for _ in range(rng.choice((1, 1, 2))):
        place = rng.choice(places)
        if rng.random() < 0.15:
            changed[place : place + 4] = rng.choice((b"free", b"skip", b"xxxx", bytes(changed[places[0] : places[0] + 4])))
            notes.append(f"{data[place : place + 4]!r} has another name")
            continue
        offset = rng.choice((-4, 4, 8, 12, 16, 20, 24, rng.randrange(4, 64)))
        value = rng.choice((*INTERESTING, struct.pack(">I", rng.choice((0, 1, 2, 3, 100, 1000, 1 << 20)))))
        changed[place + offset : place + offset + len(value)] = value
        notes.append(f"{data[place : place + 4]!r}: {value.hex()} at {offset}")
    return bytes(changed), "; ".join(notes)


KIND = Kind("videos", 600, prepare, make)
