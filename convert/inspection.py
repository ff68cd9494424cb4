"""Reports of what a file or directory holds, from headers and names alone, without importing jax."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from unipixel_jax.config import PRESETS, SAM2_SIZES, Sam2Config, TextConfig, VisionConfig, read_qwen
from unipixel_jax.core.files import PARAMS, read_json_object
from unipixel_jax.core.quantisation import is_quantised, scales_of
from unipixel_jax.core.stored import read as read_arrays
from unipixel_jax.core.trees import join

from . import fresh
from .hf_config import COPY, merged_config, model_config, read_config
from .manifest import Manifest
from .names import canonical
from .rules import SHOWN, Coverage, Rule
from .sources import ADAPTER_FILES, HEAD, PARTIAL_FILE, find, identify
from .tables import all_rules
from .tables.sam2 import sam2_rules
from .tables.text import text_rules
from .tables.vision import vision_rules
from .tensors import CODES, Tensor
from .weights import read_file, read_weights

KINDS: Mapping[str, str] = {
    "unipixel": "UniPixel checkpoint (torch)",
    "adapter": "LoRA adapter or partial checkpoint (torch)",
    "qwen": "plain Qwen2.5-VL checkpoint (torch)",
    "sam2": "SAM 2.1 checkpoint (torch)",
    "jax": "converted UniPixel directory (JAX)",
}
"""The kinds that `identify` finds, in words."""


@dataclass(frozen=True)
class _Array:
    """The dtype and the sizes of an array on disk, as reports show them. It is no ``Tensor``, since safetensors has no name for int4."""

    dtype: str
    count: int
    nbytes: int


@dataclass(frozen=True)
class Report:
    """The result of `inspect`.

    Attributes:
        path: the file or directory.
        kind: a key of `KINDS`.
        model: the size of UniPixel or Qwen2.5-VL, in words; None where the files do not say.
        sam2: the size of SAM 2.1, in words; None where the files do not say.
        tensors: number of tensors; in a converted directory, of arrays.
        parameters: number of parameters in them.
        nbytes: bytes that they take.
        dtypes: number of tensors by safetensors' name of their dtype.
        missing: expected names that are absent.
        unexpected: names that no table has.
        details: other facts, such as an adapter's base and rank.
    """

    path: str
    kind: str
    model: str | None
    sam2: str | None
    tensors: int
    parameters: int
    nbytes: int
    dtypes: Mapping[str, int]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    details: Mapping[str, Any]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing and nothing is unexpected."""
        return not self.missing and not self.unexpected

    def as_json(self) -> dict[str, Any]:
        """Return the fields, and `complete`, as JSON values."""
        return {**asdict(self), "complete": self.complete}

    def as_text(self) -> str:
        """Return the report as a few lines of text."""
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in self.dtypes.items())
        lines = [
            f"{self.path}: {KINDS[self.kind]}",
            *[f"  {label:<13} {value}" for label, value in (("model", self.model), ("SAM 2.1", self.sam2)) if value],
            f"  {'tensors':<13} {self.tensors} ({dtypes}), {self.parameters:,} parameters, {self.nbytes / 1e9:.3g} GB",
            *[f"  {label:<13} {value}" for label, value in self.details.items()],
        ]
        for label, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            more = ", ..." if len(names) > SHOWN else ""
            lines.append(f"  {label:<13} {len(names)}: {', '.join(names[:SHOWN])}{more}" if names else f"  {label:<13} nothing")
        return "\n".join(lines)


def inspect(path: Path) -> Report:
    """Report what a file or directory holds.

    Raises:
        UserError: nothing is there, it is no checkpoint, or it is damaged.
    """
    return {"unipixel": _unipixel, "adapter": _adapter, "qwen": _qwen, "sam2": _sam2, "jax": _jax}[identify(path)](path)


def _unipixel(path: Path) -> Report:
    _, config = read_config(path)
    tensors = read_weights(path).tensors
    coverage = _coverage(tensors, _names(all_rules(config)), config.text)
    return _report(path, "unipixel", tensors, coverage, _model(config.vision, config.text), _sam2_size(config.sam2))


def _qwen(path: Path) -> Report:
    vision, text = read_qwen(read_json_object(path / "config.json", COPY))
    tensors = read_weights(path).tensors
    expected = _names([*text_rules(text), *vision_rules(vision)])
    return _report(path, "qwen", tensors, _coverage(tensors, expected, text), _model(vision, text))


def _sam2(path: Path) -> Report:
    tensors = fresh.sam2_tensors(read_file(path))
    sizes = fresh.sam2_sizes(None, tensors, 768, path)
    coverage = Coverage.of(_shapes(tensors), dict.fromkeys(_names(sam2_rules(sizes))))
    return _report(path, "sam2", tensors, coverage, sam2=_sam2_size(sizes))


def _adapter(path: Path) -> Report:
    """Report on an adapter. Its tensors are all that it needs, so that none count as missing; the details say whether its base is there."""
    own = read_json_object(path / "config.json", COPY)
    base = find(own.get("base_model_path"), path)
    config = model_config(merged_config(read_json_object(base / "config.json", COPY) if base else {}, own), path)
    files = [path / name for name in (*ADAPTER_FILES, PARTIAL_FILE) if (path / name).is_file()]
    tensors = {name: tensor for file in files for name, tensor in read_file(file).items()}
    targets = dict.fromkeys(canonical(f"{name.partition('.lora_')[0]}.weight" if ".lora_" in name else name) for name in tensors)
    known = _names(all_rules(config)) | {HEAD}
    unexpected = tuple(name for name in targets if name not in known)
    details = {"base": f"{own.get('base_model_path')} ({'found' if base else 'not found; give it with to-jax --base DIR'})"}
    if (path / "adapter_config.json").is_file():
        options = read_json_object(path / "adapter_config.json", COPY)
        details["LoRA"] = f"rank {options.get('r')}, alpha {options.get('lora_alpha')}, on {sum('.lora_A.' in name for name in tensors)} weights"
    return _report(path, "adapter", tensors, Coverage((), unexpected, {}), _model(config.vision, config.text), _sam2_size(config.sam2), details)


def _jax(path: Path) -> Report:
    """Report on a converted directory, whose tensors are the stacked arrays under their paths."""
    manifest = Manifest.read(path)
    _, config = read_config(path)
    stored = read_arrays(path / PARAMS)
    arrays = {join(key): _Array(CODES.get(array.dtype, "I4"), math.prod(array.shape), array.nbytes) for key, array in stored.items()}
    expected = [rule.jax for rule in all_rules(config)]
    if config.quantisation is not None:
        expected += [scales_of(key) for key in expected if is_quantised(key)]
    coverage = Coverage.of({join(key): array.shape for key, array in stored.items()}, dict.fromkeys(map(join, expected)))
    origin = ", ".join(f"{key} {value}" for key, value in manifest.source.items() if value is not None)
    details = {"torch tensors": len(manifest.tensors), "made from": origin}
    return _report(path, "jax", arrays, coverage, _model(config.vision, config.text), _sam2_size(config.sam2), details)


def _report(
    path: Path,
    kind: str,
    tensors: Mapping[str, Tensor] | Mapping[str, _Array],
    coverage: Coverage,
    model: str | None = None,
    sam2: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> Report:
    dtypes = dict(Counter(tensor.dtype for tensor in tensors.values()))
    parameters, nbytes = (sum(getattr(tensor, name) for tensor in tensors.values()) for name in ("count", "nbytes"))
    return Report(str(path), kind, model, sam2, len(tensors), parameters, nbytes, dtypes, coverage.missing, coverage.unexpected, details or {})


def _names(rules: Iterable[Rule]) -> set[str]:
    return {name for rule in rules for name in rule.torch}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {canonical(name): tensor.shape for name, tensor in tensors.items()}


def _coverage(tensors: Mapping[str, Tensor], expected: set[str], text: TextConfig) -> Coverage:
    """Compare names with the expected ones; a tied head may be there as a copy."""
    found = _shapes(tensors)
    return Coverage.of({name: shape for name, shape in found.items() if not (name == HEAD and text.tie_word_embeddings)}, dict.fromkeys(sorted(expected)))


def _model(vision: VisionConfig, text: TextConfig) -> str:
    """Return the size in words, recognised by the widths and depths of a published model."""
    for name, preset in PRESETS.items():
        same_text = replace(preset.text, vocab_size=text.vocab_size) == text
        if same_text and preset.vision.out_hidden_size == vision.out_hidden_size and preset.vision.depth == vision.depth:
            return f"{name.upper()} (vocabulary {text.vocab_size})"
    return f"of its own size: {text.num_hidden_layers} layers of width {text.hidden_size}, vision {vision.depth} of {vision.hidden_size}"


def _sam2_size(sizes: Sam2Config) -> str:
    named = (name for name, published in SAM2_SIZES.items() if replace(published, image_size=sizes.image_size) == sizes)
    return next(named, f"of its own size: stages {sizes.stages} from width {sizes.embed_dim}")
