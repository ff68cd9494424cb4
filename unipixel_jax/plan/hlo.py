"""The costs of a compiled program on one chip, read from its optimised HLO text: FLOPs, bytes of main memory, and bytes sent to other chips."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unipixel_jax.errors import UserError
from unipixel_jax.plan.hlo_bytes import moved
from unipixel_jax.plan.hlo_collectives import Collective, collective
from unipixel_jax.plan.hlo_flops import flops, of_a_split
from unipixel_jax.plan.hlo_text import Computation, Instruction, Module, parse

BRANCH_WEIGHTS = (1.0, 250.0, 1000.0)
"""How long a FLOP, a byte of main memory and a byte to another chip take on a TPU v5e, in units of a FLOP. A conditional's branches are compared by these."""


@dataclass(frozen=True)
class Operation:
    """One instruction of the program, over all its executions. A collective inside a fusion is an operation of its own.

    Attributes:
        name: the instruction's name in the HLO text.
        opcode: its opcode in the HLO text; for a custom call, the call's target.
        op_name: where it comes from in the traced program, such as "jit(step)/while/body/dot_general"; of an instruction that XLA added, where its first
            operand comes from; empty where XLA does not say.
        count: number of executions.
        flops, bytes: FLOPs and bytes of all executions, counted as in ``Costs``.
        collective: the collective's kind and bytes; None if the instruction is no collective.
        told: False for a kernel whose FLOPs the HLO text does not state.
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
    """The costs of one execution of a program on one chip.

    Attributes:
        flops: FLOPs of the matrix units; see ``hlo_flops.py``.
        bytes: bytes read from and written to main memory; see ``hlo_bytes.py``.
        collectives: sums over collectives of the same kind, group size and number of slices, those with the most bytes first.
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
    def kernels_without_flops(self) -> tuple[str, ...]:
        """The targets of kernels whose FLOPs the HLO text does not state, and which ``flops`` therefore lacks."""
        return tuple(dict.fromkeys(o.opcode for o in self.operations if not o.told))

    def largest(self, n: int) -> tuple[tuple[Operation, ...], tuple[Operation, ...]]:
        """Return the n collectives that send the most bytes, and the n instructions that move the most bytes of main memory."""
        sending = sorted((o for o in self.operations if o.collective), key=lambda o: -o.collective.bytes)  # type: ignore[union-attr]
        return tuple(sending[:n]), tuple(sorted(self.operations, key=lambda o: -o.bytes)[:n])


def read_costs(text: str, slice_of: Sequence[int], unknown_trips: int | None = None) -> Costs:
    """Count the costs of one execution on one chip.

    The body of a loop counts as often as it runs, and a conditional counts as its most expensive branch. An asynchronous collective counts once, where it
    starts. A fusion whose reduction is scattered among the chips counts as the reduce-scatter that it runs as.

    Args:
        text: the optimised HLO, from ``compiled.as_text()``.
        slice_of: the slice (for GPUs: the host) of each chip, in the order of the program's devices.
        unknown_trips: how often to count a loop whose number of iterations depends on the data, and a kernel on such a number of splits; None to refuse such
            loops, and to count one split.

    Raises:
        UserError: the text is no HLO module, or a loop's length is unknown and ``unknown_trips`` is None.
    """
    try:
        module = parse(text)
    except ValueError as error:
        raise UserError(str(error)) from None
    operations = tuple(_Reader(module, slice_of, unknown_trips).operations(module.entry))
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
    """Counts the operations of a module. Its arguments are those of ``read_costs``."""

    module: Module
    slice_of: Sequence[int]
    unknown_trips: int | None

    def operations(self, name: str) -> Iterator[Operation]:
        """Yield the operations of one execution of a computation."""
        computation = self.module.computations[name]
        chains: set[str] = set()
        for instruction in computation.instructions.values():
            yield from self._operations(instruction, computation, chains)

    def _operations(self, instruction: Instruction, computation: Computation, chains: set[str]) -> Iterator[Operation]:
        opcode = instruction.opcode
        if opcode == "while":
            body, condition = (instruction.attribute(key) or "" for key in ("body", "condition"))
            trips = self._trips(instruction, computation, self.module.computations[condition])
            yield from (_repeated(o, trips) for o in self.operations(body))
        elif opcode == "conditional":
            yield from max((list(self.operations(branch)) for branch in instruction.callees), key=_branch_cost)
        elif opcode == "call" or (opcode == "async-start" and instruction.callees):
            yield from self.operations(instruction.callees[0])
        else:
            work = self._flops(instruction, computation)
            bytes_ = moved(instruction, computation, self.module)
            sent = self._collective(instruction, computation)
            if work or work is None or bytes_ or sent:
                label = self._kernel_without_flops(instruction) if work is None else instruction.target if opcode == "custom-call" else opcode
                operation = Operation(instruction.name, label, computation.origin(instruction), 1, work or 0.0, bytes_, sent, work is not None)
                yield _repeated(operation, self.unknown_trips or 1) if of_a_split(instruction) else operation
            if opcode == "fusion":
                yield from self._fused_collectives(self.module.computations[instruction.callees[0]], chains)

    def _collective(self, instruction: Instruction, computation: Computation) -> Collective | None:
        return collective(instruction, computation, self.module.partitions, self.slice_of)

    def _flops(self, instruction: Instruction, computation: Computation) -> float | None:
        own = flops(instruction, computation)
        if instruction.opcode != "fusion" or own is None:
            return own
        inner = self.module.computations[instruction.callees[0]]
        parts = [self._flops(part, inner) for part in inner.instructions.values()]
        return None if None in parts else sum(part for part in parts if part is not None)

    def _kernel_without_flops(self, instruction: Instruction) -> str:
        """Return the target of an instruction's first kernel whose FLOPs are unknown; the instruction is that kernel, or a fusion that contains it."""
        if instruction.opcode != "fusion":
            return instruction.target
        inner = self.module.computations[instruction.callees[0]]
        return next(self._kernel_without_flops(part) for part in inner.instructions.values() if self._flops(part, inner) is None)

    def _fused_collectives(self, fused: Computation, chains: set[str]) -> Iterator[Operation]:
        """Yield the collectives inside a fusion.

        A collective that overlaps other work appears in a chain of fusions: the one that starts it, the one that ends it, and all between. It is counted once.

        Args:
            fused: the fusion's computation.
            chains: the chains that have been counted; this adds to them.
        """
        for instruction in fused.instructions.values():
            if instruction.opcode == "fusion":
                yield from self._fused_collectives(self.module.computations[instruction.callees[0]], chains)
            sent = self._collective(instruction, fused)
            if sent is None:
                continue
            chain = re.search(r'chain_id="(\d+)"', instruction.attributes)
            if chain is None:
                # The bytes of its result are counted with what the fusion writes.
                instruction = dataclasses.replace(instruction, arrays=())
            else:
                key = f"{chain.group(1)} {instruction.attribute('channel_id')}"
                if key in chains:
                    continue
                chains.add(key)
                instruction = _with_memory_of_start(instruction, fused)
            yield Operation(instruction.name, instruction.opcode, instruction.op_name, 1, 0.0, moved(instruction, fused, self.module), sent)

    def _trips(self, loop: Instruction, computation: Computation, condition: Computation) -> int:
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        count = int(known.group(1)) if known else self._counted_trips(loop, computation, condition)
        if count is None:
            count = self.unknown_trips
        if count is None:
            raise UserError(f"loop {loop.name} ({loop.op_name}) runs until its data say so: say how often to count it (unknown_trips)")
        return count

    def _counted_trips(self, loop: Instruction, computation: Computation, condition: Computation) -> int | None:
        """Return the number of iterations of a loop whose condition compares a counter with a constant; None where the condition is another.

        The counter starts from a value that the loop is given (0 if that is unknown) and is assumed to increase by one.
        """
        comparison, scope = condition.root, condition
        given = {p.name: None for p in condition.parameters.values()}
        outer = comparison
        if comparison.opcode == "fusion":
            scope = self.module.computations[comparison.callees[0]]
            comparison = scope.root
        if comparison.opcode != "compare":
            return None
        direction = comparison.attribute("direction")

        def value(name: str, scope: Computation) -> tuple[int | None, bool]:
            """Return a number, if it is known, and whether it is one of the loop's own variables."""
            instruction = scope.instructions[name]
            if instruction.opcode == "constant":
                return (int(instruction.operands[0]) if instruction.operands[0].lstrip("-").isdigit() else None), False
            if instruction.opcode in ("bitcast", "copy", "convert", "reshape"):
                return value(instruction.operands[0], scope)
            if instruction.opcode == "parameter" and scope is not condition:
                return value(outer.operands[int(instruction.operands[0])], condition)
            if instruction.opcode == "get-tuple-element" and instruction.operands[0] in given:
                return self._initial_value(loop, computation, int(instruction.attribute("index") or 0)), True
            return None, False

        left, right = (value(name, scope) for name in comparison.operands)
        if direction in ("GT", "GE"):
            left, right, direction = right, left, {"GT": "LT", "GE": "LE"}[direction]
        if direction not in ("LT", "LE") or right[0] is None or not left[1]:
            return None
        return max(0, right[0] - (left[0] or 0) + (direction == "LE"))

    def _initial_value(self, loop: Instruction, computation: Computation, index: int) -> int | None:
        """Return the initial value of a loop's variable; None if the text does not state it."""
        start = computation.instructions.get(loop.operands[0])
        if start is None or start.opcode != "tuple":
            return None
        instruction = computation.instructions[start.operands[index]]
        while instruction.opcode in ("copy", "bitcast", "convert") and instruction.operands[0] in computation.instructions:
            instruction = computation.instructions[instruction.operands[0]]
        literal = instruction.operands[0] if instruction.opcode == "constant" else ""
        return int(literal) if literal.lstrip("-").isdigit() else None


def _with_memory_of_start(instruction: Instruction, fused: Computation) -> Instruction:
    """Return a chain's collective with its result in the memory space that the chain's start gives it; the fusion itself does not state that space."""
    for user in fused.users(instruction.name):
        if user.target == "AsyncCollectiveStart":
            first = len(instruction.operands)
            return dataclasses.replace(instruction, arrays=user.arrays[first : first + len(instruction.arrays)])
    return instruction


def _repeated(operation: Operation, trips: int) -> Operation:
    sent = operation.collective
    return dataclasses.replace(
        operation,
        count=operation.count * trips,
        flops=operation.flops * trips,
        bytes=operation.bytes * trips,
        collective=None if sent is None else dataclasses.replace(sent, count=sent.count * trips, bytes=sent.bytes * trips),
    )


def _branch_cost(operations: Sequence[Operation]) -> float:
    work = sum(o.flops for o in operations), sum(o.bytes for o in operations), sum(o.collective.bytes for o in operations if o.collective)
    return sum(weight * amount for weight, amount in zip(BRANCH_WEIGHTS, work, strict=True))
