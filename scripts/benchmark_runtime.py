"""The runtime of an ONNX export beside JAX on this machine, in one run: size on disk, whole commands, and photos and frames of a clip in turns in one process.

    make onnx && .venv-onnx/bin/python -m scripts.benchmark_runtime [--repeats 9]

Takes the small model of the package in float32, and prints a table in Markdown. What JAX compiles is on disk before a command is timed, as in daily use; the
runtime compiles nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement
from PIL import Image

from unipixel_jax import UniPixel
from unipixel_jax.cli import main as command
from unipixel_jax.data.synthetic.language import full_name
from unipixel_jax.data.synthetic.scene import draw_scene
from unipixel_jax.runtime.session import Runtime

FRAMES = 16
NEW_TOKENS = 32
PACKAGES = (("jax", "flax", "orbax-checkpoint", "transformers", "einops", "av"), ("onnxruntime", "tokenizers", "pillow", "av"))
"""The packages that JAX's side and the runtime's side need for photos and clips."""


def installed(*names: str) -> float:
    """MB of the files of some packages and of all that they require, as far as they are installed."""
    seen: dict[str, int] = {}

    def add(name: str, extras: Sequence[str]) -> None:
        try:
            found = distribution(name)
        except PackageNotFoundError:
            return
        for need in map(Requirement, found.requires or ()):
            if need.name not in seen and (need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras))):
                seen[need.name] = 0
                add(need.name, tuple(need.extras))
        paths = [Path(str(file.locate())) for file in found.files or ()]
        seen[name] = sum(path.stat().st_size for path in paths if path.is_file())

    for name in names:
        add(name, ())
    return sum(seen.values()) / 1e6


def whole(*argv: str) -> float:
    """Seconds of a whole process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *argv], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def turns(repeats: int, *works: Callable[[], object]) -> list[float]:
    """The median seconds of works that are done in turns, after each was done once."""
    times: list[list[float]] = [[] for _ in works]
    for turn in range(-1, repeats):
        for own, work in zip(times, works, strict=True):
            start = time.perf_counter()
            work()
            if turn >= 0:
                own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in times]


def main() -> None:
    """Export, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    scene = draw_scene(np.random.default_rng(1), FRAMES)
    photo, words = scene.frames[0], f"Please segment the {full_name(scene, 0)}."
    with tempfile.TemporaryDirectory() as temporary:
        folder, file = Path(temporary) / "export", Path(temporary) / "photo.png"
        Image.fromarray(photo).save(file)
        size = f"{photo.shape[1]}x{photo.shape[0]}"
        if command(["export", "shapes", str(folder), "--format", "onnx", "--size", size, "--new-tokens", str(NEW_TOKENS)]):
            raise SystemExit(1)
        model, runtime = UniPixel.from_pretrained(dtype="float32"), Runtime.open(folder)
        pixels = photo.shape[0] * photo.shape[1]
        how = {"sample_frames": 1, "max_new_tokens": NEW_TOKENS, "max_pixels": pixels}
        expected, found = model.segment(scene.frames, words, **how), runtime.segment(scene.frames, words)
        differing = [float(np.mean(a.masks != b.masks)) for a, b in zip(expected.objects, found.objects, strict=True)]
        print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
        print(f"the same tokens: {found.tokens == expected.tokens}; pixels of masks that differ: {max(differing):.1e}")
        photos = turns(args.repeats, lambda: model.segment(photo, words, **how), lambda: runtime.segment(photo, words))
        clips = turns(args.repeats, lambda: model.segment(scene.frames, words, **how), lambda: runtime.segment(scene.frames, words))
        frames = [(clip - alone) / (FRAMES - 1) for clip, alone in zip(clips, photos, strict=True)]
        commands = [("-m", "unipixel_jax.cli", "segment", str(file), words, "--dtype", "float32", "--max-pixels", str(pixels), "--output-dir", temporary)]
        commands += [("-m", "unipixel_jax.runtime", str(folder), str(file), words)]
        spent: list[list[float]] = [[], []]
        for turn in range(4):
            for own, argv in zip(spent, commands, strict=True):
                measured = whole(*argv)
                if turn:  # the first turn compiles
                    own.append(measured)
        seconds = [statistics.median(own) for own in spent]
        packages = [installed(*names) for names in PACKAGES]
        weights = [sum(path.stat().st_size for path in model.loaded.directory.rglob("*") if path.is_file()) / 1e6]
        weights += [sum(path.stat().st_size for path in folder.iterdir()) / 1e6]
    print("| | JAX | onnxruntime | ratio |\n| --- | --- | --- | --- |")
    rows = {
        "packages, MB": (packages, "{:.0f}"),
        "the model's folder, MB": (weights, "{:.1f}"),
        "a command for a photo, s": (seconds, "{:.2f}"),
        "a photo, s": (photos, "{:.3f}"),
        "each further frame of a clip, s": (frames, "{:.4f}"),
    }
    for name, ((ours, theirs), form) in rows.items():
        print(f"| {name} | {form.format(ours)} | {form.format(theirs)} | {theirs / ours:.2f} |")


if __name__ == "__main__":
    main()
