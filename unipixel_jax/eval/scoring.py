"""Scores predictions of any benchmark, whether they were made here or by the torch reference. No model and no JAX is needed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from unipixel_jax.errors import UserError
from unipixel_jax.eval.benchmarks import Benchmark
from unipixel_jax.eval.records import score_choices, score_photos, score_pixelqa
from unipixel_jax.eval.scores import Scores
from unipixel_jax.eval.videos import score_expressions, score_groundmore, score_revos

VIDEO_SCORERS: Mapping[str, Callable[..., Scores]] = {
    "revos": score_revos,
    "groundmore": score_groundmore,
    **dict.fromkeys(("mevis", "ref_davis17", "ref_sav"), score_expressions),
}
"""By benchmark, those that compare predictions with masks of the data set."""

RECORD_SCORERS: Mapping[str, Callable[[str, str, Path], Scores]] = {
    **dict.fromkeys(("refcoco", "refcoco+", "refcocog", "reason_seg"), score_photos),
    **dict.fromkeys(("videorefer_q", "mvbench", "videomme"), score_choices),
    "pixelqa": score_pixelqa,
}
"""By benchmark, those whose records hold all that counts. VideoRefer-Bench-D is marked by a judge instead (judge.py)."""


def score(
    benchmark: Benchmark,
    split: str,
    root: Path | None,
    predictions: Path,
    workers: int = 1,
    shown: int | None = None,
    names: Collection[str] | None = None,
) -> Scores:
    """Score the predictions of one benchmark.

    Args:
        benchmark: the benchmark.
        split: the name of the split.
        root: the folder that holds all data sets (the reference's ``data``); None for benchmarks that do without.
        predictions: the folder of this benchmark's predictions, in the reference's layout.
        workers: processes that score masks.
        shown: score only so many frames of each clip, spread evenly, which are those that the language model looks at; None for all.
        names: of the videos' expressions, as ``video/expression``, that a run was limited to; None for all.

    Raises:
        UserError: the truth of the split is not public, the data or the predictions are missing, broken or of another benchmark.
    """
    if benchmark.scored is not None and split not in benchmark.scored:
        raise UserError(f"the masks of {benchmark.title}'s split {split} are not public: upload the zip file of predictions to the benchmark's server")
    if benchmark.name in RECORD_SCORERS:
        if shown is not None:
            raise UserError(f"{benchmark.title} has no masks of clips to score on some frames only")
        return RECORD_SCORERS[benchmark.name](benchmark.name, split, predictions)
    if root is None:
        raise UserError(f"{benchmark.title} is scored against its data set: give --data ROOT, the folder that holds {benchmark.name}")
    return VIDEO_SCORERS[benchmark.name](benchmark.name, split, root, predictions, workers, shown, names)
