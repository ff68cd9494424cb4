"""The names used of JAX's private package are there, and the error where a version of JAX lacks one says so."""

import jax
import pytest

from unipixel_jax.core import jax_internals
from unipixel_jax.core.jax_internals import KNOWN_GOOD, cluster_types, distributed_state
from unipixel_jax.errors import UserError


def test_the_names_are_there():
    state = distributed_state()
    assert state.client is None and state.num_processes == 1 and hasattr(state, "coordinator_address") and hasattr(state, "process_id")
    assert [cluster.name for cluster in cluster_types()] == ["gketpu", "gcetpu", "slurm"]
    assert all(callable(cluster.is_env_present) and callable(cluster.get_process_count) for cluster in cluster_types())


@pytest.mark.parametrize(("module", "name"), [("distributed", "moved"), ("moved", "global_state")])
def test_a_name_that_is_not_there_is_told_with_a_version_that_has_it(module, name):
    with pytest.raises(UserError) as error:
        jax_internals._private(module, name)
    assert f"JAX {jax.__version__} has no jax._src.{module}.{name}" in str(error.value)
    assert str(error.value).endswith(f"run pip install jax=={KNOWN_GOOD}")
