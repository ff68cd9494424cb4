"""Functions that are compiled for every combination of sizes, of which a process keeps only the most recently used programs.

``jax.jit`` alone keeps every program it ever made: each holds tens of megabytes, and on a CPU some dozens of memory maps, of which Linux allows a process
65,530. A service that keeps seeing new sizes would run out of both.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, ParamSpec, TypeVar

import jax
from flax import nnx

P = ParamSpec("P")
R = TypeVar("R")

LIMIT = 24
"""How many programs of one function are kept: enough for photos of up to 700 pixels with prompts of one length, which need 23. On a CPU they hold some 30,000
memory maps with towers of 36 layers."""


class Programs(Generic[P, R]):
    """A decorator for a function that is compiled on its first call with each combination of sizes.

    Positional arguments are traced; arguments given by name are static and must be hashable. Beyond the limit, the program that has not been called for the
    longest time is dropped, and its next call compiles it again, or reads it from JAX's cache on disk where that is turned on. Threads may share the function.

    Modules among the positional arguments are told apart by type and ``config``, since looking at all their weights would take longer than the rest of a call:
    modules that differ in anything else share an entry, in which ``jax.jit`` tells them apart.

    Attributes:
        limit: how many programs are kept.
        donate: the numbers of the positional arguments whose arrays a call consumes, so that results can take their memory.
    """

    def __init__(self, function: Callable[P, R], limit: int = LIMIT, donate: tuple[int, ...] = ()) -> None:
        functools.update_wrapper(self, function)
        self.limit = limit
        self.donate = donate
        self._function = function
        self._kept: OrderedDict[Hashable, Callable[..., R]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function, compiled for these sizes."""
        leaves, structure = jax.tree.flatten(args, is_leaf=_is_module)
        key = (structure, tuple(map(_kind, leaves)), tuple(sorted(kwargs.items())), jax.sharding.get_abstract_mesh())
        return self._program(key, kwargs)(*args)

    def __len__(self) -> int:
        """How many programs are kept."""
        return len(self._kept)

    def _program(self, key: Hashable, static: dict[str, Any]) -> Callable[..., R]:
        with self._lock:
            # Each program gets a function object of its own, because JAX frees what it keeps for a function with the last reference to it.
            program = self._kept.pop(key, None) or jax.jit(functools.partial(self._function, **static), donate_argnums=self.donate)
            self._kept[key] = program
            while len(self._kept) > self.limit:
                self._kept.popitem(last=False)
        return program


def _is_module(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Module)


def _kind(leaf: Any) -> Hashable:
    """Return the properties of an argument that decide which program is called."""
    return (type(leaf), leaf.config) if _is_module(leaf) else (leaf.shape, leaf.dtype)
