#!/usr/bin/env python3
"""Train the parts of the small model one by one, as docs/tiny_model.md tells: scripts/train_shapes_model.py RUN

Metrics and weights of each stage go to a folder of RUN, and the whole model to RUN/model. Called again it goes on with the stage that is not finished.
"""

import sys
from pathlib import Path

from unipixel_jax.convert import to_jax
from unipixel_jax.convert.random import random_source
from unipixel_jax.convert.trained import merged_source, open_trained
from unipixel_jax.infer.loading import EMBEDDED
from unipixel_jax.processing.tokenizer import Tokenizer
from unipixel_jax.synthetic.curriculum import run_curriculum
from unipixel_jax.synthetic.recipe import CURRICULUM, LOSSES, SHAPES_MODEL, conversations

SEED = 0


def main(run: Path) -> None:
    """From nothing to a directory that training starts from."""
    trained = run_curriculum(CURRICULUM, SHAPES_MODEL, Tokenizer.from_directory(EMBEDDED), conversations("shapes_image"), LOSSES, run, SEED)
    start = run / "start"
    to_jax.convert(random_source(SHAPES_MODEL, EMBEDDED, SEED), start, force=True)
    to_jax.convert(merged_source(open_trained(start, trained, None), str(run)), run / "model", force=True)
    print(f"{run / 'model'}: every part has been trained")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
