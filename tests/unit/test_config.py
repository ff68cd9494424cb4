"""Reading and writing config.json."""

import dataclasses
import json
from pathlib import Path

import pytest

from unipixel_jax.config import PRESETS, SAM2_SIZES, ConfigError, UniPixelConfig, preset
from unipixel_jax.errors import UserError

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
    untied, tied = (UniPixelConfig.from_directory(RECORDINGS / n / "checkpoint") for n in ("nano_a", "nano_b"))
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
        (changed(text_config=[1]), "text_config is \\[1\\], expected an object"),
        (changed(vision_config="deep"), "lacks vision_config"),
        (inside("text_config", rope_scaling="yarn"), "rope_scaling is 'yarn'"),
        (changed(sam2_config="configs/own", sam2_model=[]), "sam2_model is \\[\\], expected an object"),
        (changed(sam2_config=["x"] * 1000), "sam2_config is .*, expected one of"),
        (changed(sam2_image_size=1_000_000), "sam2_model: image_size is 1000000, expected a whole number, 32 to 1024"),
        (changed(sam2_image_size=100), "image_size 100 must be a multiple of 32"),
        (changed(torch_dtype="object"), "torch_dtype 'object' must be one of bfloat16"),
        (changed(sam2_batch_mode="yes"), "sam2_batch_mode is 'yes', expected true or false"),
    ]
    + [
        (inside("text_config", num_hidden_layers=n), "num_hidden_layers is .*, expected a whole number, 1 to 1024")
        for n in (10**9, 0, -1, True, 2.0, "3", [3], 10**400)
    ]
    + [
        (inside("vision_config", **{name: 0}), f"vision_config: {name} is 0")
        for name in ("depth", "num_heads", "patch_size", "spatial_merge_size", "window_size")
    ]
    + [(inside("vision_config", depth=10**9), "depth is 1000000000, expected a whole number, 1 to 1024")]
    + [
        (inside("text_config", num_attention_heads=7), "hidden_size 2048 must be a multiple of 2 for each of 7 attention heads"),
        (inside("text_config", num_key_value_heads=3), "num_attention_heads 16 must be a multiple of num_key_value_heads 3"),
        (inside("text_config", rope_scaling={"mrope_section": [1, 2, 3]}), r"mrope_section \(1, 2, 3\) must sum to half of a head's 128"),
    ]
    + [(inside("text_config", rms_norm_eps=float("nan")), "rms_norm_eps is nan"), (inside("text_config", rope_theta=float("inf")), "rope_theta is inf")]
    + [(changed(seg_token_id=n), "seg_token_id is ") for n in (-1, True, 1.5, "x")]
    + [
        (changed(seg_token_id=151668), "seg_token_id is 151668, but the embedding has 151668 rows"),
        (inside("text_config", vocab_size=151000), "image_token_id is 151655, but the embedding has 151000 rows"),
        (inside("vision_config", out_hidden_size=1024), "out_hidden_size 1024 must be text_config.hidden_size 2048"),
        (inside("vision_config", fullatt_block_indexes=[40]), "must lie below depth 32"),
        (inside("vision_config", fullatt_block_indexes=list(range(100_000))), "fullatt_block_indexes is "),
    ],
)
def test_what_does_not_fit_is_named(raw, message):
    with pytest.raises(ConfigError, match=message) as caught:
        UniPixelConfig.from_hf(raw)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("stages", (1, 10**9, 1, 1), "stages is"),
        ("stages", (), "stages is"),
        ("global_att_blocks", (0,), "must have at most 64 x 64 places"),
        ("num_maskmem", 1, "num_maskmem is 1, expected a whole number, 2 to 32"),
        ("num_heads", 5, "embed_dim 112 must be a multiple of num_heads 5"),
        ("mem_dim", 100, "mem_dim 100 must"),
    ],
)
def test_sizes_of_sam_that_fit_no_model_are_refused(name, value, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SAM2_SIZES["base_plus"], **{name: value})


def test_a_configuration_is_read_from_its_directory(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(preset("tiny").to_hf()).encode())
    assert UniPixelConfig.from_directory(tmp_path) == preset("tiny")
    for content, message in (("[]", "holds a list"), ("[" * 100_000, "nested too deeply"), ('{"a": NaN}', "NaN is no number"), ("\x00", "is not JSON")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=message):
            UniPixelConfig.from_directory(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        UniPixelConfig.from_directory(tmp_path / "other")


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
