"""The curriculum and the run that make the small model of the package (docs/tiny_model.md): scripts/train_shapes_model.py, configs/shapes_tiny.py."""

from __future__ import annotations

from unipixel_jax.config import Sam2Config, TextConfig, UniPixelConfig, VisionConfig
from unipixel_jax.core.buckets import Buckets, BucketTable
from unipixel_jax.data.annotation import DrawOptions
from unipixel_jax.data.loader import LoaderOptions
from unipixel_jax.losses.mask import MaskLossWeights
from unipixel_jax.synthetic.curriculum import Curriculum
from unipixel_jax.synthetic.trainer import StageConfig
from unipixel_jax.train.config import DataConfig, StartConfig, TrainConfig
from unipixel_jax.train.optim import OptimConfig

SHAPES_MODEL = UniPixelConfig(
    vision=VisionConfig(
        depth=3, hidden_size=96, intermediate_size=256, num_heads=4, out_hidden_size=128, patch_size=20, window_size=320, fullatt_block_indexes=(2,)
    ),
    text=TextConfig(
        vocab_size=520, hidden_size=128, intermediate_size=352, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=4, mrope_section=(4, 6, 6),
        rope_theta=10_000.0,
    ),
    sam2=Sam2Config(
        image_size=128, embed_dim=32, num_heads=1, stages=(1, 1, 2, 1), global_att_blocks=(3,), window_spec=(8, 4, 8, 4),
        window_pos_embed_bkg_spatial_size=(8, 8), d_model=224, mem_dim=56, memory_attention_layers=1, memory_attention_ffn_dim=384, fuser_layers=1,
    ),
    sam2_config="configs/shapes",
    image_token_id=512, video_token_id=513, vision_start_token_id=510, vision_end_token_id=511, ref_token_id=517, seg_token_id=518, mem_token_id=519,
    dtype="bfloat16",
)  # fmt: skip

TURNS, TOKENS = 4, 280
"""Turns and tokens of a conversation, at most."""
LOSSES = MaskLossWeights(mask=5.0, dice=5.0, iou=1.0, object=1.0, every_candidate=True)
"""Weights of the mask losses. With the reference's (focal 100) a model that starts from nothing ends with empty masks."""


def from_scratch(learning_rate: float) -> OptimConfig:
    """The optimizer of the stages and of the run after them, which differ in the rate at the end of the warm-up."""
    return OptimConfig(learning_rate, weight_decay=0.01, b2=0.98, warmup_ratio=0.04, optimizer="muon")


CURRICULUM = Curriculum(
    vision=StageConfig(steps=1200, batch_size=16, optim=from_scratch(6e-3)),
    language=StageConfig(steps=4000, batch_size=8, optim=from_scratch(2e-3)),
    occlusion=StageConfig(steps=600, batch_size=8, optim=from_scratch(7e-4)),
    relations=StageConfig(steps=3500, batch_size=8, optim=from_scratch(7e-4)),
    comparison=StageConfig(steps=1400, batch_size=8, optim=from_scratch(1e-3)),
    localization=StageConfig(steps=300, batch_size=16, optim=from_scratch(1e-3)),
    segmentation=StageConfig(steps=3800, batch_size=16, optim=from_scratch(1e-3)),
    tracking=StageConfig(steps=550, batch_size=4, optim=from_scratch(1e-3)),
)
"""The stages that train the parts before all are trained together."""


def conversations(datasets: str) -> DataConfig:
    """Drawn conversations of one size, for training and validation, so that images compile one program."""
    return DataConfig(
        datasets=datasets,
        validation=datasets,
        draw=DrawOptions(sample_frames=(4, 4), max_turns=TURNS, image_size=SHAPES_MODEL.sam2.image_size),
        loader=LoaderOptions(workers=0, threads=1, buffer=32),
        max_tokens=TOKENS,
        buckets=BucketTable(
            batch=Buckets("conversations", 8, 1.0, 64),
            tokens=Buckets("prompt tokens", TOKENS, 1.0, TOKENS),
            patches=Buckets("image patches", 256, 1.0, 1 << 16),
            grid_frames=Buckets("pairs of frames", 1, 1.0, 1 << 12),
            objects=Buckets("objects", 4, 2, 64),
            references=Buckets("points and boxes", 8, 2, 1024),
            memories=Buckets("memory tokens", 8, 2, 1024),
        ),
    )


def shapes(name: str, start: StartConfig, datasets: str, *, learning_rate: float, steps: int, interval: int) -> TrainConfig:
    """A run on drawn scenes, 8 a step, in which everything is trained.

    Args:
        name: of the run.
        start: where its weights come from.
        datasets: what is drawn, for training and validation.
        learning_rate: at the end of the warm-up.
        steps: of the run.
        interval: steps between two measurements of the validation loss, and between two checkpoints.
    """
    return TrainConfig(
        name=name,
        start=start,
        data=conversations(datasets),
        trained=("all",),
        optim=from_scratch(learning_rate),
        losses=LOSSES,
        batch_size=8,
        sample_objects=4,
        steps=steps,
        dtype="float32",
        remat="none",
        dropout=False,
        log_every=50,
        evaluate_every=interval,
        save_every=interval,
    )
