"""The C library's heap: what a mini-batch frees is kept for the next one."""

import ctypes

# mallopt's names in malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_IN_HEAP, NEVER = 1 << 30, 2**31 - 1  # bytes


def keep_freed():
    """Let malloc keep what is freed instead of giving it back to the system; for this whole process.

    A mini-batch on a CPU frees all of its activations and asks for them again. Where glibc returns them in between,
    which depends on what happens to lie behind them, each 4 KB cost a page fault and are filled with zeros. Where the C
    library is another one nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_IN_HEAP)
        mallopt(M_TRIM_THRESHOLD, NEVER)
