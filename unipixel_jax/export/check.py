"""Comparing an export's programs with the functions that they were made of, on inputs that follow from each other as in use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import numpy as np
from numpy.typing import NDArray

from unipixel_jax.config import UNKNOWN_LENGTH
from unipixel_jax.export.parts import NEXT, STATE, Part
from unipixel_jax.export.shapes import Shapes
from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.ops.attention import use_attention
from unipixel_jax.processing.batch import Conversation, empty_inputs, prepare_media, write_inputs
from unipixel_jax.processing.media import Clip

Arrays = dict[str, NDArray[np.generic]]
Run = Callable[[Mapping[str, NDArray[np.generic]]], Arrays]
"""A program: named inputs to named outputs."""
WORD = 1
"""A token without a special meaning."""


class Checker:
    """The inputs of each part, and what JAX makes of them. A part's inputs are outputs of the parts before it, where there are such.

    Args:
        model: the weights in float32.
        shapes: the shapes of the parts.
        parts: all parts, by name.
    """

    def __init__(self, model: UniPixelModel, shapes: Shapes, parts: Mapping[str, Part]) -> None:
        self._parts = parts
        rng = np.random.default_rng(0)

        def random(name: str, key: str) -> NDArray[np.generic]:
            return rng.normal(size=parts[name].inputs[key].shape).astype(np.float32)

        self._known: Arrays = _prompt(model, shapes, rng) | {"frame": random("encode", "frame"), "states": random("prompt", "states")}
        self._outputs: dict[str, Arrays] = {}
        side = model.config.sam2.image_size
        kinds = np.full((shapes.objects, shapes.points), -2, np.int32)
        kinds[:, :2] = 1
        self._known |= {"points": rng.uniform(0, side, (*kinds.shape, 2)).astype(np.float32), "labels": kinds}

    def inputs(self, name: str) -> Arrays:
        """The inputs of a part."""
        known = self._known
        if name in ("decode", "first_frame", "track"):
            known = known | self.outputs("encode")
        if name == "first_frame":
            known = known | self.outputs("prompt")
        if name == "track":
            begun = self.outputs("first_frame")
            known = known | {own: begun[after] for own, after in zip(STATE, NEXT, strict=True)}
            known |= {"frame": np.asarray(1, np.int32), "clip_length": np.asarray(UNKNOWN_LENGTH, np.int32)}
        if name == "prefill":
            known = known | self.outputs("vision")
        if name == "step":
            known = known | self._after_prompt()
        return {own: known[own] for own in self._parts[name].inputs}

    def outputs(self, name: str) -> Arrays:
        """What JAX makes of them."""
        if name not in self._outputs:
            part = self._parts[name]
            with use_attention("xla"):
                found = jax.jit(part.function)(*self.inputs(name).values())
            self._outputs[name] = {own: np.asarray(value) for own, value in zip(part.outputs, found, strict=True)}
        return self._outputs[name]

    def errors(self, name: str, run: Run) -> dict[str, float]:
        """The relative error of each output of a program, in the Euclidean norm of the whole array."""
        found, expected = run(self.inputs(name)), self.outputs(name)
        return {own: _relative(found[own], expected[own]) for own in expected}

    def _after_prompt(self) -> Arrays:
        """The first token of an answer, and the cache that holds the prompt."""
        read, step = self.outputs("prefill"), self._parts["step"]
        keys, values = (np.zeros(step.inputs[name].shape, np.float32) for name in ("keys", "values"))
        held = np.zeros(step.inputs["held"].shape, np.int32)
        length = read["keys"].shape[3]
        keys[:, :, :, :length], values[:, :, :, :length], held[:, :length] = read["keys"], read["values"], self._known["segments"]
        position = np.asarray(self._known["position_ids"].max() + 1, np.int32)
        return {"token": np.asarray(WORD, np.int32), "position": position, "held": held, "keys": keys, "values": values}


def _prompt(model: UniPixelModel, shapes: Shapes, rng: np.random.Generator) -> Arrays:
    """A prompt about a clip of noise, as the arrays of the parts that read it."""
    c = model.config
    frames = rng.integers(0, 256, (shapes.frames, shapes.height, shapes.width, 3), dtype=np.uint8)
    clip = Clip(frames, np.arange(shapes.frames), shapes.frames == 1, "export")
    media = prepare_media(clip, c, sample_frames=shapes.frames, segment=False, max_pixels=shapes.height * shapes.width)
    seen = [c.video_token_id] * (len(media.patches) // c.vision.merge_unit)
    ids = np.asarray([c.vision_start_token_id, *seen, c.vision_end_token_id, *[WORD] * shapes.words], np.int32)
    inputs = empty_inputs(shapes.sizes(c), c, 0, np.dtype(np.float32))
    write_inputs(inputs, [[Conversation(ids, media)]], c)
    references = {f"reference_{name}": array for name, array in vars(inputs.references).items()}
    return {**{name: value for name, value in vars(inputs).items() if isinstance(value, np.ndarray)}, **vars(inputs.vision), **references}


def _relative(found: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    a, b = found.astype(np.float64), expected.astype(np.float64)
    size = float(np.linalg.norm(b))
    return float(np.linalg.norm(a - b)) / size if size else float(np.linalg.norm(a))
