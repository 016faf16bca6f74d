"""An option for long CPU work: the C library keeps the memory that a step frees for the next step."""

import ctypes
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
# Far above any tensor of ours; older versions of glibc take at most 32 MiB for M_MMAP_THRESHOLD.
_LARGE, _LARGEST_IN_OLD_GLIBC = 2**30, 32 * 2**20


def keep_freed_memory() -> bool:
    """
    Asks glibc to keep freed memory instead of giving it back to the kernel.

    Without it every forward pass hands its large tensors back and takes them anew, page by page, which costs CPU
    inference and training about a fifth of its speed; with it, the process stays as large as its largest step. The
    environment variables `MALLOC_MMAP_THRESHOLD_` and `MALLOC_TRIM_THRESHOLD_` do the same from outside. `ecgfm
    predict` calls this; importing the package does not.

    Returns:
        `bool`: whether it took effect (Linux with glibc only).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    set_mmap = mallopt(_M_MMAP_THRESHOLD, _LARGE) or mallopt(_M_MMAP_THRESHOLD, _LARGEST_IN_OLD_GLIBC)
    return bool(set_mmap) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGE))


__all__ = ["keep_freed_memory"]
