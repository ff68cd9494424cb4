"""Sample data of the sources of marked objects, and helpers that draw and assemble their samples."""

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from make_sample_data import WRITERS as EVERY_WRITER  # noqa: E402, F401
from sample_data import inst_it, llava, osprey, videorefer  # noqa: E402
from sample_data.discs import run_length, write_video  # noqa: E402, F401

from unipixel_jax.config import preset  # noqa: E402
from unipixel_jax.data.annotation import DrawOptions  # noqa: E402
from unipixel_jax.data.assemble import prepare  # noqa: E402
from unipixel_jax.data.draw import draw  # noqa: E402
from unipixel_jax.data.sources import open_source  # noqa: E402
from unipixel_jax.processing.tokenizer import Tokenizer  # noqa: E402

WRITERS = {**videorefer.WRITERS, **inst_it.WRITERS, **osprey.WRITERS, **llava.WRITERS}
SIDE = 96
WHOLE = DrawOptions(sample_frames=(64, 64), sample_type="uniform", image_size=SIDE)
"""Takes whole clips, so that frame numbers are known."""

CONFIG = preset("tiny")
TOKENIZER = Tokenizer.from_directory(ROOT / "tests" / "recordings" / "processing" / "tokenizer")


def write(name, root):
    """Write the sample data of a source and open it."""
    WRITERS[name](root)
    return open_source(name, root)


def drawn(source, options=WHOLE, seed=0):
    """Every annotation with its example."""
    for index in range(len(source)):
        yield source[index], draw(source[index], options, np.random.default_rng([seed, index]))


def text_of(example):
    """All words of a conversation."""
    parts = []
    for message in example.messages:
        content = message["content"]
        parts += [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    return "\n".join(parts)


def first_question(example):
    """The words of the first turn."""
    return example.messages[0]["content"][-1]["text"]


def assembled(example):
    """The arrays of a sample, which only come about where the special tokens fit the points, boxes, memories and masks."""
    return prepare(example, TOKENIZER, CONFIG, np.random.default_rng(0))
