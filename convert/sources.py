"""Sources of a conversion, opened as one set of tensors under canonical names. Only headers are read here, apart from tied heads, which are compared."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unipixel_jax.config import Sam2Config, UniPixelConfig, read_qwen
from unipixel_jax.core.files import read_json_object
from unipixel_jax.errors import UserError

from . import fresh, lora, tokens
from .hf_config import COPY, QWEN, UNIPIXEL, json_bytes, merged_config, model_config, read_config
from .manifest import Manifest
from .names import canonical, renamed
from .tensors import Tensor
from .weights import Weights, read_file, read_weights

EMBEDDING, HEAD = fresh.EMBEDDINGS

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
PARTIAL_FILE = "pytorch_model.safetensors"


@dataclass(frozen=True)
class Source:
    """A whole model to convert.

    Attributes:
        config: the model's sizes.
        config_json: the content of the `config.json` to write, verbatim where the source has one.
        tensors: all of the model's weights under canonical names, without a tied head.
        companions: directories whose tokenizer and processor files belong to the model; a later one wins.
        inputs: all files and directories that are read, which the output may not replace.
        new_tokens: whether UniPixel's tokens must still be appended to those tokenizer files.
        description: where the model comes from, for the manifest.
        weights: names and files of the source's tensors, to be restored by the conversion back; None where the source is a merge.
        tied: the name under which the source holds a copy of the embedding as its head; None where it holds none.
    """

    config: UniPixelConfig
    config_json: bytes
    tensors: dict[str, Tensor]
    companions: tuple[Path, ...]
    inputs: tuple[Path, ...]
    description: dict[str, Any]
    new_tokens: bool = False
    weights: Weights | None = None
    tied: str | None = None


def identify(path: Path) -> str:
    """Return the kind of what lies at `path`: unipixel, adapter (LoRA or partial), qwen, jax, or sam2 (a file).

    Raises:
        UserError: nothing is there, or something else.
    """
    if path.is_file():
        return "sam2"
    if not path.is_dir():
        raise UserError(f"{path} does not exist; expected a checkpoint directory or a SAM 2 file")
    if (path / "manifest.json").is_file():
        return "jax"
    if any((path / name).is_file() for name in (*ADAPTER_FILES, PARTIAL_FILE)):
        return "adapter"
    if not (path / "config.json").is_file():
        raise UserError(f"{path} has neither config.json nor manifest.json: it is no checkpoint directory, or an incomplete one")
    kind = read_json_object(path / "config.json", COPY).get("model_type")
    if kind in (QWEN, UNIPIXEL):
        return "qwen" if kind == QWEN else "unipixel"
    raise UserError(f"{path} is a checkpoint of another model (model_type {kind!r}); expected UniPixel's ({UNIPIXEL!r}) or Qwen2.5-VL's ({QWEN!r})")


def find(place: Any, directory: Path) -> Path | None:
    """Return a path that a config.json names, as it is or relative to the directory of that file; None if nothing is there."""
    candidates = [directory / place, Path(place)] if place and isinstance(place, str) else []
    return next((path.resolve() for path in candidates if os.path.exists(path)), None)


def open_source(path: Path, base: Path | None = None, sam2: Path | None = None, seed: int = 0, partials: Sequence[Path] = ()) -> Source:
    """Open the checkpoint, or the adapter with its base, that lies at `path`, with weights replaced by those of partial files.

    A converted directory is a source too, but only with partial files; without them there is nothing to convert.

    Args:
        path: the directory to open.
        base: see `open_adapter`.
        sam2: see `open_adapter`.
        seed: see `open_adapter`.
        partials: see `with_partials`.

    Raises:
        UserError: nothing of this kind is at `path`, or `open_checkpoint`, `open_adapter` or `with_partials` refuses it.
    """
    return with_partials(_open_whole(path, base, sam2, seed, bool(partials)), partials)


def _open_whole(path: Path, base: Path | None, sam2: Path | None, seed: int, partial: bool) -> Source:
    kind = identify(path)
    if kind == "adapter":
        return open_adapter(path, base, sam2, seed)
    if base or sam2:
        raise UserError(f"{path} is no adapter; --base and --sam2 belong to adapters, and --sam2 to a fresh start with --qwen")
    if kind == "jax" and not partial:
        raise UserError(f"{path} is converted already; use it as it is, go back with to-torch, or lay files over it with --partial")
    if kind == "jax":
        return open_converted(path)
    if kind == "sam2":
        raise UserError(f"{path} is a file; expected a checkpoint directory. To assemble a fresh UniPixel: to-jax --qwen DIR --sam2 {path} DST")
    return open_checkpoint(path)


def open_checkpoint(directory: Path) -> Source:
    """Open a UniPixel checkpoint as the reference saves one, under older or newer names.

    Raises:
        UserError: the checkpoint is another model's, files are damaged, or a tied head differs from the embedding.
    """
    _, config = read_config(directory)
    weights = read_weights(directory)
    tensors, tied = _without_tied_head(renamed(weights.tensors, directory), config, directory)
    own_head = next((name for name in weights.tensors if canonical(name) == HEAD), None) if tied else None
    description = {"kind": "checkpoint", "path": str(directory)}
    raw = (directory / "config.json").read_bytes()
    return Source(config, raw, tensors, (directory,), (directory,), description, weights=weights, tied=own_head)


def open_converted(directory: Path) -> Source:
    """Open a converted directory, described by what it was made from. Each tensor is compared with its checksum when it is read.

    Raises:
        UserError: the directory is no converted directory, or is damaged.
    """
    from .converted import read_converted  # imported here: `inspect` opens no such directory, and must not wait for jax

    _, config = read_config(directory)
    manifest = Manifest.read(directory)
    tensors = read_converted(directory, config, manifest)
    return Source(config, (directory / "config.json").read_bytes(), tensors, (directory,), (directory,), dict(manifest.source))


def with_partials(source: Source, paths: Sequence[Path]) -> Source:
    """Return a source with weights replaced by those of partial files; a later file wins (unipixel/train/train.py, `partial_checkpoint`).

    Args:
        source: the whole model.
        paths: safetensors files, or directories with `pytorch_model.safetensors`, as a stage of training without LoRA leaves them.

    Raises:
        UserError: a file is missing, belongs to an adapter, or holds tensors that the model does not have.
    """
    tensors, overlaid = source.tensors, list(source.description.get("overlaid", []))
    for path in paths:
        file = path / PARTIAL_FILE if path.is_dir() else path
        beside = [name for name in ADAPTER_FILES if (file.parent / name).is_file()]
        if beside:
            raise UserError(f"{file} belongs to the LoRA adapter {beside[0]} beside it; convert {file.parent} itself, which merges both into their base")
        partial, _ = _without_tied_head(renamed(read_file(file), file), source.config, file)
        tensors = _overlaid(tensors, partial, file)
        overlaid += [name for name in partial if name not in overlaid]
    if not paths:
        return source
    description = {**source.description, "partial": [*source.description.get("partial", []), *map(str, paths)], "overlaid": overlaid}
    return replace(source, tensors=tensors, inputs=(*source.inputs, *paths), description=description)


def open_fresh(qwen: Path, sam2: Path, size: str | None, image_size: int, seed: int, hidden_tokens: int = 2) -> Source:
    """Open a fresh UniPixel from a Qwen2.5-VL directory and an official SAM 2.1 file (see `fresh.assemble`).

    Args:
        qwen: the Qwen2.5-VL directory.
        sam2: the SAM 2.1 file.
        size: one of the published sizes, or a JSON file with the fields of Sam2Config; None to see it from the weights.
        image_size: side of SAM 2's square input in pixels.
        seed: seed of the new layers' random weights.
        hidden_tokens: the number of prompt tokens that the segmentation head makes for each `<|seg|>`.

    Raises:
        UserError: the directory is another model's, files are damaged, or SAM 2's size cannot be seen.
    """
    raw = read_json_object(qwen / "config.json", COPY)
    if raw.get("model_type") != QWEN:
        raise UserError(f"{qwen} has model_type {raw.get('model_type')!r}, expected a plain Qwen2.5-VL ({QWEN!r}) for --qwen")
    memory = fresh.sam2_tensors(read_file(sam2))
    sizes = fresh.sam2_sizes(size, memory, image_size, sam2)
    ids, count = tokens.token_ids(qwen)
    new = [token for token in tokens.NEW_TOKENS if token not in ids]
    ids |= {token: max(ids.values()) + 1 + i for i, token in enumerate(new)}
    config, raw_config = _fresh_config(raw, sizes, ids, count + len(new), hidden_tokens)
    base = renamed(read_weights(qwen).tensors, qwen)
    base, _ = _without_tied_head(base, config, qwen)
    tensors = fresh.assemble(base, memory, config, len(new), seed)
    description = {"kind": "fresh", "qwen": str(qwen), "sam2": str(sam2), "seed": seed}
    return Source(config, raw_config, tensors, (qwen,), (qwen, sam2), description, new_tokens=True)


def open_adapter(directory: Path, base: Path | None, sam2: Path | None, seed: int) -> Source:
    """Open a LoRA or partial directory with its base, merged in the reference's order: base, SAM 2, adapter, partial file, merge (unipixel/model/builder.py).

    Args:
        directory: holds `adapter_model` with `adapter_config.json`, or `pytorch_model.safetensors`, or both.
        base: the base model, of torch or converted; None to take `base_model_path` of the directory's `config.json`, as it is or relative to the directory.
        sam2: a SAM 2 file that replaces the base's weights; None to take `sam2_checkpoint` of the directory's `config.json`, if it exists.
        seed: seed of the layers that must be initialised where the base is a plain Qwen2.5-VL.

    Raises:
        UserError: the base is missing, files are damaged, the adapter has options that are not merged, or holds tensors that the base does not have.
    """
    own = read_json_object(directory / "config.json", COPY)
    base = base or find(own.get("base_model_path"), directory)
    if base is None:
        raise UserError(f"{directory} was trained on {own.get('base_model_path')!r}, which is not there; give its place with --base DIR")
    sam2 = sam2 or find(own.get("sam2_checkpoint"), directory)
    memory = fresh.sam2_tensors(read_file(sam2)) if sam2 else {}
    raw = merged_config(read_json_object(base / "config.json", COPY), own)
    config = model_config(raw, directory)
    kind = identify(base)
    tensors = open_converted(base).tensors if kind == "jax" else renamed(read_weights(base).tensors, base)
    if kind == "qwen":
        new = len(tokens.token_ids(directory)[0].keys() - tokens.token_ids(base)[0].keys())
        tensors, _ = _without_tied_head(tensors, config, base)
        tensors = fresh.assemble(tensors, memory, config, new, seed)
    else:
        tensors, _ = _without_tied_head(tensors, config, base)
    tensors = _overlaid(tensors, memory, sam2)

    adapter = next((path for path in (directory / name for name in ADAPTER_FILES) if path.is_file()), None)
    merge = lora.Adapter({}, {}, {})
    if adapter:
        merge = lora.read_adapter(read_file(adapter), read_json_object(directory / "adapter_config.json", COPY), directory)
    tensors = _overlaid(tensors, merge.rest, adapter)
    if (directory / PARTIAL_FILE).is_file():
        partial, _ = _without_tied_head(renamed(read_file(directory / PARTIAL_FILE), directory), config, directory)
        tensors = _overlaid(tensors, partial, directory / PARTIAL_FILE)
    unknown = [name for name in merge.pairs if name not in tensors]
    if unknown:
        raise UserError(f"{directory} adapts {len(unknown)} weights that {base} does not have: {', '.join(unknown[:20])}; give the right base with --base DIR")
    tensors |= {name: lora.merged(tensors[name], pair, merge.scales[name], name) for name, pair in merge.pairs.items()}
    description = {"kind": "adapter", "path": str(directory), "base": str(base), "sam2": str(sam2) if sam2 else None, "lora": len(merge.pairs)}
    inputs = (directory, base, *([sam2] if sam2 else []))
    return Source(config, json_bytes(raw), tensors, (base, directory), inputs, description)


def _overlaid(tensors: Mapping[str, Tensor], new: Mapping[str, Tensor], where: Path | None) -> dict[str, Tensor]:
    """Return `tensors` with those of `new` in their places, cast to the dtypes of `tensors`, as torch's `load_state_dict` does."""
    unknown = [name for name in new if name not in tensors]
    if unknown:
        raise UserError(f"{where} holds {len(unknown)} tensors that the base does not have: {', '.join(unknown[:20])}; choose the base that it was trained on")
    return {**tensors, **{name: tensor.cast(tensors[name].dtype) for name, tensor in new.items()}}


def _without_tied_head(tensors: dict[str, Tensor], config: UniPixelConfig, where: Path) -> tuple[dict[str, Tensor], bool]:
    """Return the tensors without a head that config.json ties to the embedding, and whether there was one."""
    if not config.text.tie_word_embeddings or HEAD not in tensors or EMBEDDING not in tensors:
        return tensors, False
    head, embedding = tensors[HEAD], tensors[EMBEDDING]
    if (head.dtype, head.shape) != (embedding.dtype, embedding.shape) or _digest(head) != _digest(embedding):
        raise UserError(f"{where} ties {HEAD} to {EMBEDDING} (tie_word_embeddings in config.json), but the two differ; set it to false to keep both")
    return {name: tensor for name, tensor in tensors.items() if name != HEAD}, True


def _digest(tensor: Tensor) -> bytes:
    digest = hashlib.sha256()
    for block in tensor.blocks():
        digest.update(block)
    return digest.digest()


def _fresh_config(raw: dict[str, Any], sizes: Sam2Config, ids: Mapping[str, int], count: int, hidden_tokens: int) -> tuple[UniPixelConfig, bytes]:
    """Return the configuration that the reference's training would write. The vocabulary grows only if the tokenizer has more tokens."""
    vision, text = read_qwen(raw)
    named: dict[str, Any] = {f"{key}_token_id": ids[f"<|{key}|>"] for key in ("ref", "seg", "mem")}
    named |= {key: raw[key] for key in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id") if key in raw}
    config = UniPixelConfig(
        vision=vision,
        text=replace(text, vocab_size=max(text.vocab_size, count)),
        sam2=sizes,
        sam2_config=fresh.sam2_config_name(sizes),
        sam2_hidden_tokens=hidden_tokens,
        dtype=raw.get("torch_dtype") or raw.get("dtype") or "bfloat16",
        **named,
    )
    written = config.to_hf()
    written["text_config"] |= {**(raw.get("text_config") or {}), "vocab_size": config.text.vocab_size}
    written["vision_config"] |= raw["vision_config"]
    return config, json_bytes({**raw, **written})
