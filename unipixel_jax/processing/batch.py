"""From a conversation about a clip to the padded arrays that the model runs on.

B prompts, L tokens, N patches, M merged tokens, R references, K memories, O objects, F frames, S side of SAM's square: all but S and the three of a
picture are padded sizes from the ``Ladders``. A padded index is one past the last row of what it points into, never -1, which would wrap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise

import numpy as np
from numpy.typing import DTypeLike, NDArray

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.buckets import LADDERS, Ladders
from unipixel_jax.errors import UserError
from unipixel_jax.processing.chat import expand_pictures, seconds_per_grid
from unipixel_jax.processing.media import Clip
from unipixel_jax.processing.memory import memory_rows
from unipixel_jax.processing.patchify import patchify
from unipixel_jax.processing.prompts import Reference, References, SquareReference, reference_table, require_words, to_square
from unipixel_jax.processing.resize import language_frames
from unipixel_jax.processing.rope_index import rope_index
from unipixel_jax.processing.square import square_frames
from unipixel_jax.processing.tokenizer import MEM_TOKEN, REF_TOKEN, Message, Tokenizer
from unipixel_jax.processing.vision_index import VisionIndex, build_vision_index


@dataclass(frozen=True)
class Picture:
    """A clip as the model sees it, not yet padded; several prompts may share it.

    Attributes:
        patches: for the language side [patches, patch_dim], float32 or the dtype asked for.
        grid_thw: patches in time, height and width.
        frames: for SAM [frames, S, S, 3], of the same dtype; none where nothing is to be segmented.
        frame_size: height and width of the media in pixels.
        frame_count: frames of the clip.
        seconds_per_grid: between two pairs of frames.
        is_still: the language side sees a picture (``<|image_pad|>``) rather than a clip; only multimodal training data does that.
    """

    patches: NDArray[np.floating]
    grid_thw: tuple[int, int, int]
    frames: NDArray[np.floating] | None
    frame_size: tuple[int, int]
    frame_count: int
    seconds_per_grid: float = 1.0
    is_still: bool = False


@dataclass(frozen=True)
class Prompt:
    """One conversation, not yet padded.

    Attributes:
        input_ids: [tokens], int32, with one ``<|video_pad|>`` (``<|image_pad|>`` for a still) per merged token.
        picture: what it is about; none for words alone.
        references: what its ``<|ref|>`` tokens stand for, in order.
        memory: the merged tokens that each remembered object touches, bool [pairs of frames, objects, h, w]; its ``<|mem|>`` tokens are ordered by
            object, then time.
    """

    input_ids: NDArray[np.int32]
    picture: Picture | None
    references: Sequence[SquareReference] = field(default=())
    memory: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Inputs:
    """What the language side reads, for a batch. Every array has a size from the ``Ladders``.

    Attributes:
        input_ids: token ids [B, L], int32, padded on the left; a padded row holds one token.
        lengths: tokens that count, at the end of each row [B], int32.
        segments: the prompt that a token belongs to, counted from 1 in each row [B, L], int32; 0 at padding.
        position_ids: rotary positions in time, height and width [3, B, L], int32.
        rope_deltas: what to add to an index >= L to get the position of a generated token, which goes on with the last prompt of its row [B], int32.
        patches: [N, patch_dim], of the pictures' dtype, 0 at padding.
        vision: index tables of the vision tower.
        vision_slots: for each token the merged token that replaces it [B, L], int32; M for none.
        references: points and boxes.
        reference_slots: for each token the reference that replaces it [B, L], int32; R for none.
        memory_rows: the merged tokens that each memory averages [K, tokens], int32, padded with M.
        memory_slots: for each token the memory that replaces it [B, L], int32; K for none.
        seg_positions: the positions just before each ``<|seg|>`` of a prompt, whose hidden states are to be segmented [B, O], int32; L for none.
    """

    input_ids: NDArray[np.int32]
    lengths: NDArray[np.int32]
    segments: NDArray[np.int32]
    position_ids: NDArray[np.int32]
    rope_deltas: NDArray[np.int32]
    patches: NDArray[np.floating]
    vision: VisionIndex
    vision_slots: NDArray[np.int32]
    references: References
    reference_slots: NDArray[np.int32]
    memory_rows: NDArray[np.int32]
    memory_slots: NDArray[np.int32]
    seg_positions: NDArray[np.int32]


def prepare_picture(
    clip: Clip, config: UniPixelConfig, *, sample_frames: int = 16, segment: bool = True, dtype: DTypeLike = np.float32
) -> Picture:
    """Resize, normalise and cut a clip for both sides of the model.

    Args:
        clip: the frames.
        config: the model's sizes.
        sample_frames: frames at most taken from any clip, which sets the pixel budget of each.
        segment: make SAM's copy too.
        dtype: of both copies' pixels, once they are computed in float32; where the model computes in bfloat16 it rounds them so itself.

    Raises:
        UserError: frames that are too long and thin.
    """
    shown = language_frames(clip.frames if clip.over_white is None else clip.over_white, sample_frames, config.vision.merge_size)
    patches, grid = patchify(shown, config.vision, dtype)
    frames = square_frames(clip.frames, config.sam2.image_size, dtype) if segment else None
    height, width = clip.frames.shape[1:3]
    return Picture(patches, grid, frames, (height, width), len(clip.frames), seconds_per_grid(config.vision))


def user_turn(text: str) -> list[Message]:
    """The conversation of one question about one clip."""
    return [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}]


def prepare_prompt(
    messages: Sequence[Message],
    picture: Picture,
    tokenizer: Tokenizer,
    config: UniPixelConfig,
    *,
    references: Sequence[Reference] = (),
    memory: NDArray[np.bool_] | None = None,
    answer_start: str = "",
) -> Prompt:
    """Render and tokenise a conversation about one clip.

    Args:
        messages: the turns; if the last is the user's, the assistant's is opened for an answer.
        picture: the clip.
        tokenizer: the checkpoint's.
        config: the model's sizes and token ids.
        references: points and boxes for the ``<|ref|>`` tokens of the text, in pixels of the media.
        memory: merged tokens of the objects for the ``<|mem|>`` tokens, from ``memory_grid``.
        answer_start: words with which the answer has to begin.

    Raises:
        UserError: no words, or other numbers of ``<|video_pad|>``, ``<|ref|>`` or ``<|mem|>`` than there are clips, references and memories.
    """
    require_words(" ".join(map(_words, messages)))
    text = tokenizer.render(messages, add_generation_prompt=messages[-1]["role"] == "user") + answer_start
    memories = 0 if memory is None else int(memory.any(axis=(2, 3)).sum())
    for token, count, what in ((REF_TOKEN, len(references), "points and boxes"), (MEM_TOKEN, memories, "memories of objects")):
        if text.count(token) != count:
            raise UserError(f"the prompt holds {text.count(token)} {token} for {count} {what}: expected one each")
    ids = tokenizer.encode(expand_pictures(text, [picture.grid_thw], config.vision))
    square = [to_square(reference, picture.frame_count, *picture.frame_size, config.sam2.image_size) for reference in references]
    return Prompt(ids, picture, square, memory)


def collate(
    prompts: Sequence[Prompt],
    config: UniPixelConfig,
    pad_id: int,
    ladders: Ladders = LADDERS,
    *,
    per_row: Sequence[int] | None = None,
    parts: int | None = None,
) -> Inputs:
    """Pad several prompts to one batch.

    Args:
        prompts: of any lengths, each with its own clip or none.
        config: the model's sizes and token ids.
        pad_id: the token that fills up rows.
        ladders: the padded sizes.
        per_row: how many prompts follow one another in each row; one each where absent. Prompts of a row do not see one another.
        parts: divide the grid frames among so many parts, each with tables of its own, for chips that share them: patches [parts, N, patch_dim], and so
            every array of ``vision``; M then counts the merged tokens of all parts.

    Raises:
        UserError: a size beyond its ladder, picture tokens that do not fit a clip, or references or memories that do not fit their tokens.
    """
    row_of = np.repeat(np.arange(len(prompts) if per_row is None else len(per_row)), 1 if per_row is None else per_row)
    totals = np.bincount(row_of, weights=[len(p.input_ids) for p in prompts]).astype(np.int32)
    rows, width = ladders.batch.size(len(totals)), ladders.tokens.size(int(totals.max()))
    lengths = np.ones(rows, np.int32)
    lengths[: len(totals)] = totals
    ids = np.full((rows, width), pad_id, np.int32)
    segments = np.zeros((rows, width), np.int32)
    segments[len(totals) :, -1] = 1
    position_ids = np.ones((3, rows, width), np.int32)
    position_ids[:, len(totals) :, -1] = 0
    deltas = 1 - np.full(rows, width, np.int32)

    places = width - totals
    for prompt, row, (positions, delta) in zip(prompts, row_of, _positions(prompts, config), strict=True):
        place = slice(places[row], places[row] + len(prompt.input_ids))
        ids[row, place] = prompt.input_ids
        segments[row, place] = segments[row].max() + 1
        position_ids[:, row, place] = positions
        deltas[row] = delta - width
        places[row] = place.stop
    valid = segments > 0

    pictures = [p.picture for p in prompts if p.picture is not None]
    grids = [p.grid_thw for p in pictures]
    patches, vision, places, none = _vision([p.patches for p in pictures], grids, config, ladders, parts)
    window_order = build_vision_index(grids, config.vision, ladders).window_order if parts else vision.window_order

    references = [(reference, 2 * p.picture.grid_thw[0]) for p in prompts if p.picture is not None for reference in p.references]
    table = reference_table(references, ladders.references)
    starts = np.cumsum([0, *(len(p.patches) // config.vision.merge_unit for p in pictures)])
    memories = [p.memory for p in prompts if p.picture is not None]
    remembered = [(int(start), memory) for start, memory in zip(starts, memories, strict=False) if memory is not None]
    memory_table, memory_count = memory_rows(remembered, window_order, ladders)
    if parts:
        memory_table = np.where(memory_table < len(places), places[np.minimum(memory_table, len(places) - 1)], none).astype(np.int32)
    return Inputs(
        input_ids=ids,
        lengths=lengths,
        segments=segments,
        position_ids=position_ids,
        rope_deltas=deltas,
        patches=patches,
        vision=vision,
        vision_slots=_slots(valid & np.isin(ids, (config.video_token_id, config.image_token_id)), int(starts[-1]), none, "picture tokens", places),
        references=table,
        reference_slots=_slots(valid & (ids == config.ref_token_id), len(references), len(table.frames), "points and boxes"),
        memory_rows=memory_table,
        memory_slots=_slots(valid & (ids == config.mem_token_id), memory_count, len(memory_table), "memories of objects"),
        seg_positions=_before(valid[:, :-1] & (ids[:, 1:] == config.seg_token_id), ladders),
    )


def pad_frames(frames: NDArray[np.floating], ladders: Ladders = LADDERS) -> NDArray[np.floating]:
    """Frames filled up with zeros to a size from the ladder [F, S, S, 3]."""
    return np.pad(frames, ((0, ladders.frames.size(len(frames)) - len(frames)), (0, 0), (0, 0), (0, 0)))


def _positions(prompts: Sequence[Prompt], config: UniPixelConfig) -> Iterator[tuple[NDArray[np.int32], int]]:
    """Rotary positions of every prompt by itself [3, tokens], and the position after its last one."""
    for prompt in prompts:
        picture = prompt.picture
        still, clip = ([], []) if picture is None else ([picture.grid_thw], []) if picture.is_still else ([], [picture.grid_thw])
        seconds = [] if picture is None or picture.is_still else [picture.seconds_per_grid]
        positions, deltas = rope_index(prompt.input_ids[None], config, image_grid_thw=still, video_grid_thw=clip, second_per_grid_ts=seconds)
        yield positions[:, 0], int(deltas[0]) + len(prompt.input_ids)


def _words(message: Message) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _vision(
    patches: Sequence[NDArray[np.floating]], grids: Sequence[tuple[int, int, int]], config: UniPixelConfig, ladders: Ladders, parts: int | None
) -> tuple[NDArray[np.floating], VisionIndex, NDArray[np.int32], int]:
    """Patches and tables, whole or in parts; where each merged token lies among those of all parts, and the number that means none of them."""
    vision, unit = config.vision, config.vision.merge_unit
    if parts is None:
        index = build_vision_index(grids, vision, ladders)
        tokens = sum(len(own) for own in patches) // unit
        return _filled_up(patches, len(index.rope), vision.patch_dim), index, np.arange(tokens, dtype=np.int32), len(index.window_order)
    whole = np.concatenate(patches) if patches else np.zeros((0, vision.patch_dim), np.float32)
    frames = [(1, height, width) for time, height, width in grids for _ in range(time)]  # what a frame computes does not depend on its neighbours
    ends = np.cumsum([0, *(height * width for _, height, width in frames)])
    part = np.minimum((ends[:-1] + np.diff(ends) // 2) * parts // max(int(ends[-1]), 1), parts - 1)
    shares = [[frame for frame, own in zip(frames, part, strict=True) if own == p] for p in range(parts)]
    indices = [build_vision_index(share, vision, ladders) for share in shares]
    sizes = {
        "patches": max(len(index.rope) for index in indices),
        "windows": max(len(index.window_table) for index in indices),
        "grid_frames": max(len(index.frame_table) for index in indices),
        "frame_patches": max(index.frame_table.shape[1] for index in indices),
    }
    indices = [build_vision_index(share, vision, ladders.fixed(sizes)) for share in shares]
    bounds = np.concatenate([[0], np.cumsum([sum(height * width for _, height, width in share) for share in shares])])
    cut = [_filled_up([whole[a:b]], sizes["patches"], vision.patch_dim) for a, b in pairwise(bounds)]
    each = sizes["patches"] // unit
    places = np.concatenate([p * each + np.arange((b - a) // unit) for p, (a, b) in enumerate(pairwise(bounds))]).astype(np.int32)
    stacked = {field.name: np.stack([getattr(index, field.name) for index in indices]) for field in fields(VisionIndex)}
    return np.stack(cut), VisionIndex(**stacked), places, parts * each


def _filled_up(patches: Sequence[NDArray[np.floating]], length: int, width: int) -> NDArray[np.floating]:
    """One after the other, and zeros [length, width]; copied once."""
    out = np.zeros((length, width), patches[0].dtype if patches else np.float32)
    if patches:
        np.concatenate(patches, out=out[: sum(len(own) for own in patches)])
    return out


def _slots(marked: NDArray[np.bool_], count: int, none: int, what: str, places: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
    """Number the marked tokens in reading order, or give them ``places``. With nothing to put there, they keep their own embeddings, as in the reference."""
    slots = np.full(marked.shape, none, np.int32)
    if count:
        if marked.sum() != count:
            raise UserError(f"the prompts hold {marked.sum()} tokens for {count} {what}: expected one each")
        slots[marked] = np.arange(count) if places is None else places
    return slots


def _before(marked: NDArray[np.bool_], ladders: Ladders) -> NDArray[np.int32]:
    """The marked positions of each row as a padded table; ``marked`` is one token shorter than the rows."""
    rows, width = marked.shape
    out = np.full((rows, ladders.objects.size(int(marked.sum(axis=1).max(initial=0)))), width + 1, np.int32)
    for row in range(rows):
        found = np.flatnonzero(marked[row])
        out[row, : len(found)] = found
    return out
