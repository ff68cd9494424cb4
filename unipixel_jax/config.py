"""Sizes of every part of UniPixel, as frozen dataclasses, with exact reading and writing of the reference's ``config.json``.

Source of the fields: transformers' ``Qwen2_5_VLConfig`` and UniPixel's ``unipixel/model/qwen2_5_vl.py``; SAM 2.1's sizes are those of the four
published files ``sam2.1_hiera_{t,s,b+,l}.yaml``.
"""

from __future__ import annotations

import dataclasses
import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from unipixel_jax.core.fields import Checked, ConfigError, number, numbers
from unipixel_jax.core.files import read_json_object
from unipixel_jax.core.quantisation import Quantisation

DTYPES = ("bfloat16", "float16", "float32", "float64")
"""The dtypes in which torch keeps weights."""

UNKNOWN_LENGTH = 1 << 30
"""The ``clip_length`` of a stream, which is expected to have at least 16 frames."""

_T = TypeVar("_T")

_WIDTH = 65_536
"""The widest layer that is accepted; the largest published Qwen2.5-VL, of 72 billion parameters, has 29,568 features at most."""

_IDS = (1 << 24) - 1
"""The largest token id that is accepted."""

_LAYERS = 1024
"""The most layers that are accepted; the largest published Qwen2.5-VL has 80."""

_PIXELS = 1024
"""The largest side of SAM's square input: the one that SAM 2.1 itself was trained at. The time that it takes grows with the fourth power of the side."""

_GLOBAL = "the map must have at most 64 x 64 places where all of it is attended to"


@dataclass(frozen=True)
class VisionConfig(Checked):
    """Qwen2.5-VL's vision tower. ``window_size`` is in pixels; ``fullatt_block_indexes`` are the blocks that attend over a whole frame."""

    depth: int = number(32, _LAYERS)
    hidden_size: int = number(1280, _WIDTH)
    intermediate_size: int = number(3420, _WIDTH)
    num_heads: int = number(16, _WIDTH)
    out_hidden_size: int = number(2048, _WIDTH)
    in_channels: int = number(3, 3, 3)
    patch_size: int = number(14, 256)
    temporal_patch_size: int = number(2, 2, 2)
    spatial_merge_size: int = number(2, 16)
    window_size: int = number(112, 65_536)
    fullatt_block_indexes: tuple[int, ...] = numbers((7, 15, 23, 31), _LAYERS - 1, (0, _LAYERS), 0)
    tokens_per_second: float = number(2, 1000, 1e-3)

    PLACE = "vision_config"

    def rules(self) -> list[tuple[bool, str]]:
        """Return, for each rule over several fields, whether it holds and the message for where it does not."""
        merge = self.patch_size * self.spatial_merge_size
        return [
            (self.hidden_size % (4 * self.num_heads) == 0, f"hidden_size {self.hidden_size} must be a multiple of 4 for each of {self.num_heads} heads"),
            (self.window_size >= merge, f"window_size {self.window_size} must hold at least one token of {merge} pixels"),
            (max(self.fullatt_block_indexes, default=0) < self.depth, f"fullatt_block_indexes must lie below depth {self.depth}"),
        ]

    @property
    def patch_dim(self) -> int:
        """The number of values in one flattened patch: channels x frames x height x width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merge_unit(self) -> int:
        """The number of patches that become one token."""
        return self.spatial_merge_size**2

    @property
    def window_patches(self) -> int:
        """Patches of a window that no edge cuts off."""
        return (self.window_size // self.merge_size) ** 2 * self.merge_unit

    @property
    def merge_size(self) -> int:
        """The side in pixels of the square that becomes one token."""
        return self.patch_size * self.spatial_merge_size

    @property
    def merge_dim(self) -> int:
        """The width of the merger's input, which holds the features of one token's patches side by side."""
        return self.hidden_size * self.merge_unit


@dataclass(frozen=True)
class TextConfig(Checked):
    """Qwen2.5's decoder. ``mrope_section`` splits the rotary pairs of a head over time, height and width."""

    vocab_size: int = number(151668, 1 << 24)
    hidden_size: int = number(2048, _WIDTH)
    intermediate_size: int = number(11008, _WIDTH)
    num_hidden_layers: int = number(36, _LAYERS)
    num_attention_heads: int = number(16, _WIDTH)
    num_key_value_heads: int = number(2, _WIDTH)
    rms_norm_eps: float = number(1e-6, 1, 1e-12)
    rope_theta: float = number(1e6, 1e12)
    mrope_section: tuple[int, int, int] = numbers((16, 24, 24), _WIDTH, (3, 3))
    tie_word_embeddings: bool = True

    PLACE = "text_config"

    def rules(self) -> list[tuple[bool, str]]:
        """Return, for each rule over several fields, whether it holds and the message for where it does not."""
        width, heads, shared = self.hidden_size, self.num_attention_heads, self.num_key_value_heads
        return [
            (width % (2 * heads) == 0, f"hidden_size {width} must be a multiple of 2 for each of {heads} attention heads"),
            (heads % shared == 0, f"num_attention_heads {heads} must be a multiple of num_key_value_heads {shared}"),
            (2 * heads * sum(self.mrope_section) == width, f"mrope_section {self.mrope_section} must sum to half of a head's {width / heads:g} features"),
        ]

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class Sam2Config(Checked):
    """SAM 2.1 with the settings that UniPixel fixes (multimask on every frame, object scores, pointers with projected time codes).

    ``image_size`` is the side of the square input in pixels; the feature grid has a stride of 16.
    """

    image_size: int = number(768, _PIXELS, 32)
    embed_dim: int = number(112, 4096)
    num_heads: int = number(2, 4096)
    stages: tuple[int, ...] = numbers((2, 3, 16, 3), 128, (4, 4))
    global_att_blocks: tuple[int, ...] = numbers((12, 16, 20), 511, (0, 512), 0)
    window_spec: tuple[int, ...] = numbers((8, 4, 14, 7), 64, (4, 4))
    window_pos_embed_bkg_spatial_size: tuple[int, int] = numbers((14, 14), 256, (2, 2))
    d_model: int = number(256, 4096)
    mem_dim: int = number(64, 4096)
    memory_attention_layers: int = number(4, 128)
    memory_attention_ffn_dim: int = number(2048, _WIDTH)
    fuser_layers: int = number(2, 128)
    num_maskmem: int = number(7, 32, 2)

    PLACE = "sam2_model"

    def rules(self) -> list[tuple[bool, str]]:
        """Return, for each rule over several fields, whether it holds and the message for where it does not."""
        blocks = sum(self.stages)
        first = sum(count for stage, count in enumerate(self.stages) if self.image_size > 256 * 2**stage)
        return [
            (self.image_size % 32 == 0, f"image_size {self.image_size} must be a multiple of 32, the stride of the last stage"),
            (self.embed_dim % self.num_heads == 0, f"embed_dim {self.embed_dim} must be a multiple of num_heads {self.num_heads}"),
            (all(first <= n < blocks for n in self.global_att_blocks), f"global_att_blocks must lie within {first} and {blocks - 1}: {_GLOBAL}"),
            (self.d_model % 8 == 0, f"d_model {self.d_model} must be a multiple of 8"),
            (self.mem_dim % 4 == 0 and self.d_model % self.mem_dim == 0, f"mem_dim {self.mem_dim} must be a multiple of 4 and divide d_model {self.d_model}"),
        ]

    @property
    def grid(self) -> int:
        """Side of the feature grid on which memory and the mask decoder work."""
        return self.image_size // 16

    @property
    def low_res(self) -> int:
        """Side of the mask decoder's output."""
        return self.image_size // 4

    @property
    def stage_dims(self) -> tuple[int, ...]:
        """Width of each of Hiera's stages."""
        return tuple(self.embed_dim * 2**i for i in range(len(self.stages)))

    @property
    def stage_heads(self) -> tuple[int, ...]:
        """Heads of each of Hiera's stages."""
        return tuple(self.num_heads * 2**i for i in range(len(self.stages)))


SAM2_SIZES: Mapping[str, Sam2Config] = {
    "tiny": Sam2Config(embed_dim=96, num_heads=1, stages=(1, 2, 7, 2), global_att_blocks=(5, 7, 9), window_pos_embed_bkg_spatial_size=(7, 7)),
    "small": Sam2Config(embed_dim=96, num_heads=1, stages=(1, 2, 11, 2), global_att_blocks=(7, 10, 13), window_pos_embed_bkg_spatial_size=(7, 7)),
    "base_plus": Sam2Config(),
    "large": Sam2Config(
        embed_dim=144, num_heads=2, stages=(2, 6, 36, 4), global_att_blocks=(23, 33, 43), window_spec=(8, 4, 16, 8), window_pos_embed_bkg_spatial_size=(7, 7)
    ),
}
"""SAM 2.1's four published sizes at UniPixel's 768 pixels."""

_SAM2_FILES = {"sam2.1_hiera_t": "tiny", "sam2.1_hiera_s": "small", "sam2.1_hiera_b+": "base_plus", "sam2.1_hiera_l": "large"}


@dataclass(frozen=True)
class UniPixelConfig(Checked):
    """The whole model: sizes, the ids of the tokens with a meaning of their own, and the reference's switches.

    Attributes:
        vision: the vision tower.
        text: the language model.
        sam2: SAM 2.1.
        sam2_config: the reference's name of SAM's configuration, which a torch checkpoint keeps.
        sam2_hidden_tokens: number of prompt tokens that ``seg_head`` makes for each ``<|seg|>``.
        sam2_batch_mode: segment every frame by itself instead of tracking.
        sample_objects: the most objects of a training sample that are segmented; -1 for all.
        dtype: dtype of the checkpoint's weights.
        quantisation: how the language model's weights are quantised; None for full weights.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    sam2: Sam2Config = field(default_factory=Sam2Config)
    sam2_config: str = "configs/sam2.1_hiera_b+"
    sam2_hidden_tokens: int = number(2, 64)
    sam2_batch_mode: bool = False
    sample_objects: int = number(-1, 1 << 20, -1)
    image_token_id: int = number(151655, _IDS, 0)
    video_token_id: int = number(151656, _IDS, 0)
    vision_start_token_id: int = number(151652, _IDS, 0)
    vision_end_token_id: int = number(151653, _IDS, 0)
    ref_token_id: int = number(151665, _IDS, 0)
    seg_token_id: int = number(151666, _IDS, 0)
    mem_token_id: int = number(151667, _IDS, 0)
    dtype: str = "bfloat16"
    quantisation: Quantisation | None = None

    def rules(self) -> list[tuple[bool, str]]:
        """Return, for each rule over several fields, whether it holds and the message for where it does not."""
        rows, width = self.text.vocab_size, self.text.hidden_size
        ids = {name: getattr(self, name) for name in vars(self) if name.endswith("_token_id")}
        group = self.quantisation.group if self.quantisation else None
        return [
            *[(group is None or size % group == 0, f"groups of {group} weights do not divide the {name} {size} of the language model: use a group that does")
              for name, size in (("hidden_size", width), ("intermediate_size", self.text.intermediate_size))],
            (self.dtype in DTYPES, f"torch_dtype {self.dtype[:40]!r} must be one of {', '.join(DTYPES)}"),
            (self.vision.out_hidden_size == width, f"vision_config.out_hidden_size {self.vision.out_hidden_size} must be text_config.hidden_size {width}"),
            *[(token < rows, f"{name} is {token}, but the embedding has {rows} rows (vocab_size): expected the config of these weights")
              for name, token in ids.items()],
        ]

    @classmethod
    def from_directory(cls, directory: str | Path) -> UniPixelConfig:
        """Read the ``config.json`` of a checkpoint or a converted directory.

        Raises:
            UserError: the file is missing or is no JSON object, or ``from_hf`` refuses it.
        """
        return cls.from_hf(read_json_object(Path(directory) / "config.json", "copy it again, or convert the checkpoint again"))

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> UniPixelConfig:
        """Read the dictionary of a ``config.json``, whether the text fields lie in ``text_config`` or (older files) at the top.

        Raises:
            ConfigError: the file is another model's, or a key is missing or contradicts another.
        """
        kind = raw.get("model_type")
        if kind != "pixel_qwen2_5_vl":
            raise ConfigError(f'model_type is {reprlib.repr(kind)}, expected "pixel_qwen2_5_vl": this is not a UniPixel checkpoint')
        vision, text = read_qwen(raw)
        known = {f.name for f in dataclasses.fields(cls)} - {"vision", "text", "sam2", "dtype", "quantisation"}
        missing = [k for k in ("ref_token_id", "seg_token_id", "mem_token_id", "sam2_config") if raw.get(k) is None]
        if missing:
            raise ConfigError(f"config.json lacks {', '.join(missing)}: expected a checkpoint saved by UniPixel's trainer")
        values = {k: raw[k] for k in known if raw.get(k) is not None}
        dtype = raw.get("torch_dtype") or raw.get("dtype") or "bfloat16"
        return cls(vision=vision, text=text, sam2=read_sam2(raw), dtype=dtype, quantisation=Quantisation.read(raw), **values)

    def to_hf(self) -> dict[str, Any]:
        """Return the dictionary that transformers 4.53 and the reference read back as this configuration."""
        text = dataclasses.asdict(self.text)
        section = text.pop("mrope_section")
        layers = self.text.num_hidden_layers
        text |= {
            "model_type": "qwen2_5_vl_text",
            "hidden_act": "silu",
            "layer_types": ["full_attention"] * layers,
            "max_position_embeddings": 128000,
            "rope_scaling": {"mrope_section": list(section), "rope_type": "default", "type": "default"},
            "use_sliding_window": False,
        }
        vision = dataclasses.asdict(self.vision)
        vision |= {"model_type": "qwen2_5_vl", "hidden_act": "silu", "in_chans": self.vision.in_channels, "spatial_patch_size": self.vision.patch_size}
        top = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("vision", "text", "sam2", "dtype", "quantisation")}
        out: dict[str, Any] = {
            "architectures": ["PixelQwen2_5_VLForConditionalGeneration"],
            "model_type": "pixel_qwen2_5_vl",
            "hidden_size": self.text.hidden_size,
            "vocab_size": self.text.vocab_size,
            "tie_word_embeddings": self.text.tie_word_embeddings,
            "torch_dtype": self.dtype,
            "sam2_image_size": self.sam2.image_size,
            "sam2_checkpoint": None,
            "sam2_apply_postprocessing": False,
            "sam2_enable_decoder": True,
            "sam2_inference_mode": True,
            "text_config": text,
            "vision_config": vision,
            **top,
        }
        if _SAM2_FILES.get(Path(self.sam2_config).name) is None:
            out["sam2_model"] = dataclasses.asdict(self.sam2)
        if self.quantisation is not None:
            out |= self.quantisation.written()
        return json.loads(json.dumps(out))


def read_qwen(raw: Mapping[str, Any]) -> tuple[VisionConfig, TextConfig]:
    """Read the sizes of vision tower and language model from a ``config.json`` of Qwen2.5-VL or UniPixel.

    Raises:
        ConfigError: a key is missing, or asks for a feature that Qwen2.5-VL's releases do not use (sliding windows, other rotary scalings).
    """
    vision = raw.get("vision_config")
    if not isinstance(vision, Mapping):
        raise ConfigError("config.json lacks vision_config: expected a Qwen2.5-VL or UniPixel checkpoint")
    nested = raw.get("text_config") or {}
    if not isinstance(nested, Mapping):
        raise ConfigError(f"text_config is {reprlib.repr(nested)}, expected an object")
    text = {**raw, **nested}
    scaling = text.get("rope_scaling") or text.get("rope_parameters") or {}
    if not isinstance(scaling, Mapping) or scaling.get("rope_type", scaling.get("type", "default")) not in ("default", "mrope"):
        raise ConfigError(f"rope_scaling is {reprlib.repr(scaling)}, expected the default type with an mrope_section")
    if text.get("use_sliding_window"):
        raise ConfigError("use_sliding_window is true; Qwen2.5-VL's releases attend over the whole sequence, and so does this port")
    merged = {**text, "mrope_section": scaling.get("mrope_section"), "tie_word_embeddings": text.get("tie_word_embeddings", False)}
    merged.setdefault("rope_theta", scaling.get("rope_theta", 1e6))
    vision = {"in_channels": vision.get("in_chans", 3), **vision}
    return _build(VisionConfig, vision, "vision_config"), _build(TextConfig, merged, "text_config")


def read_sam2(raw: Mapping[str, Any]) -> Sam2Config:
    """Return SAM 2's sizes: ``sam2_model`` of a ``config.json``, or else the published size that its ``sam2_config`` names.

    Raises:
        ConfigError: a size is missing or impossible, or no published size has that name.
    """
    if "sam2_model" in raw:
        return _build(Sam2Config, raw["sam2_model"], "sam2_model")
    name = str(raw["sam2_config"]).rsplit("/", 1)[-1].removesuffix(".yaml")
    if name not in _SAM2_FILES:
        raise ConfigError(f"sam2_config is {reprlib.repr(raw['sam2_config'])}, expected one of {', '.join(_SAM2_FILES)}, or sizes under sam2_model")
    return dataclasses.replace(SAM2_SIZES[_SAM2_FILES[name]], image_size=raw.get("sam2_image_size", 768))


def _build(cls: type[_T], values: Any, where: str) -> _T:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} is {reprlib.repr(values)}, expected an object")
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    missing = [n for n in names if values.get(n) is None]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")
    return cls(**{n: tuple(values[n]) if isinstance(values[n], list) else values[n] for n in names})


def preset(name: str) -> UniPixelConfig:
    """Return one of the configurations ``3b``, ``7b`` (the published models) and ``tiny`` (for tests and demonstrations).

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}, expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


PRESETS: Mapping[str, UniPixelConfig] = {
    "3b": UniPixelConfig(),
    "7b": UniPixelConfig(
        vision=VisionConfig(out_hidden_size=3584),
        text=TextConfig(
            hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, tie_word_embeddings=False
        ),
    ),
    "tiny": UniPixelConfig(
        vision=VisionConfig(depth=3, hidden_size=48, intermediate_size=96, num_heads=4, out_hidden_size=64, window_size=56, fullatt_block_indexes=(1,)),
        text=TextConfig(
            vocab_size=512, hidden_size=64, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, mrope_section=(2, 3, 3),
            tie_word_embeddings=False,
        ),
        sam2=Sam2Config(
            image_size=128, embed_dim=16, num_heads=1, stages=(1, 2, 3, 1), global_att_blocks=(4,), window_pos_embed_bkg_spatial_size=(7, 7), d_model=32,
            mem_dim=16, memory_attention_layers=2, memory_attention_ffn_dim=64,
        ),
        sam2_config="configs/tiny",
        image_token_id=500, video_token_id=501, vision_start_token_id=498, vision_end_token_id=499, ref_token_id=505, seg_token_id=506, mem_token_id=507,
        dtype="float32",
    ),
}
