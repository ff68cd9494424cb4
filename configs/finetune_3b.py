"""Fine-tune UniPixel-3B on your own pictures, on a TPU or GPU.

    unipixel-jax train configs/finetune_3b.py --start.checkpoint UniPixel-3B-jax --data.datasets PICTURES

PICTURES is a folder or a COCO-style file (docs/data.md). docs/finetune.md follows one from pictures to masks.
"""

from unipixel_jax.train.config import TrainConfig
from unipixel_jax.train.recipes import finetune


def get_config() -> TrainConfig:
    """The run."""
    return finetune("finetune_3b", "UniPixel-3B-jax", "PICTURES")
