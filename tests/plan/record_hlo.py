"""Compile small programs for chips that are not here, and keep their texts for the tests that run without a compiler.

    JAX_PLATFORMS=cpu .venv-chips/bin/python tests/plan/record_hlo.py

They were last made with jax 0.10.2 and libtpu 0.0.42.1. Texts name no file of the machine that made them.
"""

import re
import sys
from pathlib import Path

from plan_programs import mesh_of, mlp

from unipixel_jax.core.files import replacing
from unipixel_jax.plan.topology import open_topology

HERE = Path(__file__).parent / "hlo"


def programs():
    """(name of the file, compiled program)."""
    yield "v5e_forward", mlp(mesh_of(open_topology("v5e:4x4").devices, fsdp=16), 6)
    yield "v5p_gradient", mlp(mesh_of(open_topology("v5p:2x2x1").devices, fsdp=4), 6, train=True)
    yield "v5e_slices_gradient", mlp(mesh_of(open_topology("2*v5e:2x2").devices, data=2, fsdp=4), 6, train=True)
    yield "h100_hosts_gradient", mlp(mesh_of(open_topology("h100:2x4").devices, data=2, fsdp=4), 6, train=True)


def anonymous(text):
    """Without the tables of source files, and what of the compiler's notes on each instruction nothing here reads."""
    text = re.sub(r"\n(FileNames|FunctionNames|FileLocations|StackFrames)\n(?:.+\n)*", "\n", text)
    text = re.sub(r', backend_config=\{"flag_configs":.*', "", text)
    return re.sub(r" stack_frame_id=\d+", "", text)


if __name__ == "__main__":
    for name, compiled in programs():
        text = anonymous(compiled.as_text())
        with replacing(HERE / f"{name}.txt") as aside:
            aside.write_text(text, encoding="utf-8")
        print(f"{name}: {len(text):,} bytes", file=sys.stderr)
