"""Reading and writing config.json."""

import dataclasses
import json
from pathlib import Path

import pytest

from unipixel_jax.config import PRESETS, SAM2_SIZES, ConfigError, UniPixelConfig, preset

RECORDINGS = Path(__file__).parents[1] / "recordings"


def through_json(config):
    return UniPixelConfig.from_hf(json.loads(json.dumps(config.to_hf())))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_come_back_from_their_json(name):
    assert through_json(preset(name)) == preset(name)


@pytest.mark.parametrize(("size", "file"), [("tiny", "t"), ("small", "s"), ("base_plus", "b+"), ("large", "l")])
def test_the_four_published_sizes_go_by_name(size, file):
    config = dataclasses.replace(preset("3b"), sam2=SAM2_SIZES[size], sam2_config=f"configs/sam2.1_hiera_{file}")
    raw = config.to_hf()
    assert "sam2_model" not in raw and through_json(config) == config
    raw["sam2_config"] += ".yaml"
    assert UniPixelConfig.from_hf(raw).sam2 == SAM2_SIZES[size]


@pytest.mark.parametrize("tied", [True, False])
def test_ties_are_written_where_transformers_looks(tied):
    config = preset("tiny")
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, tie_word_embeddings=tied))
    raw = config.to_hf()
    assert raw["tie_word_embeddings"] is tied and raw["text_config"]["tie_word_embeddings"] is tied
    assert through_json(config) == config


def test_files_that_the_reference_saved_are_read():
    untied, tied = (UniPixelConfig.from_hf(json.loads((RECORDINGS / n / "checkpoint" / "config.json").read_text())) for n in ("nano_a", "nano_b"))
    assert (untied.text.tie_word_embeddings, tied.text.tie_word_embeddings) == (False, True)
    assert (untied.text.mrope_section, tied.text.mrope_section) == ((2, 1, 1), (1, 2, 3))
    assert (untied.text.rope_theta, tied.text.rms_norm_eps) == (1e6, 1e-5)
    assert (untied.vision.fullatt_block_indexes, tied.vision.tokens_per_second) == ((1, 3), 4)
    assert (untied.sam2.num_maskmem, untied.sam2_hidden_tokens, tied.sam2_hidden_tokens) == (4, 2, 1)
    for config in (untied, tied):
        assert through_json(config) == config


def test_older_files_with_the_text_sizes_at_the_top_are_read():
    raw = preset("3b").to_hf()
    flat = {**raw, **raw["text_config"], "model_type": raw["model_type"]}
    del flat["text_config"]
    assert UniPixelConfig.from_hf(flat) == preset("3b")


def changed(**changes):
    """The 3B's file with some top keys changed; None removes one."""
    raw = {**preset("3b").to_hf(), **changes}
    return {key: value for key, value in raw.items() if value is not None}


def inside(part, **changes):
    values = {**preset("3b").to_hf()[part], **changes}
    return changed(**{part: {key: value for key, value in values.items() if value is not None}})


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (changed(model_type="qwen2_5_vl"), r"model_type is 'qwen2_5_vl', expected \"pixel_qwen2_5_vl\""),
        (changed(model_type=None), "model_type is None"),
        (changed(vision_config=None), "lacks vision_config"),
        (changed(seg_token_id=None, mem_token_id=None), "lacks seg_token_id, mem_token_id"),
        (changed(sam2_config="configs/sam3"), "'configs/sam3', expected one of sam2.1_hiera_t"),
        (changed(sam2_config="configs/own", sam2_model={"image_size": 64}), "sam2_model lacks embed_dim"),
        (inside("vision_config", depth=None), "vision_config lacks depth"),
        (inside("text_config", num_hidden_layers=None), "text_config lacks num_hidden_layers"),
        (inside("text_config", rope_scaling={"type": "yarn", "factor": 4}), "rope_scaling is .*yarn"),
        (inside("text_config", rope_scaling={"type": "default"}), "lacks mrope_section"),
        (inside("text_config", use_sliding_window=True), "use_sliding_window is true"),
    ],
)
def test_what_does_not_fit_is_named(raw, message):
    with pytest.raises(ConfigError, match=message) as caught:
        UniPixelConfig.from_hf(raw)
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match="unknown preset '4b', expected one of 3b, 7b, tiny"):
        preset("4b")


def test_sizes_follow_from_the_configuration():
    b = preset("3b")
    assert (b.text.head_dim, b.vision.patch_dim, b.vision.merge_dim) == (128, 1176, 5120)
    assert (b.sam2.grid, b.sam2.low_res, b.sam2.stage_dims, b.sam2.stage_heads) == (48, 192, (112, 224, 448, 896), (2, 4, 8, 16))
    for config in PRESETS.values():
        assert sum(config.text.mrope_section) == config.text.head_dim // 2
        assert config.vision.out_hidden_size == config.text.hidden_size
