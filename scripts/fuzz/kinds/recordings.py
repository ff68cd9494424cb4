"""Cases of recordings of the torch reference, which are opened and read, and some of them replayed."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from ..case import Case, Kind, as_command
from ..odd_files import change_folder, copy
from . import ROOT

RECORDINGS = ROOT / "tests" / "recordings"
SHORT = ("smart_resize", "chatml_labels", "rope_index")
"""Names of the recordings' cases that compile no large program."""


def prepare(folder: Path) -> None:
    """Write a recording without its checkpoint, which reading does not need, and one of a few cases to replay."""
    copy(RECORDINGS / "nano_a", folder / "short")
    description = json.loads((folder / "short" / "export.json").read_text())
    description["cases"] = [case for case in description["cases"] if case["name"] in SHORT]
    (folder / "short" / "export.json").write_text(json.dumps(description))
    for file in (folder / "short" / "cases").iterdir():
        if file.name.split(".")[0] not in SHORT:
            file.unlink()
    for name in ("export.json", "cases", "media"):
        copy(RECORDINGS / "nano_b" / name, folder / "long" / name)


def make(seeds: Path, folder: Path, rng: Random) -> Case:
    """Change a recording."""
    if rng.random() < 0.85:
        copy(seeds / "long", folder / "in")
        return Case(read, change_folder(folder / "in", rng, ("export.json", "*.safetensors", "*.safetensors", "*.json")))
    copy(seeds / "short", folder / "in")
    note = change_folder(folder / "in", rng, ("export.json", "cases/*.safetensors", "config.json", "tokenizer*.json", "chat_template.jinja"))
    return Case(["parity", "in", "--json", "out.json"], note, ("out.json",), ("out.json",))


@as_command
def read() -> int:
    """Read all of a recording."""
    from unipixel_jax.parity.recording import open_recording

    recording = open_recording(Path("in"))
    for case in recording.cases:
        print(case.name, case.kind, len(case.tensors), [case.has_input("x"), len(case.outputs)])
    return 0


KIND = Kind("recordings", 300, prepare, make)
