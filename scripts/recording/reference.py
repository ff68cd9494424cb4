"""The torch reference, loaded from a user's clone, with models for inference, for training and with an adapter."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from . import shims

BASE_SAM2 = "configs/sam2.1_hiera_b+"
TRUNK_SIZES = ("embed_dim", "num_heads", "stages", "global_att_blocks", "window_spec", "window_pos_embed_bkg_spatial_size")
_sizes: dict[str, Mapping[str, Any]] = {}


class RecordingError(Exception):
    """A request that cannot be met. Its text is shown to the user."""


def use_clone(clone: Path) -> None:
    """Make the clone importable, with stand-ins for what is not installed and SAM 2 sizes of our own (see `register_sam2`).

    Raises:
        RecordingError: the folder is not a clone of UniPixel, or a package that is really needed is missing.
    """
    if not (clone / "unipixel" / "model" / "qwen2_5_vl.py").is_file():
        raise RecordingError(f"{clone} is not a clone of UniPixel (no unipixel/model/qwen2_5_vl.py): git clone https://github.com/PolyU-ChenLab/UniPixel")
    shims.install()
    # the clone is only read, so no compiled files are left in it
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(clone.resolve()))
    try:
        module = importlib.import_module("unipixel.model.qwen2_5_vl")
    except ImportError as error:
        raise RecordingError(f"the reference does not import: {_first_cause(error)}; see docs/recording.md for what it needs") from error
    compose = module.compose

    def compose_sized(config_name: str, overrides: list[str]) -> Any:
        if config_name not in _sizes:
            return compose(config_name=config_name, overrides=overrides)
        return compose(config_name=BASE_SAM2, overrides=sam2_overrides(_sizes[config_name]) + overrides)

    module.compose = compose_sized


def _first_cause(error: BaseException) -> BaseException:
    """Return the error from which others were raised: transformers names the class that it cannot import, and only this one the package that is missing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def register_sam2(name: str, sizes: Mapping[str, Any]) -> None:
    """Let ``sam2_config: name`` stand for a SAM 2.1 with these sizes, which replace those in the clone's own base+ file."""
    _sizes[name] = sizes


def sam2_overrides(sizes: Mapping[str, Any]) -> list[str]:
    """Return hydra's overrides that give a SAM 2.1 base+ file these sizes, but for the image size."""
    width, memory, grid = sizes["d_model"], sizes["mem_dim"], sizes["image_size"] // 16
    attention = {"embedding_dim": width, "feat_sizes": [grid, grid]}
    values = {
        **{f"image_encoder.trunk.{key}": sizes[key] for key in TRUNK_SIZES},
        "image_encoder.neck.d_model": width,
        "image_encoder.neck.position_encoding.num_pos_feats": width,
        "image_encoder.neck.backbone_channel_list": [sizes["embed_dim"] * 2**i for i in reversed(range(len(sizes["stages"])))],
        "memory_attention.d_model": width,
        "memory_attention.num_layers": sizes["memory_attention_layers"],
        "memory_attention.layer.d_model": width,
        "memory_attention.layer.dim_feedforward": sizes["memory_attention_ffn_dim"],
        **{f"memory_attention.layer.self_attention.{k}": v for k, v in attention.items()},
        **{f"memory_attention.layer.cross_attention.{k}": v for k, v in attention.items()},
        "memory_attention.layer.cross_attention.kv_in_dim": memory,
        "memory_encoder.in_dim": width,
        "memory_encoder.out_dim": memory,
        "memory_encoder.position_encoding.num_pos_feats": memory,
        "memory_encoder.mask_downsampler.embed_dim": width,
        "memory_encoder.fuser.layer.dim": width,
        "memory_encoder.fuser.num_layers": sizes["fuser_layers"],
        "num_maskmem": sizes["num_maskmem"],
    }
    return [f"++model.{key}={str(value).replace(' ', '')}" for key, value in values.items()]


def prepare_device(device: str) -> None:
    """Import the packages that the device needs, and forbid reduced precision in float32 arithmetic (TF32, HF32).

    Raises:
        RecordingError: torch finds no such device, or a package is missing.
    """
    if device == "npu":
        try:
            importlib.import_module("torch_npu")
        except ImportError as error:
            raise RecordingError(f"--device npu needs the package torch_npu: {error}") from error
    if device != "cpu" and not getattr(torch, device).is_available():
        raise RecordingError(f"--device {device}: torch {torch.__version__} finds no such device; use --device cpu or install the matching torch")
    if device == "npu":  # after the question above: in some versions of torch_npu settings fail without a device, and do not say why
        torch.npu.matmul.allow_hf32 = False
        torch.npu.conv.allow_hf32 = False
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the reference's own print statements off the screen."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def read_config(folder: Path) -> Any:
    """Return the reference's configuration of a checkpoint or adapter folder; register its SAM 2 sizes, and make a relative path of a base absolute."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    base = getattr(config, "base_model_path", None)
    if base is not None and (folder / "adapter_model.safetensors").is_file() and (folder / base).is_dir():
        config.base_model_path = str((folder / base).resolve())
        read_config(folder / base)
    if getattr(config, "sam2_model", None) is not None:
        register_sam2(config.sam2_config, config.sam2_model)
    return config


def build(folder: Path, *, device: str, dtype: str, attention: str, train: bool = False) -> tuple[Any, Any]:
    """Load the reference's model and processor from a checkpoint or adapter folder, by its own ``build_model``.

    For training, the model is in training mode and all parameters require gradients, but there is no dropout of any kind, so that losses can be compared.

    Raises:
        RecordingError: the reference fails to load it, for whatever reason.
    """
    builder = importlib.import_module("unipixel.model.builder")
    builder.AutoProcessor = SimpleNamespace(from_pretrained=_processor)
    try:
        with quiet():
            model, processor = builder.build_model(
                str(folder), config=read_config(folder), is_trainable=train, attn_implementation=attention, device=device, dtype=dtype
            )
    except Exception as error:
        raise RecordingError(f"the reference cannot load {folder}: {type(error).__name__}: {str(error).strip().splitlines()[0]}") from error
    if train:
        model = model.to(device).train().requires_grad_(True)
        for module in model.modules():
            for name in ("p", "drop_prob", "dropout_p"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
    return model, processor


def _processor(folder: str, **kwargs: Any) -> Any:
    """Load the processor of a folder.

    A folder without settings of the video processor gets one with the usual settings and its own tokenizer, and one without tokenizer has its base's.
    """
    from transformers import AutoConfig, AutoProcessor, AutoTokenizer, Qwen2VLImageProcessorFast
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    here = Path(folder)
    if not here.is_dir() or (here / "video_preprocessor_config.json").is_file():
        return AutoProcessor.from_pretrained(folder, **kwargs)
    if not (here / "tokenizer_config.json").is_file():
        return _processor(str(here / AutoConfig.from_pretrained(folder).base_model_path), **kwargs)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    make = importlib.import_module("unipixel.model").MODELS["qwen2_5_vl"][2]
    readers = (Qwen2VLImageProcessorFast(do_resize=False), tokenizer, Qwen2VLVideoProcessor(do_resize=False))
    return make(*readers, chat_template=tokenizer.chat_template)


def loading_faults(folder: Path) -> dict[str, list[str]]:
    """Return what the reference finds wrong with a checkpoint folder; all lists are empty if it loads in full.

    Returns:
        The names of missing, unexpected and misshapen tensors, and error messages.
    """
    builder = importlib.import_module("unipixel.model.builder")
    found: dict[str, list[str]] = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
    original = builder.AutoModel

    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        # build_model accepts tensors of another shape; here they are listed as faults
        model, info = original.from_pretrained(*args, **kwargs | {"ignore_mismatched_sizes": True}, output_loading_info=True)
        for key in found:
            found[key] += [str(name) for name in info[key]]
        return model

    builder.AutoModel = SimpleNamespace(from_pretrained=from_pretrained)
    try:
        build(folder, device="cpu", dtype="auto", attention="sdpa")
    finally:
        builder.AutoModel = original
    return found


@dataclass
class Session:
    """The models of one recording, of which only one is in memory at a time.

    Attributes:
        folder: the recording, with ``checkpoint/``, ``adapter/`` and ``media/`` in it.
        device, dtype, attention: torch's device, dtype and attention implementation with which the reference computes.
    """

    folder: Path
    device: str
    dtype: str
    attention: str
    _held: tuple[str, Any, Any] = field(default=("", None, None))

    @property
    def torch_dtype(self) -> torch.dtype:
        """The model's dtype as torch's object."""
        return getattr(torch, self.dtype)

    def release(self) -> None:
        """Free the model that is in memory."""
        self._held = ("", None, None)
        gc.collect()

    def model(self, part: str = "checkpoint", train: bool = False) -> tuple[Any, Any]:
        """Return the model and processor of ``checkpoint`` or of an adapter folder of the recording."""
        key = f"{part}{' for training' if train else ''}"
        if self._held[0] != key:
            self.release()
            model, processor = build(self.folder / part, device=self.device, dtype=self.dtype, attention=self.attention, train=train)
            self._held = (key, model, processor)
        return self._held[1], self._held[2]
