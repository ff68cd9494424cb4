"""The platform and the kind of device for which a program is traced."""

from __future__ import annotations

import jax


def platform(device: jax.Device | None = None) -> str:
    """Return "cpu", "gpu" or "tpu": the platform of ``device``, else of the mesh that is set (whose devices may not be on this machine), else JAX's default."""
    where = device or jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if where is None else where.platform
    return {"cuda": "gpu", "rocm": "gpu"}.get(name, name)


def device_kind() -> str:
    """Return the kind of device, such as "TPU v5 lite": that of the mesh that is set, else that of this machine's first device."""
    return (jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]).device_kind
