"""Segmenting photos and tracking through clips with the programs of an export.

The loop over an answer's tokens and the one over a clip's frames run on the host. O objects, T prompt tokens, S slots of the cache, D language width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from unipixel_jax.runtime.ascend import AclProgram
from unipixel_jax.runtime.backends import Backend, OnnxProgram, Program
from unipixel_jax.runtime.manifest import ExportManifest

NEXT = "next_"
"""What the names of the state's arrays after a frame begin with."""
WORDS, MASKS = ("vision", "prefill", "step"), ("encode", "prompt", "first_frame", "track")
"""The parts that answering and segmenting need."""
BACKENDS: Mapping[str, Backend] = {"onnx": OnnxProgram, "acl": AclProgram}
"""What runs ONNX exports without JAX, by the names that commands take."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Runtime:
    """An export, ready to run.

    Attributes:
        folder: its folder.
        manifest: what it is.
        config: the model's sizes.
        tokenizer: the tokenizer, without a chat template.
        backend: what runs the programs.
    """

    folder: Path
    manifest: ExportManifest
    config: UniPixelConfig
    tokenizer: Tokenizer
    backend: Backend = OnnxProgram
    _programs: dict[str, Program] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | Path, backend: Backend = OnnxProgram) -> Runtime:
        """Read the folder of an export, and compare its files with their checksums.

        Args:
            folder: the folder.
            backend: see the attributes; onnxruntime unless given.

        Raises:
            UserError: it is no such folder, its files are not those of one export, or they are programs of StableHLO for onnxruntime.
        """
        root = Path(folder)
        manifest = ExportManifest.read(root)
        if manifest.kind != "onnx" and backend in BACKENDS.values():
            raise UserError(f"{root} holds programs of {manifest.kind}, which JAX runs and no other runtime: export with --format onnx")
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
        answer = self.answer(self.conversation(clip, prompt), max_new_tokens)
        joined = ClipAnswer.joined([answer], [prompt], clip.indices.tolist(), clip.frames.shape[1:3])
        return joined, self._follow(source, answer.hidden)

    def conversation(self, clip: Clip, prompt: str) -> Conversation:
        """A prompt about the frames of a clip, which are made as small as the export asks."""
        shapes, c = self.manifest.shapes, self.config
        media = prepare_media(clip, c, sample_frames=shapes["frames"], segment=False, max_pixels=shapes["height"] * shapes["width"])
        before, after = self.manifest.prompt
        return Conversation(self.tokenizer.encode(expand_image_tokens(before + prompt + after, [media.grid_thw], c.vision)), media)

    def answer(self, conversation: Conversation, max_new_tokens: int | None = None) -> Answer:
        """Answer a conversation with the likeliest tokens.

        Raises:
            UserError: it has more tokens, patches or objects than the export has room for.
        """
        room = self.manifest.shapes["new_tokens"]
        limit, ends = min(max_new_tokens or room, room), self.manifest.end_tokens
        reading, tokens, states = self.read(conversation), [], []
        while True:
            tokens.append(int(np.argmax(reading.logits)))
            states.append(reading.state)
            if tokens[-1] in ends or len(tokens) == limit:
                break
            reading.say(tokens[-1])
        spoken = without_end(np.asarray(tokens, np.int32), ends)
        said = np.stack(states)[: len(spoken)][spoken == self.config.seg_token_id]
        text, spans = text_and_spans(spoken, self.tokenizer, self.config.seg_token_id)
        return Answer(text, spoken.tolist(), np.concatenate([reading.asked, said]), [*[None] * len(reading.asked), *spans])

    def read(self, conversation: Conversation) -> Reading:
        """Read a conversation, and return what is known at its end.

        Raises:
            UserError: it has more tokens, patches or objects than the export has room for.
        """
        sizes, c = dict(self.manifest.sizes), self.config
        try:
            measure([[conversation]], c, BUCKETS.fixed(sizes))
        except UserError as error:
            raise UserError(f"the export has no room for this prompt ({error}): export with more --words, --frames or --objects, or a larger --size") from None
        inputs = empty_inputs(sizes, c, self.manifest.pad_id, np.dtype(np.float32))
        write_inputs(inputs, [[conversation]], c)
        seen = self.run("vision", patches=inputs.patches, **vars(inputs.vision))
        references = {f"reference_{name}": array for name, array in vars(inputs.references).items()}
        plain = {name: value for name, value in vars(inputs).items() if isinstance(value, np.ndarray)}
        return Reading(self, inputs, self.run("prefill", **seen, **plain, **references))

    def hidden_tokens(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """What prompts the mask decoder for objects, by the states that predicted them [O, D]; in the export's number of objects.

        Raises:
            UserError: there are more objects than the export has room for.
        """
        room = self.manifest.shapes["objects"]
        if len(states) > room:
            raise UserError(f"{len(states)} objects are to be segmented, and the export has room for {room}: export with --objects {len(states)}")
        padded = np.zeros((room, states.shape[1]), np.float32)
        padded[: len(states)] = states
        return self.run("prompt", states=padded)["hidden_tokens"]

    def follow(self, frames: Iterable[NDArray[np.float32]], hidden_tokens: NDArray[np.float32], length: int) -> Iterator[Arrays]:
        """Track objects through normalised frames [1, S, S, 3].

        Args:
            frames: the frames.
            hidden_tokens: from ``hidden_tokens``.
            length: how many frames the clip has; ``UNKNOWN_LENGTH`` for a stream.

        Yields:
            What the parts ``first_frame`` and ``track`` return: masks, predicted IoU, presence, and the tracker's state after the frame.
        """
        state: Arrays = {}
        for place, frame in enumerate(frames):
            features = self.run("encode", frame=frame)
            if place == 0:
                out = self.run("first_frame", **features, hidden_tokens=hidden_tokens)
            else:
                out = self.run("track", **features, **state, frame=np.asarray(place, np.int32), clip_length=np.asarray(length, np.int32))
            state = {name.removeprefix(NEXT): value for name, value in out.items() if name.startswith(NEXT)}
            yield out

    def _follow(self, source: FrameSource, states: NDArray[np.float32]) -> Iterator[FrameResult]:
        """The results of all frames for objects by the states that predicted them [O, D]."""
        length = UNKNOWN_LENGTH if source.count is None else len(source)
        frames, again = itertools.tee(source)
        squares = (square_frames(frame.pixels[None], self.config.sam2.image_size) for frame in frames)
        found = self.follow(squares, self.hidden_tokens(states), length)
        return (_result(frame, out, len(states)) for frame, out in zip(again, found, strict=True))


class Reading:
    """A conversation that was read, and what was said since.

    Attributes:
        logits: the scores of the next token [V].
        state: the state that predicts it [D].
        asked: the states that predicted the ``<|seg|>`` of the prompt [O, D].
    """

    def __init__(self, runtime: Runtime, inputs: ModelInputs, read: Arrays) -> None:
        length = inputs.input_ids.shape[1]
        slots = length + runtime.manifest.shapes["new_tokens"]
        self._runtime, self._slot, self._position = runtime, length, length + int(inputs.rope_deltas[0])
        self._keys, self._values = (np.zeros((*read[name].shape[:3], slots, read[name].shape[4]), np.float32) for name in ("keys", "values"))
        self._keys[:, :, :, :length], self._values[:, :, :, :length] = read["keys"], read["values"]
        self._held = np.zeros((1, slots), np.int32)
        self._held[:, :length] = inputs.segments
        self.logits, self.state = read["logits"][0], read["state"][0]
        self.asked: NDArray[np.float32] = read["prompt_states"][0][inputs.seg_positions[0] < length]

    def say(self, token: int) -> None:
        """Add a token to what was said; the export has room for so many (``new_tokens``)."""
        numbers = {name: np.asarray(value, np.int32) for name, value in (("token", token), ("position", self._position))}
        out = self._runtime.run("step", **numbers, held=self._held, keys=self._keys, values=self._values)
        self._keys[:, :, :, self._slot], self._values[:, :, :, self._slot] = out["key"][:, :, :, 0], out["value"][:, :, :, 0]
        self._held[0, self._slot] = 1
        self._slot, self._position = self._slot + 1, self._position + 1
        self.logits, self.state = out["logits"][0], out["state"][0]


def _result(frame: Frame, out: Arrays, count: int) -> FrameResult:
    """What is known of the first ``count`` objects on a frame."""
    size: Sequence[int] = frame.pixels.shape[:2]
    logits = [resize_masks(own, (size[0], size[1])) for own in out["low_res"][:count]]
    masks = np.stack(logits) > 0 if logits else np.zeros((0, *size), bool)
    presence = sigmoid(out["presence"][:count])
    return FrameResult(frame.number, frame.seconds, frame.pixels, tuple(range(1, count + 1)), masks, presence * out["iou"][:count], presence)
