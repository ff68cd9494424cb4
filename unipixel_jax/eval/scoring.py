"""Scores predictions of any benchmark, whether they were made here or by the torch reference. No model and no JAX is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from unipixel_jax.errors import UserError
from unipixel_jax.eval.benchmarks import Benchmark
from unipixel_jax.eval.records import score_choices, score_photos, score_pixelqa
from unipixel_jax.eval.scores import Scores
from unipixel_jax.eval.videos import score_expressions, score_groundmore, score_revos

SCORERS: Mapping[str, Callable[[str, str, Path, Path, int], Scores]] = {
    "revos": score_revos,
    "groundmore": score_groundmore,
    **dict.fromkeys(("mevis", "ref_davis17", "ref_sav"), score_expressions),
    **dict.fromkeys(("refcoco", "refcoco+", "refcocog", "reason_seg"), score_photos),
    **dict.fromkeys(("videorefer_q", "mvbench", "videomme"), score_choices),
    "pixelqa": score_pixelqa,
}
"""By benchmark. VideoRefer-Bench-D is marked by a judge instead (judge.py)."""

NEEDS_DATA = ("revos", "mevis", "ref_davis17", "ref_sav", "groundmore")
"""The benchmarks whose predictions are compared with masks of the data set; the others' records hold all that counts."""


def score(benchmark: Benchmark, split: str, root: Path | None, predictions: Path, workers: int = 1) -> Scores:
    """Score the predictions of one benchmark.

    Args:
        benchmark: the benchmark.
        split: the name of the split.
        root: the folder that holds all data sets (the reference's ``data``); None for benchmarks that do without.
        predictions: the folder of this benchmark's predictions, in the reference's layout.
        workers: processes that score masks.

    Raises:
        UserError: the truth of the split is not public, the data or the predictions are missing, broken or of another benchmark.
    """
    if benchmark.scored is not None and split not in benchmark.scored:
        raise UserError(f"the masks of {benchmark.title}'s split {split} are not public: upload the zip file of predictions to the benchmark's server")
    if root is None and benchmark.name in NEEDS_DATA:
        raise UserError(f"{benchmark.title} is scored against its data set: give --data ROOT, the folder that holds {benchmark.name.split('+')[0]}")
    return SCORERS[benchmark.name](benchmark.name, split, root or Path(), predictions, workers)
