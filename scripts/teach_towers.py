#!/usr/bin/env python3
"""Teach the small model's vision tower and SAM 2, each alone, the first stage of docs/tiny_model.md: scripts/teach_towers.py RUN

The numbers of both go to RUN/vision and RUN/sam2, and a whole model, of which all else is random, to RUN/model.
"""

import sys
from pathlib import Path

from unipixel_jax.convert import to_jax
from unipixel_jax.convert.random import random_source
from unipixel_jax.convert.trained import merged_source, open_trained
from unipixel_jax.infer.loading import EMBEDDED
from unipixel_jax.train.shapes import LOSSES, SHAPES_MODEL, from_nothing
from unipixel_jax.train.towers import Lesson, teach

SIGHT = Lesson(steps=1200, batch_size=16, optim=from_nothing(6e-3))
SEGMENTING = Lesson(steps=600, batch_size=16, optim=from_nothing(1e-3))
SEED = 0


def main(run: Path) -> None:
    """From nothing to a directory that training starts from."""
    taught = teach(SHAPES_MODEL, run, SIGHT, SEGMENTING, LOSSES, SEED)
    start = run / "start"
    to_jax.convert(random_source(SHAPES_MODEL, EMBEDDED, SEED), start, force=True)
    to_jax.convert(merged_source(open_trained(start, taught, None), str(run)), run / "model", force=True)
    print(f"{run / 'model'}: both towers are taught, all else is random")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
