"""A model repository on the Hub: what it holds, and its download through huggingface_hub.

huggingface_hub is imported inside functions, since it takes half a second that only Hub ids need. It reads ``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN`` and
``HF_HUB_OFFLINE`` when it is imported.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import logging
import re
import reprlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unipixel_jax.convert.hf_config import COMPANIONS, UNIPIXEL
from unipixel_jax.convert.sources import ADAPTER_FILES, PARTIAL_FILE
from unipixel_jax.core.files import PARAMS, read_json_object
from unipixel_jax.core.stored import packed
from unipixel_jax.errors import UserError

from .progress import bars

log = logging.getLogger(__name__)

COMMIT = re.compile("[0-9a-f]{40}")
"""A full commit hash, which names a revision for ever."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where there is no room for a file."""

_ID = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?/[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+@=-]{0,199}")
_MAX_ID = 96
"""The most characters of an id (huggingface_hub's ``validate_repo_id``)."""

_ADAPTER = (*ADAPTER_FILES, PARTIAL_FILE, "adapter_config.json")
_MANIFEST = "manifest.json"


class UnreachableError(UserError):
    """The Hub gave no answer, so that only what is in the caches can be used."""


@dataclass(frozen=True)
class Repository:
    """What the Hub says of one revision of a model.

    Attributes:
        name: the Hub id, ``owner/name``.
        commit: the full hash of the revision's commit.
        files: the size in bytes of each file that a conversion needs, by its path in the repository.
        converted: whether these are a converted directory, which needs no conversion.
        license: the license that its model card names; None if it names none.
    """

    name: str
    commit: str
    files: Mapping[str, int]
    converted: bool
    license: str | None

    @property
    def nbytes(self) -> int:
        """The bytes of all files, of which weights are nearly all: about what a conversion writes."""
        return sum(self.files.values())

    def missing(self) -> int:
        """Return how many bytes are not in huggingface_hub's cache yet."""
        from huggingface_hub import try_to_load_from_cache

        return sum(size for name, size in self.files.items() if not isinstance(try_to_load_from_cache(self.name, name, revision=self.commit), str))


def require_id(text: str) -> None:
    """Check that a text which names nothing on this machine can be a Hub id.

    Raises:
        UserError: it cannot.
    """
    sound = _ID.fullmatch(text) and len(text) <= _MAX_ID and not any(part in text for part in ("--", "..")) and not text.endswith(".git")
    if not sound:
        raise UserError(f"{text[:200]!r} does not exist here and is no Hub id: expected a directory, or OWNER/NAME as in PolyU-ChenLab/UniPixel-3B")


def require_revision(text: str) -> None:
    """Check that a text can be a revision.

    Raises:
        UserError: it cannot.
    """
    if not _REVISION.fullmatch(text) or ".." in text or "//" in text:
        raise UserError(f"the revision {reprlib.repr(text)} cannot be one: expected a branch, a tag or a commit of the Hub's repository")


def look_up(name: str, revision: str | None, token: str | None) -> Repository:
    """Ask the Hub what a model's repository holds.

    Args:
        name: the Hub id.
        revision: a branch, a tag or a commit; None for the main branch.
        token: the user's token; None for the one of ``hf auth login`` or ``HF_TOKEN``.

    Raises:
        UnreachableError: the Hub does not answer, or is not to be asked (``HF_HUB_OFFLINE``).
        UserError: the Hub has no such model or revision, or does not let this user see it; or it holds nothing that can be used here.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise UnreachableError(f"{name} is not in the cache, and HF_HUB_OFFLINE forbids to ask the Hub: unset it to download the model, or name a directory")
    if token is not None and not (token.isascii() and token.isprintable() and token and " " not in token):
        raise UserError("the token is empty or holds a character that no token of the Hub has: expected one from the settings page of your account")
    with _explained(name, revision):
        info = HfApi(token=token).model_info(name, revision=revision, files_metadata=True)
    if not COMMIT.fullmatch(str(info.sha)):
        raise UserError(f"the Hub at {constants.ENDPOINT} names no commit for {name}: expected a server of the Hub's API; correct HF_ENDPOINT")
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    converted, files = _needed(sizes)
    if not files:
        raise UserError(f"{name} holds no weights that can be used here, but {_listed(sizes)}: expected a checkpoint of UniPixel, or a converted one")
    return Repository(name, str(info.sha), files, converted, _license(info.card_data))


def download(repository: Repository, revision: str | None, token: str | None) -> Path:
    """Download the files that are not in huggingface_hub's cache yet, and return the directory in which all lie.

    What kind of model it is stands in its config.json, which is read before the weights are asked for.

    Args:
        repository: what `look_up` returned.
        revision: what it was asked for, which huggingface_hub's cache remembers.
        token: as in `look_up`.

    Raises:
        UserError: it is another model, the Hub does not give the files to this user, the connection breaks, or the disk is full.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    name = repository.name
    with _explained(name, repository.commit, broken="the download broke off"):
        config = hf_hub_download(name, "config.json", revision=repository.commit, token=token)
        kind = read_json_object(config, "the repository is damaged").get("model_type")
        if kind != UNIPIXEL:
            raise UserError(f"{name} is another model (model_type {reprlib.repr(kind)}): expected UniPixel's, {UNIPIXEL!r}")
        files = [glob.escape(file) for file in repository.files]
        with bars(name) as options:
            directory = Path(snapshot_download(name, revision=revision, token=token, allow_patterns=files, **options))
    if directory.name != repository.commit:
        raise UserError(f"{name} changed on the Hub while it was downloaded: try again, or name the commit {repository.commit} as the revision")
    return directory


def download_one(name: str, patterns: Sequence[str], revision: str | None, token: str | None) -> Path:
    """Download the one file of a repository whose name fits, with the repository's config.json where it has one, and return its path.

    Args:
        name: the Hub id.
        patterns: names with ``*`` for any characters.
        revision, token: as in `look_up`.

    Raises:
        UserError: as `look_up` and `download`; or no file fits, or several do.
    """
    from huggingface_hub import HfApi, hf_hub_download, scan_cache_dir

    def fitting(names: Iterable[str]) -> list[str]:
        return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]

    try:
        with _explained(name, revision):
            info = HfApi(token=token).model_info(name, revision=revision, files_metadata=True)
    except UnreachableError:
        held = {file.file_path.name: file.file_path for repo in scan_cache_dir().repos if repo.repo_id == name for rev in repo.revisions for file in rev.files}
        found = fitting(held)
        if len(found) != 1:
            raise
        return held[found[0]]
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    found = fitting(sizes)
    if len(found) != 1:
        raise UserError(f"{name} holds {len(found)} files called {' or '.join(patterns)}, expected one, but {_listed(sizes)}")
    require_room(name, {download_folder(): sizes[found[0]]})
    with _explained(name, revision, broken="the download broke off"):
        if "config.json" in sizes:
            hf_hub_download(name, "config.json", revision=info.sha, token=token)
        with bars(name) as options:
            return Path(hf_hub_download(name, found[0], revision=info.sha, token=token, **options))


def downloaded(name: str, revision: str | None) -> Path | None:
    """Return the directory of a revision that an earlier download left in huggingface_hub's cache, without asking the Hub; None if there is none."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def download_folder() -> Path:
    """Return the folder that huggingface_hub downloads to."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def require_room(name: str, needs: Mapping[Path, int]) -> None:
    """Check that there is room for what is to be written, before anything is.

    Args:
        name: the model, for the message.
        needs: the bytes that each folder needs; folders on the same disk share its room.

    Raises:
        UserError: a disk has too little.
    """
    disks: dict[int, dict[Path, int]] = {}
    for folder, nbytes in needs.items():
        place = next(path for path in (folder, *folder.parents) if path.exists())
        disks.setdefault(place.stat().st_dev, {})[folder] = nbytes
    for parts in disks.values():
        nbytes = sum(parts.values())
        place = next(path for folder in parts for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(place).free
        if free < nbytes:
            where = " and ".join(f"{size:,} in {folder}" for folder, size in parts.items() if size)
            raise UserError(f"{name} needs {nbytes:,} bytes ({where}), {free:,} are free: free some, or move the folders with HF_HOME and UNIPIXEL_JAX_CACHE")


def _needed(sizes: Mapping[str, int]) -> tuple[bool, dict[str, int]]:
    """Return whether a repository holds a converted directory, and the files that are needed of it with their sizes; none if it holds no weights.

    Programs and what lies in other folders are never taken. Where weights lie there as safetensors and as pickles, the pickles are left out.
    """
    arrays = [name for name in sizes if name == packed(Path(PARAMS)).name or name.startswith(f"{PARAMS}/")]
    if arrays and _MANIFEST in sizes:
        weights, converted = [*arrays, _MANIFEST], True
    else:
        top = [name for name in sizes if "/" not in name]
        weights = fnmatch.filter(top, "*.safetensors") or fnmatch.filter(top, "*.bin")
        weights += [f"{name}.index.json" for name in ("model.safetensors", "pytorch_model.bin") if weights and f"{name}.index.json" in sizes]
        converted = False
    kept = [*weights, *(name for name in ("config.json", *_ADAPTER, *COMPANIONS) if name in sizes)] if weights and "config.json" in sizes else []
    return converted, {name: sizes[name] for name in kept}


def _listed(names: Mapping[str, int]) -> str:
    shown = [name for name in names if not name.startswith(".")]
    return f"{', '.join(shown[:5])}{' and others' if len(shown) > 5 else ''}" if shown else "no files"


def _license(card: Any) -> str | None:
    found = getattr(card, "license", None)
    return found if isinstance(found, str) and re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,60}", found) else None


@contextmanager
def _explained(name: str, revision: str | None, broken: str = "") -> Iterator[None]:
    """Turn what huggingface_hub raises into a line that says what to do.

    Args:
        name: the Hub id.
        revision: the revision that was asked for.
        broken: what happened if the connection fails, as the beginning of a message; "" where that leaves the caches to use.

    Raises:
        UnreachableError: the connection failed or the Hub is out of order, and `broken` is "".
        UserError: anything else.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    hub = constants.ENDPOINT
    login = "log in with: hf auth login (or set HF_TOKEN)"
    try:
        yield
    except UserError:
        raise
    except GatedRepoError:
        raise UserError(f"{name} is gated: ask for access at {hub}/{name}, then {login}") from None
    except RevisionNotFoundError:
        raise UserError(f"{name} has no revision {revision!r}: expected a branch, a tag or a commit that {hub}/{name} lists") from None
    except RepositoryNotFoundError:
        raise UserError(f"{name} is no directory here, and no model at {hub} that you may see: correct the name; if the model is private, {login}") from None
    # The base class of HfHubHTTPError is that of the HTTP library, which is another one in each major version: all of its errors are caught.
    except (OSError, *HfHubHTTPError.__bases__) as error:  # type: ignore[misc]
        if isinstance(error, OSError) and error.errno in FULL:
            raise UserError(f"{name} could not be downloaded: no space is left in {constants.HF_HUB_CACHE}; free some, or move it with HF_HOME") from None
        cause = error.__cause__ or error if isinstance(error, LocalEntryNotFoundError) else error
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status in (401, 403):
            raise UserError(f"{hub} refuses to give {name} to you ({status}): check your rights at {hub}/{name}, then {login}") from None
        reason = f"it answers with status {status}" if status else str(cause).strip().split("\n")[0][:300] or type(cause).__name__
        if broken or (isinstance(error, OSError) and error.errno is not None and error.filename):
            raise UserError(f"{name}: {broken or 'the cache cannot be used'} ({reason}); try again, what is complete is kept") from None
        raise UnreachableError(
            f"{name} is neither a directory nor in the cache, and the Hub at {hub} cannot be reached ({reason}): connect and try again"
        ) from None
