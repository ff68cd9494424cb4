"""The torch reference of SAM 2.1, loaded from a user's clone of facebookresearch/sam2, with tiny random weights."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .reference import RecordingError, sam2_overrides
from .tiny import PRESETS
from .weights import random_value

YAML = "configs/sam2.1/sam2.1_hiera_b+.yaml"
"""The reference's own description of the base+ model, whose sizes are replaced."""
CHECKPOINT = "sam2.pt"
STABLE = 0.98
"""The stability score from which a single mask is kept (``dynamic_multimask_stability_thresh`` in the reference's build_sam.py)."""
DELTA = 0.05
"""The logit by which the stability score raises and lowers the threshold of a mask (``dynamic_multimask_stability_delta``)."""
MARGIN = 1e-4
"""How far a decision of the decoder must be from tipping over, in logits, scores and IoUs: rounding moves them by less than a tenth of it."""


def use_clone(clone: Path) -> None:
    """Make the clone importable.

    Raises:
        RecordingError: the folder is no clone of facebookresearch/sam2, or a package that it needs is missing.
    """
    if not (clone / "sam2" / "sam2_video_predictor.py").is_file():
        raise RecordingError(f"{clone} is not a clone of SAM 2 (no sam2/sam2_video_predictor.py): git clone https://github.com/facebookresearch/sam2")
    # the clone is only read, so no compiled files are left in it
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(clone.resolve()))
    try:
        importlib.import_module("sam2.sam2_image_predictor")
        video = importlib.import_module("sam2.sam2_video_predictor")
    except ImportError as error:
        raise RecordingError(f"the reference does not import: {error}; see docs/sam2.md for what it needs") from error
    video.torch = _Float32Storage()  # type: ignore[attr-defined]
    video.tqdm = lambda frames, **_: frames  # type: ignore[attr-defined]


class _Float32Storage:
    """torch as the video predictor sees it, but for ``torch.bfloat16``, to which it casts memory features to store them: here they stay float32."""

    bfloat16 = torch.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def read_sizes(name: str) -> dict[str, Any]:
    """Read the sizes of a model, in plain numbers, from a preset or a JSON file.

    Raises:
        RecordingError: there is no such file.
    """
    path = PRESETS / f"{name}.json"
    try:
        return json.loads((path if path.is_file() else Path(name)).read_text())
    except (OSError, ValueError) as error:
        raise RecordingError(f"--sizes {name} is neither a preset nor a JSON file: {error}") from error


def build(sizes: Mapping[str, Any], checkpoint: Path | None, settings: Mapping[str, bool] = {}) -> Any:
    """Return the video predictor that the reference's ``build_sam2_video_predictor`` makes for SAM 2.1, with these sizes. It serves images too.

    Holes are not filled (``fill_hole_area``), since that needs the reference's CUDA extension, without which the reference skips it too.

    Args:
        sizes: the sizes in plain numbers.
        checkpoint: the weights; None for those of torch's initialisers.
        settings: further arguments of ``SAM2VideoPredictor``.
    """
    own = [f"++model.image_size={sizes['image_size']}", *(f"++model.{key}={str(value).lower()}" for key, value in settings.items())]
    made = importlib.import_module("sam2.build_sam").build_sam2_video_predictor(
        YAML, None if checkpoint is None else str(checkpoint), device="cpu", hydra_overrides_extra=sam2_overrides(sizes) + own
    )
    made.fill_hole_area = 0
    return made


def image_predictor(model: Any) -> Any:
    """Return the reference's image predictor for a model, whose feature maps need not have the sides of the published sizes."""
    predictor = importlib.import_module("sam2.sam2_image_predictor").SAM2ImagePredictor(model)
    predictor._bb_feat_sizes = [(model.image_size // stride,) * 2 for stride in (4, 8, 16)]
    return predictor


@torch.no_grad()
def randomise(model: Any, seed: int) -> None:
    """Fill every parameter and buffer of the state dict at random."""
    rng = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(model.state_dict().items()):
        value = random_value(name, torch.randn(tensor.shape, generator=rng))
        # what an object's memory says must show in its masks, or objects would soon be tracked alike
        strong = "memory_attention" in name and name.endswith("cross_attn_image.out_proj.weight")
        tensor.copy_(1.5 * value if strong else value)


def save(model: Any, sizes: Mapping[str, Any], folder: Path) -> None:
    """Save weights as the published ones are, and the sizes beside them. Weights are rounded to float16, which halves the file."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": {name: tensor.half() for name, tensor in model.state_dict().items()}}, folder / CHECKPOINT)
    (folder / "config.json").write_text(json.dumps({"sam2_model": sizes}, indent=1) + "\n")


@dataclass
class Decodings:
    """The outputs of the mask decoder for each prompt, gathered while it was watched.

    Attributes:
        masks: [4, 4g, 4g] logits, those of the single mask first.
        ious: [4] the predicted IoUs of the single mask and of the three others.
        scores: the object scores.
    """

    masks: list[torch.Tensor] = field(default_factory=list)
    ious: list[torch.Tensor] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def near(self) -> int:
        """Return how many decisions rounding may change: the presence of an object, the best of three masks, and the stability of a single mask."""
        count = sum(abs(score) < MARGIN for score in self.scores)
        count += sum(first - second < MARGIN for first, second in (iou[1:].topk(2).values.tolist() for iou in self.ious))
        return count + sum((stability(mask, MARGIN) >= STABLE) != (stability(mask, -MARGIN) >= STABLE) for mask, *_ in self.masks)

    def __str__(self) -> str:
        """Return the decisions in numbers."""
        present, stable = sum(score > 0 for score in self.scores), sum(stability(mask) >= STABLE for mask, *_ in self.masks)
        best = [sum(int(iou[1:].argmax()) == token for iou in self.ious) for token in range(3)]
        positive = float(torch.stack([(mask > 0).float().mean() for mask in self.masks]).mean())
        return f"{len(self.scores)} decodings, {present} present, {stable} stable, best of three {best}, {positive:.0%} of the pixels positive"


@contextmanager
def watched(model: Any) -> Iterator[Decodings]:
    """Yield what the model's mask decoder computes until the end of the context."""
    decoder, decodings = model.sam_mask_decoder, Decodings()
    predict = decoder.predict_masks

    def watching(**inputs: Any) -> Any:
        masks, ious, _, scores = out = predict(**inputs)
        decodings.masks += masks.clone().unbind()
        decodings.ious += ious.clone().unbind()
        decodings.scores += scores.flatten().tolist()
        return out

    decoder.predict_masks = watching
    try:
        yield decodings
    finally:
        del decoder.predict_masks


def stability(mask: torch.Tensor, error: float = 0.0) -> float:
    """Return the stability score of a mask in the worst case of an error of its logits (in the best case, if it is negative)."""
    inner, outer = (mask > DELTA + error).sum(), (mask > -DELTA - error).sum()
    return float(inner / outer) if outer > 0 else 1.0
