"""A step of one batch on some mesh; as a program, in double precision: `python presets_worker.py START NAME KIND FILE [HOSTS]`.

HOSTS are fields of HostsConfig as JSON, where several processes take the step together. The first writes what it found to FILE. In double precision two
programs that compute the same agree to thirteen digits, whatever their order of summing: what differs then is not rounding, and no threshold of the tracker
is crossed by it.
"""

import json
import pickle
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

if __name__ == "__main__":  # before the package is imported: what it computes in float32 becomes float64
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_dtype_promotion", "standard")  # constants stay float32
    jnp.float32 = jnp.float64

from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from micro_run import BUCKETS, MODEL, micro_config

from unipixel_jax.core import distributed
from unipixel_jax.core.buckets import Buckets
from unipixel_jax.core.distributed import HostsConfig, connected
from unipixel_jax.core.mesh import MeshConfig, data_shards, devices_per_sample
from unipixel_jax.core.sharding import batch_spec
from unipixel_jax.data.pipeline import DrawSample, open_loader, open_mixture
from unipixel_jax.models.lora import LoraConfig
from unipixel_jax.processing.tokenizer import Tokenizer
from unipixel_jax.train.config import TrainConfig
from unipixel_jax.train.feed import to_devices
from unipixel_jax.train.setup import lay_out, set_up
from unipixel_jax.train.step import make_gradients, make_update, step_key

TEXT = replace(MODEL.text, num_attention_heads=4, num_key_value_heads=2, hidden_size=32, intermediate_size=32)
WIDE = replace(MODEL, text=TEXT, vision=replace(MODEL.vision, out_hidden_size=32))
"""With heads enough to divide."""

MESHES = {
    "single": (MeshConfig("single"), 1),
    "dp, 2": (MeshConfig("dp"), 2),
    "dp, 4": (MeshConfig("dp"), 4),
    "dp, 8": (MeshConfig("dp"), 8),
    "fsdp, 2": (MeshConfig("fsdp"), 2),
    "fsdp, 4": (MeshConfig("fsdp"), 4),
    "fsdp, 8": (MeshConfig("fsdp"), 8),
    "fsdp_tp, 2": (MeshConfig("fsdp_tp", tensor=2), 2),
    "fsdp_tp, 4": (MeshConfig("fsdp_tp", tensor=2), 4),
    "fsdp_tp, 8": (MeshConfig("fsdp_tp", tensor=4), 8),
    "hybrid, 2": (MeshConfig("hybrid", slices=2), 2),
    "hybrid, 4": (MeshConfig("hybrid", slices=2), 4),
    "hybrid, 8": (MeshConfig("hybrid", slices=2), 8),
    "fsdp and context, 8": (MeshConfig("fsdp", context=2), 8),
    "fsdp_tp and context, 8": (MeshConfig("fsdp_tp", tensor=2, context=2), 8),
}
"""By name: a mesh, and of how many devices."""


def config_of(start: Path, mesh: MeshConfig, kind: str) -> TrainConfig:
    """The run on a mesh, with a kind of drawn scenes."""
    config = micro_config(start, mesh=mesh, lora=LoraConfig(rank=4), trained=("lora", "embedding", "ref", "ref_enc", "msk", "seg", "sam2"))
    return replace(config, data=replace(config.data, datasets=kind), dtype=jnp.dtype(jnp.float32).name)


def one_step(start: Path, name: str, kind: str) -> Any:
    """Losses and gradients of a batch, those by path, on the host; after two updates all is finite."""
    mesh, count = MESHES[name]
    config = config_of(start, mesh, kind)
    setup = set_up(lay_out(config, WIDE, 6, jax.devices()[:count]), start)
    tokenizer = Tokenizer.from_directory(start)
    shared = devices_per_sample(setup.mesh)
    host, hosts = distributed.process_shard(NamedSharding(setup.mesh, batch_spec(1)), data_shards(setup.mesh))
    rows = Buckets("rows", data_shards(setup.mesh) // hosts, 1.0, 8)
    buckets = replace(BUCKETS, batch=rows, objects=replace(BUCKETS.objects, step=4))
    draw = DrawSample(tokenizer, setup.model_config, replace(config.data.draw, image_size=128))
    parts, agree = shared if shared > 1 else None, partial(distributed.max_over_processes, "sizes of a batch") if hosts > 1 else None
    mixture = open_mixture(kind, "", 8, 0)
    with open_loader(mixture, draw, config.data.loader, buckets=buckets, packed=False, parts=parts, host=host, hosts=hosts, agree=agree) as loader:
        arrays = next(loader).arrays
    gradients, update = make_gradients(setup), make_update(setup)
    state, first = setup.state, None
    for number in range(2):
        grads, losses = gradients(state.trained, setup.frozen, to_devices(arrays, setup.mesh), step_key(0, number, 0))
        if number == 0:
            flat = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(grads)}
            first = multihost_utils.process_allgather((losses, flat), tiled=True)
        state, numbers = update(state, grads, losses.total)
    assert bool(numbers.finite)
    return first


def main() -> None:
    """Take the step, alone or together with the other processes."""
    start, name, kind, file, *hosts = sys.argv[1:]
    with connected(HostsConfig(**json.loads(hosts[0]))) if hosts else nullcontext():
        found = one_step(Path(start), name, kind)
        if jax.process_index() == 0:
            Path(file).write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main()
