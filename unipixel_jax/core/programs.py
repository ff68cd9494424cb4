"""Functions that are compiled for every combination of sizes, of which a process keeps only the most recently used programs.

``jax.jit`` alone keeps every program it ever made: each holds tens of megabytes, and on a CPU some dozens of memory maps, of which Linux allows a process
65,530. A service that keeps seeing new sizes would run out of both.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, ParamSpec, TypeVar, cast

import jax
from flax import nnx

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound=nnx.Module)

LIMIT = 24
"""How many programs of one function are kept: enough for photos of up to 700 pixels with prompts of one length, which need 23. On a CPU they hold some 30,000
memory maps with towers of 36 layers."""


class Programs(Generic[P, R]):
    """A decorator for a function that is compiled on its first call with each combination of sizes.

    Positional arguments are traced; arguments given by name are static and must be hashable. Beyond the limit, the program that has not been called for the
    longest time is dropped, and its next call compiles it again, or reads it from JAX's cache on disk where that is turned on. Threads may share the function.

    A module among the positional arguments is searched for its weights at each call, which takes longer than the rest of the call: whoever calls often gives
    what ``packed`` makes of it. Modules whose weights differ in shape, dtype or sharding share an entry, in which ``jax.jit`` tells them apart.

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
        given = [packed(arg) if isinstance(arg, nnx.Module) else arg for arg in args]
        leaves, structure = jax.tree.flatten(given, is_leaf=_is_packed)
        key = (structure, tuple(map(_kind, leaves)), tuple(sorted(kwargs.items())), jax.sharding.get_abstract_mesh())
        return self._program(key, kwargs)(*given)

    def __len__(self) -> int:
        """How many programs are kept."""
        return len(self._kept)

    def _program(self, key: Hashable, static: dict[str, Any]) -> Callable[..., R]:
        with self._lock:
            # Each program gets a function object of its own, because JAX frees what it keeps for a function with the last reference to it.
            program = self._kept.pop(key, None) or jax.jit(_with_modules(self._function, static), donate_argnums=self.donate)
            self._kept[key] = program
            while len(self._kept) > self.limit:
                self._kept.popitem(last=False)
        return program


def packed(module: M) -> M:
    """Return what stands for a module in calls of ``Programs``: its arrays, which are looked up here once and not at each call.

    To a type checker it is the module, so that calls are checked, but it has none of the module's attributes. A later change of the module does not reach it.
    """
    return cast(M, _Packed(module))


class _Structure:
    """Everything of a module but its arrays. There is one of each kind, so that two are compared by identity, which is what makes calls fast."""

    def __init__(self, tree: jax.tree_util.PyTreeDef) -> None:
        self.tree = tree


_structure_of = functools.cache(_Structure)


@jax.tree_util.register_pytree_node_class
class _Packed:
    """The arrays of a module, and its structure."""

    def __init__(self, module: nnx.Module) -> None:
        arrays, tree = jax.tree.flatten(module)
        self.arrays, self.structure = tuple(arrays), _structure_of(tree)

    def module(self) -> nnx.Module:
        """The module again."""
        return cast(nnx.Module, jax.tree.unflatten(self.structure.tree, self.arrays))

    def tree_flatten(self) -> tuple[tuple[Any, ...], _Structure]:
        """See JAX's documentation of pytrees."""
        return self.arrays, self.structure

    @classmethod
    def tree_unflatten(cls, structure: _Structure, arrays: tuple[Any, ...]) -> _Packed:
        """See JAX's documentation of pytrees."""
        self = cls.__new__(cls)
        self.arrays, self.structure = arrays, structure
        return self


def _with_modules(function: Callable[..., R], static: dict[str, Any]) -> Callable[..., R]:
    """The function with its static arguments, to which what stands for modules may be given. It keeps its name, which profiles show."""

    @functools.wraps(function)
    def call(*given: Any) -> R:
        return function(*(arg.module() if isinstance(arg, _Packed) else arg for arg in given), **static)

    return call


def _is_packed(leaf: Any) -> bool:
    return isinstance(leaf, _Packed)


def _kind(leaf: Any) -> Hashable:
    """Return the properties of an argument that decide which program is called."""
    return leaf.structure if _is_packed(leaf) else (leaf.shape, leaf.dtype)
