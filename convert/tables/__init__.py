"""The tables of torch names and JAX paths, one for each part of the model."""

from __future__ import annotations

from unipixel_jax.config import UniPixelConfig

from ..rules import Rule
from .heads import head_rules
from .sam2 import sam2_rules
from .text import text_rules
from .vision import vision_rules


def all_rules(config: UniPixelConfig) -> list[Rule]:
    """Return all rules of the model that `config` describes; together they name each of its tensors once."""
    return [*text_rules(config.text), *vision_rules(config.vision), *sam2_rules(config.sam2), *head_rules()]
