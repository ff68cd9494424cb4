"""How a command follows a clip: every frame's result goes to the files that were asked for while it runs, and an interruption loses nothing."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from unipixel_jax.core.files import writable
from unipixel_jax.errors import UserError
from unipixel_jax.infer.exports import Export, labels_of
from unipixel_jax.infer.looks import ContactSheet, check_sheet
from unipixel_jax.infer.overlays import Overlay, check_kind, open_overlay
from unipixel_jax.infer.prediction import Collector, FrameResult, Prediction
from unipixel_jax.infer.report import nothing_segmented, print_prediction
from unipixel_jax.infer.results import SAVE_EVERY, Interrupted, LinesFile, MasksFolder

if TYPE_CHECKING:
    from unipixel_jax.infer.progress import Steps
    from unipixel_jax.infer.stream import Stream
    from unipixel_jax.processing.frames import FrameSource, SoundSource

log = logging.getLogger(__name__)

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
        exports: folders in the formats of other tools.
        look: how the overlay shows the objects, one of ``looks.LOOKS``.
        sound: the video whose sound the overlay gets.
        sheet: the file of the clip's contact sheet.
    """

    source: FrameSource
    overlay: Path
    lines: LinesFile | None
    json: Path | None
    masks: Path | None
    folder: MasksFolder | None
    exports: Sequence[Export]
    look: str
    sound: SoundSource | None
    sheet: Path | None

    @classmethod
    def choose(cls, args: argparse.Namespace, source: FrameSource, overlay: Path, exports: Sequence[Export] = ()) -> Targets:
        """Take the paths from a command's arguments ``json``, ``masks``, ``sheet``, ``look``, ``only_sampled``, ``media`` and ``resume``. What can be known to
        fail is found out here.

        Args:
            args: the arguments.
            source, overlay, exports: see the attributes.

        Raises:
            UserError: a file cannot be written, two are the same, one would replace what is read, or ``--resume`` has nothing to go on from.
        """
        whole = args.json is None or args.json.suffix != ".jsonl"
        archive = args.masks is not None and args.masks.suffix == ".npz"
        if args.masks is not None and not archive and args.masks.suffix:
            raise UserError(f"--masks {args.masks} must end in .npz, or be a folder")
        if args.resume and whole:
            raise UserError("--resume goes on from a file of JSON Lines: give the interrupted run's --json FILE.jsonl")
        check_kind(overlay, args.look)
        check_sheet(args.sheet)
        files = [path for path in (args.json, args.masks if archive else None, overlay, args.sheet) if path is not None]
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
            exports=exports,
            look=args.look,
            sound=None if args.only_sampled else source.sound,
            sheet=args.sheet,
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
    answer = stream.answer
    header |= {"text": answer.text, "tokens": list(answer.tokens), "size": list(answer.size)}
    header |= {"objects": [{"prompt": owner, "span": span and list(span)} for owner, span in zip(answer.owners, answer.spans, strict=True)]}
    collector = Collector()
    if not answer.spans:
        prediction = collector.prediction(answer)
        if targets.lines is not None:
            targets.lines.start(header | {"found": False})
        _write(targets, prediction)
        print_prediction(prediction)
        return 0
    saved: dict[str, ArrayLike] | None = None
    with ExitStack() as files:
        overlay = files.enter_context(open_overlay(targets.overlay, targets.source.rate or 10, targets.look, targets.sound))
        sheet = ContactSheet()
        for export in targets.exports:
            export.start(labels_of(answer.prompts, answer.owners))
            files.callback(export.finish)
        if targets.lines is not None:
            before = targets.lines.resume(header) if resume else None
            if before is None:
                targets.lines.start(header)
            else:
                for result in targets.lines.results(targets.source):
                    collector.add(result.to_json())
                    _draw(result, overlay, sheet, targets.exports)
                stream.resume(before)
        steps.stage("tracking" if len(targets.source) > 1 else "segmenting", len(targets.source))
        began = time.perf_counter()
        with Interrupted() as interrupted:
            for result in stream:
                if not collector.frames:
                    log.info("masks of the first frame: %.2f s", time.perf_counter() - began)
                collector.add(result.to_json())
                _draw(result, overlay, sheet, targets.exports)
                if targets.lines is not None:
                    targets.lines.add(result)
                    saved = stream.save()
                    if len(collector.frames) % SAVE_EVERY == 0:
                        targets.lines.save(saved)
                if targets.folder is not None:
                    targets.folder.add(result)
                steps.advance()
    if targets.lines is not None:
        if interrupted.stopped and saved is not None:
            targets.lines.save(saved)
        elif not interrupted.stopped:
            targets.lines.finish()
    prediction = collector.prediction(answer)
    _write(targets, prediction)
    if targets.sheet is not None:
        sheet.save(targets.sheet)
    print_prediction(prediction)
    for path in (targets.overlay, *([] if targets.sheet is None else [targets.sheet]), *(export.folder for export in targets.exports)):
        print(path)
    if interrupted.stopped:
        more = "; go on with --resume" if targets.lines is not None else ""
        print(f"stopped after {len(collector.frames)} frames, whose results are written{more}", file=sys.stderr)
    return STOPPED if interrupted.stopped else 0


def print_lines(stream: Stream, source: FrameSource, steps: Steps, overlay: Path | None, look: str, sheet: Path | None, most: int | None) -> int:
    """Print a line of JSON for the answer and one for each frame of a clip or a live stream, until it ends, ``most`` frames have come, or Ctrl-C.

    Args:
        stream: the results.
        source: the frames.
        steps: shows the progress.
        overlay: the file of the frames with the objects drawn over them.
        look: how they are drawn, one of ``looks.LOOKS``.
        sheet: the file of the contact sheet.
        most: how many frames are taken.

    Returns:
        The exit status: 0, also after Ctrl-C, by which live streams end, and where the answer segments nothing.
    """
    answer = stream.answer
    objects = [{"prompt": owner} for owner in answer.owners]
    first = {"text": answer.text, "size": list(answer.size), "prompts": list(answer.prompts), "objects": objects, "found": bool(objects)}
    print(json.dumps(first, ensure_ascii=False), flush=True)
    for index, words in enumerate(answer.prompts):
        if index not in answer.owners:
            print(nothing_segmented(words), file=sys.stderr)
    if not objects:
        return 0
    steps.stage("tracking", source.count if most is None else most)
    shown = ContactSheet()
    with nullcontext() if overlay is None else open_overlay(overlay, source.rate or 10, look, source.sound) as drawn, Interrupted():
        for result in islice(stream, most):
            print(json.dumps(result.to_json()), flush=True)
            if drawn is not None:
                drawn.add(result.pixels, result.masks, result.objects)
            if sheet is not None:
                shown.add(result)
            steps.advance()
    if sheet is not None:
        shown.save(sheet)
    return 0


def _draw(result: FrameResult, overlay: Overlay, sheet: ContactSheet, exports: Sequence[Export]) -> None:
    overlay.add(result.pixels, result.masks, result.objects)
    sheet.add(result)
    for export in exports:
        export.add(result)


def _write(targets: Targets, prediction: Prediction) -> None:
    if targets.json is not None:
        prediction.save_json(targets.json)
    if targets.masks is not None:
        prediction.save_masks(targets.masks)
