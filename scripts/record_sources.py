#!/usr/bin/env python3
"""Record the samples that the torch reference's data sets make of the sample data, without randomness.

`tests/data/test_sources_reference.py` compares our samples with them.

The script needs torch, torchvision, transformers, decord, nncore, pycocotools and opencv-python, a clone of github.com/PolyU-ChenLab/UniPixel, and this
project's own dependencies.

    python scripts/record_sources.py --reference UniPixel --out tests/recordings/sources/cases.json

There is no randomness because every choice is the first one, every number from a range is its lower end, every random number of torch is one half, and sets
keep their order. Questions and stock answers are replaced by the markers below, so that a recording does not depend on the sentences of either side.
"""

from __future__ import annotations

import argparse
import collections.abc
import contextlib
import hashlib
import importlib
import json
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import decord  # noqa: F401 - before the stand-ins, of which one is for it
import numpy as np
import torch
from make_sample_data import WRITERS
from recording import shims
from sample_data.edits import EDITS
from sample_data.photos import CLASSES

PASSES: tuple[dict[str, Any], ...] = (
    {"frames": [64, 64], "type": "uniform", "chance": 0.9},
    {"frames": [5, 5], "type": "uniform", "chance": 0.1},
    {"frames": [4, 9], "type": "random", "chance": 0.1},
)
"""The settings of the passes over all sources: whole clips, then five frames of each clip, then four to nine frames of which the fewest are taken, each the
first of its segment. Events with a chance of one half happen in the latter two passes. These two leave out sources that give the same as in the first."""

SPLITS = {
    "revos": ("valid",),
    "mevis": ("valid_u", "valid"),
    "ref_youtube_vos": ("valid",),
    "ref_davis17": ("valid",),
    "groundmore": ("test",),
    "vicas": ("val", "test"),
    "reason_seg": ("val", "test"),
    "ade20k": ("val",),
    "cocostuff": ("val",),
    "mapillary": ("val",),
    "paco_lvis": ("val",),
    "refcoco": ("val", "testA"),
    "refclef": ("val", "testB", "test"),
}
"""Splits other than the one for training. They are recorded with the settings of the first pass, under the name SOURCE:SPLIT."""

LIMITS = {
    "min_frames": "min_video_frames",
    "max_frames": "max_video_frames",
    "min_seconds": "min_video_len",
    "max_seconds": "max_video_len",
    "min_words": "min_num_words",
    "max_words": "max_num_words",
}
"""The reference's names of filters by ours."""

FILTERS: tuple[dict[str, int], ...] = ({"min_frames": 2}, {"max_frames": 15}, {"min_words": 6}, {"max_words": 12}, {"min_seconds": 2}, {"max_seconds": 2})
"""The filters with which the samples of each source are counted."""

REFUSALS = (ValueError, AssertionError, LookupError, RuntimeError)
"""The exceptions that the reference raises for annotations that are wrong."""

SIDE = 96
MARKERS = {
    "referring": {"REF_IMAGE_SHORT_PROMPTS": "CAPTION <|ref|>"},
    "region": {"REG_DETAILED_PROMPTS": "DESCRIBE {}"},
    "memory": {"SEG_MEMORY_PROMPTS": "LOCATE {}"},
    "segmentation": {
        "SEG_IMAGE_QUERY_PROMPTS": "IMAGE {}",
        "SEG_VIDEO_QUERY_PROMPTS": "VIDEO {}",
        "SEG_SENTENCE_PROMPTS": "SENTENCE {}",
        "SEG_QUESTION_PROMPTS": "QUESTION {}",
        "SEG_EXPLANATORY_PROMPTS": "EXPLAIN {}",
        "SEG_DESCRIPTION_PROMPTS": "DESCRIPTION {}",
        "SEG_RESPONSES": "ANSWER <|seg|>",
    },
}
"""The marker that replaces the sentences of each list, by the file that has the list."""


class OrderedSet(collections.abc.Set):  # type: ignore[type-arg]
    """A set that keeps the order of insertion, since the reference makes lists of sets."""

    def __init__(self, items: Iterable[Any] = ()) -> None:
        self._items = dict.fromkeys(items)

    def __contains__(self, item: object) -> bool:
        return item in self._items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: Any) -> None:
        """Put an item at the end, unless it is there."""
        self._items[item] = None


def main() -> None:
    """Write the sample data to a temporary folder, and what the reference makes of it to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, metavar="DIR", help="the clone of PolyU-ChenLab/UniPixel")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()
    out = args.out.resolve()
    shims.install()
    sys.dont_write_bytecode = True  # the clone is only read
    sys.path.insert(0, str(args.reference.resolve()))
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for write in dict.fromkeys(WRITERS.values()):
            write(Path("data"))
        passes = [{**settings, "sources": {name: record(name, settings) for name in WRITERS}} for settings in PASSES]
        splits = {f"{name}:{split}": record(name, PASSES[0], split) for name, splits in SPLITS.items() for split in splits}
        filters = [{"limits": limits, "counts": {name: len(open_reference(name, PASSES[0], limits)) for name in WRITERS}} for limits in FILTERS]
        edits = {edit.__name__: record_edited(name, edit) for name, edit in EDITS}
    registry = importlib.import_module("unipixel.dataset.hybrid").DATASETS
    classes = {name: {"sha256": text_hash(registry.get(name).CLASSES), "ignored": sorted(registry.get(name).IGNORE_OIDS)} for name in CLASSES}
    count = sum(len(samples) for sources in (splits, *(one["sources"] for one in passes)) for samples in sources.values())
    for later in passes[1:]:
        later["sources"] = {name: samples for name, samples in later["sources"].items() if samples != passes[0]["sources"][name]}
    out.parent.mkdir(parents=True, exist_ok=True)
    recorded = {"side": SIDE, "passes": passes, "splits": splits, "filters": filters, "classes": classes, "edits": edits}
    out.write_text(json.dumps(recorded) + "\n", encoding="utf-8")
    print(f"{count} samples in {out}")


def open_reference(name: str, settings: dict[str, Any], limits: dict[str, int] | None = None) -> Any:
    """Open a data set of the reference, which samples with the settings of a pass and leaves out what is not within the limits."""
    registry = importlib.import_module("unipixel.dataset.hybrid").DATASETS
    data = SimpleNamespace(
        **dict.fromkeys([*LIMITS.values(), "max_num_objects", "max_num_tokens"], -1) | {LIMITS[name]: value for name, value in (limits or {}).items()},
        sample_frames=",".join(map(str, settings["frames"])),
        sample_type=settings["type"],
        sample_for_llm_only=False,
        num_threads=1,
        max_conv_turns=3,
    )
    return registry.get(name)(None, SimpleNamespace(sam2_image_size=SIDE, sam2_batch_mode=False), data, SimpleNamespace(local_rank=1))


def record(name: str, settings: dict[str, Any], split: str = "train") -> list[dict[str, Any]]:
    """Return the description of each sample of a source, in which points and boxes take turns.

    Where an annotation lists its frames, the description names the first and the last file taken.
    """
    taken = take_out_chance(settings["chance"])
    source = open_reference(name, settings)
    if split != "train":
        source.annos = source.load_annos(split=split)
    out = []
    for number, annotation in enumerate(source.annos):
        for kind in ("point", "box"):
            annotation["data_type"] = annotation["data_type"].replace(kind, ("point", "box")[number % 2])
        taken.clear()
        try:
            sample = source[number]
            out.append(describe(sample, taken) | {"data_type": annotation["data_type"]})
            if isinstance(annotation.get("frames", [None])[0], str):
                paths = [str(Path(path).relative_to("data")) for path in sample["messages"][0]["content"][0]["video"]]
                out[-1]["files"] = [paths[0], paths[-1]]
        except REFUSALS as error:
            out.append({"refused": type(error).__name__, "data_type": annotation["data_type"]})
    return out


def record_edited(name: str, edit: Callable[[Path], None]) -> dict[str, Any]:
    """Return what the samples of a source become when its data were changed, or which error opening it raises."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        WRITERS[name](Path("data"))
        edit(Path("data"))
        try:
            return {"source": name, "samples": record(name, PASSES[1])}
        except REFUSALS as error:
            return {"source": name, "refused": type(error).__name__}


def take_out_chance(chance: float) -> list[int]:
    """Take the randomness out of the reference; return a list that always holds the numbers of the frames that were taken last."""
    random.choice = lambda items: items[0]
    random.randint = lambda low, high: low
    random.sample = lambda items, count: list(items)[:count]
    random.random = lambda: chance
    torch.rand = lambda *shape, device=None: torch.full(shape, 0.5)
    torch.distributed.broadcast = lambda *args: None
    importlib.import_module("unipixel.dataset")
    taken: list[int] = []
    for name, markers in MARKERS.items():
        module: Any = importlib.import_module(f"unipixel.dataset.sub_classes.{name}")
        module.set = OrderedSet
        for sentences, marker in markers.items():
            getattr(module, sentences)[:] = [marker]
        for loader in ("load_frames", "load_frames_with_inds", "load_frames_with_stride"):
            inner = getattr(importlib.import_module("unipixel.utils.io"), loader)

            def noting(*args: Any, inner: Any = inner, **options: Any) -> Any:
                result = inner(*args, **options)
                taken[:] = result[2]
                return result

            setattr(module, loader, noting)
    return taken


def describe(sample: dict[str, Any], taken: list[int]) -> dict[str, Any]:
    """Describe a sample: words, frames, points and boxes as they are, and masks by their number of pixels and a hash."""
    content = sample["messages"][0]["content"]
    out: dict[str, Any] = {
        "words": [m["content"] if isinstance(m["content"], str) else m["content"][-1]["text"] for m in sample["messages"]],
        "media": None if isinstance(content, str) else content[0]["type"],
    }
    if out["media"] == "video" and isinstance(content[0]["video"], str):
        video, rate = importlib.import_module("unipixel.dataset.utils").fetch_video(content[0], return_video_sample_fps=True)
        out |= {"frame_count": len(video), "seconds_per_frame": 1 / rate, "size": list(video.shape[2:])}
    elif out["media"] == "video":
        image = importlib.import_module("unipixel.dataset.utils").fetch_video(content[0])[0]
        out |= {"frames": list(taken), "size": [image.height, image.width]}
    for key in ("label_mask", "refer_mask"):
        if key in sample:
            out[key] = fingerprint(sample[key].numpy() > 0)
    if "point_coords" in sample:
        out["references"] = [
            {"coords": coords[0].tolist(), "frame": int(frame)} for coords, frame in zip(sample["point_coords"], sample["point_frames"][0], strict=True)
        ]
    return out


def text_hash(texts: list[str]) -> str:
    """Return a hash of texts and of their order."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def fingerprint(masks: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return the shape, the number of pixels and a hash of boolean masks of any shape."""
    return {"shape": list(masks.shape), "pixels": int(masks.sum()), "sha256": hashlib.sha256(np.packbits(masks).tobytes()).hexdigest()[:16]}


if __name__ == "__main__":
    main()
