"""The text of an optimised HLO module, as instructions with their shapes. What they cost is in ``hlo.py``."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

BITS = {"pred": 8, "token": 0, "opaque": 0, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "f4e2m1fn": 4, "bf16": 16, "c64": 64, "c128": 128}
"""Bits of an element where the name's number does not say it."""


@dataclass(frozen=True, slots=True)
class Array:
    """Attributes:
    dtype: XLA's name, as "bf16".
    dims: the sizes.
    space: the memory that it lies in: 0 is the chip's main memory; on TPUs 1 is VMEM and 5 the host's.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int

    @property
    def elements(self) -> int:
        """How many."""
        return math.prod(self.dims)

    @property
    def itemsize(self) -> float:
        """Bytes of an element; half a byte for four bits."""
        return _itemsize(self.dtype)

    @property
    def nbytes(self) -> float:
        """Without the padding of tiles."""
        return self.elements * self.itemsize


@functools.cache
def _itemsize(dtype: str) -> float:
    if dtype in BITS:
        return BITS[dtype] / 8
    digits = re.search(r"\d+", dtype)
    return int(digits.group()) / 8 if digits else 0.0


@dataclass(frozen=True, slots=True)
class Instruction:
    """Attributes:
    name, opcode: as "fusion.3" and "fusion".
    arrays: of its result, a tuple's one after the other.
    operands: names of other instructions of the same computation; for a constant or a parameter, what stands there instead.
    attributes: the rest of the line.
    root: whether it is the computation's result.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def attribute(self, name: str) -> str | None:
        """The word after ``name=``, without "%", or the text between braces; None where there is none."""
        found = re.search(rf"\b{name}=(?:%?([\w.\-]+)|\{{([^{{}}]*)\}})", self.attributes)
        return None if found is None else found.group(1) if found.group(1) is not None else found.group(2)

    def numbers(self, name: str) -> tuple[int, ...]:
        """The numbers of ``name={1,2}``; empty where there is none."""
        return tuple(int(n) for n in (self.attribute(name) or "").split(",") if n.strip())

    @property
    def op_name(self) -> str:
        """Where it comes from in the traced program; empty where XLA does not say."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    @property
    def target(self) -> str:
        """Of a custom call; else empty."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    @property
    def callees(self) -> tuple[str, ...]:
        """Computations named by ``calls``, ``to_apply`` or the branches of a conditional."""
        named = (self.attribute(name) for name in ("calls", "to_apply", "called_computations", "branch_computations", "true_computation", "false_computation"))
        return tuple(one.strip().removeprefix("%") for names in named if names for one in names.split(","))


@dataclass
class Computation:
    """Attributes:
    name: without "%".
    instructions: by name, in the order of the text.
    """

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    _users: dict[str, list[Instruction]] | None = None

    @property
    def root(self) -> Instruction:
        """The result."""
        return next((i for i in reversed(self.instructions.values()) if i.root), next(reversed(self.instructions.values())))

    @property
    def parameters(self) -> dict[int, Instruction]:
        """By number."""
        return {int(i.operands[0]): i for i in self.instructions.values() if i.opcode == "parameter"}

    def users(self, name: str) -> list[Instruction]:
        """The instructions that take this one as an operand."""
        if self._users is None:
            self._users = {}
            for instruction in self.instructions.values():
                for operand in dict.fromkeys(instruction.operands):
                    self._users.setdefault(operand, []).append(instruction)
        return self._users.get(name, [])

    def shapes(self, instruction: Instruction) -> list[tuple[Array, ...]]:
        """Arrays of each operand."""
        return [self.instructions[name].arrays for name in instruction.operands if name in self.instructions]


@dataclass
class Module:
    """Attributes:
    computations: by name.
    entry: the name of the one that runs.
    partitions: chips that run it together.
    tpu: whether it is a program for TPUs.
    """

    computations: dict[str, Computation]
    entry: str
    partitions: int
    tpu: bool


_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"([a-z]\w*)\[([^\]]*)\](?:\{([^}]*)\})?|(token|opaque)")
_OPERAND = re.compile(r"%([\w.\-]+)")
_SPACE = re.compile(r"S\((\d+)\)")


def parse(text: str) -> Module:
    """Read what ``jax.stages.Compiled.as_text()`` gives.

    Raises:
        ValueError: the text is no HLO module.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            found = _COMPUTATION.match(line)
            if found and " -> " in line:
                current = computations.setdefault(found.group(2), Computation(found.group(2)))
                entry = current.name if found.group(1) else entry
        elif line.startswith("}"):
            current = None
        else:
            instruction = _instruction(line)
            if instruction is not None:
                current.instructions[instruction.name] = instruction
    if not entry:
        raise ValueError("no ENTRY computation: expected the text of a compiled HLO module")
    header = text[: text.find("\n")]
    partitions = re.search(r"num_partitions=(\d+)", header)
    return Module(computations, entry, int(partitions.group(1)) if partitions else 1, ":T(" in header)


def _instruction(line: str) -> Instruction | None:
    name = _NAME.match(line)
    if name is None:
        return None
    at = name.end()
    end = _closing(line, at) + 1 if line[at] == "(" else line.find(" ", at)
    opcode = _OPCODE.match(line, end)
    if opcode is None:
        return None
    close = _closing(line, opcode.end() - 1)
    inside = line[opcode.end() : close]
    # a constant may be a whole table of numbers, and has no operands
    literal = opcode.group(1) in ("parameter", "constant")
    operands = (inside,) if literal else tuple(_OPERAND.findall(inside)) or tuple(one.split()[-1] for one in inside.split(", ") if one)
    return Instruction(name.group(2), opcode.group(1), tuple(_arrays(line[at:end])), operands, line[close + 1 :], name.group(1) is not None)


def _closing(line: str, at: int) -> int:
    """The place of the bracket that closes the one at ``at``."""
    depth = 0
    for found in re.compile(r"[()]").finditer(line, at):
        depth += 1 if found.group() == "(" else -1
        if depth == 0:
            return found.start()
    return len(line)


def _arrays(text: str) -> Iterator[Array]:
    for dtype, dims, layout, bare in _ARRAY.findall(text):
        if bare:
            yield Array(bare, (), 0)
        else:
            space = _SPACE.search(layout)
            # a bound of a dynamic size is written <=8
            yield Array(dtype, tuple(int(n.strip().removeprefix("<=")) for n in dims.split(",") if n.strip()), int(space.group(1)) if space else 0)
