"""The model behind the page: loaded and warmed up while the page is open already, asked by one visitor at a time, and timed."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from unipixel_jax.app.limits import Limits
from unipixel_jax.app.media import open_media, open_photo, sampled
from unipixel_jax.errors import UserError
from unipixel_jax.infer.chat import Chat
from unipixel_jax.infer.generate import generate
from unipixel_jax.infer.prediction import Collector, FrameResult, Prediction
from unipixel_jax.infer.predictor import SAMPLE_FRAMES, UniPixel
from unipixel_jax.infer.sam2_session import Sam2Session
from unipixel_jax.infer.stream import Stream
from unipixel_jax.processing import batch
from unipixel_jax.processing.frames import FrameSource, open_frames
from unipixel_jax.processing.media import Clip
from unipixel_jax.processing.prompts import Box, Mask, Point
from unipixel_jax.processing.resize import FACTOR

TOKENS = (128, 512, 2048)
"""Each photo reaches the language model in the size of these many merged tokens that is nearest to its own, so that few programs are compiled."""
CLIP_TOKENS = 128
"""The same for each frame of a clip."""
SLACK = 1.1
"""How much larger than that a picture may be before it is made smaller."""
PROGRAMS = 48
"""Programs of the language model that are kept: those of the warm-up, and room for unusual sizes."""
USUAL = ((480, 640), (640, 640), (720, 1280), (1080, 1920), (1500, 1000), (320, 320))
"""Height and width of the photos of the warm-up; the same programs serve all photos of other sizes with similar sides."""


@dataclass(frozen=True)
class Figures:
    """What an answer cost.

    Attributes:
        seconds: all in all.
        tokens: of the answer.
        answering: seconds until the answer's words were there; None where they were not timed apart from the masks.
        frames: in which objects were followed.
    """

    seconds: float
    tokens: int
    answering: float | None = None
    frames: int = 1


@dataclass(frozen=True, eq=False)
class Result:
    """An answer about an upload.

    Attributes:
        path: the upload.
        prediction: the answer.
        figures: what it cost.
    """

    path: Path
    prediction: Prediction
    figures: Figures


@dataclass(eq=False)
class Worker:
    """The model, and the order in which visitors use it.

    Attributes:
        load: a function that loads the model.
        name: the model's name for visitors.
        shapes_only: whether it is the small model, which knows drawn shapes only.
        limits: what one visitor may ask for.
    """

    load: Callable[[], UniPixel]
    name: str
    shapes_only: bool
    limits: Limits = field(default_factory=Limits)
    _model: UniPixel | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _loaded: threading.Event = field(default_factory=threading.Event)
    _count: threading.Lock = field(default_factory=threading.Lock)
    _waiting: int = 0

    def start(self) -> None:
        """Load the model; visitors that ask before wait.

        Raises:
            UserError: it cannot be loaded.
        """
        generate.limit = max(generate.limit, PROGRAMS)
        self._model = self.load()
        self._loaded.set()

    @property
    def model(self) -> UniPixel:
        """The model, once it is loaded."""
        self._loaded.wait()
        assert self._model is not None
        return self._model

    @contextlib.contextmanager
    def turn(self) -> Iterator[UniPixel]:
        """Have the model to oneself."""
        model = self.model
        with self._count:
            self._waiting += 1
        try:
            with self._lock:
                yield model
        finally:
            with self._count:
                self._waiting -= 1

    @contextlib.contextmanager
    def _turn_after_all(self) -> Iterator[UniPixel]:
        """Have the model to oneself when no visitor wants it."""
        while self._waiting:
            time.sleep(0.02)
        with self._lock:
            yield self.model

    def warm_up(self) -> None:
        """Compile what visitors will need for photos and clips of usual sizes. Visitors do not wait for more than one of its answers."""
        photos = [np.zeros((height, width, 3), np.uint8) for height, width in USUAL]
        clips = [np.zeros((SAMPLE_FRAMES, height // 2, width // 2, 3), np.uint8) for height, width in USUAL[:3]]
        for media in (*photos, *clips):
            source = open_frames(media)
            clip = source.sample(SAMPLE_FRAMES)
            height, width = clip.frames.shape[1:3]
            corner = np.zeros((height, width), bool)
            corner[: height // 4, : width // 4] = True
            options = {"max_new_tokens": self.limits.tokens, **self.budget((height, width), source.is_image)}
            with self._turn_after_all() as model:
                model.segment(source, "Please segment the red circle.", **options)
            for reference in (Point(width / 2, height / 2), Mask(corner)):
                with self._turn_after_all() as model:
                    model.ask(clip, "What is <region>?", [reference], **options)
        for media in (photos[1], clips[1]):
            self._warm_up_further(open_frames(media).sample(SAMPLE_FRAMES))

    def _warm_up_further(self, clip: Clip) -> None:
        """Compile what conversations and corrections need."""
        corner = np.zeros(clip.frames.shape[1:3], bool)
        corner[:80, :80] = True
        with self._turn_after_all():
            chat = self._chat(clip)
        for question in ("Please segment the red circle.", "What is [0]?"):
            with self._turn_after_all():
                chat.ask(question, [Mask(corner)], max_new_tokens=self.limits.tokens)
        with self._turn_after_all() as model, model.loaded.on_mesh():
            session = Sam2Session(model.loaded.model.sam2, model.loaded.dtype, replace(clip, frames=clip.frames[:2]))
            session.add(0, mask=corner)
            list(session.propagate())
            session.add(0, 1, points=[(20, 20)], labels=[1])

    def budget(self, size: tuple[int, ...], photo: bool) -> dict[str, Any]:
        """The arguments ``min_pixels`` and ``max_pixels`` with which a picture comes in one of few sizes to the language model.

        Args:
            size: height and width of the photo or of the clip's frames.
            photo: whether it is a photo.
        """
        tokens = CLIP_TOKENS
        if photo and not self.shapes_only:
            tokens = min(TOKENS, key=lambda tokens: abs(np.log(tokens * FACTOR**2 / (size[0] * size[1]))))
        return {"min_pixels": tokens * FACTOR**2, "max_pixels": int(tokens * FACTOR**2 * SLACK)}

    def track(self, source: FrameSource | Iterator[Any], prompt: str, size: tuple[int, ...] | None = None) -> Stream:
        """Answer a prompt; the frames are followed as they are asked for.

        Args:
            source: an upload, or frames as they come, of which the language model sees the first.
            prompt: the visitor's words.
            size: height and width of frames that come one by one; those of an upload are found out.

        Raises:
            UserError: see ``UniPixel.segment``.
        """
        photo = source.is_image if isinstance(source, FrameSource) else True
        shape = size or next(iter(source)).pixels.shape
        with self.turn() as model:
            return model.track(source, prompt, max_new_tokens=self.limits.tokens, **self.budget(shape, photo))

    def segment(self, path: str | Path | None, prompt: str, *, photo: bool, tell: Callable[[int, int], None] = lambda done, of: None) -> Result:
        """Segment what a prompt asks for on every frame.

        Args:
            path: the upload.
            prompt: the visitor's words.
            photo: whether it is taken as one photo.
            tell: is called with the number of frames that are done, and of all.

        Raises:
            UserError: see ``UniPixel.segment`` and ``media.open_media``.
        """
        source = open_photo(path, self.limits) if photo else open_media(path, self.limits)
        began = time.perf_counter()
        stream = self.track(source, prompt)
        answered = time.perf_counter() - began
        collector = Collector()
        if stream.answer.spans:
            for result in self.frames(stream):
                collector.add(result.to_json())
                tell(len(collector.frames), len(source))
        prediction = collector.prediction(stream.answer)
        figures = Figures(time.perf_counter() - began, len(prediction.tokens), answered, len(collector.frames))
        return Result(Path(str(path)), prediction, figures)

    def frames(self, stream: Stream) -> Iterator[FrameResult]:
        """The results of a stream's frames, between which others have their turn."""
        while True:
            with self.turn():
                result = next(stream, None)
            if result is None:
                return
            yield result

    def ask(self, path: str | Path | None, question: str, references: Sequence[Point | Box | Mask]) -> Result:
        """Ask about what a visitor points at.

        Raises:
            UserError: see ``UniPixel.ask`` and ``media.open_media``.
        """
        clip = sampled(path, self.limits)
        began = time.perf_counter()
        with self.turn() as model:
            found = model.ask(clip, question, references, max_new_tokens=self.limits.tokens, **self.budget(clip.frames.shape[1:3], clip.is_image))
        figures = Figures(time.perf_counter() - began, len(found.tokens), None, len(found.frames))
        return Result(Path(str(path)), found, figures)

    def chat(self, path: str | Path | None) -> Chat:
        """Begin a conversation about an upload.

        Raises:
            UserError: see ``media.open_media``.
        """
        clip = sampled(path, self.limits)
        with self.turn():
            return self._chat(clip)

    def _chat(self, clip: Clip) -> Chat:
        options = self.budget(clip.frames.shape[1:3], clip.is_image)
        prepared = batch.prepare_media(clip, self.model.config, sample_frames=SAMPLE_FRAMES, **options)
        return Chat(self.model.loaded, clip, prepared, self.model.sampling, self.model.seed)


def require_prompt(prompt: str | None) -> str:
    """A visitor's words.

    Raises:
        UserError: there are none.
    """
    if not (prompt or "").strip():
        raise UserError("there are no words yet: say what to look for, for example 'Please segment the large blue square.'")
    return str(prompt).strip()
