"""The list of all kinds of cases."""

from __future__ import annotations

from . import commands, converted, data_sets, images, recordings, shards, torch, training, videos

KINDS = tuple(module.KIND for module in (torch, converted, training, shards, recordings, images, videos, data_sets, commands))
