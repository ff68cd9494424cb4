"""Generation of answers: one prefill and one loop, compiled together as one program.

B batch, L prompt tokens (padded on the left), N new tokens, D width, V vocabulary, O ``<|seg|>`` tokens in a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from unipixel_jax.batch import ModelInputs
from unipixel_jax.core.programs import Programs
from unipixel_jax.models.qwen_vl.cache import KVCache
from unipixel_jax.models.unipixel import UniPixelModel


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: only the k likeliest tokens take part; 0 for all.
        top_p: only the likeliest tokens whose probabilities sum to p take part (arXiv 1904.09751); 1 for all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Generation:
    """The answers to a batch of prompts.

    Attributes:
        tokens: the answers' token ids [B, N], int32; only the first ``count`` of a row mean anything.
        count: tokens of each answer, the end token included [B], int32.
        hidden: the state before the final norm that predicted each token [B, N, D], of the compute dtype.
        prompt_hidden: the states before the final norm at the prompts' ``seg_positions`` [B, O, D], of the compute dtype.
        first_logits: the scores from which the first token was taken [B, V], float32.
    """

    tokens: jax.Array
    count: jax.Array
    hidden: jax.Array
    prompt_hidden: jax.Array
    first_logits: jax.Array


@Programs
def generate(
    model: UniPixelModel,
    inputs: ModelInputs,
    key: jax.Array,
    max_new_tokens: jax.Array,
    *,
    new_token_slots: int,
    end_tokens: tuple[int, ...],
    dtype: jnp.dtype,
    sampling: Sampling = Sampling(),
) -> Generation:
    """Answer a batch of prompts of different lengths.

    Args:
        model: the weights.
        inputs: the prompts, padded on the left.
        key: the random key for sampling.
        max_new_tokens: int32 scalar, where answers are cut off; at most N.
        new_token_slots: N, the tokens for which memory is set aside; a bucket, since a program is compiled for each N.
        end_tokens: tokens that end an answer.
        dtype: compute dtype.
        sampling: how tokens are drawn.
    """
    batch, length = inputs.input_ids.shape
    cache = KVCache.empty(model.config.text, batch, length + new_token_slots, dtype)
    states, cache = model.text.extend(model.embed(inputs, dtype), inputs.position_ids, inputs.segments, cache, 0)
    at = jnp.minimum(inputs.seg_positions, length - 1)
    prompt_hidden = jnp.take_along_axis(states, at[..., None], axis=1)
    ends = jnp.asarray(end_tokens, jnp.int32)

    def draw(states: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = model.text.logits(states[:, -1])
        return _draw(logits, sampling, jax.random.fold_in(key, step)), logits

    def record(loop: _Loop, token: jax.Array, hidden: jax.Array) -> _Loop:
        """Write down each running row's token and find out which rows go on."""
        return replace(
            loop,
            step=loop.step + 1,
            running=loop.running & ~jnp.any(token[:, None] == ends[None], axis=1),
            count=loop.count + loop.running.astype(jnp.int32),
            tokens=jax.lax.dynamic_update_index_in_dim(loop.tokens, token, loop.step, 1),
            hidden=jax.lax.dynamic_update_index_in_dim(loop.hidden, hidden, loop.step, 1),
        )

    def more(loop: _Loop) -> jax.Array:
        return (loop.step < max_new_tokens) & jnp.any(loop.running)

    def body(loop: _Loop) -> _Loop:
        last = jax.lax.dynamic_slice_in_dim(loop.tokens, loop.step - 1, 1, 1)
        index = length + loop.step - 1
        positions = jnp.broadcast_to((index + inputs.rope_deltas)[None, :, None], (3, batch, 1))
        states, cache = model.text.extend(model.text.embed(last, dtype), positions, jnp.ones((batch, 1), jnp.int32), loop.cache, index)
        return record(replace(loop, cache=cache), draw(states, loop.step)[0], states[:, -1])

    first, logits = draw(states, jnp.zeros((), jnp.int32))
    end = jax.lax.while_loop(more, body, record(_Loop.start(states[:, -1], new_token_slots, cache), first, states[:, -1]))
    return Generation(end.tokens, end.count, end.hidden, prompt_hidden, logits)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Loop:
    """The state of the loop.

    Attributes:
        step: tokens drawn so far, int32 scalar.
        running: whether each row has not ended yet [B], bool.
        count: tokens of each row [B], int32.
        tokens: see ``Generation`` [B, N], int32.
        hidden: see ``Generation`` [B, N, D].
        cache: keys and values of everything but the last token drawn.
    """

    step: jax.Array
    running: jax.Array
    count: jax.Array
    tokens: jax.Array
    hidden: jax.Array
    cache: KVCache

    @classmethod
    def start(cls, hidden: jax.Array, slots: int, cache: KVCache) -> _Loop:
        """The state before the first token, with room for ``slots`` tokens and for states like ``hidden`` [B, D]."""
        batch, width = hidden.shape
        return cls(
            step=jnp.zeros((), jnp.int32),
            running=jnp.ones((batch,), bool),
            count=jnp.zeros((batch,), jnp.int32),
            tokens=jnp.zeros((batch, slots), jnp.int32),
            hidden=jnp.zeros((batch, slots, width), hidden.dtype),
            cache=cache,
        )


def _draw(logits: jax.Array, sampling: Sampling, key: jax.Array) -> jax.Array:
    """The next token of each row: logits [B, V] to [B] int32."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_k:
        least = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1) - jax.nn.softmax(ordered, axis=-1)
        least = jnp.min(jnp.where(before < sampling.top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)
