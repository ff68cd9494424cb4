"""The layers that the towers share, each of which declares its own weights. Linear weights are [out, in] (see ops/dense.py)."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from unipixel_jax.core.axes import CHANNELS, EMBED, MLP
from unipixel_jax.core.dropout import Random
from unipixel_jax.core.params import Initializer, declare, lecun, ones, zeros
from unipixel_jax.core.stacking import PRODUCT, UP
from unipixel_jax.ops.dense import dense
from unipixel_jax.ops.dropout import dropout
from unipixel_jax.ops.norm import layer_norm, rms_norm


class Linear(nnx.Module):
    """A linear layer ``x @ weight.T + bias``: weight [out, in], bias [out] unless ``bias=False``. ``axes`` are the logical names of (out, in), and ``name`` is
    that of its results for rematerialisation (core/stacking.py).
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        axes: tuple[str | None, str | None],
        rngs: nnx.Rngs,
        bias: bool = True,
        init: Initializer = lecun,
        name: str = PRODUCT,
    ) -> None:
        self.weight = declare(rngs, (d_out, d_in), axes, init)
        self.bias = declare(rngs, (d_out,), axes[:1], zeros) if bias else None
        self.name = name

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [..., in] to [..., out] in x's dtype."""
        return checkpoint_name(self.product(x), self.name)

    def product(self, x: jax.Array) -> jax.Array:
        """Map x [..., in] to [..., out] in x's dtype, without the name that keeps the result for the backward pass."""
        return dense(x, self.weight[...], None if self.bias is None else self.bias[...])


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation over the last axis, width ``d``."""

    def __init__(self, d: int, rngs: nnx.Rngs, eps: float = 1e-6) -> None:
        self.weight = declare(rngs, (d,), (EMBED,), ones)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [..., d] to the same shape and dtype."""
        return rms_norm(x, self.weight[...], self.eps)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, width ``d``; ``eps`` has no default since SAM 2 mixes 1e-5 and 1e-6."""

    def __init__(self, d: int, eps: float, rngs: nnx.Rngs) -> None:
        self.weight = declare(rngs, (d,), (EMBED,), ones)
        self.bias = declare(rngs, (d,), (EMBED,), zeros)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [..., d] to the same shape and dtype."""
        return layer_norm(x, self.weight[...], self.bias[...], self.eps)


class Mlp(nnx.Module):
    """Two linear layers, fc1 and fc2, with the activation ``act`` between them."""

    def __init__(self, d_in: int, hidden: int, d_out: int, act: Callable[[jax.Array], jax.Array], rngs: nnx.Rngs, init: Initializer = lecun) -> None:
        self.fc1 = Linear(d_in, hidden, (MLP, EMBED), rngs, init=init)
        self.fc2 = Linear(hidden, d_out, (EMBED, MLP), rngs, init=init)
        self.act = act

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [..., d_in] to [..., d_out] in x's dtype."""
        return self.fc2(self.act(self.fc1(x)))


class Mlp3(nnx.Module):
    """Three linear layers with ReLU between them, as in SAM 2's heads (reference: sam2/modeling/sam2_utils.py, MLP)."""

    def __init__(self, d_in: int, hidden: int, d_out: int, rngs: nnx.Rngs, init: Initializer = lecun) -> None:
        self.fc1 = Linear(d_in, hidden, (MLP, EMBED), rngs, init=init)
        self.fc2 = Linear(hidden, hidden, (EMBED, MLP), rngs, init=init)
        self.fc3 = Linear(hidden, d_out, (CHANNELS, MLP), rngs, init=init)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [..., d_in] to [..., d_out] in x's dtype."""
        return self.fc3(jax.nn.relu(self.fc2(jax.nn.relu(self.fc1(x)))))


class SwiGlu(nnx.Module):
    """Qwen's gated feed-forward: ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, d: int, hidden: int, rngs: nnx.Rngs, bias: bool) -> None:
        self.gate = Linear(d, hidden, (MLP, EMBED), rngs, bias)
        self.up = Linear(d, hidden, (MLP, EMBED), rngs, bias, name=UP)
        self.down = Linear(hidden, d, (EMBED, MLP), rngs, bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [..., d] to the same shape and dtype."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Dropout(Random):
    """Dropout of single entries with probability ``rate``; without a key (see core/dropout.py) nothing is dropped."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x of any shape to the same shape and dtype."""
        return x if self.key is None else dropout(x, self.key[...], self.rate)


class DropPath(Random):
    """Stochastic depth (arXiv 1603.09382), which drops a residual branch for whole samples; without a key nothing is dropped."""

    def __call__(self, x: jax.Array, rate: float | jax.Array) -> jax.Array:
        """Map x [B, ...] to the same shape and dtype. ``rate`` is an argument because it differs between the layers of a stack."""
        return x if self.key is None else dropout(x, self.key[...], rate, (x.shape[0],) + (1,) * (x.ndim - 1))


def gelu(x: jax.Array) -> jax.Array:
    """Apply the exact GELU, with the error function, which is torch's default: x of any shape to the same shape and dtype."""
    return jax.nn.gelu(x, approximate=False)
