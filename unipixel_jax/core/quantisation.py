"""How the language model's weights are quantised: the settings, which files and programs share. The module needs nothing but Python.

Linear weights of the language model's blocks become whole numbers with a scale for each row or, in groups, for each stretch of a row. The tables of the
vocabulary always become int8 with a scale for each row, since a token reads a row of the embedding and each of its scores comes from a row of the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from unipixel_jax.core.fields import ConfigError
from unipixel_jax.core.trees import KeyPath
from unipixel_jax.errors import UserError

BITS: Mapping[str, int] = {"int8": 8, "int4": 4}
"""The bits of a weight by the name of its dtype."""
GROUPS: Mapping[str, int | None] = {"int8": None, "int4": 32}
"""The group of each dtype where none is given. A scale for a whole row would leave int4 too coarse (docs/quantise.md)."""
KEY = "quantization_config"
"""The key of ``config.json`` under which the settings stand, as in transformers."""
SCALES = "scales"
"""The name of the array of scales beside a quantised ``weight``."""


@dataclass(frozen=True)
class Quantisation:
    """How weights are quantised.

    Attributes:
        weights: the dtype of the weights of the blocks, a key of ``BITS``.
        group: how many neighbouring weights of a row share a scale; None for all of the row.
        int8_activations: whether products of many rows round their inputs to int8 too, with a scale for each token. It is a choice of a run and is not
            written to files.
    """

    weights: str
    group: int | None = None
    int8_activations: bool = False

    def __post_init__(self) -> None:
        if self.weights not in BITS:
            raise UserError(f"weights {str(self.weights)[:40]!r} cannot be had: expected one of {', '.join(BITS)}")
        if self.group is not None and (type(self.group) is not int or not 2 <= self.group <= 65_536 or self.group % 2):
            raise UserError(f"a group of {str(self.group)[:40]} weights cannot be had: expected an even number from 2 to 65536")
        if self.int8_activations and self.group is not None:
            raise UserError(f"int8 activations need one scale for each row of weights, not for groups of {self.group}: use int8 weights without groups")

    def __str__(self) -> str:
        return self.weights if self.group is None else f"{self.weights} in groups of {self.group}"

    @classmethod
    def of(cls, weights: str | Quantisation, group: int | None = None) -> Quantisation:
        """Return the settings of a dtype with a group, or where it is None with the dtype's own of ``GROUPS``; settings are returned as they are.

        Raises:
            UserError: there is no such dtype or group.
        """
        return weights if isinstance(weights, Quantisation) else cls(weights, GROUPS.get(weights) if group is None else group)

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Quantisation | None:
        """Return the settings in the dictionary of a ``config.json``; None if its weights are not quantised.

        Raises:
            ConfigError: another program quantised them.
        """
        found = raw.get(KEY)
        if found is None:
            return None
        by_bits = {bits: name for name, bits in BITS.items()}
        if not isinstance(found, Mapping) or found.get("quant_method") != "qwix" or found.get("bits") not in by_bits:
            raise ConfigError(f"config.json has the {KEY} {str(found)[:200]}, expected one of `unipixel-jax convert quantise`, or full weights")
        return cls(by_bits[found["bits"]], found.get("group_size"))

    def written(self) -> dict[str, Any]:
        """Return the settings as they stand in a ``config.json``."""
        return {KEY: {"quant_method": "qwix", "bits": BITS[self.weights], "group_size": self.group}}

    def with_int8_activations(self) -> Quantisation:
        """Return the settings with int8 activations.

        Raises:
            UserError: the weights are in groups.
        """
        return replace(self, int8_activations=True)


def is_quantised(path: KeyPath) -> bool:
    """Return whether the array at a path of UniPixel's tree is quantised where the model is, with scales beside it."""
    if path[:1] != ("text",) or path[-1] != "weight":
        return False
    return path[1] in ("embed", "head") or (path[1] == "blocks" and not str(path[-2]).startswith("norm"))


def scales_of(path: KeyPath) -> KeyPath:
    """Return the path of the scales of a quantised array."""
    return (*path[:-1], SCALES)


def keeps_dtype(path: KeyPath, dtype: Any) -> bool:
    """Return whether an array of a model keeps its own dtype where all others are cast: whole numbers and their scales."""
    return path[-1] == SCALES or "int" in str(dtype)
