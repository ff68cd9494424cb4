"""Collectives in an HLO module: the groups of chips that take part in them, and the bytes that each chip sends."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unipixel_jax.plan.hlo_text import Computation, Instruction

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_MEGASCALE = {"ALL_GATHER": "all-gather", "ALL_REDUCE": "all-reduce", "REDUCE_SCATTER": "reduce-scatter", "ALL_TO_ALL": "all-to-all"}
"""The kinds of collectives by the names that XLA gives transfers between slices."""


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind over groups of one size.

    Attributes:
        kind: one of ``KINDS``.
        group: number of chips that take part together.
        slices: number of slices that the chips of a group belong to.
        count: number of executions.
        bytes: bytes that each chip sends, over all executions.
    """

    kind: str
    group: int
    slices: int
    count: int
    bytes: float

    @property
    def crosses_slices(self) -> bool:
        """Whether the chips of a group belong to several slices."""
        return self.slices > 1

    @property
    def bytes_between_slices(self) -> float:
        """The part of ``bytes`` that leaves the slice, if each piece crosses between slices once.

        An all-gather of n shards brings each chip n - 1 of them. With s slices, the n/s chips of a slice divide the shards from outside among them, so that
        each fetches s - 1 shards; all others are passed on inside the slice. A reduction sends the same bytes in the other direction.
        """
        if not self.crosses_slices:
            return 0.0
        if self.kind == "collective-permute":
            return self.bytes
        away = self.group - self.group // self.slices if self.kind == "all-to-all" else self.slices - 1
        return self.bytes * away / (self.group - 1)


def collective(instruction: Instruction, computation: Computation, partitions: int, slice_of: Sequence[int]) -> Collective | None:
    """Return what one execution of an instruction sends; None if it is no collective, or one of a chip with itself.

    Bytes are those of ring algorithms on n chips: (n-1)/n of the whole array for all-gather, reduce-scatter and all-to-all, twice that for all-reduce, and
    the array itself for a permutation.

    Args:
        instruction: any instruction.
        computation: the computation that it belongs to.
        partitions: number of chips that run the program.
        slice_of: the slice of each chip, in the program's order of devices.
    """
    kind = instruction.opcode.removesuffix("-start")
    if kind == "collective-permute":
        return _permutation(instruction, computation, slice_of)
    if kind not in (*KINDS, "send"):
        return None
    held = sum(array.nbytes for arrays in computation.shapes(instruction) for array in arrays)
    if kind == "send":
        return _between_slices(instruction, held)
    groups = replica_groups(instruction.attributes, partitions)
    size = len(groups[0])
    if size == 1:
        return None
    if kind == "all-reduce" and is_scattered(computation, instruction, size):
        kind = "reduce-scatter"
    sent = {"all-gather": size - 1, "all-reduce": 2 * (size - 1) / size}.get(kind, (size - 1) / size) * held
    return Collective(kind, size, max(_slices(group, slice_of) for group in groups), 1, sent)


def is_scattered(computation: Computation, instruction: Instruction, size: int) -> bool:
    """Return whether an all-reduce is fused with the slicing of each chip's own part of the result: TPUs run such a fusion as a reduce-scatter."""
    if not computation.name.startswith("all-reduce-scatter"):
        return False
    held = sum(a.nbytes for a in instruction.arrays)
    return sum(a.nbytes for a in computation.root.arrays) * size <= held + size


def _between_slices(instruction: Instruction, held: float) -> Collective | None:
    """Return the collective between slices that a ``send`` of a TPU program belongs to; None for any other ``send``.

    The hosts run these transfers, and the text is the program of one slice.
    """
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    target = re.search(r'_xla_megascale_target="\{([\d,]+)\}', instruction.attributes)
    if kind is None or target is None:
        return None
    slices = len(target.group(1).split(","))
    name = _MEGASCALE.get(kind.group(1), "collective-permute")
    sent = {"all-gather": slices - 1, "all-reduce": 2 * (slices - 1) / slices, "collective-permute": 1}.get(name, (slices - 1) / slices) * held
    return Collective(name, slices, slices, 1, sent)


def _permutation(instruction: Instruction, computation: Computation, slice_of: Sequence[int]) -> Collective | None:
    text = re.search(r"source_target_pairs=\{((?:\{[^}]*\},?)*)\}", instruction.attributes)
    pairs = [(int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", text.group(1))] if text else []
    pairs = [(a, b) for a, b in pairs if a != b]
    if not pairs:
        return None
    together: dict[int, set[int]] = {}
    for a, b in pairs:
        joined = together.get(a, {a}) | together.get(b, {b})
        together.update(dict.fromkeys(joined, joined))
    # a permutation that writes in place has the buffer and the offsets as further operands, which are not sent
    sources = instruction.operands[:1] if "slice_sizes=" in instruction.attributes else instruction.operands
    sent = sum(a.nbytes for name in sources if name in computation.instructions for a in computation.instructions[name].arrays if a.space != 2)
    crosses = any(slice_of[a] != slice_of[b] for a, b in pairs if max(a, b) < len(slice_of))
    return Collective("collective-permute", max(map(len, together.values())), 2 if crosses else 1, 1, sent)


def _slices(group: Sequence[int], slice_of: Sequence[int]) -> int:
    return len({slice_of[chip] for chip in group if chip < len(slice_of)}) or 1


def replica_groups(attributes: str, partitions: int) -> list[list[int]]:
    """Return the groups of chips that an instruction's ``replica_groups`` describe.

    XLA writes them as ``{{0,1},{2,3}}``, ``[2,2]<=[4]``, ``[2,2]<=[2,2]T(1,0)`` or ``mesh['a'=2,'b'=2] {'b'}``; where it writes none, all chips are one group.

    Args:
        attributes: the rest of the instruction's line.
        partitions: number of chips that run the program.
    """
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\](?:,\s*device_ids=\(((?:[^()]|\([^()]*\))*)\))?\s*\{([^}]*)\}", attributes)
    if mesh:
        return _of_mesh(*mesh.groups())
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\](<=\S+)", attributes)
    if iota:
        return _numbers(iota.group(3)).reshape(int(iota.group(1)), int(iota.group(2))).tolist()
    written = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes)
    groups = [[int(n) for n in one.split(",")] for one in re.findall(r"\{([\d,]+)\}", written.group(1))] if written else []
    return groups or [list(range(partitions))]


def _numbers(text: str) -> np.ndarray:
    """Return 0, 1, ... in the order that ``<=[dims]T(permutation)`` describes, as a flat array of int64."""
    dims = [int(n) for n in text[text.index("[") + 1 : text.index("]")].split(",")]
    turned = re.search(r"T\(([\d,]+)\)", text)
    numbers = np.arange(int(np.prod(dims))).reshape(dims)
    return (numbers.transpose([int(n) for n in turned.group(1).split(",")]) if turned else numbers).reshape(-1)


def _of_mesh(axes: str, device_ids: str | None, grouped: str) -> list[list[int]]:
    """Return the groups along some axes of a mesh. An axis may be split: ``'a':(2)4`` is a part of size 4 of the axis, after a part of size 2."""
    sizes = {name: int(size) for name, size in re.findall(r"'?([\w.]+)'?=(\d+)", axes)}
    parts: dict[str, list[tuple[int, int]]] = {}
    for name, before, size in re.findall(r"'?([\w.]+)'?(?::\((\d+)\)(\d+))?", grouped):
        parts.setdefault(name, []).append((int(before or 1), int(size or sizes[name])))
    shape: list[int] = []
    inside: list[int] = []
    for name, size in sizes.items():
        done = 1
        for before, part in sorted(parts.get(name, [])):
            shape += [before // done, part]
            inside.append(len(shape) - 1)
            done = before * part
        shape.append(size // done)
    total = int(np.prod(list(sizes.values())))
    numbers = np.arange(total)
    if device_ids:
        numbers = _numbers(device_ids) if "[" in device_ids else np.array([int(n) for n in device_ids.split(",")])
    outside = [axis for axis in range(len(shape)) if axis not in inside]
    turned = numbers.reshape(shape).transpose([*outside, *inside])
    return turned.reshape(-1, int(np.prod([shape[axis] for axis in inside]))).tolist()
