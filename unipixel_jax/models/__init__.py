"""Qwen2.5-VL, SAM 2.1 and UniPixel as Flax modules. Importing this package registers their inputs (``batch.py``, which knows no JAX) as pytrees."""

from dataclasses import fields

import jax

from unipixel_jax.batch import HOST_ONLY, ModelInputs, References, TrainBatch, TrainClips, VisionTables

for _kind in (VisionTables, References, ModelInputs, TrainClips, TrainBatch):
    _host = [field.name for field in fields(_kind) if HOST_ONLY in field.metadata]
    jax.tree_util.register_dataclass(_kind, [field.name for field in fields(_kind) if field.name not in _host], [], drop_fields=_host)
