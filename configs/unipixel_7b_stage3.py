"""UniPixel-7B, stage 3 of 3: All data, LoRA.

    unipixel-jax train configs/unipixel_7b_stage3.py --data.root /data/UniPixel-SFT-1M

docs/training.md tells how the directory that it starts from is made, and docs/data.md what lies below the data root.
"""

from unipixel_jax.train.config import TrainConfig
from unipixel_jax.train.recipes import stage3


def get_config() -> TrainConfig:
    """The run."""
    return stage3("unipixel_7b_stage3", "UniPixel-7B-stages12", "7b")
