"""The tables of SAM 2.1 under the prefix `sam2.` (the reference's sam2/modeling, a changed copy of facebookresearch/sam2)."""

from __future__ import annotations

from itertools import accumulate

from unipixel_jax.config import Sam2Config

from ..rules import Rule, conv_1x1, each, one_row, single, stacked

WB = "{weight,bias}"

HIERA = (
    (f"patch_embed.proj.{WB}", f"patch_embed.{WB}"),
    ("pos_embed{,_window}", "pos_embed{,_window}"),
)
HIERA_BLOCK = (
    (f"norm{{1,2}}.{WB}", f"norm{{1,2}}.{WB}"),
    (f"attn.{{qkv,proj}}.{WB}", f"attn.{{qkv,proj}}.{WB}"),
    (f"mlp.layers.{{0,1}}.{WB}", f"mlp.{{fc1,fc2}}.{WB}"),
)
HIERA_ENTRY = (*HIERA_BLOCK, (f"proj.{WB}", f"proj.{WB}"))
NECK_CONV = (("conv.weight", "weight", conv_1x1), ("conv.bias", "bias"))

PROMPT_ENCODER = (
    ("pe_layer.positional_encoding_gaussian_matrix", "pe_matrix"),
    ("{not_a_point_embed,no_mask_embed}.weight", "{not_a_point_embed,no_mask_embed}"),
    (f"mask_downscaling.{{0,1,3,4}}.{WB}", f"mask_down.{{conv1,norm1,conv2,norm2}}.{WB}"),
    ("mask_downscaling.6.weight", "mask_down.proj.weight", conv_1x1),
    ("mask_downscaling.6.bias", "mask_down.proj.bias"),
)
POINT_EMBED = (("weight", "point_embed", one_row),)

ATTENTION = f"{{q,k,v,out}}_proj.{WB}"
OUR_ATTENTION = f"{{q,k,v,o}}.{WB}"
MLP3 = (f"layers.{{0,1,2}}.{WB}", f"{{fc1,fc2,fc3}}.{WB}")

MASK_DECODER = (
    ("{iou_token,mask_tokens,obj_score_token}.weight", "{iou_token,mask_tokens,obj_score_token}"),
    (f"transformer.final_attn_token_to_image.{ATTENTION}", f"transformer.final_attn.{OUR_ATTENTION}"),
    (f"transformer.norm_final_attn.{WB}", f"transformer.norm_final.{WB}"),
    (f"output_upscaling.{{0,1,3}}.{WB}", f"{{upscale1,upscale_norm,upscale2}}.{WB}"),
    ("conv_s{0,1}.weight", "conv_s{0,1}.weight", conv_1x1),
    ("conv_s{0,1}.bias", "conv_s{0,1}.bias"),
    (f"{{iou_prediction_head,pred_obj_score_head}}.{MLP3[0]}", f"{{iou_head,obj_score_head}}.{MLP3[1]}"),
)
DECODER_LAYER = (
    (
        f"{{self_attn,cross_attn_token_to_image,cross_attn_image_to_token}}.{ATTENTION}",
        f"{{self_attn,token_to_image,image_to_token}}.{OUR_ATTENTION}",
    ),
    (f"norm{{1,2,3,4}}.{WB}", f"norm{{1,2,3,4}}.{WB}"),
    (f"mlp.layers.{{0,1}}.{WB}", f"mlp.{{fc1,fc2}}.{WB}"),
)

MEMORY_LAYER = (
    (f"{{self_attn,cross_attn_image}}.{ATTENTION}", f"{{self_attn,cross_attn}}.{OUR_ATTENTION}"),
    (f"norm{{1,2,3}}.{WB}", f"norm{{1,2,3}}.{WB}"),
    (f"linear{{1,2}}.{WB}", f"mlp.{{fc1,fc2}}.{WB}"),
)
MEMORY_ENCODER = (
    (f"mask_downsampler.encoder.{{0,3,6,9}}.{WB}", f"mask_down.convs.{{0,1,2,3}}.{WB}"),
    (f"mask_downsampler.encoder.{{1,4,7,10}}.{WB}", f"mask_down.norms.{{0,1,2,3}}.{WB}"),
    ("mask_downsampler.encoder.12.weight", "mask_down.proj.weight", conv_1x1),
    ("mask_downsampler.encoder.12.bias", "mask_down.proj.bias"),
    ("pix_feat_proj.weight", "pix_proj.weight", conv_1x1),
    ("pix_feat_proj.bias", "pix_proj.bias"),
)
MEMORY_OUT = (("out_proj.weight", "out_proj.weight", conv_1x1), ("out_proj.bias", "out_proj.bias"))
FUSER_LAYER = (
    (f"{{dwconv,norm}}.{WB}", f"{{dwconv,norm}}.{WB}"),
    (f"pwconv{{1,2}}.{WB}", f"mlp.{{fc1,fc2}}.{WB}"),
    ("weight", "scale"),
)

OUTSIDE = (
    ("{maskmem_tpos_enc,no_mem_embed,no_mem_pos_enc,no_obj_ptr,no_obj_embed_spatial}",) * 2,
    (f"{{mask_downsample,obj_ptr_tpos_proj}}.{WB}",) * 2,
    (f"memory_attention.norm.{WB}",) * 2,
    (f"obj_ptr_proj.{MLP3[0]}", f"obj_ptr_proj.{MLP3[1]}"),
)


def prompt_encoder_rules(torch: str, jax: str) -> list[Rule]:
    """Return the rules for a prompt encoder under these prefixes; its four point embeddings are one array."""
    return single(PROMPT_ENCODER, torch, jax) + stacked(POINT_EMBED, torch + "point_embeddings.*.", jax, range(4))


def sam2_rules(config: Sam2Config) -> list[Rule]:
    """Return the rules for `sam2`. From the second stage on, the first block changes the width, so that it is an array of its own (`entry`).

    torch numbers the blocks through all stages.
    """
    rules = single(HIERA, "sam2.image_encoder.trunk.", "sam2.hiera.")
    for stage, end in enumerate(accumulate(config.stages)):
        start = end - config.stages[stage]
        blocks, ours = "sam2.image_encoder.trunk.blocks.*.", f"sam2.hiera.stages.{stage}."
        entries = 1 if stage else 0
        rules += each(HIERA_ENTRY, blocks, f"{ours}entry.", range(start, start + entries))
        rules += stacked(HIERA_BLOCK, blocks, f"{ours}blocks.", range(start + entries, end))
    return [
        *rules,
        *each(NECK_CONV, "sam2.image_encoder.neck.convs.*.", "sam2.neck.convs.*.", range(len(config.stages))),
        *prompt_encoder_rules("sam2.sam_prompt_encoder.", "sam2.prompt_encoder."),
        *single(MASK_DECODER, "sam2.sam_mask_decoder.", "sam2.mask_decoder."),
        *each(DECODER_LAYER, "sam2.sam_mask_decoder.transformer.layers.*.", "sam2.mask_decoder.transformer.layers.*.", range(2)),
        *stacked([MLP3], "sam2.sam_mask_decoder.output_hypernetworks_mlps.*.", "sam2.mask_decoder.hyper_mlps.", range(4)),
        *stacked(MEMORY_LAYER, "sam2.memory_attention.layers.*.", "sam2.memory_attention.blocks.", range(config.memory_attention_layers)),
        *single(MEMORY_ENCODER, "sam2.memory_encoder.", "sam2.memory_encoder."),
        *single(MEMORY_OUT if config.mem_dim != config.d_model else (), "sam2.memory_encoder.", "sam2.memory_encoder."),
        *each(FUSER_LAYER, "sam2.memory_encoder.fuser.layers.*.", "sam2.memory_encoder.fuser.*.", range(config.fuser_layers)),
        *single(OUTSIDE, "sam2.", "sam2."),
    ]
