"""Files that results go to while a clip is tracked: JSON Lines, masks of each frame, and what is needed to go on after an interruption.

O objects, H height, W width of the frames.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from unipixel_jax.core.files import replacing, writable
from unipixel_jax.errors import UserError
from unipixel_jax.infer.prediction import FrameResult
from unipixel_jax.processing.frames import FrameSource
from unipixel_jax.processing.rle import decode_mask

SAVE_EVERY = 200
"""Frames after which the tracker's state is saved, so that a killed run loses no more than these."""
MAX_LINE = 1 << 28
"""The most characters of a line of JSON that is read back."""


class LinesFile:
    """A file of JSON Lines that holds whole lines at any moment: a header, and a line for each frame, as ``FrameResult.to_json`` has it.

    Beside it lies the tracker's state of now and then, from which ``resume`` goes on; it is removed where the clip ends.
    """

    def __init__(self, path: Path) -> None:
        """Choose the file; nothing is read or written yet.

        Raises:
            UserError: no file can be written there.
        """
        self.path = writable(path)
        self._state = self.path.with_name(f"{self.path.name}.state.npz")

    def start(self, header: dict[str, Any]) -> None:
        """Begin a new file."""
        with replacing(self.path) as aside:
            aside.write_text(json.dumps(header, ensure_ascii=False) + "\n", encoding="utf-8")
        self._state.unlink(missing_ok=True)

    def add(self, result: FrameResult) -> None:
        """Append a frame's line.

        Raises:
            UserError: it cannot be written.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result.to_json()) + "\n")
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}): make room, and go on with --resume") from error

    def save(self, state: dict[str, ArrayLike]) -> None:
        """Keep the tracker's state after the last line.

        Raises:
            UserError: it cannot be written.
        """
        arrays = {name: np.asarray(value) for name, value in state.items()}
        # NumPy's files do not know bfloat16, so its bits are kept.
        bits = {name: a.view(np.uint16) if a.dtype == ml_dtypes.bfloat16 else a for name, a in arrays.items()}
        with replacing(self._state) as aside, aside.open("wb") as file:
            np.savez(file, **bits)  # type: ignore[arg-type]

    def finish(self) -> None:
        """Remove the state: the clip has ended."""
        self._state.unlink(missing_ok=True)

    def resume(self, header: dict[str, Any]) -> dict[str, NDArray[np.generic]] | None:
        """Cut the file off at the frame before which the state was saved.

        Args:
            header: what ``start`` would write.

        Returns:
            The state; None where there is none, because the clip was never begun or has ended.

        Raises:
            UserError: the file is of another clip, prompt or model, or cannot be read.
        """
        if not self.path.exists() or not self._state.exists():
            return None
        with self.path.open(encoding="utf-8", errors="replace") as file:
            found = _parsed(file.readline(MAX_LINE)) or {}
        if wrong := [name for name in header if found.get(name) != header[name]]:
            raise UserError(f"{self.path} was made with other {wrong[0]} ({str(found.get(wrong[0]))[:60]!r}): leave out --resume, or choose another file")
        state = self._read_state()
        frame = int(state["next_frame"])
        with replacing(self.path) as aside, aside.open("w", encoding="utf-8") as kept:
            kept.write(json.dumps(found, ensure_ascii=False) + "\n")
            for line in self.lines():
                if line["frame"] < frame:
                    kept.write(json.dumps(line) + "\n")
        return state

    def lines(self) -> Iterator[dict[str, Any]]:
        """The whole lines of frames that are in the file; one that a kill cut off ends them."""
        with self.path.open(encoding="utf-8", errors="replace") as file:
            file.readline(MAX_LINE)
            while text := file.readline(MAX_LINE):
                line = _parsed(text)
                if line is None or not isinstance(line.get("frame"), int) or not isinstance(line.get("objects"), list):
                    return
                yield line

    def results(self, source: FrameSource) -> Iterator[FrameResult]:
        """The results of frames that are in the file, with their pixels read again."""
        for frame, line in zip(source, self.lines(), strict=False):
            own = line["objects"]
            masks = np.stack([decode_mask(item["mask"]) for item in own]) if own else np.zeros((0, *frame.pixels.shape[:2]), bool)
            scores, presence = (np.asarray([item[name] for item in own], np.float32) for name in ("score", "presence"))
            yield FrameResult(frame.number, frame.seconds, frame.pixels, tuple(item["number"] for item in own), masks, scores, presence)

    def _read_state(self) -> dict[str, NDArray[np.generic]]:
        try:
            with zipfile.ZipFile(self._state) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError("compressed")
            with np.load(self._state, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays.files}
            if found["next_frame"].shape != () or not all(name in found for name in ("memory", "objects", "next", "words", "worded")):
                raise ValueError("a part is missing")
            return {name: a.view(ml_dtypes.bfloat16) if a.dtype == np.uint16 else a for name, a in found.items()}
        except (ValueError, OSError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
            raise UserError(f"{self._state} is broken ({str(error)[:80]}): leave out --resume to start anew") from error


class MasksFolder:
    """A folder with a compressed ``.npz`` for each frame: ``masks`` bool [O, H, W], ``scores`` float32 [O], ``numbers`` int32 [O]."""

    def __init__(self, path: Path) -> None:
        """Choose the folder; nothing is written yet.

        Raises:
            UserError: no files can be written there.
        """
        writable(path / "0.npz")
        self.path = path

    def add(self, result: FrameResult) -> None:
        """Write a frame's file.

        Raises:
            UserError: it cannot be written.
        """
        with replacing(self.path / f"{result.frame:06d}.npz") as aside, aside.open("wb") as file:
            np.savez_compressed(file, masks=result.masks, scores=result.scores, numbers=np.asarray(result.objects, np.int32))


class Interrupted(contextlib.AbstractContextManager["Interrupted"]):
    """Takes Ctrl-C within its block as the wish to stop there, so that what was done is completed.

    Attributes:
        stopped: whether that happened.
    """

    def __init__(self) -> None:
        self.stopped = False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        self.stopped = kind is KeyboardInterrupt
        return self.stopped


def _parsed(text: str) -> dict[str, Any] | None:
    """A whole line of JSON that holds an object; None for anything else."""
    try:
        value = json.loads(text) if text.endswith("\n") else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
