"""SAM 2.1 on its own, loaded from whatever holds its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
from jax.typing import DTypeLike

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.convert.sam2 import PREFIX, read_official
from unipixel_jax.core.checkpoint import restore_leaves
from unipixel_jax.core.files import PARAMS
from unipixel_jax.core.params import abstract, filled, shapes
from unipixel_jax.core.stored import has_arrays
from unipixel_jax.errors import UserError
from unipixel_jax.hub.resolve import one_file
from unipixel_jax.models.sam2.tracker import Sam2
from unipixel_jax.models.unipixel import abstract_model

OFFICIAL = ("sam2*.pt", "sam2*.safetensors")
"""The names of files that hold SAM 2.1 alone."""


def load_sam2(
    path: str | Path, dtype: DTypeLike = "float32", image_size: int | None = None, *, revision: str | None = None, token: str | None = None
) -> Sam2:
    """Load SAM 2.1 without a language model.

    Args:
        path: an official file (``sam2.1_hiera_large.pt``, say), a directory with one, or a converted directory of UniPixel, of whose weights only SAM 2's are
            read; or a Hub id such as ``facebook/sam2.1-hiera-large``, whose official file is downloaded.
        dtype: the dtype to cast the weights to, in which the model computes: float32 or bfloat16.
        image_size: side of the square image in pixels, a multiple of 32; None for the one of the configuration: 1024 for official files, 768 for UniPixel.
        revision, token: of the Hub, see ``hub.resolve.resolve``.

    Raises:
        UserError: nothing of the kind is there, or it is damaged.
    """
    root = one_file(path, OFFICIAL, revision=revision, token=token)
    if root.is_file():
        return read_official(root, dtype, image_size)
    if has_arrays(root / PARAMS):
        return _from_unipixel(root, dtype, image_size)
    found = sorted(file for pattern in OFFICIAL for file in root.glob(pattern))
    if len(found) != 1:
        raise UserError(f"{root} holds {len(found)} files called sam2*.pt, expected one, or a converted directory of UniPixel: name the file itself")
    return read_official(found[0], dtype, image_size)


def _from_unipixel(root: Path, dtype: DTypeLike, image_size: int | None) -> Sam2:
    config = UniPixelConfig.from_directory(root)
    sizes = config.sam2 if image_size is None else replace(config.sam2, image_size=image_size)
    whole = {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in shapes(abstract_model(config)).items()}
    wanted = {path: leaf for path, leaf in whole.items() if path[0] == PREFIX}
    arrays = restore_leaves(root / PARAMS, wanted, {path: leaf for path, leaf in whole.items() if path not in wanted})
    return filled(abstract(lambda rngs: Sam2(sizes, rngs)), {path[1:]: array for path, array in arrays.items()})
