"""The names of JAX's private package ``jax._src`` that are used here. JAX gives no public name for them, and may move them in any version.

A name that is not where it was is told when it is used, with a version of JAX that has it.
"""

from __future__ import annotations

import importlib
from typing import Any

import jax

from unipixel_jax.errors import UserError

KNOWN_GOOD = "0.10.2"
"""A version of JAX in which all of them were found."""


def distributed_state() -> Any:
    """The state of ``jax.distributed``: its ``client`` of the coordination service (None before it is initialised), ``coordinator_address``,
    ``process_id`` and ``num_processes``.

    Raises:
        UserError: this version of JAX keeps it elsewhere.
    """
    return _private("distributed", "global_state")


def cluster_types() -> tuple[Any, ...]:
    """The classes by which JAX recognises a cluster that tells its processes who they are: TPU pods on GKE and on GCE, and Slurm.

    Raises:
        UserError: this version of JAX keeps them elsewhere.
    """
    return tuple(_private("clusters", name) for name in ("GkeTpuCluster", "GceTpuCluster", "SlurmCluster"))


def _private(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(f"jax._src.{module}"), name)
    except (ImportError, AttributeError) as error:
        missing = f"JAX {jax.__version__} has no jax._src.{module}.{name} ({error})"
        raise UserError(f"{missing}; version {KNOWN_GOOD} has it: run pip install jax=={KNOWN_GOOD}") from None
