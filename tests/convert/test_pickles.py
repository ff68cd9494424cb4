"""Pickles are looked at before they are loaded: what real picklers write passes, and what could exhaust the reader is refused."""

import io
import pickle
import pickletools
import struct
from collections import OrderedDict

import pytest

from unipixel_jax.core import pickles
from unipixel_jax.core.pickles import scan_pickle
from unipixel_jax.errors import UserError

RECURSIVE: list = []
RECURSIVE.append((RECURSIVE, 1))

VALUES = [
    {"words": ["a", "é", b"raw"], 7: {"x": 2.5, "y": None}, True: [(1, 2, 3, 4), (), (1,), (1, 2)], None: 10**18, 1.5: -(2**63)},
    [[{"id": i, "tokens": ["the", "dog"], "box": (0.5, i)} for i in range(3000)]],
    RECURSIVE,
    (RECURSIVE, [RECURSIVE]),
    OrderedDict(a=1),
    "x" * 70_000,
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("optimize", [False, True])
def test_what_picklers_write_passes_as_it_is(protocol, optimize):
    for value in VALUES:
        data = pickle.dumps(value, protocol)
        data = pickletools.optimize(data) if optimize else data
        assert scan_pickle(io.BytesIO(data), "x.p") == data


def test_only_the_first_program_is_looked_at():
    data = pickle.dumps([1]) + b"anything"
    assert scan_pickle(io.BytesIO(data), "x.p") == data


HOSTILE = {
    "an index of the memo that is an array of 16 GB": (b"\x80\x02}r\xff\xff\xff\x3f.", "numbers a value 1073741823"),
    "the same in digits": (b"}p1073741823\n.", "numbers a value 1073741823"),
    "a negative index": (b"}p-1\n.", "numbers a value -1"),
    "deep tuples as a key": (b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.", "a key that is neither word nor number"),
    "a tuple that doubles sixty times": (b"\x80\x02}(" + b")" + b"2\x86" * 60 + b"Nu.", "a key that is neither word nor number"),
    "the same in a dictionary of protocol 0": (b"()" + b"2\x86" * 60 + b"Nd.", "a key that is neither word nor number"),
    "the same through the memo": (b"\x80\x02})" + b"q\x000h\x00h\x00\x86" * 60 + b"q\x000h\x00Ns.", "a key that is neither word nor number"),
    "a key that is called for": (b"\x80\x02}ctorch\nSize\n)RNs.", "a key that is neither word nor number"),
    "a key from a storage": (b"\x80\x02}X\x01\x00\x00\x00aQNs.", "a key that is neither word nor number"),
    "a set": (pickle.dumps({1, 2}, 4), "sets, classes or buffers"),
    "a frozen set": (pickle.dumps(frozenset([1]), 4), "sets, classes or buffers"),
    "an integer of a megabyte": (b"\x80\x02\x8b" + struct.pack("<i", 1 << 20) + b"\x01" * (1 << 20) + b".", "a number of 1048576 bytes"),
    "an integer whose hash is another's": (pickle.dumps(7 + 40 * (2**61 - 1) * 2**61, 2), "a number of"),
    "a long row of digits": (b"I" + b"1" * 5000 + b"\n.", "a number of 5001 bytes"),
    "open containers": (b"(" * 2000 + b".", "inside each other"),
    "more containers than memory": (b"\x80\x02(" + b"}" * 4_100_000 + b"t.", "of more than 4,000,000 lists"),
    "a word that is longer than the file": (b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"x.", "cut off or damaged"),
    "bytes that are longer than the file": (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 34) + b"x.", "cut off or damaged"),
    "an empty stack": (b"\x80\x02aaa.", "cut off or damaged"),
    "a memo that holds nothing": (b"\x80\x02tttt.", "cut off or damaged"),
    "no end": (b"\x80\x02}", "cut off or damaged"),
    "no pickle": (b"hello", "cut off or damaged"),
    "nothing": (b"", "cut off or damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_pickler_writes_is_refused(name):
    data, message = HOSTILE[name]
    with pytest.raises(UserError, match=message) as raised:
        scan_pickle(io.BytesIO(data), "x.p")
    assert str(raised.value).startswith("x.p has a pickle") and len(str(raised.value)) < 300


def test_a_large_file_is_not_read_whole(monkeypatch):
    monkeypatch.setattr(pickles, "MAX_BYTES", 1000)

    class Endless(io.RawIOBase):
        taken = 0

        def read(self, size=-1):
            assert 0 <= size <= 1001
            self.taken += size
            return bytes(size)

    file = Endless()
    with pytest.raises(UserError, match="has a pickle of more than"):
        scan_pickle(file, "x.p")
    assert file.taken == 1001


def test_the_number_of_instructions_is_bounded(monkeypatch):
    monkeypatch.setattr(pickles, "MAX_INSTRUCTIONS", 100)
    with pytest.raises(UserError, match="of more than 100 instructions"):
        scan_pickle(io.BytesIO(pickle.dumps(list(range(200)))), "x.p")
