"""The result of training from a converted directory, as a whole model or as the files of an adapter and of the other trained tensors.

Source: `gather_and_save_model` in the reference's unipixel/train/custom_trainer.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.files import read_json_object
from unipixel_jax.core.trees import KeyPath, join
from unipixel_jax.errors import UserError

from . import lora
from .hf_config import COPY, copy_companions, write_json
from .names import PEFT, newer
from .output import new_directory
from .safetensors_io import write_safetensors
from .sources import ADAPTER_FILES, PARTIAL_FILE, Source, open_converted
from .tables import all_rules
from .tensors import CODES, Tensor

LORA_A, LORA_B = "lora_a", "lora_b"
"""The last part of the paths of an adapter's matrices, in the place of the `weight` that it adapts."""


@dataclass(frozen=True)
class LoraSettings:
    """The settings in the files of an adapter: rank, alpha, and the dropout that it was trained with."""

    rank: int
    alpha: float
    dropout: float


@dataclass(frozen=True)
class Trained:
    """The result of training.

    Attributes:
        start: the converted directory that training started from.
        source: that directory, opened.
        weights: trained tensors under canonical names, in the dtypes of the source.
        pairs: A [r, in] and B [out, r] of each adapted weight, by the weight's canonical name and in its dtype.
        lora: the settings of the adapters; None where there are none.
    """

    start: Path
    source: Source
    weights: dict[str, Tensor]
    pairs: dict[str, tuple[Tensor, Tensor]]
    lora: LoraSettings | None


def open_trained(start: Path, arrays: Mapping[KeyPath, np.ndarray], settings: LoraSettings | None) -> Trained:
    """Put trained arrays under torch's names.

    Args:
        start: the converted directory that training started from.
        arrays: what was trained, by the model's paths; adapters end in `lora_a` [..., r, in] and `lora_b` [..., out, r].
        settings: the settings of the adapters; None where there are none.

    Raises:
        UserError: there is no such directory, its model does not have some of the arrays, or adapters and settings do not match.
    """
    source = open_converted(start)
    weights = torch_tensors(source.config, {path: array for path, array in arrays.items() if path[-1] not in (LORA_A, LORA_B)}, start)
    halves = {
        last: torch_tensors(source.config, {(*path[:-1], "weight"): array for path, array in arrays.items() if path[-1] == last}, start, shaped=False)
        for last in (LORA_A, LORA_B)
    }
    if halves[LORA_A].keys() != halves[LORA_B].keys() or bool(halves[LORA_A]) != (settings is not None):
        raise UserError(f"the training state has {len(halves[LORA_A])} lora_a and {len(halves[LORA_B])} lora_b, LoRA is {settings}; expected matching ones")
    own = {name: source.tensors[name].dtype for name in (*weights, *halves[LORA_A])}
    pairs = {name: (down.cast(own[name]), halves[LORA_B][name].cast(own[name])) for name, down in halves[LORA_A].items()}
    return Trained(start, source, {name: tensor.cast(own[name]) for name, tensor in weights.items()}, pairs, settings)


def merged_source(trained: Trained, origin: str) -> Source:
    """Return the whole trained model, with its adapters merged, as a source to convert or to write.

    Args:
        trained: the result of training.
        origin: where that result lies, for the manifest.
    """
    tensors = trained.source.tensors | trained.weights
    if trained.lora:
        scale = trained.lora.alpha / trained.lora.rank
        tensors |= {name: lora.merged(tensors[name], pair, scale, name) for name, pair in trained.pairs.items()}
    description = {"kind": "trained", "path": origin, "start": str(trained.start), "lora": len(trained.pairs)}
    return replace(trained.source, tensors=tensors, description=description)


def write_adapter(trained: Trained, target: Path, base: str | None, *, force: bool = False) -> int:
    """Write the files that the reference's trainer leaves without `save_full_model`: adapter, other trained tensors, config.json and tokenizer.

    Args:
        trained: the result of training.
        target: the directory to make.
        base: the base model to name in config.json; None for the torch checkpoint that the start was converted from.
        force: replace a directory that is not empty.

    Returns:
        How many tensors were written.

    Raises:
        UserError: the start was not converted from one torch checkpoint, and no base is given; or the output cannot be written.
    """
    config = read_json_object(trained.start / "config.json", COPY) | _base(trained, base)
    prefix = PEFT if trained.lora else ""
    adapter = {
        f"{prefix}{newer(name).removesuffix('.weight')}.lora_{letter}.weight": half
        for name, pair in trained.pairs.items()
        for letter, half in zip("AB", pair, strict=True)
    }
    others = {prefix + newer(name): tensor for name, tensor in trained.weights.items()}
    nbytes = sum(tensor.nbytes for tensor in (*adapter.values(), *others.values()))
    with new_directory(target, force, nbytes, trained.source.inputs) as directory:
        if trained.lora:
            write_safetensors(directory / ADAPTER_FILES[0], adapter, {"format": "pt"})
            write_json(directory / "adapter_config.json", _adapter_config(trained, trained.lora, config["base_model_path"]))
        if others:
            write_safetensors(directory / PARTIAL_FILE, others, {})
        write_json(directory / "config.json", config)
        copy_companions(trained.source.companions, directory)
    return len(adapter) + len(others)


def torch_tensors(config: UniPixelConfig, arrays: Mapping[KeyPath, np.ndarray], start: Path, shaped: bool = True) -> dict[str, Tensor]:
    """Return arrays as torch's tensors under canonical names; a stacked array [L, ...] becomes one tensor for each layer.

    Args:
        config: the model's configuration.
        arrays: arrays by the model's paths.
        start: the directory that training started from, for messages.
        shaped: give each tensor the shape that torch's weight has; if not, it keeps its own, as an adapter's matrix must.

    Raises:
        UserError: the model has no weight at a path.
    """
    rules = {rule.jax: rule for rule in all_rules(config)}
    unknown = [join(path) for path in arrays if path not in rules]
    if unknown:
        raise UserError(f"the training state has {', '.join(unknown[:10])}, which the model of {start} does not have; give its own start with --start DIR")
    tensors = {}
    for path, array in arrays.items():
        rule = rules[path]
        for index, name in enumerate(rule.torch):
            piece = array[index] if rule.stacked else array
            shape = rule.torch_shape(piece.shape) if shaped else piece.shape
            tensors[name] = Tensor.computed(CODES[array.dtype], shape, partial(np.asarray, piece))
    return tensors


def _base(trained: Trained, base: str | None) -> dict[str, Any]:
    """Return the keys of config.json by which the reference finds an adapter's base (unipixel/model/builder.py): the base model, and SAM 2 for a fresh one."""
    if base:
        return {"base_model_path": base}
    source = trained.source.description
    lost = [name for name in source.get("overlaid", []) if name not in trained.weights]
    make = f"make one with: unipixel-jax convert to-torch {trained.start} BASE, and name it with --base BASE"
    if source.get("kind") not in ("checkpoint", "fresh"):
        raise UserError(f"{trained.start} was not made from one torch checkpoint (but {source.get('kind')!r}), so the adapter has no base yet; {make}")
    if lost:
        raise UserError(f"{trained.start} holds {', '.join(lost[:10])} of partial files, which were not trained on and no base has; {make}")
    if source["kind"] == "fresh":
        return {"base_model_path": source["qwen"], "sam2_checkpoint": source["sam2"]}
    return {"base_model_path": source["path"]}


def _adapter_config(trained: Trained, settings: LoraSettings, base: str) -> dict[str, Any]:
    """Return the content of adapter_config.json: what peft must know to add the adapter; its defaults hold for all else."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": [newer(name).removesuffix(".weight") for name in trained.pairs],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }
