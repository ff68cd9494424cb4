"""A directory that appears only when it is complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from unipixel_jax.errors import UserError


def require_free(target: Path, force: bool, sources: Iterable[Path] = ()) -> None:
    """Check that `target` may be written.

    Raises:
        UserError: it is a file, or not empty and `force` is off, or a source lies in it.
    """
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; expected a directory to write to")
    inside = [source for source in sources if source.resolve().is_relative_to(target.resolve())]
    if inside:
        raise UserError(f"{inside[0]} lies in the output {target}; choose another output")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise UserError(f"{target} exists and is not empty; choose another output, or replace it with --force")


@contextmanager
def new_directory(target: Path, force: bool, nbytes: int, sources: Iterable[Path] = ()) -> Iterator[Path]:
    """A temporary directory beside `target` that becomes `target` at the end of the block, and vanishes at any error or interruption.

    Args:
        target: the directory to make; an old one is replaced only with `force`, and only at the end.
        force: whether it may be.
        nbytes: how much will be written, to say at once that the disk has no room for it.
        sources: what is read meanwhile, and so may not lie in `target`.

    Raises:
        UserError: `require_free`, too little room, or the disk refuses.
    """
    require_free(target, force, sources)
    target = target.absolute()
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        room = shutil.disk_usage(target.parent).free
        if room < nbytes:
            raise UserError(f"{target.parent} has {room / 1e9:.1f} GB of room, {nbytes / 1e9:.1f} GB are needed; free some or choose another disk")
        partial.mkdir()
        yield partial
        require_free(target, force, sources)  # another conversion may have written there meanwhile
        _replace(partial, target)
    except OSError as error:
        raise UserError(f"{target} could not be written: {error.strerror or error} ({error.filename or target.parent}); choose another output") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(partial: Path, target: Path) -> None:
    if not target.exists():
        partial.rename(target)
        return
    old = partial.with_name(partial.name.replace(".partial-", ".partial-old-"))
    target.rename(old)
    partial.rename(target)
    shutil.rmtree(old)


def _remove_abandoned(target: Path) -> None:
    """Delete what a killed conversion to the same place left, which nobody else will."""
    for left in target.parent.glob(f".{target.name}.partial-*"):
        owner = left.name.rpartition("-")[2]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(left, ignore_errors=True)
