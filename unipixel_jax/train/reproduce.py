"""What went wrong in a step whose loss or gradients were not finite, from the batch that was saved."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from unipixel_jax.errors import UserError
from unipixel_jax.train.checkpoint import CHECKPOINTS, Checkpoints
from unipixel_jax.train.feed import to_batch
from unipixel_jax.train.manifest import About
from unipixel_jax.train.setup import abstract_state, set_up
from unipixel_jax.train.step import make_gradients, step_key
from unipixel_jax.train.stored import named_leaves


def reproduce(run_dir: Path, file: Path) -> Iterator[str]:
    """Compute a saved step's losses and gradients again, with the weights of the newest checkpoint; yields lines to show.

    Args:
        run_dir: the directory of the run.
        file: ``not_finite_step_N.pkl`` from it. It is a pickle: open only files that you made.

    Raises:
        UserError: the file cannot be read, or the run's checkpoints do not belong to it.
    """
    try:
        saved: dict[str, Any] = pickle.loads(file.read_bytes())
        config, step, batches, start = saved["config"], saved["step"], saved["batches"], saved["start"]
    except (OSError, pickle.UnpicklingError, EOFError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error}): expected the file that a stopped run named") from error
    setup = set_up(config, start, saved["model_config"], saved["total"])
    about = About.of(config.to_json(), setup.model_config, config.trained, config.lora, start)
    with Checkpoints(run_dir / CHECKPOINTS, about, config.keep) as checkpoints:
        restored = checkpoints.restore(abstract_state(setup.state))
    state = setup.state if restored is None else restored.state
    yield f"step {step} with the weights of step {int(state.step)}"
    gradients = make_gradients(setup)
    for number, arrays in enumerate(batches):
        grads, parts = gradients(state.trained, setup.frozen, to_batch(arrays, setup.mesh), step_key(config.seed, step, number))
        values = {"loss": parts.total, "language": parts.language, **{name: getattr(parts.masks, name) for name in ("mask", "dice", "iou", "object")}}
        yield f"batch {number}: " + "  ".join(f"{name} {float(value):.4g}" for name, value in values.items())
        bad = [name for name, grad in named_leaves(grads).items() if not np.isfinite(jax.device_get(grad)).all()]
        yield f"gradients that are not finite: {', '.join(bad) or 'none'}"
        yield "samples: " + ", ".join(f"{source} {name}" for source, name in arrays.samples)
