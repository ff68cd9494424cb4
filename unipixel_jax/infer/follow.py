"""How a command follows a clip: every frame's result goes to the files that were asked for while it runs, and an interruption loses nothing."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from unipixel_jax.core.files import writable
from unipixel_jax.errors import UserError
from unipixel_jax.infer.prediction import Collector, Prediction
from unipixel_jax.infer.results import SAVE_EVERY, Interrupted, LinesFile, MasksFolder
from unipixel_jax.infer.visualize import color_label, format_answer, open_overlay

if TYPE_CHECKING:
    from unipixel_jax.infer.progress import Steps
    from unipixel_jax.infer.stream import Stream
    from unipixel_jax.processing.frames import FrameSource

STOPPED = 130
"""The exit status of a command that Ctrl-C ended."""


@dataclass(frozen=True)
class Targets:
    """Where the results of a clip go.

    Attributes:
        source: the clip.
        overlay: the file of the frames with the objects drawn over them.
        lines: JSON Lines, written while the clip is tracked.
        json: one JSON file, written at the end.
        masks: an ``.npz`` with all masks, written at the end.
        folder: a folder with a file of masks for each frame.
    """

    source: FrameSource
    overlay: Path
    lines: LinesFile | None
    json: Path | None
    masks: Path | None
    folder: MasksFolder | None

    @classmethod
    def choose(cls, args: argparse.Namespace, source: FrameSource, overlay: Path) -> Targets:
        """Take the paths from a command's arguments ``json``, ``masks``, ``media`` and ``resume``. What can be known to fail is found out here.

        Raises:
            UserError: a file cannot be written, two are the same, one would replace what is read, or ``--resume`` has nothing to go on from.
        """
        whole = args.json is None or args.json.suffix != ".jsonl"
        archive = args.masks is not None and args.masks.suffix == ".npz"
        if args.masks is not None and not archive and args.masks.suffix:
            raise UserError(f"--masks {args.masks} must end in .npz, or be a folder")
        if args.resume and whole:
            raise UserError("--resume goes on from a file of JSON Lines: give the interrupted run's --json FILE.jsonl")
        files = [path for path in (args.json, args.masks if archive else None, overlay) if path is not None]
        targets = [writable(path) for path in files]
        for path, target in zip(files, targets, strict=True):
            if target == Path(args.media).resolve():
                raise UserError(f"{path} is what is to be read, and would be replaced: choose another name")
        if len(set(targets)) < len(targets):
            raise UserError(f"two results have the name {next(path for path in files if targets.count(writable(path)) > 1)}: choose two names")
        return cls(
            source=source,
            overlay=overlay,
            lines=None if whole else LinesFile(args.json),
            json=args.json if whole else None,
            masks=args.masks if archive else None,
            folder=None if archive or args.masks is None else MasksFolder(args.masks),
        )


def follow(begin: Callable[[], Stream], targets: Targets, steps: Steps, header: dict[str, Any], resume: bool = False) -> int:
    """Track a clip to its end, or to Ctrl-C, write the results, and print the answer.

    Args:
        begin: a function that answers the prompt and returns the stream of frames.
        targets: where results go.
        steps: shows the progress.
        header: what tells this run from others of the same file of JSON Lines.
        resume: go on from the state that an interrupted run saved.

    Returns:
        The exit status: 0, or ``STOPPED``.
    """
    stream = begin()
    if not stream.spans:
        print(format_answer(Prediction(stream.text, stream.tokens, [], [], stream.size), sys.stdout.isatty()))
        print("the answer segments nothing: there is no such object, or the prompt does not ask for one", file=sys.stderr)
        _write(targets, Collector().prediction(stream.text, stream.tokens, [], stream.size), header)
        return 0
    header |= {"text": stream.text, "tokens": list(stream.tokens), "size": list(stream.size), "spans": [span and list(span) for span in stream.spans]}
    collector = Collector()
    saved: dict[str, ArrayLike] | None = None
    with ExitStack() as files:
        overlay = files.enter_context(open_overlay(targets.overlay, targets.source.rate or 10))
        if targets.lines is not None:
            before = targets.lines.resume(header) if resume else None
            if before is None:
                targets.lines.start(header)
            else:
                for result in targets.lines.results(targets.source):
                    collector.add(result.to_json())
                    overlay.add(result.pixels, result.masks, result.objects)
                stream.resume(before)
        steps.stage("tracking" if len(targets.source) > 1 else "segmenting", len(targets.source))
        with Interrupted() as interrupted:
            for result in stream:
                line = result.to_json()
                overlay.add(result.pixels, result.masks, result.objects)
                collector.add(line)
                if targets.lines is not None:
                    targets.lines.add(result)
                    saved = stream.save()
                    if len(collector.lines) % SAVE_EVERY == 0:
                        targets.lines.save(saved)
                if targets.folder is not None:
                    targets.folder.add(result)
                steps.advance()
    if targets.lines is not None:
        if interrupted.stopped and saved is not None:
            targets.lines.save(saved)
        elif not interrupted.stopped:
            targets.lines.finish()
    prediction = collector.prediction(stream.text, stream.tokens, stream.spans, stream.size)
    if targets.lines is None:
        _write(targets, prediction, header)
    _report(prediction, targets)
    if interrupted.stopped:
        more = "; go on with --resume" if targets.lines is not None else ""
        print(f"stopped after {len(collector.lines)} frames, whose results are written{more}", file=sys.stderr)
    return STOPPED if interrupted.stopped else 0


def print_lines(stream: Stream, source: FrameSource, overlay: Path | None, most: int | None, steps: Steps) -> int:
    """Print a line of JSON for the answer and one for each frame of a clip or a live stream, until it ends, ``most`` frames have come, or Ctrl-C.

    Returns:
        The exit status: 0, also after Ctrl-C, by which live streams end.
    """
    print(json.dumps({"text": stream.text, "size": list(stream.size)}, ensure_ascii=False), flush=True)
    steps.stage("tracking", source.count if most is None else most)
    with nullcontext() if overlay is None else open_overlay(overlay, source.rate or 10) as drawn, Interrupted():
        for result in islice(stream, most):
            print(json.dumps(result.to_json()), flush=True)
            if drawn is not None:
                drawn.add(result.pixels, result.masks, result.objects)
            steps.advance()
    return 0


def _write(targets: Targets, prediction: Prediction, header: dict[str, Any]) -> None:
    if targets.lines is not None:
        targets.lines.start(header | {"text": prediction.text, "tokens": list(prediction.tokens), "size": list(prediction.size), "spans": []})
    if targets.json is not None:
        prediction.save_json(targets.json)
    if targets.masks is not None:
        prediction.save_masks(targets.masks)


def _report(prediction: Prediction, targets: Targets) -> None:
    """Print the answer, where each object is, and the path of the overlay."""
    colour = sys.stdout.isatty()
    print(format_answer(prediction, colour))
    for number, item in enumerate(prediction.objects, start=1):
        seen = [frame for frame, area in enumerate(item.areas) if area]
        score = f", score {max(item.scores, default=0):.2f}"
        if not seen:
            where = f"nowhere to be seen in {len(item.areas)} frames" if len(item.areas) > 1 else f"not to be seen (present with {item.presence[0]:.2f})"
        elif len(item.areas) > 1:
            where = f"in {len(seen)} of {len(item.areas)} frames{score}"
        else:
            where = f"{item.areas[0]} pixels, box {item.boxes[0]}{score}"
        print(f"{color_label(number, colour)} {where}")
    print(targets.overlay)
