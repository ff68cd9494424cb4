"""The data of a run: its mixtures of samples, and the loader of this process's rows of every batch."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jax.sharding import NamedSharding

from unipixel_jax.batch import TrainBatch
from unipixel_jax.core import distributed
from unipixel_jax.core.buckets import Buckets
from unipixel_jax.core.mesh import data_shards
from unipixel_jax.core.sharding import batch_spec
from unipixel_jax.data.loader import Loader
from unipixel_jax.data.mixture import Mixture
from unipixel_jax.data.pipeline import DrawSample, open_loader, open_mixture
from unipixel_jax.data.templates import OWN, Templates, read_templates
from unipixel_jax.errors import UserError
from unipixel_jax.processing.tokenizer import Tokenizer
from unipixel_jax.train.config import TrainConfig
from unipixel_jax.train.feed import row_sizes
from unipixel_jax.train.setup import Layout

VALIDATION_SEED = 1 << 20
"""What is added to the run's seed for validation data, so that sources that draw random scenes draw other ones."""


def training_mixture(config: TrainConfig) -> Mixture:
    """Return the samples that a run trains on.

    Raises:
        UserError: a data set is unknown, or cannot be read.
    """
    return open_mixture(config.data.datasets, config.data.root, config.batch_size, config.seed, "train", config.data.filters)


def validation_mixture(config: TrainConfig) -> Mixture | None:
    """Return the samples that a run is validated on, None if its configuration names none; errors as in ``training_mixture``."""
    data = config.data
    if not data.validation:
        return None
    return open_mixture(data.validation, data.root, config.batch_size, config.seed + VALIDATION_SEED, data.validation_split, data.filters)


def run_templates(config: TrainConfig) -> Templates:
    """Return the sentences with which samples ask and answer.

    Raises:
        UserError: their file cannot be read, or holds others than expected.
    """
    return OWN if config.data.templates is None else read_templates(config.data.templates)


def run_loader(config: TrainConfig, layout: Layout, mixture: Mixture, tokenizer: Tokenizer, templates: Templates) -> Loader[Any, TrainBatch]:
    """Return a loader of this process's rows of every batch of a mixture."""
    options = replace(config.data.draw, image_size=layout.model_config.sam2.image_size)
    draw = DrawSample(tokenizer, layout.model_config, options, config.data.max_tokens, config.dtype, templates)
    host, hosts = batch_share(layout)
    # The buckets are every number of rows that is a multiple of this host's shards, so that a batch of one sample a row needs no padding rows.
    shards = data_shards(layout.mesh) // hosts
    rows = Buckets("rows of a batch", shards, 1.0, max(config.batch_size // hosts, shards))
    buckets, parts = row_sizes(replace(config.data.buckets, batch=rows), layout.mesh)
    agree = partial(distributed.max_over_processes, "sizes of a batch") if hosts > 1 else None
    return open_loader(mixture, draw, config.data.loader, buckets=buckets, parts=parts, host=host, hosts=hosts, agree=agree)


def batch_share(layout: Layout) -> tuple[int, int]:
    """Return the number of the shard of every batch that this process reads, and the number of such shards."""
    return distributed.process_shard(NamedSharding(layout.mesh, batch_spec(1)), data_shards(layout.mesh))


def resume(loader: Loader[Any, TrainBatch], data: Any, run_dir: Path) -> None:
    """Continue with the data at the position that a checkpoint recorded.

    Raises:
        UserError: what it recorded is no state of a loader.
    """
    try:
        loader.restore(data)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{run_dir}: its checkpoint does not say where the data stood ({error!r}): copy it again, or start a new run") from None
