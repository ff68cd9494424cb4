"""`unipixel-jax segment`, `track`, `ask`, `describe` and `demo`."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unipixel_jax.arguments import add_attention, add_loading
from unipixel_jax.errors import UserError
from unipixel_jax.infer.from_arguments import model_of

if TYPE_CHECKING:
    from unipixel_jax.infer.exports import Export
    from unipixel_jax.infer.prediction import Prediction
    from unipixel_jax.infer.predictor import UniPixel
    from unipixel_jax.infer.stream import Stream
    from unipixel_jax.processing.frames import FrameSource
    from unipixel_jax.processing.media import Clip
    from unipixel_jax.processing.prompts import Box, Mask, Point

OVERLAY = "-objects"
"""The end of an overlay's name, so that it cannot be that of the photo or the clip."""
OVERLAYS = ("gif", "mp4")
LOOKS = ("overlay", "side-by-side", "cutout")
"""The names in ``looks.LOOKS``."""
EXPORTED = ("coco", "yolo", "labelme", "cvat", "label-studio", "png")
"""The names in ``exports.EXPORTS``, whose module is not imported for ``--help``."""
MEDIA = 'a photo, a video file, a folder of frames, "-" for a picture on the standard input, or an http(s) address with --allow-url'


def configure_segment(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``segment``."""
    from unipixel_jax.infer.batch_cli import configure_many

    parser.description = "Segment what prompts ask for, in a photo, on every frame of a clip, or in many of them."
    parser.add_argument("media", metavar="MEDIA", help=MEDIA)
    _add_prompts(parser, nargs="?")
    _add_model_options(parser)
    _add_source_options(parser)
    _add_results(parser)
    _add_looks(parser)
    formats = (
        "gif or mp4: of a clip's overlay (default: mp4 for a video, gif for others; a photo's is a PNG); coco, yolo, labelme, cvat, label-studio or "
        "png (label images): a folder in this format beside the overlay, or in the folder of --out; several separated by commas"
    )
    parser.add_argument("--format", type=_formats, action="extend", default=[], metavar="NAME", help=formats)
    parser.add_argument("--only-sampled", action="store_true", help="segment only the frames that the language model looks at, as the reference's tool does")
    resume = "go on where an interrupted run with the same --json FILE.jsonl or --out DIR ended"
    parser.add_argument("--resume", action="store_true", help=resume)
    configure_many(parser)
    parser.set_defaults(run=_segment)


def configure_ask(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``ask``."""
    parser.description = "Answer a question about objects given by points, boxes or masks."
    parser.add_argument("media", metavar="MEDIA", help=MEDIA)
    parser.add_argument("question", metavar="QUESTION", help='with <region> for each reference, for example: "What is <region> doing?"')
    _add_references(parser)
    parser.set_defaults(run=_ask)


def configure_describe(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``describe``."""
    parser.description = "Describe an object given by a point, a box or a mask."
    parser.add_argument("media", metavar="MEDIA", help=MEDIA)
    _add_references(parser)
    parser.set_defaults(run=_describe)


def configure_demo(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``demo``."""
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), metavar="DIR", help="where the images go (default: outputs)")
    add_attention(parser)
    parser.set_defaults(run=_demo)


def configure_track(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``track``."""
    parser.description = "Follow what prompts ask for through a clip or a live stream, and print a line of JSON for each frame."
    parser.add_argument("media", metavar="SOURCE", help="a video file, a folder of frames, a camera (/dev/video0) or an address such as rtsp://host/stream")
    _add_prompts(parser)
    _add_model_options(parser)
    _add_source_options(parser)
    parser.add_argument("--overlay", type=Path, metavar="FILE.mp4", help="write the frames with the objects drawn over them")
    _add_looks(parser)
    parser.add_argument("--frames", type=int, metavar="N", help="stop after this many frames")
    parser.set_defaults(run=_track)


def _add_prompts(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    parser.add_argument("prompt", metavar="PROMPT", nargs=nargs, help='for example: "Please segment the dog."')
    parser.add_argument("--prompt", action="append", dest="more_prompts", default=[], metavar="PROMPT", help="one more prompt about the same media, read once")


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    add_loading(parser)
    parser.add_argument("--sample-frames", type=int, default=16, metavar="N", help="frames of a clip that the language model looks at (default: 16)")
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="where an answer is cut off (default: 512)")
    parser.add_argument("--answer-start", default="", metavar="WORDS", help="words with which each answer has to begin")
    parser.add_argument("--min-pixels", type=int, metavar="N", help="the fewest pixels of a frame for the language model, which enlarges smaller ones")
    parser.add_argument("--max-pixels", type=int, metavar="N", help="the most pixels of a frame for the language model, which shrinks larger ones")
    add_attention(parser)


def _add_source_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--frame", type=int, metavar="N", help="take this one frame of a clip, counted from 0, as a photo")
    parser.add_argument("--start", type=float, metavar="SECONDS", help="where in a video to begin")
    parser.add_argument("--end", type=float, metavar="SECONDS", help="where in a video to end")
    parser.add_argument("--crop", metavar="X,Y,WIDTH,HEIGHT", help="look at this part of the frames only")
    parser.add_argument("--as-stored", action="store_true", help="take a photo as it is stored, as the reference does, not turned as its EXIF tag asks")
    parser.add_argument("--allow-url", action="store_true", help="allow addresses on the network")


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), metavar="DIR", help="where the images go (default: outputs)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write text, boxes, areas and COCO run-length masks; as FILE.jsonl a line for each frame")
    masks = "write the masks as booleans [objects, frames, height, width]; as a folder, a file for each frame"
    parser.add_argument("--masks", type=Path, metavar="FILE.npz", help=masks)


def _add_looks(parser: argparse.ArgumentParser) -> None:
    _add_look(parser)
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="write a contact sheet of the clip: frames spread evenly over it, with their objects")


def _add_look(parser: argparse.ArgumentParser) -> None:
    look = "how the overlay shows objects: drawn over the frame, that beside the frame, or cut out on transparency as a PNG (default: overlay)"
    parser.add_argument("--look", choices=LOOKS, default="overlay", help=look)


def _add_references(parser: argparse.ArgumentParser) -> None:
    # All kinds share one list, since they stand for the <region>s of the question in the order in which they are given.
    pointed = partial(parser.add_argument, action="append", dest="references", default=[])
    pointed("--point", type=lambda text: (2, text), metavar="X,Y[,FRAME]", help="a place on the object, in pixels; may be repeated")
    pointed("--box", type=lambda text: (4, text), metavar="X0,Y0,X1,Y1[,FRAME]", help="a rectangle around the object; may be repeated")
    mask = "a PNG of the media's size: each index of a palette but 0 is an object, or whatever is not black; may be repeated"
    pointed("--mask", type=lambda text: (0, text), metavar="FILE[,FRAME]", help=mask)
    _add_model_options(parser)
    _add_source_options(parser)
    _add_results(parser)
    _add_look(parser)
    parser.add_argument("--format", choices=OVERLAYS, help="of a clip's overlay (default: gif); a photo's is a PNG")


def _formats(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in (*OVERLAYS, *EXPORTED)]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}, expected some of {', '.join((*OVERLAYS, *EXPORTED))}, separated by commas")
    return names


def _segment(args: argparse.Namespace) -> int:
    from unipixel_jax.infer.follow import Targets, follow
    from unipixel_jax.infer.progress import progress

    if args.out is not None:
        return _run_many(args)
    prompts = _prompts(args)
    _check_options(args)
    with _opened(args) as source:
        targets = Targets.choose(args, source, _overlay_path(args, source), _exports(args, source))
        with progress("loading the model") as steps:
            model = model_of(args)
            steps.stage("reading the media and answering")
            header = {"prompts": prompts, "media": source.name, "model": str(args.model or "embedded")}
            return follow(lambda: _stream(args, model, source, prompts), targets, steps, header, resume=args.resume)


_SINGLE = (
    "more_prompts", "frame", "start", "end", "crop", "json", "masks", "only_sampled", "answer_start", "min_pixels", "max_pixels", "sheet", "look",
)  # fmt: skip
"""The options of ``segment`` for one photo or clip, which a list of jobs does not take."""


def _run_many(args: argparse.Namespace) -> int:
    from unipixel_jax.infer.batch_cli import run_many

    if given := [name for name in _SINGLE if getattr(args, name) not in (None, False, "", [], LOOKS[0])]:
        option = "--prompt" if given[0] == "more_prompts" else f"--{given[0].replace('_', '-')}"
        raise UserError(f"{option} is for one photo or clip, and --out for many: leave one of them out")
    return run_many(args)


def _track(args: argparse.Namespace) -> int:
    from unipixel_jax.core.files import writable
    from unipixel_jax.infer.follow import print_lines
    from unipixel_jax.infer.looks import check_sheet
    from unipixel_jax.infer.overlays import check_kind
    from unipixel_jax.infer.progress import progress

    prompts = _prompts(args)
    _check_options(args)
    if args.overlay is not None:
        check_kind(args.overlay, args.look)
    check_sheet(args.sheet)
    for path in (args.overlay, args.sheet):
        if path is not None:
            writable(path)
    with _opened(args, live=True) as source, progress("loading the model") as steps:
        model = model_of(args)
        steps.stage("reading the media and answering")
        return print_lines(_stream(args, model, source, prompts), source, steps, args.overlay, args.look, args.sheet, args.frames)


def _ask(args: argparse.Namespace) -> int:
    from unipixel_jax.processing.prompts import require_words

    require_words(args.question)
    return _answer(args, lambda model, clip, references: model.ask(clip, args.question, references, **_options(args)))


def _describe(args: argparse.Namespace) -> int:
    def run(model: UniPixel, clip: Clip, references: list[Point | Box | Mask]) -> Prediction:
        return model.describe(clip, references[0], **_options(args))

    return _answer(args, run, only_one=True)


def _stream(args: argparse.Namespace, model: UniPixel, source: FrameSource, prompts: list[str]) -> Stream:
    return model.track(source, prompts, only_sampled=getattr(args, "only_sampled", False), **_options(args))


def _options(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("sample_frames", "max_new_tokens", "answer_start", "min_pixels", "max_pixels")}


def _prompts(args: argparse.Namespace) -> list[str]:
    from unipixel_jax.processing.prompts import require_words

    prompts = [*([] if args.prompt is None else [args.prompt]), *args.more_prompts]
    if not prompts:
        raise UserError(f"there is no prompt about {args.media}: say what to look for, for example 'Please segment the dog.'")
    for words in prompts:
        require_words(words)
    return prompts


def _check_options(args: argparse.Namespace) -> None:
    from unipixel_jax.processing.prompts import require_answer_start
    from unipixel_jax.processing.resize import pixel_budget

    for option, value in (("--max-new-tokens", args.max_new_tokens), ("--sample-frames", args.sample_frames)):
        if value < 1:
            raise UserError(f"{option} is {value}, expected at least 1")
    require_answer_start(args.answer_start)
    pixel_budget(1, 1, args.min_pixels, args.max_pixels)


def _opened(args: argparse.Namespace, live: bool = False) -> contextlib.AbstractContextManager[FrameSource]:
    """Open what is to be read, without reading more than its first frame."""
    from unipixel_jax.infer.opening import opened
    from unipixel_jax.infer.pointing import numbers
    from unipixel_jax.processing.frames import Crop

    values = [] if args.crop is None else numbers(args.crop)
    if args.crop is not None and (len(values) != 4 or not all(value.is_integer() for value in values)):
        raise UserError(f"--crop is {args.crop!r}, expected four whole numbers separated by commas: x, y, width and height")
    return opened(args, Crop(*map(int, values)) if values else None, live=live)


def _overlay_path(args: argparse.Namespace, source: FrameSource) -> Path:
    asked = sorted({name for name in args.format if name in OVERLAYS})
    if len(asked) > 1:
        raise UserError("--format names both gif and mp4, and there is one overlay: choose one")
    photo = source.is_image or source.count == 1
    if args.look == "cutout" and asked and not photo:
        raise UserError(f"--format {asked[0]} with --look cutout, whose background is transparent: leave --format out, and a clip becomes an animated PNG")
    kind = "png" if photo or args.look == "cutout" else asked[0] if asked else ("mp4" if source.rate else "gif")
    return _named(args, source.name, f"{OVERLAY}.{kind}")


def _exports(args: argparse.Namespace, source: FrameSource) -> list[Export]:
    """The folders in the formats of other tools, each named after the media and its format."""
    names = [name for name in EXPORTED if name in args.format]
    if not names:
        return []
    from unipixel_jax.infer.exports import EXPORTS

    return [EXPORTS[name](_named(args, source.name, f"-{name}"), resume=args.resume) for name in names]


def _named(args: argparse.Namespace, name: str, ending: str) -> Path:
    return Path(args.output_dir / f"{_shortened(name, 255 - len(ending))}{ending}")


def _answer(args: argparse.Namespace, run: Callable[[UniPixel, Clip, list[Point | Box | Mask]], Prediction], only_one: bool = False) -> int:
    """Read the media, ask about what is pointed at, and write and print the answer. Whatever can be known to fail is found out before the model is loaded."""
    from unipixel_jax.infer.pointing import check_references, read_references

    _check_options(args)
    check_references(args.references)
    clip, overlay = _read(args)
    references = read_references(args.references, (clip.frames.shape[1], clip.frames.shape[2]))
    if only_one and len(references) > 1:
        raise UserError(f"{len(references)} objects are pointed at, expected one: describe one after the other")
    prediction = run(model_of(args), clip, references)
    return _report(args, prediction, clip, overlay)


def _read(args: argparse.Namespace) -> tuple[Clip, Path]:
    """Read the frames that the language model looks at, and choose the path of their overlay."""
    from unipixel_jax.core.files import writable

    if args.masks is not None and args.masks.suffix != ".npz":
        raise UserError(f"--masks {args.masks} must end in .npz")
    results = [path for path in (args.json, args.masks) if path is not None]
    targets = [writable(path) for path in results]
    with _opened(args) as source:
        clip = source.sample(args.sample_frames)
    overlay = _named(args, clip.name, f"{OVERLAY}.{'png' if len(clip.frames) == 1 or args.look == 'cutout' else args.format or 'gif'}")
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
    from unipixel_jax.infer.overlays import save_overlay
    from unipixel_jax.infer.report import print_prediction

    print_prediction(prediction)
    if args.json is not None:
        prediction.save_json(args.json)
    if args.masks is not None:
        prediction.save_masks(args.masks)
    save_overlay(overlay, clip.frames, [item.masks for item in prediction.objects], first=prediction.first, look=args.look)
    print(overlay)
    return 0


def _demo(args: argparse.Namespace) -> int:
    from unipixel_jax.demo import run

    for line in run(args.output_dir):
        print(line)
    return 0
