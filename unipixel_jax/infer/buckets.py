"""The padded sizes of prompts about one image or clip."""

from __future__ import annotations

from dataclasses import replace

from unipixel_jax.core.buckets import BUCKETS

PROMPT_BUCKETS = replace(BUCKETS, objects=replace(BUCKETS.objects, step=8))
"""Columns for ``<|seg|>`` tokens come in multiples of 8, so that generation is not compiled anew for prompts with one and with five of them."""

IMAGE_BUCKETS = {1: 47, 16: 191}
"""The number of combinations of padded sizes in which photos (1) and clips of up to 16 frames (16) reach the published models' vision tower, whatever the
size of the media.
"""
