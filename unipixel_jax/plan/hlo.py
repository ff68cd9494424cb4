"""What a compiled program costs one chip, read from its optimised text: FLOPs, bytes of main memory, and what it sends to other chips."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unipixel_jax.errors import UserError
from unipixel_jax.plan.hlo_bytes import moved
from unipixel_jax.plan.hlo_collectives import Collective, collective
from unipixel_jax.plan.hlo_flops import flops
from unipixel_jax.plan.hlo_text import Computation, Instruction, Module, parse

BRANCH_WEIGHTS = (1.0, 250.0, 1000.0)
"""FLOPs that take about as long as a FLOP, a byte of memory and a byte to another chip (those of a TPU v5e), by which a conditional's branches are compared."""


@dataclass(frozen=True)
class Operation:
    """One instruction of the program, over all its executions.

    Attributes:
        name, opcode: in the HLO text, of a custom call its target; a collective inside a fusion has a line of its own.
        op_name: where it comes from in the traced program, as "jit(step)/while/body/dot_general"; empty where XLA does not say.
        count: executions.
        flops, bytes: as in ``Costs``.
        collective: what it sends; None if it is none.
        told: False for a kernel whose FLOPs the text does not tell.
    """

    name: str
    opcode: str
    op_name: str
    count: int
    flops: float
    bytes: float
    collective: Collective | None = None
    told: bool = True


@dataclass(frozen=True)
class Costs:
    """What one chip does in one execution of a program.

    Attributes:
        flops: of the matrix units; see ``hlo_flops.py``.
        bytes: read from and written to its main memory; see ``hlo_bytes.py``.
        collectives: by kind, group and slices, the most bytes first.
        operations: all instructions that cost something, in the order of the text.
    """

    flops: float
    bytes: float
    collectives: tuple[Collective, ...]
    operations: tuple[Operation, ...] = ()

    @property
    def sent(self) -> float:
        """Bytes sent to other chips of the same slice (or host, for GPUs)."""
        return sum(c.bytes - c.bytes_between_slices for c in self.collectives)

    @property
    def sent_between_slices(self) -> float:
        """Bytes sent to chips of other slices (or hosts, for GPUs)."""
        return sum(c.bytes_between_slices for c in self.collectives)

    @property
    def untold(self) -> tuple[str, ...]:
        """Kernels that do not say what they cost: their FLOPs are missing here."""
        return tuple(dict.fromkeys(o.opcode for o in self.operations if not o.told))

    def largest(self, n: int) -> tuple[tuple[Operation, ...], tuple[Operation, ...]]:
        """Where the bytes go.

        Returns:
            the n collectives that send most, and the n instructions that move most bytes of memory.
        """
        sending = sorted((o for o in self.operations if o.collective), key=lambda o: -o.collective.bytes)  # type: ignore[union-attr]
        return tuple(sending[:n]), tuple(sorted(self.operations, key=lambda o: -o.bytes)[:n])


def read_costs(text: str, slice_of: Sequence[int], unknown_trips: int | None = None) -> Costs:
    """Costs of one execution, on one chip.

    The body of a loop counts as often as it runs, of a conditional the most expensive branch. Asynchronous collectives count once, where they start. A fusion
    whose reduction is scattered among the chips counts as the reduce-scatter that it runs as.

    Args:
        text: ``compiled.as_text()``.
        slice_of: for each chip, in the order of the program's devices, the slice (for GPUs: the host) that it is of.
        unknown_trips: how often a loop runs whose end depends on the data.

    Raises:
        UserError: the text is no HLO module, or a loop's length is unknown and ``unknown_trips`` is not given.
    """
    try:
        module = parse(text)
    except ValueError as error:
        raise UserError(str(error)) from None
    operations = tuple(_Reader(module, slice_of, unknown_trips).operations(module.entry, ()))
    found: dict[tuple[str, int, int], list[Collective]] = defaultdict(list)
    for operation in operations:
        if operation.collective is not None:
            one = operation.collective
            found[one.kind, one.group, one.slices].append(one)
    summed = [Collective(*key, sum(c.count for c in same), sum(c.bytes for c in same)) for key, same in found.items()]
    collectives = tuple(sorted(summed, key=lambda c: -c.bytes))
    return Costs(sum(o.flops for o in operations), sum(o.bytes for o in operations), collectives, operations)


@dataclass(frozen=True)
class _Reader:
    module: Module
    slice_of: Sequence[int]
    unknown_trips: int | None

    def operations(self, name: str, callers: tuple[Instruction, ...]) -> Iterator[Operation]:
        """What one execution of a computation does."""
        computation = self.module.computations[name]
        chains: set[str] = set()
        for instruction in computation.instructions.values():
            yield from self._operations(instruction, computation, chains, callers)

    def _operations(self, instruction: Instruction, computation: Computation, chains: set[str], callers: tuple[Instruction, ...]) -> Iterator[Operation]:
        opcode = instruction.opcode
        if opcode == "while":
            body, condition = (instruction.attribute(key) or "" for key in ("body", "condition"))
            trips = self._trips(instruction, computation, self.module.computations[condition])
            yield from (_times(o, trips) for o in self.operations(body, (*callers, instruction)))
        elif opcode == "conditional":
            yield from max((list(self.operations(branch, callers)) for branch in instruction.callees), key=_weight)
        elif opcode == "call" or (opcode == "async-start" and instruction.callees):
            yield from self.operations(instruction.callees[0], callers)
        else:
            work = self._flops(instruction, computation)
            bytes_ = moved(instruction, computation, self.module)
            sent = self._collective(instruction, computation)
            if work or work is None or bytes_ or sent:
                label = self._silent(instruction) if work is None else instruction.target if opcode == "custom-call" else opcode
                yield Operation(instruction.name, label, instruction.op_name, 1, work or 0.0, bytes_, sent, work is not None)
            if opcode == "fusion":
                yield from self._inside(self.module.computations[instruction.callees[0]], chains)

    def _collective(self, instruction: Instruction, computation: Computation) -> Collective | None:
        return collective(instruction, computation, self.module.partitions, self.slice_of)

    def _flops(self, instruction: Instruction, computation: Computation) -> float | None:
        own = flops(instruction, computation)
        if instruction.opcode != "fusion" or own is None:
            return own
        inner = self.module.computations[instruction.callees[0]]
        parts = [self._flops(part, inner) for part in inner.instructions.values()]
        return None if None in parts else sum(part for part in parts if part is not None)

    def _silent(self, instruction: Instruction) -> str:
        """The first kernel that tells nothing, which may lie in a fusion."""
        if instruction.opcode != "fusion":
            return instruction.target
        inner = self.module.computations[instruction.callees[0]]
        return next(self._silent(part) for part in inner.instructions.values() if self._flops(part, inner) is None)

    def _inside(self, fused: Computation, chains: set[str]) -> Iterator[Operation]:
        """Collectives in a fusion. One that goes on behind other work stands in the fusions of its start, its end and of all between: a chain, counted once."""
        for instruction in fused.instructions.values():
            if instruction.opcode == "fusion":
                yield from self._inside(self.module.computations[instruction.callees[0]], chains)
            sent = self._collective(instruction, fused)
            if sent is None:
                continue
            chain = re.search(r'chain_id="(\d+)"', instruction.attributes)
            if chain is None:
                # what becomes of its result inside the fusion shows in what the fusion writes
                instruction = dataclasses.replace(instruction, arrays=())
            else:
                key = f"{chain.group(1)} {instruction.attribute('channel_id')}"
                if key in chains:
                    continue
                chains.add(key)
                instruction = _placed(instruction, fused)
            yield Operation(instruction.name, instruction.opcode, instruction.op_name, 1, 0.0, moved(instruction, fused, self.module), sent)

    def _trips(self, loop: Instruction, computation: Computation, condition: Computation) -> int:
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        count = int(known.group(1)) if known else self._bound(loop, computation, condition)
        if count is None:
            count = self.unknown_trips
        if count is None:
            raise UserError(f"loop {loop.name} ({loop.op_name}) runs until its data say so: say how often to count it (unknown_trips)")
        return count

    def _bound(self, loop: Instruction, computation: Computation, condition: Computation) -> int | None:
        """From a condition that compares a counter with a constant; the counter starts from what the loop is given, and goes by one."""
        comparison, scope = condition.root, condition
        given = {p.name: None for p in condition.parameters.values()}
        places = {n: i for i, n in enumerate(comparison.operands)} if comparison.opcode == "fusion" else {}
        outer = comparison
        if places:
            scope = self.module.computations[comparison.callees[0]]
            comparison = scope.root
        if comparison.opcode != "compare":
            return None
        direction = comparison.attribute("direction")

        def value(name: str, scope: Computation) -> tuple[int | None, bool]:
            """The number, if it is known, and whether it is one of the loop's own variables."""
            instruction = scope.instructions[name]
            if instruction.opcode == "constant":
                return (int(instruction.operands[0]) if instruction.operands[0].lstrip("-").isdigit() else None), False
            if instruction.opcode in ("bitcast", "copy", "convert", "reshape"):
                return value(instruction.operands[0], scope)
            if instruction.opcode == "parameter" and scope is not condition:
                return value(outer.operands[int(instruction.operands[0])], condition)
            if instruction.opcode == "get-tuple-element" and instruction.operands[0] in given:
                return self._initial(loop, computation, int(instruction.attribute("index") or 0)), True
            return None, False

        left, right = (value(name, scope) for name in comparison.operands)
        if direction in ("GT", "GE"):
            left, right, direction = right, left, {"GT": "LT", "GE": "LE"}[direction]
        if direction not in ("LT", "LE") or right[0] is None or not left[1]:
            return None
        return max(0, right[0] - (left[0] or 0) + (direction == "LE"))

    def _initial(self, loop: Instruction, computation: Computation, index: int) -> int | None:
        """What a loop's variable is at first, if that is written in the text."""
        start = computation.instructions.get(loop.operands[0])
        if start is None or start.opcode != "tuple":
            return None
        instruction = computation.instructions[start.operands[index]]
        while instruction.opcode in ("copy", "bitcast", "convert") and instruction.operands[0] in computation.instructions:
            instruction = computation.instructions[instruction.operands[0]]
        literal = instruction.operands[0] if instruction.opcode == "constant" else ""
        return int(literal) if literal.lstrip("-").isdigit() else None


def _placed(instruction: Instruction, fused: Computation) -> Instruction:
    """A chain's collective with its result in the memory that its start gives it; inside the fusion that is not said."""
    for user in fused.users(instruction.name):
        if user.target == "AsyncCollectiveStart":
            first = len(instruction.operands)
            return dataclasses.replace(instruction, arrays=user.arrays[first : first + len(instruction.arrays)])
    return instruction


def _times(operation: Operation, trips: int) -> Operation:
    sent = operation.collective
    return dataclasses.replace(
        operation,
        count=operation.count * trips,
        flops=operation.flops * trips,
        bytes=operation.bytes * trips,
        collective=None if sent is None else dataclasses.replace(sent, count=sent.count * trips, bytes=sent.bytes * trips),
    )


def _weight(operations: Sequence[Operation]) -> float:
    work = sum(o.flops for o in operations), sum(o.bytes for o in operations), sum(o.collective.bytes for o in operations if o.collective)
    return sum(weight * amount for weight, amount in zip(BRANCH_WEIGHTS, work, strict=True))
