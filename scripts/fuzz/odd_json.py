"""Mutations of JSON, some of which are no JSON any more."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from .odd_bytes import change_bytes

_MARK = "@raw@"
"""The mark that stands in a value for text that ``json.dumps`` would not write."""

RAW: tuple[str, ...] = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000, "-" + "9" * 400, "1e308", "[" * 100_000 + "]" * 100_000, '{"a":' * 3000 + "1" + "}" * 3000,
    '"\\ud800"', '"\\u0000"', '"\\u202e"', "1e-400", "-0.0", "0.30000000000000004", "[" + "0," * 100_000 + "0]", '"' + "a" * 300_000 + '"',
)  # fmt: skip
"""Texts of values that are odd in a file: infinite, huge and tiny numbers, deep nesting, lone surrogates, long lists and strings."""

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 255, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**64, 10**9, 10**12, 10**30, -(2**63), 0.5, -0.5, 1e10, "", " ", "x",
    "0", "-1", "nan", "true", ".", "..", "/", "../../x", "/etc/passwd", "/dev/zero", "a/b", "a\\b", "é\U0001f600", "%s%n{}", [], {}, [[]], [None], [0],
    [1, 2, 3], {"a": None}, {"size": [1, 1], "counts": "0"}, [[0, 0, 1e9, 0, 1e9, 1e9]], [1e9] * 6, "float16", "int8", "O", "|V8", "<U9999",
)  # fmt: skip


def change_json(data: bytes, rng: Random) -> tuple[bytes, str]:
    """Change one or two values of a JSON file, or its bytes one time in ten; return the file and what was done."""
    if rng.random() < 0.1:
        return change_bytes(data, rng)
    value, raw, notes = json.loads(data), list[str](), []
    for _ in range(rng.choice((1, 1, 2))):
        value, note = change_value(value, rng, raw)
        notes.append(note)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    for number, piece in enumerate(raw):
        text = text.replace(f'"{_MARK}{number}"', piece)
    return text.encode("utf-8", errors="surrogatepass"), "; ".join(notes)


def change_value(value: Any, rng: Random, raw: list[str] | None = None, where: str = "") -> tuple[Any, str]:
    """Return a value with another one somewhere in it, and what was done.

    Args:
        value: a value of ``json.loads``, which is not changed itself.
        rng: source of random numbers.
        raw: a list to which texts that only a file can hold are added, for which marks stand in the value; None where there is no file.
        where: the path of the value, for the note.
    """
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        if rng.random() < 0.12:
            return _change_members(value, key, keys, rng), f"{where}/{key} removed, renamed, doubled or exchanged"
        changed, note = change_value(value[key], rng, raw, f"{where}/{key}")
        copy = value.copy()
        copy[key] = changed
        return copy, note
    return _other(value, rng, raw, where)


def _change_members(value: Any, key: Any, keys: list[Any], rng: Random) -> Any:
    other = rng.choice(keys)
    if isinstance(value, list):
        copy = value.copy()
        action = rng.choice(("remove", "double", "exchange"))
        if action == "remove":
            copy.pop(key)
        elif action == "double":
            copy.insert(other, copy[key])
        else:
            copy[key], copy[other] = copy[other], copy[key]
        return copy
    action = rng.choice(("remove", "remove", "rename", "exchange"))
    if action == "remove":
        return {k: v for k, v in value.items() if k != key}
    if action == "rename":
        return {(rng.choice(("", "x", "0", "é", key + " ", key.upper(), "../x", "\0")) if k == key else k): v for k, v in value.items()}
    return value | {key: value[other], other: value[key]}


def _other(value: Any, rng: Random, raw: list[str] | None, where: str) -> tuple[Any, str]:
    near = {
        int: lambda: rng.choice((value + 1, value - 1, -value, 2 * value, value // 2, str(value), [value], value + 0.5)),
        float: lambda: rng.choice((-value, value * 1e6, value / 2, int(value) if abs(value) < 1e300 else 0, str(value))),
        str: lambda: rng.choice((value[:-1], value * 2, value.upper(), value + "\n", value + "\0", [value], value[::-1])),
    }.get(type(value))
    if near and rng.random() < 0.35:
        new = near()
    elif raw is not None and rng.random() < 0.3:
        raw.append(rng.choice(RAW))
        return f"{_MARK}{len(raw) - 1}", f"{where or 'all'} is {raw[-1][:20]}"
    else:
        new = rng.choice(VALUES)
    return new, f"{where or 'all'} is {str(new)[:40]!r}"
