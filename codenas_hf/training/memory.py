"""What a process does with the memory that a step of training frees."""

from __future__ import annotations

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Lets this process keep the memory that it frees, for the next step of a training.

    glibc gives large blocks back at once and gets them again page by page: ten thousand page faults in a step of a
    model of two million parameters. Where the C library is another one, nothing is changed.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        # Older ones take no threshold above 32 MiB; without any, the other setting would fix it where it is.
        if libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30) or libc.mallopt(_M_MMAP_THRESHOLD, 1 << 25):
            libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
