"""Cases of packed data sets, with changed files or with changed records in sound shards."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from unittest import mock

from ..case import Case, Kind
from ..odd_bytes import change_bytes
from ..odd_files import change_folder, copy
from ..odd_json import change_value

SOURCES = ("refcoco", "mevis", "osprey_conversation", "videorefer_qa_mem", "ade20k")


def prepare(folder: Path) -> None:
    """Write some data sets of discs, and pack them."""
    from make_sample_data import WRITERS

    from unipixel_jax.data.sources import open_source
    from unipixel_jax.data.tfds.builder import pack

    for name in SOURCES:
        WRITERS[name](folder / "data")
        pack(open_source(name, folder / "data", "train"), "train", folder / "shards", lambda *_: None)


def make(seeds: Path, folder: Path, rng: Random) -> Case:
    """Change a packed data set."""
    name = rng.choice(SOURCES)
    if rng.random() < 0.5:
        copy(seeds / "shards" / "packed" / name, folder / "shards" / "packed" / name)
        note = change_folder(folder / "shards", rng, ("*.json", "*.array_record*"))
    else:
        note = _pack_changed(name, seeds / "data", folder / "shards", rng)
    return Case(["data", "check", f"tfds:packed/{name}", "--root", "shards", "--samples", "3"], f"{name}: {note}")


def _pack_changed(name: str, data: Path, out: Path, rng: Random) -> str:
    """Pack a data set whose records are changed before, so that checksums are sound; return what was done."""
    from unipixel_jax.data.records import Record, encode
    from unipixel_jax.data.sources import open_source
    from unipixel_jax.data.tfds import builder

    seed, notes = rng.random(), []

    def changed(annotation: object) -> Record:
        record, own = encode(annotation), Random(seed)  # type: ignore[arg-type]
        if record.files and own.random() < 0.25:
            files = list(record.files)
            number = own.randrange(len(files))
            files[number], note = change_bytes(files[number], own)
            notes.append(f"file {number}: {note}")
            return Record(record.text, tuple(files))
        value, note = change_value(json.loads(record.text), own)
        notes.append(note)
        return Record(json.dumps(value), record.files)

    with mock.patch.object(builder, "encode", changed):
        builder.pack(open_source(name, data, "train"), "train", out, lambda *_: None)
    return f"records: {notes[0]}"


KIND = Kind("shards", 400, prepare, make)
