"""Mutations of bytes and of text."""

from __future__ import annotations

from random import Random

INTERESTING = (
    b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xff", b"\xff\x7f", b"\0\0\0\x80", b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff", b"\xff" * 4, b"\xff" * 8, b"\0" * 8,
)  # fmt: skip
TEXTS = (
    '"', "'", ",", "\t", "\n", "\r\n", "\0", "\u2028", "\u0085", "\ufeff", "\x1b[2J", ";", "|", "#", "é", "\U0001f600", "{{", "%", "<region>", "<|seg|>",
    "A" * 5000,
)  # fmt: skip


def change_bytes(data: bytes, rng: Random) -> tuple[bytes, str]:
    """Change one to three places of some bytes, half of them near the beginning, where headers are; return the bytes and what was done."""
    changed, notes = bytearray(data), []
    for _ in range(rng.choice((1, 1, 2, 3))):
        size = len(changed)
        place = rng.randrange(min(size, 256) if rng.random() < 0.5 else size) if size else 0
        action = rng.choice(("flip", "flip", "set", "set", "cut", "remove", "repeat", "zero", "insert", "noise"))
        if action == "flip" and size:
            changed[place] ^= 1 << rng.randrange(8)
        elif action == "set":
            value = rng.choice(INTERESTING)
            changed[place : place + len(value)] = value
        elif action == "cut":
            del changed[place:]
        elif action == "remove":
            del changed[place : place + rng.choice((1, 2, 4, 16, 1000))]
        elif action == "repeat":
            changed[place:place] = changed[place : place + rng.choice((1, 8, 64, 4096))] * rng.choice((1, 3, 50))
        elif action == "zero":
            length = min(rng.choice((1, 4, 64, 4096)), size - place)
            changed[place : place + length] = bytes(length)
        elif action == "insert":
            changed[place:place] = rng.choice(INTERESTING) * rng.choice((1, 16))
        else:
            length = min(rng.choice((1, 4, 64)), size - place)
            changed[place : place + length] = rng.randbytes(length)
        notes.append(f"{action} at {place}")
    return bytes(changed), ", ".join(notes)


def change_text(data: bytes, rng: Random) -> tuple[bytes, str]:
    """Give a text odd characters, another order of lines or another encoding; return the text and what was done."""
    action = rng.choice(("insert", "insert", "insert", "lines", "encoding", "bytes", "long", "empty"))
    text = data.decode("utf-8", errors="replace")
    if action == "insert":
        place, piece = rng.randrange(len(text) + 1), rng.choice(TEXTS)
        return (text[:place] + piece + text[place:]).encode(), f"{piece[:10]!r} at character {place}"
    if action == "lines":
        lines = text.splitlines(keepends=True)
        rng.shuffle(lines)
        return "".join(lines[: rng.randrange(len(lines) + 1)]).encode(), "some lines in another order"
    if action == "encoding":
        name = rng.choice(("utf-16", "utf-8-sig", "cp1252", "utf-32", "utf-7"))
        return text.encode(name, errors="replace") + (b"\xe9" if name == "cp1252" else b""), f"in {name}"
    if action == "long":
        return data * rng.choice((100, 2000)), "many times over"
    return (b"", "empty") if action == "empty" else change_bytes(data, rng)
