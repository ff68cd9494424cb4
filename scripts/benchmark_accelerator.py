#!/usr/bin/env python3
"""Check and time this project on the accelerator of this machine: scripts/benchmark_accelerator.py --json FILE [--minutes 10] [--small]

The parts, each of which is a command of its own: the battery of attention on the hardware; every attention backend at the models' shapes, with cuDNN and,
where torch with CUDA is installed, torch's flash attention beside them; SAM's encoder and tracker (base+, frames of 768 and 1,024 pixels); prefill and
decoding of the 3B language model; one training step of the 3B model. The file is written anew after each part, so that what was measured is kept when time
is over. --small takes sizes that a CPU computes in seconds, which shows that the parts run and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unipixel_jax.core.accelerators import CHIPS, is_here
from unipixel_jax.core.files import replacing, writable

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "unipixel_jax.cli", "bench"]
BATTERY = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ops/test_attention.py"]
SMALL_TEST = ["-k", "test_a_batch_with_nothing_to_see"]


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
        name: its name in the file.
        command: the command that measures it. "JSON" in it stands for the file that the command writes; without it, the command's exit status is the result.
        share: the share of the time left that it may take.
        environment: environment variables of the command.
    """

    name: str
    command: Sequence[str]
    share: float
    environment: tuple[tuple[str, str], ...] = ()


def parts(chip: str, small: bool) -> list[Part]:
    """Return the parts for a chip ("cpu", or a name in ``CHIPS``), the most important first."""
    platform = "cpu" if chip == "cpu" else {"gpu": "cuda", "tpu": "tpu"}[CHIPS[chip].platform]
    dtypes = ["--dtypes", "float32" if small else "bfloat16"]
    works = ["--work", "Hiera windows"] if small else []
    quick = ["--backends", "xla", "--repeats", "1"] if small else []  # a CPU interprets the kernels, which takes minutes
    sam = ["--parts", "sam2", *dtypes, "--frames", "1" if small else "16", "--objects", "1" if small else "5", "--repeats", "1" if small else "5"]
    sides = ("64",) if small else ("768", "1024")
    language = ["--parts", "language", *dtypes, *(["--layers", "1", "--prompt-tokens", "8", "--new-tokens", "2"] if small else ["--layers", "36"])]
    sample = ["--frames", "1", "--tokens", "512", "--objects", "1", "--repeats", "1"] if small else []
    config = "configs/finetune_tiny.py" if small else "configs/unipixel_3b_stage3.py"
    step = [config, *sample, "--mesh.preset", "single", "--batch-size", "1"]
    return [
        Part("attention, battery", [*BATTERY, *(SMALL_TEST if small else [])], 0.3, (("UNIPIXEL_TEST_PLATFORM", platform),)),
        Part("attention, forward", [*COMMAND, "attention", "--chip", chip, *works, *quick, "--json", "JSON"], 0.3),
        Part("attention, forward and backward", [*COMMAND, "attention", "--chip", chip, "--backward", *works, *quick, "--json", "JSON"], 0.4),
        Part("attention, torch", [sys.executable, str(ROOT / "scripts" / "benchmark_torch_attention.py"), *works, "--json", "JSON"], 0.2),
        *(Part(f"SAM 2, {side} pixels", [*COMMAND, "models", *sam, "--image-size", side, "--json", "JSON"], 0.4) for side in sides),
        Part("language", [*COMMAND, "models", *language, "--json", "JSON"], 0.5),
        Part("training step", [*COMMAND, "step", *step, "--json", "JSON"], 1.0),
    ]


def run(part: Part, seconds: float) -> dict[str, Any]:
    """Run a part for at most ``seconds``, and return its figures or, where it has none, the last lines of what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [str(file) if word == "JSON" else word for word in part.command]
        started = time.monotonic()
        try:
            done = subprocess.run(
                command, cwd=ROOT, env={**os.environ, **dict(part.environment)}, timeout=seconds, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        except subprocess.TimeoutExpired:
            return {"command": part.command, "ended": f"stopped after {seconds:.0f} s"}
        result: dict[str, Any] = {"command": part.command, "seconds": round(time.monotonic() - started, 1), "status": done.returncode}
        if done.returncode == 0 and file.exists():
            return result | {"figures": json.loads(file.read_text(encoding="utf-8"))}
        return result | {"said": done.stdout.splitlines()[-12:]}


def main() -> int:
    """Run all parts; return the exit status, 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="the file to write")
    parser.add_argument("--minutes", type=float, default=10.0, help="the time for all parts together (default: 10)")
    parser.add_argument("--small", action="store_true", help="sizes that a CPU computes in seconds")
    args = parser.parse_args()
    writable(args.json)
    chip = next((name for name in CHIPS if is_here(name)), "cpu")
    end = time.monotonic() + 60 * args.minutes
    report: dict[str, Any] = {"chip": chip, "small": args.small, "parts": {}}
    for part in parts(chip, args.small):
        result = run(part, max(1.0, part.share * (end - time.monotonic())))
        report["parts"][part.name] = result
        print(f"{part.name}: {result.get('ended') or 'status {status}, {seconds} s'.format(**result)}", file=sys.stderr, flush=True)
        with replacing(args.json) as aside:
            aside.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(any(result.get("status") != 0 for result in report["parts"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
