"""Samples of a mixture, drawn in the background and put into batches.

Which samples a step has follows from the mixture, and what is drawn of a sample from the seed and its place in the run. Neither the number of hosts nor
that of workers changes a batch, and the state of a loader is the number of its next step.

B samples of a global batch, P place of a sample in the run: the number of its step times B, plus its row.
"""

from __future__ import annotations

import json
import logging
import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, TypeVar

import grain
import numpy as np
from absl import flags
from numpy.typing import NDArray

from unipixel_jax.data.annotation import Annotation
from unipixel_jax.data.mixture import Mixture
from unipixel_jax.errors import UserError

log = logging.getLogger(__name__)

S = TypeVar("S")
A = TypeVar("A")

Draw = Callable[[Annotation, np.random.Generator], S]
"""Draws one sample of an annotation; a function that can be pickled."""

FAILURES = (OSError, ValueError, LookupError, ArithmeticError, SyntaxError, EOFError)
"""What a sample may fail with and be replaced: ``UserError``, and what readers raise for broken files. Anything else is a mistake in the program."""

_LAST_PLACE = 2**62


@dataclass(frozen=True)
class LoaderOptions:
    """How samples are drawn in the background.

    Attributes:
        workers: processes that draw; 0 for threads of this process, which start at once but share one interpreter.
        threads: that draw, in every worker (or here).
        buffer: samples that every worker (or this process) holds ready.
        max_retries: other samples tried in a row in place of one that fails.
    """

    workers: int = 0
    threads: int = 2
    buffer: int = 4
    max_retries: int = 10


@dataclass(frozen=True)
class Failure:
    """A sample that was replaced: where it is from, its name, and what was wrong."""

    source: str
    name: str
    reason: str


@dataclass(frozen=True)
class Drawn(Generic[S]):
    """A sample, and those that failed in its place."""

    sample: S
    failures: tuple[Failure, ...]


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
class SampleAt(Generic[S]):
    """Draws the sample at any place of a run; what fails is replaced by another of its source and kind.

    Attributes:
        mixture: the order of the samples.
        draw: draws one of them.
        max_retries: see ``LoaderOptions``.
    """

    mixture: Mixture
    draw: Draw[S]
    max_retries: int

    def __call__(self, place: int) -> Drawn[S]:
        """The sample at place P.

        Raises:
            UserError: ``max_retries`` replacements failed as well.
        """
        step, row = divmod(int(place), self.mixture.batch_size)
        tried = [int(self.mixture.batch(step)[row])]
        failures: list[Failure] = []
        for attempt in range(self.max_retries + 1):
            rng = np.random.default_rng([self.mixture.seed, place, attempt + 1])
            annotation = self.mixture.annotation(tried[-1])
            try:
                return Drawn(self.draw(annotation, rng), tuple(failures))
            except FAILURES as error:
                failures.append(Failure(annotation.source, annotation.name, str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"))
                tried.append(self.mixture.another(tried, rng))
        last = failures[-1]
        raise UserError(
            f"{last.source}: {len(failures)} samples of the kind {annotation.data_type} failed one after another, the last one, {last.name}, because: "
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
    ) -> None:
        """Nothing is drawn before the first batch is asked for.

        Args:
            mixture: the order of the samples.
            draw: draws one of them, in the background.
            collate: makes arrays of this host's samples of a step, in the thread that asks for the batch.
            options: what happens in the background.
            host: this host's number.
            hosts: hosts that share every global batch.

        Raises:
            UserError: a batch that does not divide among the hosts, or a host that is none of them.
        """
        if mixture.batch_size % hosts:
            raise UserError(f"the batch of {mixture.batch_size} samples cannot be shared by {hosts} hosts: use a multiple of {hosts}")
        if not 0 <= host < hosts:
            raise UserError(f"this is host {host}, expected 0 to {hosts - 1}")
        self.mixture = mixture
        self.failures = Failures()
        self.step = 0
        """The number of the next batch."""
        self._sample_at = SampleAt(mixture, draw, options.max_retries)
        self._collate = collate
        self._options = options
        self._rows = (host * (mixture.batch_size // hosts), mixture.batch_size // hosts)
        self._iterator: Any = None

    def __iter__(self) -> Loader[S, A]:
        return self

    def __next__(self) -> Batch[A]:
        """The next batch.

        Raises:
            UserError: see ``SampleAt``, and what ``collate`` raises.
        """
        if self._iterator is None:
            self._iterator = iter(self._dataset())
        samples = []
        for _ in range(self._rows[1]):
            drawn: Drawn[S] = _unpack(next(self._iterator)) if self._options.workers else next(self._iterator)
            samples.append(drawn.sample)
            for failure in drawn.failures:
                self.failures.add(failure)
        batch = Batch(self.step, self.mixture.kind(self.step), self._collate(samples))
        self.step += 1
        return batch

    def state(self) -> dict[str, Any]:
        """Where the loader is, as JSON: the number of the next step, and what it is a step of."""
        return {"step": self.step, "mixture": self.mixture.fingerprint()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to where a loader was, on any number of hosts.

        Raises:
            UserError: the state belongs to another mixture, in which its step means something else.
        """
        ours, theirs = self.mixture.fingerprint(), dict(state["mixture"])
        if ours != theirs:
            keys = [key for key in {**theirs, **ours} if ours.get(key) != theirs.get(key)]
            changed = [f"{key}: {json.dumps(theirs.get(key))} before, {json.dumps(ours.get(key))} now" for key in keys]
            raise UserError(f"the data has changed since the checkpoint ({'; '.join(changed)}): go on with the same, or start a new run from its weights")
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
        """Samples of this host in order, from the next step on."""
        first, rows = self._rows
        options = self._options
        places = grain.MapDataset.range(self.step * rows, _LAST_PLACE // self.mixture.batch_size * rows)
        samples = places.map(_Place(self.mixture.batch_size, first, rows)).map(self._sample_at)
        reading = grain.ReadOptions(num_threads=options.threads, prefetch_buffer_size=max(options.threads, options.buffer))
        if not options.workers:
            return samples.to_iter_dataset(reading)
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads flags when it starts processes, and fails where no absl program has parsed them
        return samples.map(_pack).to_iter_dataset(reading).mp_prefetch(grain.MultiprocessingOptions(options.workers, options.buffer))


@dataclass(frozen=True)
class _Place:
    """From the number of a sample on this host to its place in the run."""

    batch_size: int
    first: int
    rows: int

    def __call__(self, number: int) -> int:
        step, row = divmod(int(number), self.rows)
        return step * self.batch_size + self.first + row


def _pack(value: object) -> dict[str, Any]:
    """A value with its arrays apart, which Grain hands over in shared memory."""
    buffers: list[pickle.PickleBuffer] = []
    rest = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return {"rest": rest, "buffers": [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]}


def _unpack(packed: Mapping[str, Any]) -> Any:
    buffers: Sequence[NDArray[np.uint8]] = packed["buffers"]
    return pickle.loads(packed["rest"], buffers=buffers)
