#!/usr/bin/env python3
"""Time torch's attention at the shapes of `unipixel-jax bench attention`: scripts/benchmark_torch_attention.py [--work NAME ...] [--json FILE]

Needs torch; on a GPU its flash attention is used where it takes the shape. Segments are left out, since flash attention takes no mask, so such work has more
pairs there than in ours. Without torch the file says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from unipixel_jax.bench.attention import WORKS, Work

REPEATS = 5


def main() -> int:
    """Time all that is asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", choices=tuple(WORKS), default=list(WORKS), metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    try:
        import torch
    except ImportError:
        found: dict[str, Any] = {"not measured": "torch is not installed"}
    else:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        found = {"torch": torch.__version__, "device": device, "seconds": {name: timed(torch, WORKS[name], device) for name in args.work}}
    text = json.dumps(found, indent=1) + "\n"
    print(text, end="")
    if args.json is not None:
        args.json.write_text(text, encoding="utf-8")
    return 0


def timed(torch: Any, work: Work, device: str) -> dict[str, float | str]:
    """Return the median seconds of a call forward, and forward and backward, in bfloat16; or why torch does not compute it."""
    make = lambda length, heads, size: torch.randn(work.batch, heads, length, size, device=device, dtype=torch.bfloat16, requires_grad=True)  # noqa: E731
    q, k = make(work.queries, work.heads, work.head_size), make(work.keys, work.key_heads, work.head_size)
    v = make(work.keys, work.key_heads, work.value_size)

    def forward() -> Any:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=work.causal, enable_gqa=work.heads != work.key_heads)

    def backward() -> None:
        forward().sum().backward()

    try:
        return {"forward": clock(torch, forward, device), "forward and backward": clock(torch, backward, device)}
    except RuntimeError as error:
        return {"refused": str(error).splitlines()[0][:200]}


def clock(torch: Any, call: Any, device: str) -> float:
    """Return the median seconds of a call, after one that is not timed."""
    times = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


if __name__ == "__main__":
    raise SystemExit(main())
