"""Small programs, sharded over chips that are not here, and their costs computed by hand."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

BF16 = 2  # bytes


@dataclass(frozen=True)
class Small:
    """A transformer without norms: L layers of width D, F inside, N heads, T tokens a row, B rows."""

    layers: int = 4
    width: int = 512
    inner: int = 2048
    heads: int = 4
    tokens: int = 256
    rows: int = 16

    @property
    def weights(self) -> int:
        """The number of weights of a layer."""
        return 4 * self.width**2 + 2 * self.width * self.inner

    def flops(self, remat: bool = True) -> int:
        """The FLOPs of a training step: forward, twice that backward, and under rematerialisation forward again but for the last product, whose result
        nobody needs.
        """
        forward = 2 * self.weights + 4 * self.tokens * self.width
        layer = (4 if remat else 3) * forward - (2 * self.width * self.inner if remat else 0)
        return self.layers * self.rows * self.tokens * layer

    def gathered(self, shards: int, others: int = 1) -> float:
        """Bytes that each chip sends to gather every weight forward and again backward, if each is divided by ``others`` besides."""
        return 2 * self.layers * self.weights * BF16 / others * (shards - 1) / shards


def mesh_of(devices, **axes):
    return Mesh(np.array(devices).reshape(tuple(axes.values())), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def train_step(mesh, small, remat=True, unroll=1):
    """A step of plain gradient descent. Rows are divided over all axes but "tensor", weights over "fsdp" and "tensor"."""
    tensor = "tensor" if "tensor" in mesh.shape else None
    rows = tuple(name for name in mesh.shape if name != "tensor")
    down = ("o", "down")

    def place(*spec):
        return NamedSharding(mesh, P(*spec))

    def block(x, weights):
        w = {name: jax.lax.with_sharding_constraint(a, place(*((tensor, None) if name in down else (None, tensor)))) for name, a in weights.items()}
        q, k, v = ((x @ w[name]).reshape(*x.shape[:-1], small.heads, -1) for name in "qkv")
        scores = jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", q, k).astype(jnp.float32), -1).astype(x.dtype)
        x = x + jax.lax.with_sharding_constraint(jnp.einsum("bnts,bsnh->btnh", scores, v).reshape(x.shape) @ w["o"], place(rows))
        return x + jax.lax.with_sharding_constraint(jax.nn.silu(x @ w["up"]) @ w["down"], place(rows))

    def loss(params, x):
        run = jax.checkpoint(block) if remat else block
        y, _ = jax.lax.scan(lambda carry, weights: (run(carry, weights), None), x, params, unroll=unroll)
        return jnp.sum(jnp.square(y.astype(jnp.float32)))

    def step(params, x):
        value, grads = jax.value_and_grad(loss)(params, x)
        return value, jax.tree.map(lambda p, g: p - g * jnp.bfloat16(1e-3), params, grads)

    sizes = dict.fromkeys("qkvo", (small.width, small.width)) | {"up": (small.width, small.inner), "down": (small.inner, small.width)}
    specs = {name: (None, tensor, "fsdp") if name in down else (None, "fsdp", tensor) for name in sizes}
    params = {name: jax.ShapeDtypeStruct((small.layers, *size), jnp.bfloat16, sharding=place(*specs[name])) for name, size in sizes.items()}
    x = jax.ShapeDtypeStruct((small.rows, small.tokens, small.width), jnp.bfloat16, sharding=place(rows))
    with jax.set_mesh(mesh):
        return jax.jit(step, donate_argnums=0).lower(params, x).compile(), params


def mlp(mesh, layers, unroll=1, rows=2048, width=512, train=False):
    """Through ``layers`` square weights, each gathered where it is used; with ``train``, their gradients, divided as the weights are."""
    divided = NamedSharding(mesh, P(None, "fsdp"))
    weights = jax.ShapeDtypeStruct((layers, width, width), jnp.bfloat16, sharding=divided)
    x = jax.ShapeDtypeStruct((rows, width), jnp.bfloat16, sharding=NamedSharding(mesh, P(tuple(mesh.shape))))

    def run(weights, x):
        def layer(x, w):
            return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))), None

        return jax.lax.scan(layer, x, weights, unroll=unroll)[0]

    def grad(weights, x):
        return jax.lax.with_sharding_constraint(jax.grad(lambda weights: jnp.sum(run(weights, x).astype(jnp.float32)))(weights), divided)

    with jax.set_mesh(mesh):
        return jax.jit(grad if train else run).lower(weights, x).compile()


def single(mesh, function, *shapes, dtype=jnp.bfloat16):
    """A program of one chip, or one that all of them repeat."""
    with jax.set_mesh(mesh):
        arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P())) for shape in shapes]
        return jax.jit(function).lower(*arguments).compile()


def product(*sizes):
    """FLOPs of a product of matrices."""
    return 2 * math.prod(sizes)
