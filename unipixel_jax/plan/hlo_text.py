"""A parser of optimised HLO text into instructions with their shapes. ``hlo.py`` counts their costs."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

BITS = {"pred": 8, "token": 0, "opaque": 0, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "f4e2m1fn": 4, "bf16": 16, "c64": 64, "c128": 128}
"""The bits of an element, for dtypes whose names do not contain that number."""


@dataclass(frozen=True, slots=True)
class Array:
    """An array's dtype, shape and memory.

    Attributes:
        dtype: XLA's name of the dtype, such as "bf16".
        dims: the sizes of the dimensions.
        space: the memory space: 0 is the chip's main memory; on TPUs 1 is VMEM and 5 the host's memory.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.dims)

    @property
    def itemsize(self) -> float:
        """The bytes of an element; half a byte for a dtype of four bits."""
        return _itemsize(self.dtype)

    @property
    def nbytes(self) -> float:
        """The bytes of the array, without the padding of tiles."""
        return self.elements * self.itemsize


@functools.cache
def _itemsize(dtype: str) -> float:
    if dtype in BITS:
        return BITS[dtype] / 8
    digits = re.search(r"\d+", dtype)
    return int(digits.group()) / 8 if digits else 0.0


@dataclass(frozen=True, slots=True)
class Instruction:
    """A line of a computation.

    Attributes:
        name: the instruction's name, such as "fusion.3".
        opcode: what it does, such as "fusion".
        arrays: the result's arrays; those of a tuple one after the other.
        operands: names of other instructions of the same computation; for a constant or a parameter, the text between its parentheses.
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
        """Return the word after ``name=``, without "%", or the text between the braces there; None if there is no such attribute."""
        found = re.search(rf"\b{name}=(?:%?([\w.\-]+)|\{{([^{{}}]*)\}})", self.attributes)
        return None if found is None else found.group(1) if found.group(1) is not None else found.group(2)

    def numbers(self, name: str) -> tuple[int, ...]:
        """Return the numbers of an attribute such as ``name={1,2}``; empty if there is no such attribute."""
        return tuple(int(n) for n in (self.attribute(name) or "").split(",") if n.strip())

    @property
    def op_name(self) -> str:
        """Where the instruction comes from in the traced program; empty where XLA does not say."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    @property
    def target(self) -> str:
        """The target of a custom call; empty for other instructions."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    @property
    def callees(self) -> tuple[str, ...]:
        """The names of the computations that the instruction calls, but for a loop's body and condition."""
        named = (self.attribute(name) for name in ("calls", "to_apply", "called_computations", "branch_computations", "true_computation", "false_computation"))
        return tuple(one.strip().removeprefix("%") for names in named if names for one in names.split(","))


@dataclass
class Computation:
    """A computation of a module.

    Attributes:
        name: its name, without "%".
        instructions: its instructions by name, in the order of the text.
    """

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    _users: dict[str, list[Instruction]] | None = None

    @property
    def root(self) -> Instruction:
        """The instruction that is the computation's result."""
        return next((i for i in reversed(self.instructions.values()) if i.root), next(reversed(self.instructions.values())))

    @property
    def parameters(self) -> dict[int, Instruction]:
        """The computation's parameters by their numbers."""
        return {int(i.operands[0]): i for i in self.instructions.values() if i.opcode == "parameter"}

    def users(self, name: str) -> list[Instruction]:
        """Return the instructions that take the named one as an operand."""
        if self._users is None:
            self._users = {}
            for instruction in self.instructions.values():
                for operand in dict.fromkeys(instruction.operands):
                    self._users.setdefault(operand, []).append(instruction)
        return self._users.get(name, [])

    def origin(self, instruction: Instruction) -> str:
        """Return where an instruction comes from in the traced program or, where it does not say, where its first operand comes from; empty where none says."""
        seen: set[str] = set()
        while not instruction.op_name and instruction.name not in seen and instruction.operands and instruction.operands[0] in self.instructions:
            seen.add(instruction.name)
            instruction = self.instructions[instruction.operands[0]]
        return instruction.op_name

    def shapes(self, instruction: Instruction) -> list[tuple[Array, ...]]:
        """Return the arrays of each operand of an instruction."""
        return [self.instructions[name].arrays for name in instruction.operands if name in self.instructions]


@dataclass
class Module:
    """A whole HLO module.

    Attributes:
        computations: the computations by name.
        entry: the name of the computation that runs.
        partitions: number of chips that run it together.
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
    """Parse the text of ``jax.stages.Compiled.as_text()``.

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
    # a constant has no operands, and its text may be a whole table of numbers
    literal = opcode.group(1) in ("parameter", "constant")
    operands = (inside,) if literal else tuple(_OPERAND.findall(inside)) or tuple(one.split()[-1] for one in inside.split(", ") if one)
    return Instruction(name.group(2), opcode.group(1), tuple(_arrays(line[at:end])), operands, line[close + 1 :], name.group(1) is not None)


def _closing(line: str, at: int) -> int:
    """Return the index of the bracket that closes the one at ``at``."""
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
            # a dynamic size is written as its bound, such as <=8
            yield Array(dtype, tuple(int(n.strip().removeprefix("<=")) for n in dims.split(",") if n.strip()), int(space.group(1)) if space else 0)
