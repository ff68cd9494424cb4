"""How the C library's allocator (glibc's malloc) treats the memory of freed arrays."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
"""The numbers of options of glibc's ``mallopt`` (malloc.h)."""


def keep_memory() -> None:
    """Tell the allocator to keep the memory of freed arrays for later ones. It holds for the rest of the process, whose memory never shrinks again.

    By default glibc asks the system for the memory of every large array and returns it afterwards. The system clears each page when it is first touched, which
    can take a quarter of the time of making a batch of images. Call it before there are threads, in processes that make batches of one size one after the
    other. Nothing happens with another C library.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "gnu_get_libc_version"):
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 2**28), (_ARENA_MAX, 1)):
            library.mallopt(option, value)
