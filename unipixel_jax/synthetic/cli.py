"""`unipixel-jax eval`: how good a model is on scenes that it has never seen."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from unipixel_jax.arguments import add_attention, add_model, count


def configure(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``eval``."""
    parser.description = "Measure the embedded model, or another, on scenes of shapes that it has never seen."
    add_model(parser)
    parser.add_argument("--pictures", type=count, default=500, metavar="N", help="images, with a question of every kind each (default: 500)")
    parser.add_argument("--clips", type=count, default=100, metavar="N", help="clips (default: 100)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores")
    add_attention(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from rich.progress import track

    from unipixel_jax.core.cache import prepare_to_compile
    from unipixel_jax.core.files import replacing, writable
    from unipixel_jax.infer.loading import EMBEDDED
    from unipixel_jax.infer.predictor import UniPixel
    from unipixel_jax.synthetic.evaluation import judge, summary

    if args.json is not None:
        writable(args.json)
    prepare_to_compile()
    model = UniPixel.from_pretrained(args.model or EMBEDDED, "float32", revision=args.revision)
    questions = judge(model, args.pictures, args.clips)
    judged = list(track(questions, "judging", total=5 * args.pictures + 2 * args.clips, disable=not sys.stderr.isatty()))
    scores = summary(judged)
    for name, score in scores.items():
        print(f"{name:32} {score['mean']:.3f}  of {score['count']}")
    if args.json is not None:
        with replacing(args.json) as aside:
            aside.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    return 0
