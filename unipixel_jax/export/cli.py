"""``unipixel-jax export``: write the parts of inference as programs that run without this package."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from unipixel_jax.arguments import SMALL_MODEL
from unipixel_jax.errors import UserError

SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


def configure(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``export``."""
    parser.description = __doc__
    parser.epilog = "Every program is compared with JAX; the errors are printed and kept in export.json. docs/export.md shows how to run them."
    parser.add_argument("model", metavar="MODEL", help="a converted directory, a torch checkpoint, or a Hub id; 'shapes' for the small model of the package")
    parser.add_argument("output", type=Path, metavar="FOLDER", help="the folder to make")
    parser.add_argument("--format", choices=("onnx", "stablehlo"), required=True, help="ONNX (opset 18), or portable StableHLO")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="some of encode prompt decode first_frame track vision prefill step; all unless given")
    parser.add_argument("--platform", nargs="+", choices=("cpu", "cuda", "tpu"), help="platforms of StableHLO; all unless given")
    kernels = "StableHLO with kernels for this chip, such as v5e or h100, which need not be on this machine (default: programs without kernels)"
    parser.add_argument("--chip", metavar="CHIP", help=kernels)
    parser.add_argument("--objects", type=int, default=1, help="objects that are tracked together (%(default)s)")
    parser.add_argument("--frames", type=int, default=1, help="frames that the language model looks at (%(default)s, a photo)")
    parser.add_argument("--size", default="448x448", metavar="WxH", help="the largest size of a frame for the language model (%(default)s)")
    parser.add_argument("--words", type=int, default=64, help="tokens of a prompt's words (%(default)s)")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens of an answer (%(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export, and print how far each program is from JAX; returns the exit status.

    Raises:
        UserError: the model cannot be loaded or exported.
    """
    from unipixel_jax.export.shapes import Shapes
    from unipixel_jax.export.to_stablehlo import PLATFORMS
    from unipixel_jax.export.write import PARTS, export
    from unipixel_jax.hub.resolve import resolve
    from unipixel_jax.infer.loading import EMBEDDED, load

    size = SIZE.fullmatch(args.size)
    if size is None:
        raise UserError(f"--size {args.size[:40]!r}: expected width x height in pixels, such as 448x336")
    if (args.platform or args.chip) and args.format == "onnx":
        raise UserError(f"--{'platform' if args.platform else 'chip'} is for StableHLO: an ONNX program runs wherever its runtime does")
    if args.platform and args.chip:
        raise UserError(f"--chip {args.chip[:40]} makes programs for its own platform: leave --platform out")
    width, height = map(int, size.groups())
    shapes = Shapes(args.objects, args.frames, height, width, args.words, args.new_tokens)
    loaded = load(EMBEDDED if args.model == SMALL_MODEL else resolve(args.model), "float32")
    made = export(loaded, args.output, args.format, shapes, args.parts or PARTS, args.platform or PLATFORMS, args.chip)
    print(f"{'part':<12} {'file':<24} {'MB':>8}  largest relative error against JAX")
    for name, part in made.parts.items():
        megabytes = (args.output / part.file).stat().st_size / 1e6
        error = f"{max(part.parity.values()):.1e}" if part.parity else f"not run: there is no {args.chip} here"
        print(f"{name:<12} {part.file:<24} {megabytes:>8.1f}  {error}")
    return 0
