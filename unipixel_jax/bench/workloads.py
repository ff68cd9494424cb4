"""The workloads of ``unipixel-jax bench models``, under the names that scripts/benchmark_reference.py gives to the same work.

Sizes are real and weights random: SAM 2.1 base+ in frames of 768 pixels, and a language model of UniPixel-3B's widths with fewer layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from unipixel_jax.bench.timing import timed
from unipixel_jax.config import SAM2_SIZES, TextConfig, UniPixelConfig, preset
from unipixel_jax.infer import segmentation
from unipixel_jax.models.qwen_vl.cache import KVCache
from unipixel_jax.models.qwen_vl.text import TextModel
from unipixel_jax.models.unipixel import UniPixelModel, abstract_model, unstack_towers

Times = Iterator[tuple[str, list[float]]]
"""Pairs of a workload's name and the seconds per item of each timed run."""


@dataclass(frozen=True)
class Sizes:
    """How much to measure.

    Attributes:
        image_size: side of SAM's square frames, in pixels.
        frames: number of frames of the clip.
        objects: number of objects that are tracked together through the clip.
        layers: number of layers of the language model.
        prompt_tokens, new_tokens: number of tokens of the language model's prompt and answer.
        repeats: number of timed runs, after one that compiles.
    """

    image_size: int
    frames: int
    objects: int
    layers: int
    prompt_tokens: int
    new_tokens: int
    repeats: int


def sam2(sizes: Sizes, dtype: jnp.dtype) -> Times:
    """Time encoding and tracking per frame, and a whole clip with several objects, by the functions that ``unipixel-jax segment`` calls."""
    config = dataclasses.replace(preset("tiny"), sam2=dataclasses.replace(SAM2_SIZES["base_plus"], image_size=sizes.image_size))
    model = _random(config, dtype)
    rng = np.random.default_rng(1)
    frames = rng.standard_normal((sizes.frames, sizes.image_size, sizes.image_size, 3), np.float32)
    hidden = rng.standard_normal((sizes.objects, config.text.hidden_size), np.float32)
    name = f"sam2.{dtype.name}"

    def encode(count: int) -> Callable[[], object]:
        return lambda: list(segmentation.encoded(model.sam2, frames[:count], dtype, size=count))

    features = list(segmentation.encoded(model.sam2, frames, dtype))
    yield f"{name}.encode_per_frame.batch_1", timed(encode(1), sizes.repeats)
    yield f"{name}.encode_per_frame.batch_{sizes.frames}", timed(encode(sizes.frames), sizes.repeats, per=sizes.frames)
    track = partial(segmentation.track_features, model, features, hidden[:1], dtype, sizes.frames)
    yield f"{name}.track_per_frame.{sizes.frames}_frames_1_object", timed(track, sizes.repeats, per=sizes.frames)
    clip = partial(segmentation.clip_logits, model, frames, hidden, dtype)
    yield f"{name}.clip.{sizes.frames}_frames_{sizes.objects}_objects", timed(clip, sizes.repeats)


def language(sizes: Sizes, dtype: jnp.dtype) -> Times:
    """Time the prefill of one prompt, with the logits of its last position, and decoding per token."""
    config = TextConfig(num_hidden_layers=sizes.layers)
    tiny = preset("tiny")
    vision = dataclasses.replace(tiny.vision, out_hidden_size=config.hidden_size)
    text = _random(dataclasses.replace(tiny, text=config, vision=vision), dtype).text
    ids = jnp.asarray(np.random.default_rng(1).integers(1000, size=(1, sizes.prompt_tokens)), jnp.int32)
    slots = sizes.prompt_tokens + sizes.new_tokens
    name = f"language.{dtype.name}.{sizes.layers}_layers"

    @jax.jit
    def prefill(text: TextModel, ids: jax.Array) -> tuple[jax.Array, KVCache]:
        cache = KVCache.empty(config, 1, slots, dtype)
        return forward(text, ids, cache, jnp.int32(0))

    def forward(text: TextModel, ids: jax.Array, cache: KVCache, at: jax.Array) -> tuple[jax.Array, KVCache]:
        positions = jnp.broadcast_to(at + jnp.arange(ids.shape[1]), (3, *ids.shape))
        states, filled = text.extend(text.embed(ids, dtype), positions, jnp.ones(ids.shape, jnp.int32), cache, at)
        return jnp.argmax(text.logits(states[:, -1]), axis=-1, keepdims=True), filled

    @jax.jit
    def decode(text: TextModel, token: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        step = lambda i, loop: forward(text, loop[0], loop[1], sizes.prompt_tokens + i)  # noqa: E731
        return jax.lax.fori_loop(0, sizes.new_tokens, step, (token, cache))

    yield f"{name}.prefill_{sizes.prompt_tokens}_tokens", timed(lambda: prefill(text, ids), sizes.repeats)
    token, cache = prefill(text, ids)
    yield f"{name}.decode_per_token", timed(lambda: decode(text, token, cache), sizes.repeats, per=sizes.new_tokens)


PARTS: dict[str, Callable[[Sizes, jnp.dtype], Times]] = {"sam2": sam2, "language": language}


def _random(config: UniPixelConfig, dtype: jnp.dtype) -> UniPixelModel:
    """Return a model with small random weights, in the form that inference uses.

    One block of noise is repeated, since drawing all weights would take longer than the benchmark.
    """
    noise = np.random.default_rng(0).standard_normal(1 << 20, np.float32) * np.float32(0.02)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(np.resize(noise, leaf.shape)).astype(dtype)

    model = jax.tree.map(fill, abstract_model(config))
    if jax.default_backend() == "cpu":
        unstack_towers(model)
    return model
