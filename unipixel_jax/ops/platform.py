"""Where the program being traced will run."""

from __future__ import annotations

import jax


def platform(device: jax.Device | None = None) -> str:
    """One of "cpu", "gpu" and "tpu": of that device, or else of the mesh that is set (whose devices may not be here), or else the default."""
    where = device or jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if where is None else where.platform
    return {"cuda": "gpu", "rocm": "gpu"}.get(name, name)


def device_kind() -> str:
    """The kind of device, such as "TPU v5 lite": of the mesh that is set, or else of the first device here."""
    return (jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]).device_kind
