"""`unipixel-jax segment`, `ask` and `demo`."""

from __future__ import annotations

import argparse
import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from unipixel_jax.arguments import add_attention, add_model
from unipixel_jax.errors import UserError

if TYPE_CHECKING:
    from unipixel_jax.core.mesh import MeshConfig
    from unipixel_jax.infer.prediction import Prediction
    from unipixel_jax.processing.media import Clip

OVERLAY = "-objects"
"""The end of an overlay's name, so that it cannot be that of the photo or the clip."""


def configure_segment(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``segment``."""
    parser.description = "Segment what a prompt asks for, in a photo or a clip."
    parser.add_argument("media", metavar="MEDIA", help="a photo, a video file, or a folder of frames")
    parser.add_argument("prompt", metavar="PROMPT", help='for example: "Please segment the dog."')
    _add_inference(parser)
    parser.set_defaults(run=_segment)


def configure_ask(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``ask``."""
    parser.description = "Answer a question about objects given by points or boxes."
    parser.add_argument("media", metavar="MEDIA", help="a photo, a video file, or a folder of frames")
    parser.add_argument("question", metavar="QUESTION", help='with <region> for each reference, for example: "What is <region> doing?"')
    # Points and boxes share one list, since they stand for the <region>s of the question in the order in which they are given.
    pointed = partial(parser.add_argument, action="append", dest="references", default=[])
    pointed("--point", type=lambda text: (2, text), metavar="X,Y[,FRAME]", help="a place on the object, in pixels; may be repeated")
    pointed("--box", type=lambda text: (4, text), metavar="X0,Y0,X1,Y1[,FRAME]", help="a rectangle around the object; may be repeated")
    _add_inference(parser)
    parser.set_defaults(run=_ask)


def configure_demo(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``demo``."""
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), metavar="DIR", help="where the images go (default: outputs)")
    add_attention(parser)
    parser.set_defaults(run=_demo)


def _add_inference(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="cast the weights and compute in this (default: the checkpoint's own)")
    parser.add_argument("--tensor", type=int, default=1, metavar="N", help="devices of this machine that share the work (default: 1)")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), metavar="DIR", help="where the images go (default: outputs)")
    parser.add_argument("--format", choices=("gif", "mp4"), default="gif", help="of a clip's overlay file (default: gif); a photo's is a PNG")
    parser.add_argument("--sample-frames", type=int, default=16, metavar="N", help="frames of a clip to take at most (default: 16)")
    parser.add_argument("--as-stored", action="store_true", help="take a photo as it is stored, as the reference does, not turned as its EXIF tag asks")
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="where an answer is cut off (default: 512)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write text, token ids, boxes, areas and COCO run-length masks")
    parser.add_argument("--masks", type=Path, metavar="FILE.npz", help="write the masks as booleans [objects, frames, height, width]")
    add_attention(parser)


def _segment(args: argparse.Namespace) -> int:
    from unipixel_jax.infer.loading import EMBEDDED
    from unipixel_jax.infer.predictor import UniPixel
    from unipixel_jax.processing.prompts import require_words

    require_words(args.prompt)
    clip, overlay = _open(args)
    model = UniPixel.from_pretrained(args.model or EMBEDDED, args.dtype, mesh=_mesh(args.tensor))
    prediction = model.segment(clip, args.prompt, sample_frames=args.sample_frames, max_new_tokens=args.max_new_tokens)
    return _report(args, prediction, clip, overlay)


def _ask(args: argparse.Namespace) -> int:
    from unipixel_jax.infer.loading import EMBEDDED
    from unipixel_jax.infer.predictor import UniPixel
    from unipixel_jax.processing.prompts import Box, Point, require_words

    require_words(args.question)
    references: list[Point | Box] = []
    for count, text in args.references:
        (x, y, *corner), frame = _numbers(text, count)
        references.append(Box(x, y, corner[0], corner[1], frame) if corner else Point(x, y, frame))
    clip, overlay = _open(args)
    model = UniPixel.from_pretrained(args.model or EMBEDDED, args.dtype, mesh=_mesh(args.tensor))
    prediction = model.ask(clip, args.question, references, sample_frames=args.sample_frames, max_new_tokens=args.max_new_tokens)
    return _report(args, prediction, clip, overlay)


def _mesh(tensor: int) -> MeshConfig | None:
    """The mesh that shares the work among ``tensor`` devices; None for one device."""
    from unipixel_jax.core.mesh import MeshConfig

    return None if tensor == 1 else MeshConfig("fsdp_tp", tensor)


def _numbers(text: str, count: int) -> tuple[list[float], int]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    frame = values[count] if len(values) > count else 0.0
    if len(values) not in (count, count + 1) or not all(map(math.isfinite, values)) or not frame.is_integer():
        raise UserError(f"{text!r} is not a reference: expected {count} numbers separated by commas, and the whole number of a frame if you like")
    return values[:count], int(frame)


def _open(args: argparse.Namespace) -> tuple[Clip, Path]:
    """Read the media and choose the path of its overlay. Whatever can be known to fail is found out here, before the work."""
    from unipixel_jax.core.files import writable
    from unipixel_jax.processing.media import read_media

    if args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens is {args.max_new_tokens}, expected at least 1")
    if args.masks is not None and args.masks.suffix != ".npz":
        raise UserError(f"--masks {args.masks} must end in .npz")
    results = [path for path in (args.json, args.masks) if path is not None]
    targets = [writable(path) for path in results]
    clip = read_media(args.media, args.sample_frames, upright=not args.as_stored)
    ending = f"{OVERLAY}.{'png' if len(clip.frames) == 1 else args.format}"
    overlay = args.output_dir / f"{_shortened(clip.name, 255 - len(ending))}{ending}"
    for path, target in zip([*results, overlay], [*targets, writable(overlay)], strict=True):
        if target == Path(args.media).resolve():
            raise UserError(f"{path} is what is to be read, and would be replaced: choose another name")
    if len(set(targets)) < len(targets):
        raise UserError(f"--json and --masks are both {args.json}: choose two names")
    return clip, overlay


def _shortened(name: str, most: int) -> str:
    """The name, cut to at most ``most`` bytes."""
    while len(os.fsencode(name)) > most:
        name = name[:-1]
    return name


def _report(args: argparse.Namespace, prediction: Prediction, clip: Clip, overlay: Path) -> int:
    from unipixel_jax.infer.visualize import color_label, format_answer, save_overlay

    colour = sys.stdout.isatty()
    print(format_answer(prediction, colour))
    for number, item in enumerate(prediction.objects, start=1):
        seen = [frame for frame, area in enumerate(item.areas) if area]
        where = f"in {len(seen)} of {len(item.areas)} frames" if len(item.areas) > 1 else f"{max(item.areas)} pixels, box {item.boxes[0]}"
        print(f"{color_label(number, colour)} {where}")
    if args.json is not None:
        prediction.save_json(args.json)
    if args.masks is not None:
        prediction.save_masks(args.masks)
    if prediction.objects:
        save_overlay(overlay, clip.frames, [item.masks for item in prediction.objects])
        print(overlay)
    else:
        print("the answer segments nothing", file=sys.stderr)
    return 0


def _demo(args: argparse.Namespace) -> int:
    from unipixel_jax.demo import run

    for line in run(args.output_dir):
        print(line)
    return 0
