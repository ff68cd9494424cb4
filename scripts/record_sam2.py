#!/usr/bin/env python3
"""Record what the torch reference of SAM 2.1 computes for prompts, for `unipixel-jax parity` to compare with.

The script needs torch, torchvision and a clone of github.com/facebookresearch/sam2, but not JAX. See docs/sam2.md.

    python scripts/record_sam2.py --reference sam2 --sizes sam2_nano --out recordings/sam2_nano --seed 3
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from recording import sam2_kinds, sam2_model, sam2_scenes
from recording.files import write_case, written_aside
from recording.reference import RecordingError
from recording.sam2_calibration import calibrate


def main() -> int:
    """Parse the command line and record; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, metavar="CLONE", help="the clone of facebookresearch/sam2")
    parser.add_argument("--sizes", default="sam2_nano", metavar="SPEC", help="a preset's name, or a JSON file of sizes")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write the recording (must not exist)")
    parser.add_argument("--seed", type=int, default=0, help="fixes the weights, the picture and the clips")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    # the order of sums, and with it the last bits, depends on the number of threads
    torch.set_num_threads(1)
    try:
        sam2_model.use_clone(args.reference)
        return record(args)
    except RecordingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def record(args: argparse.Namespace) -> int:
    """Make a random model, calibrate it, and record its cases into ``--out``; return the exit status.

    Raises:
        RecordingError: with this seed rounding may decide what a mask is, or a branch of the decoder is never taken.
    """
    sizes = sam2_model.read_sizes(args.sizes)
    checkpoint = "checkpoint"
    with written_aside(args.out) as folder:
        model = sam2_model.build(sizes, None)
        sam2_model.randomise(model, args.seed)
        calibrate(model, args.seed)
        sam2_model.save(model, sizes, folder / checkpoint)
        file = folder / checkpoint / sam2_model.CHECKPOINT
        model, entries = sam2_model.build(sizes, file), []
        with sam2_model.watched(model) as decodings, torch.inference_mode():
            cases = [sam2_kinds.prompts(model, args.seed)]
        report("sam2_prompts", decodings)
        for name, script in sam2_scenes.sessions().items():
            model = sam2_model.build(sizes, file, script["settings"])
            with sam2_model.watched(model) as decodings:
                cases.append(sam2_kinds.session(model, name, script, args.seed))
            report(name, decodings)
        for entry, inputs, outputs in cases:
            write_case(folder, entry, inputs, {name: value.contiguous() for name, value in outputs.items()})
            entries.append(entry)
        (folder / "export.json").write_text(json.dumps(header(args) | {"cases": entries}, indent=1) + "\n")
    print(f"recorded {len(entries)} cases in {args.out}")
    return 0


def report(name: str, decodings: sam2_model.Decodings) -> None:
    """Print what the decoder decided in a case.

    Raises:
        RecordingError: rounding may decide too.
    """
    print(f"{name:26} {decodings}")
    if decodings.near():
        raise RecordingError(f"{name}: {decodings.near()} decisions are within {sam2_model.MARGIN} of tipping over: choose another --seed")


def header(args: argparse.Namespace) -> dict[str, Any]:
    """Return the entries of ``export.json`` besides the cases."""
    git = subprocess.run(["git", "-C", str(args.reference), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "format": 1,
        "reference": {"repository": "facebookresearch/sam2", "commit": git.stdout.strip() or "unknown"},
        "device": "cpu",
        "dtype": "float32",
        "torch": torch.__version__,
        "seed": args.seed,
    }


if __name__ == "__main__":
    sys.exit(main())
