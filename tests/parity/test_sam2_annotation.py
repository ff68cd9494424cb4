"""Recorded sessions of the reference's video predictor, annotated anew through ``Sam2Predictor.track``, as users do."""

from pathlib import Path

import numpy as np
import pytest

from unipixel_jax.infer.masks import resize_masks
from unipixel_jax.infer.sam2 import Sam2Predictor
from unipixel_jax.parity.recording import open_recording
from unipixel_jax.processing.media import Clip

RECORDING = Path(__file__).parents[1] / "recordings" / "sam2_nano"
DIFFERENT = 1e-4
"""The share of pixels that may differ: those whose logit is within rounding of 0."""


@pytest.mark.parametrize(("name", "alone"), [("sam2_session_corrections", True), ("sam2_session_non_overlap", False)])
def test_a_session_gives_the_reference_masks(name, alone):
    recording = open_recording(RECORDING)
    (case,) = [case for case in recording.cases if case.name == name]
    squares, (height, width) = case.input("squares"), case.frame_size()
    side = squares.shape[1]
    sam2 = Sam2Predictor.from_pretrained(recording.root / "checkpoint")
    session = sam2.track(Clip(squares, np.arange(len(squares)), False, "clip"), non_overlapping=not alone)
    scale, numbers, compared = np.asarray([side / width, side / height]), [], 0

    def check(result, low_res):
        nonlocal compared
        logits = resize_masks(low_res, (side, side))
        theirs = logits > 0 if alone else (logits > 0) & (logits.argmax(0) == np.arange(len(logits))[:, None, None])
        ours = result.masks[[result.objects.index(numbers.index(one) + 1) for one in numbers]]
        assert np.mean(ours != theirs) <= DIFFERENT, result.frame
        compared += 1

    for place, action in enumerate(case.options["actions"]):
        theirs = {key.removeprefix(f"{place}."): value for key, value in case.outputs.items() if key.startswith(f"{place}.")}
        if action["do"] == "add":
            known = numbers.index(action["object"]) + 1 if action["object"] in numbers else None
            numbers += [] if known else [action["object"]]
            given = {"points": (np.asarray(action.get("points", [])).reshape(-1, 2) * scale).tolist(), "labels": action.get("labels", [])}
            if "box" in action:
                given["box"] = (np.asarray(action["box"]).reshape(2, 2) * scale).ravel().tolist()
            if "mask" in action:
                mask = resize_masks(case.input(action["mask"]).astype(np.float32), (side, side)) >= 0.5
                given = {"mask": mask}
            result = session.add(action["frame"], known, **given)
            ours = result.masks[result.objects.index(numbers.index(action["object"]) + 1)]
            if alone and "mask" not in action:
                assert np.mean(ours != (resize_masks(theirs["low_res"], (side, side)) > 0)) <= DIFFERENT
                compared += 1
        elif action["do"] == "propagate":
            results = list(session.propagate(action.get("start"), backward=bool(action.get("backward")), frames=action.get("count")))
            assert [result.frame for result in results] == theirs["frames"].tolist()
            for result, low_res in zip(results, theirs["low_res"], strict=True):
                check(result, low_res)
    assert compared > 4
