"""config.json as transformers of different ages write it."""

import pytest

from unipixel_jax.config import UniPixelConfig

VISION = {
    "depth": 3, "fullatt_block_indexes": [1], "hidden_act": "silu", "hidden_size": 48, "in_channels": 3, "intermediate_size": 96, "num_heads": 4,
    "out_hidden_size": 64, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "tokens_per_second": 4, "window_size": 56,
}  # fmt: skip
TEXT = {
    "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4, "num_hidden_layers": 3, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05, "sliding_window": None, "use_sliding_window": False, "vocab_size": 512,
}  # fmt: skip
TOP = {
    "model_type": "pixel_qwen2_5_vl", "sam2_config": "configs/sam2.1_hiera_b+", "image_token_id": 500, "video_token_id": 501,
    "vision_start_token_id": 498, "vision_end_token_id": 499, "ref_token_id": 505, "seg_token_id": 506, "mem_token_id": 507,
    "tie_word_embeddings": False,
}  # fmt: skip
SCALING = {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"}
PARAMETERS = {"mrope_section": [2, 3, 3], "rope_theta": 5e5, "rope_type": "default", "type": "mrope"}
LAYOUTS = {
    "flat, as in the first files": {**TOP, **TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "rope_theta": 5e5, "torch_dtype": "float32"},
    "4.53": {**TOP, "text_config": {**TEXT, "rope_scaling": SCALING, "rope_theta": 5e5, "image_token_id": None}, "torch_dtype": "float32"},
    "5.24": {**TOP, "text_config": {**TEXT, "rope_parameters": PARAMETERS, "tie_word_embeddings": False}, "dtype": "float32"},
}
"""What 4.53.3 and 5.24.0 write for one `Qwen2_5_VLConfig`, without what UniPixel has no use for."""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_configuration(layout):
    rope = {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"}} if layout == "5.24" else {}
    config = UniPixelConfig.from_hf({**LAYOUTS[layout], "vision_config": VISION | rope})
    assert (config.text.rope_theta, config.text.mrope_section, config.text.tie_word_embeddings) == (5e5, (2, 3, 3), False)
    assert (config.text.num_hidden_layers, config.vision.depth, config.image_token_id, config.dtype) == (3, 3, 500, "float32")
    assert UniPixelConfig.from_hf(config.to_hf()) == config
