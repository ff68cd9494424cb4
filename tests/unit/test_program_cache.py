"""Where compiled programs are kept on disk, and which, and how often garbage is collected where they are traced."""

import gc

import jax
import pytest

from unipixel_jax.core.cache import NEW_OBJECTS, VARIABLE, prepare_to_compile

OPTIONS = {"jax_compilation_cache_dir": "of JAX", "jax_persistent_cache_min_compile_time_secs": 7.0}


@pytest.fixture(autouse=True)
def options():
    """JAX's options and the collector's thresholds before a command begins, set back after each test to what they were."""
    before, thresholds = {name: getattr(jax.config, name) for name in OPTIONS}, gc.get_threshold()
    for name, value in OPTIONS.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    gc.set_threshold(*thresholds)


@pytest.mark.parametrize("folder", ["programs", ""])
@pytest.mark.parametrize("own", [(), ("jax_compilation_cache_dir",), tuple(OPTIONS)], ids=["none", "the folder", "both"])
def test_what_the_environment_says_of_jax_holds(monkeypatch, tmp_path, folder, own):
    monkeypatch.setenv(VARIABLE, str(tmp_path / folder) if folder else "")
    for name in OPTIONS:
        monkeypatch.delenv(name.upper(), raising=False)
    for name in own:
        monkeypatch.setenv(name.upper(), str(OPTIONS[name]))
    prepare_to_compile()
    ours = {"jax_compilation_cache_dir": str(tmp_path / folder), "jax_persistent_cache_min_compile_time_secs": 0.5} if folder else {}
    expected = OPTIONS | {name: value for name, value in ours.items() if name not in own}
    assert {name: getattr(jax.config, name) for name in OPTIONS} == expected


@pytest.mark.parametrize("folder", ["programs", ""])
def test_garbage_is_collected_less_often_with_a_cache_or_without(monkeypatch, tmp_path, folder):
    monkeypatch.setenv(VARIABLE, str(tmp_path / folder) if folder else "")
    gc.set_threshold(700, 10, 10)
    prepare_to_compile()
    assert gc.get_threshold() == (NEW_OBJECTS, 10, 10)
