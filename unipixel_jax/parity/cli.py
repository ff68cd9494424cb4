"""``unipixel-jax parity``: replay a recording of the torch reference, and report how close our outputs are; or compare two recordings with each other."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from unipixel_jax.arguments import add_attention
from unipixel_jax.errors import UserError, needing

if TYPE_CHECKING:
    from unipixel_jax.parity.recording import Recording

SMALL_WEIGHTS = 200e6
"""The bytes of a recording's weights below which its programs are compiled fast instead of well."""
FAST_COMPILATION = ("--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")
"""Flags of XLA for programs that run a few times. Without optimisation; each fusion written straight as LLVM code, without the passes of MLIR that took half
of the time; and as one module, whose parts need not be linked."""
KNOWN_JAX = "0.10."
"""The releases of JAX whose XLA has these flags: XLA ends a process that sets a flag that it does not know."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``parity``."""
    parser.description = (
        "Replay a recording of the torch reference and compare, or compare it with another recording. The exit status is 1 where something differs."
    )
    parser.add_argument("recording", type=Path, metavar="RECORDING", help="a folder made by scripts/record_reference.py")
    parser.add_argument("--against", type=Path, metavar="OTHER", help="replay nothing; compare what RECORDING and this other one hold for the cases in both")
    runtimes = "replay through the programs of an export: onnxruntime, StableHLO by JAX, or an Ascend NPU (docs/export.md)"
    parser.add_argument("--runtime", choices=("onnx", "stablehlo", "acl"), help=runtimes)
    exported = "the folder of the export for --runtime, which is made if it is not there (default: a temporary one)"
    parser.add_argument("--export", type=Path, metavar="FOLDER", help=exported)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    add_attention(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from unipixel_jax.core.files import replacing, writable

    with needing("train", "replaying a recording"):
        from unipixel_jax.parity.against import compare_recordings
        from unipixel_jax.parity.recording import open_recording
        from unipixel_jax.parity.run import CaseResult, print_table, replay, replay_exported, to_json

    if args.runtime is not None and args.against is not None:
        raise UserError("--runtime replays a recording and --against compares two without replaying: give one of them")
    if args.export is not None and args.runtime is None:
        raise UserError("--export is the folder of the programs for --runtime: add --runtime onnx, stablehlo or acl")
    _compile_fast(args.recording)
    if args.json is not None:
        writable(args.json)
    log = logging.getLogger("unipixel_jax.parity")
    recording = open_recording(args.recording)
    other = None if args.against is None else open_recording(args.against)
    results: list[CaseResult] = []
    if other is not None:
        found = compare_recordings(recording, other)
    else:
        found = replay(recording) if args.runtime is None else replay_exported(recording, args.runtime, args.export)
    for result in found:
        log.debug("case %d of %d, %s done", len(results) + 1, len(recording.cases), result.name)
        results.append(result)
    report = to_json(results)
    print_table(results, Console(width=None if sys.stdout.isatty() else 160))
    if args.json is not None:
        with replacing(args.json) as aside:
            aside.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if other is not None:
        _print_pair(recording, other)
    left = len(recording.cases) - len(results)
    if args.runtime is not None and left:
        print(f"{left} other cases are of things that no program of an export computes")
    failed = [case["name"] for case in report["cases"] if not case["passed"]]
    print(f"{len(results)} cases, all passed" if report["passed"] else f"{len(failed)} of {len(results)} cases FAILED: {', '.join(failed)}")
    return 0 if report["passed"] else 1


def _print_pair(recording: Recording, other: Recording) -> None:
    """Say of each of two recordings what it was made with, and which cases it alone has."""
    names = [[case.name for case in one.cases] for one in (recording, other)]
    for one, own, others in zip((recording, other), names, reversed(names), strict=True):
        alone = ", ".join(name for name in own if name not in others)
        print(f"{one.root}: {one.made_with}{alone and f'; it alone has {alone}'}")


def _compile_fast(recording: Path) -> None:
    """Compile for few runs where the recording is small: dozens of small programs run once each, and compiling them is nearly all of the time."""
    weights = sum(file.stat().st_size for file in recording.glob("checkpoint/*.safetensors"))
    if weights < SMALL_WEIGHTS and version("jax").startswith(KNOWN_JAX) and "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
        # JAX reads this when it initialises its first backend, so it must be set before
        os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FAST_COMPILATION])
