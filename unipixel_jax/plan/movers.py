"""The places of a model that move the most bytes of main memory in a compiled program, in the model's own words."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from unipixel_jax.plan.hlo import Costs, Operation
from unipixel_jax.plan.scopes import METHOD

COUNT = 5
"""How many places a report names."""

_TRANSFORMS = re.compile(r"(?:transpose|jvp|vmap|shard_map|checkpoint|remat|custom_jvp|custom_vjp)\(")
_STRUCTURE = frozenset({
    "while", "body", "cond", "closed_call", "branch_0_fun", "branch_1_fun", "checkpoint", "remat", "rematted_computation", "pjit", "shard_map", "scan",
    "custom_vjp_call", "custom_jvp_call", "core_call", "value", "",
})  # fmt: skip
"""Parts of an ``op_name`` that say how the program is built, and not what computes."""
_WORDS = {
    "dot_general": "matrix product", "conv_general_dilated": "convolution", "pallas_call": "kernel", "dynamic_update_slice": "writing a slice",
    "dynamic_slice": "reading a slice", "slice": "reading a slice", "gather": "lookup", "scatter": "writing rows", "scatter-add": "adding rows",
    "convert_element_type": "conversion", "transpose": "transposition", "concatenate": "concatenation", "broadcast_in_dim": "filling", "copy": "copy",
    "copy-start": "copy", "all-gather": "all-gather", "all-reduce": "all-reduce", "reduce-scatter": "reduce-scatter", "fusion": "elementwise",
}  # fmt: skip
"""What an operation does, by its name in JAX or, where it has none, by its opcode; other names stand for themselves."""


@dataclass(frozen=True)
class Mover:
    """A place in the model, and what it does there.

    Attributes:
        place: the path of the module, such as "text.blocks.mlp.down"; "whole program" where the program's text does not say.
        what: what is done, such as "matrix product".
        bytes: bytes of main memory that one chip moves for it.
        share: of the bytes that the program moves.
    """

    place: str
    what: str
    bytes: float
    share: float

    def __str__(self) -> str:
        return f"{self.place}: {self.what}, {self.bytes / 1e9:.3g} GB ({self.share:.0%})"


def movers(costs: Costs, count: int = COUNT) -> tuple[Mover, ...]:
    """Return the places that move the most bytes, the largest first."""
    found: dict[tuple[str, str], float] = defaultdict(float)
    for operation in costs.operations:
        found[place_of(operation)] += operation.bytes
    largest = sorted(((size, *name) for name, size in found.items() if size), key=lambda entry: -entry[0])[:count]
    return tuple(Mover(place, what, size, size / costs.bytes) for size, place, what in largest)


def place_of(operation: Operation) -> tuple[str, str]:
    """Return the place of an operation and what it does, in words."""
    # XLA joins the names of what it fuses by ";"
    first = operation.op_name.split(";")[0]
    parts = [part for part in map(_plain, first.split("/")) if part not in _STRUCTURE]
    if "/" in first:
        name = parts.pop() if parts else ""
    else:  # an argument of the program, such as "model.text.embed.weight.value", of which XLA added a copy
        name, parts = "", [part for part in first.split(".")[1:] if part not in _STRUCTURE]
    if operation.opcode.startswith("copy"):
        name = ""
    what = _WORDS.get(name or operation.opcode, (name or operation.opcode).replace("_", " "))
    # a method says something where what it computes belongs to no module inside, such as the scores of the vocabulary in text.logits
    named = [part.removeprefix(METHOD) for i, part in enumerate(parts) if not part.startswith(METHOD) or i == len(parts) - 1]
    place = ".".join(named) or "whole program"
    if what == "matrix product" and re.search(r"(attn|attention)$", place):
        what = "attention scores or values"
    return place, f"{what}, backward" if "transpose(" in first else what


def _plain(part: str) -> str:
    """Return a part of an ``op_name`` without the transformations around it; empty for the name of a function of ``jax.jit``."""
    return "" if "jit(" in part else _TRANSFORMS.sub("", part).strip("()")
