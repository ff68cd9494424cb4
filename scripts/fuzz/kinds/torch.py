"""Cases of torch checkpoints: whole ones (safetensors in shards, or pickled), adapters, SAM 2 files, Qwen2.5-VL directories and partial weights."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

from ..case import Case, Kind
from ..odd_files import change_folder, copy
from . import ROOT

SHARD_BYTES = 30_000
NANO = ROOT / "tests" / "recordings" / "nano_a"
SETTINGS = (
    "config.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "preprocessor_config.json",
)


def prepare(folder: Path) -> None:
    """Write a micro model in every form."""
    from micro_run import MODEL, micro_start
    from tiny_checkpoints import FakeTorch, load, torch_tensor, write_qwen, write_sam2, write_torch

    from unipixel_jax.convert import to_torch

    converted = micro_start(folder / "converted")
    to_torch.convert(converted, folder / "sharded", shard_bytes=SHARD_BYTES)
    arrays = load(folder / "sharded")
    pickled = copy(folder / "sharded", folder / "pickled")
    for file in pickled.glob("*.safetensors*"):
        file.unlink()
    fake = FakeTorch()
    write_torch(pickled / "pytorch_model.bin", OrderedDict((name, torch_tensor(fake, array)) for name, array in arrays.items()), fake)
    vocabulary = MODEL.text.vocab_size - 3
    shrunk = {name: array[:vocabulary] if array.shape[:1] == (MODEL.text.vocab_size,) else array for name, array in arrays.items()}
    smaller = replace(MODEL, text=replace(MODEL.text, vocab_size=vocabulary), ref_token_id=0, seg_token_id=1, mem_token_id=2)  # these ids are not written
    write_qwen(folder / "fresh" / "qwen", shrunk, smaller, vocabulary)
    write_sam2(folder / "fresh" / "sam2.pt", arrays)
    (folder / "fresh" / "sizes.json").write_text(json.dumps(asdict(MODEL.sam2)))
    copy(NANO / "adapter", folder / "adapter")
    copy(NANO / "checkpoint", folder / "base")


def make(seeds: Path, folder: Path, rng: Random) -> Case:
    """Change one of the checkpoints, to inspect, check or convert it."""
    form = rng.choice(("sharded", "sharded", "pickled", "fresh", "fresh", "adapter", "partial"))
    out = ("out",)
    if form in ("sharded", "pickled"):
        copy(seeds / form, folder / "in")
        note = change_folder(folder / "in", rng, ("*.safetensors", "*.index.json", "*.bin", "*.bin", *SETTINGS))
        run = rng.choice((["inspect", "in"], ["inspect", "in", "--json"], ["to-jax", "in", "out"], ["to-jax", "in", "out"], ["to-jax", "in", "--dry-run"]))
    elif form == "fresh":
        copy(seeds / "fresh", folder / "in")
        note = change_folder(folder / "in", rng, ("sam2.pt", "sam2.pt", "sam2.pt", "sizes.json", "*.safetensors", *SETTINGS))
        fresh = ["to-jax", "out", "--qwen", "in/qwen", "--sam2", "in/sam2.pt", "--sam2-size", "in/sizes.json", "--image-size", "128"]
        run = rng.choice((["inspect", "in/sam2.pt"], ["inspect", "in/qwen"], fresh, fresh))
    elif form == "adapter":
        copy(seeds / "adapter", folder / "in")
        note = change_folder(
            folder / "in", rng, ("adapter_config.json", "adapter_config.json", "adapter_model.safetensors", "pytorch_model.safetensors", *SETTINGS)
        )
        base = str(seeds / "base")
        run = rng.choice((["inspect", "in"], ["to-jax", "in", "out", "--base", base], ["to-jax", "in", "--dry-run", "--base", base], ["to-jax", "in", "out"]))
    else:
        copy(seeds / "adapter" / "pytorch_model.safetensors", folder / "in" / "pytorch_model.safetensors")
        note = change_folder(folder / "in", rng)
        run = ["to-jax", str(seeds / "base"), "out", "--partial", rng.choice(("in", "in/pytorch_model.safetensors"))]
    return Case(["convert", *run], f"{form}: {note}", out)


KIND = Kind("torch", 1000, prepare, make)
