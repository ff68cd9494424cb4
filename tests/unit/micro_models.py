"""Models of a few thousand weights, random in a way that makes every part matter."""

import dataclasses
import functools

import jax
import numpy as np
from flax import nnx

from unipixel_jax.config import Sam2Config, TextConfig, UniPixelConfig, VisionConfig, preset
from unipixel_jax.core.trees import join
from unipixel_jax.models.unipixel import UniPixelModel, abstract_model

TEXT = TextConfig(
    vocab_size=80, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, mrope_section=(2, 1, 1),
    tie_word_embeddings=False,
)  # fmt: skip
VISION = VisionConfig(
    depth=3, hidden_size=24, intermediate_size=40, num_heads=2, out_hidden_size=32, window_size=56, fullatt_block_indexes=(1,)
)  # fmt: skip
SAM2 = Sam2Config(
    image_size=32, embed_dim=8, num_heads=1, stages=(1, 3, 1, 1), global_att_blocks=(2,), window_spec=(4, 2, 2, 1), window_pos_embed_bkg_spatial_size=(4, 4),
    d_model=16, mem_dim=8, memory_attention_layers=2, memory_attention_ffn_dim=32, fuser_layers=1, num_maskmem=3,
)  # fmt: skip
MICRO: UniPixelConfig = dataclasses.replace(
    preset("tiny"), text=TEXT, vision=VISION, sam2=SAM2, image_token_id=70, video_token_id=71, vision_start_token_id=72, vision_end_token_id=73,
    ref_token_id=74, seg_token_id=75, mem_token_id=76,
)  # fmt: skip


@functools.cache
def micro_model(seed: int = 0) -> UniPixelModel:
    """The model of ``MICRO``. Biases, norms and embeddings are random too, so that none can be left out unnoticed."""
    rng = np.random.default_rng(seed)
    model = abstract_model(MICRO)

    def draw(path: tuple, leaf: nnx.Variable) -> jax.Array:
        shape, name = leaf.shape, join(path)
        inputs = int(np.prod(shape[1:])) if len(shape) == 4 else shape[-1]
        scale = 1.0 if "embed" in name or "token" in name else inputs**-0.5
        # device_put, since jnp.asarray compiles a program for each shape
        return jax.device_put(rng.normal(size=shape).astype(np.float32) * scale + ("norm" in name and name.endswith("weight")))

    graph, state = nnx.split(model)
    flat = [(path, leaf.replace(draw(path, leaf))) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def copied(model: UniPixelModel) -> UniPixelModel:
    """Another module over the same arrays, whose structure a test may change."""
    return nnx.merge(*nnx.split(model))


def random(rng: np.random.Generator, *shape: int) -> jax.Array:
    """Standard normal float32."""
    return jax.device_put(rng.normal(size=shape).astype(np.float32))
