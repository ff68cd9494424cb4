"""`manifest.json` of a converted directory: names, dtypes and files for an exact conversion back to torch, and checksums to show that nothing changed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unipixel_jax.core.files import read_json_object
from unipixel_jax.errors import UserError

from .hf_config import write_json
from .safetensors_io import MAX_AXES, is_shard_name
from .tensors import DTYPES

NAME = "manifest.json"
FORMAT = 1
LAYOUT = "out_in"

_CRC32 = re.compile("[0-9a-f]{8}")
_ADVICE = "convert the checkpoint again"


@dataclass(frozen=True)
class Record:
    """One torch tensor as the source had it.

    Attributes:
        dtype: safetensors' name of its dtype.
        shape: its shape in torch.
        crc32: the CRC-32 of its bytes, in eight hexadecimal digits.
        file: the safetensors file that it lay in; None where the source was no safetensors checkpoint.
    """

    dtype: str
    shape: tuple[int, ...]
    crc32: str
    file: str | None

    def is_sound(self) -> bool:
        """Return whether all fields are as a conversion writes them."""
        shape = len(self.shape) <= MAX_AXES and all(type(size) is int and size >= 0 for size in self.shape)
        return self.dtype in DTYPES and shape and bool(_CRC32.fullmatch(self.crc32)) and (self.file is None or isinstance(self.file, str))


@dataclass(frozen=True)
class Manifest:
    """The content of a `manifest.json`.

    Attributes:
        source: kind and paths of what the directory was converted from.
        tensors: the source's tensors by their own names, in their own order.
        files: the metadata of the source's safetensors files, by file name; empty where the source had none, so that the conversion back chooses its files.
        tied: the name under which the source held a second copy of the embedding, as its head; None where it held none.
    """

    source: Mapping[str, Any]
    tensors: Mapping[str, Record]
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    tied: str | None = None

    def write(self, directory: Path) -> None:
        """Write the manifest into a converted directory."""
        write_json(directory / NAME, {"format": FORMAT, "layout": LAYOUT, **asdict(self)})

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Read the manifest of a converted directory.

        Raises:
            UserError: the manifest is absent, damaged, or of another version or layout.
        """
        raw = read_json_object(directory / NAME, _ADVICE)
        if (raw.get("format"), raw.get("layout")) != (FORMAT, LAYOUT):
            found = f"format {raw.get('format')!r}, layout {raw.get('layout')!r}"
            raise UserError(f"{directory / NAME} has {found}; this version reads format {FORMAT}, layout {LAYOUT!r}. Convert the checkpoint again")
        try:
            tensors = {name: Record(r["dtype"], tuple(r["shape"]), r["crc32"], r["file"]) for name, r in raw["tensors"].items()}
            manifest = cls(raw["source"], tensors, raw["files"], raw["tied"])
            fault = manifest._fault()
        except (KeyError, TypeError, AttributeError) as error:
            fault = f"{type(error).__name__}: {error}"
        if fault:
            raise UserError(f"{directory / NAME} is damaged ({fault}); {_ADVICE}")
        return manifest

    def _fault(self) -> str | None:
        """Return what no conversion would have written, in words; None if all is sound.

        That includes files that lie elsewhere or hold no tensors, and tensors that lie in no file.

        Raises:
            TypeError, AttributeError: a value has another type.
        """
        odd = next((name for name, record in self.tensors.items() if not record.is_sound()), None)
        if odd is not None:
            return f"the record of {odd!r}"
        if not all(isinstance(value, dict) for value in (self.source, self.files)) or self.tied not in (None, *self.tensors):
            return "source, files or tied"
        needed = {"checkpoint": ("path",), "fresh": ("qwen", "sam2")}.get(str(self.source.get("kind")), ())
        lists = [self.source.get(key, []) for key in ("partial", "overlaid")]
        if not all(isinstance(self.source.get(key), str) for key in needed) or not all(isinstance(value, list) for value in lists):
            return "its source"
        unsafe = next((name for name in self.files if not is_shard_name(name)), None)
        if unsafe is not None:
            return f"the file {unsafe!r}, expected a name that ends in .safetensors, without a folder"
        if not all(isinstance(text, str) for metadata in self.files.values() for text in metadata.values()):
            return "metadata that are no strings"
        used = {record.file for record in self.tensors.values()}
        if used - {None} != self.files.keys() or (self.files and None in used):
            return "its tensors do not lie in the files that it lists"
        return None
