"""The check of a pickle before it is loaded.

A pickle is a program that builds values. Even one that calls nothing can exhaust the machine that loads it: the largest index of its memo is the size of an
array, 200,000 nested tuples overflow the C stack when they are hashed, and a tuple that holds one tuple twice, sixty times over, takes 2^60 steps. So its
instructions are first followed on a stack that records of each item only whether it may be the key of a dictionary. Strings may, since nobody can foresee their
hashes, and so may numbers of a few bytes, of which few share a hash. Tuples may not, since anybody can compute tuples that share a hash.
"""

from __future__ import annotations

import pickletools
from typing import IO, NamedTuple

from unipixel_jax.errors import UserError

MAX_BYTES = 256 << 20
"""The largest size of a pickle in bytes. The largest of a data set has about 100 MB, that of a checkpoint a few MB beside the tensors' own bytes."""

MAX_INSTRUCTIONS = 50_000_000
"""The largest number of instructions. RefCOCO's references, saved with Python 2, have about 10 million."""

MAX_CONTAINERS = 4_000_000
"""The largest number of lists, dictionaries, tuples and calls. Each takes up to 250 bytes of memory for one byte of the file."""

MAX_OPEN = 1000
"""The largest number of containers that are begun and not ended."""

MAX_INTEGER = 9
"""The largest size of an integer in bytes: 64 bits and a sign."""

MAX_DIGITS = 64
"""The largest number of characters of a number that is written in digits."""

MEMO_GAP = 1000
"""How far an index of the memo may lie beyond the number of its entries. Picklers leave no gaps, so this is generous."""

_KEYS = ("int", "int_or_bool", "bool", "float", "None", "bytes", "str", "bytes_or_str")
"""The kinds of values that may be keys of dictionaries, by their names in pickletools."""

_MAKERS = ("EMPTY_LIST", "LIST", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "DICT", "REDUCE", "NEWOBJ", "PERSID", "BINPERSID")
"""Instructions that make a container or call something."""

_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
"""The size in bytes of the length that precedes an argument, by pickletools' constants."""

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
"""What instructions do besides reading an argument, popping items and pushing others. Instructions for sets, registered classes, classes of Python 2 and
buffers are refused."""


class _Instruction(NamedTuple):
    """What an instruction reads, and what it does to the stack.

    Attributes:
        width: the size in bytes of its argument, or of the length that precedes the argument.
        prefixed: whether a length precedes the argument.
        lines: how many lines of text its argument has.
        action: a value of `_ACTIONS`, or an empty string.
        marked: whether it pops all items above the last mark.
        pops: how many further items it pops.
        pushes: a byte for each item that it pushes, which is 1 if the item may be a key.
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
    """Return the bytes of a pickle, checked to take time and memory in proportion to its size. What it may call is for the unpickler's `find_class` to check.

    Args:
        file: the file to read, of which at most `MAX_BYTES` are read.
        where: the name of the file, for messages.

    Raises:
        UserError: the pickle is truncated, damaged or too large, or does what no pickle of tensors, numbers, strings, lists and dictionaries does.
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
    """A pickle does what is not allowed; the text is the middle of a message."""


def _follow(data: bytes) -> None:
    """Follow the instructions up to the end of the program. The commonest are handled inline for speed, since a data set has millions.

    Raises:
        _RefusedError: an instruction does what is not allowed.
        LookupError, ValueError: an instruction needs bytes or items that are not there.
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
    """Do, or refuse, the action of one of the rarer instructions; `size` is the size of its argument in bytes."""
    if action == "refuse":
        raise _RefusedError("with sets, classes or buffers")
    if action == "mark":
        marks.append(len(stack))
        if len(marks) > MAX_OPEN:
            raise _RefusedError(f"of more than {MAX_OPEN} values inside each other")
    elif action == "pop" and len(marks) > 1 and marks[-1] == len(stack):  # no item lies above the mark, so the instruction pops the mark itself
        stack.append(0)
        marks.pop()
    elif (action == "set items" and 0 in stack[marks[-1] :: 2]) or (action == "set item" and not stack[-2]):
        raise _RefusedError("with a key that is neither word nor number")
    elif (action == "integer" and size > MAX_INTEGER) or (action == "digits" and size > MAX_DIGITS):
        raise _RefusedError(f"with a number of {size} bytes")
