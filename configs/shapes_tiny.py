"""The small model that ships with the package, last of three stages: everything together.

    unipixel-jax train configs/shapes_tiny.py

`scripts/train_shapes.sh` runs all stages and measures the result. A quarter of the batches is words alone, a quarter asks for things by name, and half hold all
kinds of questions.
"""

from unipixel_jax.train.config import StartConfig, TrainConfig
from unipixel_jax.train.shapes import shapes


def get_config() -> TrainConfig:
    """The run."""
    start = StartConfig(checkpoint="runs/shapes_tiny_language/model")
    datasets = "shapes_words:1,shapes_find:1,shapes_image:2"
    return shapes("shapes_tiny", start, datasets, trained=("all",), learning_rate=1e-3, steps=700, interval=350)
