"""``python -m unipixel_jax.runtime``: segment a photo or a clip with an export."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from unipixel_jax.errors import run_command


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status.

    Args:
        argv: the arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m unipixel_jax.runtime", description="Segment a photo or a clip with an export, without JAX.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made by: unipixel-jax export MODEL FOLDER --format onnx")
    parser.add_argument("media", help="a photo, a video, or a folder of frames")
    parser.add_argument("prompt", help='for example "Please segment the dog."')
    parser.add_argument("--backend", choices=("onnx", "acl"), default="onnx", help="onnxruntime, or pyACL on an Ascend NPU (default: onnx)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write text, boxes, scores and masks (COCO's run lengths)")
    parser.add_argument("--masks", type=Path, metavar="FILE", help="write the masks as a compressed .npz")
    args = parser.parse_args(argv)
    return run_command(lambda: _run(args), verbose=False)


def _run(args: argparse.Namespace) -> int:
    from unipixel_jax.runtime.session import BACKENDS, Runtime

    found = Runtime.open(args.folder, BACKENDS[args.backend]).segment(args.media, args.prompt)
    print(found.text)
    for number, item in enumerate(found.objects, 1):
        seen = [place for place, area in enumerate(item.areas) if area]
        where = f"on {len(seen)} of {len(item.areas)} frames, box {item.boxes[seen[0]]}" if seen else "not found"
        print(f"object {number}: {where}, score {float(max(item.scores)):.3f}")
    if args.json:
        found.save_json(args.json)
    if args.masks:
        found.save_masks(args.masks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
