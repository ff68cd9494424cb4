"""A run that takes seconds: a model of a few thousand parameters on drawn scenes."""

from dataclasses import replace
from pathlib import Path

from unipixel_jax.config import Sam2Config, TextConfig, UniPixelConfig, VisionConfig
from unipixel_jax.convert import to_jax
from unipixel_jax.convert.random import random_source
from unipixel_jax.core.buckets import Buckets, BucketTable
from unipixel_jax.data.annotation import DrawOptions
from unipixel_jax.infer.loading import EMBEDDED
from unipixel_jax.train.config import DataConfig, StartConfig, TrainConfig
from unipixel_jax.train.optim import OptimConfig
from unipixel_jax.train.step import step_key

MODEL = UniPixelConfig(
    vision=VisionConfig(
        depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=16, patch_size=28, window_size=336, fullatt_block_indexes=()
    ),
    text=TextConfig(
        vocab_size=520, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, mrope_section=(2, 1, 1)
    ),
    sam2=Sam2Config(
        image_size=128, embed_dim=8, num_heads=1, stages=(1, 1, 1, 1), global_att_blocks=(3,), window_pos_embed_bkg_spatial_size=(4, 4), d_model=32,
        mem_dim=16, memory_attention_layers=1, memory_attention_ffn_dim=16, fuser_layers=1,
    ),
    sam2_config="configs/micro",
    image_token_id=512, video_token_id=513, vision_start_token_id=510, vision_end_token_id=511, ref_token_id=517, seg_token_id=518, mem_token_id=519,
    dtype="float32",
)  # fmt: skip

BUCKETS = BucketTable(
    batch=Buckets("prompts in a batch", 8, 2, 64),
    tokens=Buckets("prompt tokens", 128, 1.0, 1024),
    patches=Buckets("image patches", 144, 1.0, 1 << 14),
    grid_frames=Buckets("pairs of frames", 8, 1.0, 64),
    objects=Buckets("objects", 2, 2, 16),
    references=Buckets("points and boxes", 32, 2, 64),
    memories=Buckets("memory tokens", 32, 2, 64),
)


def micro_config(start: Path, **changes: object) -> TrainConfig:
    """The run, with other values for some fields."""
    config = TrainConfig(
        name="micro",
        start=StartConfig(checkpoint=str(start)),
        data=DataConfig("shapes_image", draw=DrawOptions(sample_frames=(2, 2), max_turns=1), buckets=BUCKETS),
        trained=("all",),
        optim=OptimConfig(learning_rate=1e-3),
        batch_size=8,
        steps=6,
        dtype="float32",
        remat="none",
        sample_objects=2,
        log_every=2,
        save_every=3,
    )
    return replace(config, **changes)


def micro_start(directory: Path) -> Path:
    """Random weights as a converted directory."""
    to_jax.convert(random_source(MODEL, EMBEDDED, 0), directory)
    return directory


def stopping_before(last):
    """Random keys of steps, until Ctrl-C is pressed in the step of that number."""

    def key(seed, step, batch):
        if step == last:
            raise KeyboardInterrupt
        return step_key(seed, step, batch)

    return key
