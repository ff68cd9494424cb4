"""The optimizer: torch's AdamW with the clipping, schedule and learning rates of the reference's trainer, or another of optax.

Sources: torch.optim.AdamW; torch.nn.utils.clip_grad_norm_; transformers' optimization.py; unipixel/train/custom_trainer.py; for Muon, arXiv 2502.16982.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from unipixel_jax.errors import UserError
from unipixel_jax.train.trainable import Group, matrices

MUON_RMS = 0.2
"""The root mean square of a matrix's update before the learning rate. It is about that of Adam, so that the same rates and decay can be used (arXiv 2502.16982,
section 2.2)."""

Optimizer = Literal["adamw", "nadamw", "amsgrad", "adabelief", "adafactor", "lion", "sgd", "muon"]
Schedule = Literal["cosine", "linear", "constant", "inverse_sqrt"]

_INVERSE_STEPS = 10_000
"""The steps in which "inverse_sqrt" falls to a share of 0.71 where there is no warm-up, as in transformers."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer's settings that the reference's command line has, with the same defaults.

    Attributes:
        learning_rate: the rate at the end of the warm-up, for all weights whose group has no rate of its own.
        lora_lr, sam_encoder_lr, sam_decoder_lr: the rates of the adapters, of SAM 2's image encoder and of the rest of SAM 2; None means ``learning_rate``.
        weight_decay: decoupled weight decay; each step subtracts this share of a weight times the learning rate.
        b1, b2, eps: the constants of Adam and its kin.
        clip_norm: the largest norm of all gradients together; None does not clip.
        warmup_ratio: the share of all steps in which the rate rises from 0, rounded up to whole steps.
        schedule: how the rate goes on after the warm-up: "cosine" and "linear" fall to 0 in the last step, "constant" stays, "inverse_sqrt" falls with the root
            of the number of steps.
        optimizer: how gradients become updates; all have the same clipping, learning rates, schedule and decoupled weight decay. "adamw" is the reference's.
            "nadamw", "amsgrad", "adabelief" and "lion" are optax's of these names; "sgd" has the momentum ``b1``. "adafactor" keeps sums of rows and columns
            in the place of second moments, and no first ones, as transformers sets it up (no relative steps). "muon" replaces the momentum of every matrix
            (train/trainable.py, ``matrices``) by the nearest orthogonal matrix, which leaves plateaus of training from random weights sooner; all other
            weights have Adam.
    """

    learning_rate: float = 2e-5
    lora_lr: float | None = None
    sam_encoder_lr: float | None = None
    sam_decoder_lr: float | None = None
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = 1.0
    warmup_ratio: float = 0.03
    schedule: Schedule = "cosine"
    optimizer: Optimizer = "adamw"

    def __post_init__(self) -> None:
        rates = (self.learning_rate, self.lora_lr, self.sam_encoder_lr, self.sam_decoder_lr)
        checks = {
            "learning rates": (all(rate is None or rate >= 0 for rate in rates), "at least 0"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "b1 and b2": (0 <= self.b1 < 1 and 0 <= self.b2 < 1, "within [0, 1)"),
            "eps": (self.eps > 0, "above 0"),
            "clip_norm": (self.clip_norm is None or self.clip_norm > 0, "above 0, or None for no clipping"),
            "warmup_ratio": (0 <= self.warmup_ratio <= 1, "within [0, 1]"),
            "optimizer": (self.optimizer in get_args(Optimizer), f"one of {', '.join(get_args(Optimizer))}"),
            "schedule": (self.schedule in get_args(Schedule), f"one of {', '.join(get_args(Schedule))}"),
        }
        for what, (right, expected) in checks.items():
            if not right:
                raise UserError(f"{what} in {self} cannot be used: expected {expected}")

    def rate_of(self, group: Group) -> float:
        """Return the learning rate of a group at the end of the warm-up."""
        own = {"lora": self.lora_lr, "sam_encoder": self.sam_encoder_lr, "sam_decoder": self.sam_decoder_lr}.get(group.rate)
        return self.learning_rate if own is None else own


def make_optimizer(config: OptimConfig, owners: Any, total_steps: int) -> optax.GradientTransformation:
    """Return the optimizer of all trained weights, with one state; the groups differ in learning rate and decay only.

    Args:
        config: the settings.
        owners: a tree like the trained weights, with a ``Group`` for each array (train/trainable.py, ``groups``).
        total_steps: the number of steps of the whole training.

    Raises:
        UserError: ``total_steps`` is below 1.
    """
    factor = _factor(config, total_steps)
    decays = jax.tree.map(lambda group: group.decays, owners)

    def own_rates(updates: Any, params: Any = None) -> Any:
        return jax.tree.map(lambda update, group: update * config.rate_of(group), updates, owners)

    return optax.chain(
        optax.identity() if config.clip_norm is None else _clip(config.clip_norm),
        _direction(config),
        optax.add_decayed_weights(config.weight_decay, decays),
        optax.stateless(own_rates),
        optax.scale_by_learning_rate(factor),
    )


def schedule(config: OptimConfig, total_steps: int) -> Callable[[jax.Array | int], jax.Array]:
    """Return the learning rate by step: it rises linearly from 0 during the warm-up, and goes on by ``config.schedule``. Step 0 of a warm-up has rate 0.

    Args:
        config: the settings, of which the rate, the schedule and the share of warm-up steps are used.
        total_steps: the number of steps of the whole training.

    Returns:
        A function from a step's number to a float32 scalar, the rate of weights without a rate of their own; the other rates are proportional.

    Raises:
        UserError: ``total_steps`` is below 1.
    """
    factor = _factor(config, total_steps)
    return lambda step: config.learning_rate * factor(step)


def _factor(config: OptimConfig, total_steps: int) -> Callable[[jax.Array | int], jax.Array]:
    if total_steps < 1:
        raise UserError(f"a training of {total_steps} steps has no schedule: expected at least 1 step")
    warmup = math.ceil(total_steps * config.warmup_ratio)

    def factor(step: jax.Array | int) -> jax.Array:
        at = jnp.asarray(step, jnp.float32)
        past = at - warmup
        progress = past / max(1, total_steps - warmup)
        after = {
            "cosine": lambda: jnp.maximum(0.0, 0.5 * (1 + jnp.cos(jnp.pi * progress))),
            "linear": lambda: jnp.maximum(0.0, 1 - progress),
            "constant": lambda: jnp.ones_like(at),
            "inverse_sqrt": lambda: jax.lax.rsqrt(1 + jnp.maximum(0.0, past) / (warmup or _INVERSE_STEPS)),
        }[config.schedule]()
        return jnp.where(at < warmup, at / max(1, warmup), after)

    return factor


def _direction(config: OptimConfig) -> optax.GradientTransformation:
    """Return the transformation of gradients to updates of unit learning rate. optax's Adam adds epsilon where torch's does."""
    b1, b2, eps = config.b1, config.b2, config.eps
    adam = optax.scale_by_adam(b1, b2, eps)
    others: Mapping[str, Callable[[], Any]] = {
        "adamw": lambda: adam,
        "nadamw": lambda: optax.scale_by_adam(b1, b2, eps, nesterov=True),
        "amsgrad": lambda: optax.scale_by_amsgrad(b1, b2, eps),
        "adabelief": lambda: optax.scale_by_belief(b1, b2, eps),
        "adafactor": lambda: optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)),
        "lion": lambda: optax.scale_by_lion(b1, b2),
        "sgd": lambda: optax.trace(b1),
    }
    if config.optimizer != "muon":
        return _plain_promotion(others[config.optimizer]())
    muon = optax.chain(optax.contrib.scale_by_muon(weight_dimension_numbers=matrices), optax.stateless(_alike))

    def which(params: Any) -> Any:
        return jax.tree.map(lambda axes: "adam" if axes is None else "muon", matrices(params), is_leaf=_is_axes)

    return _plain_promotion(optax.partition({"adam": adam, "muon": muon}, which))


def _is_axes(value: Any) -> bool:
    return value is None or isinstance(value, MuonDimensionNumbers)


def _alike(updates: Any, params: Any = None) -> Any:
    """Scale orthogonal updates [..., out, in] or [out, in, height, width], so that their root mean square does not depend on the shape."""

    def scaled(update: jax.Array, axes: MuonDimensionNumbers) -> jax.Array:
        rows, columns = update.shape[axes.output_axis], math.prod(update.shape[axis] for axis in axes.reduction_axis)
        return update * (MUON_RMS * math.sqrt(max(rows, columns)))

    return jax.tree.map(scaled, updates, matrices(updates))


def _plain_promotion(transformation: Any) -> optax.GradientTransformation:
    """Run a transformation of optax with standard dtype promotion: it raises floats to integer powers, which JAX's strict mode refuses."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):
            return transformation.update(updates, state, params)

    return optax.GradientTransformation(transformation.init, update)


def _clip(largest: float) -> optax.GradientTransformation:
    """Clip gradients by their global norm as torch does, which divides by the norm plus 1e-6."""

    def clip(updates: Any, params: Any = None) -> Any:
        share = jnp.minimum(1.0, largest / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda update: update * share.astype(update.dtype), updates)

    return optax.stateless(clip)
