"""Time two ways to do the same thing alternately, and format their figures as rows of a Markdown table."""

import ctypes
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

HEADER = ("", "this project", "peer", "ratio", "to reach", "reached")


def in_turns(own: Callable[[], Any], peer: Callable[[], Any], rounds: int) -> tuple[float, float, float]:
    """Time both alternately in one run, so that other load on the machine slows both alike.

    Each runs once to warm up, then once per round, in an order that changes from round to round.

    Returns:
        Median seconds of each, and the median over the rounds of the ratio of the peer's time to the own time.
    """
    times: tuple[list[float], list[float]] = ([], [])
    own(), peer()
    for i in range(rounds):
        for k in (0, 1) if i % 2 == 0 else (1, 0):
            start = time.perf_counter()
            (own, peer)[k]()
            times[k].append(time.perf_counter() - start)
    ratios = [theirs / ours for ours, theirs in zip(*times)]
    return statistics.median(times[0]), statistics.median(times[1]), statistics.median(ratios)


def timed(what: str, own: Callable[[], Any], peer: Callable[[], Any], rounds: int, to_reach: float | None) -> tuple:
    """Return a row with the milliseconds of both."""
    progress(what)
    ours, theirs, ratio = in_turns(own, peer, rounds)
    return compared(what, milliseconds(ours), milliseconds(theirs), ratio, to_reach)


def compared(what: str, own: str, peer: str, ratio: float, to_reach: float | None) -> tuple:
    """Return a row; `ratio` is how many times better the own figure is, `to_reach` the goal for it, if any."""
    goal = ("", "") if to_reach is None else (f"{to_reach:g}x", "yes" if ratio >= to_reach else "no")
    return (what, own, peer, f"{ratio:.1f}x" if ratio >= 2 else f"{ratio:.2f}x", *goal)


def table(title: str, rows: Sequence[tuple], header: Sequence[str] = HEADER) -> str:
    """Format rows as a Markdown table."""
    lines = [(title, *header[1:]), ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 10 else f"{seconds:.1f} s"


def megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"


def progress(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def peak_memory(run: Callable[[], Any], warm_up: Callable[[], Any]) -> int:
    """Return the bytes by which a separate process grows at most during `run`, without what `warm_up` loads."""
    return in_child(grown_by, run, warm_up)


def grown_by(run: Callable[[], Any], warm_up: Callable[[], Any]) -> int:
    warm_up()
    if not CLEAR_REFS.exists():  # not Linux: the earlier peak cannot be reset, and may hide that of `run`
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run()
        return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that malloc keeps would be reused without growth
    CLEAR_REFS.write_text("5")
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


CLEAR_REFS = Path("/proc/self/clear_refs")


def status(field: str) -> int:
    """Return a size of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def in_child(run: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a separate process, which then ends with all its memory; return its result."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def work() -> None:
        torch.set_num_threads(1)  # the threads of this process do not exist in a fork
        results.put(run(*arguments))

    child = context.Process(target=work)
    child.start()
    result = results.get()
    child.join()
    return result
