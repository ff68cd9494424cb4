"""One of several processes that compute together: `python hosts_worker.py HOSTS BEHAVIOUR`, where HOSTS are fields of HostsConfig as JSON.

A process takes steps, each a sum over all devices of all processes, and says what it reaches. In step 5 it does what BEHAVIOUR says.
"""

import json
import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unipixel_jax.core import distributed
from unipixel_jax.core.distributed import HostsConfig, connected
from unipixel_jax.errors import UserError


def behave(behaviour: str) -> None:
    """Do in the middle of a step what ``behaviour`` names, such as to die."""
    if behaviour == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "fail":
        raise UserError("the disk is full")
    if behaviour == "stick":
        time.sleep(1000)
    if behaviour == "wait":
        distributed.barrier("save", 2)


def main() -> None:
    """Connect, then take steps."""
    config, behaviour = HostsConfig(**json.loads(sys.argv[1])), sys.argv[2]
    with connected(config):
        mesh = Mesh(np.array(jax.devices()), ("data",))
        divided = NamedSharding(mesh, PartitionSpec("data"))
        total = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))
        own = jax.process_index()
        for step in range(8):
            distributed.reach(f"step {step}")
            stopped = distributed.any_process("stop", own == 1 and step == 7)
            if step == 5:
                behave(behaviour)
            rows = jax.make_array_from_process_local_data(divided, np.full(jax.local_device_count(), own + 1, np.float32))
            print(f"step {step}: {float(total(rows))}", flush=True)
        largest = distributed.max_over_processes("sizes", {"tokens": 100 * own, "rows": 8 - own})
        print(json.dumps({"largest": largest, "names": distributed.gather("names", f"I am {own}"), "stopped": stopped}))


if __name__ == "__main__":
    main()
