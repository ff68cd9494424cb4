"""The benchmarks by name: their splits, folders, scorers and published scores.

Sources: UniPixel's ``scripts/auto_eval.sh`` for splits and folders, and its README.md for the published scores.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from unipixel_jax.errors import UserError

PROMPT_TYPES = ("point", "box", "mix")


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        name: its name on the command line.
        title: its name in reports.
        splits: the splits that it has, the default first.
        folder: the name of the folder of its predictions, which may hold ``{split}`` (with "val" for "valid"), ``{single}`` ("_single" with one frame) and
            ``{prompt}``.
        headline: the score that stands for the whole, by its path in ``Scores.scores``.
        scored: the splits whose truth is public; None for all.
        unit: what the score is multiplied with to be comparable with the published ones.
        published: the published scores of 3B and 7B, by split; for VideoRefer by "single" and "multi", which means frames.
    """

    name: str
    title: str
    splits: tuple[str, ...]
    folder: str
    headline: tuple[str, ...]
    scored: tuple[str, ...] | None = None
    unit: float = 1.0
    published: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def folder_of(self, split: str, single_frame: bool = False, prompt_type: str = PROMPT_TYPES[0]) -> str:
        """The name of the folder of predictions."""
        return self.folder.format(split=split.replace("valid", "val"), single="_single" if single_frame else "", prompt=prompt_type)

    def split_of(self, split: str | None) -> str:
        """The split's own name; "val" and "valid" mean the same, and None the first.

        Raises:
            UserError: the benchmark has no such split.
        """
        if split is None or split in self.splits:
            return split or self.splits[0]
        other = {"val": "valid", "valid": "val"}.get(split)
        if other in self.splits:
            return other
        raise UserError(f"{self.name} has no split {split!r}, expected one of: {', '.join(self.splits)}")


_J_AND_F, _CIOU = ("J&F",), ("CIoU",)
_PHOTOS = ("val", "testA", "testB")

BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("revos", "ReVOS", ("valid",), "revos_seg", ("overall", "JF"), published={"valid": (62.1, 63.7)}),
        Benchmark("mevis", "MeViS", ("valid_u", "valid"), "mevis_{split}_seg", _J_AND_F, scored=("valid_u",), published={"valid": (53.1, 55.8)}),
        Benchmark("ref_youtube_vos", "Ref-YouTube-VOS", ("valid",), "ref_youtube_vos_val_seg", _J_AND_F, scored=(), published={"valid": (70.5, 71.0)}),
        Benchmark("ref_davis17", "Ref-DAVIS17", ("valid",), "ref_davis17_seg", _J_AND_F, published={"valid": (74.2, 76.4)}),
        Benchmark("ref_sav", "Ref-SAV", ("valid",), "ref_sav_seg", _J_AND_F, published={"valid": (67.2, 69.0)}),
        Benchmark("groundmore", "GroundMoRe", ("test",), "groundmore_seg", ("final_JF",), unit=100.0, published={"test": (37.4, 37.8)}),
        Benchmark(
            "refcoco", "RefCOCO", _PHOTOS, "refcoco_{split}_seg", _CIOU, published={"val": (80.5, 80.8), "testA": (82.6, 83.0), "testB": (76.9, 77.4)}
        ),
        Benchmark(
            "refcoco+", "RefCOCO+", _PHOTOS, "refcoco+_{split}_seg", _CIOU, published={"val": (74.3, 75.3), "testA": (78.9, 80.1), "testB": (68.4, 70.0)}
        ),
        Benchmark("refcocog", "RefCOCOg", ("val", "test"), "refcocog_{split}_seg", _CIOU, published={"val": (76.3, 76.4), "test": (77.0, 77.1)}),
        Benchmark("reason_seg", "ReasonSeg", ("val", "test"), "reason_seg_{split}_seg", ("GIoU",), published={"val": (64.0, 60.5)}),
        Benchmark(
            "videorefer_q",
            "VideoRefer-Bench-Q",
            ("test",),
            "videorefer_bench_q{single}",
            ("all", "acc"),
            published={"single": (72.2, 73.4), "multi": (72.8, 74.1)},
        ),
        Benchmark(
            "videorefer_d",
            "VideoRefer-Bench-D",
            ("test",),
            "videorefer_bench_d{single}",
            ("All", "score"),
            published={"single": (3.42, 3.37), "multi": (3.44, 3.36)},
        ),
        Benchmark("pixelqa", "PixelQA", ("test",), "pixelqa_{prompt}", ("all", "acc")),
        Benchmark("mvbench", "MVBench", ("test",), "mvbench", ("all", "acc"), published={"test": (62.5, 64.3)}),
        Benchmark("videomme", "Video-MME", ("test",), "videomme", ("all", "acc")),
    )
}

def find_benchmark(name: str) -> Benchmark:
    """The benchmark with a name.

    Raises:
        UserError: there is none.
    """
    if name not in BENCHMARKS:
        near = difflib.get_close_matches(name, BENCHMARKS, n=2)
        raise UserError(f"there is no benchmark {name!r}: " + (f"did you mean {near[0]}?" if near else f"expected one of {', '.join(BENCHMARKS)}"))
    return BENCHMARKS[name]
