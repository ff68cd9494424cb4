"""Files that are either complete or not there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from unipixel_jax.errors import UserError

PARAMS = "params"
"""Where a directory that a model runs from keeps its arrays."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, which takes its place once everything went well and vanishes otherwise.

    Missing folders are made. The temporary name keeps the suffix, by which writers choose their format.

    Raises:
        UserError: the file cannot be written.
    """
    target = Path(path)
    aside = target.with_name(f".{target.stem}.{os.getpid()}.part{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        os.replace(aside, target)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror or error}): choose a place with room where you may write") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()
