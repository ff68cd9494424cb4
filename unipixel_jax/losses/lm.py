"""Next-token cross-entropy in chunks, so that scores of all tokens over the whole vocabulary never exist at once.

On a mesh the vocabulary is divided over the chips that divide the weights, and the chips' tokens go to the vocabulary rather than the other way round: a
batch has fewer tokens than the vocabulary has rows. No chip ever holds the head, or its gradient, whole.

R rows of a batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from unipixel_jax.core.mesh import CONTEXT, DATA, FSDP, TENSOR
from unipixel_jax.core.sharding import BATCH, for_vocabulary, vocabulary_mesh

IGNORE = -100
"""The label of a token that is not trained on."""
CHUNK = 512
"""Tokens of a chip whose scores exist at the same time, at most."""


@dataclass(frozen=True)
class _Chips:
    """Who takes part (without a mesh, a single chip), and how many rows the vocabulary has before it is filled up to divide among them."""

    mesh: AbstractMesh | None
    rows: int

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The axes that divide the vocabulary."""
        return () if self.mesh is None else (FSDP, TENSOR)

    def run(self, function: Callable[..., Any], ins: tuple[PartitionSpec, ...], outs: Any) -> Callable[..., Any]:
        """The function on every chip, of its part of the arrays."""
        return function if self.mesh is None else jax.shard_map(function, mesh=self.mesh, in_specs=ins, out_specs=outs, check_vma=False)

    def collected(self, x: jax.Array) -> jax.Array:
        """Tokens [n, ...] of all chips that divide the vocabulary but hold different samples."""
        return x if self.mesh is None else jax.lax.all_gather(x, FSDP, tiled=True)

    def own(self, x: jax.Array) -> jax.Array:
        """Of sums over the vocabulary's parts, for tokens as ``collected`` gives them, this chip's."""
        return x if self.mesh is None else jax.lax.psum(jax.lax.psum_scatter(x, FSDP, tiled=True), TENSOR)

    def sum(self, x: jax.Array, *axes: str) -> jax.Array:
        """Over mesh axes."""
        return x if self.mesh is None else jax.lax.psum(x, axes)

    def first(self, rows: int) -> jax.Array | int:
        """The first row of the vocabulary that this chip has, of ``rows``."""
        if self.mesh is None:
            return 0
        return (jax.lax.axis_index(FSDP) * self.mesh.shape[TENSOR] + jax.lax.axis_index(TENSOR)) * rows


ROWS, WEIGHTS = PartitionSpec(BATCH, CONTEXT), PartitionSpec((FSDP, TENSOR))


def next_token_loss(
    normed: jax.Array, head: jax.Array, labels: jax.Array, weights: jax.Array, watched: int = 0, chunk: int = CHUNK
) -> tuple[jax.Array, jax.Array]:
    """Weighted cross-entropy of predicting ``labels[t + 1]`` from position t, over the labels that are not ``IGNORE``.

    Args:
        normed: [R, T, D] hidden states after the final norm.
        head: [V, D].
        labels: [R, T] int32, aligned with the inputs (the shift happens here).
        weights: [R, T] float32, how much each label counts: 1 / their number for a mean.
        watched: a token.
        chunk: tokens at a time, at most; the result does not depend on it but for rounding.

    Returns:
        float32 scalar; and, of the labels that are ``watched``, the share that the model would say itself, 1 where there are none.
    """
    chips = _Chips(vocabulary_mesh(), head.shape[0])
    head = head if chips.mesh is None else for_vocabulary(head, chips.mesh)
    targets = jnp.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE)
    shares = jnp.pad(weights[:, 1:], ((0, 0), (0, 1)))
    loss, said = _loss(chips, watched, chunk, normed, head, targets, shares)
    count = jnp.sum(targets == watched)
    return loss, jnp.where(count > 0, said / jnp.maximum(count, 1).astype(jnp.float32), 1.0)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _loss(chips: _Chips, watched: int, chunk: int, x: jax.Array, head: jax.Array, targets: jax.Array, shares: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The loss, and how many of the targets that are ``watched`` are the likeliest token."""
    return _forward(chips, watched, chunk, x, head, targets, shares)[0]


def _forward(
    chips: _Chips, watched: int, chunk: int, x: jax.Array, head: jax.Array, targets: jax.Array, shares: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    def local(x: jax.Array, head: jax.Array, targets: jax.Array, shares: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        head, first = head.astype(x.dtype), chips.first(head.shape[0])

        def part(total: tuple[jax.Array, jax.Array], one: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            x, target, share = one
            all_targets = chips.collected(target)
            logits = _scores(chips, chips.collected(x), head, first)
            top = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
            top = top if chips.mesh is None else jax.lax.pmax(top, chips.vocabulary)
            here, row = _place(all_targets, first, head.shape[0])
            picked = jnp.where(here, jnp.take_along_axis(logits, row[:, None], axis=-1)[:, 0], 0.0)
            sums = chips.own(jnp.stack([jnp.sum(jnp.exp(logits - top[:, None]), axis=-1), picked], axis=-1))
            top = _mine(chips, top, len(target))
            lse = top + jnp.log(sums[:, 0])
            counted = target != IGNORE
            said = jnp.sum((target == watched) & counted & (sums[:, 1] >= top)).astype(jnp.float32)
            return (total[0] + jnp.sum(jnp.where(counted, share * (lse - sums[:, 1]), 0.0)), total[1] + said), lse

        zero = jnp.zeros((), jnp.float32)
        pieces = [_cut(a, chunk, fill) for a, fill in ((x, 0), (targets, IGNORE), (shares, 0))]
        (loss, said), lse = jax.lax.scan(part, (zero, zero), tuple(pieces))
        return chips.sum(loss, *BATCH, CONTEXT), chips.sum(said, *BATCH, CONTEXT), lse.reshape(-1)[: targets.size].reshape(targets.shape)

    outs = (PartitionSpec(), PartitionSpec(), ROWS)
    loss, said, lse = chips.run(local, (ROWS, WEIGHTS, ROWS, ROWS), outs)(x, head, targets, shares)
    return (loss, said), (x, head, targets, shares, lse)


def _backward(chips: _Chips, watched: int, chunk: int, saved: Any, given: tuple[jax.Array, jax.Array]) -> tuple[Any, ...]:
    x, head, targets, shares, lse = saved

    def local(
        x: jax.Array, head: jax.Array, targets: jax.Array, shares: jax.Array, lse: jax.Array, d_loss: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        weight, first = head.astype(x.dtype), chips.first(head.shape[0])

        def part(d_head: jax.Array, one: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            x, target, share, lse = one
            share = jnp.where(target != IGNORE, share * d_loss, 0.0)
            x, target, share, lse = (chips.collected(a) for a in (x, target, share, lse))
            here, row = _place(target, first, head.shape[0])
            hit = here[:, None] & (row[:, None] == jnp.arange(head.shape[0])[None])
            d_logits = ((jnp.exp(_scores(chips, x, weight, first) - lse[:, None]) - hit.astype(jnp.float32)) * share[:, None]).astype(x.dtype)
            d_head = d_head + jax.lax.dot_general(d_logits, x, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
            d_x = jax.lax.dot_general(d_logits, weight, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
            return d_head, chips.own(d_x).astype(x.dtype)

        pieces = [_cut(a, chunk, fill) for a, fill in ((x, 0), (targets, IGNORE), (shares, 0), (lse, 0))]
        d_head, d_x = jax.lax.scan(part, jnp.zeros(head.shape, jnp.float32), tuple(pieces))
        return d_x.reshape(-1, x.shape[-1])[: targets.size].reshape(x.shape), chips.sum(d_head, DATA, CONTEXT).astype(head.dtype)

    run = chips.run(local, (ROWS, WEIGHTS, ROWS, ROWS, ROWS, PartitionSpec()), (ROWS, WEIGHTS))
    d_x, d_head = run(x, head, targets, shares, lse, given[0])
    return d_x, d_head, None, None


_loss.defvjp(_forward, _backward)


def _scores(chips: _Chips, x: jax.Array, head: jax.Array, first: jax.Array | int) -> jax.Array:
    """x [n, D] and head [v, D] to [n, v] float32, rounded to x's dtype in between as everywhere; rows that fill up are never chosen."""
    scores = jax.lax.dot_general(x, head, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32).astype(x.dtype).astype(jnp.float32)
    return scores if chips.mesh is None else jnp.where((first + jnp.arange(head.shape[0]) < chips.rows)[None], scores, -jnp.inf)


def _place(targets: jax.Array, first: jax.Array | int, rows: int) -> tuple[jax.Array, jax.Array]:
    """Whether each target is among this chip's rows of the vocabulary, and which it is."""
    row = targets - first
    return (row >= 0) & (row < rows), jnp.clip(row, 0, rows - 1)


def _mine(chips: _Chips, collected: jax.Array, count: int) -> jax.Array:
    """The ``count`` of this chip, of what is known for all tokens that were collected."""
    return collected if chips.mesh is None else jax.lax.dynamic_slice_in_dim(collected, jax.lax.axis_index(FSDP) * count, count)


def _cut(a: jax.Array, chunk: int, fill: int) -> jax.Array:
    """[R, T, ...] to chunks of tokens [n, chunk, ...] of equal length, so that little is filled up."""
    a = a.reshape(-1, *a.shape[2:])
    count = -(-a.shape[0] // chunk)
    size = -(-a.shape[0] // count)
    a = jnp.pad(a, ((0, count * size - a.shape[0]), *((0, 0),) * (a.ndim - 1)), constant_values=fill)
    return a.reshape(count, size, *a.shape[1:])
