#!/usr/bin/env python3
"""Compile every plan of docs/plan.md and write its tables and image: scripts/write_plan_table.py [ROW ... | --table]

A row takes minutes to compile and is kept in docs/plans/ROW.json. A row whose file exists is not compiled again unless it is named, and with --table nothing is
compiled. Needs the extras train, tpu and plot.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from unipixel_jax.plan.report import MARKDOWN, SERVING_MARKDOWN, PlanReport, plot

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "plans"
SEVEN, THREE = "configs/unipixel_7b_stage3.py", "configs/unipixel_3b_stage3.py"
STEP = ["--programs", "gradients"]
DOTS, HALF = ["--remat", "dots"], ["--remat", "half"]
FULL = ["--full-effort"]
LONG = ["--frames", "64", "--tokens", "32768"]


def batch(at_once: int, samples: int = 32) -> list[str]:
    """Return the arguments for a step of ``samples`` samples, of which ``at_once`` form a batch."""
    return ["--batch-size", str(at_once), "--accumulation", str(samples // at_once)]


ROWS = {
    "7b_v5e-16": [SEVEN, "--topology", "v5e-16", *FULL, *STEP, *batch(16), *HALF],
    "7b_v5e-16_update": [SEVEN, "--topology", "v5e-16", *FULL, "--programs", "update", *batch(16)],
    "7b_v5e-64": [SEVEN, "--topology", "v5e-64", *STEP, *batch(64, 64)],
    "7b_v5e-64_context": [SEVEN, "--topology", "v5e-64", *STEP, *batch(32), "--mesh.context", "2"],
    "7b_v5p-16": [SEVEN, "--topology", "v5p-16", *FULL, *STEP, *batch(16), *DOTS],
    "7b_v5p-16_language": [SEVEN, "--topology", "v5p-16", *FULL, "--programs", "language part", *batch(16), *DOTS],
    "7b_v6e-16": [SEVEN, "--topology", "v6e-16", *FULL, *STEP, *batch(16), *DOTS],
    "3b_v5e-8": [THREE, "--topology", "v5e-8", *FULL, *STEP, *batch(8), *HALF],
    "3b_v5e-16": [THREE, "--topology", "v5e-16", *FULL, *STEP, *batch(16), *HALF],
    "3b_v5e-64": [THREE, "--topology", "v5e-64", *STEP, *batch(32), "--mesh.context", "2"],
    "3b_v5p-16": [THREE, "--topology", "v5p-16", *FULL, *STEP, *batch(16), *DOTS],
    "3b_v6e-16": [THREE, "--topology", "v6e-16", *FULL, *STEP, *batch(16), *DOTS],
    "7b_v5e-256": [SEVEN, "--topology", "v5e:16x16", *STEP, *batch(256, 256)],
    "7b_v5e-256_hybrid": [SEVEN, "--topology", "v5e:16x16", *STEP, *batch(256, 256), "--mesh.preset", "hybrid", "--mesh.slices", "16"],
    "7b_2xv5e-16": [SEVEN, "--topology", "2*v5e:4x4", "--programs", "gradients", "update", *batch(32), "--mesh.preset", "hybrid", "--mesh.slices", "2"],
    "7b_long_v5e-16": [SEVEN, "--topology", "v5e-16", *STEP, *LONG, *batch(1), "--mesh.context", "16"],
    "7b_long_v5e-64": [SEVEN, "--topology", "v5e-64", *STEP, *LONG, *batch(8), "--mesh.context", "8"],
    "7b_long_v6e-16": [SEVEN, "--topology", "v6e-16", *STEP, *LONG, *batch(2), "--mesh.context", "8"],
    "7b_long_v5p-16": [SEVEN, "--topology", "v5p-16", *STEP, *LONG, *batch(2), "--mesh.context", "4"],
    "3b_long_v5e-16": [THREE, "--topology", "v5e-16", *STEP, *LONG, *batch(1), "--mesh.context", "16"],
    "3b_long_v5e-64": [THREE, "--topology", "v5e-64", *STEP, *LONG, *batch(8), "--mesh.context", "8"],
    "3b_long_v6e-16": [THREE, "--topology", "v6e-16", *STEP, *LONG, *batch(2), "--mesh.context", "8"],
    "3b_long_v5p-16": [THREE, "--topology", "v5p-16", *STEP, *LONG, *batch(2), "--mesh.context", "4"],
    "7b_h100-8": [SEVEN, "--topology", "h100:8", *STEP, *batch(8), *DOTS],
}

SERVED = ("v5e-1", "v5e-4", "v5e-8", "v6e-1", "v6e-8", "h100:1")
"""Topologies whose chips answer prompts."""
DECODE = ["--programs", "decode", *FULL, "--prompts", "1", "8", "32"]
READ = ["--programs", "prefill", "track", "--prompts", "8"]
SERVING_ROWS = {
    f"serve_{size}_{topology.replace(':', '-')}_{what}": [config, "--topology", topology, *programs]
    for size, config in (("3b", THREE), ("7b", SEVEN))
    for topology in SERVED
    for what, programs in (("decode", DECODE), ("read", READ))
}


def main() -> int:
    """Compile the rows that are missing or named, and write table and image; return the exit status."""
    named = sys.argv[1:]
    rows = {**ROWS, **SERVING_ROWS}
    unknown = [name for name in named if name not in rows and named != ["--table"]]
    if unknown:
        print(f"error: no row {unknown[0]!r}: expected some of {', '.join(rows)}", file=sys.stderr)
        return 2
    FOLDER.mkdir(exist_ok=True)
    for name, arguments in rows.items():
        path = FOLDER / f"{name}.json"
        if name in named or (not named and not path.exists()):
            print(f"{name}: unipixel-jax plan {' '.join(arguments)}", flush=True)
            command = [sys.executable, "-m", "unipixel_jax.cli", "plan", *arguments, "--json", str(path)]
            if subprocess.run(command, cwd=ROOT).returncode not in (0, 1):  # 1: it does not fit, which is a row as well
                return 1
    reports, served = (reports_of(own) for own in (ROWS, SERVING_ROWS))
    (FOLDER / "table.md").write_text("\n".join([MARKDOWN, *(report.markdown_rows() for report in reports)]) + "\n", encoding="utf-8")
    (FOLDER / "serving.md").write_text("\n".join([SERVING_MARKDOWN, *(report.serving_rows() for report in served)]) + "\n", encoding="utf-8")
    if reports:
        plot(reports, FOLDER / "table.png")
    return 0


def reports_of(rows: Iterable[str]) -> list[PlanReport]:
    """Return the reports of the rows that were compiled."""
    return [PlanReport.from_json(found) for name in rows if (FOLDER / f"{name}.json").exists() for found in read(name)]


def read(name: str) -> list[dict]:
    """Return the reports of a row."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    raise SystemExit(main())
