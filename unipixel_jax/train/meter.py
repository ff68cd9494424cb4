"""The metrics of the steps between two lines of the log, and means of losses over batches."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Literal

import jax
import numpy as np

from unipixel_jax.batch import TrainBatch
from unipixel_jax.core import distributed
from unipixel_jax.losses.mask import MaskLosses
from unipixel_jax.train.feed import count_tokens
from unipixel_jax.train.flops import peak_flops
from unipixel_jax.train.objective import LossParts
from unipixel_jax.train.step import StepMetrics


@dataclass
class Meter:
    """The metrics of the steps since the meter was made. Arrays stay on the devices until `values` is called. Counts are those of this process's rows.

    Attributes:
        losses: the losses of each batch.
        updates: the metrics of each update.
        samples: the number of samples that were trained on.
        tokens: the number of their tokens, without padding.
        flops: the floating-point operations that the model needs for them.
        wait: the time that the devices may have waited for batches of the host, in seconds.
        saving: the time that saving a checkpoint has kept the loop, in seconds; what is written meanwhile by other threads is not in it.
        ahead: the time that this process has waited for the others at the beginning of steps, in seconds.
        since: when the meter was made, on the clock of ``time.perf_counter``.
    """

    losses: list[LossParts] = field(default_factory=list)
    updates: list[StepMetrics] = field(default_factory=list)
    samples: int = 0
    tokens: int = 0
    flops: float = 0.0
    wait: float = 0.0
    saving: float = 0.0
    ahead: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    @contextmanager
    def counting(self, kind: Literal["wait", "saving", "ahead"]) -> Iterator[None]:
        """Add the time inside the context to one of the meter's times."""
        begin = time.perf_counter()
        yield
        setattr(self, kind, getattr(self, kind) + time.perf_counter() - begin)

    def count(self, arrays: TrainBatch, losses: LossParts, flops: float) -> None:
        """Add a batch that was trained on."""
        self.losses.append(losses)
        self.samples += len(arrays.samples)
        self.tokens += count_tokens(arrays)
        self.flops += flops

    def values(self, learning_rate: float, readers: int, replaced: int) -> dict[str, float]:
        """Return means over the steps, and rates of all processes together, by name. All processes must call it.

        All processes begin a step together, so the one that waits least for the others is the slowest: ``slowest_process`` is its number, and
        ``process_wait`` the share of the time that another has waited for it. ``host_wait`` is the share of the time that the process with the slowest data
        has waited for them.

        Args:
            learning_rate: the learning rate of the last step.
            readers: the number of processes that read each sample.
            replaced: the number of samples that this process has replaced since the start.
        """
        own = [self.samples, self.tokens, self.flops, replaced, self.wait, self.ahead]
        *counts, waits, aheads = zip(*(json.loads(one) for one in distributed.gather("counts", json.dumps(own))), strict=True)
        samples, tokens, flops, replaced_by_all = (sum(every) / readers for every in counts)
        steps = jax.tree.map(lambda *a: float(np.mean(np.stack(jax.device_get(a)))), *self.updates)
        seconds = time.perf_counter() - self.since
        peak = peak_flops()
        return {
            **mean_losses(self.losses),
            "grad_norm": steps.grad_norm,
            **{f"grad_norm_{name}": value for name, value in steps.group_norms.items()},
            "learning_rate": learning_rate,
            "samples_per_second": samples / seconds,
            "tokens_per_second": tokens / seconds,
            "host_wait": max(waits) / seconds,
            "save_wait": self.saving / seconds,
            **({} if len(aheads) == 1 else {"process_wait": max(aheads) / seconds, "slowest_process": float(np.argmin(aheads))}),
            "model_flops_per_second": flops / seconds,
            **({} if peak is None else {"mfu": flops / seconds / (peak * jax.process_count())}),
            **({"replaced": replaced_by_all} if replaced_by_all else {}),
        }


def mean_losses(losses: Sequence[LossParts]) -> dict[str, float]:
    """Return the means of losses over batches, by name.

    The mask losses are averaged over the batches that segment something; ``seg_rate`` is the share of all ``<|seg|>`` tokens that the model would predict
    itself. Both are left out where nothing is segmented.
    """
    losses = jax.device_get(losses)
    mean = jax.tree.map(lambda *a: float(np.mean(a)), *losses)
    segmenting, segs = [one for one in losses if one.clips], sum(float(one.segs) for one in losses)
    found = {"loss": mean.total, "language": mean.language}
    if segmenting:
        masks = jax.tree.map(lambda *a: float(np.mean(a)), *segmenting)
        found |= {"segmentation": masks.segmentation, **{field.name: getattr(masks.masks, field.name) for field in fields(MaskLosses)}}
    return found | ({"seg_rate": sum(float(one.seg_said) for one in losses) / segs} if segs else {})
