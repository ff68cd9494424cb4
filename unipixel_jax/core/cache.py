"""The cache between runs, a folder for compiled programs and converted checkpoints, and the settings of a process that compiles programs."""

from __future__ import annotations

import gc
import os
from pathlib import Path

VARIABLE = "UNIPIXEL_JAX_CACHE"
"""The environment variable that names the folder; empty, it turns the cache off."""
NEW_OBJECTS = 10_000
"""After how many new objects Python looks for garbage. Tracing a program makes millions that stay, and with Python's default of 700 looking is a quarter of the
time in which the gradients of a training are traced (measured once)."""


def cache_folder() -> Path | None:
    """Return the absolute path of the cache, which need not exist yet: what ``VARIABLE`` says, else ``~/.cache/unipixel_jax``; None if it is off."""
    named = os.environ.get(VARIABLE)
    if named == "":
        return None
    return Path(os.path.abspath(named)) if named else Path.home() / ".cache" / "unipixel_jax"


def prepare_to_compile() -> None:
    """Have this process collect garbage less often, and cache its programs on disk, so that the second run starts fast, unless the cache is off.

    What the environment says of JAX's own cache (``JAX_COMPILATION_CACHE_DIR``, ``JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS``) holds instead.
    """
    gc.set_threshold(NEW_OBJECTS)
    folder = cache_folder()
    if folder is None:
        return
    import jax

    for option, value in (("jax_compilation_cache_dir", str(folder)), ("jax_persistent_cache_min_compile_time_secs", 0.5)):
        if option.upper() not in os.environ:
            jax.config.update(option, value)
