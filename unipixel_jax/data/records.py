"""Annotations stored as records with all that they refer to: the content of files, and masks as COCO's run lengths.

The same examples are drawn from a record as from the annotation that it was made of, given the same random numbers, since nothing is drawn, resized or
encoded again when it is made: images and videos are the bytes of their files, and masks are stored at the size of the frames, for every frame that counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.core.files import require_regular_file
from unipixel_jax.data.annotation import Annotation, FrameFiles, MaskReader, Photo, Task, Turn, VideoFrames
from unipixel_jax.data.frames import counting_frames
from unipixel_jax.data.masks import LabelClasses, Tracks
from unipixel_jax.data.regions import Size
from unipixel_jax.errors import UserError
from unipixel_jax.processing.media import Content, list_frames, read_media
from unipixel_jax.processing.rle import encode_mask, mask_size

_FRAMES_AT_ONCE = 16
"""Frames whose masks are decoded at a time, which bounds the memory."""

_TASK = "role"
"""What records on disk call the task; data sets that are packed keep being read."""

_BROKEN = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""Errors that a record raises if it is not JSON or holds other values than expected."""


@dataclass(frozen=True)
class Record:
    """An annotation that needs no other files.

    Attributes:
        text: everything but the files, as JSON.
        files: the bytes of the files, in the order in which the media names them.
    """

    text: str
    files: tuple[bytes, ...]


@dataclass(frozen=True)
class _Stored:
    """Media with the content of its files, the number of its frames that count, and their size."""

    media: FrameFiles | VideoFrames | Photo | None
    count: int = 0
    size: Size = (0, 0)

    @property
    def files(self) -> tuple[Content, ...]:
        """The files in order."""
        if isinstance(self.media, FrameFiles):
            return tuple(p for p in self.media.paths if isinstance(p, Content))
        path = None if self.media is None else self.media.path
        return path if isinstance(path, tuple) else (path,) if isinstance(path, Content) else ()


def encode(annotation: Annotation) -> Record:
    """Make a record of an annotation by reading all of its files and masks.

    Raises:
        UserError: a file or mask is missing or broken.
    """
    stored = _store(annotation.media)
    turns: list[Turn] = []
    for turn in annotation.turns:
        turns += turn.masks.turns() if isinstance(turn.masks, LabelClasses) else [turn]
    content = {
        "source": annotation.source,
        "data_type": annotation.data_type,
        _TASK: annotation.task,
        "name": annotation.name,
        "media": _describe(stored.media),
        "files": [file.name for file in stored.files],
        "turns": [_describe_turn(turn, stored) for turn in turns],
    }
    return Record(json.dumps(content, ensure_ascii=False), tuple(file.data for file in stored.files))


def decode(record: Record) -> Annotation:
    """The annotation of a record.

    Raises:
        UserError: the record is not JSON, or holds other values than ``encode`` writes.
    """
    try:
        content = json.loads(record.text)
        files = tuple(Content(_word(name), data) for name, data in zip(content["files"], record.files, strict=True))
        task = content[_TASK]
        if task not in get_args(Task):
            raise ValueError(f"the {_TASK} {task!r}")
        names = [_word(content[key]) for key in ("source", "data_type", "name")]
        return Annotation(names[0], names[1], task, _media(content["media"], files), tuple(map(_turn, content["turns"])), names[2])
    except _BROKEN as error:
        raise UserError(f"a record is not what `unipixel-jax data pack` writes ({error!r}): pack the data again") from error


def _store(media: FrameFiles | VideoFrames | Photo | None) -> _Stored:
    if media is None:
        return _Stored(None)
    if isinstance(media, Photo):
        return _Stored(Photo(_content(media.path)))
    if isinstance(media, FrameFiles):
        files = tuple(_content(path) for path in media.paths)
        return _Stored(FrameFiles(files, media.take_all), len(files), _image_size(files[0]))
    path = Path(media.path) if isinstance(media.path, str) else media.path
    if isinstance(path, tuple) or (isinstance(path, Path) and path.is_dir()):
        frames: Sequence[Path | Content] = path if isinstance(path, tuple) else list_frames(path)
        files = tuple(_content(frames[i]) for i in counting_frames(media, len(frames)))
        return _Stored(VideoFrames(files, anchor=media.anchor), len(files), _image_size(files[0]))
    content = _content(path)
    counting, size = _scan_video(content, media)
    return _Stored(VideoFrames(content, media.keep, media.stride, media.anchor), counting, size)


def _content(path: str | Path | Content) -> Content:
    if isinstance(path, Content):
        return path
    require_regular_file(path, "put the file there, or give another data root")
    try:
        return Content(str(path), Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): put the file there, or give another data root") from error


def _image_size(file: Content) -> Size:
    height, width = read_media([file], upright=False).frames.shape[1:3]
    return height, width


def _scan_video(content: Content, media: VideoFrames) -> tuple[int, Size]:
    """How many frames of a video file count, and their size."""
    from unipixel_jax.processing.video import read_video  # PyAV is an extra, which photos do without

    counting = np.zeros(0, np.int64)

    def choose(count: int) -> NDArray[np.int64]:
        nonlocal counting
        counting = counting_frames(media, count)
        return counting[:1]

    height, width = read_video(content, choose)[0].shape[1:3]
    return len(counting), (height, width)


def _run_lengths(masks: MaskReader, stored: _Stored) -> dict[str, Any]:
    """The masks on every frame that counts, as values for JSON: their size, and a list of run lengths for each object, with None where it is not visible."""
    objects: list[list[str | None]] = []
    for first in range(0, stored.count, _FRAMES_AT_ONCE):
        found = masks.read(range(first, min(first + _FRAMES_AT_ONCE, stored.count)), stored.size)
        objects = objects or [[] for _ in found]
        for counts, frames in zip(objects, found, strict=True):
            counts += [encode_mask(frame)["counts"] if frame.any() else None for frame in frames]
    return {"size": stored.size, "objects": objects}


def _describe(media: FrameFiles | VideoFrames | Photo | None) -> dict[str, Any] | None:
    if media is None:
        return None
    if isinstance(media, Photo):
        return {"kind": "photo"}
    if isinstance(media, FrameFiles):
        return {"kind": "frames", "take_all": media.take_all}
    return {"kind": "folder" if isinstance(media.path, tuple) else "video", "keep": media.keep, "stride": media.stride, "anchor": media.anchor}


def _describe_turn(turn: Turn, stored: _Stored) -> dict[str, Any]:
    masks = None if turn.masks is None else _run_lengths(turn.masks, stored)
    return {"kind": turn.kind, "text": turn.text, "answer": turn.answer, "ids": turn.ids, "masks": masks}


def _media(content: Mapping[str, Any] | None, files: tuple[Content, ...]) -> FrameFiles | VideoFrames | Photo | None:
    if content is None:
        return None
    if content["kind"] == "photo":
        return Photo(files[0])
    if content["kind"] == "frames":
        return FrameFiles(files, bool(content["take_all"]))
    keep = None if content["keep"] is None else tuple(map(_number, content["keep"]))
    anchor = None if content["anchor"] is None else _number(content["anchor"])
    if _number(content["stride"]) < 1:
        raise ValueError(f"the stride {content['stride']}")
    return VideoFrames(files if content["kind"] == "folder" else files[0], keep, content["stride"], anchor)


def _turn(content: Mapping[str, Any]) -> Turn:
    masks = None
    if content["masks"] is not None:
        size = mask_size(content["masks"]["size"])
        objects = content["masks"]["objects"]
        masks = Tracks(tuple((tuple(None if runs is None else {"size": size, "counts": _word(runs)} for runs in frames),) for frames in objects))
    return Turn(_word(content["kind"]), _word(content["text"]), _word(content["answer"]), masks, tuple(map(_number, content["ids"])))


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:60]}, expected text")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise TypeError(f"{str(value)[:60]}, expected a whole number")
    return value
