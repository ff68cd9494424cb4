"""What the C library does with the memory of arrays that are gone."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
"""Options of glibc's ``mallopt`` (malloc.h)."""


def keep_memory() -> None:
    """Keep the memory of freed arrays for the next ones, for the rest of the process, which never gets smaller again.

    glibc asks the system for every large array anew and gives it back, and the system clears each page when it is first touched, which can be a quarter of the
    time of making a batch of images. Call it where batches of one size follow each other, before there are threads. Nothing happens with another C library.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "gnu_get_libc_version"):
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 2**28), (_ARENA_MAX, 1)):
            library.mallopt(option, value)
