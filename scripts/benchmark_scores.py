#!/usr/bin/env python3
"""Time the reference's scorer and ours on the same drawn predictions: the processor time of whole processes, kept to one core.

    python scripts/benchmark_scores.py CLONE [--python PYTHON] [--size 854x480] [--videos 4] [--frames 40] [--repeats 3]

CLONE is a clone of github.com/PolyU-ChenLab/UniPixel; PYTHON is an interpreter that has what its scorers need (opencv, pycocotools, scikit-image, numpy).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from sample_data.discs import run_length, write_json


def main() -> int:
    """Parse the command line, draw, and time both; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path)
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="the reference's interpreter (default: this one)")
    parser.add_argument("--size", default="854x480", help="width and height of the frames")
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    width, height = map(int, args.size.split("x"))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        draw(folder, args.videos, args.frames, height, width)
        reference = [str(args.python.absolute()), str(args.clone.resolve() / "unipixel/eval/eval_seg.py"), "mevis", "predictions"]
        ours = [sys.executable, "-m", "unipixel_jax.cli", "eval", "score", "mevis", "--data", "data", "--predictions", "predictions", "--workers", "1"]
        seconds: dict[str, list[float]] = {"reference": [], "ours": []}
        for _ in range(args.repeats):
            for name, command in (("reference", reference), ("ours", ours)):
                start = spent()
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
                seconds[name].append(spent() - start)
                print(f"{name}: {seconds[name][-1]:.2f} s  {' '.join(done.stdout.split()[:12])}")
    best = {name: min(values) for name, values in seconds.items()}
    ratio = best["reference"] / best["ours"]
    print(f"{args.videos} videos, {args.frames} frames of {args.size}: {best['reference']:.2f} s and {best['ours']:.2f} s, {ratio:.1f} times")
    return 0


def spent() -> float:
    """The processor time, in seconds, of all processes that were started and have ended, with what they started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def draw(folder: Path, videos: int, frames: int, height: int, width: int) -> None:
    """Draw a case of MeViS: an ellipse that moves, and a prediction that is a little off."""
    y, x = np.mgrid[:height, :width]
    meta, masks = {}, {}
    for video in range(videos):
        track = []
        for frame in range(frames):
            centre = width * (0.3 + 0.4 * frame / frames), height * 0.5
            radius = height * (0.1 + 0.06 * video)
            truth, found = (((x - centre[0] - by) / 1.5) ** 2 + (y - centre[1] - by) ** 2 < radius**2 for by in (0, 6))
            track.append(run_length(truth))
            path = folder / f"predictions/video{video}/0/{frame:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(found.astype(np.uint8) * 255).save(path)
        masks[str(video)] = track
        names = [f"{frame:05d}" for frame in range(frames)]
        meta[f"video{video}"] = {"frames": names, "expressions": {"0": {"exp": "it", "obj_id": [0], "anno_id": [video]}}}
    write_json(folder / "data/mevis/valid_u/meta_expressions.json", {"videos": meta})
    write_json(folder / "data/mevis/valid_u/mask_dict.json", masks)


if __name__ == "__main__":
    sys.exit(main())
