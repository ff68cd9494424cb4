"""The torch reference's recordings for the processing tests, from tests/recordings/processing."""

from functools import cache
from pathlib import Path

import numpy as np

from unipixel_jax.processing.tokenizer import Tokenizer

HERE = Path(__file__).parents[1] / "recordings" / "processing"


@cache
def recorded():
    with np.load(HERE / "cases.npz") as cases:
        return dict(cases)


@cache
def tokenizer():
    return Tokenizer.from_directory(HERE / "tokenizer")
