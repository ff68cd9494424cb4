"""Segmenting photos and tracking through clips with the programs of an export.

The loop over an answer's tokens and the one over a clip's frames run on the host. O objects, T prompt tokens, S slots of the cache, D language width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.batch import ModelInputs
from unipixel_jax.config import UNKNOWN_LENGTH, UniPixelConfig
from unipixel_jax.core.buckets import BUCKETS
from unipixel_jax.errors import UserError
from unipixel_jax.infer.answers import text_and_spans, without_end
from unipixel_jax.infer.masks import resize_masks, sigmoid
from unipixel_jax.infer.prediction import Answer, ClipAnswer, Collector, FrameResult, Prediction
from unipixel_jax.processing.batch import Conversation, empty_inputs, measure, prepare_media, write_inputs
from unipixel_jax.processing.chat import expand_image_tokens
from unipixel_jax.processing.frames import Frame, FrameSource, open_frames
from unipixel_jax.processing.media import Clip, Media
from unipixel_jax.processing.prompts import require_words
from unipixel_jax.processing.square import square_frames
from unipixel_jax.processing.tokenizer import Tokenizer
from unipixel_jax.runtime.backends import OnnxProgram, Program
from unipixel_jax.runtime.manifest import ExportManifest, PartFile

NEXT = "next_"
"""What the names of the state's arrays after a frame begin with."""
WORDS, MASKS = ("vision", "prefill", "step"), ("encode", "prompt", "first_frame", "track")
"""The parts that answering and segmenting need."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Runtime:
    """An export, ready to run.

    Attributes:
        folder: its folder.
        manifest: what it is.
        config: the model's sizes.
        tokenizer: the tokenizer, without a chat template.
        backend: a function of the folder and a part's file that returns the part's program.
    """

    folder: Path
    manifest: ExportManifest
    config: UniPixelConfig
    tokenizer: Tokenizer
    backend: Callable[[Path, PartFile], Program] = OnnxProgram
    _programs: dict[str, Program] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | Path, backend: Callable[[Path, PartFile], Program] = OnnxProgram) -> Runtime:
        """Read the folder of an export, and compare its files with their checksums.

        Args:
            folder: the folder.
            backend: see the attributes; onnxruntime unless given.

        Raises:
            UserError: it is no such folder, its files are not those of one export, or they are programs of StableHLO for onnxruntime.
        """
        root = Path(folder)
        manifest = ExportManifest.read(root)
        if manifest.kind != "onnx" and backend is OnnxProgram:
            raise UserError(f"{root} holds programs of {manifest.kind}, which JAX runs and not onnxruntime: export with --format onnx")
        manifest.check_files(root, tuple(manifest.parts))
        config = UniPixelConfig.from_directory(root)
        tokenizer = Tokenizer.from_file(root / "tokenizer.json", manifest.pad_id, next(iter(manifest.end_tokens), manifest.pad_id))
        tokenizer.check(config)
        return cls(root, manifest, config, tokenizer, backend)

    def run(self, name: str, **inputs: NDArray[Any]) -> Arrays:
        """Run a part on arrays by name; returns its outputs by name.

        Raises:
            UserError: an array has another shape or dtype than the part takes.
        """
        part = self.manifest.parts[name]
        for own in part.inputs:
            found = inputs[own.name]
            if found.shape != own.shape or found.dtype != own.dtype:
                raise UserError(f"{name} takes {own.name} {own.dtype}{list(own.shape)}, found {found.dtype}{list(found.shape)}: are these parts of one export?")
        if name not in self._programs:
            self._programs[name] = self.backend(self.folder, part)
        return self._programs[name].run({own.name: inputs[own.name] for own in part.inputs})

    def segment(self, media: Media | FrameSource, prompt: str, *, max_new_tokens: int | None = None) -> Prediction:
        """Answer a prompt about a photo or a clip, and segment what its ``<|seg|>`` tokens stand for on every frame.

        Args:
            media: a path (photo, video or folder of frames), an image, an array [H, W, 3] or [F, H, W, 3] of uint8, or what ``open_frames`` returned.
            prompt: any words; each ``<|seg|>`` in them is segmented as well.
            max_new_tokens: where the answer is cut off, if before what the export has room for.

        Returns:
            The answer, as ``UniPixel.segment`` gives it.

        Raises:
            UserError: media that cannot be read, an empty prompt, or more tokens, patches or objects than the export has room for.
        """
        answer, frames = self.track(media, prompt, max_new_tokens=max_new_tokens)
        collector = Collector()
        for result in frames if answer.spans else ():
            collector.add(result.to_json())
        return collector.prediction(answer)

    def track(self, media: Media | FrameSource, prompt: str, *, max_new_tokens: int | None = None) -> tuple[ClipAnswer, Iterator[FrameResult]]:
        """Answer a prompt about a clip, and follow what it segments frame by frame; arguments and errors are those of ``segment``."""
        self.manifest.require((*WORDS, *MASKS), "segmenting")
        require_words(prompt)
        source = media if isinstance(media, FrameSource) else open_frames(media)
        source, clip = (source, source.sample(self.manifest.shapes["frames"])) if source.count is not None else source.with_first_frame()
        answer = self.answer(clip, prompt, max_new_tokens)
        joined = ClipAnswer.joined([answer], [prompt], clip.indices.tolist(), clip.frames.shape[1:3])
        room = self.manifest.shapes["objects"]
        if len(answer.hidden) > room:
            raise UserError(f"{len(answer.hidden)} objects are to be segmented, and the export has room for {room}: export with --objects {len(answer.hidden)}")
        return joined, self._follow(source, answer.hidden)

    def answer(self, clip: Clip, prompt: str, max_new_tokens: int | None = None) -> Answer:
        """Answer a prompt about the frames of a clip, with the likeliest tokens."""
        shapes, c = self.manifest.shapes, self.config
        limit = min(max_new_tokens or shapes["new_tokens"], shapes["new_tokens"])
        inputs = self._inputs(clip, prompt)
        seen = self.run("vision", patches=inputs.patches, **vars(inputs.vision))
        references = {f"reference_{name}": array for name, array in vars(inputs.references).items()}
        plain = {name: value for name, value in vars(inputs).items() if isinstance(value, np.ndarray)}
        read = self.run("prefill", **seen, **plain, **references)
        length = inputs.input_ids.shape[1]
        asked = read["prompt_states"][0][inputs.seg_positions[0] < length]
        tokens, states = self._generate(read, inputs, limit)
        tokens = without_end(tokens, self.manifest.end_tokens)
        said = states[: len(tokens)][tokens == c.seg_token_id]
        text, spans = text_and_spans(tokens, self.tokenizer, c.seg_token_id)
        return Answer(text, tokens.tolist(), np.concatenate([asked, said]), [*[None] * len(asked), *spans])

    def _generate(self, read: Arrays, inputs: ModelInputs, limit: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The tokens [N] of the answer to a prompt that was read, and the states [N, D] that predicted them."""
        length = inputs.input_ids.shape[1]
        slots = length + self.manifest.shapes["new_tokens"]
        keys, values = (np.zeros((*read[name].shape[:3], slots, read[name].shape[4]), np.float32) for name in ("keys", "values"))
        keys[:, :, :, :length], values[:, :, :, :length] = read["keys"], read["values"]
        held = np.zeros((1, slots), np.int32)
        held[:, :length] = inputs.segments
        tokens, states, logits, state = [], [], read["logits"], read["state"]
        for number in range(limit):
            token = int(np.argmax(logits[0]))
            tokens.append(token)
            states.append(state[0])
            if token in self.manifest.end_tokens or number + 1 == limit:
                break
            position = np.asarray(length + inputs.rope_deltas[0] + number, np.int32)
            out = self.run("step", token=np.asarray(token, np.int32), position=position, held=held, keys=keys, values=values)
            at = length + number
            keys[:, :, :, at], values[:, :, :, at], held[0, at] = out["key"][:, :, :, 0], out["value"][:, :, :, 0], 1
            logits, state = out["logits"], out["state"]
        return np.asarray(tokens, np.int32), np.stack(states)

    def _inputs(self, clip: Clip, prompt: str) -> ModelInputs:
        """A prompt about a clip in the shapes of the export."""
        shapes, sizes, c = self.manifest.shapes, dict(self.manifest.sizes), self.config
        media = prepare_media(clip, c, sample_frames=shapes["frames"], segment=False, max_pixels=shapes["height"] * shapes["width"])
        before, after = self.manifest.prompt
        conversation = Conversation(self.tokenizer.encode(expand_image_tokens(before + prompt + after, [media.grid_thw], c.vision)), media)
        try:
            measure([[conversation]], c, BUCKETS.fixed(sizes))
        except UserError as error:
            raise UserError(f"the export has no room for this prompt ({error}): export with more --words, --frames or --objects, or a larger --size") from None
        inputs = empty_inputs(sizes, c, self.manifest.pad_id, np.dtype(np.float32))
        write_inputs(inputs, [[conversation]], c)
        return inputs

    def _follow(self, source: FrameSource, hidden: NDArray[np.float32]) -> Iterator[FrameResult]:
        """The results of all frames for objects by the states that predicted them [O, D]."""
        count, side = len(hidden), self.config.sam2.image_size
        states = np.zeros((self.manifest.shapes["objects"], hidden.shape[1]), np.float32)
        states[:count] = hidden
        length = np.asarray(UNKNOWN_LENGTH if source.count is None else len(source), np.int32)
        state: Arrays = {}
        for place, frame in enumerate(source):
            features = self.run("encode", frame=square_frames(frame.pixels[None], side))
            if place == 0:
                out = self.run("first_frame", **features, **self.run("prompt", states=states))
            else:
                out = self.run("track", **features, **state, frame=np.asarray(place, np.int32), clip_length=length)
            state = {name.removeprefix(NEXT): value for name, value in out.items() if name.startswith(NEXT)}
            yield _result(frame, out, count)


def _result(frame: Frame, out: Arrays, count: int) -> FrameResult:
    """What is known of the first ``count`` objects on a frame."""
    size: Sequence[int] = frame.pixels.shape[:2]
    logits = [resize_masks(own, (size[0], size[1])) for own in out["low_res"][:count]]
    masks = np.stack(logits) > 0 if logits else np.zeros((0, *size), bool)
    presence = sigmoid(out["presence"][:count])
    return FrameResult(frame.number, frame.seconds, frame.pixels, tuple(range(1, count + 1)), masks, presence * out["iou"][:count], presence)
