"""The small model that ships with the package, second of two stages: masks, on top of the words that configs/shapes_tiny_words.py has learned.

    unipixel-jax train configs/shapes_tiny.py

`scripts/train_shapes.sh` runs both and measures the result. The language side stays as it is, and every thing of a picture is named and segmented;
docs/tiny_model.md tells how other recipes fared.
"""

from unipixel_jax.train.config import StartConfig, TrainConfig
from unipixel_jax.train.shapes import shapes


def get_config() -> TrainConfig:
    """The run."""
    start = StartConfig(checkpoint="runs/shapes_tiny_words/model")
    return shapes("shapes_tiny", start, "shapes_all", ("seg", "sam2"), batch_size=16, objects=5, learning_rate=8e-4, steps=800, interval=250)
