#!/usr/bin/env python3
"""Measure peak memory and frames per second of tracking through clips of different lengths with the small model, each in a process of its own.

    python scripts/benchmark_tracking.py --frames 200 10000

The clips are MP4 files of 256x256 pixels with moving shapes, which are drawn first. Memory is the peak resident set of the process as Linux counts it; frames
per second are those after the first 50, so that compiling is left out.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from unipixel_jax import UniPixel
from unipixel_jax.demo import ASSETS
from unipixel_jax.infer.prediction import Collector
from unipixel_jax.processing.media import read_media

WARM = 50
PROMPT = "Please segment the yellow circle."


def write_clip(path: Path, frames: int) -> None:
    """Write a clip that plays the demo's clip forward and backward until it has enough frames."""
    shown = read_media(ASSETS / "clip.gif", None).frames
    turn = [*range(len(shown)), *range(len(shown) - 2, 0, -1)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25))
        stream.height, stream.width = shown.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            picture = np.ascontiguousarray(shown[turn[number % len(turn)]])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def track(path: Path) -> dict[str, float]:
    """Segment one object in a clip, and keep its masks as ``segment`` does."""
    model = UniPixel.from_pretrained(dtype="float32")
    stream, collector, start = model.track(path, PROMPT, max_new_tokens=24), Collector(), 0.0
    for result in stream:
        collector.add(result.to_json())
        if len(collector.frames) == WARM:
            start = time.perf_counter()
    rate = (len(collector.frames) - WARM) / (time.perf_counter() - start)
    found = collector.prediction(stream.answer)
    assert found.found, "the small model finds the object"
    return {"frames": len(found.frames), "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "frames_per_second": rate}


def main() -> None:
    """Parse the arguments, and measure each length in a new process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[200, 10000], metavar="N", help=f"lengths of the clips, over {WARM} (default: 200 10000)")
    parser.add_argument("--clip", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.clip is not None:
        print(json.dumps(track(args.clip)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for frames in args.frames:
            clip = Path(folder) / f"{frames}.mp4"
            write_clip(clip, frames)
            done = subprocess.run([sys.executable, __file__, "--clip", str(clip)], stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout)
            print(f"{found['frames']} frames: peak {found['peak_mb']:.0f} MB, {found['frames_per_second']:.1f} frames/s", flush=True)


if __name__ == "__main__":
    main()
