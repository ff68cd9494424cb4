"""What a run shows of itself: a line and a progress bar on the terminal, a JSON line for each log step, TensorBoard, and Weights & Biases if it is there."""

from __future__ import annotations

import importlib
import importlib.util
import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, ConsoleRenderable
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG = "metrics.jsonl"
SHOWN = {"loss": ".3f", "language": ".3f", "segmentation": ".3f", "seg_rate": ".2f", "grad_norm": ".2f", "samples_per_second": ".1f", "host_wait": ".1%"}
"""What the progress bar shows, and how."""


class Unwatched:
    """Shows and writes nothing, as all processes but the first. Use it as a context."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing is open."""

    def advance(self, step: int) -> None:
        """A step is done."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step."""

    def say(self, line: ConsoleRenderable | str) -> None:
        """Something to show."""


class Watch(Unwatched):
    """Writes numbers as they come."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], total_steps: int, first_step: int) -> None:
        """Continues the log of an interrupted run; lines of steps that are done again are dropped."""
        self._file = run_dir / LOG
        kept = [line for line in self._file.read_text().splitlines() if _step(line) <= first_step] if self._file.is_file() else []
        self._file.write_text("".join(f"{line}\n" for line in kept))
        self._console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._name = run_dir.name
        self._task = self._progress.add_task(self._name, total=total_steps, completed=first_step)
        self._board = _tensorboard(run_dir / "tensorboard")
        self._wandb = _wandb(run_dir, config)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def advance(self, step: int) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of a step everywhere."""
        with self._file.open("a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)
        shown = "  ".join(f"{name} {values[name]:{form}}" for name, form in SHOWN.items() if name in values)
        other = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if name.startswith("validation"))
        self.say(f"{self._name}: step {step}  {shown}{'  ' if shown and other else ''}{other}")

    def say(self, line: ConsoleRenderable | str) -> None:
        """Show something above the bar."""
        self._console.print(line, highlight=False, soft_wrap=True)


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 1 << 62  # cut off by a kill


def _tensorboard(folder: Path) -> Any:
    if importlib.util.find_spec("tensorboardX") is None:
        return None
    return importlib.import_module("tensorboardX").SummaryWriter(str(folder))


def _wandb(run_dir: Path, config: Mapping[str, Any]) -> Any:
    if importlib.util.find_spec("wandb") is None:
        return None
    return importlib.import_module("wandb").init(project="unipixel_jax", name=run_dir.name, dir=str(run_dir), config=dict(config), resume="allow")
