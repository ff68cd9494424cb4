"""The backends of attention that run on the platform of the tests (tests/conftest.py)."""

import os

HERE = {
    "cpu": ("xla", "xla_chunked", "pallas_tpu", "pallas_gpu"),  # kernels in interpret mode
    "cuda": ("xla", "xla_chunked", "pallas_gpu"),
    "tpu": ("xla", "xla_chunked", "pallas_tpu"),
}[os.environ["JAX_PLATFORMS"]]
