"""A look at a pickle before it is loaded.

A pickle is a program that builds values. Even one that calls nothing can exhaust the machine that loads it: the largest index of its memo is the size of an
array, 200,000 nested tuples overflow the C stack when they are hashed, and a tuple that holds one tuple twice, sixty times over, takes 2^60 steps. So its
instructions are first followed on a stack that knows of each item only whether it may be the key of a dictionary. Words may, whose hashes nobody can foresee,
and numbers of a few bytes, of which few share a hash; tuples may not, since anybody can compute tuples that share one.
"""

from __future__ import annotations

import pickletools
from typing import IO, NamedTuple

from unipixel_jax.errors import UserError

MAX_BYTES = 256 << 20
"""Largest pickle. The largest of a data set has about 100 MB, that of a checkpoint a few MB beside the tensors' own bytes."""

MAX_INSTRUCTIONS = 50_000_000
"""RefCOCO's references, saved with Python 2, have about 10 million."""

MAX_CONTAINERS = 4_000_000
"""Most lists, dictionaries, tuples and calls. Each takes up to 250 bytes of memory for a single one of the file."""

MAX_OPEN = 1000
"""Most containers that are begun and not ended."""

MAX_INTEGER = 9
"""Most bytes of an integer: what 64 bits take with a sign."""

MAX_DIGITS = 64
"""Most characters of a number that is written in digits."""

MEMO_GAP = 1000
"""How far an index of the memo may lie beyond the number of its entries; picklers count without gaps."""

_KEYS = ("int", "int_or_bool", "bool", "float", "None", "bytes", "str", "bytes_or_str")
"""The kinds of values that may be keys, as pickletools calls them."""

_MAKERS = ("EMPTY_LIST", "LIST", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "DICT", "REDUCE", "NEWOBJ", "PERSID", "BINPERSID")
"""Instructions that make a container or call something."""

_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
"""How many bytes say how long an argument is, by pickletools' constants."""

_ACTIONS = {
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), "put"),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), "get"),
    **dict.fromkeys(("SETITEMS", "DICT"), "set items"),
    **dict.fromkeys(("LONG1", "LONG4"), "integer"),
    **dict.fromkeys(("INT", "LONG", "FLOAT"), "digits"),
    **{"SETITEM": "set item", "MARK": "mark", "POP": "pop", "STOP": "stop"},
    **dict.fromkeys(("EMPTY_SET", "ADDITEMS", "FROZENSET"), "refuse"),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEWOBJ_EX", "BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER"), "refuse"),
}
"""What instructions do beyond reading an argument, taking items and leaving others. Refused are those of sets, of registered classes and those of Python 2,
and of buffers."""


class _Instruction(NamedTuple):
    """What an instruction reads, and does to the stack.

    Attributes:
        width: bytes of its argument, or of that argument's length.
        prefixed: whether they are a length.
        lines: how many lines its argument has.
        action: a value of `_ACTIONS`, or nothing.
        marked: whether it takes all items above the last mark.
        pops: how many items it takes besides.
        pushes: a byte for each item that it leaves: 1 if that may be a key.
        makes: whether it makes a container or calls something.
    """

    width: int
    prefixed: bool
    lines: int
    action: str
    marked: bool
    pops: int
    pushes: bytes | bytearray
    makes: bool


def _instruction(info: pickletools.OpcodeInfo) -> _Instruction:
    size = info.arg.n if info.arg else 0
    lines = 0 if info.arg is None or size != pickletools.UP_TO_NEWLINE else 2 if info.arg.name.endswith("_pair") else 1
    width = 0 if lines else _LENGTHS.get(size, size)
    action = _ACTIONS.get(info.name, "")
    before, after = ([item.name for item in items if action != "put"] for items in (info.stack_before, info.stack_after))
    pops = sum(name not in ("mark", "stackslice") for name in before)
    pushes = bytes(name in _KEYS for name in after if name != "mark")
    return _Instruction(width, size in _LENGTHS, lines, action, "mark" in before, pops, pushes, info.name in _MAKERS)


_INSTRUCTIONS = {ord(info.code): _instruction(info) for info in pickletools.opcodes}


def scan_pickle(file: IO[bytes], where: object) -> bytes:
    """The bytes of a pickle that takes time and memory in proportion to its size. What it calls is left to the unpickler's `find_class`, and to what is called.

    Args:
        file: to read; at most `MAX_BYTES` are.
        where: its name, for messages.

    Raises:
        UserError: it is cut off or damaged, too large, or does what no pickle of tensors, numbers, words, lists and dictionaries does.
    """
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UserError(f"{where} has a pickle of more than {MAX_BYTES >> 20} MB, expected less: it is of another kind, copy it again")
    try:
        _follow(data)
    except _RefusedError as error:
        raise UserError(f"{where} has a pickle {error}, as none of its kind does: refused, nothing in it was run; copy it again") from None
    except (LookupError, ValueError):
        raise UserError(f"{where} has a pickle that is cut off or damaged: copy it again") from None
    return data


class _RefusedError(Exception):
    """What a pickle does and may not, as the middle of a message."""


def _follow(data: bytes) -> None:
    """Follow the instructions up to the end of the program. The commonest are handled here, since a data set has millions.

    Raises:
        _RefusedError: it does what is not allowed.
        LookupError, ValueError: it takes what is not there.
    """
    stack, memo, marks, instructions = bytearray(), bytearray(), [0], _INSTRUCTIONS
    position = containers = 0
    for _ in range(MAX_INSTRUCTIONS):
        width, prefixed, lines, action, marked, pops, pushes, makes = instructions[data[position]]
        start = position + 1
        position = start + width
        if prefixed:
            start, position = position, position + int.from_bytes(data[start:position], "little")
        while lines:
            position = data.index(b"\n", position) + 1
            lines -= 1
        if action == "put" or action == "get":
            argument = data[start:position]
            index = int.from_bytes(argument, "little") if width else int(argument) if argument else len(memo)
            if action == "get":
                pushes = memo[index : index + 1]
            elif index == len(memo):
                memo.append(stack[-1])
            else:
                _put(memo, index, stack[-1])
        elif action == "stop":
            return
        elif action:
            _check(action, stack, marks, position - start)
        if marked:
            del stack[marks.pop() :]
        if pops:
            if pops > len(stack):
                raise IndexError
            del stack[-pops:]
        stack += pushes
        if makes:
            containers += 1
            if containers > MAX_CONTAINERS:
                raise _RefusedError(f"of more than {MAX_CONTAINERS:,} lists, dictionaries, tuples and calls")
    raise _RefusedError(f"of more than {MAX_INSTRUCTIONS:,} instructions")


def _put(memo: bytearray, index: int, key: int) -> None:
    if not 0 <= index <= len(memo) + MEMO_GAP:
        raise _RefusedError(f"that numbers a value {index} with {len(memo)} before it")
    memo.extend(bytes(max(index + 1 - len(memo), 0)))
    memo[index] = key


def _check(action: str, stack: bytearray, marks: list[int], size: int) -> None:
    """What the rarer instructions do or may not; `size` is that of the argument in bytes."""
    if action == "refuse":
        raise _RefusedError("with sets, classes or buffers")
    if action == "mark":
        marks.append(len(stack))
        if len(marks) > MAX_OPEN:
            raise _RefusedError(f"of more than {MAX_OPEN} values inside each other")
    elif action == "pop" and len(marks) > 1 and marks[-1] == len(stack):  # it takes the mark, since nothing lies on it
        stack.append(0)
        marks.pop()
    elif (action == "set items" and 0 in stack[marks[-1] :: 2]) or (action == "set item" and not stack[-2]):
        raise _RefusedError("with a key that is neither word nor number")
    elif (action == "integer" and size > MAX_INTEGER) or (action == "digits" and size > MAX_DIGITS):
        raise _RefusedError(f"with a number of {size} bytes")
