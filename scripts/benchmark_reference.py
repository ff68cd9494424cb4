#!/usr/bin/env python3
"""Time the torch reference of UniPixel on this machine; `unipixel-jax bench models --against FILE` compares with what this prints.

Weights are random and sizes real: SAM 2.1 base+ at 768 pixels, and a language model of UniPixel-3B's widths with fewer layers. The script needs torch,
transformers and a clone of github.com/PolyU-ChenLab/UniPixel, but not JAX. It prints JSON: {name: {min, median, max}} in seconds. See docs/recording.md.

    python scripts/benchmark_reference.py --reference UniPixel
    python scripts/benchmark_reference.py --reference UniPixel --parts language --dtypes bfloat16 --layers 8
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from recording import reference
from recording.reference import BASE_SAM2, RecordingError

Times = Iterator[tuple[str, list[float]]]
VIDEO_SIZE = (480, 854)
"""The height and width that masks are resized to: those of a clip of DAVIS."""


def main() -> int:
    """Time what the command line asks for and print it; return the exit status."""
    args = parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    warnings.simplefilter("ignore")
    try:
        reference.use_clone(args.reference)
        reference.prepare_device(args.device)
    except RecordingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    found: dict[str, list[float]] = {}
    with torch.inference_mode():
        for dtype in args.dtypes:
            for part in args.parts:
                for name, times in PARTS[part](args, getattr(torch, dtype)):
                    found[name] = times
                    print(f"{name:60} {min(times):9.3f} s", file=sys.stderr)
                gc.collect()
    report = {name: {"min": min(times), "median": statistics.median(times), "max": max(times)} for name, times in found.items()}
    print(json.dumps(report, indent=1))
    return 0


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, metavar="CLONE", help="the clone of PolyU-ChenLab/UniPixel")
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--device", choices=("cpu", "cuda", "npu"), default="cpu")
    parser.add_argument("--image-size", type=int, default=768, help="side of SAM 2's square frames, in pixels")
    parser.add_argument("--frames", type=int, default=10, help="frames of the clip")
    parser.add_argument("--objects", type=int, default=5, help="objects tracked one after the other through the clip, as the reference does")
    parser.add_argument("--layers", type=int, default=4, help="layers of the language model (UniPixel-3B has 36)")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2, help="timed runs; the clip of several objects is run once")
    return parser.parse_args()


def sam2(args: argparse.Namespace, dtype: torch.dtype) -> Times:
    """Time encoding and tracking per frame, and the whole clip with several objects, for each of which the reference encodes the clip again."""
    from hydra import compose
    from hydra.utils import instantiate

    target = "sam2.sam2_video_predictor.SAM2VideoPredictor"
    config = compose(config_name=BASE_SAM2, overrides=[f"++model.image_size={args.image_size}", f"++model._target_={target}"])
    model = instantiate(config.model).to(args.device, dtype).eval()
    frames = torch.randn(args.frames, 3, args.image_size, args.image_size).to(args.device, dtype)
    hidden = torch.randn(args.objects, 1, 2, model.hidden_dim).to(args.device, dtype)
    name = f"sam2.{str(dtype).removeprefix('torch.')}"

    def track(state: dict[str, Any], tokens: torch.Tensor) -> None:
        model.add_new_hidden_state(state, 0, 0, tokens)
        for _ in model.propagate_in_video(state, verbose=False):
            pass

    def whole_clip() -> None:
        for tokens in hidden:
            track(model.init_state(frames, VIDEO_SIZE), tokens)

    yield f"{name}.encode_per_frame.batch_1", timed(lambda: model.forward_image(frames[:1]), args)
    yield f"{name}.encode_per_frame.batch_{args.frames}", timed(lambda: model.forward_image(frames), args, per=args.frames)
    # a state that is reset keeps the features of its clip, so that only tracking is timed
    state = model.init_state(frames, VIDEO_SIZE)

    def track_again() -> None:
        model.reset_state(state)
        track(state, hidden[0])

    yield f"{name}.track_per_frame.{args.frames}_frames_1_object", timed(track_again, args, per=args.frames)
    yield f"{name}.clip.{args.frames}_frames_{args.objects}_objects", [clock(whole_clip, args.device)]


def language(args: argparse.Namespace, dtype: torch.dtype) -> Times:
    """Time the prefill of one prompt and decoding per token, and the head's part of both; the reference computes logits for every position."""
    from transformers.modeling_utils import no_init_weights

    config_class, model_class, _ = importlib.import_module("unipixel.model").MODELS["qwen2_5_vl"]
    text = {
        "vocab_size": 151668, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": args.layers, "num_attention_heads": 16,
        "num_key_value_heads": 2, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "tie_word_embeddings": True,
        "max_position_embeddings": 128000,
    }  # fmt: skip
    ids_of = {"image": 151655, "video": 151656, "vision_start": 151652, "vision_end": 151653, "ref": 151665, "seg": 151666, "mem": 151667}
    config = config_class(
        text_config=text, vision_config={"depth": 1, "out_hidden_size": 2048}, hidden_size=2048, vocab_size=151668, sam2_config=None,
        torch_dtype=dtype, attn_implementation="sdpa", **{f"{token}_token_id": number for token, number in ids_of.items()},
    )  # fmt: skip
    with no_init_weights():
        model = model_class._from_config(config, torch_dtype=dtype)
    for p in model.parameters():
        p.normal_(0, 0.02)
    model = model.to(args.device).eval()
    ids = torch.randint(1000, (1, args.prompt_tokens), device=args.device)
    name = f"language.{str(dtype).removeprefix('torch.')}.{args.layers}_layers"

    def decode() -> list[float]:
        cache = model(input_ids=ids).past_key_values
        steps = []
        for step in range(args.new_tokens):
            place = torch.tensor([args.prompt_tokens + step], device=args.device)
            steps.append(clock(lambda place=place: model(input_ids=ids[:, :1], past_key_values=cache, cache_position=place), args.device))
        return steps

    hidden = torch.randn(1, args.prompt_tokens, 2048, dtype=dtype, device=args.device)
    yield f"{name}.prefill_{args.prompt_tokens}_tokens", timed(lambda: model(input_ids=ids), args)
    yield f"{name}.decode_per_token", [seconds for _ in range(args.repeats) for seconds in decode()]
    yield f"{name}.head_of_prefill", timed(lambda: model.lm_head(hidden), args)
    yield f"{name}.head_of_decode", timed(lambda: model.lm_head(hidden[:, :1]), args)


def timed(work: Callable[[], Any], args: argparse.Namespace, per: int = 1) -> list[float]:
    """Return the seconds per item of each timed run. The first counts too: nothing is compiled, and a slow first run does not change the minimum."""
    return [clock(work, args.device) / per for _ in range(args.repeats)]


def clock(work: Callable[[], Any], device: str) -> float:
    """Return the seconds that the work takes until its end on the device."""
    started = time.perf_counter()
    work()
    if device != "cpu":
        getattr(torch, device).synchronize()
    return time.perf_counter() - started


PARTS: dict[str, Callable[[argparse.Namespace, torch.dtype], Times]] = {"sam2": sam2, "language": language}

if __name__ == "__main__":
    sys.exit(main())
