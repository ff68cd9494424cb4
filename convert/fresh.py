"""The assembly of a fresh UniPixel from Qwen2.5-VL and SAM 2.1, as the reference's training starts one.

Source: `init_parameters` and `load_sam2_weights` in the reference's unipixel/train/train.py.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from unipixel_jax.config import SAM2_SIZES, Sam2Config, UniPixelConfig
from unipixel_jax.core.files import read_json_object
from unipixel_jax.errors import UserError

from .names import unwrapped
from .tensors import Tensor

ROWS = 4096
"""How many rows of an embedding are summed at once, so that its mean needs no float32 copy of the whole."""

EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
"""The canonical names of the tensors that have a row for each token."""


def sam2_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an official SAM 2.1 file's tensors under UniPixel's names: with the prefix `sam2.`, and the fuser's layer scale `gamma` called `weight`."""
    fuser = "memory_encoder.fuser.layers."
    plain = {unwrapped(name): tensor for name, tensor in tensors.items()}
    return {f"sam2.{n.removesuffix('gamma') + 'weight' if n.startswith(fuser) and n.endswith('.gamma') else n}": t for n, t in plain.items()}


def sam2_sizes(size: str | None, tensors: Mapping[str, Tensor], image_size: int, where: Path) -> Sam2Config:
    """Return the sizes of a SAM 2.1 file. A published size is recognised by Hiera's width and the number of blocks in each stage.

    Args:
        size: one of the published sizes' names, or a JSON file with the fields of Sam2Config; None to see it from the weights.
        tensors: the file's tensors under UniPixel's names.
        image_size: side of the square input in pixels, which the weights do not show.
        where: the file, for messages.

    Raises:
        UserError: the file is no SAM 2, or none of the four published sizes, whose heads, windows and global blocks cannot be read from the weights.
    """
    if size is not None and size in SAM2_SIZES:
        return replace(SAM2_SIZES[size], image_size=image_size)
    if size is not None:
        raw = read_json_object(size, f"expected {', '.join(SAM2_SIZES)}, or a JSON file with the fields of Sam2Config")
        unknown = sorted(raw.keys() ^ vars(SAM2_SIZES["tiny"]).keys())
        if unknown:
            raise UserError(f"{size} must have exactly the fields of Sam2Config; lacking or unknown: {', '.join(unknown)}")
        fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
        return Sam2Config(**fields)
    trunk = "sam2.image_encoder.trunk."
    patch = tensors.get(f"{trunk}patch_embed.proj.weight")
    if patch is None:
        raise UserError(f"{where} has no image_encoder.trunk; expected a SAM 2.1 checkpoint (sam2.1_hiera_*.pt)")
    depth = next(n for n in count() if f"{trunk}blocks.{n}.norm1.weight" not in tensors)
    starts = [0, *(n for n in range(depth) if f"{trunk}blocks.{n}.proj.weight" in tensors), depth]
    stages = tuple(end - start for start, end in pairwise(starts))
    for published in SAM2_SIZES.values():
        if (published.embed_dim, published.stages) == (patch.shape[0], stages):
            return replace(published, image_size=image_size)
    found = f"{where} has width {patch.shape[0]} and stages {stages}, none of SAM 2.1's published sizes"
    raise UserError(f"{found}; describe it with --sam2-size FILE.json, or under sam2_model in a config.json beside it where SAM 2.1 is loaded alone")


def sam2_config_name(sizes: Sam2Config) -> str:
    """Return the name that the reference gives this size in config.json."""
    files = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}
    published = (name for name, size in SAM2_SIZES.items() if replace(size, image_size=sizes.image_size) == sizes)
    return next((f"configs/sam2.1_hiera_{files[name]}" for name in published), "configs/custom")


def assemble(qwen: Mapping[str, Tensor], sam2: Mapping[str, Tensor], config: UniPixelConfig, new_tokens: int, seed: int) -> dict[str, Tensor]:
    """Return the tensors of a fresh UniPixel under canonical names, in the dtype of Qwen's embedding.

    Where the vocabulary grows, the last `new_tokens` rows of embedding and head are the mean of all rows before them. `ref_encoder` is a copy of SAM 2's
    prompt encoder, its random frequencies included: the copied point embeddings were trained with those. `msk_proj` is a copy of the vision merger's MLP.
    The other linear layers are Xavier-uniform with zero bias, norms are one, `tem_emb` has a deviation of 0.02 and `tem_pe` of 1.

    Args:
        qwen: Qwen2.5-VL's tensors under canonical names.
        sam2: SAM 2's tensors under UniPixel's names.
        config: the new model's configuration.
        new_tokens: how many tokens were appended to the tokenizer.
        seed: seed of the random weights; each tensor has a stream of random numbers of its own.

    Raises:
        UserError: there is no embedding, or it has fewer rows than there are older tokens.
    """
    if EMBEDDINGS[0] not in qwen:
        raise UserError("the Qwen2.5-VL directory has no token embedding; expected a complete checkpoint")
    dtype = qwen[EMBEDDINGS[0]].dtype
    tensors = dict(qwen)
    for name in EMBEDDINGS:
        if name in tensors and tensors[name].shape[0] < config.text.vocab_size:
            tensors[name] = _with_mean_rows(name, tensors[name], config.text.vocab_size, new_tokens)
    tensors |= {name: tensor.cast(dtype) for name, tensor in sam2.items()}
    encoder = "sam2.sam_prompt_encoder."
    tensors |= {name.replace(encoder, "ref_encoder."): tensor for name, tensor in tensors.items() if name.startswith(encoder)}
    merger = "visual.merger.mlp."
    tensors |= {name.replace(merger, "msk_proj."): tensor for name, tensor in tensors.items() if name.startswith(merger)}
    for name, shape in _new_shapes(config).items():
        tensors.setdefault(name, Tensor.computed(dtype, shape, _initial(name, shape, seed)))
    return tensors


def _new_shapes(config: UniPixelConfig) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the weights that neither Qwen nor SAM 2 has (unipixel/model/qwen2_5_vl.py, `__init__`)."""
    text, sam = config.text.hidden_size, config.sam2.d_model
    linears = {
        "seg_head.1": (text, text),
        "seg_head.3": (sam * config.sam2_hidden_tokens, text),
        "ref_proj_single": (sam * 3, sam * 2),
        "ref_proj_double": (sam * 3, sam * 3),
        "ref_proj.1": (text, sam * 6),
        "tem_proj": (sam * 3, sam),
    }
    weights: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in linears.items()}
    biases = {f"{name}.bias": shape[:1] for name, shape in linears.items()}
    return weights | biases | {"seg_head.0.weight": (text,), "tem_emb.weight": (1, sam), "tem_pe.positional_encoding_gaussian_matrix": (1, sam // 2)}


def _initial(name: str, shape: tuple[int, ...], seed: int) -> Callable[[], np.ndarray]:
    """Return a function that draws a new weight."""

    def make() -> np.ndarray:
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        if name == "seg_head.0.weight":
            return np.ones(shape, np.float32)
        if name.endswith(".bias"):
            return np.zeros(shape, np.float32)
        if name.startswith(("tem_pe.", "tem_emb.")):
            return generator.normal(0, 1 if name.startswith("tem_pe.") else 0.02, shape)
        bound = np.sqrt(6 / sum(shape))
        return generator.uniform(-bound, bound, shape)

    return make


def _with_mean_rows(name: str, old: Tensor, rows: int, new: int) -> Tensor:
    """Return an embedding [rows, D] whose last `new` rows are the mean of the older tokens' rows."""
    if old.shape[0] < rows - new:
        raise UserError(f"{name} has {old.shape[0]} rows for {rows - new} older tokens; the tokenizer does not belong to this checkpoint")

    def extend() -> np.ndarray:
        kept = old.load()[: rows - new]
        total = sum(kept[i : i + ROWS].astype(np.float32).sum(0, dtype=np.float64) for i in range(0, len(kept), ROWS))
        return np.concatenate([kept, np.broadcast_to(np.asarray(total / len(kept)).astype(kept.dtype), (new, kept.shape[1]))])

    return Tensor.computed(old.dtype, (rows, *old.shape[1:]), extend)
