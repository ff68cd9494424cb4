"""The padded sizes of prompts about one image or clip."""

from __future__ import annotations

from dataclasses import replace

from unipixel_jax.core.buckets import BUCKETS

PROMPT_BUCKETS = replace(BUCKETS, objects=replace(BUCKETS.objects, step=8))
"""Columns for ``<|seg|>`` tokens come in multiples of 8: their number is no reason to compile generation anew for prompts with one or with five."""

IMAGE_BUCKETS = {1: 47, 16: 191}
"""In how many combinations of sizes photos (1) and clips of up to 16 frames come to the published models' vision tower, whatever the size of the media."""
