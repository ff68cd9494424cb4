"""The small model that ships with the package, second of three stages: words about drawn scenes of coloured shapes, and prompts for a SAM 2 that is at rest.

    unipixel-jax train configs/shapes_tiny_language.py

Half of the batches are words alone; one in eight asks for things by name, and three in eight hold all kinds of questions.
"""

from unipixel_jax.train.config import StartConfig, TrainConfig
from unipixel_jax.train.shapes import shapes


def get_config() -> TrainConfig:
    """The run."""
    return shapes(
        "shapes_tiny_language",
        StartConfig(checkpoint="runs/shapes_tiny_towers/model"),
        "shapes_words:4,shapes_find:1,shapes_image:3",
        trained=("vision", "text", "ref", "ref_enc", "msk", "seg"),
        learning_rate=2e-3,
        steps=2400,
        interval=300,
    )
