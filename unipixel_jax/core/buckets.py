"""The sizes that compiled programs may have: every length, count and batch is padded up to the next bucket.

A program is compiled once per combination of sizes, so a bucket bounds how many programs can exist, and its growth bounds how much work is wasted
on padding: ``size(n) < max(n, step) * growth + step``.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from unipixel_jax.errors import UserError


@dataclass(frozen=True)
class Buckets:
    """The allowed sizes of one dimension: multiples of ``step``, each at least ``growth`` times the one before, up to ``limit``.

    Attributes:
        what: what is counted, as an error message names it.
        step: the smallest size; every other one is a multiple of it.
        growth: ratio of neighbouring sizes; where it asks for less than a step, the sizes are a step apart.
        limit: no size is larger.
        quarters: whether the sizes are 1, 1.25, 1.5 and 1.75 times a power of two, in steps, so that many devices divide them: 64 stays 64, 8 devices divide
            every size from 32 steps on, and 16 devices from 64 on. ``growth`` is then 1.25, the largest ratio of such neighbours beyond four steps.
    """

    what: str
    step: int
    growth: float
    limit: int
    quarters: bool = False

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Every allowed size, in increasing order."""
        sizes = [self.step]
        while sizes[-1] < self.limit:
            steps = sizes[-1] // self.step
            grown = steps + max(1, (1 << steps.bit_length()) // 8) if self.quarters else max(steps + 1, int(sizes[-1] * self.growth) // self.step)
            sizes.append(min(grown * self.step, self.limit))
        return tuple(sizes)

    def size(self, n: int) -> int:
        """Return the smallest allowed size that is at least ``n``.

        Raises:
            UserError: ``n`` is negative, or larger than ``limit``.
        """
        if not 0 <= n <= self.limit:
            raise UserError(f"{n} {self.what}, expected 0 to {self.limit}: use a smaller input, fewer frames or a smaller batch")
        return self.sizes[bisect.bisect_left(self.sizes, n)]


@dataclass(frozen=True)
class BucketTable:
    """The buckets of every dimension whose length depends on the input. Each attribute is what its buckets count.

    Attributes:
        batch: prompts that run together.
        tokens: length of the longest prompt.
        new_tokens: tokens to generate.
        patches: patches of all clips of a batch.
        frame_patches: patches of the largest frame.
        grid_frames: pairs of frames of all clips of a batch.
        frames: frames of one clip, for SAM.
        objects: objects that are segmented together.
        references: points and boxes of a batch.
        memories: ``<|mem|>`` tokens of a batch.
        memory_tokens: merged tokens under one memory's mask.
    """

    batch: Buckets = Buckets("prompts in a batch", 1, 1.5, 256)
    tokens: Buckets = Buckets("prompt tokens", 64, 1.25, 65536)
    new_tokens: Buckets = Buckets("new tokens", 32, 2.0, 8192)
    patches: Buckets = Buckets("image patches", 64, 1.25, 262144)
    frame_patches: Buckets = Buckets("image patches of a frame", 64, 1.25, 262144)
    grid_frames: Buckets = Buckets("pairs of frames", 1, 1.25, 4096)
    frames: Buckets = Buckets("frames", 1, 1.25, 8192, quarters=True)
    objects: Buckets = Buckets("objects", 1, 1.25, 256)
    references: Buckets = Buckets("points and boxes", 4, 2.0, 1024)
    memories: Buckets = Buckets("memory tokens", 16, 2.0, 8192)
    memory_tokens: Buckets = Buckets("image tokens under one mask", 64, 2.0, 65536)

    def fixed(self, sizes: Mapping[str, int]) -> BucketTable:
        """Return these buckets with a single size for each named dimension, so that hosts that agreed on the sizes make arrays of the same shape."""
        return replace(self, **{name: replace(getattr(self, name), step=size, limit=size) for name, size in sizes.items()})


BUCKETS = BucketTable()
"""The default buckets."""
