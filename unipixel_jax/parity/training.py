"""The comparison of a case of training: some steps of our optimizer against the same steps of the reference's trainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from unipixel_jax.batch import ModelInputs, TrainBatch
from unipixel_jax.convert.names import canonical
from unipixel_jax.convert.rules import Rule
from unipixel_jax.convert.tables import all_rules
from unipixel_jax.core.params import abstract
from unipixel_jax.errors import UserError
from unipixel_jax.infer.loading import LoadedModel
from unipixel_jax.models.lora import LoraConfig, LoraLinear, add_lora
from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.parity import compare
from unipixel_jax.parity.compare import Check
from unipixel_jax.parity.gradients import loss_and_gradients, to_batch, with_adapters
from unipixel_jax.parity.recording import Case
from unipixel_jax.train.optim import OptimConfig, make_optimizer
from unipixel_jax.train.trainable import Group, Predicate, groups, trained

SHIFT = 5
"""Pixels by which frames and masks move to the right from step to step, as scripts/recording/training.py moves them."""
MAX_STEPS, MAX_RANK = 1000, 1024
"""The most steps, and the largest LoRA rank, of a recording that are accepted."""
CHANGES = 48
"""The most elements of a weight's change that are recorded; they are evenly spaced."""
NAMES = {"sam2_enc_lr": "sam_encoder_lr", "sam2_dec_lr": "sam_decoder_lr", "max_grad_norm": "clip_norm"}
"""Our names of the optimizer's settings by the reference's names, where they differ."""


def compare_steps(case: Case, loaded: LoadedModel, inputs: ModelInputs, adapters: LoraConfig | None) -> list[Check]:
    """Compare the losses of every step, what is trained at which rate, the adapters' gradients of the first step, and the change of every trained weight.

    The arguments are those of ``compare_gradients``; a case with adapters has its own.
    """
    config = OptimConfig(**{NAMES.get(key, key): value for key, value in case.options["optimizer"].items()})
    model, rules = loaded.model, all_rules(loaded.config)
    if case.options["lora"]:
        model, rules = _with_own_adapters(model, rules, case)
    elif adapters is not None:
        model = with_adapters(model, adapters, {})
    which = trained(case.options["tuning"])
    losses, first, change = _train(model, which, to_batch(case, inputs), config, case.number("steps", MAX_STEPS))

    theirs = {canonical(name): (rate, decay) for name, rate, decay in _trained(case)}
    listed = _by_torch_name(groups(nnx.state(model, which)), rules)
    ours = {name: (config.rate_of(group), config.weight_decay if group.decays else 0.0) for name, group in listed.items()}
    checks = [compare.close("losses", losses, case.outputs["losses"], compare.LOSSES)]
    checks.append(compare.exact("trained weights", np.asarray(sorted(ours)), np.asarray(sorted(theirs))))
    checks.append(compare.exact("their rates and decay", *(np.asarray([side.get(name, (-1.0, -1.0)) for name in sorted(theirs)]) for side in (ours, theirs))))
    return checks + _gradients(case, _arrays(first, rules)) + _changes(case, _arrays(change, rules))


def _train(model: UniPixelModel, which: Predicate, batch: TrainBatch, config: OptimConfig, steps: int) -> tuple[np.ndarray, nnx.State, nnx.State]:
    """Train on a batch whose frames move from step to step; return the losses [steps], the first step's gradients, and each weight's change over all steps.

    The dear program is that of the gradients of all weights, which cases of losses and of steps share. The optimizer acts element by element, but for the norm
    of all gradients, so it gets one vector for each group of weights: with some hundred weights of their own its program would be the larger one.
    """
    graph, start, *frozen = nnx.split(model, which, ...)
    owners = jax.tree.leaves(groups(start))
    optimizer = make_optimizer(config, list(dict.fromkeys(owners)), steps)

    @jax.jit
    def update(grads: list[jax.Array], state: Any, weights: list[jax.Array]) -> tuple[list[jax.Array], Any]:
        updates, state = optimizer.update(grads, state, weights)
        return optax.apply_updates(weights, updates), state

    losses: list[np.ndarray] = []
    params = first = start
    weights = _joined(start, owners)
    state = jax.jit(optimizer.init)(weights)
    for number in range(steps):
        (loss, _), grads = loss_and_gradients(nnx.merge(graph, params, *frozen), _moved(batch, number))
        trained_grads = nnx.state(grads, which)
        first = first if losses else trained_grads
        losses.append(np.asarray(loss))
        weights, state = update(_joined(trained_grads, owners), state, weights)
        params = _parted(weights, owners, start)
    return np.stack(losses), first, jax.tree.map(lambda end, begin: np.asarray(end) - np.asarray(begin), params, start)


def _joined(tree: nnx.State, owners: list[Group]) -> list[np.ndarray]:
    """Return the arrays of each group as one vector; ``owners`` holds the group of each array of the tree."""
    leaves = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)]
    return [np.concatenate([leaf for leaf, owner in zip(leaves, owners, strict=True) if owner == group]) for group in dict.fromkeys(owners)]


def _parted(vectors: list[jax.Array], owners: list[Group], like: nnx.State) -> nnx.State:
    """Return a tree like another from the vectors that ``_joined`` makes."""
    leaves, structure = jax.tree.flatten(like)
    rests = dict(zip(dict.fromkeys(owners), map(np.asarray, vectors), strict=True))
    parts = []
    for leaf, owner in zip(leaves, owners, strict=True):
        part, rests[owner] = np.split(rests[owner], [leaf.size])
        parts.append(jax.device_put(part.reshape(leaf.shape)))
    return jax.tree.unflatten(structure, parts)


def _gradients(case: Case, ours: Mapping[str, np.ndarray]) -> list[Check]:
    theirs = {name: value for name, value in case.outputs.items() if name.startswith("grad.")}
    total = float(np.sqrt(sum(np.sum(value.astype(np.float64) ** 2) for value in theirs.values())))
    return [compare.gradient(name, ours[canonical(name.removeprefix("grad."))], value, total) for name, value in theirs.items()]


def _changes(case: Case, ours: Mapping[str, np.ndarray]) -> list[Check]:
    checks = []
    for (name, *_), norm in zip(_trained(case), case.outputs["change_norms"], strict=True):
        change = _compared(canonical(name), ours[canonical(name)])
        checks.append(compare.close(f"norm of change.{name}", np.asarray(np.linalg.norm(change.astype(np.float64))), np.asarray(norm), compare.CHANGE))
        if change.size:
            sampled = change.reshape(-1)[:: -(-change.size // CHANGES)]
            checks.append(compare.close(f"change.{name}", sampled, case.outputs[f"change.{name}"], compare.CHANGE))
    return checks


def _compared(name: str, change: np.ndarray) -> np.ndarray:
    """Return a weight's change without the biases of SAM's keys.

    Attention without rope does not depend on them, so that their gradients are rounding errors, which Adam makes as large as any other gradient.
    """
    if not name.startswith("sam2.") or not name.endswith((".k_proj.bias", ".qkv.bias")):
        return change
    return change[:0] if name.endswith(".k_proj.bias") else np.delete(change.reshape(3, -1), 1, axis=0)


def _trained(case: Case) -> list[tuple[str, float, float]]:
    """Return name, learning rate and weight decay of each weight that the reference trained."""
    return case.beside("trained")


def _moved(batch: TrainBatch, step: int) -> TrainBatch:
    """Return a batch with its frames and masks moved to the right as at ``step``; pixels that leave on the right come in on the left."""
    assert batch.clips is not None
    frames, masks = (jax.device_put(np.roll(np.asarray(a), SHIFT * step, axis)) for a, axis in ((batch.clips.frames, -2), (batch.clips.masks, -1)))
    return dataclasses.replace(batch, clips=dataclasses.replace(batch.clips, frames=frames, masks=masks))


def adapters_of(cases: Sequence[Case]) -> LoraConfig | None:
    """Return the adapters of the first case of training that has some; None if none has."""
    return next((_adapters(case) for case in cases if case.kind == "train_steps" and case.options.get("lora")), None)


def _adapters(case: Case) -> LoraConfig:
    lora = case.options["lora"]
    if type(lora["rank"]) is not int or lora["rank"] > MAX_RANK:
        raise UserError(f"{case.name}: LoRA of rank {str(lora['rank'])[:40]}, expected a whole number of at most {MAX_RANK}: record it again")
    return LoraConfig(lora["rank"], lora["alpha"], dropout=0.0)


def _with_own_adapters(model: UniPixelModel, rules: list[Rule], case: Case) -> tuple[UniPixelModel, list[Rule]]:
    """Return the model with the case's adapters, and the conversion rules extended by those for the adapters."""
    config = _adapters(case)
    recorded = {canonical(name.removeprefix("inputs.lora.")): value for name, value in case.tensors.items() if name.startswith("inputs.lora.")}
    adapted = {path for path, module in nnx.iter_modules(abstract(lambda rngs: add_lora(model, config, rngs))) if isinstance(module, LoraLinear)}
    more, given = [], {}
    for rule in rules:
        if rule.jax[:-1] in adapted and rule.jax[-1] == "weight":
            for theirs, ours in (("lora_A", "lora_a"), ("lora_B", "lora_b")):
                names = tuple(name.removesuffix("weight") + f"{theirs}.weight" for name in rule.torch)
                more.append(Rule(names, (*rule.jax[:-1], ours), rule.stacked))
                given[more[-1].jax] = np.stack([recorded[name] for name in names])
    return with_adapters(model, config, given), rules + more


def _by_torch_name(tree: nnx.State, rules: list[Rule]) -> dict[str, Group]:
    """Return the optimizer's group of every torch tensor, by canonical name."""
    flat = _flat(tree)
    return {name: flat[rule.jax] for rule in rules if rule.jax in flat for name in rule.torch}


def _arrays(tree: nnx.State, rules: list[Rule]) -> dict[str, np.ndarray]:
    """Return the state's arrays in torch's shapes, by canonical torch name."""
    out = {}
    arrays = {path: np.asarray(array) for path, array in _flat(tree).items()}
    for rule in rules:
        if rule.jax in arrays:
            array = arrays[rule.jax]
            for i, (name, shape) in enumerate(rule.torch_shapes(array.shape).items()):
                out[name] = (array[i] if rule.stacked else array).reshape(shape)
    return out


def _flat(tree: nnx.State) -> dict[Any, Any]:
    return {path: leaf.get_value() for path, leaf in nnx.to_flat_state(tree)}
