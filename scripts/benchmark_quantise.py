#!/usr/bin/env python3
"""Measure what quantised weights cost in exactness: scripts/benchmark_quantise.py layer | masks [--samples N]

``layer`` prints, for the shape of UniPixel-3B with random weights, one layer at a time, how far the layer's output is from that of float32 weights, relative to
what the layer adds to its input. ``masks`` prints, for drawn scenes that the embedded model has not seen, the IoU with the masks that the model gives in
bfloat16, the IoU with the true masks, and how many answers are the same word for word.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unipixel_jax import UniPixel
from unipixel_jax.config import TextConfig, preset
from unipixel_jax.core.quantisation import Quantisation, is_quantised, scales_of
from unipixel_jax.core.quantising import quantise
from unipixel_jax.data.synthetic.language import full_name
from unipixel_jax.data.synthetic.scene import draw_scene
from unipixel_jax.models.qwen_vl.text import Block
from unipixel_jax.models.unipixel import abstract_model
from unipixel_jax.ops.rope import mrope_angles
from unipixel_jax.synthetic.evaluation import MAX_NEW_TOKENS, SEED, iou

INT8 = Quantisation("int8")
LAYER = [INT8, replace(INT8, int8_activations=True), *(Quantisation("int8", n) for n in (128, 32)), *(Quantisation("int4", n) for n in (128, 64, 32))]
MASKS = [INT8, replace(INT8, int8_activations=True), Quantisation("int8", 32), Quantisation("int4", 32), Quantisation("int4", 16)]
TOKENS, LAYERS = 128, 1


def main() -> int:
    """Print one of the tables; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("layer", "masks"))
    parser.add_argument("--samples", type=int, default=60, metavar="N", help="drawn scenes (default: 60)")
    args = parser.parse_args()
    return layer() if args.table == "layer" else masks(args.samples)


def layer() -> int:
    """Print the relative errors of single layers."""
    text = preset("3b").text
    x, angles = _tokens(text)
    rope, segments = (jnp.cos(angles), jnp.sin(angles)), jnp.ones((1, TOKENS), jnp.int32)

    @jax.jit
    def run(block: Block, x: jax.Array) -> jax.Array:
        return block(x, rope, segments)[0] - x

    errors: dict[Quantisation | None, list[float]] = {how: [] for how in (None, *LAYER)}
    for number in range(LAYERS):
        arrays = _weights(text, number)
        wanted = run(_block(None, arrays), x)
        for how, found in errors.items():
            dtype = jnp.bfloat16 if how is None else jnp.float32
            added = run(_block(how, arrays, dtype), x.astype(dtype)).astype(jnp.float32)
            found.append(float(jnp.linalg.norm(added - wanted) / jnp.linalg.norm(wanted)))
            print(f"layer {number}, {_name(how):40} {found[-1]:.2%}", flush=True)
    return 0


def masks(samples: int) -> int:
    """Print the IoU of masks."""
    scenes = [draw_scene(np.random.default_rng([SEED, 7, number])) for number in range(samples)]
    full: list = []
    for how in (None, *MASKS):
        weights = None if how is None else replace(how, int8_activations=False)
        model = UniPixel.from_pretrained(weights=weights, activations="int8" if how and how.int8_activations else None)
        found = [model.segment(scene.frames, f"Segment the {full_name(scene, 0)}.", max_new_tokens=MAX_NEW_TOKENS) for scene in scenes]
        full = full or found
        true = [_overlap(prediction, scene.masks[0]) for prediction, scene in zip(found, scenes, strict=True)]
        alike = [_overlap(prediction, wanted.objects[0].masks) for prediction, wanted in zip(found, full, strict=True) if wanted.objects]
        same = sum(prediction.text == wanted.text for prediction, wanted in zip(found, full, strict=True))
        print(f"{_name(how):40} with bfloat16's {np.mean(alike):.4f} (least {min(alike):.4f}), with the truth {np.mean(true):.4f}, {same} of {samples} answers")
    return 0


def _overlap(prediction: object, mask: np.ndarray) -> float:
    objects = prediction.objects  # type: ignore[attr-defined]
    return iou(objects[0].masks, mask) if len(objects) == 1 else 0.0


def _name(how: Quantisation | None) -> str:
    return "bfloat16" if how is None else f"{how}{', int8 activations' if how.int8_activations else ''}"


def _tokens(text: TextConfig) -> tuple[jax.Array, jax.Array]:
    """Inputs of a layer [1, TOKENS, D], of which some features are 30 times as large as the others, as in trained models, and the angles of their rope."""
    x = np.random.default_rng(0).normal(size=(1, TOKENS, text.hidden_size)).astype(np.float32)
    x[..., :8] *= 30
    places = jnp.broadcast_to(jnp.arange(TOKENS, dtype=jnp.int32), (3, 1, TOKENS))
    return jnp.asarray(x), mrope_angles(places, text.head_dim, text.rope_theta, text.mrope_section)


def _weights(text: TextConfig, seed: int) -> dict[tuple, np.ndarray]:
    """Weights of one layer by their paths in the model: normal matrices that keep the variance, norms of one, biases of zero."""
    rng = np.random.default_rng(seed)
    model = abstract_model(replace(preset("3b"), text=replace(text, num_hidden_layers=1)))

    def make(path: tuple, shape: tuple[int, ...]) -> np.ndarray:
        if is_quantised(path):
            return rng.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)
        return np.full(shape, path[-1] == "weight", np.float32)

    flat = nnx.to_flat_state(nnx.state(model))
    return {path: make(path, leaf.get_value().shape[1:]) for path, leaf in flat if path[:2] == ("text", "blocks")}


def _block(how: Quantisation | None, arrays: dict[tuple, np.ndarray], dtype: jnp.dtype = jnp.float32) -> Block:
    """Return a layer with these weights, quantised; for None with all weights in ``dtype``."""
    config = replace(preset("3b"), text=replace(preset("3b").text, num_hidden_layers=1), quantisation=how)
    graph, state = nnx.split(abstract_model(config).text.blocks)
    made = {}
    for path, array in arrays.items():
        if how is not None and is_quantised(path):
            made |= dict(zip((path, scales_of(path)), quantise(array, how.weights, how.group), strict=True))
        else:
            made[path] = array.astype(dtype)
    leaves = [(path, leaf.replace(jnp.asarray(made[("text", "blocks", *path)]))) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(leaves))


if __name__ == "__main__":
    raise SystemExit(main())
