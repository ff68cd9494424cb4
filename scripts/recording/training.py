"""The reference's own training, on one sample whose frames move from step to step.

It uses the reference's trainer and groups of weights, and transformers' schedule and clipping.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .reference import RecordingError, Session

Tensors = dict[str, torch.Tensor]
PEFT = "base_model.model."
TUNING: Mapping[str, tuple[str, ...]] = {
    "embedding": ("embed_tokens", "lm_head"),
    "projector": ("visual.merger",),
    "ref": ("ref_proj", "tem_pe", "tem_emb", "tem_proj"),
    "ref_enc": ("ref_encoder",),
    "msk": ("msk_proj",),
    "seg": ("seg_head",),
    "sam2": ("sam2",),
}
"""The reference's tuning modules; each trains the parameters whose names contain one of its parts."""
SHIFT = 5
"""Pixels by which frames and masks move to the right from one step to the next; pixels that leave on the right come in on the left."""
CHANGES = 48
"""The most elements of a weight's change that are recorded, evenly spaced; the recorded norm is that of all elements."""


def train_module() -> ModuleType:
    """Import the reference's ``unipixel.train.train``.

    Its trainer has one line that only Python 3.12 or later can parse, with the same quotes inside an f-string as around it. These quotes are changed.
    """
    name = "unipixel.train.custom_trainer"
    if name not in sys.modules:
        path = Path(importlib.import_module("unipixel").__path__[0]) / "train" / "custom_trainer.py"
        module = ModuleType(name)
        source = path.read_text(encoding="utf-8").replace("s.get('meta', 'unknown')", 's.get("meta", "unknown")')
        exec(compile(source, str(path), "exec"), module.__dict__)
        sys.modules[name] = module
    return importlib.import_module("unipixel.train.train")


def sample(inputs: Tensors, batch: dict[str, Any], batch_mode: bool) -> dict[str, Any]:
    """Return the model's arguments for one training sample: the language model's ``batch``, one point, and frames with masks."""
    from unipixel.dataset.utils import build_obj_to_frame_idx

    return {
        **batch,
        "attention_mask": torch.ones_like(inputs["input_ids"]),
        "point_coords": [[inputs["point_coords"]]],
        "point_labels": [[inputs["point_labels"]]],
        "point_frames": [[inputs["point_frames"]]],
        "frames": [inputs["frames"]],
        "label_mask": [inputs["label_mask"]],
        "label_obj_to_frame_idx": [build_obj_to_frame_idx(inputs["label_mask"], batch_mode).to(inputs["label_mask"].device)],
    }


def train_steps(session: Session, inputs: Tensors, batch: dict[str, Any], case: dict[str, Any]) -> Tensors:
    """Run some steps of the reference's trainer on the weights that the case names, without dropout.

    The outputs are the loss of every step, the adapters' gradients of the first step, and norm and samples of every trained weight's change. The names of the
    trained weights, with learning rate and decay, are put into the case.
    """
    train = train_module()
    session.release()
    model, _ = session.model(train=True)
    model.config.sam2_batch_mode = False
    model.requires_grad_(False)
    if case["lora"]:
        model = _with_adapters(train, model, inputs, **case["lora"])
    for name, p in model.named_parameters():
        if any(part in name for key in case["tuning"] if key in TUNING for part in TUNING[key]):
            p.requires_grad_(True)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise RecordingError(f"the case {case['name']} trains nothing: {case['tuning']}")
    start = {name: p.detach().clone() for name, p in trained.items()}

    with torch.enable_grad():
        model(**sample(inputs, batch, False)).loss.backward()
        first = {name: p.grad.clone() for name, p in trained.items() if "lora_" in name}
        model.zero_grad(set_to_none=True)
        losses, optimizer = _run(train, model, [_moved(inputs, batch, step) for step in range(case["steps"])], case["optimizer"], session.device)

    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    names = {name: name.removeprefix(PEFT).replace(".default", "") for name in trained}
    case["trained"] = [[names[n], groups[p]["initial_lr"], groups[p]["weight_decay"]] for n, p in trained.items()]
    changes = {names[n]: compared(names[n], p.detach() - start[n]) for n, p in trained.items()}
    return {
        "losses": torch.tensor(losses, dtype=torch.float64).float(),
        **{f"grad.{names[name]}": grad for name, grad in first.items()},
        # on the CPU, since NPUs have few operations in float64
        "change_norms": torch.stack([change.cpu().double().norm().float() for change in changes.values()]),
        **{f"change.{name}": change.flatten()[:: -(-change.numel() // CHANGES)] for name, change in changes.items() if change.numel()},
    }


def compared(name: str, change: torch.Tensor) -> torch.Tensor:
    """Return a weight's change without the biases of SAM's keys.

    Attention without rope does not depend on them, so that their gradients are rounding errors, which Adam makes as large as any other gradient.
    """
    if "sam2" not in name or not name.endswith((".k_proj.bias", ".qkv.bias")):
        return change
    third = len(change) // 3
    return change[:0] if name.endswith(".k_proj.bias") else torch.cat([change[:third], change[2 * third :]])


def adapter_shapes(model: Any, rank: int) -> dict[str, tuple[int, int]]:
    """Return names and shapes of the LoRA matrices that the reference adds to a model."""
    wanted = train_module().get_target_modules(model, "qkvo_all", "qwen2_5_vl")
    linear = {name: module.weight.shape for name, module in model.named_modules() if name in wanted}
    shapes = {f"{name}.lora_A.weight": (rank, columns) for name, (_, columns) in linear.items()}
    return shapes | {f"{name}.lora_B.weight": (rows, rank) for name, (rows, _) in linear.items()}


def _with_adapters(train: ModuleType, model: Any, inputs: Tensors, rank: int, alpha: float) -> Any:
    """Return the model wrapped by peft, with the adapters of the inputs."""
    from peft import LoraConfig, get_peft_model

    targets = train.get_target_modules(model, "qkvo_all", "qwen2_5_vl")
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules=targets))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(inputs[f"lora.{name.removeprefix(PEFT).replace('.default', '')}"])
    return model


def _moved(inputs: Tensors, batch: dict[str, Any], step: int) -> dict[str, Any]:
    moved = {key: torch.roll(inputs[key], SHIFT * step, -1) for key in ("frames", "label_mask")}
    return sample(inputs | moved, batch, False)


def _run(train: ModuleType, model: Any, samples: list[dict[str, Any]], settings: Mapping[str, float], device: str) -> tuple[list[float], Any]:
    """Run the reference's trainer on samples in this order; return the loss of each step, and the optimizer."""
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback

    losses: list[float] = []

    class Filled(TrainerCallback):
        """Gives weights that took no part a gradient of zero, as ZeRO does in the reference's launch scripts; without one torch would not let them decay."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for p in kwargs["model"].parameters():
                if p.requires_grad and p.grad is None:
                    p.grad = torch.zeros_like(p)

    class Watched(train.CustomTrainer):  # type: ignore[name-defined, misc]
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
            return SequentialSampler(samples)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            losses.append(float(loss.detach()))
            return loss

    with tempfile.TemporaryDirectory() as folder:
        args = train.TrainingArguments(
            output_dir=folder, max_steps=len(samples), per_device_train_batch_size=1, lr_scheduler_type="cosine", save_strategy="no", report_to=[],
            disable_tqdm=True, logging_strategy="no", use_cpu=device == "cpu", group_by_data_type=False, dataloader_pin_memory=False, **settings,
        )  # fmt: skip
        trainer = Watched(model=model, args=args, train_dataset=samples, data_collator=lambda batch: dict(batch[0]), callbacks=[Filled()])
        trainer.train()
        return losses, trainer.optimizer.optimizer if hasattr(trainer.optimizer, "optimizer") else trainer.optimizer
