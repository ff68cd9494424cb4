"""Computing a step whose loss or gradients were not finite again, from the batches and weights that were saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from unipixel_jax.errors import UserError
from unipixel_jax.train.checkpoints.manager import Checkpoints
from unipixel_jax.train.checkpoints.manifest import RunInfo
from unipixel_jax.train.checkpoints.reader import named_leaves
from unipixel_jax.train.feed import to_devices
from unipixel_jax.train.non_finite import not_finite
from unipixel_jax.train.saved_step import read_saved_step
from unipixel_jax.train.setup import lay_out, set_up
from unipixel_jax.train.step import make_gradients, step_key


def reproduce(run_dir: Path, file: Path) -> Iterator[str]:
    """Compute a saved step's losses and gradients again, with the weights that it began with; yields lines to show.

    Args:
        run_dir: the directory of the run.
        file: ``not_finite_step_N.npz`` in that directory.

    Raises:
        UserError: the file or the weights beside it cannot be read.
    """
    saved = read_saved_step(file)
    config, step, start = saved.config, saved.step, Path(saved.start)
    layout = lay_out(config, saved.model_config, saved.total, jax.devices())
    run_info = RunInfo.of(config.to_json(), layout.model_config, config.trained, config.lora, start)
    weights = run_dir / not_finite(step)
    if not weights.is_dir():
        raise UserError(f"{weights} is not there: expected the folder with the weights of step {step}, which lies in the run's directory")
    with Checkpoints(weights, run_info, keep=1) as checkpoints:
        restored = checkpoints.restore(layout.state)
    if restored is None:
        raise UserError(f"{weights} holds no complete checkpoint: the run was ended while it saved the weights of step {step}")
    setup, state = set_up(layout, start, restored.state), restored.state
    yield f"step {step}, with the weights that it began with"
    gradients = make_gradients(setup)
    for number, arrays in enumerate(saved.batches):
        try:
            grads, parts = gradients(state.trained, setup.frozen, to_devices(arrays, setup.mesh), step_key(config.seed, step, number))
        except (TypeError, ValueError, IndexError) as error:  # JAX raises these for arrays whose shapes do not fit
            raise UserError(f"{file} does not hold a batch of this model ({str(error)[:300]}): expected the file that a stopped run named") from None
        values = {"loss": parts.total, "language": parts.language, **{name: getattr(parts.masks, name) for name in ("mask", "dice", "iou", "object")}}
        yield f"batch {number}: " + "  ".join(f"{name} {float(value):.4g}" for name, value in values.items())
        bad = [name for name, grad in named_leaves(grads).items() if not np.isfinite(jax.device_get(grad)).all()]
        yield f"gradients that are not finite: {', '.join(bad) or 'none'}"
        yield "samples: " + ", ".join(f"{source} {name}" for source, name in arrays.samples)
