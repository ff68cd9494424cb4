"""Dataclasses that check the type and the range of each field when they are made."""

from __future__ import annotations

import dataclasses
import reprlib
from dataclasses import field
from typing import Any

from unipixel_jax.errors import UserError


class ConfigError(UserError):
    """A configuration that UniPixel cannot have; the message names the field and what was expected of it."""


def number(default: float, most: float, least: float = 1) -> Any:
    """Declare a field that holds a number from ``least`` to ``most``."""
    return field(default=default, metadata={"range": (least, most)})


def numbers(default: tuple[int, ...], most: int, lengths: tuple[int, int], least: int = 1) -> Any:
    """Declare a field that holds a tuple of whole numbers from ``least`` to ``most``; ``lengths`` are the smallest and the largest length of the tuple."""
    return field(default=default, metadata={"range": (least, most), "lengths": lengths})


class Checked:
    """A configuration that checks its fields when it is made, so that no size in a file can exhaust the machine or cause a failure later.

    Raises:
        ConfigError: a field has the wrong type, is out of its range, or contradicts another field.
    """

    PLACE = "config.json"
    """Where the fields stand in ``config.json``, for messages."""

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, spec.name)
            if (expected := _fault(spec, value)) is not None:
                raise ConfigError(f"{self.PLACE}: {spec.name} is {reprlib.repr(value)}, expected {expected}")
        for right, expected in self.rules():
            if not right:
                raise ConfigError(f"{self.PLACE}: {expected}")

    def rules(self) -> list[tuple[bool, str]]:
        """Return the conditions that fields must fulfil together: whether each holds, and the message for where it does not."""
        return []


def _fault(spec: dataclasses.Field[Any], value: Any) -> str | None:
    """Return what was expected of a field whose value is wrong; None for a right value."""
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
