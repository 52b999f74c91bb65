"""Two ways to do the same thing, timed in turns, and their figures as rows of a Markdown table."""
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
    """Time both within one run, so that a machine that others use as well is slow for both.

    Each runs once to warm up, then once a round, in an order that changes from round to round.

    Returns:
        Median seconds of each, and the median over the rounds of how many times the peer's the own time fits into.
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
    """A row: milliseconds of both."""
    progress(what)
    ours, theirs, ratio = in_turns(own, peer, rounds)
    return compared(what, milliseconds(ours), milliseconds(theirs), ratio, to_reach)


def compared(what: str, own: str, peer: str, ratio: float, to_reach: float | None) -> tuple:
    """A row; `ratio` says how many times better the own figure is, `to_reach` how many it should be, if any."""
    goal = ("", "") if to_reach is None else (f"{to_reach:g}x", "yes" if ratio >= to_reach else "no")
    return (what, own, peer, f"{ratio:.1f}x" if ratio >= 2 else f"{ratio:.2f}x", *goal)


def table(title: str, rows: Sequence[tuple], header: Sequence[str] = HEADER) -> str:
    """Markdown."""
    lines = [(title, *header[1:]), ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 10 else f"{seconds:.1f} s"


def megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"


def progress(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def peak_memory(run: Callable[[], Any], warm_up: Callable[[], Any]) -> int:
    """Bytes by which a process of its own grows, at most, while it runs this; what `warm_up` loads is left out."""
    return in_child(grown_by, run, warm_up)


def grown_by(run: Callable[[], Any], warm_up: Callable[[], Any]) -> int:
    warm_up()
    if not CLEAR_REFS.exists():  # no Linux: the peak so far cannot be forgotten, and may hide that of `run`
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run()
        return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that is kept for later would be taken without growing
    CLEAR_REFS.write_text("5")
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


CLEAR_REFS = Path("/proc/self/clear_refs")


def status(field: str) -> int:
    """A size of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def in_child(run: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns, called in a process of its own that is then gone with all its memory."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def work() -> None:
        torch.set_num_threads(1)  # the threads of this process do not live on in a fork
        results.put(run(*arguments))

    child = context.Process(target=work)
    child.start()
    result = results.get()
    child.join()
    return result
