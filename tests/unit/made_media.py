"""Small videos and images that tests make."""

from fractions import Fraction

import av
import numpy as np
from PIL import Image


def write_video(path, codec="libx264", frames=40, size=(64, 48), options=None):
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", 12
        for _ in range(frames):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def decode_all(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def gray(value, size=(6, 4), mode="RGB"):
    return Image.new(mode, size, (value,) * len(mode) if len(mode) > 1 else value)


def write_timed(path, numbers, codec="mpeg4", size=(64, 48), **options):
    """A video whose frame N is a gray of value N, with frames of these numbers only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", 12
        for number in numbers:
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 4 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
