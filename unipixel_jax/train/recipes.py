"""Configurations of the reference's three training stages (paper, section 4.1; reference: scripts/launch_3b.sh and launch_7b.sh) and of a fine-tuning.

The number of samples of a step is ``batch_size * accumulation``: 256, 256 and 32. Set ``batch_size`` to as many as run at once on your devices, and change
``accumulation`` so that the product stays the same.

The stages do not clip gradients. The reference's scripts train under DeepSpeed, which clips only if its configuration says so; theirs (scripts/zero2.json,
zero2_offload.json) does not, and transformers fills in the trainer's ``max_grad_norm`` only where it says "auto" (4.53.3, integrations/deepspeed.py).
"""

from __future__ import annotations

from dataclasses import replace

from unipixel_jax.data.annotation import DrawOptions
from unipixel_jax.data.loader import LoaderOptions
from unipixel_jax.data.sources.base import Filters
from unipixel_jax.models.lora import LoraConfig
from unipixel_jax.train.config import DataConfig, StartConfig, TrainConfig
from unipixel_jax.train.optim import OptimConfig

STAGE1_DATA = "videorefer_short_caption_ref,inst_it_image_short_caption_raw_ref"
STAGE2_DATA = "refcoco:5,refcoco+:5,refcocog:5,refclef:5,ref_youtube_vos:3"
STAGE3_DATA = (
    "revos:5,mevis:5,lvvis:3,ref_youtube_vos:5,ref_davis17:10,ref_sav:3,groundmore:3,vicas:3,reason_seg:10,ade20k:3,cocostuff:3,mapillary:3,"
    "paco_lvis:3,pascal_part:3,refcoco:10,refcoco+:10,refcocog:10,refclef:10,videorefer_detailed_caption:5,videorefer_qa:5,inst_it_video_qa_raw:5,"
    "osprey_conversation:5,osprey_detail_description:5,osprey_pos_neg:5,videorefer_qa_mem:3,inst_it_video_qa_raw_mem:3,"
    "llava_instruct_665k_videogpt_plus_576k"
)
DATA = DataConfig(
    datasets=STAGE1_DATA,
    filters=Filters(max_frames=500, max_seconds=300, max_words=500),
    draw=DrawOptions(sample_frames=(8, 8), sample_type="random", max_turns=3),
    loader=LoaderOptions(workers=4),
)


def stage1(name: str, checkpoint: str, size: str) -> TrainConfig:
    """Return the first stage, which trains the projections of the embeddings of points and boxes, and nothing else."""
    return TrainConfig(
        name,
        StartConfig(checkpoint, size=size),
        DATA,
        trained=("ref",),
        optim=OptimConfig(learning_rate=1e-3, clip_norm=None),
        batch_size=8,
        accumulation=32,
        save_every=500,
        keep=1,
    )


def stage2(name: str, checkpoint: str, size: str) -> TrainConfig:
    """Return the second stage, which trains the segmentation head between language model and mask decoder."""
    return replace(stage1(name, checkpoint, size), data=replace(DATA, datasets=STAGE2_DATA), trained=("seg",))


def stage3(name: str, checkpoint: str, size: str) -> TrainConfig:
    """Return the third stage, which trains adapters in both Qwen towers, the embeddings, UniPixel's own parts, and all of SAM 2 at a quarter of the rate."""
    filters = replace(DATA.filters, max_words=200)
    return TrainConfig(
        name,
        StartConfig(checkpoint, size=size),
        replace(DATA, datasets=STAGE3_DATA, filters=filters, max_tokens=40960),
        trained=("lora", "embedding", "ref", "ref_enc", "msk", "seg", "sam2"),
        lora=LoraConfig(rank=128, alpha=256, dropout=0.1),
        optim=OptimConfig(learning_rate=2e-5, sam_encoder_lr=5e-6, sam_decoder_lr=5e-6, clip_norm=None),
        batch_size=8,
        accumulation=4,
        sample_objects=5,
        save_every=1000,
        keep=2,
    )


def finetune(name: str, checkpoint: str, datasets: str) -> TrainConfig:
    """Return a fine-tuning on a few images of one's own, which trains small adapters and the parts that segment."""
    return TrainConfig(
        name,
        StartConfig(checkpoint),
        DataConfig(datasets, draw=DrawOptions(sample_frames=(8, 8), sample_type="random", max_turns=3)),
        trained=("lora", "seg", "sam2"),
        lora=LoraConfig(rank=16, alpha=32, dropout=0.05),
        optim=OptimConfig(learning_rate=1e-4, sam_encoder_lr=1e-5, sam_decoder_lr=2e-5),
        batch_size=4,
        steps=300,
        sample_objects=5,
        evaluate_every=100,
        save_every=100,
    )
