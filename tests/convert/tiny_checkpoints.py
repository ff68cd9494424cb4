"""Small checkpoints for the tests: torch directories, adapters, Qwen2.5-VL directories and SAM 2 files, made without torch."""

from __future__ import annotations

import json
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unipixel_jax.config import PRESETS, UniPixelConfig
from unipixel_jax.convert.safetensors_io import plan_shards, write_safetensors, write_shards
from unipixel_jax.convert.tables import all_rules
from unipixel_jax.convert.tensors import CODES, Tensor
from unipixel_jax.convert.to_jax import model_shapes
from unipixel_jax.convert.weights import read_weights

TINY = PRESETS["tiny"]
TIED = replace(TINY, text=replace(TINY.text, tie_word_embeddings=True))
SPECIAL = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")


def torch_shapes(config: UniPixelConfig) -> dict[str, tuple[int, ...]]:
    """Every torch tensor's name and shape."""
    shapes = model_shapes(config)
    return {name: shape for rule in all_rules(config) for name, shape in rule.torch_shapes(shapes[rule.jax]).items()}


def random_arrays(config: UniPixelConfig = TINY, dtype: Any = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under torch names."""
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape, np.float32).astype(dtype) for name, shape in torch_shapes(config).items()}


def as_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Arrays as tensors to write."""
    return {name: Tensor.computed(CODES[array.dtype], array.shape, lambda array=array: array) for name, array in arrays.items()}


def write_checkpoint(path: Path, arrays: Mapping[str, np.ndarray], config: UniPixelConfig = TINY, shard_bytes: int = 10**12) -> Path:
    """A UniPixel directory as the reference saves one."""
    path.mkdir(parents=True)
    tensors = as_tensors(arrays)
    write_shards(path, tensors, plan_shards({name: tensor.nbytes for name, tensor in tensors.items()}, shard_bytes), {})
    (path / "config.json").write_text(json.dumps(config.to_hf()))
    write_tokenizer(path, 508, ("<|ref|>", "<|seg|>", "<|mem|>"))
    (path / "preprocessor_config.json").write_text('{"patch_size": 14}')
    return path


def write_tokenizer(path: Path, count: int, added: tuple[str, ...]) -> None:
    """A tokenizer of `count` tokens, the added ones last and those of TINY's vision at their ids."""
    taken = {TINY.vision_start_token_id: SPECIAL[2], TINY.vision_end_token_id: SPECIAL[3], TINY.image_token_id: SPECIAL[0], TINY.video_token_id: SPECIAL[1]}
    taken |= {count - len(added) + i: token for i, token in enumerate(added)}
    vocabulary = {taken.get(i, f"word{i}"): i for i in range(count)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokens = [{"id": i, "content": token, **flags} for i, token in sorted(taken.items()) if i < count]
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "word0"}
    (path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": tokens, "model": model}))
    names = {"pad_token": "word1", "eos_token": "word2", "chat_template": "{{ messages }}"}
    (path / "tokenizer_config.json").write_text(json.dumps({**names, "additional_special_tokens": list(SPECIAL), "added_tokens_decoder": {}}))


def load(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a torch directory."""
    return {name: tensor.load() for name, tensor in read_weights(path).tensors.items()}


def same_bits(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    """The same names, dtypes, shapes and bytes."""
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and a[n].tobytes() == b[n].tobytes() for n in a)


def newer_name(name: str) -> str:
    """A saved checkpoint's name as it is in memory and in adapters."""
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def write_adapter(path: Path, base: Path, lora: Mapping[str, np.ndarray], partial: Mapping[str, np.ndarray], **options: Any) -> Path:
    """A LoRA directory as the reference's trainer writes one; `lora` has names that end in `.lora_A.weight` and `.lora_B.weight`."""
    path.mkdir(parents=True)
    raw = json.loads((base / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**raw, "base_model_path": str(base)}))
    if lora:
        write_safetensors(path / "adapter_model.safetensors", as_tensors(lora), {"format": "pt"})
        settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "use_dora": False, "init_lora_weights": True, **options}
        (path / "adapter_config.json").write_text(json.dumps(settings))
    if partial:
        write_safetensors(path / "pytorch_model.safetensors", as_tensors(partial), {})
    return path


def write_qwen(path: Path, arrays: Mapping[str, np.ndarray], config: UniPixelConfig, tokens: int) -> Path:
    """The Qwen2.5-VL part of a checkpoint, with a tokenizer of `tokens` tokens and without UniPixel's."""
    path.mkdir(parents=True)
    own = {name: array for name, array in arrays.items() if name.startswith(("model.", "visual.", "lm_head."))}
    write_safetensors(path / "model.safetensors", as_tensors(own), {"format": "pt"})
    raw = config.to_hf()
    kept = {key: value for key, value in raw.items() if not key.startswith(("sam2", "ref_", "seg_", "mem_"))}
    (path / "config.json").write_text(json.dumps({**kept, "model_type": "qwen2_5_vl"}))
    write_tokenizer(path, tokens, ())
    return path


def sam2_state(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """SAM 2's part of a checkpoint under the official names."""
    fuser = "memory_encoder.fuser.layers."
    names = {name: name.removeprefix("sam2.") for name in arrays if name.startswith("sam2.")}
    gamma = {name: own.replace(".weight", ".gamma") for name, own in names.items() if own.startswith(fuser) and own.count(".") == 4}
    return {own: arrays[name] for name, own in (names | gamma).items()}


class FakeTorch:
    """Stands in for torch while a file is pickled, so that the pickle names torch's own functions."""

    def __init__(self) -> None:
        self.modules: dict[str, types.ModuleType] = {}
        self.rebuild = self.function("torch._utils", "_rebuild_tensor_v2")
        self.rebuild_npu = self.function("torch_npu.utils.storage", "_rebuild_npu_tensor")
        self.npu_layout = self.function("torch_npu.npu._format", "Format")
        self.parameter = self.function("torch._utils", "_rebuild_parameter")
        self.storages = {name: self._class("torch", name) for name in ("FloatStorage", "HalfStorage", "BFloat16Storage", "LongStorage", "BoolStorage")}

    def function(self, module: str, name: str) -> Any:
        """A function of torch's or torch_npu's, by its name."""

        def function(*args: Any) -> None:
            raise AssertionError("only its name is pickled")

        function.__module__, function.__qualname__, function.__name__ = module, name, name
        self._module(module, **{name: function})
        return function

    def _class(self, module: str, name: str) -> type:
        made = type(name, (), {"__module__": module})
        self._module(module, **{name: made})
        return made

    def _module(self, path: str, **attributes: Any) -> None:
        """Put attributes into a module, which is made with the packages around it; pickle imports those first."""
        parts = path.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            self.modules.setdefault(name, types.ModuleType(name))
        vars(self.modules[path]).update(attributes)

    @contextmanager
    def installed(self) -> Any:
        """Put the stand-ins where pickle looks for them."""
        before = {name: sys.modules.get(name) for name in self.modules}
        sys.modules.update(self.modules)
        try:
            yield
        finally:
            for name, module in before.items():
                sys.modules.pop(name)
                if module is not None:
                    sys.modules[name] = module


class Call:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


class Storage:
    """Pickles as one of torch's storages."""

    def __init__(self, kind: str, data: bytes, location: str = "cpu") -> None:
        self.kind, self.data, self.location = kind, data, location


STORAGE_OF = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage", "int64": "LongStorage", "bool": "BoolStorage"}


def torch_tensor(fake: FakeTorch, array: np.ndarray, location: str = "cpu", npu: bool = False) -> Call:
    """An array as torch pickles a tensor of its own storage, on the CPU or on an Ascend NPU."""
    storage = Storage(STORAGE_OF[array.dtype.name], array.tobytes(), location)
    strides = tuple(step // array.itemsize for step in np.ascontiguousarray(array).strides) if array.ndim else ()
    if npu:
        return Call(fake.rebuild_npu, storage, 0, array.shape, strides, False, OrderedDict(), Call(fake.npu_layout, 2))
    return Call(fake.rebuild, storage, 0, array.shape, strides, False, OrderedDict())


def write_torch(path: Path, value: Any, fake: FakeTorch, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write a file as `torch.save` does, in its zip format (torch/serialization.py)."""
    storages: dict[int, Storage] = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: Any) -> Any:
            if not isinstance(item, Storage):
                return None
            storages[id(item)] = item
            return ("storage", fake.storages[item.kind], str(list(storages).index(id(item))), item.location, len(item.data))

    root = path.stem
    with zipfile.ZipFile(path, "w", compression) as archive, fake.installed():
        with archive.open(f"{root}/data.pkl", "w") as file:
            Pickler(file, 2).dump(value)
        archive.writestr(f"{root}/byteorder", b"little")
        for key, storage in enumerate(storages.values()):
            archive.writestr(f"{root}/data/{key}", storage.data)
    return path


def write_sam2(path: Path, arrays: Mapping[str, np.ndarray], npu: bool = False) -> Path:
    """An official SAM 2.1 file: a pickle with one key, `model`."""
    fake = FakeTorch()
    state = OrderedDict((name, torch_tensor(fake, array, "npu:0" if npu else "cpu", npu)) for name, array in sam2_state(arrays).items())
    return write_torch(path, {"model": state}, fake)
