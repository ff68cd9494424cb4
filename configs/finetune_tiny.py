"""Fine-tune the small model that ships with the package on your own pictures; runs on a laptop in minutes.

    unipixel-jax train configs/finetune_tiny.py --data.datasets PICTURES

PICTURES is a folder or a COCO-style file (docs/data.md). docs/finetune.md follows one from pictures to masks.
"""

from dataclasses import replace

from unipixel_jax.infer.loading import EMBEDDED
from unipixel_jax.train.config import TrainConfig
from unipixel_jax.train.recipes import finetune


def get_config() -> TrainConfig:
    """The run."""
    return replace(finetune("finetune_tiny", str(EMBEDDED), "PICTURES"), dtype="float32", remat="none", dropout=False)
