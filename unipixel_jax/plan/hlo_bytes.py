"""Bytes that instructions move from and to a chip's main memory.

Each array is counted once per instruction that reads or writes it. Inside a fusion values stay in registers, so only what enters and leaves the fusion counts.
An array that is only sliced inside counts as the slice, and one that is updated in place counts as the update. Arrays in VMEM or in the host's memory cost
nothing here.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from unipixel_jax.plan.hlo_collectives import KINDS
from unipixel_jax.plan.hlo_flops import cost_estimate
from unipixel_jax.plan.hlo_text import Array, Computation, Instruction, Module

FREE = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "add-dependency", "opt-barrier", "partition-id", "replica-id", "while",
    "conditional", "call", "async-start", "async-update", "async-done", "domain", "get-dimension-size", "rng-get-and-update-state", "infeed", "outfeed",
})  # fmt: skip
"""Opcodes that move no bytes themselves."""

_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATES = ("dynamic-update-slice", "scatter")
_ELEMENTWISE = ("bitcast", "reshape", "convert", "copy", "transpose", "negate")
"""Opcodes of which a fusion computes only the elements that are read."""
_UNCOPIED_CALLS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "AsyncCollectiveStart", "AsyncCollectiveDone")
"""Custom calls that copy nothing: they reserve or rename memory, or mark the start or the end of a collective."""


def moved(instruction: Instruction, computation: Computation, module: Module) -> float:
    """Return the bytes that one execution of an instruction reads and writes. Computations that it calls are not counted, but a fusion's is."""
    opcode = instruction.opcode
    if opcode in FREE or opcode.endswith("-done") or (opcode == "custom-call" and instruction.target in _UNCOPIED_CALLS):
        return 0.0
    operands = computation.shapes(instruction)
    results = instruction.arrays
    if opcode.endswith("-start"):
        opcode = opcode.removesuffix("-start")
        if opcode == "copy":
            results = results[:1]
        elif len(results) > len(operands):
            results = results[sum(map(len, operands)) :]
    if opcode == "fusion":
        return _fusion(instruction, operands, module)
    count = _counted(module)
    if opcode in _SLICES:
        return sum(map(count, results)) * (2 if count(operands[0][0]) else 1)
    if opcode in _UPDATES:
        # both opcodes read the update, and write as many bytes into the operand
        update = operands[1 if opcode == "dynamic-update-slice" else len(operands) - 1][0]
        return update.nbytes * ((count(update) > 0) + (count(results[0]) > 0))
    if opcode == "custom-call":
        estimate = cost_estimate(instruction, "bytes_accessed")
        if estimate is not None:
            return estimate
    if opcode == "send":
        results = ()
    return sum(count(a) for arrays in operands for a in arrays) + sum(map(count, _new(instruction, results)))


def _counted(module: Module) -> Callable[[Array], float]:
    # memory space 1 is VMEM on TPUs, but on GPUs the part of main memory that collectives use
    return lambda array: array.nbytes if array.space == 0 or (array.space == 1 and not module.tpu) else 0.0


def _new(instruction: Instruction, results: tuple[Array, ...]) -> tuple[Array, ...]:
    """Return the results that do not alias operands."""
    return results if "output_to_operand_aliasing" not in instruction.attributes else tuple(a for i, a in enumerate(results) if i not in _aliased(instruction))


def _aliased(instruction: Instruction) -> set[int]:
    found = re.search(r"output_to_operand_aliasing=\{((?:[^{}]|\{[^{}]*\}|\{\{[^{}]*\}[^{}]*\})*)\}", instruction.attributes)
    return {int(n or 0) for n in re.findall(r"\{(\d*)\}: \(", found.group(1))} if found else set()


def _fusion(instruction: Instruction, operands: list[tuple[Array, ...]], module: Module) -> float:
    inner = module.computations[instruction.callees[0]]
    count = _counted(module)
    parameters = inner.parameters
    total = 0.0
    for number, arrays in enumerate(operands):
        if number in parameters and len(arrays) == 1 and count(arrays[0]):
            total += _read(inner, parameters[number], module) * arrays[0].itemsize
    written = _written(inner, inner.root, module)
    if len(written) != len(instruction.arrays):
        return total + sum(map(count, _new(instruction, instruction.arrays)))
    return total + sum(elements * array.itemsize for elements, array in zip(written, instruction.arrays, strict=True) if count(array))


def _read(computation: Computation, source: Instruction, module: Module) -> float:
    """Return how many elements of one array a fused computation reads."""
    whole = float(source.arrays[0].elements)
    total = 0.0
    for user in computation.users(source.name):
        first = user.operands[0] == source.name
        if user.opcode in _SLICES and first:
            total += user.arrays[0].elements
        elif user.opcode in _UPDATES and first and _is_result(computation, user):
            continue
        elif user.opcode == "fusion" and 0 in _aliased(user):
            # The same array in another tiling: a TPU's compiler reads int8 so that it casts in a fusion.
            total += _read(computation, user, module)
        elif user.opcode == "fusion":
            inner = module.computations[user.callees[0]]
            total += sum(_read(inner, inner.parameters[n], module) for n, name in enumerate(user.operands) if name == source.name)
        elif user.opcode in _ELEMENTWISE and not user.root:
            total += _read(computation, user, module)
        elif (user.root and user.opcode == "tuple") or (user.opcode == "custom-call" and user.target in _UNCOPIED_CALLS) or user.opcode in KINDS:
            continue
        else:
            return whole
        if total >= whole:
            return whole
    return total


def _is_result(computation: Computation, instruction: Instruction) -> bool:
    """Return whether only elementwise opcodes lie between an instruction and the fusion's result, so that it can update its operand in place."""
    while not instruction.root:
        users = computation.users(instruction.name)
        if len(users) != 1:
            return False
        if users[0].opcode == "tuple" and users[0].root:
            return True
        if users[0].opcode not in _ELEMENTWISE:
            return False
        instruction = users[0]
    return True


def _written(computation: Computation, result: Instruction, module: Module) -> list[float]:
    """Return how many elements are written for each array of a fused computation's result."""
    if result.opcode == "tuple":
        parts = [computation.instructions[name] for name in result.operands]
        return [elements for part in parts for elements in _written(computation, part, module)]
    last = result
    while last.opcode in _ELEMENTWISE and last.operands[0] in computation.instructions:
        last = computation.instructions[last.operands[0]]
    if last.opcode in _UPDATES:
        update = computation.instructions[last.operands[1 if last.opcode == "dynamic-update-slice" else -1]]
        return [float(update.arrays[0].elements)]
    if result.opcode == "fusion":
        inner = module.computations[result.callees[0]]
        return _written(inner, inner.root, module)
    # Nothing is written for arrays that pass through, nor for buffers of overlapped collectives, which are counted once with the collective.
    through = result.opcode in ("parameter", "get-tuple-element") or (result.opcode == "custom-call" and result.target in _UNCOPIED_CALLS)
    if through or "chain_id=" in result.attributes:
        return [0.0] * len(result.arrays)
    return [float(array.elements) for array in result.arrays]
