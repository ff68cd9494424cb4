"""Tiny random UniPixel checkpoints and adapters, saved as the reference saves its own."""

from __future__ import annotations

import importlib
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .cases import Plan
from .kinds import track
from .reference import RecordingError, Session, quiet, register_sam2
from .weights import random_value

PRESETS = Path(__file__).parent / "presets"
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_pad|>",
    "<|object_ref_start|>", "<|object_ref_end|>", "<|ref|>", "<|seg|>", "<|mem|>",
)  # fmt: skip
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% elif c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SUBJECTS = ("the red circle", "a blue square", "every green triangle", "the person on the left", "my dog", "the tallest giraffe", "two small boats")
_VERBS = ("moves behind", "is next to", "stands in front of", "follows", "carries", "looks at", "leaves")
_REQUESTS = ("Please segment", "Where is", "Describe", "Why can we see", "How many frames show", "Provide the segmentation mask of")


def read_spec(name: str) -> dict[str, Any]:
    """Read the specification of a preset or a JSON file: ``text``, ``vision``, ``sam2``, ``vocab_size``, ``hidden_tokens``, ``tied`` and ``plan``.

    Raises:
        RecordingError: there is no such file, or it has other keys.
    """
    path = PRESETS / f"{name}.json"
    path = path if path.is_file() else Path(name)
    try:
        spec = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.json")))
        raise RecordingError(f"--tiny {name} is neither a preset ({known}) nor a readable JSON file: {error}") from error
    if set(spec) != {"text", "vision", "sam2", "vocab_size", "hidden_tokens", "tied", "plan"}:
        raise RecordingError(f"--tiny {name} has the keys {', '.join(sorted(spec))}; see the presets for those expected")
    return spec


def save_checkpoint(folder: Path, spec: dict[str, Any], name: str, dtype: str, seed: int) -> None:
    """Save a random model of these sizes with its tokenizer and processor, as the reference would; ``name`` names its SAM 2 configuration."""
    tokenizer = _tokenizer()
    config = _config(spec, tokenizer, name, dtype)
    register_sam2(config.sam2_config, spec["sam2"])
    with quiet():
        model = importlib.import_module("unipixel.model").MODELS["qwen2_5_vl"][1](config)
    randomise(model, seed)
    save(folder, model.to(getattr(torch, dtype)), _processor(tokenizer), spec["sam2"])


def save(folder: Path, model: Any, processor: Any, sam2: dict[str, Any]) -> None:
    """Save a model and processor, with SAM 2's sizes in plain numbers under ``sam2_model``."""
    model.config.sam2_model = sam2
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@torch.no_grad()
def randomise(model: Any, seed: int) -> None:
    """Fill every parameter and buffer of a state dict at random: linear layers keep the scale of their input, norms lie near 1, and nothing stays zero."""
    rng = torch.Generator().manual_seed(seed)
    done: set[int] = set()
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.data_ptr() in done:
            continue
        done.add(tensor.data_ptr())
        noise = torch.randn(tensor.shape, generator=rng)
        # of both signs: with a positive norm and a tied head, the likeliest token would always be the input token itself
        value = noise if tied and name.endswith("language_model.norm.weight") else random_value(name, noise)
        tensor.copy_(value)


@torch.no_grad()
def calibrate(session: Session, dtype: str, prompts: list[dict[str, Any]], clips: list[dict[str, torch.Tensor]]) -> None:
    """Change the random model so that its recording covers segmentation and absent objects, and save it again in ``dtype``.

    A random model hardly ever generates ``<|seg|>``, and finds an object in all frames or in none. So the head's row for ``<|seg|>`` is chosen to have the
    highest logit at one position of each prompt, and the object score's last bias so that the object is found in some of the clips' frames only.

    Args:
        session: a float32 session; its checkpoint is changed.
        dtype: the dtype in which the checkpoint is saved.
        prompts: arguments for the model's ``generate``; none may hold ``<|seg|>``.
        clips: ``frames``, ``hidden`` and ``frame_size`` of tracked clips.
    """
    model, processor = session.model()
    seg = model.config.seg_token_id
    row = model.lm_head.weight[seg]
    row.zero_()
    states, heights = [], []
    for place, prompt in enumerate(prompts):
        step = 1 + place % 2
        ids = model.generate(**prompt, do_sample=False, max_new_tokens=step)
        out = model(**prompt | {"input_ids": ids}, output_hidden_states=True)
        states.append(out.hidden_states[-1][0, -12:].float().cpu())
        heights.append(torch.zeros(12))
        heights[-1][-1] = 1.1 * out.logits[0, -1].float().max() + 0.5
    # the smallest row with the highest logit at the last position, and a logit of zero at the eleven positions before it; on the CPU, since the
    # inverse takes operations that NPUs lack, some of them in float64
    row.copy_(torch.linalg.pinv(torch.cat(states)) @ torch.cat(heights))

    bias = model.sam2.sam_mask_decoder.pred_obj_score_head.layers[-1].bias
    start, scores = bias.clone(), _scores(model.sam2, clips).sort().values
    best = (0.0, start)
    for low, high in sorted(itertools.pairwise(scores.tolist()), key=lambda pair: pair[0] - pair[1])[:8]:
        bias.copy_(start - (low + high) / 2)
        # memory depends on whether the object was absent before, so the bias does more than shift the scores
        found = _scores(model.sam2, clips)
        margin = float(found.abs().min()) if 0.15 < float((found <= 0).float().mean()) < 0.85 else 0.0
        if margin > best[0]:
            best = (margin, bias.clone())
    bias.copy_(best[1])
    save(session.folder / "checkpoint", model.to(getattr(torch, dtype)), processor, model.config.sam2_model)


def save_adapter(session: Session, seed: int) -> None:
    """Save a random LoRA adapter of rank 4 on every attention projection of both Qwen parts, with a partial file of other trained tensors beside it.

    The partial file keeps to tensors of at most 2**20 elements.
    """
    from peft import LoraConfig, get_peft_model

    model, processor = session.model()
    folder = session.folder / "adapter"
    ends = ("q_proj", "k_proj", "v_proj", "o_proj", "attn.qkv", "attn.proj")
    targets = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "sam2" not in name and name.endswith(ends)]
    config = model.config
    lora = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=0.0, target_modules=targets))
    rng = torch.Generator().manual_seed(seed)
    trained = ("embed_tokens", "lm_head", "ref_proj", "tem_emb", "tem_proj", "msk_proj", "seg_head", "sam2.no_obj_ptr")
    partial = {}
    with torch.no_grad():
        for name, p in lora.named_parameters():
            noise = torch.randn(p.shape, generator=rng)
            if "lora_" in name:
                p.copy_(noise / 5)
            elif any(part in name for part in trained) and p.numel() <= 2**20:
                partial[name] = (p.detach().cpu().float() + noise * p.detach().cpu().float().std(correction=0)).to(p.dtype)
    lora.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    save_file(partial, folder / "pytorch_model.safetensors")
    adapter = json.loads((folder / "adapter_config.json").read_text())
    adapter |= {"base_model_name_or_path": "../checkpoint", "target_modules": sorted(adapter["target_modules"])}
    (folder / "adapter_config.json").write_text(json.dumps(adapter, indent=1))
    config.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | {"base_model_path": "../checkpoint"}, indent=1))
    processor.save_pretrained(folder)


def plan_of(spec: dict[str, Any]) -> Plan:
    """Return the plan of a specification."""
    plan = {key: tuple(value) if isinstance(value, list) else value for key, value in spec["plan"].items()}
    if "clips" in plan:
        plan["clips"] = {name: (count, tuple(size) if size else None) for name, (count, size) in plan["clips"].items()}
    try:
        return Plan(**plan)
    except TypeError as error:
        raise RecordingError(f"the specification's plan is not understood: {error}; see the presets") from error


def _scores(sam2: Any, clips: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Return the object scores of all frames of all clips, as one flat tensor."""
    return torch.cat([track(sam2, clip)["object_score_logits"].flatten().float() for clip in clips])


def _config(spec: dict[str, Any], tokenizer: Any, name: str, dtype: str) -> Any:
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    text = spec["text"] | {"vocab_size": spec["vocab_size"], "tie_word_embeddings": spec["tied"]}
    return importlib.import_module("unipixel.model").MODELS["qwen2_5_vl"][0](
        text_config=text,
        vision_config=spec["vision"] | {"out_hidden_size": text["hidden_size"]},
        hidden_size=text["hidden_size"],
        vocab_size=spec["vocab_size"],
        tie_word_embeddings=spec["tied"],
        torch_dtype=dtype,
        **{f"{key}_token_id": ids[f"<|{token}|>"] for key, token in (
            ("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"), ("vision_end", "vision_end"),
            ("ref", "ref"), ("seg", "seg"), ("mem", "mem"),
        )},
        sam2_config=f"configs/{name}",
        sam2_checkpoint=None,
        sam2_image_size=spec["sam2"]["image_size"],
        sam2_hidden_tokens=spec["hidden_tokens"],
        sam2_batch_mode=False,
        sam2_apply_postprocessing=False,
        sam2_enable_decoder=True,
        sam2_inference_mode=True,
        sample_objects=-1,
    )  # fmt: skip


def _tokenizer() -> Any:
    """Return a byte-level tokenizer with Qwen's special tokens, whose merges are learnt from made-up sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2TokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sentences = [f"{ask} {a} that {verb} {b}? It is {a}." for ask, a, verb, b in itertools.product(_REQUESTS, _SUBJECTS, _VERBS, _SUBJECTS)]
    trainer = trainers.BpeTrainer(vocab_size=440, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    return Qwen2TokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token=None, additional_special_tokens=list(SPECIAL[1:]),
        model_max_length=131072, chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def _processor(tokenizer: Any) -> Any:
    from transformers import Qwen2VLImageProcessorFast
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    make = importlib.import_module("unipixel.model").MODELS["qwen2_5_vl"][2]
    return make(Qwen2VLImageProcessorFast(do_resize=False), tokenizer, Qwen2VLVideoProcessor(do_resize=False), chat_template=CHAT_TEMPLATE)
