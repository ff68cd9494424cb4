"""``export.json``, which says what lies in the folder of an export: its parts with their shapes, the model, the prompt's form, and how far it is from JAX."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unipixel_jax.core.files import read_json_object, replacing, require_regular_file
from unipixel_jax.errors import UserError

FILE, FORMAT = "export.json", 1
_ADVICE = "export the model again"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Array:
    """An input or an output: its name, shape and numpy's name of its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class PartFile:
    """A part's program.

    Attributes:
        file: its name in the folder.
        checksums: SHA-256 in hexadecimal of the files that the program consists of, by name.
        inputs, outputs: its arrays, in order.
        parity: the largest relative error (Euclidean norm) of each output against JAX, on the inputs of ``export/check.py``, by the backend that was there.
    """

    file: str
    checksums: Mapping[str, str]
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    parity: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportManifest:
    """What an export is.

    Attributes:
        kind: "onnx" or "stablehlo".
        platforms: the platforms that its programs are for.
        chip: the chip for whose kernels they were made; "" for programs without kernels.
        model: the name of the model.
        shapes: what its parts have room for (``export/shapes.py``).
        sizes: the padded size of each dimension of a prompt, as ``processing/batch.py`` names them.
        prompt: the text before and after a user's words, about a clip.
        pad_id: the token that fills up prompts.
        end_tokens: the tokens that end an answer.
        parts: its programs, by the names of their parts.
    """

    kind: str
    platforms: tuple[str, ...]
    chip: str
    model: str
    shapes: Mapping[str, int]
    sizes: Mapping[str, int]
    prompt: tuple[str, str]
    pad_id: int
    end_tokens: tuple[int, ...]
    parts: Mapping[str, PartFile]

    def write(self, folder: Path) -> None:
        """Write it to a folder."""
        with replacing(folder / FILE) as aside:
            aside.write_text(json.dumps({"format": FORMAT} | asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> ExportManifest:
        """Read it from a folder.

        Raises:
            UserError: there is none, or it is none that this version reads.
        """
        path = folder / FILE
        if not path.exists():
            raise UserError(f"{folder} holds no {FILE}: expected a folder made by: unipixel-jax export MODEL FOLDER")
        found = read_json_object(path, _ADVICE)
        if found.pop("format", None) != FORMAT:
            raise UserError(f"{path} has another format than {FORMAT}, which this version reads: {_ADVICE}")
        try:
            parts = {str(name): _part(entry) for name, entry in found["parts"].items()}
            numbers = {key: {str(name): int(value) for name, value in found[key].items()} for key in ("shapes", "sizes")}
            before, after = map(str, found["prompt"])
            ends = tuple(map(int, found["end_tokens"]))
            kind, chip, model = (str(found[key]) for key in ("kind", "chip", "model"))
            platforms = tuple(map(str, found["platforms"]))
            return cls(kind, platforms, chip, model, numbers["shapes"], numbers["sizes"], (before, after), int(found["pad_id"]), ends, parts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is not the manifest of an export ({type(error).__name__}: {str(error)[:100]}): {_ADVICE}") from None

    def require(self, names: tuple[str, ...], what: str) -> None:
        """Check that parts are there.

        Raises:
            UserError: some are not; the message says what they are needed for.
        """
        missing = [name for name in names if name not in self.parts]
        if missing:
            raise UserError(f"the export has no {', '.join(missing)}, which {what} needs: export with --parts {' '.join(names)}, or with all")

    def check_files(self, folder: Path, names: tuple[str, ...]) -> None:
        """Compare the files of parts with their checksums.

        Raises:
            UserError: a file is missing, or belongs to another export.
        """
        for name in names:
            for file, expected in self.parts[name].checksums.items():
                require_regular_file(folder / file, _ADVICE)
                if checksum(folder / file) != expected:
                    raise UserError(f"{folder / file} is not the file that {FILE} names: copy the whole folder again, or {_ADVICE}")


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def _part(entry: Mapping[str, Any]) -> PartFile:
    inputs, outputs = (tuple(_array(own) for own in entry[key]) for key in ("inputs", "outputs"))
    checksums = {_plain(name): str(value) for name, value in entry["checksums"].items()}
    parity = {str(name): float(value) for name, value in entry["parity"].items()}
    return PartFile(_plain(entry["file"]), checksums, inputs, outputs, parity)


def _plain(name: Any) -> str:
    """Return the name of a file in the folder itself."""
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
        raise ValueError(f"{str(name)[:60]!r} is no name of a file in the folder")
    return name


def _array(entry: Mapping[str, Any]) -> Array:
    dtype = str(entry["dtype"])
    if dtype not in ("float32", "int32", "bool"):
        raise ValueError(f"the dtype {dtype[:40]!r}")
    return Array(str(entry["name"]), tuple(map(int, entry["shape"])), dtype)
