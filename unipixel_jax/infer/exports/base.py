"""What all formats share: a folder that is filled picture by picture, the names of classes, and the outlines of masks.

O objects, H height, W width of the pictures.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unipixel_jax.core.files import replacing, writable
from unipixel_jax.errors import UserError, needing
from unipixel_jax.infer.prediction import FrameResult

JPEG_QUALITY = 95
_ASKED = re.compile(
    r"(?:please\s+|(?:can|could) you\s+)?(?:segment|find)\s+(?:(?:the|an?|all)\s+)?(?P<name>.+?)"
    r"(?:\s+in th(?:is|e) (?:image|picture|photo|video|clip))?[.?!]?",
    re.IGNORECASE,
)
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, eq=False)
class Labelled:
    """A picture as an export writes it.

    Attributes:
        result: the pixels and the objects.
        name: the name of its files, without a suffix.
        classes: the number of each object's class [O].
    """

    result: FrameResult
    name: str
    classes: Sequence[int]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.result.pixels.shape[:2]
        return height, width


class Export(ABC):
    """A folder of results in one format.

    Attributes:
        folder: its path.
        labels: the name of each class, by its number from 1 on.
        tracked: whether the pictures are frames of one clip, in which an object keeps its number; each object is then a class of its own.
    """

    def __init__(self, folder: Path, *, resume: bool = False) -> None:
        """Choose the folder; nothing is written yet.

        Args:
            folder: it must not exist, or be empty: labels in these formats are often mended by hand, and must not be lost.
            resume: it may hold the files of an interrupted run, which are written again.

        Raises:
            UserError: no files can be written there, it holds files already, or a package is missing.
        """
        writable(folder / "0.png")
        if not resume and folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} holds files already, which are not replaced: move it away, or choose another folder")
        self.folder = folder
        self.labels: Mapping[int, str] = {}
        self.tracked = True

    def start(self, labels: Mapping[int, str], *, tracked: bool = True) -> None:
        """Take the attributes ``labels`` and ``tracked``, before the first picture."""
        self.labels, self.tracked = labels, tracked

    def add(self, result: FrameResult, name: str = "", classes: Sequence[int] | None = None) -> None:
        """Write a picture's files.

        Args:
            result: the picture and its objects.
            name: the name of its files, without a suffix; "" for the frame's number.
            classes: the number of each object's class [O]; None where each object is a class of its own.

        Raises:
            UserError: they cannot be written.
        """
        self._add(Labelled(result, name or f"{result.frame:06d}", result.objects if classes is None else classes))

    @abstractmethod
    def _add(self, picture: Labelled) -> None:
        """Write a picture's files; see ``add``."""

    def finish(self) -> None:  # noqa: B027
        """Write what comes after the last picture, if there was any.

        Raises:
            UserError: it cannot be written.
        """

    def _write_image(self, folder: str, picture: Labelled) -> str:
        """Write a picture as a JPEG to a folder inside this one, and return its name."""
        name = f"{picture.name}.jpg"
        with replacing(self.folder / folder / name) as aside:
            Image.fromarray(picture.result.pixels).save(aside, quality=JPEG_QUALITY)
        return name

    def _write_text(self, name: str, text: str) -> None:
        with replacing(self.folder / name) as aside:
            aside.write_text(text, encoding="utf-8")


def polygons(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """The outlines of a mask's connected parts, by OpenCV's ``findContours``. Holes are not among them, since formats of polygons know none.

    Args:
        mask: bool [H, W].

    Returns:
        The corners of each outline, x before y, in pixels, counted at the centres of the outermost pixels, so that the centre of the first pixel is 0.5
        [at least 3, 2], float64.
    """
    import cv2

    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    # Readers expect three corners; a part of one pixel, or a straight line of them, has fewer, and its last corner is repeated.
    corners = [contour.reshape(-1, 2).astype(np.float64) + 0.5 for contour in found]
    return [np.pad(part, ((0, max(0, 3 - len(part))), (0, 0)), mode="edge") for part in corners]


def has_holes(mask: NDArray[np.bool_]) -> bool:
    """Whether a part of a mask [H, W] surrounds pixels that do not belong to it, which ``polygons`` fills."""
    import cv2

    _, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return tree is not None and bool((tree[0, :, 3] >= 0).any())  # the last number of four is that of the outline around it


def require_opencv(name: str) -> None:
    """Check that outlines can be drawn, for the format of this name.

    Raises:
        UserError: OpenCV is not installed.
    """
    with needing("export", f"--format {name}"):
        import cv2  # noqa: F401


def class_name(prompt: str) -> str:
    """The name of the class that a prompt asks for: ``dog`` for "Please segment the dog.", and the words as they are where they ask in another way."""
    words = " ".join(prompt.split())
    found = _ASKED.fullmatch(words)
    return words if found is None or "<" in words else found["name"]


def labels_of(prompts: Sequence[str], owners: Sequence[int]) -> dict[int, str]:
    """A name for each object, by its number: its prompt's (``class_name``), followed by the number where several objects would have the same name.

    Args:
        prompts: all prompts.
        owners: the index of each object's prompt [O].
    """
    names = [class_name(prompts[owner]) for owner in owners]
    return {number: name if names.count(name) == 1 else f"{name} #{number}" for number, name in enumerate(names, start=1)}


def xml_text(text: str) -> str:
    """The text without characters that XML cannot hold."""
    return _NOT_IN_XML.sub("\ufffd", text)
