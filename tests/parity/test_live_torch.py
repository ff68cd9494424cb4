"""With torch installed: our operations and towers against torch's and transformers' own, on fresh random numbers. `make parity`."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipixel_jax.convert.safetensors_io import read_safetensors
from unipixel_jax.models.layers import gelu
from unipixel_jax.ops.attention import AttnMask, attention
from unipixel_jax.ops.conv import conv, conv_transpose2, depthwise
from unipixel_jax.ops.norm import layer_norm
from unipixel_jax.ops.resize import resize_bicubic, resize_bilinear
from unipixel_jax.parity.run import _converted
from unipixel_jax.processing.batch import Conversation, PreparedMedia, collate

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("default")]
CHECKPOINT = Path(__file__).parents[1] / "recordings" / "nano_a" / "checkpoint"


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def random(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def channels_first(x):
    return np.moveaxis(np.asarray(x), -1, 1)


@pytest.mark.parametrize(("source", "target"), [((7, 7), (56, 56)), ((14, 14), (24, 24)), ((64, 64), (16, 16)), ((5, 9), (12, 3))])
def test_resize(torch, rng, source, target):
    x = random(rng, 2, 3, *source)
    for mode, ours in (("bicubic", resize_bicubic), ("bilinear", resize_bilinear)):
        theirs = torch.nn.functional.interpolate(torch.tensor(x), size=target, mode=mode, align_corners=False)
        np.testing.assert_allclose(ours(jnp.asarray(x), target), theirs.numpy(), atol=5e-6, err_msg=mode)


def test_convolutions(torch, rng):
    f, x = torch.nn.functional, random(rng, 2, 12, 8, 6)
    cases = [
        (random(rng, 4, 6, 3, 3), lambda w, b: conv(x, w, b, 2, 1), lambda x, w, b: f.conv2d(x, w, b, 2, 1)),
        (random(rng, 4, 6, 7, 7), lambda w, b: conv(x, w, b, 4, 3), lambda x, w, b: f.conv2d(x, w, b, 4, 3)),
        (random(rng, 6, 1, 7, 7), lambda w, b: depthwise(x, w, b), lambda x, w, b: f.conv2d(x, w, b, 1, 3, groups=6)),
        (random(rng, 6, 4, 2, 2), lambda w, b: conv_transpose2(x, w, b), lambda x, w, b: f.conv_transpose2d(x, w, b, 2)),
    ]
    original, x = torch.tensor(channels_first(x)), jnp.asarray(x)
    for weight, ours, theirs in cases:
        bias = random(rng, 6 if weight.shape[1] == 1 else 4)
        expected = theirs(original, torch.tensor(weight), torch.tensor(bias)).numpy()
        np.testing.assert_allclose(channels_first(ours(jnp.asarray(weight), jnp.asarray(bias))), expected, atol=5e-5)


def test_pointwise(torch, rng):
    x, weight, bias = 3 * random(rng, 5, 16), random(rng, 16), random(rng, 16)
    np.testing.assert_allclose(gelu(jnp.asarray(x)), torch.nn.functional.gelu(torch.tensor(x)).numpy(), atol=1e-6)
    for eps in (1e-5, 1e-6):
        theirs = torch.nn.functional.layer_norm(torch.tensor(x), (16,), torch.tensor(weight), torch.tensor(bias), eps)
        np.testing.assert_allclose(layer_norm(jnp.asarray(x), jnp.asarray(weight), jnp.asarray(bias), eps), theirs.numpy(), atol=5e-6)


@pytest.mark.parametrize("backend", ["xla", "xla_chunked"])
@pytest.mark.parametrize("causal", [True, False])
def test_attention(torch, rng, backend, causal):
    q, k, v = random(rng, 2, 40, 4, 8), random(rng, 2, 40, 2, 8), random(rng, 2, 40, 2, 8)
    ours = attention(*(jnp.asarray(a) for a in (q, k, v)), AttnMask(causal=causal), implementation=backend)
    heads_first = (torch.tensor(a.swapaxes(1, 2)) for a in (q, k, v))
    theirs = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=causal, enable_gqa=True).numpy().swapaxes(1, 2)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


@pytest.mark.parametrize("grid", [(1, 4, 6), (2, 6, 10), (3, 2, 4)])
def test_qwen_on_a_clip(torch, rng, grid):
    """transformers' Qwen2.5-VL with the weights of a recording, on a clip and words that nobody recorded."""
    transformers = pytest.importorskip("transformers", minversion="4.53")
    raw = json.loads((CHECKPOINT / "config.json").read_text())
    kept = {k: v for k, v in raw.items() if not k.startswith(("sam2", "architectures", "model_type"))}
    theirs = transformers.Qwen2_5_VLForConditionalGeneration(transformers.Qwen2_5_VLConfig(**kept)).eval()
    tensors = read_safetensors(CHECKPOINT / "model.safetensors").tensors
    state = {}
    for name, tensor in tensors.items():
        if name.startswith(("model.", "visual.", "lm_head.")):
            inside = f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1)
            state[inside] = torch.tensor(tensor.load())
    theirs.load_state_dict(state)

    with _converted(CHECKPOINT) as loaded:
        config = loaded.config
        merged = grid[0] * grid[1] * grid[2] // 4
        ids = [5, 9, config.vision_start_token_id, *[config.video_token_id] * merged, config.vision_end_token_id, *rng.integers(0, 400, 11).tolist()]
        patches = random(rng, grid[0] * grid[1] * grid[2], config.vision.patch_dim)
        inputs = collate([Conversation(np.array(ids, np.int32), PreparedMedia(patches, grid, None, (1, 1), 2 * grid[0]))], config, loaded.tokenizer.pad_id)
        prompt = jax.device_put(inputs)
        hidden = loaded.model.text(loaded.model.embed(prompt, jnp.dtype("float32")), prompt.position_ids, prompt.segments)
        ours = np.asarray(loaded.model.text.logits(hidden))[0, -len(ids) :]
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor([ids]),
            pixel_values_videos=torch.tensor(patches),
            video_grid_thw=torch.tensor([grid]),
            second_per_grid_ts=torch.tensor([1.0]),
        ).logits[0]
    assert np.linalg.norm(ours - expected.numpy()) < 2e-5 * np.linalg.norm(expected.numpy())
