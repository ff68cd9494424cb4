"""What a checkpoint of training says of itself: the run that it belongs to, its arrays with their fingerprints, and where the data stood."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.stored import weights_digest
from unipixel_jax.errors import UserError
from unipixel_jax.models.lora import LoraConfig

FORMAT = 3

SWITCHES = ("dtype", "sample_objects", "sam2_batch_mode", "sam2_config", "quantisation")
"""Fields of the model's configuration that say nothing of its arrays, or, as quantisation, are never set in training."""

DTYPES = ("float32", "bfloat16", "float16", "float64", "int32", "uint32", "int64", "uint64", "int16", "uint16", "int8", "uint8", "bool")
"""What an array of a checkpoint may hold: numbers."""

MAX_NESTING = 40
"""How deep a manifest may be nested."""

SHOWN = 10
"""How many differences an error lists."""


class CorruptCheckpointError(Exception):
    """A checkpoint that cannot be read, or not as it was written."""


@dataclass(frozen=True)
class RunInfo:
    """The run that checkpoints belong to. Everything in it must be JSON.

    Attributes:
        config: the whole configuration, for people and for the export.
        identity: the part of it without which the arrays mean nothing: sizes of the model, what is trained, LoRA. A run whose own differs is refused.
        source: where the weights that are not trained come from.
    """

    config: Mapping[str, Any]
    identity: Mapping[str, Any]
    source: Mapping[str, Any]

    @classmethod
    def of(cls, config: Mapping[str, Any], model: UniPixelConfig, parts: Sequence[str], lora: LoraConfig | None, start: Path) -> RunInfo:
        """The run that trains some parts of a converted directory's model.

        Args:
            config: the whole configuration, as JSON.
            model: sizes of the model.
            parts: names of what is trained (see trainable.py).
            lora: its adapters, if it has any.
            start: the converted directory whose weights training starts from, and keeps where they are not trained.

        Raises:
            UserError: `start` is no converted directory.
        """
        sizes = {name: value for name, value in asdict(model).items() if name not in SWITCHES}
        adapters = {"rank": lora.rank, "alpha": lora.alpha, "part": lora.part} if lora else None
        identity = {"model": sizes, "trained": sorted(parts), "lora": adapters, "weights": weights_digest(start)}
        return cls(config, identity, {"start": str(start.absolute()), "lora_dropout": lora.dropout if lora else None})

    @property
    def digest(self) -> str:
        """SHA-256 of the identity."""
        return _digest(self.identity)

    def require_same(self, other: RunInfo, where: object) -> None:
        """Do nothing if `other` is a run like this one.

        Raises:
            UserError: it is not; the fields that differ are named with both values.
        """
        if other.digest == self.digest:
            return
        ours, theirs = dict(_flat(_plain(self.identity))), dict(_flat(other.identity))
        differ = [key for key in {**ours, **theirs} if ours.get(key, _ABSENT) != theirs.get(key, _ABSENT)]
        named = [f"{key} is {_shown(ours, key)} here, {_shown(theirs, key)} there" for key in differ[:SHOWN]]
        more = f" and {len(differ) - SHOWN} more" if len(differ) > SHOWN else ""
        raise UserError(f"{where} is of another run: {'; '.join(named)}{more}. Continue with its configuration, or choose another directory")


@dataclass(frozen=True)
class ArrayInfo:
    """One array of a checkpoint."""

    dtype: str
    shape: tuple[int, ...]
    fingerprint: int


@dataclass(frozen=True)
class Manifest:
    """The JSON part of a checkpoint.

    Attributes:
        step: optimisation steps done.
        run_info: the run.
        arrays: by the names of the training state's leaves.
        data: the state of the data loader, the same on all hosts.
    """

    step: int
    run_info: RunInfo
    arrays: Mapping[str, ArrayInfo]
    data: Any

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as JSON, with a checksum of its content."""
        raw = _plain({"format": FORMAT, "digest": self.run_info.digest, **asdict(self)})
        return {**raw, "checksum": _digest(raw)}

    @classmethod
    def from_json(cls, raw: Any, where: object) -> Manifest:
        """Read it back.

        Raises:
            CorruptCheckpointError: it is not as it was written.
            UserError: another version of this package wrote it.
        """
        if not isinstance(raw, Mapping) or not _is_shallow(raw, MAX_NESTING):
            raise CorruptCheckpointError("its manifest is no object, or nested too deeply")
        if raw.get("checksum") != _digest({key: value for key, value in raw.items() if key != "checksum"}):
            raise CorruptCheckpointError("its manifest is not as it was written")
        if raw.get("format") != FORMAT:
            raise UserError(f"{where} has format {str(raw.get('format'))[:40]}, this version reads {FORMAT}; continue with the version that wrote it")
        try:
            run_info = RunInfo(**raw["run_info"])
            arrays = {name: _array_info(entry) for name, entry in raw["arrays"].items()}
            step, data = raw["step"], raw["data"]
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            raise CorruptCheckpointError(f"its manifest has another form ({error!r})") from None
        if type(step) is not int or not all(isinstance(part, Mapping) for part in (run_info.config, run_info.identity, run_info.source)):
            raise CorruptCheckpointError("its manifest has another form")
        return cls(step, run_info, arrays, data)


def _array_info(entry: Any) -> ArrayInfo:
    """One array's entry.

    Raises:
        ValueError: it describes no array of numbers.
    """
    dtype, shape, mark = entry["dtype"], entry["shape"], entry["fingerprint"]
    sizes = isinstance(shape, list) and len(shape) <= 32 and all(type(size) is int and 0 <= size < 1 << 48 for size in shape)
    if dtype not in DTYPES or not sizes or type(mark) is not int:
        raise ValueError(f"an array {str(entry)[:100]}")
    return ArrayInfo(dtype, tuple(shape), mark)


def _is_shallow(value: Any, room: int) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return room > 0 and all(_is_shallow(item, room - 1) for item in inner)


_ABSENT = object()


def _plain(value: Any) -> Any:
    """Return the value as JSON gives it back, with lists for tuples."""
    return json.loads(json.dumps(value))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, tree


def _shown(flat: Mapping[str, Any], key: str) -> str:
    text = json.dumps(flat[key]) if key in flat else "absent"
    return text if len(text) <= 80 else f"{text[:77]}..."
