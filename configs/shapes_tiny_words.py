"""The small model that ships with the package, first of two stages: from nothing to words about drawn scenes of coloured shapes.

    unipixel-jax train configs/shapes_tiny_words.py

Answers are learned, and nothing of SAM 2 yet.
"""

from unipixel_jax.train.config import StartConfig, TrainConfig
from unipixel_jax.train.shapes import SHAPES_MODEL, shapes


def get_config() -> TrainConfig:
    """The run."""
    start = StartConfig(model=SHAPES_MODEL)
    return shapes("shapes_tiny_words", start, "shapes_words", turns=4, learning_rate=1e-3, sam_rate=0.0, steps=300, interval=150)
