"""Samples of a mixture, drawn in the background and put into batches.

Which samples a step has follows from the mixture, and what is drawn of a sample from the seed and its place in the run. Neither the number of hosts nor
that of workers changes a batch, and the state of a loader is the number of its next step.

B samples of a global batch.
"""

from __future__ import annotations

import io
import logging
import pickle
import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, TypeVar

import grain
import ml_dtypes
import numpy as np
from absl import flags
from numpy.typing import NDArray

from unipixel_jax.core.allocator import keep_memory
from unipixel_jax.data.annotation import Annotation
from unipixel_jax.data.mixture import Mixture
from unipixel_jax.errors import UserError

log = logging.getLogger(__name__)

S = TypeVar("S")
A = TypeVar("A")

Draw = Callable[[Annotation, np.random.Generator], S]
"""Draws one sample of an annotation; a function that can be pickled."""

FAILURES = (OSError, ValueError, LookupError, ArithmeticError, SyntaxError, EOFError)
"""Errors for which a sample is replaced: ``UserError`` (a ValueError), and what readers raise for broken files. Others are mistakes in the program."""

_LAST_STEP = 2**40


@dataclass(frozen=True)
class LoaderOptions:
    """How samples are drawn in the background.

    Attributes:
        workers: processes that make batches; 0 for threads of this process. Most of the work lets other threads run, and what processes make has to be
            copied, so that threads are faster up to a few processors.
        threads: threads that make batches in every worker (or in this process), each a batch at a time.
        buffer: batches that every worker (or this process) holds ready.
        max_retries: how many other samples are tried one after another in place of one that fails.
    """

    workers: int = 0
    threads: int = 2
    buffer: int = 2
    max_retries: int = 10


@dataclass(frozen=True)
class Failure:
    """A sample that was replaced: where it is from, its name, and what was wrong."""

    source: str
    name: str
    reason: str


@dataclass
class Failures:
    """What failed so far: how often by source, and the reason for every sample that did."""

    counts: Counter[str] = field(default_factory=Counter)
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, failure: Failure) -> None:
        """Count a failure; the first of every sample is logged."""
        self.counts[failure.source] += 1
        if (failure.source, failure.name) not in self.reasons:
            self.reasons[failure.source, failure.name] = failure.reason
            log.warning("%s, %s is replaced: %s", failure.source, failure.name, failure.reason)


@dataclass(frozen=True)
class Batch(Generic[A]):
    """One host's part of a global batch: its number, the data type of all of its samples, and the arrays."""

    step: int
    kind: str
    arrays: A


@dataclass(frozen=True)
class _Made:
    """A step as the background hands it over: its arrays (or its samples, where the asking thread collates them), and the samples that failed."""

    content: Any
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class _Rows(Generic[S]):
    """Makes this host's rows of any step.

    Attributes:
        mixture: the order of the samples.
        draw: draws one of them.
        collate: makes arrays of them; None leaves them as they are.
        first: this host's first row of the global batch.
        count: how many rows this host has.
        max_retries: see ``LoaderOptions``.
    """

    mixture: Mixture
    draw: Draw[S]
    collate: Callable[[Sequence[S]], Any] | None
    first: int
    count: int
    max_retries: int

    def __call__(self, step: int) -> _Made:
        failures: list[Failure] = []
        batch = self.mixture.batch(step)
        samples = [self._sample(step, row, int(batch[row]), failures) for row in range(self.first, self.first + self.count)]
        return _Made(samples if self.collate is None else self.collate(samples), tuple(failures))

    def _sample(self, step: int, row: int, sample: int, failures: list[Failure]) -> S:
        """The sample of a row, or another of its source and kind in its place, whose failures are added.

        Raises:
            UserError: ``max_retries`` others failed as well.
        """
        tried = [sample]
        for attempt in range(self.max_retries + 1):
            # The seed names the sample's position in the run, which the number of hosts does not change. It has more entries than the seed of the order of
            # samples (mixture.py), so that the two are never equal.
            rng = np.random.default_rng([self.mixture.seed, step * self.mixture.batch_size + row, attempt + 1])
            annotation = self.mixture.annotation(tried[-1])
            try:
                return self.draw(annotation, rng)
            except FAILURES as error:
                failures.append(Failure(annotation.source, annotation.name, str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"))
                tried.append(self.mixture.another(tried, rng))
        last = failures[-1]
        raise UserError(
            f"{last.source}: {len(tried) - 1} samples of the kind {annotation.data_type} failed one after another, the last one, {last.name}, because: "
            f"{last.reason}. Check the data set with `unipixel-jax data check {last.source}`"
        )


class Loader(Generic[S, A]):
    """Iterates for ever over this host's parts of the global batches, from step 0 or where ``restore`` puts it."""

    def __init__(
        self,
        mixture: Mixture,
        draw: Draw[S],
        collate: Callable[[Sequence[S]], A],
        options: LoaderOptions = LoaderOptions(),
        host: int = 0,
        hosts: int = 1,
        collate_here: bool = False,
        settings: Mapping[str, str] = {},
    ) -> None:
        """Nothing is drawn before the first batch is asked for.

        Args:
            mixture: the order of the samples.
            draw: draws one of them, in the background.
            collate: makes arrays of this host's samples of a step; a function that can be pickled.
            options: what happens in the background.
            host: this host's number.
            hosts: hosts that share every global batch.
            collate_here: collate in the thread that asks for a batch, where ``collate`` talks to other hosts, rather than in the background.
            settings: of the drawing, by name, without which a step is another one; a position of a loader with others is refused.

        Raises:
            UserError: the batch size is no multiple of the number of hosts, or ``host`` is none of them.
        """
        if mixture.batch_size % hosts:
            raise UserError(f"the batch of {mixture.batch_size} samples cannot be shared by {hosts} hosts: use a multiple of {hosts}")
        if not 0 <= host < hosts:
            raise UserError(f"this is host {host}, expected 0 to {hosts - 1}")
        self.mixture = mixture
        self.failures = Failures()
        self.step = 0
        self.settings = dict(settings)
        """The number of the next batch."""
        count = mixture.batch_size // hosts
        self._rows = _Rows(mixture, draw, None if collate_here else collate, host * count, count, options.max_retries)
        self._finish = collate if collate_here else None
        self._options = options
        self._iterator: Any = None

    def __iter__(self) -> Loader[S, A]:
        return self

    def __next__(self) -> Batch[A]:
        """The next batch.

        Raises:
            UserError: too many samples failed one after another, or what ``collate`` raises.
        """
        if self._iterator is None:
            self._iterator = iter(self._dataset())
        made: _Made = _unpack(next(self._iterator)) if self._options.workers else next(self._iterator)
        for failure in made.failures:
            self.failures.add(failure)
        batch = Batch(self.step, self.mixture.kind(self.step), made.content if self._finish is None else self._finish(made.content))
        self.step += 1
        return batch

    def state(self) -> dict[str, Any]:
        """The loader's position as values for JSON: the number of the next step, the fingerprint of the mixture that it is a step of, and the settings."""
        return {"step": self.step, "mixture": self.mixture.fingerprint(), "settings": self.settings}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to the position that a loader had, on any number of hosts.

        Args:
            state: what ``state`` returned there.

        Raises:
            UserError: the state belongs to another mixture or other settings, in which its step means something else.
        """
        before = state.get("settings", {})  # older checkpoints do not tell the settings
        changes = [f"{name}: {before[name]} before, {now} now" for name, now in self.settings.items() if before.get(name, now) != now]
        if changes := self.mixture.changes(state["mixture"]) + changes:
            raise UserError(f"the data has changed since the checkpoint ({'; '.join(changes)}): go on with the same, or start a new run from its weights")
        self.close()
        self.step = int(state["step"])

    def close(self) -> None:
        """End the work in the background; the next batch starts it again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __enter__(self) -> Loader[S, A]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _dataset(self) -> grain.IterDataset[Any]:
        """The steps that the background makes, from the next one on."""
        options = self._options
        made = grain.MapDataset.range(self.step, _LAST_STEP).map(self._rows)
        reading = grain.ReadOptions(num_threads=options.threads, prefetch_buffer_size=max(options.threads, options.buffer))
        if not options.workers:
            return made.to_iter_dataset(reading)
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads absl's flags when it starts processes, and fails where no program has parsed them
        return made.map(_pack).to_iter_dataset(reading).mp_prefetch(grain.MultiprocessingOptions(options.workers, options.buffer), _begin)


def _begin(worker: int, workers: int) -> None:
    """Prepare a worker process before its first batch."""
    keep_memory()
    # Ctrl-C and schedulers signal a whole group of processes. The trainer finishes its step, for which it needs its workers, and then ends them.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class _Pickler(pickle.Pickler):
    """A pickler that keeps bfloat16 arrays out of the pickle too, which numpy would write into it by value."""

    def reducer_override(self, obj: object) -> Any:
        if isinstance(obj, np.ndarray) and obj.dtype == ml_dtypes.bfloat16:
            return _bfloat16, (obj.view(np.uint16),)
        return NotImplemented


def _bfloat16(bits: NDArray[np.uint16]) -> NDArray[Any]:
    return bits.view(ml_dtypes.bfloat16)


def _pack(value: object) -> dict[str, Any]:
    """A pickled value with its arrays apart, which Grain hands over in shared memory."""
    buffers: list[pickle.PickleBuffer] = []
    rest = io.BytesIO()
    _Pickler(rest, protocol=5, buffer_callback=buffers.append).dump(value)
    return {"rest": rest.getvalue(), "buffers": [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]}


def _unpack(packed: Mapping[str, Any]) -> Any:
    return pickle.loads(packed["rest"], buffers=packed["buffers"])
