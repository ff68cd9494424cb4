"""Which weights are trained, how fast, and which of them decay: all by path (reference: unipixel/train/train.py and custom_trainer.py, create_optimizer)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from optax.contrib import MuonDimensionNumbers

from unipixel_jax.core.trees import KeyPath, key_path
from unipixel_jax.errors import UserError

LORA, ALL = "lora", "all"
PARTS: Mapping[str, tuple[KeyPath, ...]] = {
    "embedding": (("text", "embed"), ("text", "head")),
    "projector": (("vision", "merger"),),
    "ref": (("ref_proj_single",), ("ref_proj_double",), ("ref_proj",), ("tem_emb",), ("tem_proj",)),
    "ref_enc": (("ref_encoder",),),
    "msk": (("msk_proj",),),
    "seg": (("seg_head",),),
    "sam2": (("sam2",),),
    "vision": (("vision",),),
    "text": (("text",),),
    LORA: (),
    ALL: ((),),
}
"""What each name trains: everything below these paths. ``lora`` means the adapters, wherever they are."""

ADAPTERS = ("lora_a", "lora_b")
CONSTANTS = ("pe_matrix", "tem_pe_matrix")
"""Random Fourier matrices: buffers in the reference, so never trained."""
SAM_ENCODER = (("sam2", "hiera"), ("sam2", "neck"))
LAYER_NORMS = (("sam2", "hiera"), ("sam2", "mask_decoder", "transformer"), ("sam2", "memory_attention"))
"""Where norms are torch's ``nn.LayerNorm``, whose weights do not decay. The others are classes of their own there (RMSNorm, LayerNorm2d), which the
reference does not take for norms: their weights decay."""


@dataclass(frozen=True)
class Group:
    """How a weight is trained.

    Attributes:
        rate: whose learning rate it has: "lora", "sam_encoder", "sam_decoder" (the rest of SAM 2) or "rest".
        decays: whether weight decay acts on it.
    """

    rate: str
    decays: bool


Predicate = Callable[[tuple[Any, ...], Any], bool]
"""Of a key path and what lies there."""


def trained(names: Sequence[str]) -> Predicate:
    """A predicate over key paths, as ``nnx.split`` and ``nnx.state`` take: whether a weight is trained.

    Args:
        names: of ``PARTS``, as the reference's tuning modules; "lora" for adapters, "all" (alone) for everything.

    Raises:
        UserError: an unknown name, no name, or "all" beside others.
    """
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        near = difflib.get_close_matches(unknown[0], PARTS, n=1, cutoff=0)[0]
        raise UserError(f"{unknown[0]!r} is no part to train: expected some of {', '.join(PARTS)}; did you mean {near!r}?")
    if not names:
        raise UserError(f"nothing to train: name at least one of {', '.join(PARTS)}")
    if ALL in names and len(names) > 1:
        raise UserError(f"{', '.join(names)}: 'all' trains every weight, so name it alone (and add no LoRA adapters)")
    prefixes = tuple(prefix for name in names for prefix in PARTS[name])
    adapters = LORA in names or ALL in names

    def predicate(path: KeyPath, value: Any) -> bool:
        if path[-1] in ADAPTERS:
            return adapters
        return path[-1] not in CONSTANTS and _below(path, prefixes)

    return predicate


def group_of(path: KeyPath) -> Group:
    """The group of the weight at a key path, given that it is trained."""
    norm = any(str(part).startswith("norm") for part in path) and _below(path, LAYER_NORMS)
    return Group(_rate(path), not (path[-1] == "bias" or norm))


def groups(params: Any) -> Any:
    """A tree like ``params`` (an ``nnx.State``, nested dictionaries or a module) with each array's ``Group`` in its place."""
    return jax.tree_util.tree_map_with_path(lambda keys, _: group_of(key_path(keys)), params)


def matrices(params: Any) -> Any:
    """A tree like ``params`` that says which arrays are matrices of products, and along which axes: linear layers [..., out, in], each layer of a stack by
    itself, and convolutions [out, in, height, width] over more than one input; None for tables of embeddings and everything else.
    """
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: _matrix(key_path(keys), leaf), params)


def _matrix(path: KeyPath, leaf: Any) -> MuonDimensionNumbers | None:
    own = leaf.ndim - ("blocks" in path)
    if path[-1] != "weight" or path[:2] in PARTS["embedding"] or own not in (2, 4) or leaf.shape[1 - own] == 1:
        return None
    return MuonDimensionNumbers(tuple(range(1 - own, 0)), -own)


def _rate(path: KeyPath) -> str:
    if path[-1] in ADAPTERS:
        return LORA
    if _below(path, SAM_ENCODER):
        return "sam_encoder"
    return "sam_decoder" if path[0] == "sam2" else "rest"


def _below(path: KeyPath, prefixes: Sequence[KeyPath]) -> bool:
    return any(path[: len(prefix)] == prefix for prefix in prefixes)
