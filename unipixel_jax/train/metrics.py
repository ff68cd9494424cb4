"""Showing and writing the metrics of a run: on the terminal, as a JSON line for each log step, in TensorBoard, and at Weights & Biases if it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import platform
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, ConsoleRenderable
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from unipixel_jax.core.files import replacing
from unipixel_jax.train.checkpoints.reader import reason

log = logging.getLogger(__name__)

LOG = "metrics.jsonl"
"""The file of metrics in a run's directory."""
WANDB_ID = "wandb_id.txt"
"""The file in a run's directory that holds its id at Weights & Biases, so that a run that is started again continues there."""
SHOWN = {
    "loss": ".3f", "language": ".3f", "segmentation": ".3f", "seg_rate": ".2f", "grad_norm": ".2f", "samples_per_second": ".1f", "host_wait": ".1%",
    "replaced": ".0f",
}  # fmt: skip
"""The metrics that a line on the terminal shows, with their formats."""

_BEYOND = 1 << 62
"""A step that no run reaches."""


class Unwatched:
    """A context that shows and writes nothing: what all processes use but the first."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Do nothing, since nothing is open."""

    def advance(self, step: int) -> None:
        """Record that a step is done."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of a step."""

    def say(self, line: ConsoleRenderable | str) -> None:
        """Show a line."""


class Watch(Unwatched):
    """Shows and writes metrics. Those that cannot be written are left out, and a warning says so once, since no run should end because of them."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], total_steps: int, first_step: int) -> None:
        """Open the log, or continue that of an interrupted run, of which the lines of steps that are done again are dropped.

        Raises:
            UserError: the run's directory cannot be written.
        """
        self._file = run_dir / LOG
        self._all_written = True
        with replacing(self._file) as aside, open(aside, "wb") as kept:
            if self._file.is_file():
                with self._file.open("rb") as lines:
                    kept.writelines(line for line in lines if _step(line) <= first_step)
        self._console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._name = run_dir.name
        self._task = self._progress.add_task(self._name, total=total_steps, completed=first_step)
        self._outlets: dict[str, _TensorBoard | _Wandb] = {}
        if importlib.util.find_spec("tensorboardX") is not None:
            with self._spared("TensorBoard"):
                self._outlets["TensorBoard"] = _TensorBoard(run_dir / "tensorboard", first_step)
        if importlib.util.find_spec("wandb") is not None:
            with self._spared("Weights & Biases"):
                self._outlets["Weights & Biases"] = _Wandb(run_dir, config)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()
        while self._outlets:
            name, outlet = self._outlets.popitem()
            with self._spared(name):
                outlet.close()

    def advance(self, step: int) -> None:
        """Move the progress bar."""
        self._progress.update(self._task, completed=step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of a step to the log and all other outlets, and show a line of them."""
        self._append(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        for name, outlet in list(self._outlets.items()):
            with self._spared(name):
                outlet.write(step, values)
        shown = "  ".join(f"{name} {values[name]:{form}}" for name, form in SHOWN.items() if name in values)
        other = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if name.startswith("validation"))
        self.say(f"{self._name}: step {step}  {shown}{'  ' if shown and other else ''}{other}")

    def say(self, line: ConsoleRenderable | str) -> None:
        """Show a line above the progress bar."""
        self._console.print(line, highlight=False, soft_wrap=True)

    def _append(self, line: str) -> None:
        """Append a line to the log, or nothing where the line cannot be written whole; later lines are tried again."""
        whole = None
        try:
            with self._file.open("a") as file:
                whole = file.tell()
                file.write(line)
        except OSError as error:
            if whole is not None:
                with suppress(OSError):
                    os.truncate(self._file, whole)
            if self._all_written:
                log.warning("%s cannot be written (%s): metrics are left out as long as that is so", self._file, reason(error))
            self._all_written = False

    @contextmanager
    def _spared(self, name: str) -> Iterator[None]:
        """Catch any error of an outlet and close it, so that training goes on without it."""
        try:
            yield
        except Exception as error:
            log.warning("%s left out: %s", name, reason(error))
            if name in self._outlets:
                with suppress(Exception):
                    self._outlets.pop(name).close()


class _TensorBoard:
    """An events file for TensorBoard.

    It is written without tensorboardX's SummaryWriter, which writes in a thread: a full disk ends that thread, and the caller then waits for ever.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        """Open the file. TensorBoard then drops what it has of steps after ``first_step``, since they are done again."""
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._file = RecordWriter(str(folder / f"events.out.tfevents.{time.time():.6f}.{platform.node()}"))
        self._add(file_version="brain.Event:2")
        self._add(step=first_step + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._add(step=step, summary=self._summary(value=[self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]))
        self._file.flush()

    def _add(self, **fields: Any) -> None:
        self._file.write(self._event(wall_time=time.time(), **fields).SerializeToString())

    def close(self) -> None:
        self._file.close()


class _Wandb:
    """A run at Weights & Biases, which continues each time that the training run is started again."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        kept = run_dir / WANDB_ID
        if not kept.is_file():
            with replacing(kept) as aside:
                aside.write_text(secrets.token_hex(8))
        settings = {"project": "unipixel_jax", "name": run_dir.name, "dir": str(run_dir), "config": dict(config), "id": kept.read_text(), "resume": "allow"}
        keyboard = sys.stdin
        try:
            with open(os.devnull) as sys.stdin:  # so that wandb raises an error where nobody is logged in, and does not stop training to ask for a key
                self._run = importlib.import_module("wandb").init(**settings)
        finally:
            sys.stdin = keyboard

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _step(line: bytes) -> int:
    """Return the step of a line of the log, or ``_BEYOND`` for a line that is truncated or damaged."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return _BEYOND
    return step if type(step) is int and line.endswith(b"\n") else _BEYOND
