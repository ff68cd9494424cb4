"""Paths in a tree of arrays: writing them as names and parsing names, and trees as flat dictionaries by path. The module needs nothing but Python."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

KeyPath = tuple[str | int, ...]
"""The path of an array in a tree: attribute names, and numbers for the items of a list."""

_NUMBER = re.compile("0|[1-9][0-9]{0,8}")


def join(path: KeyPath, separator: str = ".") -> str:
    """Return a path as one name, for example ``text.blocks.attn.q.weight``."""
    return separator.join(map(str, path))


def parse(name: str, separator: str = ".") -> KeyPath:
    """Return the path of a name that `join` made. Parts that are whole numbers below a thousand million, as `join` writes them, are items of lists."""
    return tuple(int(part) if _NUMBER.fullmatch(part) else part for part in name.split(separator))


def key_path(keys: Sequence[Any]) -> KeyPath:
    """Return the path that JAX describes by key objects (``jax.tree_util.DictKey`` and others), without the step from a Flax variable to its array."""
    parts: list[str | int] = [next(getattr(key, name) for name in ("key", "name", "idx") if hasattr(key, name)) for key in keys]
    return tuple(parts[:-1] if parts and getattr(keys[-1], "name", None) == "value" else parts)


def flatten(tree: Mapping[Any, Any], prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield every leaf of nested dictionaries with its path, in the order of the dictionaries."""
    for key, value in tree.items():
        yield from flatten(value, (*prefix, key)) if isinstance(value, Mapping) else [((*prefix, key), value)]


def nest(flat: Mapping[KeyPath, Any]) -> dict[str, Any]:
    """Return nested dictionaries made of leaves by path. Numbers of a path become strings, since keys in files are strings."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(str(part), {})
        node[str(path[-1])] = value
    return tree
