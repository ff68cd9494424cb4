"""Stand-ins for packages that the reference imports but that a recording never calls.

The stand-ins are found last, so an installed package always wins. What must be installed: torch, torchvision, transformers, accelerate, peft,
safetensors, hydra-core, nncore, tqdm, pillow, numpy, jinja2.
"""

from __future__ import annotations

import dataclasses
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

STAND_INS = ("cv2", "decord", "deepspeed", "iopath", "pandas", "pycocotools", "pysrt", "tabulate", "tensordict", "termplotlib")
"""Video and mask readers, tables and plots of the data sets; ``tensordict`` only for a class that a plain dataclass replaces."""


class _Absent:
    """An attribute of a package that is not installed; using it raises."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ImportError(f"{self._name} was called, but {self._name.split('.')[0]} is not installed: pip install {self._name.split('.')[0]}")

    def __getattr__(self, name: str) -> _Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{self._name}.{name}")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module of the packages in ``STAND_INS`` as an empty one."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        if fullname.split(".")[0] not in STAND_INS:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        def attribute(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return _Absent(f"{module.__name__}.{name}")

        module.__getattr__ = attribute  # type: ignore[method-assign]
        if module.__name__ == "tensordict":
            module.tensorclass = dataclasses.dataclass  # type: ignore[attr-defined]


def install() -> None:
    """Let the packages of ``STAND_INS`` that are not installed be imported."""
    # transformers decides on import which packages it may use, and must not count a stand-in among them
    import transformers  # noqa: F401

    sys.meta_path.append(_Finder())
