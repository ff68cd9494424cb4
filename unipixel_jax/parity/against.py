"""The comparison of two recordings with each other: what the torch reference computed on two devices, in two dtypes or with two versions of torch.

Our model takes no part. Both recordings must have been made of the same weights and inputs, which the recorder draws from the seed whatever the device is.
Errors of the first recording are relative to the second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from unipixel_jax.convert.tensors import Tensor
from unipixel_jax.convert.weights import read_file, read_weights
from unipixel_jax.errors import UserError
from unipixel_jax.parity import compare
from unipixel_jax.parity.compare import Check
from unipixel_jax.parity.recording import Case, Recording
from unipixel_jax.parity.run import CaseResult, readable

ROUNDING = 2**-8
"""The largest relative error of a number that is rounded to bfloat16."""
NOT_JUDGED = 1.0
"""The bound on the share of elements that differ where rounding may decide an argmax or a threshold: any share passes."""


@dataclass(frozen=True)
class _Bounds:
    """The largest relative errors of the vision tower and the language model and of SAM, and whether either recording is in bfloat16."""

    hidden: float
    sam: float
    reduced: bool


def compare_recordings(first: Recording, second: Recording) -> Iterator[CaseResult]:
    """Yield the comparison of the weights, and that of each case that both recordings have.

    Float32 recordings are held to the bounds of a replay. Where either is in bfloat16, the bounds are twice those of a replay in bfloat16: two such recordings
    may each be that far from float32, and one in float32 has weights and inputs that were not rounded, which a replay does not see. There tokens, responses
    and masks are shown but not judged, since they follow an argmax or a threshold, and of tracked clips the first frame is compared, and whether the object
    is present on the others.

    Raises:
        UserError: no case is in both, a case's kind, inputs or names of outputs differ, or files are damaged.
    """
    others = {case.name: case for case in second.cases}
    both = [(case, others[case.name]) for case in first.cases if case.name in others]
    if not both:
        raise UserError(f"{first.root} and {second.root} have no case in common: record both with the same preset or checkpoint")
    yield CaseResult("checkpoint", "weights", (_compare_weights(first, second),))
    reduced = [recording.dtype == "bfloat16" for recording in (first, second)]
    bounds = _Bounds(2 * compare.BF16_HIDDEN, 2 * compare.BF16_SAM, True) if any(reduced) else _Bounds(compare.FORWARD, compare.FORWARD, False)
    for one, other in both:
        with readable(one):
            _require_same_inputs(one, other, reduced[0] != reduced[1])
            checks = list(_compare_outputs(one, other, bounds))
        yield CaseResult(one.name, one.kind, tuple(checks))


def _compare_weights(first: Recording, second: Recording) -> Check:
    """Compare two checkpoints, and return the check of the tensor that is farthest off; where one is in bfloat16, the other is rounded to it first.

    The recorder's random models have two weights that follow from what the model computes, so that from one machine to another they may differ by a rounding.
    """
    folders = [recording.root / "checkpoint" for recording in (first, second)]
    if folders[0].exists() and folders[1].exists() and folders[0].samefile(folders[1]):
        return Check("weights", 0.0, 0.0, 0.0)
    ours, theirs = (_weights(recording) for recording in (first, second))
    unlike = sorted(name for name in ours.keys() | theirs.keys() if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape)
    if unlike:
        raise UserError(f"{folders[0]} and {folders[1]} hold different models ({unlike[0]} and {len(unlike) - 1} more): record both from one checkpoint")
    worst = Check("weights", 0.0, 0.0, compare.FORWARD)
    for name, tensor in ours.items():
        narrow, allowed = ("BF16", ROUNDING) if "BF16" in (tensor.dtype, theirs[name].dtype) else (tensor.dtype, compare.FORWARD)
        check = compare.close(f"weights: {name}", tensor.cast(narrow).load(), theirs[name].cast(narrow).load(), allowed)
        if not check.relative_error <= worst.relative_error:
            worst = check
    return worst


def _weights(recording: Recording) -> Mapping[str, Tensor]:
    """Return the tensors of a recording's checkpoint, of UniPixel or of SAM 2.1 alone."""
    folder = recording.root / "checkpoint"
    alone = sorted(folder.glob("sam2*.pt"))
    return read_file(alone[0]) if alone else read_weights(folder).tensors


def _require_same_inputs(one: Case, other: Case, rounded: bool) -> None:
    """Refuse cases that were computed from different inputs; with ``rounded``, one's real numbers are the other's in bfloat16."""
    ours, theirs = ({name: value for name, value in case.tensors.items() if name.startswith("inputs.")} for case in (one, other))
    differing = sorted(ours.keys() ^ theirs.keys())
    for name in ours.keys() & theirs.keys():
        a, b = ours[name], theirs[name]
        if rounded and a.dtype.kind == b.dtype.kind == "f":
            a, b = (array.astype(ml_dtypes.bfloat16).astype(np.float32) for array in (a, b))
        if not np.array_equal(a, b):
            differing.append(name)
    if one.kind != other.kind or differing:
        what = f"{sorted(differing)[0]} differs" if differing else f"the kinds are {one.kind} and {other.kind}"
        raise UserError(f"{one.path} and {other.path} were not made of the same inputs ({what}): record both with the same preset or checkpoint and seed")


def _compare_outputs(one: Case, other: Case, bounds: _Bounds) -> Iterator[Check]:
    ours, theirs = one.outputs, other.outputs
    unlike = sorted(name for name in ours.keys() ^ theirs.keys() if not name.startswith("grad."))
    if unlike:
        raise UserError(f"{one.path} and {other.path} have different outputs ({unlike[0]}): record both with the same version of the recorder")
    if "response" in one.options:
        yield _judged(compare.exact("response", np.asarray(one.options["response"]), np.asarray(other.options.get("response"))), bounds)
    if "grad_norms" in ours:
        total = float(np.linalg.norm(theirs["grad_norms"].astype(np.float64)))
        for name, a, b in zip(one.beside("grad_names"), ours.pop("grad_norms"), theirs["grad_norms"], strict=True):
            yield compare.gradient(f"norm of grad.{name}", a, b, total)
    else:
        total = float(np.sqrt(sum(np.sum(value.astype(np.float64) ** 2) for name, value in theirs.items() if name.startswith("grad."))))
    for name, value in ours.items():
        if name in theirs:
            yield from _compare(one, name, value, theirs[name], bounds, total)


def _compare(case: Case, name: str, ours: np.ndarray, theirs: np.ndarray, bounds: _Bounds, all_gradients: float) -> Iterator[Check]:
    """Compare one output of a case; ``all_gradients`` is the norm of the case's gradients together."""
    if ours.dtype.kind == "b":
        yield _judged(compare.same_masks(name, ours, theirs), bounds)
    elif ours.dtype.kind in "iu":
        check = compare.exact(name, ours, theirs)
        yield _judged(check, bounds) if name == "tokens" else check
    elif name.startswith("grad."):
        yield compare.gradient(name, ours, theirs, all_gradients)
    elif name == "losses":
        yield compare.close(name, ours, theirs, compare.LOSSES)
    elif name.startswith("change"):
        yield compare.close(name, ours, theirs, compare.CHANGE)
    elif case.kind == "sam2_video":
        yield from _compare_frames(name, ours, theirs, bounds)
    elif case.kind == "text":
        valid = case.input("attention_mask").astype(bool)
        yield compare.close(name, ours[valid], theirs[valid], bounds.hidden)
    elif case.kind.startswith("sam2"):
        scores = name.rpartition(".")[2] in ("iou", "object_score", "score", "scores")
        yield (compare.close_scores if scores else compare.close)(name, ours, theirs, bounds.sam)
    else:
        yield compare.close(name, ours, theirs, bounds.hidden)


def _compare_frames(name: str, ours: np.ndarray, theirs: np.ndarray, bounds: _Bounds) -> Iterator[Check]:
    """Compare what was computed of each frame of a tracked clip."""
    if name == "low_res_masks":
        ours, theirs = ours[0], theirs[0]
    scores = name == "object_score_logits"
    if not bounds.reduced:
        yield (compare.close_scores if scores else compare.close_per_frame)(name, ours, theirs, bounds.sam)
        return
    yield (compare.close_scores if scores else compare.close)(f"{name}[0]", ours[0], theirs[0], bounds.sam)
    if scores:
        # rounding decides the sign of a score near zero
        decided = np.abs(theirs) > 2 * bounds.sam
        yield compare.exact("object present", (ours > 0)[decided], (theirs > 0)[decided])


def _judged(check: Check, bounds: _Bounds) -> Check:
    """Return the check of something that follows an argmax or a threshold, with its bound."""
    return Check(check.name, check.relative_error, check.max_error, NOT_JUDGED) if bounds.reduced else check
