"""Next-token cross-entropy in chunks, so that the logits of all tokens over the whole vocabulary never exist at once.

On a mesh the vocabulary is sharded over the devices that share the weights, and the tokens of all of them are sent to it (ops/vocabulary.py).

R rows of a batch, T tokens of a row, D width, V vocabulary; on one device, n tokens of a chunk and v rows of the vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from unipixel_jax.core.mesh import CONTEXT, DATA
from unipixel_jax.core.sharding import BATCH
from unipixel_jax.ops.vocabulary import TABLE, Vocabulary

IGNORE = -100
"""The label of a token that is not trained on."""
CHUNK = 512
"""The most tokens of a device whose logits exist at the same time."""
ROWS = PartitionSpec(BATCH, CONTEXT)
"""The sharding of [R, T, ...] arrays."""


def next_token_loss(
    normed: jax.Array, head: jax.Array, labels: jax.Array, weights: jax.Array, watched: int = 0, chunk: int = CHUNK
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Compute the weighted cross-entropy of predicting ``labels[t + 1]`` from position t, over the labels that are not ``IGNORE``.

    With weights of 1 / number of labels it equals the reference's language loss (``loss_function`` of the model in unipixel/model/qwen2_5_vl.py).

    Args:
        normed: [R, T, D] hidden states after the final norm, in the dtype of the matrix products.
        head: [V, D] the output embedding, of any floating dtype.
        labels: [R, T] int32, aligned with the inputs (the shift happens here).
        weights: [R, T] float32, the weight of each label's loss: 1 / number of labels for a mean.
        watched: id of the token whose accuracy is counted.
        chunk: the most tokens at a time; the result does not depend on it but for rounding.

    Returns:
        The loss, then a pair: how many labels that are ``watched`` have the highest logit, and how many labels are ``watched``. All are float32 scalars.
    """
    vocabulary = Vocabulary.of(head)
    targets = jnp.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE)
    shares = jnp.pad(weights[:, 1:], ((0, 0), (0, 1)))
    loss, said = _loss(vocabulary, watched, chunk, normed, vocabulary.pad_to_multiple(head), targets, shares)
    return loss, (said, jnp.sum(targets == watched).astype(jnp.float32))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _loss(
    vocabulary: Vocabulary, watched: int, chunk: int, x: jax.Array, head: jax.Array, targets: jax.Array, shares: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the loss, and how many of the targets that are ``watched`` have the highest logit. Targets and shares are [R, T], already shifted."""
    return _forward(vocabulary, watched, chunk, x, head, targets, shares)[0]


def _forward(
    vocabulary: Vocabulary, watched: int, chunk: int, x: jax.Array, head: jax.Array, targets: jax.Array, shares: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    def local(x: jax.Array, head: jax.Array, targets: jax.Array, shares: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        head = head.astype(x.dtype)

        def part(total: tuple[jax.Array, jax.Array], one: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            x, target, share = one
            logits = _scores(vocabulary, vocabulary.all_gather(x), head)
            top = vocabulary.max_over_devices(jnp.max(logits, axis=-1))
            here, row = vocabulary.local_rows(vocabulary.all_gather(target), head.shape[0])
            picked = jnp.where(here, jnp.take_along_axis(logits, row[:, None], axis=-1)[:, 0], 0.0)
            sums = vocabulary.reduce_scatter_sum(jnp.stack([jnp.sum(jnp.exp(logits - top[:, None]), axis=-1), picked], axis=-1))
            top = vocabulary.local_tokens(top, len(target))
            lse = top + jnp.log(sums[:, 0])
            counted = target != IGNORE
            said = jnp.sum((target == watched) & counted & (sums[:, 1] >= top)).astype(jnp.float32)
            return (total[0] + jnp.sum(jnp.where(counted, share * (lse - sums[:, 1]), 0.0)), total[1] + said), lse

        zero = jnp.zeros((), jnp.float32)
        pieces = [_cut(a, chunk, fill) for a, fill in ((x, 0), (targets, IGNORE), (shares, 0))]
        (loss, said), lse = jax.lax.scan(part, (zero, zero), tuple(pieces))
        return vocabulary.sum_over(loss, *BATCH, CONTEXT), vocabulary.sum_over(said, *BATCH, CONTEXT), lse.reshape(-1)[: targets.size].reshape(targets.shape)

    outs = (PartitionSpec(), PartitionSpec(), ROWS)
    loss, said, lse = vocabulary.shard_map(local, (ROWS, TABLE, ROWS, ROWS), outs)(x, head, targets, shares)
    return (loss, said), (x, head, targets, shares, lse)


def _backward(vocabulary: Vocabulary, watched: int, chunk: int, saved: Any, given: tuple[jax.Array, jax.Array]) -> tuple[Any, ...]:
    x, head, targets, shares, lse = saved

    def local(
        x: jax.Array, head: jax.Array, targets: jax.Array, shares: jax.Array, lse: jax.Array, d_loss: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        weight = head.astype(x.dtype)

        def part(d_head: jax.Array, one: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            x, target, share, lse = one
            share = jnp.where(target != IGNORE, share * d_loss, 0.0)
            x, target, share, lse = (vocabulary.all_gather(a) for a in (x, target, share, lse))
            here, row = vocabulary.local_rows(target, head.shape[0])
            hit = here[:, None] & (row[:, None] == jnp.arange(head.shape[0])[None])
            d_logits = ((jnp.exp(_scores(vocabulary, x, weight) - lse[:, None]) - hit.astype(jnp.float32)) * share[:, None]).astype(x.dtype)
            d_head = d_head + jax.lax.dot_general(d_logits, x, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
            d_x = jax.lax.dot_general(d_logits, weight, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
            return d_head, vocabulary.reduce_scatter_sum(d_x).astype(x.dtype)

        pieces = [_cut(a, chunk, fill) for a, fill in ((x, 0), (targets, IGNORE), (shares, 0), (lse, 0))]
        d_head, d_x = jax.lax.scan(part, jnp.zeros(head.shape, jnp.float32), tuple(pieces))
        return d_x.reshape(-1, x.shape[-1])[: targets.size].reshape(x.shape), vocabulary.sum_over(d_head, DATA).astype(head.dtype)

    run = vocabulary.shard_map(local, (ROWS, TABLE, ROWS, ROWS, ROWS, PartitionSpec()), (ROWS, TABLE))
    d_x, d_head = run(x, head, targets, shares, lse, given[0])
    return d_x, d_head, None, None


_loss.defvjp(_forward, _backward)


def _scores(vocabulary: Vocabulary, x: jax.Array, head: jax.Array) -> jax.Array:
    """Return the logits [n, v] in float32 of x [n, D] for head [v, D].

    They are rounded to x's dtype first, as the model's own logits are. Rows that only pad the vocabulary to a multiple of the devices get -inf.
    """
    scores = jax.lax.dot_general(x, head, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32).astype(x.dtype).astype(jnp.float32)
    if vocabulary.mesh is None:
        return scores
    return jnp.where((vocabulary.first_row(head.shape[0]) + jnp.arange(head.shape[0]) < vocabulary.rows)[None], scores, -jnp.inf)


def _cut(a: jax.Array, chunk: int, fill: int) -> jax.Array:
    """Cut [R, T, ...] into as few chunks of at most ``chunk`` tokens as possible, all of one length so that padding is small: [chunks, n, ...].

    The last chunk is padded with ``fill``.
    """
    a = a.reshape(-1, *a.shape[2:])
    count = -(-a.shape[0] // chunk)
    size = -(-a.shape[0] // count)
    a = jnp.pad(a, ((0, count * size - a.shape[0]), *((0, 0),) * (a.ndim - 1)), constant_values=fill)
    return a.reshape(count, size, *a.shape[1:])
