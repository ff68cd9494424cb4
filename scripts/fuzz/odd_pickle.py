"""Mutations of pickles: changed bytes or operations, and hostile pickles in their places."""

from __future__ import annotations

import pickle
import pickletools
import struct
from collections.abc import Callable
from random import Random

from .odd_bytes import change_bytes

_GLOBALS = (
    "os system", "posix system", "builtins eval", "builtins getattr", "builtins bytearray", "builtins range", "collections OrderedDict", "numpy array",
    "numpy.core.multiarray _reconstruct", "torch._utils _rebuild_tensor_v2", "torch FloatStorage", "torch Nothing", "copyreg _reconstructor",
)  # fmt: skip


def change_pickle(data: bytes, rng: Random) -> tuple[bytes, str]:
    """Change bytes or an operation of a pickle, or put a hostile one in its place; return the pickle and what was done."""
    action = rng.choice(("bytes", "operations", "operations", "other"))
    if action == "bytes":
        return change_bytes(data, rng)
    if action == "other":
        name = rng.choice(list(HOSTILE))
        return HOSTILE[name](), f"a pickle that {name}"
    operations = [(op.name, position) for op, _, position in pickletools.genops(data)]
    number = rng.randrange(len(operations) - 1)
    name, place = operations[number]
    end = operations[number + 1][1]
    old = data[place:end]
    new, what = rng.choice(
        (
            (b"", "left out"),
            (old * 2, "doubled"),
            (old + b"(", "and a mark"),
            (b"N", "is None"),
            (b"K\x01", "is 1"),
            (b"X\x01\0\0\0a", "is a text"),
            (b"J\xff\xff\xff\xff", "is -1"),
            (b"\x8a\x08" + b"\xff" * 7 + b"\x7f", "is 2**63-1"),
            (b"G\x7f\xf8\0\0\0\0\0\0", "is nan"),
            (b"c" + rng.choice(_GLOBALS).replace(" ", "\n").encode() + b"\n", "is a global"),
            (old + b"R", "and a call"),
            (old + b"b", "and a state"),
            (b"h\xff", "is from the memo"),
            (b"0", "is dropped"),
            (b"2", "is there twice"),
        )
    )
    return data[:place] + new + data[end:], f"operation {number} ({name}) {what}"


def _nested(opening: bytes, closing: bytes, depth: int = 200_000) -> bytes:
    return b"\x80\x02" + opening * depth + b"N" + closing * depth + b"."


def _calls(module: str, name: str, argument: bytes) -> bytes:
    return b"\x80\x02c" + module.encode() + b"\n" + name.encode() + b"\n" + argument + b"\x85R."


def _wide() -> bytes:
    """Return a pickle whose dictionary has a key of tuples that hold the same tuple twice, 60 deep, so that hashing visits 2**60 elements."""
    body = b"K\x01" + b"".join(b"2\x86" for _ in range(60))
    return b"\x80\x02}" + body + b"Ns."


HOSTILE: dict[str, Callable[[], bytes]] = {
    "calls os.system": lambda: _calls("os", "system", b"X\x13\0\0\0touch broken-out.tx"),
    "evaluates": lambda: _calls("builtins", "eval", b"X\x04\0\0\0exit"),
    "makes 16 GB": lambda: _calls("builtins", "bytearray", b"\x8a\x05\0\0\0\0\x04"),
    "nests tuples": lambda: _nested(b"(", b"t"),
    "nests tuples of one": lambda: _nested(b"", b"\x85"),
    "nests lists": lambda: _nested(b"(", b"l"),
    "nests dictionaries": lambda: _nested(b"}K\x01", b"s"),
    "hashes without end": _wide,
    "promises 2**60 bytes": lambda: b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x.",
    "promises a frame of 2**62 bytes": lambda: b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
    "writes far into the memo": lambda: b"\x80\x02Nr\xff\xff\xff\x3f.",
    "holds itself": lambda: b"\x80\x02]q\0h\0a.",
    "holds itself as a key": lambda: b"\x80\x02}q\0(]q\x01h\x01h\0tq\x02Ns.",
    "is a list": lambda: pickle.dumps([1, 2, 3], 2),
    "is a dictionary of odd keys": lambda: pickle.dumps({None: 1, 3: {}, ("a",): [], "model": None}, 2),
    "is empty": lambda: b"",
    "is only its end": lambda: b".",
    "is of protocol 200": lambda: b"\x80\xc8N.",
    "uses an extension": lambda: b"\x80\x02\x82\x01.",
    "asks for an odd storage": lambda: b"\x80\x02(X\x07\0\0\0storageNX\x01\0\0\x000NK\x01tQ.",
    "has a number of a million digits": lambda: b"\x80\x02\x8b" + struct.pack("<i", 1_000_000) + b"\x7f" * 1_000_000 + b".",
    "has a decimal number of a million digits": lambda: b"I" + b"9" * 1_000_000 + b"\n.",
}
"""Hostile pickles, by what they do."""
