"""Answers to many prompts at once, with refilling: when an answer ends, the next prompt takes its row, and the other rows go on where they are.

All sizes are static, so nothing is compiled anew. The slots of the cache are a ring that all rows share: every step writes one slot for all rows, whatever
their ages. Attention knows no order of slots, and each key holds its place in its own conversation. A new prompt is written into the slots before the one
that comes next.

B rows, G prompts that are read together, L prompt tokens (padded), N new tokens, S slots, D width, O objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from unipixel_jax.batch import ModelInputs
from unipixel_jax.config import TextConfig
from unipixel_jax.core.buckets import BUCKETS, Buckets, BucketTable
from unipixel_jax.core.programs import Programs
from unipixel_jax.infer.answers import without_end
from unipixel_jax.infer.buckets import PROMPT_BUCKETS
from unipixel_jax.infer.generate import Answering, Answers, RowSampling, Sampling, decode, states_before
from unipixel_jax.infer.loading import LoadedModel
from unipixel_jax.models.qwen_vl.cache import KVCache
from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.processing import batch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ReadPrompts:
    """Prompts that were read and wait for rows.

    Attributes:
        cache: keys and values of G prompts, in L slots.
        token: the first token of each answer [G], int32.
        hidden: the states that predicted them [G, D].
        position: rotary positions of the first tokens [G], int32.
        prompt_hidden: the states before the prompts' ``<|seg|>`` tokens [G, O, D].
        sampling: how each answer's tokens are drawn; None where all are drawn alike.
    """

    cache: KVCache
    token: jax.Array
    hidden: jax.Array
    position: jax.Array
    prompt_hidden: jax.Array
    sampling: RowSampling | None = None


@Programs
def read_prompts(model: UniPixelModel, inputs: ModelInputs, key: jax.Array, sampling: RowSampling | None = None, *, how: Answering) -> ReadPrompts:
    """Read prompts that are padded on the left, and draw the first token of each answer."""
    rows, length = inputs.input_ids.shape
    cache = KVCache.empty(model.config.text, rows, length, how.dtype)
    states, cache = model.text.extend(model.embed(inputs, how.dtype), inputs.position_ids, inputs.segments, cache, 0)
    token, logits = how.draw(model, states[:, -1], key, 0)
    if sampling is not None:
        token = sampling.draw(logits, jnp.zeros(rows, jnp.int32))
    return ReadPrompts(cache, token, states[:, -1], length + inputs.rope_deltas, states_before(states, inputs.seg_positions), sampling)


@Programs
def empty_rows(*, config: TextConfig, rows: int, slots: int, new_tokens: int, dtype: jnp.dtype, own_sampling: bool) -> Answers:
    """Rows without answers."""
    answers = Answers.start(KVCache.empty(config, rows, slots, dtype), 0, new_tokens, config.hidden_size)
    return replace(answers, sampling=RowSampling.greedy(rows) if own_sampling else None)


@Programs
def with_slots(answers: Answers, *, slots: int) -> Answers:
    """The same answers with more slots. The oldest slot becomes the first, so that the new ones follow the latest."""
    return replace(answers, cache=answers.cache.rolled(-answers.at).padded(slots), at=jnp.full((), answers.cache.segments.shape[1], jnp.int32))


@partial(Programs, donate=(0,))
def admit(answers: Answers, prompts: ReadPrompts, rows: jax.Array, limit: jax.Array, *, how: Answering) -> Answers:
    """Give prompts their rows [G] int32 (B for padding), and begin their answers, of at most ``limit`` [G] int32 tokens, with their first tokens."""
    count, slots = answers.cache.segments.shape
    new = prompts.cache.padded(slots).rolled(answers.at - prompts.cache.segments.shape[1])
    old = answers.cache
    k, v = (ours.at[:, rows].set(theirs, mode="drop") for ours, theirs in ((old.k, new.k), (old.v, new.v)))
    cache = KVCache(k, v, old.segments.at[rows].set(new.segments, mode="drop"))

    def in_rows(values: jax.Array) -> jax.Array:
        return jnp.zeros((count, *values.shape[1:]), values.dtype).at[rows].set(values, mode="drop")

    begun, token = in_rows(jnp.ones(rows.shape, bool)), in_rows(prompts.token)
    sampling = jax.tree.map(lambda ours, theirs: ours.at[rows].set(theirs, mode="drop"), answers.sampling, prompts.sampling)
    answers = replace(answers, cache=cache, sampling=sampling).begin(begun, in_rows(limit), in_rows(prompts.position))
    return answers.record(begun, token, in_rows(prompts.hidden), how.ends(token))


@partial(Programs, donate=(1,))
def decode_rows(model: UniPixelModel, answers: Answers, key: jax.Array, enough: jax.Array, steps: jax.Array, *, how: Answering) -> Answers:
    """See ``decode``."""
    return decode(model, answers, key, enough, how, steps)


@partial(Programs, donate=(0,))
def stop_rows(answers: Answers, rows: jax.Array) -> Answers:
    """End the answers in some rows [B], bool, where they are."""
    return replace(answers, running=answers.running & ~rows)


@Programs
def take_states(hidden: jax.Array, rows: jax.Array, places: jax.Array) -> jax.Array:
    """The states [O, D] of tokens at ``places`` [O] in ``rows`` [O] of hidden [B, N, D]."""
    return hidden[rows, places]


def group_buckets(group: int, window_patches: int) -> BucketTable:
    """The padded sizes of ``group`` prompts that are read together.

    They are finer than those of a single prompt. What is padded is paid by every prompt of a group, while the sizes of groups vary less than those of prompts.
    """
    return replace(
        PROMPT_BUCKETS,
        batch=BUCKETS.fixed({"batch": group}).batch,
        tokens=replace(BUCKETS.tokens, step=32, growth=1.125),
        patches=replace(BUCKETS.patches, step=window_patches, growth=1.125),
    )


def live_buckets(group: int, window_patches: int) -> BucketTable:
    """The padded sizes of 1, 2, 4, ... ``group`` prompts that are read together as they come. They are coarser: any number of prompts of any size may come
    together, and a service must stop compiling soon.
    """
    return replace(
        PROMPT_BUCKETS,
        batch=Buckets("prompts in a batch", 1, 2.0, group),
        patches=replace(BUCKETS.patches, step=window_patches, growth=2.0),
    )


@dataclass(frozen=True, eq=False)
class Answer:
    """An answer that has ended.

    Attributes:
        row: the row that it leaves.
        tokens: its tokens without the end token [tokens], int32.
        hidden: the states that predicted the ``<|seg|>`` tokens, those of the prompt first [O, D].
    """

    row: int
    tokens: NDArray[np.int32]
    hidden: NDArray[Any]


class Engine:
    """Rows of answers on one device or mesh.

    Attributes:
        said: the tokens so far of each answer that was running before the last step, by its row [tokens], int32.

    Args:
        loaded: the model.
        sampling: how tokens are drawn.
        seed: seed of the random numbers for it.
        rows: B, how many answers are generated together.
        group: G, how many prompts are read together; ``rows`` or fewer.
        max_new_tokens: where answers are cut off.
        live: whether prompts come while others are answered, in any number, and each with its own sampling.
    """

    def __init__(self, loaded: LoadedModel, sampling: Sampling, seed: int, rows: int, group: int, max_new_tokens: int, live: bool = False) -> None:
        self.group, self._live, self._sampling = group, live, sampling
        self._loaded = loaded
        self._how = Answering(loaded.end_tokens, loaded.dtype, sampling)
        self._seed, self._reads = seed, 0
        self._rows, self._limit = rows, max_new_tokens
        self._new_tokens = BUCKETS.new_tokens.size(max_new_tokens)
        self._buckets = (live_buckets if live else group_buckets)(group, loaded.config.vision.window_patches)
        self._known: list[batch.Sizes] = []
        self._answers: Answers | None = None
        self.said: dict[int, NDArray[np.int32]] = {}
        self._prompts: dict[int, tuple[jax.Array, int, int]] = {}

    @property
    def free(self) -> list[int]:
        """The rows without an answer."""
        return [row for row in range(self._rows) if row not in self._prompts]

    @property
    def busy(self) -> bool:
        """Whether any row has an answer."""
        return bool(self._prompts)

    def admit(
        self,
        conversations: Sequence[batch.Conversation],
        limits: Sequence[int | None] | None = None,
        samplings: Sequence[tuple[Sampling, int]] | None = None,
    ) -> list[int]:
        """Read at most G prompts, and return the rows that they get. There must be as many free rows.

        Args:
            conversations: the prompts.
            limits: where each answer is cut off, if before ``max_new_tokens``.
            samplings: how the tokens of each answer are drawn and from which seed, where prompts are ``live``.

        Raises:
            UserError: a size is beyond its buckets.
        """
        loaded, rows = self._loaded, self.free[: len(conversations)]
        inputs = self._inputs(conversations)
        padded, length = inputs.input_ids.shape
        self._reads += 1
        key = jax.random.key(self._seed + self._reads)
        with loaded.on_mesh():
            own = (_row_sampling(samplings or [(self._sampling, self._seed)] * len(rows), padded),) if self._live else ()
            prompts = read_prompts(loaded.packed, jax.device_put(inputs), key, *own, how=self._how)
            answers = self._with_room(BUCKETS.tokens.size(length + self._new_tokens))
            places = np.full(padded, self._rows, np.int32)
            places[: len(rows)] = rows
            most = np.full(padded, self._limit, np.int32)
            for place, limit in enumerate(limits or ()):
                most[place] = min(self._limit, self._limit if limit is None else limit)
            self._answers = admit(answers, prompts, jax.device_put(places), jax.device_put(most), how=self._how)
        asked = (inputs.seg_positions < length).sum(axis=1)
        for place, row in enumerate(rows):
            self._prompts[row] = (prompts.prompt_hidden, place, int(asked[place]))
        return rows

    def advance(self, free: int, steps: int | None = None) -> list[Answer]:
        """Generate until at least ``free`` rows are free, or ``steps`` tokens of each row; returns the answers that ended."""
        loaded = self._loaded
        assert self._answers is not None, "a prompt was admitted before"
        with loaded.on_mesh():
            enough = jax.device_put(np.int32(self._rows - free))
            most = jax.device_put(np.int32(steps or self._new_tokens))
            self._answers = decode_rows(loaded.packed, self._answers, jax.random.key(self._seed), enough, most, how=self._how)
            running, count, tokens = (np.asarray(a) for a in (self._answers.running, self._answers.count, self._answers.tokens))
            self.said = {row: without_end(tokens[row, : count[row]], loaded.end_tokens) for row in self._prompts}
            ended = [row for row in self._prompts if not running[row]]
            said = [self.said[row] for row in ended]
            hidden = self._states(ended, [np.flatnonzero(own == loaded.config.seg_token_id) for own in said])
        out = []
        for row, own, states in zip(ended, said, hidden, strict=True):
            prompt_hidden, place, asked = self._prompts.pop(row)
            if asked:
                states = np.concatenate([np.asarray(prompt_hidden)[place, :asked], states])
            out.append(Answer(row, own, states))
        return out

    def stop(self, rows: Sequence[int]) -> None:
        """Give up the answers in some rows."""
        assert self._answers is not None, "a prompt was admitted before"
        with self._loaded.on_mesh():
            self._answers = stop_rows(self._answers, jax.device_put(np.isin(np.arange(self._rows), rows)))
        for row in rows:
            del self._prompts[row]

    def reset(self) -> None:
        """Give up all answers, as after an error in the device."""
        self._answers = None
        self._prompts.clear()

    def _inputs(self, conversations: Sequence[batch.Conversation]) -> ModelInputs:
        """The prompts as G rows. Fewer than G come at the end of the work: they take known sizes, if these are large enough, so that nothing is compiled."""
        config, rows = self._loaded.config, [[conversation] for conversation in conversations]
        sizes = batch.measure(rows, config, self._buckets)
        if len(rows) < self.group and not self._live:
            fitting = [known for known in self._known if all(known[name] >= size for name, size in sizes.items())]
            sizes = min(fitting, key=lambda known: known["tokens"] * known["patches"], default=sizes)
        if sizes not in self._known:
            self._known.append(sizes)
        inputs = batch.empty_inputs(sizes, config, self._loaded.tokenizer.pad_id, batch.pixel_dtype(conversations))
        batch.write_inputs(inputs, rows, config)
        return inputs

    def _with_room(self, slots: int) -> Answers:
        config, how = self._loaded.config.text, self._how
        if self._answers is None:
            return empty_rows(config=config, rows=self._rows, slots=slots, new_tokens=self._new_tokens, dtype=how.dtype, own_sampling=self._live)
        return self._answers if self._answers.cache.segments.shape[1] >= slots else with_slots(self._answers, slots=slots)

    def _states(self, rows: Sequence[int], places: Sequence[NDArray[np.intp]]) -> list[NDArray[np.generic]]:
        """The states [objects, D] that predicted the tokens at some places of each row."""
        assert self._answers is not None
        counts = [len(own) for own in places]
        flat = [np.repeat(rows, counts), np.concatenate(places) if places else np.zeros(0, np.intp)]
        largest, pieces = BUCKETS.objects.limit, [np.zeros((0, self._answers.hidden.shape[-1]), self._how.dtype)]
        for start in range(0, sum(counts), largest):
            own = [a[start : start + largest].astype(np.int32) for a in flat]
            pad = BUCKETS.objects.size(len(own[0])) - len(own[0])
            pieces.append(np.asarray(take_states(self._answers.hidden, *(jax.device_put(np.pad(a, (0, pad))) for a in own)))[: len(own[0])])
        return np.split(np.concatenate(pieces), np.cumsum(counts)[:-1]) if counts else []


def _row_sampling(samplings: Sequence[tuple[Sampling, int]], padded: int) -> RowSampling:
    """How each row's tokens are drawn and from which seed, as arrays; the rows of the padding are greedy."""
    filled = [*samplings, *[(Sampling(), 0)] * (padded - len(samplings))]
    numbers = zip(*((own.temperature, own.top_k, own.top_p, seed % (1 << 32)) for own, seed in filled), strict=True)
    arrays = [np.asarray(values, dtype) for values, dtype in zip(numbers, (np.float32, np.int32, np.float32, np.uint32), strict=True)]
    return RowSampling(*map(jax.device_put, arrays))
