"""The only uses of JAX's private package ``jax._src``. JAX has no public names for these objects, and may move them in any version.

Where one has moved, its first use raises an error that names a version of JAX that has it.
"""

from __future__ import annotations

import importlib
from typing import Any

import jax

from unipixel_jax.errors import UserError

KNOWN_GOOD = "0.10.2"
"""A version of JAX that has all of these names."""


def distributed_state() -> Any:
    """Return the state of ``jax.distributed``: its ``client`` of the coordination service (None before it is initialised), ``coordinator_address``,
    ``process_id`` and ``num_processes``.

    Raises:
        UserError: this version of JAX does not have it under the known name.
    """
    return _private("distributed", "global_state")


def cluster_types() -> tuple[Any, ...]:
    """Return the classes by which JAX recognises clusters that number their processes: TPU pods on GKE and on GCE, and Slurm.

    Raises:
        UserError: this version of JAX does not have them under the known names.
    """
    return tuple(_private("clusters", name) for name in ("GkeTpuCluster", "GceTpuCluster", "SlurmCluster"))


def _private(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(f"jax._src.{module}"), name)
    except (ImportError, AttributeError) as error:
        missing = f"JAX {jax.__version__} has no jax._src.{module}.{name} ({error})"
        raise UserError(f"{missing}; version {KNOWN_GOOD} has it: run pip install jax=={KNOWN_GOOD}") from None
