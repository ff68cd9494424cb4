"""A training process that a test kills. `python kill_worker.py` imports once and then forks a run for every line on its standard input.

A line is `DIRECTORY EVENT`: the run trains in that directory, and dies at the EVENT-th operation of Python on a file in it (0: it lives). The answers are a
line with the run's process id and, after its end, a line with its wait status. The run writes what it did to `DIRECTORY.log`.
"""

import hashlib
import os
import signal
import sys
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unipixel_jax.train.checkpoints.manager import Checkpoints
from unipixel_jax.train.checkpoints.manifest import RunInfo
from unipixel_jax.train.checkpoints.reader import named_leaves

STEPS, EVERY = 24, 4
WIDTH = 256
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "shutil.rmtree"}


def train(directory: str, log: int) -> None:
    """A toy training run, of which every step depends on all steps before it."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("fsdp",))
    divided = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    optimizer = optax.adam(1e-2)

    def start():
        trained = {"w": jax.random.normal(jax.random.key(0), (WIDTH, WIDTH))}
        return {"step": jnp.int32(0), "trained": trained, "opt_state": optimizer.init(trained)}

    places = jax.tree.map(lambda a: divided if a.ndim else whole, jax.eval_shape(start))

    def step(state, batch):
        gradient = jax.grad(lambda trained: jnp.mean((batch @ trained["w"] - batch) ** 2))(state["trained"])
        updates, moments = optimizer.update(gradient, state["opt_state"])
        return {"step": state["step"] + jnp.int32(1), "trained": optax.apply_updates(state["trained"], updates), "opt_state": moments}

    jitted = jax.jit(step, donate_argnums=0, out_shardings=places)
    with Checkpoints(directory, RunInfo({}, {"width": WIDTH}, {}), keep=2) as checkpoints:
        target = jax.tree.map(lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), jax.eval_shape(start), places)
        found = checkpoints.restore(target)
        state = found.state if found else jax.jit(start, out_shardings=places)()
        position = found.data["position"] if found else 100
        done = found.step if found else 0
        os.write(log, f"resumed {done}\n".encode())
        for number in range(done + 1, STEPS + 1):
            batch = np.random.default_rng(position).standard_normal((16, WIDTH), np.float32)
            position += 1
            state = jitted(state, batch)
            if number % EVERY == 0:
                checkpoints.save(number, state, {"position": position})
                os.write(log, f"saving {number}\n".encode())
    digest = hashlib.sha256(str(position).encode())
    for name, leaf in sorted(named_leaves(state).items()):
        digest.update(name.encode() + np.asarray(leaf).tobytes())
    os.write(log, f"done {digest.hexdigest()}\n".encode())


def run(directory: str, event: int) -> None:
    """One run, in a process of its own."""
    log = os.open(f"{directory}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    seen = 0

    def count(name: str, args: tuple) -> None:
        nonlocal seen
        if name in EVENTS and args and str(args[0]).startswith(directory):
            seen += 1
            if seen == event:
                os.write(log, f"dies at {name} {args[0]}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    train(directory, log)
    os.write(log, f"events {seen}\n".encode())


def main() -> None:
    """Fork a run for every line."""
    for line in sys.stdin:
        directory, event = line.split()
        child = os.fork()
        if child == 0:
            try:
                run(directory, int(event))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    main()
