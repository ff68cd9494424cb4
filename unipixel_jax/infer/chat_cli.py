"""`unipixel-jax chat`: a conversation about a photo or a clip, in a terminal or through a pipe."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from unipixel_jax.arguments import add_attention, add_loading, positive
from unipixel_jax.errors import UserError, one_line
from unipixel_jax.infer.from_arguments import model_of

if TYPE_CHECKING:
    from unipixel_jax.infer.chat import Chat
    from unipixel_jax.processing.prompts import Box, Mask, Point

HELP = """\
Each line is a question; <region> in it stands for a point, box or mask given before, [0], [1] and so on for the objects found so far.
/point X,Y[,FRAME]               a point for the next question, in pixels
/box X0,Y0,X1,Y1[,FRAME]         a box for the next question, in pixels
/mask FILE                       a mask for the next question: an image as large as the media, black outside of the object (of a clip: in its first frame)
Ctrl-D ends the conversation."""


def configure_chat(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``chat``."""
    parser.description = "Have a conversation about a photo or a clip."
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HELP
    parser.add_argument("media", metavar="MEDIA", help="a photo, a video file, or a folder of frames")
    add_loading(parser)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), metavar="DIR", help="where overlays go, one for each answer with objects")
    parser.add_argument("--format", choices=("gif", "mp4"), default="gif", help="of a clip's overlay file (default: gif); a photo's is a PNG")
    parser.add_argument("--sample-frames", type=positive, default=16, metavar="N", help="frames of a clip to take at most (default: 16)")
    parser.add_argument("--as-stored", action="store_true", help="take a photo as it is stored, not turned as its EXIF tag asks")
    parser.add_argument("--max-new-tokens", type=positive, default=512, metavar="N", help="where an answer is cut off (default: 512)")
    parser.add_argument("--max-slots", type=positive, default=16384, metavar="N", help="tokens of the conversation, the media's included (default: 16384)")
    add_attention(parser)
    parser.set_defaults(run=_chat)


def _chat(args: argparse.Namespace) -> int:
    from unipixel_jax.core.files import writable
    from unipixel_jax.processing.media import read_media

    clip = read_media(args.media, args.sample_frames, upright=not args.as_stored)
    writable(_overlay(args, clip.name, 1, len(clip.frames)))
    model = model_of(args)
    chat = model.chat(clip, sample_frames=args.sample_frames, max_slots=args.max_slots)
    references: list[Point | Box | Mask] = []
    answers, failed = 0, False
    for line in _read_lines():
        try:
            if line.startswith("/"):
                references += _command(line)
            else:
                given, references = references, []
                answers += 1
                _ask(args, chat, line, given, answers)
        except UserError as error:
            failed = True
            print(f"error: {one_line(str(error))}", file=sys.stderr)
    return int(failed and not sys.stdin.isatty())


def _read_lines() -> Iterator[str]:
    """The lines of standard input that are not empty; a terminal shows a prompt and lets the line be edited."""
    shown = sys.stdin.isatty()
    if shown:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # with it, input() knows the arrow keys and the lines before
        print("/help says how to point at objects")
    while True:
        try:
            line = input("> ") if shown else sys.stdin.readline()
        except EOFError:
            print()
            return
        except UnicodeDecodeError as error:
            raise UserError(f"standard input is not UTF-8 ({error.reason} at byte {error.start + 1}): write it in UTF-8") from None
        if not line and not shown:
            return
        if line.strip():
            yield line.strip()


def _command(line: str) -> list[Point | Box | Mask]:
    """Follow a line that begins with a slash; returns the reference that it gives, if it gives one."""
    from unipixel_jax.processing.prompts import Box, Point

    name, _, rest = line.partition(" ")
    if name == "/help":
        print(HELP)
        return []
    if name == "/mask":
        return [_mask(Path(rest.strip()))]
    if name == "/point":
        (x, y), frame = _numbers(rest, 2, "X,Y")
        return [Point(x, y, frame)]
    if name == "/box":
        (x0, y0, x1, y1), frame = _numbers(rest, 4, "X0,Y0,X1,Y1")
        return [Box(x0, y0, x1, y1, frame)]
    raise UserError(f"{name} is unknown: expected /point, /box, /mask or /help, or a question")


def _numbers(text: str, count: int, form: str) -> tuple[list[float], int]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    frame = values[count] if len(values) > count else 0.0
    if len(values) not in (count, count + 1) or not all(map(math.isfinite, values)) or not frame.is_integer():
        raise UserError(f"{text!r} is not {form}, or {form},FRAME with the whole number of a frame")
    return values[:count], int(frame)


def _mask(path: Path) -> Mask:
    import numpy as np

    from unipixel_jax.core.files import require_regular_file
    from unipixel_jax.processing.images import NotAnImage, open_image, to_rgb
    from unipixel_jax.processing.prompts import Mask

    require_regular_file(path, "expected an image of a mask")
    try:
        with open_image(path) as image:
            return Mask(np.any(to_rgb(image, str(path), upright=True)[0] > 0, axis=2))
    except NotAnImage:
        raise UserError(f"{path} is no image: expected one as large as the media, black outside of the object") from None


def _ask(args: argparse.Namespace, chat: Chat, question: str, references: list[Point | Box | Mask], number: int) -> None:
    """Ask, print the answer, and write the overlay of the objects that it has found."""
    from unipixel_jax.infer.overlays import save_overlay
    from unipixel_jax.infer.visualize import color_label, format_answer

    found = chat.ask(question, references, max_new_tokens=args.max_new_tokens)
    colour = sys.stdout.isatty()
    print(format_answer(found, colour))
    for place, item in zip(found.numbers, found.objects, strict=True):
        seen = sum(area > 0 for area in item.areas)
        where = f"in {seen} of {len(item.areas)} frames" if len(item.areas) > 1 else f"{item.areas[0]} pixels, box {item.boxes[0]}"
        print(f"{color_label(place, colour)} {where}")
    if found.objects:
        path = _overlay(args, chat.clip.name, number, len(chat.clip.frames))
        save_overlay(path, chat.clip.frames, [item.masks for item in found.objects], first=found.first)
        print(path)
    sys.stdout.flush()


def _overlay(args: argparse.Namespace, name: str, number: int, frames: int) -> Path:
    """The path of an answer's overlay."""
    path: Path = args.output_dir / f"{name[:50]}-chat-{number}.{'png' if frames == 1 else args.format}"
    return path
