"""Output directories, which appear only when they are complete, and replace nothing but what a conversion wrote."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from unipixel_jax.core.files import PARAMS, aside_of, remove_abandoned, require_shallow
from unipixel_jax.core.stored import packed
from unipixel_jax.errors import UserError

from .hf_config import COMPANIONS
from .manifest import NAME as MANIFEST
from .safetensors_io import INDEX, SINGLE, read_index
from .sources import ADAPTER_FILES, PARTIAL_FILE

WEIGHTS = (SINGLE, INDEX, ADAPTER_FILES[0], PARTIAL_FILE)
"""The files, besides shards, that torch's weights are written to."""

OURS = frozenset({"config.json", "adapter_config.json", MANIFEST, packed(Path(PARAMS)).name, *WEIGHTS, *COMPANIONS})
"""The names of all files, besides shards, that a conversion writes."""

ARRAYS = re.compile(r"_METADATA|_CHECKPOINT_METADATA|_sharding|commit_success\.txt|\.zarray|[0-9.]+")
"""The names of files in a folder of arrays: Orbax's own, headers, and chunks."""

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Constants of the system call renameat2 (linux/fcntl.h, linux/fs.h)."""


def require_free(target: Path, force: bool, sources: Iterable[Path] = ()) -> None:
    """Check that `target` may be written.

    Raises:
        UserError: it is a file, a link, a mount point, the working directory or one above it; or a source lies in it; or it is not empty, and `force` is off or
            it holds anything that no conversion wrote.
    """
    if target.is_symlink():
        raise UserError(f"{target} is a link to {os.readlink(target)}; name that directory itself, or choose another output")
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; expected a directory to write to")
    place = target.resolve()
    inside = [source for source in sources if source.resolve().is_relative_to(place)]
    if inside:
        raise UserError(f"{inside[0]} lies in the output {target}; choose another output")
    if Path.cwd().is_relative_to(place) or os.path.ismount(place):
        raise UserError(f"{target} is the working directory, one above it or a mount point, which cannot be replaced; choose another output")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not force:
        raise UserError(f"{target} exists and is not empty; choose another output, or replace it with --force")
    foreign = _foreign(target)
    if foreign:
        raise UserError(f"{target} {foreign}, which no conversion wrote, so --force does not replace it; move that away or choose another output")


@contextmanager
def new_directory(target: Path, force: bool, nbytes: int, sources: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield a temporary directory beside `target`, which becomes `target` at the end of the block and is removed at any error or interruption.

    Args:
        target: the directory to make; an old one is replaced only with `force`, and only at the end.
        force: whether a directory that is not empty may be replaced.
        nbytes: how many bytes will be written; if the disk has no room for them, nothing is begun.
        sources: files and directories that are read meanwhile, and so may not lie in `target`.

    Raises:
        UserError: `require_free` refuses the directory, the disk has too little room, or the directory cannot be written.
    """
    target = Path(os.path.abspath(target))
    require_shallow(target)
    partial = aside_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _put_back(target)
        remove_abandoned(target.parent)
        require_free(target, force, sources)
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


def _foreign(directory: Path) -> str | None:
    """Return, as the middle of a message, what a directory holds that no conversion writes, or that it is no converted model; None if neither is so."""
    names = {path.name for path in directory.iterdir()}
    written = (OURS | _shards(directory)) & names
    jax = {MANIFEST, "config.json"} <= names and bool({PARAMS, packed(Path(PARAMS)).name} & names)
    torch = "config.json" in names and any(name.endswith(".safetensors") for name in written)
    if not jax and not torch:
        return f"holds {min(names)} and is no converted model"
    odd = sorted(path for path in directory.iterdir() if path.is_symlink() or not (path.is_file() if path.name in written else _is_params(path) and jax))
    if PARAMS in names and jax:
        inside = (Path(folder) / name for folder, folders, files in os.walk(directory / PARAMS) for name in (*folders, *files))
        odd += [path for path in inside if path.is_symlink() or not (path.is_dir() or ARRAYS.fullmatch(path.name))]
    return f"holds {odd[0].relative_to(directory)}" if odd else None


def _is_params(path: Path) -> bool:
    return path.name == PARAMS and path.is_dir() and not path.is_mount()


def _shards(directory: Path) -> set[str]:
    """Return the files that a directory's own index lists; none if there is no index or it is damaged."""
    try:
        return set(read_index(directory / INDEX)) if (directory / INDEX).is_file() else set()
    except UserError:
        return set()


def _replace(partial: Path, target: Path) -> None:
    """Put a complete directory in the place of `target`.

    Where the file system can exchange two names, `target` exists at every moment, as the old directory or the new one.
    """
    if not target.exists() or not any(target.iterdir()):
        partial.rename(target)
    elif not _exchange(partial, target):
        old = _replaced(target)
        target.rename(old)
        try:
            partial.rename(target)
        except BaseException:
            old.rename(target)
            raise
        old.rename(partial)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two directories' names at once; return False where the system or the file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    return bool(rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0)


def _replaced(target: Path) -> Path:
    """Return where the old directory lies while the new one takes its name, where that takes two steps."""
    return target.with_name(f".unipixel-replaced-{zlib.crc32(os.fsencode(target.name)):08x}")


def _put_back(target: Path) -> None:
    """Clean up after a conversion that was killed: give the old directory its name again if the new one is not there, and delete it if it is."""
    old = _replaced(target)
    if not old.is_dir():
        return
    if not target.exists():
        with contextlib.suppress(OSError):
            old.rename(target)
    elif _foreign(target) is None:
        shutil.rmtree(old, ignore_errors=True)
