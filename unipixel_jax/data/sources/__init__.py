"""All sources of training data by name. This folder has one file for each family of data sets.

A family's file has a table ``LOADERS`` from names to functions that read the samples. To add a source, write such a function and name it there.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from unipixel_jax.data.annotation import Source
from unipixel_jax.data.sources import classes, expressions, groundmore, inst_it, llava, osprey, parts, reason_seg, ref_sav, refcoco, revos, vicas, videorefer
from unipixel_jax.data.sources.base import Filters, ListedSource, Loader
from unipixel_jax.data.sources.own import is_own, open_own
from unipixel_jax.data.synthetic.source import SHAPES, ShapesSource
from unipixel_jax.errors import UserError

SOURCES: dict[str, Loader] = {
    # segmentation
    **revos.LOADERS,
    **expressions.LOADERS,
    **ref_sav.LOADERS,
    **groundmore.LOADERS,
    **vicas.LOADERS,
    **reason_seg.LOADERS,
    **classes.LOADERS,
    **parts.LOADERS,
    **refcoco.LOADERS,
    # referring, region, memory
    **videorefer.LOADERS,
    **inst_it.LOADERS,
    **osprey.LOADERS,
    # multimodal
    **llava.LOADERS,
}


def open_source(name: str, root: str | Path, split: str = "train", filters: Filters | None = None) -> Source:
    """Open a source; its annotation files are read when it is first asked for a sample or its length. Own data is read and checked at once.

    Args:
        name: one of ``SOURCES``, a path to own data, perhaps after ``own:``, or a data set of tensorflow-datasets below the root, after ``tfds:``.
        root: the folder that holds all data sets (the reference's ``data``); own data does without.
        split: "train", or another split that the source has.
        filters: which samples to leave out; none by default. A packed data set was filtered when it was packed, so it takes those same filters, or None.

    Raises:
        UserError: there is no such source, or no such folder; something is wrong with own data; or a data set was packed with other filters.
    """
    if name.startswith("tfds:"):
        from unipixel_jax.data.tfds.source import open_tfds  # an extra, and slow to import

        return open_tfds(name, root, split, filters)
    if name in SHAPES:
        return ShapesSource(name)
    if name not in SOURCES and is_own(name):
        return open_own(name, filters or Filters())
    if name not in SOURCES:
        near = difflib.get_close_matches(name, [*SOURCES, *SHAPES], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join([*SOURCES, *SHAPES])}, or a path to own data"
        raise UserError(f"there is no source {name!r}: {hint}")
    if not Path(root).is_dir():
        raise UserError(f"the data root {root} is not a folder: give the folder that holds the data sets")
    return ListedSource(name, Path(root), split, filters or Filters(), SOURCES[name])
