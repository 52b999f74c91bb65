"""Keep the memory that one layer frees for the next one, for large tensors on the CPU."""

import ctypes

# Parameters of mallopt(3).
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4


def keep_freed_memory() -> None:
    """Stop malloc from returning memory to the system; for a process that allocates the same sizes again and again.

    By default glibc maps each large tensor separately and unmaps it when it is freed, and the system zeroes and maps
    its pages one by one: a tenth or more of a network's time on the CPU. The process does not exceed its peak memory,
    but stays there. Without glibc this does nothing.
    """
    set_malloc(MMAP_MAX, 0)
    set_malloc(TRIM_THRESHOLD, -1)


def set_malloc(parameter: int, value: int) -> None:
    """Call mallopt(3), where the C library has it."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(parameter, value)
