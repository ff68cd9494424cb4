"""Replay a whole recording on its own checkpoint, converted, and report the comparisons."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from unipixel_jax.convert import sources, to_jax
from unipixel_jax.errors import UserError
from unipixel_jax.infer.loading import LoadedModel, load
from unipixel_jax.infer.sam2 import Sam2Predictor
from unipixel_jax.models.unipixel import with_config
from unipixel_jax.ops.attention import use_attention
from unipixel_jax.parity import exported, sam2
from unipixel_jax.parity.compare import Check
from unipixel_jax.parity.recording import Case, Recording, inside
from unipixel_jax.parity.replay import F32, KINDS, Context, trace_training
from unipixel_jax.parity.training import adapters_of

TRAINING = ("train_loss", "train_steps")
"""The kinds of cases that compile gradients."""
SHARING = 16
"""Clips with up to as many objects share the programs of tracking."""


@dataclass(frozen=True)
class CaseResult:
    """A case's name and kind, and its comparisons. A case without comparisons has not passed."""

    name: str
    kind: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether there was something to compare and all of it passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)


def replay(recording: Recording) -> Iterator[CaseResult]:
    """Yield the result of each case. A case of an unknown kind has no comparisons, and so fails."""
    if all(case.kind in sam2.KINDS for case in recording.cases):
        predictor = Sam2Predictor.from_pretrained(recording.root / "checkpoint")
        for case in recording.cases:
            with readable(case):
                checks = sam2.KINDS[case.kind](case, predictor)
            yield CaseResult(case.name, case.kind, tuple(checks))
        return
    with _converted(recording.root / "checkpoint") as plain:
        yield from _replay_cases(recording, plain)


def replay_exported(recording: Recording, runtime: str, folder: Path | None) -> Iterator[CaseResult]:
    """Yield the result of each case that programs of an export take part in, replayed through them.

    Args:
        recording: a recording of UniPixel.
        runtime: a name in ``exported.RUNTIMES``.
        folder: see ``exported.opened``.

    Raises:
        UserError: no case is of programs, or the export cannot be made or opened.
    """
    cases = exported.of_programs(recording)
    if not cases:
        raise UserError(f"{recording.root} has no case that programs of an export take part in: expected one of {', '.join(exported.KINDS)}")
    with _converted(recording.root / "checkpoint") as loaded, exported.opened(recording, loaded, runtime, folder) as made:
        for case in cases:
            with readable(case):
                replayed, _ = exported.KINDS[case.kind]
                checks = replayed(case, Context(loaded, recording.root, recording.dtype != "float32"), made)
            yield CaseResult(case.name, case.kind, tuple(checks))


def to_json(results: list[CaseResult]) -> dict[str, Any]:
    """Return the report as JSON values: ``{"passed", "cases": [{"name", "kind", "passed", "tensors": [...]}]}``."""
    return {
        "passed": bool(results) and all(result.passed for result in results),
        "cases": [
            {
                "name": result.name,
                "kind": result.kind,
                "passed": result.passed,
                "tensors": [dataclasses.asdict(check) | {"passed": check.passed} for check in result.checks],
            }
            for result in results
        ],
    }


def print_table(results: list[CaseResult], console: Console, worst: int = 3) -> None:
    """Print a row for each tensor; of the gradients that passed, only the ``worst`` with the largest errors."""
    table = Table("case", "tensor", "relative error", "largest error", "allowed", "pass")
    for result in results:
        shown = [check for check in result.checks if "grad." not in check.name or not check.passed]
        grads = sorted((c for c in result.checks if "grad." in c.name and c.passed), key=lambda c: -c.relative_error / (c.allowed or 1))
        for check in shown + grads[:worst]:
            numbers = (f"{check.relative_error:.2e}", f"{check.max_error:.2e}", f"{check.allowed:.1e}")
            table.add_row(result.name, check.name, *numbers, "yes" if check.passed else "[bold red]NO[/]")
        if len(grads) > worst:
            table.add_row(result.name, f"… {len(grads) - worst} more gradients", "smaller", "", "", "yes")
        if not result.checks:
            table.add_row(result.name, f"nothing compared: unknown kind {result.kind!r}", "", "", "", "[bold red]NO[/]")
    console.print(table)


def _replay_cases(recording: Recording, plain: LoadedModel) -> Iterator[CaseResult]:
    """Yield the result of each case in order. The cases of training have two threads and the others one, since the program of gradients takes half of the
    time to compile, and XLA compiles without Python's lock. Tracing needs the lock, so that program is traced before anything else is.
    """
    chosen = use_attention.value

    def replayed(case: Case) -> list[Check]:
        with use_attention(chosen):  # what a thread chooses is its own
            return _replay_case(case, recording, plain)

    first = next((case for case in recording.cases if case.kind in TRAINING), None)
    if first is not None:
        with _context(first, recording, plain) as context:
            trace_training(first, context)
    training, others = ThreadPoolExecutor(2), ThreadPoolExecutor(1)
    try:
        for case, result in [(case, (training if case.kind in TRAINING else others).submit(replayed, case)) for case in recording.cases]:
            yield CaseResult(case.name, case.kind, tuple(result.result()))
    finally:
        for threads in (training, others):
            threads.shutdown(wait=False, cancel_futures=True)


def _replay_case(case: Case, recording: Recording, plain: LoadedModel) -> list[Check]:
    if case.kind not in KINDS:
        return []
    with _context(case, recording, plain) as context:
        return KINDS[case.kind](case, context)


@contextmanager
def _context(case: Case, recording: Recording, plain: LoadedModel) -> Iterator[Context]:
    """Yield what a case is replayed with: the model, or the model through the case's adapter, as the case configures it."""
    adapter = case.options.get("adapter")
    with readable(case), nullcontext(plain) if adapter is None else _converted(inside(recording.root, adapter)) as loaded:
        if "batch_mode" in case.options:
            config = dataclasses.replace(loaded.config, sam2_batch_mode=bool(case.options["batch_mode"]))
            loaded = dataclasses.replace(loaded, config=config, model=with_config(loaded.model, config))
        adapters = adapters_of(recording.cases) if case.kind in TRAINING else None
        yield Context(loaded, recording.root, recording.dtype != "float32", adapters, _most_objects(recording.cases))


def _most_objects(cases: Sequence[Case]) -> int:
    """Return the most objects of a recorded clip, of those with up to ``SHARING``."""
    counts = (len(np.atleast_1d(case.outputs.get("masks", ()))) for case in cases if case.kind in ("generate", "e2e"))
    return max((count for count in counts if count <= SHARING), default=0)


@contextmanager
def readable(case: Case) -> Iterator[None]:
    """Turn what arrays whose shapes or dtypes do not fit together raise into an error about the case."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, ZeroDivisionError) as error:
        raise UserError(f"{case.path} cannot be replayed ({type(error).__name__}: {str(error)[:300]}): record it again, or copy it again") from error


@contextmanager
def _converted(checkpoint: Path) -> Iterator[LoadedModel]:
    """Convert a torch checkpoint or adapter into a temporary folder, and load it in float32."""
    with tempfile.TemporaryDirectory(prefix="unipixel-jax-parity-") as folder:
        target = Path(folder) / "model"
        source = sources.open_checkpoint(checkpoint) if sources.identify(checkpoint) == "unipixel" else sources.open_adapter(checkpoint, None, None, 0)
        to_jax.convert(source, target)
        yield load(target, F32)
