"""Memory of large tensors on the CPU: what one layer frees the process keeps for the next one."""
import ctypes

# Parameters of mallopt(3).
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4


def keep_freed_memory() -> None:
    """Have malloc give no memory back to the system; for a process that asks for the same again and again.

    By default glibc maps each large tensor anew and unmaps it when it is freed, and the system fills each of its pages
    with zeros and enters it into the tables, one by one: a tenth and more of the time of a network on the CPU. A
    process does not grow beyond its peak by that; it stays there. Without glibc this does nothing.
    """
    set_malloc(MMAP_MAX, 0)
    set_malloc(TRIM_THRESHOLD, -1)


def set_malloc(parameter: int, value: int) -> None:
    """mallopt(3), where there is one."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(parameter, value)
