"""Hostile and large files that tests send."""

import io
import struct
import zlib

import av
import numpy as np
from PIL import Image


def png_bomb(width, height):
    """A PNG of a few kilobytes whose header announces many pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100_000))) + chunk(b"IEND", b"")


def many_frames(count):
    """A GIF of many frames."""
    out = io.BytesIO()
    frames = [Image.new("L", (30, 30), 4 * number) for number in range(count)]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:], duration=40)
    return out.getvalue()


def video(path, frames, size):
    """The bytes of an MP4 of noise, which compresses badly."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size, stream.bit_rate = *size, "yuv420p", 12, 40_000_000
        for _ in range(frames):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()
