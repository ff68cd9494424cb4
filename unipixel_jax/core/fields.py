"""Dataclasses whose fields are checked when they are made: each of its type and within its range."""

from __future__ import annotations

import dataclasses
import reprlib
from dataclasses import field
from typing import Any

from unipixel_jax.errors import UserError


class ConfigError(UserError):
    """A configuration that is not one of UniPixel's, with the key at fault and what was expected."""


def number(default: float, most: float, least: float = 1) -> Any:
    """A field with a number from ``least`` to ``most``."""
    return field(default=default, metadata={"range": (least, most)})


def numbers(default: tuple[int, ...], most: int, lengths: tuple[int, int], least: int = 1) -> Any:
    """A field with as many whole numbers from ``least`` to ``most``."""
    return field(default=default, metadata={"range": (least, most), "lengths": lengths})


class Checked:
    """A configuration whose fields are checked when it is made, so that no size in a file can exhaust the machine and none fails later.

    Raises:
        ConfigError: when a field is not of its type, or out of its range, or contradicts another.
    """

    PLACE = "config.json"
    """Where its fields lie in ``config.json``."""

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, spec.name)
            if (expected := _fault(spec, value)) is not None:
                raise ConfigError(f"{self.PLACE}: {spec.name} is {reprlib.repr(value)}, expected {expected}")
        for right, expected in self.rules():
            if not right:
                raise ConfigError(f"{self.PLACE}: {expected}")

    def rules(self) -> list[tuple[bool, str]]:
        """What fields must fulfil together, and how to say so."""
        return []


def _fault(spec: dataclasses.Field[Any], value: Any) -> str | None:
    """What was expected of a field that holds something else."""
    kind = str(spec.type)
    if kind == "bool":
        return None if isinstance(value, bool) else "true or false"
    if kind == "str":
        return None if isinstance(value, str) and len(value) <= 1000 else "a short text"
    if "range" not in spec.metadata:
        return None
    least, most = spec.metadata["range"]
    if kind.startswith("tuple"):
        fewest, longest = spec.metadata["lengths"]
        right = isinstance(value, tuple) and fewest <= len(value) <= longest and all(type(n) is int and least <= n <= most for n in value)
        return None if right else f"{_span(fewest, longest)} whole numbers from {least} to {most}"
    right = type(value) in ((int, float) if kind == "float" else (int,)) and least <= value <= most
    return None if right else f"{'a number' if kind == 'float' else 'a whole number'}, {_span(least, most)}"


def _span(least: float, most: float) -> str:
    return str(least) if least == most else f"{least} to {most}"
