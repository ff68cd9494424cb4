"""Helpers of the tests of exports: they draw results, write them as files and read these again."""

import numpy as np

from unipixel_jax.infer.exports import EXPORTS
from unipixel_jax.infer.prediction import FrameResult

HEIGHT, WIDTH = 90, 130
LABELS = {1: 'the "round" thing: 圆', 2: "a ring", 3: "dots"}


def disc(x, y, radius):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def results():
    """Three frames: a disc that moves; a ring, which has a hole, and is gone on the last frame; one object of a pixel, a line and a rectangle at the border."""
    for frame in range(3):
        dots = np.zeros((HEIGHT, WIDTH), bool)
        dots[3, 5] = dots[70, 10:30] = True
        dots[80:, 100:] = True
        ring = disc(90, 40, 25) & ~disc(90, 40, 4) if frame < 2 else np.zeros_like(dots)
        masks = np.stack([disc(40 + 20 * frame, 45, 22), ring, dots])
        scores = np.array([0.5 + 0.2 * frame, 0.6, 0.9], np.float32)
        pixels = np.random.default_rng(frame).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        yield FrameResult(7 + frame, frame / 10, pixels, (1, 2, 3), masks, scores, scores)


def written(kind, folder):
    export = EXPORTS[kind](folder)
    export.start(LABELS)
    for result in results():
        export.add(result)
    export.finish()
    return folder


def decoded_brush(runs):
    """The values that a brush's code holds, uint8, read bit by bit as the package `@thi.ng/rle-pack` of Label Studio's page reads them."""
    bits = "".join(f"{byte:08b}" for byte in runs)
    place = 0

    def read(count):
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    count, size = read(32), read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    values = []
    while len(values) < count:
        repeated = read(1)
        length = 1 + read(lengths[read(2)])
        values += [read(size)] * length if repeated else [read(size) for _ in range(length)]
    assert len(values) == count and not int(bits[place:] or "0", 2) and len(bits) - place < 8
    return np.array(values, np.uint8)
