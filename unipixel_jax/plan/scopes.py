"""Names for what a model's modules compute: while a program is traced inside ``module_scopes``, each operation's ``op_name`` holds the path of its module.

Flax does not name what ``nnx`` modules trace, and the compiled program's text knows no more than the functions of JAX.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from inspect import isfunction
from typing import Any

import jax
from flax import nnx

METHOD = "method_"
"""What the name of a method begins with in an ``op_name``, unless it is ``__call__``."""


@contextmanager
def module_scopes(model: nnx.Module) -> Iterator[None]:
    """Name the operations that are traced while this lasts by the modules of a model, such as "text/method_extend/blocks/mlp/down"; for one thread at a time.

    Args:
        model: a model of the classes whose methods are traced; its own arrays need not be those that are traced.
    """
    running: list[nnx.Module] = [model]

    def named(method: Callable[..., Any]) -> Callable[..., Any]:
        own = () if method.__name__ == "__call__" else (f"{METHOD}{method.__name__}",)

        @functools.wraps(method)
        def call(self: nnx.Module, *args: Any, **kwargs: Any) -> Any:
            if self is running[-1]:
                return method(self, *args, **kwargs)
            # a model that is traced is a copy of the one that was given
            whole = () if type(self) is type(model) else (type(self).__name__,)
            path = next((found for owner in reversed(running) if (found := _path(owner, self))), whole)
            name = "/".join((*path, *own))
            running.append(self)
            try:
                with jax.named_scope(name) if name else nullcontext():
                    return method(self, *args, **kwargs)
            finally:
                running.pop()

        return call

    replaced = []
    for kind in {type(module) for _, module in _modules(model, ())}:
        for name, method in list(vars(kind).items()):
            if isfunction(method) and (name == "__call__" or not name.startswith("_")):
                replaced.append((kind, name, method))
                setattr(kind, name, named(method))
    try:
        yield
    finally:
        for kind, name, method in replaced:
            setattr(kind, name, method)


def _modules(module: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], nnx.Module]]:
    """Yield a module and all modules in it, with their paths; of a list of layers, the first."""
    if isinstance(module, nnx.List):
        if len(module):
            yield from _modules(module[0], path)
        return
    yield path, module
    for name, value in vars(module).items():
        if isinstance(value, nnx.Module):
            yield from _modules(value, (*path, name))


def _path(owner: nnx.Module, module: nnx.Module) -> tuple[str, ...]:
    """Return the path of a module in another, empty if it is none of its modules; of a layer that was taken out of a stack, that of the first of its class."""
    inside = [(path, found) for path, found in _modules(owner, ()) if path]
    same = next((path for path, found in inside if found is module), None)
    return same or next((path for path, found in inside if type(found) is type(module)), ())
