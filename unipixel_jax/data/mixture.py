"""The order of training: the samples of every global batch, as a pure function of seed and step.

Every source is there as often as its repeat says. All samples of a global batch are of one ``data_type``, since each kind of sample has other arrays and
losses: in every epoch the samples of a kind are shuffled and cut into batches, an incomplete last one is left out, and the batches of all kinds are
shuffled. Nothing depends on how many hosts there are or on what was asked before, so the only state of training on a mixture is the number of its step.

N samples of an epoch, K steps of an epoch, B samples of a global batch. Source: ``HybridDataset`` in UniPixel's ``unipixel/dataset/hybrid.py`` and
``GroupSampler`` in ``unipixel/train/custom_trainer.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.data.annotation import Annotation, Source
from unipixel_jax.errors import UserError

_SPLIT_REPEAT = re.compile(r"(.*?)(?::([-+]?[\d.]*))?", re.DOTALL)


def parse(text: str) -> dict[str, int]:
    """Names of sources and how often each is repeated, from ``"refcoco:10,mevis"``.

    What follows the last colon is a repeat if it looks like a number, else it belongs to the name (``"tfds:ref_coco:2"``).

    Raises:
        UserError: an empty name, a repeat that is not a positive integer, or a name given twice.
    """
    repeats: dict[str, int] = {}
    for item in text.split(","):
        match = _SPLIT_REPEAT.fullmatch(item.strip())
        name, repeat = match.groups() if match else ("", None)
        name = name.strip()
        if not name:
            raise UserError(f"the data sets {text!r} hold an empty name: expected NAME or NAME:REPEAT, separated by commas, for example refcoco:10,mevis")
        if repeat is not None and not (repeat.isdecimal() and int(repeat) > 0):
            raise UserError(f"the repeat of {item.strip()!r} is {repeat!r}: expected a positive integer, for example {name}:10")
        if name in repeats:
            raise UserError(f"{name} is listed twice in {text!r}: list it once and add up the repeats, for example {name}:2")
        repeats[name] = int(repeat or 1)
    return repeats


@dataclass(frozen=True)
class Part:
    """A source of a mixture.

    Attributes:
        source: its samples.
        repeat: how often each of them comes in an epoch.
    """

    source: Source
    repeat: int = 1


class Mixture:
    """Several sources, and the order in which their samples are trained on."""

    def __init__(self, parts: Sequence[Part], batch_size: int, seed: int = 0) -> None:
        """Read the kinds of all samples, and nothing else of them.

        Args:
            parts: the sources.
            batch_size: B, over all hosts.
            seed: seed of the order.

        Raises:
            UserError: no sources, an empty one, or no kind that fills a batch.
        """
        if not parts:
            raise UserError("there are no data sets to train on: name at least one")
        if batch_size < 1:
            raise UserError(f"the batch size is {batch_size}, expected at least 1")
        for part in parts:
            if not len(part.source):
                raise UserError(f"{part.source.name} has no samples after filtering: leave it out, or loosen the filters")
        self.parts = tuple(parts)
        self.batch_size = batch_size
        self.seed = seed
        numbers: dict[str, int] = {}
        self._kinds_of_part = [
            np.fromiter((numbers.setdefault(kind, len(numbers)) for kind in part.source.data_types), np.int16, len(part.source)) for part in self.parts
        ]
        self.kinds = tuple(numbers)
        """The data types, in the order in which they are first met."""
        self._starts = np.cumsum([0, *(len(part.source) * part.repeat for part in self.parts)])
        if self._starts[-1] > np.iinfo(np.int32).max:
            raise UserError(f"the data sets hold {self._starts[-1]} samples with repeats, expected at most {np.iinfo(np.int32).max}: lower the repeats")
        kinds = np.concatenate([np.tile(k, part.repeat) for k, part in zip(self._kinds_of_part, self.parts, strict=True)])
        self._members = [np.flatnonzero(kinds == number).astype(np.int32) for number in range(len(self.kinds))]
        self.steps_per_epoch = sum(len(members) // batch_size for members in self._members)
        """K, the number of whole global batches in an epoch."""
        if not self.steps_per_epoch:
            counts = ", ".join(f"{len(members)} of {kind}" for kind, members in zip(self.kinds, self._members, strict=True))
            raise UserError(f"no kind of sample fills a batch of {batch_size} ({counts}): use a smaller batch, or repeat the data sets")
        self._orders: dict[int, NDArray[np.int32]] = {}

    def __len__(self) -> int:
        """N, the samples of an epoch, repeats included."""
        return int(self._starts[-1])

    def batch(self, step: int) -> NDArray[np.int32]:
        """The samples of a global batch, by their numbers in the mixture [B], int32. Steps go on counting from epoch to epoch."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = self._orders.get(epoch)
        if order is None:
            order = self._order(epoch)
            # Threads draw ahead, so that two orders are in use around the end of an epoch. The dictionary is replaced as a whole, since others may be reading.
            self._orders = {epoch: order, **{e: o for e, o in self._orders.items() if abs(e - epoch) == 1}}
        return order[within]

    def kind(self, step: int) -> str:
        """The data type of a global batch."""
        part, index = self.locate(int(self.batch(step)[0]))
        return self.kinds[self._kinds_of_part[part][index]]

    def locate(self, sample: int) -> tuple[int, int]:
        """The number of the part that a sample comes from, and its number in that source."""
        part = int(np.searchsorted(self._starts, sample, side="right")) - 1
        return part, int(sample - self._starts[part]) % len(self.parts[part].source)

    def annotation(self, sample: int) -> Annotation:
        """A sample by its number in the mixture."""
        part, index = self.locate(sample)
        return self.parts[part].source[index]

    def another(self, tried: Sequence[int], rng: np.random.Generator) -> int:
        """The number of a sample of the same source and kind as those tried, drawn at random. It is one of those tried only if there is no other."""
        (part, index), *_ = places = [self.locate(sample) for sample in tried]
        kinds = self._kinds_of_part[part]
        same = np.flatnonzero(kinds == kinds[index])
        others = np.setdiff1d(same, [i for _, i in places])
        return int(self._starts[part] + rng.choice(others if len(others) else same))

    def shares(self) -> list[dict[str, int]]:
        """For each part, how many samples of each data type it gives to an epoch, with repeats."""
        return [
            {kind: int(count) * part.repeat for kind, count in zip(self.kinds, np.bincount(k, minlength=len(self.kinds)), strict=True) if count}
            for k, part in zip(self._kinds_of_part, self.parts, strict=True)
        ]

    def left_out(self) -> dict[str, int]:
        """The data types with too few samples for a batch, which are never trained on, and how many they have."""
        return {kind: len(members) for kind, members in zip(self.kinds, self._members, strict=True) if len(members) < self.batch_size}

    def fingerprint(self) -> dict[str, Any]:
        """Everything that the order depends on, as values for JSON. The number of a step means the same batch only as long as this stays the same."""
        sources = [{"name": part.source.name, "samples": len(part.source), "repeat": part.repeat} for part in self.parts]
        return {"sources": sources, "batch_size": self.batch_size, "seed": self.seed}

    def changes(self, before: Mapping[str, Any]) -> list[str]:
        """Say how this mixture differs from one with the fingerprint ``before``; nothing where a step means the same batch in both."""
        now = self.fingerprint()
        out = [f"{key}: {before[key]} before, {now[key]} now" for key in ("batch_size", "seed") if before[key] != now[key]]
        then, ours = _described(before["sources"]), _described(now["sources"])
        gone, new = [text for text in then if text not in ours], [text for text in ours if text not in then]
        if gone or new:
            out.append(f"sources: {', '.join(gone) or 'nothing'} before, {', '.join(new) or 'nothing'} now")
        elif then != ours:
            out.append(f"order of the sources: {', '.join(then)} before, {', '.join(ours)} now")
        return out

    def __getstate__(self) -> dict[str, object]:
        """Leave out the orders of epochs, which worker processes make for themselves."""
        return {**self.__dict__, "_orders": {}}

    def _order(self, epoch: int) -> NDArray[np.int32]:
        """The samples of every global batch of an epoch [K, B]."""
        rng = np.random.default_rng([self.seed, epoch])
        size = self.batch_size
        batches = np.concatenate([rng.permutation(m)[: len(m) // size * size].reshape(-1, size) for m in self._members])
        return batches[rng.permutation(len(batches))]


def _described(sources: Any) -> list[str]:
    """A text for each source of a fingerprint. Older checkpoints hold the sources by name, in their order."""
    items = [{"name": name, **rest} for name, rest in sources.items()] if isinstance(sources, Mapping) else sources
    return [f"{item['name']}:{item['repeat']} of {item['samples']} samples" for item in items]
