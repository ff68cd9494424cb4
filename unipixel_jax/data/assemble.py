"""Makes the arrays of one sample, not yet padded, from a drawn example.

L tokens, F frames, O objects, S side of SAM's square.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import DTypeLike, NDArray

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.data.annotation import Example, Photo
from unipixel_jax.errors import UserError
from unipixel_jax.processing.batch import Conversation, PreparedMedia, prepare_media
from unipixel_jax.processing.chat import chatml_labels, expand_image_tokens
from unipixel_jax.processing.memory import memory_grid
from unipixel_jax.processing.square import square_frames
from unipixel_jax.processing.tokenizer import MEM_TOKEN, REF_TOKEN, SEG_TOKEN, Tokenizer


@dataclass(frozen=True)
class Sample:
    """One sample, ready to be put into a batch.

    Attributes:
        conversation: the words and their image or clip. ``media.frames`` are SAM's, where something is to be segmented, and ``segmented`` says which of the
            ``<|seg|>`` tokens the objects of ``masks`` are.
        labels: the token ids to predict [L], int32; -100 where nothing is trained.
        masks: the masks of the objects to segment: bool [F, O, S, S]; None for none.
        source: where it came from.
        data_type: its kind; a batch has one.
        name: says which sample this is.
    """

    conversation: Conversation
    labels: NDArray[np.int32]
    masks: NDArray[np.bool_] | None
    source: str
    data_type: str
    name: str

    @property
    def tokens(self) -> int:
        """The length of the conversation, L."""
        return len(self.labels)


def prepare(
    example: Example, tokenizer: Tokenizer, config: UniPixelConfig, rng: np.random.Generator, pixel_dtype: DTypeLike = np.float32
) -> Sample:
    """Tokenise a conversation and prepare its images.

    Where the configuration limits ``sample_objects``, that many of the objects are drawn, as the reference does in its forward pass.

    Args:
        example: the drawn sample.
        tokenizer: the checkpoint's.
        config: the model's sizes and token ids.
        rng: random numbers that choose among too many objects.
        pixel_dtype: dtype of the images' pixels.

    Raises:
        UserError: the special tokens of the text do not fit what the example holds, or an object's memory is empty.
    """
    text = tokenizer.render(example.messages, add_generation_prompt=False).strip()
    annotation, masks = example.annotation, example.masks
    media, grid, found = _media(example, config, pixel_dtype), None, 0
    if example.memory is not None and media is not None:
        if not example.memory.any(axis=(1, 2, 3)).all():
            raise UserError(f"{annotation.source}, {annotation.name}: the mask of an object to remember is empty in the frames that were taken")
        grid = memory_grid(example.memory, media.grid_thw, config.vision)
        found = int(grid.any(axis=(2, 3)).sum())
    objects = 0 if masks is None else len(masks)
    expected = [(REF_TOKEN, len(example.references)), (MEM_TOKEN, found), *([] if masks is None else [(SEG_TOKEN, objects)])]
    for token, count in expected:
        if text.count(token) != count:
            raise UserError(f"{annotation.source}, {annotation.name}: the conversation holds {text.count(token)} {token} for {count}, expected one each")
    ids, labels = chatml_labels(expand_image_tokens(text, [] if media is None else [media.grid_thw], config.vision), tokenizer)
    chosen = np.arange(objects)
    if 0 < config.sample_objects < objects:
        chosen = rng.permutation(objects)[: config.sample_objects]
    return Sample(
        conversation=Conversation(ids, media, example.references, grid, tuple(chosen.tolist())),
        labels=labels,
        masks=None if masks is None else np.ascontiguousarray(masks[chosen].swapaxes(0, 1)),
        source=annotation.source,
        data_type=annotation.data_type,
        name=annotation.name,
    )


def _media(example: Example, config: UniPixelConfig, dtype: DTypeLike) -> PreparedMedia | None:
    if example.clip is None:
        return None
    own = example.masks is not None and example.tracked is None
    media = prepare_media(example.clip, config, sample_frames=example.sample_frames, segment=own, dtype=dtype)
    if example.tracked is not None:
        media = replace(media, frames=square_frames(example.tracked.frames, config.sam2.image_size, dtype))
    seconds = example.seconds_per_frame * config.vision.temporal_patch_size
    return replace(media, seconds_per_grid=seconds, is_still=isinstance(example.annotation.media, Photo))
