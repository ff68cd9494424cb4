"""Makes the padded arrays that the model runs on from conversations about images and clips.

Sizes are measured first, from lengths and grids alone; then every array is allocated once and written into. The letters of the shapes are those of
``unipixel_jax/batch.py``; h and w are the height and width of a clip in merged tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import DTypeLike, NDArray

from unipixel_jax.batch import ModelInputs, References, VisionTables, row
from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.buckets import BUCKETS, BucketTable
from unipixel_jax.errors import UserError
from unipixel_jax.processing.chat import expand_image_tokens, seconds_per_grid
from unipixel_jax.processing.media import Clip
from unipixel_jax.processing.memory import memory_tokens
from unipixel_jax.processing.patchify import patchify
from unipixel_jax.processing.prompts import Reference, SquareReference, reference_table, require_words, to_square
from unipixel_jax.processing.resize import language_frames
from unipixel_jax.processing.rope_index import rope_index
from unipixel_jax.processing.square import square_frames
from unipixel_jax.processing.tokenizer import MEM_TOKEN, REF_TOKEN, Message, Tokenizer
from unipixel_jax.processing.vision_index import build_vision_index, place_patches, reference_order, vision_sizes

Sizes = dict[str, int]
"""The padded size of every dimension that depends on the input, by the name of its field in ``BucketTable``."""


@dataclass(frozen=True)
class PreparedMedia:
    """An image or a clip as the model sees it, not yet padded; several conversations may share it.

    Attributes:
        patches: the patches for the language side [patches, patch_dim], float32 or the dtype asked for.
        grid_thw: patches in time, height and width.
        frames: the frames for SAM [F, S, S, 3], of the same dtype; None where nothing is to be segmented.
        frame_size: height and width of the media in pixels.
        frame_count: frames of the clip.
        seconds_per_grid: seconds between two pairs of frames.
        is_still: whether the language side sees an image (``<|image_pad|>``) rather than a clip; only multimodal training data does that.
    """

    patches: NDArray[np.floating]
    grid_thw: tuple[int, int, int]
    frames: NDArray[np.floating] | None
    frame_size: tuple[int, int]
    frame_count: int
    seconds_per_grid: float = 1.0
    is_still: bool = False


@dataclass(frozen=True)
class Conversation:
    """One conversation, not yet padded.

    Attributes:
        input_ids: token ids [tokens], int32, with one ``<|video_pad|>`` (``<|image_pad|>`` for a still) per merged token.
        media: the image or clip that it is about; None for words alone.
        references: the points and boxes that its ``<|ref|>`` tokens stand for, in order.
        memory: whether each remembered object touches each merged token, bool [pairs of frames, objects, h, w]; its ``<|mem|>`` tokens are ordered by
            object, then time.
        segmented: the numbers of the ``<|seg|>`` tokens that are to be segmented, in the order of the objects; None for all.
    """

    input_ids: NDArray[np.int32]
    media: PreparedMedia | None
    references: Sequence[SquareReference] = field(default=())
    memory: NDArray[np.bool_] | None = None
    segmented: Sequence[int] | None = None


def prepare_media(
    clip: Clip,
    config: UniPixelConfig,
    *,
    sample_frames: int = 16,
    segment: bool = True,
    dtype: DTypeLike = np.float32,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> PreparedMedia:
    """Resize, normalise and cut a clip for both sides of the model.

    Args:
        clip: the frames.
        config: the model's sizes.
        sample_frames: the most frames taken from any clip, which sets the pixel budget of each frame.
        segment: make SAM's copy too.
        dtype: dtype of both copies' pixels, which are computed in float32. A model that computes in bfloat16 would round them to it anyway.
        min_pixels: the fewest pixels of a frame for the language side; None for the reference's (``resize.pixel_budget``).
        max_pixels: the most pixels of a frame for the language side; None for the reference's.

    Raises:
        UserError: frames that are too long and thin, or a budget that makes no sense.
    """
    seen = clip.frames if clip.over_white is None else clip.over_white
    shown = language_frames(seen, sample_frames, config.vision.merge_size, min_pixels, max_pixels)
    patches, grid = patchify(shown, config.vision, dtype)
    frames = square_frames(clip.frames, config.sam2.image_size, dtype) if segment else None
    height, width = clip.frames.shape[1:3]
    return PreparedMedia(patches, grid, frames, (height, width), len(clip.frames), seconds_per_grid(config.vision))


def user_turn(text: str) -> list[Message]:
    """The conversation of one question about one clip."""
    return about_media([{"role": "user", "content": text}])


def about_media(turns: Sequence[Message]) -> list[Message]:
    """A conversation about one clip, which comes before the user's first words.

    Args:
        turns: turns whose contents are text; at least one is the user's.
    """
    first = next(place for place, turn in enumerate(turns) if turn["role"] == "user")
    shown = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": turns[first]["content"]}]}
    return [*turns[:first], shown, *turns[first + 1 :]]


def prepare_conversation(
    messages: Sequence[Message],
    media: PreparedMedia | None,
    tokenizer: Tokenizer,
    config: UniPixelConfig,
    *,
    references: Sequence[Reference | SquareReference] = (),
    memory: NDArray[np.bool_] | None = None,
    answer_start: str = "",
) -> Conversation:
    """Render and tokenise a conversation about one clip, or one of words alone.

    Args:
        messages: the turns; if the last is the user's, the assistant's turn is opened for an answer.
        media: the clip; None for words alone, which have no references.
        tokenizer: the checkpoint's.
        config: the model's sizes and token ids.
        references: points and boxes for the ``<|ref|>`` tokens of the text, in pixels of the media, or already in those of SAM's square.
        memory: merged tokens of the objects for the ``<|mem|>`` tokens, bool [pairs of frames, objects, h, w], from ``memory_grid``.
        answer_start: words with which the answer has to begin.

    Raises:
        UserError: there are no words, or other numbers of ``<|video_pad|>``, ``<|ref|>`` or ``<|mem|>`` than there are clips, references and memories.
    """
    require_words(" ".join(map(_words, messages)))
    text = tokenizer.render(messages, add_generation_prompt=messages[-1]["role"] == "user") + answer_start
    memories = 0 if memory is None else int(memory.any(axis=(2, 3)).sum())
    for token, count, what in ((REF_TOKEN, len(references), "points and boxes"), (MEM_TOKEN, memories, "memories of objects")):
        if text.count(token) != count:
            raise UserError(f"the prompt holds {text.count(token)} {token} for {count} {what}: expected one each")
    if media is None:
        return Conversation(tokenizer.encode(expand_image_tokens(text, [], config.vision)), None)
    ids = tokenizer.encode(expand_image_tokens(text, [media.grid_thw], config.vision))
    square = [
        reference if isinstance(reference, SquareReference) else to_square(reference, media.frame_count, *media.frame_size, config.sam2.image_size)
        for reference in references
    ]
    return Conversation(ids, media, square, memory)


def collate(
    conversations: Sequence[Conversation],
    config: UniPixelConfig,
    pad_id: int,
    buckets: BucketTable = BUCKETS,
) -> ModelInputs:
    """Pad several conversations, of any lengths, each with its own media or none, to one batch with a row for each.

    Args:
        conversations: see ``prepare_conversation``.
        config: the model's sizes and token ids.
        pad_id: the token that fills up rows.
        buckets: the padded sizes to choose from.

    Raises:
        UserError: a size is beyond its buckets, or image tokens, references or memories do not fit what the conversations bring.
    """
    rows = [[conversation] for conversation in conversations]
    out = empty_inputs(measure(rows, config, buckets), config, pad_id, pixel_dtype(conversations))
    write_inputs(out, rows, config)
    return out


def measure(rows: Sequence[Sequence[Conversation]], config: UniPixelConfig, buckets: BucketTable = BUCKETS, parts: int | None = None) -> Sizes:
    """The padded sizes of rows of conversations, found without making any array of theirs.

    Args:
        rows: the conversations that follow one another in each row.
        config: the model's sizes and token ids.
        buckets: the padded sizes to choose from.
        parts: how many devices share the frames of a row, see ``write_inputs``; None where none do.

    Raises:
        UserError: a size is beyond its buckets, or a grid does not divide into merged tokens.
    """
    conversations = [conversation for together in rows for conversation in together]
    shares = [vision_sizes(share, config.vision, buckets) for share in _shares(_grids(conversations), parts)]
    memories = [len(tokens) for conversation in conversations if conversation.memory is not None for tokens in memory_tokens(conversation.memory)]
    counts = {
        "batch": len(rows),
        "tokens": max(sum(len(conversation.input_ids) for conversation in together) for together in rows),
        "references": sum(len(conversation.references) for conversation in conversations if conversation.media is not None),
        "memories": len(memories),
        "memory_tokens": max(memories, default=0),
        "objects": max(sum(len(_segmented(conversation, config)) for conversation in together) for together in rows),
    }
    sizes = {name: getattr(buckets, name).size(count) for name, count in counts.items()}
    return sizes | {name: max(share[name] for share in shares) for name in shares[0]}


def empty_inputs(
    sizes: Mapping[str, int], config: UniPixelConfig, pad_id: int, dtype: DTypeLike, parts: int | None = None, lead: tuple[int, ...] = ()
) -> ModelInputs:
    """A batch that holds nothing but padding, in which every row has one token.

    Args:
        sizes: the padded sizes, from ``measure``, or the largest of several.
        config: the model's sizes and token ids.
        pad_id: the token that fills up rows.
        dtype: dtype of the patches.
        parts: how many devices share the frames of a row, see ``write_inputs``; None where none do.
        lead: further dimensions in front of those of every array.
    """
    rows, width, patches = sizes["batch"], sizes["tokens"], sizes["patches"]
    split = lead if parts is None else (*lead, parts)
    merged = patches // config.vision.merge_unit * (parts or 1)

    def full(shape: tuple[int, ...], value: int, first: tuple[int, ...] = lead) -> NDArray[np.int32]:
        return np.full((*first, *shape), value, np.int32)

    def repeated(array: NDArray[np.generic], first: tuple[int, ...]) -> NDArray[np.generic]:
        return np.array(np.broadcast_to(array, (*first, *array.shape)))

    fixed = BUCKETS.fixed(sizes)
    tables, _ = build_vision_index([], config.vision, fixed)
    references = reference_table([], fixed.references)
    segments, position_ids = full((rows, width), 0), full((3, rows, width), 1)
    segments[..., -1], position_ids[..., -1] = 1, 0
    return ModelInputs(
        input_ids=full((rows, width), pad_id),
        lengths=full((rows,), 1),
        segments=segments,
        position_ids=position_ids,
        rope_deltas=full((rows,), 1 - width),
        patches=np.zeros((*split, patches, config.vision.patch_dim), dtype),
        vision=VisionTables(**{name: repeated(array, split) for name, array in vars(tables).items()}),
        vision_slots=full((rows, width), merged),
        references=References(**{name: repeated(array, lead) for name, array in vars(references).items()}),
        reference_slots=full((rows, width), sizes["references"]),
        memory_rows=full((sizes["memories"], sizes["memory_tokens"]), merged),
        memory_slots=full((rows, width), sizes["memories"]),
        seg_positions=full((rows, sizes["objects"]), width),
    )


def write_inputs(out: ModelInputs, rows: Sequence[Sequence[Conversation]], config: UniPixelConfig) -> None:
    """Write rows of conversations into a batch that holds nothing yet.

    Args:
        out: the batch, from ``empty_inputs``, without leading dimensions. Where its ``patches`` are [parts, N, patch_dim], the grid frames are split into
            that many parts, each with tables of its own, for devices that share them.
        rows: the conversations that follow one another in each row; neither sees another.
        config: the model's sizes and token ids.

    Raises:
        UserError: image tokens, references or memories do not fit what the conversations bring.
    """
    conversations = [conversation for together in rows for conversation in together]
    for number, together in enumerate(rows):
        _write_row(out, number, together, config)
    valid = out.segments > 0
    tokens, none = _write_vision(out, conversations, config)

    references = [(own, 2 * c.media.grid_thw[0]) for c in conversations if c.media is not None for own in c.references]
    for name, array in vars(reference_table(references, BUCKETS.fixed({"references": len(out.references.frames)}).references)).items():
        getattr(out.references, name)[...] = array

    memories = _memories(conversations, config)
    for number, own in enumerate(memories):
        out.memory_rows[number, : len(own)] = tokens[own]

    videos = valid & np.isin(out.input_ids, (config.video_token_id, config.image_token_id))
    out.vision_slots[...] = _slots(videos, tokens, none, "image tokens")
    pointing, remembering = (valid & (out.input_ids == token) for token in (config.ref_token_id, config.mem_token_id))
    out.reference_slots[...] = _slots(pointing, np.arange(len(references)), len(out.references.frames), "points and boxes")
    out.memory_slots[...] = _slots(remembering, np.arange(len(memories)), len(out.memory_rows), "memories of objects")


def pixel_dtype(conversations: Sequence[Conversation]) -> np.dtype:
    """The dtype of the conversations' pixels; float32 where none has any."""
    return next((conversation.media.patches.dtype for conversation in conversations if conversation.media is not None), np.dtype(np.float32))


def _write_row(out: ModelInputs, number: int, conversations: Sequence[Conversation], config: UniPixelConfig) -> None:
    """Write the words of one row (tokens, segments and positions) at its right end."""
    width = out.input_ids.shape[1]
    out.lengths[number] = sum(len(conversation.input_ids) for conversation in conversations)
    out.segments[number, -1] = 0
    end, objects = width - out.lengths[number], 0
    for segment, conversation in enumerate(conversations, 1):
        start, end = end, end + len(conversation.input_ids)
        out.input_ids[number, start:end] = conversation.input_ids
        out.segments[number, start:end] = segment
        out.position_ids[:, number, start:end], delta = _positions(conversation, config)
        out.rope_deltas[number] = delta - width
        before = start + _segmented(conversation, config)
        out.seg_positions[number, objects : objects + len(before)] = before
        objects += len(before)


def _positions(conversation: Conversation, config: UniPixelConfig) -> tuple[NDArray[np.int32], int]:
    """Rotary positions of a conversation by itself [3, tokens], and the position after its last one."""
    media = conversation.media
    still, clip = ([], []) if media is None else ([media.grid_thw], []) if media.is_still else ([], [media.grid_thw])
    seconds = [] if media is None or media.is_still else [media.seconds_per_grid]
    positions, deltas = rope_index(conversation.input_ids[None], config, image_grid_thw=still, video_grid_thw=clip, second_per_grid_ts=seconds)
    return positions[:, 0], int(deltas[0]) + len(conversation.input_ids)


def _segmented(conversation: Conversation, config: UniPixelConfig) -> NDArray[np.int64]:
    """The positions in a conversation just before the ``<|seg|>`` tokens that are to be segmented; one at its very beginning has none before it."""
    before = np.flatnonzero(conversation.input_ids[1:] == config.seg_token_id)
    return before if conversation.segmented is None else before[list(conversation.segmented)]


def _write_vision(out: ModelInputs, conversations: Sequence[Conversation], config: UniPixelConfig) -> tuple[NDArray[np.int32], int]:
    """Write patches and index tables, in one part or several.

    Returns:
        The index of each merged token, in the order of arrival, among those of all parts [merged tokens], int32; and the index that stands for none of them, M.
    """
    unit, several = config.vision.merge_unit, out.patches.ndim == 3
    views = [(out.patches[i], row(out.vision, i)) for i in range(len(out.patches))] if several else [(out.patches, out.vision)]
    media = [conversation.media.patches for conversation in conversations if conversation.media is not None]
    start, tokens = 0, []
    for part, ((patches, tables), share) in enumerate(zip(views, _shares(_grids(conversations), len(views) if several else None), strict=True)):
        sizes = {"patches": len(patches), "grid_frames": tables.frame_table.shape[0], "frame_patches": tables.frame_table.shape[1]}
        made, places = build_vision_index(share, config.vision, BUCKETS.fixed(sizes))
        for name, array in vars(made).items():
            getattr(tables, name)[...] = array
        end = start + len(places) * unit
        place_patches(list(_between(media, start, end)), places, patches)
        tokens.append(places + part * (len(patches) // unit))
        start = end
    return np.concatenate(tokens), len(views) * (out.patches.shape[-2] // unit)


def _between(media: Sequence[NDArray[np.floating]], start: int, end: int) -> Iterator[NDArray[np.floating]]:
    """Views of the patches from number ``start`` to ``end`` of clips that follow one another."""
    first = 0
    for own in media:
        if (low := max(start - first, 0)) < (high := min(end - first, len(own))):
            yield own[low:high]
        first += len(own)


def _grids(conversations: Sequence[Conversation]) -> list[tuple[int, int, int]]:
    return [conversation.media.grid_thw for conversation in conversations if conversation.media is not None]


def _shares(grids: Sequence[tuple[int, int, int]], parts: int | None) -> list[list[tuple[int, int, int]]]:
    """The grids of each part. No grid frame's result depends on its neighbours, so a part may take some frames of a clip."""
    if parts is None:
        return [list(grids)]
    frames = [(1, height, width) for time, height, width in grids for _ in range(time)]
    ends = np.cumsum([0, *(height * width for _, height, width in frames)])
    part = np.minimum((ends[:-1] + np.diff(ends) // 2) * parts // max(int(ends[-1]), 1), parts - 1)
    return [[frame for frame, own in zip(frames, part, strict=True) if own == p] for p in range(parts)]


def _memories(conversations: Sequence[Conversation], config: UniPixelConfig) -> list[NDArray[np.int32]]:
    """The merged tokens, in reading order over all clips, that each memory averages.

    The reference lays masks in reading order over features in window order, and its weights were trained so. The tokens of a mask are therefore those whose
    index in window order is masked.
    """
    order = reference_order(_grids(conversations), config.vision)
    rows: list[NDArray[np.int32]] = []
    first = 0
    for conversation in conversations:
        if conversation.media is None:
            continue
        if conversation.memory is not None:
            rows += [order[first + tokens] for tokens in memory_tokens(conversation.memory)]
        first += len(conversation.media.patches) // config.vision.merge_unit
    return rows


def _words(message: Message) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _slots(marked: NDArray[np.bool_], rows: NDArray[np.integer], none: int, what: str) -> NDArray[np.int32]:
    """Give the marked tokens, in reading order, the rows that replace them. Where there are no rows, they keep their own embeddings, as in the reference.

    Raises:
        UserError: the number of marked tokens is not that of the rows.
    """
    slots = np.full(marked.shape, none, np.int32)
    if len(rows):
        if marked.sum() != len(rows):
            raise UserError(f"the conversations hold {marked.sum()} tokens for {len(rows)} {what}: expected one each")
        slots[marked] = rows
    return slots
