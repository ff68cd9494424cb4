"""The runners of the kinds of cases, which compute a case's outputs from its inputs with the reference's own code.

Every runner takes the session, the inputs (tensors by name, on the session's device) and the case's entry of ``export.json``, and returns the outputs by
name. Recording and replaying use the same runners.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from . import training
from .reference import Session, quiet

Tensors = dict[str, torch.Tensor]
GREEDY: Mapping[str, Any] = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None, "repetition_penalty": None}
LARGEST_GRADIENT = 4096
"""Gradients with more elements than this are recorded by their norm alone."""
BATCH_KEYS = ("input_ids", "attention_mask", "labels", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts")


def vision(session: Session, inputs: Tensors, case: dict[str, Any]) -> Tensors:
    """Run the vision tower; return its embeddings, and the input of the merger's MLP in raster order and in the tower's window order."""
    visual = session.model()[0].model.visual
    embeds = visual(inputs["pixel_values"], grid_thw=inputs["grid_thw"])
    windowed = visual.merger.mlp.state
    order, _ = visual.get_window_index(inputs["grid_thw"])
    return {"embeds": embeds, "merger_input": windowed[torch.argsort(order.to(windowed.device))], "merger_input_window_order": windowed}


def text(session: Session, inputs: Tensors, case: dict[str, Any]) -> Tensors:
    """Run the language model alone, on right-padded rows."""
    model = session.model()[0]
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    return {"logits": logits, "hidden_before_norm": model.model.language_model.norm.state}


def multimodal(session: Session, inputs: Tensors, case: dict[str, Any]) -> Tensors:
    """Run one forward pass over a clip and text, with points, boxes and masks where the inputs have them, and with an adapter where the case names one."""
    model = session.model(case.get("adapter", "checkpoint"))[0]
    logits = model(**_batch(inputs)).logits
    hidden = model.model.language_model.norm.state
    seg_tokens = model.seg_head(hidden).unflatten(-1, (model.config.sam2_hidden_tokens, -1))
    position_ids, rope_deltas = _rope(model, inputs)
    return {"logits": logits, "hidden_before_norm": hidden, "seg_tokens": seg_tokens, "position_ids": position_ids, "rope_deltas": rope_deltas}


def rope_index(session: Session, inputs: Tensors, case: dict[str, Any]) -> Tensors:
    """Return the multimodal rope positions of an image with a clip, and of a clip alone (under names that end in ``_b``)."""
    outputs: Tensors = {}
    for end in ("", "_b"):
        found = _rope(session.model()[0], {key.removesuffix(end): value for key, value in inputs.items() if key.endswith("_b") == (end == "_b")})
        outputs[f"position_ids{end}"], outputs[f"rope_deltas{end}"] = found
    return outputs


def sam2_image(session: Session, inputs: Tensors, case: dict[str, Any]) -> Tensors:
    """Run SAM 2's image encoder; return three levels, the two finer ones after the decoder's 1x1 convolutions, and their position encodings."""
    out = session.model()[0].sam2.forward_image(inputs["frames"])
    levels = {f"fpn.{i}": level for i, level in enumerate(out["backbone_fpn"])}
    return levels | {f"pos.{i}": code[:1] for i, code in enumerate(out["vision_pos_enc"])}


def sam2_video(session: Session, inputs: Tensors, case: dict[str, Any]) -> Tensors:
    """Track one object through a clip from its hidden tokens."""
    return track(session.model()[0].sam2, inputs)


def track(sam2: Any, inputs: Tensors) -> Tensors:
    """Track one object with SAM 2's predictor; return logits, pointers and scores of each frame, memories of the first three frames, and masks."""
    state = sam2.init_state(inputs["frames"], tuple(inputs["frame_size"].tolist()))
    sam2.add_new_hidden_state(state, 0, 0, inputs["hidden"])
    masks = [logits[0, 0] > 0 for _, _, logits in sam2.propagate_in_video(state, verbose=False)]
    kept = state["output_dict_per_obj"][0]
    frames = [out for _, out in sorted((kept["cond_frame_outputs"] | kept["non_cond_frame_outputs"]).items())]
    return {
        "low_res_masks": torch.cat([out["pred_masks"] for out in frames], dim=1),
        "obj_ptr": torch.cat([out["obj_ptr"] for out in frames]),
        "object_score_logits": torch.cat([out["object_score_logits"] for out in frames]),
        "memory_features": torch.cat([out["maskmem_features"] for out in frames[:3]]),
        "masks": torch.stack(masks),
    }


def generate(session: Session, inputs: Tensors, case: dict[str, Any]) -> Tensors:
    """Generate greedily; return the tokens, and the masks of every ``<|seg|>``, those of the prompt first."""
    model, _ = session.model()
    return _generate(model, _batch(inputs), inputs["frames"], tuple(inputs["frame_size"].tolist()), case["max_new_tokens"])


def train_loss(session: Session, inputs: Tensors, case: dict[str, Any]) -> Tensors:
    """Return losses and gradients of one training step, with all parameters trained and without dropout."""
    model, _ = session.model(train=True)
    model.config.sam2_batch_mode = case["batch_mode"]
    seen: dict[str, Any] = {}
    language_loss = model.loss_function

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        seen["lm_loss"] = language_loss(*args, **kwargs)
        return seen["lm_loss"]

    model.loss_function = watched
    hook = model.loss_seg.register_forward_hook(lambda module, args, losses: seen.update(seg=losses))
    model.zero_grad(set_to_none=True)
    try:
        with torch.enable_grad():
            out = model(**training.sample(inputs, _batch(inputs), case["batch_mode"]))
            out.loss.backward()
    finally:
        hook.remove()
        model.loss_function = language_loss
    grads = dict(sorted((name, p.grad) for name, p in model.named_parameters() if p.grad is not None))
    case["grad_names"] = list(grads)
    outputs = {"loss": out.loss, "lm_loss": seen["lm_loss"], **{f"seg.{name}": torch.as_tensor(value) for name, value in seen["seg"].items()}}
    outputs |= {f"grad.{name}": grad for name, grad in grads.items() if grad.numel() <= LARGEST_GRADIENT}
    return outputs | {"grad_norms": torch.stack([grad.norm() for grad in grads.values()])}


def train_steps(session: Session, inputs: Tensors, case: dict[str, Any]) -> Tensors:
    """Return losses and changes of weights over some steps of training."""
    return training.train_steps(session, inputs, _batch(inputs), case)


def e2e(session: Session, inputs: Tensors, case: dict[str, Any]) -> Tensors:
    """Run the whole path from a media file to the answer, as the reference's scripts do (see ``read_media``); put the answer's text into the case."""
    model, processor = session.model()
    data, frames, size = read_media(session, case)
    out = _generate(model, {key: data[key].to(session.device) for key in BATCH_KEYS if key in data and key != "labels"}, frames, size, case["max_new_tokens"])
    answer = out["tokens"]
    if answer[-1] == processor.tokenizer.eos_token_id:
        answer = answer[:-1]
    case["response"] = processor.decode(answer, clean_up_tokenization_spaces=False)
    return out | {
        "video_grid_thw": data["video_grid_thw"],
        "pixel_values_videos_every_41st_row": data["pixel_values_videos"][::41],
        "frames_every_3rd": frames[::3],
    }


def read_media(session: Session, case: dict[str, Any]) -> tuple[Any, torch.Tensor, tuple[int, int]]:
    """Read the photo or folder of frames of an e2e case; return the processor's batch, SAM 2's frames [F, 3, S, S], and the frames' (height, width).

    SAM 2 gets the frames that the language model looks at, as in the reference's ``tools/inference.py``. In a case with ``every_frame`` it gets all frames
    of the folder, as in ``unipixel/eval/infer_seg.py``. The text of the chat template is put into the case.
    """
    from unipixel.dataset.utils import process_vision_info
    from unipixel.utils.io import load_frames, load_image, load_video
    from unipixel.utils.transforms import get_sam2_transform

    model, processor = session.model()
    path, most = session.folder / case["media"], case["sample_frames"]
    if case.get("every_frame"):
        frames, images, _ = load_frames([str(frame) for frame in sorted(path.iterdir())], sample_frames=most, sample_for_llm_only=True)
    else:
        frames, images = load_video(str(path), sample_frames=most) if path.is_dir() else (load_image(str(path)), [str(path)])
    budget = 28 * 28 * 256 * int(most / len(images))
    clip = {"type": "video", "video": images, "min_pixels": 128 * 28 * 28, "max_pixels": budget}
    messages = [{"role": "user", "content": [clip, {"type": "text", "text": case["prompt"]}]}]
    case["text"] = processor.apply_chat_template(messages, add_generation_prompt=True)
    stills, videos, extra = process_vision_info(messages, return_video_kwargs=True)
    data = processor(text=[case["text"]], images=stills, videos=videos, return_tensors="pt", **extra)
    squares = get_sam2_transform(model.config.sam2_image_size)(frames).to(model.sam2.dtype)
    return data, squares.to(session.device), tuple(frames.shape[1:3])


def smart_resize(session: Session, inputs: Tensors, case: dict[str, Any]) -> Tensors:
    """Return the sizes to which images are resized for the vision tower; rows of the input are (height, width, fewest pixels, most pixels)."""
    from unipixel.dataset import utils

    rows = inputs["hw_min_max"].tolist()
    return {"hw": torch.tensor([utils.smart_resize(height, width, 28, fewest, most) for height, width, fewest, most in rows])}


def chatml_labels(session: Session, inputs: Tensors, case: dict[str, Any]) -> Tensors:
    """Return the training labels of a conversation."""
    from unipixel.dataset.utils import preprocess

    return {"labels": preprocess(inputs["input_ids"].cpu(), case["text"], session.model()[1].tokenizer, "chatml")}


RUN: Mapping[str, Callable[[Session, Tensors, dict[str, Any]], Tensors]] = {
    f.__name__: f
    for f in (vision, text, multimodal, rope_index, sam2_image, sam2_video, generate, train_loss, train_steps, e2e, smart_resize, chatml_labels)
}
"""The runner of each kind of case."""


def run(session: Session, inputs: Tensors, case: dict[str, Any]) -> Tensors:
    """Run a case of any kind, and return its outputs on the CPU."""
    inputs = {name: value.to(session.device) for name, value in inputs.items()}
    with torch.no_grad(), quiet():
        outputs = RUN[case["kind"]](session, inputs, case)
    return {name: value.detach().cpu().clone().contiguous() for name, value in outputs.items()}


def _batch(inputs: Tensors) -> dict[str, Any]:
    """Return the model's arguments for a case's inputs. Numbered points become one list for the single sample of the batch."""
    batch: dict[str, Any] = {key: inputs[key] for key in BATCH_KEYS if key in inputs}
    if "point_coords.0" in inputs:
        count = sum(name.startswith("point_coords.") for name in inputs)
        for key in ("point_coords", "point_labels"):
            batch[key] = [[inputs[f"{key}.{i}"] for i in range(count)]]
        batch["point_frames"] = [[inputs["point_frames"]]]
    if "refer_mask" in inputs:
        batch["refer_mask"] = [inputs["refer_mask"]]
    return batch


def _rope(model: Any, inputs: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    keys = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    return model.model.get_rope_index(inputs["input_ids"], **{key: inputs[key] for key in keys if key in inputs})


def _generate(model: Any, batch: dict[str, Any], frames: torch.Tensor, size: tuple[int, int], max_new_tokens: int) -> Tensors:
    ids = model.generate(**batch, frames=[frames], frame_size=[size], **GREEDY, max_new_tokens=max_new_tokens)
    masks = torch.cat(model.seg) if model.seg else torch.zeros(0, len(frames), *size, dtype=torch.bool)
    return {"tokens": ids[0, batch["input_ids"].shape[1] :], "masks": masks}
