"""The comparison of a training case: losses, and gradients under their torch names."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unipixel_jax.batch import ModelInputs, TrainBatch, TrainClips
from unipixel_jax.convert.names import canonical
from unipixel_jax.convert.rules import Rule
from unipixel_jax.convert.tables import all_rules
from unipixel_jax.core.params import abstract, filled, shapes
from unipixel_jax.core.trees import KeyPath
from unipixel_jax.infer.loading import LoadedModel
from unipixel_jax.losses.mask import MaskLossWeights
from unipixel_jax.models.lora import LoraConfig, add_lora
from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.parity import compare
from unipixel_jax.parity.compare import Check
from unipixel_jax.parity.recording import Case
from unipixel_jax.train.objective import LossParts, objective

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def compare_gradients(case: Case, loaded: LoadedModel, inputs: ModelInputs, adapters: LoraConfig | None) -> list[Check]:
    """Compare the losses and gradients of one recorded sample.

    Args:
        case: the case.
        loaded: the converted model.
        inputs: what it reads.
        adapters: the adapters of other cases, which the model is given with weights of zero, so that one program serves them all; None for none.
    """
    (_, parts), grads = loss_and_gradients(*_arguments(case, loaded, inputs, adapters))
    parts = jax.tree.map(np.asarray, parts)
    # the recorded parts are sums over the frames of a tracked clip, and means in batch mode
    masks = jax.tree.map(lambda a: a * (1 if loaded.config.sam2_batch_mode else case.input("label_mask").shape[0]), parts.masks)
    ours = {
        "loss": parts.total,
        "lm_loss": parts.language,
        "seg.core_loss": masks.total(MaskLossWeights()),
        "seg.loss_mask": masks.mask,
        "seg.loss_dice": masks.dice,
        "seg.loss_iou": masks.iou,
        "seg.loss_class": masks.object,
    }
    checks = [compare.close(name, np.asarray(ours[name]), value, compare.FORWARD) for name, value in case.outputs.items() if name in ours]
    torch_grads = by_torch_name(grads, all_rules(loaded.config))
    norms = case.outputs["grad_norms"]
    total = float(np.linalg.norm(norms.astype(np.float64)))
    names = case.beside("grad_names")
    for name, norm in zip(names, norms, strict=True):
        checks.append(compare.gradient(f"norm of grad.{name}", np.asarray(np.linalg.norm(_find(torch_grads, name))), np.asarray(norm), total))
    for name, value in case.outputs.items():
        if name.startswith("grad."):
            checks.append(compare.gradient(name, _find(torch_grads, name.removeprefix("grad.")), value, total))
    return checks


def trace_gradients(case: Case, loaded: LoadedModel, inputs: ModelInputs, adapters: LoraConfig | None) -> None:
    """Trace and lower the program that ``compare_gradients`` runs with these arguments, so that its first run has only to compile it."""
    _loss_and_gradients.lower(*_arguments(case, loaded, inputs, adapters))


def _arguments(case: Case, loaded: LoadedModel, inputs: ModelInputs, adapters: LoraConfig | None) -> tuple[UniPixelModel, TrainBatch]:
    return loaded.model if adapters is None else with_adapters(loaded.model, adapters, {}), to_batch(case, inputs)


def with_adapters(model: UniPixelModel, config: LoraConfig, given: Mapping[KeyPath, np.ndarray]) -> UniPixelModel:
    """Return the model with adapters whose arrays are ``given`` by path, or else zero, so that they change neither an output nor another gradient."""
    adapted = abstract(lambda rngs: add_lora(model, config, rngs))
    own = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(model))}
    added = {path: given.get(path, np.zeros(shape, np.float32)) for path, shape in shapes(adapted).items() if path not in own}
    return filled(adapted, own | jax.device_put(added))


def loss_and_gradients(model: UniPixelModel, batch: TrainBatch) -> tuple[tuple[jax.Array, LossParts], UniPixelModel]:
    """Return the loss of a batch and its parts, and the gradients of all weights in the model's structure."""
    lowered = _loss_and_gradients.lower(model, batch)
    with _COMPILING:
        compiled = lowered.compile()
    return compiled(model, batch)


@jax.jit
def _loss_and_gradients(model: UniPixelModel, batch: TrainBatch) -> tuple[tuple[jax.Array, LossParts], UniPixelModel]:
    return jax.value_and_grad(lambda m: objective(m, batch, jnp.dtype("float32"), remat="none"), has_aux=True)(model)


_COMPILING = threading.Lock()
"""Two threads that ask for a program at once would compile it twice."""


def by_torch_name(grads: UniPixelModel, rules: list[Rule]) -> dict[str, np.ndarray]:
    """Return the arrays of a tree with the model's structure, such as its gradients, in torch's shapes and under canonical torch names."""
    flat = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(grads))}
    out = {}
    for rule in rules:
        array = flat[rule.jax]
        for i, (name, shape) in enumerate(rule.torch_shapes(array.shape).items()):
            out[name] = (array[i] if rule.stacked else array).reshape(shape)
    return out


def _find(grads: dict[str, np.ndarray], name: str) -> np.ndarray:
    known = canonical(name)
    return grads[EMBEDDING if known == HEAD and HEAD not in grads else known]


def to_batch(case: Case, inputs: ModelInputs) -> TrainBatch:
    """Return a case's only sample as a batch of one row.

    Args:
        case: holds ``labels`` [1, T], right-aligned with the inputs, ``frames`` [F, 3, S, S] and ``label_mask`` [F, O, S, S].
        inputs: the model's inputs for the sample, of batch size 1.
    """
    ids, masks = inputs.input_ids, case.input("label_mask").astype(bool)
    labels = np.full(ids.shape, -100, np.int32)
    labels[:, ids.shape[1] - case.input("labels").shape[1] :] = case.input("labels")
    (frames, objects), labelled = masks.shape[:2], labels != -100
    clips = TrainClips(
        frames=case.input("frames").astype(np.float32).transpose(0, 2, 3, 1)[None],
        counts=np.full(1, frames, np.int32),
        masks=masks[None],
        valid=np.ones((1, objects), bool),
    )
    inputs = replace(inputs, seg_positions=inputs.seg_positions[:, :objects])
    batch = TrainBatch(inputs, labels, (labelled / labelled.sum()).astype(np.float32), clips)
    return jax.tree.map(lambda a: jax.device_put(a[None]), batch)
