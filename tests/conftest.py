"""The whole suite runs in JAX's strictest mode on eight pretended CPU devices; nothing is promoted, broadcast in rank, or warned about in silence.

The settings are environment variables, made before JAX is first imported, so that commands which tests start obey them too.
"""

import ctypes
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

PLATFORM = os.environ.get("UNIPIXEL_TEST_PLATFORM", "cpu")
"""The platform, in JAX's words, on which tests of operations run: "cuda" or "tpu" runs them on the hardware (scripts/benchmark_accelerator.py)."""
CACHE = Path(__file__).parent.parent / ".pytest_cache" / "programs"

os.environ |= {
    "JAX_PLATFORMS": PLATFORM,
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    # Accelerators multiply float32 matrices in fewer bits otherwise, and results are compared with float64.
    **({} if PLATFORM == "cpu" else {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}),
    # Compiled programs are kept, those of commands too, so that only the first run of the suite is slow, and in it each file finds what others compiled: also
    # the hundreds of small programs of operations outside jax.jit.
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "UNIPIXEL_JAX_CACHE": os.environ.get("UNIPIXEL_JAX_CACHE", str(CACHE)),
    # Programs here are small and run once or twice: not optimising them halves the time of the suite. Writing fusions as LLVM code without MLIR's passes, and
    # each program as one module, halves once more what compiling gradients takes. A process that inherits the flags does not repeat them, which would make
    # other programs of its own in the cache.
    "XLA_FLAGS": " ".join(
        dict.fromkeys(
            [
                *os.environ.get("XLA_FLAGS", "").split(),
                "--xla_force_host_platform_device_count=8",
                "--xla_backend_optimization_level=0",
                "--xla_cpu_use_fusion_emitters=false",
                "--xla_cpu_parallel_codegen_split_count=1",
            ]
        )
    ),
}

import gc  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from unipixel_jax.core.cache import NEW_OBJECTS  # noqa: E402

# A first example may compile a program, so time says nothing about an example.
settings.register_profile("default", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")

LAST = ("tests/convert", "tests/plan", "tests/data")
"""The folders whose files compile little. They come last, so that processes that share the files end at about the same time."""
MAPS = Path("/proc/self/maps")
"""The memory maps of this process, a line each, on Linux."""
MOST_MAPS = 12_000
"""With how many memory maps a process may go on to the next file of tests and still keep its programs, which take about 3 GB then."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that compile little behind the others, which take up to minutes."""
    root = Path(__file__).parent.parent
    items.sort(key=lambda item: item.path.relative_to(root).as_posix().startswith(LAST))


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(0)


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """A disk that fills while the test runs: `with full_disk(): ...`."""
    return _full_disk


@contextmanager
def _full_disk() -> Iterator[None]:
    """While it lasts no file grows past some kilobytes; the system says so as it does of a full disk.

    The limit holds for the whole process, so it must end within the test: pytest's own report may go to a longer file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def compiled() -> Iterator[list[float]]:
    """How long each program took that was compiled, or read from the cache of compiled programs, since the list was last cleared.

    Programs that other tests of this process left are forgotten first: they would hide what a warm-up leaves out.
    """
    jax.clear_caches()
    events: list[float] = []

    def listen(name: str, seconds: float, **_: object) -> None:
        if name == "/jax/core/compile/backend_compile_duration":
            events.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="session", autouse=True)
def devices() -> None:
    """Fail early where JAX was imported before the settings above were made, and collect garbage as seldom as commands that compile."""
    assert jax.device_count() == 8 or PLATFORM != "cpu"
    assert jax.config.jax_numpy_rank_promotion == "raise"
    gc.set_threshold(NEW_OBJECTS)


@pytest.fixture(scope="module", autouse=True)
def programs() -> Iterator[None]:
    """Let files of tests share programs until these hold many memory maps: Linux allows a process 65,530, past which compiling crashes.

    What a file leaves, such as programs, is not looked through for garbage again until then.
    """
    yield
    full = not MAPS.exists() or MAPS.read_bytes().count(b"\n") > MOST_MAPS
    if full:
        gc.unfreeze()
        jax.clear_caches()
    gc.collect()
    if full and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # glibc keeps most of what is freed otherwise
        trim(0)
    gc.freeze()
