"""The validation of a run: losses on data that it does not train on."""

from __future__ import annotations

from unipixel_jax.data.mixture import Mixture
from unipixel_jax.data.templates import Templates
from unipixel_jax.processing.tokenizer import Tokenizer
from unipixel_jax.train.feed import to_devices
from unipixel_jax.train.loaders import run_loader
from unipixel_jax.train.meter import mean_losses
from unipixel_jax.train.setup import Setup, TrainState
from unipixel_jax.train.step import make_loss


class Validation:
    """Measures the losses on the same batches of a mixture in every evaluation."""

    def __init__(self, setup: Setup, mixture: Mixture, tokenizer: Tokenizer, templates: Templates) -> None:
        self._setup, self._mixture, self._tokenizer, self._templates = setup, mixture, tokenizer, templates
        self._loss = make_loss(setup)

    def measure(self, state: TrainState) -> dict[str, float]:
        """Return the mean losses over the validation batches, by name. All processes must call it."""
        setup, config = self._setup, self._setup.config
        found = []
        with run_loader(config, setup, self._mixture, self._tokenizer, self._templates) as loader:
            for _ in range(config.data.validation_batches):
                found.append(self._loss(state.trained, setup.frozen, to_devices(next(loader).arrays, setup.mesh)))
        return {f"validation_{name}": value for name, value in mean_losses(found).items()}
