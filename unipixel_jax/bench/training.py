"""``unipixel-jax bench train``: what the host costs a run, by waiting for data and by saving checkpoints."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from unipixel_jax.errors import UserError
from unipixel_jax.train.cli import train_together
from unipixel_jax.train.config import TrainConfig
from unipixel_jax.train.metrics import LOG


@dataclass(frozen=True)
class HostCosts:
    """What a run measured, as medians over parts of it. Each part is as many steps as lie between two lines of the log.

    Attributes:
        samples_per_second: of the parts in which nothing is saved.
        samples_per_second_saving: of the parts that begin with saving a checkpoint, which other threads write while the steps go on.
        host_wait: the share of the time that the steps waited for data, in parts of either kind.
        save_wait: the share of the time that saving kept the steps waiting, in parts that begin with it.
    """

    samples_per_second: float
    samples_per_second_saving: float
    host_wait: float
    save_wait: float

    @property
    def overlapped(self) -> float:
        """Throughput while a checkpoint is written, as a share of the throughput otherwise: 1 where saving costs nothing."""
        return self.samples_per_second_saving / self.samples_per_second

    def to_json(self) -> dict[str, float]:
        """Return the figures by name."""
        return {**asdict(self), "overlapped": self.overlapped}


def measure(config: TrainConfig, steps: int, parts: int) -> HostCosts:
    """Train in a temporary directory, and save after every second part.

    The first two parts are left out: in them the programs are compiled, and the first checkpoint is saved.

    Args:
        config: the run.
        steps: the steps of a part.
        parts: how many parts of each kind are measured.

    Raises:
        UserError: the run cannot start, ends with an error, or is interrupted.
    """
    with tempfile.TemporaryDirectory(prefix="bench-train-") as folder:
        run_dir = Path(folder) / "run"
        start = config.start if config.start.checkpoint is None else replace(config.start, checkpoint=str(Path(config.start.checkpoint).absolute()))
        total = 2 * steps * (parts + 1)
        data = replace(config.data, validation=None)  # it would be measured at other steps than those that are saved
        train_together(replace(config, start=start, data=data, run_dir=str(run_dir), steps=total, log_every=steps, save_every=2 * steps))
        lines = [json.loads(line) for line in (run_dir / LOG).read_text(encoding="utf-8").splitlines()]
    if not lines or lines[-1]["step"] < total:
        raise UserError(f"the run was ended by a signal before step {total}, so nothing is measured: start the command again, or ask for fewer parts")
    return summary(lines)


def summary(lines: Sequence[dict[str, Any]]) -> HostCosts:
    """Return the figures of a run's log, of which every second line, beginning with the third, is of a part that begins with saving."""
    saving, others = lines[2::2], lines[3::2]

    def median(lines: Sequence[dict[str, Any]], name: str) -> float:
        return statistics.median(line[name] for line in lines)

    rate = "samples_per_second"
    return HostCosts(median(others, rate), median(saving, rate), median([*saving, *others], "host_wait"), median(saving, "save_wait"))
