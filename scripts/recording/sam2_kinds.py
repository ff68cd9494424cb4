"""The cases of a SAM 2 recording, computed by the reference's image predictor and video predictor."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from . import sam2_scenes as scenes
from .sam2_model import image_predictor

Tensors = dict[str, torch.Tensor]
WITH_VIDEO = 6
"""Clips of at most this many frames are recorded in their own size too."""
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def prompts(model: Any, seed: int) -> tuple[dict[str, Any], Tensors, Tensors]:
    """Ask the image predictor about a picture; return the case's entry, its inputs and its outputs.

    Inputs: picture [h, w, 3] uint8; frames [1, 3, S, S], the same as the model reads it; mask_input.I [1, 4g, 4g] of question I. Outputs of question I:
    I.low_res [N, M, 4g, 4g] logits within -32 and 32, I.iou [N, M], I.masks [N, M, h, w] booleans, I.object_score [N].
    """
    picture = scenes.picture(seed)
    predictor = image_predictor(model)
    predictor.set_image(picture)
    inputs = {"picture": torch.tensor(picture), "frames": predictor._transforms(picture)[None]}
    outputs: Tensors = {}
    asked: list[dict[str, Any]] = []
    for prompt in scenes.prompts():
        kinds = [prompt["multimask"]] if "multimask" in prompt else [True, False]
        for multimask in kinds:
            asked.append(prompt | {"multimask": multimask})
    for number, question in enumerate(asked):
        given: dict[str, Any] = {"multimask_output": question["multimask"]}
        if "points" in question:
            given |= {"point_coords": np.array(question["points"], np.float32), "point_labels": np.array(question["labels"])}
        if "box" in question:
            given["box"] = np.array(question["box"], np.float32)
        if "mask_input" in question:
            name = f"mask_input.{number}"
            inputs[name] = outputs[f"{question['mask_input']}.low_res"][0, :1].clone()
            given["mask_input"] = inputs[name].numpy()
            question["mask_input"] = name
        scores = _scores(model)
        masks, iou, low_res = predictor.predict(**given)
        model.sam_mask_decoder._forward_hooks.clear()
        one = masks.ndim == 3
        found = {"low_res": low_res, "iou": iou, "masks": masks.astype(bool)}
        outputs |= {f"{number}.{name}": torch.tensor(value[None] if one else value) for name, value in found.items()}
        outputs[f"{number}.object_score"] = scores[0][:, 0].clone()
    return {"name": "sam2_prompts", "kind": "sam2_prompts", "questions": asked}, inputs, outputs


def _scores(model: Any) -> list[torch.Tensor]:
    """Return a list to which the mask decoder's next object scores [N, 1] are added."""
    found: list[torch.Tensor] = []
    model.sam_mask_decoder.register_forward_hook(lambda _module, _inputs, out: found.append(out[3]))
    return found


def session(model: Any, name: str, script: dict[str, Any], seed: int) -> tuple[dict[str, Any], Tensors, Tensors]:
    """Track objects in a clip as a user's actions say; return the case's entry, its inputs and its outputs.

    Inputs: squares [F, S, S, 3] uint8, which divided by 255 and normalised are what the model reads; frame_size (h, w); video [F, h, w, 3] uint8, of short
    clips; mask.I [h, w] of action I. Outputs of action I, whose objects are in the order of I.objects:

    - ``add``: I.masks [O, h, w] booleans of all objects on that frame; of the object added to, I.low_res [4g, 4g], I.score scalar, I.pointer [D].
    - ``propagate``: I.frames [n] in the order of tracking; I.low_res [n, O, 4g, 4g], I.scores [n, O], I.pointers [n, O, D], I.masks [n, O, h, w].
    - ``remove``: I.objects.
    """
    with tempfile.TemporaryDirectory() as folder:
        for number, frame in enumerate(scenes.clip(seed, script["frames"])):
            Image.fromarray(frame).save(Path(folder) / f"{number}.jpg", quality=95)
        video = np.stack([np.asarray(Image.open(Path(folder) / f"{number}.jpg").convert("RGB")) for number in range(script["frames"])])
        state = model.init_state(folder)
    squares = state["images"].permute(0, 2, 3, 1).double().numpy() * STD + MEAN
    inputs = {"squares": torch.tensor((squares * 255).round().astype(np.uint8)), "frame_size": torch.tensor(video.shape[1:3])}
    if script["frames"] <= WITH_VIDEO:
        inputs["video"] = torch.tensor(video)
    outputs: Tensors = {}
    actions = []
    for number, action in enumerate(script["actions"]):
        action = dict(action)
        if "mask" in action:
            inputs[f"mask.{number}"] = torch.tensor(scenes.ellipse(action["mask"]))
            action["mask"] = f"mask.{number}"
        done = {"add": _add, "propagate": _propagate, "remove": _remove}[action["do"]](model, state, action, inputs)
        outputs |= {f"{number}.{key}": value for key, value in done.items()} | {f"{number}.objects": torch.tensor(state["obj_ids"])}
        actions.append(action)
    return {"name": name, "kind": "sam2_session", "settings": script["settings"], "actions": actions}, inputs, outputs


def _add(model: Any, state: Any, action: dict[str, Any], inputs: Tensors) -> Tensors:
    frame, user = action["frame"], action["object"]
    if "mask" in action:
        _, _, logits = model.add_new_mask(state, frame, user, inputs[action["mask"]])
    else:
        given = {key: action[key] for key in ("points", "labels", "box") if key in action}
        _, _, logits = model.add_new_points_or_box(state, frame, user, **given)
    waiting = state["temp_output_dict_per_obj"][state["obj_id_to_idx"][user]]
    out = (waiting["cond_frame_outputs"] | waiting["non_cond_frame_outputs"])[frame]
    return {"masks": logits[:, 0] > 0, "low_res": out["pred_masks"][0, 0], "score": out["object_score_logits"][0, 0], "pointer": out["obj_ptr"][0]}


def _propagate(model: Any, state: Any, action: dict[str, Any], inputs: Tensors) -> Tensors:
    count = None if "count" not in action else action["count"] - 1
    frames, rows = [], []
    for frame, _, logits in model.propagate_in_video(state, action.get("start"), count, action.get("backward", False)):
        stored = [state["output_dict_per_obj"][index] for index in range(len(state["obj_ids"]))]
        outs = [(one["cond_frame_outputs"] if frame in one["cond_frame_outputs"] else one["non_cond_frame_outputs"])[frame] for one in stored]
        low_res, scores, pointers = (torch.cat([out[key] for out in outs]) for key in ("pred_masks", "object_score_logits", "obj_ptr"))
        frames.append(frame)
        rows.append((low_res[:, 0], scores[:, 0], pointers, logits[:, 0] > 0))
    names = ("low_res", "scores", "pointers", "masks")
    return {"frames": torch.tensor(frames)} | {name: torch.stack([row[i] for row in rows]) for i, name in enumerate(names)}


def _remove(model: Any, state: Any, action: dict[str, Any], inputs: Tensors) -> Tensors:
    model.remove_object(state, action["object"], strict=True)
    return {}
