"""Write a UniPixel checkpoint with random weights, as the torch reference saves one, to try the commands without the published weights.

    python scripts/make_random_checkpoint.py 3b random-3b --tokenizer some/checkpoint

Norms and layer scales are one and biases zero. The frequencies of position encodings have a standard deviation of 1, all other weights one of 0.02. Weights are
written a block at a time, so that memory does not limit their size. The tokenizer and processor files of ``--tokenizer`` are copied, and config.json has that
tokenizer's ids of the special tokens.
"""

from __future__ import annotations

import argparse
import math
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from unipixel_jax.config import PRESETS, UniPixelConfig, preset
from unipixel_jax.convert.hf_config import copy_companions, write_json
from unipixel_jax.convert.output import new_directory
from unipixel_jax.convert.progress import bar
from unipixel_jax.convert.safetensors_io import plan_shards, write_shards
from unipixel_jax.convert.tables import all_rules
from unipixel_jax.convert.tensors import DTYPES as TENSOR_DTYPES
from unipixel_jax.convert.tensors import Tensor
from unipixel_jax.convert.to_jax import model_shapes
from unipixel_jax.convert.to_torch import SHARD_BYTES
from unipixel_jax.convert.tokens import token_ids
from unipixel_jax.core.byte_streams import BLOCK_BYTES, Blocks, bytes_of
from unipixel_jax.errors import UserError

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}

SPECIAL = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "ref_token_id": "<|ref|>",
    "seg_token_id": "<|seg|>",
    "mem_token_id": "<|mem|>",
}


def main() -> int:
    """Parse the command line and write the checkpoint; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=sorted(PRESETS))
    parser.add_argument("target", type=Path, metavar="DST")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="a directory whose tokenizer and processor files are copied")
    args = parser.parse_args()
    try:
        config = replace(preset(args.preset), dtype=args.dtype)
        write(with_tokens(config, args.tokenizer) if args.tokenizer else config, args.target, args.tokenizer, args.seed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def with_tokens(config: UniPixelConfig, tokenizer: Path) -> UniPixelConfig:
    """Return the configuration with a tokenizer's own ids of the special tokens.

    Raises:
        UserError: the tokenizer lacks one of them, or has more tokens than the vocabulary.
    """
    ids, count = token_ids(tokenizer)
    lacking = [token for token in SPECIAL.values() if token not in ids]
    if lacking or count > config.text.vocab_size:
        found = f"{count} tokens and lacks {', '.join(lacking) or 'none'}"
        raise UserError(f"{tokenizer} has {found}, expected UniPixel's special tokens and at most {config.text.vocab_size} in all")
    return replace(config, **{key: ids[token] for key, token in SPECIAL.items()})


def write(config: UniPixelConfig, target: Path, tokenizer: Path | None, seed: int) -> None:
    """Write the checkpoint of `config` with random weights.

    Raises:
        UserError: the output exists or cannot be written.
    """
    shapes = model_shapes(config)
    dtype = DTYPES[config.dtype]
    torch_shapes = {name: shape for rule in all_rules(config) for name, shape in rule.torch_shapes(shapes[rule.jax]).items()}
    sizes = {name: Tensor(dtype, shape, lambda: iter(())).nbytes for name, shape in torch_shapes.items()}
    with new_directory(target, False, sum(sizes.values())) as directory, bar("drawing", sum(sizes.values())) as advance:
        tensors = {name: Tensor(dtype, shape, partial(draw, name, shape, dtype, seed, advance)) for name, shape in torch_shapes.items()}
        write_shards(directory, tensors, plan_shards(sizes, SHARD_BYTES), {})
        write_json(directory / "config.json", config.to_hf())
        copy_companions([tokenizer] if tokenizer else [], directory)


def draw(name: str, shape: tuple[int, ...], dtype: str, seed: int, advance: Callable[[int], None]) -> Blocks:
    """Yield a tensor's random bytes, a block at a time; each tensor has its own stream of random numbers."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    deviation = 1 if name.endswith("gaussian_matrix") else 0.02
    left = math.prod(shape)
    while left:
        count = min(left, BLOCK_BYTES // 8)
        constant = np.full(count, name.endswith(".weight"), np.float32)
        numbers = constant if len(shape) == 1 else deviation * generator.standard_normal(count, np.float32)
        block = bytes_of(numbers.astype(TENSOR_DTYPES[dtype]))
        advance(len(block))
        yield block
        left -= count


if __name__ == "__main__":
    sys.exit(main())
