"""UniPixel in JAX: segment, track and discuss objects named in words, in images and video.

>>> from unipixel_jax import UniPixel, Point
>>> model = UniPixel.from_pretrained("PolyU-ChenLab/UniPixel-3B")   # downloaded and converted when it is first loaded
>>> prediction = model.segment("photo.jpg", "Please segment the dog.")
>>> prediction.objects[0].masks.shape                               # [frames, height, width]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unipixel_jax.config import UniPixelConfig
    from unipixel_jax.infer.prediction import Prediction
    from unipixel_jax.infer.predictor import UniPixel
    from unipixel_jax.infer.sam2 import Sam2Predictor
    from unipixel_jax.processing.prompts import Box, Mask, Point

# Loaded when first used, so that importing the package costs nothing.
_HOMES = {
    # the model
    "UniPixel": "unipixel_jax.infer.predictor",
    "UniPixelConfig": "unipixel_jax.config",
    "Sam2Predictor": "unipixel_jax.infer.sam2",
    # what it answers
    "Prediction": "unipixel_jax.infer.prediction",
    # what a user points at
    "Point": "unipixel_jax.processing.prompts",
    "Box": "unipixel_jax.processing.prompts",
    "Mask": "unipixel_jax.processing.prompts",
}

__all__ = ["Box", "Mask", "Point", "Prediction", "Sam2Predictor", "UniPixel", "UniPixelConfig"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
