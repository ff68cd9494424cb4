"""Canonical names of tensors: the older names, under which UniPixel's checkpoints are saved, whatever name a file uses."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from unipixel_jax.errors import UserError

_T = TypeVar("_T")

PEFT = "base_model.model."
"""The prefix that peft puts in front of every name."""

NEWER = (("model.language_model.", "model."), ("model.visual.", "visual."))
"""Beginnings of names in memory (transformers >= 4.52), with those in saved checkpoints."""

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
"""Parts of names that torch's wrappers add where a wrapped model is saved: DataParallel, `torch.compile`, FSDP, checkpointed activations, DeepSpeed."""


def require_printable(names: Iterable[str], where: object) -> None:
    """Check the names of a file's tensors before they are shown.

    Raises:
        UserError: a name holds control characters or half of a surrogate pair.
    """
    odd = next((name for name in names if not name.isprintable()), None)
    if odd is not None:
        raise UserError(f"{where} holds a tensor called {reprlib.repr(odd)}, which is no name; copy it again")


def unwrapped(name: str) -> str:
    """Return the name without the parts that wrappers add to it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def canonical(name: str) -> str:
    """Return the name that a saved UniPixel checkpoint gives the tensor.

    In memory, in adapters and in partial files the decoder is `model.language_model.` and the tower `model.visual.` (transformers >= 4.52); saved
    checkpoints have `model.` and `visual.`. peft adds a prefix, and `base_layer` inside the modules that it wraps; other wrappers add parts of their own.
    """
    name = unwrapped(name).replace(".base_layer.", ".")
    while name.startswith(PEFT):
        name = name.removeprefix(PEFT)
    for new, old in NEWER:
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def newer(name: str) -> str:
    """Return the name that a canonical name has in memory, in adapters and in partial files, without peft's prefix."""
    for new, old in NEWER:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def renamed(tensors: Mapping[str, _T], where: object) -> dict[str, _T]:
    """Return the mapping under canonical names.

    Raises:
        UserError: two names mean the same tensor.
    """
    out: dict[str, _T] = {}
    for name, tensor in tensors.items():
        if canonical(name) in out:
            raise UserError(f"{where} holds {canonical(name)} twice, once as {name}; remove one of the two")
        out[canonical(name)] = tensor
    return out
