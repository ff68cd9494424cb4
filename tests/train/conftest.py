"""Runs of one file share the programs of their steps."""

import pytest

from unipixel_jax.train import loop, reproduce, step

GRADIENTS = ("trained", "lora", "losses", "dtype", "remat", "dropout")
UPDATE = ("trained", "lora", "optim", "offload_optimizer", "steps", "epochs", "accumulation")
"""The fields of a run's configuration on which its gradients and its updates depend."""


@pytest.fixture(scope="module", autouse=True)
def shared_programs():
    """In the small runs here, tracing and lowering a program takes several times as long as all the steps that it is used for."""
    made = {}

    def shared(make, names):
        def of(setup):
            key = (make, setup.mesh, repr(setup.model_config), *(repr(getattr(setup.config, name)) for name in names))
            if key not in made:
                made[key] = make(setup)
            return made[key]

        return of

    with pytest.MonkeyPatch.context() as patch:
        gradients = shared(step.make_gradients, GRADIENTS)
        patch.setattr(loop, "make_gradients", gradients)
        patch.setattr(reproduce, "make_gradients", gradients)
        patch.setattr(loop, "make_update", shared(step.make_update, UPDATE))
        yield
