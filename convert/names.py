"""The older names, under which UniPixel's checkpoints are saved, for tensors named in any of the ways that occur."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from unipixel_jax.errors import UserError

_T = TypeVar("_T")

PEFT = "base_model.model."
"""What peft puts in front of every name."""

NEWER = (("model.language_model.", "model."), ("model.visual.", "visual."))
"""Beginnings of names in memory (transformers >= 4.52) and in saved checkpoints."""


def canonical(name: str) -> str:
    """The name as a saved UniPixel checkpoint has it.

    In memory, in adapters and in partial files the decoder is `model.language_model.` and the tower `model.visual.` (transformers >= 4.52); saved
    checkpoints have `model.` and `visual.`. peft adds a prefix, and `base_layer` inside the modules that it wraps.
    """
    name = name.removeprefix(PEFT).replace(".base_layer.", ".")
    for new, old in NEWER:
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def newer(name: str) -> str:
    """A canonical name as it is in memory, in adapters and in partial files, without peft's prefix."""
    for new, old in NEWER:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def renamed(tensors: Mapping[str, _T], where: object) -> dict[str, _T]:
    """The mapping under canonical names.

    Raises:
        UserError: two names mean the same tensor.
    """
    out: dict[str, _T] = {}
    for name, tensor in tensors.items():
        if canonical(name) in out:
            raise UserError(f"{where} holds {canonical(name)} twice, once as {name}; remove one of the two")
        out[canonical(name)] = tensor
    return out
