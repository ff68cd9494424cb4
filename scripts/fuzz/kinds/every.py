"""All kinds."""

from __future__ import annotations

from . import commands, converted, data_sets, pictures, recordings, shards, torch, training, videos

KINDS = tuple(module.KIND for module in (torch, converted, training, shards, recordings, pictures, videos, data_sets, commands))
