"""The ``unipixel-jax`` command. Every subcommand is a thin call; heavy imports wait until they are needed."""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from unipixel_jax.errors import UserError, needing, run_command

if TYPE_CHECKING:
    from unipixel_jax.core.mesh import MeshConfig
    from unipixel_jax.infer.prediction import Prediction
    from unipixel_jax.processing.media import Clip

SMALL_WEIGHTS = 200e6
"""Bytes of a recording's weights up to which its programs are not worth optimising."""
CACHE_VARIABLE = "UNIPIXEL_JAX_CACHE"
OVERLAY = "-objects"
"""The end of an overlay's name, so that it cannot be that of the photo or the clip."""
MODEL_HELP = "a directory made by `unipixel-jax convert to-jax` (default: the small model that ships with the package, which knows coloured shapes only)"

ATTENTION_HELP = "compute all attention by xla, xla_chunked, pallas_tpu, pallas_gpu or cudnn (default: chosen by platform and shape; --verbose shows)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Returns:
        The exit status: 0; 1 after an error, whose reason is one line on stderr; 2 for wrong arguments; 130 if interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text, and a terminal may know ASCII only
    return run_command(lambda: _dispatch(argv), "--verbose" in argv)


def _dispatch(argv: list[str]) -> int:
    """Run the subcommand that the arguments name."""
    if argv[:1] == ["convert"]:
        from unipixel_jax.convert.cli import main as convert

        return convert(argv[1:])
    if argv[:1] == ["bench"]:
        from unipixel_jax.bench.cli import main as bench

        return bench(argv[1:])
    if argv[:1] == ["data"]:
        with needing("train", "looking at training data"):
            from unipixel_jax.data.cli import main as data
        return data(argv[1:])
    with_fields = {"train": _train, "plan": _plan}
    if argv and argv[0] in with_fields:
        arguments = [argument for argument in argv[1:] if argument != "--verbose"]  # it may stand among the fields, and is none of them
        args = argparse.Namespace(run=with_fields[argv[0]], arguments=arguments, verbose="--verbose" in argv, attention=None)
    else:
        args = _parser().parse_args(argv)
    with ExitStack() as stack:
        _show_progress(args, stack)
        if args.run is _parity:
            _optimise_little(args.recording)
        _cache_programs()
        if args.attention is not None:
            _use_attention(args.attention, stack)
        return int(args.run(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="unipixel-jax", description="Segment, track and discuss objects named in words, in images and video.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    segment = commands.add_parser("segment", help="segment what a prompt asks for", description="Segment what a prompt asks for, in a photo or a clip.")
    segment.add_argument("media", metavar="MEDIA", help="a photo, a video file, or a folder of frames")
    segment.add_argument("prompt", metavar="PROMPT", help='for example: "Please segment the dog."')
    segment.set_defaults(run=_segment)

    ask = commands.add_parser("ask", help="ask about objects that you point at", description="Answer a question about objects given by points or boxes.")
    ask.add_argument("media", metavar="MEDIA", help="a photo, a video file, or a folder of frames")
    ask.add_argument("question", metavar="QUESTION", help='with <region> for each reference, for example: "What is <region> doing?"')
    # one list of both, in the order of the <region>s that they are for
    pointed = partial(ask.add_argument, action="append", dest="references", default=[])
    pointed("--point", type=lambda text: (2, text), metavar="X,Y[,FRAME]", help="a place on the object, in pixels; may be repeated")
    pointed("--box", type=lambda text: (4, text), metavar="X0,Y0,X1,Y1[,FRAME]", help="a rectangle around the object; may be repeated")
    ask.set_defaults(run=_ask)

    for command in (segment, ask):
        command.add_argument("--model", type=Path, metavar="DIR", help=MODEL_HELP)
        command.add_argument("--dtype", choices=("float32", "bfloat16"), help="cast the weights and compute in this (default: the checkpoint's own)")
        command.add_argument("--tensor", type=int, default=1, metavar="N", help="chips of this machine that share the work (default: 1)")
        command.add_argument("--output-dir", type=Path, default=Path("outputs"), metavar="DIR", help="where the pictures go (default: outputs)")
        command.add_argument("--format", choices=("gif", "mp4"), default="gif", help="of a clip's overlay (default: gif); a photo's is a PNG")
        command.add_argument("--sample-frames", type=int, default=16, metavar="N", help="frames of a clip to take at most (default: 16)")
        command.add_argument("--as-stored", action="store_true", help="take a photo as it is stored, not upright as its EXIF tag asks, as the reference does")
        command.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="where an answer is cut off (default: 512)")
        command.add_argument("--json", type=Path, metavar="FILE", help="write text, token ids, boxes, areas and COCO run-length masks")
        command.add_argument("--masks", type=Path, metavar="FILE.npz", help="write the masks as booleans [objects, frames, height, width]")

    parity = commands.add_parser("parity", help="replay a recording of the torch reference and compare")
    parity.add_argument("recording", type=Path, metavar="RECORDING", help="a folder made by scripts/record_reference.py")
    parity.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    parity.set_defaults(run=_parity)

    judge = commands.add_parser("eval", help="measure the embedded model, or another, on scenes of shapes that it has never seen")
    judge.add_argument("benchmark", choices=("shapes",), help="what to measure on")
    judge.add_argument("--model", type=Path, metavar="DIR", help=MODEL_HELP)
    judge.add_argument("--pictures", type=_count, default=500, metavar="N", help="pictures, with a question of every kind each (default: 500)")
    judge.add_argument("--clips", type=_count, default=100, metavar="N", help="clips (default: 100)")
    judge.add_argument("--json", type=Path, metavar="FILE", help="write the scores")
    judge.set_defaults(run=_eval)

    demo = commands.add_parser("demo", help="run on a photo and a clip that ship with the package")
    demo.add_argument("--output-dir", type=Path, default=Path("outputs"), metavar="DIR", help="where the pictures go (default: outputs)")
    demo.set_defaults(run=_demo)

    for command in (segment, ask, parity, judge, demo):
        command.add_argument("--attention", metavar="NAME", help=ATTENTION_HELP)
        command.add_argument("--verbose", action="store_true", help="show the time of each stage, and the traceback of an error")
    commands.add_parser("convert", help="convert weights between torch and JAX, or say what a checkpoint holds (convert --help)", add_help=False)
    commands.add_parser("data", help="look at training data, and pack it (data --help)", add_help=False)
    commands.add_parser("train", help="train a model, or export what was trained (train --help)", add_help=False)
    commands.add_parser("plan", help="say whether a run fits a topology, and what it costs there (plan --help)", add_help=False)
    commands.add_parser("bench", help="measure speed (bench --help)", add_help=False)
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value}, expected at least 0")
    return value


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
    """Of as many chips; None for one."""
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
    """The media, and where its overlay goes. Whatever can be known to fail is found out here, before the work."""
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
    """A name of as many bytes at most."""
    while len(os.fsencode(name)) > most:
        name = name[:-1]
    return name


def _report(args: argparse.Namespace, prediction: Prediction, clip: Clip, overlay: Path) -> int:
    from unipixel_jax.infer.visualize import answer_text, chip, save_overlay

    colour = sys.stdout.isatty()
    print(answer_text(prediction, colour))
    for number, item in enumerate(prediction.objects, start=1):
        seen = [frame for frame, area in enumerate(item.areas) if area]
        where = f"in {len(seen)} of {len(item.areas)} frames" if len(item.areas) > 1 else f"{max(item.areas)} pixels, box {item.boxes[0]}"
        print(f"{chip(number, colour)} {where}")
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


def _parity(args: argparse.Namespace) -> int:
    from rich.console import Console

    from unipixel_jax.core.files import replacing, writable
    from unipixel_jax.parity.recording import open_recording
    from unipixel_jax.parity.run import CaseResult, print_table, replay, to_json

    if args.json is not None:
        writable(args.json)
    log = logging.getLogger("unipixel_jax.parity")
    recording = open_recording(args.recording)
    results: list[CaseResult] = []
    for result in replay(recording):
        log.debug("case %d of %d, %s done", len(results) + 1, len(recording.cases), result.name)
        results.append(result)
    report = to_json(results)
    print_table(results, Console(width=None if sys.stdout.isatty() else 160))
    if args.json is not None:
        with replacing(args.json) as aside:
            aside.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    failed = [case["name"] for case in report["cases"] if not case["passed"]]
    print(f"{len(results)} cases, all passed" if report["passed"] else f"{len(failed)} of {len(results)} cases FAILED: {', '.join(failed)}")
    return 0 if report["passed"] else 1


def _eval(args: argparse.Namespace) -> int:
    from rich.progress import track

    from unipixel_jax.core.files import replacing, writable
    from unipixel_jax.infer.loading import EMBEDDED
    from unipixel_jax.infer.predictor import UniPixel
    from unipixel_jax.synthetic.evaluation import judge, summary

    if args.json is not None:
        writable(args.json)
    model = UniPixel.from_pretrained(args.model or EMBEDDED, "float32")
    questions = judge(model, args.pictures, args.clips)
    judged = list(track(questions, "judging", total=5 * args.pictures + 2 * args.clips, disable=not sys.stderr.isatty()))
    scores = summary(judged)
    for name, score in scores.items():
        print(f"{name:32} {score['mean']:.3f}  of {score['count']}")
    if args.json is not None:
        with replacing(args.json) as aside:
            aside.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    return 0


def _demo(args: argparse.Namespace) -> int:
    from unipixel_jax.demo import run

    for line in run(args.output_dir):
        print(line)
    return 0


def _train(args: argparse.Namespace) -> int:
    from unipixel_jax.train.cli import main as train

    return train(args.arguments)


def _plan(args: argparse.Namespace) -> int:
    from unipixel_jax.plan.cli import main as plan

    return plan(args.arguments)


class _Lines(logging.Handler):
    """Prints records as lines that stay: above a bar too, since whoever draws one takes the place of sys.stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=sys.stderr)


def _show_progress(args: argparse.Namespace, stack: ExitStack) -> None:
    """Warnings, as lines. Beside them one changing line on a terminal, except for commands with a bar; with ``--verbose``, the time of each stage."""
    logger = logging.getLogger("unipixel_jax")
    stack.callback(logger.setLevel, logger.level)
    stack.callback(setattr, logger, "propagate", logger.propagate)
    logger.propagate = False
    lines = _Lines(logging.INFO if args.verbose else logging.WARNING)
    logger.setLevel(lines.level)
    _add_handler(logger, lines, stack)
    if args.verbose or args.run in (_train, _eval) or not sys.stderr.isatty():
        return
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.text import Text

    spinner = Spinner("dots", "starting ...")
    stack.enter_context(Live(spinner, console=Console(stderr=True), transient=True, refresh_per_second=12.5, redirect_stdout=sys.stdout.isatty()))
    status = logging.Handler()
    status.addFilter(lambda record: record.levelno < lines.level)
    status.emit = lambda record: spinner.update(text=Text(record.getMessage()))  # type: ignore[method-assign]
    logger.setLevel(logging.DEBUG)
    _add_handler(logger, status, stack)


def _add_handler(logger: logging.Logger, handler: logging.Handler, stack: ExitStack) -> None:
    logger.addHandler(handler)
    stack.callback(logger.removeHandler, handler)


def _optimise_little(recording: Path) -> None:
    """Compile without optimisation for a small recording: dozens of small programs that each run once, and half of the work would be that."""
    weights = sum(file.stat().st_size for file in recording.glob("checkpoint/*.safetensors"))
    if weights < SMALL_WEIGHTS and "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
        # read when jax starts
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"


def _use_attention(name: str, stack: ExitStack) -> None:
    from unipixel_jax.ops.attention import BACKENDS, use_attention

    if name not in BACKENDS:
        raise UserError(f"--attention is {name!r}, expected one of {', '.join(BACKENDS)}")
    stack.enter_context(use_attention(name))


def _cache_programs() -> None:
    """Keep compiled programs on disk, so that the second run starts fast. ``UNIPIXEL_JAX_CACHE`` moves the folder; empty, it turns the cache off."""
    folder = os.environ.get(CACHE_VARIABLE, str(Path.home() / ".cache" / "unipixel_jax"))
    if not folder:
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


if __name__ == "__main__":
    sys.exit(main())
