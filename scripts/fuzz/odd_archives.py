"""Mutations of files that hold other files or arrays: zip archives, safetensors files and numpy's files."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from random import Random
from typing import Any

from .odd_bytes import change_bytes
from .odd_json import change_json, change_value
from .odd_pickle import change_pickle

_NAMES = ("", "../x", "/x", "a/b", "data.pkl", "x/data.pkl", "\\x", "é", "a" * 300, "data/0", "version")
_METHODS = (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def change_zip(data: bytes, rng: Random) -> tuple[bytes, str]:
    """Change bytes of a zip archive, above all in its directory, or its members; return the archive and what was done."""
    action = rng.choice(("bytes", "directory", "directory", "member", "member", "member", "names", "bomb"))
    if action == "bytes":
        return change_bytes(data, rng)
    if action == "directory":
        start = data.rfind(b"PK\1\2", 0, data.rfind(b"PK\5\6")) if rng.random() < 0.5 else max(data.rfind(b"PK\5\6"), 0)
        directory, note = change_bytes(data[start:], rng)
        return data[:start] + directory, f"the archive's directory: {note}"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    number = rng.randrange(len(members)) if rng.random() < 0.4 else 0
    name, content = members[number]
    method = zipfile.ZIP_STORED
    if action == "member":
        change = change_pickle if name.endswith(".pkl") else change_json if content[:1] == b"{" else change_bytes
        content, note = change(content, rng)
        note = f"{name}: {note}"
    elif action == "names":
        new = rng.choice((*_NAMES, rng.choice(members)[0]))
        note, name = f"{name} is called {new!r}", new
    else:
        content, method = bytes(rng.choice((10, 300)) << 20), rng.choice(_METHODS)
        note = f"{name} unpacks to {len(content) >> 20} MB (method {method})"
    members[number] = (name, content)
    if rng.random() < 0.1:
        members.pop(rng.randrange(len(members)))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    changed = bytearray(out.getvalue())
    if rng.random() < 0.1:
        for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
            changed[changed.find(mark) + place] |= 1  # the flag of encryption
        note += "; the first member counts as encrypted"
    return bytes(changed), note


def change_safetensors(data: bytes, rng: Random) -> tuple[bytes, str]:
    """Change bytes of a safetensors file, the length of its header, or an entry of it; return the file and what was done."""
    action = rng.choice(("bytes", "length", "header", "header", "header"))
    if action == "bytes":
        return change_bytes(data, rng)
    (length,) = struct.unpack("<Q", data[:8])
    if action == "length":
        new = rng.choice((0, 1, length - 1, length + 1, len(data), 2**31, 2**40, 2**63, 2**64 - 1))
        return struct.pack("<Q", new) + data[8:], f"a header of {new} bytes"
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    name = rng.choice(list(header))
    raw: list[str] = []
    header[name], note = change_value(header[name], rng, raw, name)
    text = json.dumps(header)
    for number, piece in enumerate(raw):
        text = text.replace(f'"@raw@{number}"', piece)
    encoded = text.encode("utf-8", errors="surrogatepass")
    return struct.pack("<Q", len(encoded)) + encoded + data[8 + length :], f"header: {note}"


def change_npy(data: bytes, rng: Random) -> tuple[bytes, str]:
    """Give a file of numpy's another header, with an odd shape or dtype; return the file and what was done."""
    if not data.startswith(b"\x93NUMPY") or rng.random() < 0.3:
        return change_bytes(data, rng)
    descr = rng.choice(("'|O'", "'<f8'", "'|V0'", "'<U9999999'", "[('a', '|O')]", "'<M8[ns]'", "None", "'<f4'"))
    shape = rng.choice(("()", "(0,)", "(1000000000000,)", "(-1,)", "(2, 2)", "None", "(1.5,)"))
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + data[-64:], f"an array {descr} {shape}"
