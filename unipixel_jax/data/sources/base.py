"""Shared by all families of sources: a list of samples that is read when first needed, filters and splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from unipixel_jax.data.annotation import Annotation, FrameFiles, VideoFrames
from unipixel_jax.data.files import note_files
from unipixel_jax.errors import UserError

T = TypeVar("T")

_OTHER_LAYOUT = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError)
"""Errors that loaders raise for annotations that lack a key or are of another kind than they expect."""


@dataclass(frozen=True)
class Filters:
    """Which samples to leave out; ``None`` means no limit. The reference's names in ``DataArguments`` are ``min_video_frames``, ``min_num_words``, ....

    Attributes:
        min_frames: fewest frames of the clip before sampling. A video whose frames are not listed counts as one frame, as it does in the reference.
        max_frames: most frames of the clip before sampling.
        min_words: fewest words of the texts; only region and multimodal sources look at words.
        max_words: most words of the texts.
        min_seconds: shortest video; only multimodal sources know its length, and a sample that does not tell it passes.
        max_seconds: longest video.
    """

    min_frames: int | None = None
    max_frames: int | None = None
    min_words: int | None = None
    max_words: int | None = None
    min_seconds: float | None = None
    max_seconds: float | None = None

    def allow(self, *, frames: int | None = None, words: int | None = None, seconds: float | None = None) -> bool:
        """Whether a sample with that many frames, words and seconds stays; those that are None are not looked at."""
        limits = ((frames, self.min_frames, self.max_frames), (words, self.min_words, self.max_words), (seconds, self.min_seconds, self.max_seconds))
        return not any(value is not None and ((low is not None and value < low) or (high is not None and value > high)) for value, low, high in limits)

    def __str__(self) -> str:
        """The limits that are set: "max_frames 500, max_words 200"."""
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items() if value is not None) or "none"


Loader: TypeAlias = Callable[[Path, str, Filters], Sequence[Annotation]]
"""A function that reads all samples of a split below a data root. It filters by words and seconds; ``ListedSource`` filters by frames."""


@dataclass(frozen=True)
class ListedSource:
    """A source whose samples are a list in memory, read when first asked for; a copy sent to another process reads them again.

    Attributes:
        name: the source's name.
        root: the folder that holds all data sets.
        split: the split of the data set.
        filters: which samples to leave out.
        load: reads the samples; a function of a module, so that it can be pickled.
    """

    name: str
    root: Path
    split: str
    filters: Filters
    load: Loader

    def __len__(self) -> int:
        return len(self._annotations)

    def __getitem__(self, index: int) -> Annotation:
        return self._annotations[index]

    @cached_property
    def data_types(self) -> Sequence[str]:
        """The ``data_type`` of every sample."""
        return tuple(a.data_type for a in self._annotations)

    @cached_property
    def _annotations(self) -> Sequence[Annotation]:
        with note_files() as files:
            try:
                found = self.load(self.root, self.split, self.filters)
            except UserError:
                raise
            except _OTHER_LAYOUT as error:
                raise UserError(
                    f"{self.name} ({self.split}): {_wrong(error)} {self._where(files)}; expected annotations as docs/data.md tells: "
                    "copy them again, or leave the data set out"
                ) from error
        kept = [a for a in found if self.filters.allow(frames=_frame_count(a))]
        if not kept:
            raise UserError(
                f"{self.name} ({self.split}) has no samples: {len(found)} were found {self._where(files)} and the filters left none; expected at least one"
            )
        return kept

    def _where(self, files: Sequence[Path]) -> str:
        """The file that was read last, and the one before, which may be as much at fault; the root if no file was."""
        return f"in {' or '.join(map(str, files[:-3:-1]))}" if files else f"below {self.root}"

    def __getstate__(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("name", "root", "split", "filters", "load")}


def choose_split(source: str, split: str, known: Mapping[str, T]) -> T:
    """The value that belongs to a split.

    Raises:
        UserError: the source has no such split.
    """
    if split not in known:
        raise UserError(f"{source} has no split {split!r}, expected one of: {', '.join(known)}")
    return known[split]


def _wrong(error: Exception) -> str:
    """The fault in the files that an error of ``_OTHER_LAYOUT`` tells of, in words."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return f"something is of another kind ({type(error).__name__}: {error})"


def _frame_count(annotation: Annotation) -> int | None:
    if annotation.task == "multimodal":
        return None
    if isinstance(annotation.media, FrameFiles):
        return len(annotation.media.paths)
    return len(annotation.media.keep or (0,)) if isinstance(annotation.media, VideoFrames) else None
