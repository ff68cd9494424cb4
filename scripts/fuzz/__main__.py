"""Run the commands on mutated files and odd arguments, and count how they end.

    python -m scripts.fuzz                              # 5,000 cases, about an hour
    python -m scripts.fuzz --only images --count 100
    python -m scripts.fuzz --only images --case 17    # one case again, with what it writes
    python -m scripts.fuzz.kills                        # commands are killed at file events

The exit status is 1 if a case ended in another way than by success or an error in one line. Such cases are kept in WORK/failures.
WORK/results.jsonl has a line for each case.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

TOTAL = 5000
WORK = Path(__file__).parents[2] / "build" / "fuzz"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the fuzz as the arguments say; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=TOTAL, metavar="N", help=f"cases of all kinds together (default: {TOTAL})")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: 0)")
    parser.add_argument("--only", action="append", metavar="KIND", help="a kind of cases; may be repeated (default: all)")
    parser.add_argument("--seconds", type=float, default=30.0, help="longest time of a case, beyond which it counts as a hang (default: 30)")
    parser.add_argument("--case", type=int, metavar="N", help="run this case of the kind alone, and show what it writes")
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help="folder for inputs, compiled programs and failures (default: build/fuzz)")
    args = parser.parse_args(argv)
    settings(args.work)
    from rich.console import Console  # after the settings, which JAX reads when it is imported

    from .kinds.every import KINDS
    from .run import Runner

    chosen = [kind for kind in KINDS if args.only is None or kind.name in args.only]
    if not chosen or len(chosen) != len(set(args.only or chosen)) or (args.case is not None and len(chosen) > 1):
        parser.error(f"--only: expected some of {', '.join(kind.name for kind in KINDS)}; with --case, one")
    runner = Runner(args.work.absolute(), args.seed, args.seconds)
    console = Console(width=None if sys.stdout.isatty() else 200)
    shares = sum(kind.share for kind in chosen)
    (args.work / "results.jsonl").unlink(missing_ok=True)
    results, begun = [], time.monotonic()
    for kind in chosen:
        runner.prepare(kind)
        numbers = range(max(1, round(args.count * kind.share / shares))) if args.case is None else (args.case,)
        for number in numbers:
            result = runner.run(kind, number)
            results.append(result)
            with (args.work / "results.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(result)) + "\n")
            if result.failed or args.case is not None:
                place = runner.keep(result)
                console.print(
                    f"{kind.name} {number}: {result.outcome}: {result.detail}\n  {result.command[:300]}\n  {result.note[:300]}", markup=False, highlight=False
                )
            if args.case is not None:
                console.print(
                    *(f"--- {name}\n{(place / 'control' / name).read_text(errors='replace')}" for name in ("out", "err")), str(place), sep="\n", markup=False
                )
    console.print(table(results, time.monotonic() - begun))
    return 1 if any(result.failed for result in results) else 0


def settings(work: Path) -> None:
    """Set the environment of the commands: JAX uses the CPU, compiles quickly and caches programs, and nothing of the user's is written."""
    (work / "tmp").mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "UNIPIXEL_JAX_CACHE": str(work.absolute() / "programs"),
        "TMPDIR": str(work.absolute() / "tmp"),
        "WANDB_MODE": "disabled",
        "PYTHONDONTWRITEBYTECODE": "1",
        "COLUMNS": "160",
    }
    from .confine import write_only_below

    write_only_below(work.absolute())


def table(results: Sequence[object], seconds: float) -> object:
    """Return a table of the counts of outcomes, with a row for each kind."""
    from rich.table import Table

    from .judge import FAILURES, OK, REFUSED, REPORTED
    from .run import Result

    found = [result for result in results if isinstance(result, Result)]
    columns = (OK, REFUSED, REPORTED, *FAILURES)
    made = Table("kind", "cases", *columns, "median, s", "longest, s", "growth, MB", title=f"{len(found)} cases in {seconds / 60:.1f} min")
    names = list(dict.fromkeys(result.kind for result in found))
    for name in [*names, "all"]:
        own = [result for result in found if name in (result.kind, "all")]
        counts = Counter(result.outcome for result in own)
        times = [result.seconds for result in own]
        figures = (f"{statistics.median(times):.2f}", f"{max(times):.1f}", str(max(result.growth for result in own) >> 20))
        made.add_row(name, str(len(own)), *(str(counts[column] or "") for column in columns), *figures)
    return made


if __name__ == "__main__":
    sys.exit(main())
