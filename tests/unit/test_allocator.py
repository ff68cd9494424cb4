"""The memory of arrays that are gone is used for the next ones."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from unipixel_jax.core.allocator import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
np.ones(40 << 20, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(40 << 20, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_a_large_array_takes_the_memory_of_the_one_before():
    faults = [int(subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True).stdout) for how in ("keep", "default")]
    assert faults[0] < 100 < faults[1], faults
