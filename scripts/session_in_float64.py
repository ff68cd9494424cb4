#!/usr/bin/env python3
"""Replay the sessions of a recording of SAM 2.1 in float64, and show how far the recording and our float32 are from that.

    python scripts/session_in_float64.py tests/recordings/sam2_nano

Both are float32, so that each is some rounding away from the exact result, and up to the sum of both away from the other. The bound on scores
(unipixel_jax/parity/compare.py) follows from these figures. The float64 replay is that of a copy of the package in whose SAM 2 each ``float32`` reads
``float64``. Ours is shown as XLA compiles it by default and as ``unipixel-jax parity`` has small recordings compiled.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import unipixel_jax
from unipixel_jax import convert
from unipixel_jax.parity.cli import FAST_COMPILATION

PARTS = ("core/params.py", "models/layers.py", "models/sam2", "ops", "infer/masks.py", "infer/sam2.py", "infer/segmentation.py", "infer/tracking.py",
         "parity/sam2_session.py", "processing/resize.py", "processing/square.py")  # fmt: skip
"""The files and folders of the package in which SAM 2 computes."""
GROUPS = ("scores", "pointers", "low_res")
"""The outputs that are compared, for each object on each frame: its score, its pointer and its mask's logits."""


def main() -> None:
    """Replay three times, each in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path, help="a recording with cases of the kind sam2_session")
    parser.add_argument("--keep", nargs=2, metavar=("DTYPE", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.keep:
        np.savez(args.keep[1], **replayed(args.recording, args.keep[0]))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _copy_in_float64(root)
        exact = _in_a_process(args.recording, root / "exact.npz", "float64", {"JAX_ENABLE_X64": "1", "PYTHONPATH": folder})
        plain = _in_a_process(args.recording, root / "plain.npz", "float32", {})
        quick = _in_a_process(args.recording, root / "quick.npz", "float32", {"XLA_FLAGS": " ".join(FAST_COMPILATION)})
    columns = {
        "recording to float64": (exact, "theirs", exact, "ours"),
        "ours to float64": (plain, "ours", exact, "ours"),
        "ours, compiled fast, to float64": (quick, "ours", exact, "ours"),
        "ours to recording": (plain, "ours", exact, "theirs"),
        "ours, compiled fast, to recording": (quick, "ours", exact, "theirs"),
    }
    print("largest relative error", *GROUPS, sep=" | ")
    for title, (one, own, other, others) in columns.items():
        print(title, *(f"{_largest(group, one[own], other[others]):.2e}" for group in GROUPS), sep=" | ")


def replayed(root: Path, dtype: str) -> dict[str, np.ndarray]:
    """Return what each action of each session returned, under "ours/" or "theirs/" and the names of case and tensor."""
    from unipixel_jax.infer.sam2 import Sam2Predictor
    from unipixel_jax.parity import sam2, sam2_session
    from unipixel_jax.parity.compare import Check
    from unipixel_jax.parity.recording import open_recording

    found: dict[str, np.ndarray] = {}
    recording = open_recording(root)
    predictor = Sam2Predictor.from_pretrained(root / "checkpoint", dtype=dtype)
    assert np.dtype(predictor.dtype) == dtype, predictor.dtype
    for case in recording.cases:
        if case.kind != "sam2_session":
            continue

        def keep(name: str, ours: np.ndarray, theirs: np.ndarray, case: str = case.name) -> Check:
            found[f"ours/{case}/{name}"], found[f"theirs/{case}/{name}"] = ours, theirs
            return Check(name, 0.0, 0.0, 0.0)

        sam2_session._check = keep
        sam2.KINDS[case.kind](case, predictor)
    return found


def _copy_in_float64(root: Path) -> None:
    package = root / "unipixel_jax"
    shutil.copytree(Path(unipixel_jax.__file__).parent, package)
    shutil.copytree(Path(convert.__file__).parent, package / "convert", dirs_exist_ok=True)
    for part in PARTS:
        for file in [package / part] if part.endswith(".py") else (package / part).rglob("*.py"):
            file.write_text(file.read_text(encoding="utf-8").replace("float32", "float64"), encoding="utf-8")


def _in_a_process(recording: Path, file: Path, dtype: str, variables: dict[str, str]) -> dict[str, dict[str, np.ndarray]]:
    subprocess.run([sys.executable, __file__, str(recording), "--keep", dtype, str(file)], env=os.environ | variables, check=True)
    with np.load(file) as arrays:
        return {side: {name.removeprefix(f"{side}/"): arrays[name] for name in arrays if name.startswith(f"{side}/")} for side in ("ours", "theirs")}


def _largest(group: str, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """Return the largest relative error of a group: of scores one by one, of others frame by frame, as the replay measures them."""
    from unipixel_jax.parity import compare

    measure = compare.close_scores if group == "scores" else compare.close_per_frame
    names = [name for name in ours if name.partition(".")[2] in (group, group.removesuffix("s"))]
    return max(measure(name, ours[name], theirs[name], 0.0).relative_error for name in names)


if __name__ == "__main__":
    main()
