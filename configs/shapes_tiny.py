"""The small model that ships with the package, after the curriculum of its parts: everything is trained together.

    unipixel-jax train configs/shapes_tiny.py

`scripts/train_shapes.sh` runs the curriculum and this, and measures the result. Half of the batches are images, a quarter clips, a quarter words alone.
"""

from unipixel_jax.synthetic.recipe import shapes
from unipixel_jax.train.config import StartConfig, TrainConfig


def get_config() -> TrainConfig:
    """The run."""
    start = StartConfig(checkpoint="runs/shapes_tiny_curriculum/model")
    datasets = "shapes_image:2,shapes_clip:1,shapes_words:1"
    return shapes("shapes_tiny", start, datasets, learning_rate=1e-4, steps=100, interval=100)
