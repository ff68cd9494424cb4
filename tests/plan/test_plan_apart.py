"""Plans in processes of their own: memory goes with the process, errors come back."""

import os
import resource
import signal

import numpy as np
import pytest

from unipixel_jax.errors import UserError
from unipixel_jax.plan.apart import apart

MIB = 2**20


def compile_something(size):
    """In the place of a compiler: keeps memory, and says which process it is and how much that has needed."""
    kept = np.ones(size * MIB, np.uint8)
    return os.getpid(), int(kept[-1]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def held():
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) // 1024 for line in file if line.startswith("VmRSS"))


def refuse():
    raise UserError("a batch of 8 does not divide among 3 parts")


def run_out():
    os.kill(os.getpid(), signal.SIGKILL)


def test_memory_ends_with_the_process():
    before = held()
    found = [apart(compile_something, 200) for _ in range(2)]
    assert len({pid for pid, _, _ in found} | {os.getpid()}) == 3
    assert all(most >= 200 for _, _, most in found) and held() < before + 50


def test_what_the_process_raises():
    with pytest.raises(UserError, match="a batch of 8 does not divide among 3 parts"):
        apart(refuse)
    with pytest.raises(UserError, match="was killed, probably since this machine's memory ran out"):
        apart(run_out)
