"""Endless sources of scenes of coloured shapes (data/synthetic/): images, clips, and images of which only words are learned. Nothing is read from disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unipixel_jax.data.annotation import Annotation

SHAPES = ("shapes_words", "shapes_image", "shapes_clip")
EPOCH = 1 << 16
"""Samples that count as one epoch; every one is drawn anew."""


@dataclass(frozen=True)
class ShapesSource:
    """Scenes of one kind: ``name`` is one of ``SHAPES``."""

    name: str

    def __len__(self) -> int:
        return EPOCH

    def __getitem__(self, index: int) -> Annotation:
        return Annotation(self.name, self.name, "shapes", None, (), str(index))

    @property
    def data_types(self) -> Sequence[str]:
        """The data type of every sample: they all have the source's name."""
        return [self.name] * EPOCH
