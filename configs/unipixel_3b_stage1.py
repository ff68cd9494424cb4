"""UniPixel-3B, stage 1 of 3: References.

    unipixel-jax train configs/unipixel_3b_stage1.py --data.root /data/UniPixel-SFT-1M

docs/training.md tells how the directory that it starts from is made, and docs/data.md what lies below the data root.
"""

from unipixel_jax.train.config import TrainConfig
from unipixel_jax.train.recipes import stage1


def get_config() -> TrainConfig:
    """The run."""
    return stage1("unipixel_3b_stage1", "UniPixel-3B-fresh", "3b")
