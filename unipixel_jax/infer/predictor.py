"""The model as people use it: media and words in, words and masks out."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.buckets import BUCKETS
from unipixel_jax.core.mesh import MeshConfig, make_mesh
from unipixel_jax.core.quantisation import Quantisation
from unipixel_jax.errors import UserError
from unipixel_jax.hub.resolve import resolve
from unipixel_jax.hub.save import save
from unipixel_jax.infer.answers import segmented_objects, text_and_spans, without_end
from unipixel_jax.infer.buckets import PROMPT_BUCKETS
from unipixel_jax.infer.chat import MAX_SLOTS, Chat
from unipixel_jax.infer.generate import Generation, Sampling, generate
from unipixel_jax.infer.loading import EMBEDDED, LoadedModel, load
from unipixel_jax.infer.many import ROWS, Job, Options, Outcome, run_jobs
from unipixel_jax.infer.placement import inference_mesh
from unipixel_jax.infer.prediction import Answer, ClipAnswer, Collector, Prediction, SegmentedObject
from unipixel_jax.infer.segmentation import clip_logits
from unipixel_jax.infer.stream import Stream
from unipixel_jax.models.quantised import quantised_config
from unipixel_jax.processing import batch
from unipixel_jax.processing.frames import FrameSource, open_frames
from unipixel_jax.processing.media import Clip, Media, read_media
from unipixel_jax.processing.memory import memory_grid, memory_prefix
from unipixel_jax.processing.prompts import Box, Mask, Point, locating_turn, name_regions, require_answer_start, require_words
from unipixel_jax.processing.tokenizer import REF_TOKEN, Message

log = logging.getLogger(__name__)

SAMPLE_FRAMES, MAX_NEW_TOKENS = 16, 512
"""The reference's defaults (tools/inference.py)."""
DESCRIBE = "Please describe <region> in detail."


@dataclass(frozen=True)
class UniPixel:
    """A loaded model, ready to segment and to answer.

    Attributes:
        loaded: weights, configuration and tokenizer.
        sampling: how tokens are drawn; the default is greedy, as the reference's.
        seed: seed of the random numbers with which tokens are drawn.
    """

    loaded: LoadedModel
    sampling: Sampling = Sampling()
    seed: int = 0

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = EMBEDDED,
        dtype: Any = None,
        sampling: Sampling = Sampling(),
        mesh: MeshConfig | None = None,
        *,
        devices: int | None = None,
        revision: str | None = None,
        token: str | None = None,
        weights: str | Quantisation | None = None,
        activations: str | None = None,
    ) -> UniPixel:
        """Load a model. A torch checkpoint, whether on this machine or on the Hub, is converted into the cache when it is first loaded (docs/hub.md).

        Args:
            model: a Hub id such as "PolyU-ChenLab/UniPixel-3B", a torch checkpoint's directory, or a converted one. What exists on this machine wins over a
                Hub id; the small model that ships with the package is loaded where none is given.
            dtype: "float32" or "bfloat16" to cast the weights and compute in; None keeps the checkpoint's own.
            sampling: how tokens are drawn.
            mesh: how devices of this machine share the work. None puts whole weights on a device where they fit, and else divides them among the fewest
                devices that hold them (infer/placement.py).
            devices: how many devices of this machine may be used; None for all.
            revision: a branch, a tag or a commit of the Hub's repository; None for its main branch.
            token: the user's token for the Hub; None for the one of ``hf auth login`` or ``HF_TOKEN``.
            weights: "int8" or "int4" to quantise the language model's weights while they are read, or a ``Quantisation`` with groups (docs/quantise.md); None
                takes them as they are, quantised or not.
            activations: "int8" to round the inputs of products with int8 weights too; None keeps them full.

        Raises:
            UserError: there is no such model, or it cannot be downloaded or converted (``hub.resolve.resolve``); the devices do not form the mesh, or it
                does not divide the heads; the weights do not fit the devices, or cannot be quantised so.
        """
        how = None if weights is None else Quantisation.of(weights)
        if activations not in (None, "int8"):
            raise UserError(f"activations {str(activations)[:40]!r} cannot be had: expected int8, or none for full ones")
        with _stage("loading"):
            local = jax.local_devices()[:devices]
            made = None if mesh is None else make_mesh(mesh, local)
            directory = resolve(model, revision=revision, token=token)
            if mesh is None:
                made = inference_mesh(quantised_config(UniPixelConfig.from_directory(directory), how, directory), dtype, local)
            return cls(load(directory, None if dtype is None else jnp.dtype(dtype), made, how, activations is not None).for_inference(), sampling)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the model as a converted directory with a model card, which ``from_pretrained`` loads and the Hub shows. It appears when it is complete.

        Args:
            directory: the directory to make; it may exist if it is empty.

        Raises:
            UserError: the directory cannot be written, has too little room or is not empty; or the model was not loaded from a directory, or that is gone.
        """
        with _stage("saving"):
            save(self.loaded.model, self.config, self.loaded.directory, Path(directory))

    @property
    def config(self) -> UniPixelConfig:
        """The model's sizes."""
        return self.loaded.config

    def segment(
        self,
        media: Media | FrameSource,
        prompt: str | Sequence[str],
        references: Sequence[Point | Box] = (),
        *,
        sample_frames: int = SAMPLE_FRAMES,
        max_new_tokens: int = MAX_NEW_TOKENS,
        only_sampled: bool = False,
        answer_start: str = "",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> Prediction:
        """Answer prompts about a photo or a clip, and segment what the answers' ``<|seg|>`` tokens stand for on every frame.

        Of several prompts, the media is read and SAM's side of it encoded once, and their objects are tracked together; the language side looks once for each.

        Args:
            media: a path (photo, video or folder of frames), an image, an array [H, W, 3] or [F, H, W, 3] of uint8, a sequence of images, or what
                ``open_frames`` (processing/frames.py) returned.
            prompt: any words, or several prompts; each ``<|seg|>`` in them is segmented as well.
            references: points and boxes for ``<region>`` in the prompt, in its order; not with several prompts.
            sample_frames: how many frames of a clip the language model looks at, spread evenly.
            max_new_tokens: where an answer is cut off.
            only_sampled: segment only the frames that the language model looks at, as the reference's tools/inference.py does.
            answer_start: words with which each answer has to begin; they are part of its text, and a ``<|seg|>`` in them is one of the answer.
            min_pixels: the fewest pixels of a frame for the language side; None for the reference's (``resize.pixel_budget``).
            max_pixels: the most pixels of a frame for the language side; None for the reference's.

        Returns:
            The answer; ``objects`` holds those of ``<|seg|>`` in the prompt first, then those of the answer, and so on for each prompt.

        Raises:
            UserError: media that cannot be read, an empty prompt, references that do not fit, or options out of range.
        """
        stream = self.track(
            media, prompt, references, sample_frames=sample_frames, max_new_tokens=max_new_tokens, only_sampled=only_sampled,
            answer_start=answer_start, min_pixels=min_pixels, max_pixels=max_pixels,
        )  # fmt: skip
        collector = Collector()
        with _stage(f"segmenting {len(stream.answer.spans)} objects"):
            for result in stream if stream.answer.spans else ():
                collector.add(result.to_json())
        return collector.prediction(stream.answer)

    def track(
        self,
        media: Media | FrameSource | Iterator[Any],
        prompt: str | Sequence[str],
        references: Sequence[Point | Box] = (),
        *,
        sample_frames: int = SAMPLE_FRAMES,
        max_new_tokens: int = MAX_NEW_TOKENS,
        only_sampled: bool = False,
        answer_start: str = "",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> Stream:
        """Answer prompts about a clip, and follow what they segment frame by frame, with a state of fixed size.

        The language model looks at ``sample_frames`` frames spread evenly over the clip, as in the reference's unipixel/eval/infer_seg.py; of a live stream it
        looks at the first frame.

        Args:
            media: as for ``segment``, or any iterator of frames [H, W, 3] of uint8.
            prompt: see ``segment``.
            references: see ``segment``.
            sample_frames: see ``segment``.
            max_new_tokens: see ``segment``.
            only_sampled: see ``segment``.
            answer_start: see ``segment``.
            min_pixels: see ``segment``.
            max_pixels: see ``segment``.

        Returns:
            An iterator over the results of the frames, which takes corrections while it runs.

        Raises:
            UserError: the reasons of ``segment``.
        """
        if sample_frames < 1:
            raise UserError(f"sample_frames is {sample_frames}, expected at least 1")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts or (references and len(prompts) > 1):
            raise UserError(f"{len(prompts)} prompts with {len(references)} references, expected at least one prompt, and only one with points or boxes")
        for words in prompts:
            require_words(words)
        require_answer_start(answer_start)
        with _stage("reading the media"):
            source = media if isinstance(media, FrameSource) else open_frames(media)
            source, clip = (source, source.sample(sample_frames)) if source.count is not None else source.with_first_frame()
            if only_sampled:
                source = open_frames(clip)
            prepared = batch.prepare_media(
                clip, self.config, sample_frames=sample_frames, segment=False, min_pixels=min_pixels, max_pixels=max_pixels
            )
        answers = []
        for words in prompts:
            text = name_regions(words, [REF_TOKEN] * len(references)) if references else words
            answers.append(self._generate_answer(batch.user_turn(text), prepared, max_new_tokens, references=references, answer_start=answer_start))
        ask = partial(self.answer, max_new_tokens=max_new_tokens, min_pixels=min_pixels, max_pixels=max_pixels)
        return Stream(self.loaded, ask, source, ClipAnswer.joined(answers, prompts, clip.indices.tolist(), clip.frames.shape[1:3]))

    def answer(
        self, media: Media, prompt: str, *, max_new_tokens: int = MAX_NEW_TOKENS, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> Answer:
        """Answer a prompt about a photo without segmenting anything.

        Raises:
            UserError: the reasons of ``segment``.
        """
        clip = read_media(media, SAMPLE_FRAMES)
        prepared = batch.prepare_media(clip, self.config, sample_frames=SAMPLE_FRAMES, segment=False, min_pixels=min_pixels, max_pixels=max_pixels)
        return self._generate_answer(batch.user_turn(prompt), prepared, max_new_tokens)

    def ask(
        self,
        media: Media,
        question: str,
        references: Sequence[Point | Box | Mask],
        *,
        sample_frames: int = SAMPLE_FRAMES,
        max_new_tokens: int = MAX_NEW_TOKENS,
        answer_start: str = "",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> Prediction:
        """PixelQA: answer a question about objects that are pointed at (the paper's section 4.4; reference: unipixel/eval/infer_pixelqa.py).

        Two turns: points and boxes are segmented and tracked first, then the masks come back as the objects' memories with the question. Masks
        given by the user go straight to the second turn.

        Args:
            media: see ``segment``.
            question: the question, with ``<region>`` for each reference in turn; without any ``<region>``, the objects are named in front of it.
            references: at least one; all masks, or points and boxes.
            sample_frames: see ``segment``.
            max_new_tokens: see ``segment``.
            answer_start: see ``segment``.
            min_pixels: see ``segment``.
            max_pixels: see ``segment``.

        Returns:
            The answer, with the masks of the references, whatever their kind, as ``objects`` in front of those that the answer segments. Their numbers begin at
            0, since the answer speaks of the references as ``[0]``, ``[1]`` and so on.

        Raises:
            UserError: the reasons of ``segment``, or no references, or masks mixed with points or boxes.
        """
        if not references:
            raise UserError("no references: give at least one Point, Box or Mask that the question is about, or use segment()")
        require_answer_start(answer_start)
        clip, prepared = self._prepare(media, sample_frames, min_pixels, max_pixels)
        count, height, width = clip.frames.shape[:3]
        masks = [r.on_clip(count, height, width) for r in references if isinstance(r, Mask)]
        if masks and len(masks) < len(references):
            raise UserError("references mix masks with points or boxes: give masks only, or points and boxes only")
        if masks:
            sure = np.ones(count, np.float32)
            objects = [SegmentedObject.from_masks(m, sure, sure, None) for m in masks]
        else:
            objects = self._locate(clip, prepared, question, [r for r in references if not isinstance(r, Mask)])
        grid = memory_grid(np.stack([o.masks for o in objects]), prepared.grid_thw, self.config.vision)
        text = memory_prefix(grid, count) + name_regions(question, [f"[{i}]" for i in range(len(objects))])
        answer = self._generate_answer(batch.user_turn(text), prepared, max_new_tokens, memory=grid, answer_start=answer_start)
        objects += self._track(clip, prepared, answer.hidden, answer.spans)
        return Prediction(answer.text, answer.tokens, objects, clip.indices.tolist(), clip.frames.shape[1:3], (question,), first=0)

    def describe(self, media: Media, reference: Point | Box | Mask, **options: Any) -> Prediction:
        """Describe one object: ``ask`` with a request for a description. The options, the result and the errors are those of ``ask``."""
        return self.ask(media, DESCRIBE, [reference], **options)

    def chat(self, media: Media, *, sample_frames: int = SAMPLE_FRAMES, max_slots: int = MAX_SLOTS) -> Chat:
        """Begin a conversation about a photo or a clip, which is read once.

        Args:
            media: see ``segment``.
            sample_frames: see ``segment``.
            max_slots: how many tokens the conversation may have, those of the media included.

        Raises:
            UserError: media that cannot be read, or that have more tokens.
        """
        clip, prepared = self._prepare(media, sample_frames)
        return Chat(self.loaded, clip, prepared, self.sampling, self.seed, max_slots)

    def segment_many(
        self, jobs: Iterable[Job], *, rows: int = ROWS, max_new_tokens: int = MAX_NEW_TOKENS, devices: Sequence[jax.Device] | None = None
    ) -> Iterator[Outcome]:
        """Answer many prompts and segment what they ask for, several at a time; answers and masks are those of ``segment``.

        Args:
            jobs: prompts about photos and clips, taken as they are needed.
            rows: answers that are generated together on a device.
            max_new_tokens: where an answer is cut off.
            devices: the devices that take jobs, each with a copy of the weights, or as many together as the model's mesh has; None for all of this process.

        Returns:
            Each job's outcome when it is there, in any order. A job that fails gives an outcome with a reason, and the others go on.

        Raises:
            UserError: ``rows`` or ``max_new_tokens`` is below 1.
        """
        return run_jobs(self.loaded, self.sampling, self.seed, jobs, Options(rows, max_new_tokens), devices)

    def _prepare(
        self, media: Media, sample_frames: int, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> tuple[Clip, batch.PreparedMedia]:
        if sample_frames < 1:
            raise UserError(f"sample_frames is {sample_frames}, expected at least 1")
        with _stage("reading the media"):
            clip = read_media(media, sample_frames)
            return clip, batch.prepare_media(clip, self.config, sample_frames=sample_frames, min_pixels=min_pixels, max_pixels=max_pixels)

    def _locate(self, clip: Clip, prepared: batch.PreparedMedia, question: str, references: Sequence[Point | Box]) -> list[SegmentedObject]:
        """PixelQA's first turn: the masks of points and boxes, from an answer that is given rather than generated."""
        turn, answer = locating_turn(question, len(references))
        messages = [*batch.user_turn(turn), {"role": "assistant", "content": answer}]
        conversation = batch.prepare_conversation(messages, prepared, self.loaded.tokenizer, self.config, references=references)
        hidden, _, _ = self._generate(conversation, 1)
        return self._track(clip, prepared, hidden[: len(references)], [None] * len(references))

    def _generate_answer(
        self,
        messages: list[Message],
        prepared: batch.PreparedMedia,
        max_new_tokens: int,
        *,
        references: Sequence[Point | Box] = (),
        memory: NDArray[np.bool_] | None = None,
        answer_start: str = "",
    ) -> Answer:
        loaded = self.loaded
        conversation = batch.prepare_conversation(
            messages, prepared, loaded.tokenizer, self.config, references=references, memory=memory, answer_start=answer_start
        )
        given = loaded.tokenizer.encode(answer_start) if answer_start else np.zeros(0, np.int32)
        in_prompt, generation, count = self._generate(conversation, max_new_tokens)
        tokens = np.asarray(generation.tokens)[0, :count]
        tokens = without_end(tokens, loaded.end_tokens)
        said = tokens == self.config.seg_token_id
        hidden = np.concatenate([in_prompt, np.asarray(generation.hidden)[0, : len(tokens)][said]])
        text, spans = self._decode(np.concatenate([given, tokens]))
        return Answer(text, [*given.tolist(), *tokens.tolist()], hidden, [*[None] * (len(hidden) - len(spans)), *spans])

    def _generate(self, conversation: batch.Conversation, max_new_tokens: int) -> tuple[NDArray[Any], Generation, int]:
        """Hidden states [O, D] of the prompt's ``<|seg|>`` tokens, the generation, and how many tokens it has."""
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}, expected at least 1")
        loaded = self.loaded
        inputs = batch.collate([conversation], self.config, loaded.tokenizer.pad_id, PROMPT_BUCKETS)
        with _stage("answering"), loaded.on_mesh():
            generation = generate(
                loaded.packed,
                jax.device_put(inputs),
                jax.random.key(self.seed),
                jax.device_put(np.int32(max_new_tokens)),
                new_token_slots=BUCKETS.new_tokens.size(max_new_tokens),
                end_tokens=loaded.end_tokens,
                dtype=loaded.dtype,
                sampling=self.sampling,
            )
            count = int(np.asarray(generation.count)[0])
        in_prompt = np.asarray(generation.prompt_hidden)[0][inputs.seg_positions[0] < inputs.input_ids.shape[1]]
        return in_prompt, generation, count

    def _decode(self, tokens: NDArray[np.int32]) -> tuple[str, list[tuple[int, int]]]:
        """The text of an answer, and the span of each ``<|seg|>`` in it (see ``SegmentedObject``)."""
        return text_and_spans(tokens, self.loaded.tokenizer, self.config.seg_token_id)

    def _track(self, clip: Clip, prepared: batch.PreparedMedia, hidden: NDArray[Any], spans: Sequence[tuple[int, int] | None]) -> list[SegmentedObject]:
        assert prepared.frames is not None
        with _stage(f"segmenting {len(hidden)} objects in {len(prepared.frames)} frames"), self.loaded.on_mesh():
            found = clip_logits(self.loaded.model, prepared.frames, hidden, self.loaded.dtype)
        return segmented_objects(found, prepared.frame_size, spans)


@contextmanager
def _stage(what: str) -> Iterator[None]:
    """Log how long a stage took (shown by ``--verbose``)."""
    start = time.perf_counter()
    log.debug("%s ...", what)
    yield
    log.info("%s: %.2f s", what, time.perf_counter() - start)
