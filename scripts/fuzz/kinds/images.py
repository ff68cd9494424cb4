"""Cases of images in all formats, alone and as the frames of a folder, which are read, and some of them segmented."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from random import Random

from PIL import Image

from ..case import Case, Kind, as_command
from ..odd_bytes import change_bytes
from ..odd_files import copy
from . import ROOT

SIDE = 64
PROMPT = "Please segment the large blue square."


def prepare(folder: Path) -> None:
    """Write a small image in every format and mode, and copy those among the tests' own inputs that a camera wrote."""
    with Image.open(ROOT / "unipixel_jax" / "assets" / "photo.png") as file:
        photo = file.convert("RGB").resize((SIDE, SIDE))
    exif = Image.Exif()
    exif[0x0112] = 6
    saved = {"ppm": "PPM", "bmp": "BMP", "tiff": "TIFF", "ico": "ICO", "webp": "WEBP", "avif": "AVIF", "jpg": "JPEG", "png": "PNG", "gif": "GIF"}
    for suffix, name in saved.items():
        photo.save(folder / f"plain.{suffix}", name)
    photo.save(folder / "turned.jpg", exif=exif)
    photo.save(folder / "turned.png", exif=exif)
    photo.save(folder / "progressive.jpg", progressive=True)
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    for mode in ("L", "1", "P", "LA", "RGBA", "I;16"):
        (photo.convert("L").convert("I;16") if mode == "I;16" else photo.convert(mode)).save(folder / f"{mode.replace(';', '')}.png")
    photo.convert("F").save(folder / "floats.tiff")
    photo.convert("I").save(folder / "integers.tiff")
    photo.save(folder / "packed.tiff", compression="tiff_lzw")
    frames = [photo.rotate(30 * i) for i in range(4)]
    for suffix in ("gif", "webp", "png", "avif"):
        frames[0].save(folder / f"moving.{suffix}", save_all=True, append_images=frames[1:], duration=100)
    for path in sorted((ROOT / "tests" / "cases").rglob("*")):
        if path.suffix.lower() in (".heic", ".heif", ".avif") and path.stat().st_size < 200_000:
            copy(path, folder / f"case_{path.name}")


def make(seeds: Path, folder: Path, rng: Random) -> Case:
    """Change one image."""
    seed = rng.choice(sorted(seeds.iterdir()))
    data, note = _change(seed.read_bytes(), rng)
    suffix = seed.suffix if rng.random() < 0.9 else rng.choice((".png", ".jpg", ".mp4", ".eps", ".svg", ""))
    name = f"photo{suffix}"
    if rng.random() < 0.15:
        for number in range(3):
            copy(seeds / "plain.png", folder / "frames" / f"{number}.png")
        (folder / "frames" / f"1{rng.choice(('.png', '.jpg', '.bmp'))}").write_bytes(data)
        name = "frames"
    else:
        (folder / name).write_bytes(data)
    note = f"{seed.name}: {note}"
    if rng.random() < 0.08:
        run = ["segment", name, PROMPT, "--output-dir", "out", "--max-new-tokens", "8", "--json", "out/a.json", "--masks", "out/a.npz"]
        return Case(run, note, ("out",))

    return reading(name, f"{name}, {note}")


def reading(name: str, note: str) -> Case:
    """Return the case of reading an image, a folder of frames or a video."""

    @as_command
    def read() -> int:
        """Read the media."""
        from unipixel_jax.processing.media import read_media

        clip = read_media(name, 4)
        print(clip.frames.shape, clip.indices, clip.is_image)
        return 0

    return Case(read, note)


def _change(data: bytes, rng: Random) -> tuple[bytes, str]:
    if rng.random() < 0.5 or len(data) < 100:
        return change_bytes(data, rng)
    if data.startswith(b"\x89PNG"):
        return _change_png(data, rng)
    if data.startswith(b"GIF8"):
        size = struct.pack("<HH", rng.choice((0, 1, 3, 60_000, 65_535)), rng.choice((0, 1, 64, 65_535)))
        return (
            (data[:6] + size + data[10:], "another size") if rng.random() < 0.5 else (data[:-1] + data[800:] * rng.choice((10, 3000)), "frames again and again")
        )
    if data.startswith(b"BM"):
        place, value = rng.choice(((18, "<i"), (22, "<i"), (28, "<h"), (30, "<i"), (10, "<i"))), rng.choice((-1, 0, 1, 7, 30_000))
        return data[: place[0]] + struct.pack(place[1], value) + data[place[0] + struct.calcsize(place[1]) :], f"{value} at {place[0]}"
    if data.startswith((b"II*\0", b"MM\0*")):
        return _change_tiff(data, rng)
    return change_bytes(data, rng)


def _change_png(data: bytes, rng: Random) -> tuple[bytes, str]:
    """Change, double, move, remove or add a chunk of a PNG, with sound checksums; return the file and what was done."""
    chunks, place = [], 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    number = rng.randrange(len(chunks))
    action = rng.choice(("header", "header", "change", "double", "move", "remove", "text"))
    kind, content = chunks[number]
    if action == "header":
        width, height, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
        width, height = (rng.choice((value, value, 0, 1, 9, 20_000, 2**31 - 1, 2**32 - 1)) for value in (width, height))
        rest = [rng.choice((value, value, value, rng.randrange(20))) for value in rest]
        chunks[0] = (b"IHDR", struct.pack(">IIBBBBB", width, height, *rest))
        note = f"header {width}x{height} {rest}"
    elif action == "change":
        content, note = change_bytes(content, rng)
        chunks[number], note = (kind, content), f"{kind!r}: {note}"
    elif action == "text":
        bomb = zlib.compress(bytes(rng.choice((100, 300 << 20)))) if rng.random() < 0.3 else zlib.compress(b"x" * 1000)
        kind, content = rng.choice(
            ((b"zTXt", b"a\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb), (b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + b"\1\x12" * 50), (b"tRNS", b"\0" * 900))
        )
        chunks.insert(1, (kind, content))
        note = f"{kind!r} of {len(content)} bytes"
    else:
        chunks.pop(number)
        for where in {"double": (number, number), "move": (rng.randrange(len(chunks) + 1),), "remove": ()}[action]:
            chunks.insert(where, (kind, content))
        note = f"{kind!r}: {action}"
    out = data[:8] + b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return out, note


def _change_tiff(data: bytes, rng: Random) -> tuple[bytes, str]:
    """Give a field of a TIFF's directory another tag, type, count or value; return the file and what was done."""
    order = "<" if data[:2] == b"II" else ">"
    (directory,) = struct.unpack(order + "I", data[4:8])
    (count,) = struct.unpack(order + "H", data[directory : directory + 2])
    place = directory + 2 + 12 * rng.randrange(max(1, count))
    tag, kind, length, value = struct.unpack(order + "HHII", data[place : place + 12])
    odd = (0, 1, 2, 3, 5, 16, 64, 65_535, 2**31 - 1, 2**32 - 1)
    what = rng.choice(("tag", "type", "count", "value", "value", "value"))
    new = {
        "tag": (rng.choice((tag, 256, 257, 258, 262, 273, 277, 279, 322, 330, 34675, 700)), kind, length, value),
        "type": (tag, rng.randrange(20), length, value),
        "count": (tag, kind, rng.choice(odd), value),
        "value": (tag, kind, length, rng.choice(odd)),
    }[what]
    return data[:place] + struct.pack(order + "HHII", *new) + data[place + 12 :], f"tag {tag}: {what} {new}"


KIND = Kind("images", 700, prepare, make)
