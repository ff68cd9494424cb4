"""The recordings of nano_a are replayed with the kernels for the windows of Hiera's maps, interpreted."""

from pathlib import Path

import jax
import pytest

from unipixel_jax.ops.attention import maps
from unipixel_jax.parity.recording import open_recording
from unipixel_jax.parity.run import replay

RECORDING = Path(__file__).parents[1] / "recordings" / "nano_a"


@pytest.mark.slow
@pytest.mark.parametrize("name", maps.KERNELS)
def test_nano_a_passes_with_the_kernels_interpreted(name, monkeypatch):
    chosen, choose = [], maps._choose

    def kernels(asked, platform, *what):
        chosen.append(choose(asked or name, platform, *what))
        return chosen[-1]

    monkeypatch.setattr(maps, "_choose", kernels)
    jax.clear_caches()  # programs traced with other kernels would be used again
    results = list(replay(open_recording(RECORDING)))
    failed = [f"{r.name} {c.name}: {c.relative_error:.2e} > {c.allowed:.1e}" for r in results for c in r.checks if not c.passed]
    assert name in chosen and results and not failed
