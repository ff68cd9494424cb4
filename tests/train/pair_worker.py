"""One of two processes that save and restore together: `python pair_worker.py PORT PROCESS DIRECTORY`."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from unipixel_jax.errors import UserError
from unipixel_jax.train.checkpoints.manager import Checkpoints
from unipixel_jax.train.checkpoints.manifest import RunInfo

RUN_INFO = RunInfo({}, {"kind": "pair"}, {})
SHAPES = {"w": (16, 8), "large": (512, 1024), "b": (8,), "step": ()}


def whole(step: int) -> dict[str, np.ndarray]:
    """The arrays of a step, undivided."""
    generator = np.random.default_rng(step)
    return {name: np.asarray(generator.standard_normal(shape), np.float32) for name, shape in SHAPES.items()}


def main() -> None:
    """Save three steps, the newest of which the test then damages; restore; say what was found."""
    port, process, directory = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, -1), ("fsdp", "tp"))
    places = {name: NamedSharding(mesh, PartitionSpec("fsdp") if len(shape) == 2 else PartitionSpec()) for name, shape in SHAPES.items()}
    target = {name: jax.ShapeDtypeStruct(shape, np.float32, sharding=places[name]) for name, shape in SHAPES.items()}
    with Checkpoints(directory, RUN_INFO, keep=2) as checkpoints:
        for step in (1, 2, 3):
            state = {name: jax.make_array_from_callback(a.shape, places[name], lambda index, a=a: a[index]) for name, a in whole(step).items()}
            checkpoints.save(step, state, {"position": 10 * step})
        checkpoints.wait()
        refused = ""
        try:
            checkpoints.save(4, state, {"position": 40 + process})
        except UserError as error:
            refused = str(error)
        first = checkpoints.restore(target)
        if process == 0:
            for path in (directory / "3" / "state").rglob("ocdbt.process_1/d/*"):
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        multihost_utils.sync_global_devices("damaged")
        second = checkpoints.restore(target)
    right = all(np.array_equal(shard.data, whole(2)[name][shard.index]) for name, a in second.state.items() for shard in a.addressable_shards)
    print(json.dumps({"first": [first.step, first.data], "second": [second.step, second.data], "refused": refused, "right": right}))


if __name__ == "__main__":
    main()
