"""UniPixel-3B, stage 2 of 3: Segmentation.

    unipixel-jax train configs/unipixel_3b_stage2.py --data.root /data/UniPixel-SFT-1M

docs/training.md tells how the directory that it starts from is made, and docs/data.md what lies below the data root.
"""

from unipixel_jax.train.config import TrainConfig
from unipixel_jax.train.recipes import stage2


def get_config() -> TrainConfig:
    """The run."""
    return stage2("unipixel_3b_stage2", "UniPixel-3B-fresh", "3b")
