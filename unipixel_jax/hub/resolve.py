"""From what a user names a model by to the converted directory that is loaded."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from unipixel_jax.convert import sources, to_jax
from unipixel_jax.convert.hf_config import COPY
from unipixel_jax.core.cache import VARIABLE, cache_folder
from unipixel_jax.core.files import PARAMS, read_json_object, replacing
from unipixel_jax.core.stored import has_arrays
from unipixel_jax.errors import UserError

from . import repository
from .repository import COMMIT, Repository, UnreachableError

log = logging.getLogger(__name__)

MODELS = "models"
"""The folder of converted checkpoints in the cache."""


def resolve(model: str | Path, *, revision: str | None = None, token: str | None = None) -> Path:
    """Return the converted directory of a model. What is not converted yet is, once, into the cache; what is not on this machine is downloaded before.

    Args:
        model: a converted directory, a torch checkpoint's directory, or a Hub id (``owner/name``). What exists on this machine wins over a Hub id.
        revision: a branch, a tag or a commit of the Hub's repository; None for its main branch.
        token: the user's token for the Hub; None for the one of ``hf auth login`` or ``HF_TOKEN``.

    Raises:
        UserError: there is no such model or revision, the Hub cannot be reached or does not give the model to this user, a disk has too little room, the
            checkpoint cannot be converted, or the cache is off and a conversion is needed. Nothing is left half written.
    """
    if is_local(model, revision):
        path = Path(model)
        return path if has_arrays(path / PARAMS) or not _is_checkpoint(path) else _converted_here(path)
    return _from_hub(str(model), revision, token)


def checkpoint(model: str | Path, *, revision: str | None = None, token: str | None = None) -> tuple[Path, dict[str, str]]:
    """Return the directory of a checkpoint to convert, downloaded if it is a Hub id, and what its manifest is to say of its origin.

    Args:
        model: as in ``resolve``.
        revision: as in ``resolve``.
        token: as in ``resolve``.

    Raises:
        UserError: as ``resolve``; what the directory holds is left to the conversion.
    """
    if is_local(model, revision):
        return Path(model), {}
    name = str(model)
    try:
        found = repository.look_up(name, revision, token)
    except UnreachableError:
        directory = repository.downloaded(name, revision)
        if directory is None:
            raise
        return directory, _origin(name, directory.name)
    repository.require_room(name, {repository.download_folder(): found.missing()})
    return repository.download(found, revision, token), _origin(name, found.commit, found.license)


def one_file(model: str | Path, patterns: Sequence[str], *, revision: str | None = None, token: str | None = None) -> Path:
    """Return a path on this machine as it is, or the one file of a Hub id whose name fits one of the patterns, downloaded.

    Args:
        model: a path, or a Hub id (``owner/name``).
        patterns: names with ``*`` for any characters.
        revision, token: as in ``resolve``.

    Raises:
        UserError: as ``resolve``; or the repository has no such file, or several.
    """
    return Path(model) if is_local(model, revision) else repository.download_one(str(model), patterns, revision, token)


def is_local(model: str | Path, revision: str | None) -> bool:
    """Return whether a model lies on this machine; else it can be a Hub id.

    Raises:
        UserError: it is neither; or a revision is given that cannot be one, or that is given for a directory.
    """
    try:
        here = bool(str(model)) and os.path.exists(model)
    except ValueError:  # a null character
        here = False
    if not here:
        repository.require_id(str(model))
    if revision is not None:
        if here:
            raise UserError(f"{model} is on this machine, where it has no revision {revision!r}: leave the revision out, or give a Hub id")
        repository.require_revision(revision)
    return here


def _is_checkpoint(path: Path) -> bool:
    """Return whether a directory holds torch's weights."""
    return any(path.glob("*.safetensors")) or any(path.glob("*.bin"))


def _converted_here(path: Path) -> Path:
    """Return the conversion in the cache of a torch checkpoint on this machine."""
    named = read_json_object(path / "config.json", COPY)
    parts = [path, *(found for key in ("base_model_path", "sam2_checkpoint") if (found := sources.find(named.get(key), path)))]
    target = _models(str(path)) / "local" / f"{path.resolve().name[:60]}-{_fingerprint(parts)}"
    with _alone(target):
        if not target.is_dir():
            _convert(path, target, {})
    return target


def _fingerprint(parts: list[Path]) -> str:
    """Return a digest of where files lie, and of their names, sizes and times of change; their contents are not read."""
    digest = hashlib.sha256()
    for part in parts:
        place = part.resolve()
        for file in sorted(file for file in place.iterdir() if file.is_file()) if place.is_dir() else [place]:
            state = file.stat()
            digest.update(repr((str(file), state.st_size, state.st_mtime_ns)).encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _from_hub(name: str, revision: str | None, token: str | None) -> Path:
    shelf = None if cache_folder() is None else _models(name) / name.replace("/", "--")
    known = _remembered(shelf, revision) if shelf else None
    if known and revision and COMMIT.fullmatch(revision):
        return known
    try:
        found = repository.look_up(name, revision, token)
    except UnreachableError as error:
        return _without_hub(name, revision, known, error)
    target = shelf / found.commit if shelf else None
    if target is None or not target.is_dir():
        if found.converted:
            repository.require_room(name, {repository.download_folder(): found.missing()})
            return repository.download(found, revision, token)
        target = _models(name) / name.replace("/", "--") / found.commit
        with _alone(target):
            if not target.is_dir():
                _download_and_convert(found, revision, target, token)
    _remember(target, revision)
    return target


def _without_hub(name: str, revision: str | None, known: Path | None, error: UnreachableError) -> Path:
    """Return the converted directory where the Hub gives no answer: the one that the revision stood for when it last did."""
    if known is None:
        directory = repository.downloaded(name, revision)
        if directory is None:
            raise error
        if has_arrays(directory / PARAMS):
            return directory
        known = _models(name) / name.replace("/", "--") / directory.name
        with _alone(known):
            if not known.is_dir():
                _convert(directory, known, _origin(name, directory.name))
        _remember(known, revision)
    log.debug("the Hub gives no answer, so %s is taken from %s", name, known)
    return known


def _download_and_convert(found: Repository, revision: str | None, target: Path, token: str | None) -> None:
    repository.require_room(found.name, {repository.download_folder(): found.missing(), target.parent: found.nbytes})
    _convert(repository.download(found, revision, token), target, _origin(found.name, found.commit, found.license))


def _convert(directory: Path, target: Path, origin: dict[str, str]) -> None:
    log.debug("converting %s", directory)
    source = sources.open_source(directory)
    try:
        to_jax.convert(replace(source, description={**source.description, **origin}), target)
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            reason = error.__cause__.strerror or error.__cause__
            raise UserError(f"{directory} could not be converted into {target.parent}: {reason}; make room there, or move the cache with {VARIABLE}") from error
        raise


def _origin(name: str, commit: str, license: str | None = None) -> dict[str, str]:
    return {"hub": name, "revision": commit, **({"license": license} if license else {})}


def _models(name: str) -> Path:
    """Return the folder of converted checkpoints.

    Raises:
        UserError: the cache is off.
    """
    cache = cache_folder()
    if cache is None:
        raise UserError(
            f"{name} is a torch checkpoint and {VARIABLE} is empty, so its conversion cannot be kept; name a folder there, "
            f"or convert it once with: unipixel-jax convert to-jax {name} {Path(name).name}-jax"
        )
    return cache / MODELS


def _reference(shelf: Path, revision: str | None) -> Path:
    """Return the file that says which commit a revision was when the Hub was last asked."""
    return shelf / f"{quote(revision or 'main', safe='')}.ref"


def _remember(target: Path, revision: str | None) -> None:
    """Write down which commit a revision is, so that the model is found when the Hub is not."""
    file = _reference(target.parent, revision)
    if not (revision and COMMIT.fullmatch(revision)) and not (file.is_file() and file.read_text(errors="replace") == target.name):
        with replacing(file) as aside:
            aside.write_text(target.name)


def _remembered(shelf: Path, revision: str | None) -> Path | None:
    """Return the converted directory of a revision as the Hub last named it; None if there is none."""
    file = _reference(shelf, revision)
    commit = revision if revision and COMMIT.fullmatch(revision) else file.read_text(errors="replace")[:64] if file.is_file() else ""
    return shelf / commit if COMMIT.fullmatch(commit) and (shelf / commit).is_dir() else None


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Let one process at a time make a directory; the others wait, and find it made.

    Raises:
        UserError: the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(target.with_name(f"{target.name}.lock"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.warning("another process is converting %s; waiting for it", target)
            lock.acquire()
    except OSError as error:
        advice = "make room there, or move" if error.errno in repository.FULL else "move"
        raise UserError(f"{target.parent} cannot be written ({error.strerror or error}): {advice} the cache with {VARIABLE}") from None
    try:
        yield
    finally:
        lock.release()
