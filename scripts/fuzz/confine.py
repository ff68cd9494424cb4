"""Confinement of a fuzz that root runs: its random arguments name folders and devices of the system, which it could destroy."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_NEW_MOUNTS = 0x00020000
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18
"""Flags of Linux (include/uapi/linux/sched.h and mount.h)."""


def write_only_below(folder: Path) -> None:
    """Make the file system read-only for this process and its children, apart from a folder.

    Nothing is done for users other than root, whom permissions keep from the system's files.

    Raises:
        SystemExit: the system does not allow it.
    """
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: str, target: str, flags: int) -> int:
        return libc.mount(source.encode(), target.encode(), b"", flags, b"")

    done = libc.unshare(_NEW_MOUNTS) == 0 and mount("none", "/", _RECURSIVE | _PRIVATE) == 0 and mount(str(folder), str(folder), _BIND) == 0
    places = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    kept = {str(folder), "/dev/shm"}
    for place in sorted(places - kept, key=len):
        # mounts below the kernel's own file systems cannot always be changed, but hold no files
        done = done and (mount("none", place, _REMOUNT | _BIND | _READ_ONLY) == 0 or place.startswith(("/proc", "/sys", "/dev/")))
    if not done:
        raise SystemExit(f"as root, the fuzz writes below {folder} only, which this system does not allow: run it as another user")
