"""Opens data sets by name and makes batches of their samples: everything in this folder put together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unipixel_jax.batch import TrainBatch
from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.buckets import BUCKETS, BucketTable
from unipixel_jax.data.annotation import Annotation, DrawOptions
from unipixel_jax.data.assemble import Sample, prepare
from unipixel_jax.data.batch import Agree, collate
from unipixel_jax.data.draw import draw
from unipixel_jax.data.loader import Loader, LoaderOptions
from unipixel_jax.data.mixture import Mixture, Part, parse
from unipixel_jax.data.sequence_packing import choose_rows
from unipixel_jax.data.sources import open_source
from unipixel_jax.data.sources.base import Filters
from unipixel_jax.data.templates import OWN, Templates
from unipixel_jax.errors import UserError
from unipixel_jax.processing.tokenizer import Tokenizer


def open_mixture(datasets: str, root: str | Path, batch_size: int, seed: int = 0, split: str = "train", filters: Filters | None = None) -> Mixture:
    """Open a mixture of sources by name.

    Args:
        datasets: names and repeats, for example ``"refcoco:10,mevis"``.
        root: the folder that holds all data sets.
        batch_size: samples of a step, over all hosts.
        seed: seed of the order.
        split: the split to read of every source.
        filters: which samples to leave out.

    Raises:
        UserError: an unknown source, files that are missing, or what ``parse`` and ``Mixture`` refuse.
    """
    return Mixture([Part(open_source(name, root, split, filters), repeat) for name, repeat in parse(datasets).items()], batch_size, seed)


@dataclass(frozen=True)
class DrawSample:
    """Draws a sample that is ready for a batch from an annotation. The loader does so in the background.

    Attributes:
        tokenizer: the checkpoint's.
        config: the model's sizes and token ids.
        options: how samples are drawn.
        max_tokens: longer conversations are refused (the reference's ``max_num_tokens``); None for no limit.
        pixel_dtype: dtype of images. "bfloat16" halves what is copied and held, and loses nothing where the model computes in it and rounds them anyway.
        templates: the sentences with which samples ask and answer.
    """

    tokenizer: Tokenizer
    config: UniPixelConfig
    options: DrawOptions
    max_tokens: int | None = None
    pixel_dtype: str = "float32"
    templates: Templates = OWN

    def __call__(self, annotation: Annotation, rng: np.random.Generator) -> Sample:
        """Draw one sample.

        Raises:
            UserError: the sample cannot be read, is not one to learn from, or is too long.
        """
        sample = prepare(draw(annotation, self.options, rng, self.templates), self.tokenizer, self.config, rng, np.dtype(self.pixel_dtype))
        if self.max_tokens is not None and sample.tokens > self.max_tokens:
            raise UserError(f"{annotation.source}, {annotation.name} has {sample.tokens} tokens, expected at most {self.max_tokens}")
        return sample

    def __getstate__(self) -> dict[str, object]:
        """Take a tokenizer that has not compiled its chat template, since a compiled one cannot be pickled."""
        return {**self.__dict__, "tokenizer": dataclasses.replace(self.tokenizer)}


def open_loader(
    mixture: Mixture,
    draw_sample: DrawSample,
    options: LoaderOptions,
    *,
    buckets: BucketTable = BUCKETS,
    packed: bool = True,
    parts: int | None = None,
    host: int = 0,
    hosts: int = 1,
    agree: Agree | None = None,
) -> Loader[Sample, TrainBatch]:
    """Open a loader of padded batches.

    Args:
        mixture: the order of the samples.
        draw_sample: draws one sample.
        options: what happens in the background.
        buckets: the padded sizes.
        packed: samples without clips share rows where that makes the batch cheaper.
        parts: how many devices share the frames of a row; None where none do.
        host: this host's number.
        hosts: hosts that share every global batch.
        agree: needed where there are several hosts, whose arrays must have the same shapes.

    Raises:
        UserError: several hosts and no ``agree``, or what ``Loader`` refuses.
    """
    if hosts > 1 and agree is None:
        raise UserError(f"{hosts} hosts share a batch, so they have to agree on its sizes: pass agree, which gives the largest of all hosts")
    make = _Collate(draw_sample.config, draw_sample.tokenizer.pad_id, mixture.batch_size, buckets, packed, agree, parts)
    settings = {"checksum of data.templates": draw_sample.templates.digest()}
    return Loader(mixture, draw_sample, make, options, host, hosts, collate_here=agree is not None, settings=settings)


@dataclass(frozen=True)
class _Collate:
    """Makes arrays of the samples of a step; the attributes are the arguments of ``open_loader``."""

    config: UniPixelConfig
    pad_id: int
    batch_size: int
    buckets: BucketTable
    packed: bool
    agree: Agree | None
    parts: int | None

    def __call__(self, samples: Sequence[Sample]) -> TrainBatch:
        share = self.packed and samples[0].masks is None
        rows = choose_rows([sample.tokens for sample in samples], self.buckets) if share else [[i] for i in range(len(samples))]
        return collate(samples, rows, self.batch_size, self.config, self.pad_id, self.buckets, self.agree, self.parts)
