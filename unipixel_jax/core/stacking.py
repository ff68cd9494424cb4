"""Blocks of equal shape as one module with a leading layer axis, run by ``lax.scan``; or unstacked, run by a Python loop.

A scan keeps programs small (36 layers are traced in the time of one), and TPUs run it without loss. On a CPU a scan copies each layer's weights
out of the stack before it multiplies, which made single-token decoding 10 times slower (measured on 2 cores with layers of 22.5M parameters), so
inference on a CPU unstacks the layers first. So it does with the language model on a GPU: a step of 3B's decoding, compiled for an H100, moves 19.6 GB with a
scan and 8.5 GB without. ``run`` takes either form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from unipixel_jax.core.axes import LAYERS
from unipixel_jax.core.params import is_abstract
from unipixel_jax.core.sharding import all_gathered

Remat = Literal["none", "dots", "half", "full"]
"""What a backward pass computes again, see ``checkpointed``."""
PRODUCT, UP = "linear layer", "up"
"""The names (``jax.ad_checkpoint.checkpoint_name``) of the results of linear layers: those that a gated feed-forward's gate multiplies, and all others."""
M = TypeVar("M", bound=nnx.Module)
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
Carry = TypeVar("Carry")


def is_variable(x: Any) -> bool:
    """Return whether x is an ``nnx.Variable``: the ``is_leaf`` for trees whose metadata are needed."""
    return isinstance(x, nnx.Variable)


def stack(make: Callable[[nnx.Rngs], M], n: int, rngs: nnx.Rngs) -> M:
    """Make ``n`` independently initialised modules as one, whose arrays have a leading axis of length ``n`` named "layers"."""
    if is_abstract():
        blocks = jax.tree.map(lambda a: jax.ShapeDtypeStruct((n, *a.shape), a.dtype), make(rngs))
    else:
        blocks = jax.vmap(lambda key: make(nnx.Rngs(key)))(jax.random.split(rngs.params(), n))
    for leaf in jax.tree.leaves(blocks, is_leaf=is_variable):
        leaf.set_metadata(axes=(LAYERS, *leaf.get_metadata()["axes"]))
    return blocks


def unstack(blocks: M) -> nnx.List:
    """Return the layers of a stacked module as a list of modules, which ``run`` runs in a Python loop."""
    graph, state = nnx.split(blocks)
    return _unstacked(graph, nnx.to_flat_state(state), length(blocks))


def _unstacked(graph: Any, leaves: Iterable[tuple[Any, Any]], n: int) -> nnx.List:
    layers: list[list[tuple[Any, Any]]] = [[] for _ in range(n)]
    for path, leaf in leaves:
        value = leaf.get_value()
        for i, layer in enumerate(layers):
            layer.append((path, leaf.replace(value[i])))
    return nnx.List([nnx.merge(graph, nnx.from_flat_state(layer)) for layer in layers])


def unstack_layers(*owners: Any) -> None:
    """Turn the stacked layers (``blocks``) of modules into lists, in place: the form that runs fastest on a CPU. A stacked array is given up when it is cut."""
    for owner in owners:
        if owner.blocks is not None:
            graph, state = nnx.split(owner.blocks)
            n, leaves = length(owner.blocks), list(nnx.to_flat_state(state))
            owner.blocks = None
            del state
            owner.blocks = _unstacked(graph, (leaves.pop() for _ in range(len(leaves))), n)


def length(blocks: nnx.Module) -> int:
    """Return the number of layers of a stacked module or an unstacked list."""
    return len(blocks) if isinstance(blocks, nnx.List) else jax.tree.leaves(blocks)[0].shape[0]


def checkpointed(step: F, remat: Remat) -> F:
    """Return the function with a backward pass that computes some results of the forward pass again instead of storing them: no results ("none"), all but
    those of linear layers ("dots"), all but those that a gated feed-forward's gate multiplies ("half": somewhat under half the memory of "dots", and as much of
    what it saves), or all ("full").
    """
    if remat == "none":
        return step
    kept = {"dots": (PRODUCT, UP), "half": (UP,), "full": ()}[remat]
    policy = jax.checkpoint_policies.save_only_these_names(*kept) if kept else None
    return jax.checkpoint(step, policy=policy)  # type: ignore[return-value]


def runs(kinds: Sequence[T]) -> Iterator[tuple[T, range]]:
    """Yield the runs of equal neighbours in order: the kind of each run, and the range of its layers."""
    start = 0
    for kind, same in groupby(kinds):
        stop = start + len(list(same))
        yield kind, range(start, stop)
        start = stop


def run(
    step: Callable[[Any, Carry, Any], tuple[Carry, Any]],
    blocks: nnx.Module,
    carry: Carry,
    xs: Any = None,
    remat: Remat = "none",
    layers: range | None = None,
    scan: bool = True,
) -> tuple[Carry, Any]:
    """Run the layers one after the other: ``carry, y = step(block, carry, x)``. Returns the last carry and the ``y`` of all layers, stacked.

    Args:
        step: one layer; ``x`` is that layer's slice of ``xs``.
        blocks: from ``stack`` (scanned) or ``unstack`` (a Python loop).
        carry: the tree of arrays that each layer receives from the one before.
        xs: a tree whose arrays have a leading axis of the layers that run; or None.
        remat: what the backward pass computes again, see ``checkpointed``.
        layers: the range of layers that run; None runs all.
        scan: whether ``lax.scan`` runs stacked layers; else a Python loop does, of which each layer is compiled by itself.
    """
    depth = length(blocks)
    layers, scanned = layers or range(depth), scan and not isinstance(blocks, nnx.List)
    own = checkpointed(lambda block, carry, x: step(all_gathered(block), carry, x), remat)
    if scanned and len(layers) == depth:
        return jax.lax.scan(lambda c, bx: own(bx[0], c, bx[1]), carry, (blocks, xs))
    if scanned and len(layers) > 1:
        # A scan over a part of the stack would begin with a copy of that part, so each step takes its layer out of the whole stack. The gradient of that would
        # add up whole stacks, step by step; it goes to the part instead, which is not computed for its values.
        numbers, part = jnp.arange(layers.start, layers.stop), jax.tree.map(lambda a: a[layers.start : layers.stop], blocks)
        still = jax.lax.stop_gradient(blocks)
        taken = checkpointed(lambda layer, block, carry, x: step(all_gathered(_with_gradient_of(_layer(still, layer), block)), carry, x), remat)
        return jax.lax.scan(lambda c, own: taken(own[0], own[1], c, own[2]), carry, (numbers, part, xs))
    ys = []
    for i, layer in enumerate(layers):
        carry, y = own(_layer(blocks, layer), carry, jax.tree.map(lambda a, i=i: a[i], xs))
        ys.append(y)
    return carry, jax.tree.map(lambda *a: jnp.stack(a), *ys)


@jax.custom_vjp
def _with_gradient_of(value: T, other: T) -> T:
    """``value``, whose cotangent goes to ``other``."""
    return value


_with_gradient_of.defvjp(lambda value, other: (value, None), lambda _, cotangent: (None, cotangent))


def _layer(blocks: Any, layer: Any) -> Any:
    """Return one layer: of a stacked module by an integer or an int32 scalar, of an unstacked list by an integer."""
    if isinstance(blocks, nnx.List):
        return blocks[layer]
    return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, layer, keepdims=False), blocks)
