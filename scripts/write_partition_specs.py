#!/usr/bin/env python3
"""Write the PartitionSpec of every weight of the 3B and 7B models on six meshes: scripts/write_partition_specs.py [FOLDER]

tests/unit/test_partition.py compares with these files, so that no sharding changes unnoticed.
"""

import json
import sys
from pathlib import Path

import jax
from flax import nnx
from jax.sharding import AbstractMesh

from unipixel_jax.config import preset
from unipixel_jax.core.mesh import AXES, MeshConfig
from unipixel_jax.core.params import abstract
from unipixel_jax.core.trees import join
from unipixel_jax.models.lora import LoraConfig, add_lora
from unipixel_jax.models.partition import partitioned
from unipixel_jax.models.unipixel import UniPixelModel, abstract_model

MESHES = {
    "single": (MeshConfig("single"), 1),
    "dp-8": (MeshConfig("dp"), 8),
    "fsdp-16": (MeshConfig("fsdp"), 16),
    "fsdp_tp-16": (MeshConfig("fsdp_tp", tensor=2), 16),
    "context-16": (MeshConfig("fsdp", context=8), 16),
    "hybrid-32": (MeshConfig("hybrid", slices=2), 32),
}
FOLDER = Path(__file__).parent.parent / "tests" / "unit" / "partition"


def specs(size: str, mesh: str) -> dict[str, str]:
    """Return the PartitionSpec of each weight, adapters included, by path."""
    config, (arrangement, devices) = preset(size), MESHES[mesh]
    sizes = arrangement.sizes(devices)

    def make(rngs: nnx.Rngs) -> UniPixelModel:
        return add_lora(abstract_model(config), LoraConfig(), rngs)

    model = partitioned(abstract(make), config, AbstractMesh(tuple(sizes.values()), AXES))
    flat = nnx.to_flat_state(nnx.state(model))
    return {join(path): str(tuple(leaf.get_value().sharding.spec)) for path, leaf in flat}


def main() -> int:
    """Write all files; return the exit status."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_platforms", "cpu")
    for size in ("3b", "7b"):
        for mesh in MESHES:
            (folder / f"{size}_{mesh}.json").write_text(json.dumps(specs(size, mesh), indent=0, sort_keys=True) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
