"""A conversation about one photo or clip, which is read once: each further turn is read onto the cache of what was said before.

T tokens of a turn (padded on the right), S slots of the cache, M merged tokens of the media, N new tokens, D width, O objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from unipixel_jax.batch import ModelInputs
from unipixel_jax.core.buckets import BUCKETS, Buckets
from unipixel_jax.core.programs import Programs
from unipixel_jax.errors import UserError
from unipixel_jax.infer.answers import segmented_objects, text_and_spans, without_end
from unipixel_jax.infer.buckets import PROMPT_BUCKETS
from unipixel_jax.infer.generate import Answering, Answers, Sampling, decode, states_before
from unipixel_jax.infer.loading import LoadedModel
from unipixel_jax.infer.prediction import Prediction, SegmentedObject
from unipixel_jax.infer.segmentation import clip_logits
from unipixel_jax.models.qwen_vl.cache import KVCache
from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.processing import batch
from unipixel_jax.processing.chat import expand_image_tokens
from unipixel_jax.processing.media import Clip
from unipixel_jax.processing.memory import memory_grid, memory_prefix
from unipixel_jax.processing.prompts import Box, Mask, Point, name_regions, require_words
from unipixel_jax.processing.tokenizer import REF_TOKEN, Message
from unipixel_jax.processing.turns import Turn, TurnLayout, added_text, check_turn, media_part

MAX_SLOTS = 16384
"""The default for the tokens that a conversation may have, those of the media included."""


@Programs
def read_media_part(model: UniPixelModel, inputs: ModelInputs, *, dtype: jnp.dtype) -> tuple[KVCache, jax.Array]:
    """Read the beginning of a conversation, up to the end of its media, that is padded on the left; also return the merger's inputs [M, merge_dim]."""
    rows, length = inputs.input_ids.shape
    x, merger_input = model.embed_images(inputs, dtype)
    return model.text.extend(x, inputs.position_ids, inputs.segments, KVCache.empty(model.config.text, rows, length, dtype), 0)[1], merger_input


@Programs
def with_slots(cache: KVCache, *, slots: int) -> KVCache:
    """The same cache with more slots."""
    return cache.padded(slots)


@Programs
def answer_turn(
    model: UniPixelModel,
    inputs: ModelInputs,
    cache: KVCache,
    merger_input: jax.Array,
    at: jax.Array,
    key: jax.Array,
    max_new_tokens: jax.Array,
    *,
    new_token_slots: int,
    how: Answering,
) -> tuple[Answers, jax.Array]:
    """Read a turn and answer it.

    Args:
        model: the weights.
        inputs: the turn as a row that is padded on the right.
        cache: what was said before, in the slots before ``at``.
        merger_input: the merger's inputs [M, merge_dim] of the media, from which memories are made.
        at: int32 scalar, the slot of the turn's first token; there is room for T tokens, and for the turn's own and the new ones.
        key: the random key for sampling.
        max_new_tokens: int32 scalar, where the answer is cut off; at most N.
        new_token_slots: N.
        how: the rest.

    Returns:
        The answer, with the cache of all that was said but its last token, and the states before the turn's ``<|seg|>`` tokens [1, O, D].
    """
    x = model.fill_words(model.text.embed(inputs.input_ids, how.dtype), inputs, merger_input)
    states, cache = model.text.extend(x, inputs.position_ids, inputs.segments, cache, at, continues=True)
    length = inputs.lengths[0]
    last = jax.lax.dynamic_index_in_dim(states, length - 1, 1, keepdims=False)
    every = jnp.ones((1,), bool)
    answers = Answers.start(cache, at + length, new_token_slots, states.shape[-1])
    answers = answers.begin(every, max_new_tokens[None], inputs.position_ids[0, :, 0] + length)
    token, _ = how.draw(model, last, key, 0)
    return decode(model, answers.record(every, token, last, how.ends(token)), key, 0, how), states_before(states, inputs.seg_positions)


@dataclass(frozen=True)
class _Read:
    """What the model has read.

    Attributes:
        text: the conversation as the chat template writes it, up to the end of the last answer.
        messages: its turns.
        tokens: their ids, those that are not in the cache yet included.
        unread: how many of the last tokens are not in the cache: the last one of an answer that was cut off.
        cache: keys and values of the others.
        at: the first slot that is free.
        position: rotary position of the next token that is read.
    """

    text: str
    messages: tuple[Message, ...]
    tokens: NDArray[np.int32]
    unread: int
    cache: KVCache
    at: int
    position: int


class Chat:
    """A conversation about one photo or clip. A question that fails leaves it as it was.

    Attributes:
        clip: the media.
        objects: all objects found or given so far; their places in this list are the numbers by which questions speak of them, such as ``[0]``.

    Args:
        loaded: the model.
        clip: the media.
        prepared: the same, prepared.
        sampling: how tokens are drawn.
        seed: seed of the random numbers for it.
        max_slots: how many tokens the conversation may have, those of the media included. Memory for them grows with the conversation.

    Raises:
        UserError: the media alone have more tokens.
    """

    def __init__(
        self, loaded: LoadedModel, clip: Clip, prepared: batch.PreparedMedia, sampling: Sampling, seed: int, max_slots: int = MAX_SLOTS
    ) -> None:
        self.clip = clip
        self.objects: list[SegmentedObject] = []
        self._loaded, self._media, self._seed, self._turns = loaded, prepared, seed, 0
        self._how = Answering(loaded.end_tokens, loaded.dtype, sampling)
        self._buckets = Buckets("tokens of a conversation", min(512, max_slots), 2.0, max_slots)
        self._told = 0
        tokenizer, config = loaded.tokenizer, loaded.config
        text = media_part(tokenizer.render(batch.user_turn("?"), add_generation_prompt=True))
        ids = tokenizer.encode(expand_image_tokens(text, [prepared.grid_thw], config.vision))
        inputs = batch.collate([batch.Conversation(ids, prepared)], config, tokenizer.pad_id, PROMPT_BUCKETS)
        length = inputs.input_ids.shape[1]
        self._require_room(length)
        with loaded.on_mesh():
            cache, self._merger_input = read_media_part(loaded.packed, jax.device_put(inputs), dtype=loaded.dtype)
        self._read = _Read(text, (), ids, 0, cache, length, length + int(inputs.rope_deltas[0]))
        self._layout = TurnLayout(prepared, self._merger_input.shape[0], config, PROMPT_BUCKETS)

    def ask(self, question: str, references: Sequence[Point | Box | Mask] = (), *, max_new_tokens: int = 512) -> Prediction:
        """Answer a question, and segment what the ``<|seg|>`` tokens in it and in the answer stand for.

        Args:
            question: any words; ``[0]``, ``[1]`` and so on are the objects in ``objects``.
            references: points, boxes and masks for ``<region>`` in the question, in its order. Masks become objects.
            max_new_tokens: where the answer is cut off.

        Returns:
            The answer; its objects are those that this turn has found, and the last of ``objects`` from now on, whose numbers they have.

        Raises:
            UserError: an empty question, references that do not fit, or a conversation that has become too long.
        """
        require_words(question)
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}, expected at least 1")
        count, (height, width) = len(self.clip.frames), self.clip.frames.shape[1:3]
        sure = np.ones(count, np.float32)
        given = [SegmentedObject.from_masks(r.on_clip(count, height, width), sure, sure, None) for r in references if isinstance(r, Mask)]
        numbers = iter(range(len(self.objects), len(self.objects) + len(given)))
        named = name_regions(question, [f"[{next(numbers)}]" if isinstance(r, Mask) else REF_TOKEN for r in references])
        new = [*self.objects[self._told :], *given]
        grid = memory_grid(np.stack([item.masks for item in new]), self._media.grid_thw, self._loaded.config.vision) if new else None
        told = range(self._told, self._told + len(new))
        message = self._message(named if grid is None else memory_prefix(grid, count, told) + named)
        pointed = [r for r in references if not isinstance(r, Mask)]
        found = self._answer(message, pointed, grid, max_new_tokens, len(self.objects) + len(given))
        self._told = told.stop
        self.objects += [*given, *found.objects]
        return found

    @property
    def tokens(self) -> list[int]:
        """The ids of all tokens of the conversation so far, up to the end of the last answer."""
        return [int(token) for token in self._read.tokens]

    def _message(self, text: str) -> Message:
        return {"role": "user", "content": text} if self._read.messages else batch.user_turn(text)[0]

    def _answer(self, message: Message, references: Sequence[Point | Box], memory: NDArray[np.bool_] | None, max_new_tokens: int, known: int) -> Prediction:
        loaded, read = self._loaded, self._read
        messages = (*read.messages, message)
        text = added_text(messages, read.text, loaded.tokenizer)
        check_turn(text, references, memory)
        added = loaded.tokenizer.encode(text)
        own = np.concatenate([read.tokens[len(read.tokens) - read.unread :], added])
        inputs = self._layout.inputs(Turn(own, references, memory), read.position, loaded.tokenizer.pad_id)
        slots = BUCKETS.new_tokens.size(max_new_tokens)
        needed = self._require_room(read.at + max(inputs.input_ids.shape[1], len(own) + slots))
        with loaded.on_mesh():
            cache = read.cache if read.cache.segments.shape[1] >= needed else with_slots(read.cache, slots=needed)
            scalars = [jax.device_put(np.int32(value)) for value in (read.at, max_new_tokens)]
            key = jax.random.key(self._seed + self._turns)
            answers, in_prompt = answer_turn(
                loaded.packed, jax.device_put(inputs), cache, self._merger_input, scalars[0], key, scalars[1], new_token_slots=slots, how=self._how
            )
        drawn = np.asarray(answers.tokens)[0, : int(np.asarray(answers.count)[0])]
        tokens = without_end(drawn, loaded.end_tokens)
        hidden = np.asarray(answers.hidden)[0, : len(tokens)][tokens == loaded.config.seg_token_id]
        hidden = np.concatenate([np.asarray(in_prompt)[0][inputs.seg_positions[0] < inputs.input_ids.shape[1]], hidden])
        said, spans = text_and_spans(tokens, loaded.tokenizer, loaded.config.seg_token_id)
        objects = self._segment(hidden, [*[None] * (len(hidden) - len(spans)), *spans])
        steps = len(own) + len(drawn) - 1
        self._read = _Read(
            text=read.text + text + said,
            messages=(*messages, {"role": "assistant", "content": said}),
            tokens=np.concatenate([read.tokens, added, tokens]),
            unread=int(len(tokens) == len(drawn)),
            cache=answers.cache,
            at=read.at + steps,
            position=read.position + steps,
        )
        self._turns += 1
        return Prediction(said, tokens.tolist(), objects, self.clip.indices.tolist(), self.clip.frames.shape[1:3], first=known)

    def _segment(self, hidden: NDArray[np.generic], spans: Sequence[tuple[int, int] | None]) -> list[SegmentedObject]:
        assert self._media.frames is not None, "media are prepared for masks"
        with self._loaded.on_mesh():
            found = clip_logits(self._loaded.model, self._media.frames, hidden, self._loaded.dtype)
        return segmented_objects(found, self._media.frame_size, spans)

    def _require_room(self, tokens: int) -> int:
        """The padded number of slots for some tokens.

        Raises:
            UserError: there are more tokens than the conversation may have.
        """
        if tokens > self._buckets.limit:
            raise UserError(
                f"the conversation would need {tokens} tokens, those of the media and of the answer included, expected at most {self._buckets.limit}: "
                "begin a new one, take fewer frames or a smaller max_new_tokens, or raise max_slots (--max-slots)"
            )
        return self._buckets.size(tokens)
