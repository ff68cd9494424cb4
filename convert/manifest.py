"""`manifest.json` of a converted directory: what the way back to torch needs to be exact, and what shows that nothing changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unipixel_jax.errors import UserError

from .hf_config import read_json, write_json

NAME = "manifest.json"
FORMAT = 1
LAYOUT = "out_in"


@dataclass(frozen=True)
class Record:
    """One torch tensor as the source had it.

    Attributes:
        dtype: as safetensors names it.
        shape: as torch has it.
        crc32: of its bytes, in hexadecimal.
        file: the safetensors file it lay in; None where the source had none.
    """

    dtype: str
    shape: tuple[int, ...]
    crc32: str
    file: str | None


@dataclass(frozen=True)
class Manifest:
    """What is known of a converted directory.

    Attributes:
        source: kind and paths of what it was made from.
        tensors: the source's own names, in its order, to what they were.
        files: its safetensors files to their metadata; empty where the layout is ours to choose.
        tied: the name under which the source held a second copy of the embedding, as its head.
    """

    source: Mapping[str, Any]
    tensors: Mapping[str, Record]
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    tied: str | None = None

    def write(self, directory: Path) -> None:
        """Write it into a converted directory."""
        write_json(directory / NAME, {"format": FORMAT, "layout": LAYOUT, **asdict(self)})

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Read it.

        Raises:
            UserError: absent, damaged, or of another version or layout.
        """
        raw = read_json(directory / NAME)
        if (raw.get("format"), raw.get("layout")) != (FORMAT, LAYOUT):
            found = f"format {raw.get('format')!r}, layout {raw.get('layout')!r}"
            raise UserError(f"{directory / NAME} has {found}; this version reads format {FORMAT}, layout {LAYOUT!r}. Convert the checkpoint again")
        try:
            tensors = {name: Record(r["dtype"], tuple(r["shape"]), r["crc32"], r["file"]) for name, r in raw["tensors"].items()}
            return cls(raw["source"], tensors, raw["files"], raw["tied"])
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{directory / NAME} is damaged ({error}); convert the checkpoint again") from None
