"""Stand-ins for packages that the reference imports but that a recording never calls.

The stand-ins are found last, so that an installed package always wins. These packages must be installed: torch, torchvision, transformers, accelerate,
peft, safetensors, hydra-core, nncore, tqdm, pillow, numpy, jinja2.
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
"""Packages for reading videos and masks, for tables and for plots, which the reference's data sets use. Of ``tensordict`` it uses one class decorator, in whose
place a plain dataclass will do."""


class _Absent:
    """An attribute of a package that is not installed; calling it raises ImportError."""

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
    """Make the packages of ``STAND_INS`` that are not installed importable."""
    # transformers decides when it is imported which packages it may use, and must not find a stand-in then
    import transformers  # noqa: F401

    sys.meta_path.append(_Finder())
