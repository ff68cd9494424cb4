"""Generation of answers: the loop that draws one token after the other, and a program of a prefill and that loop.

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
class RowSampling:
    """How the next token of each row is drawn: ``Sampling`` as arrays, so that prompts with different ones share a program. What a row draws depends on its own
    seed and on how many tokens it has, and not on the rows beside it.

    Attributes:
        temperature: [B] float32.
        top_k: [B] int32.
        top_p: [B] float32.
        seed: [B] uint32.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    seed: jax.Array

    @classmethod
    def greedy(cls, batch: int) -> RowSampling:
        """Return rows that take the likeliest token."""
        return cls(jnp.zeros(batch, jnp.float32), jnp.zeros(batch, jnp.int32), jnp.ones(batch, jnp.float32), jnp.zeros(batch, jnp.uint32))

    def draw(self, logits: jax.Array, count: jax.Array) -> jax.Array:
        """Return the next tokens [B], int32, by the scores [B, V] of rows that have ``count`` [B] tokens. Only where a row is not greedy is anything sorted."""
        likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)

        def drawn() -> jax.Array:
            warm = self.temperature > 0
            scaled = logits / jnp.where(warm, self.temperature, 1.0)[:, None]
            ordered = jnp.sort(scaled, axis=-1, descending=True)
            last = jnp.where(self.top_k > 0, jnp.minimum(self.top_k, logits.shape[-1]), logits.shape[-1]) - 1
            ordered = jnp.where(ordered < jnp.take_along_axis(ordered, last[:, None], axis=-1), -jnp.inf, ordered)
            share = jax.nn.softmax(ordered, axis=-1)
            taken = (jnp.cumsum(share, axis=-1) - share < self.top_p[:, None]) & (ordered > -jnp.inf)
            least = jnp.min(jnp.where(taken, ordered, jnp.inf), axis=-1, keepdims=True)
            keys = jax.vmap(lambda seed, at: jax.random.fold_in(jax.random.key(seed), at))(self.seed, count)
            own = jax.vmap(jax.random.categorical)(keys, jnp.where(scaled < least, -jnp.inf, scaled))
            return jnp.where(warm, own.astype(jnp.int32), likeliest)

        return jax.lax.cond(jnp.any(self.temperature > 0), drawn, lambda: likeliest)


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


@dataclass(frozen=True)
class Answering:
    """What the programs that generate answers are compiled for.

    Attributes:
        end_tokens: tokens that end an answer.
        dtype: compute dtype.
        sampling: how tokens are drawn.
    """

    end_tokens: tuple[int, ...]
    dtype: jnp.dtype
    sampling: Sampling = Sampling()

    def draw(self, model: UniPixelModel, hidden: jax.Array, key: jax.Array, step: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        """Return the tokens [B] that follow states ``hidden`` [B, D], and their scores [B, V]. ``step`` tells the draws with one key apart."""
        logits = model.text.logits(hidden)
        return _draw(logits, self.sampling, jax.random.fold_in(key, step)), logits

    def draw_next(self, model: UniPixelModel, hidden: jax.Array, key: jax.Array, answers: Answers) -> jax.Array:
        """Return the tokens [B] that follow states ``hidden`` [B, D] in answers, drawn as each row wants if the rows have their own sampling."""
        if answers.sampling is None:
            return self.draw(model, hidden, key, answers.step)[0]
        return answers.sampling.draw(model.text.logits(hidden), answers.count)

    def ends(self, token: jax.Array) -> jax.Array:
        """Return which tokens [B] end an answer [B], bool."""
        return jnp.any(token[:, None] == jnp.asarray(self.end_tokens, jnp.int32)[None], axis=1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Answers:
    """Answers that are being generated. The rows share the slot that is written next, and each has its own age.

    Attributes:
        step: tokens drawn so far by the rows together, int32 scalar.
        at: the slot of the cache for the last drawn tokens' keys and values, int32 scalar.
        running: whether each row's answer goes on [B], bool.
        count: tokens of each row's answer [B], int32.
        limit: where each row's answer is cut off, 1 to N tokens [B], int32.
        position: rotary position of each row's last drawn token [B], int32.
        tokens: see ``Generation`` [B, N], int32.
        hidden: see ``Generation`` [B, N, D].
        cache: keys and values of everything but the last token drawn.
        sampling: how each row's tokens are drawn; None where all are drawn as ``Answering.sampling`` says.
    """

    step: jax.Array
    at: jax.Array
    running: jax.Array
    count: jax.Array
    limit: jax.Array
    position: jax.Array
    tokens: jax.Array
    hidden: jax.Array
    cache: KVCache
    sampling: RowSampling | None = None

    @classmethod
    def start(cls, cache: KVCache, at: jax.Array | int, slots: int, width: int) -> Answers:
        """The state without answers, with room for ``slots`` tokens of each and for states of ``width`` entries in the cache's dtype."""
        batch = cache.segments.shape[0]
        none = jnp.zeros((batch,), jnp.int32)
        return cls(
            step=jnp.zeros((), jnp.int32),
            at=jnp.asarray(at, jnp.int32),
            running=jnp.zeros((batch,), bool),
            count=none,
            limit=none,
            position=none,
            tokens=jnp.zeros((batch, slots), jnp.int32),
            hidden=jnp.zeros((batch, slots, width), cache.k.dtype),
            cache=cache,
        )

    def begin(self, running: jax.Array, limit: jax.Array, position: jax.Array) -> Answers:
        """Begin new answers in the rows where ``running`` [B] holds; ``limit`` and ``position``, each [B], are those of their first tokens."""
        return replace(
            self,
            running=self.running | running,
            count=jnp.where(running, 0, self.count),
            limit=jnp.where(running, limit, self.limit),
            position=jnp.where(running, position - 1, self.position),
        )

    def record(self, rows: jax.Array, token: jax.Array, hidden: jax.Array, ends: jax.Array) -> Answers:
        """Write down the next token of the answers in some rows, and find out which go on.

        Args:
            rows: [B] bool.
            token: [B] int32.
            hidden: [B, D], the states that predicted the tokens.
            ends: [B] bool, whether the token ends an answer.
        """
        batch, slots = self.tokens.shape
        place = (jnp.arange(batch), jnp.where(rows, self.count, slots))
        count = self.count + rows.astype(jnp.int32)
        return replace(
            self,
            step=self.step + 1,
            running=self.running & ~(rows & (ends | (count >= self.limit))),
            count=count,
            position=self.position + rows.astype(jnp.int32),
            tokens=self.tokens.at[place].set(token, mode="drop"),
            hidden=self.hidden.at[place].set(hidden, mode="drop"),
        )


def decode(model: UniPixelModel, answers: Answers, key: jax.Array, enough: jax.Array | int, how: Answering, steps: jax.Array | None = None) -> Answers:
    """Generate until at most ``enough`` answers go on. A row needs as many slots as its prompt and its answer together: the last slot is followed by the first.
    Several calls of a few steps give what one call gives.

    Args:
        model: the weights.
        answers: each running row has its first token.
        key: the random key for sampling.
        enough: int32 scalar.
        how: the rest.
        steps: the most tokens of an answer that are generated, int32 scalar; None for any number.
    """
    begin = answers.step

    def more(answers: Answers) -> jax.Array:
        going = jnp.sum(answers.running, dtype=jnp.int32) > enough
        return going if steps is None else going & (answers.step - begin < steps)

    return jax.lax.while_loop(more, lambda answers: next_tokens(model, answers, key, how), answers)


def next_tokens(model: UniPixelModel, answers: Answers, key: jax.Array, how: Answering) -> Answers:
    """Generate one more token of each running row; arguments as of ``decode``."""
    last = jnp.take_along_axis(answers.tokens, jnp.maximum(answers.count - 1, 0)[:, None], axis=1)
    positions = jnp.broadcast_to(answers.position[None, :, None], (3, *last.shape))
    segments = answers.running[:, None].astype(jnp.int32)
    states, cache = model.text.extend(model.text.embed(last, how.dtype), positions, segments, answers.cache, answers.at)
    token = how.draw_next(model, states[:, -1], key, answers)
    at = (answers.at + 1) % cache.segments.shape[1]
    return replace(answers, cache=cache, at=at).record(answers.running, token, states[:, -1], how.ends(token))


def states_before(states: jax.Array, positions: jax.Array) -> jax.Array:
    """Return the states [B, O, D] at ``positions`` [B, O] of states [B, L, D]; a position of L stands for none, and its state means nothing."""
    return jnp.take_along_axis(states, jnp.minimum(positions, states.shape[1] - 1)[..., None], axis=1)


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
    how = Answering(end_tokens, dtype, sampling)
    batch, length = inputs.input_ids.shape
    cache = KVCache.empty(model.config.text, batch, length + new_token_slots, dtype)
    states, cache = model.text.extend(model.embed(inputs, dtype), inputs.position_ids, inputs.segments, cache, 0)
    every = jnp.ones((batch,), bool)
    answers = Answers.start(cache, length, new_token_slots, states.shape[-1])
    answers = answers.begin(every, jnp.broadcast_to(max_new_tokens, (batch,)), length + inputs.rope_deltas)
    token, logits = how.draw(model, states[:, -1], key, 0)
    end = decode(model, answers.record(every, token, states[:, -1], how.ends(token)), key, 0, how)
    return Generation(end.tokens, end.count, end.hidden, states_before(states, inputs.seg_positions), logits)


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
