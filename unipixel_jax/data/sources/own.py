"""Users' own data: recognised by its name, and checked as a whole when it is opened, so that mistakes show before training begins."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from unipixel_jax.data.annotation import Annotation, FrameFiles, require_text
from unipixel_jax.data.sources.base import Filters, ListedSource
from unipixel_jax.data.sources.coco import load_coco
from unipixel_jax.data.sources.folder import load_folder
from unipixel_jax.data.sources.image_files import stored_size
from unipixel_jax.errors import UserError

PREFIX = "own:"


def is_own(name: str) -> bool:
    """Whether a source's name is a path to own data: it begins with ``own:``, has a separator, ends in ``.json``, or is a folder."""
    return name.startswith(PREFIX) or "/" in name or "\\" in name or name.endswith(".json") or Path(name).is_dir()


def open_own(name: str, filters: Filters) -> ListedSource:
    """Open a COCO-style JSON file or a folder, and look at every image and mask.

    Args:
        name: ``own:PATH`` or the path; it names the source too.
        filters: which samples to leave out.

    Raises:
        UserError: something does not fit; the message names its file or line.
    """
    path = Path(name.removeprefix(PREFIX)).absolute()
    if not path.exists():
        raise UserError(f"{path} does not exist: expected a COCO-style .json file, or a folder with images/, masks/ and sentences")
    if path.is_file() and path.suffix != ".json":
        raise UserError(f"{path} ends in {path.suffix or 'nothing'}, expected a COCO-style .json file or a folder")
    source = ListedSource(name, path.parent, "train", filters, partial(_load, path, name))
    for index in range(len(source)):
        check(source[index])
    return source


def check(annotation: Annotation) -> None:
    """Read all masks of an image, and look at its words.

    Raises:
        UserError: the words are no text, the image or a mask cannot be read, or a mask does not fit the image or is empty.
    """
    if not isinstance(annotation.media, FrameFiles):
        raise UserError(f"{annotation.name} has the media {annotation.media}, expected an image")
    require_text(annotation)
    size = stored_size(Path(str(annotation.media.paths[0])))
    for turn in annotation.turns:
        if turn.masks is None or not turn.masks.read([0], size).any(axis=(1, 2, 3)).all():
            raise UserError(
                f"{annotation.name}: the mask of {turn.text or turn.answer!r} is empty, expected at least one pixel: check the object's number or polygon"
            )


def _load(path: Path, name: str, root: Path, split: str, filters: Filters) -> list[Annotation]:
    if split != "train":
        raise UserError(f"own data has no split {split!r}, expected 'train': keep other images in another file or folder")
    return load_folder(path, name) if path.is_dir() else load_coco(path, name)
