#!/usr/bin/env python3
"""Compile our TPU attention kernels and JAX's splash attention, forward and backward, and print what the compiler made of each.

For every kernel it prints the steps of its grid, the matrix products in its body, its VMEM, and the bundles (instruction words) of its schedule; then the
program's temporary memory. Nothing runs, and no TPU is needed, only libtpu. With a full mask each kernel has one body, so that its bundles are about the cycles
of a step.

    python scripts/compare_splash.py v5e 2 8 4096 128 512 512          # chip, key heads, queries per key head, length, head size, blocks
    python scripts/compare_splash.py v5e 2 8 32768 128 1024 1024 --causal
"""

from __future__ import annotations

import argparse
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DUMP = tempfile.TemporaryDirectory(prefix="compare_splash_")
# libtpu reads this when it is loaded, so it must be set before JAX is imported
os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={DUMP.name} --xla_jf_dump_llo_text=true"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask  # noqa: E402

from unipixel_jax.core.accelerators import compile_mesh  # noqa: E402
from unipixel_jax.ops.attention import AttnMask, pallas_tpu  # noqa: E402


def main() -> None:
    """Compile both kernels and print their reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chip", choices=("v5e", "v5p", "v6e"))
    for name in ("key_heads", "group", "length", "head_size", "q_block", "kv_block"):
        parser.add_argument(name, type=int)
    parser.add_argument("--causal", action="store_true")
    args = parser.parse_args()
    rows = (args.key_heads, args.group, args.length, args.head_size)
    keys = (args.key_heads, args.length, args.head_size)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in (rows, keys, keys, rows)]
    mesh = compile_mesh(args.chip)
    for name, attend in (("ours", ours(args)), ("splash", splash(args))):
        with jax.set_mesh(mesh):
            report(name, attend, shapes, jax.NamedSharding(mesh, jax.P()))


def ours(args: argparse.Namespace) -> Callable[..., jax.Array]:
    """Return a call of our kernel with the block sizes that were asked for."""
    blocks = pallas_tpu.BlockSizes(args.q_block, args.kv_block, args.q_block, args.kv_block)
    pallas_tpu.block_sizes = lambda *_: blocks
    mask, scale = AttnMask(args.causal), args.head_size**-0.5
    return lambda q, k, v: pallas_tpu.attend(q[None], k[None], v[None], mask, scale)[0][0]


def splash(args: argparse.Namespace) -> Callable[..., jax.Array]:
    """Return a call of JAX's splash attention, which takes one key head at a time and does not scale the queries."""
    names = {"q": ("block_q", "block_q_dkv", "block_q_dq"), "kv": ("block_kv", "block_kv_compute", "block_kv_dkv", "block_kv_dkv_compute", "block_kv_dq")}
    sizes = {**dict.fromkeys(names["q"], args.q_block), **dict.fromkeys(names["kv"], args.kv_block)}
    one = (splash_attention_mask.CausalMask if args.causal else splash_attention_mask.FullMask)((args.length, args.length))
    heads = splash_attention_mask.MultiHeadMask([one] * args.group)
    blocks = splash_attention_kernel.BlockSizes(**sizes)
    kernel = splash_attention_kernel.make_splash_mqa(heads, block_sizes=blocks, head_shards=1, q_seq_shards=1)
    return lambda q, k, v: jax.vmap(kernel)(q * jnp.asarray(args.head_size**-0.5, q.dtype), k, v)


def report(name: str, attend: Callable[..., jax.Array], shapes: list[Any], sharding: Any) -> None:
    """Compile attention with its gradients, and print the figures of each kernel."""

    def both(q: jax.Array, k: jax.Array, v: jax.Array, d_out: jax.Array) -> Any:
        out, pull = jax.vjp(attend, q, k, v)
        return out, pull(d_out)

    for path in Path(DUMP.name).iterdir():
        path.unlink()
    for kernel, grid, products in kernels(jax.make_jaxpr(both)(*shapes).jaxpr):
        print(f"{name:7} {kernel:32} {math.prod(grid):7} steps, {products} products in the body")
    program = jax.jit(both, in_shardings=sharding).lower(*shapes).compile()
    for call in re.split(r"\n  (?:ROOT )?%", program.as_text()):
        used = re.search(r'"used_scoped_memory_configs":\[\{[^]]*"size":"(\d+)"', call) if "tpu_custom_call" in call else None
        if used:
            print(f"{name:7} {call.split(' ')[0]:32} {int(used[1]) / 1e6:7.1f} MB of VMEM")
    for path in sorted(Path(DUMP.name).glob("*final_hlo-static-per-bundle-utilization.txt")):
        if re.search("attention_|splash_", path.name):
            bundles = [line for line in path.read_text().split("== UTILIZATION:\n")[1].splitlines() if re.match(r"\s*\d", line)]
            print(f"{name:7} {path.name.split('-')[1]:32} {len(bundles):7} bundles")
    print(f"{name:7} {'temporary memory':32} {program.memory_analysis().temp_size_in_bytes / 1e6:7.1f} MB")


def kernels(jaxpr: Any) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Yield name, grid and number of matrix products of each Pallas call that is compiled."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name != "pallas_call":
            for inner in within(eqn):
                yield from kernels(inner)
        elif not eqn.params["interpret"]:
            yield str(eqn.params["name"]), eqn.params["grid_mapping"].grid, products(eqn.params["jaxpr"])


def products(jaxpr: Any) -> int:
    """Return how many matrix products a program contains."""
    return sum(eqn.primitive.name == "dot_general" or sum(map(products, within(eqn))) for eqn in jaxpr.eqns)


def within(eqn: Any) -> Iterator[Any]:
    """Yield the programs inside of an operation."""
    for value in eqn.params.values():
        for one in value if isinstance(value, (tuple, list)) else [value]:
            if hasattr(one, "eqns") or hasattr(one, "jaxpr"):
                yield getattr(one, "jaxpr", one)


if __name__ == "__main__":
    main()
