"""`unipixel-jax segment`, `track`, `ask` and `demo`."""

from __future__ import annotations

import argparse
import math
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from unipixel_jax.arguments import add_attention, add_model
from unipixel_jax.errors import UserError

if TYPE_CHECKING:
    from unipixel_jax.core.mesh import MeshConfig
    from unipixel_jax.infer.prediction import Prediction
    from unipixel_jax.infer.predictor import UniPixel
    from unipixel_jax.infer.stream import Stream
    from unipixel_jax.processing.frames import FrameSource
    from unipixel_jax.processing.media import Clip

OVERLAY = "-objects"
"""The end of an overlay's name, so that it cannot be that of the photo or the clip."""


def configure_segment(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``segment``."""
    parser.description = "Segment what a prompt asks for, in a photo or a clip."
    parser.add_argument("media", metavar="MEDIA", help="a photo, a video file, or a folder of frames")
    parser.add_argument("prompt", metavar="PROMPT", help='for example: "Please segment the dog."')
    _add_inference(parser)
    _add_clip_options(parser)
    parser.add_argument("--frame", type=int, metavar="N", help="take this one frame of a clip, counted from 0, as a photo")
    parser.add_argument("--only-sampled", action="store_true", help="segment only the frames that the language model looks at, as the reference's tool does")
    parser.add_argument("--resume", action="store_true", help="go on where an interrupted run with the same --json FILE.jsonl ended")
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


def configure_track(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``track``."""
    parser.description = "Follow what a prompt asks for through a clip or a live stream, and print a line of JSON for each frame."
    parser.add_argument("media", metavar="SOURCE", help="a video file, a folder of frames, a camera (/dev/video0) or an address such as rtsp://host/stream")
    parser.add_argument("prompt", metavar="PROMPT", help='for example: "Please segment the dog."')
    _add_model_options(parser)
    _add_clip_options(parser)
    parser.add_argument("--overlay", type=Path, metavar="FILE.mp4", help="write the frames with the objects drawn over them")
    parser.add_argument("--frames", type=int, metavar="N", help="stop after this many frames")
    parser.add_argument("--allow-url", action="store_true", help="allow addresses on the network")
    parser.set_defaults(run=_track)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="cast the weights and compute in this (default: the checkpoint's own)")
    parser.add_argument("--tensor", type=int, default=1, metavar="N", help="devices of this machine that share the work (default: 1)")
    parser.add_argument("--sample-frames", type=int, default=16, metavar="N", help="frames of a clip that the language model looks at (default: 16)")
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="where an answer is cut off (default: 512)")
    add_attention(parser)


def _add_clip_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--start", type=float, metavar="SECONDS", help="where in a video to begin")
    parser.add_argument("--end", type=float, metavar="SECONDS", help="where in a video to end")
    parser.add_argument("--crop", metavar="X,Y,WIDTH,HEIGHT", help="look at this part of the frames only")


def _add_inference(parser: argparse.ArgumentParser) -> None:
    _add_model_options(parser)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), metavar="DIR", help="where the images go (default: outputs)")
    parser.add_argument("--format", choices=("gif", "mp4"), help="of a clip's overlay file (default: mp4 for a video, gif for others); a photo's is a PNG")
    parser.add_argument("--as-stored", action="store_true", help="take a photo as it is stored, as the reference does, not turned as its EXIF tag asks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write text, boxes, areas and COCO run-length masks; as FILE.jsonl a line for each frame")
    masks = "write the masks as booleans [objects, frames, height, width]; as a folder, a file for each frame"
    parser.add_argument("--masks", type=Path, metavar="FILE.npz", help=masks)


def _segment(args: argparse.Namespace) -> int:
    from unipixel_jax.infer.follow import Targets, follow
    from unipixel_jax.infer.progress import progress
    from unipixel_jax.processing.prompts import require_words

    require_words(args.prompt)
    _require_positive(args)
    source = _source(args)
    targets = Targets.choose(args, source, _overlay_path(args, source))
    with progress("loading the model") as steps:
        model = _load(args)
        steps.stage("reading the media and answering")
        header = {"prompt": args.prompt, "media": source.name, "model": str(args.model or "embedded")}
        return follow(lambda: _stream(args, model, source), targets, steps, header, resume=args.resume)


def _track(args: argparse.Namespace) -> int:
    from unipixel_jax.core.files import writable
    from unipixel_jax.infer.follow import print_lines
    from unipixel_jax.infer.progress import progress
    from unipixel_jax.processing.prompts import require_words

    require_words(args.prompt)
    _require_positive(args)
    if args.overlay is not None:
        writable(args.overlay)
    source = _source(args)
    with progress("loading the model") as steps:
        model = _load(args)
        steps.stage("reading the media and answering")
        return print_lines(_stream(args, model, source), source, args.overlay, args.frames, steps)


def _load(args: argparse.Namespace) -> UniPixel:
    from unipixel_jax.infer.loading import EMBEDDED
    from unipixel_jax.infer.predictor import UniPixel

    return UniPixel.from_pretrained(args.model or EMBEDDED, args.dtype, mesh=_mesh(args.tensor), revision=args.revision)


def _stream(args: argparse.Namespace, model: UniPixel, source: FrameSource) -> Stream:
    options = {"sample_frames": args.sample_frames, "max_new_tokens": args.max_new_tokens, "only_sampled": getattr(args, "only_sampled", False)}
    return model.track(source, args.prompt, **options)


def _require_positive(args: argparse.Namespace) -> None:
    if args.max_new_tokens < 1 or args.sample_frames < 1:
        raise UserError(f"--max-new-tokens is {args.max_new_tokens} and --sample-frames {args.sample_frames}, expected at least 1")


def _source(args: argparse.Namespace) -> FrameSource:
    """Open what is to be read, without reading more than its first frame."""
    from unipixel_jax.processing.frames import Crop, open_address, open_frames
    from unipixel_jax.processing.images import Content

    if "://" in args.media or args.media.startswith("/dev/video"):
        if "://" in args.media and not getattr(args, "allow_url", False):
            raise UserError(f"{args.media} is an address: only files are read, unless `unipixel-jax track` is told --allow-url; download it first")
        source = open_address(args.media)
    elif args.media == "-":
        source = open_frames(Content("stdin", sys.stdin.buffer.read()))
    else:
        source = open_frames(args.media, upright=not getattr(args, "as_stored", False))
    if args.crop is not None:
        values, _ = _numbers(args.crop, 4)
        source = replace(source, crop=Crop(*(int(value) for value in values)))
    source = source.between(args.start, args.end)
    return source.only(args.frame) if getattr(args, "frame", None) is not None else source


def _overlay_path(args: argparse.Namespace, source: FrameSource) -> Path:
    kind = "png" if source.is_image or source.count == 1 else args.format or ("mp4" if source.rate else "gif")
    ending = f"{OVERLAY}.{kind}"
    return Path(args.output_dir / f"{_shortened(source.name, 255 - len(ending))}{ending}")


def _ask(args: argparse.Namespace) -> int:
    from unipixel_jax.processing.prompts import Box, Point, require_words

    require_words(args.question)
    references: list[Point | Box] = []
    for count, text in args.references:
        (x, y, *corner), frame = _numbers(text, count)
        references.append(Box(x, y, corner[0], corner[1], frame) if corner else Point(x, y, frame))
    clip, overlay = _open(args)
    model = _load(args)
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
    ending = f"{OVERLAY}.{'png' if len(clip.frames) == 1 else args.format or 'gif'}"
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
