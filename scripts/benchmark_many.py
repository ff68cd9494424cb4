"""Photos a second of the small model that ships with the package, one by one (`segment`) and many at once (`segment_many`), on this machine.

    python scripts/benchmark_many.py [--photos 64] [--rows 16] [--repeats 5] [--size 128]

Both sides answer the same prompts about the same drawn photos, in turns within one run, after a warm-up that compiles their programs. Other work on the machine
disturbs both alike; the ratio is that of the medians. The tokens of both sides are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
from PIL import Image

from unipixel_jax import UniPixel
from unipixel_jax.data.synthetic.language import full_name
from unipixel_jax.data.synthetic.scene import draw_scene
from unipixel_jax.infer.many import ROWS, Job

NEW_TOKENS = 32


def drawn_jobs(count: int, size: int) -> list[Job]:
    """Prompts about drawn photos of ``size`` pixels a side, each about another photo."""
    jobs = []
    for seed in range(count):
        scene = draw_scene(np.random.default_rng(seed))
        photo = np.asarray(Image.fromarray(scene.frames[0]).resize((size, size), Image.Resampling.BICUBIC))
        jobs.append(Job(photo, f"Please segment the {full_name(scene, 0)}.", id=str(seed)))
    return jobs


def main() -> None:
    """Measure, and print a line for each repeat and one for all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("photos", 64), ("rows", ROWS), ("repeats", 5), ("size", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    model = UniPixel.from_pretrained(dtype="float32")
    jobs = drawn_jobs(args.photos, args.size)

    def one_by_one() -> dict[str, list[int]]:
        return {job.id: list(model.segment(job.media, job.prompt, max_new_tokens=NEW_TOKENS).tokens) for job in jobs}

    def together() -> dict[str, list[int]]:
        outcomes = model.segment_many(jobs, rows=args.rows, max_new_tokens=NEW_TOKENS, devices=jax.local_devices()[:1])
        return {outcome.job.id: list(outcome.prediction.tokens) for outcome in outcomes if outcome.prediction is not None}

    same = one_by_one() == together()
    rates: dict[str, list[float]] = {"one by one": [], "many": []}
    sides: dict[str, Callable[[], object]] = {"one by one": one_by_one, "many": together}
    for _ in range(args.repeats):
        for name, side in sides.items():
            start, worked = time.perf_counter(), time.process_time()
            side()
            rates[name].append(len(jobs) / (time.perf_counter() - start))
            milliseconds = 1e3 * (time.process_time() - worked) / len(jobs)
            print(f"{name:10}  {rates[name][-1]:6.2f} photos/s  {milliseconds:6.1f} ms of processor time a photo", flush=True)
    alone, many = (statistics.median(found) for found in rates.values())
    print(f"medians: one by one {alone:.2f} photos/s, many {many:.2f} photos/s, {many / alone:.2f} times; tokens {'equal' if same else 'DIFFER'}")


if __name__ == "__main__":
    main()
