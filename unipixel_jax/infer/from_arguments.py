"""The model that a command's options name."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unipixel_jax.infer.predictor import UniPixel


def model_of(args: argparse.Namespace) -> UniPixel:
    """Load the model of the options that ``arguments.add_loading`` adds; JAX is imported here and not before, for the sake of ``--help``.

    Raises:
        UserError: see ``UniPixel.from_pretrained``.
    """
    from unipixel_jax.infer.loading import EMBEDDED
    from unipixel_jax.infer.placement import shared_by
    from unipixel_jax.infer.predictor import UniPixel

    how = {"weights": args.weights, "activations": args.activations}
    return UniPixel.from_pretrained(args.model or EMBEDDED, args.dtype, revision=args.revision, **shared_by(args.tensor), **how)
