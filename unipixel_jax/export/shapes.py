"""The fixed shapes of an export: how much of a prompt, a clip and an answer its parts hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.buckets import BUCKETS
from unipixel_jax.errors import UserError
from unipixel_jax.processing.batch import Conversation, Sizes, measure, prepare_media
from unipixel_jax.processing.media import Clip

AROUND = 64
"""Tokens of a prompt that are neither its words nor the clip's: those of the chat template, and a few to spare."""


@dataclass(frozen=True)
class Shapes:
    """What an export has room for.

    Attributes:
        objects: objects that are segmented and tracked together.
        frames: frames of a clip that the language model looks at; 1 for photos.
        height, width: the largest size in pixels of what the language model looks at; larger media are made smaller.
        words: tokens of the words of a prompt.
        new_tokens: tokens of an answer.
        points: points and corners of boxes for each object.
        least: the least padded size of dimensions of a prompt, by their names in ``processing/batch.py``, where the numbers above do not ask for more.
    """

    objects: int = 1
    frames: int = 1
    height: int = 448
    width: int = 448
    words: int = 64
    new_tokens: int = 64
    points: int = 8
    least: Mapping[str, int] = field(default_factory=dict)

    @property
    def numbers(self) -> dict[str, int]:
        """All but ``least``, by name."""
        return {name: value for name, value in vars(self).items() if name != "least"}

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: one is below 1.
        """
        for name, value in self.numbers.items():
            if value < 1:
                raise UserError(f"an export with {name} {value} holds nothing: expected at least 1")

    def sizes(self, config: UniPixelConfig) -> Sizes:
        """Return the padded size of every dimension of a prompt.

        Raises:
            UserError: a size is beyond what inference takes.
        """
        clip = Clip(np.zeros((self.frames, self.height, self.width, 3), np.uint8), np.arange(self.frames), self.frames == 1, "export")
        media = prepare_media(clip, config, sample_frames=self.frames, segment=False, max_pixels=self.height * self.width)
        seen = len(media.patches) // config.vision.merge_unit
        ids = [config.vision_start_token_id, *[config.video_token_id] * seen, config.vision_end_token_id]
        found = measure([[Conversation(np.asarray(ids, np.int32), media)]], config)
        exact = {"tokens": seen + self.words + AROUND, "objects": self.objects}
        for name, count in exact.items():
            getattr(BUCKETS, name).size(count)  # refuses what is beyond the largest bucket
        return {name: max(size, self.least.get(name, 0)) for name, size in (found | exact).items()}

    def slots(self, config: UniPixelConfig) -> int:
        """Return the slots of the cache: those of the prompt and of the answer."""
        return self.sizes(config)["tokens"] + self.new_tokens
