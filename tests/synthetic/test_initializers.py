"""The initial weights of the small model: what they are for, and that all other weights keep their values."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.ops.rope import rotate_half
from unipixel_jax.synthetic.initializers import LOW_FEATURES, PEAK, initialize, nearby_bias
from unipixel_jax.synthetic.recipe import SHAPES_MODEL

ATTENTIONS = ["final_attn", *(f"layers.{layer}.{name}" for layer in (0, 1) for name in ("self_attn", "token_to_image", "image_to_token"))]
CHANGED = {
    "text.blocks.attn.q.bias", "text.blocks.attn.k.bias", "sam2.neck.convs.0.weight", "sam2.neck.convs.1.weight",
    *(f"sam2.mask_decoder.transformer.{name}.k.weight" for name in ATTENTIONS),
}  # fmt: skip


def weights(model):
    return {".".join(map(str, path)): np.array(leaf.get_value()) for path, leaf in nnx.to_flat_state(nnx.state(model))}


def test_only_the_weights_that_are_meant_change():
    model = UniPixelModel(SHAPES_MODEL, nnx.Rngs(0))
    before = weights(model)
    initialize(model)
    after = weights(model)
    assert {name for name in before if not np.array_equal(before[name], after[name])} == CHANGED
    assert all(before[name].shape == after[name].shape and before[name].dtype == after[name].dtype for name in before)
    np.testing.assert_array_equal(after["sam2.neck.convs.1.weight"], np.float32(LOW_FEATURES) * before["sam2.neck.convs.1.weight"])
    for name in ATTENTIONS:
        place = f"sam2.mask_decoder.transformer.{name}"
        np.testing.assert_array_equal(after[f"{place}.k.weight"], after[f"{place}.q.weight"])


def test_heads_attend_to_tokens_nearby():
    heads, size = 4, 32
    bias = nearby_bias(heads * size, size).reshape(heads, size)
    distance = jnp.arange(64.0)
    angles = distance[:, None] * 10_000.0 ** (-jnp.arange(0, size, 2) / size)[None]
    turned = rotate_half(jnp.broadcast_to(bias, (1, 64, heads, size)), jnp.cos(angles)[None], jnp.sin(angles)[None])
    scores = np.asarray(jnp.einsum("tnh,nh->nt", turned[0], bias) / size**0.5)
    np.testing.assert_allclose(scores[:, 0], PEAK * np.arange(heads) / (heads - 1), rtol=1e-5)
    assert np.all(np.diff(scores[1:, :4], axis=1) < 0) and np.all(scores[1:, 0] > scores[1:, 1:].max(axis=1))
