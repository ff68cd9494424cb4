#!/usr/bin/env python3
"""Train the parts of the small model one by one, the first half of docs/tiny_model.md: scripts/train_shapes_model.py RUN

The metrics and weights of each stage of the curriculum go to a folder of RUN, and the whole model to RUN/model. Run again, the script goes on with the stage
that is not finished.
"""

import sys
from pathlib import Path

from unipixel_jax.convert import to_jax
from unipixel_jax.convert.random import random_source
from unipixel_jax.convert.trained import merged_source, open_trained
from unipixel_jax.infer.loading import EMBEDDED
from unipixel_jax.processing.tokenizer import Tokenizer
from unipixel_jax.synthetic.curriculum import take
from unipixel_jax.synthetic.recipe import COURSE, LOSSES, SHAPES_MODEL, conversations

SEED = 0


def main(run: Path) -> None:
    """Train all parts from random weights, and write a converted directory for training to start from."""
    taught = take(COURSE, SHAPES_MODEL, Tokenizer.from_directory(EMBEDDED), conversations("shapes_image"), LOSSES, run, SEED)
    start = run / "start"
    to_jax.convert(random_source(SHAPES_MODEL, EMBEDDED, SEED), start, force=True)
    to_jax.convert(merged_source(open_trained(start, taught, None), str(run)), run / "model", force=True)
    print(f"{run / 'model'}: every part has had its lesson")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
