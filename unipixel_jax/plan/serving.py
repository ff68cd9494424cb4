"""The programs of inference as users serve: reading prompts, one token of each answer, and tracking one frame of a clip, for chips that may not be here.

Each copy of the weights, on one chip or on the few that share it, runs these programs by itself (infer/placement.py), with bfloat16 weights where the
checkpoint's are. No arrays are made: weights, cache and prompts are ``jax.ShapeDtypeStruct``s with shardings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core import stacking
from unipixel_jax.core.accelerators import usable
from unipixel_jax.core.axes import HEADS, IMAGES, Axes
from unipixel_jax.core.buckets import BUCKETS
from unipixel_jax.core.mesh import MeshConfig, OnMesh, make_mesh
from unipixel_jax.core.sharding import bytes_per_device, mesh_axes
from unipixel_jax.infer.engine import group_buckets, read_prompts
from unipixel_jax.infer.generate import Answering, Answers, next_tokens
from unipixel_jax.infer.job_source import Options
from unipixel_jax.infer.placement import Placement, choose_placement, placement
from unipixel_jax.models.partition import partitioned
from unipixel_jax.models.qwen_vl.cache import KVCache
from unipixel_jax.models.sam2.track_state import TrackState
from unipixel_jax.models.sam2.tracker import Sam2
from unipixel_jax.models.unipixel import UniPixelModel, abstract_model
from unipixel_jax.ops.attention.cached import slots_read_as_one
from unipixel_jax.plan.programs import WORD, Workload, conversation_of
from unipixel_jax.plan.topology import Topology
from unipixel_jax.processing.batch import empty_inputs, measure, pixel_dtype

T = TypeVar("T")

PREFILL, DECODE, TRACK = "prefill", "decode", "track"
"""The names of the programs. ``PREFILL`` reads the prompts that are read together (``Options.group``), ``DECODE`` makes one token of each answer, and ``TRACK``
encodes a frame of one clip and tracks the objects on it."""
SERVING = (PREFILL, DECODE, TRACK)
NEW_TOKENS = Options.max_new_tokens
"""Tokens of an answer for which the cache has slots."""


@dataclass(frozen=True)
class Server:
    """A copy of the weights and what it answers.

    Attributes:
        config: the model's sizes.
        placement: how the chips of the topology hold the weights.
        mesh: the chips that share this copy.
        workload: what every prompt and clip holds.
        prompts: number of answers that are generated together.
    """

    config: UniPixelConfig
    placement: Placement
    mesh: Mesh
    workload: Workload
    prompts: int

    @classmethod
    def on(cls, topology: Topology, config: UniPixelConfig, workload: Workload, prompts: int, tensor: int | None) -> Server:
        """Return the server of a topology; ``tensor`` is the number of chips that share a copy, None for the fewest that hold it.

        Raises:
            UserError: the heads do not divide among so many chips, or there are fewer.
        """
        chips, memory = len(topology.devices), usable(topology.chip)
        placed = choose_placement(config, None, chips, memory) if tensor is None else placement(config, None, chips, memory, tensor)
        mesh = make_mesh(placed.mesh or MeshConfig("single"), topology.devices[: placed.tensor])
        return cls(config, placed, mesh, workload, prompts)

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of weights and cache."""
        return jnp.dtype(self.config.dtype)

    @property
    def model(self) -> UniPixelModel:
        """The weights, in the form that inference takes on these chips."""
        model = partitioned(abstract_model(self.config), self.config, self.mesh, self.dtype)
        if self.mesh.devices.flat[0].platform == "gpu":
            text: Any = model.text
            text.blocks = _unstacked(text.blocks, self.mesh)
        return model

    @property
    def slots(self) -> int:
        """Slots of the cache for a row."""
        return BUCKETS.tokens.size(self.workload.tokens + NEW_TOKENS)

    @property
    def filled_blocks(self) -> int:
        """Blocks of slots that hold tokens when the prompts were just read: those that a step of generation reads."""
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return -(-self.workload.tokens // slots_read_as_one(self.slots))

    @property
    def read_together(self) -> int:
        """Number of prompts that are read together."""
        return Options(rows=self.prompts).group

    def arguments(self, name: str) -> dict[str, float]:
        """Return the bytes on each chip of the arguments of a program that have names."""
        named = {"parameters": float(bytes_per_device(self.model))}
        return named | {"cache": float(bytes_per_device(self._answers().cache))} if name == DECODE else named

    @property
    def weights_of_a_token(self) -> int:
        """The bytes on each chip of the weights that a token of an answer needs: the language model's layers and its head, and no table of embeddings beside
        it, of which a token reads one row.
        """
        text = self.model.text
        return bytes_per_device([text.blocks, text.norm, (text.embed if text.head is None else text.head)])

    def programs(self) -> Mapping[str, Callable[[], Any]]:
        """Return functions that lower the programs, by name."""
        how = Answering((0,), self.dtype)
        key = self._everywhere(jax.eval_shape(lambda: jax.random.key(0)))

        def prefill(model: UniPixelModel, inputs: Any, key: jax.Array) -> Any:
            return read_prompts.__wrapped__(model, inputs, key, how=how)  # type: ignore[attr-defined]

        def decode(model: UniPixelModel, answers: Answers, key: jax.Array) -> Answers:
            return next_tokens(model, answers, key, how)

        def track(sam2: Sam2, state: TrackState, frame: jax.Array) -> Any:
            state, out = sam2.step(state, sam2.encode(frame))
            return state, out.low_res, out.iou, out.decoded.object_score

        return {
            PREFILL: lambda: self._lower(prefill, self.model, self._prompts(), key),
            DECODE: lambda: self._lower(decode, self.model, self._answers(), key, donate=1),
            TRACK: lambda: self._lower(track, self.model.sam2, *self._clip(), donate=1),
        }

    def _lower(self, function: Callable[..., Any], *arguments: Any, donate: int | None = None) -> Any:
        return OnMesh(self.mesh, jax.jit(function, donate_argnums=donate)).lower(*arguments)

    def _everywhere(self, tree: T, names: Axes = ()) -> T:
        """Return the shapes of a tree of arrays, replicated on the chips but for axes with logical names."""

        def place(a: Any) -> jax.ShapeDtypeStruct:
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                own = [mesh_axes(name, length) or None for name, length in zip(names[: len(a.shape)], a.shape, strict=False)]
            return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(self.mesh, PartitionSpec(*own)))

        return jax.tree.map(place, tree)

    def _prompts(self) -> Any:
        """The prompts that are read together, with the shapes that the engine makes of them."""
        conversations = [conversation_of(self.config, self.workload)] * self.read_together
        sizes = measure([[conversation] for conversation in conversations], self.config, group_buckets(self.read_together, self.config.vision.window_patches))
        return self._everywhere(empty_inputs(sizes, self.config, WORD, pixel_dtype(conversations)))

    def _answers(self) -> Answers:
        text = self.config.text

        def start() -> Answers:
            return Answers.start(KVCache.empty(text, self.prompts, self.slots, self.dtype), 0, NEW_TOKENS, text.hidden_size)

        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            answers = jax.eval_shape(start)
        placed, cache = self._everywhere(answers), answers.cache
        k, v = (self._everywhere(buffer, (None, None, HEADS)) for buffer in (cache.k, cache.v))
        return replace(placed, cache=KVCache(k, v, placed.cache.segments))

    def _clip(self) -> tuple[TrackState, jax.ShapeDtypeStruct]:
        sam = self.config.sam2
        state = jax.eval_shape(lambda: TrackState.empty(sam, self.workload.objects, self.dtype))
        frame = jax.ShapeDtypeStruct((1, sam.image_size, sam.image_size, 3), self.dtype)
        return self._everywhere(state, (IMAGES,)), self._everywhere(frame)


def _unstacked(blocks: nnx.Module, mesh: Mesh) -> nnx.List:
    """Return the layers of an abstract stacked module as a list of abstract modules, as ``stacking.unstack`` does with arrays."""

    def layer(a: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(a.shape[1:], a.dtype, sharding=NamedSharding(mesh, PartitionSpec(*a.sharding.spec[1:])))

    return nnx.List([jax.tree.map(layer, blocks) for _ in range(stacking.length(blocks))])
