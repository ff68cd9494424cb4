#!/usr/bin/env python3
"""Measure samples per second of the data loader alone, and of the torch reference's, on the same generated data, samples and number of worker processes.

    python scripts/benchmark_loader.py                              # ours
    python scripts/benchmark_loader.py --reference UniPixel         # both in turns, and how many times faster ours is

The reference needs a clone of github.com/PolyU-ChenLab/UniPixel and its packages (torch, torchvision, transformers, nncore, opencv, ...) beside ours.

The data are photos of 640x480 pixels in the layout of RefCOCO, and clips of 854x480 pixels in the layout of MeViS, of which 8 frames are sampled. Each side
prepares the batches that its training takes, with SAM's frames 768 pixels wide. A measurement begins after the first batches, so that starting is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import pickle
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image
from sample_data.discs import run_length, write_json

from unipixel_jax.config import UniPixelConfig, preset
from unipixel_jax.data.annotation import DrawOptions
from unipixel_jax.data.loader import LoaderOptions
from unipixel_jax.data.mixture import Mixture
from unipixel_jax.data.pipeline import DrawSample, open_loader, open_mixture
from unipixel_jax.processing.tokenizer import Tokenizer

DATASETS = ("refcoco", "mevis")
TOKENIZER = Path(__file__).parent.parent / "tests" / "recordings" / "processing" / "tokenizer"
SIDE, FRAMES, TURNS = 768, 8, 3
WARM = 2
"""The number of batches of each worker that are not timed, since they were made while the workers started."""


def main() -> int:
    """Measure what the command line asks for and print it; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, metavar="CLONE", help="a clone of the reference, to be timed in turns with ours")
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of each side (default: one for each processor)")
    parser.add_argument("--threads", action="store_true", help="use as many threads instead of processes on our side")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="dtype of our images; the reference's are float32")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--batches", type=int, default=16, help="timed batches of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    args = parser.parse_args()
    clone = None if args.reference is None else args.reference.resolve()
    report: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        WRITERS["refcoco"](Path("data"), 64)
        WRITERS["mevis"](Path("data"), 8)
        theirs = None if clone is None else Reference(clone)
        for name in args.datasets:
            mixture = open_mixture(f"{name}:1000", "data", args.batch_size)
            rates: dict[str, list[float]] = {"ours": [], "reference": []}
            for _ in range(args.repeats):
                rates["ours"].append(rate(ours(mixture, args), args))
                if theirs is not None:
                    rates["reference"].append(rate(theirs.batches(name, mixture, args.workers), args))
            report[name] = summary(rates)
            print(json.dumps({name: report[name]}), flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def rate(batches: Iterator[Any], args: argparse.Namespace) -> float:
    """Return the samples per second of a loader's batches, and close it."""
    for _ in range(WARM * max(args.workers, 1)):
        next(batches)
    start = time.perf_counter()
    for _ in range(args.batches):
        next(batches)
    seconds = time.perf_counter() - start
    batches.close()  # type: ignore[attr-defined]
    return args.batches * args.batch_size / seconds


def summary(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Return median and extremes of both sides, and of the quotients of measurements that followed one another."""
    found: dict[str, Any] = {}
    quotients = [a / b for a, b in zip(rates["ours"], rates["reference"], strict=False)]
    for name, values in {**rates, "times as fast": quotients}.items():
        if values:
            found[name] = {"min": round(min(values), 2), "median": round(statistics.median(values), 2), "max": round(max(values), 2)}
    return found


def ours(mixture: Mixture, args: argparse.Namespace) -> Iterator[Any]:
    """Yield the batches of this project's loader."""
    options = DrawOptions(sample_frames=(FRAMES, FRAMES), max_turns=TURNS, image_size=SIDE)
    draw = DrawSample(Tokenizer.from_directory(TOKENIZER), _config(), options, pixel_dtype=args.dtype)
    workers, threads = (0, args.workers) if args.threads else (args.workers, 1)
    with open_loader(mixture, draw, LoaderOptions(workers, threads)) as loader:
        yield from loader


class Reference:
    """The reference's data sets and collator, loaded by torch's own loader."""

    def __init__(self, clone: Path) -> None:
        """Import the clone, and make its processor from our small tokenizer."""
        from recording import reference

        warnings.simplefilter("ignore")
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        reference.use_clone(clone)
        with reference.quiet():
            self.processor = reference._processor(str(TOKENIZER))
        self.dataset = importlib.import_module("unipixel.dataset")

    def batches(self, name: str, mixture: Mixture, workers: int) -> Iterator[Any]:
        """Yield the reference's batches of the same samples in the same order."""
        from torch.utils.data import DataLoader

        data = SimpleNamespace(
            datasets=f"{name}:1000", sample_frames=str(FRAMES), sample_type="random", sample_for_llm_only=False, num_threads=0, min_video_frames=-1,
            max_video_frames=-1, min_num_words=-1, max_num_words=-1, max_num_tokens=-1, max_num_objects=-1, max_conv_turns=TURNS, max_retries=10,
        )  # fmt: skip
        model = SimpleNamespace(sam2_image_size=SIDE, sam2_batch_mode=False, conv_type="chatml")
        samples = self.dataset.HybridDataset(self.processor, model, data, SimpleNamespace(local_rank=1))
        assert len(samples) == len(mixture)
        order = [mixture.batch(step).tolist() for step in range(mixture.steps_per_epoch)]
        collate = self.dataset.HybridDataCollator(self.processor.tokenizer)
        yield from DataLoader(samples, batch_sampler=order, num_workers=workers, collate_fn=collate)


def write_refcoco(root: Path, count: int) -> None:
    """Write photos with four objects each, and three expressions for each object, in the layout of RefCOCO."""
    rng = np.random.default_rng(0)
    images, annotations, refs = [], [], []
    for number in range(count):
        file = f"COCO_train2014_{number:012d}.jpg"
        draw_image(rng, 480, 640, root / "lisa/refer_seg/images/mscoco/images/train2014" / file)
        images.append({"id": number, "file_name": file, "height": 480, "width": 640})
        for _ in range(4):
            identity = len(annotations)
            y, x = rng.integers(60, 420), rng.integers(60, 580)
            angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
            radii = rng.uniform(30, 60, 40)
            polygon = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], axis=1).round(1).reshape(-1).tolist()
            box = [float(x - 60), float(y - 60), 120.0, 120.0]
            annotations.append({"id": identity, "image_id": number, "category_id": 1, "segmentation": [polygon], "bbox": box})
            sentences = [{"sent_id": 3 * identity + i, "tokens": [], "sent": f"thing {i} on the left of the other"} for i in range(3)]
            refs.append({"ref_id": identity, "ann_id": identity, "image_id": number, "category_id": 1, "split": "train", "sentences": sentences})
    folder = root / "lisa/refer_seg/refcoco"
    write_json(folder / "instances.json", {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]})
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs))


def write_mevis(root: Path, count: int) -> None:
    """Write clips of 40 frames with two objects and three expressions, one of which is about both, in the layout of MeViS."""
    rng = np.random.default_rng(0)
    height, width, frames = 480, 854, 40
    videos, masks = {}, {}
    rows, columns = np.mgrid[:height, :width]
    for number in range(count):
        names = [f"{i:05d}" for i in range(frames)]
        for name in names:
            draw_image(rng, height, width, root / "mevis/train/JPEGImages" / f"clip{number}" / f"{name}.jpg")
        for thing in range(2):
            y, x = rng.integers(100, 380), rng.integers(100, 500)
            masks[str(2 * number + thing)] = [run_length((rows - y) ** 2 + (columns - x - 5 * i) ** 2 < 80**2) for i in range(frames)]
        asked = [([0], "the thing that moves"), ([1], "the other thing"), ([0, 1], "both of the things")]
        expressions = {str(i): {"exp": text, "obj_id": things, "anno_id": [2 * number + t for t in things]} for i, (things, text) in enumerate(asked)}
        videos[f"clip{number}"] = {"frames": names, "expressions": expressions}
    write_json(root / "mevis/train/meta_expressions.json", {"videos": videos})
    write_json(root / "mevis/train/mask_dict.json", masks)


WRITERS = {"refcoco": write_refcoco, "mevis": write_mevis}


def draw_image(rng: np.random.Generator, height: int, width: int, path: Path) -> None:
    """Write an image that takes as long to decode as a photo: soft colours with fine noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soft = Image.fromarray(rng.integers(0, 256, (height // 24, width // 24, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(soft).astype(np.int16) + rng.integers(-8, 9, (height, width, 1), np.int16)
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(path, quality=90)


def _config() -> UniPixelConfig:
    """Return a configuration with the published models' image sizes and the small tokenizer's ids."""
    real, tiny = preset("3b"), preset("tiny")
    vision = dataclasses.replace(real.vision, out_hidden_size=tiny.text.hidden_size)
    return dataclasses.replace(tiny, vision=vision, sam2=dataclasses.replace(real.sam2, image_size=SIDE))


if __name__ == "__main__":
    sys.exit(main())
