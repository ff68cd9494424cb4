"""The turns of a conversation that goes on: the tokens that a turn adds to those that the model has read, and the arrays that stand for them.

T tokens of a turn, K memories, R references, M merged tokens of the media (padded).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.batch import ModelInputs
from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.buckets import BUCKETS, BucketTable
from unipixel_jax.errors import UserError
from unipixel_jax.processing import batch
from unipixel_jax.processing.memory import memory_tokens
from unipixel_jax.processing.prompts import Reference, reference_table, to_square
from unipixel_jax.processing.tokenizer import IMAGE_TOKEN, MEM_TOKEN, REF_TOKEN, VIDEO_TOKEN, Message, Tokenizer
from unipixel_jax.processing.vision_index import build_vision_index, reference_order


@dataclass(frozen=True)
class Turn:
    """What a turn adds to a conversation.

    Attributes:
        input_ids: its token ids [tokens], int32.
        references: the points and boxes that its ``<|ref|>`` tokens stand for, in pixels of the media.
        memory: merged tokens of the objects for its ``<|mem|>`` tokens, see ``batch.Conversation``; None for none.
    """

    input_ids: NDArray[np.int32]
    references: Sequence[Reference] = ()
    memory: NDArray[np.bool_] | None = None


def media_part(text: str) -> str:
    """Return the beginning of a rendered conversation up to the end of its media, which comes before all words."""
    return text[: text.index(VIDEO_TOKEN) + len(VIDEO_TOKEN)]


def added_text(messages: Sequence[Message], known: str, tokenizer: Tokenizer) -> str:
    """Return what follows the ``known`` beginning of a conversation up to the opening of the next answer, as the chat template writes it.

    Raises:
        UserError: the template writes the turns before differently now that there is another, so that what was read cannot be reused.
    """
    text = tokenizer.render(messages, add_generation_prompt=True)
    if not text.startswith(known):
        raise UserError("the chat template rewrites earlier turns, so that a conversation cannot be continued: ask each question with segment() or ask()")
    return text[len(known) :]


def check_turn(text: str, references: Sequence[Reference], memory: NDArray[np.bool_] | None) -> None:
    """Check that the tokens in a turn's text fit what they stand for.

    Raises:
        UserError: there is an image token, or another number of ``<|ref|>`` or ``<|mem|>`` tokens than of references or memories.
    """
    memories = 0 if memory is None else len(memory_tokens(memory))
    expected = ((REF_TOKEN, len(references), "points and boxes"), (MEM_TOKEN, memories, "memories of objects"))
    for token, count, what in (*expected, (VIDEO_TOKEN, 0, "clips"), (IMAGE_TOKEN, 0, "images")):
        if text.count(token) != count:
            raise UserError(f"the question holds {text.count(token)} {token} for {count} {what}: expected one each")


class TurnLayout:
    """Makes the arrays of turns about one photo or clip.

    Args:
        media: the photo or clip.
        merged: M, the padded number of its merged tokens on the device.
        config: the model's sizes and token ids.
        buckets: the padded sizes to choose from.
    """

    def __init__(self, media: batch.PreparedMedia, merged: int, config: UniPixelConfig, buckets: BucketTable = BUCKETS) -> None:
        self._media, self._merged, self._config, self._buckets = media, merged, config, buckets
        self._places = build_vision_index([media.grid_thw], config.vision, buckets)[1][reference_order([media.grid_thw], config.vision)]

    def inputs(self, turn: Turn, position: int, pad_id: int) -> ModelInputs:
        """Return a turn as a row that is padded on the right, without patches.

        Args:
            turn: the turn.
            position: rotary position of its first token.
            pad_id: the token that fills up the row.

        Raises:
            UserError: a reference lies outside the media, or a size is beyond its buckets.
        """
        memories = [] if turn.memory is None else [self._places[tokens] for tokens in memory_tokens(turn.memory)]
        before = np.flatnonzero(turn.input_ids[1:] == self._config.seg_token_id)
        out = batch.empty_inputs(self._sizes(turn, memories, len(before)), self._config, pad_id, np.float32)
        count = len(turn.input_ids)
        out.input_ids[0, :count] = turn.input_ids
        out.lengths[0] = count
        out.segments[0] = np.arange(out.segments.shape[1]) < count
        out.position_ids[:, 0] = position + np.arange(out.input_ids.shape[1])
        out.seg_positions[0, : len(before)] = before
        self._write_references(out, turn)
        out.memory_rows[...] = self._merged
        for row, own in enumerate(memories):
            out.memory_rows[row, : len(own)] = own
        for token, slots in ((self._config.ref_token_id, out.reference_slots), (self._config.mem_token_id, out.memory_slots)):
            places = np.flatnonzero(turn.input_ids == token)
            slots[0, places] = np.arange(len(places))
        return out

    def _write_references(self, out: ModelInputs, turn: Turn) -> None:
        media, side = self._media, self._config.sam2.image_size
        square = [to_square(reference, media.frame_count, *media.frame_size, side) for reference in turn.references]
        table = reference_table([(own, 2 * media.grid_thw[0]) for own in square], BUCKETS.fixed({"references": len(out.references.frames)}).references)
        for name, array in vars(table).items():
            getattr(out.references, name)[...] = array

    def _sizes(self, turn: Turn, memories: Sequence[NDArray[np.int32]], objects: int) -> batch.Sizes:
        counts = {
            "batch": 1,
            "tokens": len(turn.input_ids),
            "references": len(turn.references),
            "memories": len(memories),
            "memory_tokens": max(map(len, memories), default=0),
            "objects": objects,
            "patches": 0,
            "grid_frames": 0,
            "frame_patches": 0,
        }
        sizes = {name: getattr(self._buckets, name).size(count) for name, count in counts.items()}
        capacity = self._config.vision.window_patches
        return sizes | {"patches": -(-sizes["patches"] // capacity) * capacity}
