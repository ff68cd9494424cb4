"""Reports of programs that were compiled before, on disk: the same compiler says the same of the same program, and can take a quarter of an hour to say it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from unipixel_jax.core.cache import cache_folder
from unipixel_jax.core.files import read_json_object, replacing
from unipixel_jax.errors import UserError
from unipixel_jax.plan.report import PlanReport, ProgramReport

FOLDER = "plans"
"""The folder of the cache in which reports are kept."""
COMPILERS = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12", "nvidia-cudnn-cu12")
"""The packages whose versions change what a compiler makes of a program."""

_LOG = logging.getLogger(__name__)


def key_of(lowered: Any, *conditions: object) -> str:
    """Return a name for what a program's report depends on: the program with the places in the source that it comes from, the compilers, this package's code
    that reads reports, and ``conditions``, whose ``repr`` says all of them.

    Args:
        lowered: a ``jax.stages.Lowered``.
        conditions: the topology, compiler options and so on.
    """
    versions = sorted((d.name, d.version) for d in distributions() if d.name in COMPILERS)
    readers = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(Path(__file__).parent.glob("*.py"))]
    digest = hashlib.sha256(repr((versions, readers, conditions)).encode())
    digest.update(lowered.as_text(debug_info=True).encode())
    return digest.hexdigest()


def kept(key: str, make: Callable[[], ProgramReport]) -> ProgramReport:
    """Return the report of that key from the cache, or make it and keep it there. A damaged file is written anew. With the cache off, or where it
    cannot be written, nothing is kept.
    """
    folder = cache_folder()
    if folder is None:
        return make()
    path = folder / FOLDER / f"{key}.json"
    if path.is_file():
        try:
            (program,) = PlanReport.from_json(read_json_object(path)).programs
            _LOG.info("%s was compiled before, in %.0f s: %s", program.name, program.compile_seconds, path)
            return program
        except (UserError, ValueError) as error:
            _LOG.warning("%s is no report, and is written anew: %s", path, error)
    program = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as aside:
            aside.write_text(json.dumps(PlanReport("", "", {}, 0, "", False, (program,)).to_json()), encoding="utf-8")
    except (OSError, UserError) as error:  # what took minutes to compile is not lost for want of a place to keep it
        _LOG.warning("%s cannot be written, so this program will be compiled again: %s", path, error)
    return program
