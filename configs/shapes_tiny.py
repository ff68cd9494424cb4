"""The small model that ships with the package, second of two stages: words and masks together.

    unipixel-jax train configs/shapes_tiny.py

`scripts/train_shapes.sh` runs both stages and measures the result. In two batches of three every question asks for a mask; the others hold all kinds of
questions. docs/tiny_model.md tells how other recipes fared.
"""

from unipixel_jax.train.config import StartConfig, TrainConfig
from unipixel_jax.train.shapes import shapes


def get_config() -> TrainConfig:
    """The run."""
    start = StartConfig(checkpoint="runs/shapes_tiny_words/model")
    return shapes("shapes_tiny", start, "shapes_find:2,shapes_image", turns=4, learning_rate=6e-4, sam_rate=5e-4, steps=2000, interval=500)
