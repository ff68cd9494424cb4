"""The merge of LoRA adapters, as peft saves them, into their base: W + (alpha / r) B A in float32.

Source: Hu et al. 2021, section 4.1; peft 0.17, tuners/lora. W [out, in], A [r, in], B [out, r].
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from unipixel_jax.errors import UserError

from .names import PEFT, canonical, unwrapped
from .tensors import Tensor

NEUTRAL = frozenset(
    {
        "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "runtime_config",
        "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout",
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "bias", "megatron_core", "qalora_group_size",
    }
)  # fmt: skip
"""Options of peft's LoraConfig that are read below, or that only say where the adapter's tensors come from. Any other option, also one that a later peft adds,
may make it another kind of adapter (DoRA, activated or quantised LoRA, replicated layers, trained tokens), and so must be off."""

INITIAL = (True, False, None, "gaussian", "orthogonal")
"""Initialisations that leave the base's weights as they were. The others (PiSSA, CorDA, OLoRA, LoftQ, EVA) may change the base before training."""

MAX_ALPHA = 1e6
"""The largest absolute alpha that is accepted. Those in use are below a few thousand, and an alpha near the end of a float's range makes infinite weights."""


@dataclass(frozen=True)
class Adapter:
    """The tensors of an adapter file, sorted.

    Attributes:
        pairs: A [r, in] and B [out, r] of each adapted weight, by the weight's canonical name.
        scales: alpha / r (or alpha / sqrt(r) for rsLoRA) of each adapted weight, by the same names.
        rest: whole tensors that the file holds besides (biases, embeddings), by canonical name.
    """

    pairs: dict[str, tuple[Tensor, Tensor]]
    scales: dict[str, float]
    rest: dict[str, Tensor]


def read_adapter(tensors: Mapping[str, Tensor], options: Mapping[str, Any], where: object) -> Adapter:
    """Sort an adapter file's tensors.

    Args:
        tensors: the file's tensors under its own names.
        options: its `adapter_config.json`.
        where: the directory, for messages.

    Raises:
        UserError: the adapter is of another kind, uses an option that is not merged here, lacks half of a pair, or has a rank that contradicts the options.
    """
    if options.get("peft_type") != "LORA":
        raise UserError(f"{where} holds an adapter of type {options.get('peft_type')!r}, expected LORA; merge it with peft and convert the whole checkpoint")
    on = {key: value for key, value in options.items() if value and key not in NEUTRAL and key != "init_lora_weights"}
    if options.get("init_lora_weights") not in INITIAL:
        on["init_lora_weights"] = options["init_lora_weights"]
    odd = [f"{key} = {reprlib.repr(value)}" for key, value in on.items()]
    if odd:
        raise UserError(f"{where} uses {', '.join(odd)}, which is not merged here; merge it with peft and convert the whole checkpoint")
    halves: dict[str, dict[str, Tensor]] = {}
    modules: dict[str, str] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, found, tail = name.partition(".lora_")
        weight = canonical(f"{module}.weight" if found else name)
        if weight in rest or (found and tail[:1] in halves.get(weight, {})):
            raise UserError(f"{where} holds the same twice, once as {name}; copy the adapter again")
        if not found:
            rest[weight] = tensor
        elif tail in ("A.weight", "B.weight", "A.default.weight", "B.default.weight"):
            modules[weight] = unwrapped(module).removeprefix(PEFT)
            halves.setdefault(weight, {})[tail[0]] = tensor
        else:
            raise UserError(f"{where}: {name} is no LoRA matrix of a linear layer; merge the adapter with peft and convert the whole checkpoint")
    alone = [name for name, pair in halves.items() if len(pair) < 2]
    if alone:
        raise UserError(f"{where} lacks lora_A or lora_B for {len(alone)} weights: {', '.join(alone[:20])}; copy the adapter again")
    pairs = {name: (pair["A"], pair["B"]) for name, pair in halves.items()}
    return Adapter(pairs, {name: _scale(modules[name], pair[0], options, where) for name, pair in pairs.items()}, rest)


def merged(weight: Tensor, pair: tuple[Tensor, Tensor], scale: float, where: str) -> Tensor:
    """Return the weight with the adapter merged into it, in the weight's dtype.

    As in peft, the matrices are rounded to the weight's dtype first, and the rest is computed in float32.

    Args:
        weight: W [out, in].
        pair: A [r, in] and B [out, r].
        scale: the factor of B A.
        where: the weight's name, for messages.

    Raises:
        UserError: the matrices do not fit the weight.
    """
    down, up = pair
    if (*up.shape[:1], *down.shape[1:]) != weight.shape or up.shape[1:] != down.shape[:1]:
        raise UserError(f"{where} is {weight.shape}, its lora_B {up.shape} and lora_A {down.shape} do not fit; expected an adapter of this very model")

    def add() -> np.ndarray:
        delta = up.cast(weight.dtype).load().astype(np.float32) @ down.cast(weight.dtype).load().astype(np.float32)
        delta *= np.float32(scale)
        delta += weight.load().astype(np.float32)
        return delta

    return Tensor.computed(weight.dtype, weight.shape, add)


def _scale(module: str, down: Tensor, options: Mapping[str, Any], where: object) -> float:
    """Return the factor of B A that the adapter's options give a module whose A is `down`."""
    rank = _of_module(module, options.get("rank_pattern"), options.get("r"), where)
    alpha = _of_module(module, options.get("alpha_pattern"), options.get("lora_alpha"), where)
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or not abs(alpha) <= MAX_ALPHA:
        found = f"rank {reprlib.repr(rank)} and alpha {reprlib.repr(alpha)}"
        raise UserError(f"{where}: adapter_config.json gives {module} {found}, expected a whole number from 1 and a finite number; copy the adapter again")
    if down.shape[:1] != (rank,):
        raise UserError(f"{where}: the adapter of {module} has rank {down.shape[:1]}, adapter_config.json says {rank}; the two do not belong together")
    return float(alpha) / (math.sqrt(rank) if options.get("use_rslora") else rank)


def _of_module(module: str, patterns: Any, default: Any, where: object) -> Any:
    """Return a module's rank or alpha from patterns, or the default where none matches.

    peft reads the patterns' keys as regular expressions for the end of the module's name; only plain endings are accepted here.
    """
    if not isinstance(patterns, Mapping | None):
        raise UserError(f"{where}: adapter_config.json has patterns that are no object but {reprlib.repr(patterns)}; copy the adapter again")
    for key, value in (patterns or {}).items():
        if set(key) & set("*+?[](){}|\\^$"):
            raise UserError(f"{where}: the pattern {key!r} in adapter_config.json is not read; merge the adapter with peft and convert the whole checkpoint")
        if f".{module}".endswith(f".{key}"):
            return value
    return default
