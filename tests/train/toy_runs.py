"""A training state of a few small arrays, and checkpoints of it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from unipixel_jax.train.checkpoints.manager import Checkpoints
from unipixel_jax.train.checkpoints.manifest import RunInfo
from unipixel_jax.train.checkpoints.reader import named_leaves

RUN_INFO = RunInfo({"lr": 1e-3}, {"text": {"width": 64, "sections": (2, 3)}, "lora": {"rank": 8}, "trained": ["seg"]}, {"start": "base"})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ToyState:
    step: jax.Array
    trained: dict
    opt_state: optax.OptState


def make_state(step=0, rows=16):
    generator = np.random.default_rng(step)
    draw = lambda *shape: jnp.asarray(generator.standard_normal(shape, np.float32))  # noqa: E731
    trained = {"text": {"blocks": {"q": draw(3, rows, 8)}}, "sam2": {"stages": {0: {"w": draw(rows)}, 1: {"w": draw(rows, 4).astype(jnp.bfloat16)}}}}
    moments = optax.adamw(1e-3).init(trained)
    return ToyState(jnp.int32(step), trained, jax.tree.map(lambda a: a + jnp.ones((), a.dtype), moments))


def abstract(state, sharding=None):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding or a.sharding), state)


def same_bits(a, b):
    a, b = named_leaves(a), named_leaves(b)
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and np.asarray(a[n]).tobytes() == np.asarray(b[n]).tobytes() for n in a)


def saved(directory, *steps, keep=5, **kwargs):
    """A closed directory with a checkpoint of each step."""
    with Checkpoints(directory, RUN_INFO, keep, **kwargs) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"position": step})


def restored(directory, target=None, run_info=RUN_INFO):
    with Checkpoints(directory, run_info, 5) as checkpoints:
        return checkpoints.restore(target or abstract(make_state()))


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def mesh_sharding(count, *spec):
    devices = np.array(jax.devices()[:count]).reshape(-1, 2 if count > 1 else 1)
    return NamedSharding(jax.sharding.Mesh(devices, ("fsdp", "tp")), PartitionSpec(*spec))


def divided(state, count):
    """Return the shape, dtype and sharding of each leaf on a mesh of ``count`` devices, whose axes shard the last two dimensions."""
    specs = {0: (), 1: ("fsdp",), 2: ("fsdp", "tp"), 3: (None, "fsdp", "tp")}
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=mesh_sharding(count, *specs[a.ndim])), state)


def each_file(step, change):
    """Change every file that holds numbers: Orbax leaves some behind that nothing refers to."""
    for path in [*(step / "state").rglob("d/*")]:
        change(path)


def flip(step):
    def change(path):
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)

    each_file(step, change)
