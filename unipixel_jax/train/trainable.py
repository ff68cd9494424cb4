"""Which weights are trained, with which learning rate, and which of them decay, all decided by path.

Reference: unipixel/train/train.py and custom_trainer.py, create_optimizer.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
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
"""The parts of the model that can be trained, by name: a part is all weights below some paths, and ``lora`` is the adapters, wherever they are."""

ADAPTERS = ("lora_a", "lora_b")
"""The names of the weights of adapters."""
CONSTANTS = ("pe_matrix", "tem_pe_matrix")
"""The names of random Fourier matrices, which are buffers in the reference and so never trained."""
SAM_ENCODER = (("sam2", "hiera"), ("sam2", "neck"))
LAYER_NORMS = (("sam2", "hiera"), ("sam2", "mask_decoder", "transformer"), ("sam2", "memory_attention"))
"""The paths below which the reference's norms are torch's ``nn.LayerNorm``, whose weights do not decay. Its other norms are classes of their own (RMSNorm,
LayerNorm2d), which its optimizer does not recognise as norms: their weights decay."""


@dataclass(frozen=True)
class Group:
    """How a weight is trained.

    Attributes:
        rate: the group whose learning rate it has: "lora", "sam_encoder", "sam_decoder" (the rest of SAM 2) or "rest".
        decays: whether weight decay acts on it.
    """

    rate: str
    decays: bool


Predicate = Callable[[tuple[Any, ...], Any], bool]
"""A condition on the path of a weight and the weight."""


def trained(names: Sequence[str], others: Collection[KeyPath] = ()) -> Predicate:
    """Return a predicate for ``nnx.split`` and ``nnx.state`` that says whether a weight is trained.

    Args:
        names: keys of ``PARTS``, which are named as the reference's tuning modules; "lora" for adapters, "all" (alone) for everything.
        others: the paths of single weights that are trained besides.

    Raises:
        UserError: a name is unknown, there is none, or "all" stands beside others.
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
        return path[-1] not in CONSTANTS and (_below(path, prefixes) or path in others)

    return predicate


def group_of(path: KeyPath) -> Group:
    """Return the group of the weight at a path, given that it is trained."""
    norm = any(str(part).startswith("norm") for part in path) and _below(path, LAYER_NORMS)
    return Group(_rate(path), not (path[-1] == "bias" or norm))


def groups(params: Any) -> Any:
    """Return a tree like ``params`` (an ``nnx.State``, nested dictionaries or a module) with a ``Group`` in place of each array."""
    return jax.tree_util.tree_map_with_path(lambda keys, _: group_of(key_path(keys)), params)


def matrices(params: Any) -> Any:
    """Return a tree like ``params`` with the axes of each array that is the matrix of a product, and None for all other arrays.

    Matrices are the weights of linear layers [..., out, in], each layer of a stack by itself, and of convolutions [out, in, height, width] over more than one
    input channel. Tables of embeddings are none.
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
